"""A scheduler on a table: Core with a fake clock and processes that do what the test says."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from accelerd.base.errors import AccelError
from accelerd.base.events import EventStream
from accelerd.base.exits import Cause, Exit
from accelerd.config.model import ModelSpec, SchedulerSettings
from accelerd.engines.base import Endpoint
from accelerd.memory.model import Forecast, MemoryRequirement, in_ram
from accelerd.memory.reclaim import Changed
from accelerd.scheduler.core import Core
from accelerd.scheduler.events import MemoryNotReturned, ModelInUse, ModelTransition
from accelerd.scheduler.lifecycle import State
from accelerd.scheduler.placement import SharedLimits
from accelerd.scheduler.record import Lease, Residue, Waiter
from tests.fakes.clock import FakeClock

MIB = 1 << 20


def model(name: str, **settings: Any) -> ModelSpec:
    return ModelSpec(name=name, path=f"/models/{name}.gguf", **settings)


@dataclass
class Request:
    """One request of a client, and what became of it."""

    model: str
    waiter: Waiter | None = None
    lease: Lease | None = None
    error: AccelError | None = None
    done: bool = False  # a wish that was fulfilled

    def resolve(self, outcome: Lease | AccelError | None) -> None:
        assert self.lease is None, "resolved twice"
        assert self.error is None, "resolved twice"
        assert not self.done, "resolved twice"
        if isinstance(outcome, AccelError):
            self.error = outcome
        elif outcome is None:
            self.done = True
        else:
            self.lease = outcome


class StrictStream(EventStream):
    """What a subscriber raises is the test's failure."""

    def _deliver(self, event: object) -> None:
        for subscriber in self._subscribers.get(type(event), ()):
            subscriber(event)


@dataclass
class Bench:
    """What Core works with, kept for inspection. `memory` in bytes (of RAM) of models that have no forecast."""

    models: list[ModelSpec]
    settings: SchedulerSettings = field(default_factory=lambda: SchedulerSettings(min_resident=0))
    limits: SharedLimits = field(default_factory=lambda: SharedLimits(None, "no limit", None))
    memory: dict[str, int] = field(default_factory=dict)
    forecasts: dict[str, Forecast] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.clock = FakeClock()
        self.started: list[tuple[int, str]] = []
        self.stopped: list[tuple[int, Cause]] = []
        self.probed: list[int] = []
        self.sleeping: list[int] = []  # told to sleep, and have not answered
        self.waking: list[int] = []
        self.adopted: list[tuple[int, object]] = []
        self.slow_pools = False  # does memory come back only when the test says so?
        self.waited_for: dict[int, Changed] = {}  # instances whose memory is not back
        self.peaks: dict[str, dict[str, int]] = {}
        self.needs: dict[str, int] = {}
        self.placed: dict[str, MemoryRequirement] = {}  # where each model was started last
        self.looks = 0  # that Core asked for
        self.somebody_looks = False
        self.offers: list[tuple[str, dict[str, int]]] = []
        self.offered = ""  # what an offer says
        self.lost_memory: list[Residue] = []
        self.log: list[tuple[str, State, State]] = []
        self.uses: list[tuple[str, bool]] = []  # models whose first lease began or whose last ended
        self.events = events = StrictStream()
        events.subscribe(ModelTransition, self.on_transition)
        events.subscribe(ModelInUse, lambda event: self.uses.append((event.spec.name, event.in_use)))
        events.subscribe(MemoryNotReturned, lambda event: self.lost_memory.append(event.residue))
        self.core = Core(self.clock, self.settings, self.limits, events, jitter=lambda: 0.5)
        self.core.attach(self, self, self.look, self)  # type: ignore[arg-type]
        self.configure(self.models)

    def configure(self, models: list[ModelSpec], **more: Any) -> None:
        entries = [(spec, self.forecast(spec)) for spec in models]
        self.core.configure(entries, self.settings, self.limits, **more)

    def forecast(self, spec: ModelSpec) -> Forecast:
        return self.forecasts.get(spec.name) or Forecast((in_ram(self.memory.get(spec.name, MIB), "test"),))

    # --- Supervisor ---

    def start(self, instance: int, spec: ModelSpec, devices: Sequence[str] = ()) -> None:
        self.placed[spec.name] = self.core.snapshot(spec.name).need
        self.started.append((instance, spec.name))

    def stop(self, instance: int, reason: Cause = Cause.STOPPED) -> None:
        self.stopped.append((instance, reason))

    def probe(self, instance: int, *, thorough: bool = False) -> None:
        self.probed.append(instance)

    def sleep(self, instance: int) -> None:
        self.sleeping.append(instance)

    def wake(self, instance: int) -> None:
        self.waking.append(instance)

    def adopt(self, instance: int, spec: ModelSpec, found: object) -> None:
        self.adopted.append((instance, found))

    # --- memory ---

    def look(self) -> bool:
        self.looks += 1
        return self.somebody_looks

    def watch(self, instance: int, model: str, held: Mapping[str, int], changed: Changed) -> Bench | None:
        if not self.slow_pools:
            return None
        self.waited_for[instance] = changed
        return self

    def cancel(self) -> None:
        self.waited_for.clear()

    # --- ModelRequirements ---

    def suggest_smaller(self, spec: ModelSpec, room: Mapping[str, int]) -> str:
        self.offers.append((spec.name, dict(room)))
        return self.offered

    def raise_requirement(self, spec: ModelSpec, need: MemoryRequirement) -> None:
        self.needs[spec.name] = need.total

    def estimate_anew(self, spec: ModelSpec) -> Forecast:
        self.needs.pop(spec.name, None)
        return self.forecast(spec)

    def record_peak(self, spec: ModelSpec, need: MemoryRequirement, peak: Mapping[str, int]) -> None:
        self.peaks[spec.name] = dict(peak)

    def device(self, spec: ModelSpec) -> str:
        return "cpu" if spec.gpu_layers == 0 else "gpu"

    # --- events ---

    def on_transition(self, event: ModelTransition) -> None:
        self.log.append((event.spec.name, event.transition.before, event.transition.after))

    # --- what a test does ---

    def request(self, name: str) -> Request:
        request = Request(name)
        request.lease = self.core.acquire(name)
        if request.lease is None:
            deadline = self.clock.now + self.settings.queue_timeout
            request.waiter = Waiter(request.resolve, self.clock.now, deadline)
            self.core.submit(name, request.waiter)
        return request

    def request_load(self, name: str, *, may_evict: bool = True) -> Request:
        request = Request(name)
        request.waiter = Waiter(request.resolve, self.clock.now, None, wants_lease=False, may_evict=may_evict)
        self.core.submit(name, request.waiter)
        return request

    def instance(self, name: str) -> int:
        """The live instance of a model."""
        found = self.core.snapshot(name).instance
        assert found is not None
        return found

    def ready(self, name: str) -> None:
        self.core.instance_ready(self.instance(name), Endpoint(unix=f"/run/{name}.sock"), "secret")

    def gone(self, name: str, cause: Cause = Cause.STOPPED, message: str = "it ended", **more: Any) -> None:
        self.core.instance_gone(self.instance(name), Exit(cause, message, **more))

    def slept(self, name: str, trouble: str = "") -> None:
        """A model that was told to sleep says that it does, or why not."""
        self.sleeping.remove(self.instance(name))
        self.core.instance_asleep(self.instance(name), trouble)

    def woke(self, name: str, trouble: str = "") -> None:
        self.waking.remove(self.instance(name))
        self.core.instance_awake(self.instance(name), trouble)

    def loaded(self, name: str) -> None:
        """Load a model the way a person asks for it."""
        self.request_load(name)
        self.ready(name)

    def end(self, request: Request, ok: bool | None = True) -> None:
        assert request.lease is not None
        self.core.release(request.lease, ok)

    def pass_time(self, seconds: float) -> None:
        """Let time go by; tick at every deadline on the way, as the service does."""
        until = self.clock.now + seconds
        while (due := self.core.next_deadline()) <= until:
            self.clock.now = max(self.clock.now, due)
            before = (len(self.log), due)
            self.core.tick()
            if self.core.next_deadline() <= self.clock.now and before == (len(self.log), self.core.next_deadline()):
                raise AssertionError("tick did nothing about a deadline that is due")
        self.clock.now = until

    def back(self, instance: int, size: int = 0) -> None:
        """Of an ended instance's memory, `size` bytes are not back; 0: all is."""
        changed = self.waited_for[instance] if size else self.waited_for.pop(instance)
        changed(size, "VRAM of card0")

    def state(self, name: str) -> State:
        return self.core.snapshot(name).state

    def loads(self) -> list[str]:
        return [name for _, name in self.started]


class Watched(Bench, ABC):
    """A bench whose memory somebody looks at once a second."""

    @abstractmethod
    def look_now(self) -> None:
        """Somebody looks, and tells."""

    def pass_time(self, seconds: float) -> None:
        until = self.clock.now + seconds
        while self.clock.now < until:
            super().pass_time(min(1.0, until - self.clock.now))
            self.look_now()


def refusal(request: Request) -> tuple[str, str]:
    """Code and message of what a request was refused with."""
    assert request.error is not None
    return request.error.code, request.error.message
