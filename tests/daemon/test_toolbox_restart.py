"""Models in a toolbox and in units of systemd outlive the daemon together: the shipped units, podman and toolbox."""

from __future__ import annotations

import http.client
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from tests.daemon.container_service import EXISTING, TOOLBOX, ContainerService, container_service
from tests.daemon.kit import QUICK, alive, side_by_side, whole_stream
from tests.daemon.rounds import unheeded
from tests.daemon.service import SERVICE
from tests.system.containers import ContainerManager
from tests.system.systemd_user import wait_until


@pytest.fixture
def service(container_manager: ContainerManager) -> Iterator[ContainerService]:
    yield from container_service(container_manager)


def both(service: ContainerService, **settings: Any) -> str:
    """A model in a unit of its own, and one in the user's toolbox."""
    unit = service.site.model("unit", home="systemd", **settings)
    return QUICK + unit + service.toolbox_model("box", **settings)


def test_a_killed_daemon_comes_back_and_no_model_has_noticed(service: ContainerService) -> None:
    """With the unit as it is shipped: no drop-in."""
    service.install(both(service), dropin="")
    service.start()
    pids = service.load("unit", "box")
    sessions, began = service.sessions(), service.toolbox_began()
    assert len(sessions) == 1
    for _ in range(2):
        service.back(service.kill())
        assert [service.chat(model).status for model in pids] == [200, 200]
        assert service.pids(*pids) == pids
    assert service.site.spawns() == 2, "no reload"
    assert service.sessions() == sessions, "no second exec session"
    assert service.toolbox_began() == began
    service.stop_all()
    assert wait_until(service.nothing_left), service.leftovers()


@pytest.mark.parametrize("how", ["KILL", "ABRT"])
def test_a_daemon_killed_while_it_asks_a_program_leaves_no_exec_session(service: ContainerService, how: str) -> None:
    """systemd kills what is left in the daemon's unit; podman keeps for ever the session of a killed `podman exec`."""
    folder = service.site.directory
    asked, told = folder / "asked", folder / "told"
    script = f'#!/bin/sh\ntouch {asked}\nwhile [ ! -e {told} ]; do sleep 0.05; done\nexec {service.site.program} "$@"\n'
    program = service.manager.script(folder / "slow-to-answer", script)
    service.install(QUICK + service.toolbox_model("box", binary=str(program)))
    service.start()
    with side_by_side() as do:
        do(unheeded, service.events, "load?model=box")
        assert wait_until(asked.exists)
        old = service.kill(how)
        service.manager.write(told, "")
        service.back(old)
    service.load("box")
    assert wait_until(lambda: len(service.sessions()) == 1), service.leftovers()
    service.stop_all()
    assert wait_until(service.nothing_left), service.leftovers()


@pytest.mark.parametrize("how", ["kill", "restart"])
def test_models_of_every_home_but_plain_children_live_on(service: ContainerService, how: str) -> None:
    models = service.every_home()
    service.install(QUICK + "".join(models.values()), environment=service.with_distrobox())
    service.start()
    pids = service.load(*models)
    if how == "kill":
        old = service.kill("KILL")
    else:
        old = service.main_pid()
        service.manager.systemctl("restart", SERVICE)
    service.back(old)
    assert not alive(pids.pop("plain"))
    assert service.pids(*pids) == pids
    for name in pids:
        assert service.chat(name).status == 200, name
    assert service.site.spawns() == 5, "with the plain one, and without the container's own, which has no log"
    service.stop_all()
    assert wait_until(service.nothing_left), service.leftovers()
    assert (service.container(EXISTING) or {})["State"]["Status"] == "exited"


class Clients:
    """Plain requests and streams to both models, one after the other in each of several threads, while a block runs."""

    def __init__(self, service: ContainerService) -> None:
        self.service = service
        self.outcomes: Counter[str] = Counter()
        self.over = threading.Event()
        asks = [self.plain, self.plain, self.stream]
        self.threads = [threading.Thread(target=self.loop, args=(ask, m)) for ask in asks for m in ("unit", "box")]

    def __enter__(self) -> Clients:
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        for thread in self.threads:
            thread.join()

    def loop(self, ask: Any, model: str) -> None:
        while not self.over.is_set():
            try:
                outcome = ask(model)
            except (OSError, http.client.HTTPException) as error:
                outcome = repr(error)
            self.outcomes[outcome] += 1

    def plain(self, model: str) -> str:
        answer = self.service.chat(model)
        return "whole" if answer.status == 200 else f"{answer.status} {answer.body!r}"

    def stream(self, model: str) -> str:
        status, events, complete = whole_stream(self.service, model)
        return "whole" if (status, complete, events[-1]) == (200, True, "[DONE]") else f"{status} {complete} {events}"

    def more(self, count: int) -> None:
        """Wait for as many outcomes more."""
        until = self.outcomes.total() + count
        assert wait_until(lambda: self.outcomes.total() > until), self.outcomes


def test_done_when_restarts_and_upgrades_neither_refuse_nor_break_a_request(service: ContainerService) -> None:
    service.install(both(service, env={"FAKE_DELAY_MS": "15"}, parallel=8))
    service.start()
    pids = service.load("unit", "box")
    sessions = service.sessions()
    with Clients(service) as clients:
        for upgrade in (False, True, False, True):
            old = service.main_pid()
            if upgrade:
                service.upgrade()
            service.manager.systemctl("restart", SERVICE)
            service.back(old)
            clients.more(20)
    print(f"{clients.outcomes.total()} requests over 4 restarts: {dict(clients.outcomes)}")
    assert set(clients.outcomes) == {"whole"}, clients.outcomes
    assert service.version_tag() == "2", "the second upgrade runs"
    assert service.pids(*pids) == pids
    assert service.site.spawns() == 2
    assert service.sessions() == sessions


def test_what_a_kill_of_the_daemon_costs_its_clients(service: ContainerService) -> None:
    """Requests in flight are cut, which nobody can help; new ones wait in the socket and are answered."""
    service.install(both(service, env={"FAKE_DELAY_MS": "15"}, parallel=8), dropin="")
    service.start()
    pids = service.load("unit", "box")
    with Clients(service) as clients:
        clients.more(10)
        service.back(service.kill())
        clients.more(20)
    broken = {outcome: count for outcome, count in clients.outcomes.items() if outcome != "whole"}
    print(f"{clients.outcomes.total()} requests over a kill: {dict(clients.outcomes)}")
    assert sum(broken.values()) <= len(clients.threads), "at most what was in flight"
    assert not any("refused" in outcome or outcome.startswith("5") for outcome in broken), broken
    assert service.pids(*pids) == pids


def test_a_toolbox_that_nobody_has_used_since_login(service: ContainerService) -> None:
    """podman has no user namespace to join yet, the container is stopped: the service itself must be able to begin."""
    service.install(both(service))
    service.podman("stop", "--time", "0", TOOLBOX)
    service.manager.run(["podman", "system", "migrate"])  # ends podman's pause process
    service.start()
    pids = service.load("box")
    assert service.chat("box").status == 200
    init = (service.container(TOOLBOX) or {})["State"]["Pid"]
    service.stop_all()
    assert wait_until(service.nothing_left), service.leftovers()
    assert not alive(pids["box"])
    assert alive(init), "the toolbox that accelerd started outlives it"


def test_a_stream_from_a_toolbox_ends_whole_over_a_restart(service: ContainerService) -> None:
    service.install(QUICK + service.toolbox_model("box", "slow-token:30", {"FAKE_TOKENS": "40"}))
    service.start()
    pids = service.load("box")
    seen: list[Any] = []
    client = threading.Thread(target=lambda: seen.append(whole_stream(service, "box")))
    client.start()
    assert wait_until(lambda: bool(service.site.events("start", "box")))
    service.manager.systemctl("restart", SERVICE)
    client.join()
    status, events, complete = seen[0]
    assert (status, complete, events[-1]) == (200, True, "[DONE]"), events
    assert service.pids("box") == pids
