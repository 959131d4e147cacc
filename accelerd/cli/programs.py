"""Programs of this machine that accelctl runs, and what `systemctl --user` says of accelerd's units.

Imports subprocess when a program is run, and no sooner: most commands run none.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple, Protocol

from accelerd.base import names
from accelerd.cli.failure import Failure
from accelerd.cli.time_of_day import time_in
from accelerd.system.lock import EXIT_CONFIG

SERVICE: Final = names.SERVICE_UNIT
SOCKET: Final = names.SOCKET_UNIT
REAPER: Final = names.REAPER_UNIT.replace("@", "@failure")  # one of its instances
START: Final = f"systemctl --user start {names.PROGRAM}"
# After failed starts systemd refuses any further one for a while.
START_AGAIN: Final = f"systemctl --user reset-failed {SERVICE} {SOCKET} && systemctl --user restart {SOCKET}"
LISTENING: Final = "active"  # ActiveState of a socket unit that systemd listens on
STARTED: Final = frozenset({"active", "activating", "reloading"})  # that of a service that may be connected to


class ProgramResult(NamedTuple):
    """How a program ended; status 127: there is no such program, 124: it ran longer than it may."""

    status: int
    stdout: str
    stderr: str


class ProgramRunner(Protocol):
    def run(self, argv: Sequence[str], timeout: float = 10.0) -> ProgramResult: ...


class SystemPrograms:
    """Runs programs of this machine. Never raises."""

    def __init__(self, env: Mapping[str, str]) -> None:
        self._env = dict(env)

    def run(self, argv: Sequence[str], timeout: float = 10.0) -> ProgramResult:
        import subprocess

        try:
            done = subprocess.run(
                argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout, env=self._env, check=False
            )
        except OSError as error:
            return ProgramResult(127, "", str(error))
        except subprocess.TimeoutExpired:
            return ProgramResult(124, "", f"took longer than {timeout:g} s")
        out, err = done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
        return ProgramResult(done.returncode, out, err)


class Unit(NamedTuple):
    """systemd's own words: LoadState, UnitFileState, ActiveState."""

    load: str
    file: str
    active: str
    failure: str = ""  # why it could not start
    since: str = ""  # the time of day since when it is in this state


def unit_state(programs: ProgramRunner, unit: str) -> Unit | None:
    """The state of one unit of this user; None: there is no user manager to ask."""
    wanted = "LoadState,UnitFileState,ActiveState,StatusText,StatusErrno,ExecMainStatus,StateChangeTimestampMonotonic"
    command = ["systemctl", "--user", "show", f"--property={wanted}", unit]
    outcome = programs.run(command)
    if outcome.status != 0:
        return None
    found = dict(line.split("=", 1) for line in outcome.stdout.splitlines() if "=" in line)
    failure = found.get("StatusText", "") if found.get("StatusErrno", "0") != "0" else ""
    if failure and found.get("ExecMainStatus") == str(EXIT_CONFIG):
        # systemd keeps these words also when a later start was refused by its limit; the files say what is wrong now
        failure = "the configuration was not valid then"
    load, file, active = (found.get(name, "") for name in ("LoadState", "UnitFileState", "ActiveState"))
    return Unit(load, file, active, failure, _time_of_day(found.get("StateChangeTimestampMonotonic", "")))


def _time_of_day(changed: str) -> str:
    """Of microseconds on the monotonic clock; "" where systemd does not know them."""
    if not changed.isdecimal() or changed == "0":
        return ""
    return time_in(int(changed) / 1e6 - time.monotonic())


def asleep(programs: ProgramRunner) -> bool:
    """Would a connection to the usual socket have systemd start a service that is not running?"""
    socket, service = unit_state(programs, SOCKET), unit_state(programs, SERVICE)
    return bool(socket and service and socket.active == LISTENING and service.active not in STARTED)


class Down(NamedTuple):
    """Why nobody answers on the usual socket, as systemd knows it."""

    message: str  # empty: nothing is wrong with the units
    command: str  # what starts it; empty: no command of systemd does
    hint: str


def why_down(programs: ProgramRunner) -> Down | None:
    """None: systemd knows no reason."""
    socket, service = unit_state(programs, SOCKET), unit_state(programs, SERVICE)
    if socket is None or service is None:
        return None
    if masked := [name for name, unit in ((SOCKET, socket), (SERVICE, service)) if unit.load == "masked"]:
        command = f"systemctl --user unmask {' '.join(masked)} && systemctl --user start {SOCKET}"
        return Down(f"accelerd cannot be started: {' and '.join(masked)} masked in systemd", command, command)
    if "not-found" in (socket.load, service.load):
        hint = f"run {names.PROGRAM} in a terminal, or install the units: accelctl doctor shows the command"
        return Down("accelerd is not running, and its systemd units are not installed", "", hint)
    if "failed" in (socket.active, service.active):
        # What systemd has kept is the cause of then; it may be gone since.
        last = f", last at {service.since}" if service.since else ""
        message = f"accelerd has failed to start{last}{': ' * bool(service.failure)}{service.failure}"
        hint = f"when that is mended: {START_AGAIN}; more: journalctl --user -u {names.PROGRAM} -n 30"
        return Down(message, START_AGAIN, hint)
    if socket.active != LISTENING:
        command = f"systemctl --user start {SOCKET}"
        return Down("", command, f"start it: {command}; at every login: systemctl --user enable {SOCKET}")
    return None


def explain_unreachable(failure: Failure, programs: ProgramRunner) -> None:
    """Say why nobody answers on the usual socket, and what to do, where systemd knows it."""
    if (down := why_down(programs)) is not None:
        failure.message = down.message or failure.message
        failure.hint = down.hint
