"""What clients of llama.cpp's router and of llama-swap manage models by: on the control socket, as those answer it."""

from __future__ import annotations

import pytest

from tests.daemon.kit import QUICK, Site
from tests.harness import Daemon, DaemonFactory

NAME = "org/coder:q4"


@pytest.fixture(scope="module")
def daemon(factory: DaemonFactory, sites: Site) -> Daemon:
    models = [sites.model(NAME, aliases=["coder"], description="It codes.", idle_timeout="90s")]
    return factory.start("".join([QUICK, *models, sites.model("other")]))


def running(daemon: Daemon) -> dict[str, dict[str, object]]:
    return {one["model"]: one for one in daemon.control("GET", "/running").json()["running"]}


def test_a_model_is_loaded_and_unloaded_as_by_llama_cpps_router(daemon: Daemon) -> None:
    assert NAME not in running(daemon)
    assert daemon.control("POST", "/models/load", {"model": "coder"}).json() == {"success": True}
    daemon.wait_state(NAME, "ready")
    again = daemon.control("POST", "/models/load", {"model": NAME})
    assert (again.status, again.code) == (400, "bad_request")
    assert "already running" in again.json()["error"]["message"]
    assert daemon.control("POST", "/models/unload", {"model": NAME}).json() == {"success": True}
    daemon.wait_state(NAME, "stopped")
    again = daemon.control("POST", "/models/unload", {"model": NAME})
    assert (again.status, "not running" in again.json()["error"]["message"]) == (400, True)


@pytest.mark.parametrize("path", ["/models/load", "/models/unload"])
@pytest.mark.parametrize(
    ("body", "status"), [({"model": "nobody"}, 404), ({}, 400), ([], 400), ({"model": 1}, 400), (b"\xff", 400)]
)
def test_a_request_without_a_model_that_there_is_is_refused(
    daemon: Daemon, path: str, body: object, status: int
) -> None:
    assert daemon.control("POST", path, body).status == status


def test_what_runs_is_listed_and_ended_as_by_llama_swap(daemon: Daemon) -> None:
    for name in (NAME, "other"):
        assert daemon.chat(name).status == 200
    entry = running(daemon)[NAME]
    assert (entry["state"], entry["ttl"], entry["description"]) == ("ready", 90, "It codes.")
    assert set(entry) == {"model", "state", "cmd", "proxy", "ttl", "name", "description"}
    assert "--alias" in str(entry["cmd"])
    assert daemon.control("POST", "/api/models/unload/coder").body == b"OK"
    assert set(running(daemon)) == {"other"}
    assert daemon.control("POST", "/api/models/unload").json() == {"msg": "ok"}
    assert not running(daemon)
    for method in ("GET", "POST"):
        assert daemon.chat(NAME).status == 200
        assert daemon.control(method, "/unload").body == b"OK"
        assert daemon.state(NAME) == "stopped", "it is answered when that is done"
    assert daemon.control("POST", "/api/models/unload/nobody").status == 404


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/models/load"),
        ("POST", "/models/unload"),
        ("GET", "/running"),
        ("GET", "/unload"),
        ("POST", "/unload"),
        ("POST", "/api/models/unload"),
        ("POST", "/api/models/unload/other"),
    ],
)
def test_on_the_tcp_port_it_is_said_where_they_are(daemon: Daemon, method: str, path: str) -> None:
    answer = daemon.send(method, path, {"model": "other"} if method == "POST" else None)
    assert answer.status == 403
    assert "--unix-socket" in str(answer.json()["error"])


def test_a_model_may_have_the_name_of_such_a_path(daemon: Daemon) -> None:
    assert daemon.send("GET", "/models/load").code == "model_not_found"
    assert daemon.control("GET", "/models/other").json()["id"] == "other"
