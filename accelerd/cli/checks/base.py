"""What a check of `accelctl doctor` is, what it may ask of the machine, and what several checks need to know once."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import accelerd
from accelerd.base.ports import Roots, SystemClock
from accelerd.cli.connect import DaemonClient
from accelerd.cli.failure import Failure
from accelerd.cli.local_machine import LocalMachine
from accelerd.cli.programs import ProgramRunner
from accelerd.config import Config
from accelerd.devices.inventory import Inventory
from accelerd.devices.model import Device
from accelerd.devices.udev import UdevSource

Level = Literal["ok", "warn", "fail"]


class Check(NamedTuple):
    """One finding. `fix` is one command, or one change to one file."""

    id: str
    level: Level
    detail: str
    fix: str = ""


def machine_swap() -> tuple[int, int]:
    """Bytes of swap in use, and of all there is."""
    import psutil

    found = psutil.swap_memory()
    return found.used, found.total


@dataclass
class CheckContext:
    """What the checks look at. What several of them need is asked once and kept."""

    roots: Roots
    env: Mapping[str, str]
    client: DaemonClient
    programs: ProgramRunner
    udev: UdevSource | None = None
    python: tuple[int, int, int] | None = None
    uid: int = field(default_factory=os.getuid)
    swap: Callable[[], tuple[int, int]] = machine_swap

    @cached_property
    def status(self) -> dict[str, Any] | Failure:
        """The daemon's status, or why there is none."""
        try:
            return self.client.get("status")
        except Failure as failure:
            return failure

    @cached_property
    def machine(self) -> LocalMachine:
        return LocalMachine(self.roots, SystemClock(), Inventory(self.roots, self.udev))

    @cached_property
    def devices(self) -> list[Device]:
        return self.machine.devices()

    @property
    def config(self) -> Config:
        return self.machine.config

    @staticmethod
    def checkout_tool(name: str) -> str:
        """The path of a script below packaging/, when this runs from a checkout; otherwise empty."""
        path = Path(accelerd.__file__).parent.parent / "packaging" / name
        return str(path) if path.is_file() else ""

    @property
    def linger_command(self) -> str:
        """What lets the user manager run without a login; where polkit is absent only root may do it."""
        if self.uid == 0 or self.programs.run(["pkcheck", "--version"]).status != 127:
            return "loginctl enable-linger"
        return f"sudo loginctl enable-linger {self.user}"

    @property
    def user(self) -> str:
        return self.env.get("USER") or self.env.get("LOGNAME") or str(self.uid)
