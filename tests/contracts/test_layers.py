"""The contract of ports.Layering: disks of ended machines, from which new machines start."""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gibil_bot.errors import MachineNotFound, ProviderError, UsageError
from gibil_bot.model import LayerInfo, Machine
from gibil_bot.ports import LAYER_GONE
from gibil_bot.providers.local.fork_server import FIRST_UID
from gibil_bot.providers.local.layers import IN_USE, MOST_LAYERS
from gibil_bot.providers.local.runtime_store import RuntimeStore
from gibil_bot.providers.local.spawn import IDS
from tests.doubles.machines import (
    LocalLodging,
    alive,
    end_daemon,
    local_lodging,
    output,
    processes_with,
    provider_of,
    shared_folder,
    until,
)
from tests.unit.test_runtime_store import GOOD, archive

pytestmark = pytest.mark.usefixtures("local_machines")


@pytest.fixture
async def lodging(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LocalLodging]:
    async with local_lodging(tmp_path / "data", shared_folder(tmp_path_factory)) as lodging:
        yield lodging


def layer_id(number: int) -> str:
    return f"{number:08x}"


async def start(lodging: LocalLodging, name: str, layer: int | None = None, **more: Any) -> Machine:
    return await lodging.provider.create(
        lodging.spec(name, layer=None if layer is None else layer_id(layer), memory_mb=256, **more)
    )


async def saved(lodging: LocalLodging, number: int, command: str, layer: int | None = None) -> LayerInfo:
    """Run the command on a machine, and keep its disk."""
    machine = await start(lodging, f"maker-{number}", layer)
    await output(lodging, machine, command)
    return await provider_of(lodging).save_layer(machine.name, layer_id(number))


async def sealed(lodging: LocalLodging, number: int) -> Path:
    """Wait until a layer is permanent; return its folder."""
    folder = lodging.paths.layer(layer_id(number))
    await until((folder / "manifest.json").exists, "the layer has a manifest")  # another process writes it
    return folder


async def test_a_machine_starts_from_the_disk_of_another(lodging: LocalLodging) -> None:
    info = await saved(
        lodging, 1,
        "echo kept > /root/file && echo new > /usr/local/bin/tool && chmod 4755 /usr/local/bin/tool && rm /etc/os-release "
        "&& mkdir -p /opt/deep/er && ln -s /root/file /opt/link && chmod 700 /opt/deep",
    )  # fmt: skip
    assert (info.id, info.parent, info.depth) == (layer_id(1), None, 1)
    assert await lodging.provider.list_machines() == []
    machine = await start(lodging, "next", 1)
    assert machine.layer == layer_id(1)
    assert await output(
        lodging, machine, "cat /opt/link; hostname; stat -c '%u:%g %a' /root/file /usr/local/bin/tool /opt/deep; "
        "test -e /etc/os-release || echo removed; cat /etc/hostname",
    ) == "kept\nnext\n0:0 644\n0:0 4755\n0:0 700\nremoved\nnext\n"  # fmt: skip


async def test_machines_on_one_layer_write_only_to_their_own_disks(lodging: LocalLodging) -> None:
    await saved(lodging, 1, "echo first > /root/file; mkdir /root/folder; echo x > /root/folder/x")
    one, other = await asyncio.gather(start(lodging, "one", 1), start(lodging, "other", 1))
    await output(lodging, one, "echo changed > /root/file; rm -r /root/folder; touch /usr/bin/new")
    assert await output(lodging, other, "cat /root/file /root/folder/x; ls /usr/bin/new 2>&1 | wc -l") == "first\nx\n1\n"
    assert await output(lodging, one, "cat /root/file; ls /root") == "changed\nfile\n"
    await asyncio.gather(lodging.provider.destroy("one"), lodging.provider.destroy("other"))
    again = await start(lodging, "again", 1)
    assert await output(lodging, again, "cat /root/file /root/folder/x") == "first\nx\n"


async def test_several_users_keep_their_files(lodging: LocalLodging) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root's machines have several users")
    await saved(lodging, 1, "echo x > /root/file; chown 1000:33 /root/file; install -d -o 65533 -g 65533 /srv/last")
    taken = [await start(lodging, f"other-{number}") for number in range(2)]  # one of them has the first range of ids
    machine = await start(lodging, "next", 1)
    assert await output(lodging, machine, "stat -c %u:%g /root/file /srv/last /root /usr") == (
        "1000:33\n65533:65533\n0:0\n0:0\n"
    )
    await output(lodging, machine, "chown 5:6 /root/file; su -s /bin/sh nobody -c 'test ! -w /root/file'")
    assert len(taken) == 2


def _is_taken(uid: str) -> bool:
    with open(f"/run/gibil-uids/{(int(uid) - FIRST_UID) // IDS}") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


async def test_a_machine_has_the_user_ids_of_its_layer_if_they_are_free(lodging: LocalLodging) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root's machines have several users")

    def first_uid(name: str) -> str:
        return Path(f"/proc/{lodging.init_pid(name)}/uid_map").read_text().split()[1]

    blocking = await start(lodging, "blocking")
    maker = await start(lodging, "maker")
    made_with = first_uid("maker")
    await provider_of(lodging).save_layer(maker.name, layer_id(1))
    await lodging.provider.destroy(blocking.name)  # its lower range is free now
    await start(lodging, "same", 1)
    other = await start(lodging, "other", 1)
    assert first_uid("same") == made_with or _is_taken(made_with), "another daemon of this host may have taken it"
    assert first_uid("other") != made_with
    assert await output(lodging, other, "stat -c %u:%g /root /etc/hosts") == "0:0\n0:0\n"


async def test_a_layer_outlives_new_runtimes_but_not_those_that_its_machine_had(lodging: LocalLodging) -> None:
    store = RuntimeStore(lodging.paths.local / "runtimes")
    await saved(lodging, 1, "echo plain > /root/file")
    await asyncio.to_thread(store.add, "node-22.1.0", archive(dict(GOOD)))
    machine = await start(lodging, "next", 1)
    assert await output(lodging, machine, "cat /root/file; ls /opt/gibil/node-22.1.0/bin") == "plain\nnode\n"
    await output(lodging, machine, "ln -s /opt/gibil/node-22.1.0/bin/node /usr/local/bin/node")
    await provider_of(lodging).save_layer("next", layer_id(2))
    machine = await start(lodging, "third", 2)
    assert await output(lodging, machine, "node; cat /root/file") == "plain\n"
    await asyncio.to_thread(store.clear)
    assert await output(lodging, machine, "node; cat /root/file") == "plain\n"  # as long as it exists
    await lodging.provider.destroy("third")
    with pytest.raises(ProviderError, match=r"no longer stored|doesn't exist") as raised:
        await start(lodging, "fourth", 2)
    assert raised.value.code == LAYER_GONE
    assert await output(lodging, await start(lodging, "fifth", 1), "cat /root/file") == "plain\n"


async def test_a_layer_is_based_on_a_layer(lodging: LocalLodging) -> None:
    await saved(lodging, 1, "echo 1 > /root/one; echo 1 > /root/both; mkdir /root/d; echo 1 > /root/d/old")
    info = await saved(lodging, 2, "echo 2 > /root/two; echo 2 > /root/both; rm -r /root/d; mkdir /root/d", layer=1)
    assert (info.parent, info.depth) == (layer_id(1), 2)
    machine = await start(lodging, "next", 2)
    assert await output(lodging, machine, "cat /root/one /root/two /root/both; ls -A /root/d") == "1\n2\n2\n"


async def test_the_number_of_layers_is_limited(lodging: LocalLodging) -> None:
    await saved(lodging, 1, "echo 1 >> /root/file")
    for number in range(2, MOST_LAYERS + 1):
        await saved(lodging, number, f"echo {number} >> /root/file", layer=number - 1)
    machine = await start(lodging, "last", MOST_LAYERS)
    assert await output(lodging, machine, "wc -l < /root/file") == f"{MOST_LAYERS}\n"
    with pytest.raises(UsageError, match="layers"):
        await provider_of(lodging).save_layer("last", layer_id(99))
    assert await output(lodging, machine, "echo it continues") == "it continues\n"


async def test_every_process_is_dead_before_the_disk_is_stored(lodging: LocalLodging) -> None:
    machine = await start(lodging, "busy")
    mark = "2718281"
    await output(
        lodging, machine,
        f"setsid -f sh -c 'exec 9>/root/open; while :; do echo x >&9; sleep 0.01; done; : {mark}' >/dev/null 2>&1 </dev/null; "
        "until test -s /root/open; do sleep 0.01; done",
    )  # fmt: skip
    await provider_of(lodging).save_layer("busy", layer_id(1))
    assert processes_with(mark) == []
    one = await start(lodging, "one", 1)
    size = await output(lodging, one, "wc -c < /root/open")
    await lodging.provider.destroy("one")
    assert await output(lodging, await start(lodging, "two", 1), "wc -c < /root/open") == size


async def test_the_disk_limit_counts_only_the_machines_own_disk(lodging: LocalLodging) -> None:
    await saved(lodging, 1, "head -c 48M /dev/zero > /root/large")
    machine = await start(lodging, "next", 1, disk_mb=200)
    result = await lodging.run(machine, "head -c 40M /dev/zero > /root/more && echo fits; head -c 300M /dev/zero > /root/much")
    assert result.stdout == "fits\n"
    assert result.exit_status != 0


async def test_a_saved_layer_is_returned_when_the_request_is_repeated(lodging: LocalLodging) -> None:
    info = await saved(lodging, 1, "true")
    assert await provider_of(lodging).save_layer("maker-1", layer_id(1)) == info
    with pytest.raises(MachineNotFound):
        await provider_of(lodging).save_layer("maker-1", layer_id(2))
    await start(lodging, "other")
    with pytest.raises(UsageError, match="exists already"):
        await provider_of(lodging).save_layer("other", layer_id(1))
    for invalid in ("", "..", "../../x", "ABCDEF01", "a" * 41):
        with pytest.raises(UsageError):
            await provider_of(lodging).save_layer("other", invalid)
    assert [machine.name for machine in await lodging.provider.list_machines()] == ["other"]


async def test_a_layer_in_use_is_not_deleted(lodging: LocalLodging) -> None:
    provider = provider_of(lodging)
    await saved(lodging, 1, "echo 1 > /root/file")
    await saved(lodging, 2, "true", layer=1)
    machine = await start(lodging, "user", 2)
    for number in (1, 2):
        with pytest.raises(ProviderError) as failed:
            await provider.delete_layer(layer_id(number))
        assert failed.value.code == IN_USE
    assert await output(lodging, machine, "cat /root/file") == "1\n"
    await provider.destroy("user")
    assert [await provider.delete_layer(layer_id(number)) for number in (2, 1, 1)] == [True, True, False]
    assert await provider.layers() == []
    await until(lambda: not any(lodging.paths.layers.iterdir()), "the files are deleted")


async def test_an_unknown_layer_is_reported_and_nothing_is_created(lodging: LocalLodging) -> None:
    with pytest.raises(ProviderError) as failed:
        await start(lodging, "next", 1)
    assert failed.value.code == LAYER_GONE
    assert await lodging.provider.list_machines() == []
    assert (await start(lodging, "next")).layer is None


async def test_layers_survive_a_daemon_and_incomplete_ones_are_removed(lodging: LocalLodging) -> None:
    provider = provider_of(lodging)
    await saved(lodging, 1, "echo 1 > /root/file; rm -rf /srv")
    await saved(lodging, 2, "echo 2 >> /root/file", layer=1)
    await saved(lodging, 3, "true")
    await saved(lodging, 4, "true", layer=3)
    await saved(lodging, 5, "true")
    folders = [await sealed(lodging, number) for number in range(1, 6)]
    before = await provider.layers()
    assert [info.id for info in before] == [layer_id(number) for number in range(1, 6)]
    await start(lodging, "user", 2)
    pid = lodging.daemon_pid()
    os.kill(pid, signal.SIGKILL)
    await until(lambda: not alive(pid), "the daemon was killed")
    (folders[2] / "manifest.json").unlink()  # as if it were killed before that was written
    manifest = msgspec.json.decode((folders[4] / "manifest.json").read_bytes())
    (folders[4] / "manifest.json").write_bytes(msgspec.json.encode({**manifest, "base": 0, "depth": 7}))
    (lodging.paths.layers / ".00000006.1").mkdir()
    assert await provider.layers() == before[:2]  # the fourth has lost its parent
    assert sorted(path.name for path in lodging.paths.layers.iterdir()) == [layer_id(1), layer_id(2)]
    assert await output(lodging, await start(lodging, "next", 2), "cat /root/file; ls -d /srv 2>&1 | wc -l") == "1\n2\n1\n"


async def test_a_daemon_that_ends_makes_new_layers_permanent_first(lodging: LocalLodging) -> None:
    await saved(lodging, 1, "head -c 20M /dev/urandom > /root/data; sha256sum < /root/data > /root/sum")
    await end_daemon(lodging.paths)
    machine = await start(lodging, "next", 1)
    await output(lodging, machine, 'test "$(sha256sum < /root/data)" = "$(cat /root/sum)"')


async def test_a_damaged_layer_is_not_used(lodging: LocalLodging) -> None:
    await saved(lodging, 1, "true")
    await saved(lodging, 2, "true", layer=1)
    folder = await sealed(lodging, 1)
    await sealed(lodging, 2)
    await asyncio.to_thread(damage, folder)
    with pytest.raises(ProviderError) as failed:
        await start(lodging, "next", 2)
    assert failed.value.code == LAYER_GONE
    assert await provider_of(lodging).layers() == []
    assert await lodging.provider.list_machines() == []
    await start(lodging, "next")


def damage(folder: Path) -> None:
    if (folder / "disk.img").exists():
        with (folder / "disk.img").open("r+b") as image:
            image.truncate(image.seek(0, os.SEEK_END) // 2)
    else:
        (folder / "disk/upper0").rename(folder / "disk/upper-lost")


async def test_a_machine_with_its_disk_in_memory_continues(lodging: LocalLodging) -> None:
    machine = await start(lodging, "tiny", disk_mb=16)
    with pytest.raises(UsageError, match="memory"):
        await provider_of(lodging).save_layer("tiny", layer_id(1))
    assert await output(lodging, machine, "echo on") == "on\n"


async def test_links_in_a_layer_do_not_lead_to_the_host(lodging: LocalLodging, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir(mode=0o777)
    outside.chmod(0o777)
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == os.geteuid() and folder != Path("/"):
            folder.chmod(folder.stat().st_mode | 0o011)
    await saved(
        lodging, 1,
        f"rm -rf /usr/local /usr/sbin/policy-rc.d /etc; ln -s {outside} /usr/local; ln -s {outside} /etc; "
        f"ln -s {outside}/made /usr/sbin/policy-rc.d; rmdir /dev/shm/x /run/lock /proc /sys 2>/dev/null; true",
    )  # fmt: skip
    machine = await start(lodging, "next", 1)
    assert await output(lodging, machine, "cat /etc/hostname; readlink /usr/local") == f"next\n{outside}\n"
    assert list(outside.iterdir()) == []


HOSTILE_FILES = r"""
import contextlib, os, stat
os.makedirs("/opt/tree/below"); open("/opt/tree/below/file", "w").write("kept")
open("/opt/plain", "w").write("kept")
for name, kind, device in (
    ("white", stat.S_IFCHR, 0), ("memory", stat.S_IFCHR, os.makedev(1, 1)), ("disk", stat.S_IFBLK, os.makedev(7, 0)),
    ("tree/below/white", stat.S_IFCHR, 0),
):
    with contextlib.suppress(OSError):
        os.mknod(f"/opt/{name}", kind | 0o666, device)
for path in ("/opt/tree", "/opt/tree/below", "/opt/plain", "/opt", "/usr", "/etc"):
    for namespace in ("user", "trusted"):
        for name, value in (("opaque", b"y"), ("opaque", b"x"), ("redirect", b"/etc"), ("metacopy", b""), ("whiteout", b""),
                            ("origin", b"x" * 30), ("overlay.opaque", b"y"), ("impure", b"y"), ("nlink", b"U+9")):
            with contextlib.suppress(OSError):
                os.setxattr(path, f"{namespace}.overlay.{name}", value)
"""
LOOK = r"""
import os, stat
for path in ("/opt/tree/below/file", "/opt/plain"):
    print(open(path).read())
print(len(os.listdir("/usr/bin")) > 20, len(os.listdir("/opt/tree")), sorted(os.listdir("/opt/tree/below"))[0])
for folder, folders, files in os.walk("/opt"):
    for name in files:
        status = os.lstat(f"{folder}/{name}")
        if stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode):
            try:
                os.open(f"{folder}/{name}", os.O_RDONLY)
                print("opened", name)
            except OSError:
                pass
"""


async def test_tasks_do_not_decide_what_an_overlay_shows_and_no_device_works(lodging: LocalLodging) -> None:
    machine = await start(lodging, "hostile")
    left = await lodging.run(machine, "python3 -", input=HOSTILE_FILES)
    assert left.exit_status == 0, left.stderr
    await provider_of(lodging).save_layer("hostile", layer_id(1))
    expected = "kept\nkept\nTrue 1 file\n"
    machine = await start(lodging, "next", 1)
    assert (await lodging.run(machine, "python3 - 2>&1", input=LOOK)).stdout == expected
    await output(lodging, machine, "echo more >/opt/tree/more; rm /opt/tree/more; touch /etc/new /usr/bin/new")
    await provider_of(lodging).save_layer("next", layer_id(2))
    machine = await start(lodging, "third", 2)
    assert (await lodging.run(machine, "python3 - 2>&1", input=LOOK)).stdout == expected
    await asyncio.to_thread(check_devices, lodging.paths.layers)


def check_devices(layers: Path) -> None:
    """Check that the host has no device of a layer, and that other users can't reach a layer's files."""
    for disk in layers.glob("*/disk*"):
        assert disk.stat().st_mode & 0o077 == 0
        for path in disk.rglob("*"):
            mode = path.lstat().st_mode
            assert not stat.S_ISBLK(mode)
            assert not stat.S_ISCHR(mode) or path.lstat().st_rdev == 0
