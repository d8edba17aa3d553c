"""How an engine is installed on a machine, and started for one task. Pure.

The machine gets the task's token in the process's environment, or in a file that only its user can read, in a HOME that is new
for each task and outside of the checkout. It is never in an argument, which every process of a machine can read.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping

from msgspec import Struct

from gibil_bot.agent_task import AgentPlan
from gibil_bot.agents.engine import PLACEHOLDERS, Engine, Package
from gibil_bot.errors import UsageError
from gibil_bot.model import TaskPlan
from gibil_bot.scripts.templates import script, text

INSTALL_TIMEOUT_S = 900.0
OLD_HOME = "/root"
"""The HOME of a machine's other tasks."""

_PLACEHOLDER = re.compile(rf"\{{({'|'.join(PLACEHOLDERS)})\}}")
_MODEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@\[\]-]{0,199}")
_FILE_VARIABLE = "GIBIL_AGENT_FILE_"

_NOT_LINKED = (
    # Agents' configuration, sessions, and instructions for all projects.
    ".aider*", ".agents", ".claude", ".claude.json*", ".codex", ".gemini", ".opencode", ".qwen", ".mcp.json",
    ".config/claude*", ".config/codex", ".config/gemini", ".config/opencode",
    ".cache/claude*", ".cache/codex", ".cache/opencode",
    ".local/share/claude*", ".local/share/opencode", ".local/state/claude*", ".local/state/opencode",
    "AGENTS.md", "CLAUDE.md", "CONTEXT.md", "GEMINI.md", "QWEN.md",
    # The bot's, and what ssh finds without HOME.
    ".gibil", ".ssh",
)  # fmt: skip
"""Patterns of the shell for what an agent's HOME doesn't get of the machine's."""

_PARENTS = (".config", ".cache", ".local", ".local/share", ".local/state")
"""Folders of the HOME whose entries are linked one by one (agent_launch.sh)."""

_STEERING = re.compile(
    r"(ANTHROPIC|CLAUDE|CODEX|OPENAI|GEMINI|GOOGLE_GEMINI|GOOGLE_GENAI|OPENCODE|QWEN|AIDER|LITELLM|MSWEA)_.*"
    r"|CLAUDECODE|GOOGLE_API_KEY|XDG_(CONFIG|DATA|STATE)_HOME|HOME"
)
"""Variables that lead an agent's program to another model, key or configuration. Earlier tasks may have set them."""


class LaunchFile(Struct, frozen=True, kw_only=True):
    """A file of the agent's HOME."""

    path: str
    """Below HOME."""
    text: str
    mode: int = 0o600


class Launch(Struct, frozen=True, kw_only=True):
    """One start of an engine's program. Its `repr` doesn't contain the token."""

    home: str
    """A new folder, which `script` creates. It may contain the token, so it is deleted after the task."""
    checkout: str
    files: tuple[LaunchFile, ...]
    environment: Mapping[str, str]
    """In addition to the task's, and to HOME. It contains the token."""
    argv: tuple[str, ...]
    stdin: str
    """A file of the machine."""
    old_home: str = OLD_HOME

    def __repr__(self) -> str:
        return f"Launch(home={self.home!r}, checkout={self.checkout!r}, argv={self.argv!r}, stdin={self.stdin!r})"

    def job_environment(self, inherited: Mapping[str, str]) -> dict[str, str]:
        """Return the environment of the job that runs `script`. `inherited`: what the task's commands should see.

        It contains the texts of the files, because a job's environment is never written to the machine's disk.
        """
        kept = {name: value for name, value in inherited.items() if not _STEERING.fullmatch(name)}
        files = {f"{_FILE_VARIABLE}{index}": file.text for index, file in enumerate(self.files)}
        return {**kept, **self.environment, **files}

    def script(self) -> str:
        """Return the job's script, for sh, which writes the files and becomes the program. Without the token."""
        files = []
        for index, file in enumerate(self.files):
            name = f"{_FILE_VARIABLE}{index}"
            files.append(f'file {shlex.quote(file.path)} "${name}" {file.mode:o}\nunset {name}\n')
        return script(
            "agent_launch",
            HOME=shlex.quote(self.home),
            OLD=shlex.quote(self.old_home),
            OWN=" | ".join(dict.fromkeys((*_NOT_LINKED, *self._own()))),
            FILES="".join(files),
            CHECKOUT=shlex.quote(self.checkout),
            COMMAND=shlex.join(self.argv),
            STDIN=shlex.quote(self.stdin),
        )

    def _own(self) -> list[str]:
        """Return what must not be a link, in addition to `_NOT_LINKED`: what contains our files, the checkout, and HOME."""
        own = []
        paths = [file.path for file in self.files]
        old = f"{self.old_home}/"
        paths += [path.removeprefix(old) for path in (self.checkout, self.home) if path.startswith(old)]
        for path in paths:
            steps = path.split("/")
            depth = 1
            while "/".join(steps[:depth]) in _PARENTS and depth < len(steps):
                depth += 1
            own.append(shlex.quote("/".join(steps[:depth])))
        return own


def launch(engine: Engine, plan: AgentPlan, *, url: str, token: str, home: str, prompt_file: str, checkout: str) -> Launch:
    """Return how the engine's program is started for a task.

    `url`: the proxy's address on the machine; empty, like `token`, for an engine that gets no model. `home`, `prompt_file` and
    `checkout` are absolute paths on the machine; `home` is deleted first. Raises UsageError if the engine can't do the plan.
    """
    model = model_of(engine, plan)
    paths = (home, prompt_file, checkout)
    if not all(re.fullmatch(r"(/[A-Za-z0-9._-]+){2,}", path) for path in paths) or f"{home}/".startswith(f"{checkout}/"):
        raise ValueError(f"not absolute paths, or a HOME inside of the checkout: {paths}")
    values = {
        "url": url.rstrip("/"),
        "token": token,
        "model": model,
        "max_turns": str(plan.max_turns),
        "home": home,
        "checkout": checkout,
        "prompt_file": prompt_file,
        "engine": engine.folder,
    }

    def filled(template: str) -> str:
        return _PLACEHOLDER.sub(lambda match: values[match[1]], template)

    def is_set(template: str) -> bool:
        return all(values[match[1]] for match in _PLACEHOLDER.finditer(template))

    if engine.program:
        argv = (program_of(engine), *(filled(word) for word in engine.arguments))
    elif plan.command.strip():
        argv = ("bash", "-c", plan.command)
    else:
        raise UsageError(f"the engine {engine.name!r} needs the key 'command' in agent: the program that reads the prompt")
    return Launch(
        home=home,
        checkout=checkout,
        files=tuple(LaunchFile(path=path, text=filled(template)) for path, template in engine.files.items()),
        environment={name: filled(value) for name, value in engine.environment.items() if is_set(value)},
        argv=argv,
        stdin=prompt_file if engine.stdin == "prompt" else "/dev/null",
    )


def model_of(engine: Engine, plan: AgentPlan) -> str:
    """Return the model of a task; empty if the engine has no default. Raises UsageError."""
    model = plan.model or engine.default_model
    if model and not _MODEL.fullmatch(model):
        raise UsageError(f"{model[:80]!r} can't be a model's name: it has letters, digits and . _ : / @ [ ] -")
    return model


def program_of(engine: Engine) -> str:
    """Return the path of an installed engine's program, the same on all machines, or the name of one that machines have."""
    return f"{engine.folder}/bin/{engine.name}" if engine.packages else engine.program


def install_task(engine: Engine) -> TaskPlan | None:
    """Return the task that installs an engine's packages; None if it has none.

    Its script depends on the engine alone. Put it before all other tasks of a plan: then it is a part of the key of prepared
    machines, and does nothing on a machine that has these packages.
    """
    if not engine.packages:
        return None
    return TaskPlan(  # noqa: S604 (a word)
        name=f"install {engine.title}",
        run=install_script(engine),
        shell="sh",
        kind="prepare",
        timeout_s=INSTALL_TIMEOUT_S,
    )


def install_script(engine: Engine) -> str:
    """Return the script for sh that installs an engine's packages at exactly their versions."""
    program = engine.program.replace("{machine}", "$machine")
    version_arguments = [word.replace("{engine}", engine.folder) for word in engine.version_arguments]
    return script(
        "engine_install",
        NAME=shlex.quote(engine.name),
        LABEL=shlex.quote(f"{engine.title} {engine.version}"),
        PACKAGES=shlex.quote(" ".join([*map(_identity, engine.packages), engine.program])),
        ENGINE=shlex.quote(engine.folder),
        DOWNLOADS=text("downloads"),
        INSTALL="\n".join(_command(package) for package in engine.packages),
        PROGRAM=program,
        VERSION_ARGUMENTS=shlex.join(version_arguments),
    )


def _identity(package: Package) -> str:
    digests = ",".join(f"{arch}:{digest}" for arch, digest in sorted(package.integrity.items()))
    return f"{package.registry}:{package.name}@{package.version}={package.folder}({digests})"


def _command(package: Package) -> str:
    # The loader allows no characters in these words that mean something in double quotes, except the placeholder.
    name, version = (f'"{word.replace("{arch}", "$arch")}"' for word in (package.name, package.version))
    if package.registry == "pypi":
        return f"of_pypi {package.folder} {name} {version}"
    digests = (package.integrity.get(arch, "").removeprefix("sha512-") for arch in ("x64", "arm64"))
    return f"of_npm {package.folder} {name} {version} {' '.join(map(shlex.quote, digests))}"
