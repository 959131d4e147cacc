"""Random rounds of loads, unloads, kills and restarts under a real systemd: nothing is left of them.

ACCELERD_TEST_ROUNDS sets how many (40), ACCELERD_TEST_SEED which ones; a failure names the seed and what was done.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.daemon.rounds import ROUNDS, Kind, World
from tests.daemon.service import Service, installed
from tests.system.systemd_user import UserManager

# The homes of a machine without containers, and every way to be difficult.
MODELS = {
    "plain": Kind("systemd"),
    "deaf": Kind("systemd", "ignore-term", {"stop_timeout": 0.2}),
    "slow": Kind("systemd", "slow-load:0.3"),
    "child": Kind("child"),
    "bound": Kind("systemd", "ok", {"survive": False}),
}


@pytest.fixture
def service(user_manager: UserManager) -> Iterator[Service]:
    yield from installed(user_manager)


@pytest.mark.timeout(60 + ROUNDS * 20)
@pytest.mark.parametrize("transport", ["unix", "tcp"])
def test_random_rounds_leave_nothing_that_should_not_be_there(service: Service, transport: str) -> None:
    world = World(service, MODELS, tcp=transport == "tcp")
    world.begin()
    for _ in range(ROUNDS // 2):
        world.play()
    world.end()
