"""The files of runs between hosts: requests by others than the bots of the database, and hosts that answer anything."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import time
from pathlib import Path
from urllib.parse import quote

import httpx
import msgspec
import pytest
from starlette.types import Receive, Scope, Send

from gibil_bot.demo.server import serving
from gibil_bot.errors import HostUnavailable
from gibil_bot.host_api.client import HostClient
from gibil_bot.host_api.signing import MOST_PART_BYTES, SEAL, VALID_S, FileRequest, Signer
from gibil_bot.model import FilePart, Host
from gibil_bot.web.app import create_app
from gibil_bot.wiring import Bot
from tests.doubles.hosts import KEY, SharingHost, sharing_host
from tests.doubles.patience import patient

RUN = "0123456789abcdef"
SECRET = b"what only readers of the repository may see"
WANTED = FileRequest(run_id=RUN, name="0.log", offset=0, most_bytes=100)


async def get(
    host: SharingHost, *tokens: str, run_id: str = RUN, scheme: str = "Bearer", **query: str | int
) -> tuple[int, bytes]:
    asked = {"name": "0.log", "offset": 0, "most": 100, **query}
    headers = [(b"authorization", f"{scheme} {token}".encode("latin-1")) for token in tokens]
    async with httpx.AsyncClient(trust_env=False) as http:
        answer = await http.get(f"{host.host.url}/internal/runs/{run_id}/files", params=asked, headers=headers)
    assert (answer.status_code == 200) == (SEAL in answer.headers)
    return answer.status_code, answer.content


def token(request: FileRequest = WANTED, *, to: str, key: bytes = KEY, after_s: float = 0.0) -> str:
    """Return a token of another host, whose clock is `after_s` ahead."""
    return Signer(key, "other", lambda: time.time() + after_s).token(to, request)


async def test_only_a_fresh_token_for_this_very_request_opens_a_file(tmp_path: Path) -> None:
    async with sharing_host(tmp_path, "ada") as ada:
        ada.write(RUN, "0.log", SECRET)
        ada.write(RUN, "1.log", SECRET)
        me = ada.host.id
        good = token(to=me)
        version, at, nonce, signature = good.split(".")
        rejected = {
            "none": (),
            "malformed": ("x",),
            "cut": (good[:-1],),
            "longer": (f"{good}0",),
            "other digits": (good.replace(at, "\u0661" * len(at)).encode().decode("latin-1"),),
            "another signature": (".".join((version, at, nonce, signature[::-1])),),
            "another nonce": (".".join((version, at, nonce[::-1], signature)),),
            "renewed": (".".join((version, str(int(at) + 1), nonce, signature)),),
            "another key": (token(to=me, key=b"another key".ljust(32)),),
            "another host": (token(to="other"),),
            "another run": (token(FileRequest(run_id="f" * 16, name="0.log", offset=0, most_bytes=100), to=me),),
            "another file": (token(FileRequest(run_id=RUN, name="1.log", offset=0, most_bytes=100), to=me),),
            "another offset": (token(FileRequest(run_id=RUN, name="0.log", offset=1, most_bytes=100), to=me),),
            "another end": (token(FileRequest(run_id=RUN, name="0.log", offset=None, most_bytes=100), to=me),),
            "more": (token(FileRequest(run_id=RUN, name="0.log", offset=0, most_bytes=99), to=me),),
            "expired": (token(to=me, after_s=-VALID_S - 2),),
            "of the future": (token(to=me, after_s=VALID_S + 600),),
            "two": (good, good),
        }
        for kind, tokens in rejected.items():
            status, body = await get(ada, *tokens)
            assert (kind, status, SECRET in body) == (kind, 401, False)
        assert (await get(ada, good, scheme="Basic"))[0] == 401
        status, body = await get(ada, good)
        assert (status, msgspec.msgpack.decode(body, type=FilePart).data) == (200, SECRET)
        status, body = await get(ada, good)
        assert (status, b"the token was used before" in body, SECRET in body) == (401, True, False)


async def test_a_used_token_stays_used_until_it_has_expired(tmp_path: Path) -> None:
    now = [1_000_000.0]
    signer = Signer(KEY, "me", lambda: now[0])
    ahead = Signer(KEY, "other", lambda: now[0] + VALID_S - 1).token("me", WANTED)
    signer.accept(ahead, WANTED)
    for after_s in (0, 1, VALID_S, 2 * VALID_S - 2, 2 * VALID_S, 10 * VALID_S):
        now[0] = 1_000_000.0 + after_s
        signer.accept(signer.token("me", WANTED), WANTED)  # which forgets the expired ones
        with pytest.raises(Exception, match=r"used before|clocks of both hosts"):
            signer.accept(ahead, WANTED)
    assert len(signer._used) < 3


@pytest.mark.parametrize(
    ("run_id", "name"),
    [
        (RUN, "../secret"),
        (RUN, "machine-2/../../secret"),
        (RUN, "/etc/passwd"),
        (RUN, "0.agent.json"),
        (RUN, "events.jsonl"),
        (RUN, "0.log\n"),
        (RUN, "0.log\0"),
        (RUN, "\u0660.log"),
        (RUN, ""),
        ("..", "0.log"),
        (f"{RUN}/../{RUN}", "0.log"),
        (f"../logs/{RUN}", "0.log"),
        ("x", "0.log"),
        (f"{RUN}\n", "0.log"),
        (RUN.upper(), "0.log"),
    ],
)
async def test_even_a_bot_of_the_database_reads_only_files_of_runs(tmp_path: Path, run_id: str, name: str) -> None:
    async with sharing_host(tmp_path, "ada") as ada:
        ada.write(RUN, "0.log", SECRET)
        for other in ("0.agent.json", "events.jsonl", "../secret", "../0.log", "../../0.log"):
            ada.write(RUN, other, SECRET)
        valid = token(FileRequest(run_id=run_id, name=name, offset=0, most_bytes=100), to=ada.host.id)
        status, body = await get(ada, valid, run_id=quote(run_id, safe=""), name=name)
        assert (status in (401, 404), SECRET in body) == (True, False)


async def test_a_query_with_other_values_is_rejected(tmp_path: Path) -> None:
    async with sharing_host(tmp_path, "ada") as ada:
        ada.write(RUN, "0.log", SECRET)
        for query in (
            {"most": 0}, {"most": MOST_PART_BYTES + 1}, {"most": "-1"}, {"most": "1e3"}, {"offset": -1}, {"offset": "9" * 5000},
            {"most": "\u0661"},
        ):  # fmt: skip
            assert (await get(ada, token(to=ada.host.id), **query))[0] == 401
        part = FileRequest(run_id=RUN, name="0.log", offset=10**15 - 1, most_bytes=100)
        assert (await get(ada, token(part, to=ada.host.id), offset=10**15 - 1))[0] == 200


async def test_a_bot_that_others_do_not_reach_has_no_such_route(tmp_path: Path) -> None:
    async with sharing_host(tmp_path, "ada") as ada:
        alone = create_app(Bot(settings=ada.settings, store=ada.store))
        async with serving(alone) as url, httpx.AsyncClient(trust_env=False) as http:
            answer = await http.get(f"{url}/internal/runs/{RUN}/files", params={"name": "0.log", "most": 1})
            assert (answer.status_code, answer.json()["code"]) == (404, "NOT_FOUND")


# --- a host that answers anything


class Hostile:
    """A server in place of a host's bot."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.paths: list[str] = []
        self.sent = 0
        self.signer = Signer(KEY, "hostile")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.paths.append(scope["path"])
        given = dict(scope["headers"])[b"authorization"].decode().removeprefix("Bearer ")
        status, body, headers = 200, msgspec.msgpack.encode(FilePart(data=b"abc", offset=0, size=3)), {}
        seal = self.signer.seal(given, body)
        match self.kind:
            case "never":
                while (await receive())["type"] != "http.disconnect":
                    pass
                return
            case "endless" | "large":
                await send({"type": "http.response.start", "status": 200, "headers": []})
                while self.sent < 2**30:
                    await send({"type": "http.response.body", "body": bytes(65536), "more_body": True})
                    self.sent += 65536
                return
            case "slow":
                await send({"type": "http.response.start", "status": 200, "headers": []})
                await receive()
                while True:
                    await send({"type": "http.response.body", "body": b"x", "more_body": True})
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(0.02):  # less than any limit for the time between two bytes
                            if (await receive())["type"] == "http.disconnect":
                                return
            case "redirect":
                status, headers = 302, {"location": "http://169.254.169.254/latest/meta-data/"}
            case "redirect to itself":
                status, headers = 307, {"location": "/elsewhere"}
            case "compressed":
                body = gzip.compress(bytes(50 * 2**20))
                headers = {"content-encoding": "gzip"}
            case "unsigned":
                seal = ""
            case "signed for another":
                seal = self.signer.seal("another token", body)
            case "not ASCII":
                seal = "\xe9" * 64
            case "no part":
                body = msgspec.msgpack.encode({"data": "text", "offset": 0})
                seal = self.signer.seal(given, body)
            case "nonsense":
                body = msgspec.msgpack.encode(FilePart(data=b"abc", offset=2**62, size=1))
                seal = self.signer.seal(given, body)
            case "deep":
                body = b"\x91" * 900
                seal = self.signer.seal(given, body)
        head = [(name.encode(), value.encode("latin-1")) for name, value in {SEAL: seal, **headers}.items()]
        await send({"type": "http.response.start", "status": status, "headers": head})
        await send({"type": "http.response.body", "body": body})


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("never", "didn't answer within"),
        ("slow", "didn't answer within"),
        ("endless", "it sent more than 1000 bytes"),
        ("redirect", "status 302 and no signature"),
        ("redirect to itself", "status 307 and no signature"),
        ("compressed", "it sent more than 1000 bytes"),
        ("unsigned", "status 200 and no signature"),
        ("signed for another", "status 200 and no signature"),
        ("not ASCII", "status 200 and no signature"),
        ("no part", "invalid part of a file"),
        ("nonsense", "invalid part of a file"),
        ("deep", "invalid part of a file"),
    ],
)
async def test_a_host_that_answers_anything_costs_little_and_is_not_believed(kind: str, why: str) -> None:
    hostile = Hostile(kind)
    async with (
        serving(hostile) as url,
        HostClient(Signer(KEY, "me"), within_s=patient(0.3) if "within" in why else 10) as client,
    ):
        began = time.monotonic()
        with pytest.raises(HostUnavailable, match=why) as caught:
            await client.read(Host(id="hostile", name="eve", url=url), RUN, "0.log", offset=0, most_bytes=1000)
        assert time.monotonic() - began < patient(8)
        assert (hostile.paths, url in caught.value.message) == ([f"/internal/runs/{RUN}/files"], False)
        assert hostile.sent < 2**27


async def test_the_double_is_believed_when_it_answers_as_a_bot() -> None:
    async with serving(Hostile("")) as url, HostClient(Signer(KEY, "me")) as client:
        part = await client.read(Host(id="hostile", name="eve", url=url), RUN, "0.log", offset=0, most_bytes=1000)
        assert part == FilePart(data=b"abc", offset=0, size=3)
