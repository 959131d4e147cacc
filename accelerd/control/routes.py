"""The control routes of the unix socket, as docs/control.md describes them.

Asks the scheduler like everybody else; reads processes only through ModelInfo. Never served on a TCP port. What it
answers, the bus answers too: `answers` and `operations` are without HTTP.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Protocol
from urllib.parse import parse_qs

from aiohttp import web

from accelerd.base.errors import AccelError
from accelerd.base.exits import Exit
from accelerd.base.names import CONTROL_PREFIX
from accelerd.config.model import ModelSpec, Route
from accelerd.control.http import Routes, doings, look, looks, streams
from accelerd.control.known_conflicts import KnownConflicts
from accelerd.control.load_progress import Progress, load_progress
from accelerd.control.npu_usage import claims_of
from accelerd.control.operations import (
    Answer,
    Event,
    Events,
    Operation,
    Query,
    at_once,
    flag,
    model_of,
    number,
    watched,
)
from accelerd.engines.base import LaunchPlan
from accelerd.gateway.request_router import RequestRouter
from accelerd.instances import Facts
from accelerd.memory.ledger import Ledger
from accelerd.scheduler.lifecycle import State
from accelerd.scheduler.placement import Limits
from accelerd.scheduler.record import Residue, Snapshot
from accelerd.scheduler.service import Scheduler


class Output(Protocol):
    """What a model's processes printed."""

    def lines(self, last: int | None = None) -> list[str]: ...
    def follow(self, last: int = 0) -> contextlib.AbstractContextManager[AsyncIterator[str]]: ...


class ModelInfo(Protocol):
    """What the control routes may know of processes."""

    def facts(self, instance: int) -> Facts | None: ...
    def progress(self, instance: int) -> Progress | None: ...
    def output(self, model: str) -> Output: ...
    async def memory(self, instance: int) -> int | None: ...
    async def plan(self, spec: ModelSpec) -> LaunchPlan:
        """How the model would be started now. AccelError when it could not."""
        ...

    def load_seconds(self, spec: ModelSpec) -> float | None: ...
    def device(self, spec: ModelSpec) -> str: ...


class TuningRuns(Protocol):
    """Measures models."""

    async def run(
        self, name: str, *, quick: bool, force: bool, tell: Callable[[dict[str, Any]], None]
    ) -> dict[str, Any]:
        """The outcome; `tell` hears of each step before. AccelError. Nothing is left of it when it is cancelled."""
        ...


class Owner(Protocol):
    """The daemon, as far as its own control routes need it."""

    def overview(self) -> dict[str, Any]:
        """The part of `status` that is not about models."""
        ...

    async def reload(self) -> dict[str, list[str]]:
        """Read the configuration again: what changed. AccelError config_invalid."""
        ...


class Control:
    """Callable as the gateway's control hook: (request, path) → response, or None for paths that are not its own."""

    def __init__(
        self,
        scheduler: Scheduler,
        insight: ModelInfo,
        owner: Owner,
        trials: TuningRuns,
        board: RequestRouter,
        more: Routes | None = None,
        hazards: KnownConflicts | None = None,
    ) -> None:
        """`more`: control routes of other modules; `hazards`: what is known to go wrong with models."""
        self._board = board
        self._hazards = hazards
        self._scheduler = scheduler
        self._insight = insight
        self._owner = owner
        self._trials = trials
        self.answers: dict[str, Answer] = {
            "status": self._status,
            "explain": self._explain,
            "logs": self._printed,
        }
        self.operations: dict[str, Operation] = {
            "load": self._load,
            "unload": self._unload,
            "tune": self._tune,
            "reload": self._reload,
        }
        self.actions: dict[str, Answer] = {"reset": self._reset}
        self._routes: Routes = {
            **looks(self.answers),
            **doings(self.actions),
            **streams(self.operations),
            ("GET", "/logs"): self._logs,
            ("POST", "/reload"): look(lambda query: self._owner.reload()),
            **(more or {}),
        }

    async def __call__(self, request: web.BaseRequest, path: str) -> web.StreamResponse | None:
        if not path.startswith(CONTROL_PREFIX + "/"):
            return None
        _check_peer(request)
        name = path[len(CONTROL_PREFIX) :]
        route = self._routes.get((request.method, name))
        if route is None:
            if any(known == name for _, known in self._routes):
                raise AccelError("method_not_allowed", f"{path} does not take {request.method}")
            raise AccelError("not_found", f"there is no control route {path[:200]!r}")
        query = parse_qs(request.raw_path.partition("?")[2], keep_blank_values=True)
        return await route(request, {key: values[-1] for key, values in query.items()})

    # --- reading ----------------------------------------------------------------------------------------------

    async def _status(self, query: Query) -> dict[str, Any]:
        models = [await self._model(snapshot) for snapshot in self._scheduler.snapshots()]
        limits, settings = self._scheduler.limits, self._scheduler.settings
        limit, source = room_of(limits, self._scheduler.ledger())
        overview = self._owner.overview()
        overview["scheduler"] = {
            "memory_limit": limit,
            "memory_source": source,
            "memory_used": self._scheduler.memory_held(),
            "max_loaded": limits.max_loaded,
            "queue": self._scheduler.queued,
            "max_queue": settings.max_queue,
            "residues": [_residue(residue) for residue in self._scheduler.residues],
        }
        overview["hazards"] = [hazard.json() for hazard in self._hazards.now()] if self._hazards is not None else []
        overview["models"] = models
        overview["routes"] = [
            {"name": route.name, "models": list(route.models), "description": route.description}
            for route in self._board.directory.routes.values()
        ]
        return overview

    async def _model(self, snapshot: Snapshot) -> dict[str, Any]:
        spec, instance = snapshot.spec, snapshot.instance
        facts = self._insight.facts(instance) if instance is not None else None
        traits = self._board.traits(spec)
        return {
            "name": spec.name,
            "aliases": list(spec.aliases),
            "prefixed": self._board.directory.generated(spec) or None,
            "engine": spec.engine,
            "recipe": traits.recipe,
            "labels": list(traits.labels),
            "state": snapshot.state,
            "since": snapshot.since,
            "reason": snapshot.reason,
            "pid": facts.pid if facts else None,
            "home": facts.home if facts else None,
            "place": facts.place if facts else None,
            "leases": snapshot.leases,
            "queue": snapshot.queue,
            "idle": snapshot.idle,
            "idle_timeout": spec.idle_timeout,
            "pin": spec.pin,
            "held": bool(snapshot.holds),
            "preload": spec.preload,
            "memory": snapshot.memory,
            "memory_source": snapshot.memory_source,
            "memory_used": await self._insight.memory(instance) if instance is not None else None,
            "device": snapshot.device,
            "claims": claims_of(snapshot.need, self._scheduler.ledger().pools),
            "retry_in": snapshot.retry_in,
            "load_seconds": self._insight.load_seconds(spec),
            "outdated": snapshot.outdated,
            "residue": sum(residue.size for residue in snapshot.residues),
            "error": _failure(snapshot.error),
        }

    async def _explain(self, query: Query) -> dict[str, Any]:
        route = self._board.directory.routes.get(model_of(query))
        if route is not None:
            return self._explain_route(route)
        snapshot = self._asked(query)
        facts = self._insight.facts(snapshot.instance) if snapshot.instance is not None else None
        plan = facts.plan if facts and facts.plan else await self._insight.plan(snapshot.spec)
        fits, how = self._scheduler.placement(snapshot.spec.name)
        return {
            "model": snapshot.spec.name,
            "state": snapshot.state,
            "pid": facts.pid if facts else None,
            "home": facts.home if facts else None,
            "place": facts.place if facts else None,
            "argv": list(plan.argv),
            "command": shlex.join(plan.argv),
            "flags": [{"text": f.text, "source": f.source, "reason": f.reason, "note": f.note} for f in plan.flags],
            "warnings": [*plan.warnings, *(self._hazards.of(snapshot, plan) if self._hazards is not None else ())],
            "placement": {
                "memory": snapshot.memory,
                "source": snapshot.memory_source,
                "pools": dict(snapshot.need.amounts),
                "parts": dict(snapshot.need.parts),
                "devices": list(snapshot.need.devices),
                "claims": claims_of(snapshot.need, self._scheduler.ledger().pools),
                "fits": fits,
                "reason": how,
            },
            "history": [
                {"ago": snapshot.since + (snapshot.history[-1].at - t.at), "from": t.before, "to": t.after,
                 "reason": t.reason}
                for t in snapshot.history
            ],
        }  # fmt: skip

    def _asked(self, query: Query) -> Snapshot:
        """The model that a query names. AccelError."""
        return self._scheduler.snapshot(self._board.directory.canonical(model_of(query)))

    def _explain_route(self, route: Route) -> dict[str, Any]:
        """Which of its models would answer now, and why."""
        decision = self._board.decision(route)
        known = {snapshot.spec.name: snapshot for snapshot in self._scheduler.snapshots()}
        return {
            "route": route.name,
            "description": route.description,
            "answers": decision.model,
            "reason": decision.reason,
            "models": [
                {
                    "model": look.model,
                    "state": known[look.model].state if look.model in known else None,
                    "device": known[look.model].device if look.model in known else None,
                    "free": look.free,
                    "ahead": look.ahead,
                    "why": look.why,
                }
                for look in decision.looks
            ],
        }

    async def _printed(self, query: Query) -> dict[str, Any]:
        """The last lines of a model's output, for those who cannot follow it."""
        name = self._asked(query).spec.name
        return {"model": name, "lines": self._insight.output(name).lines(last=number(query, "lines", 50))}

    async def _logs(self, request: web.BaseRequest, query: Query) -> web.StreamResponse:
        name = self._asked(query).spec.name
        output, last = self._insight.output(name), number(query, "lines", 50)
        if not flag(query, "follow"):
            text = "".join(line + "\n" for line in output.lines(last=last))
            return web.Response(text=text, content_type="text/plain", charset="utf-8")
        response = web.StreamResponse(headers={"Content-Type": "text/plain; charset=utf-8"})
        await response.prepare(request)
        with output.follow(last=last) as lines:
            async for line in lines:
                await response.write(line.encode() + b"\n")
        return response

    # --- doing ------------------------------------------------------------------------------------------------

    async def _reset(self, query: Query) -> dict[str, Any]:
        name = self._asked(query).spec.name
        self._scheduler.reset(name)
        return {"state": self._scheduler.snapshot(name).state}

    async def _reload(self, query: Query) -> Events:
        return at_once({"event": "reloaded", **await self._owner.reload()})

    async def _load(self, query: Query) -> Events:
        name, evict = self._asked(query).spec.name, flag(query, "evict", "1")
        return self._watched(name, lambda: self._scheduler.load(name, evict=evict), "ready")

    async def _unload(self, query: Query) -> Events:
        name, force = self._asked(query).spec.name, flag(query, "force")
        return self._watched(name, lambda: self._scheduler.unload(name, force=force), "stopped")

    async def _tune(self, query: Query) -> Events:
        name = self._asked(query).spec.name
        told: list[Event] = []

        def progress(elapsed: float) -> list[Event]:
            news = [{"event": "progress", "elapsed": elapsed, **one} for one in (told or [{}])]
            told.clear()
            return news

        async def work() -> Event:
            quick, force = flag(query, "quick"), flag(query, "force")
            return {"event": "done", **await self._trials.run(name, quick=quick, force=force, tell=told.append)}

        return watched(work, progress, lambda elapsed: progress(elapsed) if told else [])

    def _watched(self, name: str, work: Callable[[], Awaitable[None]], done: str) -> Events:
        """Do what changes the state of a model."""

        async def until_done() -> Event:
            await work()
            return {"event": done, "model": name}

        return watched(until_done, lambda elapsed: [self._progress(name, elapsed)])

    def _progress(self, name: str, elapsed: float) -> Event:
        snapshot = self._scheduler.snapshot(name)
        seen = self._insight.progress(snapshot.instance) if snapshot.instance is not None else None
        waiting = snapshot.instance is None
        share = load_progress(snapshot, seen)
        return {
            "event": "progress",
            "state": "queued" if waiting and snapshot.queue else snapshot.state,
            "elapsed": elapsed,
            "expected": self._insight.load_seconds(snapshot.spec) if snapshot.state is State.STARTING else None,
            "memory": seen.resident if seen else None,
            "memory_expected": snapshot.memory or None,
            "progress": share if share >= 0 else None,
            "line": seen.line if seen else "",
        }


def room_of(limits: Limits, ledger: Ledger) -> tuple[int | None, str]:
    """Bytes that all models together could have on this machine, and who says so. None: nothing is known of it."""
    if limits.memory is not None:
        return limits.memory, limits.memory_source
    pools = ledger.pools.values()
    if not pools:
        return None, ""
    own = sum(pool.own if pool.backed_by else pool.room for pool in pools)
    return own, "what the memory of this machine has, less what is kept free"


def _check_peer(request: web.BaseRequest) -> None:
    """Only the daemon's own user, and root, may control it."""
    transport = request.transport
    sock = transport.get_extra_info("socket") if transport is not None else None
    if sock is None:
        raise AccelError("unauthorized", "the client has gone")
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _, uid, _ = struct.unpack("3i", credentials)
    if uid not in (0, os.getuid()):
        raise AccelError("unauthorized", "only the user that runs accelerd may control it")


def _failure(exit: Exit | None) -> dict[str, Any] | None:
    return {"message": exit.message, "cause": exit.cause, "tail": list(exit.tail)} if exit is not None else None


def _residue(residue: Residue) -> dict[str, Any]:
    return {"model": residue.model, "memory": residue.size, "where": residue.where}
