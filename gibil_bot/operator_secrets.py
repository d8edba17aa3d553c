"""The operator's secrets: which repository may use which. Values are masked when they are printed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

SCOPES = ("global", "owners", "repositories")
_VARIABLES = re.compile(
    r"GIBIL_MODEL_KEY_\w+|GIBIL_SECRET_\w+|GIBIL_GITHUB_PRIVATE_KEY|GIBIL_GITHUB_WEBHOOK_SECRET|HCLOUD_TOKEN"
    r"|GIBIL_DATABASE_URL|PGPASSWORD",
    re.ASCII,
)
"""The settings that are secret. The URL of a database may contain its password, and PGPASSWORD is the driver's."""
_OWNER = re.compile(r"[A-Za-z0-9_.-]+")
_REPOSITORY = re.compile(r"[A-Za-z0-9_.-]+/[A-Za-z0-9_.-]+")


def without_secrets(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment without the operator's secrets: for programs that aren't gibil, and all that they start."""
    return {name: value for name, value in environ.items() if not _VARIABLES.fullmatch(name)}


class Secret:
    """A secret value. `repr` and `str` are masked; `reveal()` returns it."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        return self._value

    def __repr__(self) -> str:
        return "Secret(***)"

    __str__ = __repr__

    def __bool__(self) -> bool:
        return bool(self._value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._value == self._value

    def __hash__(self) -> int:
        return hash(self._value)


@dataclass(frozen=True, slots=True)
class ScopedSecrets:
    """Secrets by name, for all repositories, those of an owner, or one. Owners and repositories are in lower case."""

    everywhere: Mapping[str, Secret] = field(default_factory=dict)
    owners: Mapping[str, Mapping[str, Secret]] = field(default_factory=dict)
    repositories: Mapping[str, Mapping[str, Secret]] = field(default_factory=dict)

    def of_repository(self, full_name: str) -> dict[str, Secret]:
        """Return the secrets that the workflows of `owner/name` may use; the narrowest scope of a name has priority."""
        repository = full_name.lower()
        owner = repository.partition("/")[0] if "/" in repository else ""
        return {**self.everywhere, **self.owners.get(owner, {}), **self.repositories.get(repository, {})}


def missing_secret(name: str, full_name: str) -> str:
    """Return the message for a workflow that lists a secret which its repository doesn't have.

    It is the same whether or not another repository has a secret of that name.
    """
    where = f"in secrets.yml under `repositories: {full_name}:`, or " if "/" in full_name else ""
    return (
        f"The workflow needs the secret {name}, which this bot doesn't have for {full_name}: the operator can set it {where}"
        f"for all repositories as GIBIL_SECRET_{name}; or remove {name} from the workflow's `secrets:`."
    )


def parse_secrets(content: object) -> tuple[ScopedSecrets, list[str], bool]:
    """Parse `secrets.yml`. Returns the secrets, the problems, and whether it has the old form NAME: value without scopes.

    No problem contains a value.
    """
    problems: list[str] = []
    if content is None:
        return ScopedSecrets(), problems, False
    if not isinstance(content, dict):
        return ScopedSecrets(), ["write `global:`, `owners:` and `repositories:`, each with secrets as NAME: value"], False
    if content and not any(name in SCOPES and not isinstance(content[name], str) for name in content):
        return ScopedSecrets(everywhere=_values(content, "", problems)), problems, True
    problems += [
        f"unknown key {str(name)!r}, expected {', '.join(SCOPES)}; put secrets for all repositories under `global:`"
        for name in content
        if name not in SCOPES
    ]
    return (
        ScopedSecrets(
            everywhere=_values(content.get("global"), "global: ", problems),
            owners=_scopes(content.get("owners"), "owners", _OWNER, "the name of an account", problems),
            repositories=_scopes(content.get("repositories"), "repositories", _REPOSITORY, "owner/name", problems),
        ),
        problems,
        False,
    )


def _scopes(
    content: object, scope: str, pattern: re.Pattern[str], what: str, problems: list[str]
) -> dict[str, dict[str, Secret]]:
    if content is None:
        return {}
    if not isinstance(content, dict):
        problems.append(f"{scope}: write {what}, and under it NAME: value")
        return {}
    found: dict[str, dict[str, Secret]] = {}
    for key, values in content.items():
        name = str(key)
        if not pattern.fullmatch(name):
            problems.append(f"{scope}: {name!r} is not {what}")
        elif name.lower() in found:
            problems.append(f"{scope}: {name!r} occurs twice, since upper and lower case are the same; remove one")
        else:
            found[name.lower()] = _values(values, f"{scope}: {name}: ", problems)
    return found


def _values(content: object, where: str, problems: list[str]) -> dict[str, Secret]:
    if content is None:
        return {}
    if not isinstance(content, dict):
        problems.append(f"{where}write one NAME: value per line")
        return {}
    found = {}
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, str):
            problems.append(f"{where}{str(name)!r}: write NAME: value; a number needs quotes")
        elif value:
            found[name] = Secret(value)
    return found
