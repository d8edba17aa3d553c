"""The data model: small immutable values that all packages share. Bytes become one of these at the boundary.

Times are aware datetimes in UTC, durations are seconds (`_s`), sizes are megabytes (`_mb`). msgspec encodes them as JSON for
storage (`msgspec.json.encode`, `msgspec.json.decode(data, type=Plan)`). They are structs instead of dataclasses because every
command creates all these classes when it starts, which takes half a millisecond instead of twenty. To change a copy:
`msgspec.structs.replace(machine, status="off")`.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from enum import IntEnum, StrEnum
from typing import Any, Literal

from msgspec import Struct, field, structs

from gibil_bot.agent_task import AgentPlan, AgentResult, AgentState


class Trust(StrEnum):
    """What a run may access. Untrusted: no secrets, and `local` machines only if the operator allows it."""

    TRUSTED = "trusted"
    UNTRUSTED = "untrusted"


class Conclusion(StrEnum):
    """How a run ended, in GitHub's words (docs.github.com/rest/checks/runs, `conclusion`)."""

    SUCCESS = "success"
    FAILURE = "failure"
    NEUTRAL = "neutral"
    CANCELLED = "cancelled"
    SKIPPED = "skipped"
    TIMED_OUT = "timed_out"
    ACTION_REQUIRED = "action_required"


class RunState(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    FINISHED = "finished"


class TaskStatus(StrEnum):
    PENDING = "pending"
    RUNNING = "running"
    SUCCESS = "success"
    FAILURE = "failure"
    SKIPPED = "skipped"
    TIMED_OUT = "timed_out"
    CANCELLED = "cancelled"

    @property
    def has_failed(self) -> bool:
        """Whether it says that something is wrong with the code or its preparation."""
        return self in (TaskStatus.FAILURE, TaskStatus.TIMED_OUT)


# --- what GitHub sends ------------------------------------------------------------------------------------------


class UnusableFile(bytes):
    """What a commit contains instead of a workflow file. Its content describes the problem, for people."""

    @classmethod
    def of(cls, kind: str, *, is_folder: bool = False) -> UnusableFile:
        """Create the value. `kind`: symlink or submodule, as GitHub's contents API names them."""
        what = "folder" if is_folder else "file"
        if kind == "submodule":
            return cls(f"it is a submodule; replace it with the {what} itself".encode())
        leads = "" if is_folder else " that doesn't lead to a file of this repository"
        return cls(f"it is a symbolic link{leads}; replace it with the {what} itself".encode())

    @property
    def problem(self) -> str:
        return self.decode()


class Repository(Struct, frozen=True, kw_only=True):
    id: int
    full_name: str
    clone_url: str
    default_branch: str
    private: bool = False

    @property
    def owner(self) -> str:
        return self.full_name.partition("/")[0]


class Person(Struct, frozen=True, kw_only=True):
    login: str
    is_bot: bool = False


class PullRequest(Struct, frozen=True, kw_only=True):
    number: int
    title: str
    author: Person
    head_sha: str
    head_ref: str
    head_repository: str | None
    """`owner/name`; None if the fork was deleted."""
    base_ref: str
    base_sha: str
    is_open: bool = True
    is_draft: bool = False
    maintainer_can_modify: bool = False
    head_repository_id: int | None = None
    """Unchanged when a repository is renamed or transferred. None: the fork was deleted, or the id is unknown."""
    head_owner: str | None = None
    """Login of the account that owns the head's repository now."""
    head_owner_is_user: bool = False
    """A user's account, not an organization's."""
    created_at: datetime | None = None
    updated_at: datetime | None = None
    """GitHub's time of the last change of any kind: a push, a comment, a label."""
    head_pushed_at: datetime | None = None
    """GitHub's time of the last push to any branch of the head's repository."""


class CommentCreated(Struct, frozen=True, kw_only=True, tag="comment_created"):
    """A user commented on a pull request."""

    installation_id: int
    repository: Repository
    number: int
    comment_id: int
    author: Person
    body: str
    event_name: str = "issue_comment"
    """issue_comment | pull_request_review_comment | pull_request_review"""
    created_at: datetime | None = None
    """When it was written, by GitHub's clock, in whole seconds."""
    thread_updated_at: datetime | None = None
    """When the pull request last changed, as of the sending of this event."""
    commit_sha: str | None = None
    """The commit that a review was submitted on."""

    @property
    def is_review_comment(self) -> bool:
        """Whether the comment is on a line of the diff, not in the conversation."""
        return self.event_name == "pull_request_review_comment"

    @property
    def is_review(self) -> bool:
        """Whether this is the body of a review: GitHub's REST API has no reactions for it, and `comment_id` is its id."""
        return self.event_name == "pull_request_review"


class PullRequestChanged(Struct, frozen=True, kw_only=True, tag="pull_request_changed"):
    """`action` is one of opened, synchronize, reopened, closed."""

    installation_id: int
    repository: Repository
    pull_request: PullRequest
    action: str
    sender: Person
    before: str | None = None
    """The head before a push (`synchronize`)."""


class RerunRequested(Struct, frozen=True, kw_only=True, tag="rerun_requested"):
    """A user pressed Re-run on one of our check runs (`external_id` is the run's id), or Re-run all (None)."""

    installation_id: int
    repository: Repository
    head_sha: str
    external_id: str | None
    sender: Person
    check_name: str | None = None
    """Name of the one check run; None for Re-run all."""


class PatchRequested(Struct, frozen=True, kw_only=True, tag="patch_requested"):
    """A user pressed the button on one of our check runs that applies the run's patch."""

    installation_id: int
    repository: Repository
    run_id: str
    sender: Person


class BranchPushed(Struct, frozen=True, kw_only=True, tag="branch_pushed"):
    """A commit was pushed to a branch of the repository itself. It starts nothing; who pushed it is recorded."""

    repository: Repository
    branch: str
    sha: str
    pusher: Person
    at: datetime


class MergeGroupChecked(Struct, frozen=True, kw_only=True, tag="merge_group_checked"):
    """A merge queue requests checks of the commit that it would merge."""

    installation_id: int
    repository: Repository
    head_sha: str
    base_ref: str


class RunRequested(Struct, frozen=True, kw_only=True, tag="run_requested"):
    """A person asked for a workflow over the bot's API, as a comment with a command would. Not a webhook of GitHub."""

    installation_id: int
    repository: Repository
    number: int
    person: Person
    workflow: str
    """The word of its command."""
    inputs: Mapping[str, str]
    head_sha: str
    """The head of the pull request when the person asked; no other commit may run."""


class Ignored(Struct, frozen=True, kw_only=True, tag="ignored"):
    """An event without consequences; `reason` is for the log."""

    reason: str


Event = (
    CommentCreated
    | PullRequestChanged
    | RerunRequested
    | PatchRequested
    | BranchPushed
    | MergeGroupChecked
    | RunRequested
    | Ignored
)
"""The decoded form of a delivery. The store has it as JSON with the tag in `type`, so tags and fields are stored names: a new
field needs a default.
"""


class Delivery(Struct, frozen=True, kw_only=True):
    """One verified webhook."""

    guid: str
    event_name: str
    """GitHub's name of the event (`X-GitHub-Event`)."""
    event: Event | None
    """None: the payload couldn't be decoded, or an older version stored it undecoded."""
    received_at: datetime
    payload: bytes = b""
    """The request's body, only if `event` is None."""
    digest: bytes = b""
    """SHA-256 of the request's body; empty if the event has no consequences."""
    cancels: bool = False
    """A comment in which every command is `cancel`: it doesn't wait for earlier deliveries."""
    attempts: int = 0
    """How many times a process began to handle it."""


class CancelRequest(Struct, frozen=True, kw_only=True):
    """Stop the runs that earlier deliveries requested on one pull request: those that are queued or running, and those that are
    queued later because their delivery isn't handled yet.
    """

    repository_id: int
    number: int
    workflow: str | None
    """None: all."""
    reason: str


# --- who pushed a commit ------------------------------------------------------------------------------------------


class HeadSeen(Struct, frozen=True, kw_only=True):
    """One commit that was the head of a pull request. Times are GitHub's, in whole seconds."""

    repository_id: int
    number: int
    sha: str
    action: str
    """opened | synchronize | reopened; `seen`: read from the API, without a delivery that says who pushed it."""
    at: datetime
    """It was the head at this time, and for `synchronize` not before."""
    before: str | None = None
    """The head that a push replaced."""
    pusher: Person | None = None
    """None: unknown, as for every action except `synchronize`."""
    head_repository_id: int | None = None
    head_owner: str | None = None


class BranchPush(Struct, frozen=True, kw_only=True):
    """A commit that was pushed to a branch of the repository itself."""

    repository_id: int
    branch: str
    sha: str
    pusher: Person
    at: datetime


class Approval(Struct, frozen=True, kw_only=True):
    """A user with write permission allowed one commit of an untrusted pull request to run. It ends with the next push."""

    repository_id: int
    number: int
    sha: str
    by: str
    at: datetime
    """When the approving comment was written, by GitHub's clock."""


class HeadHistory(Struct, frozen=True, kw_only=True):
    """What the store has about the heads of a pull request and who pushed them, oldest first."""

    heads: tuple[HeadSeen, ...] = ()
    pushes: tuple[BranchPush, ...] = ()
    """Pushes of the head's commit to branches of the repository itself."""
    approvals: tuple[Approval, ...] = ()
    fork_pushes: tuple[HeadSeen, ...] = ()
    """Pushes to the same fork that were seen on any pull request of this repository."""


class Command(Struct, frozen=True, kw_only=True):
    """One `/gibil …` line: `/gibil test browser=firefox` is word `test`, arguments {"browser": "firefox"}."""

    word: str
    arguments: Mapping[str, str] = field(default_factory=dict)
    problem: str | None = None
    """Why the line can't be read, for people; then only `word` is valid."""
    text: str = ""
    """What follows the word, on this line and the next ones, if the command takes free text; then there are no arguments."""


# --- what should be done ----------------------------------------------------------------------------------------


class TaskPlan(Struct, frozen=True, kw_only=True):
    """One task as it will run. `condition` is an expression of the workflow language, already checked."""

    name: str
    run: str
    condition: str = "success()"
    env: Mapping[str, str] = field(default_factory=dict)
    working_directory: str | None = None
    """Relative to the checkout; None is the checkout itself."""
    timeout_s: float = 3600.0
    continue_on_error: bool = False
    shell: str = "bash"
    kind: str = "run"
    """`prepare`: it installs what later tasks need, so its failure says nothing about the project's code. Otherwise `run`."""
    detect: str = ""
    """`test`, `lint` or `format`: tasks that are detected in the project's files replace this task. Empty: none do."""
    tty: bool = False
    """Its standard streams are a terminal."""
    agent: AgentPlan | None = None
    """An agent works instead of a script; then `run` is empty."""
    part_of: str = ""
    """Name of the workflow's task that this one replaces, with others: one with `uses` or `detect`. Empty: none."""


class Checkout(Struct, frozen=True, kw_only=True):
    """What of the repository is on the machine, in the terms of actions/checkout."""

    depth: int | None = None
    """How many commits of the history; 0 is all of it. None, the default: all of it, and one commit of each submodule."""
    submodules: str | None = None
    """false | true | recursive. None, the default: those that detection finds necessary."""
    lfs: bool = False
    """Whether the files that Git LFS stores are downloaded."""
    tags: bool = True
    """Whether the tags that the commit can reach exist. Many projects derive their version from them."""

    @property
    def has_submodules(self) -> bool:
        return self.submodules in ("true", "recursive")

    @property
    def submodule_depth(self) -> int:
        """How many commits of each submodule; 0 is all of them."""
        return 1 if self.depth is None else self.depth


class Cache(Struct, frozen=True, kw_only=True):
    """Files that later runs of the same repository and trust may read, in the terms of actions/cache."""

    path: tuple[str, ...]
    """Absolute, below `~`, or relative to the checkout; with `*` and `**`, and `!` in front of paths to leave out."""
    key: str
    """May contain `${{ hashFiles('…') }}`, which only the machine can evaluate."""
    restore_keys: tuple[str, ...] = ()
    """Beginnings of keys, tried in this order if no cache has the key."""


class Quote(Struct, frozen=True, kw_only=True):
    """A command of the project's own CI."""

    command: str
    path: str
    line: int | None = None


class DetectedProject(Struct, frozen=True, kw_only=True):
    """What was detected in the project's files, for the report. All texts are the project's or contain some of it."""

    purpose: str
    """test | lint | format"""
    evidence: tuple[str, ...] = ()
    """What would run and why, one line each."""
    quotes: tuple[Quote, ...] = ()
    suggestion: str = ""
    """A `.gibil.yml` to start from."""
    key_files: tuple[str, ...] = ()
    """The manifests and lock files that decide what is installed."""
    caches: tuple[str, ...] = ()
    """Folders of download caches."""
    problem: str | None = None
    """Why nothing was detected."""
    missing: str = ""
    """What the CI's checkout has and the machine's lacks: `submodules`. Tests that fail then say nothing about the code."""


class MachineResources(Struct, frozen=True, kw_only=True):
    """The settings of a machine, from the `machine:` of a file or from a request. None: unset.

    Plans and specs extend it instead of containing it, because their JSON is flat: in the database, in `gibil plan` and in the
    protocol of the local machines' daemon.
    """

    size: str | None = None
    image: str | None = None
    server_type: str | None = None
    location: str | None = None
    ttl_s: int | None = None
    memory_mb: int | None = None
    disk_mb: int | None = None
    pids: int | None = None

    def overridden_by(self, other: MachineResources) -> MachineResources:
        """Return the values of `other`, with these values where `other` has none."""
        return MachineResources(**self.specified() | other.specified())

    def specified(self) -> dict[str, Any]:
        """Return the values that are set, by name."""
        values = ((name, getattr(self, name)) for name in MachineResources.__struct_fields__)
        return {name: value for name, value in values if value is not None}


class MachinePlan(MachineResources, frozen=True, kw_only=True):
    """The machine of a plan: with a size and a time to live. None leaves a value to the provider."""

    size: str = "small"
    ttl_s: int = 3600


class PullRequestRequest(Struct, frozen=True, kw_only=True):
    """A pull request that a run opens for its commits."""

    title: str
    draft: bool = False
    body: str = ""


class CommitPlan(Struct, frozen=True, kw_only=True):
    """How the changes of a run become commits on GitHub: the key `commit:` of a workflow, checked."""

    message: str
    """Of the commit that contains changes which the tasks didn't commit themselves."""
    paths: tuple[str, ...] = ()
    """Patterns of the paths that may change, relative to the checkout; empty: all."""
    to: Literal["head", "branch", "patch"] = "head"
    """The pull request's own branch, another branch of the base repository, or no branch at all."""
    branch: str | None = None
    """Name of the branch for `to: branch`."""
    pull_request: PullRequestRequest | None = None
    """With `to: branch`: the pull request to open."""
    on_conflict: Literal["rebase", "fail"] = "rebase"
    """What happens if the branch has moved meanwhile."""
    strict: bool = False
    """Changes of other paths reject the commits, instead of being dropped."""

    def as_patch(self) -> CommitPlan:
        """Return the same plan with a patch as its result."""
        return structs.replace(self, to="patch", branch=None, pull_request=None)


class Plan(Struct, frozen=True, kw_only=True):
    """One workflow, checked and bound to one event: complete input for the runner."""

    workflow: str
    """The file's name without `.yml`, which users and check runs use."""
    title: str
    """The file's `name:`, or the workflow again."""
    path: str
    """Where the file is, for messages: `workflows/test.yml`, `.gibil/workflows/docs.yml@main`."""
    tasks: tuple[TaskPlan, ...]
    inputs: Mapping[str, str] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)
    secrets: tuple[str, ...] = ()
    machine: MachinePlan = field(default_factory=MachinePlan)
    timeout_s: float = 3600.0
    """For all tasks together; never above `machine.ttl_s`."""
    comment: str = "always"
    """always | on-failure | never"""
    concurrency_group: str = ""
    cancel_in_progress: bool = True
    github: Mapping[str, str] = field(default_factory=dict)
    """The `github.*` of conditions: event_name, actor, sha, ref, head_ref, base_ref, repository, number …"""
    notes: tuple[str, ...] = ()
    """What planning decided or limited, for the report."""
    checkout: Checkout = field(default_factory=Checkout)
    caches: tuple[Cache, ...] = ()
    detected: DetectedProject | None = None
    """Set once the tasks of this plan were detected on the machine."""
    commit: CommitPlan | None = None
    """None: the run's changes are destroyed with its machine."""
    max_attempts: int = 0
    """How often the bot's own commits may start it, per pull request and hour; 0: never."""
    applies: str | None = None
    """The id of an earlier run, whose stored changes it commits without a machine; then it has no tasks."""

    @property
    def has_agent(self) -> bool:
        return any(task.agent is not None for task in self.tasks)


# --- runs ------------------------------------------------------------------------------------------------------


class RequestText(Struct, frozen=True, kw_only=True):
    """What a comment says outside of its commands, as it was delivered."""

    author: str
    """Login; had write permission then."""
    words: str = ""
    """The author's own."""
    quotes: str = ""
    """What the comment quotes: words of anyone, with `>` before each line."""


class Source(Struct, frozen=True, kw_only=True):
    """The commit that a run is about."""

    installation_id: int
    repository: Repository
    pull_request: PullRequest
    sha: str
    trust: Trust
    actor: str
    """Login of the requester."""
    comment_id: int | None = None
    is_review_comment: bool = False
    is_by_agent: bool = False
    """It is untrusted only because an agent wrote its newest commits: people with write permission asked for them."""
    request: RequestText | None = None
    """For agents. None: no agent works, or the request was no comment or nothing but a command."""


class NewRun(Struct, frozen=True, kw_only=True):
    """A run to queue. Intake generates `id`: 16 hexadecimal digits, unguessable."""

    id: str
    delivery_guid: str
    source: Source
    plan: Plan


class Run(Struct, frozen=True, kw_only=True):
    """One workflow on one commit on one machine: one check run."""

    id: str
    seq: int
    """The order of queueing, over all repositories."""
    delivery_guid: str
    source: Source
    plan: Plan
    state: RunState
    queued_at: datetime
    started_at: datetime | None = None
    """When it was first claimed."""
    finished_at: datetime | None = None
    conclusion: Conclusion | None = None
    cancel_reason: str | None = None
    """Why it should stop: "superseded by abc1234", "cancelled by ada"; None: it should continue."""
    machine: str | None = None
    """Name of the machine that may exist for it; None once it is destroyed."""
    machine_attempt: int = 0
    """How many machines were created for it."""
    note: str | None = None
    """Additional text of the report: a machine that was lost and replaced, an internal error."""
    commit: CommitProgress | None = None
    """Set once its changes were collected, if its plan has `commit`."""
    machine_host: str | None = None
    """Id of the only host that reaches the machine; None: every host does, or there is no machine."""
    hosts: tuple[str, ...] = ()
    """Ids of the hosts whose bots worked on it, which have the files of its logs. The one that claimed it last is the last."""


class Host(Struct, frozen=True, kw_only=True):
    """A computer with a data directory, on which one bot runs."""

    id: str
    """Of the data directory: 16 hexadecimal digits."""
    name: str
    """For people."""
    url: str = ""
    """Where the bots of other hosts reach this one; "": they can't."""


class HostSeen(Struct, frozen=True, kw_only=True):
    """What the database knows about a host."""

    host: Host
    seen_at: datetime
    bots: int
    """How many bots run on it at present: more than one if its data directory was copied."""
    machines: int
    """How many machines of runs are known that only this host reaches."""

    @property
    def is_away(self) -> bool:
        """Whether no bot runs on it at present."""
        return not self.bots


class FilePart(Struct, frozen=True, kw_only=True):
    """Some bytes of a file."""

    data: bytes
    offset: int
    size: int
    """Of the whole file."""
    round: int = 0
    """Of an agent's transcript: of which round it is."""


class CommitProgress(Struct, frozen=True, kw_only=True):
    """How far the commits of a run are. Stored, so a new field needs a default."""

    phase: Literal["collected", "created", "moved", "patch", "rejected", "unchanged"]
    """`collected` and `created` are stored before the next step; the others are final."""
    repository: str = ""
    """`owner/name` of the repository whose branch moves: the base's, or a fork."""
    branch: str = ""
    expected: str = ""
    """The branch's head that the commits are based on."""
    created: str | None = None
    """The new head, once GitHub has its objects."""
    head: str = ""
    """The last commit on the machine, so that a copy of the changes on another host is recognized."""
    patch: bool = False
    """Whether the changes are stored as a patch on the bot's disk."""
    patch_digest: str = ""
    """SHA-256 of the patch: a host from which the run was taken over may have an older one. Empty: unknown."""
    unchecked: bool = False
    """Whether they are stored without a patch, since they couldn't be checked."""
    commits: int = 0
    files: int = 0
    bytes: int = 0
    dropped: tuple[str, ...] = ()
    """Changed paths that aren't part of the commits, redacted, at most 100."""
    message: str = ""
    """What happened, for the report: why the commits were rejected, or why there is only a patch."""
    url: str | None = None
    """The commits or the pull request at GitHub."""

    @property
    def is_final(self) -> bool:
        return self.phase not in ("collected", "created")

    def can_be_applied(self, plan: Plan) -> bool:
        """Return whether another run can commit the changes. It has no secrets, so it can't find those of the plan in them."""
        return self.phase == "patch" and (self.patch or (self.unchecked and not plan.secrets))


class Claim(Struct, frozen=True, kw_only=True):
    """The right of one process to work on one run: see "the store" in ports. A write with a stale fence raises ClaimLost."""

    run: Run
    owner: str
    fence: int


class Refusal(Struct, frozen=True, kw_only=True):
    """An endpoint that a machine tried to reach and may not. The machine chose the host, which has only the characters of a
    host name and at most 253 of them.
    """

    host: str
    port: int
    """0: the machine only asked for the addresses of the host."""
    itself: bool = False
    """It is the machine itself under another name, so the operator can't allow it."""
    unlisted: bool = False
    """It isn't in the allow-list of the agent task."""


class Refusals(Struct, frozen=True, kw_only=True):
    """Endpoints that a machine was not allowed to reach during some time, each once, newest last."""

    refused: tuple[Refusal, ...] = ()
    more: bool = False
    """Whether there were more, which aren't recorded."""


class EgressRestriction(Struct, frozen=True, kw_only=True):
    """How an agent's program has to be started on a machine that reaches only an allow-list."""

    environment: Mapping[str, str] = {}
    """Variables that lead its programs to the way out. Empty: they need none."""


class TaskResult(Struct, frozen=True, kw_only=True):
    """The state of one task. Stored when it starts (RUNNING) and when it ends."""

    index: int
    machine_attempt: int
    name: str
    status: TaskStatus
    started_at: datetime | None = None
    finished_at: datetime | None = None
    exit_status: int | None = None
    summary: str = ""
    """What the task wrote to GITHUB_STEP_SUMMARY, redacted and cut."""
    tail: str = ""
    """The end of its output, redacted, for reports."""
    detail: str = ""
    """Why it was skipped, or what stopped it."""
    refusals: Refusals = Refusals()
    """What its machine was not allowed to reach during the task; hosts are redacted."""
    agent: AgentResult | None = None
    agent_state: AgentState | None = None
    """While an agent works."""

    @property
    def duration_s(self) -> float | None:
        if self.started_at is None or self.finished_at is None:
            return None
        return (self.finished_at - self.started_at).total_seconds()


# --- notifications for GitHub -----------------------------------------------------------------------------------------


class Priority(IntEnum):
    """Order in which notifications are published to GitHub. Lower comes first."""

    RESULT = 0
    """A check run that GitHub doesn't show yet, or that ended."""
    PROGRESS = 1
    COMMENT = 2
    REACTION = 3


class CheckRunOutput(Struct, frozen=True, kw_only=True, omit_defaults=True):
    title: str
    summary: str
    text: str | None = None


class CheckRunAction(Struct, frozen=True, kw_only=True):
    """A button on a check run: at most 20, 40 and 20 characters."""

    label: str
    description: str
    identifier: str


class CheckRunUpdate(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A check run, in the fields of GitHub's checks API: https://docs.github.com/en/rest/checks/runs."""

    name: str
    head_sha: str
    external_id: str
    """Identifies the check run: the run's id, or the notification's key."""
    status: Literal["queued", "in_progress", "completed"]
    output: CheckRunOutput
    started_at: str | None = None
    """Times are RFC 3339 in UTC (views.timestamp)."""
    completed_at: str | None = None
    conclusion: Conclusion | None = None
    details_url: str | None = None
    actions: tuple[CheckRunAction, ...] = ()


class CommentUpdate(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A comment in the conversation of a pull request."""

    number: int
    marker: str
    """An HTML comment that identifies it; `body` begins with it."""
    body: str
    only_if_exists: bool = False
    """Change an existing comment, but create none."""


class ReactionUpdate(Struct, frozen=True, kw_only=True):
    """A reaction to a comment."""

    comment_id: int
    is_review_comment: bool
    content: str
    """GitHub's name: eyes | rocket | confused …"""


class ReviewComment(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A comment on lines of a pull request's diff. `line` is the last one, `start_line` the first of several."""

    path: str
    line: int
    body: str
    side: Literal["LEFT", "RIGHT"] = "RIGHT"
    """LEFT: the numbers are those of the base; RIGHT: of the head."""
    start_line: int | None = None


class ReviewUpdate(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A review of a pull request that only comments: it neither approves nor requests changes, and never changes."""

    number: int
    marker: str
    """An HTML comment that identifies it; `body` and `without_lines` begin with it."""
    commit_sha: str
    """The head that was reviewed."""
    body: str
    without_lines: str
    """The body that contains all comments, if GitHub rejects one of the lines."""
    comments: tuple[ReviewComment, ...] = ()


NotificationUpdate = CheckRunUpdate | CommentUpdate | ReactionUpdate | ReviewUpdate
"""Stored as JSON with its kind in another column, so fields are stored names: a new field needs a default."""


class Notification(Struct, frozen=True, kw_only=True):
    """The desired state of one GitHub object, not an action: publishing it again changes nothing.

    `key` names the object: `check:<run id>`, `comment:<repository id>:<number>:<workflow>`, `reply:<delivery digest>`,
    `reaction:<comment id>:<content>`, `review:<run id>` … A newer notification with the same key replaces the older one.
    """

    key: str
    installation_id: int
    repository: str
    update: NotificationUpdate


class DueNotification(Struct, frozen=True, kw_only=True):
    """A notification that a process has claimed, to publish it now."""

    notification: Notification
    revision: int
    remote_id: int | None
    """GitHub's id of the check run, comment, reaction or review, if it is known."""
    attempts: int
    """How many attempts to publish there were, in all revisions. If above 0 without a remote_id, search for the object before
    creating it.
    """
    failures: int = 0
    """How often publishing failed since it last succeeded."""
    priority: Priority = Priority.RESULT


class Spending(Struct, frozen=True, kw_only=True):
    """The result of taking tokens from a bucket."""

    allowed: bool
    wait_s: float = 0.0
    """If not allowed: seconds until the bucket has enough tokens."""
    first_refusal: bool = False
    """Whether no rejection was sent to the owner within the last hour."""


# --- machines ---------------------------------------------------------------------------------------------------


class MachineSpec(MachineResources, frozen=True, kw_only=True):
    """The machine that a provider should create. `name` is an RFC 1123 label and the idempotency key."""

    name: str
    owner: str
    """The owner for the provider's `sweep`: the same for every process that shares one data directory (or one cloud project's
    bot).
    """
    size: str = "small"
    ttl_s: int
    authorized_key: str
    """The public key that may log in, in OpenSSH's one-line form."""
    host_key: str
    """The private host key that the machine must use, in OpenSSH's PEM form."""
    first_host_key: str = ""
    """Used instead of it until the first contact, if others can read a machine's boot data; same form."""
    labels: Mapping[str, str] = field(default_factory=dict)
    egress_allow: tuple[str, ...] = ()
    """In addition to public addresses: `host`, `host:port`, `10.0.0.0/8`. Loopback `127.0.0.1:PORT` is reachable as such."""
    untrusted: bool = False
    tethered: bool = False
    """Local only: destroyed as soon as the process that created it ends."""
    ca_bundle: str = ""
    """The operator's certificates in PEM, which every tool of the machine trusts in addition to the system's."""
    mirrors: Mapping[str, str] = field(default_factory=dict)
    """Package mirror (a key of config.MIRRORS) → URL."""
    layer: str | None = None
    """The layer below its disk, with a provider that is `Layering`."""

    def __repr__(self) -> str:
        return _without(self, "host_key", "first_host_key")


class Endpoint(Struct, frozen=True, kw_only=True):
    """Where SSH answers: `unix_path`, or host and port. `host_key` is pinned: OpenSSH's one-line public form."""

    host_key: str
    first_host_key: str | None = None
    """Only in the result of `Provider.create`: used instead of `host_key` until the first contact (host_keys.py)."""
    username: str = "root"
    host: str | None = None
    port: int = 22
    unix_path: str | None = None


class Machine(Struct, frozen=True, kw_only=True):
    """A machine that exists."""

    provider: str
    id: str
    name: str
    created_at: datetime
    expires_at: datetime
    endpoint: Endpoint
    labels: Mapping[str, str] = field(default_factory=dict)
    status: str = "running"
    layer: str | None = None
    """The layer that it started from."""


class PreparedKey(Struct, frozen=True, kw_only=True):
    """What a prepared machine depends on."""

    kind: str
    """Digest of what prepares: provider, image, tasks, environment."""
    files: str
    """Digest of the manifests and lock files."""
    tree: str
    """The id of all files of the commit."""


class PreparedMachine(Struct, frozen=True, kw_only=True):
    """A layer that a run left after its preparation, and what it was prepared with. Stored, so a new field needs a default."""

    format: int
    layer: str
    repository: str
    repository_name: str
    scope: str
    workflow: str
    key: PreparedKey
    whole_tree: bool
    """It fits only commits with exactly the same files, because preparing built something from the project's own files."""
    env: Mapping[str, str]
    """What the preparing tasks wrote to GITHUB_ENV, for later tasks."""
    paths: tuple[str, ...]
    """And to GITHUB_PATH."""
    prepared_in_s: float
    """How long the preparing tasks took."""
    size_mb: int
    depth: int
    created_at: datetime
    provider: str = "local"

    def fits(self, key: PreparedKey) -> bool:
        """Return whether nothing is left to install for that key."""
        return self.key.kind == key.kind and self.key.files == key.files and (not self.whole_tree or self.key.tree == key.tree)


class CacheEntry(Struct, frozen=True, kw_only=True):
    """Files that a run left for later runs, as an archive that only machines unpack. Stored, so a new field needs a default."""

    format: int
    id: str
    kind: str
    """cache (written in a file) | downloads (of package managers, without configuration)"""
    repository: str
    repository_name: str
    scope: str
    workflow: str
    version: str
    """Digest of the paths and the compression: other entries can't be unpacked."""
    key: str
    paths: tuple[str, ...]
    compression: str
    """zstd | tar"""
    digest: str
    """SHA-256 of the archive."""
    size_bytes: int
    created_at: datetime


class LayerInfo(Struct, frozen=True, kw_only=True):
    """The disk of an ended machine, read-only, that machines can start from; or an archive of a machine (ports.Archiving)."""

    id: str
    parent: str | None
    """The layer that its machine started from."""
    depth: int
    """Number of layers from this one down: 1 if it has no parent."""
    size_mb: int
    """Without its parents; templates and archives contain them."""
    created_at: datetime
    kind: str = ""
    """`template`, or `fork`: the disk that a machine had when it was forked. Empty: of a run."""
    template: str = ""
    """The template's name."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """What the machine's labels said about the code on it."""


class Template(Struct, frozen=True, kw_only=True):
    """A copy of a machine's disk with a name, from which machines start: a layer, or a cloud's snapshot."""

    name: str
    provider: str
    id: str
    """The layer's id, or the cloud's id of the snapshot."""
    size_mb: int
    created_at: datetime
    labels: Mapping[str, str] = field(default_factory=dict)
    """What the machine's labels said about the code on it: `repo`, `commit`, `branch`."""
    layer: str | None = None
    """For `MachineSpec.layer`, with a provider that has layers."""
    image: str | None = None
    """For `MachineSpec.image`, with a provider that has images."""
    price_monthly: Decimal | None = None
    """Net, for its size. None: it costs nothing, or the provider lists no price."""
    currency: str | None = None


class Capabilities(Struct, frozen=True, kw_only=True):
    """What the provider's machines can do here."""

    tier: str
    """`root`, `user` or `vm`."""
    package_installs: bool
    """apt-get works on them."""
    several_users: bool
    """More than one uid exists on them."""
    memory_limit: str
    """How memory is limited: `cgroup-v2`, `cgroup-v1`, `polled` or `hardware`."""
    disk_limit: str = "hardware"
    """How disks are limited: `filesystem` (of that size), `polled` or `hardware`."""
    cpu_limit: str = "hardware"
    """How processors are shared: `shares` of a control group, `nice` or `hardware`."""
    forged_in_s: float
    """How long the probe took to create a machine."""
    inherited: tuple[str, ...] = ()
    """What machines inherit from the process that started their daemon, because it can't be undone; for people."""


class Usage(Struct, frozen=True, kw_only=True):
    """The limits of a machine and how much of them it uses, as measured where they are enforced."""

    memory_limit_mb: int
    memory_used_mb: int
    """Without the file cache, which the kernel frees before it kills a process."""
    disk_limit_mb: int
    disk_used_mb: int | None
    """None: the disk is a separate file system, so the machine itself shows how full it is."""


class SizeOffer(Struct, frozen=True, kw_only=True):
    """What a provider currently creates for one size."""

    size: str
    what: str
    """For people: `4 GB of memory, 10 GB of disk`."""
    locations: tuple[str, ...] = ()
    """Locations that offer it; empty if the provider has only one."""
    price_hourly: Decimal | None = None
    """Net, for each started hour; None: nothing is billed."""
    currency: str | None = None


# --- SSH --------------------------------------------------------------------------------------------------------


class Result(Struct, frozen=True, kw_only=True):
    """The exit status and output of a command."""

    exit_status: int
    stdout: bytes
    stderr: bytes


class Job(Struct, frozen=True, kw_only=True):
    """A script that runs detached on a machine and survives the connection. `id`: letters, digits, `-`, `_`, `.`.

    `env` reaches the script as environment only: it is never written to the machine's disk and never in an argv.
    `script` is written to the job's folder. `shell` is `bash`, `sh`, `python`, or a template with `{0}` for the file.
    """

    id: str
    script: str
    env: Mapping[str, str] = field(default_factory=dict)
    working_directory: str = "/root"
    shell: str = "bash"
    merged: bool = True
    """One stream, with stderr and stdout interleaved; if False, two files."""
    returns: tuple[str, ...] = ()
    """Absolute paths on the machine of at most 16 files, whose contents come with the Exit."""
    tty: bool = False
    """Its standard streams are a terminal, so `merged` has to be true. It reads the end of the input at once."""
    most_output_bytes: int | None = None
    """Limit for each stream, in steps of 512: a job that prints more gets SIGPIPE, and its Exit has `output_cut`."""

    def __repr__(self) -> str:
        return _without(self, "env")


class Chunk(Struct, frozen=True):
    """Bytes of a job's output. `offset` is the position of the *next* byte of that stream: attach there to continue."""

    data: bytes
    offset: int
    stream: str = "stdout"


class Exit(Struct, frozen=True):
    """The job ended. If it was killed by signal N, the status is 128 + N, as in a shell."""

    status: int
    files: Mapping[str, bytes] = field(default_factory=dict)
    """Contents of the job's `returns` at its end, each cut at 1 MiB; b"" if a file couldn't be read."""
    output_cut: bool = False
    """Not all of its output could be stored on the machine: its disk is full, or the process that stores it was killed."""


def _without(value: Struct, *secret: str) -> str:
    """Return the repr without the fields that must not be logged."""
    shown = ", ".join(f"{name}={getattr(value, name)!r}" for name in value.__struct_fields__ if name not in secret)
    return f"{type(value).__name__}({shown})"
