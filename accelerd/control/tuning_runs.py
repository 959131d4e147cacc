"""Measures a model in several ways of running it: `accelctl tune`.

Each way is a model of its own, under a name that no configuration can have, which the scheduler loads like any other:
its memory is on the ledger, what is in use is not pushed out. Whatever happens, nothing of it is left, and the model is
loaded afterwards if it was before. Chooses nothing: tuning/search.py does.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any

import msgspec

from accelerd.base.errors import AccelError
from accelerd.base.names import TRIAL_SUFFIX
from accelerd.config.model import ModelSpec, Origin
from accelerd.devices.model import Device
from accelerd.engines.base import Endpoint, EngineBuild
from accelerd.engines.llama_server import LlamaServer
from accelerd.scheduler.lifecycle import State
from accelerd.scheduler.record import Snapshot
from accelerd.scheduler.service import Scheduler
from accelerd.tuning.meter import MeterError, MeterLoad, load_for, measure
from accelerd.tuning.search import RateSeries, TuningCandidate, TuningRow, TuningSearch, written
from accelerd.tuning.tuner import RuleTuner

log = logging.getLogger(__name__)

TRIED = Origin("accelctl tune")
TryOut = Callable[[ModelSpec | None], Awaitable[None]]  # see Daemon.try_out
Measure = Callable[[Endpoint, str, MeterLoad, Callable[[int], None]], Awaitable[tuple[RateSeries, RateSeries]]]


class SeriesStatus(msgspec.Struct):
    """Tokens a second."""

    median: float
    spread: float
    values: list[float]


class TuneRow(msgspec.Struct):
    """One way of running the model, and what was measured."""

    label: str
    settings: dict[str, Any]  # as they stand in accelerd.toml
    prompt: SeriesStatus | None
    generation: SeriesStatus | None
    seconds: float | None  # that a usual request takes
    failed: str | None  # why there are no numbers
    disturbed: bool  # other models worked meanwhile
    best: bool  # so far


class TuneProgress(msgspec.Struct, tag="progress", tag_field="event", omit_defaults=True, kw_only=True):
    """A step of a measurement, or the row of one that is over; or that it goes on."""

    elapsed: float = -1.0
    phase: str = ""  # "unloading", "loading", "warming up", "measuring"
    label: str = ""
    repeat: int | None = None
    repeats: int | None = None
    row: TuneRow | None = None


class TuneDone(msgspec.Struct, tag="done", tag_field="event", kw_only=True):
    """The best settings that were found, and every measurement."""

    model: str
    device: str
    program: str
    load: MeterLoad
    rows: list[TuneRow]
    settings: dict[str, Any]  # of the best that the model does not have now
    replaces: list[str]  # what a person wrote instead
    elapsed: float = 0.0


Tell = Callable[[TuneProgress], None]


class TuningRuns:
    """One measurement at a time."""

    def __init__(
        self,
        scheduler: Scheduler,
        try_out: TryOut,
        engines: Mapping[str, object],
        tuner: RuleTuner,
        measure: Measure = measure,
    ) -> None:
        self._scheduler = scheduler
        self._try_out = try_out
        self._engines = engines
        self._tuner = tuner
        self._measure = measure
        self._running: asyncio.Task[Any] | None = None
        self._restoring: set[asyncio.Task[None]] = set()

    def stop(self) -> None:
        """The daemon ends: give up what is being measured."""
        for task in (self._running, *self._restoring):
            if task is not None:
                task.cancel()

    async def run(self, name: str, *, quick: bool, force: bool, tell: Tell) -> TuneDone:
        """Measure; `tell` hears of each step and each row. AccelError; may be cancelled at any time."""
        if self._running is not None:
            raise AccelError("busy", "another model is being measured: one at a time")
        self._running = asyncio.current_task()
        try:
            return await self._run(self._scheduler.snapshot(name), quick=quick, force=force, tell=tell)
        finally:
            self._running = None

    async def _run(self, snapshot: Snapshot, *, quick: bool, force: bool, tell: Tell) -> TuneDone:
        spec = snapshot.spec
        if spec.embeddings or spec.rerank:
            raise AccelError("bad_request", f"cannot measure {spec.name}: only models that generate text can be")
        if not force:
            self._refuse_if_busy(spec.name)
        build, tuned, device = await self._settled(spec)
        load = load_for(spec.tokens, quick=quick)
        gpu = device is not None and device.kind == "gpu"
        search = TuningSearch(tuned, gpu, *self._tuner.cores(), quick)
        was_loaded = snapshot.state in (State.STARTING, State.READY)
        try:
            if snapshot.instance is not None:
                tell(TuneProgress(phase="unloading", label=spec.name))
                await self._scheduler.unload(spec.name)
            while (candidate := search.next()) is not None:
                row = await self._try(spec, candidate, load, tell)
                if not search.rows and row.failed:
                    raise AccelError("model_failed", f"cannot measure {spec.name}: {row.failed}")
                search.done(row)
                tell(TuneProgress(row=_row(row, search)))
        finally:
            await self._try_out(None)
            if was_loaded:
                self._restore(spec.name)
        return outcome(spec, build, device, load, search)

    async def _settled(self, spec: ModelSpec) -> tuple[EngineBuild, ModelSpec, Device | None]:
        """The program, the settings that the model has now, and its device.

        AccelError when the model could not be started, or its engine has nothing to set.
        """
        engine = self._engines[spec.engine]
        if not isinstance(engine, LlamaServer):
            raise AccelError("bad_request", f"cannot measure {spec.name}: {spec.engine} has nothing that could be set")
        settled = await engine.settle(spec)
        return settled.build, settled.tuned.spec, await self._tuner.device(spec, settled.build)

    def _refuse_if_busy(self, name: str) -> None:
        moving = (State.STARTING, State.DRAINING, State.OFFLOADING, State.WAKING, State.STOPPING, State.KILLING)
        busy = [s for s in self._scheduler.snapshots() if s.leases or s.queue or s.state in moving]
        if busy:
            what = ", ".join(
                f"{s.spec.name} ({f'{s.leases} running, {s.queue} waiting' if s.leases or s.queue else s.state})"
                for s in busy
            )
            raise AccelError(
                "busy",
                f"cannot measure {name} now, other work would falsify the numbers: {what};"
                " try again later, or measure all the same with --force",
                retry_after=30,
            )

    # --- one candidate ----------------------------------------------------------------------------------------

    async def _try(self, spec: ModelSpec, candidate: TuningCandidate, load: MeterLoad, tell: Tell) -> TuningRow:
        trial = replace(
            spec,
            name=f"{spec.name}{TRIAL_SUFFIX}",
            aliases=(),
            preload=False,
            pin=False,
            survive=False,
            idle_timeout=None,
            concurrency=1,
            **candidate.settings,
            origins={**spec.origins, **dict.fromkeys(candidate.settings, TRIED)},
        )
        tell(TuneProgress(phase="loading", label=candidate.label))
        await self._try_out(trial)
        try:
            await self._scheduler.load(trial.name)
            row = await self._measured(trial.name, candidate, load, tell)
        except AccelError as error:
            row = TuningRow(candidate, failed=_why(error))
        except MeterError as error:
            row = TuningRow(candidate, failed=str(error))
        await self._scheduler.unload(trial.name, force=True)
        return row

    async def _measured(self, name: str, candidate: TuningCandidate, load: MeterLoad, tell: Tell) -> TuningRow:
        lease = await self._scheduler.wait(name)
        disturbed = False

        def step(number: int) -> None:
            nonlocal disturbed
            disturbed = disturbed or self._others_work(name)
            phase = "measuring" if number else "warming up"
            tell(TuneProgress(phase=phase, label=candidate.label, repeat=number, repeats=load.repeats))

        try:
            prompt, generation = await self._measure(lease.endpoint, lease.secret, load, step)
            disturbed = disturbed or self._others_work(name)
            return TuningRow(candidate, prompt, generation, disturbed=disturbed)
        finally:
            self._scheduler.release(lease, None)

    def _others_work(self, name: str) -> bool:
        return any(s.leases or s.state is State.STARTING for s in self._scheduler.snapshots() if s.spec.name != name)

    # --- afterwards -------------------------------------------------------------------------------------------

    def _restore(self, name: str) -> None:
        """Have the model again, pushing nobody out. Nobody waits for it."""
        task = asyncio.get_running_loop().create_task(self._load(name), name=f"{name} after it was measured")
        self._restoring.add(task)
        task.add_done_callback(self._restoring.discard)

    async def _load(self, name: str) -> None:
        try:
            await self._scheduler.load(name, evict=False)
        except AccelError as error:
            log.warning("%s was loaded before it was measured and cannot be now: %s", name, error.message)


def _why(error: AccelError) -> str:
    """The reason, with the engine's last words where it said any."""
    tail = error.fields.get("tail") or ()
    return f"{error.message}: {tail[-1]}" if isinstance(tail, list | tuple) and tail else error.message


def outcome(
    spec: ModelSpec, build: EngineBuild, device: Device | None, load: MeterLoad, search: TuningSearch
) -> TuneDone:
    """What came of it."""
    changes = search.changes()
    own = spec.origins
    return TuneDone(
        model=spec.name,
        device=_device(device),
        program=f"{build.engine} {build.version}" + (f", {build.backend}" if build.backend else ""),
        load=load,
        rows=[_row(row, search) for row in search.rows],
        settings=written(changes),
        replaces=[f"{key} = {getattr(spec, key)} ({own[key]})" for key in changes if key in own],
    )


def _row(row: TuningRow, search: TuningSearch) -> TuneRow:
    def series(one: RateSeries | None) -> SeriesStatus | None:
        return SeriesStatus(one.median, one.spread, list(one.values)) if one is not None else None

    return TuneRow(
        label=row.candidate.label,
        settings=written(row.candidate.settings),
        prompt=series(row.prompt),
        generation=series(row.generation),
        seconds=row.seconds if row.seconds < math.inf else None,
        failed=row.failed or None,
        disturbed=row.disturbed,
        best=search.best is row,
    )


def _device(device: Device | None) -> str:
    if device is None:
        return "unknown"
    return f"{device.name} ({device.gfx})" if device.gfx else device.name
