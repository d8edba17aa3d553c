"""`gibil cp`, `gibil ssh -L`, `gibil info` and `--env-file` on a local machine."""

from __future__ import annotations

import json
import signal
import socket
import stat
import subprocess
from collections.abc import Iterator

import pytest

from tests.doubles.commandline import CommandLine, command_line
from tests.doubles.machines import shared_folder
from tests.doubles.patience import patient

pytestmark = [pytest.mark.usefixtures("local_machines"), pytest.mark.xdist_group("machine_copies")]

THROUGH = "copy through this computer: gibil cp box:a - | gibil cp - box:b"


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory, local_machines: None) -> Iterator[CommandLine]:
    with command_line(tmp_path_factory.mktemp("copies"), shared_folder(tmp_path_factory)) as line:
        line.json("create", "--name", "box", "--ttl", "1h")
        yield line


def test_a_folder_comes_back_as_it_went(line: CommandLine) -> None:
    source = line.here / "source"
    (source / "bin").mkdir(parents=True)
    (source / "bin" / "tool").write_text("#!/bin/sh\necho works\n")
    (source / "bin" / "tool").chmod(0o750)
    (source / "big").write_bytes(bytes(range(256)) * 20_000)
    (source / "link").symlink_to("bin/tool")
    sent = line.json("cp", "source", "box:")
    assert sent | {"duration_s": 0} == {
        "name": "box", "source": "source", "destination": "box:/root/source", "files": 3,
        "bytes": 5_120_000 + 21, "duration_s": 0, "left_out": [], "left_out_total": 0,
    }  # fmt: skip
    assert line.gibil("run", "box", "source/link").stdout == "works\n"
    received = line.json("cp", "box:source", "back")
    assert (received["files"], received["bytes"], received["destination"]) == (3, 5_120_021, "back")
    back = line.here / "back"
    assert (back / "big").read_bytes() == (source / "big").read_bytes()
    assert stat.S_IMODE((back / "bin" / "tool").stat().st_mode) == 0o750
    assert (back / "link").readlink() == (source / "link").readlink()
    line.json("cp", "box:/root/source/", "back")  # into the folder, which exists now
    assert (back / "source" / "big").exists()


def test_a_file_keeps_its_mode_and_replaces_the_old_one_when_it_is_complete(line: CommandLine) -> None:
    (line.here / "file").write_text("one")
    (line.here / "file").chmod(0o640)
    assert line.json("cp", "file", "box:/srv/renamed")["destination"] == "box:/srv/renamed"
    assert line.gibil("run", "box", "stat -c %a /srv/renamed; cat /srv/renamed").stdout == "640\none"
    (line.here / "file").write_text("old")
    assert line.gibil("cp", "box:/srv/renamed", "file").returncode == 0
    assert (line.here / "file").read_text() == "one"
    assert stat.S_IMODE((line.here / "file").stat().st_mode) == 0o640


def test_a_dash_is_stdin_or_stdout(line: CommandLine) -> None:
    done = line.bash("printf 'a\\0b' | gibil cp - box:/root/streamed && gibil cp box:streamed - | od -An -c")
    assert (done.returncode, done.stdout.split()) == (0, ["a", "\\0", "b"]), done.stderr


def test_a_machine_does_not_choose_the_name_of_a_copy(line: CommandLine) -> None:
    if line.gibil("run", "box", "test -w /usr/bin").returncode != 0:
        pytest.skip("the programs of a machine can be replaced only where root started it")
    (line.here / "safe").mkdir()
    program = "printf '#!/bin/sh\\necho /root/few/sub/..\\n' >/usr/bin/readlink && chmod 755 /usr/bin/readlink"
    attack = f"mv /usr/bin/readlink /root/real && {program}"
    assert line.gibil("run", "box", f"mkdir -p /root/few/sub; {attack}").returncode == 0
    try:
        received = line.json("cp", "box:few/.", "safe")
        assert received["destination"] == "safe/few"
    finally:
        line.gibil("run", "box", "mv /root/real /usr/bin/readlink")
    assert [each.name for each in (line.here / "safe").iterdir()] == ["few"]
    done = line.gibil("cp", "box:..", "safe")
    assert "the root directory can't be copied" in done.stderr


def test_git_does_not_run_what_a_machine_sends(line: CommandLine) -> None:
    """A folder is copied over a checkout, whose hooks and settings the user's git obeys."""
    subprocess.run(["git", "init", "-q", "checkout"], cwd=line.here, check=True)
    before = (line.here / "checkout" / ".git" / "config").read_bytes()
    send = "mkdir -p checkout/.git/hooks && cd checkout && echo x >file && echo '[core] fsmonitor = x' >.git/config"
    assert (
        line.gibil(
            "run", "box", f"{send} && echo x >.git/hooks/post-checkout && mkdir -p new/.git && echo x >new/.git/config"
        ).returncode
        == 0
    )
    done = line.gibil("cp", "box:checkout", ".", "--json")
    view = json.loads(done.stdout)
    assert (done.returncode, view["files"]) == (1, 2)
    assert "gibil: left out .git: it belongs to a git repository" in done.stderr
    assert (line.here / "checkout" / ".git" / "config").read_bytes() == before
    assert not (line.here / "checkout" / ".git" / "hooks" / "post-checkout").exists()
    assert (line.here / "checkout" / "file").exists()


def test_what_a_machine_may_not_write_here_is_left_out_and_fails(line: CommandLine) -> None:
    line.gibil("run", "box", "mkdir hostile && cd hostile && ln -s /etc/passwd out && mkfifo pipe && echo good >good")
    done = line.gibil("cp", "box:hostile", ".", "--json")
    view = json.loads(done.stdout)
    assert (done.returncode, view["files"], view["left_out_total"]) == (1, 1, 2)
    assert "gibil: left out out: it is a link to something outside of the copied directory" in done.stderr
    assert [each.name for each in (line.here / "hostile").iterdir()] == ["good"]


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("box:absent", "."), "FILE_NOT_FOUND", "there is no absent on machine box"),
        (("absent", "box:"), "FILE_NOT_FOUND", "there is no 'absent' on this computer"),
        (("box:/", "."), "USAGE", "the root directory can't be copied; name a directory in it"),
        (("box:/etc/hostname", "absent/"), "NOT_A_FOLDER", "there is no directory absent/"),
        (("box:/dev/null", "x"), "NOT_A_FILE", "/dev/null on machine box is neither a file nor a directory"),
        ((".", "box:/absent/x"), "NOT_A_FOLDER", "there is no directory /absent on machine box"),
        (("box:a", "box:b"), "USAGE", f"both paths are on a machine; {THROUGH}"),
        (("a", "b"), "USAGE", "write one of the paths as NAME:PATH, with a machine's name: gibil cp a NAME:b"),
    ],
)  # fmt: skip
def test_a_copy_that_is_not_possible_is_rejected(line: CommandLine, words: tuple[str, str], code: str, message: str) -> None:
    done = line.gibil("cp", *words, "--json")
    assert done.returncode == 2, done.stderr
    view = json.loads(done.stdout)
    assert (view["code"], view["error"]) == (code, message)


def test_info_shows_everything_about_a_machine(line: CommandLine) -> None:
    view = line.json("info", "box")
    assert (view["name"], view["provider"], view["ready"], view["problem"]) == ("box", "local", True, None)
    assert view["stats"]["cpus"] > 0
    assert view["jobs"] == [job for job in view["jobs"] if job["job_id"]]
    shown = line.gibil("info", "box").stdout
    assert "memory" in shown
    assert "expires" in shown


def test_variables_of_a_file_reach_the_command(line: CommandLine) -> None:
    (line.here / "vars").write_text('A="1"\nHERE\nB=file\n')
    done = line.gibil("run", "box", 'echo "$A $HERE $B"', "--env-file", "vars", "--env", "B=entry", HERE="here")
    assert done.stdout == '"1" here entry\n', done.stderr


SERVER = """\
use IO::Socket::INET;
my $l = IO::Socket::INET->new(LocalAddr => "127.0.0.1", LocalPort => 3000, Listen => 5, ReuseAddr => 1) or die;
$| = 1; print "listening\\n"; while (my $s = $l->accept) { my $all = ""; while (sysread $s, my $d, 65536) { $all .= $d }
print $s length($all) . " bytes"; close $s }
"""


def test_a_forwarded_port_reaches_a_program_on_the_machine(line: CommandLine) -> None:
    (line.here / "server.pl").write_text(SERVER)
    assert line.gibil("cp", "server.pl", "box:").returncode == 0
    job = line.json("run", "box", "perl server.pl", "--background")["job_id"]
    until = f"until gibil logs box {job} | grep -q listening; do :; done"
    assert line.bash(until).returncode == 0
    forwarding = line.start("ssh", "-N", "-L", "0:localhost:3000", "-L", "0:localhost:3001", "box", stderr=subprocess.PIPE)
    assert forwarding.stderr is not None
    ports = []
    for _ in range(2):
        text = forwarding.stderr.readline().decode()
        assert " is forwarded to localhost:300" in text
        ports.append(int(text.split(":")[2].split()[0]))
    for size in (1, 3_000_000):
        with socket.create_connection(("127.0.0.1", ports[0]), timeout=patient(10)) as connection:
            connection.sendall(b"x" * size)
            connection.shutdown(socket.SHUT_WR)
            assert connection.makefile("rb").read() == f"{size} bytes".encode()
    with socket.create_connection(("127.0.0.1", ports[1]), timeout=patient(10)) as connection:
        assert connection.recv(1) == b"", "nothing listens on the machine"
    assert b"Connection refused" in forwarding.stderr.readline()
    forwarding.send_signal(signal.SIGINT)
    assert forwarding.wait(patient(20)) == 130
