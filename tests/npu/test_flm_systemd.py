"""A model on the NPU in a unit of a real systemd --user: its input, what it may lock, a restart of the daemon."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.daemon.kit import QUICK
from tests.daemon.service import Service, installed
from tests.harness import eventually
from tests.npu.kit import FlmOnPath, flm_model
from tests.system.systemd_user import UserManager, user_manager

__all__ = ["user_manager"]
NAME = "npu/qwen3-4b"


@pytest.fixture
def service(user_manager: UserManager) -> Iterator[Service]:
    yield from installed(user_manager)


@pytest.fixture
def flm(service: Service) -> FlmOnPath:
    found = FlmOnPath(service.manager.directory(service.manager.base / "npu")).pulled("qwen3:4b")
    found.log.touch()
    found.log.chmod(0o666)
    found.directory.chmod(0o755)
    return found


def install(service: Service, flm: FlmOnPath) -> None:
    service.install(f'{QUICK}[engines.flm]\nbinary = "{flm.program}"\n{flm_model(home="systemd")}')
    service.start()


def test_B_its_standard_input_is_closed_and_it_may_lock_all_that_its_user_may(service: Service, flm: FlmOnPath) -> None:
    """systemd gives it the reading end of its own output there, and what it reads it takes for orders."""
    install(service, flm)
    service.load(NAME)
    assert {record["stdin"] for record in flm.noted("argv")} == {"null"}
    assert flm.noted("told") == []
    (unit,) = service.model_units()
    assert service.manager.properties(unit)["LimitMEMLOCK"] == "infinity"
    assert service.chat(NAME).status == 200


def test_it_outlives_the_daemon_and_is_not_asked_for_a_proof_again(service: Service, flm: FlmOnPath) -> None:
    """One that writes a long answer would be late with it."""
    install(service, flm)
    pids = service.load(NAME)
    asked = len(flm.noted("post"))
    old = service.kill()
    service.back(old)
    assert service.pids(NAME) == pids
    assert len(flm.noted("post")) == asked
    assert service.chat(NAME).status == 200
    assert eventually(lambda: len(flm.served()) == 1, "no second start")
