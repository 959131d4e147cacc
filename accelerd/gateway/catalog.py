"""The answer to GET /v1/models: every model and every route with its capabilities. From memory alone."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, Final
from urllib.parse import parse_qsl

from accelerd.base.decoding import whole_number
from accelerd.base.errors import AccelError
from accelerd.config.model import ModelSpec, Route
from accelerd.config.variants import Variant
from accelerd.engines.base import Task, Traits
from accelerd.gateway.dialects.translation import offered
from accelerd.gateway.request_body import MAX_NAME
from accelerd.gateway.request_router import RequestRouter
from accelerd.gateway.responses import iso_date
from accelerd.scheduler.lifecycle import State
from accelerd.scheduler.record import Snapshot
from accelerd.scheduler.service import Scheduler

Json = dict[str, Any]
CPU = "cpu"
# Words for a model's state that llama.cpp's router has; every other one is "unloaded".
WORDS: Final = {
    State.READY: "loaded",
    State.STARTING: "loading",
    State.WAKING: "loading",
    State.DOWNLOADING: "downloading",
    State.ASLEEP: "sleeping",
}
FAILED: Final = frozenset((State.BACKOFF, State.FAILED))
MOST_LISTED: Final = 1000  # of Anthropic's pages
RECENT: Final = 1.0  # s: who would have to leave for a model is searched for among all that are loaded


class Catalog:
    """Made anew for every request, but for what would have to leave for a model."""

    def __init__(self, scheduler: Scheduler, router: RequestRouter, now: Callable[[], float], created: int) -> None:
        """`created`: OpenAI's model objects carry a date, in seconds since 1970."""
        self._now = now
        self._displaced: dict[str, tuple[str, ...]] = {}
        self._displaced_at = now()
        self._scheduler = scheduler
        self._router = router
        self._created = created

    def all(self) -> Json:
        """The list."""
        directory = self._router.directory
        known = {s.spec.name: s for s in self._scheduler.snapshots() if s.spec.name in directory.models}
        data: list[Json] = []
        for snapshot in known.values():
            if not snapshot.spec.unlisted:
                data += _with_variants(self._model(snapshot), snapshot.spec)
        for route in directory.routes.values():
            if not route.unlisted:
                data += _with_variants(self._route(route, known), route)
        return {"object": "list", "data": data}

    def all_for_anthropic(self, query: str = "") -> Json:
        """The list as Anthropic's clients know it, or the page that the query asks for. AccelError bad_request."""
        directory = self._router.directory
        every: list[ModelSpec | Route] = [*directory.models.values(), *directory.routes.values()]
        names, more = _page([name for one in every if not one.unlisted for name in _listed(one)], query)
        ends = {"first_id": names[0], "last_id": names[-1]} if names else {"first_id": None, "last_id": None}
        return {"data": [self._for_anthropic(name) for name in names], "has_more": more, **ends}

    def one_for_anthropic(self, name: str) -> Json:
        """AccelError model_not_found."""
        found, variant = self._router.directory.find(name), self._router.directory.variant(name)
        return self._for_anthropic(found.name if variant is None else variant.name)

    def _for_anthropic(self, name: str) -> Json:
        return {"type": "model", "id": name, "display_name": name, "created_at": iso_date(self._created)}

    def one(self, name: str) -> Json:
        """A model or a route, by any name. AccelError model_not_found."""
        found, variant = self._router.directory.find(name), self._router.directory.variant(name)
        if isinstance(found, Route):
            entry = self._route(found, {name: self._scheduler.snapshot(name) for name in self._models(found)})
        else:
            entry = self._model(self._scheduler.snapshot(found.name))
        return entry if variant is None else _of_variant(entry, variant)

    def loaded(self) -> list[tuple[Json, Snapshot]]:
        """The models that are loaded here, with what is known of them now."""
        directory = self._router.directory
        here = [s for s in self._scheduler.snapshots() if s.state is State.READY and not s.spec.elsewhere]
        return [(self._model(one), one) for one in here if one.spec.name in directory.models and not one.spec.unlisted]

    def _model(self, snapshot: Snapshot) -> Json:
        spec, traits = snapshot.spec, self._router.traits(snapshot.spec)
        return {
            **self._head(spec.name, spec.description),
            "aliases": list(self._router.directory.aliases(spec)),
            "context_length": _context(spec, traits),
            "size": _size(snapshot, traits),
            "capabilities": capabilities(traits),
            "labels": list(traits.labels),
            "recipe": traits.recipe,
            "engine": spec.engine,
            "device": kind_of(snapshot, traits),
            "status": _status(snapshot.state),
            "state": str(snapshot.state),
            "architecture": _architecture(traits.tasks),
            "meta": traits.meta,
            "queue": snapshot.leases + snapshot.queue,
            "displaces": list(self._displaces(spec.name)),
        }

    def reconsider(self) -> None:
        """Another model is loaded, or another configuration in use."""
        self._displaced.clear()

    def _displaces(self, name: str) -> tuple[str, ...]:
        if (now := self._now()) > self._displaced_at + RECENT:
            self._displaced, self._displaced_at = {}, now
        if name not in self._displaced:
            self._displaced[name] = self._scheduler.displaced_by(name)
        return self._displaced[name]

    def _route(self, route: Route, known: dict[str, Snapshot]) -> Json:
        """Its capabilities are those of all its models."""
        models = [known[name] for name in self._models(route) if name in known]
        traits = [self._router.traits(snapshot.spec) for snapshot in models]
        contexts = [_context(snapshot.spec, one) for snapshot, one in zip(models, traits, strict=True)]
        states = [snapshot.state for snapshot in models] or [State.STOPPED]
        state = State.READY if State.READY in states else states[0]
        return {
            **self._head(route.name, route.description),
            "aliases": list(route.aliases),
            "routes": list(self._models(route)),
            "context_length": min(filter(None, contexts), default=None),
            "capabilities": sorted({task for one in traits for task in capabilities(one)}),
            "labels": sorted({label for one in traits for label in one.labels}),
            "architecture": _architecture(frozenset[Task]().union(*(one.tasks for one in traits))),
            "status": _status(state),
            "state": str(state),
        }

    def _models(self, route: Route) -> tuple[str, ...]:
        """Every one that may answer."""
        return self._router.directory.plan(route).own

    def _head(self, name: str, description: str) -> Json:
        return {
            "id": name, "object": "model", "created": self._created, "owned_by": "accelerd", "description": description,
        }  # fmt: skip


def _listed(one: ModelSpec | Route) -> list[str]:
    """The names under which GET /v1/models has it."""
    return [one.name, *(variant.name for variant in one.variants if not variant.hidden)]


def _with_variants(entry: Json, one: ModelSpec | Route) -> list[Json]:
    return [entry, *(_of_variant(entry, variant) for variant in one.variants if not variant.hidden)]


def _of_variant(entry: Json, variant: Variant) -> Json:
    """What its model or route can do, under its own name."""
    own = {"id": variant.name, "description": variant.description, "aliases": list(variant.aliases)}
    return {**entry, **own, "variant_of": entry["id"]}


def kind_of(snapshot: Snapshot, traits: Traits) -> str:
    """The kind of device that the model runs on, or would: "npu", "gpu", "cpu"."""
    return traits.device or (CPU if snapshot.device == CPU else "gpu")


def capabilities(traits: Traits) -> list[str]:
    """What the model can be asked for, natively or by translation. The APIs of single programs are no capabilities."""
    return sorted(offered(traits.tasks) - {"ollama", "llama-server"})


def _context(spec: ModelSpec, traits: Traits) -> int | None:
    """What the engine says of it; else what the settings say. None: a server elsewhere has not said."""
    if traits.context is not None or spec.elsewhere:
        return traits.context
    return spec.tokens


def _size(snapshot: Snapshot, traits: Traits) -> int | None:
    """Bytes of its files, as its server says them, or as its weights are known from their header."""
    parts = snapshot.need.parts
    return traits.size if traits.size is not None else parts.get("weights", 0) + parts.get("projector", 0) or None


def _status(state: State) -> Json:
    """As llama.cpp's router says it."""
    said: Json = {"value": WORDS.get(state, "unloaded")}
    return {**said, "failed": True} if state in FAILED else said


@lru_cache(maxsize=256)
def _architecture(tasks: frozenset[Task]) -> Json:
    """What goes into a model and comes out of it."""
    ears = not tasks.isdisjoint(("audio", "transcription"))
    into = [*(["image"] if "vision" in tasks else []), *(["audio"] if ears else [])]
    out = [word for task, word in (("images", "image"), ("speech", "audio")) if task in tasks]
    return {
        "input_modalities": ["text", *into] if tasks != {"transcription"} else into,
        "output_modalities": out or ["text"],
    }


def _page(names: list[str], query: str) -> tuple[list[str], bool]:
    """The names that Anthropic's `limit`, `after_id` and `before_id` ask for, and whether there are more that way."""
    asked = dict(parse_qsl(query))
    limit = whole_number(asked.get("limit", str(MOST_LISTED)))
    if limit is None or not 0 < limit <= MOST_LISTED:
        raise AccelError("bad_request", f"`limit` must be a whole number from 1 to {MOST_LISTED}", param="limit")
    for param in ("after_id", "before_id"):
        if param in asked and asked[param] not in names:
            text = f"there is no model {asked[param][:MAX_NAME]!r} in the list"
            raise AccelError("bad_request", text, hint="give the id of one", param=param)
    if "before_id" in asked:
        before = names[: names.index(asked["before_id"])]
        return before[-limit:], len(before) > limit
    after = names[names.index(asked["after_id"]) + 1 :] if "after_id" in asked else names
    return after[:limit], len(after) > limit
