"""The types of what each command prints with `--json`: the source of `gibil schema` and of README.md in this folder.

A new command with `--json` needs an entry in `OUTPUTS`. Tests check the commands' `--json` outputs against these types.
Amounts of money are text, times are RFC 3339 in UTC, durations are seconds, megabytes are 1024² bytes.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, NotRequired, TypedDict

from msgspec import Meta

from gibil_bot.model import Plan


class Failure(TypedDict):
    """The output of a command that failed. After an interruption of `create` and `branch`, with the keys of their machines."""

    error: Annotated[str, Meta(description="The first line of the message.")]
    code: Annotated[str, Meta(description="A stable code, such as USAGE, MACHINE_NOT_FOUND or INTERRUPTED.")]
    message: str
    exit_code: Annotated[int, Meta(description="The exit status of gibil.")]


class Cost(TypedDict):
    so_far: str
    hourly: str
    currency: str


class TaskResult(TypedDict):
    name: str
    status: Annotated[str, Meta(description="success, failure, timed_out or skipped.")]
    exit_code: int | None
    duration_s: float


class NewMachine(TypedDict):
    """What `create`, `branch` and `fork` print about a machine."""

    name: str
    provider: str
    ip: Annotated[str | None, Meta(description="null for a machine on this computer.")]
    port: int | None
    server_id: Annotated[int | str, Meta(description="The provider's id.")]
    ssh_key_id: None
    status: str
    ttl: Annotated[float, Meta(description="Minutes.")]
    ttl_minutes: float
    created_at: str
    expires_at: str
    ssh_command: str
    host_key: str


class Created(NewMachine):
    """A machine that `create` or `branch` has created."""

    cost: NotRequired[Cost]
    ready: NotRequired[Annotated[bool, Meta(description="With --wait: whether the code is set up.")]]
    tasks: NotRequired[Annotated[Literal["success", "failure"], Meta(description="With --wait tasks.")]]
    task_results: NotRequired[list[TaskResult]]
    run: NotRequired[Annotated[RunResult, Meta(description="Of `branch --run`.")]]


class Fleet(TypedDict):
    fleet_id: str
    instances: list[Created]


class Forked(NewMachine):
    """A copy of a machine that `fork` has created."""

    forked_from: str


class ForkedFleet(TypedDict):
    """With --count."""

    fleet_id: str
    instances: list[Forked]


class RunResult(TypedDict):
    """The result of a command on a machine."""

    stdout: str
    stderr: str
    exit_code: Annotated[int | None, Meta(description="null for a background job.")]
    timed_out: NotRequired[bool]
    job_id: NotRequired[Annotated[str, Meta(description="With --background.")]]


class Access(TypedDict):
    name: str
    provider: str
    user: str
    ip: str | None
    port: int | None
    unix_path: str | None
    host_key: str
    ssh_command: str


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
    cost: NotRequired[Cost]


class Process(TypedDict):
    pid: int
    cpu_percent: float
    memory_mb: float
    age_s: int
    command: str


class MachineStats(TypedDict):
    cpus: int
    load: Annotated[list[float], Meta(description="Averages over 1, 5 and 15 minutes.")]
    memory_total_mb: int
    memory_available_mb: int
    memory_is_its_own: Annotated[bool, Meta(description="false: the numbers are those of the host that it shares.")]
    disk_total_mb: int
    disk_free_mb: int
    disk_is_its_own: bool
    processes: int
    busiest: list[Process]


class JobEntry(TypedDict):
    job_id: str
    status: str
    exit_code: int | None
    started_at: str | None
    ended_at: str | None
    command: Annotated[str | None, Meta(description="null for the set-up and the tasks of .gibil.yml.")]


class Info(Listed):
    """Everything about one machine. If it doesn't answer, `problem` has the reason, and what only it knows is null."""

    port: int | None
    user: str
    unix_path: str | None
    host_key: str
    ssh_command: str
    commit: str | None
    branch: str | None
    fleet: str | None
    run: Annotated[str | None, Meta(description="The bot's run that the machine belongs to.")]
    ready: bool | None
    stats: MachineStats | None
    jobs: Annotated[list[JobEntry] | None, Meta(description="The newest 50, oldest first.")]
    task_results: list[TaskResult] | None
    problem: str | None


class Copied(TypedDict):
    name: str
    source: str
    destination: str
    files: Annotated[int, Meta(description="Files and links, without directories.")]
    bytes: int
    duration_s: float
    left_out: Annotated[list[str], Meta(description="The first 20, each with the reason.")]
    left_out_total: int


class Extended(TypedDict):
    name: str
    ttl_minutes: float
    expires_at: str


class Destroyed(TypedDict):
    name: str
    status: Annotated[str, Meta(description="destroyed; running if that failed.")]
    destroyed: bool
    was_already_destroyed: bool
    error: NotRequired[str]
    code: NotRequired[str]


class Log(TypedDict):
    name: str
    job_id: str
    stdout: str
    stderr: str
    exit_code: Annotated[int | None, Meta(description="With --follow: of the job.")]


class Pushed(TypedDict):
    name: str
    repo: str
    branch: str
    commit: str
    commits: int
    files: Annotated[list[str], Meta(description="The first paths; see files_total.")]
    files_total: int
    warnings: list[str]


class PullRequestOpened(TypedDict):
    name: str
    repo: str
    branch: str
    into: str
    base: str
    commit: str
    number: int
    url: str
    draft: bool
    already_existed: bool


class TemplateEntry(TypedDict):
    """A template: a copy of a machine's disk, from which new machines start."""

    name: str
    provider: str
    id: Annotated[str, Meta(description="The provider's id.")]
    size_mb: int
    created_at: str
    repo: Annotated[str | None, Meta(description="Of the machine's checkout, like commit and branch.")]
    commit: str | None
    branch: str | None
    price_monthly: Annotated[str | None, Meta(description="Net, of its size; null on this computer.")]
    currency: str | None


class TemplateCreated(TemplateEntry):
    machine: Annotated[str, Meta(description="The machine that it is a copy of.")]


class TemplateDeleted(TypedDict):
    name: str
    deleted: bool
    was_already_deleted: bool


class Stored(TypedDict):
    """What runs have stored: a prepared machine (`kind` is prepared), or a cache or downloads."""

    id: str
    kind: str
    repository: str
    workflow: str
    scope: str
    size_mb: float
    created_at: str | None
    used_at: NotRequired[Annotated[str | None, Meta(description="Of `cache list`.")]]
    provider: NotRequired[Annotated[str, Meta(description="Of a prepared machine.")]]
    depth: NotRequired[Annotated[int, Meta(description="Of a prepared machine.")]]
    saves_s: NotRequired[Annotated[float, Meta(description="Of a prepared machine.")]]
    key: NotRequired[Annotated[str, Meta(description="Of a cache.")]]
    paths: NotRequired[Annotated[list[str], Meta(description="Of a cache.")]]


class Cleared(TypedDict):
    deleted: list[Stored]
    kept: Annotated[list[Stored], Meta(description="In use.")]


class Runtime(TypedDict):
    name: str
    size_mb: int
    used_at: str | None


class ClientConfiguration(TypedDict):
    """With --print-config."""

    mcpServers: dict[str, dict[str, Any]]


class AgentsText(TypedDict):
    """With --print-agents."""

    text: Annotated[str, Meta(description="A section for a project's AGENTS.md.")]


class TokenEntry(TypedDict):
    """An access token for MCP over HTTP, without the token itself."""

    id: str
    login: str
    scopes: list[str]
    state: Literal["active", "expired", "revoked"]
    created_at: str
    expires_at: str
    revoked_at: str | None


class TokenCreated(TokenEntry):
    token: Annotated[str, Meta(description="The token itself. Only its hash is stored, so it is printed only here.")]


class Size(TypedDict):
    name: str
    what: str
    locations: list[str]
    price_hourly: str | None
    currency: str | None


class ProviderEntry(TypedDict):
    name: str
    default: bool
    available: bool
    sizes: list[Size]
    problem: NotRequired[Annotated[str, Meta(description="If it isn't available.")]]
    tier: NotRequired[str]
    memory_limit: NotRequired[Annotated[str, Meta(description="How memory is limited: by cgroups, hardware or polling.")]]
    package_installs: NotRequired[bool]


class VerifiedEngine(TypedDict):
    """What was seen of an engine, and when."""

    on: str
    what: str


class EngineEntry(TypedDict):
    """A program that agent tasks can use."""

    name: str
    title: str
    version: Annotated[str | None, Meta(description="null if the program is a command of the task.")]
    packages: Annotated[list[str], Meta(description="As in `npm:@scope/name@1.2.3`; {arch} is x64 or arm64.")]
    protocol: Annotated[str | None, Meta(description="How it talks to its model: anthropic, responses, chat or gemini.")]
    provider: Annotated[str | None, Meta(description="Whose key it needs.")]
    has_key: Annotated[bool | None, Meta(description="Whether the bot has that key; null if it needs none.")]
    default_model: str | None
    limits_turns: Annotated[bool, Meta(description="Whether it stops by itself after `max-turns`.")]
    file: Annotated[str | None, Meta(description="The operator's file; null if it is shipped.")]
    verified: list[VerifiedEngine]


class Registration(TypedDict):
    client: str
    file: str
    status: str
    note: str
    snippet: str


class Initialized(TypedDict):
    provider: str
    default: str
    file: str
    saved: Annotated[list[str], Meta(description="Names of settings, without their values.")]
    mcp: list[Registration]


class Unregistration(TypedDict):
    client: str
    file: str
    status: Annotated[str, Meta(description="removed, absent or not removed.")]
    note: str


class SkillFile(TypedDict):
    file: str
    status: Annotated[str, Meta(description="removed, absent, or left alone because it was changed.")]


class Removed(TypedDict):
    """With --remove."""

    mcp: list[Unregistration]
    skill: SkillFile


class RepositoryFile(TypedDict):
    """With --repo."""

    file: str
    content: str


class Serving(TypedDict):
    """Printed when the bot, or `gibil mcp --http`, accepts connections."""

    url: str
    host: str
    port: int
    pid: int


class Check(TypedDict):
    name: str
    ok: bool
    detail: str
    fix: str


class Health(TypedDict):
    healthy: bool
    checks: list[Check]


class WorkflowProblem(TypedDict):
    file: str
    line: int
    column: int
    message: str


class Validity(TypedDict):
    files: int
    problems: list[WorkflowProblem]


class DetectedTask(TypedDict):
    name: str
    kind: str
    env: dict[str, str]
    run: str


class Quote(TypedDict):
    command: str
    path: str
    line: int
    is_preparation: NotRequired[bool]


class DetectedFiles(TypedDict):
    problem: str | None
    runtime: dict[str, Any]
    packages: list[str]
    tasks: list[DetectedTask]
    evidence: list[str]
    key_files: list[str]
    caches: list[str]
    quotes: list[Quote]
    suggestion: str | None


class Replayed(TypedDict):
    status: Annotated[int, Meta(description="The HTTP status of the bot's answer.")]
    answer: str
    event: str
    guid: str


class CompletionScript(TypedDict):
    shell: str
    script: str


class Timing(TypedDict):
    what: str
    seconds: float
    remark: str


class CommitShown(TypedDict):
    sha: str
    parent: str
    branch: str
    message: str
    author: str
    verified: Annotated[bool, Meta(description="Whether GitHub signed it.")]
    files: list[str]


class AgentShown(TypedDict):
    engine: str
    model: str
    ended: Annotated[str, Meta(description="One sentence: why it ended.")]
    calls: Annotated[int, Meta(description="Calls of the model.")]
    tokens: int
    usd: str
    budget: Annotated[str, Meta(description="The limits in words.")]
    calls_with_key: Annotated[int, Meta(description="Calls that reached the model with its key.")]
    key_left_the_bot: Annotated[bool, Meta(description="Whether the key was on the machine, or in a file of the bot.")]


class Demonstration(TypedDict):
    check: str
    conclusion: str | None
    seconds: float
    pull_request: int
    github: str
    bot: str
    commit: Annotated[CommitShown | None, Meta(description="With --commit and --agent: the commit that came back.")]
    agent: Annotated[AgentShown | None, Meta(description="With --agent: what the agent did and used.")]
    timings: list[Timing]


class AgentUsage(TypedDict):
    """How an agent task ended, and what it used. Tokens and USD are what the bot counted."""

    engine: str
    model: str | None
    ended: Annotated[str, Meta(description="One sentence: why it ended.")]
    rounds: int
    attempts: int
    calls: Annotated[int, Meta(description="Calls that a model answered.")]
    rejected_calls: int
    tokens: int
    usd: str
    estimated: Annotated[bool, Meta(description="Some calls were cut off, so that their tokens are estimated.")]
    machine_time_s: float
    budget: Annotated[str | None, Meta(description="Its limits in words.")]
    exceeded: Annotated[str | None, Meta(description="The budget that stopped it, with its numbers.")]


class RunTask(TypedDict):
    name: str
    kind: str
    status: str
    exit_status: int | None
    duration_s: float | None
    agent: AgentUsage | None


class DetectedTasks(TypedDict):
    purpose: str
    problem: str | None
    evidence: list[str]
    ci: list[Quote]
    suggestion: str | None


class CommitPreview(TypedDict):
    """What the workflow's `commit:` would have committed."""

    outcome: Annotated[
        str,
        Meta(description="patch, rejected, unchanged; skipped: no task had anything to do; failed: not all tasks succeeded."),
    ]
    to: Annotated[str, Meta(description="Where the bot would push: head, branch or patch.")]
    branch: str | None
    pull_request: Annotated[str | None, Meta(description="The title of the pull request that the bot would open.")]
    commits: int
    files: int
    bytes: int
    left_out: Annotated[list[str], Meta(description="Changed files that `paths` doesn't include; at most 100.")]
    problems: Annotated[list[str], Meta(description="Why the changes would be rejected.")]
    patch: Annotated[str | None, Meta(description="The file with the changes.")]
    apply: Annotated[str | None, Meta(description="The command that applies them to the checkout.")]


class Tried(TypedDict):
    id: str
    repository: str
    pull_request: int
    sha: str
    workflow: str
    state: str
    conclusion: str | None
    trust: str
    queued_at: str | None
    started_at: str | None
    finished_at: str | None
    machine_attempt: int
    preparation_failed: bool
    tasks: list[RunTask]
    note: str | None
    detected: DetectedTasks | None
    commit: Annotated[CommitPreview | None, Meta(description="null if the workflow has no `commit:`.")]
    reviews: Annotated[list[str], Meta(description="The reviews that the bot would submit, in Markdown.")]


class Spending(TypedDict):
    """What the agents of one person or repository spent on a day."""

    name: Annotated[str, Meta(description="Login or owner/name.")]
    usd: str
    limit_usd: Annotated[str | None, Meta(description="GIBIL_BUDGET_PERSON or GIBIL_BUDGET_DAY; null: no limit.")]
    tokens: Annotated[int, Meta(description="Input and output, cached input included.")]
    calls: int
    rejected_calls: Annotated[int, Meta(description="Calls that the bot itself rejected.")]
    machine_time_s: float
    estimated: Annotated[bool, Meta(description="Some counts are estimates, of calls that were cut off.")]


class DaySpending(TypedDict):
    day: Annotated[str, Meta(description="YYYY-MM-DD, in UTC.")]
    persons: Annotated[list[Spending], Meta(description="The highest sum first.")]
    repositories: list[Spending]


class DatabaseExport(TypedDict):
    to: Annotated[str, Meta(description="The PostgreSQL database, without a password.")]
    at: str
    finished: Annotated[bool, Meta(description="false: it was interrupted, and can be repeated.")]


class Oldest(TypedDict):
    id: Annotated[str, Meta(description="GitHub's id of the delivery; the key of the notification.")]
    since: Annotated[str, Meta(description="When the delivery arrived; when the notification was or is due.")]
    age_s: float
    error: Annotated[str | None, Meta(description="Of the last try.")]


class DatabaseHost(TypedDict):
    """A computer whose bot uses the database."""

    id: str
    name: str
    url: Annotated[str, Meta(description="Where the other bots reach its bot; empty: they can't.")]
    seen_at: str
    away: Annotated[bool, Meta(description="Whether no bot runs on it now.")]
    machines: Annotated[int, Meta(description="Machines of unfinished runs that only this host reaches.")]


class LeaseHolder(TypedDict):
    """A process that works on something now."""

    owner: str
    deliveries: int
    runs: int
    notifications: int
    until: Annotated[str, Meta(description="When its last lease ends, unless it is renewed.")]


class DatabaseStatus(TypedDict):
    kind: Annotated[str, Meta(description="sqlite or postgresql.")]
    database: Annotated[str, Meta(description="The file's path, or the URL without a password.")]
    version: Annotated[int, Meta(description="Of the schema; 0: there is none yet.")]
    newest_version: Annotated[int, Meta(description="The version that this gibil uses.")]
    migration_due: bool
    size_bytes: int
    exported: Annotated[DatabaseExport | None, Meta(description="If the SQLite file was exported.")]
    counts: Annotated[
        dict[str, int], Meta(description="As in /metrics. Like what follows, empty if the version is another one.")
    ]
    oldest_delivery: Annotated[Oldest | None, Meta(description="Of those that aren't handled.")]
    oldest_notification: Annotated[Oldest | None, Meta(description="Of those that aren't published.")]
    hosts: list[DatabaseHost]
    leases: list[LeaseHolder]


class Migrated(TypedDict):
    database: str
    from_version: Annotated[int, Meta(description="0: there was no schema.")]
    to_version: int


class DatabaseProblem(TypedDict):
    kind: Annotated[str, Meta(description="Such as undecodable_plan or no_lease.")]
    subject: str
    problem: str
    remedy: str


class DatabaseHealth(TypedDict):
    database: str
    healthy: bool
    problems: Annotated[list[DatabaseProblem], Meta(description="At most 20 of a kind, and one with the number of the others.")]


class Pruned(TypedDict):
    database: str
    deleted: Annotated[dict[str, int], Meta(description="By kind.")]
    free_bytes: Annotated[int | None, Meta(description="How much of a SQLite file new rows will use; null for PostgreSQL.")]


class DatabaseExported(TypedDict):
    database: str
    to: str
    rows: Annotated[dict[str, int], Meta(description="By table; empty if they were copied before.")]
    was_copied_before: Annotated[bool, Meta(description="An interrupted export had copied them.")]
    seconds: float


class ExportUndone(TypedDict):
    """With --undo."""

    database: str
    undone: Annotated[str | None, Meta(description="The database that it was exported to; null if it wasn't.")]


OUTPUTS: dict[str, tuple[Any, ...]] = {
    "demo": (Demonstration,),
    "try": (Tried,),
    "create": (Created, Fleet),
    "run": (RunResult,),
    "ssh": (Access,),
    "cp": (Copied,),
    "fork": (Forked, ForkedFleet),
    "template create": (TemplateCreated,),
    "template list": (list[TemplateEntry],),
    "template delete": (TemplateDeleted,),
    "list": (list[Listed],),
    "info": (Info,),
    "extend": (Extended,),
    "destroy": (Destroyed, list[Destroyed]),
    "branch": (Created,),
    "logs": (Log,),
    "jobs": (list[JobEntry],),
    "push": (Pushed,),
    "pr create": (PullRequestOpened,),
    "cache list": (list[Stored],),
    "cache clear": (Cleared,),
    "cache runtimes": (list[Runtime],),
    "budget": (DaySpending,),
    "db status": (DatabaseStatus,),
    "db migrate": (Migrated,),
    "db check": (DatabaseHealth,),
    "db prune": (Pruned,),
    "db export": (DatabaseExported, ExportUndone),
    "mcp": (ClientConfiguration, AgentsText, Serving),
    "token create": (TokenCreated,),
    "token list": (list[TokenEntry],),
    "token revoke": (TokenEntry,),
    "providers": (list[ProviderEntry],),
    "engines": (list[EngineEntry],),
    "init": (Initialized, Removed, RepositoryFile),
    "serve": (Serving,),
    "doctor": (Health,),
    "check": (Validity,),
    "detect": (DetectedFiles,),
    "plan": (list[Plan],),
    "replay": (Replayed,),
    "schema": (dict[str, Any],),
    "completion": (CompletionScript,),
}
"""The types of each command's output, alternatives in a tuple. Failures are the same for all: `Failure`."""
