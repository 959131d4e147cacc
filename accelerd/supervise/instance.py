"""One start of one model, from its plan to the proof that nothing of it is left. One task lives this life, in any home.

Owns the leader, its record and its phases; never decides what to run or whether to try again later: that is the
scheduler's. The only retry here is another port when the planned one was taken.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from accelerd.base import names
from accelerd.base.errors import AccelError
from accelerd.base.exits import Cause, Exit
from accelerd.base.ports import Clock, Roots
from accelerd.config.model import ModelSpec
from accelerd.engines.base import Engine, LaunchPlan
from accelerd.instances import Facts, Listener
from accelerd.supervise import exit_messages as words
from accelerd.supervise import outcome
from accelerd.supervise.homes.home import Home, HomeError, Leader, Order, Tenant
from accelerd.supervise.http_probe import ProbeError
from accelerd.supervise.instance_records import Adoptable, InstanceRecordFile, Phase, RecordStore, record_of
from accelerd.supervise.limits import Limits
from accelerd.supervise.loading import Loading
from accelerd.supervise.process.groups import Origin
from accelerd.supervise.process.output import TAIL_LINES, JournalFeed, OutputRing
from accelerd.supervise.process.output_redactor import OutputRedactor
from accelerd.supervise.process.processes import InstanceTag, ProcessTable, describe
from accelerd.supervise.process.race import race
from accelerd.supervise.process.shortage import LINES, Shortage, shortage
from accelerd.supervise.process.spawn import NoProgram
from accelerd.supervise.process.sweep import prepare_socket, remove_socket, sweep
from accelerd.supervise.proof import prove
from accelerd.system.records import event

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class InstanceContext:
    """What all instances share."""

    listener: Listener
    roots: Roots
    clock: Clock
    homes: Mapping[str, Home]
    choose: Callable[[ModelSpec], Home]
    records: RecordStore
    table: ProcessTable
    sink: Callable[[str, str, str | None], None] | None
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
        self,
        number: int,
        spec: ModelSpec,
        engine: Engine,
        mark: InstanceTag,
        ring: OutputRing,
        house: InstanceContext,
        found: Adoptable | None = None,
        gpus: Sequence[str] = (),
    ) -> None:
        """`found`: it is not started but taken over. `gpus`: PCI slots of those it shall use, where that is decided."""
        self.number = number
        self.spec = spec
        self.ring = ring
        self.line_from = ring.total  # position in the ring where this instance's output begins
        self._engine = engine
        self.mark = mark
        self._house = house
        self._started = house.clock.monotonic()
        self._spawned = self._started
        self._plan: LaunchPlan | None = None
        self._found = found
        self._gpus = gpus
        self._leader: Leader | None = None
        self._home: str | None = None  # what people may know of where it lives
        self._place: str | None = None
        self._record = InstanceRecordFile(house.records, mark, found.record if found is not None else None, self._log)
        self._loading: Loading | None = None
        self._discreet: OutputRedactor | None = None
        self._feed: JournalFeed | None = None
        self._wake = asyncio.Event()  # told to stop, or the child has exited
        self._kill = asyncio.Event()
        self._probe_asked = asyncio.Event()
        self._stop: Ending | None = None
        self._terminated = False
        self._killing_told = False
        self._ready = False
        self._ready_at = 0  # position in the ring: what was said while it loaded did not end it later
        self._ending = False
        self._letting_go = False

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
        if self._leader is not None:
            self._leader.kill_group()

    def let_go(self) -> bool:
        """Shall it live on without this daemon? Then its task only needs to be cancelled."""
        lives = self._leader is not None and not self._leader.exited.is_set()
        self._letting_go = lives and self._record.survives and self._stop is None and not self._ending
        return self._letting_go

    def probe(self) -> None:
        """Ask the engine for one token, as soon as it is ready."""
        self._probe_asked.set()

    def facts(self) -> Facts:
        pid = self._leader.pid if self._leader is not None else None
        return Facts(self.spec.name, pid, self._started, self._plan, self._home, self._place)

    @property
    def resident(self) -> int | None:
        """Bytes, as seen last while it loaded."""
        return self._loading.resident if self._loading is not None else None

    @property
    def taken_in(self) -> int | None:
        """Bytes of files that it had read or mapped, as seen last while it loaded."""
        return self._loading.taken_in if self._loading is not None else None

    @property
    def origin(self) -> Origin:
        """By what its processes are known now."""
        leader = self._leader
        return Origin(self.mark, leader.session if leader else None, leader.pid if leader else None)

    async def pids(self) -> list[int]:
        """Its live processes."""
        if isinstance(self._leader, Tenant):
            return list(await asyncio.to_thread(self._leader.living))
        session = self._leader.session if self._leader is not None else None
        members = await asyncio.to_thread(self._house.table.members, self.mark, session)
        return [process.pid for process in members]

    # --- the life ---------------------------------------------------------------------------------------------

    async def run(self) -> Exit:
        """Live it. Returns only when nothing of the instance is left; a bug in here ends the instance too."""
        try:
            if self._found is not None:
                return await self._resume(self._found)
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
            if self._leader is not None:  # cancelled: let go, or the daemon gives up waiting
                if not self._letting_go:
                    self._leader.kill_group()
                self._leader.let_go()
                self._leader = None

    async def _attempt(self) -> tuple[Exit, bool]:
        """One plan, one process, its end; and whether that was for want of the endpoint alone."""
        self._plan = None
        self._ending = False
        self.line_from = self.ring.total
        if self._stop is None:
            self._wake.clear()  # it was the exit of the process before
        try:
            home = self._house.choose(self.spec)
            self._lives_in(home, home.place(self.spec, self.mark))
            self._open_feed()
            raced = await race(self._wake.wait(), self._make_plan(home))
        except HomeError as error:
            return Exit(Cause.REFUSED, str(error), tail=self._tail()), False
        except AccelError as error:
            return outcome.refused(error), False
        if raced is None or raced[0] == 0:
            return self._stopped_early(), False
        plan: LaunchPlan = raced[1]
        self._plan = plan
        try:
            await asyncio.to_thread(self._prepare, plan)
        except OSError as error:
            return Exit(Cause.SPAWN_FAILED, words.spawn_failed(plan, error)), False
        if self._stop is not None:
            return self._stopped_early(), False
        await self._record.begin(record_of(self.spec, plan, home, self.mark))
        try:
            leader = await self._start(plan, home)
        except (NoProgram, HomeError, OSError) as error:
            await self._end(None, plan)
            return outcome.unstarted(plan, error), False
        try:
            ending = await self._live(leader, plan)
        except Exception:
            await self._end(leader, plan)
            raise
        strays = await self._end(leader, plan)
        return self._verdict(plan, leader, ending, strays)

    async def _resume(self, found: Adoptable) -> Exit:
        """The life of an instance that another daemon started."""
        self._plan = plan = found.plan
        home = self._house.homes[found.kept.home]
        self._lives_in(home, found.kept.place)
        age = max(process.age() for process in found.processes)
        self._started = self._spawned = self._house.clock.monotonic() - age
        self._open_feed()
        self._discreet = OutputRedactor(plan.discreet) if plan.discreet and found.was_ready else None
        try:
            self._leader = leader = await home.adopt(found.kept, self._printed, self._wake.set)
        except (HomeError, OSError) as error:
            self._log(logging.WARNING, str(error))
            self._leader = leader = None
        if leader is None:
            await self._end(None, plan)
            return Exit(Cause.EXITED, f"{words.program(plan)} ended while no accelerd ran", tail=self._tail())
        self._log(logging.INFO, f"taken over: process {leader.pid}, listens at {plan.endpoint}", child_pid=leader.pid)
        try:
            ending = await self._live(leader, plan)
        except Exception:
            await self._end(leader, plan)
            raise
        strays = await self._end(leader, plan)
        return self._verdict(plan, leader, ending, strays)[0]

    def _lives_in(self, home: Home, place: str) -> None:
        self._home, self._place = home.kind, place if place != self.mark.instance else None

    async def _make_plan(self, home: Home) -> LaunchPlan:
        await home.prepare(self.spec, self._printed)
        return await self._engine.plan(self.spec, self._house.roots.runtime, self._gpus)

    def _prepare(self, plan: LaunchPlan) -> None:
        if plan.endpoint.unix:
            prepare_socket(Path(plan.endpoint.unix))

    async def _start(self, plan: LaunchPlan, home: Home) -> Leader:
        house = self._house
        self._terminated = False
        cwd = house.roots.home if house.roots.home.is_dir() else Path("/")
        env = {**self.mark.environment(), **plan.env, **self.mark.environment()}
        self._spawned = house.clock.monotonic()
        order = Order(self.spec, plan.argv, env, cwd, self.mark, plan.tenancy)
        self._leader = leader = await home.start(order, self._printed, self._wake.set)
        if plan.tenancy is None:
            where = f" in {leader.unit}" if leader.unit else ""
            self._log(logging.INFO, f"process {leader.pid}{where}, to listen at {plan.endpoint}", child_pid=leader.pid)
        return leader

    def _open_feed(self) -> None:
        house = self._house
        if house.sink is not None:
            self._feed = JournalFeed(self._to_journal, self.spec.name, house.clock, house.limits.journal_rate)

    def _to_journal(self, model: str, line: str) -> None:
        if self._house.sink is not None:
            self._house.sink(model, line, self._leader.unit if self._leader is not None else None)

    def _printed(self, chunk: bytes) -> None:
        if self._discreet is not None:
            chunk = self._discreet(chunk)
        self.ring.write(chunk)
        if self._feed is not None:
            self._feed.feed(chunk)

    async def _live(self, leader: Leader, plan: LaunchPlan) -> Ending:
        """Until it is to end or has ended."""
        ending = await self._load(leader, plan)
        if ending is not None:
            return ending
        plan = self._plan or plan
        self._ready, self._ready_at = True, self.ring.total
        self._discreet = OutputRedactor(plan.discreet) if plan.discreet else None
        self._house.listener.instance_ready(self.number, plan.endpoint, plan.secret)
        await self._record.note(Phase.READY)
        while not self._wake.is_set():
            await race(self._wake.wait(), self._probe_asked.wait())
            if self._probe_asked.is_set():
                self._probe_asked.clear()
                await race(self._wake.wait(), self._probe_once(plan))
        return self._stop or Ending(None)

    async def _load(self, leader: Leader, plan: LaunchPlan) -> Ending | None:
        """None: ready."""
        house = self._house
        was_ready = self._found is not None and self._found.was_ready
        self._loading = Loading(
            replace(plan, prove=plan.prove and not was_ready),  # one that works for somebody answers late
            leader.pid,
            self.pids,
            ring=self.ring,
            clock=house.clock,
            limits=house.limits,
            proc=house.roots.proc,
            timeout=house.limits.adopt_patience if was_ready else self.spec.start_timeout,
            settle=partial(self._settle, leader, plan) if isinstance(leader, Tenant) else None,
        )
        raced = await race(self._wake.wait(), self._loading.run())
        assert raced is not None
        if self._stop is not None or raced[0] == 0:
            return self._stop or Ending(None)
        if raced[1] is None:
            return None
        cause, message = raced[1]
        return Ending(cause, message, port_taken=cause is Cause.PORT_UNAVAILABLE)

    async def _settle(self, leader: Tenant, plan: LaunchPlan) -> LaunchPlan:
        """The plan of a tenant, once it is known where it is to be reached."""
        self._plan = plan = replace(plan, **vars(await leader.settled()))
        self._log(logging.INFO, f"loaded, served by process {leader.pid} at {plan.endpoint}", child_pid=leader.pid)
        return plan

    async def _probe_once(self, plan: LaunchPlan) -> None:
        try:
            _, trouble = await prove(plan, within=self._house.limits.probe_timeout)
        except ProbeError as error:
            trouble = str(error)
        if self._wake.is_set():
            return  # it is ending: a connection that breaks now says nothing of its health
        if trouble:
            self._log(logging.WARNING, f"fails the smallest request: {trouble}", names.MSG_UNHEALTHY)
        self._house.listener.instance_probed(self.number, not trouble)

    # --- the end ----------------------------------------------------------------------------------------------

    async def _end(self, leader: Leader | None, plan: LaunchPlan) -> str:
        """SIGTERM, grace, SIGKILL, proof. The processes found beside the leader, in words."""
        self._ending = True
        if leader is not None and not leader.exited.is_set() and not self._kill.is_set():
            self._terminate()
            await self._record.note(Phase.ENDING)
            await race(leader.exited.wait(), self._kill.wait(), within=self.spec.stop_timeout)
        if leader is not None and not leader.exited.is_set():
            leader.kill_group()
            self._tell_killing()
        strays = await self._prove_gone(leader)
        if leader is not None:
            await leader.release()
            if self._feed is not None:
                self._feed.flush()
            self._leader = None
        if plan.endpoint.unix:
            await asyncio.to_thread(remove_socket, Path(plan.endpoint.unix))
        await self._record.remove()
        return strays

    async def _prove_gone(self, leader: Leader | None) -> str:
        while True:
            try:
                house, model = self._house, self.spec.name
                return describe(
                    await sweep(leader, self.mark, model, house.table, house.clock, house.limits, self._tell_killing)
                )
            except OSError:
                # Without /proc nothing can be proven: say so and go on trying.
                self._log(logging.ERROR, "cannot look for its processes", exc_info=True)
                await asyncio.sleep(1.0)

    def _terminate(self) -> None:
        """SIGTERM, once: a second one has a meaning of its own for many programs."""
        if self._leader is not None and not self._terminated:
            self._terminated = True
            self._leader.signal(signal.SIGTERM)

    def _tell_killing(self) -> None:
        if not self._killing_told:
            self._killing_told = True
            self._house.listener.instance_killing(self.number)

    def _verdict(self, plan: LaunchPlan, leader: Leader, ending: Ending, strays: str) -> tuple[Exit, bool]:
        """How it ended, for people; and whether another port may help."""
        age = self._house.clock.monotonic() - self._spawned
        ending = self._stop or ending
        tail = self._tail()
        if ending.cause is not None:
            message = words.asked(plan, ending.cause, ending.message, age)
            return Exit(ending.cause, message, leader.status, tail), ending.port_taken
        ended = leader.ended if isinstance(leader, Tenant) else None
        unexecuted = leader.unexecuted(tail[-1] if tail else "")
        if unexecuted is not None:
            return Exit(Cause.NO_PROGRAM, f"cannot start {plan.argv[0]}: {unexecuted}", leader.status, tail), False
        port_taken = ended is None and not self._ready and any(outcome.BIND_FAILED.search(line) for line in tail)
        peak = self._loading.peak if self._loading is not None else None
        out_of_memory = leader.result == "oom-kill"
        other = out_of_memory or port_taken or (ended is not None and ended[0] is not Cause.EXITED)
        lack = self._lack(plan, leader) if not other else None
        if out_of_memory:
            message = words.out_of_memory(plan, self.spec.memory_max, peak, age, self._ready)
        elif lack is not None:
            message = words.got_no_memory(plan, lack, peak, age, self._ready)
        else:
            message = ended[1] if ended else words.by_itself(plan, leader.status, age, self._ready, strays)
        self._log(logging.WARNING, message, names.MSG_CHILD_DIED, child_pid=leader.pid)
        signaled = leader.status is not None and leader.status < 0
        cause = ended[0] if ended else Cause.SIGNALED if signaled else Cause.EXITED
        if out_of_memory or lack is not None:
            cause = Cause.OOM_KILLED
        most = max(peak or 0, lack.wanted or 0 if lack is not None else 0)
        return Exit(cause, message, leader.status, tail, most or None), port_taken

    def _lack(self, plan: LaunchPlan, leader: Leader) -> Shortage | None:
        """What it printed of memory that it did not get, if that is why it has failed."""
        if leader.status == 0:
            return None
        return shortage(plan, self.ring.lines(LINES, since=self._ready_at if self._ready else self.line_from))

    def _log(self, level: int, text: str, message_id: str | None = None, **more: Any) -> None:
        event(log, level, f"{self.spec.name}: {text}", message_id=message_id, model=self.spec.name, **more)

    def _stopped_early(self) -> Exit:
        cause = self._stop.cause if self._stop is not None and self._stop.cause is not None else Cause.STOPPED
        return Exit(cause, f"{self.spec.name} was stopped before its process was started")

    def _tail(self) -> tuple[str, ...]:
        return tuple(self.ring.lines(TAIL_LINES, since=self.line_from))
