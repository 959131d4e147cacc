"""Finds out which model a request is for, whether it can do that, and how its engine wants to be asked.

Asks the routing for names, the scheduler for what is free, the engines for what a model can do. Nothing is loaded and
no lease is taken here. `plain` is the memo of its usual verdict, for both paths.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from accelerd.base.errors import AccelError
from accelerd.config.model import ModelSpec, Route
from accelerd.engines.base import Engine, Task, Traits
from accelerd.gateway.endpoints import PHRASES, TASKS, TOOLED
from accelerd.routing.choice import Decision, decide, placed
from accelerd.routing.directory import Directory
from accelerd.scheduler.record import Snapshot
from accelerd.scheduler.service import Scheduler

CPU, NPU = "cpu", "npu"

log = logging.getLogger(__name__)


class RequestInfo(Protocol):
    """What a request says of itself: a Peek or a Form."""

    @property
    def model(self) -> str: ...
    def wants_tools(self) -> bool: ...


@dataclass(frozen=True)
class UpstreamTarget:
    """How a request gets to its model."""

    model: str
    path: str  # the engine's
    wire_name: str | None = None  # what `model` in the body must say; None: what the client wrote
    busy: frozenset[int] = frozenset()  # statuses that mean: ask again
    masked: bool = False  # an error may come with status 200


class PassThrough:
    """A model that is asked in the client's own words, and the ways to the paths that it was found to answer."""

    __slots__ = ("model", "ways")

    def __init__(self, model: str) -> None:
        self.model = model
        self.ways: dict[str, UpstreamTarget] = {}


class RequestRouter:
    """See the module's text. `engines` is live: they are made anew at a reload."""

    def __init__(self, scheduler: Scheduler, engines: Mapping[str, Engine]) -> None:
        self._scheduler = scheduler
        self._engines = engines
        self.plain: dict[str, PassThrough] = {}  # by the name that clients use
        self.directory = Directory()

    def configure(self, models: Iterable[ModelSpec], routes: Iterable[Route]) -> None:
        """Take over the names of a configuration."""
        self.plain.clear()
        self.directory = Directory(models, routes, self.kind)

    def traits(self, spec: ModelSpec) -> Traits:
        """What the model can be asked for, as far as it is known by now."""
        return self._engines[spec.engine].traits(spec)

    def kind(self, spec: ModelSpec) -> str:
        """Of what the model computes on: "npu", "gpu", "cpu", or "" where nobody can say."""
        return self.traits(spec).device

    def streams_notice(self, spec: ModelSpec) -> bool:
        """See Dialect.streams_notice_disconnect."""
        return self._engines[spec.engine].dialect.streams_notice_disconnect

    def way(self, path: str, request_load: RequestInfo) -> UpstreamTarget:
        """Where a request to that path of ours goes. AccelError model_not_found, not_supported_by_model."""
        plain = self.plain.get(request_load.model)
        if plain is not None and path in plain.ways:
            return plain.ways[path]
        task = TASKS[path]
        found = self.directory.find(request_load.model)
        if isinstance(found, Route):
            lacking = self._lacking_of(found, task, request_load)
            decision = self._decide(found, lacking)
            log.debug("%s is answered by %s: %s", found.name, decision.model, decision.reason)
            spec = self.directory.models[decision.model]
        else:
            spec = found
        way = self.worded(spec, path, request_load)
        own_words = way.wire_name is None and way.path == path and not way.busy and not way.masked
        if found is spec and own_words and (task not in TOOLED or "tools" in self.traits(spec).tasks):
            self.plain.setdefault(request_load.model, PassThrough(spec.name)).ways[path] = way
        return way

    def worded(self, spec: ModelSpec, path: str, request_load: RequestInfo) -> UpstreamTarget:
        """How the model is asked, by what is known now: a load may tell more. AccelError not_supported_by_model."""
        traits = self.traits(spec)
        missing = _missing(traits, TASKS[path], request_load)
        if missing is not None:
            raise self._refusal(spec, missing, traits)
        dialect = self._engines[spec.engine].dialect
        return UpstreamTarget(
            spec.name, traits.paths.get(path, path), traits.wire_name, dialect.busy, dialect.masks_errors
        )

    def decision(self, route: Route) -> Decision:
        """Which model of the route would answer now, whatever it is asked for."""
        return self._decide(route, {})

    def _decide(self, route: Route, lacking: Mapping[str, str]) -> Decision:
        snapshots: list[Snapshot] = self._scheduler.snapshots()
        return decide(route, snapshots, self._scheduler.placement, lacking, self._where)

    def _where(self, snapshot: Snapshot) -> frozenset[str]:
        """What it computes on. The engine knows of an NPU that nobody has seen: it is not the processor."""
        if not snapshot.need.devices and snapshot.device == CPU and self.kind(snapshot.spec) == NPU:
            return frozenset((NPU,))
        return placed(snapshot)

    def _lacking_of(self, route: Route, task: Task, request_load: RequestInfo) -> dict[str, str]:
        """The models of a route that cannot do it. AccelError not_supported_by_model when none can."""
        lacking: dict[str, str] = {}
        for name in route.models:
            spec = self.directory.models[name]
            missing = _missing(self.traits(spec), task, request_load)
            if missing is not None:
                lacking[name] = f"cannot {PHRASES[missing]}"
        if len(lacking) == len(route.models):
            text = "; ".join(f"{name} {why}" for name, why in lacking.items())
            missing = _missing(self.traits(self.directory.models[route.models[-1]]), task, request_load) or task
            raise _unsupported(f"no model of {route.name} can do that: {text}; {self._others(missing)}", missing)
        return lacking

    def _refusal(self, spec: ModelSpec, missing: Task, traits: Traits) -> AccelError:
        why = traits.why_not.get(missing) or f"{spec.engine} does not do that with this model"
        return _unsupported(f"{spec.name} cannot {PHRASES[missing]}: {why}; {self._others(missing)}", missing)

    def _others(self, task: Task) -> str:
        """Who can."""
        able = [spec.name for spec in self.directory.models.values() if task in self.traits(spec).tasks]
        return f"these can: {', '.join(able)}" if able else "no configured model can"


def _missing(traits: Traits, task: Task, request_load: RequestInfo) -> Task | None:
    if task not in traits.tasks:
        return task
    return "tools" if task in TOOLED and "tools" not in traits.tasks and request_load.wants_tools() else None


def _unsupported(text: str, missing: Task) -> AccelError:
    param = "tools" if missing == "tools" else "model"
    return AccelError("not_supported_by_model", text, param=param, capability=missing)
