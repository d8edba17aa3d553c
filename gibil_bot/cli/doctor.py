"""`gibil doctor`: checks the settings and everything around the bot, and prints a fix for each failure."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass

import click

from gibil_bot.cli.output import Paint, json_option, print_json, print_message, print_text
from gibil_bot.config import Settings, load_settings, loose_mode, require_github
from gibil_bot.database_url import is_postgresql, shown_url
from gibil_bot.errors import ConfigurationError, GibilError, GitHubError, StoreError, Unavailable, UnknownModelPrice

LOW_DISK_BYTES = 2 * 1024**3
GITHUB_TIMEOUT_S = 30.0
PROBE_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check. A `fix` with `ok` is advice: nothing fails without it."""

    name: str
    ok: bool
    detail: str
    fix: str = ""


@click.command()
@json_option
def doctor(as_json: bool) -> None:
    """Check the set-up, and print a fix for each failure.

    Forges and burns a machine, opens the database, and reads the App from GitHub. Exit status 6 if something must be fixed.
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
            mark = paint.bad("FAIL") if not finding.ok else "note" if finding.fix else paint.good("ok  ")
            print_text(f"{mark} {finding.name}: {finding.detail}\n")
            if finding.fix:
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
    yield Finding("settings", True, "all values are valid")
    for note in settings.notes:
        name, _, rest = note.partition(": ")
        detail, _, fix = rest.partition("; ")
        yield Finding(name, True, detail, fix)
    yield _tools()
    yield _data_dir(settings)
    database = await _database(settings)
    yield database
    if database.ok:
        for finding in await _agreements(settings):
            yield finding
    yield await _workflows(settings)
    yield await _provider(settings)
    async for finding in _runtimes(settings):
        yield finding
    for finding in await _models(settings):
        yield finding
    try:
        require_github(settings)
    except ConfigurationError as error:
        for problem in error.problems:
            name, _, fix = problem.partition(" is not set: ")
            yield Finding(name, False, "not set", f"set it: {fix}")
        if not settings.github_app_id:
            yield _registration(settings)
        return
    for finding in await _github(settings):
        yield finding
    yield _webhook(settings)


_KEY_STARTS = {"sk-ant-": "anthropic", "sk-": "openai", "AIza": "gemini"}
"""How the vendors' keys begin, the longest first."""


async def _models(settings: Settings) -> list[Finding]:
    """Check that keys belong to their vendors, and that the models of engines have prices. No vendor is asked."""
    from gibil_bot.agents.engines.loading import default_engine, load_engines
    from gibil_bot.agents.prices import Prices
    from gibil_bot.model_settings import VENDORS

    models = settings.models
    try:
        engines = await asyncio.to_thread(load_engines, models.engines)
    except ConfigurationError as error:
        return [Finding("GIBIL_ENGINES", False, problem, "correct the file") for problem in error.problems]
    try:
        default_engine(engines, models.engine)
    except ConfigurationError as error:
        return [Finding("GIBIL_ENGINE", False, error.problems[0], "name an engine that `gibil engines` lists")]
    if not models.is_enabled:
        return [Finding("agents", True, "off, because no GIBIL_MODEL_KEY_… is set")]
    findings = []
    for vendor, key in models.keys.items():
        owner = next((each for start, each in _KEY_STARTS.items() if key.reveal().startswith(start)), vendor)
        if owner != vendor and models.urls[vendor] == VENDORS[vendor]:
            detail, fix = f"it looks like a key for {owner}", f"set GIBIL_MODEL_KEY_{owner.upper()} instead"
            findings.append(Finding(f"GIBIL_MODEL_KEY_{vendor.upper()}", False, detail, fix))
    prices = Prices(models.prices)
    usable = [engine for engine in engines.values() if engine.provider in models.keys]
    for engine in usable:
        try:
            if engine.default_model:
                await prices.of(engine.provider, engine.default_model, url=models.urls[engine.provider])
        except UnknownModelPrice:
            detail = f"the engine {engine.name} can't be used: its model {engine.default_model} has no known price"
            findings.append(Finding("GIBIL_MODEL_PRICES", False, detail, "add the model to the file of GIBIL_MODEL_PRICES"))
    budgets = models.budgets
    sums = {
        "task": budgets.task_usd,
        "run": budgets.run_usd,
        "person and day": budgets.person_usd,
        "repository and day": budgets.day_usd,
    }
    shown = ", ".join(f"{name} {'unlimited' if most is None else f'{most} USD'}" for name, most in sums.items())
    names = ", ".join(engine.name for engine in usable)
    return [*findings, Finding("agents", True, f"{names or 'no engine'} can be used; budgets: {shown}")]


def _registration(settings: Settings) -> Finding:
    """Return the link to GitHub's form, filled in."""
    from gibil_bot.github.registration import registration_url, shipped_manifest

    url = registration_url(shipped_manifest(), settings.github_url, webhook_url=_webhook_url(settings))
    fix = (
        f"register it with this form, in which only the secret (openssl rand -hex 32) and your host are missing: {url} "
        "(for an organization, put organizations/NAME/ before settings/)"
    )
    return Finding("GitHub App", True, "must be registered, unless it is already", fix)


def _webhook_url(settings: Settings) -> str:
    from gibil_bot.github.registration import WEBHOOK_PATH

    return f"{settings.public_url}{WEBHOOK_PATH}" if settings.public_url else ""


def _tools() -> Finding:
    git = shutil.which("git")
    if git is None:
        return Finding("git", False, "not found on this computer", "install it: apt-get install git")
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
            "GIBIL_DATA_DIR", False, f"{path}: {error.strerror}", f"make it writable for user {os.getuid()}, or set another"
        )
    if (loose := loose_mode(path)) is not None:
        detail = f"{path} has mode {loose:o}: other users can list its logs and machines"
        return Finding("GIBIL_DATA_DIR", False, detail, f"chmod 700 {path}; gibil serve does it as well")
    if free < LOW_DISK_BYTES:
        return Finding(
            "GIBIL_DATA_DIR",
            False,
            f"{path} has {free // 1024**2} MiB free",
            "free some space: machines and logs are stored there",
        )
    return Finding("GIBIL_DATA_DIR", True, f"{path}, {free // 1024**3} GiB free")


async def _database(settings: Settings) -> Finding:
    from gibil_bot.wiring import open_store

    url = settings.database_url
    try:
        store = await open_store(settings, exclusive=False)
        try:
            counts = await store.counts()
        finally:
            await store.close()
    except StoreError as error:
        return Finding("GIBIL_DATABASE_URL", False, error.message, "see the message; gibil db status shows more")
    waiting = counts["deliveries_unhandled"], counts["runs_queued"], counts["tellings_due"]
    detail = "{} deliveries to handle, {} runs queued, {} notifications to publish".format(*waiting)
    return Finding("database", True, f"{shown_url(url)}: {detail}" if is_postgresql(url) else detail)


async def _agreements(settings: Settings) -> list[Finding]:
    """Compare what all bots of the database share, as `gibil serve` does at its start."""
    from gibil_bot.wiring import compare_agreements

    try:
        compared = await compare_agreements(settings)
    except GibilError as error:
        return [Finding("database: agreements", False, error.message, "see the message")]
    return [Finding(f"database: {each.name}", each.ok, each.detail, each.remedy) for each in compared]


async def _workflows(settings: Settings) -> Finding:
    from gibil_bot.planning.plan import catalogue
    from gibil_bot.wiring import operator_workflows

    found = catalogue(await asyncio.to_thread(operator_workflows(settings)), {}, base_ref="")
    if found.problems:
        return Finding("workflows", False, found.problems[0].message, "correct the file; `gibil check FILE` shows all problems")
    if not found.workflows:
        return Finding(
            "workflows", False, f"{settings.workflows} has no workflow", "add a .yml file to it, or unset GIBIL_WORKFLOWS"
        )
    return Finding("workflows", True, ", ".join(sorted(workflow.name for workflow in found.workflows)))


async def _runtimes(settings: Settings) -> AsyncIterator[Finding]:
    """Store the runtimes that machines should have from the beginning."""
    from gibil_bot.wiring import open_factory, store_runtimes

    if not settings.runtimes or settings.provider != "local":
        return
    factory = open_factory(settings)
    try:
        async for name, tree, problem in store_runtimes(settings, factory):
            if problem:
                yield Finding("GIBIL_RUNTIMES", False, f"{name} can't be stored: {problem}", "see the message, or leave it out")
            else:
                yield Finding("GIBIL_RUNTIMES", True, f"{name}: {f'{tree} is stored' if tree else 'this host has it'}")
    finally:
        await factory.close()


async def _provider(settings: Settings) -> Finding:
    from gibil_bot.providers.optional import notices
    from gibil_bot.wiring import open_provider

    provider = open_provider(settings)
    try:
        with notices(provider, lambda what: print_message(f"{what} …")):
            async with asyncio.timeout(PROBE_TIMEOUT_S):
                capabilities = await provider.probe()
    except Unavailable as error:
        return Finding(f"provider {provider.name}", False, error.message, " or: ".join(error.remedies))
    except TimeoutError:
        return Finding(
            f"provider {provider.name}",
            False,
            f"no machine within {PROBE_TIMEOUT_S:.0f} s",
            "see local/keeper.log in the data directory",
        )
    except GibilError as error:
        return Finding(f"provider {provider.name}", False, error.message, "see local/keeper.log in the data directory")
    finally:
        await provider.close()
    result = (
        f"created and destroyed a machine in {capabilities.forged_in_s * 1000:.0f} ms"
        if capabilities.forged_in_s
        else "the provider answers and can create machines"
    )
    limits = (
        f"tier {capabilities.tier}, memory limit: {capabilities.memory_limit}, disk limit: {capabilities.disk_limit}, "
        f"processors: {capabilities.cpu_limit}"
    )
    detail = f"{result} ({limits})"
    if "polled" in (capabilities.memory_limit, capabilities.disk_limit):
        detail += "; polled limits are checked twice a second, which stops accidents, not attacks"
    if capabilities.inherited:
        detail += (
            f"; machines inherit from the process that started their daemon: {', '.join(capabilities.inherited)} "
            "(the daemon ends half a minute after its last machine)"
        )
    return Finding(f"provider {provider.name}", True, detail)


async def _github(settings: Settings) -> list[Finding]:
    from gibil_bot.github.api.client import GitHubClient
    from gibil_bot.github.api.session import Session
    from gibil_bot.github.registration import differences, shipped_manifest

    client = GitHubClient(Session(settings.github_url, settings.github_app_id, settings.github_private_key.reveal()))
    network = "check this host's network (DNS, firewall, proxy) and GIBIL_GITHUB_URL"
    try:
        async with asyncio.timeout(GITHUB_TIMEOUT_S):
            app = await client.registered_app()
    except TimeoutError:
        return [Finding("GitHub", False, f"{settings.github_url} didn't answer within {GITHUB_TIMEOUT_S:.0f} s", network)]
    except GitHubError as error:
        return [Finding("GitHub", False, error.message, _cause(error, network))]
    except GibilError as error:
        return [Finding("GitHub", False, error.message, "check GIBIL_GITHUB_PRIVATE_KEY")]
    finally:
        await client.close()
    found = differences(shipped_manifest(), app, _webhook_url(settings))
    findings = [Finding("GitHub", True, f"{settings.github_url} has the App as {app.slug}")]
    topics = {
        "App permissions": "as in app.yml",
        "App events": "as in app.yml",
        "App webhook": app.webhook_url or "",
    }
    wrong = {difference.topic for difference in found}
    findings += [Finding(topic, True, detail) for topic, detail in topics.items() if topic not in wrong]
    if app.deliveries and "App deliveries" not in wrong:
        findings.append(Finding("App deliveries", True, f"the last {app.deliveries} arrived"))
    return findings + [Finding(each.topic, not each.matters, each.detail, each.fix) for each in found]


def _cause(error: GitHubError, network: str) -> str:
    """Return the fix, by the status of GitHub's response."""
    if error.status == 0:
        return network
    if error.status == 401:
        return "compare GIBIL_GITHUB_APP_ID and GIBIL_GITHUB_PRIVATE_KEY with the App's settings page"
    if error.status == 404:
        return "check GIBIL_GITHUB_URL and GIBIL_GITHUB_APP_ID"
    if error.status in (403, 429):
        return "wait for GitHub's limit to pass, and run gibil doctor again"
    return "run gibil doctor again; https://www.githubstatus.com shows incidents at GitHub"


def _webhook(settings: Settings) -> Finding:
    short = [secret for secret in settings.webhook_secrets if len(secret.reveal()) < 16]
    if short:
        return Finding("GIBIL_GITHUB_WEBHOOK_SECRET", False, "shorter than 16 characters", "generate one: openssl rand -hex 32")
    if not settings.public_url:
        return Finding("GIBIL_PUBLIC_URL", True, "not set: check runs have no link to the bot")
    return Finding("GIBIL_PUBLIC_URL", True, settings.public_url)
