"""What a check of `accelctl doctor` is, what it may ask of the machine, and what several checks need to know once."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import accelerd
from accelerd.base.ports import Roots
from accelerd.cli.connect import DaemonClient
from accelerd.cli.failure import Failure
from accelerd.cli.programs import ProgramRunner
from accelerd.devices.udev import UdevSource

Level = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Check:
    """One finding. `fix` is one command, or one change to one file."""

    id: str
    level: Level
    detail: str
    fix: str = ""

    def json(self) -> dict[str, str | None]:
        return {"id": self.id, "level": self.level, "detail": self.detail, "fix": self.fix or None}


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
    def checked(self) -> tuple[Any, list[Any]]:
        """The configuration or None, and its problems."""
        from accelerd import config

        found, problems = config.check(self.roots.config_file, self.roots.home)
        return found, list(problems)

    @cached_property
    def config(self) -> Any:
        """The configuration; the built-in one where the file is not valid."""
        from accelerd.config.model import Config

        return self.checked[0] or Config()

    @staticmethod
    def checkout_tool(name: str) -> str:
        """The path of a script below packaging/, when this runs from a checkout; otherwise empty."""
        path = Path(accelerd.__file__).parent.parent / "packaging" / name
        return str(path) if path.is_file() else ""

    @property
    def user(self) -> str:
        return self.env.get("USER") or self.env.get("LOGNAME") or str(self.uid)
