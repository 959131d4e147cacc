"""How an instance ended, for people and for the scheduler: the sentences, the Exit of a failed start, and whether the
engine ran out of memory, read from what it printed.

Each message is one line that says what happened and, where it helps, what to do. Pure; decides nothing.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator, Sequence
from pathlib import PurePath
from typing import Final

from msgspec import Struct

from accelerd.base.errors import AccelError
from accelerd.base.exits import Cause, Exit
from accelerd.base.sizes import human_size
from accelerd.engines.base import LaunchPlan
from accelerd.supervise.homes.child_home import spawn_trouble
from accelerd.supervise.homes.home import HomeError, NoProgram
from accelerd.supervise.process.output import TAIL_LINES

BIND_FAILED: Final = re.compile(r"(couldn't|could not|cannot|failed to) bind|address already in use", re.IGNORECASE)
SHORTAGE_LINES: Final = 300  # that are looked at: an abort prints a backtrace after the words that count
SHORTAGE_CHARACTERS: Final = 160  # characters
# What a runtime or the loader writes just before the end, outside the engine's own log: ggml_abort and assert(), an
# exception that nobody caught, a missing library.
LAST_WORDS: Final = tuple(
    re.compile(pattern)
    for pattern in (
        r"[^\s/]+\.(?:c|cc|cpp|cxx|cu|cuh|h|hpp|m|mm):\d+: .+",
        r"^\s*what\(\): +(?P<exception>.+)",
        r"error while loading shared libraries: .+",
        r"symbol lookup error: .+",
        r"^(?:\w+\.)*[A-Z]\w*(?:Error|Exception): .+",
    )
)
FIRST_WORDS: Final = re.compile(r"^(?:error|fatal)\b.+", re.IGNORECASE)  # of a program that logs without levels


class FailedAllocation(Struct, frozen=True):
    """An allocation that the engine reported as failed."""

    said: str  # in its own words
    wanted: int | None  # bytes, of this one piece


def failed_allocation(plan: LaunchPlan, lines: Sequence[str]) -> FailedAllocation | None:
    """The last failed allocation that the lines report: it may have retried with smaller ones. None: there is none."""
    if any(re.search(pattern, line) for pattern in plan.too_large for line in lines):
        return None
    found: FailedAllocation | None = None
    for line in lines:
        for pattern in plan.out_of_memory:
            match = re.search(pattern, line)
            if match is not None:
                wanted = _bytes_asked_for(match)
                if wanted is not None or found is None:
                    found = FailedAllocation(line[match.start() :].strip()[:SHORTAGE_CHARACTERS], wanted)
                break
    return found


def _bytes_asked_for(match: re.Match[str]) -> int | None:
    groups = match.groupdict()
    if groups.get("bytes"):
        return int(groups["bytes"])
    return int(float(groups["mib"]) * (1 << 20)) if groups.get("mib") else None


def program(plan: LaunchPlan) -> str:
    return PurePath(plan.argv[0]).name


def spawn_failed(plan: LaunchPlan, error: OSError) -> str:
    about = f" {error.filename!r}" if error.filename else ""
    return f"cannot start {program(plan)}:{about} {spawn_trouble(error)}"


def asked(plan: LaunchPlan, cause: Cause, detail: str, age: float) -> str:
    """An end that accelerd asked for."""
    if cause is Cause.STOPPED:
        return f"{program(plan)} was stopped after {age:.1f} s"
    if cause is Cause.UNHEALTHY:
        return f"{program(plan)} answered health checks but no requests" + (f": {detail}" if detail else "")
    if cause is Cause.DEVICE_REMOVED:
        return f"the device that {program(plan)} ran on was removed"
    if cause is Cause.DEVICE_RESET:
        return f"the device that {program(plan)} ran on was reset"
    if cause is Cause.LOAD_TIMEOUT:
        return f"{program(plan)} was ended: {detail or 'not ready in time'} (start_timeout)"
    return detail or f"{program(plan)} was ended: {cause}"


def decisive_line(plan: LaunchPlan, lines: Sequence[str], status: int | None, was_ready: bool) -> str:
    """The line that says why an engine ended by itself; empty where none does. `lines`: since its start, or ready.

    Before it is ready, the first error of its log says why, the others what became of it; a crash has the last word.
    """
    died = _last_words(lines, quoting=not was_ready)
    errors = list(_errors(plan, lines))
    if repeated := died.partition(": ")[2]:  # "CUDA error: out of memory", then "ggml-cuda.cu:97: CUDA error"
        died = next((error for error in reversed(errors) if error.startswith(repeated)), died)
    said = "" if was_ready else next(iter(errors), "")
    crashed = status is not None and status < 0
    found = (died or said) if crashed else (said or died)
    if not found and not was_ready:
        found = next((line for line in lines if FIRST_WORDS.match(line)), "")
    return " ".join(found.split())[:SHORTAGE_CHARACTERS]


def _errors(plan: LaunchPlan, lines: Sequence[str]) -> Iterator[str]:
    """What the engine's log calls an error, without the prefix."""
    for line in lines if plan.notable else ():
        match = re.match(plan.notable, line)
        if match is not None and match.groupdict().get("error"):
            yield " ".join(line[match.end() :].split())


def _last_words(lines: Sequence[str], *, quoting: bool) -> str:
    """`quoting`: exceptions that quote something count, too; of a request it could be the prompt."""
    for line in reversed(lines):
        for pattern in LAST_WORDS:
            if match := pattern.search(line):
                exception = match.groupdict().get("exception")
                if exception is None or quoting or not re.search(r"['\"`]", exception):
                    return exception or match[0]
    return ""


def by_itself(plan: LaunchPlan, status: int | None, age: float, was_ready: bool, strays: str) -> str:
    """An exit that accelerd did not ask for. `status` None: it is not known."""
    when = _when(age, was_ready)
    if status is None:
        return f"{program(plan)} ended {when}"
    if status >= 0:
        hint = f"; it left {strays} behind: it must stay in the foreground" if strays and status == 0 else ""
        return f"{program(plan)} exited with status {status} {when}{hint}"
    hint = " (out of memory, or killed by a person)" if -status == signal.SIGKILL else ""
    return f"{program(plan)} was ended by {_signal_name(-status)} {when}{hint}"


def out_of_memory(plan: LaunchPlan, limit: int | None, peak: int | None, age: float, was_ready: bool) -> str:
    """The kernel or systemd-oomd killed it. `limit`: its memory_max, `peak`: what it was measured to use; bytes."""
    why = f"it reached its memory_max of {human_size(limit)}, or " if limit is not None else ""
    text = f"{program(plan)} was killed {_when(age, was_ready)}, out of memory: {why}the system had too little left"
    return text + _used(peak)


def allocation_failed(plan: LaunchPlan, lack: FailedAllocation, peak: int | None, age: float, was_ready: bool) -> str:
    """It exited because an allocation failed. `peak`: as above."""
    asked = f"an allocation of {human_size(lack.wanted)} failed" if lack.wanted is not None else "an allocation failed"
    return f"{program(plan)} ran out of memory {_when(age, was_ready)}: {asked} ({lack.said}){_used(peak)}"


def _used(peak: int | None) -> str:
    return f"; it had {human_size(peak)} of main memory" if peak else ""


def _when(age: float, was_ready: bool) -> str:
    return f"after {age:.1f} s" + ("" if was_ready else ", before it was ready")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


# --- starts that failed -----------------------------------------------------------------------------------------


def cause_of(error: AccelError, default: Cause = Cause.REFUSED) -> Cause:
    """The cause that the error names among its fields."""
    return next((cause for cause in Cause if cause == error.fields.get("cause")), default)


def refused(error: AccelError, printed: tuple[str, ...]) -> Exit:
    """No plan could be made. `printed` meanwhile, such as by a pull."""
    tail = error.fields.get("tail")
    lines = tuple(map(str, tail))[-TAIL_LINES:] if isinstance(tail, list | tuple) else printed
    return Exit(cause_of(error), error.message, tail=lines)


def not_started(plan: LaunchPlan, error: Exception) -> Exit:
    """The home could not start it: NoProgram, HomeError or OSError."""
    if isinstance(error, NoProgram):
        return Exit(Cause.NO_PROGRAM, str(error))
    if isinstance(error, HomeError):
        return Exit(Cause.SPAWN_FAILED, str(error))
    assert isinstance(error, OSError)
    missing = isinstance(error, FileNotFoundError | PermissionError)
    return Exit(Cause.NO_PROGRAM if missing else Cause.SPAWN_FAILED, spawn_failed(plan, error))
