"""Reads the engines' files: the shipped ones and the operator's.

Strict, as workflow files are read: every problem is reported, as `file:line:column: problem`. An operator's file that has the
name of a shipped engine replaces it, so that another version can be pinned without waiting for a release.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

from gibil_bot.agents.engine import PLACEHOLDERS, Engine, Package, Verified
from gibil_bot.errors import ConfigurationError, InvalidWorkflow
from gibil_bot.humanize import nearest
from gibil_bot.limits import MOST_GLOB, WORKFLOW_FILE_BYTES
from gibil_bot.planning.schema_types import Choice, Field, ListOf, Number, Problems, Record, Table, Text
from gibil_bot.planning.yaml_nodes import Node, read_yaml

SHIPPED = Path(__file__).parent
MOST_FILES = 50

_PLACEHOLDER = re.compile(r"\{([a-z_]+)\}")
_NAME = re.compile(r"[a-z][a-z0-9-]{0,30}")
_SECRET = re.compile(
    r"\bsk-[A-Za-z0-9_-]{16,}|\bAIza[A-Za-z0-9_-]{30,}|\bgh[pousr]_[A-Za-z0-9]{30,}|-----BEGIN [A-Z ]*PRIVATE KEY"
)
_SECRET_NAME = re.compile(r"(?:KEY|TOKEN|SECRET|PASSWORD)$")
_ONE_LINE = r"[^\x00-\x1f\x7f]+"

_PATH = Text(
    what="a path below that folder, without '..'",
    pattern=r"(?!/)(?!(?:.*/)?\.\.(?:/|$))[A-Za-z0-9._/@{}+-]*[A-Za-z0-9._@}+-]",
    longest=200,
)
_WORDS = ListOf(item=Text(what="a word", shortest=0, longest=4096), most=100)
_TITLE = Text(what="one line of text", pattern=_ONE_LINE, longest=60)
_VARIABLE = Text(what="a name of letters, digits and _", pattern="[A-Za-z_][A-Za-z0-9_]*", longest=100)
_DIGEST = Text(
    what="a digest such as sha512-…, as `npm view PACKAGE dist.integrity` prints it", pattern="sha512-[A-Za-z0-9+/]{86}=="
)
_MODEL = Text(what="a model's name", pattern=r"[A-Za-z0-9][A-Za-z0-9._:/@\[\]-]*", longest=200, any_scalar=True)

PACKAGE = Record(
    what="a package",
    fields=(
        Field(
            name="npm",
            kind=Text(what="a package's name", pattern=r"(?:@[a-z0-9._~-]+/)?[a-z0-9._~{}-]+", longest=214),
            description="A package of npm that contains its dependencies; `{arch}` is x64 or arm64, also in its version.",
        ),
        Field(
            name="pypi",
            kind=Text(what="a package's name", pattern=r"[A-Za-z0-9][A-Za-z0-9._-]*", longest=214),
            description="A package of PyPI, installed with its dependencies in a virtual environment.",
        ),
        Field(
            name="version",
            kind=Text(
                what="an exact version such as 1.2.3", pattern=r"[0-9]+\.[0-9A-Za-z.+{}-]+", longest=100, any_scalar=True
            ),
            description="The exact version.",
            required=True,
        ),
        Field(
            name="folder",
            kind=Text(what="a folder's name", pattern="(?!bin$|packages$)[a-z0-9][a-z0-9-]*", longest=60),
            description="The folder's name.",
            required=True,
        ),
        Field(
            name="integrity",
            kind=Table(key=Text(what="x64 or arm64", pattern="x64|arm64"), value=_DIGEST),
            description="x64 and arm64, and the digest that `npm view PACKAGE dist.integrity` prints. Default: the registry's.",
        ),
    ),
)

ENGINE = Record(
    what="an engine",
    fields=(
        Field(name="title", kind=_TITLE, description="The name for people.", required=True),
        Field(
            name="packages",
            kind=ListOf(item=PACKAGE, most=10),
            description="What is installed, each in its own folder. Without packages and program, a task's `command` is the "
            "program.",
        ),
        Field(
            name="program",
            kind=_PATH,
            description="The program's path below the packages' folders; `{machine}` is x86_64 or aarch64. Without packages, "
            "the name of one that machines have, such as python3.",
        ),
        Field(
            name="version-arguments",
            kind=_WORDS,
            description="Arguments with which it prints its version, to see that it runs on the machine. Default: `--version`.",
        ),
        Field(name="arguments", kind=_WORDS, description="Its arguments."),
        Field(
            name="environment",
            kind=Table(key=_VARIABLE, value=Text(what="text", shortest=0, longest=32768, any_scalar=True)),
            description="Its variables, in addition to the task's. One whose placeholder is empty isn't set.",
        ),
        Field(
            name="files",
            kind=Table(key=_PATH, value=Text(what="text", shortest=0, longest=32768), most=20),
            description="Configuration: path below its HOME, and text. Only its user can read them.",
        ),
        Field(
            name="stdin",
            kind=Choice(words=("prompt", "none")),
            description="`prompt` (default), or `none`: then an argument has `{prompt_file}`.",
        ),
        Field(
            name="protocol",
            kind=Choice(words=("anthropic", "responses", "chat", "gemini")),
            description="The API by which it talks to its model through the proxy: anthropic, responses, chat or gemini.",
        ),
        Field(
            name="provider",
            kind=Choice(words=("anthropic", "openai", "gemini")),
            description="Whose key the proxy uses: anthropic, openai or gemini.",
        ),
        Field(
            name="dialect",
            kind=Choice(words=("claude", "codex", "gemini", "opencode", "text")),
            description="How its output is read: claude, codex, gemini, opencode or text (default).",
        ),
        Field(name="default-model", kind=_MODEL, description="The model of tasks that name none."),
        Field(
            name="models",
            kind=ListOf(
                item=Text(what="a pattern of models", pattern=r"[A-Za-z0-9*][A-Za-z0-9._:/@*-]*", longest=200), fewest=0
            ),
            description="Patterns of further models that it may ask for by itself, with `*` for any characters.",
        ),
        Field(
            name="instruction-files",
            kind=ListOf(item=Text(what="a glob", pattern=_ONE_LINE, longest=MOST_GLOB)),
            description="Globs of further files in repositories that steer it; those of the usual programs are known.",
        ),
        Field(
            name="unread-instructions",
            kind=ListOf(item=_PATH),
            description="Instruction files that its arguments keep it from reading, for the prompt to name.",
        ),
        Field(
            name="end-grace-seconds",
            kind=Number(lowest=0, highest=600, whole=False),
            description="How long it may go on after its last event. Default: 10.",
        ),
        Field(
            name="silent-minutes",
            kind=Number(lowest=0, highest=1440, whole=False),
            description="How long it may print nothing and finish no call of its model. Default: as long as the task.",
        ),
        Field(
            name="verified",
            kind=ListOf(
                item=Record(
                    what="an entry of verified",
                    fields=(
                        Field(
                            name="on",
                            kind=Text(what="a date such as 2026-11-26", pattern=r"[0-9]{4}-[0-9]{2}-[0-9]{2}"),
                            description="The date.",
                            required=True,
                        ),
                        Field(name="what", kind=Text(what="text", longest=2000), description="What was seen.", required=True),
                    ),
                ),
                fewest=0,
            ),
            description="What was seen of it: `on` (a date) and `what`.",
        ),
    ),
)


def load_engines(folder: Path | None) -> dict[str, Engine]:
    """Return all engines by name: the shipped ones, and those of the operator's folder. Blocks.

    Raises ConfigurationError with every problem of every file.
    """
    problems: list[str] = []
    engines = {engine.name: engine for engine in _read_folder(SHIPPED, problems, is_shipped=True)}
    if folder is not None:
        engines |= {engine.name: engine for engine in _read_folder(folder, problems, is_shipped=False)}
    if problems:
        raise ConfigurationError(tuple(problems))
    return dict(sorted(engines.items()))


def default_engine(engines: Mapping[str, Engine], name: str) -> str:
    """Return the name of the engine that GIBIL_ENGINE names; empty for none. Raises ConfigurationError."""
    if not name:
        return ""
    if name not in engines:
        known = ", ".join(engines)
        hint = nearest(name[:60], engines)
        raise ConfigurationError((f"GIBIL_ENGINE: there is no engine {name[:60]!r}{hint}; the engines are {known}",))
    if not engines[name].program:
        raise ConfigurationError((f"GIBIL_ENGINE: {name!r} has no program: only tasks that have a `command` can use it",))
    return name


def _read_folder(folder: Path, problems: list[str], *, is_shipped: bool) -> Iterator[Engine]:
    try:
        paths = sorted(path for path in folder.iterdir() if path.suffix in (".yml", ".yaml") and not path.name.startswith("."))
    except OSError as error:
        problems.append(f"{folder}: can't be read: {error.strerror}")
        return
    if len(paths) > MOST_FILES:
        problems.append(f"{folder}: has {len(paths)} engines, at most {MOST_FILES} are allowed")
        return
    seen: dict[str, Path] = {}
    for path in paths:
        other = seen.setdefault(path.stem, path)
        if other != path:
            problems.append(f"{path}: the engine {path.stem!r} is in {other.name}, too; delete one of the files")
            continue
        try:
            with path.open("rb") as file:
                data = file.read(WORKFLOW_FILE_BYTES + 1)
            yield parse_engine(str(path), data, source="" if is_shipped else str(path))
        except OSError as error:
            problems.append(f"{path}: can't be read: {error.strerror}")
        except InvalidWorkflow as error:
            problems += [problem.message for problem in error.all]


def parse_engine(path: str, data: bytes, *, source: str = "") -> Engine:
    """Parse an engine's file; the file's name is the engine's. Raises InvalidWorkflow with every problem."""
    root = read_yaml(path, data)
    problems = Problems()
    name = Path(path).stem
    if not _NAME.fullmatch(name):
        problems.add(
            root.error(f"{name!r} can't be an engine's name: write a file name of lower-case letters, digits and dashes")
        )
    values: dict[str, Any] = problems.collect(partial(ENGINE.read, root)) or {}
    for problem in (*_cross_problems(values, root), *_text_problems(values, root)):
        problems.add(problem)
    problems.raise_with()
    for problem in _missing(values, root):  # a key that couldn't be read may contain it
        problems.add(problem)
    problems.raise_with()
    return Engine(
        name=name,
        title=values["title"],
        packages=tuple(_package(each) for each in values.get("packages", ())),
        program=values.get("program", ""),
        version_arguments=tuple(values.get("version-arguments", ("--version",))),
        arguments=tuple(values.get("arguments", ())),
        environment=values.get("environment", {}),
        files=values.get("files", {}),
        stdin=values.get("stdin", "prompt"),
        protocol=values.get("protocol"),
        provider=values.get("provider", ""),
        dialect=values.get("dialect", "text"),
        default_model=values.get("default-model", ""),
        models=tuple(values.get("models", ())),
        instruction_files=tuple(values.get("instruction-files", ())),
        unread_instructions=tuple(values.get("unread-instructions", ())),
        end_grace_s=float(values.get("end-grace-seconds", 10.0)),
        silent_s=60.0 * values.get("silent-minutes", 0) or None,
        verified=tuple(Verified(on=each["on"], what=each["what"]) for each in values.get("verified", ())),
        source=source,
    )


def _package(values: Mapping[str, Any]) -> Package:
    registry: Literal["npm", "pypi"] = "npm" if "npm" in values else "pypi"
    return Package(
        registry=registry,
        name=values[registry],
        version=values["version"],
        folder=values["folder"],
        integrity=values.get("integrity", {}),
    )


def _cross_problems(values: Mapping[str, Any], root: Node) -> Iterator[InvalidWorkflow]:
    """Yield what is wrong with keys that belong together."""
    folders: set[str] = set()
    for index, package in enumerate(values.get("packages", ())):
        if not package:
            continue
        node = root.at("packages", index)
        if len(package.keys() & {"npm", "pypi"}) > 1 or not _written(node) & {"npm", "pypi"}:
            yield node.error("a package needs exactly one of the keys npm and pypi")
        if "integrity" in package and "pypi" in package:
            yield node.key("integrity").error("integrity: only packages of npm have it")
        folder = package.get("folder", "")
        if folder in folders:
            yield node.at("folder").error(f"two packages have the folder {folder!r}")
        folders.add(folder)
        for key in ("npm", "version"):
            yield from _unknown(node.at(key), package.get(key, ""), ("arch",))
    written = _written(root)
    if "packages" in written and "program" not in written:
        yield root.error("packages need program, the path of what is started; write none of both if a task's `command` is it")
    elif "arguments" in written and "program" not in written:
        yield root.key("arguments").error("arguments: without a program there is nothing that takes them")
    program = values.get("program", "")
    yield from _unknown(root.at("program"), program, ("machine",) if "packages" in written else ())
    if "/" in program and "packages" not in written:
        yield root.at("program").error(
            f"{program!r} can't be a path without packages: write the name of a program of the machine"
        )
    if program and folders and program.split("/")[0] not in folders:
        yield root.at("program").error(f"{program!r} isn't in the folder of a package; these are {', '.join(sorted(folders))}")
    if values.get("stdin") == "none" and not any("{prompt_file}" in (word or "") for word in values.get("arguments", ())):
        yield root.at("stdin").error("stdin: none: the program gets no prompt; write {prompt_file} in arguments")
    for key in ("provider", "default-model"):
        if "protocol" in written and key not in written:
            yield root.key("protocol").error(f"protocol: an engine that talks to a model needs the key {key!r}")
    if "provider" in written and "protocol" not in written:
        yield root.key("provider").error("provider: needs protocol, the API that the program speaks")


def _written(node: Node) -> set[str]:
    """Return the keys of a mapping, also those whose value can't be read."""
    return {key.text for key, _ in node.entries}


def _missing(values: Mapping[str, Any], root: Node) -> Iterator[InvalidWorkflow]:
    """Yield the placeholders that a program which talks to a model has to get."""
    texts = [*values.get("environment", {}).values(), *values.get("files", {}).values()]
    for name, where in (("url", texts), ("token", texts), ("model", [*texts, *values.get("arguments", ())])):
        if "protocol" in values and not any(f"{{{name}}}" in text for text in where):
            places = "arguments, environment or files" if name == "model" else "environment or files"
            yield root.key("protocol").error(
                f"protocol: the program gets no {{{name}}}, so it can't use the proxy; {places} need it"
            )


def _text_problems(values: Mapping[str, Any], root: Node) -> Iterator[InvalidWorkflow]:
    """Yield unknown placeholders, and texts that look like secrets."""
    for key in ("arguments", "version-arguments"):
        allowed = [name for name in PLACEHOLDERS if name != "token"] if key == "arguments" else ["engine"]
        for index, word in enumerate(values.get(key, ())):
            node = root.at(key, index)
            if word and "{token}" in word:
                yield node.error("the token can't be an argument, which every process of the machine can read; use environment")
            elif word:
                yield from _secret(node, word) or _unknown(node, word, allowed)
    for key in ("environment", "files"):
        for name, text in values.get(key, {}).items():
            node = root.at(key, name)
            if secret := _secret(node, text):
                yield from secret
            elif key == "environment" and name == "HOME":
                yield node.error("HOME is a new folder for each task; {home} stands for it")
            elif key == "environment" and text and "{token}" not in text and _SECRET_NAME.search(name):
                yield node.error(f"{name} can't have a value here: a machine only gets the task's token; write {{token}}")
            else:
                yield from _unknown(node, text, list(PLACEHOLDERS))


def _unknown(node: Node, text: str, allowed: list[str] | tuple[str, ...]) -> Iterator[InvalidWorkflow]:
    for match in _PLACEHOLDER.finditer(text):
        if match[1] not in allowed:
            known = ", ".join(f"{{{name}}}" for name in allowed)
            yield node.error(
                f"{{{match[1]}}} isn't a placeholder here{nearest(match[1], allowed)}; these are {known}", offset=match.start()
            )


def _secret(node: Node, text: str) -> list[InvalidWorkflow]:
    match = _SECRET.search(text)
    if match is None:
        return []
    problem = "this looks like a key; keys stay in the bot, and machines only get the task's token: {token}"  # without the key
    return [node.error(problem, offset=match.start())]
