"""A call on the session bus starts accelerd: shipped units and activation file, a real systemd --user and its bus."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from accelerd import __version__
from accelerd.base import names
from tests.daemon.service import SERVICE, Service, installed
from tests.harness import eventually
from tests.system.systemd_user import REPO, UserManager

FILE = REPO / "packaging/dbus/org.accelerd1.service"
GET = ["busctl", "--user", "get-property", names.BUS_NAME, names.BUS_PATH, names.BUS_MANAGER]


@pytest.fixture
def service(user_manager: UserManager) -> Iterator[Service]:
    for made in installed(user_manager):
        made.install("", socket=False)
        services = user_manager.home / ".local/share/dbus-1/services"
        user_manager.write(services / FILE.name, FILE.read_text())
        # the bus read its directories when it began
        call = ["busctl", "--user", "call", "org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus"]
        user_manager.run([*call, "ReloadConfig"])
        yield made


def state(service: Service) -> str:
    return service.manager.properties(SERVICE)["ActiveState"]


def test_the_first_call_starts_the_service_and_is_answered(service: Service) -> None:
    assert state(service) == "inactive"
    answer = service.manager.run([*GET, "Version"], timeout=60).stdout
    assert answer == f's "{__version__}"\n'
    eventually(lambda: state(service) == "active", "READY=1")  # the name is there a moment before
    assert service.status()["pid"] == service.main_pid()
    assert service.manager.properties(SERVICE)["BusName"] == names.BUS_NAME


def test_a_stopped_service_comes_with_the_next_call_and_one_that_runs_is_not_started_again(service: Service) -> None:
    service.start()
    first = service.main_pid()
    service.manager.run([*GET, "State"])
    assert service.main_pid() == first
    service.stop_all()
    eventually(service.reaped, "the reaper is through")
    assert state(service) == "inactive"
    service.manager.run([*GET, "State"], timeout=60)
    assert service.main_pid() not in (0, first)


def test_who_looks_without_calling_starts_nothing(service: Service) -> None:
    """`busctl list` and a monitor: only calls to the name start it."""
    listed = service.manager.run(["busctl", "--user", "list", "--activatable", "--no-legend"]).stdout
    assert names.BUS_NAME in listed
    assert state(service) == "inactive"
