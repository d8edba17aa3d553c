"""The static list of commands agrees with the commands themselves, and needs no import of them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

from gibil_bot.cli import gibil, output
from gibil_bot.errors import MachineLost

NAMES = gibil.list_commands(click.Context(gibil))


def summaries() -> dict[str, str]:
    """Return each command with its text in `gibil --help`."""
    context = click.Context(gibil, max_content_width=200, terminal_width=200)
    listing = gibil.get_help(context).partition("Commands:\n")[2].partition("\n\n")[0]
    return dict(re.split(r"  +", line.strip(), maxsplit=1) for line in listing.splitlines())


@pytest.mark.parametrize("name", NAMES)
def test_each_summary_is_the_first_line_of_the_commands_own_help(name: str) -> None:
    command = gibil.get_command(click.Context(gibil), name)
    assert command is not None
    assert command.name == name
    first_paragraph = " ".join((command.help or "").split("\n\n")[0].split())
    assert first_paragraph.startswith(summaries()[name])


@pytest.mark.parametrize("name", NAMES)
def test_help_has_no_lines_of_code(name: str) -> None:
    command = gibil.get_command(click.Context(gibil), name)
    assert command is not None
    assert not re.search(r"^\s*(from|import) gibil_bot", command.help or "", re.MULTILINE)


def test_every_command_is_listed() -> None:
    assert list(summaries()) == NAMES


def test_an_unknown_command_is_a_usage_error() -> None:
    done = subprocess.run([sys.executable, "-m", "gibil_bot", "brew"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "No such command 'brew'" in done.stderr


def imported_by(*words: str) -> set[str]:
    """Return the modules that `gibil` with these arguments imports."""
    command = [sys.executable, "-X", "importtime", "-m", "gibil_bot", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}


def test_listing_machines_does_not_import_the_ssh_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIBIL_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("GIBIL_PROVIDER", "local")
    loaded = imported_by("list")
    assert "gibil_bot.machines.service" in loaded
    assert "asyncssh" not in loaded


def test_help_imports_no_command_and_no_heavy_library() -> None:
    loaded = imported_by("--help")
    heavy = {"asyncio", "yaml", "msgspec", "asyncssh", "githubkit", "starlette", "uvicorn", "mcp", "gibil_bot.model"}
    assert "gibil_bot.cli" in loaded
    assert not {name for name in loaded if name in heavy or name.startswith("gibil_bot.cli.")}


def test_check_follows_symbolic_links_as_the_bot_does(tmp_path: Path) -> None:
    from gibil_bot.cli.check import _unusable

    project = tmp_path / "project"
    (project / ".gibil" / "workflows").mkdir(parents=True)
    (project / "ci").mkdir()
    (project / "ci" / "ok.yml").write_text("on: {command: ok}\n")
    (tmp_path / "outside.yml").write_text("on: {command: out}\n")
    inside, outside = project / ".gibil" / "workflows" / "in.yml", project / ".gibil" / "workflows" / "out.yml"
    inside.symlink_to("../../ci/ok.yml")
    outside.symlink_to("../../../outside.yml")
    (project / ".gibil.yml").symlink_to("../outside.yml")
    assert _unusable(inside) is None
    assert _unusable(project / "ci" / "ok.yml") is None
    for path in (outside, project / ".gibil.yml"):
        found = _unusable(path)
        assert found is not None
        assert "symbolic link" in found.problem
    (tmp_path / "other" / ".gibil").mkdir(parents=True)
    (tmp_path / "other" / ".gibil" / "workflows").symlink_to(project / "ci")
    found = _unusable(tmp_path / "other" / ".gibil" / "workflows" / "ok.yml")
    assert found is not None
    assert "replace it with the folder itself" in found.problem


def test_check_reports_invalid_links(tmp_path: Path) -> None:
    (tmp_path / "outside.yml").write_text("on: {command: out}\n")
    folder = tmp_path / "project" / ".gibil" / "workflows"
    folder.mkdir(parents=True)
    (folder / "loop.yml").symlink_to("loop.yml")
    (folder / "out.yml").symlink_to("../../../outside.yml")
    (folder.parent.parent / ".gibil.yml").symlink_to("nothing")
    done = subprocess.run(
        [sys.executable, "-m", "gibil_bot", "check", "--json"], cwd=tmp_path / "project", capture_output=True, text=True
    )
    report = json.loads(done.stdout)
    assert (done.returncode, report["files"], len(report["problems"])) == (2, 3, 3), done.stderr
    assert all("replace it with the file itself" in problem["message"] for problem in report["problems"])


def test_an_interrupt_after_the_json_value_prints_no_second_value(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(output, "_has_printed", False)
    output.print_json({"exit_code": 0})
    assert output.fail(KeyboardInterrupt(), as_json=True) == 130
    assert output.fail(MachineLost("the connection ended"), as_json=True) == 4
    printed = capsys.readouterr()
    assert json.loads(printed.out) == {"exit_code": 0}
    assert printed.err.splitlines() == ["gibil: interrupted", "gibil: the connection ended"]
