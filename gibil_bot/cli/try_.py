"""`gibil try`: runs a workflow on a local checkout with the bot's runner, and reports in the terminal."""

from __future__ import annotations

import asyncio
import signal
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gibil_bot.cli.completers import complete_workflows
from gibil_bot.cli.machine import on_end, stderr_write
from gibil_bot.cli.output import Paint, json_option, print_json, write_err
from gibil_bot.config import Settings, load_settings
from gibil_bot.errors import GibilError, UsageError
from gibil_bot.humanize import count

PREPARATION_FAILED = 7
"""The exit status if the project couldn't be prepared."""

if TYPE_CHECKING:
    from gibil_bot.model import NewRun, Plan, Run, TaskResult
    from gibil_bot.runs.local_checkout import Checkout


@click.command(name="try")
@click.argument("path", default=".", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--workflow",
    "-w",
    default="test",
    show_default=True,
    help="A workflow's command, or a workflow file.",
    shell_complete=complete_workflows,
)
@click.option("--input", "-i", "inputs", multiple=True, metavar="NAME=VALUE", help="An input of the workflow; repeatable.")
@click.option("--dirty", is_flag=True, help="Include uncommitted changes and new files.")
@json_option
def try_(path: Path, workflow: str, inputs: tuple[str, ...], dirty: bool, as_json: bool) -> None:
    """Run a workflow on a local checkout, on a disposable machine.

    Does what the bot would do on a pull request, before you push: the committed HEAD (or, with --dirty, the working tree) is
    sent to a fresh machine, the tasks run, the machine is burned. If the workflow has `commit:`, its changes are collected and
    checked as the bot does; nothing is pushed, but a patch is stored. Agents use the keys of GIBIL_MODEL_KEY_… within the
    budgets of the settings. Exit status 0 if the run succeeds, 1 if it fails,
    7 if that says nothing about the code: the project couldn't be prepared (with --json: preparation_failed), a program that
    the tests need doesn't exist, or nothing was found that tests it.

    \b
    gibil try
    gibil try ../other -w lint
    gibil try --dirty -i args="-k parser"
    gibil try -w fix
    """
    from gibil_bot.providers import prestart

    settings = load_settings()
    prestart(settings)
    sys.exit(asyncio.run(_try(settings, path, workflow, _parse_inputs(inputs), dirty, as_json)))


def _parse_inputs(inputs: tuple[str, ...]) -> dict[str, str]:
    parsed = {}
    for entry in inputs:
        name, equals, value = entry.partition("=")
        if not equals or not name:
            raise UsageError(f"--input {entry!r}: expected NAME=VALUE")
        parsed[name] = value
    return parsed


async def _try(settings: Settings, path: Path, workflow: str, inputs: dict[str, str], dirty: bool, as_json: bool) -> int:
    from gibil_bot.runs import local_checkout

    async with local_checkout.read(path, dirty=dirty, github_url=settings.github_url) as checkout:
        return await _run(settings, checkout, str(path), workflow, inputs, dirty, as_json)


async def _run(
    settings: Settings, checkout: Checkout, path: str, workflow: str, inputs: dict[str, str], dirty: bool, as_json: bool
) -> int:
    from gibil_bot.cli.runtime_fill import start
    from gibil_bot.machines.validation import check_room
    from gibil_bot.runs import commit_preview, local_checkout
    from gibil_bot.runs.commit_steps import as_patch
    from gibil_bot.runs.memory import MemoryRuns
    from gibil_bot.runs.runner import Runner
    from gibil_bot.views import failed_preparation, none_could_run
    from gibil_bot.wiring import checkout_agents, checkout_tools, open_factory, operator_limits

    wanted = await local_checkout.plan(checkout, workflow, inputs, operator_limits(settings))
    plan = as_patch(wanted)
    patch: Path | None = None
    factory = open_factory(settings)
    terminal = Terminal(plan)
    runs = MemoryRuns()
    runtimes: list[str] = []
    with tempfile.TemporaryDirectory(prefix="gibil-try-") as scratch:
        logs = Path(scratch) / "logs"
        try:
            owner = factory.keyring.machine_owner()
            check_room({machine.name for machine in await factory.list(owner)}, ["try"], settings.max_machines)
            new: NewRun = local_checkout.new_run(checkout, plan)
            runs.queue(new)
            claim = await runs.claim("gibil try", lease_s=float("inf"), max_machines=1)
            assert claim is not None
            async with checkout_agents(settings, factory, checkout, plan) as agents:
                tools = replace(
                    checkout_tools(
                        settings, factory, checkout, runs, owner=owner, logs=logs, secrets=settings.secrets, agents=agents
                    ),
                    observer=terminal.phase,
                    output=terminal.output,
                    on_runtimes=runtimes.extend,
                )
                runner = Runner(tools, claim)
                asyncio.get_running_loop().add_signal_handler(signal.SIGINT, runner.cancel, "interrupted")
                on_end(lambda: runner.cancel("interrupted"))
                conclusion = await runner.run()
            run = await runs.get(new.id)
            assert run is not None
            results = await runs.task_results(new.id, run.machine_attempt)
            patch = await asyncio.to_thread(commit_preview.keep, run, logs, settings.data_dir)
        finally:
            await factory.close()
    terminal.close(run, results)
    for update in runs.reviews:
        terminal.print_review(update.without_lines)
    preview: dict[str, object] | None = None
    if wanted.commit is not None:
        preview = commit_preview.preview(wanted.commit, run, patch, checkout=path, dirty=dirty)
        terminal.print_lines(commit_preview.lines(wanted.commit, run, preview))
    start(settings, tuple(runtimes))
    if as_json:
        from gibil_bot.views import detected_view, run_view

        reviews = [update.without_lines for update in runs.reviews]
        view = detected_view(run.plan.detected) if run.plan.detected else None
        print_json({**run_view(run, results), "note": run.note, "detected": view, "commit": preview, "reviews": reviews})
    if conclusion.value == "cancelled":
        return 130
    if conclusion.value in ("success", "skipped", "neutral"):
        return 0
    detected = run.plan.detected
    nothing_ran = detected is not None and (detected.problem is not None or none_could_run(run.plan, results))
    is_unprepared = nothing_ran or failed_preparation(run.plan, results) is not None
    return PREPARATION_FAILED if is_unprepared else GibilError.exit_status


class Terminal:
    """Shows a run on stderr: its phases, the tasks' output between them, and a table at the end."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._paint = Paint(sys.stderr)
        self._line_open = False
        for note in plan.notes:
            self._print_line(self._paint.quiet(f"note: {note}"))

    def _print_line(self, text: str) -> None:
        if self._line_open:
            text = f"\n{text}"
            self._line_open = False
        write_err(f"{text}\n")

    def phase(self, event: dict[str, object]) -> None:
        seconds = event.get("seconds")
        took = f" ({float(seconds):.2f} s)" if isinstance(seconds, int | float) else ""
        match event["phase"]:
            case "forging":
                self._print_line(self._paint.quiet("creating a machine …"))
            case "preparing":
                self._print_line(self._paint.quiet(f"{event['name']} …"))
            case "forged":
                self._print_line(self._paint.quiet(f"machine {event['machine']} is ready{took}"))
            case "cloned":
                self._print_line(self._paint.quiet(f"code cloned{took}"))
            case "detected":
                self._print_line(self._paint.quiet(f"project read{took}"))
            case "cache_restored":
                self._print_line(self._paint.quiet(str(event["what"])))
            case "committed":
                self._print_line(self._paint.quiet(f"changes collected and checked{took}"))
            case "caches_saved":
                stored = count(int(str(event["count"])), "cache")
                self._print_line(self._paint.quiet(f"saved {stored}, {event['size']}{took}"))
            case "task_started":
                self._print_line(self._paint.bold(f"▶ {event['name']}"))
            case "task_finished":
                good = event["status"] == "success"
                self._print_line(
                    (self._paint.good if good else self._paint.bad)(
                        f"{'✔' if good else '✘'} {event['name']}: {event['status']}{took}"
                    )
                )
            case "burned":
                self._print_line(self._paint.quiet(f"machine destroyed{took}"))

    def output(self, index: int, data: bytes) -> None:
        stderr_write(data)
        self._line_open = not data.endswith(b"\n")

    def print_lines(self, lines: Iterable[str]) -> None:
        for each in lines:
            self._print_line(each)

    def close(self, run: Run, results: list[TaskResult]) -> None:
        if run.note:
            self._print_line(self._paint.bad(run.note))
        width = max((len(result.name) for result in results), default=0)
        for result in results:
            took = f"{result.duration_s:7.2f} s" if result.duration_s is not None else " " * 9
            self._print_line(f"  {result.name:<{width}}  {result.status.value:<9} {took}  {result.detail}".rstrip())
        self._print_agents(results)
        self._advise(run, results)
        verdict = run.conclusion.value if run.conclusion else "unknown"
        paint = self._paint.good if verdict in ("success", "skipped", "neutral") else self._paint.bad
        self._print_line(paint(f"{self._plan.workflow}: {verdict}"))

    def print_review(self, markdown: str) -> None:
        """Print the review that the bot would submit, as text."""
        from gibil_bot.demo.terminal import readable

        self._print_line(self._paint.bold("the review:"))
        for line in readable(markdown):
            self._print_line(f"  {line}".rstrip())

    def _print_agents(self, results: list[TaskResult]) -> None:
        """Print what each agent used, the limits that it had, and what a person should know of its work."""
        from gibil_bot.github.markdown import line

        for result in results:
            if (agent := result.agent) is None:
                continue
            from gibil_bot.github.render_agents import spent_view

            who = f"{agent.engine}, {agent.model}" if agent.model else agent.engine
            used = [spent_view(agent.spent)] if agent.model else []
            used += [f"budget: {agent.budget}"] if agent.budget else []
            self._print_line("; ".join([f"{result.name} ({who})", *used]))
            if agent.limit:
                self._print_line(self._paint.bad(line(agent.limit, 500)))
            for note in agent.notes[:20]:
                self._print_line(f"note: {line(note, 500)}")

    def _advise(self, run: Run, results: list[TaskResult]) -> None:
        """Print the project's own CI and a `.gibil.yml`, if the project couldn't be prepared or nothing was detected."""
        from gibil_bot.github.markdown import clean, line
        from gibil_bot.views import failed_preparation, none_could_run, not_run, preparation_name, quotes_view

        failed = failed_preparation(run.plan, results)
        if failed is not None:
            missing = not_run(run.plan, results)
            so = f"; {missing} didn't run" if missing else ""
            self._print_line(self._paint.bad(f"the preparation failed ({preparation_name(run.plan, failed)}){so}"))
        detected = run.plan.detected
        if detected is None or not (
            failed or none_could_run(run.plan, results) or (detected.problem and detected.purpose == "test")
        ):
            return
        for command, place in quotes_view(detected)[:5]:
            self._print_line(f"its CI runs {line(command, 500)} ({line(place)})")
        if detected.suggestion:
            self._print_line("a .gibil.yml to start from:\n")
            self._print_line("\n".join(f"    {each}" for each in clean(detected.suggestion).splitlines()))
