"""What follows from the exit of an instance: its memory is waited for, then the model is stopped, backs off, fails, or
gets a larger reservation.

Owns failures, out-of-memory exits and memory that does not come back; driven by Core, pure like it. An exit that
accelerd asked for is no failure. Running out of memory is no crash: the model reserves more the next time. Nor are
files that were deleted: they are downloaded again.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import Final

from msgspec.structs import replace

from accelerd.base.errors import AccelError
from accelerd.base.exits import PERMANENT, Cause, Exit
from accelerd.base.names import accelctl
from accelerd.base.sizes import human_size
from accelerd.memory.model import RAM, MemoryRequirement
from accelerd.memory.reclaim import UnreturnedMemory
from accelerd.scheduler.admission import Admission
from accelerd.scheduler.events import MemoryNotReturned, ModelInUse
from accelerd.scheduler.lifecycle import Event, State
from accelerd.scheduler.record import ModelRecord, PendingExit, Residue
from accelerd.scheduler.transitions import CPU

UNHEALTHY_BEFORE_QUARANTINE: Final = 2
OUT_OF_MEMORY_BEFORE_FAILED: Final = 3
GROWTH: Final = (5, 4)  # of the reserved memory after the model ran out of memory, unless more was measured
STUCK_AFTER: Final = 30.0  # s after SIGKILL; a driver may take long to let go of 100 GB
SHORT_PAUSE: Final = 5.0  # s: a back-off that requests wait out which an engine has left behind that had served
RECLAIM_PATIENCE: Final = 10.0  # s until the model may start again although memory of it is missing


class ExitHandling:
    """`over(record, unloaded)` is called when a model has left OCCUPIED."""

    def __init__(
        self,
        admission: Admission,
        over: Callable[[ModelRecord, bool], None],
        stuck_after: float,
        jitter: Callable[[], float],
    ) -> None:
        """`jitter()`: a number in [0, 1)."""
        self.stuck_after = stuck_after
        self._admission = admission
        self._jitter = jitter
        self._over = over
        self._reclaiming: dict[int, ModelRecord] = {}  # every instance whose memory is not back
        self._watches: dict[int, UnreturnedMemory] = {}

    def gone(self, instance: int, exit: Exit) -> None:
        """Nothing of an instance lives any more."""
        record = self._admission.instances.pop(instance)
        if record.active:
            record.active.clear()
            self._admission.events.publish(ModelInUse(record.spec, False))
        record.probing = record.stuck = False
        record.pending_exit = PendingExit(instance, record.state, exit)

        def changed(size: int, where: str) -> None:
            self.residue(instance, size, where)
            self._admission.schedule()

        watch = self._admission.reclaimer.watch(instance, record.spec.name, record.held(), changed)
        if watch is not None:
            self._watches[instance], self._reclaiming[instance] = watch, record
            record.reclaim_until = self._admission.clock.monotonic() + RECLAIM_PATIENCE
            self._admission.move(record, Event.RECLAIM, "no process is left; its memory is not back yet")
            record.instance = record.endpoint = None
            record.secret = ""
        else:
            self._finish(record)

    def stuck(self, record: ModelRecord) -> None:
        """SIGKILL has not ended it: fail everybody who waits for its exit or its next start, and go on waiting."""
        record.stuck = True
        device = f", and the {record.device} takes no other model" if record.device != CPU else ""
        text = f"does not end, {self.stuck_after:.0f} s after SIGKILL: its memory stays counted{device}"
        self._admission.move(record, Event.STUCK, text)
        error = self.stuck_error(record)
        self._admission.reject_all(record, error)
        watchers, record.stop_watchers = record.stop_watchers, []
        for watcher in watchers:
            watcher.failed(error)

    def stuck_error(self, record: ModelRecord) -> AccelError:
        """The answer to requests to stop or load a stuck model."""
        text = f"{record.spec.name} {record.reason} (it hangs in a driver: only that, or a reboot, ends it)"
        return AccelError("model_stuck", text, retry_after=self.stuck_after, param="model")

    def residue(self, instance: int, size: int, where: str) -> None:
        """`size` bytes of what an ended instance used are not back; 0: all is. Unknown instances are ignored."""
        record = self._reclaiming.get(instance)
        if record is None:
            return
        waits = record.pending_exit is not None and record.pending_exit.instance == instance
        if size > 0:
            known = self._admission.residues.get(instance)
            most = known.most if known is not None else sum(record.held().values())
            pool = known.pool if known is not None else _pool(record)
            self._admission.residues[instance] = Residue(record.spec.name, min(size, most), where, most, waits, pool)
            return
        del self._reclaiming[instance], self._watches[instance]
        self._admission.residues.pop(instance, None)
        if waits:
            self._finish(record)

    def tick(self, now: float) -> None:
        """Let models go on whose memory does not come back: it stays on the ledger, by name."""
        for instance, record in list(self._reclaiming.items()):
            if record.pending_exit is None or record.pending_exit.instance != instance or record.reclaim_until > now:
                continue
            known = self._admission.residues.get(instance)
            most = sum(record.held().values())
            size, where = (known.size, known.where) if known else (most, "device memory")
            residue = Residue(record.spec.name, size, where, most, waited_for=False, pool=_pool(record))
            self._admission.residues[instance] = residue
            self._admission.events.publish(MemoryNotReturned(residue))
            self._finish(record, f"; {human_size(size)} of {where} are not back")

    def deadline(self) -> float:
        """When `tick` is due."""
        return min((r.reclaim_until for r in self._reclaiming.values() if r.pending_exit is not None), default=math.inf)

    def failure(self, record: ModelRecord, now: float) -> AccelError:
        """The answer to a request that cannot be served because of earlier exits."""
        exit = record.error
        name = record.spec.name
        if record.download_error is not None:
            return record.download_error
        why = exit.message if exit else record.reason
        tail = list(exit.tail) if exit else []
        if record.state is State.BACKOFF and record.retry_at is not None:
            wait = max(1.0, record.retry_at - now)
            text = f"cannot load {name}: {why}; tried again in {wait:.0f} s"
            return AccelError("model_backing_off", text, retry_after=wait, param="model", tail=tail)
        if exit is not None and exit.cause is Cause.OOM_KILLED:
            after = f"; after making room: {accelctl('reset', name)}"
            return AccelError("model_out_of_memory", f"cannot load {name}: {why}{after}", param="model", tail=tail)
        after = "" if record.retry_at is not None else f"; after mending it: {accelctl('load', name)}"
        return AccelError("model_failed", f"cannot load {name}: {why}{after}", param="model", tail=tail)

    def close(self) -> None:
        """Wait for no memory any more."""
        for watch in self._watches.values():
            watch.cancel()
        self._watches.clear()

    # --- inside -------------------------------------------------------------------------------------------------

    def _finish(self, record: ModelRecord, residue: str = "") -> None:
        """The model leaves OCCUPIED."""
        assert record.pending_exit is not None
        before = record.pending_exit.before
        exit = replace(record.pending_exit.exit, message=record.pending_exit.exit.message + residue)
        record.pending_exit, record.reclaim_until = None, math.inf
        record.used, record.cut_at = {}, math.inf
        now = self._admission.clock.monotonic()
        asleep = before in (State.OFFLOADING, State.ASLEEP)
        if exit.cause is Cause.OOM_KILLED and not asleep:
            record.error = exit
            self._out_of_memory(record, before, exit, now)
        elif exit.cause is Cause.STOPPED or before in (State.DRAINING, State.OFFLOADING):
            # One that exits while it drains was only quicker than the stop that would have followed.
            why = record.stop_reason or (record.reason if before is State.DRAINING else "")
            self._admission.move(record, Event.GONE, why + residue if why else exit.message)
        elif record.adopted and before is State.STARTING:
            # That a process of an earlier daemon fails says nothing about one that this daemon would start.
            self._admission.move(record, Event.GONE, f"could not be taken over: {exit.message}")
            self._come_back(record)
        elif exit.cause is Cause.NOT_DOWNLOADED and not any(waiter.retried for waiter in record.waiting):
            self._files_gone(record, exit)
        else:
            record.error = exit
            self._failed(record, before, exit, now)
        record.instance = record.endpoint = None
        record.secret = record.stop_reason = ""
        record.offloaded, record.asleep, record.slept_at = {}, False, None
        record.at_rest()
        watchers, record.stop_watchers = record.stop_watchers, []
        for watcher in watchers:
            watcher.done()
        self._over(record, bool(watchers))

    def _failed(self, record: ModelRecord, before: State, exit: Exit, now: float) -> None:
        settings = self._admission.settings
        if exit.cause in (Cause.UNHEALTHY, Cause.DEVICE_RESET):
            _remember(record.unhealthy, now, settings.failure_window)
            if len(record.unhealthy) < UNHEALTHY_BEFORE_QUARANTINE:
                self._admission.move(record, Event.GONE, exit.message)
                self._come_back(record, wanted=exit.cause is Cause.DEVICE_RESET)
                return
            record.retry_at = None
            self._admission.move(record, Event.GIVE_UP, f"quarantined: {exit.message} again after a reload")
        elif exit.cause is Cause.DEVICE_REMOVED:
            record.retry_at = None  # until the device is back
            self._admission.move(record, Event.GIVE_UP, exit.message)
        elif exit.cause in PERMANENT:
            # A request may look again soon (the file may be there by then); nothing loops.
            record.retry_at = now + settings.backoff_initial
            self._admission.move(record, Event.GIVE_UP, exit.message)
        else:
            _remember(record.failures, now, settings.failure_window)
            count = len(record.failures)
            if count >= settings.max_failures:
                record.retry_at = None
                self._admission.move(record, Event.GIVE_UP, f"{exit.message}; failed {count} times, given up")
            elif (
                before in (State.READY, State.ASLEEP, State.WAKING)
                and count == 1
                and (record.waiting or not record.keep_loaded)
            ):
                self._admission.move(record, Event.GONE, exit.message)
                return
            else:
                delay = min(settings.backoff_max, settings.backoff_initial * 2 ** (count - 1))
                record.retry_at = now + delay * (1 + self._jitter() / 10)
                record.waited_out = before is State.READY and delay <= SHORT_PAUSE
                self._admission.move(record, Event.BACK_OFF, exit.message)
                if record.waited_out:
                    error = self.failure(record, now)
                    for waiter in [w for w in record.waiting if w.moves_on]:
                        self._admission.remove(record, waiter)
                        waiter.resolve(error)
                    return
        self._admission.reject_all(record, self.failure(record, now))

    def _files_gone(self, record: ModelRecord, exit: Exit) -> None:
        """Its files were deleted since somebody looked: whoever waits has them downloaded again, once."""
        record.forecast = replace(record.forecast, missing=True)
        self._admission.move(record, Event.GONE, exit.message)
        self._come_back(record)
        for waiter in record.waiting:
            waiter.retried = True

    def _out_of_memory(self, record: ModelRecord, before: State, exit: Exit, now: float) -> None:
        """Reserve more from now on. Waiting requests get one load with that; those that had it already are refused."""
        settings, cache = self._admission.settings, record.need.cache
        old = record.memory - cache
        _remember(record.out_of_memory, now, settings.failure_window)
        count = len(record.out_of_memory)
        new = max(old * GROWTH[0] // GROWTH[1], (exit.peak or 0) - cache, sum(record.peak.values()) - cache)
        given_up = count >= OUT_OF_MEMORY_BEFORE_FAILED
        if given_up:
            record.retry_at = None
            self._admission.move(record, Event.GIVE_UP, f"{exit.message}; {count} times, given up")
        else:
            more = f"; from now on it reserves {human_size(new)} instead of {human_size(old)}" if new > old else ""
            self._admission.move(record, Event.OUT_OF_MEMORY, exit.message + more)
        if new > old:
            source = f"ran out of memory with {human_size(old)}"
            options = tuple(_raised(need, old, new, source) for need in record.forecast.options)
            record.forecast = replace(record.forecast, options=options)
            record.need = record.need.with_cache(0).scaled(new, source, raised=True)
            self._admission.needs.raise_requirement(record.spec, record.need)
        error = self.failure(record, now)
        if given_up:
            self._admission.reject_all(record, error)
            return
        if before is State.STARTING:
            for waiter in [w for w in record.waiting if w.retried]:
                self._admission.remove(record, waiter)
                waiter.resolve(error)
            for waiter in record.waiting:
                waiter.retried = True
        self._come_back(record)

    def _come_back(self, record: ModelRecord, *, wanted: bool = False) -> None:
        """Load it again without a request if it is to be kept loaded, or if it is `wanted`."""
        if (
            (record.keep_loaded or wanted)
            and not record.waiting
            and not self._admission.closing
            and not record.displaced
        ):
            self._admission.request_load(record)


def _raised(need: MemoryRequirement, old: int, new: int, source: str) -> MemoryRequirement:
    """One way to place a model that ran out of memory with `old` bytes beside its prompt cache, and now gets `new`."""
    bare = need.with_cache(0)
    return bare.scaled(bare.total * new // old if old else new, source, raised=True).with_cache(need.cache)


def _pool(record: ModelRecord) -> str:
    """Where most of a device's memory was that the model held; main memory is back with the process."""
    held = {pool: size for pool, size in record.held().items() if pool != RAM}
    return max(held, key=lambda pool: held[pool], default=RAM)


def _remember(times: deque[float], now: float, window: float) -> None:
    """Append `now` and drop what is older than `window` seconds."""
    times.append(now)
    while times[0] < now - window:
        times.popleft()
