"""The files of engines: the shipped ones are whole, and every problem of an operator's file is reported with its line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gibil_bot.agents.engine import PLACEHOLDERS
from gibil_bot.agents.engines.loading import ENGINE, PACKAGE, SHIPPED, default_engine, load_engines, parse_engine
from gibil_bot.agents.launch import install_task, program_of
from gibil_bot.errors import ConfigurationError, InvalidWorkflow

VALID = """\
title: Helper
packages:
  - npm: "@example/helper-{arch}"
    version: 1.2.3
    folder: helper
program: helper/bin/helper
arguments: [--model, "{model}"]
environment: {API_URL: "{url}", API_KEY: "{token}"}
protocol: chat
provider: openai
default-model: m1
"""


def problems_of(text: str, name: str = "helper") -> list[str]:
    with pytest.raises(InvalidWorkflow) as caught:
        parse_engine(f"{name}.yml", text.encode())
    return [f"{problem.line}: {problem.problem}" for problem in caught.value.all]


def test_the_shipped_engines_are_complete() -> None:
    engines = load_engines(None)
    assert list(engines) == ["claude", "codex", "command", "gemini", "opencode"]
    for engine in engines.values():
        assert engine.verified
        assert not engine.source
        assert all(package.integrity.get("x64") for package in engine.packages)
        assert (engine.protocol is None) == (engine.name == "command")
    assert [engines[name].version for name in ("claude", "codex")] == ["2.1.332", "0.171.0"]
    assert [name for name, engine in engines.items() if engine.limits_turns] == ["claude", "gemini"]


def test_an_operators_file_adds_an_engine_or_replaces_a_shipped_one(tmp_path: Path) -> None:
    (tmp_path / "helper.yml").write_text(VALID)
    (tmp_path / "codex.yaml").write_text(VALID.replace("Helper", "Our Codex"))
    (tmp_path / "notes.txt").write_text("not an engine")
    engines = load_engines(tmp_path)
    assert engines["helper"].source == str(tmp_path / "helper.yml")
    assert engines["helper"].packages[0].folder == "helper"
    assert engines["codex"].title == "Our Codex"
    assert engines["claude"].source == ""


def test_every_problem_of_every_file_is_reported_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "a.yml").write_text(VALID.replace("chat", "smoke") + "budget: 3\n")
    (tmp_path / "b.yml").write_text("title: [\n")
    (tmp_path / "c.yml").write_text(VALID)
    (tmp_path / "c.yaml").write_text(VALID)
    with pytest.raises(ConfigurationError) as caught:
        load_engines(tmp_path)
    assert [
        re.sub(r"(?<=:\d):\d+|(?<=:\d\d):\d+", "", problem.removeprefix(f"{tmp_path}/")) for problem in caught.value.problems
    ] == [
        "a.yml:9: 'smoke' is not one of anthropic, responses, chat, gemini",
        "a.yml:12: an engine has no key 'budget'; its keys are title, packages, program, version-arguments, arguments, "
        "environment, files, stdin, protocol, provider, dialect, default-model, models, instruction-files, "
        "unread-instructions, end-grace-seconds, silent-minutes, verified",
        "b.yml:2: not valid YAML: while parsing a flow node expected the node content, but found '<stream end>'",
        "c.yml: the engine 'c' is in c.yaml, too; delete one of the files",
    ]


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("{model}", "{modle}", "7: {modle} isn't a placeholder here (did you mean 'model'?); these are {url}, "),
        ('"{model}"]', '"{model}", "{token}"]', "7: the token can't be an argument"),
        ('"{token}"', "sk-ant-0123456789abcdef", "8: this looks like a key; keys stay in the bot"),
        ('"{token}"', "0123456789abcdef", "8: API_KEY can't have a value here"),
        ('API_URL: "{url}", ', "", "9: protocol: the program gets no {url}, so it can't use the proxy"),
        ('arguments: [--model, "{model}"]\n', "", "8: protocol: the program gets no {model}"),
        ("{API_URL", "{HOME: x, API_URL", "8: HOME is a new folder for each task; {home} stands for it"),
        ("provider: openai\n", "", "9: protocol: an engine that talks to a model needs the key 'provider'"),
        ("protocol: chat\n", "", "9: provider: needs protocol, the API that the program speaks"),
        ("1.2.3", "latest", "4: 'latest' is not an exact version such as 1.2.3"),
        ("1.2.3", "1.2.{arhc}", "4: {arhc} isn't a placeholder here"),
        ("helper/bin/helper", "../bin/helper", "6: '../bin/helper' is not a path below that folder, without '..'"),
        ("helper/bin/helper", "other/helper", "6: 'other/helper' isn't in the folder of a package; these are helper"),
        ("program: helper/bin/helper\n", "", "1: packages need program, the path of what is started"),
        ("    folder: helper", "    folder: helper\n    integrity: {x64: sha512-abc}", "6: 'sha512-abc' is not a digest"),
        ('npm: "@example/helper-{arch}"', "pypi: helper\n    npm: helper", "3: a package needs exactly one of"),
        ("title: Helper", "title: Helper\nstdin: none", "2: stdin: none: the program gets no prompt"),
        ("title: Helper", "title: Helper\nfiles: {../x: y}", "2: '../x' is not a path below that folder, without '..'"),
    ],
)  # fmt: skip
def test_an_engine_that_could_not_work_or_would_leak_a_key_is_rejected(old: str, new: str, problem: str) -> None:
    assert old in VALID
    found = problems_of(VALID.replace(old, new))
    assert len(found) == 1, found
    assert found[0].startswith(problem), found
    assert "0123456789abcdef" not in found[0]


def test_a_file_name_that_is_no_engines_name_is_rejected() -> None:
    assert problems_of(VALID, "My_Engine") == [
        "1: 'My_Engine' can't be an engine's name: write a file name of lower-case letters, digits and dashes"
    ]


def test_the_readme_has_every_key_and_placeholder() -> None:
    text = (SHIPPED / "README.md").read_text()
    rows = [f"| `{each.name}` | {each.description} |" for each in (*ENGINE.fields, *PACKAGE.fields)]
    rows += [f"| `{{{name}}}` | {meaning} |" for name, meaning in PLACEHOLDERS.items()]
    assert [row for row in rows if row not in text] == []
    example = text.split("\n\n")[3]
    assert example.startswith("    title: Helper")
    assert parse_engine("helper.yml", example.replace("sha512-…", "sha512-" + "A" * 86 + "==").encode()).version == "1.2.3"


def test_an_engine_without_packages_is_a_program_that_machines_have() -> None:
    text = VALID.partition("packages")[0] + "program: python3\n" + VALID.partition("bin/helper\n")[2]
    engine = parse_engine("own.yml", text.encode())
    assert (program_of(engine), install_task(engine)) == ("python3", None)
    for wrong in ("bin/helper", "python3-{machine}"):
        assert len(problems_of(text.replace("python3", wrong), "own")) == 1


def test_the_default_engine_exists_and_has_a_program() -> None:
    engines = load_engines(None)
    assert [default_engine(engines, name) for name in ("", "codex")] == ["", "codex"]
    with pytest.raises(ConfigurationError, match=r"no engine 'cluade' \(did you mean 'claude'\?\); the engines are claude, "):
        default_engine(engines, "cluade")
    with pytest.raises(ConfigurationError, match="GIBIL_ENGINE: 'command' has no program"):
        default_engine(engines, "command")
