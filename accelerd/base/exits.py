"""How an instance ended. The causes are in base/causes.py."""

from __future__ import annotations

from msgspec import Struct

from accelerd.base.causes import PERMANENT as PERMANENT
from accelerd.base.causes import Cause as Cause


class Exit(Struct, frozen=True):
    """How an instance ended, for people and for the restart policy."""

    cause: Cause
    message: str  # one line: "llama-server exited with status 1 after 0.4 s"
    status: int | None = None  # exit status; negative: the signal
    tail: tuple[str, ...] = ()  # the last lines of output, at most 20, printable
    peak: int | None = None  # the most bytes it was seen to use, or asked for at once; None: not known
