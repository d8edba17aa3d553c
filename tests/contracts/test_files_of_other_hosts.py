"""Files of a run whose hosts share a database: found on the host that has them, or the error names that host."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path
from typing import cast

import pytest
from msgspec.structs import replace

from gibil_bot.errors import HostUnavailable
from gibil_bot.host_api.signing import Signer
from gibil_bot.model import CommitPlan, CommitProgress, FilePart, Run
from gibil_bot.runs.run_commits import CommitSteps, RunCommits
from gibil_bot.runs.run_files import RunFiles
from tests.contracts.store_nouns import new_run
from tests.doubles.hosts import SharingHost, two_hosts

RUN = "0123456789abcdef"


async def read(by: SharingHost, run: Run, name: str = "0.log", offset: int | None = 0, most: int = 100) -> tuple[bytes, str]:
    part, remark = await by.files.read(run.id, run.hosts, name, offset=offset, most_bytes=most)
    return b"" if part is None else part.data, remark


async def test_output_is_read_from_the_host_that_worked_on_the_run(tmp_path: Path) -> None:
    async with two_hosts(tmp_path) as (ada, bob):
        run = await ada.works_on(new_run(RUN))
        assert run.hosts == (ada.host.id,)
        ada.write(RUN, "0.log", b"one\ntwo\n")
        ada.write(RUN, "machine-2/0-1.log", b"second machine")
        ada.write(RUN, "1.2.events", b"{}\n")
        ada.write(RUN, "1.10.events", b"{} {}\n")
        for reader in (ada, bob):
            assert await read(reader, run) == (b"one\ntwo\n", "")
            assert await read(reader, run, offset=4, most=2) == (b"tw", "")
            assert await read(reader, run, offset=None, most=4) == (b"two\n", "")
            assert await read(reader, run, offset=999) == (b"", "")
            assert await read(reader, run, "machine-2/0-1.log") == (b"second machine", "")
            assert await read(reader, run, "1.transcript") == (b"{} {}\n", "")
            assert await read(reader, run, "7.log") == (b"", "")


async def test_the_longest_copy_is_read_of_a_run_that_another_host_continued(tmp_path: Path) -> None:
    async with two_hosts(tmp_path) as (ada, bob):
        run = replace(await ada.works_on(new_run(RUN)), hosts=(ada.host.id, bob.host.id))
        ada.write(RUN, "0.log", b"before the move\n")
        ada.write(RUN, "1.log", b"beg")
        bob.write(RUN, "1.log", b"beginning and end\n")
        for reader in (ada, bob):
            assert await read(reader, run, "0.log") == (b"before the move\n", "")
            assert await read(reader, run, "1.log") == (b"beginning and end\n", "")


@pytest.mark.parametrize(
    ("is_away", "url", "why"),
    [
        (True, None, r"may be on ada, whose bot was last seen at \d{4}-.* UTC: start it there"),
        (False, "", "may be on ada: set GIBIL_BOT_URL there to the address"),
        (False, "ftp://ada.example", "ada can't be reached at its GIBIL_BOT_URL: it isn't an http"),
        (False, "http://127.0.0.1:1", "ada can't be reached at its GIBIL_BOT_URL: "),
        (False, "http://[", "ada can't be reached at its GIBIL_BOT_URL: "),
    ],
)
async def test_an_error_names_the_host_that_cannot_be_asked(tmp_path: Path, is_away: bool, url: str | None, why: str) -> None:
    async with two_hosts(tmp_path) as (ada, bob):
        run = await ada.works_on(new_run(RUN))
        ada.write(RUN, "0.log", b"hello")
        await ada.present(url)
        if is_away:
            await ada.store.hosts.leave("bot of ada")
        with pytest.raises(HostUnavailable, match=rf"0\.log of the run {RUN} isn't on this host\. .*{why}"):
            await read(bob, run)
        assert await read(ada, run) == (b"hello", "")
        both = replace(run, hosts=(ada.host.id, bob.host.id))
        bob.write(RUN, "0.log", b"hel")
        data, remark = await read(bob, both)
        assert (data, "ada" in remark) == (b"hel", True)


async def test_a_host_that_the_database_has_forgotten_is_named_by_its_id(tmp_path: Path) -> None:
    async with two_hosts(tmp_path) as (_, bob):
        with pytest.raises(HostUnavailable, match="may be on the host 00000000000000aa"):
            await bob.files.read(RUN, ("00000000000000aa",), "0.log", offset=0, most_bytes=10)


async def test_one_host_alone_asks_no_other(tmp_path: Path) -> None:
    files = RunFiles(tmp_path)
    assert await files.read(RUN, ("0", "1"), "0.log", offset=0, most_bytes=10) == (None, "")
    assert await files.copy(RUN, ("0", "1"), ["changes.json"], tmp_path / "into", most_bytes=10) is None


async def test_files_are_copied_in_parts_and_completely_or_not_at_all(tmp_path: Path) -> None:
    async with two_hosts(tmp_path) as (ada, bob):
        content = bytes(range(256)) * 40_000  # more than two parts
        ada.write(RUN, "changes.bundle", content)
        ada.write(RUN, "changes.json", b"{}")
        hosts, names, into = (ada.host.id,), ("changes.json", "changes.bundle"), tmp_path / "into"
        assert await bob.files.copy(RUN, hosts, names, into, most_bytes=len(content)) == into
        assert (into / "changes.bundle").read_bytes() == content
        assert await ada.files.copy(RUN, hosts, names, into, most_bytes=1) == ada.logs / RUN
        other = tmp_path / "other"
        with pytest.raises(HostUnavailable, match=rf"bundle on ada is too large to be copied: it has {len(content)} b"):
            await bob.files.copy(RUN, hosts, ("changes.bundle",), other, most_bytes=len(content) - 1)
        assert list(other.iterdir()) == []
        assert await bob.files.copy(RUN, hosts, ("changes.patch",), other, most_bytes=9) is None


async def test_only_wanted_copies_are_returned(tmp_path: Path) -> None:
    async with two_hosts(tmp_path) as (ada, bob):
        ada.write(RUN, "changes.json", b"old")
        bob.write(RUN, "changes.json", b"new")
        hosts = (ada.host.id, bob.host.id)
        for wanted in (b"old", b"new"):
            for by in (ada, bob):
                folder = await by.files.copy(
                    RUN,
                    hosts,
                    ("changes.json",),
                    tmp_path / by.host.name / "copies",
                    most_bytes=9,
                    are_wanted=lambda folder, wanted=wanted: (folder / "changes.json").read_bytes() == wanted,  # type: ignore[misc]
                )
                assert folder is not None
                assert (folder / "changes.json").read_bytes() == wanted


async def test_the_report_has_the_patch_that_an_earlier_host_wrote(tmp_path: Path) -> None:
    async with two_hosts(tmp_path) as (ada, bob):
        claim = await bob.claims(new_run(RUN))
        found = CommitProgress(phase="patch", patch=True, commits=1, message="It was too late.")
        claim = replace(claim, run=replace(claim.run, hosts=(ada.host.id, bob.host.id), commit=found))
        ada.write(RUN, "changes.patch", b"From x\n")
        await ada.store.hosts.leave("bot of ada")

        def commits() -> RunCommits:
            plan, folder = CommitPlan(message="Tidy"), bob.logs / RUN
            return RunCommits(cast("CommitSteps", None), bob.store.runs, claim, plan, folder, redact=str, files=bob.files)

        away = commits()
        for _ in range(2):
            assert await away.patch() == ""
            assert away.progress is not None
            assert away.progress.message.startswith("It was too late. changes.patch of the run")
            assert away.progress.message.count("It may be on ada, whose bot was last seen at") == 1
        stored = await bob.store.runs.get(RUN)
        assert stored is not None
        assert stored.commit == away.progress
        await ada.present()
        assert await commits().patch() == "From x\n"
        await ada.store.hosts.leave("bot of ada")
        assert await commits().patch() == "From x\n"  # bob has it now


async def test_an_older_patch_of_this_host_is_not_reported(tmp_path: Path) -> None:
    """The run was here, then elsewhere, and is here again."""
    async with two_hosts(tmp_path) as (ada, bob):
        claim = await bob.claims(new_run(RUN))
        newer = b"From newer\n"
        found = CommitProgress(phase="patch", patch=True, patch_digest=hashlib.sha256(newer).hexdigest(), commits=1)
        claim = replace(claim, run=replace(claim.run, hosts=(bob.host.id, ada.host.id, bob.host.id), commit=found))
        bob.write(RUN, "changes.patch", b"From older\n")
        plan, folder = CommitPlan(message="Tidy"), bob.logs / RUN
        commits = RunCommits(cast("CommitSteps", None), bob.store.runs, claim, plan, folder, redact=str, files=bob.files)
        assert await commits.patch() == ""
        ada.write(RUN, "changes.patch", newer)
        assert await commits.patch() == newer.decode()


async def test_large_parts_are_signed_and_checked_outside_the_event_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[int] = []
    seal = Signer.seal

    def noted(signer: Signer, token: str, body: bytes) -> str:
        threads.append(threading.get_ident())
        return seal(signer, token, body)

    monkeypatch.setattr(Signer, "seal", noted)
    async with two_hosts(tmp_path) as (ada, bob):
        content = b"x" * 300_000
        ada.write(RUN, "changes.bundle", content)
        into = tmp_path / "into"
        assert await bob.files.copy(RUN, (ada.host.id,), ("changes.bundle",), into, most_bytes=len(content)) == into
    assert threads
    assert threading.get_ident() not in threads


class Growing:
    """A host whose file is another one in each answer."""

    async def read(self, host: object, run_id: str, name: str, *, offset: int | None, most_bytes: int) -> FilePart:
        assert offset is not None
        return FilePart(data=b"ab", offset=offset, size=10 + offset)


async def test_a_file_that_changes_while_it_is_copied_is_an_error(tmp_path: Path) -> None:
    async with two_hosts(tmp_path) as (ada, bob):
        files = RunFiles(bob.logs, bob.host.id, bob.store.hosts, Growing())
        with pytest.raises(HostUnavailable, match=r"ada answered with parts of changes\.patch that don't fit together"):
            await files.copy(RUN, (ada.host.id,), ("changes.patch",), tmp_path / "into", most_bytes=100)
        assert list((tmp_path / "into").iterdir()) == []
