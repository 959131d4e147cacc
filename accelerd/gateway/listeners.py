"""The servers on the listening sockets, and their graceful shutdown.

The configuration alone says where they listen, whoever opened the sockets: what systemd passed and the configuration
does not name is closed, what it names and systemd did not pass is opened here. So nothing that other machines can reach
is served that the configuration has not demanded a key for.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Final

from msgspec import Struct

from accelerd.base.errors import AccelError
from accelerd.config.model import ServerSettings
from accelerd.config.units import is_loopback
from accelerd.gateway.connection import ClientConnection, HttpServer
from accelerd.gateway.gateway import Gateway
from accelerd.gateway.handover import Parcel, unpack
from accelerd.system.activation import (
    BACKLOG,
    Address,
    Passed,
    address_of,
    bind_tcp,
    bind_unix,
    close_all,
    covers,
    describe,
    overlap,
    parse_listen,
    show_address,
)
from accelerd.system.lock import StartError

log = logging.getLogger(__name__)

# Since Python 3.13 closing a server removes its socket's file, also that of a socket which systemd keeps.
KEEP_SOCKET: dict[str, Any] = {"cleanup_socket": False} if sys.version_info >= (3, 13) else {}
CUT_GRACE: Final = 1.0  # s for clients to read why their answers were cut
FIRST_REQUEST_GRACE: Final = 0.5  # s in which a connection accepted just before shutdown may send its request
UNIT: Final = ".socket"  # the last part of the names of sockets that a unit passed; others were stored
RELEASE_PATIENCE: Final = 2.0  # s until an address that was closed can be bound in another way

Release = Callable[[str], Awaitable[bool]]
Store = Callable[[Address, socket.socket], str]


class ListenerStatus(Struct, frozen=True):
    """An address at which clients connect by TCP."""

    address: str
    unit: str | None  # the socket unit that opened it; None: accelerd itself
    remote: bool  # other machines can reach it
    key: bool  # clients need an API key
    problem: str | None = None  # why accelerd cannot listen there now; it tries again


class _Listening(Struct):
    """A socket that listens on an address. There may be two: of a socket unit, and one that was stored before."""

    sock: socket.socket
    held: str | None = None  # by what name systemd has a copy: that of a socket unit, or of what is stored


class Listeners:
    """The servers of one daemon. `listen`, then `open`, at the start and with every change of the configuration."""

    def __init__(
        self,
        gateway: Gateway,
        settings: ServerSettings,
        passed: Passed,
        control: Path,
        release: Release,
        store: Store,
    ) -> None:
        """`control`: the path of the control socket; `store` has systemd keep a socket and returns its name;
        `release(name)` has systemd close what it has of that name, a socket unit or stored, and says whether it did."""
        self._public = HttpServer(gateway, settings, local=False)
        self._local = HttpServer(gateway, settings, local=True)
        self._release, self._store = release, store
        self._tcp: dict[Address, list[_Listening]] = {}
        for name, sock in passed.tcp:
            self._tcp.setdefault(address_of(sock), []).append(_Listening(sock, name))
        self._from_systemd = bool(passed.tcp)
        self._unit_stopped = False  # it starts again with the next daemon, beside what is stored
        self._configured: list[Address] = []
        self._lacking: dict[Address, str] = {}  # configured addresses that cannot be had now, and why
        self._unix: list[socket.socket] = []
        for unit, sock in passed.unix:
            if describe(sock) == str(control):
                self._unix.append(sock)
            else:  # nothing says who may connect to it
                log.warning("%s of %s is not served: it is not the control socket %s", describe(sock), unit, control)
                sock.close()
        self._queued = passed.queued
        self._control = control
        self._servers: dict[socket.socket, asyncio.Server] = {}

    @property
    def addresses(self) -> list[str]:
        """Where clients can connect by TCP."""
        return [show_address(*address) for address in self._tcp]

    def report(self) -> list[ListenerStatus]:
        """As `status` shows them."""
        key = self._public.settings.key_file is not None
        found = []
        for address, sockets in self._tcp.items():
            unit = next((one.held for one in sockets if one.held is not None and one.held.endswith(UNIT)), None)
            text = show_address(*address)
            found.append(ListenerStatus(text, unit, not is_loopback(text), key))
        for address, problem in self._lacking.items():
            text = show_address(*address)
            found.append(ListenerStatus(text, None, not is_loopback(text), key, problem))
        return found

    @property
    def problems(self) -> list[str]:
        """Why accelerd does not listen on addresses that the configuration names: one each."""
        return list(self._lacking.values())

    async def listen(self, wanted: Sequence[str], *, starting: bool = False) -> None:
        """Listen on these TCP addresses, and on no others. StartError: one cannot be had.

        At a start, that is no error: see `try_again`. Nor is it one for an address that could not be had before.
        Connections to an address that is no longer among them end with the request that they are at.
        """
        addresses = list(dict.fromkeys(address for text in wanted for address in parse_listen(text)))
        missing = [address for address in addresses if address not in self._tcp]
        surplus = [address for address in self._tcp if address not in addresses]
        later = [address for address in missing if any(overlap(address, other) for other in surplus)]
        waived = [address for address in missing if starting or address in self._lacking]
        now = [address for address in missing if address not in later]
        bound = bind_tcp([address for address in now if address not in waived], least=0)  # or nothing has changed
        await self._close(surplus)
        bound += await self._bind([address for address in later if address not in waived])
        lacking: dict[Address, str] = {}
        for address in waived:
            try:
                bound += await self._bind([address]) if address in later else bind_tcp([address], least=0)
            except StartError as error:
                lacking[address] = str(error)
        found = self._tcp | {address_of(sock): [_Listening(sock)] for sock in bound}
        if not found and not lacking:
            raise StartError(f"cannot listen anywhere: this machine has none of {', '.join(wanted)}")
        self._tcp = {address: found[address] for address in addresses if address in found}
        self._configured, self._lacking = addresses, lacking
        for connection in self._public.connections:
            at = connection.transport.get_extra_info("sockname")
            if at is None or not any(covers(address, at[:2]) for address in self._tcp):
                connection.close_when_idle()

    async def restore_control(self) -> None:
        """Listen on the control socket anew: its file was removed. StartError."""
        self._unix.append(bind_unix(self._control))
        await self.open()

    async def try_again(self) -> bool:
        """Listen on what could not be had at the start. Has anything changed?"""
        before = dict(self._lacking)
        for address in before:
            try:
                bound = await asyncio.to_thread(bind_tcp, [address], least=0)
            except StartError as error:
                if address in self._lacking:
                    self._lacking[address] = str(error)
                continue
            if self._lacking.pop(address, None) is None:  # a reload was faster
                close_all(bound)
                continue
            found = self._tcp | {address_of(sock): [_Listening(sock)] for sock in bound}
            self._tcp = {one: found[one] for one in self._configured if one in found}
            log.info("now listening on %s", show_address(*address))
        await self.open()
        return self._lacking != before

    async def open(self) -> None:
        """Accept connections on every socket; until then they wait. Called again after `listen`."""
        loop = asyncio.get_running_loop()
        if not self._unix:
            self._unix = [bind_unix(self._control)]
        for sock in self._unix:
            if sock not in self._servers:
                server = await loop.create_unix_server(self._local, sock=sock, backlog=BACKLOG, **KEEP_SOCKET)
                self._servers[sock] = server
        for address, sockets in self._tcp.items():
            for one in sockets:
                if self._unit_stopped:  # ReusePort= of the unit lets it bind the address nevertheless
                    one.sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                if self._from_systemd and one.held is None:
                    one.held = self._store(address, one.sock)
                if one.sock not in self._servers:
                    self._servers[one.sock] = await loop.create_server(self._public, sock=one.sock, backlog=BACKLOG)
        queued, self._queued = self._queued, []
        for sock, data in queued:
            await self._resume(sock, data)

    async def _resume(self, sock: socket.socket, data: bytes) -> None:
        """Go on with a request that waited when an earlier daemon ended."""
        try:
            waiting, request = unpack(data)
        except ValueError as error:  # of another version of accelerd
            log.warning("a request that waited for this start is not understood: %s", error)
            sock.close()
            return
        server = self._local if waiting.local else self._public
        try:
            _, connection = await asyncio.get_running_loop().connect_accepted_socket(server, sock)
        except OSError as error:  # the client has gone
            log.debug("a client did not wait for this start: %s", error)
            return
        connection.resume(request, begun=waiting.begun)

    async def _close(self, addresses: Sequence[Address]) -> None:
        """Listen there no more, neither here nor in systemd."""
        closed = {address: self._tcp.pop(address) for address in addresses}
        held = dict.fromkeys(one.held for sockets in closed.values() for one in sockets if one.held is not None)
        released = {name: await self._release(name) for name in held}
        for address, sockets in closed.items():
            for one in sockets:
                with contextlib.suppress(OSError):  # it did not listen yet
                    one.sock.shutdown(socket.SHUT_RDWR)  # nobody can connect from now on, although systemd still has it
                if one.sock in self._servers:
                    self._servers.pop(one.sock).close()
                one.sock.close()
            where, by = show_address(*address), sockets[0].held
            if address in self._configured or by is None:
                log.info("no longer listening on %s", where)
            else:
                log.warning("not listening on %s, which %s has opened: server.listen does not name it", where, by)
        if self._unix and not self._control.exists():  # of the same unit
            self._unix.append(bind_unix(self._control))
        stopped = {name for name, done in released.items() if done and name.endswith(UNIT)}
        self._unit_stopped |= bool(stopped)
        for one in (one for sockets in self._tcp.values() for one in sockets if one.held in stopped):
            one.held = None

    async def _bind(self, addresses: Sequence[Address]) -> list[socket.socket]:
        """After sockets were closed that were in the way: systemd may need a moment to close its own. StartError."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + RELEASE_PATIENCE
        while True:
            try:
                return bind_tcp(addresses, least=0)
            except StartError:
                if loop.time() > deadline:
                    raise
            await asyncio.sleep(0.02)

    def configure(self, settings: ServerSettings) -> None:
        self._public.settings = self._local.settings = settings

    def stop_accepting(self) -> None:
        """Let new connections wait in the kernel for the next daemon."""
        for server in self._servers.values():
            server.close()

    async def hand_over(self, keep: Callable[[Sequence[Parcel]], Awaitable[bool]], error: AccelError) -> int:
        """Have `keep` take the requests that wait for their models, for the next daemon: how many it took.

        If it does not take them they are refused with `error`.
        """
        parcels = [parcel for connection in self._connections() if (parcel := connection.hand_over()) is not None]
        taken = bool(parcels) and await keep(parcels)
        for parcel in parcels:
            if not taken:
                parcel.refuse(error)
            parcel.close()
        return len(parcels) if taken else 0

    async def drain(self, within: float) -> None:
        """Close idle connections and let requests finish, for at most `within` seconds."""
        loop = asyncio.get_running_loop()
        grace, deadline = loop.time() + FIRST_REQUEST_GRACE, loop.time() + within
        while self._connections():
            now = loop.time()
            for connection in self._connections():
                if connection.idle and (not connection.fresh or now >= grace):
                    connection.close()
            if now >= deadline:
                break
            await asyncio.sleep(0.02)

    async def cut(self, error: AccelError) -> None:
        """End the answers that still run with this error, and give the clients a moment to read it."""
        for connection in self._connections():
            connection.cut(error)
        await self.drain(CUT_GRACE)

    async def close(self) -> None:
        """Abort the remaining connections and wait for their end."""
        connections = self._connections()
        for connection in connections:
            connection.abort()
        await asyncio.gather(*(connection.ended() for connection in connections))

    def _connections(self) -> list[ClientConnection]:
        return [*self._public.connections, *self._local.connections]
