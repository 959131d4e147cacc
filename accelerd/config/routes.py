"""Routes: one name for several models, or for other routes. Their keys in accelerd.toml, and what one says of others.

Pure data, as config/model.py is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from accelerd.config import values as toml
from accelerd.config.complexity import ComplexitySettings, TierMembers, complexity_of, members_of
from accelerd.config.keys import array, described, each_once, key, table
from accelerd.config.variants import VARIANTS, Variant


@dataclass(frozen=True)
class Deployment:
    """One way to answer a route's requests: a model or another route."""

    model: str = key(toml.Name, "", "A model or a route.")
    order: int = key(
        int, 1, "Requests go to the deployments with the lowest order of which one can answer.", ge=1, le=1000
    )
    weight: int = key(int, 1, "Share of the requests among deployments that are equally good.", ge=1, le=1000)


def _deployment(values: dict[str, Any]) -> Deployment:
    """ValueError with what completes "expected …"."""
    deployment = Deployment(**values)
    if not deployment.model:
        raise ValueError('a table with model = "…"')
    return deployment


def deployment_tables(deployments: tuple[Deployment, ...]) -> list[dict[str, Any]]:
    return [{"model": one.model, "order": one.order, "weight": one.weight} for one in deployments]


DEPLOYMENTS = each_once(
    described(
        table(Deployment),
        "",
        extra={"parse": _deployment, "expects": 'a table such as {model = "big", order = 1, weight = 3}'},
    ),
    lambda deployment: deployment.model,
    "error",
)


@dataclass(frozen=True)
class Route:
    """One name for several models."""

    name: str
    models: tuple[str, ...] = key(
        each_once(toml.Name),
        (),
        "Models and routes in order of preference. While the device of a model is busy, requests go to the next one.",
    )
    description: str = key(toml.TextLine, "", "A description for people, on one line.")
    aliases: tuple[str, ...] = key(array(toml.Name), (), "Additional names for clients, as for models.")
    unlisted: bool = key(bool, False, "Leave the route out of GET /v1/models; requests may still name it.")
    hidden_aliases: tuple[str, ...] = key(array(toml.Name), (), "Aliases that GET /v1/models does not show.")
    variants: tuple[Variant, ...] = key(
        VARIANTS, (), "Further names, as models have them: [routes.NAME.variants.OTHER]."
    )
    deployments: tuple[Deployment, ...] = key(
        described(DEPLOYMENTS, "", extra={"show": deployment_tables}),
        (),
        "Instead of `models`, where some come only after others, or share requests by weight. Of those with the same "
        "order a loaded model goes before one that is not, then a short queue before a long one, then the cheaper one "
        "before the dearer, then the weights decide.",
    )
    tiers: TierMembers = key(
        table(TierMembers),
        TierMembers(),
        "Instead of `models`, where it depends on how much a request asks for which of them answers.",
    )
    complexity: ComplexitySettings = key(
        table(ComplexitySettings), ComplexitySettings(), "How a route with `tiers` judges requests."
    )
    fallbacks: tuple[str, ...] = key(
        each_once(toml.Name),
        (),
        "Models and routes that answer, one after the other, if none of the route's own can.",
    )
    context_fallbacks: tuple[str, ...] = key(
        each_once(toml.Name),
        (),
        "Models and routes that answer requests that are too long for the model that they would go to. Without it, "
        "another one of the route with a longer context does.",
    )
    retries: int = key(
        int, 0, "How often all that have failed are asked once more, after a pause, if none has answered.", ge=0, le=10
    )
    cooldown: float = key(
        toml.DurationOrZero,
        30.0,
        "How long a deployment that has failed is passed over; then one request tries it. 0: not at all.",
    )
    session_affinity: bool = key(
        bool,
        False,
        "Send the requests of a conversation to the model that has answered before, and has it in its prompt cache.",
    )
    prefer: Literal["speed", "efficiency"] = key(
        Literal["speed", "efficiency"],
        "speed",
        'What else distinguishes equal models: with "efficiency", an NPU goes before a GPU in the processor, that '
        "before a card, and this before another machine.",
    )

    @property
    def members(self) -> tuple[str, ...]:
        """What it answers with in the first place, the lowest order first."""
        deployments = (one.model for one in sorted(self.deployments, key=lambda one: one.order))
        return self.models or tuple(deployments) or self.tiers.names

    @property
    def refers_to(self) -> tuple[str, ...]:
        """Every name in it."""
        return (*self.members, *self.fallbacks, *self.context_fallbacks)


def route_of(name: str, values: dict[str, Any]) -> Route:
    """Of what was written in its table, and the tables in it."""
    tiers, complexity = members_of(values.pop("tiers", {})), complexity_of(values.pop("complexity", {}))
    return Route(name, tiers=tiers, complexity=complexity, **values)


def cycle_from(start: str, refers: Mapping[str, Sequence[str]]) -> list[str]:
    """The shortest way from a name back to it: ["a", "b", "a"]; empty if there is none. `refers`: of each to others."""
    ways, seen = [[start]], set[str]()
    for way in ways:
        for name in refers.get(way[-1], ()):
            if name == start:
                return [*way, name]
            if name not in seen:
                seen.add(name)
                ways.append([*way, name])
    return []
