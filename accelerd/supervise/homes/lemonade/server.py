"""One Lemonade Server and the models in it, watched as long as there are any: what it unloads by itself is noticed.

`ExternalServer` runs already, and accelerd neither starts nor ends it; the one that accelerd runs is in own.py.
Believes no unload to be accelerd's own unless accelerd has asked for it.
"""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Protocol

from accelerd.base.exits import Cause
from accelerd.base.ports import Clock
from accelerd.engines.base import fail
from accelerd.engines.http import HttpError, HttpTimeout, HttpUnreachable
from accelerd.engines.lemonade.catalogue import Catalogue
from accelerd.engines.lemonade.client import (
    Health,
    LemonadeClient,
    ServerAddress,
)
from accelerd.engines.lemonade.engine import read_key
from accelerd.supervise.homes.home import LaunchRequest
from accelerd.supervise.process.processes import InstanceTag, ProcessGroups, ProcessIdentity

log = logging.getLogger(__name__)

POLL: Final = 0.3  # s between two looks at what it holds
GONE_AFTER: Final = 3  # looks in a row at which nobody listens
AFTERMATH: Final = 5.0  # s after a load in which what leaves does so because of it
NPU_RECIPES: Final = frozenset(("flm", "ryzenai-llm", "whispercpp"))

ExitReason = tuple[Cause, str]


class ServedModel(Protocol):
    """A model in a server, as the server sees it: tenant.LemonadeTenant."""

    tag: InstanceTag
    model: str  # the server's name for it
    loaded: bool
    attached: bool  # loaded, or being loaded, in the server that runs now

    @property
    def pid(self) -> int: ...
    def printed(self, chunk: bytes) -> None: ...
    def on_health(self, health: Health) -> None: ...
    def server_gone(self, reason: ExitReason) -> None: ...


class LemonadeServer(ABC):
    """One server. Used on the loop's thread."""

    owned: bool

    def __init__(self, catalogue: Catalogue, clock: Clock, proc: Path) -> None:
        self.catalogue = catalogue
        self.clock = clock
        self.proc = proc
        self.client: LemonadeClient | None = None
        self.pid = 0  # of the server's own process; 0: not known
        self.unit: str | None = None
        self.backend_key = ""  # of its llama-servers, where accelerd has given them one
        self.tenants: list[ServedModel] = []
        self.remember: Callable[[bytes], None] = lambda known: None  # keeps what is known of models; blocking
        self.turn = asyncio.Lock()  # it loads one model at a time
        self._loads: list[str] = []  # models that it is loading, the last one last
        self._last_load: tuple[str, float, bool] | None = None  # the last one that ended, when, and whether it is there
        self.unloads: dict[str, asyncio.Task[None]] = {}  # orders that it has not answered, by model
        self._groups = ProcessGroups(proc)
        self._watching: asyncio.Task[None] | None = None

    @abstractmethod
    async def up(self, launch: LaunchRequest) -> LemonadeClient:
        """The running server. AccelError('model_failed') when it cannot be had."""

    @abstractmethod
    async def exit_reason(self) -> ExitReason:
        """After a connection to it broke: how it ended, or that it did not."""

    @abstractmethod
    async def close(self) -> None:
        """The daemon ends."""

    # --- tenants ------------------------------------------------------------------------------------------------

    def join(self, tenant: ServedModel) -> None:
        self.tenants.append(tenant)

    def leave(self, tenant: ServedModel) -> None:
        """It is gone. May be called twice."""
        if tenant in self.tenants:
            self.tenants.remove(tenant)

    def watch(self) -> None:
        if self._watching is None or self._watching.done():
            self._watching = asyncio.create_task(self._watch(), name="watch of a Lemonade Server")

    async def _watch(self) -> None:
        silent = 0
        while any(tenant.loaded for tenant in self.tenants) and self.client is not None:
            client = self.client
            await asyncio.sleep(POLL)
            try:
                health = await client.health()
                silent = 0
            except HttpTimeout:
                continue  # it may be busy with throwing something out
            except HttpUnreachable:
                silent += 1
                if silent >= GONE_AFTER and not self.owned:
                    self.gone((Cause.EXITED, "the Lemonade Server that held it does not answer any more"))
                continue
            except HttpError as error:
                log.warning("the Lemonade Server does not list its models: %s", error)
                continue
            for tenant in list(self.tenants):
                tenant.on_health(health)

    def gone(self, reason: ExitReason) -> None:
        """The server is no more: neither is any of its tenants."""
        for tenant in list(self.tenants):
            if tenant.attached:  # others wait for the next one
                tenant.server_gone(reason)

    async def _close_tasks(self, *more: asyncio.Task[None] | None) -> None:
        for task in (own := [task for task in (self._watching, *self.unloads.values(), *more) if task is not None]):
            task.cancel()
        await asyncio.gather(*own, return_exceptions=True)

    # --- loads --------------------------------------------------------------------------------------------------

    @contextmanager
    def loading(self, model: str) -> Iterator[None]:
        """While the block runs it loads this model."""
        self._loads.append(model)
        loaded = False
        try:
            yield
            loaded = True
        finally:
            self._loads.remove(model)
            self._last_load = model, self.clock.monotonic(), loaded

    def _blame(self, model: str) -> str | None:
        """The load of another model that may be why this one has left; None: there was none."""
        others = [one for one in self._loads if one != model]
        if others:
            return others[-1]
        if self._last_load is None:
            return None
        other, when, loaded = self._last_load
        harmless = loaded and self.owned and not self._both_on_npu(model, other)  # there is room for any number
        if other == model or harmless or self.clock.monotonic() - when > AFTERMATH:
            return None
        return other

    def _both_on_npu(self, *models: str) -> bool:
        return all(self.catalogue.of(model).recipe in NPU_RECIPES for model in models)

    def why_gone(self, model: str, pid: int | None, *, alive: bool) -> ExitReason:
        """Why a model that nobody here has unloaded is not there any more. `alive`: its backend was, after that."""
        by_itself = "the Lemonade Server unloaded it"
        other = self._blame(model)
        if other is not None:
            if self._both_on_npu(model, other):
                return Cause.UNLOADED_BY_SERVER, f"{by_itself} to load {other}: the NPU runs only one of the two"
            if self.owned:
                return Cause.UNLOADED_BY_SERVER, f"{by_itself}: after the failed load of {other} it unloads all models"
            return Cause.UNLOADED_BY_SERVER, f"{by_itself} to load {other}"
        if self.owned and not alive:
            return Cause.EXITED, f"its backend in the Lemonade Server ended (process {pid or 'unknown'})"
        return Cause.UNLOADED_BY_SERVER, f"{by_itself}, perhaps for another client"

    # --- processes ----------------------------------------------------------------------------------------------

    def processes_of(self, tenant: ServedModel) -> Sequence[int]:
        """The tenant's live processes: its backend, and what that has started. Blocking."""
        origins = {number: ProcessIdentity(one.tag, None, one.pid) for number, one in enumerate(list(self.tenants))}
        number = next((number for number, one in enumerate(list(self.tenants)) if one is tenant), None)
        if number is None or number not in origins:
            return []
        return self._groups.look(origins)[number]

    async def backend(self, port: int) -> int | None:
        """Who listens there, of the server's processes, where the server does not report it (10.0)."""
        return None

    def spare(self, pids: Sequence[int]) -> list[int]:
        """Of these processes those that may be killed for one tenant: not the server's own."""
        return [pid for pid in pids if pid != self.pid]


class ExternalServer(LemonadeServer):
    """A server that runs already."""

    owned = False

    async def up(self, launch: LaunchRequest) -> LemonadeClient:
        tenancy = launch.tenancy
        assert tenancy is not None
        assert tenancy.url is not None
        key = await asyncio.to_thread(read_key, tenancy.key_file)
        used = any(tenant.loaded for tenant in self.tenants)
        if self.client is not None and self.client.address.key != key and not used:
            self._forget()
        if self.client is None:
            self.client = LemonadeClient(ServerAddress(tenancy.url, key))
        try:
            await self.client.health(within=10.0)
        except HttpUnreachable:
            self._forget()
            text = f"no Lemonade Server answers at {tenancy.url} (engines.lemonade.url): start it, or take the url away"
            fail(Cause.EXITED, text)
        except HttpError as error:
            self._forget()
            text = f"the Lemonade Server at {tenancy.url} does not answer as one: {error} (is its key in key_file?)"
            fail(Cause.EXITED, text)
        return self.client

    async def exit_reason(self) -> ExitReason:
        return Cause.EXITED, "the connection to the Lemonade Server broke"

    async def close(self) -> None:
        await self._close_tasks()
        self._forget()

    def _forget(self) -> None:
        client, self.client = self.client, None
        if client is not None:
            client.close()
