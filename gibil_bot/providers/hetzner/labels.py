"""Labels of a server, which hold all state that we store about a machine at Hetzner. No I/O.

A label's value has at most 63 characters of letters, digits, `-`, `_` and `.`, with a letter or digit at both ends
(https://docs.hetzner.cloud/reference/cloud#labels). Callers' values may be longer or have other characters (`owner/name`, a
title), so such values are escaped and split into several labels `gibil-more.N.KEY`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from datetime import UTC, datetime

from gibil_bot.errors import UsageError
from gibil_bot.model import MachineSpec
from gibil_bot.ssh import host_keys

CREATED_BY = "created-by"
OURS = "gibil-bot"
OWNER = "gibil-owner"
EXPIRES = "gibil-expires"
HOST_KEY = "gibil-host-key"
SPEC = "gibil-spec"
REUSE = "gibil-reuse"
POOLED = "gibil-spare"
TEMPLATE = "gibil-template"
"""Of a snapshot: the name of the template."""

_VALUE = re.compile(r"(?:[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?")
_KEY = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,46}[A-Za-z0-9])?")
_MORE = re.compile(r"gibil-more\.(\d\d)\.(.+)")
_TIME = re.compile(r"[0-9]{1,11}(\.[0-9]{1,6})?")
_PIECE = 60
_RESERVED = frozenset((CREATED_BY, OWNER, EXPIRES, HOST_KEY, SPEC, REUSE, POOLED, TEMPLATE))


def machine_labels(spec: MachineSpec, expires_at: datetime) -> dict[str, str]:
    """Return all labels of a new server. `expires_at` is by Hetzner's clock."""
    return {
        **encode(spec.labels),
        CREATED_BY: OURS,
        OWNER: owner_value(spec.owner),
        EXPIRES: time_value(expires_at),
        HOST_KEY: host_keys.to_label(host_keys.public_line(spec.host_key)),
        SPEC: spec_value(spec),
    }


def owner_value(owner: str) -> str:
    """Return the owner if it is a valid value, else a digest of it: it is only compared."""
    if owner and _VALUE.fullmatch(owner):
        return owner
    return hashlib.sha256(owner.encode()).hexdigest()[:32]


def spec_value(spec: MachineSpec) -> str:
    """Return a digest of the owner and the keys. Two requests with the same name and digest are the same creation."""
    text = "\n".join((spec.owner, spec.authorized_key.strip(), host_keys.public_line(spec.host_key)))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def selector(owner: str | None = None) -> str:
    """Return the label selector of the machines that gibil-bot created (for that owner)."""
    ours = f"{CREATED_BY}={OURS}"
    return ours if owner is None else f"{ours},{OWNER}={owner_value(owner)}"


def time_value(moment: datetime) -> str:
    """Return seconds since 1970 to the microsecond, so that the same moment is read back."""
    return f"{moment.timestamp():.6f}"


def expires_at(labels: Mapping[str, str]) -> datetime | None:
    """Return the expiry by Hetzner's clock, or None if the label is missing or damaged."""
    value = labels.get(EXPIRES, "")
    return datetime.fromtimestamp(float(value), UTC) if _TIME.fullmatch(value) else None


def encode(labels: Mapping[str, str]) -> dict[str, str]:
    """Return the labels with values that Hetzner accepts. Raises UsageError for an invalid key and a value that is too long."""
    encoded: dict[str, str] = {}
    for key, value in labels.items():
        if not _KEY.fullmatch(key) or key in _RESERVED or _MORE.fullmatch(key):
            raise UsageError(f"{key!r} is not a valid label name: use letters, digits, '-', '_' and '.', at most 48 characters")
        if _VALUE.fullmatch(value):
            encoded[key] = value
            continue
        escaped = re.sub(r"[^A-Za-z0-9.-]", lambda match: "".join(f"_{byte:02x}" for byte in match[0].encode()), value)
        pieces = [escaped[start : start + _PIECE] for start in range(0, len(escaped), _PIECE)]
        if len(pieces) > 99:
            raise UsageError(f"the value of label {key!r} is too long ({len(value)} characters); shorten it")
        encoded |= {f"gibil-more.{number:02}.{key}": f"v{piece}v" for number, piece in enumerate(pieces)}
    return encoded


def decode(labels: Mapping[str, str]) -> dict[str, str]:
    """Return the callers' labels, without ours."""
    plain: dict[str, str] = {}
    pieces: dict[str, str] = {}
    for key in sorted(labels):
        if match := _MORE.fullmatch(key):
            pieces[match[2]] = pieces.get(match[2], "") + labels[key][1:-1]
        elif key not in _RESERVED:
            plain[key] = labels[key]
    for key, escaped in pieces.items():
        data = re.sub(rb"_([0-9a-f]{2})", lambda match: bytes([int(match[1], 16)]), escaped.encode())
        plain[key] = data.decode(errors="replace")
    return plain
