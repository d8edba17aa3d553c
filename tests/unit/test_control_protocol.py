"""The control protocol is stable: a daemon of an earlier version may still run machines after an update of the package.

The lines below were recorded from a daemon and a client of protocol 1. A field that is renamed or moved would be dropped
without an error by the other side, so such a change has to increase PROTOCOL.
"""

from __future__ import annotations

import json

import msgspec
import pytest

from gibil_bot.errors import NameTaken, ProviderError, Unavailable
from gibil_bot.providers.local.control_protocol import Answer, Request, error_of, problem_of
from gibil_bot.providers.local.paths import PROTOCOL

MACHINE = (
    '{"provider":"local","id":"m-1","name":"m-1","created_at":"2026-11-26T12:00:00Z","expires_at":"2026-11-26T13:00:00Z",'
    '"endpoint":{"host_key":"ssh-ed25519 AAAA","first_host_key":null,"username":"root","host":null,"port":22,'
    '"unix_path":"/run/gibil/0/1.sock"},"labels":{"run":"7"},"status":"running"}'
)
REQUESTS = [
    '{"verb":"create","spec":{"name":"m-1","owner":"0123456789abcdef","ttl_s":3600,"authorized_key":"ssh-ed25519 AAAA",'
    '"host_key":"-----BEGIN","first_host_key":"","labels":{"run":"7"},"size":"small","image":null,"server_type":null,'
    '"location":null,"memory_mb":512,"disk_mb":2048,"pids":64,"egress_allow":["10.0.0.0/8"],"untrusted":true,"tethered":true}}',
    '{"verb":"get","name":"m-1"}',
    '{"verb":"list","owner":"o"}',
    '{"verb":"extend","name":"m-1","expires_at":"2026-11-26T12:00:00Z"}',
    '{"verb":"destroy","name":"m-1"}',
    '{"verb":"sweep","owner":"o"}',
    '{"verb":"probe"}',
    '{"verb":"usage","name":"m-1"}',
    '{"verb":"refusals","name":"m-1","since":1.5}',
    '{"verb":"restrict_egress","name":"m-1","allow":["a.example:443"]}',
    '{"verb":"lift_egress","name":"m-1"}',
    '{"verb":"cause","name":"m-1"}',
    '{"verb":"ping"}',
    '{"verb":"quit"}',
]
ANSWERS = [
    f'{{"machine":{MACHINE},"done":true}}',
    f'{{"machines":[{MACHINE}]}}',
    '{"names":["m-1"]}',
    '{"capabilities":{"tier":"root","package_installs":true,"several_users":true,"memory_limit":"cgroup-v2",'
    '"disk_limit":"filesystem","cpu_limit":"shares","forged_in_s":0.25,"inherited":["nice value 5"]}}',
    '{"usage":{"memory_limit_mb":512,"memory_used_mb":17,"disk_limit_mb":2048,"disk_used_mb":null}}',
    '{"refusals":{"refused":[{"host":"10.0.0.1","port":80,"itself":false},{"host":"localhost","port":5432,"itself":true}],'
    '"more":true}}',
    '{"cause":{"text":"t","at":"2026-11-26T12:00:00Z"}}',
    '{"count":3}',
    '{"problem":{"kind":"ProviderError","message":"x","remedies":[],"code":"NO_ROOM"}}',
]
RECORDED = [(Request, line) for line in REQUESTS] + [(Answer, line) for line in ANSWERS]


def contains(value: object, recorded: object) -> bool:
    """Return whether the value has every recorded field and its content. Readers ignore additional fields."""
    if isinstance(recorded, dict):
        return isinstance(value, dict) and all(key in value and contains(value[key], recorded[key]) for key in recorded)
    if isinstance(recorded, list):
        return isinstance(value, list) and len(value) == len(recorded) and all(map(contains, value, recorded))
    return value == recorded


@pytest.mark.skipif(PROTOCOL != 1, reason="the messages of protocol 1 were recorded")
@pytest.mark.parametrize(("kind", "line"), RECORDED, ids=[line[:40] for _kind, line in RECORDED])
def test_messages_of_an_earlier_version_are_read_and_written_unchanged(kind: type[msgspec.Struct], line: str) -> None:
    written = msgspec.json.encode(msgspec.json.decode(line, type=kind))
    assert contains(json.loads(written), json.loads(line))


def test_the_daemons_errors_keep_their_kind_code_and_remedies() -> None:
    for error in (NameTaken("x"), Unavailable("x", ("y",)), ProviderError("x", code="NO_ROOM")):
        again = error_of(problem_of(error))
        assert (type(again), again.message, again.code) == (type(error), error.message, error.code)
        assert getattr(again, "remedies", ()) == getattr(error, "remedies", ())
