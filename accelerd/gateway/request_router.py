"""Decides which model a request goes to, whether it has the capability, and what its engine expects.

Asks the routing for names, the scheduler for free models, the engines for capabilities. Loads nothing, takes no lease.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping

from msgspec import Struct

from accelerd.base.errors import AccelError
from accelerd.config.model import ModelSpec, Route
from accelerd.engines.base import Dialect, Engine, Task, Traits
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

    def target(self, path: str, info: RequestInfo) -> UpstreamTarget:
        """The target of a request to `path`. AccelError model_not_found, not_supported_by_model."""
        usual = self._usual.get((info.model, path))
        if usual is not None:
            return usual
        task = TASKS[path]
        found = self._unnamed(task) if info.model is None else self.directory.find(info.model)
        if isinstance(found, Route):
            lacking = self._lacking_of(found, task, info)
            decision = self._decide(found, lacking)
            log.debug("%s is answered by %s: %s", found.name, decision.model, decision.reason)
            spec = self.directory.models[decision.model]
        else:
            spec = found
        target = self.target_of(spec, path, info)
        unchanged = target == UpstreamTarget(spec.name, path)
        known = info.model is None or self.directory.is_name(info.model)  # never all names that match a pattern
        if found is spec and known and unchanged and (task not in TOOLED or "tools" in self.traits(spec).tasks):
            self._usual[info.model, path] = target
        return target

    def _unnamed(self, task: Task) -> ModelSpec | Route:
        """What a request without a model means: the default, the only one, or the only one for the task.

        AccelError bad_request.
        """
        if self.directory.default is not None:
            return self.directory.default
        models = list(self.directory.models.values())
        if len(models) > 1:
            models = [spec for spec in models if task in self.traits(spec).tasks] or models
        if len(models) != 1:
            names = f"name one of {', '.join(spec.name for spec in models)}" if models else "no model is configured"
            raise AccelError("bad_request", "the request does not say which `model`", hint=names, param="model")
        return models[0]

    def target_of(self, spec: ModelSpec, path: str, info: RequestInfo) -> UpstreamTarget:
        """The target, by what is known now; loading the model may change it. AccelError not_supported_by_model."""
        traits = self.traits(spec)
        missing = _missing(traits, TASKS[path], info)
        if missing is not None:
            raise self._refusal(spec, missing, traits)
        dialect = self.dialect(spec)
        return UpstreamTarget(
            spec.name, traits.paths.get(path, path), traits.wire_name, dialect.busy, dialect.masks_errors
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

    def _lacking_of(self, route: Route, task: Task, info: RequestInfo) -> dict[str, str]:
        """The models of a route without the capability, and why. AccelError not_supported_by_model if none has it."""
        lacking: dict[str, str] = {}
        for name in route.models:
            spec = self.directory.models[name]
            missing = _missing(self.traits(spec), task, info)
            if missing is not None:
                lacking[name] = f"cannot {PHRASES[missing]}"
        if len(lacking) == len(route.models):
            text = "; ".join(f"{name} {why}" for name, why in lacking.items())
            missing = _missing(self.traits(self.directory.models[route.models[-1]]), task, info) or task
            raise _unsupported(f"no model of {route.name} supports this: {text}; {self._others(missing)}", missing)
        return lacking

    def _refusal(self, spec: ModelSpec, missing: Task, traits: Traits) -> AccelError:
        why = traits.why_not.get(missing) or f"{spec.engine} does not support it with this model"
        return _unsupported(f"{spec.name} cannot {PHRASES[missing]}: {why}; {self._others(missing)}", missing)

    def _others(self, task: Task) -> str:
        """The models that have the capability."""
        able = [spec.name for spec in self.directory.models.values() if task in self.traits(spec).tasks]
        return f"these models can: {', '.join(able)}" if able else "no configured model can"


def _missing(traits: Traits, task: Task, info: RequestInfo) -> Task | None:
    if task not in traits.tasks:
        return task
    return "tools" if task in TOOLED and "tools" not in traits.tasks and info.wants_tools() else None


def _unsupported(text: str, missing: Task) -> AccelError:
    param = "tools" if missing == "tools" else "model"
    return AccelError("not_supported_by_model", text, param=param, capability=missing)
