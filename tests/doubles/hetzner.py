"""A Hetzner Cloud double: its API over HTTP on loopback, stateful, and (hetzner_guests.py) servers that really boot.

What it does, and how we know that Hetzner does the same. Not checked live: *documented* is in Hetzner's reference
(https://docs.hetzner.cloud/reference/cloud, the OpenAPI description of 2026-07-08), *reported* is what others observed,
*inferred* is our reading. live/hetzner.py asks the open questions. Every request is also checked against that description,
with every object closed (hetzner_schema.py): a request that differs is answered 422, and fails its test at the end.

| behaviour | how known | source |
|---|---|---|
| `POST /servers` answers 201 at once; then `initializing`, `off`, `starting`, `running` | documented | reference, Servers |
| a name is unique in the project: 409 `uniqueness_error` | documented | reference, Errors |
| a name is a host name of RFC 1123, also a changed one; user-data has at most 32 KiB | documented | reference, Servers |
| a request of the wrong form: 422 `invalid_input` with `details.fields` | documented | reference, Errors |
| a named object doesn't exist or fit: 422 `invalid_input`, `details` is `{}` | reported | roots/trellis-cli#622, the next |
| a firewall or key that doesn't exist: 422 as above, or 404 (State sets it) | inferred | the same |
| a type that is retired or not sold there: "unsupported location for server type" | reported | autobase-tech/autobase#1403 |
| cx and cax are not sold in the US; prices and traffic differ by location | reported | reference, Server Types, `prices` |
| two images have one name, the first is x86's: 422 "image has incompatible architecture" | inferred | reference, Images |
| 412 `resource_unavailable`, "error during placement" | reported | jenkinsci/hetzner-cloud-plugin#21 |
| a server that can't be placed after all is removed; its action has the error | inferred | reference, Actions, `error` |
| a start that fails leaves the server `off`; so may one that succeeds | reported | hetznercloud/terraform-provider-hcloud#505 |
| 403 `resource_limit_exceeded` with `details.limits`; the names of limits are inferred | documented | reference, Errors |
| 403 `maintenance`; 422 `service_error`; 500 `server_error`; 503 `unavailable` | documented | reference, Errors |
| `GET` lists have 25 entries a page, at most 50, and `next_page` is null on the last | documented | reference, Pagination |
| `GET /actions` needs `id` and has no pages | documented | changelog, 2025-01-30 |
| label selectors; grammar of keys and values, `hetzner.cloud/` is reserved | documented | reference, Labels |
| a firewall is `pending` on a new server, and `applied` later | reported | hetznercloud/packer-plugin-hcloud#209 |
| a firewall is applied to a running server, or removed; 422 if it is already | documented | reference, Firewall Actions |
| 423 `locked` while an action runs | documented | reference, Errors |
| 423 `locked` right after creation | reported | syself/cluster-api-provider-hetzner#754 |
| `poweroff` answers with an action that is `running` | reported | jenkinsci/hetzner-cloud-plugin#92 |
| a server that was off is off after a rebuild (State sets it) | inferred | reference, Rebuild a Server |
| a snapshot is `creating`, then `available` with its `image_size`, for which it is billed | documented | reference, Images |
| a snapshot's disk must fit the server type: 422 | inferred | reference, Images, `disk_size` |
| 423 `protected` | documented | reference, Errors |
| deleting takes a moment (`deleting`), then 404 `not_found` | documented | reference, Servers, `status` |
| addresses created with a server have `auto_delete` (State sets it) | reported | Linuxfabrik/lfops#72, Hetzner's announcement |
| an assigned address cannot be deleted: `must_be_unassigned` | documented | changelog, 2026-05-01 |
| `assignee_type` is `unassigned` when no server has it | documented | changelog, 2026-08-01; the newest text says 2026-09-23 |
| without an SSH key a root password is generated and returned | documented | reference, Create a Server, `root_password` |
| no `datacenter` on servers; `/datacenters` is 410 | documented | changelog, 2026-07-01, 2026-10-01 |
| `RateLimit-Limit/-Remaining/-Reset` on all answers, 3600 an hour, refilled; 429 | documented | reference, Rate Limiting |
| 401 `unauthorized` says "token is required" or "the token you have provided is invalid" | reported | Cauldron, 2026-09-13 |
| writing with a read-only token: 401 `token_readonly`, or 403 `forbidden` (Api sets it) | documented | reference, Errors |
| an unknown path is 404 before the token is checked, a wrong method only after it | reported | Cauldron, 2026-09-13 |
| the first boot runs the user-data by cloud-init; keys of the project go to root | documented | reference, Create a Server |
| metadata over HTTP at 169.254.169.254, below `/hetzner/v1/` | documented | reference, Server Metadata |
| the default route goes over 172.31.1.1 | documented | docs.hetzner.com/cloud/servers/static-configuration |
| the mainboard says `Hetzner` and the server's id | reported | cloud-init, DataSourceHetzner |
| a server that is switched off from inside is `off`, exists, and is billed | documented | docs.hetzner.com/cloud/billing/faq |
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from gibil_bot.demo.server import serving
from gibil_bot.providers.hetzner.provider import HetznerProvider
from tests.doubles.hetzner_routes import Api
from tests.doubles.hetzner_state import State


@dataclass
class HetznerDouble:
    """A running double. Tests read `state` and `api`, and arm faults in them."""

    endpoint: str
    state: State
    api: Api

    @property
    def token(self) -> str:
        return self.api.token

    def provider(self, **more: Any) -> HetznerProvider:
        """Return a provider with short delays: what takes a second at Hetzner takes a few milliseconds here."""
        words: dict[str, Any] = {"endpoint": self.endpoint, "look_every_s": 0.02, "backoff_s": 0.01, **more}
        return HetznerProvider(words.pop("token", self.token), **words)

    def called(self, call: str) -> int:
        return self.api.calls.count(call)


@contextlib.asynccontextmanager
async def hetzner_double(state: State | None = None, **more: Any) -> AsyncIterator[HetznerDouble]:
    """Listen on loopback until the end of the block; then every server is gone."""
    state = state or State()
    api = Api(state, secrets.token_urlsafe(48), secrets.token_urlsafe(48), **more)
    try:
        async with serving(api, date_header=False) as address:
            try:
                yield HetznerDouble(f"{address}/v1", state, api)
                assert not api.findings, "requests that the vendor's description does not allow (hetzner_schema.py)"
            finally:
                for fault in api.faults:
                    if fault.hang is not None:
                        fault.hang.set()
    finally:
        await state.close()
