"""Which files of the user's computer the MCP tools may read and write."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gibil_bot.errors import UsageError
from gibil_bot.machines.tools.copy_report import CopyReport
from gibil_bot.machines.tools.pack import pack
from gibil_bot.mcp_server.local_files import LocalFiles


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    (folder / "src").mkdir(parents=True)
    (folder / ".git").mkdir()
    (folder / "data" / "keys").mkdir(parents=True)
    (folder / "src" / "a.sh").write_text("one\n")
    (folder / "src" / "a.sh").chmod(0o755)
    (tmp_path / "secret").write_text("key\n")
    (folder / "link").symlink_to(tmp_path / "secret")
    (folder / "out").symlink_to(tmp_path)
    os.mkfifo(folder / "pipe")
    return folder


@pytest.fixture
def files(root: Path) -> LocalFiles:
    return LocalFiles(root, root / "data")


def read(files: LocalFiles, path: str) -> bytes:
    _, descriptor = files.open(path)
    try:
        return os.read(descriptor, 100)
    finally:
        os.close(descriptor)


def test_files_below_the_folder_can_be_read(files: LocalFiles, root: Path) -> None:
    assert read(files, "src/a.sh") == b"one\n"
    assert read(files, str(root / "src/../src/a.sh")) == b"one\n"
    for path in ("src", "src/", "."):
        found, descriptor = files.open(path)
        os.close(descriptor)
        assert found == (root / path).resolve()


def test_a_copy_of_a_directory_leaves_out_what_can_not_be_read(
    files: LocalFiles, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "src" / ".hidden").write_text("x")
    blocks: list[bytes] = []
    report = CopyReport()
    pack(str(root), blocks.append, report, files.unreadable(root))
    assert b"".join(blocks).find(b"keys") == -1
    assert report.left_out == [
        "data: it is gibil's data directory, which contains keys",
        "pipe: it is neither a file, a directory nor a link",
    ]
    monkeypatch.setenv("HOME", str(root))
    at_home = LocalFiles(root, root / "data").unreadable(root / "src")
    assert at_home((".hidden",)) == "it is hidden"
    assert at_home(("a.sh",)) is None


@pytest.mark.parametrize(
    "path",
    [
        ".git/config", "sub/.git", "sub/.GIT/hooks/pre-commit", "a/.g\u200cit/config", "git~1/config", ".git./config",
        ".git /x", "bare/HEAD", "deep/er/refs/heads",
    ],
)  # fmt: skip
def test_a_downloaded_directory_has_nothing_that_git_obeys(files: LocalFiles, root: Path, path: str) -> None:
    omit = files.unwritable(root / "new")
    for name in (
        "bare/objects",
        "bare/refs",
        "deep/er/Objects",
        "deep/er/head",
        "other/HEAD",
        "other/refs",
        ".gitignore",
        "git",
    ):
        assert omit(tuple(name.split("/"))) is None, name
    parts = path.split("/")
    assert any(omit(tuple(parts[: end + 1])) for end in range(len(parts)))


@pytest.mark.parametrize(
    ("target", "path"),
    [
        ("new", "CLAUDE.md"), ("new", "sub/agents.md"), ("new", ".claude/settings.json"), ("new", ".envrc"),
        ("new", ".husky/pre-commit"), ("new", "a/.vscode/tasks.json"), ("new", ".mcp.json"), ("new", ".gitattributes"),
        ("new", "GITATT~1"), ("new", ".lfsconfig"), ("docs", "CODEOWNERS"), (".github", "workflows/ci.yml"),
    ],
)  # fmt: skip
def test_a_downloaded_directory_has_nothing_that_may_not_be_written_as_a_file(
    files: LocalFiles, root: Path, target: str, path: str
) -> None:
    omit = files.unwritable(root / target)
    parts = path.split("/")
    assert any(omit(tuple(parts[: end + 1])) for end in range(len(parts)))
    for name in ("README.md", "docs", "docs/index.md", "claude.md.txt", "src/claude.py"):
        assert omit(tuple(name.split("/"))) is None, name
    (root / target).mkdir()
    (root / target / path).parent.mkdir(parents=True, exist_ok=True)
    with pytest.raises(UsageError, match="agents and tools obey"):
        files.writable(f"{target}/{path}", overwrite=True)


@pytest.mark.parametrize(
    "path",
    [
        "../secret",
        "link",
        "out/secret",
        "src/../../secret",
        "/etc/passwd",
        "~/x",
        "data/keys/k",
        "pipe",
        "",
        "a\0b",
        "no",
    ],
)
def test_other_paths_can_not_be_read(files: LocalFiles, path: str) -> None:
    with pytest.raises(UsageError):
        files.open(path)


@pytest.mark.parametrize(
    "path",
    [
        "../new", "out/new", "link", "data/new", ".git/config", ".git/hooks/pre-commit", "src/.GIT/x", "no/such/folder", "src",
        "pipe", "src/../../new", "src/CLAUDE.md", ".mcp.json", ".envrc", "agents.md", "src/.gitattributes", ".claude",
    ],
)  # fmt: skip
def test_other_paths_can_not_be_written(files: LocalFiles, root: Path, path: str) -> None:
    with pytest.raises(UsageError):
        files.writable(path, overwrite=True)
    assert (root.parent / "secret").read_text() == "key\n"
    assert not (root.parent / "new").exists()


def test_a_file_is_replaced_only_on_request(files: LocalFiles, root: Path) -> None:
    assert files.writable("src/b", overwrite=False) == root / "src" / "b"
    (root / "src" / "b").write_text("one")
    with pytest.raises(UsageError, match="overwrite=true") as caught:
        files.writable("src/b", overwrite=False)
    assert caught.value.code == "LOCAL_FILE_EXISTS"
    assert files.writable("src/b", overwrite=True) == root / "src" / "b"


def test_the_data_directory_is_not_created_by_a_download(root: Path) -> None:
    with pytest.raises(UsageError, match="contains keys"):
        LocalFiles(root, root / "new" / "data").writable("new", overwrite=False)


def test_hidden_files_of_the_home_directory_are_out_of_reach(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh" / "id").write_text("key")
    (tmp_path / "notes").write_text("fine")
    files = LocalFiles(tmp_path, tmp_path / "data")
    assert read(files, "notes") == b"fine"
    with pytest.raises(UsageError, match="hidden"):
        files.open(".ssh/id")
