"""What is known about models beside their lifecycle: what they need, plans, how long they took, what they printed.

Owns the reading side of models for the operations of this room, the memory of what models turned out to need, and what
their names mean. Decides nothing.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import msgspec
from msgspec.structs import replace

from accelerd.base import names
from accelerd.base.errors import AccelError
from accelerd.base.events import EventStream
from accelerd.base.model_source import Source
from accelerd.base.ports import Roots
from accelerd.config.model import LAUNCH_FIELDS, ModelSpec
from accelerd.control.state_store import StateStore
from accelerd.devices.model import Device
from accelerd.downloads.cache import cached
from accelerd.engines import planning
from accelerd.engines.base import Engine, EngineBuild, LaunchPlan
from accelerd.estimate.placing import default_device
from accelerd.memory.learned import Learned
from accelerd.memory.model import Forecast, MemoryRequirement, in_ram
from accelerd.scheduler.events import ModelLoaded
from accelerd.system.records import event

log = logging.getLogger(__name__)

DISK_PATIENCE = 0.3  # s that a model's volume has to answer: a start, a reload and an `explain` wait for it
SLOW_DISK = 5.0  # s that it has where nobody else waits
AT_ONCE = 4  # models whose files are looked into at a time
PATIENCE = 10.0  # s for all of them


def fingerprint(spec: ModelSpec) -> str:
    """Names one way of running one model in the state file. Says nothing about its environment, which may be secret."""
    launch = {name: getattr(spec, name) for name in LAUNCH_FIELDS if name != "env"}
    return hashlib.sha256(msgspec.json.encode(launch, order="sorted")).hexdigest()[:24]


def may_be_missing(spec: ModelSpec) -> bool:
    """Is it a model of a hub, whose files accelerd downloads? The other engines fetch theirs themselves."""
    return spec.engine == "llama-server" and spec.model is not None and spec.path is None


def files_missing(spec: ModelSpec, home: Path) -> bool:
    """Must they be downloaded before it can be loaded? Reads directories."""
    try:
        return cached(Source.parse(spec.model or ""), os.environ, home) is None
    except AccelError:
        return False  # the start says what is wrong


class ModelInfo:
    """What is known of models and their processes. Reads only, but for the memory of what models needed."""

    def __init__(
        self,
        engines: Mapping[str, Engine],
        state: StateStore,
        roots: Roots,
        devices: Callable[[], Sequence[Device]],
        learned: Learned,
        events: EventStream,
        patience: float = PATIENCE,
    ) -> None:
        """`patience`: see `forecasts`."""
        self._patience = patience
        self._engines = engines
        self._state = state
        self._roots = roots
        self._devices = devices
        self.learned = learned
        self.silent: set[str] = set()  # models whose files did not answer when they were looked at last
        self._broken: set[str] = set()  # models of which a bug keeps from telling what they need
        self._estimates: dict[str, Forecast] = {}  # by model, whatever was learned since
        events.subscribe(ModelLoaded, self.on_model_loaded)

    async def plan(self, spec: ModelSpec, placed: MemoryRequirement) -> LaunchPlan:
        """How the model would be started now, placed like this. AccelError when it could not."""
        await planning.answer(spec, self._roots.home, DISK_PATIENCE)
        return await self._engines[spec.engine].plan(spec, self._roots.runtime, placed)

    async def forecasts(self, specs: Iterable[ModelSpec], *, ask: bool = False) -> list[tuple[ModelSpec, Forecast]]:
        """What each will need: estimated, unless it was measured. `ask`: see Engine.forecast.

        A disk that does not answer holds nobody up for longer than the patience: what lies on it is not known then.
        """
        few = asyncio.Semaphore(AT_ONCE)
        until = asyncio.get_running_loop().time() + self._patience

        async def one(spec: ModelSpec) -> tuple[ModelSpec, Forecast]:
            try:
                async with asyncio.timeout_at(until), few:
                    return spec, await self.forecast(spec, ask=ask)
            except TimeoutError:
                known = self._silent(spec, f"its files did not answer in {self._patience:g} s")
                return spec, replace(known, provisional=not ask)

        return await asyncio.gather(*map(one, specs))

    async def forecast(self, spec: ModelSpec, *, ask: bool = False, within: float = DISK_PATIENCE) -> Forecast:
        """What one model will need; not known while its volume has not answered for `within` seconds.

        A bug there is that model's trouble alone: it is logged, and the start says what comes of it.
        """
        try:
            await planning.answer(spec, self._roots.home, within)
        except AccelError as error:
            return replace(self._silent(spec, error.message), provisional=not ask)
        self.silent.discard(spec.name)
        try:
            found = await self._estimate(spec, ask=ask)
        except Exception as error:
            if spec.name not in self._broken:
                text = f"a bug in accelerd: it is not known what memory {spec.name} needs"
                event(log, logging.ERROR, text, message_id=names.MSG_BUG, model=spec.name, exc_info=True)
            self._broken.add(spec.name)
            known = self._known(spec, f"a bug in accelerd, see its log ({type(error).__name__})")
            return replace(known, provisional=not ask)
        self._broken.discard(spec.name)
        return found

    async def _estimate(self, spec: ModelSpec, *, ask: bool) -> Forecast:
        estimate = await self._engines[spec.engine].forecast(spec, self._devices(), ask=ask)
        # What a person has declared, and files that nobody can read, have no key: then the settings are one.
        key = estimate.key or fingerprint(spec)
        missing = await asyncio.to_thread(files_missing, spec, self._roots.home) if may_be_missing(spec) else False
        load_seconds = self.load_seconds(spec)
        estimate = replace(estimate, key=key, load_seconds=load_seconds, missing=missing)
        self._estimates[spec.name] = replace(estimate, provisional=False)  # the best that is known
        return self.learned.apply(estimate)

    async def build(self, spec: ModelSpec) -> EngineBuild:
        """The program that would run it, in accelerd's environment. AccelError."""
        return await self._engines[spec.engine].build(spec)

    def _silent(self, spec: ModelSpec, why: str) -> Forecast:
        self.silent.add(spec.name)
        return self._known(spec, why)

    def _known(self, spec: ModelSpec, why: str) -> Forecast:
        """What was known before, if anything."""
        return self._estimates.setdefault(spec.name, Forecast((in_ram(0, f"unknown: {why}"),)))

    async def best_forecast(self, spec: ModelSpec) -> Forecast:
        """What one model will need; its program is asked, unless that would start a container. A slow disk has time."""
        ask = not spec.contained or spec.home == "container"
        return await self.forecast(spec, ask=ask, within=min(SLOW_DISK, spec.start_timeout))

    def record_peak(self, spec: ModelSpec, need: MemoryRequirement, peak: Mapping[str, int]) -> None:
        """The most, by pool, that the loaded model was seen to use."""
        self.learned.saw(self._key(spec), need, peak, settled=True, model=spec.name, file=spec.path or "")

    def raise_requirement(self, spec: ModelSpec, need: MemoryRequirement) -> None:
        """It ran out of memory: from now on it needs so much."""
        self.learned.outgrown(self._key(spec), need, need.total, model=spec.name, file=spec.path or "")

    def estimate_anew(self, spec: ModelSpec) -> Forecast:
        """The estimate, whatever happened in the past."""
        self.learned.forget(self._key(spec))
        return self._estimates[spec.name]

    def suggest_smaller(self, spec: ModelSpec, room: Mapping[str, int]) -> str:
        """What of the model would fit into so much of each pool: one clause, or nothing.

        Engines know estimates. If the model was seen to need more than that, it will with other settings, too.
        """
        estimate = self._estimates.get(spec.name)
        if estimate is not None:
            guessed, known = estimate.options[0].total, self.learned.apply(estimate).options[0].total
            if known > guessed:
                room = {pool: size * guessed // known for pool, size in room.items()}
        return self._engines[spec.engine].suggest_smaller(spec, room)

    def on_model_loaded(self, event: ModelLoaded) -> None:
        self._state.remember_load(fingerprint(event.spec), event.seconds)
        self.learned.loaded(self._key(event.spec), event.need)

    def _key(self, spec: ModelSpec) -> str:
        estimate = self._estimates.get(spec.name)
        return estimate.key if estimate is not None else ""

    def load_seconds(self, spec: ModelSpec) -> float | None:
        """How long the last load took."""
        return self._state.load_seconds(fingerprint(spec))

    def device(self, spec: ModelSpec) -> str:
        """The id of the device that the model runs on, or would now."""
        estimate = self._estimates.get(spec.name)
        placed = estimate.options[0].devices if estimate is not None else ()
        return next((id for id in placed), "") or default_device(spec, self._devices())
