"""`gibil init`: saves the provider and its token in a file that only its owner can read, and registers with MCP clients."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gibil_bot import durable_files
from gibil_bot.cli.completers import complete_providers
from gibil_bot.cli.machine import as_terminal, run_async
from gibil_bot.cli.output import json_option, print_json, print_message, write_err
from gibil_bot.config import SAVED, load_settings
from gibil_bot.errors import ConfigurationError, GibilError, UsageError

if TYPE_CHECKING:
    from gibil_bot.config import Settings


@click.command()
@click.option(
    "--provider",
    metavar="NAME",
    help="The provider that forges machines: local or hetzner.  [default: local]",
    shell_complete=complete_providers,
)
@click.option(
    "--token", metavar="TOKEN", help="The provider's API token; `-` reads it from stdin, which other users can't see."
)
@click.option("--add", is_flag=True, help="Add this provider without making it the default.")
@click.option("--no-mcp", is_flag=True, help="Don't register with MCP clients.")
@click.option("--remove", is_flag=True, help="Only remove gibil from the MCP clients, and Claude Code's skill.")
@click.option(
    "--repo",
    metavar="PATH",
    is_flag=False,
    flag_value=".",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Only write a .gibil.yml for the checkout in PATH, as `gibil detect` finds it.  [without PATH: this folder]",
)
@click.option("--force", is_flag=True, help="With --repo: replace a .gibil.yml that exists.")
@json_option
def init(
    provider: str | None,
    token: str | None,
    add: bool,
    no_mcp: bool,
    remove: bool,
    repo: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """Save the provider and its token; register with MCP clients. With --repo, write a `.gibil.yml`.

    The token is checked before it is saved. Everything is saved in settings.json in GIBIL_DATA_DIR, which only you can read;
    environment variables override it. `gibil mcp` is registered with the MCP clients on this computer: through the command of
    Claude Code, Codex, Gemini CLI or VS Code; for Claude Desktop, Cursor and Windsurf, init prints what to add to their files.
    No client gets the token. Claude Code also gets a skill, which teaches it to work on pull requests this way. --remove undoes
    that, and leaves the saved settings and all machines.

    \b
    gibil init
    gibil init --provider hetzner --token - < token.txt
    gibil init --repo
    gibil init --remove
    """
    if remove:
        if provider is not None or token is not None or add or no_mcp or repo is not None or force:
            raise UsageError("--remove can only be combined with --json")
        run_async(_remove(as_json))
        return
    if repo is not None:
        if provider is not None or token is not None or add or no_mcp:
            raise UsageError("--repo only writes a .gibil.yml, and can be combined with --force alone")
        _write_repository_file(repo, force=force, as_json=as_json)
        return
    if force:
        raise UsageError("--force needs --repo")
    sys.exit(run_async(_init(provider, token, add, no_mcp, as_json)))


def _write_repository_file(repo: Path, *, force: bool, as_json: bool) -> None:
    from gibil_bot.cli.detect import write

    file, content = write(repo, force=force)
    print_message(f"{file} is written; read it, try it with `gibil try`, then commit it")
    if as_json:
        print_json({"file": str(file), "content": content})


async def _init(provider: str | None, token: str | None, add: bool, no_mcp: bool, as_json: bool) -> int:
    from gibil_bot.machines.service import TOKENS
    from gibil_bot.wiring import PROVIDERS

    if add and provider is None:
        raise UsageError("--add needs --provider NAME")
    provider = provider or "local"
    if provider not in PROVIDERS:
        raise UsageError(f"there is no provider {provider!r}; write {' or '.join(PROVIDERS)}")
    token_name = TOKENS.get(provider)
    if token_name is None and token is not None:
        raise UsageError(f"--token: provider {provider!r} needs no token")
    data_dir = load_settings({**os.environ, "GIBIL_PROVIDER": "local"}).data_dir
    saved = _read(data_dir / SAVED)
    changed: dict[str, str] = {}
    if token_name is not None:
        changed[token_name] = _token(token, token_name, saved)
    if not add:
        changed["GIBIL_PROVIDER"] = provider
    elif "GIBIL_PROVIDER" not in saved:
        changed["GIBIL_PROVIDER"] = "local"  # a token alone would choose its provider
    await _check_provider(load_settings({**saved, **os.environ, **changed, "GIBIL_PROVIDER": provider}))
    saved |= changed
    _write(data_dir, saved)
    default = saved.get("GIBIL_PROVIDER", "local")
    overridden = [name for name in saved if os.environ.get(name, saved[name]) != saved[name]]
    print_message(f"{data_dir / SAVED}: {', '.join(sorted(changed))}")
    print_message(f"{provider} works; the default provider is {default}")
    for name in overridden:
        print_message(f"{name} is also set in the environment, which overrides the saved value")
    registrations = [] if no_mcp else await _register()
    if as_json:
        view = {"provider": provider, "default": default, "file": str(data_dir / SAVED), "saved": sorted(changed)}
        print_json({**view, "mcp": registrations})
    return 0


async def _remove(as_json: bool) -> None:
    """Remove gibil from every installed client, and report each result."""
    from gibil_bot.mcp_server.install import skill
    from gibil_bot.mcp_server.install.clients import clients, unregister
    from gibil_bot.mcp_server.install.entry import entry

    found = [client for client in clients(os.environ) if client.is_installed]
    results = await asyncio.gather(*(unregister(client, entry(), os.environ) for client in found))
    for each in results:
        print_message(each.message)
    file = skill.skill_file(os.environ)
    state = skill.remove(file)
    if state != "absent":
        print_message(f"{file} is removed" if state == "removed" else f"{file} is left alone: it was changed")
    data_dir = load_settings({**os.environ, "GIBIL_PROVIDER": "local"}).data_dir
    print_message(f"{data_dir / SAVED} and the machines are left as they are")
    if as_json:
        views = [{"client": each.client, "file": str(each.file), "status": each.status, "note": each.note} for each in results]
        print_json({"mcp": views, "skill": {"file": str(file), "status": state}})


def _install_skill() -> None:
    """Write Claude Code's skill. A failure doesn't fail `init`: the rest is saved."""
    from gibil_bot.mcp_server.install import skill

    file = skill.skill_file(os.environ)
    try:
        state = skill.install(file)
    except GibilError as error:
        print_message(f"Claude Code's skill: {error.message}")
        return
    print_message(
        f"Claude Code: {file} was changed, and is left alone"
        if state == "left alone"
        else f"Claude Code: its skill is in {file}"
    )


async def _register() -> list[dict[str, str]]:
    """Register with every installed client and report each result. Failures don't fail `init`: the rest is saved."""
    from gibil_bot.mcp_server.install.clients import clients, register
    from gibil_bot.mcp_server.install.entry import entry

    found = [client for client in clients(os.environ) if client.is_installed]
    results = await asyncio.gather(*(register(client, entry(), os.environ) for client in found))
    for each in results:
        print_message(each.message)
        if each.snippet:
            write_err(f"{each.snippet}\n")
    if any(client.name == "Claude Code" for client in found):
        _install_skill()
    if not results:
        print_message("no MCP client was found on this computer; `gibil mcp --print-config` prints what one needs")
    return [
        {"client": each.client, "file": str(each.file), "status": each.status, "note": each.note, "snippet": each.snippet}
        for each in results
    ]


def _token(token: str | None, name: str, saved: dict[str, str]) -> str:
    """Return the token from the option, stdin, the environment, the saved settings, or a prompt."""
    if token == "-":  # noqa: S105
        token = sys.stdin.readline() if sys.stdin is not None else ""
    token = token if token is not None else os.environ.get(name) or saved.get(name)
    if token is None and as_terminal(0):
        token = str(click.prompt(name, hide_input=True, err=True))
    token = (token or "").strip()
    if not token:
        raise UsageError(f"a token is needed: --token -, with the token on stdin, or {name} in the environment")
    if not token.isascii() or not token.isprintable() or " " in token:
        raise UsageError("the token is not valid: it has blanks or characters that are not printable ASCII")
    return token


async def _check_provider(settings: Settings) -> None:
    """Check the provider. Raises GibilError."""
    from gibil_bot.machines.service import open_machines
    from gibil_bot.providers.optional import notices

    async with open_machines(settings) as machines:
        provider = machines.factory.provider
        with notices(provider, lambda what: print_message(f"{what} …")):
            await provider.probe()


def _read(path: Path) -> dict[str, str]:
    """Return the saved settings. Raises ConfigurationError for a broken file, which isn't overwritten."""
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ConfigurationError((f"{path} can't be read: {error}; correct or remove it",)) from error
    if not isinstance(content, dict) or not all(isinstance(value, str) for value in content.values()):
        raise ConfigurationError((f"{path} is not a JSON object of strings; correct or remove it",))
    return content


def _write(data_dir: Path, content: dict[str, str]) -> None:
    """Replace the file atomically, readable only for its owner."""
    try:
        data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        durable_files.replace(data_dir / SAVED, (json.dumps(content, indent=2, sort_keys=True) + "\n").encode())
    except OSError as error:
        raise GibilError(f"{data_dir / SAVED} can't be written: {error.strerror}", code="CONFIGURATION") from error
