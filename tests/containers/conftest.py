"""Every test with the fixture `containers` runs in a second pytest, as a user who has podman and toolbox (relay.py)."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.containers.relay import INSIDE, Reporter, Second
from tests.containers.world import World
from tests.system.containers import container_manager_for_session

if not os.environ.get(INSIDE):

    @pytest.fixture(scope="session")
    def containers(request: pytest.FixtureRequest) -> Iterator[Second]:
        """The second pytest, which runs all tests with this fixture, in the same order.

        In a world of its own: it is ahead of the tests out here, and removes all containers at its end.
        """
        wanted = [item.nodeid for item in request.session.items if "containers" in getattr(item, "fixturenames", ())]
        with container_manager_for_session() as manager, Second(manager, wanted) as second:
            yield second

    def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
        """The second pytest has a limit for each test, too, and says more when it is reached; the first one waits for
        its start as well."""
        for item in items:
            if "containers" in getattr(item, "fixturenames", ()):
                item.add_marker(pytest.mark.timeout(300))

    @pytest.hookimpl(tryfirst=True)
    def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> object | None:
        """Such a test is as good as its report."""
        second = pyfuncitem.funcargs.get("containers")
        if not isinstance(second, Second):
            return None
        trouble = second.result(pyfuncitem.nodeid)
        if trouble:
            pytest.fail(trouble, pytrace=False)
        return True

else:

    @pytest.fixture(scope="session")
    def containers() -> Iterator[World]:
        """podman, toolbox and a place for the files of instances."""
        world = World()
        try:
            yield world
        finally:
            world.close()

    def pytest_configure(config: pytest.Config) -> None:
        config.pluginmanager.register(Reporter(int(os.environ[INSIDE])))
