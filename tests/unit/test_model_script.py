"""The scripted model calls the tools of each agent's program, with their own arguments."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gibil_bot.demo.model_script import Run, Say, Script, Write, choose, tool_call

COMMAND = {"properties": {"command": {"type": "string"}, "description": {"type": "string"}}}
CMD = {"properties": {"cmd": {"type": "string"}}}
LIST = {"properties": {"command": {"type": "array"}}}
BACKGROUND = {"properties": {"command": {"type": "string"}, "is_background": {"type": "boolean"}}}
CONVERSATION = json.dumps({"system": "Primary working directory: /root/app\nPlatform: linux", "messages": []})


@pytest.mark.parametrize(
    ("tools", "expected"),
    [
        ({"Bash": COMMAND, "Write": {}}, ("Bash", {"command": "ls", "description": "a step of the script"})),
        ({"exec_command": CMD, "apply_patch": {}}, ("exec_command", {"cmd": "ls"})),
        ({"shell": LIST}, ("shell", {"command": ["bash", "-lc", "ls"]})),
        ({"run_shell_command": BACKGROUND}, ("run_shell_command", {"command": "ls", "is_background": False})),
        ({"exec": {}}, ("exec", 'text(await tools.exec_command({"cmd": "ls"}))')),
        ({"Read": {}}, None),
    ],
)
def test_a_command_runs_in_the_shell_of_each_program(tools: dict[str, Any], expected: object) -> None:
    assert tool_call(Run("ls"), tools, CONVERSATION) == expected


@pytest.mark.parametrize(
    ("tools", "expected"),
    [
        ({"Bash": COMMAND, "Write": {}}, ("Write", {"file_path": "/root/app/a/b.py", "content": "x = 1\n"})),
        ({"run_shell_command": {}, "write_file": {}}, ("write_file", {"file_path": "/root/app/a/b.py", "content": "x = 1\n"})),
        ({"bash": {}, "write": {}}, ("write", {"filePath": "/root/app/a/b.py", "content": "x = 1\n"})),
        ({"apply_patch": {}}, ("apply_patch", "*** Begin Patch\n*** Add File: a/b.py\n+x = 1\n*** End Patch\n")),
        ({"bash": {}}, ("bash", {"command": "mkdir -p a && printf %s 'x = 1\n' > a/b.py"})),
        ({"exec": {}, "apply_patch": {}}, ("exec", None)),
    ],
)
def test_a_file_is_written_with_the_tool_of_each_program(tools: dict[str, Any], expected: tuple[str, object]) -> None:
    call = tool_call(Write("a/b.py", "x = 1\n"), tools, CONVERSATION)
    assert call is not None
    assert call == expected or (expected[1] is None and "printf" in str(call[1]))


@pytest.mark.parametrize("said", ["<cwd>/srv/it</cwd>", "The working directory is: /srv/it\\n", "working directory: `/srv/it`"])
def test_the_folder_is_found_in_the_words_of_each_program(said: str) -> None:
    call = tool_call(Write("a", "b"), {"Write": {}}, said)
    assert call == ("Write", {"file_path": "/srv/it/a", "content": "b"})


def test_a_file_that_exists_is_replaced_in_a_shell() -> None:
    call = tool_call(Write("a", "it's", is_new=False), {"Write": {}, "Bash": {}}, CONVERSATION)
    assert call == ("Bash", {"command": """mkdir -p . && printf %s 'it'"'"'s' > a"""})


def test_the_script_of_a_conversation_is_chosen_by_its_text() -> None:
    fix, review = Script(steps=(Say("fixed"),), when='Fix "it"'), Script(steps=(Say("reviewed"),))
    assert choose([fix, review], json.dumps({"x": 'Fix "it"'})) is fix
    assert choose([fix, review], json.dumps({"x": "Review"})) is review


def test_an_endless_script_never_repeats_its_command() -> None:
    script = Script(steps=(Say("begin"), Run("ls")), is_endless=True)
    assert [script.step(number) for number in range(4)] == [Say("begin"), Run("ls"), Run("ls  # 2"), Run("ls  # 3")]
    assert Script(steps=(Run("a"), Say("b"))).step(7) == Say("b")
