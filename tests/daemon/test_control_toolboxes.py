"""The control routes about toolboxes on a machine that has no podman, and with wrong arguments."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.daemon.kit import Site
from tests.harness import Daemon, DaemonFactory


@pytest.fixture(scope="module")
def daemon(factory: DaemonFactory, sites: Site, tmp_path_factory: pytest.TempPathFactory) -> Daemon:
    programs = tmp_path_factory.mktemp("bin")
    (programs / "python3").symlink_to(Path(sys.executable).resolve())
    return factory.start(sites.model("m"), env={"PATH": str(programs)})


def test_without_podman_there_are_no_toolboxes(daemon: Daemon) -> None:
    answer = daemon.control("GET", "toolboxes")
    assert (answer.status, answer.json()["toolboxes"], answer.json()["missing"]) == (200, [], [])
    assert not any(image["here"] for image in answer.json()["known"])


@pytest.mark.parametrize("route", ["toolbox/refresh", "toolbox/pin", "toolbox/unpin"])
def test_a_name_is_needed(daemon: Daemon, route: str) -> None:
    answer = daemon.control("POST", route)
    assert (answer.status, answer.code, answer.json()["error"]["param"]) == (400, "bad_request", "name")
    assert daemon.control("GET", f"{route}?name=a").code == "method_not_allowed"


def test_a_refresh_fails_as_an_event(daemon: Daemon) -> None:
    [event] = daemon.events("toolbox/refresh?name=radv")
    assert (event["event"], event["error"]["code"]) == ("error", "toolbox_failed")
    assert "cannot find podman" in event["error"]["message"]
    assert "nothing was changed" in event["error"]["message"]
    [again] = daemon.events("toolbox/refresh?name=radv")
    assert again == event, "the one before is over"


@pytest.mark.parametrize("route", ["toolbox/pin", "toolbox/unpin"])
def test_pins_need_the_toolbox(daemon: Daemon, route: str) -> None:
    answer = daemon.control("POST", f"{route}?name=radv")
    assert (answer.status, answer.code) == (502, "toolbox_failed")
    assert "cannot find podman" in answer.json()["error"]["message"]


def test_models_go_on_as_ever(daemon: Daemon) -> None:
    assert daemon.chat("m").status == 200
