"""What an engine is: a coding agent's command-line program, described as data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from msgspec import Struct, field

Protocol = Literal["anthropic", "responses", "chat", "gemini"]

FOLDER = "/opt/gibil/engines"
"""Where machines have the packages of engines, each engine in the folder of its name."""

PLACEHOLDERS: Mapping[str, str] = {
    "url": "the address of the model proxy on the machine, without a slash at its end",
    "token": "the task's token, which the proxy takes as the key; not in arguments, which every process of a machine can read",
    "model": "the model",
    "max_turns": "the most turns",
    "home": "the agent's HOME",
    "checkout": "the folder of the repository",
    "prompt_file": "the file with the prompt",
    "engine": "the folder of the engine's packages",
}
"""What `arguments`, `environment` and `files` may contain in braces."""


class Package(Struct, frozen=True, kw_only=True):
    """A package that is installed into a prepared layer.

    Of npm only the package itself, because the makers' packages contain their dependencies; of PyPI with dependencies.
    """

    registry: Literal["npm", "pypi"]
    name: str
    """May contain `{arch}`: x64 or arm64, as packages of npm are named."""
    version: str
    """Exact: the programs change their flags and events every week. May contain `{arch}`, too."""
    folder: str
    """Its folder below the engine's."""
    integrity: Mapping[str, str] = field(default_factory=dict)
    """x64, arm64 → `sha512-…`, the digest that npm publishes. Without one, the registry's is believed."""


class Verified(Struct, frozen=True, kw_only=True):
    """What was seen of this engine, and when."""

    on: str
    """YYYY-MM-DD"""
    what: str


class Engine(Struct, frozen=True, kw_only=True):
    """One engine. `arguments`, `environment` and `files` may contain the placeholders of PLACEHOLDERS."""

    name: str
    title: str
    packages: tuple[Package, ...] = ()
    """None: the program is on the machine already."""
    program: str = ""
    """Path of the program below the folder of its packages; may contain `{machine}`: x86_64 or aarch64. Without packages, the
    name of a program that machines have. Empty: the plan's `command`."""
    version_arguments: tuple[str, ...] = ("--version",)
    """They make it print its version, to see that it runs on a machine."""
    arguments: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    """A variable whose value contains a placeholder for an empty text isn't set."""
    files: Mapping[str, str] = field(default_factory=dict)
    """Configuration: path below the agent's HOME → text."""
    stdin: Literal["prompt", "none"] = "prompt"
    protocol: Protocol | None = None
    """How it talks to its model. None: it talks to none through the proxy."""
    provider: str = ""
    """Whose key the proxy uses: anthropic | openai | gemini."""
    dialect: Literal["claude", "codex", "gemini", "opencode", "text"] = "text"
    default_model: str = ""
    models: tuple[str, ...] = ()
    """Patterns of further models that its program may ask for by itself, such as a small one for titles."""
    instruction_files: tuple[str, ...] = ()
    """Globs of files in a repository that steer it, in addition to those of all engines (instruction_files.py)."""
    unread_instructions: tuple[str, ...] = ()
    """Instruction files that its flags keep it from reading, with the repository's settings. The prompt can name them."""
    end_grace_s: float = 10.0
    """How long its program may go on after its last event before it is killed."""
    silent_s: float | None = None
    """How long its program may print nothing and finish no call of its model before it is killed. None: as long as the task."""
    verified: tuple[Verified, ...] = ()
    source: str = ""
    """The operator's file that describes it. Empty: it is shipped."""

    @property
    def folder(self) -> str:
        """Where a machine has its packages."""
        return f"{FOLDER}/{self.name}"

    @property
    def version(self) -> str:
        """The version of its first package; empty without packages."""
        return self.packages[0].version.removesuffix("-linux-{arch}") if self.packages else ""

    @property
    def limits_turns(self) -> bool:
        """Whether its program stops by itself after the plan's turns. Otherwise only the proxy can count calls."""
        return any("{max_turns}" in text for text in (*self.arguments, *self.environment.values(), *self.files.values()))
