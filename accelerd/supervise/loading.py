"""Waiting for an instance that loads: until it is ready, cannot become it, or has taken too long without progress.

Watches and tells, ends nothing. May be cancelled at any point.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

from accelerd.base.exits import Cause
from accelerd.base.ports import Clock
from accelerd.engines.base import LaunchPlan
from accelerd.memory.resident import resident, taken_in
from accelerd.supervise import exit_messages
from accelerd.supervise.process.output import OutputRing
from accelerd.supervise.process.processes import ListenerOwner, tcp_owner
from accelerd.supervise.ready import Readiness, ReadinessResult, wait_ready
from accelerd.supervise.waiting import SupervisorLimits, race


class Loading:
    """One instance on its way to readiness. `pids` are its live processes."""

    def __init__(
        self,
        plan: LaunchPlan,
        main: int,
        pids: Callable[[], Awaitable[list[int]]],
        *,
        ring: OutputRing,
        clock: Clock,
        limits: SupervisorLimits,
        proc: Path,
        timeout: float,
        settle: Callable[[], Awaitable[LaunchPlan]] | None = None,
    ) -> None:
        """`timeout`: seconds without progress. `settle`: waits until it is known where it listens; the plan
        with that."""
        self._settle = settle
        self.resident: int | None = None  # bytes, as seen last …
        self.peak: int | None = None  # … and at most
        self.taken_in: int | None = None  # bytes of files, read or mapped; None: not to be had
        self._plan = plan
        self._main = main
        self._pids = pids
        self._ring = ring
        self._clock = clock
        self._limits = limits
        self._proc = proc
        self._timeout = timeout

    async def run(self) -> tuple[Cause, str] | None:
        """None: ready. Else why it is to be ended; PORT_UNAVAILABLE: another program listens at its endpoint."""
        raced = await race(
            self._until_ready(),
            self._out_of_patience(),
        )
        assert raced is not None
        if raced[0] == 1:
            return Cause.LOAD_TIMEOUT, raced[1]
        outcome: ReadinessResult = raced[1]
        verdict = outcome.verdict
        if verdict is Readiness.WITHOUT_MODEL:
            return Cause.WITHOUT_MODEL, exit_messages.without_model(self._plan, outcome.said)
        if verdict is Readiness.FOREIGN:
            return Cause.PORT_UNAVAILABLE, f"another program listens at {self._plan.endpoint}"
        if verdict is not Readiness.READY:
            return Cause.REFUSED, exit_messages.key_trouble(self._plan, verdict)
        return None

    async def _until_ready(self) -> ReadinessResult:
        if self._settle is not None:
            self._plan = await self._settle()
        return await wait_ready(self._plan, self._clock, self._owner, self._is_ours)

    async def _owner(self, port: int) -> ListenerOwner:
        return await asyncio.to_thread(tcp_owner, self._proc, port, await self._pids())

    async def _is_ours(self, pid: int) -> bool:
        return pid == self._main or pid in await self._pids()

    async def _out_of_patience(self) -> str:
        """Returns, with the reason, when loading took too long without progress, or far too long."""
        clock, limits, timeout = self._clock, self._limits, self._timeout
        step = min(max(timeout / 8, 0.02), 1.0)
        began = progress = clock.monotonic()
        printed, peak = self._ring.total, 0
        while True:
            await asyncio.sleep(step)
            held, taken = await asyncio.to_thread(_look, self._proc, await self._pids())
            if taken is not None:
                self.taken_in = max(taken, self.taken_in or 0)
            self.resident = held
            self.peak = max(held, self.peak or 0)
            now = clock.monotonic()
            if self._ring.total > printed or held > peak + limits.growth:
                printed, peak, progress = self._ring.total, max(peak, held), now
            if now - progress >= timeout:
                return f"not ready {now - began:.1f} s after its start, no progress for {timeout:g} s"
            if now - began >= limits.load_cap * timeout:
                return f"not ready {now - began:.1f} s after its start, although it made progress all the time"


def _look(proc: Path, pids: list[int]) -> tuple[int, int | None]:
    """Bytes resident, and bytes of files taken in. Blocking."""
    return resident(proc, pids), taken_in(proc, pids)
