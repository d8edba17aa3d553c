"""Programs that gibil starts don't inherit its environment, which contains the operator's secrets."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import gibil_bot
from gibil_bot.config import SETTINGS
from gibil_bot.operator_secrets import without_secrets

PACKAGE = Path(gibil_bot.__file__).parent
STARTS = {"create_subprocess_exec", "create_subprocess_shell", "Popen", "run", "check_output", "call"}
INHERIT = {
    "cli/run.py": "gibil itself, which reads the settings",
    "providers/local/base_tree.py": "started by the daemon, which has no secrets",
    "providers/local/disk_images.py": "started by the daemon, which has no secrets",
}


def starts() -> Iterator[tuple[str, int, bool]]:
    """Yield file, line and whether it names an environment, of each call that starts a program by `subprocess` or asyncio."""
    for path in PACKAGE.rglob("*.py"):
        name = path.relative_to(PACKAGE).as_posix()
        if name.startswith(("demo/project/", "sdk/site/")):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in STARTS:
                module = node.func.value
                if (
                    isinstance(module, ast.Name)
                    and module.id in ("subprocess", "asyncio")
                    and (module.id, node.func.attr)
                    != (
                        "asyncio",
                        "run",
                    )
                ):
                    yield name, node.lineno, any(keyword.arg == "env" for keyword in node.keywords)


def test_every_program_is_started_with_an_explicit_environment() -> None:
    found = list(starts())
    assert len(found) > 8
    assert {f"{name}:{line}" for name, line, has_own in found if not has_own and name not in INHERIT} == set()
    assert INHERIT.keys() <= {name for name, _, has_own in found if not has_own}, "an exception that isn't needed"


def test_what_is_secret_among_the_settings() -> None:
    names = [setting.name.replace("<NAME>", "TOKEN") for setting in SETTINGS]
    assert set(names) - without_secrets(dict.fromkeys(names, "x")).keys() == {
        "HCLOUD_TOKEN",
        "GIBIL_DATABASE_URL",
        "GIBIL_GITHUB_PRIVATE_KEY",
        "GIBIL_GITHUB_WEBHOOK_SECRET",
        "GIBIL_SECRET_TOKEN",
        "GIBIL_MODEL_KEY_ANTHROPIC",
        "GIBIL_MODEL_KEY_OPENAI",
        "GIBIL_MODEL_KEY_GEMINI",
    }
    assert without_secrets({"PGPASSWORD": "x", "PGHOST": "db"}) == {"PGHOST": "db"}
