"""The only module that starts git: what git gets from the caller's environment and what not, and the bounds of its output."""

from __future__ import annotations

import ast
import asyncio
import os
import subprocess
import time
from pathlib import Path

import pytest

import gibil_bot
from gibil_bot import git
from gibil_bot.git import FOREIGN, GitError, TooMuchOutput
from tests.doubles.githttp import GitServer
from tests.doubles.patience import patient
from tests.doubles.repositories import git as real_git
from tests.doubles.repositories import repository

pytestmark = pytest.mark.usefixtures("no_git_settings")

PACKAGE = Path(gibil_bot.__file__).parent
NOT_STARTED = {
    "runs/commit_preview.py": "a command that is printed",
    "cli/doctor.py": "looks whether git is installed",
    "providers/cloudinit.py": "a package that machines install",
    "machines/source.py": "a scheme of URLs",
}
STARTERS = {"create_subprocess_exec", "create_subprocess_shell", "Popen", "check_call", "check_output", "execvp", "execvpe"}


def settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str) -> None:
    (tmp_path / "gitconfig").write_text(text)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "gitconfig"))


def test_no_other_module_starts_git() -> None:
    found = set()
    for path in sorted(PACKAGE.rglob("*.py")):
        name = str(path.relative_to(PACKAGE))
        if name == "git.py" or name.startswith(("demo/project/", "detection/")):  # detection only reads texts
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and node.value == "git":
                found.add(name)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in STARTERS:
                words = [
                    word.value for word in ast.walk(node) if isinstance(word, ast.Constant) and isinstance(word.value, str)
                ]
                found |= {name for word in words if word.startswith("git ")}
    assert found == set(NOT_STARTED)


async def test_variables_of_the_callers_repository_do_not_reach_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = repository(tmp_path / "ours", {"file": "1"})
    theirs = repository(tmp_path / "theirs", {"file": "2"})
    named = subprocess.run(["git", "rev-parse", "--local-env-vars"], capture_output=True, text=True, check=True).stdout.split()
    kept = {"GIT_CONFIG_PARAMETERS", "GIT_CONFIG_COUNT"}
    for name in {*named, "GIT_NAMESPACE", "GIT_QUARANTINE_PATH", "GIT_LITERAL_PATHSPECS", "GIT_EXTERNAL_DIFF"} - kept:
        monkeypatch.setenv(name, str(theirs / ".git"))
    monkeypatch.setenv("GIT_DEFAULT_HASH", "sha256")
    assert await git.text("rev-parse", "HEAD", git_dir=ours / ".git") == real_git(ours, "rev-parse", "HEAD")
    assert await git.text("rev-parse", "--show-toplevel", folder=ours) == str(ours)
    made = tmp_path / "made.git"
    await git.create_repository(made)
    assert await git.text("rev-parse", "--show-object-format", git_dir=made) == "sha1"
    assert not set(git.environment()) & (set(named) - kept - {"GIT_NO_REPLACE_OBJECTS"})


def test_the_operators_secrets_do_not_reach_git_and_its_helpers(monkeypatch: pytest.MonkeyPatch) -> None:
    secret = {"GIBIL_MODEL_KEY_ANTHROPIC", "GIBIL_SECRET_TOKEN", "GIBIL_GITHUB_PRIVATE_KEY", "GIBIL_GITHUB_WEBHOOK_SECRET"}
    for name in {*secret, "HCLOUD_TOKEN", "GIBIL_DATA_DIR"}:
        monkeypatch.setenv(name, "x")
    assert set(git.environment()) & {*secret, "HCLOUD_TOKEN", "GIBIL_DATA_DIR"} == {"GIBIL_DATA_DIR"}


async def test_git_settings_in_the_users_environment_reach_git(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
    monkeypatch.setenv("GIT_CONFIG_KEY_0", "http.extraHeader")
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", "Authorization: x")
    monkeypatch.setenv("GIT_CONFIG_PARAMETERS", "'user.name'='Ada'")
    assert await git.text("config", "--get", "http.extraHeader") == "Authorization: x"
    assert await git.text("config", "--get", "user.name") == "Ada"
    for key in ("http.extraHeader", "user.name"):
        with pytest.raises(GitError):
            await git.text("config", "--get", key, extra=git.anonymous_environment())


async def test_no_hook_of_the_user_or_of_a_repository_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = repository(tmp_path / "ours", {"file": "1"})
    canary = tmp_path / "canary"
    for folder in (ours / ".git" / "hooks", tmp_path / "hooks"):
        folder.mkdir(exist_ok=True)
        (folder / "reference-transaction").write_text(f"#!/bin/sh\ntouch {canary}\n")
        (folder / "reference-transaction").chmod(0o755)
    settings(monkeypatch, tmp_path, f"[core]\n\thooksPath = {tmp_path / 'hooks'}\n[init]\n\ttemplateDir = {tmp_path}\n")
    await git.run("update-ref", "refs/heads/new", "HEAD", git_dir=ours / ".git")
    made = tmp_path / "made.git"
    await git.create_repository(made)
    assert not canary.exists()
    assert not (made / "hooks").exists()


async def test_git_never_prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository(tmp_path / "served" / "private.git", {"file": "1"})
    canary = tmp_path / "asked"
    asking = tmp_path / "ask"
    asking.write_text(f"#!/bin/sh\ntouch {canary}\necho secret\n")
    asking.chmod(0o755)
    settings(monkeypatch, tmp_path, f"[core]\n\taskPass = {asking}\n")
    for name in ("GIT_ASKPASS", "SSH_ASKPASS"):
        monkeypatch.setenv(name, str(asking))
    monkeypatch.setenv("GIT_TERMINAL_PROMPT", "1")
    with GitServer(tmp_path / "served", tokens={"private.git/info": "token", "private.git": "token"}) as server:
        with pytest.raises(GitError, match="terminal prompts disabled"):
            await git.text("ls-remote", f"{server.url}/private.git", within_s=30)
    assert not canary.exists()


async def test_git_has_no_terminal_for_prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_SSH_COMMAND", "sh -c ': </dev/tty && echo has a terminal >&2; exit 1' --")
    monkeypatch.setenv("GIT_SSH_VARIANT", "ssh")
    with pytest.raises(GitError) as caught:
        await git.text("ls-remote", "host:x.git")
    assert "has a terminal" not in caught.value.stderr


@pytest.mark.parametrize("how", ["core.sshCommand", "GIT_SSH_COMMAND", "GIT_SSH"])
async def test_ssh_servers_are_reached_with_the_users_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    bare = repository(tmp_path / "x.git", {"file": "1"})
    wrapper = tmp_path / "wrapper"
    wrapper.write_text(f'#!/bin/sh\necho "$*" >>{tmp_path}/called\nfor last; do :; done\ncd {tmp_path} && eval "$last"\n')
    wrapper.chmod(0o755)
    if how == "core.sshCommand":
        settings(monkeypatch, tmp_path, f"[core]\n\tsshCommand = {wrapper} -i key\n")
    else:
        monkeypatch.setenv(how, str(wrapper))
    output = await git.text("ls-remote", "git@nowhere.invalid:x.git", "HEAD", extra=await git.ssh_environment())
    assert output.split("\t")[0] == real_git(bare, "rev-parse", "HEAD")
    assert "BatchMode" not in (tmp_path / "called").read_text()


async def test_plain_ssh_runs_in_batch_mode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert await git.ssh_environment() == {"GIT_SSH_COMMAND": "ssh -oBatchMode=yes"}
    settings(monkeypatch, tmp_path, "[core]\n\tsshCommand = ssh\n")
    assert await git.ssh_environment() == {"GIT_SSH_COMMAND": "ssh -oBatchMode=yes"}


async def test_a_background_process_of_git_does_not_delay_the_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository(tmp_path / "x.git", {"file": "1"})
    # Like an SSH client with ControlPersist, it keeps git's stderr open.
    monkeypatch.setenv("GIT_SSH_COMMAND", f"sh -c 'sleep 100 >&2 & echo $! >{tmp_path}/pid; cd {tmp_path}; eval \"$2\"' --")
    monkeypatch.setenv("GIT_SSH_VARIANT", "simple")
    began = time.monotonic()
    await git.text("ls-remote", "host:x.git")
    assert time.monotonic() - began < patient(50)
    os.kill(int((tmp_path / "pid").read_text()), 9)


async def test_output_is_bounded_and_git_is_killed(tmp_path: Path) -> None:
    ours = repository(tmp_path / "ours", {"big": "x" * 3_000_000})
    with pytest.raises(TooMuchOutput, match="git cat-file printed more than 1000 bytes"):
        await git.run("cat-file", "blob", "HEAD:big", git_dir=ours / ".git", most_bytes=1000)
    assert len(await git.run("cat-file", "blob", "HEAD:big", git_dir=ours / ".git")) == 3_000_000


async def test_git_ends_although_much_of_its_output_is_unread(tmp_path: Path) -> None:
    """asyncio waits for the end of a pipe that it has stopped to read, because its buffer is full."""
    work = repository(tmp_path / "work", {"large": "x" * 4_000_000})
    process = await git.start("cat-file", "blob", "HEAD:large", git_dir=work / ".git")
    assert process.stdout is not None
    async with asyncio.timeout(patient(20)):
        while not process.stdout._paused:  # type: ignore[attr-defined]  # there is no event for it
            await asyncio.sleep(0.001)
        await git.end(process)
    assert process.returncode is not None


async def test_a_time_limit_kills_git_and_its_children(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_SSH_COMMAND", f"sh -c 'echo $$ >{tmp_path}/pid; exec sleep 100' --")
    monkeypatch.setenv("GIT_SSH_VARIANT", "simple")
    with pytest.raises(GitError, match="didn't end within 1 s"):
        await git.text("ls-remote", "host:x.git", within_s=1)
    pid = int((tmp_path / "pid").read_text())
    async with asyncio.timeout(patient(30)):
        while Path(f"/proc/{pid}").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text().split(")")[1][:3]:
            await asyncio.sleep(0.01)  # another process's child: there is no event to wait for


@pytest.mark.slow
async def test_memory_is_limited_when_git_reads_untrusted_objects(tmp_path: Path) -> None:
    ours = repository(tmp_path / "ours", {"file": "1"})
    # A commit of 250 MB: git reads all of it to print its subject.
    tree = real_git(ours, "rev-parse", "HEAD^{tree}")
    text = f"tree {tree}\nauthor A <a@b> 1 +0000\ncommitter A <a@b> 1 +0000\n\n".encode() + b"x" * 250_000_000
    big = real_git(ours, "hash-object", "-t", "commit", "-w", "--stdin", given=text)
    with pytest.raises(GitError, match=r"needs more than 192 MiB of memory"):
        await git.run("rev-list", "--max-count=1", "--format=%s", big, git_dir=ours / ".git", limits=FOREIGN)


async def test_the_first_reason_is_reported_and_not_its_consequences() -> None:
    output = "fatal: unable to access 'http://x/': Failed to connect\nfatal: could not fetch abc\nerror: pack-objects died\n"
    assert git.reason_in(output) == "fatal: unable to access 'http://x/': Failed to connect"
    assert git.reason_in("hint: try\nerror: what\n") == "error: what"
    assert git.reason_in("") == "no reason given"


async def test_a_git_trace_is_not_read_as_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = repository(tmp_path / "ours", {"file": "1"})
    monkeypatch.setenv("GIT_TRACE", "1")
    monkeypatch.setenv("GIT_TRACE2", "1")
    with pytest.raises(GitError) as caught:
        await git.text("rev-parse", "--verify", "nothing", git_dir=ours / ".git")
    assert "trace" not in caught.value.stderr
    monkeypatch.setenv("GIT_TRACE", str(tmp_path / "trace"))
    await git.text("rev-parse", "HEAD", git_dir=ours / ".git")
    assert "rev-parse" in (tmp_path / "trace").read_text()


async def test_missing_git_is_reported_with_a_remedy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(GitError, match="install it"):
        await git.text("version")


def test_no_module_uses_the_pipe_transports_of_the_event_loop() -> None:
    """uvloop closes their descriptor twice; by then it may be a file that a thread has just opened."""
    for path in sorted(PACKAGE.rglob("*.py")):
        names = {node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
        assert names.isdisjoint({"connect_read_pipe", "connect_write_pipe"}), path


async def test_the_beginning_and_the_end_of_long_messages_are_stored(tmp_path: Path) -> None:
    script = "!printf begins >&2; head -c 300000 /dev/zero | tr '\\0' x >&2; printf ends >&2; exit 3"
    with pytest.raises(GitError) as failed:
        await git.run("long", settings=(f"alias.long={script}",))
    assert failed.value.stderr.startswith("begins")
    assert failed.value.stderr.endswith("ends")
    assert len(failed.value.stderr) <= 80 * 1024
