"""A private bus for each test, and how to wait on the loop for what only a blocking question tells."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.harness import PATIENCE
from tests.system.fake_services import Bus, private_bus


@pytest.fixture(scope="session")
def glib_worker(tmp_path_factory: pytest.TempPathFactory) -> None:
    """GLib's own thread for D-Bus begins with the first connection and ends with the process: no test's fault."""
    from gi.repository import Gio

    kind = Gio.DBusConnectionFlags
    with private_bus(tmp_path_factory.mktemp("first")) as bus:
        flags = kind.AUTHENTICATION_CLIENT | kind.MESSAGE_BUS_CONNECTION
        Gio.DBusConnection.new_for_address_sync(bus.address, flags, None, None).close_sync(None)


@pytest.fixture
def bus(glib_worker: None, tmp_path: Path) -> Iterator[Bus]:
    with private_bus(tmp_path / "bus") as made:
        yield made


async def until(condition: Callable[[], Any], what: str) -> Any:
    """Wait until `condition()`, which may block, is true."""
    deadline = asyncio.get_running_loop().time() + PATIENCE
    while not (found := await asyncio.to_thread(condition)):
        assert asyncio.get_running_loop().time() < deadline, what
        await asyncio.sleep(0.01)
    return found
