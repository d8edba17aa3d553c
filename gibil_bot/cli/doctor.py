"""`gibil doctor`: checks every setting and everything around the bot, and says the one thing to do for each failure."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass

import click

from gibil_bot.cli.output import Paint, json_option, print_json, print_text
from gibil_bot.config import Settings, load_settings, require_github
from gibil_bot.errors import ConfigurationError, GibilError, StoreError, Unavailable

LOW_DISK_BYTES = 2 * 1024**3
GITHUB_TIMEOUT_S = 30.0
PROBE_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    name: str
    ok: bool
    detail: str
    fix: str = ""


@click.command()
@json_option
def doctor(as_json: bool) -> None:
    """Check the set-up, and say for each failure what to do.

    Really forges and burns a machine, opens the database, and asks GitHub who we are. Exit status 6 when something
    has to be done.
    """
    findings = asyncio.run(_collect(as_json))
    healthy = all(finding.ok for finding in findings)
    if as_json:
        print_json({"healthy": healthy, "checks": [asdict(finding) for finding in findings]})
    elif healthy:
        print_text("Everything is in order.\n")
    if not healthy:
        sys.exit(ConfigurationError.exit_status)


async def _collect(as_json: bool) -> list[Finding]:
    paint = Paint(sys.stdout)
    findings = []
    async for finding in _findings():
        findings.append(finding)
        if not as_json:
            mark = paint.good("ok  ") if finding.ok else paint.bad("FAIL")
            print_text(f"{mark} {finding.name}: {finding.detail}\n")
            if not finding.ok and finding.fix:
                print_text(f"     → {finding.fix}\n")
    return findings


async def _findings() -> AsyncIterator[Finding]:
    try:
        settings = load_settings()
    except ConfigurationError as error:
        for problem in error.problems:
            name, _, rest = problem.partition(": ")
            yield Finding(name, False, rest, "correct it in the environment of the bot")
        return
    yield Finding("settings", True, "every value can be read")
    yield _tools()
    yield _data_dir(settings)
    yield await _database(settings)
    yield await _workflows(settings)
    yield await _provider(settings)
    try:
        require_github(settings)
    except ConfigurationError as error:
        for problem in error.problems:
            name, _, fix = problem.partition(" is not set: ")
            yield Finding(name, False, "not set", f"set it: {fix}")
        return
    yield await _github(settings)
    yield _webhook(settings)


def _tools() -> Finding:
    git = shutil.which("git")
    if git is None:
        return Finding("git", False, "not found on this box", "install it: apt-get install git")
    return Finding("git", True, git)


def _data_dir(settings: Settings) -> Finding:
    path = settings.data_dir
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryFile(dir=path):
            pass
        free = shutil.disk_usage(path).free
    except OSError as error:
        return Finding(
            "GIBIL_DATA_DIR", False, f"{path}: {error.strerror}", f"make it writable for user {os.getuid()}, or name another"
        )
    if free < LOW_DISK_BYTES:
        return Finding(
            "GIBIL_DATA_DIR", False, f"{path} has {free // 1024**2} MiB free", "free some space: machines and logs live there"
        )
    return Finding("GIBIL_DATA_DIR", True, f"{path}, {free // 1024**3} GiB free")


async def _database(settings: Settings) -> Finding:
    from gibil_bot.runs.store import open_store

    try:
        store = await open_store(settings.database_url, exclusive=False)
        try:
            counts = await store.counts()
        finally:
            await store.close()
    except StoreError as error:
        return Finding("GIBIL_DATABASE_URL", False, error.message, "look at the file's place, its owner and the free space")
    waiting = counts["deliveries_unhandled"], counts["runs_queued"], counts["tellings_due"]
    detail = "{} deliveries to handle, {} runs queued, {} things to tell GitHub".format(*waiting)
    return Finding("database", True, detail)


async def _workflows(settings: Settings) -> Finding:
    from gibil_bot.planning.plan import catalogue
    from gibil_bot.wiring import operator_workflows

    found = catalogue(await asyncio.to_thread(operator_workflows(settings)), {}, base_ref="")
    if found.problems:
        return Finding("workflows", False, found.problems[0].message, "correct the file; `gibil check FILE` shows everything")
    if not found.workflows:
        return Finding(
            "workflows", False, f"{settings.workflows} holds none", "put a .yml file there, or leave GIBIL_WORKFLOWS unset"
        )
    return Finding("workflows", True, ", ".join(sorted(workflow.name for workflow in found.workflows)))


async def _provider(settings: Settings) -> Finding:
    from gibil_bot.wiring import open_provider

    provider = open_provider(settings)
    try:
        async with asyncio.timeout(PROBE_TIMEOUT_S):
            can = await provider.probe()
    except Unavailable as error:
        return Finding(f"provider {provider.name}", False, error.message, " or: ".join(error.remedies))
    except TimeoutError:
        return Finding(
            f"provider {provider.name}",
            False,
            f"no machine within {PROBE_TIMEOUT_S:.0f} s",
            "look at keeper.log in the data dir",
        )
    except GibilError as error:
        return Finding(f"provider {provider.name}", False, error.message, "look at keeper.log in the data dir")
    finally:
        await provider.close()
    did = f"forged and burned a machine in {can.forged_in_s * 1000:.0f} ms" if can.forged_in_s else "answers, and has machines"
    detail = (
        f"{did} (tier {can.tier}, memory limit: {can.memory_limit}, disk limit: {can.disk_limit}, processors: {can.cpu_limit})"
    )
    if "polled" in (can.memory_limit, can.disk_limit):
        detail += "; polled is looked at twice a second and then acted on, which guards against accidents, not against attacks"
    return Finding(f"provider {provider.name}", True, detail)


async def _github(settings: Settings) -> Finding:
    from gibil_bot.github.client import GitHubClient

    client = GitHubClient(settings.github_url, settings.github_app_id, settings.github_private_key.reveal())
    try:
        async with asyncio.timeout(GITHUB_TIMEOUT_S):
            slug = await client.who_am_i()
    except TimeoutError:
        return Finding(
            "GitHub", False, f"{settings.github_url} did not answer", "look at GIBIL_GITHUB_URL and this box's network"
        )
    except GibilError as error:
        fix = "compare GIBIL_GITHUB_APP_ID, GIBIL_GITHUB_PRIVATE_KEY and GIBIL_GITHUB_URL with the App's settings page"
        return Finding("GitHub", False, error.message, fix)
    finally:
        await client.close()
    return Finding("GitHub", True, f"{settings.github_url} knows us as {slug}")


def _webhook(settings: Settings) -> Finding:
    short = [secret for secret in settings.webhook_secrets if len(secret.reveal()) < 16]
    if short:
        return Finding("GIBIL_GITHUB_WEBHOOK_SECRET", False, "shorter than 16 characters", "make one: openssl rand -hex 32")
    if not settings.public_url:
        return Finding("GIBIL_PUBLIC_URL", True, "not set: check runs carry no link to the bot")
    return Finding("GIBIL_PUBLIC_URL", True, settings.public_url)
