"""Fixtures of the helper's tests. None leaves anything behind."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helper.world import Sysfs, World, world
from tests.settled import pytest_pyfunc_call, settled  # noqa: F401


@pytest.fixture(scope="session", autouse=True)
def glib_worker(tmp_path_factory: pytest.TempPathFactory) -> None:
    """GLib's own thread for D-Bus begins with the first connection and ends with the process: no test's fault."""
    with world(tmp_path_factory.mktemp("first")) as made:
        made.caller().bus("GetId")


@pytest.fixture
def sysfs(tmp_path: Path) -> Sysfs:
    return Sysfs(tmp_path / "sys")


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[World]:
    """A world with one GPU that is part of the processor."""
    with world(tmp_path) as made:
        made.sysfs.add()
        yield made
