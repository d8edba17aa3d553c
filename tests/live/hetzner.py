"""Ask a real Hetzner Cloud the five questions that its documentation leaves open, and print a report.

    HCLOUD_TOKEN=… [HCLOUD_READONLY_TOKEN=…] python tests/live/hetzner.py

It needs a project without servers, addresses, firewalls and SSH keys, prints the cost before it starts, asks for
confirmation, and always deletes what it created. Tokens are read from the environment and never printed. It runs
with Python alone. `HCLOUD_ENDPOINT` selects another API, such as the tests' double.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal
from typing import Any

NAME = "gibil-live"
RENAMED = "123"
LOCATION = "nbg1"
IMAGE = "ubuntu-24.04"
KINDS = ("servers", "primary_ips", "firewalls", "ssh_keys")
LONGEST_S = 300
"""The longest duration of a single wait."""

Json = dict[str, Any]


class Stopped(Exception):
    """The run can't continue; the message is the reason."""


class Project:
    """A Hetzner project, over HTTP. `pause_s`: the interval of polling."""

    def __init__(self, endpoint: str, token: str, readonly_token: str | None, pause_s: float) -> None:
        self._endpoint = endpoint.rstrip("/")
        self._token, self.readonly_token = token, readonly_token
        self.pause_s = pause_s
        self.servers: set[int] = set()
        self.addresses: set[int] = set()
        self.stopped_by: str | None = None
        """Set by a signal: from then on only cleanup requests are sent; the current one is waited for."""

    def call(self, method: str, path: str, body: Json | None = None, *, readonly: bool = False) -> tuple[int, Json]:
        """Return the status and the JSON of the response. Raises Stopped if there is none, or after a signal."""
        if self.stopped_by is not None:
            raise Stopped(f"stopped by {self.stopped_by}")
        token = self.readonly_token if readonly else self._token
        request = urllib.request.Request(
            self._endpoint + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Bearer {token}", "Content-Type": "application/json", "User-Agent": "gibil-live"},
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                status, raw = answer.status, answer.read(10**7)
        except urllib.error.HTTPError as error:
            status, raw = error.code, error.read(10**7)
        except OSError as error:
            raise Stopped(f"{method} {path}: no answer ({error})") from None
        try:
            parsed = json.loads(raw or b"{}")
        except ValueError:
            parsed = {}
        return status, parsed if isinstance(parsed, dict) else {}

    def must(self, path: str, key: str) -> Any:
        status, answer = self.call("GET", path)
        if key not in answer:
            raise Stopped(f"GET {path}: {status} {answer.get('error')}")
        return answer[key]

    def show(self, question: str, what: str, value: object) -> None:
        """Print one line of the report."""
        line = f"{question} {what}: {json.dumps(value)}"
        for secret in (self._token, self.readonly_token):
            line = line.replace(secret, "***") if secret else line
        print(line, flush=True)

    def rounds(self, most: int) -> Iterator[int]:
        """Yield a bounded number of rounds, with a pause between them."""
        deadline = time.monotonic() + LONGEST_S
        for number in range(most):
            if number:
                time.sleep(self.pause_s)
            if time.monotonic() > deadline:
                return
            yield number

    def create(self, server_type: str, location: str, **more: Any) -> tuple[int, Json]:
        body = {"name": NAME, "server_type": server_type, "image": IMAGE, "location": location}
        status, answer = self.call("POST", "/servers", {**body, "public_net": {"enable_ipv6": False}, **more})
        if "server" in answer:
            self._remember(answer["server"])
        return status, answer

    def _remember(self, server: Json) -> None:
        self.servers.add(server["id"])
        address = (server["public_net"]["ipv4"] or {}).get("id")
        self.addresses |= {address} if address else set()

    def created(self, server_type: str, location: str, **more: Any) -> Json:
        status, answer = self.create(server_type, location, **more)
        if "server" not in answer:
            raise Stopped(f"cannot create a {server_type} in {location}: {status} {answer.get('error')}")
        return answer

    def finish(self, answer: Json) -> Json:
        """Wait for the action of a response; return it when it has ended."""
        action: Json = answer["action"]
        for _ in self.rounds(LONGEST_S):
            if action["status"] != "running":
                break
            action = self.must(f"/actions/{action['id']}", "action")
        return action

    def delete(self, number: int) -> None:
        """Delete a server; return when it is gone. Raises Stopped."""
        for _ in self.rounds(LONGEST_S):
            status, _answer = self.call("DELETE", f"/servers/{number}")
            if status == 404:
                self.servers.discard(number)
                return
        raise Stopped(f"server {number} is still there; delete it by hand: it costs money")

    def clean(self) -> list[str]:
        """Delete everything that was created; return what couldn't be deleted."""
        self.stopped_by = None
        left = []
        for server in self.must("/servers", "servers"):  # including a server whose creation had no response
            if server["name"] in (NAME, RENAMED):
                self._remember(server)
        for number in tuple(self.servers):
            try:
                self.delete(number)
            except Stopped as error:
                left.append(str(error))
        for kind, numbers in (("primary_ips", self.addresses), ("firewalls", None), ("ssh_keys", None)):
            for thing in self.must(f"/{kind}", kind):
                is_ours = thing["id"] in numbers if numbers is not None else thing["name"] == NAME
                for _ in self.rounds(30 if is_ours else 0):
                    status, _answer = self.call("DELETE", f"/{kind}/{thing['id']}")
                    if status in (200, 204, 404):
                        break
                else:
                    left += [f"{kind} {thing['id']} is still there; delete it by hand"] if is_ours else []
        return left


def absent(project: Project, types: list[Json], x86: str) -> None:
    """Q1: which code does a well-formed request get whose referenced object doesn't exist, and is a field named?"""
    places = {each["name"] for kind in types for each in kind["locations"]}
    elsewhere = next(
        ((kind["name"], place) for kind in types for place in sorted(places - {each["name"] for each in kind["locations"]})),
        None,
    )
    cases: list[tuple[str, str, str, Json]] = [
        ("firewall that doesn't exist", x86, LOCATION, {"firewalls": [{"firewall": 1}]}),
        ("SSH key that doesn't exist", x86, LOCATION, {"ssh_keys": [1]}),
        ("image that doesn't exist", x86, LOCATION, {"image": "no-such-image"}),
        ("location that doesn't exist", x86, "nowhere1", {}),
    ]
    if elsewhere is not None:
        cases.insert(0, (f"{elsewhere[0]}, which {elsewhere[1]} doesn't have", *elsewhere, {}))
    for what, server_type, location, more in cases:
        status, answer = project.create(server_type, location, **more)
        project.show("Q1", what, [status, answer.get("error", "created")])
        for number in tuple(project.servers):
            project.delete(number)


def readonly(project: Project) -> None:
    """Q2: what does a write get with a read-only token, and the write of `gibil doctor` with a proper one?"""
    for is_readonly in (False, True):
        if is_readonly and not project.readonly_token:
            project.show("Q2", "read-only token", "not asked: HCLOUD_READONLY_TOKEN is not set")
            continue
        for body in ({}, {"name": "", "public_key": ""}):
            status, answer = project.call("POST", "/ssh_keys", body, readonly=is_readonly)
            what = f"{'read-only' if is_readonly else 'read and write'} token, POST /ssh_keys {json.dumps(body)}"
            project.show("Q2", what, [status, answer.get("error", "created")])
            if "ssh_key" in answer:
                project.call("DELETE", f"/ssh_keys/{answer['ssh_key']['id']}")


def images(project: Project, types: list[Json], arm: str) -> None:
    """Q3: is the image available for both architectures, and which one does an ARM type get by its name?"""
    found = project.must(f"/images?name={IMAGE}", "images")
    project.show("Q3", IMAGE, [[image["id"], image["architecture"], image["deprecated"]] for image in found])
    for kind in types:
        offered = {each["name"]: each.get("available") for each in kind["locations"]}
        project.show("Q3", f"{kind['name']} ({kind['architecture']}) available", offered)
    status, answer = project.create(arm, LOCATION)
    server = answer.get("server") or {}
    became = (server.get("image") or {}).get("architecture")
    project.show("Q3", f"{arm} with the image {IMAGE}", [status, answer.get("error", became)])
    for number in tuple(project.servers):
        project.delete(number)


def locks(project: Project, x86: str) -> None:
    """Q4: locks during boot, when the firewall is applied, whether the address is deleted, how soon GET returns 404."""
    status, answer = project.call("POST", "/firewalls", {"name": NAME, "rules": []})
    if "firewall" not in answer:
        raise Stopped(f"cannot create a firewall: {status} {answer.get('error')}")
    answer = project.created(x86, LOCATION, firewalls=[{"firewall": answer["firewall"]["id"]}])
    server, number = answer["server"], answer["server"]["id"]
    actions = [answer["action"]["command"], *(each["command"] for each in answer["next_actions"])]
    project.show("Q4", "created", [actions, server["status"], server["locked"], server["public_net"].get("firewalls")])
    addresses = project.must("/primary_ips", "primary_ips")
    project.show("Q4", "address", [[each["auto_delete"], each["assignee_type"]] for each in addresses])
    began, seen = time.monotonic(), None
    for _ in project.rounds(LONGEST_S):
        server = project.must(f"/servers/{number}", "server")
        now = [server["status"], server["locked"], server["public_net"].get("firewalls")]
        status, answer = project.call("DELETE", f"/servers/{number}")
        if [*now, status] != seen:
            seen = [*now, status]
            project.show("Q4", f"after {time.monotonic() - began:.1f} s: status, locked, firewalls, DELETE", seen)
        if "action" in answer:
            break
    began = time.monotonic()
    for _ in project.rounds(60):
        status, answer = project.call("GET", f"/servers/{number}")
        if status == 404:
            project.show("Q4", f"{time.monotonic() - began:.1f} s after DELETE", answer.get("error"))
            break
    addresses = project.must("/primary_ips", "primary_ips")
    project.show("Q4", "addresses after it", [[each["auto_delete"], each["assignee_type"]] for each in addresses])
    project.delete(number)


def rebuild(project: Project, x86: str) -> None:
    """Q5: `{}` as a body, a name of digits, the status after rebuilding a server that is off, locks after an action."""
    answer = project.created(x86, LOCATION)
    number, path = answer["server"]["id"], f"/servers/{answer['server']['id']}"
    project.finish(answer)
    for _ in project.rounds(LONGEST_S):
        server = project.must(path, "server")
        if server["status"] == "running" and not server["locked"]:
            break
    status, answer = project.call("PUT", path, {"name": RENAMED})
    project.show("Q5", f"the name {RENAMED}", [status, answer.get("error", answer.get("server", {}).get("name"))])
    status, answer = project.call("POST", f"{path}/actions/poweroff", {})
    project.show("Q5", "poweroff with the body {}", [status, answer.get("error", answer.get("action", {}).get("status"))])
    if "action" not in answer:
        status, answer = project.call("POST", f"{path}/actions/poweroff")
    _after(project, path, answer, "poweroff")
    _status, answer = project.call("POST", f"{path}/actions/rebuild", {"image": IMAGE, "user_data": "#cloud-config\n"})
    _after(project, path, answer, "rebuild while it was off")
    project.delete(number)


def _after(project: Project, path: str, answer: Json, what: str) -> None:
    if "action" not in answer:
        project.show("Q5", what, answer.get("error"))
        return
    action = project.finish(answer)
    project.show("Q5", f"{what}: the action", [action["status"], action["error"]])
    for _ in project.rounds(5):
        server = project.must(path, "server")
        project.show("Q5", f"after {what}: status, locked", [server["status"], server["locked"]])


def cheapest(types: list[Json], architecture: str) -> Json:
    """Return the cheapest type of this architecture that is available in LOCATION."""
    prices = {
        kind["name"]: Decimal(price["price_hourly"]["net"])
        for kind in types
        for price in kind["prices"]
        if kind["architecture"] == architecture and price["location"] == LOCATION
        for each in kind["locations"]
        if each["name"] == LOCATION and each.get("available", True) and not each["deprecation"]
    }
    if not prices:
        raise Stopped(f"no {architecture} type is to be had in {LOCATION} now; try later")
    name = min(prices, key=lambda each: (prices[each], each))
    return {"name": name, "hourly": prices[name]}


def ask(project: Project, confirmed: Callable[[str], bool]) -> None:
    for kind in KINDS:
        if found := project.must(f"/{kind}", kind):
            raise Stopped(f"this project has {len(found)} {kind}: use an empty one, made for this")
    types = project.must("/server_types?per_page=50", "server_types")
    x86, arm = cheapest(types, "x86"), cheapest(types, "arm")
    pricing = project.must("/pricing", "pricing")
    address = next(
        Decimal(price["price_hourly"]["net"])
        for each in pricing["primary_ips"]
        for price in each["prices"]
        if each["type"] == "ipv4" and price["location"] == LOCATION
    )
    total = 2 * x86["hourly"] + arm["hourly"] + 3 * address
    print(
        f"This creates two {x86['name']} and one {arm['name']} in {LOCATION}, one after another, for minutes each, and deletes"
    )
    print(
        f"them. Started hours are billed whole: {total} {pricing['currency']} net. If Hetzner accepts one of the five requests"
    )
    print(f"that it should refuse, {x86['hourly'] + address} {pricing['currency']} more for each.", flush=True)
    if not confirmed("Type yes to go on: "):
        raise Stopped("not confirmed; nothing was created")
    try:
        absent(project, types, x86["name"])
        readonly(project)
        images(project, types, arm["name"])
        locks(project, x86["name"])
        rebuild(project, x86["name"])
    finally:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)  # continue deleting: whatever remains costs money
        try:
            left = project.clean()
        except Stopped as error:
            left = [f"cannot clean up: {error}; delete servers, addresses, firewalls and keys of this project by hand"]
        for each in left:
            print(each, file=sys.stderr)
        print("Something is left: see above." if left else "Everything that was created is deleted.", flush=True)


def main(arguments: list[str], env: Mapping[str, str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--yes", action="store_true", help="don't ask for confirmation")
    parser.add_argument("--pause", type=float, default=1.0, metavar="SECONDS", help="between two looks at a thing")
    options = parser.parse_args(arguments)
    token = env.get("HCLOUD_TOKEN", "").strip()
    if not token:
        parser.error("HCLOUD_TOKEN is not set: make a token with Read & Write in an empty project")
    endpoint = env.get("HCLOUD_ENDPOINT", "").strip() or "https://api.hetzner.cloud/v1"
    project = Project(endpoint, token, env.get("HCLOUD_READONLY_TOKEN", "").strip() or None, options.pause)

    def stop(number: int, _frame: object) -> None:
        project.stopped_by = signal.Signals(number).name

    def confirmed(question: str) -> bool:
        is_confirmed = options.yes or input(question).strip() == "yes"
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, stop)
        return is_confirmed

    try:
        ask(project, confirmed)
    except (Stopped, EOFError, KeyboardInterrupt) as error:
        print(f"hetzner.py: {error or 'no answer'}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], os.environ))
