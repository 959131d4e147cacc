"""Fixtures of the helper's tests. None leaves anything behind."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helper.world import Sysfs, World, glib_worker, world
from tests.settled import pytest_pyfunc_call, settled

__all__ = ["glib_worker", "pytest_pyfunc_call", "settled"]


@pytest.fixture
def sysfs(tmp_path: Path) -> Sysfs:
    return Sysfs(tmp_path / "sys")


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[World]:
    """A world with one GPU that is part of the processor."""
    with world(tmp_path) as made:
        made.sysfs.add()
        yield made
