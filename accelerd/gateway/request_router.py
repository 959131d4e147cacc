"""Decides which model a request goes to, whether it has the capability, and what its engine expects.

Asks the routing for names, the scheduler for free models, the engines for capabilities. Loads nothing, takes no lease.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Mapping

from msgspec import Struct

from accelerd.base.errors import AccelError
from accelerd.config.model import ModelSpec, Route
from accelerd.engines.base import Dialect, Engine, Task, Traits
from accelerd.gateway.dialects.translation import Translation, translation_for
from accelerd.gateway.request_body import FormBody, JsonBody
from accelerd.gateway.responses import PHRASES, TASKS, TOOLED
from accelerd.routing.choice import Decision, decide, placed
from accelerd.routing.directory import Directory
from accelerd.scheduler.record import Snapshot
from accelerd.scheduler.service import Scheduler

CPU, NPU = "cpu", "npu"

log = logging.getLogger(__name__)


RequestInfo = JsonBody | FormBody  # what a request's body tells the router


class UpstreamTarget(Struct, frozen=True):
    """Where a request goes, and what the engine expects."""

    model: str
    path: str  # the engine's
    wire_name: str | None = None  # the engine's name of the model; None: `model` in the body stays as it is
    busy_statuses: frozenset[int] = frozenset()  # that mean: try again later
    hides_errors: bool = False  # an error may come with status 200
    translation: Translation | None = None  # where the engine has not the API of the request


class RequestRouter:
    """Routes by one configuration at a time. `engines` is live: a reload replaces its items."""

    def __init__(self, scheduler: Scheduler, engines: Mapping[str, Engine]) -> None:
        self._scheduler = scheduler
        self._engines = engines
        self._usual: dict[tuple[str | None, str], UpstreamTarget] = {}  # (name, path) → target
        self.directory = Directory()

    def configure(self, models: Iterable[ModelSpec], routes: Iterable[Route], default: str | None = None) -> None:
        """Take over the names of a configuration."""
        self._usual.clear()
        self.directory = Directory(models, routes, self.kind, default)

    def traits(self, spec: ModelSpec) -> Traits:
        """The model's capabilities as far as they are known."""
        return self._engines[spec.engine].traits(spec)

    def kind(self, spec: ModelSpec) -> str:
        """The kind of device that the model runs on: "npu", "gpu", "cpu", "" if unknown."""
        return self.traits(spec).device

    def dialect(self, spec: ModelSpec) -> Dialect:
        """How the model's engine answers."""
        return self._engines[spec.engine].dialect

    def target(self, path: str, info: RequestInfo, media: Collection[Task] = ()) -> UpstreamTarget:
        """The target of a request to `path`. AccelError model_not_found, not_supported_by_model.

        `media`: what it brings beside text, see request_media.py.
        """
        usual = self._usual.get((info.model, path))
        if usual is not None and not media:
            return usual
        task = TASKS[path]
        found = self._unnamed(path) if info.model is None else self.directory.find(info.model)
        if isinstance(found, Route):
            lacking = self._lacking(found, path, info, media)
            if len(lacking) == len(found.models):
                raise self._none_can(found, lacking, path)
            return self._routed(found, path, info, media, _words(lacking))
        target = self.target_of(found, path, info, media)
        unchanged = target == UpstreamTarget(found.name, path)
        known = info.model is None or self.directory.is_name(info.model)  # never all names that match a pattern
        if known and unchanged and (task not in TOOLED or "tools" in self.traits(found).tasks):
            self._usual[info.model, path] = target
        return target

    def _unnamed(self, path: str) -> ModelSpec | Route:
        """What a request without a model means: the default if it can, the only one, or the only one for the task.

        AccelError bad_request.
        """
        default, models = self.directory.default, list(self.directory.models.values())
        if default is not None and any(map(self._can(path), self._models_of(default))):
            return default
        if len(models) > 1:
            models = list(filter(self._can(path), models)) or models
        if len(models) != 1 and default is not None:
            return default
        if len(models) != 1:
            names = f"name one of {', '.join(spec.name for spec in models)}" if models else "no model is configured"
            raise AccelError("bad_request", "the request does not say which `model`", hint=names, param="model")
        return models[0]

    def _can(self, path: str) -> Callable[[ModelSpec], bool]:
        """Which models can be asked at this path, be it by translation."""
        return lambda spec: _serves(self.traits(spec), path)

    def _models_of(self, named: ModelSpec | Route) -> list[ModelSpec]:
        return [self.directory.models[name] for name in named.models] if isinstance(named, Route) else [named]

    def route(self, path: str, info: RequestInfo) -> Route | None:
        """The route that a request asks for, if it is one that has several models."""
        try:
            found = self._unnamed(path) if info.model is None else self.directory.find(info.model)
        except AccelError:  # the configuration has changed since
            return None
        return found if isinstance(found, Route) and len(found.models) > 1 else None

    def another(
        self, path: str, info: RequestInfo, media: Collection[Task], failed: Mapping[str, str]
    ) -> UpstreamTarget | None:
        """The target at another model of the route that is asked for. `failed`: why these do not answer, by name."""
        route = self.route(path, info)
        if route is None:
            return None
        lacking = {**_words(self._lacking(route, path, info, media)), **failed}
        return None if len(lacking) == len(route.models) else self._routed(route, path, info, media, lacking)

    def _routed(
        self, route: Route, path: str, info: RequestInfo, media: Collection[Task], lacking: Mapping[str, str]
    ) -> UpstreamTarget:
        decision = self._decide(route, lacking)
        log.debug("%s is answered by %s: %s", route.name, decision.model, decision.reason)
        return self.target_of(self.directory.models[decision.model], path, info, media)

    def target_of(self, spec: ModelSpec, path: str, info: RequestInfo, media: Collection[Task] = ()) -> UpstreamTarget:
        """The target, by what is known now; loading the model may change it. AccelError not_supported_by_model."""
        traits = self.traits(spec)
        missing = _missing(traits, path, info, media)
        if missing is not None:
            raise self._refusal(spec, missing, traits, path)
        dialect, translation = self.dialect(spec), translation_for(path, traits.tasks)
        path = path if translation is None else translation.engine
        return UpstreamTarget(
            spec.name, traits.paths.get(path, path), traits.wire_name, dialect.busy, dialect.masks_errors, translation
        )

    def decision(self, route: Route) -> Decision:
        """Which model of the route would answer a request now, if all have the capability."""
        return self._decide(route, {})

    def _decide(self, route: Route, lacking: Mapping[str, str]) -> Decision:
        snapshots: list[Snapshot] = self._scheduler.snapshots()
        return decide(route, snapshots, self._scheduler.placement, lacking, self._where)

    def _where(self, snapshot: Snapshot) -> frozenset[str]:
        """What it runs on. An engine may know of an NPU that was not detected; such a model does not run on the CPU."""
        if not snapshot.need.devices and snapshot.device == CPU and self.kind(snapshot.spec) == NPU:
            return frozenset((NPU,))
        return placed(snapshot)

    def _lacking(self, route: Route, path: str, info: RequestInfo, media: Collection[Task]) -> dict[str, Task]:
        """The models of a route that cannot serve this, and what they lack."""
        traits = {name: self.traits(self.directory.models[name]) for name in route.models}
        lacking = {name: _missing(known, path, info, media) for name, known in traits.items()}
        return {name: missing for name, missing in lacking.items() if missing is not None}

    def _none_can(self, route: Route, lacking: Mapping[str, Task], path: str) -> AccelError:
        text = "; ".join(f"{name} {why}" for name, why in _words(lacking).items())
        missing = lacking[route.models[-1]]
        return _unsupported(f"no model of {route.name} supports this: {text}; {self._others(missing, path)}", missing)

    def _refusal(self, spec: ModelSpec, missing: Task, traits: Traits, path: str) -> AccelError:
        why = traits.why_not.get(missing) or f"{spec.engine} does not support it with this model"
        return _unsupported(f"{spec.name} cannot {PHRASES[missing]}: {why}; {self._others(missing, path)}", missing)

    def _others(self, missing: Task, path: str) -> str:
        """The models that have the capability."""
        specs = self.directory.models.values()
        if missing == TASKS[path]:
            able = [spec.name for spec in specs if _serves(self.traits(spec), path)]
        else:
            able = [spec.name for spec in specs if missing in self.traits(spec).tasks]
        return f"these models can: {', '.join(able)}" if able else "no configured model can"


def _serves(traits: Traits, path: str) -> bool:
    return TASKS[path] in traits.tasks or translation_for(path, traits.tasks) is not None


def _missing(traits: Traits, path: str, info: RequestInfo, media: Collection[Task]) -> Task | None:
    task = TASKS[path]
    if not _serves(traits, path):
        return "chat" if task == "ollama" else task
    if task in TOOLED and "tools" not in traits.tasks and info.wants_tools():
        return "tools"
    return next((one for one in sorted(media) if one not in traits.tasks), None)


def _words(lacking: Mapping[str, Task]) -> dict[str, str]:
    return {name: f"cannot {PHRASES[missing]}" for name, missing in lacking.items()}


def _unsupported(text: str, missing: Task) -> AccelError:
    param = "tools" if missing == "tools" else "model"
    return AccelError("not_supported_by_model", text, param=param, capability=missing)
