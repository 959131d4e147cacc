"""accelerd's listening sockets in systemd: made to be those that the configuration names.

At run time what the configuration does not name is released, and what accelerd opened beside a socket unit is stored
with the service, so that connections wait in it, too, during a restart. For the next start a drop-in of
accelerd-http.socket names what the configuration does. Nothing is written unless this process is accelerd.service.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from accelerd.base import names
from accelerd.base.events import EventStream
from accelerd.base.files import read_small
from accelerd.config.model import ConfigApplied, ServerSettings
from accelerd.supervise.homes.user_manager import UserManager
from accelerd.system.activation import Address, parse_listen, show_address
from accelerd.system.dbus.client import BusError
from accelerd.system.sd_notify import Notifier

log = logging.getLogger(__name__)

STORED: Final = "listen-"  # the first part of the names of stored sockets
DROPIN: Final = "10-listen.conf"  # early, so that a drop-in of the user's own comes after it
MARK: Final = "# Written by accelerd from [server] listen in accelerd.toml; changes here are lost."
PATIENCE: Final = 5.0  # s for systemd to stop a socket unit


class SocketUnit:
    """Subscribes to the configuration."""

    def __init__(self, manager: UserManager | None, notifier: Notifier, events: EventStream) -> None:
        """`manager`: the user's systemd, if there is one."""
        self._manager = manager
        self._notifier = notifier
        self._task: asyncio.Task[None] | None = None
        events.subscribe(ConfigApplied, self.on_config)

    def on_config(self, event: ConfigApplied) -> None:
        if self._task is not None:
            self._task.cancel()
        self._task = asyncio.create_task(self._update(event.config.server.listen), name="socket unit")

    def store(self, address: Address, sock: socket.socket) -> str:
        """Have systemd keep it during a restart. Returned: the name to release it by."""
        name = stored_name(address)
        self._notifier.store(name, sock.fileno())
        return name

    async def release(self, name: str) -> bool:
        """Have systemd close its own copies: of the sockets of a unit, which is stopped, or of a stored one. Did it?"""
        if name.startswith(STORED):
            return self._notifier.remove_stored(name)
        if self._manager is None or not name.endswith(".socket"):
            return False
        try:
            async with asyncio.timeout(PATIENCE):
                await self._manager.stop(name)
                while await self._manager.job_type(name) is not None:  # noqa: ASYNC110 (systemd is asked)
                    await asyncio.sleep(0.02)
        except (BusError, TimeoutError) as error:
            log.warning("cannot stop %s: %s", name, error or "systemd does not answer")
            return False
        return True

    async def _update(self, listen: Sequence[str]) -> None:
        """For the next start: let the socket unit listen where the configuration says."""
        try:
            if self._manager is None or await self._manager.unit_of(os.getpid()) != names.SERVICE_UNIT:
                return
            present = await self._manager.listens(names.HTTP_SOCKET_UNIT)
            if present is None or sorted(present) == sorted(addresses(listen)):
                return
            if await asyncio.to_thread(write_dropin, dropin_path(), listen):
                await self._manager.reload()
        except (BusError, OSError) as error:
            log.warning("%s was not changed to listen where the configuration says: %s", names.HTTP_SOCKET_UNIT, error)


def stored_name(address: Address) -> str:
    return f"{STORED}{address[0].replace(':', '.')}-{address[1]}"  # a name in LISTEN_FDNAMES has no colon


def dropin_path() -> Path:
    """Beside the units that packaging/install writes."""
    data = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share"
    return Path(data) / "systemd/user" / f"{names.HTTP_SOCKET_UNIT}.d" / DROPIN


def write_dropin(path: Path, listen: Sequence[str]) -> bool:
    """Write what the socket unit needs to listen there, nothing if it does so by itself. Has the file changed?"""
    text = "" if tuple(listen) == ServerSettings().listen else dropin(listen)
    before = read_small(path).decode(errors="replace") if path.exists() else ""
    if text == before:
        return False
    if text:
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_suffix(".new")
        new.write_text(text)
        new.replace(path)
    else:
        path.unlink()
    return True


def addresses(listen: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(show_address(*address) for text in listen for address in parse_listen(text)))


def dropin(listen: Sequence[str]) -> str:
    lines = [MARK, "[Socket]", "ListenStream=", *(f"ListenStream={address}" for address in addresses(listen))]
    return "\n".join(lines) + "\n"
