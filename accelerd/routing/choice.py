"""Which model of a route is to answer, and why. Pure: snapshots in, a decision out.

The first in the route's order that could begin at once; else the one with the fewest requests before it. What cannot
answer at all is left out as long as another can.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from msgspec import Struct

from accelerd.config.model import Route
from accelerd.scheduler.lifecycle import LEAVING, OCCUPIED, State
from accelerd.scheduler.record import Snapshot

# Could the model be resident, and what would that take.
Placement = Callable[[str], tuple[bool, str]]
# Ids of what the model computes on, or would.
Where = Callable[[Snapshot], frozenset[str]]


def placed(snapshot: Snapshot) -> frozenset[str]:
    """The devices that the scheduler has placed the model on."""
    return frozenset(snapshot.need.devices) or frozenset((snapshot.device,))


class RouteCandidate(Struct, frozen=True):
    """One model of a route, as it is now."""

    model: str
    why: str  # one clause: what makes it free, or what is in its way
    ahead: int | None  # requests that must end before one could begin; None: it cannot answer

    @property
    def free(self) -> bool:
        """Could a request begin at once?"""
        return self.ahead == 0


class Decision(Struct, frozen=True):
    """The model that answers, with the reason; `looks` at all of them, in the route's order."""

    model: str
    reason: str
    looks: tuple[RouteCandidate, ...]


def decide(
    route: Route,
    snapshots: Iterable[Snapshot],
    placement: Placement,
    lacking: Mapping[str, str] | None = None,
    where: Where = placed,
) -> Decision:
    """`lacking`: models that cannot do what is asked for, and why. A route has one model at least."""
    known = {snapshot.spec.name: snapshot for snapshot in snapshots}
    looks = tuple(_look(name, known, placement, (lacking or {}).get(name), where) for name in route.models)
    passed: list[str] = []
    for look in looks:
        if look.free:
            return Decision(look.model, "; ".join([*passed, f"{look.model} {look.why}"]), looks)
        passed.append(f"{look.model} {look.why}")
    able = [look for look in looks if look.ahead is not None]
    if not able:
        # One without the capability never can; what else is in the way may be gone when it is asked.
        model = next((name for name in route.models if name not in (lacking or {})), route.models[0])
        return Decision(model, f"none of them can answer: {'; '.join(passed)}", looks)
    best = min(able, key=lambda look: look.ahead or 0)  # of equals the first
    before = "1 request is" if best.ahead == 1 else f"{best.ahead} requests are"
    return Decision(best.model, f"all are busy, and {before} before it at {best.model}: {'; '.join(passed)}", looks)


def _look(
    name: str, known: Mapping[str, Snapshot], placement: Placement, lacking: str | None, where: Where
) -> RouteCandidate:
    snapshot = known.get(name)
    if lacking is not None:
        return RouteCandidate(name, lacking, None)
    if snapshot is None:
        return RouteCandidate(name, "is not there any more", None)
    if trouble := _trouble(snapshot, placement):
        return RouteCandidate(name, trouble, None)
    devices = where(snapshot)
    others = {
        s.spec.name: s.leases + s.queue
        for s in known.values()
        if s is not snapshot and (s.leases or s.queue) and devices & where(s)
    }
    behind = max(0, snapshot.leases + snapshot.queue + 1 - snapshot.spec.slots)
    ahead = behind + sum(others.values())
    if others:
        return RouteCandidate(name, f"shares its device with requests of {', '.join(others)}", ahead)
    if behind:
        return RouteCandidate(name, f"has no free slot ({snapshot.leases} requests run, {snapshot.queue} wait)", ahead)
    if snapshot.state in LEAVING:
        return RouteCandidate(name, f"is {snapshot.state}", 1)
    words = {State.READY: "is free", State.STARTING: "is being loaded, and free"}
    return RouteCandidate(name, words.get(snapshot.state, "is not loaded, and its device is free"), 0)


def _trouble(snapshot: Snapshot, placement: Placement) -> str:
    """Why no request to this model would be answered now; "" when one would."""
    if snapshot.state is State.FAILED and snapshot.retry_in is None:
        return f"has failed: {snapshot.error.message if snapshot.error else snapshot.reason}"
    if snapshot.state in (State.FAILED, State.BACKOFF) and snapshot.retry_in:
        return f"has failed lately, and is tried again in {snapshot.retry_in:.0f} s"
    if snapshot.state is State.KILLING:
        return "does not end"
    if snapshot.state in OCCUPIED:
        return ""
    if snapshot.missing:
        return "is being downloaded" if snapshot.state is State.DOWNLOADING else "must be downloaded first"
    fits, why = placement(snapshot.spec.name)
    return "" if fits else f"has no room: {why}"
