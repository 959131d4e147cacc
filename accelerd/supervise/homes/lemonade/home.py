"""The home "lemonade": what lives here is no process of its own but a model inside a Lemonade Server, a tenant. Owns
the servers: those that run already and are used, and the one that accelerd runs.

Its own it starts with the first tenant and ends a while after the last. That process lives in another home, a unit
where there is a systemd, and carries a tag of its own, by which the leftovers of a crash are found. Its own memory is
in no model's account but in that of other programs, once. Nothing here outlives the daemon.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import signal
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Final

from accelerd.base.errors import AccelError
from accelerd.base.exits import Cause
from accelerd.base.ports import Clock, Roots
from accelerd.config.model import ModelSpec
from accelerd.engines.base import OwnedServer, fail
from accelerd.engines.endpoints import free_port
from accelerd.engines.http import HttpError
from accelerd.engines.lemonade.catalogue import Catalogue
from accelerd.engines.lemonade.client import LemonadeClient, ServerAddress
from accelerd.engines.lemonade.program import LemonadeProgram, find
from accelerd.supervise.homes.child_home import spawn_trouble
from accelerd.supervise.homes.home import Home, HomeError, LaunchRequest, MainProcess, OnExit, OnOutput
from accelerd.supervise.homes.lemonade import program
from accelerd.supervise.homes.lemonade.server import ExitReason, ExternalServer, LemonadeServer, ServedModel
from accelerd.supervise.homes.lemonade.tenant import LemonadeTenant
from accelerd.supervise.process.output import TAIL_LINES, OutputRing
from accelerd.supervise.process.processes import InstanceTag, ListenerOwner, ProcessTable, tcp_owner
from accelerd.supervise.process.sweep import sweep
from accelerd.supervise.waiting import SupervisorLimits, race
from accelerd.system.private_files import AtomicFile, Unreadable
from accelerd.system.records import NOTICE, event

log = logging.getLogger(__name__)

NAME: Final = "lemonade-server"  # of its unit, and in the log
START_PATIENCE: Final = 60.0  # s until it answers
STOP_PATIENCE: Final = 10.0  # s from the order to end until it is killed
IDLE: Final = 60.0  # s without a tenant until it is ended
TRIES: Final = 4  # ports
LOOK: Final = 0.05  # s between two looks at one that starts


class PortTaken(Exception):
    """Somebody else listens where it should."""


class OwnServer(LemonadeServer):
    """The server that accelerd starts and ends."""

    owned = True

    def __init__(
        self,
        catalogue: Catalogue,
        clock: Clock,
        roots: Roots,
        table: ProcessTable,
        homes: Mapping[str, Home],
        limits: SupervisorLimits | None = None,
        idle: float = IDLE,
    ) -> None:
        """`homes`: those that its process may live in, by kind."""
        super().__init__(catalogue, clock, roots.proc)
        self._roots = roots
        self._table = table
        self._homes = homes
        self._limits = limits or SupervisorLimits()
        self._idle = idle
        self._folders = program.Folders.of(roots)
        self._ring = OutputRing()
        self._lock = asyncio.Lock()
        self._main: MainProcess | None = None
        self._tag: InstanceTag | None = None
        self._stopping = False
        self._ending: asyncio.Task[None] | None = None
        self._idling: asyncio.Task[None] | None = None
        self._exit_reason: ExitReason | None = None
        self._wanted = OwnedServer()  # as the configuration has it

    async def up(self, launch: LaunchRequest) -> LemonadeClient:
        async with self._lock:
            await self._until_ended()
            await self._renew(launch)
            if self._main is None or self.client is None:
                await self._begin(launch)
            assert self.client is not None
            return self.client

    async def _renew(self, launch: LaunchRequest) -> None:
        """End it where another one is wanted now and nobody needs the one that runs."""
        assert launch.tenancy is not None
        wanted, self._wanted = self._wanted, launch.tenancy.own
        if self._main is not None and wanted != self._wanted:
            if any(tenant.attached for tenant in self.tenants):
                self._wanted = wanted
            else:
                await self._stop(self._main)

    # --- start --------------------------------------------------------------------------------------------------

    async def _begin(self, launch: LaunchRequest) -> None:
        assert launch.tenancy is not None
        try:
            found = await find(launch.tenancy.own.program, launch.env)
            for _ in range(TRIES):
                try:
                    await self._start(found, launch)
                    return
                except PortTaken as error:
                    log.warning("%s; trying another port", error)
        except HomeError as error:
            fail(Cause.SPAWN_FAILED, str(error))
        except OSError as error:
            about = f" ({error.filename})" if error.filename else ""
            text = f"cannot start the Lemonade Server: {spawn_trouble(error)}{about}"
            fail(Cause.SPAWN_FAILED, text)
        text = "cannot start the Lemonade Server: other programs take every port that is free"
        fail(Cause.PORT_UNAVAILABLE, text)

    async def _start(self, found: LemonadeProgram, launch: LaunchRequest) -> None:
        """PortTaken, HomeError, OSError, AccelError; then nothing is left."""
        assert launch.tenancy is not None
        own, port = launch.tenancy.own, free_port()
        keys = program.Secrets(secrets.token_hex(32), secrets.token_hex(32))
        await asyncio.to_thread(program.prepare, found, self._folders, port, launch.env, own)
        tag = InstanceTag(f"lemonade-{secrets.token_hex(8)}", launch.tag.owner)
        env = program.environment(found, self._folders, launch.env, keys, own) | tag.environment()
        # Not bound to the daemon's unit: systemd would end it while the daemon still waits for requests to end.
        spec = ModelSpec(NAME, engine="lemonade", survive=True, stop_timeout=STOP_PATIENCE, context=None)
        argv = program.command(found, self._folders, port)
        self._ring, self._exit_reason, self._stopping = OutputRing(), None, False
        self._tag = tag
        self._main = main = await self._spawn(LaunchRequest(spec, argv, env, launch.cwd, tag))
        self.pid, self.unit = main.pid, main.unit
        client = LemonadeClient(ServerAddress(f"http://{program.HOST}:{port}", keys.server))
        try:
            await self._until_ready(main, tag, client, port)
        except BaseException:
            client.close()
            self._stopping = True
            main.kill_group()
            self._end_of(main, tag)
            await self._until_ended()
            raise
        self.client, self.catalogue.address, self.backend_key = client, client.address, keys.backends
        text = f"Lemonade Server started: process {main.pid}, listens at {program.HOST}:{port}"
        event(log, NOTICE, text, child_pid=main.pid)

    async def _spawn(self, launch: LaunchRequest) -> MainProcess:
        """A unit, where there is a systemd that answers; else a child."""
        unit = self._homes.get("systemd")
        if unit is not None:
            try:
                return await unit.start(launch, self._printed, self._exit_seen)
            except HomeError as error:
                log.warning("the Lemonade Server becomes a child of accelerd: %s", error)
        return await self._homes["child"].start(launch, self._printed, self._exit_seen)

    async def _until_ready(self, main: MainProcess, tag: InstanceTag, client: LemonadeClient, port: int) -> None:
        """PortTaken; AccelError when it ends or does not answer. Its key goes to no other program."""
        foreign, deadline = 0, self.clock.monotonic() + START_PATIENCE
        while True:
            if main.exited.is_set():
                line = self._ring.last_line()
                if "in use" in line or "bind" in line.lower():
                    raise PortTaken(f"the Lemonade Server cannot listen at port {port}: {line}")
                text = "the Lemonade Server ended as soon as it was started" + (f": {line}" if line else "")
                tail = self._ring.lines(TAIL_LINES)
                raise AccelError("model_failed", text, cause=Cause.EXITED.value, tail=tail)
            owner = await asyncio.to_thread(self._owner, tag, main.session, port)
            foreign = foreign + 1 if owner is ListenerOwner.FOREIGN else 0
            if foreign >= 3:
                raise PortTaken(f"another program listens at port {port}")
            if owner is ListenerOwner.OURS:
                with suppress(HttpError):
                    await client.health()
                    return
            if self.clock.monotonic() > deadline:
                text = f"the Lemonade Server does not answer {START_PATIENCE:g} s after its start"
                fail(Cause.LOAD_TIMEOUT, text)
            await race(main.exited.wait(), within=LOOK)

    def _owner(self, tag: InstanceTag, session: int | None, port: int) -> ListenerOwner:
        return tcp_owner(self.proc, port, [one.pid for one in self._table.members(tag, session)])

    async def backend(self, port: int) -> int | None:
        def find() -> int | None:
            members = self._table.members(self._tag, None) if self._tag is not None else []
            return next(
                (one.pid for one in members if tcp_owner(self.proc, port, [one.pid]) is ListenerOwner.OURS), None
            )

        return await asyncio.to_thread(find)

    def _printed(self, chunk: bytes) -> None:
        """What it and its backends print, as one: for who loads, or for the only one there is."""
        self._ring.write(chunk)
        if any(tenant.loaded and self.catalogue.of(tenant.model).recipe == "flm" for tenant in self.tenants):
            return  # flm prints what it is asked: that is nobody's to keep
        loading = [tenant for tenant in self.tenants if not tenant.loaded]
        for tenant in loading or (self.tenants if len(self.tenants) == 1 else []):
            tenant.printed(chunk)

    # --- end ----------------------------------------------------------------------------------------------------

    def leave(self, tenant: ServedModel) -> None:
        super().leave(tenant)
        if not self.tenants and self._main is not None and (self._idling is None or self._idling.done()):
            self._idling = asyncio.create_task(self._rest(), name="Lemonade Server without a model")

    async def _rest(self) -> None:
        await asyncio.sleep(self._idle)
        async with self._lock:
            if not self.tenants and self._main is not None:
                log.info("the Lemonade Server has held no model for %g s: ending it", self._idle)
                await self._stop(self._main)

    async def close(self) -> None:
        await self._close_tasks(self._idling)
        async with self._lock:
            if self._main is not None:
                await self._stop(self._main)

    async def _stop(self, main: MainProcess) -> None:
        self._stopping = True
        main.signal(signal.SIGTERM)
        await race(main.exited.wait(), within=STOP_PATIENCE)
        if not main.exited.is_set():
            main.kill_group()
        await main.exited.wait()
        await self._until_ended()

    def _exit_seen(self) -> None:
        if self._main is not None and self._tag is not None:
            self._end_of(self._main, self._tag)

    def _end_of(self, main: MainProcess, tag: InstanceTag) -> None:
        if self._ending is None:
            self._ending = asyncio.create_task(self._ended(main, tag), name="end of the Lemonade Server")

    async def _until_ended(self) -> None:
        """Nothing of one that ends is left."""
        if self._ending is not None:
            await asyncio.shield(self._ending)

    async def _ended(self, main: MainProcess, tag: InstanceTag) -> None:
        """Its process has exited, or is being killed: end what it leaves, then notify its tenants."""
        try:
            await sweep(main, tag, "the Lemonade Server", self._table, self.clock, self._limits, lambda: None)
            await main.release()
            self._main, self.pid, self.catalogue.address = None, 0, None
            client, self.client = self.client, None
            if client is not None:
                client.close()
            self._exit_reason = reason = self._reason_of(main)
            if not self._stopping:
                event(log, logging.WARNING, reason[1], child_pid=main.pid)
            self.gone(reason)
        finally:
            self._ending = None

    def _reason_of(self, main: MainProcess) -> ExitReason:
        if self._stopping:
            return Cause.STOPPED, "the Lemonade Server was ended"
        if main.result == "oom-kill":
            return Cause.OOM_KILLED, "the Lemonade Server that held it was killed, out of memory"
        status = main.status
        if status is None:
            return Cause.EXITED, "the Lemonade Server that held it ended"
        if status < 0:
            name = signal.Signals(-status).name
            return Cause.SIGNALED, f"the Lemonade Server that held it was ended by {name}"
        return Cause.EXITED, f"the Lemonade Server that held it exited with status {status}"

    async def exit_reason(self) -> ExitReason:
        """A broken connection may be its end: then it is known in a moment."""
        if self._ending is None and self._main is not None:
            await race(self._main.exited.wait(), within=1.0)
            await asyncio.sleep(0)
        await self._until_ended()
        if self._main is None and self._exit_reason is not None:
            return self._exit_reason
        return Cause.EXITED, "the connection to the Lemonade Server broke"


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
