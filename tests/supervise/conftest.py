"""Fixtures of the supervise room: a supervisor over fake servers, and the proof that no process of it is left."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from accelerd.supervise.process.processes import ProcessTable
from tests.settled import pytest_pyfunc_call, settled
from tests.supervise.bench import SupervisorBench
from tests.supervise.units import Units
from tests.system.systemd_user import UserManager, user_manager

__all__ = ["bench", "pytest_pyfunc_call", "settled", "units", "user_manager"]


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[SupervisorBench]:
    """A supervisor to be used as `async with bench:`; after the test no marked process may live."""
    # A socket's path has room for 107 bytes: pytest's own directories are too deep.
    with tempfile.TemporaryDirectory(prefix="acc-") as runtime:
        made = SupervisorBench(tmp_path, Path(runtime))
        yield made
        assert ProcessTable().owned(runtime) == []
        assert list(made.roots.instances.glob("*.sock")) == []


@pytest.fixture
def units(user_manager: UserManager) -> Iterator[Units]:
    """A real systemd --user for models in units of their own."""
    made = Units(user_manager)
    yield made
    made.close()
