"""Checks of routes, their fallbacks and the default model: what they name is there, and leads to no circle.

Each looks at the resolved configuration and yields the problems that it finds. Must never change anything.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

from accelerd.config.complexity import TIERS
from accelerd.config.model import Config, ModelSpec, Route
from accelerd.config.positions import KeyPath
from accelerd.config.problems import Problem, did_you_mean, key_text
from accelerd.config.resolve import ConfigTables
from accelerd.config.routes import Deployment, cycle_from
from accelerd.config.walk import INVALID, ConfigEntries, problem_at, where


def default_model(entries: ConfigEntries, config: Config) -> Iterator[Problem]:
    entry, name = entries.get(("server", "default_model")), config.server.default_model
    every: list[ModelSpec | Route] = [*config.models.values(), *config.routes.values()]
    known = [known for one in every for known in (one.name, *one.aliases, *one.hidden_aliases)]
    known += [known for one in every for variant in one.variants for known in (variant.name, *variant.aliases)]
    if entry is not None and entry.usable and name is not None and name not in known:
        yield problem_at(entry, ("server", "default_model"), _unknown(name, known, config))


ANSWERS: Final = ("models", "deployments", "tiers")  # what a route has one of


def _lists(route: KeyPath) -> list[KeyPath]:
    """Where a route names models and routes."""
    names = ("models", "deployments", *(("tiers", tier.value) for tier in TIERS), "fallbacks", "context_fallbacks")
    return [(*route, *((name,) if isinstance(name, str) else name)) for name in names]


def routes(entries: ConfigEntries, tables: ConfigTables, config: Config) -> Iterator[Problem]:
    """A route refers to models and routes that are there, and not to itself by way of others."""
    known = [*tables.models, *tables.routes, *(str(path[-1]) for path in variants_in(entries))]
    refers = {name: route.refers_to for name, route in config.routes.items()}
    refers |= {variant.name: (name,) for name, route in config.routes.items() for variant in route.variants}
    told: set[frozenset[str]] = set()
    for name in config.routes:
        path: KeyPath = ("routes", name)
        written = [key for key in ANSWERS if (*path, key) in entries]
        if not written:
            text = (
                "set models = […], in order of preference, or deployments = [{…}], with order and weight, or "
                "tiers = {…}, by how much a request asks for"
            )
            yield problem_at(entries[path], path, text)
        elif len(written) > 1:
            place = where(entries[*path, written[0]])
            text = f"set either {written[0]} or {written[1]}, not both; {written[0]} is set, too ({place})"
            yield problem_at(entries[*path, written[1]], (*path, written[1]), text)
        elif not config.routes[name].members and not any(_wrong(entries, at) for at in _lists(path)):
            yield problem_at(entries[*path, written[0]], (*path, written[0]), "expected at least one model")
        for at in _lists(path):
            yield from _known(entries, at, known, config)
        yield from _complexity(entries, path, config.routes[name])
        way = cycle_from(name, refers)
        if way and frozenset(way) not in told:
            told.add(frozenset(way))
            at = next(each for each in _lists(path) if way[1] in _named_in(entries, each))
            yield problem_at(entries[at], at, f"the route leads back to itself: {' → '.join(way)}")
    yield from _known(entries, ("server", "default_fallbacks"), known, config)


def _complexity(entries: ConfigEntries, path: KeyPath, route: Route) -> Iterator[Problem]:
    at = (*path, "complexity")
    if at in entries and (*path, "tiers") not in entries:
        yield problem_at(entries[at], at, "only a route with tiers judges requests: set tiers = {…}")
    scores = route.complexity.tier_boundaries
    if not scores.simple_medium <= scores.medium_complex <= scores.complex_reasoning:
        text = (
            f"each tier begins above the one before: simple_medium ({scores.simple_medium}), "
            f"medium_complex ({scores.medium_complex}), complex_reasoning ({scores.complex_reasoning})"
        )
        yield problem_at(entries[*at, "tier_boundaries"], (*at, "tier_boundaries"), text)


def _unknown(name: str, known: Sequence[str], config: Config) -> str:
    """What a remote offers comes and goes, so that nothing in the configuration can name it."""
    remote = next((one for one in config.remotes if name.startswith(f"{one}/")), None)
    if remote is None:
        return f"there is no model or route {name!r}{did_you_mean(name, known)}"
    keys = f'engine = "remote", remote = "{remote}" and model = "{name.removeprefix(remote)[1:]}"'
    return f"{name!r} has no table here: write one, [models.NAME] with {keys}, and its NAME in this place"


def _known(entries: ConfigEntries, path: KeyPath, known: Sequence[str], config: Config) -> Iterator[Problem]:
    """The names in a list, or in the tables of one, are those of models and routes."""
    entry = entries.get(path)
    if entry is None:
        return
    places = [((*path, index), line) for index, (_, line) in enumerate(entry.items)] or [(path, entry.line)]
    for (at, line), name in zip(places, _named_in(entries, path), strict=False):
        if name and name not in known:
            yield Problem(entry.file, line, key_text(at), _unknown(name, known, config))


def idle_fallbacks(entries: ConfigEntries, config: Config) -> Iterator[Problem]:
    """Fallbacks that are only further names of what was asked before."""
    every: list[ModelSpec | Route] = [*config.models.values(), *config.routes.values()]
    meant = {name: one.name for one in every for name in (one.name, *(variant.name for variant in one.variants))}
    asked: list[tuple[KeyPath, tuple[str, ...]]] = [
        (("routes", name, "fallbacks"), route.members) for name, route in config.routes.items()
    ]
    if len(config.models) == 1:  # all requests are for it
        asked.append((("server", "default_fallbacks"), tuple(config.models)))
    for path, members in asked:
        before = {meant.get(member, member) for member in members}
        entry = entries.get(path)
        for index, (name, line) in enumerate(entry.items if entry is not None else ()):
            repeated = entry is not None and name in [one for one, _ in entry.items[:index]]  # walk.py tells that
            target = meant.get(name) if isinstance(name, str) and not repeated else None
            if entry is not None and target is not None and target in before:
                what = "is" if target == name else f"is a variant of {target}, which is"
                text = f"has no effect: {name} {what} asked before, and cannot answer by another name either"
                yield Problem(entry.file, line, key_text((*path, index)), text, "warning")
            before.add(target or "")


def _values(entries: ConfigEntries, path: KeyPath) -> list[Any]:
    """The elements of a list, or the one value that stands for it."""
    entry = entries.get(path)
    if entry is None:
        return []
    return [value for value, _ in entry.items] or ([entry.value] if not isinstance(entry.value, tuple) else [])


def _wrong(entries: ConfigEntries, path: KeyPath) -> bool:
    return path in entries and entries[path].value is INVALID


def _named_in(entries: ConfigEntries, path: KeyPath) -> list[str]:
    """One for each element; "" for an invalid one."""
    return [
        "" if value is INVALID else value.model if isinstance(value, Deployment) else str(value)
        for value in _values(entries, path)
    ]


def variants_in(entries: ConfigEntries) -> list[KeyPath]:
    """The tables of all variants."""
    return [path for path in entries if len(path) == 4 and path[2] == "variants" and path[0] in ("models", "routes")]
