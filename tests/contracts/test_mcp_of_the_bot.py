"""The bot's /mcp with clients of the official SDKs: the tools for runs, with the permissions of comments."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from mcp.client.session import ClientSession
from mcp.client.streamable_http import streamable_http_client

from gibil_bot.access_tokens import AccessTokens
from gibil_bot.model import TaskResult, TaskStatus, Trust
from gibil_bot.providers.keyring import Keyring
from gibil_bot.runs import person_runs
from tests.attacks.test_trust_of_code import outsiders_fork, own_branch
from tests.doubles.agent import ToolError, opened
from tests.doubles.hosts import sharing_host
from tests.doubles.intake import REPOSITORY, WORKFLOWS, IntakeBot, intake_bot

ONLY_TEST = {"test.yml": WORKFLOWS["test.yml"]}


@contextlib.asynccontextmanager
async def client_of(world: IntakeBot, token: str) -> AsyncIterator[ClientSession]:
    headers = {"Authorization": f"Bearer {token}"}
    async with httpx2.AsyncClient(headers=headers, trust_env=False) as http:
        async with streamable_http_client(f"{world.url}/mcp", http_client=http) as (source, sink):
            async with ClientSession(source, sink) as session:
                await session.initialize()
                yield session


async def call(session: ClientSession, tool: str, **arguments: Any) -> dict[str, Any]:
    return opened(await session.call_tool(tool, arguments))[0]


async def refused(session: ClientSession, tool: str, **arguments: Any) -> tuple[str, str]:
    with pytest.raises(ToolError) as caught:
        await call(session, tool, **arguments)
    return caught.value.code, caught.value.sentence


async def test_a_person_runs_a_workflow_and_reads_and_cancels_it(tmp_path: Path) -> None:
    async with intake_bot(tmp_path, workflows=ONLY_TEST) as world:
        number = await own_branch(world)
        async with client_of(world, world.token("ann")) as session:
            tools = {tool.name for tool in (await session.list_tools()).tools}
            assert tools == {"run_workflow", "get_run", "run_logs", "cancel_run"}
            (view,) = (await call(session, "run_workflow", repository=REPOSITORY, pull_request=number))["runs"]
            assert (view["state"], view["workflow"], view["trust"]) == ("queued", "test", "trusted")
            (run,) = await world.runs()
            assert (run.id, run.source.actor, run.source.trust) == (view["id"], "ann", Trust.TRUSTED)
            assert run.plan.github["event_name"] == "workflow_dispatch"

            folder = world.settings.data_dir / "logs" / run.id
            folder.mkdir(parents=True)
            (folder / "0.log").write_text("hello\n")
            log = await call(session, "run_logs", run_id=run.id, task=0, offset=0)
            assert (log["text"], log["complete"]) == ("hello\n", False)

            assert (await call(session, "cancel_run", run_id=run.id))["was_unfinished"] is True
            assert ((await world.runs())[0]).cancel_reason == "cancelled by ann"
            await world.finish_runs("cancelled")
            assert (await call(session, "get_run", run_id=run.id))["conclusion"] == "cancelled"
            assert (await call(session, "cancel_run", run_id=run.id))["was_unfinished"] is False
        assert world.answers(number) == ""  # the caller has the answers


async def test_the_output_of_a_run_is_read_from_the_host_whose_bot_worked_on_it(tmp_path: Path) -> None:
    async with intake_bot(tmp_path, workflows=ONLY_TEST) as world:
        number, key = await own_branch(world), Keyring(world.settings.data_dir).derive("hosts", "files")
        database_url = world.settings.database_url
        async with (
            sharing_host(tmp_path, "ada", key=key, database_url=database_url) as ada,
            client_of(world, world.token("ann")) as session,
        ):
            await ada.present()
            await call(session, "run_workflow", repository=REPOSITORY, pull_request=number)
            claim = await ada.claims()
            run = claim.run
            ada.write(run.id, "0.log", b"hello from ada\n")
            log = await call(session, "run_logs", run_id=run.id, task=0, offset=0)
            assert (log["text"], log["remark"]) == ("hello from ada\n", "")

            await ada.store.hosts.leave("bot of ada")
            log = await call(session, "run_logs", run_id=run.id, task=0, offset=0)
            assert (log["text"], log["size"]) == ("", 0)  # the database knows of no task that has begun
            begun = TaskResult(index=0, machine_attempt=run.machine_attempt, name="only", status=TaskStatus.RUNNING)
            await ada.store.runs.save_task(claim, begun)
            code, sentence = await refused(session, "run_logs", run_id=run.id, task=0, offset=0)
            assert (code, "may be on ada, whose bot was last seen at" in sentence) == ("HOST_UNAVAILABLE", True)

            mine = world.settings.data_dir / "logs" / run.id / "0.log"
            mine.parent.mkdir(parents=True)
            mine.write_bytes(b"hello")
            log = await call(session, "run_logs", run_id=run.id, task=0, offset=0)
            assert (log["text"], "may be on ada" in log["remark"]) == ("hello", True)

            for login in ("eve", "ghost"):  # who may not read the run doesn't learn on which host it is
                async with client_of(world, world.token(login)) as stranger:
                    assert (await refused(stranger, "run_logs", run_id=run.id))[0] == "RUN_NOT_FOUND"
        await world.store.runs.request_cancel(run.id, "the test ends")


async def test_permissions_are_those_of_comments_and_read_on_every_call(tmp_path: Path) -> None:
    async with intake_bot(tmp_path, workflows=ONLY_TEST) as world:
        number = await own_branch(world)
        world.github.add_user("eve")
        world.github.set_permission(REPOSITORY, "eve", "read")
        async with client_of(world, world.token("eve")) as eve, client_of(world, world.token("ann")) as ann:
            await eve.list_tools()
            code, sentence = await refused(eve, "run_workflow", repository=REPOSITORY, pull_request=number)
            assert (code, "need write permission" in sentence) == ("REFUSED", True)
            (view,) = (await call(ann, "run_workflow", repository=REPOSITORY, pull_request=number))["runs"]
            assert (await call(eve, "get_run", run_id=view["id"]))["id"] == view["id"]
            assert (await refused(eve, "cancel_run", run_id=view["id"]))[0] == "REFUSED"
            world.github.set_permission(REPOSITORY, "ann", "read")
            assert (await refused(ann, "cancel_run", run_id=view["id"]))[0] == "REFUSED"
            assert (await refused(ann, "run_workflow", repository=REPOSITORY, pull_request=number))[0] == "REFUSED"
        assert len(await world.runs()) == 1


async def test_what_a_person_may_not_see_does_not_exist(tmp_path: Path) -> None:
    async with intake_bot(tmp_path, workflows=ONLY_TEST) as world:
        number = await own_branch(world)
        async with client_of(world, world.token("ann")) as ann, client_of(world, world.token("nemo")) as nemo:
            (view,) = (await call(ann, "run_workflow", repository=REPOSITORY, pull_request=number))["runs"]
            for repository in (REPOSITORY, "ada/none", "../x", "ada/engine/pulls", ""):
                code, sentence = await refused(nemo, "run_workflow", repository=repository, pull_request=number)
                assert code in ("NOT_FOUND", "GITHUB"), sentence
            for tool in ("get_run", "run_logs", "cancel_run"):
                assert (await refused(nemo, tool, run_id=view["id"]))[0] == "RUN_NOT_FOUND"
                assert (await refused(ann, tool, run_id="0" * 20))[0] == "RUN_NOT_FOUND"


async def test_a_scope_allows_only_its_tools(tmp_path: Path) -> None:
    async with intake_bot(tmp_path, workflows=ONLY_TEST) as world:
        number = await own_branch(world)
        async with client_of(world, world.token("ann", "runs:read")) as session:
            assert (await refused(session, "run_workflow", repository=REPOSITORY, pull_request=number))[0] == "SCOPE"
            assert (await refused(session, "cancel_run", run_id="x"))[0] == "SCOPE"
            assert (await refused(session, "get_run", run_id="x"))[0] == "RUN_NOT_FOUND"
        assert await world.runs() == []


async def test_a_request_follows_the_trust_rules_of_comments(tmp_path: Path) -> None:
    async with intake_bot(tmp_path, workflows=ONLY_TEST) as world:
        number = await outsiders_fork(world)
        await world.handled()
        async with client_of(world, world.token("ann")) as session:
            code, sentence = await refused(session, "run_workflow", repository=REPOSITORY, pull_request=number)
            assert (code, "approve" in sentence) == ("REFUSED", True)
        await world.handled()
        assert await world.runs() == []
        assert [conclusion for _, conclusion in world.approvals(number)] == ["action_required"]


async def test_another_head_than_the_expected_one_does_not_run(tmp_path: Path) -> None:
    async with intake_bot(tmp_path, workflows=ONLY_TEST) as world:
        number = await own_branch(world)
        ask = {"repository": REPOSITORY, "pull_request": number}
        async with client_of(world, world.token("ann")) as session:
            assert (await refused(session, "run_workflow", **ask, sha="0" * 40))[0] == "REFUSED"
            (view,) = (await call(session, "run_workflow", **ask))["runs"]
            (again,) = (await call(session, "run_workflow", **ask, sha=view["sha"]))["runs"]
            assert again["sha"] == view["sha"]


async def test_errors_reach_the_model_as_text(tmp_path: Path) -> None:
    async with intake_bot(tmp_path, {"GIBIL_COMMANDS_PER_HOUR": "2"}, workflows=ONLY_TEST) as world:
        number = await own_branch(world)
        ask = {"repository": REPOSITORY, "pull_request": number}
        async with client_of(world, world.token("ann")) as session:
            await session.list_tools()
            code, sentence = await refused(session, "run_workflow", **ask, workflow="tset")
            assert (code, sentence.startswith("`/gibil tset` is unknown")) == ("REFUSED", True)
            assert (await refused(session, "run_workflow", **ask, workflow=""))[0] == "USAGE"
            assert (await refused(session, "run_workflow", **ask, inputs={"a": "b\x1b[2J"}))[0] == "USAGE"
            assert (await refused(session, "run_workflow", repository=REPOSITORY, pull_request=999))[0] == "NOT_FOUND"
            code, sentence = await refused(session, "run_workflow", **ask, inputs={"nope": "1"})
            assert (code, "nope" in sentence) == ("REFUSED", True)
            code, sentence = await refused(session, "run_workflow", **ask)
            assert (code, "has reached the limit of 2 commands an hour" in sentence) == ("REFUSED", True)
            assert (await refused(session, "vm_bash", command="id"))[0] == "USAGE"
        assert await world.runs() == []


async def test_rejected_requests_are_limited_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(person_runs, "ATTEMPTS_PER_HOUR", 2)
    async with intake_bot(tmp_path, workflows=ONLY_TEST) as world:
        async with client_of(world, world.token("ann")) as ann, client_of(world, world.token("ada")) as ada:
            ask = {"repository": "ada/none", "pull_request": 1}
            codes = [(await refused(ann, "run_workflow", **ask))[0] for _ in range(3)]
            assert codes == ["NOT_FOUND", "NOT_FOUND", "REFUSED"]
            assert (await refused(ada, "run_workflow", **ask))[0] == "NOT_FOUND"


async def test_a_revoked_token_ends_an_open_client(tmp_path: Path) -> None:
    async with intake_bot(tmp_path, workflows=ONLY_TEST) as world:
        token = world.token("ann")
        async with client_of(world, token) as session:
            await session.list_tools()
            AccessTokens(world.settings.data_dir).revoke(token.split("_")[1])
            with pytest.raises(Exception, match=r"401|nauthorized|rejected|failed|error"):
                await session.list_tools()


async def test_without_a_token_nothing_is_served(tmp_path: Path) -> None:
    async with intake_bot(tmp_path, workflows=ONLY_TEST) as world:
        async with httpx2.AsyncClient(trust_env=False) as http:
            body = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
            assert (await http.post(f"{world.url}/mcp", json=body)).status_code == 401
            assert (await http.get(f"{world.url}/mcp")).status_code == 401
            good = {"Authorization": f"Bearer {world.token('ann')}"}
            for headers, status in (({"Origin": "https://evil.example"}, 403), ({"Host": "evil.example"}, 421)):
                answer = await http.post(f"{world.url}/mcp", json=body, headers={**good, **headers})
                assert answer.status_code == status
            # A stream without an end would take one of the webhook's connections.
            stream = await http.get(f"{world.url}/mcp", headers={**good, "Accept": "text/event-stream"})
            assert (stream.status_code, stream.headers["allow"]) == (405, "POST")
            long = await http.post(f"{world.url}/mcp", content=b"x" * (2 * 1024 * 1024), headers=good)
            assert long.status_code == 413
            assert (await http.get(f"{world.url}/mcp/x", headers=good)).status_code == 404
