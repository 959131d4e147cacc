"""Models in a toolbox and in units of systemd outlive the daemon together: the shipped units, podman and toolbox."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.daemon.container_service import TOOLBOX, ContainerService, container_service
from tests.daemon.kit import QUICK
from tests.system.containers import ContainerManager, container_manager
from tests.system.systemd_user import wait_until

__all__ = ["container_manager"]


@pytest.fixture
def service(container_manager: ContainerManager) -> Iterator[ContainerService]:
    yield from container_service(container_manager)


def both(service: ContainerService, **settings: object) -> str:
    """A model in a unit of its own, and one in the user's toolbox."""
    site = service.site
    return QUICK + site.model("unit", home="systemd", **settings) + service.toolbox_model("box", **settings)


def test_B03_done_when_a_killed_daemon_is_back_within_two_seconds_and_no_model_noticed(
    service: ContainerService,
) -> None:
    """With the unit as it is shipped: no drop-in."""
    service.install(both(service), dropin="")
    service.start()
    pids = service.load("unit", "box")
    sessions = service.sessions()
    started = (service.container(TOOLBOX) or {})["State"]["StartedAt"]
    assert len(sessions) == 1
    killed = time.monotonic()
    old = service.kill()
    service.back(old)
    took = time.monotonic() - killed
    for model in pids:
        assert service.chat(model).status == 200
    print(f"back after {took:.2f} s")
    assert service.pids(*pids) == pids
    assert service.site.spawns() == 2, "no reload"
    assert service.sessions() == sessions, "no second exec session"
    assert (service.container(TOOLBOX) or {})["State"]["StartedAt"] == started
    assert took < 2, f"{took:.2f} s"
    service.stop_all()
    assert wait_until(service.nothing_left), service.leftovers()
