"""What a machine may write into the repository that `git push` goes to, and what its git may say about it."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest

from gibil_bot.commits.checks import CommitPolicy, check
from gibil_bot.commits.collected import choose, collect, outbox_branch
from gibil_bot.errors import GibilError, UsageError
from gibil_bot.git import GitError
from gibil_bot.model import Result
from gibil_bot.ports import Shell
from tests.doubles.repositories import commit, git
from tests.unit.test_commit_collection import HereShell, Machine


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    made = Machine(tmp_path)
    made.create_outbox()
    return made


class Liar(HereShell):
    """Packs one commit and says that it is another one."""

    def __init__(self, workspace: Path, said: str) -> None:
        super().__init__(workspace)
        self.said = said

    async def run(self, script: str, **options: object) -> Result:
        packed = script.replace('echo "$head"', f"echo {self.said}")
        return await super().run(packed, **options)  # type: ignore[arg-type]


async def test_a_bundle_of_another_commit_than_the_machine_named_is_rejected(machine: Machine) -> None:
    named = commit(machine.work, {"file": "2\n"})
    commit(machine.work, {"file": "a secret\n"})
    git(machine.work, "push", "-q", "origin", "HEAD:refs/heads/fix")
    shell = cast("Shell", Liar(machine.work, named))
    found = await collect(shell, machine.base, machine.folder / "bundle", name="m", source=outbox_branch("fix"))
    assert found is not None
    await machine.fetch()
    with pytest.raises(GitError, match="doesn't contain its HEAD"):
        await check(machine.ours, found, CommitPolicy())


@pytest.mark.parametrize("kind", ["blob", "tree", "tag of a tree"])
async def test_a_pushed_branch_that_is_no_commit_is_rejected(machine: Machine, kind: str) -> None:
    outbox = machine.folder / ".gibil" / "outbox.git"
    head = commit(machine.work, {"file": "2\n"})
    git(machine.work, "push", "-q", "origin", "HEAD:refs/heads/fix")
    name = git(outbox, "rev-parse", f"{head}:file" if kind == "blob" else f"{head}^{{tree}}")
    if kind.startswith("tag"):
        text = f"object {name}\ntype tree\ntag x\ntagger A <a@b> 1 +0000\n\nx\n"
        name = git(outbox, "mktag", given=text.encode())
    (outbox / "refs/heads/fix").write_text(f"{name}\n")
    (outbox / "packed-refs").unlink(missing_ok=True)
    with pytest.raises(UsageError, match="there is no commit in"):
        await machine.chosen()


async def test_a_pushed_branch_outside_of_the_runs_history_is_rejected(machine: Machine) -> None:
    outbox = machine.folder / ".gibil" / "outbox.git"
    git(machine.work, "checkout", "-q", "--orphan", "other")
    git(machine.work, "commit", "-q", "-m", "unrelated")
    git(outbox, "fetch", "-q", str(machine.work), "+HEAD:refs/heads/fix")
    git(machine.work, "checkout", "-q", "-f", machine.base)
    with pytest.raises(GibilError, match="the history of m was rewritten"):
        await machine.chosen()


@pytest.mark.parametrize(
    "name", ["$(touch${IFS}broken)", "'`touch${IFS}broken`'", ";touch${IFS}broken;", '"&&touch${IFS}broken"']
)
async def test_the_name_of_a_pushed_branch_is_not_executed(machine: Machine, name: str) -> None:
    outbox = machine.folder / ".gibil" / "outbox.git"
    head = commit(machine.work, {"file": "2\n"})
    git(machine.work, "push", "-q", "origin", f"HEAD:refs/heads/{name}")
    git(machine.work, "checkout", "-q", machine.base)
    source, _ = await choose(machine.shell, machine.base, "Tidy", name="m")
    assert source.revision == f"refs/heads/{name}"
    found = await machine.collect(source=source)
    assert found is not None
    assert found.head == head
    assert not [*machine.work.glob("broken"), *outbox.glob("broken")]
