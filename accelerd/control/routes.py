"""What is asked about routes: their deployments as they are now, and which of them would answer, and why."""

from __future__ import annotations

import msgspec

from accelerd.base.errors import AccelError
from accelerd.config.complexity import Tier
from accelerd.config.model import Price, Route
from accelerd.config.variants import Variant
from accelerd.control.operations import Request, operation
from accelerd.control.parts import ControlParts
from accelerd.control.variants import VariantExplanation, VariantName, explain_variant, name_of
from accelerd.gateway.request_router import prompted
from accelerd.routing.choice import RouteCandidate, known
from accelerd.routing.health import HealthState
from accelerd.routing.plan import Member, Stage
from accelerd.routing.verdict import Cause, Verdict
from accelerd.scheduler.record import Snapshot


class RoutesRequest(Request, frozen=True):
    route: str | None = None  # None: all


class LastFailure(msgspec.Struct):
    """How a request to it has failed last. `ago`: seconds."""

    ago: float
    code: str
    message: str


class DeploymentStatus(msgspec.Struct):
    """A model that may answer for a route. `member`: what the route names it by, itself or another route."""

    stage: str  # "order 1", "fallback", …
    member: str
    model: str
    weight: int | None  # None: the members have an order of preference
    state: str | None  # of the model; None: it is not there any more
    device: str | None
    requests: int  # that run
    queue: int
    ahead: int | None  # requests before a new one; None: it cannot answer
    why: str
    health: HealthState
    cooling: float | None  # seconds until it is tried again
    last_failure: LastFailure | None
    answered: int  # requests of this route since the start
    share: float | None  # of all of them; None: there were none


class RouteTable(msgspec.Struct):
    """One route. `answers`: the model that a request would go to now."""

    route: str
    description: str
    prefer: str
    session_affinity: bool
    retries: int
    answers: str
    reason: str
    deployments: list[DeploymentStatus]


class RouteTables(msgspec.Struct):
    routes: list[RouteTable]


class Candidate(msgspec.Struct):
    """A model of a route, as it is now. `ahead`: requests before a new one; None: it cannot answer.

    `price`: of a million tokens; None: nothing is configured.
    """

    model: str
    state: str | None
    device: str | None
    free: bool
    ahead: int | None
    why: str
    price: Price | None = None


class ComplexityPart(msgspec.Struct):
    """One part of a score. `found`: keywords."""

    name: str
    score: float
    weight: float
    found: list[str]


class Complexity(msgspec.Struct):
    """How much a prompt asks for. `keyword`: of the rule that has decided."""

    tier: Tier
    score: float
    cause: Cause
    keyword: str | None
    dimensions: list[ComplexityPart]


class RouteExplanation(msgspec.Struct):
    """Which model of a route would answer now, and why. `complexity`: of the prompt, where the route has tiers."""

    route: str
    description: str
    answers: str
    by_variants: list[str]  # of that model, and of routes on the way to it
    reason: str
    models: list[Candidate]
    variants: list[VariantName]
    variant: VariantExplanation | None  # that was asked for
    complexity: Complexity | None = None


@operation("look", "routes")
async def routes(parts: ControlParts, request: RoutesRequest) -> RouteTables:
    """All routes, or one, with what may answer their requests: state, queue, health, share."""
    directory = parts.router.directory
    if request.route is None:
        return RouteTables([_table(parts, route) for route in directory.routes.values()])
    found = directory.meaning(request.route)
    if not isinstance(found, Route):
        known = f"the routes are {', '.join(directory.routes)}" if directory.routes else "there are none"
        raise AccelError("model_not_found", f"there is no route {request.route!r}; {known}", param="route")
    return RouteTables([_table(parts, found)])


def _table(parts: ControlParts, route: Route) -> RouteTable:
    router = parts.router
    decision = router.decision(route)
    looks = {look.model: look for look in decision.looks}
    snapshots = known(parts.scheduler.snapshots())
    total = sum(number for (name, _), number in router.answered.items() if name == route.name)
    plan = router.directory.plan(route)
    deployments = [
        _deployment(parts, route, stage, member, snapshots.get(model), looks.get(model), model, total)
        for stage in (*plan.stages, *plan.for_long)
        for member in stage.members
        for model in member.models()
    ]
    return RouteTable(
        route.name, route.description, route.prefer, route.session_affinity, route.retries, decision.model,
        decision.reason, deployments,
    )  # fmt: skip


def _deployment(
    parts: ControlParts,
    route: Route,
    stage: Stage,
    member: Member,
    snapshot: Snapshot | None,
    look: RouteCandidate | None,
    model: str,
    total: int,
) -> DeploymentStatus:
    """`total`: requests of the route that were answered."""
    health, now = parts.router.health.of(model), parts.clock.monotonic()
    failure, answered = health.last_failure, parts.router.answered.get((route.name, model), 0)
    return DeploymentStatus(
        stage=stage.kind,
        member=member.name,
        model=model,
        weight=member.weight if stage.balanced else None,
        state=snapshot.state if snapshot is not None else None,
        device=snapshot.device if snapshot is not None else None,
        requests=snapshot.leases if snapshot is not None else 0,
        queue=snapshot.queue if snapshot is not None else 0,
        ahead=look.ahead if look is not None else None,
        why=look.why if look is not None else "answers only requests that are too long for others",
        health=health.state,
        cooling=max(0.0, health.until - now) if health.until is not None else None,
        last_failure=LastFailure(now - failure.at, failure.code, failure.message) if failure else None,
        answered=answered,
        share=answered / total if total else None,
    )


def explain_route(parts: ControlParts, route: Route, variant: Variant | None, prompt: str | None) -> RouteExplanation:
    """`variant`: of it, which was asked for."""
    if prompt is not None and not route.tiers.names:
        raise AccelError(
            "bad_request", f"{route.name} has no tiers: its choice does not depend on a prompt", param="prompt"
        )
    facts = prompted(prompt)
    decision = parts.router.decision(route, facts)
    snapshots = known(parts.scheduler.snapshots())
    prices = {name: spec.price for name, spec in parts.router.directory.models.items() if spec.price != Price()}
    return RouteExplanation(
        route=route.name,
        description=route.description,
        answers=decision.model,
        by_variants=[one.name for one in decision.variants],
        reason=decision.reason,
        variants=list(map(name_of, route.variants)),
        variant=explain_variant(variant, route.name) if variant is not None else None,
        models=[
            Candidate(
                model=look.model,
                state=snapshots[look.model].state if look.model in snapshots else None,
                device=snapshots[look.model].device if look.model in snapshots else None,
                free=look.free,
                ahead=look.ahead,
                why=look.why,
                price=prices.get(look.model),
            )
            for look in decision.looks
        ],
        complexity=_complexity(parts.router.verdict(route, facts)) if prompt is not None else None,
    )


def _complexity(verdict: Verdict) -> Complexity:
    parts = [ComplexityPart(one.name, one.score, one.weight, list(one.found)) for one in verdict.dimensions]
    return Complexity(verdict.tier, verdict.score, verdict.cause, verdict.keyword, parts)
