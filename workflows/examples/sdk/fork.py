"""Try two things at once, each on a copy of a machine that is prepared once."""

import gibil

with gibil.create(name="base") as base:
    base.files.write("notes.txt", "prepared once\n")
    with base.fork_fleet(2, name="attempt") as attempts:
        attempts[0].run("echo first >>notes.txt", check=True)
        attempts[1].run("echo second >>notes.txt", check=True)
        for attempt in attempts:
            print(attempt.name, attempt.files.read("notes.txt").split("\n")[1])
    print(base.files.read("notes.txt"), end="")
