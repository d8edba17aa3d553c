"""Attacks by a local machine's root on the host's resources: disk, memory, processes, processors, descriptors.

All of them run with the tier of the current user: as root with control groups and disks of a fixed size, as an
ordinary user with the daemon's measurements.
"""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import NoReturn

import pytest

from gibil_bot.errors import ProviderError
from gibil_bot.model import Job, Machine
from gibil_bot.providers.local import disk_images as images_module
from gibil_bot.providers.local.disk_images import IMAGE, Images
from gibil_bot.providers.local.limits import Groups, find_hierarchies
from gibil_bot.providers.local.paths import LocalPaths, groups_prefix, own_privilege, read_daemon
from gibil_bot.providers.local.provider import LocalProvider
from gibil_bot.providers.local.runtime_store import FILLING
from gibil_bot.providers.local.usage_poller import family
from gibil_bot.ssh.job_requests import JOB_STATUS, START_JOB, start_request
from tests.doubles.machines import LocalLodging, end_daemon, local_lodging, shared_folder, until
from tests.doubles.patience import patient

pytestmark = pytest.mark.usefixtures("local_machines")


async def cause(lodging: LocalLodging, name: str) -> str:
    assert isinstance(lodging.provider, LocalProvider)
    return await lodging.provider.cause(name) or ""


async def python(lodging: LocalLodging, machine: Machine, script: str) -> str:
    """Return the script's output until it ended or was killed."""
    result = await lodging.run(machine, "python3 -u - 2>&1", input=script)
    return str(result.stdout)


# --- disks -------------------------------------------------------------------------------------------------------

_FILL = """
import ctypes, os, threading, time
def fill(file, most):
    "Until the disk is full, or we are killed, or `most` MB are written."
    written = 0
    try:
        for _ in range(most):
            file.write(b"x" * 2**20)
            written += 1
            time.sleep(0.005)
    except OSError:
        pass
    return written
"""

_BEYOND_THE_DISK = {
    "files that are deleted but open": """
held = []
for number in range(15):
    held.append(open(f"/root/{number}", "wb", buffering=0))
    os.unlink(f"/root/{number}")
print(sum(fill(file, 60) for file in held), flush=True)
""",
    "files without a name": """
held = [open(os.open("/var/tmp", os.O_TMPFILE | os.O_RDWR), "wb", buffering=0) for _ in range(15)]
print(sum(fill(file, 60) for file in held), flush=True)
""",
    "files in a folder that cannot be read": """
os.makedirs("/root/hidden/deep")
held = [open(f"/root/hidden/deep/{number}", "wb", buffering=0) for number in range(15)]
os.chmod("/root/hidden/deep", 0)
os.chmod("/root/hidden", 0)
print(sum(fill(file, 60) for file in held), flush=True)
""",
    "files that only a thread has open": """
def thread():
    ctypes.CDLL(None).unshare(0x400)  # CLONE_FILES: a table of descriptors of its own
    held = [open(os.open("/var/tmp", os.O_TMPFILE | os.O_RDWR), "wb", buffering=0) for _ in range(15)]
    print(sum(fill(file, 60) for file in held), flush=True)
    time.sleep(2.5)
threading.Thread(target=thread).start()
""",
    "files in many places": """
places = ["/tmp", "/var/tmp", "/usr/lib", "/opt", "/etc"]
print(sum(fill(open(f"{places[number % 5]}/big{number}", "wb", buffering=0), 60) for number in range(15)), flush=True)
""",
    "many small files": """
written = 0
try:
    for number in range(300000):
        with open(f"/root/{number}", "wb") as file:
            file.write(b"x" * 3000)
        written = number * 4 // 1024
        time.sleep(0.00005)
except OSError:
    pass
print(written, flush=True)
""",
}


def _has_image(lodging: LocalLodging, name: str) -> bool:
    """Return whether the machine's disk is a file system of a fixed size; otherwise it is a measured folder."""
    return (lodging.paths.machine(name) / IMAGE).exists()


@pytest.mark.parametrize("attack", _BEYOND_THE_DISK)
async def test_a_machine_cannot_use_more_than_its_disk(lodging: LocalLodging, attack: str) -> None:
    machine = await lodging.provider.create(lodging.spec("spender", memory_mb=128, disk_mb=100))
    printed = await python(lodging, machine, _FILL + _BEYOND_THE_DISK[attack] + "time.sleep(2.5)")
    if _has_image(lodging, "spender"):
        assert int(printed) <= 100, "the file system reports the error"
    else:
        assert printed == "", "it was killed before it had written nine times its limit"
    assert "disk of 100 MB" in await cause(lodging, "spender")
    assert (
        await lodging.run(machine, "rm -rf /root/* /tmp/* /var/tmp/* /opt/big* /usr/lib/big* /etc/big*; true")
    ).exit_status == 0


async def test_a_job_killed_for_its_disk_usage_keeps_its_output_and_its_end(lodging: LocalLodging) -> None:
    """Also if the daemon's user can't read the job's records."""
    machine = await lodging.provider.create(lodging.spec("recorded", memory_mb=128, disk_mb=100))
    if _has_image(lodging, "recorded"):
        pytest.skip("disks are file systems of a fixed size here, and no job is killed for them")
    script = "echo begun; for n in 1 2 3; do head -c 60M /dev/zero >/root/big$n; done; sleep 300"
    job = Job(id="filler", script=script, working_directory="/root", merged=True)
    async with lodging.connect(machine) as connection:
        started = await connection.run(subsystem=START_JOB, input=start_request(job), encoding=None)
        assert started.stderr == b"gibil:started\n"
        ended = await connection.run(subsystem=JOB_STATUS, input=b"filler", encoding=None)
        assert ended.stdout == b"exit 137\n"
    files = "/root/.gibil/jobs/filler"
    seen = await lodging.run(
        machine,
        f"head -n 1 {files}/out; for _ in $(seq 50); do grep -q '^137 ' {files}/rc && break; "
        f"sleep 0.1; done; cat {files}/rc; rm /root/big*",
    )
    assert str(seen.stdout).split() == ["begun", "137"]


async def test_a_hundred_thousand_empty_files_exceed_the_limit(lodging: LocalLodging) -> None:
    machine = await lodging.provider.create(lodging.spec("clerk", memory_mb=128, disk_mb=100))
    script = """
import os, time
number = 0
try:
    for number in range(120000):
        os.close(os.open(f"/root/{number}", os.O_CREAT))
except OSError:
    pass
while number < 119999:  # made as many as there may be
    print("refused", flush=True)
    break
else:
    time.sleep(30)  # until it is noticed
"""
    assert await python(lodging, machine, script) in ("refused\n", "")
    assert "disk of 100 MB" in await cause(lodging, "clerk")


async def test_holes_and_hard_links_use_no_space(lodging: LocalLodging) -> None:
    machine = await lodging.provider.create(lodging.spec("saver", memory_mb=128, disk_mb=100))
    script = """
import os, time
for number in range(20):
    with open(f"/root/sparse{number}", "wb") as file:
        file.truncate(90 * 2**20)
with open("/root/big", "wb") as file:
    file.write(b"x" * 40 * 2**20)
for number in range(20):
    os.link("/root/big", f"/root/link{number}")
time.sleep(3)
print("fine")
"""
    assert await python(lodging, machine, script) == "fine\n"
    assert await cause(lodging, "saver") == ""


async def test_the_memory_file_systems_are_bounded_in_bytes_and_files(lodging: LocalLodging) -> None:
    machine = await lodging.provider.create(lodging.spec("hoarder", memory_mb=512))
    script = """
import os
for place in ("/dev/shm", "/run"):
    status = os.statvfs(place)
    print(place, status.f_blocks * status.f_frsize >> 20, status.f_files <= 8192)
"""
    assert await python(lodging, machine, script) == "/dev/shm 128 True\n/run 64 True\n"
    many = await lodging.run(machine, 'python3 -c \'for i in range(10**6): open(f"/dev/shm/{i}", "w").close()\'')
    assert "No space left" in str(many.stderr)
    many = await lodging.run(machine, 'python3 -c \'for i in range(10**6): open(f"/dev/{i}", "w").close()\'')
    assert "No space left" in str(many.stderr)


async def test_a_disk_of_a_fixed_size_leaves_nothing_behind(lodging: LocalLodging) -> None:
    if own_privilege() != "root":
        pytest.skip("only root can mount a file system of a fixed size")
    if shutil.which("mkfs.ext4", path="/usr/sbin:/sbin") is None:
        pytest.skip("mkfs.ext4 is missing here: apt-get install e2fsprogs")
    machine = await lodging.provider.create(lodging.spec("tenant"))
    result = await lodging.run(machine, "head -c 300M /dev/zero >/root/big; df -m --output=size / | tail -1")
    assert 9 * 1024 <= int(str(result.stdout)) <= 10 * 1024
    image = lodging.paths.machine("tenant") / "disk.img"
    assert image.exists()
    assert str(lodging.paths.machine("tenant")) not in Path("/proc/self/mountinfo").read_text()
    devices = [path for path in Path("/sys/block").glob("loop*/loop/backing_file") if str(image) in path.read_text()]
    assert len(devices) == 1
    assert await lodging.provider.destroy("tenant")
    assert not image.exists()
    await until(lambda: not devices[0].exists(), "the loop device is free")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a data directory on a file system of 400 MB."""
    if os.geteuid():
        pytest.skip("only root can mount a small file system")
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400m,mode=711", "small", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


async def test_when_the_hosts_disk_fills_the_machine_that_uses_most_is_ended(
    small_disk: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    async with local_lodging(small_disk / "data", shared_folder(tmp_path_factory)) as lodging:
        quiet = await lodging.provider.create(lodging.spec("quiet", memory_mb=128))
        # Enough memory for the whole disk: if disks are folders, files in a tmpfs count as the machine's memory.
        greedy = await lodging.provider.create(lodging.spec("greedy", memory_mb=1024))
        async with lodging.connect(greedy) as connection:
            async with asyncio.timeout(patient(60)):
                await connection.run("head -c 900M /dev/zero >/root/big; sync; sleep 60")
        await until(lambda: not lodging.paths.machine("greedy").exists(), "the machine is gone")
        assert "the host's disk has" in await cause(lodging, "greedy")
        assert (await lodging.run(quiet, "echo alive")).stdout == "alive\n"
        await until(lambda: shutil.disk_usage(small_disk).free > 100 * 1024**2, "the space is free again")
        with (small_disk / "filler").open("wb") as filler:
            free = shutil.disk_usage(small_disk).free
            os.posix_fallocate(filler.fileno(), 0, free - 2 * 1024**2)
        with pytest.raises(ProviderError, match="creating a machine needs"):
            await lodging.provider.create(lodging.spec("late"))


async def test_when_the_hosts_disk_fills_unused_layers_are_deleted_first(
    small_disk: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    async with local_lodging(small_disk / "data", shared_folder(tmp_path_factory)) as lodging:
        provider = lodging.provider
        assert isinstance(provider, LocalProvider)
        for layer in ("0000000a", "0000000b"):
            maker = await provider.create(lodging.spec("maker"))
            await lodging.run(maker, "head -c 60M /dev/zero >/root/big")
            await provider.save_layer("maker", layer)
            await until((lodging.paths.layer(layer) / "manifest.json").exists, "the layer is permanent")
        user = await provider.create(lodging.spec("user", layer="0000000a"))  # the older one
        with (small_disk / "filler").open("wb") as filler:
            os.posix_fallocate(filler.fileno(), 0, shutil.disk_usage(small_disk).free - 2 * 1024**2)
        await provider.create(lodging.spec("late"))
        assert [info.id for info in await provider.layers()] == ["0000000a"]
        assert (await lodging.run(user, "wc -c </root/big")).stdout == f"{60 * 1024**2}\n"
        assert len(await provider.list_machines()) == 2


async def test_disks_of_a_new_size_can_be_created_concurrently(tmp_path: Path) -> None:
    images = Images(tmp_path)
    made = [await asyncio.to_thread(images.create, tmp_path, 70)]
    if images.problem:
        pytest.skip(f"disks are folders here: {images.problem}")
    folders = [tmp_path / str(number) for number in range(6)]
    for folder in folders:
        folder.mkdir()
    made += await asyncio.gather(*(asyncio.to_thread(images.create, folder, 72) for folder in folders))
    try:
        assert images.problem == ""
        assert None not in made
    finally:
        for image in made:
            if image is not None:
                image.discard()


def test_destroying_a_machine_during_its_creation_does_not_disable_disk_images(tmp_path: Path) -> None:
    images = Images(tmp_path)
    problem = images.problem
    if not problem:
        with pytest.raises(FileNotFoundError):
            images.create(tmp_path / "destroyed", 70)
    assert images.problem == problem


def test_creating_disk_images_is_retried_after_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = Images(tmp_path)
    if reason := images.problem:
        pytest.skip(reason)

    def no_input(*arguments: object) -> NoReturn:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(images_module, "create_image", no_input)
    assert images.create(tmp_path, 70) is None
    problems = [images.problem]
    images._try_again_at = 0.0  # a minute later
    problems.append(images.problem)
    assert problems == ["Input/output error", ""]


async def test_a_full_disk_is_the_cause_for_as_long_as_it_is_full(lodging: LocalLodging) -> None:
    machine = await lodging.provider.create(lodging.spec("hoarder", memory_mb=128, disk_mb=100))
    if not _has_image(lodging, "hoarder"):
        pytest.skip(
            "disks are folders here: file systems of a fixed size need root, loop devices and mkfs.ext4 (Debian: e2fsprogs)"
        )
    await lodging.run(machine, "head -c 200M /dev/zero >/root/big")
    assert "disk of 100 MB is full" in await cause(lodging, "hoarder")
    next_task = datetime.now(UTC)
    assert isinstance(lodging.provider, LocalProvider)
    assert "disk of 100 MB is full" in (await lodging.provider.cause("hoarder", next_task) or "")
    await lodging.run(machine, "rm /root/big*")
    assert await lodging.provider.cause("hoarder", datetime.now(UTC)) is None


# --- memory ------------------------------------------------------------------------------------------------------

_BEYOND_THE_MEMORY = {
    "mapped": "held = []\nfor _ in range(900): held.append(b'x' * 2**20)",
    "memfds": """
held = [os.memfd_create("x") for _ in range(90)]
for fd in held:
    for _ in range(10):
        os.write(fd, b"x" * 2**20)
""",
    "files in memory": """
held = []
for place in ("/dev/shm/x", "/run/x"):
    with contextlib.suppress(OSError), open(place, "wb", buffering=0) as file:
        for _ in range(900): file.write(b"x" * 2**20)
print("filled", flush=True)
for _ in range(900): held.append(b"x" * 2**20)
""",
    "shared segments that nothing is attached to": """
libc = ctypes.CDLL(None)
libc.shmat.restype = ctypes.c_void_p
for _ in range(90):
    segment = libc.shmget(0, 10 * 2**20, 0o1600)
    address = libc.shmat(segment, None, 0)
    ctypes.memset(ctypes.c_void_p(address), 1, 10 * 2**20)
    libc.shmdt(ctypes.c_void_p(address))
""",
    "mapped by a process whose first thread has ended": """
def thread():
    held = []
    for _ in range(900): held.append(b"x" * 2**20)
    time.sleep(20)
    os.write(1, b"beyond")
threading.Thread(target=thread).start()
ctypes.CDLL(None).syscall({"x86_64": 60, "aarch64": 93}[os.uname().machine], 0)  # exit, which ends one thread
""",
    "memfds that only a thread has open": """
def thread():
    ctypes.CDLL(None).unshare(0x400)  # CLONE_FILES: a table of descriptors of its own
    for _ in range(90):
        fd = os.memfd_create("x")
        for _ in range(10):
            os.write(fd, b"x" * 2**20)
one = threading.Thread(target=lambda: (thread(), time.sleep(20)))
one.start()
""",
    "shared memory of a process and its child": """
held = []
os.fork()
for _ in range(90):
    held.append(mmap.mmap(-1, 10 * 2**20))
    held[-1].write(b"x" * 10 * 2**20)
""",
}


@pytest.mark.parametrize("attack", _BEYOND_THE_MEMORY)
async def test_a_machine_cannot_use_more_than_its_memory_and_survives(lodging: LocalLodging, attack: str) -> None:
    machine = await lodging.provider.create(lodging.spec("glutton", memory_mb=256))
    script = (
        f"import contextlib, ctypes, mmap, os, threading, time\n{_BEYOND_THE_MEMORY[attack]}\ntime.sleep(20)\nprint('beyond')"
    )
    assert "beyond" not in await python(lodging, machine, script)
    assert "256 MB of memory are used up" in await cause(lodging, "glutton")
    # Remaining segments and files still count, so that the daemon's next check may also end this command.
    async with asyncio.timeout(patient(20)):
        while (await lodging.run(machine, "rm -f /dev/shm/x /run/x; ipcrm -a; echo alive")).stdout != "alive\n":
            await asyncio.sleep(0.05)  # the daemon's next check: there is no event to wait for


async def test_mapped_memory_of_a_file_in_a_tmpfs_counts_once(lodging: LocalLodging) -> None:
    machine = await lodging.provider.create(lodging.spec("database", memory_mb=256))
    script = """
import mmap, os, time
with open("/dev/shm/x", "wb+") as file:
    file.write(b"x" * 60 * 2**20)
    file.flush()
    first = mmap.mmap(file.fileno(), 0)
descriptor = os.memfd_create("x")
os.write(descriptor, b"x" * 60 * 2**20)
second = mmap.mmap(descriptor, 0)
print(first[:], second[:], file=open("/dev/null", "w")) if False else sum(first[::4096]) + sum(second[::4096])
time.sleep(3)
print("fine")
"""
    assert await python(lodging, machine, script) == "fine\n"


async def test_the_kernel_kills_jobs_before_pid_1(lodging: LocalLodging) -> None:
    machine = await lodging.provider.create(lodging.spec("victim"))
    result = await lodging.run(machine, "cat /proc/self/oom_score_adj; sh -c 'cat /proc/self/oom_score_adj'")
    assert result.stdout == "800\n800\n"
    own = Path("/proc/self/oom_score_adj").read_text()
    assert Path(f"/proc/{lodging.init_pid('victim')}/oom_score_adj").read_text() == own


# --- processes, processors, descriptors --------------------------------------------------------------------------


async def test_a_fork_bomb_is_named_as_the_cause(lodging: LocalLodging) -> None:
    machine = await lodging.provider.create(lodging.spec("bomber", pids=60))
    await lodging.run(machine, "(for i in $(seq 100); do sleep 3 & done; wait) 2>/dev/null; true")
    assert "60 processes are used up" in await cause(lodging, "bomber")


async def test_each_job_has_its_own_limits(lodging: LocalLodging) -> None:
    machine = await lodging.provider.create(lodging.spec("worker"))
    script = """
import resource
print(resource.getrlimit(resource.RLIMIT_CORE), resource.getrlimit(resource.RLIMIT_NOFILE)[1] <= 4096)
"""
    assert await python(lodging, machine, script) == "(1, 1) True\n"


async def test_a_machine_has_enough_processes_and_files_for_the_workers_of_test_runners(lodging: LocalLodging) -> None:
    machine = await lodging.provider.create(lodging.spec("crowd", memory_mb=1024))
    script = """
import os, threading
done = threading.Event()
threads = [threading.Thread(target=done.wait) for _ in range(1500)]
for thread in threads:
    thread.start()
files = [os.open("/dev/null", os.O_RDONLY) for _ in range(2000)]
print(len(threads), len(files))
done.set()
"""
    assert await python(lodging, machine, script) == "1500 2000\n"


async def test_a_machine_sees_only_its_processors(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("this computer has one processor")
    async with local_lodging(tmp_path / "data", shared_folder(tmp_path_factory)) as lodging:
        await lodging.provider.create(lodging.spec("first"))
        one = {min(os.sched_getaffinity(0))}
        os.sched_setaffinity(lodging.daemon_pid(), one)  # as a daemon with few processors
        machine = await lodging.provider.create(lodging.spec("second"))
        (number,) = one
        script = """
import os, subprocess
print(os.cpu_count(), os.sched_getaffinity(0), subprocess.check_output(["nproc"]), flush=True)
os.system("grep -c ^processor /proc/cpuinfo; cat /sys/devices/system/cpu/online; grep -o '^cpu[0-9]*' /proc/stat | tail -n +2")
os.system("command -v node >/dev/null && node -p 'os.cpus().length' || echo 1")
"""
        assert await python(lodging, machine, script) == f"1 {one} b'1\\n'\n1\n{number}\ncpu{number}\n1\n"
        before, after = (
            "now=$(cat /proc/stat); ",
            '; until test "$now" != "$(cat /proc/stat)"; do sleep 0.1; done; echo changed',
        )
        assert (await lodging.run(machine, before + "true" + after)).stdout == "changed\n"


_MEMORY = r"""
import os, time
def field(name):
    for line in open("/proc/meminfo"):
        if line.startswith(name + ":"):
            return int(line.split()[1]) // 1024
def until(condition):
    while not condition(field("MemAvailable")):  # another process writes it
        time.sleep(0.05)
total, first = field("MemTotal"), field("MemAvailable")
held = b"x" * (150 * 2**20)
until(lambda available: available < first - 140)
del held
until(lambda available: available > first - 40)
with open("/dev/shm/file", "wb") as file:
    file.write(b"x" * (60 * 2**20))
until(lambda available: available < first - 50)
print(total, first > 320, field("Shmem") >= 60, field("SwapTotal"), flush=True)
"""


async def test_a_machine_sees_its_own_memory(lodging: LocalLodging) -> None:
    machine = await lodging.provider.create(lodging.spec("viewer", memory_mb=400))
    assert await python(lodging, machine, _MEMORY) == "400 True True 0\n"
    if shutil.which("free"):
        shown = await lodging.run(machine, "free -m | awk '/^Mem:/ {print $2}'")
        assert shown.stdout == "400\n"


async def test_a_machine_without_processes_has_its_memory_back(lodging: LocalLodging) -> None:
    machine = await lodging.provider.create(lodging.spec("viewer", memory_mb=400))
    await python(lodging, machine, _MEMORY.partition("del held")[0])
    if os.geteuid() != 0:
        loop = "until test $(awk '/^MemAvailable/ {print $2}' /proc/meminfo) -gt 350000; do sleep 0.1; done; echo back"
        assert (await lodging.run(machine, loop)).stdout == "back\n"  # the view of a machine is readable for root only
        return
    view = Path(f"/proc/{lodging.init_pid('viewer')}/root/proc/meminfo")
    await until(lambda: int(view.read_text().split()[7]) > 350 * 1024, "no process uses it")


@pytest.mark.parametrize("path", ["/proc/meminfo", "/proc/stat", "/proc/cpuinfo"])
async def test_a_machine_cannot_change_what_it_sees(lodging: LocalLodging, path: str) -> None:
    machine = await lodging.provider.create(lodging.spec("liar"))
    result = await lodging.run(
        machine,
        f"cat {path} >/root/seen; echo lie >{path}; : >{path}; rm {path}; chmod 666 {path}; umount {path}; "
        f"mount -o remount,rw {path}; mount --bind /etc/passwd {path}; mv {path} /root; "
        f"test $(wc -l <{path}) = $(wc -l </root/seen) && echo unchanged",
    )
    assert result.stdout == "unchanged\n"


async def test_a_machine_full_of_busy_loops_leaves_the_host_its_processors(lodging: LocalLodging) -> None:
    machine = await lodging.provider.create(lodging.spec("spinner"))
    other = await lodging.provider.create(lodging.spec("other"))
    init = lodging.init_pid("spinner")
    spin = "for i in $(seq 60); do setsid sh -c 'while :; do :; done' >/dev/null 2>&1 & done; sleep 60"
    async with lodging.connect(machine) as connection, lodging.connect(other) as quick:
        process = await connection.create_process(spin)
        try:
            await until(lambda: len(family(init)) > 60, "they all spin")
            began = asyncio.get_running_loop().time()
            for _ in range(5):
                assert (await quick.run("true")).exit_status == 0
                assert await lodging.provider.get("other") is not None
            assert asyncio.get_running_loop().time() - began < patient(20)
            groups = [each for each in find_hierarchies() if "cpu" in each.controllers]
            if groups:
                group = groups[0].folder / f"{groups_prefix(lodging.paths)}-spinner"
                assert str(init) in (group / "cgroup.procs").read_text().split()
                weight = (group / ("cpu.weight" if groups[0].version == 2 else "cpu.shares")).read_text()
                assert weight in ("25\n", "256\n")
            else:
                assert {os.getpriority(os.PRIO_PROCESS, pid) for pid in family(init)} == {10}
        finally:
            process.kill()
    assert await lodging.provider.destroy("spinner")


async def test_descriptors_in_transit_in_one_machine_do_not_block_another(lodging: LocalLodging) -> None:
    machine = await lodging.provider.create(lodging.spec("sender"))
    other = await lodging.provider.create(lodging.spec("other"))
    script = """
import os, resource, socket, time
resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
pairs, sent = [], 0
for _ in range(200):
    pairs.append(socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM))
    pairs[-1][0].setblocking(False)
    try:
        while True:
            socket.send_fds(pairs[-1][0], [b"x"], [0] * 250)
            sent += 250
    except OSError:
        continue
print("sent", flush=True)
time.sleep(60)
"""
    async with lodging.connect(machine) as connection:
        process = await connection.create_process("python3 -u -")
        process.stdin.write(script)
        process.stdin.write_eof()
        async with asyncio.timeout(patient(60)):
            assert await process.stdout.readline() == "sent\n"
        async with asyncio.timeout(patient(10)):
            assert (await lodging.run(other, "echo quick")).stdout == "quick\n"


async def test_a_machine_cannot_use_up_the_inotify_instances_of_its_user(lodging: LocalLodging) -> None:
    machine = await lodging.provider.create(lodging.spec("listener"))
    most = int(Path("/proc/sys/fs/inotify/max_user_instances").read_text())
    script = """
import ctypes, time
libc = ctypes.CDLL(None)
print(sum(libc.inotify_init() >= 0 for _ in range(2000)))
"""
    assert int(await python(lodging, machine, script)) <= most // 3


# --- why a machine ended ---------------------------------------------------------------------------------------------


async def test_the_cause_of_a_machines_end_remains_until_its_name_is_used_again(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    async with local_lodging(tmp_path / "data", shared_folder(tmp_path_factory)) as lodging:
        await lodging.provider.create(lodging.spec("short", ttl_s=1))
        await lodging.provider.create(lodging.spec("beheaded"))
        os.kill(lodging.init_pid("beheaded"), signal.SIGKILL)
        for name in ("short", "beheaded"):
            folder = lodging.paths.machine(name)
            await until(partial(lambda each: not each.exists(), folder), "the machine is gone")
        assert "its time to live is over" in await cause(lodging, "short")
        assert "its first process was killed" in await cause(lodging, "beheaded")
        daemon = read_daemon(lodging.paths)
        await end_daemon(lodging.paths)
        assert daemon is not None
        assert "its first process was killed" in await cause(lodging, "beheaded"), "also without a daemon"
        await lodging.provider.create(lodging.spec("beheaded"))
        assert await cause(lodging, "beheaded") == ""
        assert await cause(lodging, "nobody") == ""


async def test_memory_that_the_host_lacks_is_not_promised(lodging: LocalLodging) -> None:
    most = Groups(find_hierarchies(), groups_prefix(LocalPaths(lodging.data_dir))).host_memory_mb()
    first = await lodging.provider.create(lodging.spec("first", memory_mb=most * 2 // 3))
    with pytest.raises(ProviderError, match="this host doesn't have") as refused:
        await lodging.provider.create(lodging.spec("second", memory_mb=most * 2 // 3))
    assert refused.value.code == "NO_ROOM"
    assert await lodging.provider.destroy(first.name)
    assert (await lodging.provider.create(lodging.spec("second", memory_mb=most * 2 // 3))).name == "second"


async def test_machines_that_store_runtimes_end_if_their_memory_is_needed(lodging: LocalLodging) -> None:
    most = Groups(find_hierarchies(), groups_prefix(LocalPaths(lodging.data_dir))).host_memory_mb()
    await lodging.provider.create(lodging.spec("runtime-1", owner=f"tests{FILLING}", memory_mb=most * 2 // 3))
    user = await lodging.provider.create(lodging.spec("runtime-2", memory_mb=most * 2 // 3))
    assert [machine.name for machine in await lodging.provider.list_machines()] == [user.name]
    with pytest.raises(ProviderError, match="this host doesn't have"):
        await lodging.provider.create(lodging.spec("second", memory_mb=most * 2 // 3))
    assert [machine.name for machine in await lodging.provider.list_machines()] == [user.name], "a user may choose any name"
