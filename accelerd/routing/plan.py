"""What a route is made of, with the names in it resolved: stages of members, each a model or again a route. Pure.

Made once for a configuration, which allows no cycles. A stage is asked only while none of the stages before it can
answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Final, Protocol

from msgspec import Struct
from msgspec.structs import force_setattr

from accelerd.config.complexity import TIERS, Tier
from accelerd.config.model import ModelSpec, Route
from accelerd.config.variants import Variant

FOR_ALL: Final = "default fallback"


class Meanings(Protocol):
    """What names mean."""

    def meaning(self, name: str) -> ModelSpec | Route | None: ...
    def variant(self, name: str) -> Variant | None: ...


class Member(Struct, frozen=True):
    """A model, or a route with a plan of its own."""

    name: str
    plan: Plan | None = None  # of a route
    weight: int = 1
    variant: Variant | None = None  # of it, where that was named
    price: float = 0.0  # of a model

    @property
    def called(self) -> str:
        """What tells it from the others: a model may be there by several of its variants."""
        return self.name if self.variant is None else self.variant.name

    @property
    def variants(self) -> tuple[Variant, ...]:
        return () if self.variant is None else (self.variant,)

    def models(self, *, long: bool = False) -> tuple[str, ...]:
        """Each that may answer for it; `long`: a request that is too long for one of them."""
        return self.plan.reach(long=long) if self.plan is not None else (self.name,)


class Stage(Struct, frozen=True):
    """Members between which it is decided by how they are now."""

    kind: str  # for people: "order 1", "fallback"
    members: tuple[Member, ...]
    balanced: bool = False  # by weight; else in their order, which is one of preference
    tier: Tier | None = None  # of the requests that it is for


class Plan(Struct, frozen=True):
    """How requests to one name are answered. `route`: None for a model, which has only the fallbacks of all."""

    name: str
    route: Route | None
    stages: tuple[Stage, ...]
    for_long: tuple[Stage, ...] = ()  # before the others, for requests that are too long for one of those
    own: tuple[str, ...] = ()  # each model that may answer without the fallbacks of all, in the order of the stages
    usual: tuple[str, ...] = ()  # with these
    models: tuple[str, ...] = ()  # with those for long requests, too
    favourite: str = ""  # the model that answers whenever it could begin at once; "": there is more to decide
    equals: tuple[Member, ...] = ()  # models that answer by weight whenever each of them could begin at once
    way: tuple[str, ...] = ()  # the routes to these
    variants: tuple[Variant, ...] = ()  # by which the favourite is reached

    def __post_init__(self) -> None:
        force_setattr(self, "own", _models([stage for stage in self.stages if stage.kind != FOR_ALL]))
        force_setattr(self, "usual", _models(self.stages))
        route, stage = self.route, self.stages[0]
        choosy = stage.tier is not None or route is None or route.session_affinity or route.prefer == "efficiency"
        first = stage.members[0]
        inner = None if stage.balanced else first.plan
        if not choosy:
            force_setattr(self, "way", (self.name, *(inner.way if inner is not None else ())))
        alike = all(one.plan is None and one.price == first.price for one in stage.members)
        if not choosy and stage.balanced and alike:
            force_setattr(self, "equals", stage.members)
        if not (choosy or stage.balanced):
            force_setattr(self, "favourite", first.name if inner is None else inner.favourite)
            force_setattr(self, "variants", (*first.variants, *(inner.variants if inner is not None else ())))
        force_setattr(self, "models", _models((*self.for_long, *self.stages), long=True))

    @property
    def scope(self) -> tuple[str, str]:
        """Of what its first stage draws."""
        return self.name, self.stages[0].kind

    def reach(self, *, long: bool) -> tuple[str, ...]:
        """Each model that may answer; `long`: a request that is too long for one of them."""
        return self.models if long else self.usual


def _models(stages: Iterable[Stage], *, long: bool = False) -> tuple[str, ...]:
    members = (member for stage in stages for member in stage.members)
    return tuple(dict.fromkeys(name for member in members for name in member.models(long=long)))


def plan_of(target: ModelSpec | Route, names: Meanings, for_all: Sequence[str] = ()) -> Plan:
    """`for_all`: names of what answers if nothing else can."""
    if isinstance(target, ModelSpec):
        own: tuple[Stage, ...] = (Stage("order 1", (Member(target.name),)),)
        return Plan(target.name, None, (*own, *_last(own, names, for_all)))
    own = (*_own(target, names), *_in_turn("fallback", target.fallbacks, names))
    for_long = _in_turn("context fallback", target.context_fallbacks, names)
    return Plan(target.name, target, (*own, *_last(own, names, for_all, target)), for_long)


def _last(
    own: Sequence[Stage], names: Meanings, for_all: Sequence[str], asked: Route | None = None
) -> tuple[Stage, ...]:
    """The fallbacks of all, without what is asked before."""
    known = {member.name for stage in own for member in stage.members} | ({asked.name} if asked is not None else set())
    return tuple(stage for stage in _in_turn(FOR_ALL, for_all, names) if stage.members[0].name not in known)


def _own(route: Route, names: Meanings) -> Iterator[Stage]:
    if route.models:
        yield Stage("order 1", tuple(_member(name, names) for name in route.models))
    for tier in TIERS:
        if of_tier := route.tiers.of(tier):
            yield Stage(f"tier {tier}", tuple(_member(name, names) for name in of_tier), tier=tier)
    deployments = sorted(route.deployments, key=lambda one: one.order)
    for order, equal in groupby(deployments, key=lambda one: one.order):
        members = tuple(_member(one.model, names, one.weight) for one in equal)
        yield Stage(f"order {order}", members, balanced=True)


def _in_turn(kind: str, members: Sequence[str], names: Meanings) -> tuple[Stage, ...]:
    return tuple(Stage(kind, (_member(name, names),)) for name in members)


def _member(name: str, names: Meanings, weight: int = 1) -> Member:
    """A name that means nothing stays: its model is not there, and is passed over."""
    found, variant = names.meaning(name), names.variant(name)
    if isinstance(found, Route):
        return Member(found.name, plan_of(found, names), weight, variant)
    if found is None:
        return Member(name, None, weight)
    return Member(found.name, None, weight, variant, found.price.both)
