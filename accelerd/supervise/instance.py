"""One start of one model, from its plan to the proof that nothing of it is left. One task an instance, in any home.

Owns the main process, its record and its phases; never decides what to run or whether to try again later: that is the
scheduler's. The only retry here is another port when the planned one was taken.
"""

from __future__ import annotations

import asyncio
import logging
import re
import signal
from collections import deque
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

from msgspec import Struct, structs

from accelerd.base import names
from accelerd.base.errors import AccelError
from accelerd.base.exits import Cause, Exit
from accelerd.base.ports import Clock, Roots
from accelerd.config.model import ModelSpec
from accelerd.engines import planning
from accelerd.engines.base import Engine, LaunchPlan
from accelerd.engines.http import HttpError, HttpUnreachable
from accelerd.instances import InstanceInfo, Listener
from accelerd.memory.model import MemoryRequirement
from accelerd.supervise import exit_messages
from accelerd.supervise.exit_messages import SHORTAGE_LINES, failed_allocation
from accelerd.supervise.homes.home import Home, HomeError, LaunchRequest, MainProcess, NoProgram, TenantProcess
from accelerd.supervise.instance_records import Adoptable, InstanceRecordFile, Phase, RecordStore, record_of
from accelerd.supervise.process import endpoint_files
from accelerd.supervise.process.output import TAIL_LINES, JournalFeed, OutputRedactor, OutputRing
from accelerd.supervise.process.processes import InstanceTag, ProcessIdentity, ProcessTable, describe
from accelerd.supervise.process.sweep import sweep
from accelerd.supervise.ready import READY, Loading, Outcome, listens, prove
from accelerd.supervise.sleeping import is_asleep, put_to_sleep, wake_up
from accelerd.supervise.waiting import SupervisorLimits, race
from accelerd.system.records import event

log = logging.getLogger(__name__)

CLOSING: Final = 0.1  # s from the end of a connection to that of the socket that listens, in a process that dies


Ask = Callable[[LaunchPlan], Coroutine[Any, Any, None]]
EngineLog = Callable[[str, str, int, str | None], None]  # model, line, log level, unit


class InstanceContext(Struct, frozen=True):
    """What all instances share."""

    listener: Listener
    roots: Roots
    clock: Clock
    homes: Mapping[str, Home]
    choose: Callable[[ModelSpec], Home]
    records: RecordStore
    table: ProcessTable
    sink: EngineLog | None
    limits: SupervisorLimits


class Instance:
    """One start of one model. `stop`, `kill` and `probe` return at once."""

    def __init__(
        self,
        number: int,
        spec: ModelSpec,
        engine: Engine,
        tag: InstanceTag,
        ring: OutputRing,
        context: InstanceContext,
        found: Adoptable | None = None,
        placed: MemoryRequirement | None = None,
    ) -> None:
        """`found`: it is not started but taken over. `placed`: the memory it is given, and where; None: not decided."""
        self.number = number
        self.spec = spec
        self.ring = ring
        self.line_from = ring.total  # position in the ring where this instance's output begins
        self._engine = engine
        self.tag = tag
        self._context = context
        self._started = context.clock.monotonic()
        self._spawned = self._started
        self._plan: LaunchPlan | None = None
        self._found = found
        self._placed = placed
        self._main: MainProcess | None = None
        self._unit: str | None = None  # of its main process, also after its end
        self._home: str | None = None  # its home's kind, once chosen
        self._place: str | None = None
        self._record = InstanceRecordFile(context.records, tag, found.stored if found is not None else None, self._log)
        self.loading: Loading | None = None
        self._redactor: OutputRedactor | None = None
        self._own_doing = engine.dialect.key_refused.encode()
        self._feed: JournalFeed | None = None
        self._wake = asyncio.Event()  # it is to stop, or the process has exited
        self._kill = asyncio.Event()
        self._asked = asyncio.Event()
        self._asks: deque[Ask] = deque()  # what the running engine is to be asked for, in order
        self._thorough = False
        self._stop: Outcome | None = None
        self._trouble = ""  # what the last probe found
        self._terminated = False
        self._killing_reported = False
        self._ready = False
        self._ready_at = 0  # position in the ring: what was said while it loaded did not end it later
        self._ending = False
        self._letting_go = False

    # --- from outside -------------------------------------------------------------------------------------------

    def stop(self, cause: Cause, message: str = "") -> None:
        """End it, in whatever phase it is. Only the first call counts."""
        if self._stop is None:
            self._stop = Outcome(cause, message)
            self._wake.set()
            self._terminate()  # now, not when the task runs: the order of the calls is the order of the signals

    def kill(self) -> None:
        self.stop(Cause.STOPPED)
        self._kill.set()
        if self._main is not None:
            self._main.kill_group()

    def let_go(self) -> bool:
        """Shall it live on without this daemon? Then its task only needs to be cancelled."""
        lives = self._main is not None and not self._main.exited.is_set()
        self._letting_go = lives and self._record.survives and self._stop is None and not self._ending
        return self._letting_go

    def probe(self, *, thorough: bool) -> None:
        """Find out whether the engine works, as soon as it is ready."""
        self._thorough |= thorough
        if self._probe_once not in self._asks:
            self._ask(self._probe_once)

    def sleep(self) -> None:
        """Have its weights moved to main memory."""
        self._ask(self._put_to_sleep)

    def wake(self) -> None:
        """Have them moved back."""
        self._ask(self._wake_up)

    def _ask(self, what: Ask) -> None:
        self._asks.append(what)
        self._asked.set()

    async def write_record(self) -> None:
        """Again, since it was removed."""
        await self._record.write_again()

    def facts(self) -> InstanceInfo:
        pid = self._main.pid if self._main is not None else None
        return InstanceInfo(self.spec.name, pid, self._started, self._plan, self._home, self._place)

    @property
    def origin(self) -> ProcessIdentity:
        """How its processes are recognised now."""
        main = self._main
        return ProcessIdentity(self.tag, main.session if main else None, main.pid if main else None)

    async def pids(self) -> list[int]:
        if isinstance(self._main, TenantProcess):
            return list(await asyncio.to_thread(self._main.living))
        session = self._main.session if self._main is not None else None
        members = await asyncio.to_thread(self._context.table.members, self.tag, session)
        return [process.pid for process in members]

    # --- the life -----------------------------------------------------------------------------------------------

    async def run(self) -> Exit:
        """Run it to its end. Returns only when nothing of the instance is left; a bug in here ends the instance too."""
        try:
            if self._found is not None:
                return await self._resume(self._found)
            for left in range(self._context.limits.port_retries, -1, -1):
                ended, retry = await self._attempt()
                if not retry:
                    return ended
                if left:
                    self._log(logging.WARNING, f"{ended.message}; trying another port")
            return structs.replace(ended, cause=Cause.PORT_UNAVAILABLE)
        except Exception:
            self._log(logging.ERROR, f"a bug in accelerd ended instance {self.number}", names.MSG_BUG, exc_info=True)
            return Exit(Cause.SPAWN_FAILED, "cannot run the model: a bug in accelerd, see its log", tail=self._tail())
        finally:
            if self._main is not None:  # cancelled: let go, or the daemon gives up waiting
                if not self._letting_go:
                    self._main.kill_group()
                self._main.let_go()
                self._main = None

    async def _attempt(self) -> tuple[Exit, bool]:
        """One plan, one process, its exit; True: it failed only because its endpoint was taken."""
        self._plan = None
        self._ending = False
        self.line_from = self.ring.total
        if self._stop is None:
            self._wake.clear()  # it was the exit of the process before
        try:
            home = self._context.choose(self.spec)
            self._lives_in(home, home.place(self.spec, self.tag))
            self._open_feed()
            raced = await race(self._wake.wait(), self._make_plan(home))
        except AccelError as error:
            return exit_messages.refused(error, self._tail()), False
        if raced is None or raced[0] == 0:
            return self._stopped_early(), False
        plan: LaunchPlan = raced[1]
        self._plan_is(plan)
        try:
            await asyncio.to_thread(endpoint_files.prepare, plan)
        except OSError as error:
            return Exit(Cause.SPAWN_FAILED, exit_messages.spawn_failed(plan, error)), False
        if self._stop is not None:
            await asyncio.to_thread(endpoint_files.remove, plan)
            return self._stopped_early(), False
        await self._record.begin(record_of(self.spec, plan, home, self.tag))
        try:
            main = await self._start(plan, home)
        except (NoProgram, HomeError, OSError) as error:
            await self._end(None, plan)
            return exit_messages.not_started(plan, error), False
        return await self._to_its_end(main, plan)

    async def _resume(self, found: Adoptable) -> Exit:
        plan = found.plan
        home = self._context.homes[found.record.home]
        self._lives_in(home, found.record.place)
        age = max(process.age() for process in found.processes)
        self._started = self._spawned = self._context.clock.monotonic() - age
        self._open_feed()
        self._plan_is(plan)
        self._redactor = OutputRedactor(plan.discreet) if plan.discreet and found.was_ready else None
        try:
            self._main = main = await home.adopt(found.record, self._printed, self._wake.set)
            self._context.records.take_back(self.tag)
        except (HomeError, OSError) as error:
            self._log(logging.WARNING, str(error))
            self._main = main = None
        if main is None:
            await self._end(None, plan)
            return Exit(Cause.EXITED, f"{exit_messages.program(plan)} ended while no accelerd ran", tail=self._tail())
        self._log(logging.INFO, f"taken over: process {main.pid}, listens at {plan.endpoint}", child_pid=main.pid)
        return (await self._to_its_end(main, plan))[0]

    async def _to_its_end(self, main: MainProcess, plan: LaunchPlan) -> tuple[Exit, bool]:
        try:
            ending = await self._live(main, plan)
        except Exception:
            await self._end(main, plan)
            raise
        strays = await self._end(main, plan)
        ended, retry = self._exit_of(plan, main, ending, strays)
        if self._feed is not None and ended.cause is not Cause.STOPPED and not retry:
            self._feed.explain()
        return ended, retry

    def _lives_in(self, home: Home, place: str) -> None:
        self._home, self._place = home.kind, place if place != self.tag.instance else None

    async def _make_plan(self, home: Home) -> LaunchPlan:
        await home.prepare(self.spec, self._printed)
        return await planning.plan(self._engine, self.spec, self._context.roots, self._placed)

    async def _start(self, plan: LaunchPlan, home: Home) -> MainProcess:
        context = self._context
        self._terminated = False
        cwd = context.roots.home if context.roots.home.is_dir() else Path("/")
        env = {**self.tag.environment(), **plan.env, **self.tag.environment()}
        self._spawned = context.clock.monotonic()
        launch = LaunchRequest(self.spec, plan.argv, env, cwd, self.tag, plan.tenancy, plan.files)
        self._main = main = await home.start(launch, self._printed, self._wake.set)
        if plan.tenancy is None:
            where = f" in {main.unit}" if main.unit else ""
            self._log(logging.INFO, f"process {main.pid}{where}, to listen at {plan.endpoint}", child_pid=main.pid)
        return main

    def _open_feed(self) -> None:
        context, model = self._context, self.spec.name
        if (sink := context.sink) is not None:

            def to_journal(line: str, level: int) -> None:
                if self._main is not None:
                    self._unit = self._main.unit
                sink(model, line, level, self._unit)

            verbose = log.isEnabledFor(logging.DEBUG)
            self._feed = JournalFeed(to_journal, context.clock, context.limits.journal_rate, verbose=verbose)

    def _plan_is(self, plan: LaunchPlan) -> None:
        self._plan = plan
        if self._feed is not None and plan.notable:
            self._feed.notable = re.compile(plan.notable.encode())

    def _printed(self, chunk: bytes) -> None:
        if self._redactor is not None:
            chunk = self._redactor(chunk)
        if self._own_doing and (at := chunk.find(self._own_doing)) >= 0:
            end = chunk.find(b"\n", at)
            chunk = chunk[: chunk.rfind(b"\n", 0, at) + 1] + (chunk[end + 1 :] if end >= 0 else b"")
            self._own_doing = b""  # what comes later is somebody else's wrong key
        self.ring.write(chunk)
        if self._feed is not None:
            self._feed.feed(chunk)

    async def _live(self, main: MainProcess, plan: LaunchPlan) -> Outcome | None:
        """Why it is to end; None: it has exited."""
        ending = await self._load(main, plan)
        if ending is not READY:
            return ending
        plan = self._plan or plan
        asleep = self._found is not None and self._found.asleep
        if self._found is not None and plan.sleep is not None:
            raced = await race(self._wake.wait(), self._restored(plan, asleep=asleep))
            if raced is None or raced[0] == 0 or raced[1]:
                return self._stop if raced is None or raced[0] == 0 else Outcome(Cause.UNHEALTHY, raced[1])
        self._ready, self._ready_at = True, self.ring.total
        endpoint_files.remove_key(plan)
        self._redactor = OutputRedactor(plan.discreet) if plan.discreet else None
        if self._feed is not None:
            self._feed.errors_only = True
        self._context.listener.instance_ready(self.number, plan.endpoint, plan.secret)
        await self._record.note(Phase.ASLEEP if asleep else Phase.READY)
        await race(self._wake.wait(), self._engine.loaded(self.spec, plan))
        while not self._wake.is_set():
            await race(self._wake.wait(), self._asked.wait())
            self._asked.clear()
            while self._asks and not self._wake.is_set():
                await race(self._wake.wait(), self._asks.popleft()(plan))
        return self._stop

    async def _restored(self, plan: LaunchPlan, *, asleep: bool) -> str:
        """Have one that is taken over where its memory is counted, which a daemon may have died too early to note.
        Why it is not, or ""."""
        try:
            if await is_asleep(plan) is not asleep:
                await (put_to_sleep if asleep else wake_up)(plan, self.spec.start_timeout)
        except HttpError as error:
            return f"it cannot be told whether {self.spec.name} is asleep: {error}"
        return ""

    async def _put_to_sleep(self, plan: LaunchPlan) -> None:
        try:
            await put_to_sleep(plan, self.spec.start_timeout)
            await self._record.note(Phase.ASLEEP)
            trouble = ""
        except HttpError as error:
            trouble = str(error)
        if not self._wake.is_set():
            self._context.listener.instance_asleep(self.number, trouble)

    async def _wake_up(self, plan: LaunchPlan) -> None:
        await self._record.note(Phase.READY)  # from now on it may have its device's memory again
        try:
            await wake_up(plan, self.spec.start_timeout)
            _, trouble = await prove(plan, within=self._context.limits.probe_timeout)
        except HttpError as error:
            trouble = str(error)
        if not self._wake.is_set():
            self._context.listener.instance_awake(self.number, trouble)

    async def _load(self, main: MainProcess, plan: LaunchPlan) -> Outcome | None:
        context = self._context
        was_ready = self._found is not None and self._found.was_ready
        self.loading = Loading(
            replace(plan, prove=plan.prove and not was_ready),  # a busy one answers late
            main.pid,
            self.pids,
            ring=self.ring,
            clock=context.clock,
            limits=context.limits,
            proc=context.roots.proc,
            timeout=context.limits.adopt_patience if was_ready else self.spec.start_timeout,
            settle=partial(self._settle, main, plan) if isinstance(main, TenantProcess) else None,
        )
        raced = await race(self._wake.wait(), self.loading.run())
        assert raced is not None
        if self._stop is not None or raced[0] == 0:
            return self._stop
        outcome: Outcome = raced[1]
        return outcome

    async def _settle(self, main: TenantProcess, plan: LaunchPlan) -> LaunchPlan:
        """The plan of a tenant, once it is known where it is to be reached."""
        self._plan = plan = replace(plan, **vars(await main.settled()))
        self._log(logging.INFO, f"loaded, served by process {main.pid} at {plan.endpoint}", child_pid=main.pid)
        return plan

    async def _probe_once(self, plan: LaunchPlan) -> None:
        thorough, self._thorough = self._thorough, False
        try:
            harmless = await self._engine.probe(plan, thorough=thorough)
            trouble = ""
            if harmless is not None:
                _, trouble = await prove(harmless, within=self._context.limits.probe_timeout)
        except HttpUnreachable as error:
            trouble = str(error)
            await asyncio.sleep(CLOSING)
            if not await listens(plan.endpoint):
                # A process that dies closes its sockets long before it is gone: its end, which ends this, tells more.
                await asyncio.sleep(self._context.limits.dying)
        except HttpError as error:
            trouble = str(error)
        if self._wake.is_set():
            return  # it is ending: a broken connection says nothing about its health
        self._trouble = trouble
        if trouble:
            self._log(logging.WARNING, f"fails the smallest request: {trouble}", names.MSG_UNHEALTHY)
        self._context.listener.instance_probed(self.number, not trouble)

    # --- the end ------------------------------------------------------------------------------------------------

    async def _end(self, main: MainProcess | None, plan: LaunchPlan) -> str:
        """SIGTERM, grace, SIGKILL, proof. The processes found beside the main process, for the message."""
        self._ending = True
        if main is not None and not main.exited.is_set() and not self._kill.is_set():
            self._terminate()
            await self._record.note(Phase.ENDING)
            await race(main.exited.wait(), self._kill.wait(), within=self.spec.stop_timeout)
        if main is not None and not main.exited.is_set():
            main.kill_group()
            self._report_killing()
        strays = await self._prove_gone(main)
        if main is not None:
            await main.release()
            if self._feed is not None:
                self._feed.flush()
            self._main = None
        await asyncio.to_thread(endpoint_files.remove, plan)
        await self._record.remove()
        return strays

    async def _prove_gone(self, main: MainProcess | None) -> str:
        context = self._context
        while True:
            try:
                slow = self._report_killing
                strays = await sweep(main, self.tag, self.spec.name, context.table, context.clock, context.limits, slow)
                return describe(strays)
            except OSError:
                # Without /proc nothing can be proven: log it and try again.
                self._log(logging.ERROR, "cannot look for its processes", exc_info=True)
                await asyncio.sleep(1.0)

    def _terminate(self) -> None:
        """SIGTERM, once: a second one has a meaning of its own for many programs."""
        if self._main is not None and not self._terminated:
            self._terminated = True
            self._main.signal(signal.SIGTERM)

    def _report_killing(self) -> None:
        if not self._killing_reported:
            self._killing_reported = True
            self._context.listener.instance_killing(self.number)

    def _exit_of(self, plan: LaunchPlan, main: MainProcess, ending: Outcome | None, strays: str) -> tuple[Exit, bool]:
        """How it ended; and whether another port may help."""
        age = self._context.clock.monotonic() - self._spawned
        ending = self._stop or ending
        tail = self._tail()
        if ending is not None and ending.cause is not None:
            message = exit_messages.asked(plan, ending.cause, ending.message or self._trouble, age)
            return Exit(ending.cause, message, main.status, tail), ending.cause is Cause.PORT_UNAVAILABLE
        ended = main.ended if isinstance(main, TenantProcess) else None
        unexecuted = main.unexecuted(tail[-1] if tail else "")
        if unexecuted is not None:
            return Exit(Cause.NO_PROGRAM, f"cannot start {plan.argv[0]}: {unexecuted}", main.status, tail), False
        port_taken = ended is None and not self._ready and any(exit_messages.BIND_FAILED.search(line) for line in tail)
        peak = self.loading.peak if self.loading is not None else None
        out_of_memory = main.result == "oom-kill"
        other = out_of_memory or port_taken or (ended is not None and ended[0] is not Cause.EXITED)
        last = self.ring.lines(SHORTAGE_LINES, since=self._ready_at if self._ready else self.line_from)
        lack = failed_allocation(plan, last) if not other and main.status != 0 else None
        if out_of_memory:
            message = exit_messages.out_of_memory(plan, self.spec.memory_max, peak, age, self._ready)
        elif lack is not None:
            message = exit_messages.allocation_failed(plan, lack, peak, age, self._ready)
        else:
            message = ended[1] if ended else exit_messages.by_itself(plan, main.status, age, self._ready, strays)
            if main.status != 0 or not self._ready:
                said = exit_messages.decisive_line(plan, last, main.status, self._ready)
                message += f": {said}" if said else ""
        self._log(logging.WARNING, message, names.MSG_CHILD_DIED, child_pid=main.pid)
        signaled = main.status is not None and main.status < 0
        cause = ended[0] if ended else Cause.SIGNALED if signaled else Cause.EXITED
        if out_of_memory or lack is not None:
            cause = Cause.OOM_KILLED
        most = max(peak or 0, lack.wanted or 0 if lack is not None else 0)
        return Exit(cause, message, main.status, tail, most or None), port_taken

    def _log(self, level: int, text: str, message_id: str | None = None, **more: Any) -> None:
        event(log, level, f"{self.spec.name}: {text}", message_id=message_id, model=self.spec.name, **more)

    def _stopped_early(self) -> Exit:
        cause = self._stop.cause if self._stop is not None and self._stop.cause is not None else Cause.STOPPED
        return Exit(cause, f"{self.spec.name} was stopped before its process was started")

    def _lines(self, last: int) -> list[str]:
        return self.ring.lines(last, since=self.line_from)

    def _tail(self) -> tuple[str, ...]:
        return tuple(self._lines(TAIL_LINES))
