"""A small daemon for tests: the real ProcessSupervisor with units of the real systemd. It obeys JSON lines on its
standard input and tells what happens on its standard output.

    python -m tests.supervise.driver        (as the user whose systemd is used)
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerd.base.exits import Exit
from accelerd.base.ports import Roots, SystemClock
from accelerd.config.model import ModelSpec
from accelerd.engines.base import Endpoint, LaunchPlan
from accelerd.supervise.homes.child_home import ChildHome
from accelerd.supervise.homes.choice import HomeChoice
from accelerd.supervise.homes.home import Home, LaunchRequest, MainProcess
from accelerd.supervise.homes.systemd_home import SystemdHome
from accelerd.supervise.homes.user_manager import UserManager
from accelerd.supervise.supervisor import ProcessSupervisor
from accelerd.supervise.waiting import SupervisorLimits
from accelerd.system.dbus.client import Buses
from tests.supervise.bench import FakeEngine


def tell(**what: Any) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


class Teller:
    """A Listener that tells."""

    def instance_ready(self, instance: int, endpoint: Endpoint, secret: str) -> None:
        tell(event="ready", n=instance, secret=secret, endpoint=str(endpoint))

    def instance_gone(self, instance: int, exit: Exit) -> None:
        tell(event="gone", n=instance, cause=exit.cause, status=exit.status, message=exit.message, tail=list(exit.tail))

    def instance_killing(self, instance: int) -> None:
        tell(event="killing", n=instance)

    def instance_probed(self, instance: int, ok: bool) -> None:
        tell(event="probed", n=instance, ok=ok)


class DyingHome(SystemdHome):
    """The daemon is killed at the moment when it would start the process."""

    async def start(
        self, order: LaunchRequest, on_output: Callable[[bytes], None], on_exit: Callable[[], None]
    ) -> MainProcess:
        os.kill(os.getpid(), signal.SIGKILL)
        return await super().start(order, on_output, on_exit)


class Driver:
    def __init__(self) -> None:
        self.roots = Roots.from_env()
        self.buses = Buses.from_env()
        self.manager = UserManager(self.buses.session)
        kind = DyingHome if "--die-before-spawn" in sys.argv else SystemdHome
        self.homes: dict[str, Home] = {"child": ChildHome(), "systemd": kind(self.manager, self.roots)}
        self.choice = HomeChoice(self.homes, self.manager)
        self.engine = FakeEngine(self.roots.instances)
        self.supervisor = ProcessSupervisor(
            Teller(),
            {"fake": self.engine},
            self.roots,
            SystemClock(),
            homes=self.homes,
            choose=self.choice,
            sink=lambda model, line, level, unit: tell(event="line", model=model, line=line, unit=unit),
            limits=SupervisorLimits(adopt_patience=2.0, leftover_grace=1.0),
        )

    async def run(self) -> None:
        tell(event="up", units=await self.choice.look() is None)
        reader = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        while line := await reader.readline():
            order = json.loads(line)
            tell(reply=await getattr(self, "do_" + order.pop("do"))(**order))
        await self.supervisor.close(10)
        await self.buses.close()

    def spec(self, name: str, mode: str = "", **settings: Any) -> ModelSpec:
        env = {"FAKE_MODE": mode, "FAKE_LOG": str(self.roots.home / "fake.log"), **settings.pop("env", {})}
        return ModelSpec(name, engine="fake", env=tuple(env.items()), **settings)

    async def do_start(self, n: int, argv: list[str] | None = None, **settings: Any) -> None:
        def edit(_: int, plan: LaunchPlan) -> LaunchPlan:
            return plan if argv is None else replace(plan, argv=tuple(argv))

        self.engine.edit = edit
        self.supervisor.start(n, self.spec(**settings))

    async def do_stop(self, n: int) -> None:
        self.supervisor.stop(n)

    async def do_probe(self, n: int) -> None:
        self.supervisor.probe(n)

    async def do_facts(self, n: int) -> dict[str, Any] | None:
        facts = self.supervisor.facts(n)
        if facts is None:
            return None
        return {"pid": facts.pid, "age": SystemClock().monotonic() - facts.started}

    async def do_environment(self) -> dict[str, str]:
        """What the newest plan wanted."""
        return self.engine.plans[-1].env

    async def do_output(self, name: str) -> list[str]:
        return self.supervisor.output(name).lines()

    async def do_adopt(self, n: int, **settings: Any) -> dict[str, Any]:
        """Adopt the survivor of that name, if there is one; end everything else."""
        spec = self.spec(**settings)
        found = await self.supervisor.survivors()
        wanted = [one for one in found if one.record.model == spec.name]
        if wanted:
            self.supervisor.adopt(n, spec, wanted[0])
        told = {one.record.model: {"fits": one.fits(spec), "ready": one.was_ready} for one in found}
        return {"found": told, "ended": await self.supervisor.sweep_leftovers()}

    async def do_adopt_all(self, names: list[tuple[str, int]]) -> int:
        """Adopt the survivors of these names as these instances; end everything else and say how much that was."""
        found = {one.record.model: one for one in await self.supervisor.survivors()}
        for name, n in names:
            self.supervisor.adopt(n, self.spec(name, stop_timeout=0.1), found[name])
        return await self.supervisor.sweep_leftovers()

    async def do_sweep(self) -> int:
        return await self.supervisor.sweep_leftovers()

    async def do_break_bus(self) -> None:
        """As when dbus-daemon ends: whatever it kept for this connection is gone."""
        connection = self.buses.session._connection
        assert connection is not None
        connection._bus.con.close_sync(None)

    async def do_close(self, keep: bool) -> bool:
        return await self.supervisor.close(10, keep=keep)


if __name__ == "__main__":
    os.umask(0o077)
    sys.stderr = (Path(os.environ["HOME"]) / "driver.err").open("a")
    asyncio.run(Driver().run())
