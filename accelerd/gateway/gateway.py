"""The HTTP surface: who may ask, for what, and which part answers. Knows no processes.

Health and model lists are answered from memory, inference by the Forwarder, control requests of the unix socket by
accelerd.control. Every error of accelerd's own has the shape that the path's clients expect.
"""

from __future__ import annotations

import asyncio
import importlib
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import TYPE_CHECKING

from accelerd.base.errors import AccelError
from accelerd.base.events import EventStream
from accelerd.base.ports import Clock
from accelerd.config.model import ServerSettings
from accelerd.engines.base import Engine
from accelerd.engines.remote.remotes import Remotes
from accelerd.gateway import ollama_catalog
from accelerd.gateway.absent_paths import meant
from accelerd.gateway.access import Access
from accelerd.gateway.amendments import with_texts
from accelerd.gateway.catalog import Catalog
from accelerd.gateway.connection import ClientConnection, refusal, too_large
from accelerd.gateway.content_coding import coding_of, unpack
from accelerd.gateway.control_paths import is_for_control
from accelerd.gateway.engine_monitor import MONITORED, SLOT, EngineMonitor, check_unchanging
from accelerd.gateway.engine_paths import PREFIX as UPSTREAM
from accelerd.gateway.engine_paths import EnginePaths
from accelerd.gateway.forward import Forwarder
from accelerd.gateway.front_page import front_page
from accelerd.gateway.health import OK, DeviceHealth, full_health, wants_full
from accelerd.gateway.held_bodies import HeldBodies
from accelerd.gateway.inference_request import InferenceRequest
from accelerd.gateway.known_fields import OPENAI, with_known_fields
from accelerd.gateway.preflight import preflight
from accelerd.gateway.relay import Relay
from accelerd.gateway.request_body import (
    FORM,
    OllamasBody,
    RerankBody,
    boundary_of,
    content_type,
    model_in_path,
    model_in_query,
    read_form,
    read_json,
)
from accelerd.gateway.request_facts import RequestFacts, RequestInfo
from accelerd.gateway.request_log import CLIENT_GONE, log_answer, log_refusal
from accelerd.gateway.request_media import NONE as NO_MEDIA
from accelerd.gateway.request_media import media
from accelerd.gateway.request_parser import HttpRequest
from accelerd.gateway.request_router import RequestRouter
from accelerd.gateway.responses import (
    ANTHROPIC,
    FORMS,
    JSON_TYPE,
    PATH_ALIASES,
    PS,
    PULL,
    SHOW,
    TAGS,
    TASKS,
    VERSION,
    Response,
    answered_by,
    error_response,
    json_response,
)
from accelerd.gateway.sweeper import Sweeper
from accelerd.gateway.upstream import Upstreams
from accelerd.gateway.variant_edits import edited, edited_form
from accelerd.scheduler.events import ModelTransition
from accelerd.scheduler.lifecycle import State
from accelerd.scheduler.service import Scheduler

if TYPE_CHECKING:
    from accelerd.gateway.control_server import Control, ControlServer

ENDING = frozenset(State) - {State.STARTING, State.READY, State.DRAINING}  # no request is sent to the instance any more
SESSION_HEADER = b"x-session-id"
VERSION_HEADER = b"anthropic-version"  # Anthropic's clients send it
OPENAPI = "/openapi.json"
READ = (b"GET", b"HEAD")
NAMED = ("/v1/models/", "/models/", "/api/v1/models/")  # and then the name of one
HEALTH = frozenset(("/health", "/v1/health"))
OPEN = HEALTH | {"/", "/v1", "/v1/"}  # that something listens is said without a key


class Gateway:
    """The HTTP surface of one daemon: admits requests, and answers them."""

    def __init__(
        self,
        clock: Clock,
        scheduler: Scheduler,
        engines: Mapping[str, Engine],
        events: EventStream,
        remotes: Remotes | None = None,
    ) -> None:
        """`engines` is live."""
        self._now = clock.monotonic
        self._scheduler = scheduler
        self._remotes = remotes = remotes or Remotes(self._now, {})
        self.router = RequestRouter(scheduler, engines, self._now, remotes)
        self._catalog = Catalog(scheduler, self.router, self._now, created=int(time.time()))
        self._access: Access
        self._settings: ServerSettings
        self.upstreams = Upstreams()
        self.monitor = EngineMonitor(self._now, scheduler, self.router)
        self.sweeper = Sweeper(asyncio.get_running_loop(), clock)
        self.bodies = HeldBodies(asyncio.get_running_loop())
        self._engine_paths = EnginePaths(self._now, scheduler, self.router, self.sweeper)
        self._forwarder = Forwarder(self._now, scheduler, self.router, self.upstreams, self.sweeper, remotes)
        self.devices: Callable[[], Sequence[DeviceHealth]] = tuple  # that were found the last time
        self.make_control: Callable[[], Control] | None = None  # called in a thread, with the first control request
        self._control_server: ControlServer | None = None
        self._openapi: Response | None = None  # made with the first request for it
        events.subscribe(ModelTransition, self.on_transition)

    def configure(self, settings: ServerSettings, keys: tuple[bytes, ...]) -> None:
        """Take over a configuration for requests from now on; the router has the names."""
        self._settings = self._forwarder.settings = settings
        self._access = Access(settings, keys)
        self.bodies.limit = settings.max_bodies
        self.sweeper.write_timeout = settings.write_timeout
        self.sweeper.stall_timeout = settings.stall_timeout

    def on_transition(self, event: ModelTransition) -> None:
        self._catalog.reconsider()
        if event.transition.after is State.READY:
            self.router.reconsider()
        if event.instance is not None and event.transition.after in ENDING:
            self.upstreams.retire(event.instance)

    def close(self) -> None:
        """After the last request."""
        self._forwarder.checks.close()
        self.sweeper.close()
        self.bodies.close()

    # --- requests ---------------------------------------------------------------------------------------------

    def admit(self, request: HttpRequest) -> Response | None:
        """Judge a head. None: it asks for inference or control, and its body is wanted."""
        path = request.target.partition(b"?")[0].decode("latin-1")
        request.path = path = PATH_ALIASES.get(path, path)
        origin = None
        try:
            if not request.local:
                origin = request.headers.get(b"origin")
                refusal = self._access.check(request.headers, open_to_all=path in OPEN and not _full(request, path))
                if refusal is not None:
                    if refusal.code != "unauthorized":
                        origin = None  # a page that may not come here may not read why
                    elif origin is not None and request.method == b"OPTIONS":
                        refusal = None  # browsers send no key with it
                if refusal is not None:
                    raise refusal
                if origin is not None:
                    request.origin = origin.decode("latin-1")
                    if request.method == b"OPTIONS":
                        return preflight(request, request.origin)
            return self._admit_path(request, path)
        except AccelError as error:
            response = error_response(error, ANTHROPIC if VERSION_HEADER in request.headers else path)
        return response if origin is None else response.readable_by(origin.decode("latin-1"))

    def _admit_path(self, request: HttpRequest, path: str) -> Response | None:
        if path in TASKS:
            if request.method != b"POST":
                raise AccelError("method_not_allowed", f"{path} takes POST", allow="POST")
            self._check_body(request, FORM if path in FORMS else JSON_TYPE)
            return None
        if path in (SHOW, PULL):
            if request.method != b"POST":
                raise AccelError("method_not_allowed", f"{path} takes POST", allow="POST")
            self._check_body(request, JSON_TYPE)
            return None
        if path.startswith(UPSTREAM):
            return None
        if path in MONITORED or path.startswith(SLOT):
            check_unchanging(request.method, path)
            return None
        if not path.startswith("/"):
            raise AccelError("bad_request", "the request target must be a path")
        if is_for_control(request, path) and self.make_control is not None:
            request.for_control = True
            return None
        answer = self._from_memory(request, path)
        response = answer if isinstance(answer, Response) else json_response(answer)
        return response if request.origin is None else response.readable_by(request.origin)

    def _document(self) -> Response:
        if self._openapi is None:
            self._openapi = json_response(importlib.import_module("accelerd.gateway.openapi").document())
        return self._openapi

    def _check_body(self, request: HttpRequest, kind: str) -> None:
        """AccelError when the body is of the wrong kind or says that it is too large."""
        headers, limit = request.headers, self._settings.max_body
        found = headers.get(b"content-type", b"")
        if found != kind.encode() and found.partition(b";")[0].strip().lower() != kind.encode():
            got = f", got {found[:100].decode('latin-1')!a}" if found else ""
            hint = "with curl: " + ("-F file=@…" if kind is FORM else f"-H 'Content-Type: {kind}'")
            raise AccelError("unsupported_media_type", f"Content-Type must be {kind}{got}", hint=hint)
        if (coding := headers.get(b"content-encoding")) is not None and coding_of(coding) is None:
            del headers[b"content-encoding"]
        if int(headers.get(b"content-length", b"0")) > limit:
            raise too_large(limit)

    def _from_memory(self, request: HttpRequest, path: str) -> object:
        answer: object
        if path == "/":
            headers = request.headers
            answer = front_page(headers.get(b"host", b"localhost").decode("latin-1"), headers.get(b"accept", b""))
        elif path in OPEN:
            answer = full_health(self._scheduler, self.devices()) if _full(request, path) else OK
        elif path == OPENAPI:
            answer = self._document()
        elif path == VERSION:
            answer = {"version": ollama_catalog.VERSION}
        elif path == TAGS:
            self._remotes.touch_offering()
            answer = ollama_catalog.tags(self._catalog.all())
        elif path == PS:
            answer = ollama_catalog.running(self._catalog.loaded(), time.time())
        elif path in ("/v1/models", "/models"):
            self._remotes.touch_offering()
            query = request.target.partition(b"?")[2].decode("latin-1")
            answer = (
                self._catalog.all_for_anthropic(query) if VERSION_HEADER in request.headers else self._catalog.all()
            )
        elif path.startswith(NAMED):
            name = model_in_path(path.partition("/models/")[2])
            anthropic = VERSION_HEADER in request.headers
            answer = self._catalog.one_for_anthropic(name) if anthropic else self._catalog.one(name)
        else:
            raise AccelError("not_found", f"there is nothing at {path[:200]!r}", hint=meant(path))
        if request.method not in READ:
            raise AccelError("method_not_allowed", f"{path} takes GET", allow="GET, HEAD")
        return answer

    async def control(self, request: HttpRequest, connection: ClientConnection) -> None:
        """Have accelerd.control answer the request; see ControlServer."""
        if self._control_server is None:
            assert self.make_control is not None
            # In a thread, because aiohttp takes a tenth of a second to load and streams must not wait for that.
            control = await asyncio.to_thread(self.make_control)
            module = await asyncio.to_thread(importlib.import_module, "accelerd.gateway.control_server")
            if self._control_server is None:
                self._control_server = module.ControlServer(control)
        self._control_server.answer(request, connection)

    def infer(
        self, request: HttpRequest, connection: ClientConnection
    ) -> Response | Coroutine[None, None, Response | None] | None:
        """Start an inference request: a refusal, or what finishes it. None: the response was sent."""
        if b"content-encoding" in request.headers:
            return self._unpacked(request, connection)
        relay = connection.relay = Relay(
            connection.transport,
            self._now,
            keep_alive=request.keep_alive,
            http10=request.http10,
            origin=request.origin,
            path=request.path,
            request_id=request.id,
            repair=self._settings.repair == "auto",
        )
        if connection.stream_begun:
            connection.stream_begun = False
            relay.go_on()
        return self._begin(request, connection, relay)

    async def _unpacked(self, request: HttpRequest, connection: ClientConnection) -> Response | None:
        """Begin once the body is unpacked."""
        coding = coding_of(request.headers.pop(b"content-encoding"))
        assert coding is not None
        try:
            request.parts[:] = await unpack(request.parts, coding, self._settings.max_body, connection.hold)
        except AccelError as error:
            log_refusal(request, connection, error, None)
            return refusal(request, error)
        request.size = sum(map(len, request.parts))
        answer = self.infer(request, connection)
        return answer if answer is None or isinstance(answer, Response) else await answer

    def _begin(
        self, request: HttpRequest, connection: ClientConnection, relay: Relay, *, learned: bool = False
    ) -> Response | Coroutine[None, None, Response | None] | None:
        """`learned`: those who may know a name that is not known here were asked."""
        name: str | None = None  # of the model, as the client has it
        asked: InferenceRequest | None = None
        try:
            if request.path not in TASKS:
                return self._other(request, connection)
            body, info, kind = self._read(request, request.path)
            name, relay.called = info.model, info.model or ""
            brings = media(body) if kind is JSON_TYPE else NO_MEDIA
            facts = RequestFacts(request.path, info, brings, body, request.headers.get(SESSION_HEADER))
            asked = InferenceRequest(self.router.target(facts), body, kind, facts)
            name = asked.target.model
            if self._settings.unknown_parameters != "pass" and request.path in OPENAI:
                self._check_fields(asked)
            if isinstance(info, OllamasBody) and info.is_empty() and asked.target.translation is not None:
                return self._prepare(request, connection, asked, relay, info.keep())
            self._forwarder.start(asked, relay)
        except AccelError as error:
            if error.code != "model_not_found" or name is None:
                why = None
            elif not learned and (remotes := self._remotes.may_have(name)):
                return self._learn(request, connection, relay, remotes)
            else:
                why = self._remotes.why_unknown(name)
            log_refusal(request, connection, why or error, name)
            return _refused(request, relay, why or error, asked)
        return self._finish(request, connection, asked, relay)

    def _other(
        self, request: HttpRequest, connection: ClientConnection
    ) -> Response | Coroutine[None, None, Response | None]:
        """What is no inference. AccelError."""
        if request.path.startswith(UPSTREAM):
            return self._engine_paths.respond(request, connection)
        if request.path in MONITORED:
            return self.monitor.respond(request, connection)
        return self._show(request) if request.path == SHOW else self._pull(request)

    def _check_fields(self, asked: InferenceRequest) -> None:
        """Drop the fields that are not in the API, or AccelError; those of a variant are the user's own."""
        variant = self.router.variant(asked.path, asked.info.model)
        own = [] if variant is None else [field[0] for field, _ in (*variant.set, *variant.default)]
        engine = self.router.directory.models[asked.target.model].engine
        refuse = self._settings.unknown_parameters == "refuse"
        asked.original_body = with_known_fields(asked.original_body, asked.path, engine, own, refuse=refuse)

    async def _learn(
        self, request: HttpRequest, connection: ClientConnection, relay: Relay, remotes: Sequence[str]
    ) -> Response | None:
        """Begin once these remotes have said which models they have."""
        await self._remotes.learn(remotes)
        answer = self._begin(request, connection, relay, learned=True)
        return answer if answer is None or isinstance(answer, Response) else await answer

    def _show(self, request: HttpRequest) -> Response:
        """Ollama's description of a model. AccelError."""
        name = ollama_catalog.shown(b"".join(request.parts))
        response = json_response(ollama_catalog.show(self._catalog.one(name)))
        return response if request.origin is None else response.readable_by(request.origin)

    def _pull(self, request: HttpRequest) -> Response:
        """Ollama's clients fetch a model that they miss: one that is here is fetched already. AccelError."""
        name = ollama_catalog.shown(b"".join(request.parts))
        try:
            self.router.directory.find(name)
        except AccelError:
            text = f"there is no model {name!r}, and accelerd downloads none by this API"
            raise AccelError("model_not_found", text, hint="accelctl add hf:ORG/REPO", param="model") from None
        response = json_response({"status": "success"})
        return response if request.origin is None else response.readable_by(request.origin)

    async def _prepare(
        self,
        request: HttpRequest,
        connection: ClientConnection,
        asked: InferenceRequest,
        relay: Relay,
        keep: float | None,
    ) -> Response:
        """Load a model for a client of Ollama's API that sends nothing to answer, or unload it with `keep` 0."""
        outcome: str | None = "internal"
        try:
            await self._forwarder.load(asked.target.model, keep, relay.began)
            relay.status, outcome = 200, None
        except AccelError as error:
            relay.status, outcome = error.status, error.code
            return _failed(request, error, asked)
        except asyncio.CancelledError:
            outcome = CLIENT_GONE
            raise
        finally:
            log_answer(request, connection, relay, asked.target.model, self._now(), outcome)
        said = ollama_catalog.prepared(asked.info.model or asked.target.model, request.path, time.time(), keep)
        response = json_response(said)
        return response if request.origin is None else response.readable_by(request.origin)

    async def _finish(
        self, request: HttpRequest, connection: ClientConnection, asked: InferenceRequest, relay: Relay
    ) -> Response | None:
        outcome: str | None = "internal"
        try:
            error = await self._forwarder.forward(asked, relay)
            if error is not None:
                relay.error, relay.status = error.code, error.status
            outcome = relay.error
        except asyncio.CancelledError:
            outcome = CLIENT_GONE
            raise
        finally:
            if not relay.handed_over:
                log_answer(request, connection, relay, asked.target.model, self._now(), outcome)
        return None if error is None else _failed(request, error, asked)

    def _read(self, request: HttpRequest, path: str) -> tuple[bytes, RequestInfo, str]:
        """The body, what it tells the router, and its Content-Type. AccelError."""
        parts = request.parts
        body = parts[0] if len(parts) == 1 else b"".join(parts)
        parts[:] = (body,)  # it is kept once
        if path in FORMS:
            boundary = boundary_of(request.headers[b"content-type"].decode("latin-1"))
            form = read_form(body, boundary, FORMS[path])
            if (variant := self.router.variant(path, form.model)) is not None:
                body, form = edited_form(variant, body, form, path)
            return body, form, content_type(boundary)
        info = read_json(path, body)
        if isinstance(info, RerankBody) and info.has_objects():
            body = with_texts(body)
        if info.model is None and b"?" in request.target:
            info.model = model_in_query(request.target)
        if (variant := self.router.variant(path, info.model)) is not None:
            named, body = info.model, edited(variant, body, path)
            info = read_json(path, body)
            info.model = named
        return body, info, JSON_TYPE


def _refused(request: HttpRequest, relay: Relay, error: AccelError, asked: InferenceRequest | None) -> Response | None:
    unsent = relay.fail(error)  # no variable where it was raised: that frame has the body, and the error the frame
    return None if unsent is None else _failed(request, unsent, asked)


def _failed(request: HttpRequest, error: AccelError, asked: InferenceRequest | None) -> Response:
    """The response without an answer, with who was asked for one."""
    response = refusal(request, error)
    if asked is None:
        return response
    target = asked.target
    who = answered_by(target.model, next(iter(target.routes), ""), asked.attempts.number)
    return response._replace(headers={**response.headers, **who})


def _full(request: HttpRequest, path: str) -> bool:
    """Does it ask what accelerd is doing, beside that it is there?"""
    return path in HEALTH and wants_full(request.target)
