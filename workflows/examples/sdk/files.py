"""Write, read and list files on a machine, and copy files and directories in both directions."""

import tempfile
from pathlib import Path

import gibil

with gibil.create(ttl="10m") as machine, tempfile.TemporaryDirectory() as folder:
    machine.files.write("/root/data/numbers.txt", "1\n2\n3\n")
    print(machine.files.read("/root/data/numbers.txt").split())

    source = Path(folder, "source")
    source.mkdir()
    (source / "add.sh").write_text("paste -sd+ /root/data/numbers.txt | { read -r line; echo $((line)); }\n")
    print(machine.files.upload(source, "/root/tools").files, "file uploaded")

    machine.run("bash /root/tools/add.sh >/root/data/sum.txt", check=True)
    print([entry.name for entry in machine.files.list("/root/data")])

    machine.files.download("/root/data", Path(folder, "data"))
    print("sum:", Path(folder, "data", "sum.txt").read_text(), end="")
