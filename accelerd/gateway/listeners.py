"""The servers on the listening sockets, and their graceful shutdown.

Gets sockets that listen already; never shuts one down, because systemd may keep it for the next daemon.
"""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Sequence
from typing import Any

from accelerd.config.model import ServerSettings
from accelerd.gateway.connection import ClientConnection, HttpServer
from accelerd.gateway.gateway import Gateway
from accelerd.system.activation import BACKLOG

# Since Python 3.13 closing a server removes its socket's file, also that of a socket which systemd keeps.
KEEP_SOCKET: dict[str, Any] = {"cleanup_socket": False} if sys.version_info >= (3, 13) else {}
FIRST_REQUEST_GRACE = 0.5  # s in which a connection accepted just before shutdown may send its request


class Listeners:
    """The servers of one daemon."""

    def __init__(self, gateway: Gateway, settings: ServerSettings) -> None:
        self._public = HttpServer(gateway, settings, local=False)
        self._local = HttpServer(gateway, settings, local=True)
        self._servers: list[asyncio.Server] = []

    async def open(self, tcp: Sequence[socket.socket], unix: Sequence[socket.socket]) -> None:
        """Start to accept connections."""
        loop = asyncio.get_running_loop()
        for sock in tcp:
            self._servers.append(await loop.create_server(self._public, sock=sock, backlog=BACKLOG))
        for sock in unix:
            server = await loop.create_unix_server(self._local, sock=sock, backlog=BACKLOG, **KEEP_SOCKET)
            self._servers.append(server)

    def configure(self, settings: ServerSettings) -> None:
        self._public.settings = self._local.settings = settings

    def stop_accepting(self) -> None:
        """Let new connections wait in the kernel for the next daemon."""
        for server in self._servers:
            server.close()

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

    async def close(self) -> None:
        """Abort the remaining connections and wait for their end."""
        connections = self._connections()
        for connection in connections:
            connection.abort()
        await asyncio.gather(*(connection.ended() for connection in connections))

    def _connections(self) -> list[ClientConnection]:
        return [*self._public.connections, *self._local.connections]
