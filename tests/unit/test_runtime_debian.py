"""`gibil-runtime` and a signed repository of Debian's kind, which the test makes: apt, dpkg and gpg are the real ones."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from gibil_bot.scripts.runtimes import runtime_tool
from tests.doubles.programs import write_program
from tests.doubles.tools import needs

pytestmark = needs("apt-get", "dpkg-deb", "gpg")

TRIPLET = f"{platform.machine()}-linux-gnu"
PACKAGES: dict[str, tuple[str, dict[str, str]]] = {
    "python9.9": ("", {}),
    "python9.9-minimal": ("libc6 (>= 99)", {"usr/bin/python9.9": "#!/bin/sh\necho Python 9.9.3\n"}),
    "libpython9.9-stdlib": (
        "",
        {
            "usr/lib/python9.9/_sysconfigdata__linux.py": "include = '/usr/include/python9.9'\n",
            "usr/lib/python9.9/ensurepip/__init__.py": "_WHEEL_PKG_DIR = '/usr/share/python-wheels'\n",
            "usr/lib/python9.9/EXTERNALLY-MANAGED": "[externally-managed]\n",
        },
    ),
    "libpython9.9-dev": (
        "a-package-that-isnt-there",
        {"usr/include/python9.9/Python.h": "", f"usr/include/{TRIPLET}/python9.9/pyconfig.h": "#define REAL\n"},
    ),
    "python9.9-venv": ("", {}),
    "python3-pip-whl": ("", {"usr/share/python-wheels/pip.whl": ""}),
    "libc6": ("", {f"usr/lib/{TRIPLET}/libc.so.6": "", f"usr/lib/{TRIPLET}/loader.so.2": ""}),
}
"""Package → what it depends on, and its files."""


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None: ...


@pytest.fixture
def site(tmp_path: Path) -> Iterator[str]:
    """Publish the packages as the suite `testing`, without a signature."""
    pool, suite = tmp_path / "debian/pool", tmp_path / "debian/dists/testing"
    pool.mkdir(parents=True)
    done = subprocess.run(["dpkg", "--print-architecture"], capture_output=True, text=True, check=True)
    architecture = done.stdout.strip()
    (suite / f"main/binary-{architecture}").mkdir(parents=True)
    entries = []
    for name, (depends, files) in PACKAGES.items():
        version = "99.1-1" if name == "libc6" else "9.9.3-1"
        control = f"Package: {name}\nVersion: {version}\nArchitecture: {architecture}\nMaintainer: A <a@b.c>\n"
        control += (f"Depends: {depends}\n" if depends else "") + "Description: a test's package\n"
        tree = tmp_path / "packages" / name
        for path, content in {"DEBIAN/control": control, **files}.items():
            (tree / path).parent.mkdir(parents=True, exist_ok=True)
            (tree / path).write_text(content)
            (tree / path).chmod(0o755)
        deb = pool / f"{name}_{version}_{architecture}.deb"
        subprocess.run(["dpkg-deb", "-Znone", "--root-owner-group", "-b", tree, deb], check=True, stdout=subprocess.DEVNULL)
        digest = hashlib.sha256(deb.read_bytes()).hexdigest()
        entries.append(f"{control}Filename: pool/{deb.name}\nSize: {deb.stat().st_size}\nSHA256: {digest}\n")
    index = suite / f"main/binary-{architecture}/Packages"
    index.write_text("\n".join(entries))
    listed = f" {hashlib.sha256(index.read_bytes()).hexdigest()} {index.stat().st_size} {index.relative_to(suite)}"
    about = f"Origin: Debian\nSuite: testing\nCodename: testing\nArchitectures: {architecture}\nComponents: main"
    (suite / "Release").write_text(f"{about}\nDate: Thu, 01 Jan 2026 00:00:00 UTC\nSHA256:\n{listed}\n")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path))) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/debian"
        finally:
            server.shutdown()
            thread.join()


@contextlib.contextmanager
def signing_key(keyring: Path) -> Iterator[list[str]]:
    """Generate a key, write its public part to `keyring`, and yield the command that signs with it."""
    home = tempfile.mkdtemp(prefix="gpg-")  # the path of a socket in it has to be short
    gpg = ["gpg", "--homedir", home, "--batch", "--quiet", "--passphrase", ""]
    try:
        subprocess.run([*gpg, "--quick-gen-key", "tests@example.com", "ed25519", "sign"], check=True, capture_output=True)
        keyring.write_bytes(subprocess.run([*gpg, "--export"], check=True, capture_output=True).stdout)
        yield gpg
    finally:
        subprocess.run(["gpgconf", "--homedir", home, "--kill", "all"], capture_output=True)
        shutil.rmtree(home)


def sign(folder: Path, keyring: Path) -> None:
    release = folder / "debian/dists/testing/Release"
    with signing_key(keyring) as gpg:
        subprocess.run([*gpg, "-o", release.with_name("InRelease"), "--clearsign", release], check=True, capture_output=True)


def install(folder: Path, site: str, keyring: Path) -> subprocess.CompletedProcess[str]:
    (folder / "etc/apt/sources.list.d").mkdir(parents=True)
    (folder / "etc/apt/sources.list.d/debian.sources").write_text(f"Types: deb\nURIs: {site}\nSuites: stable\n")
    programs = folder / "programs"
    programs.mkdir()
    # The computer's own distribution isn't asked, and uv knows no such Python.
    write_program(programs / "apt-get", f'test -n "$APT_CONFIG" || exit 100\nexec {shutil.which("apt-get")} "$@"')
    write_program(programs / "uv", "exit 2")
    loader = "test $1 != --print-interpreter || echo /lib/loader.so.2"
    write_program(programs / "patchelf", f'{loader}; echo "$*" >>{folder}/patched')
    script = runtime_tool()
    for old, new in (
        ("opt=/opt/gibil bin=/usr/local/bin etc=/etc", f"opt={folder}/opt bin={folder}/bin etc={folder}/etc"),
        ("debian_keys=/usr/share/keyrings/debian-archive-keyring.gpg", f"debian_keys={keyring}"),
    ):
        assert old in script
        script = script.replace(old, new)
    env = {"PATH": f"{folder}/bin:{programs}:{os.environ['PATH']}", "HOME": str(folder)}
    words = ["sh", "-s", "python", "9.9"]
    return subprocess.run(words, input=script, capture_output=True, text=True, env=env, timeout=120)


def test_a_python_of_another_release_is_one_tree_with_the_libraries_that_it_needs(tmp_path: Path, site: str) -> None:
    sign(tmp_path, tmp_path / "keys.gpg")
    done = install(tmp_path, site, tmp_path / "keys.gpg")
    assert (done.returncode, done.stdout) == (0, f"gibil: python 9.9.3 ({tmp_path}/bin/python9.9)\n"), done.stderr
    tree = tmp_path / "opt/python-9.9.3"
    library = tree / "lib/python9.9"
    assert (library / "_sysconfigdata__linux.py").read_text() == f"include = '{tree}/include/python9.9'\n"
    assert (library / "ensurepip/__init__.py").read_text() == f"_WHEEL_PKG_DIR = '{tree}/share/python-wheels'\n"
    assert (tree / "share/python-wheels/pip.whl").exists()
    assert not (library / "EXTERNALLY-MANAGED").exists()
    assert (tree / "include/python9.9/pyconfig.h").read_text() == "#define REAL\n"
    assert (tree / f"lib/{TRIPLET}/libc.so.6").exists(), "it is newer than this computer's"
    patched = [line.rpartition(" ")[0] for line in (tmp_path / "patched").read_text().splitlines()]
    assert patched[-2:] == [
        f"--force-rpath --set-rpath {tree}/lib/{TRIPLET}",
        f"--set-interpreter {tree}/lib/{TRIPLET}/loader.so.2",
    ]


def test_a_release_that_another_key_has_signed_is_not_used(tmp_path: Path, site: str) -> None:
    sign(tmp_path, tmp_path / "keys.gpg")
    with signing_key(tmp_path / "other.gpg"):
        done = install(tmp_path, site, tmp_path / "other.gpg")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[-1].endswith("Debian testing (out of reach), Debian sid (out of reach)")
    assert not (tmp_path / "opt").exists()


def test_a_package_that_differs_from_the_signed_list_is_not_used(tmp_path: Path, site: str) -> None:
    sign(tmp_path, tmp_path / "keys.gpg")
    (package,) = (tmp_path / "debian/pool").glob("python9.9-minimal_*")
    package.write_bytes(package.read_bytes()[:-1] + b"!")
    done = install(tmp_path, site, tmp_path / "keys.gpg")
    assert (done.returncode, done.stdout) == (1, "")
    assert "Debian testing's python9.9 (its packages can't be downloaded)" in done.stderr
    assert not (tmp_path / "opt").exists()
