"""A model inside a Lemonade Server, as a MainProcess: loaded, watched and unloaded through the server's HTTP.

Its pid is its backend's as soon as the server tells, until then the server's own. An unload that accelerd did not
ask for is reported as the server's. Never unloads a model that was there before.
"""

from __future__ import annotations

import asyncio
import difflib
import json
import logging
import os
import signal
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final, NoReturn
from urllib.parse import urlsplit

from accelerd.base.errors import AccelError
from accelerd.base.exits import Cause
from accelerd.engines.base import Endpoint, fail
from accelerd.engines.http import HttpError, HttpUnreachable
from accelerd.engines.lemonade.catalogue import DIRECT
from accelerd.engines.lemonade.client import (
    Health,
    LemonadeClient,
    LemonadeRefused,
    LoadedModel,
    named,
)
from accelerd.engines.lemonade.program import hub_folder
from accelerd.supervise.exit_messages import cause_of
from accelerd.supervise.homes.home import LaunchRequest, OnExit, OnOutput, TenantAddress, TenantProcess
from accelerd.supervise.homes.lemonade.server import ExitReason, LemonadeServer
from accelerd.supervise.waiting import race

log = logging.getLogger(__name__)

PINS_SINCE: Final = (10, 8)
SIGN: Final = 5.0  # s between two signs of life of one that waits
AGAIN: Final = 0.1  # s between two orders to unload
USUAL_PORT: Final = 13305  # that its client asks
LOAD_GRACE: Final = 20.0  # s that a load which is not wanted any more may still take: to end it costs the other tenants
HEALTHS: Final = {"llamacpp": "/health", "flm": "/api/version"}  # of backends that are asked directly


class LemonadeTenant(TenantProcess):
    """While it is being loaded its pid is the server's: the backend is one of that one's children by then."""

    def __init__(self, launch: LaunchRequest, server: LemonadeServer, on_output: OnOutput, on_exit: OnExit) -> None:
        assert launch.tenancy is not None
        super().__init__(on_exit)
        self.pid = 0
        self.tag = launch.tag
        self.model = launch.tenancy.model
        self.attached = False  # to the server that runs now
        self.loaded = False
        self._launch_request = launch
        self._tenancy = launch.tenancy
        self._server = server
        self._on_output = on_output
        self._entry: LoadedModel | None = None
        self._backend: int | None = None  # pid
        self._backend_gone = asyncio.Event()
        self._unlisted = False  # seen by a look while its backend lived
        self._other_pid: int | None = None
        self._taken = False  # it was there before
        self._leaving = False
        self._killed_at: float | None = None
        self._changed = asyncio.Event()
        self._settled: asyncio.Future[TenantAddress] = asyncio.get_running_loop().create_future()
        server.join(self)
        self._task = asyncio.create_task(self._life(), name=f"tenant {self.model}")

    # --- a TenantProcess ----------------------------------------------------------------------------------------

    async def settled(self) -> TenantAddress:
        return await asyncio.shield(self._settled)

    def living(self) -> Sequence[int]:
        return self._server.processes_of(self)

    # --- a MainProcess ------------------------------------------------------------------------------------------

    def signal(self, number: int) -> None:
        """Whatever the signal: it is unloaded."""
        self._leaving = True
        self._changed.set()

    def kill_group(self) -> None:
        """Unload it, and end its backend where the server is accelerd's own. The server itself lives on."""
        if self.exited.is_set():
            return
        now = self._server.clock.monotonic()
        first = self._killed_at is None
        if self._killed_at is None:
            self._killed_at = now
        self.signal(signal.SIGKILL)
        # A load that is broken off makes the server throw out all others: it gets a while to come to its end.
        if self._server.owned and (self.loaded or now - self._killed_at > LOAD_GRACE):
            if first or self._pidfd is None:
                self._kill(self._server.spare(self._server.processes_of(self)))
            else:
                self._kill([])

    def _kill(self, pids: Sequence[int]) -> None:
        if self._pidfd is not None:
            with suppress(ProcessLookupError, PermissionError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        for pid in pids:
            if pid != self._backend:
                with suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)

    async def release(self) -> None:
        self.let_go()

    def let_go(self) -> None:
        self._server.leave(self)
        self._drop_pidfd()
        if not self._task.done() and self._task is not asyncio.current_task():
            self._task.cancel()

    # --- reports of the server ----------------------------------------------------------------------------------

    def printed(self, chunk: bytes) -> None:
        self._on_output(chunk)

    def on_health(self, health: Health) -> None:
        if not self.loaded or self._entry is None or self.exited.is_set():
            return
        entry = health.of(self._entry.model)
        if entry is None:
            self._unlisted = True
            self._changed.set()
        elif entry.pid is not None and self._entry.pid is not None and entry.pid != self._entry.pid:
            self._other_pid = entry.pid
            self._changed.set()

    def server_gone(self, reason: ExitReason) -> None:
        self._over(None if self._leaving else reason)

    # --- the life -----------------------------------------------------------------------------------------------

    async def _life(self) -> None:
        try:
            raced = await race(self._server.up(self._launch_request), self._changed.wait())
            if raced is None or raced[0] == 1:  # stopped while the server starts: give that up
                self._over(None)
                return
            client: LemonadeClient = raced[1]
            self.attached, self.unit = True, self._server.unit
            if await self._turn():
                try:
                    self.pid = self._server.pid
                    await self._load(client)
                finally:
                    self.pid = self._backend or 0
                    self._server.turn.release()
        except AccelError as error:
            self._over(None if self._leaving else (cause_of(error, Cause.EXITED), error.message))
            return
        except Exception as error:
            log.exception("a bug in accelerd ended a model in Lemonade")
            self._over((Cause.EXITED, f"a bug in accelerd, see its log: {error.__class__.__name__}"))
            return
        await self._stay(client)

    async def _turn(self) -> bool:
        """Wait until no other model is being loaded; False: it is not wanted any more."""
        while not self._leaving:
            raced = await race(self._server.turn.acquire(), self._changed.wait(), within=SIGN)
            if raced is None:
                self.printed(b"waits: Lemonade is loading another model\n")  # a sign of life, for who waits for it
            elif raced[0] == 0:
                return True
        return False

    async def _load(self, client: LemonadeClient) -> None:
        """Until it is loaded, or cannot be. AccelError('model_failed')."""
        try:
            if (pending := self._server.unloads.get(self.model)) is not None:
                await asyncio.gather(pending, return_exceptions=True)  # or it would hit what is loaded now
            health = await client.health(within=30.0)
            before = health.of(self.model)
            if before is not None and not self._server.owned:
                self._taken = True
                await self._settle(before)
                return
            if before is not None:  # of an earlier life: it must not be taken for the new one
                with suppress(LemonadeRefused):
                    await client.unload(self.model)
            await self._check(client)
            if self._leaving:
                return
            body: dict[str, Any] = dict(self._tenancy.load)
            if self._tenancy.pin and health.release >= PINS_SINCE:
                body["pinned"] = True
            with self._server.loading(self.model):
                await client.load(body)
            after = await client.health(within=30.0)
        except LemonadeRefused as error:
            self._refused(error)
        except HttpUnreachable:
            fail(*await self._server.exit_reason())
        except HttpError as error:
            fail(Cause.EXITED, f"the Lemonade Server: {error}")
        entry = after.of(self.model) or _new_in(health, after)
        if entry is None:
            fail(*self._server.why_gone(self.model, None, alive=True))
        await self._settle(entry)

    async def _check(self, client: LemonadeClient) -> None:
        """A load of what is not here would download it first, for hours. AccelError('model_failed')."""
        catalogue = self._server.catalogue
        listed = await client.models()
        catalogue.note(listed)
        one = named(self.model, {one.model.casefold(): one for one in listed})
        if one is None and listed:
            near = difflib.get_close_matches(self.model, [found.model for found in listed], n=1)
            hint = f": did you mean {near[0]}?" if near else ": see lemonade list"
            fail(Cause.NO_MODEL, f"Lemonade knows no model {self.model}{hint}")
        if one is not None and one.downloaded is False:
            fail(Cause.NO_MODEL, f"{self.model} is not downloaded", self._how_to_download())

    def _how_to_download(self) -> str:
        """The client of Lemonade reaches a server of the user's own; accelerd's has a key that nobody knows."""
        pull = f"lemonade pull {self.model}"
        if not self._server.owned:
            port = urlsplit(self._tenancy.url or "").port
            return f"run {pull}" if port == USUAL_PORT else f"run {pull} --port {port}"
        return (
            f"start a Lemonade Server of your own (lemond), run {pull}, and stop it. accelerd's looks for models in "
            f"{hub_folder(self._launch_request.env)}; one that is a service may have others, by its HF_HOME"
        )

    def _refused(self, error: LemonadeRefused) -> NoReturn:
        """AccelError('model_failed')."""
        said = error.message.rstrip(".")
        if error.code == "model_not_found":
            fail(Cause.NO_MODEL, f"Lemonade knows no model {self.model}")
        if error.code == "model_not_supported":
            fail(Cause.REFUSED, f"Lemonade cannot run it here: {said}")
        if error.code == "slots_pinned_error":
            text = f"Lemonade has no place for {self.model}, what is there is pinned: unpin one, or raise its "
            fail(Cause.SPAWN_FAILED, f"{text}max_loaded_models ({said})")
        if error.code == "router_residency_conflict":
            text = f"Lemonade may not displace what it holds for {self.model}: unload that first ({said})"
            fail(Cause.SPAWN_FAILED, text)
        if error.status in (401, 403):
            text = "the Lemonade Server refuses the key: write its LEMONADE_API_KEY into engines.lemonade.key_file"
            fail(Cause.REFUSED, text)
        own, recipe = self._tenancy.own, self._server.catalogue.of(self.model).recipe
        if self._server.owned and not own.downloads and not (own.llama_server and recipe in DIRECT):
            said += "; a program that it lacks is downloaded with download_backends = true under [engines.lemonade]"
        fail(Cause.EXITED, f"Lemonade did not load it: {said}")

    async def _settle(self, entry: LoadedModel) -> None:
        """It is loaded: hold on to its backend, and say where it is to be reached."""
        self._entry = entry
        # Somebody else's server may throw out what it takes for idle: it must see the requests.
        direct = self._server.owned and entry.recipe in DIRECT and entry.port is not None
        self._backend = entry.pid
        if self._backend is None and entry.port is not None:
            self._backend = await self._server.backend(entry.port)
        if self._backend is not None:
            self.pid = self._backend
            self._hold_backend(self._backend)
        self._server.catalogue.loaded(self.model, entry.recipe, entry.checkpoint, entry.device, direct=direct)
        self.loaded = True
        self._server.watch()
        await asyncio.to_thread(self._server.remember, self._server.catalogue.dump())
        if not self._settled.done():
            self._settled.set_result(self._reached(entry, direct))

    def _reached(self, entry: LoadedModel, direct: bool) -> TenantAddress:
        assert self._server.client is not None
        address = self._server.client.address
        wire = entry.checkpoint if direct and entry.recipe == "flm" else self.model
        path, body = _probe(entry.type, wire, direct)
        if direct:
            # What is sent to it must not be the server's key.
            health, key = HEALTHS[entry.recipe], self._server.backend_key if entry.recipe == "llamacpp" else ""
            endpoint = Endpoint(port=entry.port)
            return TenantAddress(endpoint, key, health, "/v1/models", path, body, keyed=bool(key))
        return TenantAddress(address.endpoint, address.key, "/live", "/v1/models", path, body, keyed=True)

    def _hold_backend(self, pid: int) -> None:
        try:
            self._hold(os.pidfd_open(pid))
        except OSError:
            self._exit_seen()  # it has ended already

    def _exit_seen(self) -> None:
        self._drop_pidfd()
        self._backend_gone.set()
        self._changed.set()

    async def _stay(self, client: LemonadeClient) -> None:
        """Until it is to be unloaded, or has ended."""
        while not self.exited.is_set():
            if self._leaving:
                await self._go(client, None)
            elif self._unlisted or self._other_pid is not None or self._backend_gone.is_set():
                await self._lost(client)
            else:
                await self._changed.wait()
                self._changed.clear()

    async def _lost(self, client: LemonadeClient) -> None:
        """It is not there any more, or not the same: nobody here has asked for that."""
        assert self._entry is not None
        entry: LoadedModel | None = None
        alive = self._unlisted and not self._backend_gone.is_set()
        try:
            entry = (await client.health()).of(self._entry.model)
        except HttpUnreachable:
            reason = await self._server.exit_reason()
            await self._go(client, reason)
            return
        except HttpError:
            entry = None
        reason = self._server.why_gone(self.model, self._backend, alive=alive)
        if entry is not None and entry.pid != self._entry.pid:
            anew = f"it was started again, as process {entry.pid} instead of {self._backend}"
            reason = Cause.UNLOADED_BY_SERVER, f"the Lemonade Server unloaded it: {anew}"
        await self._go(client, reason)

    async def _go(self, client: LemonadeClient, reason: ExitReason | None) -> None:
        """Have it unloaded, and return when that is proven."""
        name = self._entry.model if self._entry is not None else self.model
        while not (self._taken or self.exited.is_set()):
            try:
                listed = (await client.health()).of(name) is not None
            except HttpUnreachable:
                listed = False  # the server has ended; its tenants are notified once nothing of it is left
            except HttpError:
                listed = True
            dead = self._pidfd is None
            if dead and (not listed or self._killed_at is not None):
                break
            if listed:
                await self._unload(client)
            else:
                await self._until_dead()
        self._over(reason)

    async def _unload(self, client: LemonadeClient) -> None:
        """One order to unload it. While another model is loaded it is not followed: a kill does not wait for it."""
        pending = self._server.unloads.get(self.model)
        if pending is None:

            async def unload() -> None:
                try:
                    await client.unload(self.model)
                except HttpError as error:  # 404: it is not there any more; else it is asked again
                    log.debug("%s: %s", self.model, error)
                    await asyncio.sleep(AGAIN)
                finally:
                    self._server.unloads.pop(self.model, None)

            pending = self._server.unloads[self.model] = asyncio.create_task(unload(), name=f"unload of {self.model}")
        dying = asyncio.create_task(self._backend_gone.wait())
        await asyncio.wait((pending, dying), return_when=asyncio.FIRST_COMPLETED)
        if not dying.done():
            dying.cancel()
        elif not pending.done() and self._killed_at is None:
            await asyncio.shield(pending)  # it dies of the order: the answer comes in a moment

    async def _until_dead(self) -> None:
        """The server has let go of it: its backend ends, or is ended."""
        try:
            async with asyncio.timeout(self._launch_request.spec.stop_timeout):
                await self._backend_gone.wait()
        except TimeoutError:
            self._kill(await asyncio.to_thread(lambda: self._server.spare(self._server.processes_of(self))))

    def _over(self, reason: ExitReason | None) -> None:
        if self.exited.is_set():
            return
        self.ended = reason
        self.result = reason[0].value if reason is not None else None
        self._drop_pidfd()
        self.exited.set()
        self._server.leave(self)
        self._on_exit()


def _new_in(before: Health, after: Health) -> LoadedModel | None:
    """The one model that a load has brought: its public name may be another than the one that was asked for."""
    new = [one for name, one in after.loaded.items() if name not in before.loaded]
    return new[0] if len(new) == 1 else None


def _probe(kind: str, wire: str, direct: bool) -> tuple[str, bytes | None]:
    """The smallest request that only a working model answers; for what has none, the server's own word."""
    match kind:
        case "llm" | "":
            return "/v1/completions", json.dumps({"model": wire, "prompt": " ", "max_tokens": 1}).encode()
        case "embedding":
            return "/v1/embeddings", json.dumps({"model": wire, "input": " "}).encode()
        case "reranking":
            path = "/v1/rerank" if direct else "/v1/reranking"
            return path, json.dumps({"model": wire, "query": " ", "documents": [" "]}).encode()
        case _:
            return "/v1/models" if direct else "/live", None
