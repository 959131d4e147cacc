"""Who gets room, who must make it, and who is served next: the queue and the moves of models between states.

How room is made: models that wait for room are served oldest request first. A model that must leave goes at once if it
has been idle for `linger`; a busy one keeps serving until the oldest request that needs its place has waited
`max_overtake`. From then on it only serves requests older than that one, then drains. So A B C A B C costs three
loads, and nobody is overtaken for longer than `max_overtake`.

Owned and driven by Core; pure like it.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Protocol

from accelerd.config.model import ModelSpec, SchedulerSettings
from accelerd.errors import AccelError
from accelerd.instances import Cause
from accelerd.ports import Clock
from accelerd.scheduler.lifecycle import LEAVING, Event, State, step
from accelerd.scheduler.placement import Limits, choose_victims, obstacle, outgrown
from accelerd.scheduler.record import Lease, Record, Residue, Transition, Waiter

CPU = "cpu"


class Effects(Protocol):
    """What Core asks of the outside. No call may re-enter Core before it returns."""

    def start(self, instance: int, spec: ModelSpec) -> None: ...
    def stop(self, instance: int, cause: Cause) -> None: ...
    def adopt_found(self, instance: int, spec: ModelSpec, found: object) -> None: ...
    def probe(self, instance: int) -> None: ...
    def reclaim(self, instance: int, spec: ModelSpec, memory: int) -> bool:
        """All its processes are gone: must its memory be waited for? Then `memory_residue` follows, with 0 at last."""
        ...

    def lost(self, residue: Residue) -> None:
        """Memory of an ended model does not come back in time."""

    def outgrown(self, spec: ModelSpec, memory: int) -> None:
        """Remember that the model needs at least `memory` bytes."""
        ...

    def estimate_anew(self, spec: ModelSpec) -> tuple[int, str]:
        """Forget that; bytes to reserve and where the number comes from."""
        ...

    def device(self, spec: ModelSpec) -> str:
        """What the model runs on, by name; CPU is the one that a hanging process does not spoil for others."""
        ...

    def moved(self, record: Record, transition: Transition) -> None: ...
    def in_use(self, spec: ModelSpec, busy: bool) -> None:
        """Its first lease was given, or its last has ended. On the path of requests: must be cheap."""
        ...

    def jitter(self) -> float:
        """A number in [0, 1)."""
        ...


class Admission:
    """The models, the queue in front of them, and the only code that moves a model from state to state."""

    def __init__(self, clock: Clock, effects: Effects, settings: SchedulerSettings, limits: Limits) -> None:
        self.clock = clock
        self.effects = effects
        self.settings = settings
        self.limits = limits
        self.closing = False
        self.records: dict[str, Record] = {}
        self.instances: dict[int, Record] = {}
        self.residues: dict[int, Residue] = {}  # by instance
        self.queued = 0  # waiters of all models together
        self.wake = math.inf  # when the queue wants `schedule` called again
        self._next_instance = 1

    @property
    def lost(self) -> list[Residue]:
        """Memory on the ledger that belongs to no model's life any more."""
        return [residue for residue in self.residues.values() if not residue.waited_for]

    @property
    def room(self) -> Limits:
        """The limits, less what is lost and but for devices that a model which cannot be ended may hold."""
        stuck = {r.device: r.spec.name for r in self.records.values() if r.stuck and r.device != CPU}
        if not stuck and not self.residues:
            return self.limits
        return replace(self.limits, lost=tuple(self.lost), quarantined=stuck)

    def enqueue(self, record: Record, waiter: Waiter) -> None:
        record.waiting.append(waiter)
        self.queued += 1

    def remove(self, record: Record, waiter: Waiter) -> bool:
        """Take a waiter out of the queue without resolving it; False if it is not in it."""
        if waiter not in record.waiting:
            return False
        record.waiting.remove(waiter)
        self.queued -= 1
        return True

    def grant(self, record: Record) -> Lease:
        assert record.instance is not None
        assert record.endpoint is not None
        lease = Lease(record, record.instance, record.endpoint, record.secret, self.clock.monotonic())
        record.active.add(lease)
        if len(record.active) == 1:
            self.effects.in_use(record.spec, True)
        return lease

    def schedule(self) -> None:
        """Bring the world one step nearer to what the queue wants. Idempotent; called after every event."""
        now = self.clock.monotonic()
        self._retire_outdated()
        while True:
            self.wake = math.inf
            cutoffs = self._make_room(now) if self.queued and not self.closing else {}
            before = self.queued
            for record in self.records.values():
                if record.state is State.READY:
                    self._serve(record, cutoffs.get(record.spec.name))
                if record.state is State.DRAINING and not record.active:
                    self.stop(record, record.reason)
            if self.queued == before:
                break  # else some who waited are served: who must make room looks different now

    def _retire_outdated(self) -> None:
        for record in self.records.values():
            if not (record.removed or record.next_spec is not None):
                continue
            why = "removed from the configuration" if record.removed else "configuration changed"
            if record.state is State.READY:
                self.evict(record, why)
            elif record.state is State.STARTING:
                self.stop(record, why)

    def startable(self, record: Record, now: float) -> bool:
        if record.state is State.STOPPED:
            return True
        return record.state in (State.BACKOFF, State.FAILED) and record.retry_at is not None and record.retry_at <= now

    def _make_room(self, now: float) -> dict[str, float]:
        """Start what can start, oldest wait first; name the models that must make room and from when.

        Returned: name → arrival time after which its requests must wait behind the one that needs the room.
        """
        waiting = [r for r in self.records.values() if r.waiting and self.startable(r, now)]
        room = self.room
        planned: list[Record] = []
        leaving: set[str] = set()
        cutoffs: dict[str, float] = {}
        for target in sorted(waiting, key=lambda r: r.waiting[0].arrived):
            occupied = [r for r in self.records.values() if r.occupied]
            future = [r for r in occupied if r.state not in LEAVING and r.spec.name not in leaving]
            may_evict = any(w.may_evict for w in target.waiting)
            movable = [r for r in future if r.state is State.READY and not r.spec.pin and may_evict]
            staying = [r for r in future if r not in movable]
            movable.sort(key=lambda r: (bool(r.active or r.waiting), r.last_used))
            victims = choose_victims(target, [*staying, *planned], movable, room)
            if victims is None:
                if self._hopeless(target, staying, may_evict=may_evict):
                    continue
                break  # those before it take the room for now; nobody behind it may overtake
            if not victims and obstacle(target, occupied, room) is None:
                self.start(target)
                continue
            planned.append(target)
            head = target.waiting[0].arrived
            for victim in victims:
                leaving.add(victim.spec.name)
                self._press(victim, target, head, now, cutoffs)
        return cutoffs

    def _press(self, victim: Record, target: Record, head: float, now: float, cutoffs: dict[str, float]) -> None:
        """Make `victim` leave for `target`: now if it is idle, at the bound on overtaking if it is not."""
        if not victim.active and not victim.waiting:
            free_at = min(victim.last_used + self.settings.linger, head + self.settings.max_overtake)
            if free_at <= now:
                self.evict(victim, f"made room for {target.spec.name}")
            else:
                self.wake = min(self.wake, free_at)
            return
        due = head + self.settings.max_overtake
        if due <= now:
            cutoffs[victim.spec.name] = min(cutoffs.get(victim.spec.name, math.inf), head)
        else:
            self.wake = min(self.wake, due)

    def _hopeless(self, target: Record, staying: list[Record], *, may_evict: bool) -> bool:
        """Refuse those who wait for `target` if no leaving model will ever make room. True if refused."""
        fixed = [r for r in staying if r.spec.pin] if may_evict else staying
        why = obstacle(target, fixed, self.room)
        if why is None:
            return False
        name = target.spec.name
        text, code = f"cannot load {name}: {why}", "does_not_fit"
        if target.device in self.room.quarantined:
            code = "device_quarantined"
        elif outgrown(target):
            text, code = f"{text}; accelctl reset {name} has it tried with the estimate again", "model_out_of_memory"
        self.reject_all(target, AccelError(code, text, param="model"))
        return True

    def _serve(self, record: Record, cutoff: float | None) -> None:
        """Grant free slots, in order; past `cutoff` only to those who came before it, then drain."""
        while record.waiting and not record.probing:
            waiter = record.waiting[0]
            if waiter.wants_lease:
                if len(record.active) >= record.spec.slots or (cutoff is not None and waiter.arrived > cutoff):
                    break
                lease: Lease | None = self.grant(record)
            else:
                lease = None
            record.waiting.popleft()
            self.queued -= 1
            waiter.resolve(lease)
        if cutoff is not None and not (record.waiting and record.waiting[0].arrived <= cutoff):
            self.evict(record, "others waited long enough for its place")

    # --- small moves ------------------------------------------------------------------------------------------

    def start(self, record: Record) -> None:
        instance = self._new_instance(record, adopted=False)
        wanted = record.waiting[0].wants_lease if record.waiting else False
        self.move(record, Event.START, "a request needs it" if wanted else "asked to load")
        self.effects.start(instance, record.spec)

    def adopt(self, record: Record, found: object) -> None:
        instance = self._new_instance(record, adopted=True)
        self.move(record, Event.ADOPT, "an earlier accelerd started it")
        self.effects.adopt_found(instance, record.spec, found)

    def _new_instance(self, record: Record, *, adopted: bool) -> int:
        record.instance = instance = self._next_instance
        self._next_instance += 1
        self.instances[instance] = record
        record.started_at, record.retry_at, record.adopted = self.clock.monotonic(), None, adopted
        return instance

    def evict(self, record: Record, reason: str) -> None:
        self.move(record, Event.DRAIN, reason)
        if not record.active:
            self.stop(record, reason)

    def stop(self, record: Record, reason: str, cause: Cause = Cause.STOPPED) -> None:
        assert record.instance is not None
        self.move(record, Event.STOP, reason)
        record.stop_reason = reason
        self.effects.stop(record.instance, cause)

    def wish(self, record: Record) -> None:
        """Have the model loaded again by itself, evicting nobody."""
        now = self.clock.monotonic()
        record.waiting.append(Waiter(lambda _: None, now, None, wants_lease=False, may_evict=record.spec.pin))
        self.queued += 1

    def reject_all(self, record: Record, error: AccelError) -> None:
        waiting = list(record.waiting)
        record.waiting.clear()
        self.queued -= len(waiting)
        for waiter in waiting:
            waiter.resolve(error)

    def move(self, record: Record, event: Event, reason: str) -> None:
        before, now = record.state, self.clock.monotonic()
        record.state = step(before, event)
        record.since = record.since if record.state is before else now
        record.reason = reason
        transition = Transition(now, before, record.state, reason, event)
        record.history.append(transition)
        self.effects.moved(record, transition)
