"""The skill file for Claude Code, the text for AGENTS.md, and their removal."""

from __future__ import annotations

import re
from pathlib import Path

from gibil_bot.mcp_server.install import skill


def test_a_skill_is_installed_once_and_removed(tmp_path: Path) -> None:
    file = skill.skill_file({"HOME": str(tmp_path)})
    assert file == tmp_path / ".claude/skills/gibil/SKILL.md"
    assert [skill.install(file), skill.install(file)] == ["added", "already"]
    assert [skill.remove(file), skill.remove(file)] == ["removed", "absent"]
    assert not file.parent.exists()


def test_a_changed_skill_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "SKILL.md"
    skill.install(file)
    file.write_text(file.read_text().replace("## Rules", "## My rules"))
    assert [skill.install(file), skill.remove(file)] == ["left alone", "left alone"]
    assert "## My rules" in file.read_text()


def test_a_skill_of_an_older_version_is_replaced(tmp_path: Path) -> None:
    file = tmp_path / "SKILL.md"
    file.write_text(f"old\n{skill._mark('old' + chr(10))}\n")
    assert skill.install(file) == "added"
    assert "old" not in file.read_text().splitlines()


def test_the_texts_name_only_tools_and_commands_that_exist() -> None:
    from gibil_bot.cli import _SUMMARIES
    from tests.journeys.test_mcp import TOOLS

    for name in ("SKILL.md", "AGENTS.md"):
        text = skill.shipped(name)
        tools = set(re.findall(r"`((?:vm|create|destroy|list|extend|run|get|cancel|pr)_[a-z_]+)`", text))
        assert tools
        assert tools <= TOOLS
        assert set(re.findall(r"`gibil ([a-z]+)", text)) <= set(_SUMMARIES)


def test_the_skill_has_the_header_that_claude_code_reads() -> None:
    _, header, _ = skill.shipped("SKILL.md").split("---\n", 2)
    fields = dict(line.split(": ", 1) for line in header.splitlines())
    assert fields["name"] == "gibil"
    assert 20 < len(fields["description"]) <= 1024
