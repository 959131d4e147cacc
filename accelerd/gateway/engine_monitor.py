"""GET /props, /slots, /lora-adapters and /metrics of the llama-server that runs a model.

Monitors ask for these for as long as they run, so no model is loaded for them, and none stays loaded: they hold no
lease. What would change a model for all its clients is not done by model; /upstream/ has the engine's own paths.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final
from urllib.parse import parse_qsl

from accelerd.base.errors import AccelError
from accelerd.config.model import ModelSpec, Route
from accelerd.engines.base import LaunchPlan
from accelerd.engines.http import HttpError, request
from accelerd.gateway.connection import ClientConnection, refusal
from accelerd.gateway.engine_errors import corrected_error
from accelerd.gateway.request_body import JsonBody, model_in_query
from accelerd.gateway.request_log import log_refusal
from accelerd.gateway.request_parser import HttpRequest
from accelerd.gateway.request_router import RequestRouter
from accelerd.gateway.responses import JSON_TYPE, Response, answered_by, json_response
from accelerd.scheduler.lifecycle import State
from accelerd.scheduler.service import Scheduler

METRICS_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
MONITORED: Final = {
    "/props": JSON_TYPE,
    "/slots": JSON_TYPE,
    "/lora-adapters": JSON_TYPE,
    "/metrics": METRICS_TYPE,
}
SLOT: Final = "/slots/"  # and then the number of one
LIKE: Final = "/tokenize"  # a path that every model has that has these
RUNNING: Final = frozenset((State.READY, State.DRAINING))
PATIENCE: Final = 10.0  # s for an answer
MOST: Final = 4 << 20  # bytes of it
# Answers are as old as this at most, in seconds. llama-server looks once a second, and only if nothing else is asked of
# it meanwhile, whether those who wait for whole answers are still there.
FRESH: Final = 1.5


def check_unchanging(method: bytes, path: str) -> None:
    """AccelError method_not_allowed for what would change a model for all its clients."""
    if path in MONITORED and method in (b"GET", b"HEAD"):
        return
    text = f"{method.decode()} {path[:200]} would change the model for all its clients"
    hint = f"/upstream/MODEL{path[:200]} is the engine's own"
    if path == "/lora-adapters":
        hint = f"`lora` in a request chooses adapters for that one, and {hint}"
    raise AccelError("method_not_allowed", text, hint=hint, allow="GET, HEAD" if path in MONITORED else "")


class EngineMonitor:
    """Reads them of the engines. `plan_of(model)`: of the running instance; None: there is none."""

    def __init__(self, now: Callable[[], float], scheduler: Scheduler, router: RequestRouter) -> None:
        self._now = now
        self._scheduler = scheduler
        self._router = router
        self._read: dict[tuple[str, str], tuple[int, float, Response]] = {}  # (model, path) → instance, when, answer
        self.plan_of: Callable[[str], LaunchPlan | None] = lambda model: None

    async def respond(self, asked: HttpRequest, connection: ClientConnection) -> Response:
        """To GET one of MONITORED."""
        try:
            response = await self._answer(asked.path, asked.target)
        except AccelError as error:
            log_refusal(asked, connection, error)
            return refusal(asked, error)
        return response if asked.origin is None else response.readable_by(asked.origin)

    async def _answer(self, path: str, target: bytes) -> Response:
        """AccelError."""
        spec = self._meant(model_in_query(target))
        snapshot = self._scheduler.snapshot(spec.name)
        plan = self.plan_of(spec.name) if snapshot.state in RUNNING else None
        if plan is None or snapshot.instance is None:
            if path == "/props":
                return json_response(self._props(spec))
            text = f"{spec.name} is not loaded, so its engine has no {path}"
            raise AccelError("model_unloaded", text, hint="requests to the model load it, this one does not")
        path_there = path + _query(target) if path == "/slots" else path
        instance, read_at, response = self._read.get((spec.name, path_there), (0, 0.0, None))
        if response is None or instance != snapshot.instance or self._now() - read_at > FRESH:
            response = await self._ask(spec, path, path_there, plan)
            self._read[spec.name, path_there] = snapshot.instance, self._now(), response
        return response

    def _meant(self, name: str | None) -> ModelSpec:
        """AccelError model_not_found, not_supported_by_model, bad_request."""
        found = self._router.unnamed(LIKE) if name is None else self._router.directory.find(name)
        if isinstance(found, Route):
            text = f"{found.name} is a route, and this is asked of one model"
            raise AccelError("bad_request", text, hint=f"name one of {', '.join(found.models)}", param="model")
        self._router.target_of(found, LIKE, JsonBody())
        return found

    async def _ask(self, spec: ModelSpec, path: str, path_there: str, plan: LaunchPlan) -> Response:
        try:
            status, body = await request(plan.endpoint, path_there, within=PATIENCE, bearer=plan.secret, most=MOST)
        except HttpError as error:
            raise AccelError("upstream_failed", f"{spec.name}: its engine does not say its {path}: {error}") from None
        kind = MONITORED[path]
        if status != 200:
            status, body = corrected_error(status, body, path, spec.name, self._router.dialect(spec))
            kind = JSON_TYPE
        return Response(status, body, answered_by(spec.name, "", 1), kind)

    def _props(self, spec: ModelSpec) -> dict[str, Any]:
        """What is known of a model that is not loaded, as llama-server says it of one that sleeps."""
        traits = self._router.traits(spec)
        return {
            "default_generation_settings": {"params": {}, "n_ctx": self._router.context(spec) or 0},
            "total_slots": spec.parallel,
            "model_alias": spec.name,
            "model_path": spec.path or "",
            "modalities": {"vision": "vision" in traits.tasks, "audio": "audio" in traits.tasks},
            "chat_template": "",
            "is_sleeping": True,
        }


def _query(target: bytes) -> str:
    """What /slots is told: to answer with an error if none is free."""
    asked = dict(parse_qsl(target.partition(b"?")[2].decode("latin-1"))).get("fail_on_no_slot")
    return "?fail_on_no_slot=1" if asked else ""
