"""A ProcessSupervisor with an engine of fake servers and a listener that remembers and can be awaited."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import secrets
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accelerd.base.exits import Cause, Exit
from accelerd.base.ports import Roots, SystemClock
from accelerd.config.model import ModelSpec
from accelerd.devices.model import Device
from accelerd.engines.base import Dialect, Endpoint, LaunchPlan, Traits
from accelerd.memory.model import Forecast, in_ram
from accelerd.supervise.supervisor import ProcessSupervisor
from tests.ports import free_port

FAKE_SERVER = Path(__file__).parent.parent / "fakes" / "fake_server.py"
PATIENCE = 60.0  # s: only a test that fails waits so long


class FakeEngine:
    """Plans fake servers. `edit(plan number, plan)` may change a plan or raise instead."""

    dialect = Dialect()

    def __init__(self, sockets: Path) -> None:
        self.sockets = sockets
        self.tcp = False
        self.plans: list[LaunchPlan] = []
        self.edit: Callable[[int, LaunchPlan], LaunchPlan] = lambda number, plan: plan
        self.gate: asyncio.Event | None = None  # a plan waits for it

    async def plan(self, spec: ModelSpec, runtime: Path, slots: Sequence[str] = ()) -> LaunchPlan:
        if self.gate is not None:
            await self.gate.wait()
        number = len(self.plans)
        if self.tcp:
            endpoint = Endpoint(port=free_port())
            where = ("--host", "127.0.0.1", "--port", str(endpoint.port))
        else:
            endpoint = Endpoint(unix=str(self.sockets / f"{secrets.token_hex(4)}.sock"))
            where = ("--host", str(endpoint.unix))
        secret = secrets.token_hex(16)
        env = {"PATH": os.environ["PATH"], "LLAMA_API_KEY": secret, **dict(spec.env)}
        # This interpreter rather than the script's own line: quicker, and the same version as the tests'.
        argv = (sys.executable, "-S", "-E", str(FAKE_SERVER), "--alias", spec.name, *where, *spec.extra_args)
        plan = self.edit(number, LaunchPlan(spec.name, argv, env, endpoint, secret, (), notable="."))
        self.plans.append(plan)
        return plan

    async def forecast(self, spec: ModelSpec, devices: Sequence[Device], *, ask: bool) -> Forecast:
        return Forecast((in_ram(0, "a fake server"),))

    def suggest_smaller(self, spec: ModelSpec, room: Mapping[str, int]) -> str:
        return ""

    def traits(self, spec: ModelSpec) -> Traits:
        return Traits(frozenset(("chat", "completions")))

    async def probe(self, plan: LaunchPlan, *, thorough: bool) -> LaunchPlan | None:
        return plan

    async def loaded(self, spec: ModelSpec, plan: LaunchPlan) -> None:
        return


@dataclass
class Heard:
    """A Listener: (what, instance, detail) in order."""

    events: list[tuple[str, int, Any]] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def instance_ready(self, instance: int, endpoint: Endpoint, secret: str) -> None:
        self._add("ready", instance, (endpoint, secret))

    def instance_gone(self, instance: int, exit: Exit) -> None:
        self._add("gone", instance, exit)

    def instance_killing(self, instance: int) -> None:
        self._add("killing", instance, None)

    def instance_probed(self, instance: int, ok: bool) -> None:
        self._add("probed", instance, ok)

    def _add(self, what: str, instance: int, detail: Any) -> None:
        self.events.append((what, instance, detail))
        self.changed.set()

    def of(self, instance: int) -> list[str]:
        return [what for what, number, _ in self.events if number == instance]

    async def wait(self, what: str, instance: int) -> Any:
        """The detail of the first such event. A `gone` that comes instead fails the test."""
        async with asyncio.timeout(PATIENCE):
            while True:
                for heard, number, detail in self.events:
                    if (heard, number) == (what, instance):
                        return detail
                    if number == instance and heard == "gone":
                        raise AssertionError(f"waited for {what}, but: {detail}")
                self.changed.clear()
                await self.changed.wait()


class SupervisorBench:
    """`async with bench:` makes the supervisor and, at the end, closes it."""

    def __init__(self, tmp_path: Path, runtime: Path) -> None:
        self.roots = Roots(tmp_path / "c.toml", runtime, tmp_path, tmp_path, home=tmp_path)
        self.log = tmp_path / "fake.log"
        self.engine = FakeEngine(self.roots.instances)
        self.journal: list[tuple[str, str]] = []
        self.options: dict[str, Any] = {}
        self._numbers = itertools.count(1)

    async def __aenter__(self) -> SupervisorBench:
        self.heard = Heard()
        self.supervisor = ProcessSupervisor(
            self.heard,
            {"fake": self.engine},
            self.roots,
            SystemClock(),
            sink=lambda model, line, level, unit: self.journal.append((model, line)),
            **self.options,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        assert await self.supervisor.close(10)

    def start(self, mode: str = "", name: str = "m", **settings: Any) -> int:
        """Start a fake server with FAKE_MODE; the number of the instance."""
        env = {"FAKE_MODE": mode, "FAKE_LOG": str(self.log), **settings.pop("env", {})}
        number = next(self._numbers)
        self.supervisor.start(number, ModelSpec(name, engine="fake", env=tuple(env.items()), **settings))
        return number

    async def ready(self, number: int) -> None:
        await self.heard.wait("ready", number)

    async def gone(self, number: int) -> Exit:
        """How it ended; checks that the reports were in order and none came twice."""
        exit = await self.heard.wait("gone", number)
        reports = [what for what in self.heard.of(number) if what != "probed"]
        assert reports in (["gone"], ["ready", "gone"], ["killing", "gone"], ["ready", "killing", "gone"])
        assert self.supervisor.facts(number) is None
        return exit

    async def stopped(self, number: int) -> Exit:
        self.supervisor.stop(number, Cause.STOPPED)
        return await self.gone(number)

    def pid(self, number: int) -> int:
        facts = self.supervisor.facts(number)
        assert facts is not None
        assert facts.pid is not None
        return facts.pid

    def recorded(self, event: str) -> list[dict[str, Any]]:
        """What the fake servers wrote to FAKE_LOG."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [record for record in map(json.loads, lines) if record["event"] == event]

    async def until(self, condition: Callable[[], bool]) -> None:
        """For what happens outside this process, where nothing can be awaited."""
        async with asyncio.timeout(PATIENCE):
            while not condition():  # noqa: ASYNC110
                await asyncio.sleep(0.005)


def alive(pid: int) -> bool:
    """Is there a process with this pid that is not a zombie?"""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False
