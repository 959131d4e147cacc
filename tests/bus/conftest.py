"""Fixtures of the bus's tests: a broker of its own for each. None leaves anything behind."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bus.world import Client
from tests.settled import pytest_pyfunc_call, settled
from tests.system.fake_services import Bus, private_bus

__all__ = ["pytest_pyfunc_call", "settled"]


@pytest.fixture(scope="session", autouse=True)
def glib_worker(tmp_path_factory: pytest.TempPathFactory) -> None:
    """GLib's own thread for D-Bus begins with the first connection and ends with the process: no test's fault."""
    from gi.repository import Gio

    kind = Gio.DBusConnectionFlags
    with private_bus(tmp_path_factory.mktemp("first")) as bus:
        flags = kind.AUTHENTICATION_CLIENT | kind.MESSAGE_BUS_CONNECTION
        Gio.DBusConnection.new_for_address_sync(bus.address, flags, None, None).close_sync(None)


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Bus]:
    with private_bus(tmp_path / "bus") as made:
        yield made


@pytest.fixture
def client(broker: Bus) -> Iterator[Client]:
    made = Client(broker.address)
    yield made
    made.leave()
