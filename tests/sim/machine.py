"""The machine of the simulation: a clock that jumps between events, one pool of memory, clients, processes, a game.

Knows what really happens, whatever a manager believes: a load beyond the memory fails, an unload of a model at work is
held against the manager, and so is memory that the game has to wait for. Deterministic.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from tests.fakes.clock import FakeClock
from tests.sim.trace import GB, Model, Session, Step, Trace

SPARE = 4 * GB  # of the machine, beyond the budget that managers plan with
STOPPING = 0.7  # s from the signal until the memory is back
RAMP = 60.0  # s in which a game takes its memory, a second's share at a time


@dataclass(eq=False)
class Request:
    """One request and what became of it."""

    model: str
    service: float
    arrived: float
    answered: Callable[[Request], None]  # told when it is over, well or not
    started: float | None = None
    failed: str | None = None  # why


class Manager(Protocol):
    """Who decides which models are loaded."""

    def request(self, request: Request) -> None:
        """Sooner or later the machine must be told to `serve` or to `fail` it."""

    def served(self, request: Request) -> None:
        """The work on it has ended."""

    def loaded(self, model: str) -> None: ...
    def load_failed(self, model: str) -> None:
        """There was not enough memory; its process is gone."""

    def unloaded(self, model: str) -> None:
        """Its process is gone and its memory is back."""

    def foreign_changed(self) -> None: ...


@dataclass
class Result:
    """What came of a trace."""

    manager: str
    seed: int
    requests: int = 0
    loads: int = 0
    bytes_moved: int = 0
    waits: list[float] = field(default_factory=list)  # of those that were served
    failed: list[str] = field(default_factory=list)
    failed_loads: int = 0  # out of memory
    evicted_in_use: int = 0
    game_lacked: float = 0.0  # s
    game_lacked_bytes: float = 0.0  # byte-seconds
    peak: int = 0  # bytes that all models held at once

    def wait(self, share: float) -> float:
        """The wait that `share` of the requests did not exceed, s."""
        waits = sorted(self.waits)
        return waits[min(len(waits) - 1, int(share * len(waits)))] if waits else 0.0


class Machine:
    """See the module's text."""

    def __init__(self, trace: Trace, name: str) -> None:
        self.trace = trace
        self.clock = FakeClock(0.0)
        self.models: dict[str, Model] = {model.name: model for model in trace.models}
        self.held: dict[str, int] = {}  # bytes of the models that have a process
        self.running: dict[str, set[Request]] = {name: set() for name in self.models}
        self.foreign = 0
        self.result = Result(name, trace.seed)
        self.manager: Manager
        self._ready: set[str] = set()
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._counted_until = 0.0

    @property
    def now(self) -> float:
        return self.clock.now

    @property
    def used(self) -> int:
        return sum(self.held.values())

    @property
    def budget(self) -> int:
        """Bytes that models may have now."""
        return self.trace.capacity - self.foreign

    def at(self, time: float, call: Callable[[], None]) -> None:
        heapq.heappush(self._events, (max(time, self.now), next(self._numbers), call))

    def after(self, seconds: float, call: Callable[[], None]) -> None:
        self.at(self.now + seconds, call)

    def run(self, manager: Manager) -> Result:
        """Play the whole trace, and what is still going on at its end."""
        self.manager = manager
        for session in self.trace.sessions:
            self.at(session.start, partial(self._send, session, 0))
        self._plan_foreign()
        while self._events:
            time, _, call = heapq.heappop(self._events)
            self._count_until(time)
            self.clock.now = time
            call()
            if self.over:
                break
        return self.result

    @property
    def over(self) -> bool:
        """All requests are answered."""
        return self.result.requests == self.trace.requests == len(self.result.waits) + len(self.result.failed)

    # --- clients ------------------------------------------------------------------------------------------------

    def _send(self, session: Session, index: int) -> None:
        step: Step = session.steps[index]

        def answered(_: Request) -> None:
            if index + 1 < len(session.steps):
                self.after(step.think, lambda: self._send(session, index + 1))

        self.result.requests += 1
        self.manager.request(Request(step.model, step.service, self.now, answered))

    def serve(self, request: Request) -> None:
        """The model is ready and works on it from now on."""
        assert request.model in self._ready, f"{request.model} is not loaded"
        assert len(self.running[request.model]) < self.models[request.model].parallel, f"{request.model} has no slot"
        assert request.started is None, "served twice"
        assert request.failed is None, "served although it was refused"
        request.started = self.now
        self.running[request.model].add(request)
        self.result.waits.append(self.now - request.arrived)
        self.after(request.service, lambda: self._served(request))

    def fail(self, request: Request, why: str) -> None:
        assert request.started is None, "refused although it was served"
        assert request.failed is None, "refused twice"
        request.failed = why
        self.result.failed.append(f"{request.model}: {why}")
        self.after(0.0, lambda: request.answered(request))

    def _served(self, request: Request) -> None:
        self.running[request.model].discard(request)
        self.manager.served(request)
        request.answered(request)

    # --- processes ----------------------------------------------------------------------------------------------

    def load(self, name: str) -> None:
        """Start a model's process. It takes its memory at once."""
        model = self.models[name]
        assert name not in self.held, f"{name} runs already"
        self.result.loads += 1
        if self.used + model.size + self.foreign > self.trace.capacity + SPARE:
            self.result.failed_loads += 1
            self.after(model.load_time / 2, lambda: self.manager.load_failed(name))
            return
        self.held[name] = model.size
        self.result.bytes_moved += model.size
        self.result.peak = max(self.result.peak, self.used)
        self.after(model.load_time, lambda: self._loaded(name))

    def unload(self, name: str) -> None:
        """Tell a process to end; what it works on is lost."""
        if self.running[name]:
            self.result.evicted_in_use += 1
        self._ready.discard(name)
        self.after(STOPPING, lambda: self._unloaded(name))

    def _loaded(self, name: str) -> None:
        self._ready.add(name)
        self.manager.loaded(name)

    def _unloaded(self, name: str) -> None:
        del self.held[name]
        self.manager.unloaded(name)

    # --- the game -----------------------------------------------------------------------------------------------

    def _plan_foreign(self) -> None:
        before = 0
        for time, size in self.trace.foreign:
            steps = int(RAMP) if size > before else 1
            for step in range(1, steps + 1):
                part = before + (size - before) * step // steps
                self.at(time + step - 1, partial(self._foreign, part))
            before = size

    def _foreign(self, size: int) -> None:
        self.foreign = size
        self.manager.foreign_changed()

    def _count_until(self, time: float) -> None:
        lacking = self.used + self.foreign - self.trace.capacity - SPARE
        if lacking > 0:
            self.result.game_lacked += time - self._counted_until
            self.result.game_lacked_bytes += lacking * (time - self._counted_until)
        self._counted_until = time
