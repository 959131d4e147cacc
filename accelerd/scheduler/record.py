"""What the scheduler knows of one model, and of one request that waits or holds a lease.

Mutable data owned by Core alone; everybody else reads the Snapshot made from it.
"""

from __future__ import annotations

import copy
import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from msgspec import Struct

from accelerd.base.errors import AccelError
from accelerd.base.exits import Exit
from accelerd.config.model import ModelSpec
from accelerd.engines.base import Endpoint
from accelerd.memory.ledger import Holding, Phase
from accelerd.memory.model import RAM, Forecast, MemoryRequirement
from accelerd.scheduler.keep_value import Usage, reload_cost
from accelerd.scheduler.lifecycle import LEAVING, OCCUPIED, Event, State

ASSUMED_SPEED = 1 << 30  # bytes/s that a model is read with, where nothing is known
ELSEWHERE = "a server elsewhere has it"  # why such a model is as it is
LEAST_LOAD = 0.5  # s: starting the program alone


class Lease:
    """The right to use a ready model. Held by one request; while it is held nobody may evict the model."""

    __slots__ = ("cut", "endpoint", "instance", "keep", "progress", "record", "secret")

    def __init__(self, record: ModelRecord, instance: int, endpoint: Endpoint, secret: str, now: float) -> None:
        self.record = record
        self.instance = instance
        self.endpoint = endpoint
        self.secret = secret
        self.cut: Callable[[AccelError], None] | None = None  # called before the engine is stopped; must not call back
        self.keep: float | None = None  # seconds that the client wants the model to stay after it; None: as configured
        self.progress = now  # when the engine last sent something for this request; updated by the relay

    @property
    def model(self) -> str:
        return self.record.spec.name


class Waiter(Struct, eq=False):
    """A request for a lease, or a request to load the model, that waits. Resolved exactly once, with a lease or an
    error.

    One that only loads (`wants_lease` False) is resolved with None when the model is ready.
    """

    resolve: Callable[[Lease | AccelError | None], None]
    arrived: float
    deadline: float | None
    wants_lease: bool = True
    may_evict: bool = True  # preloading never pushes another model out
    retried: bool = False  # one load that it waited for has run out of memory, or found no files
    lacking_since: float | None = None  # since when other programs have had the memory that it needs
    held: bool = False  # no client waits: it stands for a hold of the model
    moves_on: bool = False  # another model may answer its request: it waits out no back-off


class DownloadProgress(Struct, frozen=True):
    """How far the files of a model have come."""

    bytes: int = 0
    total: int | None = None  # None: not known yet
    rate: float = 0.0  # bytes/s, lately
    remaining: float | None = None  # s
    file: str = ""  # the one that is coming; "": not known yet


class StopWatcher(Struct, frozen=True):
    """Somebody who waits for a model's end: one of the two is called, once."""

    done: Callable[[], None]
    failed: Callable[[AccelError], None]


class Transition(Struct, frozen=True):
    at: float
    before: State
    after: State
    reason: str
    event: Event


class PendingExit(Struct, frozen=True):
    """How an instance ended, while its memory is waited for."""

    instance: int
    before: State
    exit: Exit


class Residue(Struct, frozen=True):
    """Memory that an ended instance used and that its device has not freed. Bytes."""

    model: str
    size: int
    where: str  # "VRAM of card0"
    most: int  # what the instance had reserved
    waited_for: bool  # the model is still in RECLAIMING, with all of its memory on the ledger
    pool: str = RAM


@dataclass(slots=True, eq=False)
class ModelRecord:
    """All lifecycle state of one model. Times are monotonic seconds, sizes bytes."""

    spec: ModelSpec
    forecast: Forecast  # ways to place it, the best first
    need: MemoryRequirement = field(init=False)  # the way that was chosen, or would be
    state: State = State.STOPPED
    since: float = 0.0
    reason: str = ""
    # the live instance, None outside OCCUPIED
    instance: int | None = None
    endpoint: Endpoint | None = None
    secret: str = ""
    started_at: float = 0.0
    active: set[Lease] = field(default_factory=set)
    last_used: float = 0.0  # end of the last lease, or the moment it became ready
    keep: float | None = None  # what the last lease said, see there
    adopted: bool = False  # an earlier daemon started it
    unsure: bool = False  # … and what it has reserved is by a provisional forecast
    earned: bool = False  # in this life it has served somebody who waited: it may stay a while
    left_at: float = 0.0  # when the last of those who waited for its load left
    stop_reason: str = ""  # why it is being stopped
    used: Mapping[str, int] = field(default_factory=dict)  # bytes seen in use, by pool
    peak: Mapping[str, int] = field(default_factory=dict)  # the most of it in this life
    settled: bool = False  # it was seen after its load
    pending_exit: PendingExit | None = None  # in RECLAIMING
    reclaim_until: float = math.inf
    # sleep
    sleeps_beside: MemoryRequirement | None = None  # in DRAINING: it may sleep if there is room beside this; None: not
    offloaded: Mapping[str, int] = field(default_factory=dict)  # in WARM: what its weights take of main memory
    asleep: bool = False  # the device has its memory back
    slept_at: float | None = None  # in OFFLOADING: when it said that it is asleep
    # its files
    download: DownloadProgress | None = None  # in DOWNLOADING
    download_error: AccelError | None = None  # in FAILED: why they did not come
    # waiting
    served_until: float = math.inf  # requests that arrived later wait for the load of another model
    waiting: deque[Waiter] = field(default_factory=deque)
    stop_watchers: list[StopWatcher] = field(default_factory=list)
    # failures
    failures: deque[float] = field(default_factory=deque)
    unhealthy: deque[float] = field(default_factory=deque)
    out_of_memory: deque[float] = field(default_factory=deque)
    error: Exit | None = None
    waited_out: bool = False  # in BACKOFF: requests from before wait for the next start, see ExitHandling
    retry_at: float | None = None  # in BACKOFF and FAILED: when a start may be tried; None in FAILED: after a reset
    bad_outcomes: int = 0  # consecutive requests that the engine failed
    probing: bool = False
    stuck: bool = False  # in KILLING: SIGKILL does not end it
    # what it costs to evict
    usage: Usage = field(default_factory=Usage)
    load_seconds: float | None = field(init=False)  # what the last load took
    # configuration
    device: str = ""  # what it runs on
    keep_loaded: bool = False  # preload, pin or a hold with load: it is loaded again after a crash
    holds: dict[str, bool] = field(default_factory=dict)  # by key: is it also to be loaded
    next_spec: ModelSpec | None = None  # applies once the running instance has ended
    next_forecast: Forecast | None = None
    removed: bool = False
    displaced: bool = False  # it is to be kept loaded but has no room; it is loaded when there is room
    kept_out: bool = False  # displaced by our own limits or models: tried when these change, not polled
    cut_at: float = math.inf  # when its requests are ended, although it drains
    history: deque[Transition] = field(default_factory=lambda: deque(maxlen=32))

    def __post_init__(self) -> None:
        self.load_seconds = self.forecast.load_seconds
        self.expect(self.forecast)

    def expect(self, forecast: Forecast) -> None:
        """What it needs from its next load on. What is loaded keeps its place."""
        self.forecast = forecast
        if not self.occupied:
            self.need = forecast.options[0]
            if self.need.devices:
                self.device = self.need.devices[0]

    def redeclared(self) -> None:
        """What it is said to need has changed while it is loaded."""
        self.need = self.like(self.need.context).with_cache(self.need.cache)

    def at_rest(self) -> None:
        """It has ended: it needs what the forecast says of the same place, without what a start had to spare."""
        self.need = self.like(self.forecast.options[0].context)

    def like(self, context: int | None) -> MemoryRequirement:
        """The way to have it with this context, where it is now or was last."""
        ways = [need for need in self.forecast.options if need.context == context] or self.forecast.options
        return next((need for need in ways if need.devices == self.need.devices), ways[0])

    @property
    def leases(self) -> int:
        return len(self.active)

    @property
    def occupied(self) -> bool:
        return self.state in OCCUPIED

    @property
    def idle_timeout(self) -> float | None:
        """Seconds without requests after which it leaves its device: a client may want less than its settings say."""
        limits = (self.spec.idle_timeout, self.keep)
        return min((limit for limit in limits if limit is not None), default=None)

    @property
    def unevictable(self) -> bool:
        """Pinned or held: neither other models nor memory pressure nor idleness make it leave."""
        return self.spec.pin or bool(self.holds)

    @property
    def displaceable(self) -> bool:
        """Does it stay where it is, so that another may ask for its place?"""
        return self.state in (State.READY, State.ASLEEP)

    @property
    def abandoned(self) -> bool:
        """Is it being loaded although all who wanted it have left? It goes on until another model wants its place."""
        wanted = self.waiting or self.keep_loaded or self.adopted or self.unevictable
        return self.state is State.STARTING and not wanted

    @property
    def wants_loaded(self) -> bool:
        """Is it to be loaded at all times? A person's unload overrules that: see `keep_loaded`."""
        return self.spec.preload or self.spec.pin or any(self.holds.values())

    @property
    def memory(self) -> int:
        """Bytes to reserve, in all pools together."""
        return self.need.total

    @property
    def ways(self) -> tuple[MemoryRequirement, ...]:
        """How it can be placed, the best first. One that has a process stays where it is."""
        return (self.need,) if self.occupied else self.forecast.options or (self.need,)

    def woken(self) -> ModelRecord:
        """As it is to be when it is awake: a copy to calculate with."""
        record = copy.copy(self)
        record.state, record.asleep = State.WAKING, False
        return record

    def held(self) -> dict[str, int]:
        """What counts on the ledger, by pool. Asleep: its weights in main memory, and what its device still has."""
        found = self._held_awake()
        if self.asleep:
            found = {pool: size if pool == RAM else self.used.get(pool, 0) for pool, size in found.items()}
        for pool, size in self.offloaded.items():
            found[pool] = max(found.get(pool, 0) + size, self.used.get(pool, 0) if self.asleep else 0)
        return found

    def _held_awake(self) -> dict[str, int]:
        """The same of one that is awake.

        A device's memory is allocated in full by the load: what is seen after it is the truth. Pages of main memory
        count only once they are touched: there the estimate holds until more is seen.
        """
        settled = self.settled and any(size for pool, size in self.peak.items() if pool != RAM)
        found = {}
        for pool in {*self.need.amounts, *self.peak}:
            needed, seen = self.need.amounts.get(pool, 0), self.peak.get(pool, 0)
            found[pool] = seen if settled and pool != RAM else max(needed, seen)
        return found

    def holding(self) -> Holding:
        """For the ledger."""
        phase: Phase = "resident"
        if self.state in (State.STARTING, State.WAKING):
            phase = "loading"
        elif self.state is State.ASLEEP:
            phase = "asleep"
        elif self.state is State.RECLAIMING:
            phase = "reclaiming"
        elif self.state in LEAVING:
            phase = "leaving"
        return Holding(self.spec.name, phase, self.held(), self.used, self.need.claims, self.need.cache)

    def reload_cost(self) -> float:
        """What it would cost to have it back, in seconds."""
        return reload_cost(self.load_seconds or LEAST_LOAD + self.memory / ASSUMED_SPEED)


class Snapshot(Struct, frozen=True):
    """One model for readers: status, the bus, the endpoint's model list."""

    spec: ModelSpec
    state: State
    since: float
    reason: str
    instance: int | None
    started_at: float
    leases: int
    queue: int
    idle: float | None
    need: MemoryRequirement
    held: Mapping[str, int]  # bytes that count, by pool
    used: Mapping[str, int]  # bytes seen in use, by pool
    displaced: bool
    device: str
    retry_in: float | None
    error: Exit | None
    outdated: bool
    residues: tuple[Residue, ...]
    history: tuple[Transition, ...]
    at: float = 0.0  # when it was like this: `since` and `idle` count from then
    holds: tuple[str, ...] = ()  # for whom it is held
    missing: bool = False  # its files are not on this machine
    download: DownloadProgress | None = None  # while they are downloaded
    idle_timeout: float | None = None  # seconds; None: it stays

    @property
    def unevictable(self) -> bool:
        """Pinned or held: it is not evicted for other models."""
        return self.spec.pin or bool(self.holds)

    @property
    def memory(self) -> int:
        """Bytes to reserve, in all pools together."""
        return self.need.total

    @property
    def memory_used(self) -> int | None:
        """Bytes that the last look saw in use, in all pools together; None: nobody has looked, or nothing runs."""
        return sum(self.used.values()) if self.instance is not None and self.used else None

    @property
    def memory_source(self) -> str:
        return self.need.source


def snapshot(record: ModelRecord, now: float, residues: tuple[Residue, ...]) -> Snapshot:
    idle = now - record.last_used if record.state is State.READY and record.leases == 0 else None
    return Snapshot(
        spec=record.spec,
        state=record.state,
        since=now - record.since,
        reason=record.reason,
        instance=record.instance,
        started_at=record.started_at,
        leases=record.leases,
        queue=len(record.waiting),
        idle=idle,
        need=record.need,
        held=record.held() if record.occupied else {},
        used=record.used,
        displaced=record.displaced,
        device=record.device,
        retry_in=max(0.0, record.retry_at - now) if record.retry_at is not None else None,
        error=record.error,
        outdated=record.next_spec is not None,
        residues=tuple(residue for residue in residues if residue.model == record.spec.name),
        history=tuple(record.history),
        at=now,
        holds=tuple(record.holds),
        missing=record.forecast.missing,
        download=record.download,
        idle_timeout=record.idle_timeout,
    )
