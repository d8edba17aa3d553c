"""A Git LFS server that lies or redirects: nothing but the object is accepted, and credentials stay with their server."""

from __future__ import annotations

import hashlib
import http.server
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from gibil_bot.lfs import client
from gibil_bot.lfs.client import LfsError, LfsServer
from gibil_bot.lfs.pointers import Pointer

CONTENT = b"content of the object"
POINTER = Pointer(hashlib.sha256(CONTENT).hexdigest(), len(CONTENT))

Answer = tuple[int, dict[str, str], bytes]


@dataclass
class Server:
    """Answers each path with what `answers` has for it, a value or a function of the request's headers; others with 404."""

    answers: dict[str, Answer | Callable[[dict[str, str]], Answer]] = field(default_factory=dict)
    requests: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    url: str = ""

    def credentials(self, path: str) -> list[str | None]:
        return [headers.get("authorization") for asked, headers in self.requests if asked == path]

    def batch(self, answer: object) -> None:
        self.answers["/objects/batch"] = (200, {}, json.dumps(answer).encode())

    def offer(self, href: str, **more: Any) -> None:
        self.batch({"objects": [{"oid": POINTER.oid, "actions": {"download": {"href": href} | more}}]})


@pytest.fixture
def servers() -> Iterator[tuple[Server, Server]]:
    found, running = [], []
    for server in (Server(), Server()):
        listening = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _handler(server))
        thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        server.url = f"http://127.0.0.1:{listening.server_address[1]}"
        found.append(server)
        running.append((listening, thread))
    yield found[0], found[1]
    for listening, thread in running:
        listening.shutdown()
        listening.server_close()
        thread.join()


def _handler(server: Server) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, format: str, *arguments: object) -> None:
            """Print nothing."""

        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", "0")))
            headers = {name.lower(): value for name, value in self.headers.items()}
            server.requests.append((self.path, headers))
            found = server.answers.get(self.path, (404, {}, b""))
            status, more, body = found(headers) if callable(found) else found
            self.send_response(status)
            for name, value in ({"Content-Length": str(len(body))} | more).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET

    return Handler


async def _token() -> str | None:
    return "Basic secret"


async def download(server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch, *, is_private: bool = True) -> bytes:
    monkeypatch.setattr(client, "PAUSE_S", 0)
    async with LfsServer(server.url, _token, is_private=is_private) as opened:
        async for _, path in opened.download([POINTER], folder):
            return path.read_bytes()
    raise AssertionError("neither an object nor an error")


Pair = tuple[Server, Server]


async def test_credentials_are_sent_only_when_they_are_needed_and_only_to_their_server(
    servers: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, other = servers
    own.offer(f"{other.url}/object")
    offered = own.answers["/objects/batch"]
    other.answers["/object"] = (200, {}, CONTENT)
    assert await download(own, tmp_path, monkeypatch, is_private=False) == CONTENT
    assert own.credentials("/objects/batch") == [None]

    assert isinstance(offered, tuple)
    own.answers["/objects/batch"] = lambda headers: offered if "authorization" in headers else (401, {}, b"")
    assert await download(own, tmp_path, monkeypatch, is_private=False) == CONTENT
    assert own.credentials("/objects/batch") == [None, None, "Basic secret"]
    assert other.credentials("/object") == [None, None]


async def test_credentials_do_not_follow_a_redirect(servers: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own, other = servers
    own.offer(f"{own.url}/object", header={"X-Signature": "signed"})
    own.answers["/object"] = (302, {"Location": f"{other.url}/elsewhere"}, b"")
    other.answers["/elsewhere"] = (302, {"Location": f"{own.url}/back"}, b"")
    own.answers["/back"] = (200, {}, CONTENT)
    assert await download(own, tmp_path, monkeypatch) == CONTENT
    assert own.credentials("/object") == ["Basic secret"]
    assert other.credentials("/elsewhere") == own.credentials("/back") == [None]
    signed = [path for path, headers in own.requests + other.requests if "x-signature" in headers]
    assert signed == ["/object"]


async def test_the_batch_request_is_not_redirected_to_another_host(
    servers: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, other = servers
    own.answers["/objects/batch"] = (307, {"Location": f"{other.url}/objects/batch"}, b"")
    with pytest.raises(LfsError, match="redirects to another host"):
        await download(own, tmp_path, monkeypatch)
    assert other.requests == []
    own.answers["/objects/batch"] = (307, {"Location": "/objects/batch"}, b"")
    with pytest.raises(LfsError, match=r"redirects too often|status 307"):
        await download(own, tmp_path, monkeypatch)


async def test_headers_of_the_answer_cannot_change_the_request_itself(
    servers: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, other = servers
    own.offer(
        f"{other.url}/object", header={"Host": "internal", "Content-Length": "5", "Transfer-Encoding": "chunked", "X-A": "1"}
    )
    other.answers["/object"] = (200, {}, CONTENT)
    assert await download(own, tmp_path, monkeypatch) == CONTENT
    ((_, headers),) = other.requests
    assert headers["host"] in other.url
    assert headers["x-a"] == "1"
    assert not {"content-length", "transfer-encoding"} & set(headers)


LIES: dict[str, object] = {
    "no object": {"objects": []},
    "another object": {"objects": [{"oid": "0" * 64, "actions": {"download": {"href": "http://127.0.0.1:9/"}}}]},
    "no action": {"objects": [{"oid": POINTER.oid}]},
    "an error": {"objects": [{"oid": POINTER.oid, "error": {"code": 404, "message": "x"}}]},
    "another error": {"objects": [{"oid": POINTER.oid, "error": {"code": 507, "message": "\n\u001b[2J"}}]},
    "another transfer": {"transfer": "ssh", "objects": []},
    "another digest": {"hash_algo": "md5", "objects": []},
    "not an object": [1],
    "wrong types": {"objects": [{"oid": POINTER.oid, "actions": {"download": {"href": 5}}}]},
    "deep": json.loads("[" * 400 + "]" * 400),
}
HREFS = (
    "file:///etc/passwd", "ftp://127.0.0.1/x", "//127.0.0.1/x", "/etc/passwd", "", "https://", "http://[::1/x",
    "http://127.0.0.1:99999/x", "http://127.0.0.1:port/x", "http://127.0.0.1/\n", "http://host\0/x", "javascript:1",
    "http://" + "x" * 100_000 + "/",
)  # fmt: skip


@pytest.mark.parametrize("name", LIES)
async def test_a_lying_answer_is_an_error_in_one_line(
    servers: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    own, _ = servers
    own.batch(LIES[name])
    with pytest.raises(LfsError) as raised:
        await download(own, tmp_path, monkeypatch)
    assert raised.value.message.isprintable()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("href", HREFS, ids=range(len(HREFS)))
async def test_an_address_that_is_no_download_is_an_error_in_one_line(
    servers: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, href: str
) -> None:
    own, _ = servers
    own.offer(href)
    with pytest.raises(LfsError) as raised:
        await download(own, tmp_path, monkeypatch)
    assert raised.value.message.isprintable()
    own.offer(f"{own.url}/object")
    own.answers["/object"] = (302, {"Location": href.replace("\n", "").replace("\0", "%00")[:1000]}, b"")
    with pytest.raises(LfsError) as raised:
        await download(own, tmp_path, monkeypatch)
    assert raised.value.message.isprintable()


@pytest.mark.parametrize("value", ["a\nb", "a\r\nX: y", "größer", "\0"])
async def test_an_invalid_header_is_an_error(
    servers: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    own, _ = servers
    own.offer(f"{own.url}/object", header={"X-A": value})
    own.answers["/object"] = (500, {}, b"")
    with pytest.raises(LfsError):
        await download(own, tmp_path, monkeypatch)


@pytest.mark.parametrize("content", [CONTENT[:-1], CONTENT + b"x", CONTENT[:-1] + b"?", b""])
async def test_other_bytes_than_the_object_are_not_accepted(
    servers: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    own, _ = servers
    own.offer(f"{own.url}/object")
    own.answers["/object"] = (200, {}, content)
    with pytest.raises(LfsError, match="isn't that object"):
        await download(own, tmp_path, monkeypatch)
    assert len(own.credentials("/object")) == 3


async def test_the_answer_has_a_limit(servers: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own, _ = servers
    monkeypatch.setattr(client, "_ANSWER_BYTES", 1000)
    own.batch({"objects": [], "padding": "x" * 2000})
    with pytest.raises(LfsError, match="too large"):
        await download(own, tmp_path, monkeypatch)
