"""The state of the daemon and of its models, what a model's processes printed, and how each would be started.

Owns the answers of `status`, `model`, `explain` and `logs`. Reads snapshots and changes nothing.
"""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any, Protocol

import msgspec

from accelerd.base.errors import AccelError
from accelerd.base.exits import Exit
from accelerd.config.model import ModelSpec, Route
from accelerd.config.problems import Problem
from accelerd.control.known_conflicts import KnownConflict, KnownConflicts
from accelerd.control.load_progress import Progress
from accelerd.control.model_info import ModelNames
from accelerd.control.npu_usage import ClaimStatus, claims_of
from accelerd.control.operations import ModelRequest, Operation, Request, operation
from accelerd.engines.base import Flag, LaunchPlan, Traits
from accelerd.instances import InstanceInfo
from accelerd.memory.ledger import Ledger
from accelerd.policy.yielding import YieldReport
from accelerd.routing.choice import Decision
from accelerd.routing.directory import Directory
from accelerd.scheduler.placement import SharedLimits
from accelerd.scheduler.record import Snapshot
from accelerd.scheduler.service import Scheduler

MOST_LINES = 10_000


class ConfigStatus(msgspec.Struct):
    files: list[str]
    problems: list[Problem]


class DesktopStatus(msgspec.Struct):
    sleep: Any  # see SleepPolicy.report
    saving: str | None  # why power is saved
    notifications: Any  # see DesktopNotifications.report


class DaemonStatus(msgspec.Struct, kw_only=True):
    """What `status` says of the daemon itself. Seconds."""

    version: str
    pid: int
    uptime: float
    state: str  # "starting", "running", "draining"
    status: str  # one line for people
    listen: list[str]
    config: ConfigStatus
    yielded: YieldReport | None
    performance: Any  # see ClockBoost.report
    desktop: DesktopStatus | None
    degraded: str | None  # what this machine, or a part of it, lacks


class ResidueStatus(msgspec.Struct):
    """Memory of an ended model that is not back."""

    model: str
    memory: int
    where: str


class SchedulerStatus(msgspec.Struct):
    memory_limit: int | None  # bytes that all models together could have; None: not known
    memory_source: str  # who says so
    memory_used: int
    max_loaded: int | None
    queue: int
    max_queue: int
    residues: list[ResidueStatus]


class FailureStatus(msgspec.Struct):
    message: str
    cause: str
    tail: list[str]  # the engine's last lines


class ModelStatus(msgspec.Struct):
    """One model. Seconds and bytes; None: not known, or there is none."""

    name: str
    aliases: list[str]
    prefixed: str | None  # its generated name
    engine: str
    recipe: str  # the engine's word for how it runs the model
    labels: list[str]  # … and for what that can do
    state: str
    since: float
    reason: str
    pid: int | None
    home: str | None
    place: str | None
    leases: int
    queue: int
    idle: float | None
    idle_timeout: float | None
    pin: bool  # by the configuration
    held: bool  # by a client
    preload: bool
    memory: int
    memory_source: str
    memory_used: int | None
    device: str
    claims: list[ClaimStatus]
    retry_in: float | None
    load_seconds: float | None
    outdated: bool  # is replaced by a new configuration when it is next started
    residue: int
    error: FailureStatus | None


class RouteStatus(msgspec.Struct):
    name: str
    models: list[str]
    description: str


class Status(DaemonStatus, kw_only=True):
    """Everything that `accelctl status` shows."""

    scheduler: SchedulerStatus
    hazards: list[KnownConflict]
    models: list[ModelStatus]
    routes: list[RouteStatus]


class Placement(msgspec.Struct):
    """What a model needs, and whether it could have that now."""

    memory: int
    source: str
    pools: dict[str, int]
    parts: dict[str, int]
    devices: list[str]
    claims: list[ClaimStatus]
    fits: bool
    reason: str


class Step(msgspec.Struct, rename={"before": "from", "after": "to"}):
    """A change of a model's state, `ago` seconds before now."""

    ago: float
    before: str
    after: str
    reason: str


class Explanation(msgspec.Struct):
    """How a model runs, or would be started now."""

    model: str
    state: str
    pid: int | None
    home: str | None
    place: str | None
    argv: list[str]
    command: str
    flags: list[Flag]
    warnings: list[str]
    placement: Placement
    history: list[Step]


class Candidate(msgspec.Struct):
    """A model of a route, as it is now. `ahead`: requests before a new one; None: it cannot answer."""

    model: str
    state: str | None
    device: str | None
    free: bool
    ahead: int | None
    why: str


class RouteExplanation(msgspec.Struct):
    """Which model of a route would answer now, and why."""

    route: str
    description: str
    answers: str
    reason: str
    models: list[Candidate]


class LogsRequest(Request, frozen=True):
    model: str
    lines: Annotated[int, msgspec.Meta(ge=0, le=MOST_LINES, description=f"a whole number up to {MOST_LINES}")] = 50
    follow: bool = False  # over HTTP alone: the lines that come as well, without an end


class Logs(msgspec.Struct):
    """The last lines that a model's processes printed."""

    model: str
    lines: list[str]


class Output(Protocol):
    """What a model's processes printed."""

    def lines(self, last: int | None = None) -> list[str]: ...
    def follow(self, last: int = 0) -> contextlib.AbstractContextManager[AsyncIterator[str]]: ...


class Processes(Protocol):
    """What may be known of models' processes."""

    def facts(self, instance: int) -> InstanceInfo | None: ...
    def progress(self, instance: int) -> Progress | None: ...
    def output(self, model: str) -> Output: ...
    async def memory(self, instance: int) -> int | None: ...
    async def plan(self, spec: ModelSpec) -> LaunchPlan:
        """How the model would be started now. AccelError when it could not."""
        ...

    def load_seconds(self, spec: ModelSpec) -> float | None: ...


class Router(Protocol):
    """Where requests go."""

    @property
    def directory(self) -> Directory: ...
    def traits(self, spec: ModelSpec) -> Traits: ...
    def decision(self, route: Route) -> Decision:
        """Which model of the route would answer now."""
        ...


class StatusOperations:
    """Looks at the daemon and its models."""

    def __init__(
        self,
        scheduler: Scheduler,
        names: ModelNames,
        processes: Processes,
        router: Router,
        daemon: Callable[[], DaemonStatus],
        conflicts: KnownConflicts | None = None,
    ) -> None:
        self._scheduler = scheduler
        self._names = names
        self._processes = processes
        self._router = router
        self._daemon = daemon
        self._conflicts = conflicts

    def operations(self) -> list[Operation]:
        return [
            operation("look", "status", self.status),
            operation("look", "model", self.model),
            operation("look", "explain", self.explain),
            operation("look", "logs", self.logs),
        ]

    async def status(self) -> Status:
        """The whole state of the daemon and its models."""
        models = [await self._model(snapshot) for snapshot in self._scheduler.snapshots()]
        limits, settings = self._scheduler.limits, self._scheduler.settings
        limit, source = room_of(limits, self._scheduler.memory.ledger())
        return Status(
            **msgspec.structs.asdict(self._daemon()),
            scheduler=SchedulerStatus(
                memory_limit=limit,
                memory_source=source,
                memory_used=self._scheduler.memory_held(),
                max_loaded=limits.max_loaded,
                queue=self._scheduler.queued,
                max_queue=settings.max_queue,
                residues=[ResidueStatus(one.model, one.size, one.where) for one in self._scheduler.residues],
            ),
            hazards=self._conflicts.now() if self._conflicts is not None else [],
            models=models,
            routes=[
                RouteStatus(route.name, list(route.models), route.description)
                for route in self._router.directory.routes.values()
            ],
        )

    async def model(self, request: ModelRequest) -> ModelStatus:
        """One model, by any of its names."""
        return await self._model(self._names.find(request.model))

    async def explain(self, request: ModelRequest) -> Explanation | RouteExplanation:
        """The command line of a model with the reason of each part; of a route, which model would answer."""
        route = self._router.directory.routes.get(request.model)
        if route is not None:
            return self._explain_route(route)
        snapshot = self._names.find(request.model)
        facts = self._facts(snapshot)
        plan = facts.plan if facts and facts.plan else await self._processes.plan(snapshot.spec)
        fits, how = self._scheduler.placement(snapshot.spec.name)
        conflicts = self._conflicts.of(snapshot, plan) if self._conflicts is not None else ()
        return Explanation(
            model=snapshot.spec.name,
            state=snapshot.state,
            pid=facts.pid if facts else None,
            home=facts.home if facts else None,
            place=facts.place if facts else None,
            argv=list(plan.argv),
            command=shlex.join(plan.argv),
            flags=list(plan.flags),
            warnings=[*plan.warnings, *conflicts],
            placement=Placement(
                memory=snapshot.memory,
                source=snapshot.memory_source,
                pools=dict(snapshot.need.amounts),
                parts=dict(snapshot.need.parts),
                devices=list(snapshot.need.devices),
                claims=claims_of(snapshot.need, self._scheduler.memory.ledger().pools),
                fits=fits,
                reason=how,
            ),
            history=[
                Step(snapshot.since + (snapshot.history[-1].at - step.at), step.before, step.after, step.reason)
                for step in snapshot.history
            ],
        )

    async def logs(self, request: LogsRequest) -> Logs:
        """The last lines that a model's processes printed."""
        if request.follow:
            raise AccelError("not_supported", "only HTTP carries lines that are followed", param="follow")
        name = self._names.find(request.model).spec.name
        return Logs(name, self._processes.output(name).lines(last=request.lines))

    def follow(self, request: LogsRequest) -> contextlib.AbstractContextManager[AsyncIterator[str]]:
        """The same lines and then those that come, without an end. AccelError."""
        name = self._names.find(request.model).spec.name
        return self._processes.output(name).follow(last=request.lines)

    def model_status(self, snapshot: Snapshot, memory_used: int | None) -> ModelStatus:
        """`memory_used`: bytes in use, as far as somebody has looked."""
        spec, facts, traits = snapshot.spec, self._facts(snapshot), self._router.traits(snapshot.spec)
        return ModelStatus(
            name=spec.name,
            aliases=list(spec.aliases),
            prefixed=self._router.directory.generated(spec) or None,
            engine=spec.engine,
            recipe=traits.recipe,
            labels=list(traits.labels),
            state=snapshot.state,
            since=snapshot.since,
            reason=snapshot.reason,
            pid=facts.pid if facts else None,
            home=facts.home if facts else None,
            place=facts.place if facts else None,
            leases=snapshot.leases,
            queue=snapshot.queue,
            idle=snapshot.idle,
            idle_timeout=spec.idle_timeout,
            pin=spec.pin,
            held=bool(snapshot.holds),
            preload=spec.preload,
            memory=snapshot.memory,
            memory_source=snapshot.memory_source,
            memory_used=memory_used,
            device=snapshot.device,
            claims=claims_of(snapshot.need, self._scheduler.memory.ledger().pools),
            retry_in=snapshot.retry_in,
            load_seconds=self._processes.load_seconds(spec),
            outdated=snapshot.outdated,
            residue=sum(residue.size for residue in snapshot.residues),
            error=_failure(snapshot.error),
        )

    async def _model(self, snapshot: Snapshot) -> ModelStatus:
        instance = snapshot.instance
        used = await self._processes.memory(instance) if instance is not None else None
        return self.model_status(snapshot, used)

    def _facts(self, snapshot: Snapshot) -> InstanceInfo | None:
        return self._processes.facts(snapshot.instance) if snapshot.instance is not None else None

    def _explain_route(self, route: Route) -> RouteExplanation:
        decision = self._router.decision(route)
        known = {snapshot.spec.name: snapshot for snapshot in self._scheduler.snapshots()}
        return RouteExplanation(
            route=route.name,
            description=route.description,
            answers=decision.model,
            reason=decision.reason,
            models=[
                Candidate(
                    model=look.model,
                    state=known[look.model].state if look.model in known else None,
                    device=known[look.model].device if look.model in known else None,
                    free=look.free,
                    ahead=look.ahead,
                    why=look.why,
                )
                for look in decision.looks
            ],
        )


def room_of(limits: SharedLimits, ledger: Ledger) -> tuple[int | None, str]:
    """Bytes that all models together could have on this machine, and who says so. None: nothing is known of it."""
    if limits.memory is not None:
        return limits.memory, limits.memory_source
    pools = ledger.pools.values()
    if not pools:
        return None, ""
    own = sum(pool.own if pool.backed_by else pool.room for pool in pools)
    return own, "what the memory of this machine has, less what is kept free"


def _failure(exit: Exit | None) -> FailureStatus | None:
    return FailureStatus(exit.message, exit.cause, list(exit.tail)) if exit is not None else None
