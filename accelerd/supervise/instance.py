"""One start of one model, from its plan to the proof that nothing of it is left. One task lives this life.

Owns the child and its phases; never decides what to run or whether to try again later: that is the scheduler's. The
only retry here is another port when the planned one was taken.
"""

from __future__ import annotations

import asyncio
import logging
import re
import signal
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from accelerd import names
from accelerd.config.model import ModelSpec
from accelerd.engines.base import Engine, LaunchPlan
from accelerd.errors import AccelError
from accelerd.instances import Cause, Exit, Facts, Listener
from accelerd.ports import Clock, Roots
from accelerd.supervise import memory, words
from accelerd.supervise.http_probe import ProbeError, status
from accelerd.supervise.limits import Limits
from accelerd.supervise.listen_owner import Owner, tcp_owner
from accelerd.supervise.output import TAIL_LINES, JournalFeed, OutputRing
from accelerd.supervise.processes import Mark, ProcessTable, describe
from accelerd.supervise.race import race
from accelerd.supervise.ready import Verdict, wait_ready
from accelerd.supervise.spawn import Child, NoProgram, Spawner, find_program
from accelerd.supervise.sweep import prepare_socket, remove_socket, sweep
from accelerd.system.records import event

log = logging.getLogger(__name__)

_BIND_FAILED: Final = re.compile(r"(couldn't|could not|cannot|failed to) bind|address already in use", re.IGNORECASE)


@dataclass(frozen=True)
class House:
    """What all instances share."""

    listener: Listener
    roots: Roots
    clock: Clock
    spawner: Spawner
    table: ProcessTable
    sink: Callable[[str, str], None] | None
    limits: Limits


@dataclass(frozen=True)
class Ending:
    """Why an instance is to end, or has ended by itself (`cause` None)."""

    cause: Cause | None
    message: str = ""
    port_taken: bool = False


class Instance:
    """See the module's text. `stop`, `kill` and `probe` return at once."""

    def __init__(
        self, number: int, spec: ModelSpec, engine: Engine, mark: Mark, ring: OutputRing, house: House
    ) -> None:
        self.number = number
        self.spec = spec
        self.ring = ring
        self.line_from = ring.total  # position in the ring where this instance's output begins
        self.resident: int | None = None  # bytes, as seen last while it loaded
        self._engine = engine
        self._mark = mark
        self._house = house
        self._started = house.clock.monotonic()
        self._spawned = self._started
        self._plan: LaunchPlan | None = None
        self._child: Child | None = None
        self._feed: JournalFeed | None = None
        self._wake = asyncio.Event()  # told to stop, or the child has exited
        self._kill = asyncio.Event()
        self._probe_asked = asyncio.Event()
        self._stop: Ending | None = None
        self._terminated = False
        self._killing_told = False
        self._ready = False

    # --- from outside -----------------------------------------------------------------------------------------

    def stop(self, cause: Cause, message: str = "") -> None:
        """End it, in whatever phase it is. Only the first call counts."""
        if self._stop is None:
            self._stop = Ending(cause, message)
            self._wake.set()
            self._terminate()  # now, not when the task runs: the order of the calls is the order of the signals

    def kill(self) -> None:
        """End it without grace."""
        self.stop(Cause.STOPPED)
        self._kill.set()
        if self._child is not None:
            self._child.kill_group()

    def probe(self) -> None:
        """Ask the engine for one token, as soon as it is ready."""
        self._probe_asked.set()

    def facts(self) -> Facts:
        pid = self._child.pid if self._child is not None else None
        return Facts(self.spec.name, pid, self._started, self._plan)

    async def pids(self) -> list[int]:
        """Its live processes."""
        session = self._child.pid if self._child is not None else None
        members = await asyncio.to_thread(self._house.table.members, self._mark, session)
        return [process.pid for process in members]

    # --- the life ---------------------------------------------------------------------------------------------

    async def run(self) -> Exit:
        """Live it. Returns only when nothing of the instance is left; a bug in here ends the instance too."""
        try:
            for left in range(self._house.limits.port_retries, -1, -1):
                ended, retry = await self._attempt()
                if not retry:
                    return ended
                if left:
                    self._log(logging.WARNING, f"{ended.message}; trying another port")
            return replace(ended, cause=Cause.PORT_UNAVAILABLE)
        except Exception:
            self._log(logging.ERROR, f"a bug in accelerd ended instance {self.number}", names.MSG_BUG, exc_info=True)
            return Exit(Cause.SPAWN_FAILED, "cannot run the model: a bug in accelerd, see its log", tail=self._tail())
        finally:
            if self._child is not None:  # cancelled: the daemon gives up waiting
                self._child.kill_group()
                self._child.release()
                self._child = None

    async def _attempt(self) -> tuple[Exit, bool]:
        """One plan, one process, its end; and whether that was for want of the endpoint alone."""
        self._plan = None
        if self._stop is None:
            self._wake.clear()  # it was the exit of the process before
        try:
            raced = await race(self._wake.wait(), self._engine.plan(self.spec, self._house.roots.runtime))
        except AccelError as error:
            cause = next((cause for cause in Cause if cause == error.fields.get("cause")), Cause.REFUSED)
            return Exit(cause, error.message, tail=_lines(error.fields.get("tail"))), False
        if raced is None or raced[0] == 0:
            return self._stopped_early(), False
        plan: LaunchPlan = raced[1]
        self._plan = plan
        try:
            program = await asyncio.to_thread(self._prepare, plan)
        except NoProgram as error:
            return Exit(Cause.NO_PROGRAM, str(error)), False
        except OSError as error:
            return Exit(Cause.SPAWN_FAILED, words.spawn_failed(plan, error)), False
        if self._stop is not None:
            return self._stopped_early(), False
        try:
            child = self._spawn(plan, program)
        except (FileNotFoundError, PermissionError) as error:
            return Exit(Cause.NO_PROGRAM, words.spawn_failed(plan, error)), False
        except OSError as error:
            return Exit(Cause.SPAWN_FAILED, words.spawn_failed(plan, error)), False
        try:
            ending = await self._live(child, plan)
        except Exception:
            await self._end(child, plan)
            raise
        strays = await self._end(child, plan)
        return self._verdict(plan, child, ending, strays)

    def _prepare(self, plan: LaunchPlan) -> str:
        if plan.endpoint.unix:
            prepare_socket(Path(plan.endpoint.unix))
        return find_program(plan.argv[0], plan.env.get("PATH"))

    def _spawn(self, plan: LaunchPlan, program: str) -> Child:
        house, model = self._house, self.spec.name
        self.line_from = self.ring.total
        self._terminated = False
        self._feed = JournalFeed(house.sink, model, house.clock, house.limits.journal_rate) if house.sink else None
        cwd = house.roots.home if house.roots.home.is_dir() else Path("/")
        env = {**self._mark.environment(), **plan.env, **self._mark.environment()}
        self._spawned = house.clock.monotonic()
        self._child = house.spawner.spawn((program, *plan.argv[1:]), env, cwd, self._printed, self._wake.set)
        self._log(logging.INFO, f"process {self._child.pid}, to listen at {plan.endpoint}", child_pid=self._child.pid)
        return self._child

    def _printed(self, chunk: bytes) -> None:
        self.ring.write(chunk)
        if self._feed is not None:
            self._feed.feed(chunk)

    async def _live(self, child: Child, plan: LaunchPlan) -> Ending:
        """Until it is to end or has ended."""
        ending = await self._load(child, plan)
        if ending is not None:
            return ending
        self._ready = True
        self._house.listener.instance_ready(self.number, plan.endpoint, plan.secret)
        while not self._wake.is_set():
            await race(self._wake.wait(), self._probe_asked.wait())
            if self._probe_asked.is_set():
                self._probe_asked.clear()
                await race(self._wake.wait(), self._probe_once(plan))
        return self._stop or Ending(None)

    async def _load(self, child: Child, plan: LaunchPlan) -> Ending | None:
        """None: ready."""

        async def owner(port: int) -> Owner:
            return await asyncio.to_thread(tcp_owner, self._house.roots.proc, port, await self.pids())

        async def is_ours(pid: int) -> bool:
            return pid == child.pid or pid in await self.pids()

        raced = await race(
            self._wake.wait(),
            wait_ready(plan, self._house.clock, owner, is_ours),
            self._out_of_patience(),
        )
        assert raced is not None
        if self._stop is not None or raced[0] == 0:
            return self._stop or Ending(None)
        if raced[0] == 2:
            return Ending(Cause.LOAD_TIMEOUT, raced[1])
        verdict: Verdict = raced[1]
        if verdict is Verdict.FOREIGN:
            return Ending(Cause.PORT_UNAVAILABLE, f"another program listens at {plan.endpoint}", port_taken=True)
        if verdict is not Verdict.READY:
            return Ending(Cause.REFUSED, words.key_trouble(plan, verdict))
        return None

    async def _out_of_patience(self) -> str:
        """Returns, with the reason, when loading took too long without progress, or far too long."""
        clock, limits, timeout = self._house.clock, self._house.limits, self.spec.start_timeout
        step = min(max(timeout / 8, 0.02), 1.0)
        began = progress = clock.monotonic()
        printed, peak = self.ring.total, 0
        while True:
            await asyncio.sleep(step)
            self.resident = await asyncio.to_thread(memory.resident, self._house.roots.proc, await self.pids())
            now = clock.monotonic()
            if self.ring.total > printed or self.resident > peak + limits.growth:
                printed, peak, progress = self.ring.total, max(peak, self.resident), now
            if now - progress >= timeout:
                return f"not ready {now - began:.1f} s after its start, no progress for {timeout:g} s"
            if now - began >= limits.load_cap * timeout:
                return f"not ready {now - began:.1f} s after its start, although it did something all the time"

    async def _probe_once(self, plan: LaunchPlan) -> None:
        try:
            code = await status(
                plan.endpoint,
                plan.probe_path,
                within=self._house.limits.probe_timeout,
                bearer=plan.secret,
                body=plan.probe_body,
            )
            trouble = "" if code == 200 else f"status {code} to {plan.probe_path}"
        except ProbeError as error:
            trouble = str(error)
        if self._wake.is_set():
            return  # it is ending: a connection that breaks now says nothing of its health
        if trouble:
            self._log(logging.WARNING, f"fails the smallest request: {trouble}", names.MSG_UNHEALTHY)
        self._house.listener.instance_probed(self.number, not trouble)

    # --- the end ----------------------------------------------------------------------------------------------

    async def _end(self, child: Child, plan: LaunchPlan) -> str:
        """SIGTERM, grace, SIGKILL, proof. The processes found beside the child, in words."""
        if not child.exited.is_set() and not self._kill.is_set():
            self._terminate()
            await race(child.exited.wait(), self._kill.wait(), within=self.spec.stop_timeout)
        if not child.exited.is_set():
            child.kill_group()
            self._tell_killing()
        strays = await self._prove_gone(child)
        child.release()
        self._child = None
        if self._feed is not None:
            self._feed.flush()
        if plan.endpoint.unix:
            await asyncio.to_thread(remove_socket, Path(plan.endpoint.unix))
        return strays

    async def _prove_gone(self, child: Child) -> str:
        while True:
            try:
                house, model = self._house, self.spec.name
                return describe(
                    await sweep(child, self._mark, model, house.table, house.clock, house.limits, self._tell_killing)
                )
            except OSError:
                # Without /proc nothing can be proven: say so and go on trying.
                self._log(logging.ERROR, "cannot look for its processes", exc_info=True)
                await asyncio.sleep(1.0)

    def _terminate(self) -> None:
        """SIGTERM, once: a second one has a meaning of its own for many programs."""
        if self._child is not None and not self._terminated:
            self._terminated = True
            self._child.signal(signal.SIGTERM)

    def _tell_killing(self) -> None:
        if not self._killing_told:
            self._killing_told = True
            self._house.listener.instance_killing(self.number)

    def _verdict(self, plan: LaunchPlan, child: Child, ending: Ending, strays: str) -> tuple[Exit, bool]:
        """How it ended, for people; and whether another port may help."""
        age = self._house.clock.monotonic() - self._spawned
        ending = self._stop or ending
        tail = self._tail()
        if ending.cause is not None:
            message = words.asked(plan, ending.cause, ending.message, age)
            return Exit(ending.cause, message, child.status, tail), ending.port_taken
        unexecuted = self._house.spawner.exec_failure(child.status, tail[-1] if tail else "")
        if unexecuted is not None:
            return Exit(Cause.NO_PROGRAM, f"cannot start {plan.argv[0]}: {unexecuted}", child.status, tail), False
        message = words.by_itself(plan, child.status, age, self._ready, strays)
        self._log(logging.WARNING, message, names.MSG_CHILD_DIED, child_pid=child.pid)
        signaled = child.status is not None and child.status < 0
        port_taken = not self._ready and any(_BIND_FAILED.search(line) for line in tail)
        return Exit(Cause.SIGNALED if signaled else Cause.EXITED, message, child.status, tail), port_taken

    def _log(self, level: int, text: str, message_id: str | None = None, **more: Any) -> None:
        event(log, level, f"{self.spec.name}: {text}", message_id=message_id, model=self.spec.name, **more)

    def _stopped_early(self) -> Exit:
        cause = self._stop.cause if self._stop is not None and self._stop.cause is not None else Cause.STOPPED
        return Exit(cause, f"{self.spec.name} was stopped before its process was started")

    def _tail(self) -> tuple[str, ...]:
        return tuple(self.ring.lines(TAIL_LINES, since=self.line_from))


def _lines(value: object) -> tuple[str, ...]:
    return tuple(map(str, value))[-TAIL_LINES:] if isinstance(value, list | tuple) else ()
