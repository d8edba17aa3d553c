"""The entries of a transcript: what an agent's program reports of its work, in one form for all programs.

Everything in it comes from the machine: it is an account, never evidence. What changed is what git says; what was used is what
the proxy counted. `dialects` reads the programs' own streams, `account` shows the entries, and `verdict` judges the end.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, Protocol

from msgspec import Struct

TEXT_LIMIT = 64 << 10
"""Most characters of a text in an entry. Of outputs the end is retained, of other texts the beginning."""
SUBJECT_LIMIT = 4 << 10
"""Most characters of a path or a command."""


class Said(Struct, frozen=True, kw_only=True, tag="said"):
    """The model's words."""

    text: str


class Thought(Struct, frozen=True, kw_only=True, tag="thought"):
    """The model's reasoning, if the program prints it."""

    text: str


class Read(Struct, frozen=True, kw_only=True, tag="read"):
    path: str


class Ran(Struct, frozen=True, kw_only=True, tag="ran"):
    command: str
    exit_status: int | None = None
    """None: the program didn't report it, or the command was stopped."""
    output: str = ""
    """Its end."""


class Changed(Struct, frozen=True, kw_only=True, tag="changed"):
    path: str
    kind: Literal["add", "update", "delete"] = "update"
    patch: str = ""
    """Lines that begin with a space, `-`, `+` or `@`. Empty: the program doesn't report them."""


class Used(Struct, frozen=True, kw_only=True, tag="used"):
    """Any other tool, and the failed calls of those that read and change files."""

    tool: str
    detail: str = ""
    is_error: bool = False


class Retried(Struct, frozen=True, kw_only=True, tag="retried"):
    """A call of the model that failed and was repeated."""

    status: int | None = None
    """Of HTTP. None: the connection failed."""
    text: str = ""


class Printed(Struct, frozen=True, kw_only=True, tag="printed"):
    """Output that is no event: a line of text, a warning of the program, or our note about a line that can't be read."""

    text: str


Reason = Literal["completed", "failed", "max_turns", "budget", "model_error", "loop", "misconfigured", "no_end", "killed"]


class Ended(Struct, frozen=True, kw_only=True, tag="ended"):
    """The end of the program, by its last event and its exit status together.

    `max_turns` and `budget` are the program's own limits, and `loop` its detector of repeated calls. `model_error`: it gave up
    because of its model's API. `misconfigured`: it couldn't start, or was denied what it needed. `no_end`: it exited before its
    last event.
    """

    reason: Reason
    is_success: bool
    text: str = ""
    """The program's own words; for `completed` the agent's last message."""
    status: int | None = None
    """The model API's HTTP status that ended it, by the program's account."""
    turns: int | None = None
    reported_usd: float | None = None
    """The program's own sum. Only to compare with the proxy's."""


Entry = Said | Thought | Read | Ran | Changed | Used | Retried | Printed


class Dialect(Protocol):
    """Reads one program's event stream. No method raises, whatever the machine prints, and memory and entries are bounded."""

    def feed(self, line: bytes) -> Iterable[Entry]:
        """Read one line of standard output without its newline. A line that can't be read is an entry `Printed`, cut."""

    @property
    def has_ended(self) -> bool:
        """Whether the program's last event was seen: it should exit now."""

    def rest(self) -> Iterable[Entry]:
        """Return the entries that are still open at the end of the output: commands without a result, an unfinished text."""

    def end(self, exit_status: int | None, stderr_tail: str = "") -> Ended:
        """Judge the program. `exit_status` None: it was killed, which is fine after its last event."""
