"""What becomes of an instance that could not be started: from errors to the Exit that people and the scheduler see.

Pure. The sentences themselves are those of words.py.
"""

from __future__ import annotations

import re
from typing import Final

from accelerd.base.errors import AccelError
from accelerd.base.exits import Cause, Exit
from accelerd.engines.base import LaunchPlan
from accelerd.supervise import exit_messages as exit_messages
from accelerd.supervise.homes.home import HomeError
from accelerd.supervise.process.output import TAIL_LINES
from accelerd.supervise.process.spawn import NoProgram

BIND_FAILED: Final = re.compile(r"(couldn't|could not|cannot|failed to) bind|address already in use", re.IGNORECASE)


def cause_of(error: AccelError, default: Cause = Cause.REFUSED) -> Cause:
    """The cause that the error names among its fields."""
    return next((cause for cause in Cause if cause == error.fields.get("cause")), default)


def refused(error: AccelError) -> Exit:
    """No plan could be made."""
    tail = error.fields.get("tail")
    lines = tuple(map(str, tail))[-TAIL_LINES:] if isinstance(tail, list | tuple) else ()
    return Exit(cause_of(error), error.message, tail=lines)


def unstarted(plan: LaunchPlan, error: Exception) -> Exit:
    """The home could not start it: NoProgram, HomeError or OSError."""
    if isinstance(error, NoProgram):
        return Exit(Cause.NO_PROGRAM, str(error))
    if isinstance(error, HomeError):
        return Exit(Cause.SPAWN_FAILED, str(error))
    assert isinstance(error, OSError)
    missing = isinstance(error, FileNotFoundError | PermissionError)
    return Exit(Cause.NO_PROGRAM if missing else Cause.SPAWN_FAILED, exit_messages.spawn_failed(plan, error))
