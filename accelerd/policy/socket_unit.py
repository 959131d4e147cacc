"""accelerd's socket units in systemd: made to say what the configuration says.

At run time what the configuration does not name is released; for the next start a drop-in of accelerd-http.socket names
what it does. Nothing is written unless this process is accelerd.service.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from accelerd.base import names
from accelerd.base.events import EventStream
from accelerd.config.model import ConfigApplied, ServerSettings
from accelerd.supervise.homes.user_manager import UserManager
from accelerd.system.activation import parse_listen, show_address
from accelerd.system.dbus.client import BusError

log = logging.getLogger(__name__)

DROPIN: Final = "10-listen.conf"  # early, so that a drop-in of the user's own comes after it
MARK: Final = "# Written by accelerd from [server] listen in accelerd.toml; changes here are lost."
PATIENCE: Final = 5.0  # s for systemd to stop a socket unit


class SocketUnit:
    """Subscribes to the configuration."""

    def __init__(self, manager: UserManager | None, events: EventStream) -> None:
        """`manager`: the user's systemd, if there is one."""
        self._manager = manager
        self._task: asyncio.Task[None] | None = None
        events.subscribe(ConfigApplied, self.on_config)

    def on_config(self, event: ConfigApplied) -> None:
        if self._task is not None:
            self._task.cancel()
        self._task = asyncio.create_task(self._update(event.config.server.listen), name="socket unit")

    async def release(self, unit: str) -> bool:
        """Have systemd stop a socket unit, and thereby close its own copies of the sockets. Did it?"""
        if self._manager is None or not unit.endswith(".socket"):
            return False
        try:
            async with asyncio.timeout(PATIENCE):
                await self._manager.stop(unit)
                while await self._manager.job_type(unit) is not None:  # noqa: ASYNC110 (systemd is asked)
                    await asyncio.sleep(0.02)
        except (BusError, TimeoutError) as error:
            log.warning("cannot stop %s: %s", unit, error or "systemd does not answer")
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


def dropin_path() -> Path:
    """Beside the units that packaging/install writes."""
    data = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share"
    return Path(data) / "systemd/user" / f"{names.HTTP_SOCKET_UNIT}.d" / DROPIN


def write_dropin(path: Path, listen: Sequence[str]) -> bool:
    """Write what the socket unit needs to listen there, nothing if it does so by itself. Has the file changed?"""
    text = "" if tuple(listen) == ServerSettings().listen else dropin(listen)
    before = path.read_text() if path.exists() else ""
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
