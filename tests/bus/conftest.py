"""Fixtures of the bus's tests: a broker of its own for each. None leaves anything behind."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bus.world import Client
from tests.settled import pytest_pyfunc_call, settled
from tests.system.buses import glib_worker
from tests.system.fake_services import Bus, private_bus

__all__ = ["glib_worker", "pytest_pyfunc_call", "settled"]


@pytest.fixture(scope="session", autouse=True)
def begun(glib_worker: None) -> None:
    """Every test here has it, asked for or not."""


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Bus]:
    with private_bus(tmp_path / "bus") as made:
        yield made


@pytest.fixture
def client(broker: Bus) -> Iterator[Client]:
    made = Client(broker.address)
    yield made
    made.leave()
