"""A git server over real HTTP: `git http-backend` behind a small threaded server, with credentials like GitHub's.

It serves the bare repositories below one folder. A repository that is listed in `tokens` is private: it needs Basic
credentials `x-access-token:<token>`, as at GitHub. Every request is recorded in `requests`.
"""

from __future__ import annotations

import base64
import http.server
import os
import subprocess
import threading
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from tests.doubles.patience import patient


@dataclass
class GitServer:
    """`with GitServer(folder) as server:` serves until the end of the block, on a free loopback port."""

    folder: Path
    tokens: dict[str, str] = field(default_factory=dict)
    """`owner/name.git` → the token that it needs."""
    requests: list[tuple[str, str | None]] = field(default_factory=list)
    """(path with query, Authorization header)."""
    answer: int | None = None
    """If set, the HTTP status of every response."""
    redirect_to: str | None = None
    """If set, the address to which every request is redirected."""

    def __enter__(self) -> GitServer:
        self._http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_address[1]}"

    def allows(self, path: str, authorization: str | None) -> bool:
        name = "/".join(path.lstrip("/").split("/")[:2])
        token = self.tokens.get(name)
        if token is None:
            return True
        wanted = base64.b64encode(f"x-access-token:{token}".encode()).decode()
        return authorization == f"Basic {wanted}"

    def _handler(self) -> type[http.server.BaseHTTPRequestHandler]:
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def log_message(self, format: str, *arguments: object) -> None:
                """Print nothing: tests read `requests`."""

            def do_GET(self) -> None:
                self._serve(b"")

            def do_POST(self) -> None:
                if self.headers.get("Transfer-Encoding") == "chunked":
                    body = b""
                    while size := int(self.rfile.readline().strip(), 16):
                        body += self.rfile.read(size)
                        self.rfile.readline()
                    self.rfile.readline()
                else:
                    body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
                self._serve(body)

            def _serve(self, body: bytes) -> None:
                authorization = self.headers.get("Authorization")
                server.requests.append((self.path, authorization))
                if server.redirect_to is not None:
                    self.send_response(302)
                    self.send_header("Location", server.redirect_to + self.path)
                    self.end_headers()
                elif server.answer is not None:
                    self.send_error(server.answer)
                elif not server.allows(self.path, authorization):
                    self.send_response(401)
                    self.send_header("WWW-Authenticate", 'Basic realm="GitHub"')
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                else:
                    self._git(body)

            def _git(self, body: bytes) -> None:
                path, _, query = self.path.partition("?")
                environment = {
                    "PATH": os.environ.get("PATH", ""),
                    "GIT_PROJECT_ROOT": str(server.folder),
                    "GIT_HTTP_EXPORT_ALL": "1",
                    "GIT_CONFIG_NOSYSTEM": "1",
                    "GIT_CONFIG_COUNT": "1",
                    "GIT_CONFIG_KEY_0": "safe.directory",
                    "GIT_CONFIG_VALUE_0": "*",
                    "PATH_INFO": path,
                    "QUERY_STRING": query,
                    "REQUEST_METHOD": self.command,
                    "CONTENT_TYPE": self.headers.get("Content-Type", ""),
                    "CONTENT_LENGTH": str(len(body)),
                    "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
                    "GIT_PROTOCOL": self.headers.get("Git-Protocol", ""),
                }
                done = subprocess.run(
                    ["git", "http-backend"], input=body, env=environment, capture_output=True, timeout=patient(60)
                )
                head, _, content = done.stdout.partition(b"\r\n\r\n")
                status, headers = 200, []
                for line in head.decode("latin-1").splitlines():
                    name, _, value = line.partition(": ")
                    if name == "Status":
                        status = int(value.split()[0])
                    else:
                        headers.append((name, value))
                self.send_response(status if head else 500)
                for name, value in headers:
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

        return Handler
