"""The tools for runs of workflows: on the bot for pull requests, in `gibil mcp` for checkouts on the user's computer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol, TypeAlias

from mcp.server.mcpserver import Context, MCPServer
from mcp.types import CallToolResult, ToolAnnotations
from pydantic import Field

from gibil_bot.access_tokens import AccessToken
from gibil_bot.errors import GibilError
from gibil_bot.mcp_server.http import TOKEN
from gibil_bot.mcp_server.results import RunCancelled, RunLog, RunsStarted, RunView, add, answer
from gibil_bot.model import Run, RunState, TaskResult
from gibil_bot.runs.log_pages import LogRequest, Part
from gibil_bot.views import run_view

if TYPE_CHECKING:
    from gibil_bot.mcp_server.local_runs import LocalRuns
    from gibil_bot.runs.log_pages import LogPage
    from gibil_bot.runs.person_runs import PersonRuns

LOG_BYTES = 20_000

RunId: TypeAlias = Annotated[str, Field(description="The run's id, as run_workflow returns it.")]
Inputs: TypeAlias = Annotated[
    dict[str, str] | None, Field(description="The workflow's inputs by name, as after its command in a comment.")
]


class NoScope(GibilError):
    """The caller's token doesn't allow this."""

    code = "SCOPE"


class Runs(Protocol):
    """What the tools need of runs; `login` is the person who calls. Raises UsageError with code RUN_NOT_FOUND."""

    async def get(self, login: str, run_id: str) -> tuple[Run, list[TaskResult]]: ...

    async def log(self, login: str, run_id: str, wanted: LogRequest) -> tuple[Run, LogPage]: ...

    async def cancel(self, login: str, run_id: str) -> tuple[Run, bool]: ...


class _RunTools:
    """The tools for runs that exist."""

    def __init__(self, runs: Runs) -> None:
        self._runs = runs

    def register(self, server: MCPServer[Any]) -> None:
        add(server, self.get_run, annotations=ToolAnnotations(title="State of a run", read_only_hint=True))
        add(server, self.run_logs, annotations=ToolAnnotations(title="Output of a run", read_only_hint=True))
        add(
            server,
            self.cancel_run,
            annotations=ToolAnnotations(title="Cancel a run", destructive_hint=True, idempotent_hint=True),
        )

    def caller(self, context: Context[Any, Any], scope: str) -> str:
        """Return the login of the caller. Raises NoScope."""
        return ""

    async def commit(self, run: Run) -> tuple[dict[str, object], list[str]] | None:
        """Return what a finished run would have pushed, as JSON and as lines; None if it has no `commit:`."""
        return None

    async def get_run(self, context: Context[Any, Any], run_id: RunId) -> Annotated[CallToolResult, RunView]:
        """Show a run: its state (queued, running, finished), its conclusion, and its tasks with their exit statuses.

        Check again every few seconds until the state is finished; a run takes from seconds to minutes.
        """
        run, results = await self._runs.get(self.caller(context, "runs:read"), run_id)
        view = _view(run, results)
        commit = await self.commit(run)
        if commit is None:
            return answer(_text(view), view)
        preview, lines = commit
        return answer("\n".join([_text(view), *lines]), {**view, "commit": preview})

    async def run_logs(
        self,
        context: Context[Any, Any],
        run_id: RunId,
        task: Annotated[int, Field(description="The number of the task in get_run's list, counted from 0.")] = 0,
        offset: Annotated[
            int | None,
            Field(description="Where to continue: next_offset of the previous call. Default: the end of the output."),
        ] = None,
        part: Annotated[
            Part,
            Field(description="log: the output; of agents also transcript (its program's JSON lines), patch (of an attempt)."),
        ] = "log",
        attempt: Annotated[
            int, Field(description="Of an agent: one of the attempts that worked side by side, from 1. 0: the task itself.")
        ] = 0,
    ) -> Annotated[CallToolResult, RunLog]:
        """Read the output of a task of a run, at most 20 kB a call. Begin with offset=0, continue with next_offset."""
        wanted = LogRequest(task=task, part=part, attempt=attempt, offset=offset, most_bytes=LOG_BYTES)
        run, page = await self._runs.log(self.caller(context, "runs:read"), run_id, wanted)
        complete = run.state is RunState.FINISHED and page.next >= page.size
        view = {
            "run_id": run.id, "task": page.task, "index": task, "state": run.state.value, "text": page.text,
            "offset": page.offset, "next_offset": page.next, "size": page.size, "complete": complete,
            "remark": page.remark,
        }  # fmt: skip
        more = "that is all" if complete else f"continue with offset={page.next}"
        head = f"[{page.task}, the run is {run.state.value}: bytes {page.offset} to {page.next} of {page.size}; {more}]"
        if page.remark:
            head += f"\n[this may not be all of the output. {page.remark}]"
        return answer(f"{head}\n{page.text}", view)

    async def cancel_run(self, context: Context[Any, Any], run_id: RunId) -> Annotated[CallToolResult, RunCancelled]:
        """Cancel a run: its tasks are killed and its machine is destroyed. A finished run is not an error."""
        run, was_unfinished = await self._runs.cancel(self.caller(context, "runs:write"), run_id)
        text = f"the run {run.id} is being cancelled" if was_unfinished else f"the run {run.id} had already ended"
        return answer(text, {"run_id": run.id, "state": run.state.value, "was_unfinished": was_unfinished})


class BotRunTools(_RunTools):
    """The tools of the bot's /mcp. The caller's token is in the ASGI scope of the request."""

    def __init__(self, runs: PersonRuns) -> None:
        super().__init__(runs)
        self._person_runs = runs

    def register(self, server: MCPServer[Any]) -> None:
        add(
            server,
            self.run_workflow,
            annotations=ToolAnnotations(title="Run a workflow", read_only_hint=False, destructive_hint=False),
        )
        super().register(server)

    def caller(self, context: Context[Any, Any], scope: str) -> str:
        request = context.request_context.request
        assert request is not None, "this server is only reached over HTTP"
        token: AccessToken = request.scope[TOKEN]
        if scope not in token.scopes:
            raise NoScope(f"the token has no scope {scope}; the bot's operator creates one with `gibil token create`")
        return token.login

    async def run_workflow(
        self,
        context: Context[Any, Any],
        repository: Annotated[str, Field(description="`owner/name` on GitHub.")],
        pull_request: Annotated[int, Field(description="The number of an open pull request.")],
        workflow: Annotated[str, Field(description="The word of its command: `test` for /gibil test.")] = "test",
        inputs: Inputs = None,
        sha: Annotated[
            str | None, Field(description="The commit that you expect as its head; nothing starts if it is another one.")
        ] = None,
    ) -> Annotated[CallToolResult, RunsStarted]:
        """Run a workflow on the head of a pull request, as a comment `/gibil WORKFLOW` of the token's owner would.

        Returns the queued runs. Their results also appear as check runs and in a comment on the pull request.
        """
        login = self.caller(context, "runs:write")
        runs = await self._person_runs.start(login, repository, pull_request, workflow, inputs or {}, sha)
        return _started(runs)


class LocalRunTools(_RunTools):
    """The tools of `gibil mcp`, whose caller is the user."""

    def __init__(self, runs: LocalRuns, folder: Path) -> None:
        super().__init__(runs)
        self._local_runs = runs
        self._folder = folder

    def register(self, server: MCPServer[Any]) -> None:
        add(
            server,
            self.run_workflow,
            annotations=ToolAnnotations(title="Run a workflow", read_only_hint=False, destructive_hint=False),
        )
        super().register(server)

    async def commit(self, run: Run) -> tuple[dict[str, object], list[str]] | None:
        return await self._local_runs.preview(run)

    async def run_workflow(
        self,
        workflow: Annotated[str, Field(description="A workflow's command, such as `test`, or a workflow file.")] = "test",
        path: Annotated[
            str, Field(description="A git checkout on the user's computer. Default: where gibil mcp was started.")
        ] = ".",
        inputs: Inputs = None,
        uncommitted: Annotated[bool, Field(description="Include uncommitted changes and new files.")] = True,
    ) -> Annotated[CallToolResult, RunsStarted]:
        """Run a workflow of a checkout on the user's computer on a new machine, as the bot would do on its pull request.

        Returns at once: watch it with get_run and run_logs. Its machine is destroyed when it ends. It gets no secrets, and
        pushes nothing: of a workflow with `commit:`, get_run returns the changes as a patch.
        """
        run = await self._local_runs.start(self._folder, path, workflow, inputs or {}, uncommitted)
        return _started([run])


def _started(runs: Sequence[Run]) -> CallToolResult:
    views = [_view(run, []) for run in runs]
    lines = [f"run {view['id']}: {view['workflow']} on {str(view['sha'])[:7]}, {view['state']}" for view in views]
    return answer("\n".join([*lines, "watch it with get_run and run_logs"]), {"runs": views})


def _view(run: Run, results: Sequence[TaskResult]) -> dict[str, Any]:
    return {**run_view(run, results), "note": run.note}


def _text(view: dict[str, Any]) -> str:
    state = view["conclusion"] or view["state"]
    lines = [f"{view['workflow']} on {view['sha'][:7]} of {view['repository']}: {state}"]
    for index, task in enumerate(view["tasks"]):
        status = "" if task["exit_status"] in (None, 0) else f", exit status {task['exit_status']}"
        lines.append(f"  {index} {task['name']}: {task['status']}{status}")
    if view["note"]:
        lines.append(view["note"])
    return "\n".join(lines)
