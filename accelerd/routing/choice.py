"""Which model of a route is to answer, and why. Pure: what is known now in, a decision out.

Of models in order of preference the first that could begin at once; else the one with the fewest requests before it.
Of deployments with the same order a loaded one, then the one with the fewest requests before it, then the cheapest,
then by weight; while requests wait for one that is being loaded, one that fits beside it is loaded, too. What cannot
answer at all, or cools down after a failure, is left out as long as another can. Of tiers that of the request, or a
higher one that has a model in memory; then those above, and at last those below.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from msgspec import Struct, field
from msgspec.structs import replace

from accelerd.config.complexity import TIERS
from accelerd.config.model import Route
from accelerd.config.variants import Variant
from accelerd.routing.balance import Balance, Draw
from accelerd.routing.plan import Member, Plan, Stage
from accelerd.routing.verdict import NO_TEXT, Verdict
from accelerd.scheduler.lifecycle import LEAVING, OCCUPIED, State
from accelerd.scheduler.record import Snapshot

# Could the model be resident, and what would that take.
Placement = Callable[[str], tuple[bool, str]]
# Ids of what the model computes on, or would.
Where = Callable[[Snapshot], frozenset[str]]


def placed(snapshot: Snapshot) -> frozenset[str]:
    """The devices that the scheduler has placed the model on."""
    return frozenset(snapshot.need.devices) or frozenset((snapshot.device,))


def no_difference(snapshot: Snapshot) -> int:
    return 0


class Elsewhere(Struct, frozen=True):
    """What a server elsewhere has said of its model, as far as it has."""

    loaded: bool | None = None
    queue: int = 0  # of requests there


def here(snapshot: Snapshot) -> Elsewhere | None:
    """Every model runs on this machine."""
    return None


class RouteCandidate(Struct, frozen=True):
    """One model of a route, as it is now."""

    model: str
    why: str  # one clause: what makes it free, or what is in its way
    ahead: int | None  # requests that must end before one could begin; None: it cannot answer
    cools: bool = False  # only because it cools down
    loaded: bool = False  # or about to be
    starting: bool = False
    sharing: tuple[tuple[str, int], ...] = ()  # of those ahead: how many are requests of which other models
    price: float = 0.0

    @property
    def free(self) -> bool:
        """Could a request begin at once?"""
        return self.ahead == 0


class Decision(Struct, frozen=True):
    """The model that answers, with the reason; `looks` at all of them, in the route's order."""

    model: str
    reason: str
    looks: tuple[RouteCandidate, ...]
    stage: str = ""
    routes: tuple[str, ...] = ()  # by which it was reached, the one that was asked for first
    draws: tuple[Draw, ...] = ()
    variants: tuple[Variant, ...] = ()  # by which it was reached


class Choice(Struct, frozen=True):
    """A member that can answer, with the model that would."""

    member: Member
    look: RouteCandidate
    routes: tuple[str, ...] = ()
    draws: tuple[Draw, ...] = ()
    variants: tuple[Variant, ...] = ()


class Now(Struct):
    """What is known while one decision is made."""

    snapshots: Mapping[str, Snapshot]
    placement: Placement
    lacking: Mapping[str, str] = {}  # models that cannot do what is asked for, and why
    cooling: Callable[[str], str] = lambda name: ""  # why a model is passed over after a failure, or ""
    where: Where = placed
    rank: Callable[[Snapshot], int] = no_difference
    elsewhere: Callable[[Snapshot], Elsewhere | None] = here  # None: it runs on this machine
    recall: Callable[[str], str | None] = lambda route: None  # which model has answered this conversation last
    judge: Callable[[Route], Verdict] = lambda route: NO_TEXT  # which tier the request has
    balance: Balance = field(default_factory=Balance)
    displaces: Callable[[str], bool] = lambda name: False  # would another model have to leave for it?
    inside: Callable[[str], int] = lambda model: 0  # how many requests wait in its engine
    long: bool = False  # the request is too long for a model that it would go to
    working: list[Snapshot] = field(default_factory=list)  # those that have requests
    looks: dict[str, RouteCandidate] = field(default_factory=dict)  # those that were made

    def __post_init__(self) -> None:
        self.working = [snapshot for snapshot in self.snapshots.values() if snapshot.leases or snapshot.queue]

    def look(self, name: str) -> RouteCandidate:
        if name not in self.looks:
            self.looks[name] = _look(name, self)
        return self.looks[name]


def known(snapshots: Iterable[Snapshot]) -> dict[str, Snapshot]:
    return {snapshot.spec.name: snapshot for snapshot in snapshots}


def decide(plan: Plan, now: Now, *, long: bool = False) -> Decision:
    """`long`: the request is too long for a model that it would go to, which is among those that lack something."""
    now.long = long
    found = _first(plan, now, cooling=False) or _first(plan, now, cooling=True)
    looks = tuple(now.look(name) for name in plan.reach(long=long))
    if found is None:
        # One without the capability never can; what else is in the way may be gone when it is asked.
        model = next((look.model for look in looks if look.model not in now.lacking), looks[0].model)
        passed = "; ".join(f"{look.model} {look.why}" for look in looks)
        return Decision(model, f"none of them can answer: {passed}", looks, routes=_names(plan))
    stage, choice, reason = found
    return Decision(choice.look.model, reason, looks, stage.kind, choice.routes, choice.draws, choice.variants)


def _names(plan: Plan) -> tuple[str, ...]:
    return (plan.name,) if plan.route is not None else ()


def _first(plan: Plan, now: Now, *, cooling: bool) -> tuple[Stage, Choice, str] | None:
    """The choice of the first stage that has one. `cooling`: of those too that are passed over after a failure."""
    stages, tier = _in_order(plan, now, cooling=cooling)
    passed = [tier] if tier else []
    for stage in (*plan.for_long, *stages) if now.long else stages:
        able = [choice for member in stage.members for choice in _able(member, now, cooling=cooling)]
        if able:
            choice, why = _best(plan, stage, able, now)
            reached = replace(choice, routes=(*_names(plan), *choice.routes))
            return stage, reached, "; ".join([*passed, *_passed(stage, choice, now), why])
        passed += _passed(stage, None, now)
    return None


def _in_order(plan: Plan, now: Now, *, cooling: bool) -> tuple[Sequence[Stage], str]:
    """The stages as they are asked, and the tier of the request in words, if it has one."""
    tiers = {stage.tier: stage for stage in plan.stages if stage.tier is not None}
    if plan.route is None or not tiers:
        return plan.stages, ""
    verdict = now.judge(plan.route)
    enough = [tiers[tier] for tier in TIERS[TIERS.index(verdict.tier) :] if tier in tiers]
    others = [stage for stage in plan.stages if stage.tier is None]
    below = [stage for stage in reversed(tiers.values()) if stage not in enough]
    if plan.route.complexity.prefer_loaded:
        enough = _loaded_first(enough, now, cooling=cooling)
    return (*enough, *below, *others), f"the request is {verdict.tier} ({verdict.reason})"


def _loaded_first(stages: list[Stage], now: Now, *, cooling: bool) -> list[Stage]:
    """The tier, its models in memory first; where it has none there, before it a higher tier with one that is free."""
    for stage in stages:
        able = [choice for member in stage.members for choice in _able(member, now, cooling=cooling)]
        loaded = [choice for choice in able if choice.look.loaded]
        here = [choice for choice in loaded if now.elsewhere(now.snapshots[choice.look.model]) is None]
        if first := [choice.member for choice in here if choice.look.free]:
            rest = (member for member in stage.members if member not in first)
            return [replace(stage, members=(*first, *rest)), *(other for other in stages if other is not stage)]
        if loaded and stage is stages[0]:
            break
    return stages


def _passed(stage: Stage, chosen: Choice | None, now: Now) -> Iterator[str]:
    """What is in the way of the models before the chosen one, if that stage goes by preference, or of those that cannot
    answer."""
    for member in stage.members:
        if chosen is not None and member is chosen.member:
            if not stage.balanced:
                return
            continue
        for name in member.models(long=now.long):
            look = now.look(name)
            if look.ahead != 0 and not (stage.balanced and look.ahead is not None):
                yield f"{name} {look.why}"


def _able(member: Member, now: Now, *, cooling: bool) -> Iterator[Choice]:
    """The member with the model of it that would answer; nothing where none can."""
    if member.plan is not None:
        found = _first(member.plan, now, cooling=cooling)
        if found is not None:
            yield replace(found[1], member=member, variants=(*member.variants, *found[1].variants))
        return
    look = now.look(member.name)
    if look.ahead is not None and (cooling or not look.cools):
        yield Choice(member, look, variants=member.variants)


def _best(plan: Plan, stage: Stage, able: list[Choice], now: Now) -> tuple[Choice, str]:
    """Of several that can answer, and why that."""
    route = plan.route
    efficient = route is not None and route.prefer == "efficiency"
    equals = {choice.look.model for choice in able} if stage.balanced else set[str]()

    def ahead(choice: Choice) -> int:
        """Requests of equals on the same device are what is being shared out."""
        return (choice.look.ahead or 0) - sum(number for name, number in choice.look.sharing if name in equals)

    def rank(choice: Choice) -> int:
        return now.rank(now.snapshots[choice.look.model]) if efficient else 0

    if route is not None and route.session_affinity and (last := now.recall(plan.name)) is not None:
        some_free = any(ahead(choice) == 0 for choice in able)
        for choice in able:
            if choice.look.model == last and choice.look.loaded and (ahead(choice) == 0 or not some_free):
                return choice, f"{last} has answered this conversation before"
    if not stage.balanced:
        ordered = sorted(able, key=rank) if efficient else able
        free = next((choice for choice in ordered if choice.look.free), None)
        if free is not None:
            return free, f"{free.look.model} {free.look.why}"
        best = min(ordered, key=ahead)  # of equals the first
        return best, _busy(best.look, ahead(best))

    def effort(choice: Choice) -> int:
        """0: it is loaded, or will be at once; 1: it is to be loaded, or has requests that wait for that; 2: instead
        of another."""
        look = choice.look
        if look.loaded:
            return 1 if look.starting and ahead(choice) else 0
        return 2 if now.displaces(look.model) else 1

    def place(choice: Choice) -> tuple[int, int, float, int]:
        return effort(choice), ahead(choice), choice.look.price, rank(choice)

    places = [place(choice) for choice in able]
    first = min(places)
    firsts = [choice for choice, its in zip(able, places, strict=True) if its == first]
    before = first[1]
    dearer = [
        one.look.model for one, its in zip(able, places, strict=True) if its[:2] == first[:2] and its[2] > first[2]
    ]
    saves = f", and costs less than {', '.join(dearer)}" if dearer else ""
    if len(firsts) == 1:
        best = firsts[0]
        return best, (_busy(best.look, before) if before else f"{best.look.model} {best.look.why}") + saves
    draw = now.balance.next((plan.name, stage.kind), [(one.member.called, one.member.weight) for one in firsts])
    best = next(one for one in firsts if one.member.called == draw.chosen)
    others = ", ".join(choice.look.model for choice in firsts if choice is not best)
    as_they = f"as many requests are before it at {others}" if before else f"as {others} is"
    drawn = replace(best, draws=(*best.draws, draw))
    return drawn, f"{best.look.model} {best.look.why}, {as_they}, and it is its turn by weight{saves}"


def _busy(look: RouteCandidate, ahead: int) -> str:
    before = "1 request is" if ahead == 1 else f"{ahead} requests are"
    return f"all are busy, and {before} before it at {look.model}: {look.model} {look.why}"


def _look(name: str, now: Now) -> RouteCandidate:
    snapshot, lacking = now.snapshots.get(name), now.lacking.get(name)
    if lacking is not None:
        return RouteCandidate(name, lacking, None)
    if snapshot is None:
        return RouteCandidate(name, "is not there any more", None)
    if trouble := _trouble(snapshot, now.placement):
        return RouteCandidate(name, trouble, None)
    inside = now.inside(name)
    behind = max(0, snapshot.leases + snapshot.queue + 1 - snapshot.spec.slots, inside and inside + snapshot.queue)
    starting, far = snapshot.state in (State.STARTING, State.WAKING), now.elsewhere(snapshot)
    loaded, others = starting or snapshot.state is State.READY, _others(snapshot, now)

    def candidate(why: str, ahead: int) -> RouteCandidate:
        cools = now.cooling(name)
        return RouteCandidate(
            name, cools or why, ahead, bool(cools), loaded, starting, others, snapshot.spec.price.both
        )

    if far is not None:  # it is there at all times, and has requests of others
        loaded = far.loaded is not False
        waits = max(behind, far.queue + snapshot.queue) if far.queue else behind
        return candidate(f"has {waits} requests before a new one" if waits else "is free", waits)
    ahead = behind + sum(number for _, number in others)
    if others:
        return candidate(f"shares its device with requests of {', '.join(other for other, _ in others)}", ahead)
    if inside:
        return candidate(f"has {inside} requests that wait in its engine", ahead)
    if behind:
        return candidate(f"has no free slot ({snapshot.leases} requests run, {snapshot.queue} wait)", ahead)
    if snapshot.state in LEAVING:
        return candidate(f"is {snapshot.state}", 1)
    words = {State.READY: "is free", State.STARTING: "is being loaded, and free",
             State.WAKING: "wakes up, and is free", State.ASLEEP: "is asleep, and its device is free"}  # fmt: skip
    return candidate(words.get(snapshot.state, "is not loaded, and its device is free"), 0)


def _others(snapshot: Snapshot, now: Now) -> tuple[tuple[str, int], ...]:
    """The other models that have requests on the same device, and how many."""
    working = [one for one in now.working if one is not snapshot]
    if not working:
        return ()
    devices = now.where(snapshot)
    return tuple((one.spec.name, one.leases + one.queue) for one in working if devices & now.where(one))


def _trouble(snapshot: Snapshot, placement: Placement) -> str:
    """Why no request to this model would be answered now; "" when one would."""
    if snapshot.state is State.FAILED and snapshot.retry_in is None:
        return f"has failed: {snapshot.error.message if snapshot.error else snapshot.reason}"
    if snapshot.state in (State.FAILED, State.BACKOFF) and snapshot.retry_in:
        return f"has failed lately, and is tried again in {snapshot.retry_in:.0f} s"
    if snapshot.state is State.KILLING:
        return "does not end"
    if snapshot.state in OCCUPIED and snapshot.state is not State.ASLEEP:
        return ""
    if snapshot.missing:
        return "is being downloaded" if snapshot.state is State.DOWNLOADING else "must be downloaded first"
    fits, why = placement(snapshot.spec.name)
    return "" if fits else f"has no room: {why}"
