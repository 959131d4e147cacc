"""The state of the daemon and of its models, what a model's processes printed, and how each would be started.

Owns the answers of `status`, `model`, `explain` and `logs`. Reads snapshots and changes nothing.
"""

from __future__ import annotations

import shlex
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager
from typing import Annotated

import msgspec

from accelerd.base.errors import AccelError
from accelerd.base.exits import Exit
from accelerd.config.model import Route
from accelerd.control.devices import ClaimStatus, claims_of
from accelerd.control.known_conflicts import KnownConflict
from accelerd.control.operations import ModelRequest, Request, operation
from accelerd.control.parts import ControlParts, DaemonStatus
from accelerd.control.remotes import unreachable
from accelerd.control.routes import RouteExplanation, explain_route
from accelerd.control.variants import VariantExplanation, VariantName, explain_variant, name_of
from accelerd.engines.base import Flag
from accelerd.memory.ledger import Ledger
from accelerd.scheduler.placement import SharedLimits
from accelerd.scheduler.record import DownloadProgress, Snapshot

MOST_LINES = 10_000


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


class DownloadStep(msgspec.Struct, tag="progress", tag_field="event"):
    """A download under way. Bytes and seconds; None: not known."""

    source: str
    file: str
    bytes: int
    total: int | None
    rate: float  # bytes a second, smoothed
    remaining: float | None
    progress: float | None  # 0 to 1
    reason: str  # why these files are taken
    elapsed: float


class FailureStatus(msgspec.Struct):
    message: str
    cause: str
    tail: list[str]  # the engine's last lines


class ModelStatus(msgspec.Struct):
    """One model. Seconds and bytes; None: not known, or there is none."""

    name: str
    aliases: list[str]
    hidden_aliases: list[str]
    variants: list[VariantName]
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
    prompt_cache: int  # of it
    memory_source: str
    memory_used: int | None
    device: str
    claims: list[ClaimStatus]
    retry_in: float | None
    load_seconds: float | None
    outdated: bool  # is replaced by a new configuration when it is next started
    residue: int
    download: DownloadProgress | None  # in the state "downloading"
    error: FailureStatus | None


class RouteStatus(msgspec.Struct):
    name: str
    models: list[str]
    description: str
    aliases: list[str]
    hidden_aliases: list[str]
    variants: list[VariantName]


class Status(DaemonStatus, kw_only=True):
    """Everything that `accelctl status` shows."""

    scheduler: SchedulerStatus
    hazards: list[KnownConflict]
    models: list[ModelStatus]
    routes: list[RouteStatus]
    downloads: list[DownloadStep]  # under way, whoever asked for them


class Placement(msgspec.Struct):
    """What a model needs, and whether it could have that now."""

    memory: int
    prompt_cache: int  # of it
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
    variants: list[VariantName]
    variant: VariantExplanation | None  # that was asked for


class ExplainRequest(ModelRequest, frozen=True):
    """`prompt`: a message of a client, for a route with tiers."""

    prompt: str | None = None


class LogsRequest(Request, frozen=True):
    model: str
    lines: Annotated[int, msgspec.Meta(ge=0, le=MOST_LINES, description=f"a whole number up to {MOST_LINES}")] = 50
    follow: bool = False  # over HTTP alone: the lines that come as well, without an end


class Logs(msgspec.Struct):
    """The last lines that a model's processes printed."""

    model: str
    lines: list[str]


@operation("look", "status")
async def status(parts: ControlParts) -> Status:
    """The whole state of the daemon and its models."""
    models = [model_status(parts, snapshot) for snapshot in parts.scheduler.snapshots()]
    limits, settings = parts.scheduler.limits, parts.scheduler.settings
    limit, source = room_of(limits, parts.scheduler.memory.ledger())
    return Status(
        **msgspec.structs.asdict(parts.daemon.overview()),
        scheduler=SchedulerStatus(
            memory_limit=limit,
            memory_source=source,
            memory_used=parts.scheduler.memory_held(),
            max_loaded=limits.max_loaded,
            queue=parts.scheduler.queued,
            max_queue=settings.max_queue,
            residues=[ResidueStatus(one.model, one.size, one.where) for one in parts.scheduler.residues],
        ),
        hazards=[*parts.conflicts.now(), *unreachable(parts)],
        models=models,
        routes=[
            RouteStatus(
                route.name,
                list(parts.router.directory.plan(route).own),
                route.description,
                list(route.aliases),
                list(route.hidden_aliases),
                list(map(name_of, route.variants)),
            )
            for route in parts.router.directory.routes.values()
        ],
        downloads=downloads_under_way(parts),
    )


def downloads_under_way(parts: ControlParts) -> list[DownloadStep]:
    return [job.last for job in parts.jobs.all() if job.finished is None and isinstance(job.last, DownloadStep)]


@operation("look", "model")
async def model(parts: ControlParts, request: ModelRequest) -> ModelStatus:
    """One model, by any of its names."""
    return model_status(parts, parts.find(request.model))


@operation("look", "explain")
async def explain(parts: ControlParts, request: ExplainRequest) -> Explanation | RouteExplanation:
    """The command line of a model with the reason of each part; of a route, which model would answer.

    It changes nothing, so that it takes every name that a request may have, those that only match a pattern too.
    """
    meant = parts.router.directory.meaning(request.model)
    variant = parts.router.directory.variant(request.model)
    if isinstance(meant, Route):
        return explain_route(parts, meant, variant, request.prompt)
    if request.prompt is not None:
        raise AccelError("bad_request", f"{request.model} is no route: nothing depends on a prompt", param="prompt")
    snapshot = parts.scheduler.snapshot(meant.name if meant is not None else request.model)
    facts = parts.facts(snapshot)
    need = parts.scheduler.would_need(snapshot.spec.name)
    plan = facts.plan if facts and facts.plan else await parts.model_info.plan(snapshot.spec, need)
    fits, how = parts.scheduler.placement(snapshot.spec.name)
    troubles = [one.line for one in unreachable(parts) if snapshot.spec.name in one.models]
    return Explanation(
        model=snapshot.spec.name,
        state=snapshot.state,
        pid=facts.pid if facts else None,
        home=facts.home if facts else None,
        place=facts.place if facts else None,
        argv=list(plan.argv),
        command=shlex.join(plan.argv),
        flags=list(plan.flags),
        warnings=[*plan.warnings, *parts.conflicts.of(snapshot, plan), *troubles],
        placement=Placement(
            memory=need.total,
            prompt_cache=need.cache,
            source=need.source,
            pools=dict(need.amounts),
            parts=dict(need.parts),
            devices=list(need.devices),
            claims=claims_of(need, parts.scheduler.memory.ledger().pools),
            fits=fits,
            reason=how,
        ),
        history=[
            Step(snapshot.since + (snapshot.history[-1].at - step.at), step.before, step.after, step.reason)
            for step in snapshot.history
        ],
        variants=list(map(name_of, snapshot.spec.variants)),
        variant=explain_variant(variant, snapshot.spec.name) if variant is not None else None,
    )


@operation("look", "logs")
async def logs(parts: ControlParts, request: LogsRequest) -> Logs:
    """The last lines that a model's processes printed."""
    if request.follow:
        raise AccelError("not_supported", "only HTTP carries lines that are followed", param="follow")
    name = parts.find(request.model).spec.name
    return Logs(name, parts.supervisor.output(name).lines(last=request.lines))


def follow(parts: ControlParts, request: LogsRequest) -> AbstractContextManager[AsyncIterator[str]]:
    """The same lines and then those that come, without an end. AccelError."""
    name = parts.find(request.model).spec.name
    return parts.supervisor.output(name).follow(last=request.lines)


def model_status(parts: ControlParts, snapshot: Snapshot) -> ModelStatus:
    spec, facts, traits = snapshot.spec, parts.facts(snapshot), parts.router.traits(snapshot.spec)
    return ModelStatus(
        name=spec.name,
        aliases=[*spec.aliases, *parts.router.directory.there(spec)],
        hidden_aliases=list(spec.hidden_aliases),
        variants=list(map(name_of, spec.variants)),
        prefixed=parts.router.directory.generated(spec) or None,
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
        idle_timeout=spec.idle_after,
        pin=spec.pin,
        held=bool(snapshot.holds),
        preload=spec.preload,
        memory=snapshot.memory,
        prompt_cache=snapshot.need.cache,
        memory_source=snapshot.memory_source,
        memory_used=snapshot.memory_used,
        device=snapshot.device,
        claims=claims_of(snapshot.need, parts.scheduler.memory.ledger().pools),
        retry_in=snapshot.retry_in,
        load_seconds=parts.model_info.load_seconds(spec),
        outdated=snapshot.outdated,
        residue=sum(residue.size for residue in snapshot.residues),
        download=snapshot.download,
        error=_failure(snapshot.error),
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
