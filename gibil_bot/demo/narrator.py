"""Shows the progress of the demonstration: what users see on GitHub, and what the bot writes to disk about the run.

Both sources are polled, and an entry from one may be older than the last entry from the other. So all entries are held for a
moment and printed in the order of their time.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

from gibil_bot.demo.github_double import GitHubDouble
from gibil_bot.demo.records import CheckRun, Comment, HookDelivery, Reaction
from gibil_bot.demo.story import RunStory, Step
from gibil_bot.demo.terminal import Terminal, harmless
from gibil_bot.humanize import precise_duration

REACTIONS = {"eyes": "👀", "rocket": "🚀", "confused": "😕", "+1": "👍", "-1": "👎"}
INDENT = " " * 11
LAST_LINES = 8
"""Of the output of a failed task, if only one task's output is shown as a whole."""
MOST_COMMENT_LINES = 20
"""Of a comment, in the same case."""
HOLD = timedelta(seconds=0.25)
"""How long an entry waits for older ones that haven't been read yet."""


@dataclass(slots=True)
class Entry:
    """One entry, with the lines before and below it."""

    at: datetime
    text: str = ""
    """If empty, only `before` is printed."""
    before: tuple[str, ...] = ()
    markdown: str = ""


@dataclass(slots=True)
class _Check:
    run: CheckRun
    story: RunStory
    shown: tuple[str, str | None] = ("", None)


@dataclass(slots=True)
class Timing:
    """A row of the table at the end."""

    label: str
    seconds: float
    remark: str = ""


@dataclass(slots=True)
class Narrator:
    """Call `update` repeatedly: each entry is printed once. Times are relative to `started`."""

    github: GitHubDouble
    terminal: Terminal
    full_name: str
    number: int
    logs: Path
    started: datetime
    live: str = ""
    """The only task whose output is shown as a whole. Of others, only the end of what failed is shown. Empty: all are shown."""
    asked: datetime | None = None
    """When the newest comment was written, if it isn't the first one."""
    timings: list[Timing] = field(default_factory=list)
    _checks: dict[int, _Check] = field(default_factory=dict)
    _deliveries: int = 0
    _reactions: set[int] = field(default_factory=set)
    _comments: dict[int, int] = field(default_factory=dict)
    """Comment → number of its edits that were printed."""
    _is_check: bool = False
    """The newest output is that of a task that decides whether an agent is done."""
    _held: list[Entry] = field(default_factory=list)
    _shown_s: float = 0.0
    """Time of the last entry."""

    def update(self) -> None:
        entries = [*self._new_deliveries(), *self._new_comments(), *self._new_reactions()]
        for run in self.github.check_runs(self.full_name):
            check = self._checks.setdefault(run.id, _Check(run, RunStory(self.logs / run.external_id, self.github.state.ahead)))
            entries += self._check(check)
            entries += [entry for step in check.story.steps() if (entry := self._step(step)) is not None]
            is_live = self.live in ("", check.story.running_name)
            if is_live and (lines := self._shown(check.story.output())) and check.story.last_at is not None:
                entries.append(Entry(check.story.last_at, before=lines))  # output of the task that started then
        self._held = sorted([*self._held, *entries], key=lambda entry: entry.at)
        self._print_until(self.github.state.now() - HOLD)

    def flush(self) -> None:
        """Print the entries that are still held."""
        self._print_until(None)

    def _print_until(self, end: datetime | None) -> None:
        while self._held and (end is None or self._held[0].at <= end):
            self._print_entry(self._held.pop(0))

    def finished(self) -> CheckRun | None:
        """Return the newest check run once it is completed, its machine is destroyed and its result is in a comment."""
        if not self._checks:
            return None
        check = self._checks[max(self._checks)]
        since = check.story.last_at
        if check.run.status != "completed" or since is None:
            return None
        is_commented = any(comment.by_app and comment.updated_at >= since for comment in self._conversation())
        is_printed = check.shown == ("completed", check.run.conclusion) and all(
            self._comments.get(comment.id, -1) == comment.edits for comment in self._conversation()
        )
        if not is_commented or not is_printed:
            return None
        self.flush()
        return check.run

    def _conversation(self) -> list[Comment]:
        return self.github.comments(self.full_name, self.number)

    # --- what is new ----------------------------------------------------------------------------------------------

    def _new_deliveries(self) -> list[Entry]:
        entries = []
        waiting = self.github.deliveries[self._deliveries :]
        for delivery in waiting:
            if delivery.status == "pending":
                break
            self._deliveries += 1
            if delivery.event == "issue_comment" and delivery.action == "created" and delivery.delivered_at >= self.started:
                entries += self._delivered(delivery)
            elif (
                delivery.event == "pull_request" and delivery.action == "synchronize" and delivery.delivered_at >= self.started
            ):
                entries += [self._pushed(delivery), *self._delivered(delivery)]
        return entries

    def _pushed(self, delivery: HookDelivery) -> Entry:
        payload = json.loads(delivery.body)
        who = self.terminal.style(payload["sender"]["login"], "bold")
        head = payload["pull_request"]["head"]
        text = f"{self.terminal.style('▸', 'blue')} {who} pushed {head['sha'][:7]} to {head['ref']}"
        return Entry(delivery.delivered_at, text)

    def _delivered(self, delivery: HookDelivery) -> list[Entry]:
        if b'"type": "Bot"' in delivery.body.partition(b'"sender"')[2]:
            return []  # GitHub also notifies the App of comments that the App wrote
        took = precise_duration(delivery.duration_s)
        answered_at = delivery.delivered_at + timedelta(seconds=delivery.duration_s)
        if not delivery.succeeded:
            return [Entry(answered_at, self._bad(f"the delivery failed: {delivery.status}"))]
        self._time("delivery accepted", delivery.duration_s, f"signed webhook → {delivery.status_code}")
        return [Entry(answered_at, self._good(f"delivery accepted by the bot: {delivery.status_code} in {took}"))]

    def _new_reactions(self) -> list[Entry]:
        entries = []
        for comment in self._conversation():
            for reaction in comment.reactions:
                if reaction.id not in self._reactions:
                    self._reactions.add(reaction.id)
                    entries.append(self._reaction(comment, reaction))
        return entries

    def _reaction(self, comment: Comment, reaction: Reaction) -> Entry:
        seconds = (reaction.created_at - comment.created_at).total_seconds()
        if reaction is comment.reactions[0]:
            self._time("comment acknowledged", seconds, f"{reaction.user.login} reacted with {reaction.content}")
        sign = REACTIONS.get(reaction.content, reaction.content)
        text = f"{reaction.user.login} reacted with {sign} to the comment, {precise_duration(seconds)} after it"
        return Entry(reaction.created_at, self._good(text))

    def _new_comments(self) -> list[Entry]:
        entries = []
        for comment in self._conversation():
            if self._comments.get(comment.id, -1) < comment.edits:
                verb = "changed its comment" if comment.id in self._comments else "commented"
                self._comments[comment.id] = comment.edits
                who = self.terminal.style(comment.author.login, "bold")
                text = f"{who} {verb}:"
                entries.append(Entry(comment.updated_at, f"{self.terminal.style('▸', 'blue')} {text}", markdown=comment.body))
        return entries

    def _check(self, check: _Check) -> list[Entry]:
        run, title = check.run, check.run.title
        state = "completed" if run.status == "completed" else run.status
        now = (state, run.conclusion if state == "completed" else title)
        if now == check.shown:
            return []
        first, check.shown = not check.shown[0], now
        name = self.terminal.style(run.name, "bold")
        suffix = f" — {harmless(title)}" if title else ""
        if state == "completed":
            success, passes = run.conclusion == "success", run.conclusion in ("neutral", "skipped")
            colour = "green" if success else "yellow" if passes else "red"
            text = f"check run {name}: {self.terminal.style(run.conclusion or '', colour)}{suffix}"
            return [Entry(run.changed_at, self._good(text) if success else self._pending(text) if passes else self._bad(text))]
        if first:
            asked = self.asked or self.started
            self._time("check run opened", (run.created_at - asked).total_seconds(), "after the comment")
        return [Entry(run.created_at if first else run.changed_at, self._pending(f"check run {name}: {state}{suffix}"))]

    def _step(self, step: Step) -> Entry | None:
        took = precise_duration(step.seconds) if step.seconds is not None else ""
        match step.phase:
            case "forging":
                return Entry(step.at, self._pending("creating a machine …"))
            case "preparing":
                return Entry(step.at, self._pending(f"{step.name} …"))
            case "forged":
                remark = "the first one of a new data directory: later ones are faster" if len(self._checks) == 1 else ""
                self._time("machine created", step.seconds or 0.0, remark)
                return Entry(step.at, self._good(f"machine created in {took}"))
            case "cloned":
                self._time("code cloned", step.seconds or 0.0, "refs/pull/N/head at one exact commit")
                return Entry(step.at, self._good(f"code cloned in {took}"))
            case "task_started":
                self._is_check = False
                return Entry(step.at, self._pending(f"task {self.terminal.style(step.name, 'bold')}"))
            case "task_finished":
                self._time(f"task: {step.name}", step.seconds or 0.0, step.status)
                text = f"task {self.terminal.style(step.name, 'bold')}: {step.status} in {took}"
                mark = {"success": self._good, "skipped": self._pending}.get(step.status, self._bad)
                output = self._shown(step.output)
                if self.live not in ("", step.name):
                    output = output[-LAST_LINES:] if mark == self._bad else ()
                return Entry(step.at, mark(text), before=output)
            case "committed":
                self._time("changes committed", step.seconds or 0.0, "fetched from the machine, checked, created over the API")
                return Entry(step.at, self._good(f"changes fetched from the machine, checked and committed in {took}"))
            case "burned":
                self._time("machine destroyed", step.seconds or 0.0)
                return Entry(step.at, self._good(f"machine destroyed in {took}"))
        return None

    def _shown(self, output: Iterable[str]) -> tuple[str, ...]:
        """Leave out the output of tasks that decide whether an agent is done, if only its own is shown as a whole."""
        shown = []
        for line in output:
            if line.startswith("gibil: "):
                self._is_check = bool(self.live) and ", after round " in line
            elif self._is_check:
                continue
            shown.append(line)
        return tuple(shown)

    # --- output -------------------------------------------------------------------------------------------

    def _print_entry(self, entry: Entry) -> None:
        self._print(list(entry.before))
        if not entry.text:
            return
        seconds = self._shown_s = max(self._shown_s, (entry.at - self.started).total_seconds())
        self.terminal.print_line(f"{self.terminal.style(f'{seconds:8.3f} s', 'dim')} {entry.text}")
        if entry.markdown:
            bar = self.terminal.style("│", "blue")
            self.terminal.markdown(entry.markdown, f"{INDENT}{bar} ", MOST_COMMENT_LINES if self.live else None)

    def _print(self, output: list[str]) -> None:
        for line in output:
            self.terminal.print_line(f"{INDENT}{self.terminal.style('│ ' + harmless(line), 'dim')}")

    def _good(self, text: str) -> str:
        return f"{self.terminal.style('✓', 'green')} {text}"

    def _bad(self, text: str) -> str:
        return f"{self.terminal.style('✗', 'red')} {text}"

    def _pending(self, text: str) -> str:
        return f"{self.terminal.style('●', 'yellow')} {text}"

    def _time(self, label: str, seconds: float, remark: str = "") -> None:
        self.timings.append(Timing(label, seconds, remark))
