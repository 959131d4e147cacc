"""The answer to GET /v1/models: every model and every route with its capabilities. From memory alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from accelerd.config.model import ModelSpec, Route
from accelerd.config.variants import Variant
from accelerd.engines.base import Traits
from accelerd.gateway.dialects.translation import offered
from accelerd.gateway.request_router import RequestRouter
from accelerd.gateway.responses import iso_date
from accelerd.scheduler.lifecycle import State
from accelerd.scheduler.record import Snapshot
from accelerd.scheduler.service import Scheduler

Json = dict[str, Any]
CPU = "cpu"
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

    def all_for_anthropic(self) -> Json:
        """The list as Anthropic's clients know it: one page."""
        directory = self._router.directory
        every: list[ModelSpec | Route] = [*directory.models.values(), *directory.routes.values()]
        data = [self._for_anthropic(name) for one in every if not one.unlisted for name in _listed(one)]
        ends = {"first_id": data[0]["id"], "last_id": data[-1]["id"]} if data else {"first_id": None, "last_id": None}
        return {"data": data, "has_more": False, **ends}

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
            "status": {"value": _word(snapshot)},
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
        loaded = any(snapshot.state is State.READY for snapshot in models)
        return {
            **self._head(route.name, route.description),
            "aliases": list(route.aliases),
            "routes": list(self._models(route)),
            "context_length": min(filter(None, contexts), default=None),
            "capabilities": sorted({task for one in traits for task in capabilities(one)}),
            "labels": sorted({label for one in traits for label in one.labels}),
            "status": {"value": "loaded" if loaded else _word(models[0]) if models else "stopped"},
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


def _word(snapshot: Snapshot) -> str:
    return "loaded" if snapshot.state is State.READY else str(snapshot.state)
