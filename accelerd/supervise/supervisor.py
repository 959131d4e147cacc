"""Starts, watches, takes over and ends instances, one task for each, whatever home they live in.

Tells the listener what becomes of them, exactly as instances.py says. Never decides what to run; which home a model
gets is the `choose` it is given.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from functools import partial

from msgspec import Struct

from accelerd.base import names
from accelerd.base.exits import Cause
from accelerd.base.ports import Clock, Roots
from accelerd.config.model import ModelSpec
from accelerd.engines.base import Engine
from accelerd.instances import InstanceInfo, Listener, Supervisor
from accelerd.memory.model import MemoryRequirement
from accelerd.supervise.elsewhere import InstanceElsewhere
from accelerd.supervise.homes.child_home import ChildHome
from accelerd.supervise.homes.home import Home, HomeError
from accelerd.supervise.instance import EngineLog, Instance, InstanceContext
from accelerd.supervise.instance_records import Adoptable, Phase, RecordStore
from accelerd.supervise.process.endpoint_files import remove_strays
from accelerd.supervise.process.output import OutputRing
from accelerd.supervise.process.processes import InstanceTag, ProcessGroups, ProcessTable
from accelerd.supervise.process.sweep import end_recorded, remove_files, sweep_leftovers
from accelerd.supervise.waiting import SupervisorLimits
from accelerd.system.records import NOTICE, event

log = logging.getLogger(__name__)


class InstanceProgress(Struct, frozen=True):
    """What a loading instance shows of itself."""

    line: str  # the last line it printed
    resident: int | None = None  # bytes, as last seen while loading
    taken_in: int | None = None  # bytes of files, read or mapped, so far


class ProcessSupervisor(Supervisor):
    """The Supervisor. To be used on the event loop's thread, which must be the main thread."""

    def __init__(
        self,
        listener: Listener,
        engines: Mapping[str, Engine],
        roots: Roots,
        clock: Clock,
        *,
        homes: Mapping[str, Home] | None = None,
        choose: Callable[[ModelSpec], Home] | None = None,
        sink: EngineLog | None = None,
        limits: SupervisorLimits | None = None,
        table: ProcessTable | None = None,
    ) -> None:
        """`homes` by kind, `choose` the one for a model (HomeError: there is none); by default all are children.

        `sink(model, line, level, unit)` gets what engines print, at most `limits.journal_rate` lines a second of each.
        """
        if homes is None:
            homes = {ChildHome.kind: ChildHome(proc=roots.proc, sys=roots.sys)}
        self._engines = engines
        self._rings: dict[str, OutputRing] = {}
        self._instances: dict[int, Instance | InstanceElsewhere] = {}  # in order of start
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._owner = str(roots.runtime)
        self._closing = False
        self._groups = ProcessGroups(roots.proc)
        self._context = InstanceContext(
            listener=listener,
            roots=roots,
            clock=clock,
            homes=homes,
            choose=choose or (lambda _: homes[ChildHome.kind]),
            records=RecordStore(roots.instances, self._owner),
            table=table or ProcessTable(roots.proc),
            sink=sink,
            limits=limits or SupervisorLimits(),
        )

    # --- the Protocol -------------------------------------------------------------------------------------------

    def start(self, instance: int, spec: ModelSpec, placed: MemoryRequirement | None = None) -> None:
        if instance in self._instances:
            log.debug("instance %d is started already", instance)
            return
        tag = InstanceTag(f"{instance}-{secrets.token_hex(8)}", self._owner)
        engine, ring = self._engines[spec.engine], self.output(spec.name)
        if spec.elsewhere:
            listener, now = self._context.listener, self._context.clock.monotonic()
            self._begin(InstanceElsewhere(instance, spec, engine, tag, ring, listener, now))
            return
        self._begin(Instance(instance, spec, engine, tag, ring, self._context, placed=placed))

    def adopt(self, instance: int, spec: ModelSpec, found: object) -> None:
        assert isinstance(found, Adoptable)
        engine, ring = self._engines[spec.engine], self.output(spec.name)
        ring.write(found.printed)
        self._begin(Instance(instance, spec, engine, found.record.tag, ring, self._context, found))

    def _begin(self, life: Instance | InstanceElsewhere) -> None:
        if self._closing:
            life.stop(Cause.STOPPED)
        self._instances[life.number] = life
        name = f"instance {life.number} of {life.spec.name}"
        self._tasks[life.number] = asyncio.create_task(self._run(life), name=name)

    def stop(self, instance: int, reason: Cause = Cause.STOPPED) -> None:
        life = self._instances.get(instance)
        if life is not None:
            life.stop(reason)

    def probe(self, instance: int, *, thorough: bool = False) -> None:
        life = self._instances.get(instance)
        if life is not None:
            life.probe(thorough=thorough)

    def sleep(self, instance: int) -> None:
        life = self._instances.get(instance)
        if isinstance(life, Instance):
            life.sleep()

    def wake(self, instance: int) -> None:
        life = self._instances.get(instance)
        if isinstance(life, Instance):
            life.wake()

    # --- information --------------------------------------------------------------------------------------------

    def facts(self, instance: int) -> InstanceInfo | None:
        """None: no such instance, or it is gone."""
        life = self._instances.get(instance)
        return life.facts() if life is not None else None

    def progress(self, instance: int) -> InstanceProgress | None:
        """None: no such instance, or it is gone."""
        life = self._instances.get(instance)
        if life is None:
            return None
        line = life.ring.last_line() if life.ring.total > life.line_from else ""
        loading = life.loading
        return InstanceProgress(line, loading.resident, loading.taken_in) if loading else InstanceProgress(line)

    def sockets(self) -> dict[str, str]:
        """By model, the unix socket at which its process listens."""
        plans = {life.spec.name: life.facts().plan for life in self._instances.values()}
        return {name: plan.endpoint.unix for name, plan in plans.items() if plan is not None and plan.endpoint.unix}

    async def write_records(self) -> None:
        """Again, since somebody has removed them: the next daemon would not know of what runs."""
        here = [life for life in self._instances.values() if isinstance(life, Instance)]
        await asyncio.gather(*(life.write_record() for life in here))

    def output(self, model: str) -> OutputRing:
        """What the instances of a model printed; empty for one that never ran."""
        return self._rings.setdefault(model, OutputRing())

    def process_finder(self) -> Callable[[], dict[int, list[int]]]:
        """What finds the live processes of every instance there is now, by its number: call it in a thread."""
        origins = {number: life.origin for number, life in self._instances.items() if isinstance(life, Instance)}
        return partial(self._groups.look, origins)

    # --- begin and end of the daemon ----------------------------------------------------------------------------

    async def survivors(self) -> list[Adoptable]:
        """At start-up: what an earlier daemon of this runtime directory left running to be taken over."""
        records = await asyncio.to_thread(self._context.records.read_all)
        found = []
        for stored in records:
            record = stored.record
            home = self._context.homes.get(record.home)
            wanted = stored.survives and stored.phase is not Phase.ENDING
            if wanted and home is not None and home.survives:
                members = await home.living(record)
                if members is None:
                    members = await asyncio.to_thread(self._context.table.members, record.tag, None)
                if members:
                    printed = await asyncio.to_thread(self._context.records.handed_on, record.tag)
                    found.append(Adoptable(stored, tuple(members), printed))
        return found

    async def sweep_leftovers(self) -> int:
        """At start-up, after the adoptions: end whatever else an earlier daemon of this runtime directory left.

        How many processes that were.
        """
        context = self._context
        spared = {life.tag.instance for life in self._instances.values()}
        records = await asyncio.to_thread(context.records.read_all)
        kept = [stored for stored in records if stored.record.tag.instance in spared]
        unwanted = [stored.record for stored in records if stored.record.tag.instance not in spared]
        count = len(await asyncio.to_thread(context.table.owned, self._owner, spared)) if unwanted else 0
        await asyncio.gather(*(end_recorded(context.homes, one, context.limits) for one in unwanted))
        swept = await sweep_leftovers(context.table, self._owner, context.clock, context.limits, spared)
        if swept:
            await self._tidy(spared)  # they were of no record: what else there is of them is not known
        used = {path for one in kept for path in (one.record.unix, one.plan.key_file) if path}
        await asyncio.to_thread(remove_strays, context.roots.instances, used)
        await asyncio.to_thread(remove_files, context.roots.instances, spared)
        return count or swept

    async def _tidy(self, spared: Collection[str]) -> None:
        for home in self._context.homes.values():
            try:
                await home.tidy(self._owner, spared)
            except HomeError as error:
                log.warning("%s: something of an earlier accelerd may be left: %s", home.kind, error)

    async def close(self, within: float, *, keep: bool = False) -> bool:
        """Stop all, the youngest first, and wait; after `within` seconds kill all. False: something would not go.

        `keep`: what can outlive the daemon is let go instead, without a word to the listener.
        """
        self._closing = True
        if keep:
            await self._let_go()
        for life in reversed(self._instances.values()):
            life.stop(Cause.STOPPED)
        gone = await self._wait_gone(within)
        if not gone:
            self.kill_all()
            gone = await self._wait_gone(self._context.limits.close_patience)
        for task in (left := list(self._tasks.values())):
            log.error("%s has not ended: giving up", task.get_name())
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        await asyncio.gather(*(home.close() for home in self._context.homes.values()))
        self.end_readers()
        return gone

    def end_readers(self) -> None:
        """Whoever follows what engines print gets what is there, and the end."""
        for ring in self._rings.values():
            ring.close()

    async def _let_go(self) -> None:
        for number, life in list(self._instances.items()):
            if isinstance(life, Instance) and life.let_go():
                event(log, NOTICE, f"{life.spec.name} stays loaded for the next accelerd", model=life.spec.name)
                task = self._tasks.pop(number)
                del self._instances[number]
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                with suppress(OSError):  # only old lines of `accelctl logs` depend on it
                    await asyncio.to_thread(self._context.records.hand_on, life.tag, life.ring.kept())

    def kill_all(self) -> None:
        for life in reversed(self._instances.values()):
            life.kill()

    async def _wait_gone(self, within: float) -> bool:
        tasks = list(self._tasks.values())
        if not tasks:
            return True
        _, left = await asyncio.wait(tasks, timeout=max(within, 0.0))
        return not left

    async def _run(self, life: Instance | InstanceElsewhere) -> None:
        exit = await life.run()
        del self._instances[life.number]
        del self._tasks[life.number]
        try:
            self._context.listener.instance_gone(life.number, exit)
        except Exception:
            text = f"a bug in accelerd: the end of instance {life.number} of {life.spec.name} could not be reported"
            event(log, logging.ERROR, text, message_id=names.MSG_BUG, model=life.spec.name, exc_info=True)
