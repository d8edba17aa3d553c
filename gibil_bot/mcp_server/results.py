"""Helpers that the tools share, and the types of their structured results.

TypedDict comes from typing_extensions: pydantic needs it before Python 3.12.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any, NotRequired, TypeAlias

from mcp.server.mcpserver import MCPServer
from mcp.types import CallToolResult, TextContent, ToolAnnotations
from pydantic import Field
from typing_extensions import TypedDict

from gibil_bot.ssh.answers import printable

Server: TypeAlias = Annotated[
    str | None, Field(description="The machine's name. Optional while exactly one machine is running.")
]


def add(server: MCPServer[Any], tool: Callable[..., Any], *, annotations: ToolAnnotations) -> None:
    """Register a tool. Agents read its docstring as the description."""
    server.add_tool(tool, description=inspect.cleandoc(tool.__doc__ or ""), annotations=annotations)


def answer(text: str, view: Mapping[str, Any]) -> CallToolResult:
    """Return a result: text for people and models, and a view for programs."""
    return CallToolResult(content=[TextContent(type="text", text=text)], structured_content=dict(view))


def refusal(message: str, code: str) -> CallToolResult:
    """Return an error of gibil, never of a command on a machine. The code is the text's first word.

    Without structured content: a tool's output schema describes its success, clients may check every structured content against
    it (the official TypeScript SDK does, after `listTools`), and the model would see their complaint instead of this message.
    """
    return CallToolResult(content=[TextContent(type="text", text=f"{code}: {for_agents(message)}")], is_error=True)


_MOST_LINES, _MOST_CHARACTERS = 40, 1000
_ADVICE = (
    (r"`gibil jobs \S+` lists them", "vm_job_list lists them"),
    (r": gibil run \S+ COMMAND --background", ", pass background=true"),
    (r"destroy it: gibil destroy \S+", "destroy it with destroy_server"),
    (r"end them with --stop", "pass stop=true to end them"),
    (
        r"review the changes, then push with --with-workflows",
        "ask the user to review the changes, and to push them with `gibil push NAME --with-workflows`",
    ),
    (r"gibil create --template NAME --fleet N", "create_server with template=NAME, once for each"),
    (r"(?:create it: )?(gibil template create \S+ --from [\w-]+)", r"ask the user for `\1`"),
    (r"--(base|branch|title|template)\b", r"\1"),
)
"""Advice of messages that are written for the command line, as agents have to read it."""


def for_agents(message: str) -> str:
    """Return an error's message with advice for users of the tools, and with limits: it may quote what the agent has sent."""
    for pattern, words in _ADVICE:
        message = re.sub(pattern, words, message)
    return "\n".join(printable(line, _MOST_CHARACTERS) for line in message.splitlines()[:_MOST_LINES])


def streams(stdout: str, stderr: str, out_title: str = "", err_title: str = "stderr") -> list[str]:
    parts = []
    if stdout:
        parts += [f"--- {out_title}"] if out_title else []
        parts.append(stdout.rstrip("\n"))
    if stderr:
        parts += [f"--- {err_title}", stderr.rstrip("\n")]
    return parts


class TaskView(TypedDict):
    name: str
    status: str
    exit_code: int | None
    duration_s: float


class Created(TypedDict):
    name: str
    provider: str
    ip: str | None
    port: int | None
    server_id: int | str
    ssh_key_id: str | None
    status: str
    ttl: float
    ttl_minutes: float
    created_at: str
    expires_at: str
    ssh_command: str
    host_key: str
    cost: NotRequired[dict[str, str]]
    notes: NotRequired[list[str]]
    ready: NotRequired[bool]
    tasks: NotRequired[str]
    task_results: NotRequired[list[TaskView]]


class Forked(TypedDict):
    forked_from: str
    servers: list[Created]


class Listed(TypedDict):
    name: str
    provider: str
    ip: str | None
    server_id: int | str
    status: str
    ttl: float
    ttl_remaining_minutes: float
    created_at: str
    expires_at: str
    repo: str | None
    labels: dict[str, str]
    cost: NotRequired[dict[str, str]]


class Servers(TypedDict):
    servers: list[Listed]
    problems: list[str]


class Destroyed(TypedDict):
    name: str
    status: str
    destroyed: bool
    was_already_destroyed: bool


class Extended(TypedDict):
    name: str
    ttl_minutes: float
    expires_at: str


class Ran(TypedDict):
    server: str
    stdout: str
    stderr: str
    exit_code: int | None
    timed_out: bool
    duration_s: float
    left_out_bytes: int
    job_id: NotRequired[str]


class TextPage(TypedDict):
    server: str
    path: str
    content: str
    first_line: int
    last_line: int
    total_lines: int
    size: int
    next_offset: int | None
    notes: list[str]


class Written(TypedDict):
    server: str
    path: str
    size: int
    created: bool


class Edited(TypedDict):
    server: str
    path: str
    replacements: int
    line: int


class EntryView(TypedDict):
    name: str
    type: str
    size: int
    modified_at: str
    target: NotRequired[str]


class Listing(TypedDict):
    server: str
    path: str
    entries: list[EntryView]
    left_out: int
    complete: bool


class MatchView(TypedDict):
    file: str
    line: int
    text: str


class Matches(TypedDict):
    server: str
    pattern: str
    matches: list[MatchView]
    left_out: int
    complete: bool


class BusyView(TypedDict):
    pid: int
    cpu_percent: float
    memory_mb: float
    age_s: int
    command: str


class StatsView(TypedDict):
    server: str
    ttl_remaining_minutes: float
    cpus: int
    load: list[float]
    memory_total_mb: int
    memory_available_mb: int
    disk_total_mb: int
    disk_free_mb: int
    processes: int
    busiest: list[BusyView]
    notes: list[str]


class JobView(TypedDict):
    job_id: str
    status: str
    exit_code: int | None
    started_at: str | None
    ended_at: str | None
    command: str | None


class Jobs(TypedDict):
    server: str
    jobs: list[JobView]
    left_out: int


class JobStatus(JobView):
    server: str
    stdout_tail: str
    stderr_tail: str
    stdout_size: int
    stderr_size: int


class JobOutput(TypedDict):
    server: str
    job_id: str
    stream: str
    status: str
    exit_code: int | None
    text: str
    offset: int
    next_offset: int
    size: int
    complete: bool


class JobCancelled(TypedDict):
    server: str
    job_id: str
    status: str
    exit_code: int | None
    was_running: bool


class Pushed(TypedDict):
    server: str
    repo: str
    branch: str
    commit: str
    commits: int
    files: list[str]
    files_total: int
    warnings: list[str]


class PullRequestView(Pushed):
    into: str
    base: str
    number: int
    url: str
    draft: bool
    already_existed: bool


class Copied(TypedDict):
    server: str
    local_path: str
    path: str
    files: int
    size: int
    left_out: list[str]
    left_out_total: int


class AgentView(TypedDict):
    engine: str
    model: str | None
    ended: str
    rounds: int
    attempts: int
    calls: int
    rejected_calls: int
    tokens: int
    usd: str
    estimated: bool
    machine_time_s: float
    budget: str | None
    exceeded: str | None


class RunTaskView(TypedDict):
    name: str
    kind: str
    status: str
    exit_status: int | None
    duration_s: float | None
    agent: AgentView | None


class CommitPreview(TypedDict):
    outcome: str
    to: str
    branch: str | None
    pull_request: str | None
    commits: int
    files: int
    bytes: int
    left_out: list[str]
    problems: list[str]
    patch: str | None
    apply: str | None


class RunView(TypedDict):
    id: str
    repository: str
    pull_request: int
    sha: str
    workflow: str
    state: str
    conclusion: str | None
    trust: str
    queued_at: str
    started_at: str | None
    finished_at: str | None
    machine_attempt: int
    preparation_failed: bool
    tasks: list[RunTaskView]
    note: str | None
    commit: NotRequired[CommitPreview]


class RunsStarted(TypedDict):
    runs: list[RunView]


class RunLog(TypedDict):
    run_id: str
    task: str
    index: int
    state: str
    text: str
    offset: int
    next_offset: int
    size: int
    complete: bool
    remark: str


class RunCancelled(TypedDict):
    run_id: str
    state: str
    was_unfinished: bool


class OrphanView(TypedDict):
    pid: int
    command: str
    started_by: str


class Swept(TypedDict):
    server: str
    processes: list[OrphanView]
    left_out: int
    ended: bool
