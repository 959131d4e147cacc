"""A user's systemd that can be told to misbehave: it runs the programs itself and speaks in a unit's properties."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from accelerd.supervise.homes.user_manager import UNIT_EXISTS, UnitProperty
from accelerd.system.dbus.client import BusError


class FakeUnit:
    def __init__(self, properties: dict[str, Any], process: subprocess.Popen[bytes]) -> None:
        self.properties = properties
        self.process = process


class FakeUserManager:
    """A UserManager. `silent`: no answer to anything; `edit` changes what `show` says; `calls` are remembered."""

    def __init__(self) -> None:
        self.units: dict[str, FakeUnit] = {}
        self.calls: list[tuple[str, str]] = []
        self.silent = False
        self.refuse: BusError | None = None  # the answer to the next start
        self.edit: Callable[[dict[str, Any]], dict[str, Any]] = lambda properties: properties
        self.own_unit: str | None = None
        self.job: str | None = None

    async def start(self, unit: str, properties: Sequence[UnitProperty]) -> None:
        await self._called("start", unit)
        if self.refuse is not None:
            error, self.refuse = self.refuse, None
            raise error
        if unit in self.units:
            raise BusError(f"{unit} was already loaded", UNIT_EXISTS)
        given = {name: value for name, _, value in properties}
        ((path, words, _),) = given["ExecStart"]
        argv = [word.replace("$$", "$") for word in words]
        env = read_environment(Path(given["EnvironmentFiles"][0][0]))
        descriptor = os.open(given["StandardInputFile"], os.O_RDWR)
        try:
            process = subprocess.Popen(  # noqa: ASYNC220
                argv, executable=path, env=env, stdin=descriptor, stdout=descriptor, stderr=descriptor,
                cwd=given["WorkingDirectory"], start_new_session=True,
            )  # fmt: skip
        finally:
            os.close(descriptor)
        self.units[unit] = FakeUnit(given, process)

    async def show(self, unit: str) -> Mapping[str, Any] | None:
        await self._called("show", unit)
        found = self.units.get(unit)
        if found is None:
            return None
        status = found.process.poll()
        code = 0 if status is None else 1 if status >= 0 else 2
        failed = status not in (None, 0, -signal.SIGTERM)
        return self.edit(
            {
                "ActiveState": "active" if status is None else "failed" if failed else "inactive",
                "ActiveEnterTimestampMonotonic": 1,
                "Job": (0, "/"),
                "MainPID": found.process.pid if status is None else 0,
                "ExecMainPID": found.process.pid,
                "ExecMainCode": code,
                "ExecMainStatus": abs(status or 0),
                "Result": "success" if not failed else "exit-code" if code == 1 else "signal",
                "ControlGroup": "",
            }
        )

    async def stop(self, unit: str) -> None:
        await self._called("stop", unit)
        self._kill(unit, signal.SIGTERM)

    async def kill(self, unit: str, number: int) -> None:
        await self._called("kill", unit)
        self._kill(unit, number)

    async def reset_failed(self, unit: str) -> None:
        await self._called("reset_failed", unit)

    async def ref(self, unit: str) -> None:
        await self._called("ref", unit)

    async def unref(self, unit: str) -> None:
        await self._called("unref", unit)
        if unit in self.units and self.units[unit].process.poll() is not None:
            del self.units[unit]

    async def environment(self) -> list[str]:
        await self._called("environment", "")
        return ["PATH=/nowhere", "SESSION=1"]

    async def unit_of(self, pid: int) -> str | None:
        await self._called("unit_of", str(pid))
        return self.own_unit

    async def job_type(self, unit: str) -> str | None:
        await self._called("job_type", unit)
        return self.job

    def close(self) -> None:
        for unit in self.units:
            self._kill(unit, signal.SIGKILL)
            self.units[unit].process.wait()

    def _kill(self, unit: str, number: int) -> None:
        if unit in self.units and self.units[unit].process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(self.units[unit].process.pid, number)

    async def _called(self, what: str, unit: str) -> None:
        await asyncio.sleep(0)
        if self.silent:
            raise BusError(f"cannot {what}: systemd does not answer")
        self.calls.append((what, unit))


def read_environment(path: Path) -> dict[str, str]:
    """EnvironmentFile= as accelerd writes it: double quotes, backslashes."""
    found, rest = {}, path.read_text()
    while rest:
        name, _, rest = rest.partition('="')
        value = ""
        while not rest.startswith('"'):
            if rest.startswith("\\"):
                rest = rest[1:]
            value, rest = value + rest[0], rest[1:]
        found[name] = value
        rest = rest.removeprefix('"\n')
    return found
