"""How others decide, over the same trace: least recently used by bytes, Ollama's order, llama-swap's groups, foresight.

Each follows its original in what it knows, what it unloads and whom it lets wait; they share slots, idle timeouts and
how processes start and end. Written from descriptions of their behaviour.
"""

from __future__ import annotations

import bisect
import math
from collections import deque
from collections.abc import Callable

from tests.sim.machine import Machine, Request


class Baseline:
    """Engines with slots and idle timeouts; `advance` decides what is loaded."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.ready: set[str] = set()
        self.loading: set[str] = set()
        self.stopping: set[str] = set()
        self.last_used: dict[str, float] = {}
        self.engine: dict[str, deque[Request]] = {name: deque() for name in machine.models}  # for its free slots
        self.queue: list[Request] = []  # for models that are not ready

    # --- what the machine tells ---

    def request(self, request: Request) -> None:
        self.queue.append(request)
        self.step()

    def served(self, request: Request) -> None:
        name = request.model
        self.last_used[name] = self.machine.now
        timeout = self.machine.models[name].idle_timeout
        if timeout is not None:
            self.machine.after(timeout, lambda: self._idle(name, timeout))
        self.step()

    def loaded(self, model: str) -> None:
        self.loading.discard(model)
        self.ready.add(model)
        self.last_used[model] = self.machine.now
        self.step()

    def load_failed(self, model: str) -> None:
        self.loading.discard(model)
        for request in [r for r in self.queue if r.model == model]:
            self.queue.remove(request)
            self.machine.fail(request, "no memory for its load")
        self.step()

    def unloaded(self, model: str) -> None:
        self.stopping.discard(model)
        self.step()

    def foreign_changed(self) -> None:
        self.step()

    # --- the parts of a decision ---

    def step(self) -> None:
        for request in [r for r in self.queue if self.may_join(r)]:
            self.queue.remove(request)
            self.engine[request.model].append(request)
        self._fill()
        self.advance()

    def may_join(self, request: Request) -> bool:
        """May the request go to its model although others wait for room?"""
        return request.model in self.ready

    def advance(self) -> None:
        """Load and unload for those in the queue."""
        raise NotImplementedError

    def _fill(self) -> None:
        for name, requests in self.engine.items():
            while requests and len(self.machine.running[name]) < self.machine.models[name].parallel:
                self.machine.serve(requests.popleft())

    def busy(self, name: str) -> bool:
        return bool(self.machine.running[name] or self.engine[name])

    def idle(self) -> list[str]:
        return [name for name in sorted(self.ready) if not self.busy(name)]

    def size(self, name: str) -> int:
        return self.machine.models[name].size

    def free(self) -> int:
        """Bytes of the budget that nobody has, with what is on its way back."""
        leaving = sum(self.size(name) for name in self.stopping)
        return self.machine.budget - self.machine.used + leaving

    def load(self, name: str) -> None:
        self.loading.add(name)
        self.machine.load(name)

    def put_away(self, name: str) -> None:
        self.ready.discard(name)
        self.stopping.add(name)
        self.machine.unload(name)

    def _idle(self, name: str, timeout: float) -> None:
        due = self.last_used.get(name, math.inf) + timeout
        if name in self.ready and not self.busy(name) and due <= self.machine.now:
            self.put_away(name)
            self.step()


class Lru(Baseline):
    """By bytes: the least recently used idle models leave until there is room; it sees at loading what others use.

    Who must wait for room blocks those behind it that need room as well.
    """

    def advance(self) -> None:
        for name in dict.fromkeys(request.model for request in self.queue):
            if name in self.loading:
                continue
            if name in self.stopping or not self._room_for(name):
                return

    def _room_for(self, name: str) -> bool:
        """Load it, or have others leave for it; False: it cannot be done now."""
        if self.machine.models[name].size > self.machine.budget:
            for request in [r for r in self.queue if r.model == name]:
                self.queue.remove(request)
                self.machine.fail(request, "others have the memory")
            return True
        missing = self.size(name) - self.free()
        victims = self.victims(name, missing) if missing > 0 else []
        if victims is None:
            return False
        for victim in victims:
            self.put_away(victim)
        if self.machine.used + self.size(name) > self.machine.budget:
            return False  # until they are gone
        self.load(name)
        return True

    def victims(self, target: str, missing: int) -> list[str] | None:
        return self._enough(sorted(self.idle(), key=lambda name: self.last_used[name]), missing)

    def _enough(self, candidates: list[str], missing: int) -> list[str] | None:
        """The first of them that free so much, without those that the later ones made unnecessary."""
        chosen: list[str] = []
        for name in candidates:
            if missing <= 0:
                break
            chosen.append(name)
            missing -= self.size(name)
        if missing > 0:
            return None
        for name in list(chosen):
            if missing + self.size(name) <= 0:
                chosen.remove(name)
                missing += self.size(name)
        return chosen


class YieldingLru(Lru):
    """The same, and idle models leave at once when others need the memory."""

    def foreign_changed(self) -> None:
        missing = -self.free()
        for name in sorted(self.idle(), key=lambda n: self.last_used[n]):
            if missing <= 0:
                break
            self.put_away(name)
            missing -= self.size(name)
        super().foreign_changed()


class Foresight(Lru):
    """The same, but it knows when each model will be wanted next: about what could be reached at best."""

    def __init__(self, machine: Machine) -> None:
        super().__init__(machine)
        self._times: dict[str, list[float]] = {name: [] for name in machine.models}
        for session in machine.trace.sessions:
            at = session.start
            for step in session.steps:
                self._times[step.model].append(at)
                at += step.service + step.think
        for times in self._times.values():
            times.sort()

    def victims(self, target: str, missing: int) -> list[str] | None:
        now = self.machine.now

        def worth(name: str) -> float:
            times = self._times[name]
            index = bisect.bisect_right(times, now)
            soon = 1.0 / (times[index] - now + 1.0) if index < len(times) else 0.0
            return soon * (self.machine.models[name].load_time + 15.0) / self.size(name)

        return self._enough(sorted(self.idle(), key=worth), missing)


class Ollama(Baseline):
    """One load at a time, in order of arrival; what fits is 80 % of what is free. Requests for loaded models pass.

    The one with the shortest keep-alive leaves, then by name, one a step, an idle one if there is one.

    `most`: models loaded at once; None: as many as there is memory for.
    """

    def __init__(self, machine: Machine, most: int | None) -> None:
        super().__init__(machine)
        self._most = most
        self._expiring: str | None = None

    def may_join(self, request: Request) -> bool:
        return request.model in self.ready and request.model != self._expiring

    def unloaded(self, model: str) -> None:
        if model == self._expiring:
            self._expiring = None
        super().unloaded(model)

    def advance(self) -> None:
        if self._expiring is not None:
            if self._expiring in self.ready and not self.busy(self._expiring):
                self.put_away(self._expiring)
            elif self._expiring not in self.ready | self.stopping:
                self._expiring = None
            return
        if not self.queue or self.loading or self.stopping:
            return
        name = self.queue[0].model
        if not self.ready or (self._within_most() and self._fits(name)):
            self.load(name)  # alone it is loaded whatever is free
            return
        order = sorted(self.ready, key=lambda n: (self._keep_alive(n), n))
        self._expiring = next((n for n in order if not self.busy(n)), order[0])
        if not self.busy(self._expiring):
            self.put_away(self._expiring)

    def _within_most(self) -> bool:
        return self._most is None or len(self.ready) < self._most

    def _fits(self, name: str) -> bool:
        return self.size(name) <= 0.8 * (self.machine.budget - self.machine.used)

    def _keep_alive(self, name: str) -> float:
        timeout = self.machine.models[name].idle_timeout
        return math.inf if timeout is None else timeout


class Groups(Baseline):
    """llama-swap: groups written by hand so that any one of each swapping group fits beside the others.

    A group that swaps has one model at a time; its models swap in order of arrival, when the one before is idle, and
    requests for what is loaded pass those who wait. Nothing is known of memory.
    """

    ALWAYS = ("assistant", "embed", "rerank", "router", "complete", "home", "mail")

    def __init__(self, machine: Machine) -> None:
        super().__init__(machine)
        always = [machine.models[name] for name in self.ALWAYS]
        rest = [model for model in machine.models.values() if model not in always]
        room = machine.trace.capacity - sum(model.size for model in always) - max(model.size for model in rest)
        self._group: dict[str, int | None] = dict.fromkeys(self.ALWAYS)  # None: stays beside all others
        self._group |= {model.name: int(model.size <= room) for model in rest}

    def advance(self) -> None:
        for name in dict.fromkeys(request.model for request in self.queue):
            group = self._group[name]
            members = [n for n, g in self._group.items() if g == group and n != name] if group is not None else []
            if name in self.loading | self.stopping or any(n in self.loading | self.stopping for n in members):
                continue
            loaded = [n for n in members if n in self.ready]
            if not loaded:
                self.load(name)
            elif not any(self.busy(n) for n in loaded):
                for victim in loaded:
                    self.put_away(victim)


Make = Callable[[Machine], Baseline]
BASELINES: dict[str, Make] = {
    "lru": Lru,
    "lru that yields": YieldingLru,
    "ollama": lambda machine: Ollama(machine, 3),
    "ollama, no limit": lambda machine: Ollama(machine, None),
    "llama-swap groups": Groups,
    "foresight": Foresight,
}
