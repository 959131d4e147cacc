"""The home "lemonade": what lives here is no process of its own but a model inside a Lemonade Server, a tenant.

Owns the servers: the one that accelerd runs, and those that run already and are used. Nothing here outlives the daemon;
the leftovers of an earlier daemon's server are found by their tag.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Final

from accelerd.base.ports import Clock, Roots
from accelerd.config.model import ModelSpec
from accelerd.engines.lemonade.catalogue import Catalogue
from accelerd.supervise.homes.home import Home, HomeError, LaunchRequest, MainProcess, OnExit, OnOutput
from accelerd.supervise.homes.lemonade.own import IDLE, OwnServer
from accelerd.supervise.homes.lemonade.server import ExternalServer, LemonadeServer
from accelerd.supervise.homes.lemonade.tenant import LemonadeTenant
from accelerd.supervise.process.processes import InstanceTag, ProcessTable
from accelerd.supervise.waiting import SupervisorLimits
from accelerd.system.private_files import AtomicFile, Unreadable

log = logging.getLogger(__name__)

CATALOGUE_FILE: Final = "lemonade-models.json"


class LemonadeHome(Home):
    kind = "lemonade"

    def __init__(
        self,
        roots: Roots,
        clock: Clock,
        homes: Mapping[str, Home],
        *,
        table: ProcessTable | None = None,
        limits: SupervisorLimits | None = None,
        idle: float = IDLE,
    ) -> None:
        """`homes`: where the process of accelerd's own server may live; `idle`: s that it stays without a tenant."""
        self._file = AtomicFile(roots.cache / CATALOGUE_FILE)
        self.catalogue = Catalogue(self._kept())
        self._clock = clock
        self._roots = roots
        self._make_own: Callable[[], LemonadeServer] = lambda: OwnServer(
            self.catalogue, clock, roots, table or ProcessTable(roots.proc), homes, limits, idle
        )
        self._servers: dict[str | None, LemonadeServer] = {}  # by address; None: accelerd's own

    def place(self, spec: ModelSpec, tag: InstanceTag) -> str:
        return spec.model or spec.name

    async def start(self, launch: LaunchRequest, on_output: OnOutput, on_exit: OnExit) -> MainProcess:
        """The load begins; it has come to its end when the tenant is settled or has exited."""
        if launch.tenancy is None:
            raise HomeError(f"cannot start {launch.spec.name}: its plan is none for a Lemonade Server")
        url = launch.tenancy.url
        server = self._servers.get(url)
        if server is None:
            server = self._make_own() if url is None else ExternalServer(self.catalogue, self._clock, self._roots.proc)
            server.remember = self._remember
            self._servers[url] = server
        return LemonadeTenant(launch, server, on_output, on_exit)

    def _kept(self) -> bytes:
        try:
            return self._file.read() or b""
        except (OSError, Unreadable) as error:
            log.info("cannot read what was known of Lemonade's models: %s", error)
            return b""

    def _remember(self, known: bytes) -> None:
        """Blocking. A disk that is full costs the memory and nothing else."""
        try:
            self._file.write(known)
        except OSError as error:
            log.info("cannot keep what is known of Lemonade's models: %s", error)

    async def close(self) -> None:
        """End the own server, let go of the others. To be called when no tenant is left."""
        await asyncio.gather(*(server.close() for server in self._servers.values()))
