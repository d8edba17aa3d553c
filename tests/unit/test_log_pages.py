"""Pages of a run's stored output."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
from msgspec.structs import replace

from gibil_bot.agent_task import AgentPlan
from gibil_bot.errors import UsageError
from gibil_bot.model import Person, Plan, PullRequest, Repository, Run, RunState, Source, TaskPlan, Trust
from gibil_bot.runs.log_pages import LogRequest, Part, read_log


def run_of(attempt: int = 1) -> Run:
    pull = PullRequest(
        number=1, title="", author=Person(login="ada"), head_sha="a" * 40, head_ref="x", head_repository=None, base_ref="main",
        base_sha="b" * 40,
    )  # fmt: skip
    repository = Repository(id=1, full_name="ada/engine", clone_url="https://example.test/x.git", default_branch="main")
    return Run(
        id="r", seq=1, delivery_guid="g", state=RunState.RUNNING, queued_at=datetime.now(UTC), machine_attempt=attempt,
        source=Source(
            installation_id=1, repository=repository, pull_request=pull, sha="a" * 40, trust=Trust.TRUSTED, actor="ada"
        ),
        plan=Plan(workflow="test", title="Test", path="test.yml", tasks=(TaskPlan(name="only", run="true"),)),
    )  # fmt: skip


def write(logs: Path, content: bytes, folder: str = "r") -> None:
    (logs / folder).mkdir(parents=True)
    (logs / folder / "0.log").write_bytes(content)


def test_pages_together_are_the_whole_output(tmp_path: Path) -> None:
    text = "äöü€𝄞\n" * 50
    write(tmp_path, text.encode())
    read, offset = "", 0
    while True:
        page = read_log(tmp_path, run_of(), LogRequest(task=0, offset=offset, most_bytes=17))
        read, offset = read + page.text, page.next
        if offset == page.size:
            break
    assert read == text


def test_the_default_page_is_the_end_from_a_whole_line_on(tmp_path: Path) -> None:
    write(tmp_path, b"first line\nsecond\nthird\n")
    page = read_log(tmp_path, run_of(), LogRequest(task=0, offset=None, most_bytes=16))
    assert (page.text, page.offset, page.next) == ("second\nthird\n", 11, 24)


def test_invalid_bytes_end_no_page_early(tmp_path: Path) -> None:
    write(tmp_path, b"\x80" * 40)
    assert read_log(tmp_path, run_of(), LogRequest(task=0, offset=0, most_bytes=10)).next == 10


def test_a_second_machine_has_a_separate_log(tmp_path: Path) -> None:
    write(tmp_path, b"old\n")
    write(tmp_path, b"new\n", "r/machine-2")
    assert read_log(tmp_path, run_of(2), LogRequest(task=0, offset=0, most_bytes=100)).text == "new\n"


def test_a_task_that_has_not_started_has_an_empty_log(tmp_path: Path) -> None:
    page = read_log(tmp_path, run_of(), LogRequest(task=0, offset=50, most_bytes=100))
    assert (page.text, page.size, page.next) == ("", 0, 0)


@pytest.mark.parametrize(("task", "offset"), [(1, 0), (-1, 0), (0, -1)])
def test_unknown_tasks_and_offsets_are_errors(tmp_path: Path, task: int, offset: int) -> None:
    write(tmp_path, b"x")
    with pytest.raises(UsageError):
        read_log(tmp_path, run_of(), LogRequest(task=task, offset=offset, most_bytes=100))


def agent_run(attempts: int = 2) -> Run:
    run = run_of()
    task = replace(run.plan.tasks[0], agent=AgentPlan(engine="claude", prompt="Mend it.", attempts=attempts))
    return replace(run, plan=replace(run.plan, tasks=(task, *run.plan.tasks[1:])))


def test_the_transcript_of_the_last_round_and_the_parts_of_attempts_can_be_read(tmp_path: Path) -> None:
    run = agent_run()
    folder = tmp_path / run.id
    folder.mkdir(exist_ok=True)
    for name in ("0.2.events", "0.10.events", "0-2.log", "0-2.1.events", "0-2.patch"):
        (folder / name).write_text(f"{name}\n")

    def read(part: Part, attempt: int = 0) -> str:
        return read_log(tmp_path, run, LogRequest(task=0, part=part, attempt=attempt, most_bytes=100)).text

    assert read("transcript") == "0.10.events\n"
    assert [read(part, 2) for part in ("log", "transcript", "patch")] == ["0-2.log\n", "0-2.1.events\n", "0-2.patch\n"]
    assert read("patch", 1) == ""
    with pytest.raises(UsageError, match="has no attempt 3"):
        read("log", 3)
    with pytest.raises(UsageError, match="has no transcript: it has no agent"):
        read_log(tmp_path, run_of(), LogRequest(task=0, part="transcript", most_bytes=100))
