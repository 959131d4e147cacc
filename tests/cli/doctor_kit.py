"""A machine for the tests of accelctl doctor: fake programs, no devices, 32 GiB."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from accelerd.base.ports import Roots
from accelerd.cli.checks.base import Check, CheckContext
from accelerd.cli.connect import DaemonClient
from accelerd.cli.programs import ProgramResult
from accelerd.devices.udev import UdevDevice

from .conftest import Ctl

UNITS = Path(__file__).parents[2] / "units/user"
ACTIVE = "LoadState=loaded\nUnitFileState=enabled\nActiveState=active\n"
MISSING = "LoadState=not-found\nUnitFileState=\nActiveState=inactive\n"


class FakePrograms:
    """Programs that print what the test says; all others are not there."""

    def __init__(self, **programs: ProgramResult) -> None:
        self.programs = programs
        self.asked: list[Sequence[str]] = []

    def run(self, argv: Sequence[str], timeout: float = 10.0) -> ProgramResult:
        self.asked.append(argv)
        return self.programs.get(argv[0], ProgramResult(127, "", "no such program"))


class NoDevices:
    def entries(self, subsystem: str) -> Iterable[UdevDevice]:
        return []


def machine(ctl: Ctl, short: Path, tmp_path: Path) -> CheckContext:
    """A machine of 32 GiB with a user manager that knows the units, without a daemon."""
    proc = tmp_path / "proc"
    (proc / "net").mkdir(parents=True)
    (proc / "meminfo").write_text("MemTotal: 33554432 kB\nMemAvailable: 20971520 kB\n")
    roots = Roots.from_env(ctl.env)
    programs = FakePrograms(
        systemctl=ProgramResult(0, ACTIVE, ""),
        loginctl=ProgramResult(0, "yes\n", ""),
        journalctl=ProgramResult(0, "", ""),
    )
    return CheckContext(
        roots=Roots(roots.config_file, roots.runtime, roots.state, roots.cache, roots.home, proc, tmp_path / "sys"),
        env=ctl.env, client=DaemonClient(short / "s"), programs=programs, udev=NoDevices(),
        swap=lambda: (0, 0),
    )  # fmt: skip


def forget(here: CheckContext) -> None:
    """The next check looks at the configuration and the devices again."""
    for name in ("machine", "devices"):
        here.__dict__.pop(name, None)


def only(checks: Iterable[Check]) -> Check:
    [check] = checks
    return check


def levels(checks: Iterable[Check]) -> dict[str, str]:
    return {check.id: check.level for check in checks}


def program(folder: Path, text: str) -> Path:
    path = folder / "llama-server"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path
