"""Admission: which model is started, which must leave for it, and which request is served next.

Models that wait for room are served oldest request first. A model that must leave is evicted at once if it has been
idle for `linger`; a busy one keeps serving until the oldest request that needs its place has waited `max_overtake`.
From then on it only serves requests older than that one, then drains. So A B C A B C costs three loads, and no request
is overtaken for longer than `max_overtake`.

Owned and driven by Core; pure like it.
"""

from __future__ import annotations

import math

from msgspec.structs import replace

from accelerd.base.errors import AccelError
from accelerd.base.names import accelctl
from accelerd.memory.model import MemorySnapshot
from accelerd.scheduler.events import FilesWanted
from accelerd.scheduler.eviction import choose
from accelerd.scheduler.lifecycle import LEAVING, WARM, Event, State
from accelerd.scheduler.placement import SharedLimits, YieldedMemory, fitting, why_not_resident
from accelerd.scheduler.quiet import serve_all, waits_for_load, when_quiet
from accelerd.scheduler.record import DownloadProgress, Lease, ModelRecord
from accelerd.scheduler.transitions import NOTHING, Transitions

FRESH = 1.0  # s that a memory snapshot is good enough for a decision
LOOK_PATIENCE = 2.0  # s that a start waits for a fresh snapshot


class Admission(Transitions):
    """Decides about who waits."""

    def on_memory_snapshot(self, seen: MemorySnapshot) -> None:
        """A fresh snapshot has arrived."""
        self.view, self._looking_since = seen, None

    def _knows(self, now: float) -> bool:
        """Is the last snapshot fresh enough to start a model? If not, another one is asked for."""
        if self.view is not None and now - self.view.at <= FRESH:
            return True
        if self._looking_since is None:
            if not self.look():
                return True
            self._looking_since = now
        due = self._looking_since + LOOK_PATIENCE
        if due <= now:
            return True  # a driver that does not answer must not block starts
        self.wake = min(self.wake, due)
        return False

    def schedule(self) -> None:
        """Start, evict and serve what the queue asks for. Idempotent; called after every event."""
        now = self.clock.monotonic()
        self._retire_outdated()
        while True:
            self.wake = math.inf
            serve_all(self.records)
            cutoffs = self._make_room(now) if self.queued and not (self.closing or self.paused) else {}
            before = self.queued
            for record in self.records.values():
                if record.state is State.READY and not self.paused:
                    self._serve(record, cutoffs.get(record.spec.name))
                if record.state is State.DRAINING and not record.active:
                    self.rest(record, record.reason)
            if self.queued == before:
                break  # else requests were served, and the choice of models to evict may differ now
        self._rearm()

    def _retire_outdated(self) -> None:
        for record in self.records.values():
            if not (record.removed or record.next_spec is not None):
                continue
            why = record.spec.removal if record.removed else "configuration changed"
            if record.state is State.READY:
                self.evict(record, why)
            elif record.state is State.STARTING or record.state in WARM:
                self.stop(record, why)

    def startable(self, record: ModelRecord, now: float) -> bool:
        if record.state in (State.STOPPED, State.ASLEEP):
            return True
        return record.state in (State.BACKOFF, State.FAILED) and record.retry_at is not None and record.retry_at <= now

    def _make_room(self, now: float) -> dict[str, float]:
        """Start what can start, oldest wait first; find the models that must leave, and from when.

        Returned: name → arrival time after which its requests must wait behind the one that needs the room.
        """
        asked = [r for r in self.records.values() if r.waiting]
        wanted = [r for r in asked if self.startable(r, now)]
        self.wake = min([self.wake, *(r.retry_at for r in asked if r.retry_at is not None and r.retry_at > now)])
        for record in wanted:
            if record.spec.elsewhere:
                self.start(record, record.need)
            elif record.forecast.missing and record.state is not State.ASLEEP:
                self._download(record)
        # What a provisional forecast says is no reason to refuse or to evict: the better one is waited for.
        waiting = [
            r
            for r in wanted
            if not (r.spec.elsewhere or r.forecast.missing or r.forecast.provisional) or r.state is State.ASLEEP
        ]
        if not waiting or not self._knows(now):
            return {}
        room = self.room
        planned: list[ModelRecord] = []
        leaving: set[str] = set()
        cutoffs: dict[str, float] = {}
        for record in sorted(waiting, key=lambda r: r.waiting[0].arrived):
            if not (record.waiting and self.startable(record, now)):
                continue  # it had to leave main memory for one before it
            target = record.woken() if record.state is State.ASLEEP else record
            occupied = self.others(record)
            apart = {*leaving, *(one.spec.name for one in planned)}
            future = [r for r in occupied if r.state not in LEAVING and r.spec.name not in apart]
            may_evict = any(w.may_evict for w in target.waiting)
            movable = [r for r in future if may_evict and (r.abandoned or (r.displaceable and not r.unevictable))]
            staying = [r for r in future if r not in movable]
            choice = choose(target, [*staying, *planned], movable, room, now)
            if (choice is None or choice.victims) and any(one.unsure for one in occupied):
                planned.append(target)  # what was taken over may hold less than is reserved for it
                continue
            if choice is None:
                if not self._refuse(target, future, now, may_evict=may_evict):
                    planned.append(target)  # it waits for room: later requests must not take it
                continue
            for waiter in target.waiting:
                waiter.lacking_since = None
            if not choice.victims and (need := fitting(target, occupied, room, choice.need)) is not None:
                if (due := when_quiet(target, self.records.values(), now, self.settings.max_overtake)) is None:
                    self.start(record, need)
                    continue
                self.wake = min(self.wake, due)
            record.need = choice.need
            planned.append(target)
            head = target.waiting[0].arrived
            for victim in choice.victims:
                leaving.add(victim.spec.name)
                self._make_leave(victim, target, head, now, cutoffs)
        return cutoffs

    def _make_leave(
        self, victim: ModelRecord, target: ModelRecord, head: float, now: float, cutoffs: dict[str, float]
    ) -> None:
        """Evict `victim` for `target`: now if it is idle, else when the limit on overtaking is reached."""
        if victim.state is State.ASLEEP:
            self.stop(victim, self._made(target))
        elif not victim.active and not victim.waiting:
            stays = victim.left_at + self.settings.linger  # for a client that tries again
            if victim.earned:
                stays = max(victim.last_used + self.settings.linger, victim.since + self._least_stay(victim))
            free_at = min(stays, head + self.settings.max_overtake)
            if free_at <= now:
                if victim.state is State.STARTING:
                    self.stop(victim, f"nobody waits for it any more: {self._made(target)}")
                else:
                    self.evict(victim, self._made(target), beside=target.need)
            else:
                self.wake = min(self.wake, free_at)
        elif (due := head + self.settings.max_overtake) <= now:
            cutoffs[victim.spec.name] = min(cutoffs.get(victim.spec.name, math.inf), head)
        else:
            self.wake = min(self.wake, due)

    def _made(self, target: ModelRecord) -> str:
        why = why_not_resident(target, self.others(target), self.room)
        return f"made room for {target.spec.name}" + (f": {why}" if why else "")

    def _least_stay(self, record: ModelRecord) -> float:
        """Seconds that a model stays after its load, idle or not; by default as long as the load took."""
        least = self.settings.min_resident
        return least if least is not None else record.load_seconds or 0.0

    def _refuse(self, target: ModelRecord, there: list[ModelRecord], now: float, *, may_evict: bool) -> bool:
        """Refuse the requests for `target` if evicting models can never make room. False: it waits for its turn.

        `there`: the models that are not leaving. Memory that other programs have is waited for, up to `memory_wait`;
        requests behind it do not have to wait.
        """
        fixed = [r for r in there if r.unevictable] if may_evict else there
        room, name = self.room, target.spec.name
        for need in target.ways:
            why = why_not_resident(target, fixed, room, need)
            if why is None:
                return False
        if (first := why_not_resident(target, fixed, room)) is not None:
            why = first
        code, retry_after, alone = "does_not_fit", None, room.undisturbed()
        never = why_not_resident(target, fixed, alone)
        if target.device in room.quarantined:
            code = "device_quarantined"
        elif room.yielded is not None and room.yielded.covers(target.need):
            code, retry_after = "yielded", self._until(room.yielded, now)
        elif never is None or fitting(target, fixed, alone) is not None:
            if not self._waited(target, now):
                return True
            code, retry_after = "memory_in_use", self.settings.memory_wait
        else:
            why, room = never, alone
            if target.need.raised:
                code = "model_out_of_memory"
                why += f"; {accelctl('reset', name)} has it tried with the estimate again"
        text = f"cannot load {name}: {why}"
        if code in ("does_not_fit", "memory_in_use"):
            offer = self._smaller(target, fixed, room)
            text += f"; {offer}" if offer else ""
        # A model that is to be kept loaded is loaded when there is room.
        wanted = target.keep_loaded or any(w.held for w in target.waiting)
        record = self.records[name]
        record.displaced = wanted and code in ("yielded", "memory_in_use", "does_not_fit")
        record.kept_out = wanted and code == "does_not_fit"
        self.reject_all(target, AccelError(code, text, param="model", retry_after=retry_after))
        return True

    def _smaller(self, target: ModelRecord, staying: list[ModelRecord], room: SharedLimits) -> str:
        """Settings with which it would fit beside these; nothing where it is not memory that it lacks."""
        need = target.need
        if why_not_resident(target, staying, room, replace(need, amounts={}, raised=False)) is not None:
            return ""  # a rule is in its way
        free = {balance.pool.id: max(0, balance.free) for balance in room.ledger(staying).balances()}
        if room.memory is not None:
            taken = sum(sum(record.held().values()) for record in staying) + sum(lost.size for lost in room.lost)
            left = max(0, room.memory - taken)
            several = sum(size > 0 for size in need.amounts.values()) > 1
            # In several pools it may have in each the share of the whole that it would have had there.
            free = {
                pool: min(size, left * need.amounts.get(pool, 0) // need.total if several else left)
                for pool, size in free.items()
            }
        return self.needs.suggest_smaller(target.spec, free)

    def _until(self, yielded: YieldedMemory, now: float) -> float:
        return max(1.0, yielded.until - now) if yielded.until is not None else 60.0

    def _waited(self, target: ModelRecord, now: float) -> bool:
        """Has a request waited `memory_wait` for memory that other programs have?"""
        since = now
        for waiter in target.waiting:
            waiter.lacking_since = now if waiter.lacking_since is None else waiter.lacking_since
            since = min(since, waiter.lacking_since)
        due = since + self.settings.memory_wait
        if due <= now:
            return True
        self.wake = min(self.wake, due, now + FRESH)  # further snapshots are asked for meanwhile
        return False

    def _serve(self, record: ModelRecord, cutoff: float | None) -> None:
        """Grant free slots, in order; past `cutoff` only to those who came before it, then drain."""
        while record.waiting and not record.probing:
            waiter = record.waiting[0]
            if waiter.wants_lease:
                if len(record.active) >= record.spec.slots or waits_for_load(record, waiter, cutoff, self.records):
                    break
                lease: Lease | None = self.grant(record)
            else:
                lease, record.earned = None, True
            record.waiting.popleft()
            self.queued -= 1
            waiter.resolve(lease)
        if cutoff is not None and not (record.waiting and record.waiting[0].arrived <= cutoff):
            self.evict(record, "other requests waited long enough for its place", beside=NOTHING)

    def _download(self, record: ModelRecord) -> None:
        """Have its files fetched. Meanwhile it takes no memory and nobody leaves for it."""
        record.retry_at, record.download = None, DownloadProgress()
        self.move(record, Event.DOWNLOAD, "its files are not on this machine yet")
        self.events.publish(FilesWanted(record.spec))
