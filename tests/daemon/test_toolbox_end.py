"""An end is an end in every home: nothing of any model is left, and the user's own toolbox runs on."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from tests.daemon.container_service import EXISTING, TOOLBOX, ContainerService, container_service
from tests.daemon.kit import QUICK, alive
from tests.daemon.service import SERVICE, SOCKET
from tests.harness import eventually
from tests.system.containers import ContainerManager
from tests.system.systemd_user import wait_until


@pytest.fixture
def service(container_manager: ContainerManager) -> Iterator[ContainerService]:
    yield from container_service(container_manager)


def test_done_when_a_stop_leaves_no_process_in_any_home_although_sigterm_is_ignored(
    service: ContainerService,
) -> None:
    models = service.every_home("ignore-term", stop_timeout=0.3)
    service.install(QUICK + "".join(models.values()), environment=service.with_distrobox())
    service.start()
    began = service.toolbox_began()
    pids = service.load(*models)
    assert len(set(pids.values())) == 6
    assert service.own_containers() == {"accelerd-run"}
    service.stop_all()
    assert [name for name, pid in pids.items() if alive(pid)] == [], "stop returns when all is over"
    assert wait_until(service.nothing_left), service.leftovers()
    assert (service.container(EXISTING) or {})["State"]["Status"] == "exited"
    assert service.toolbox_began() == began
    assert service.manager.properties(SERVICE)["Result"] == "success"


def test_an_unload_ends_each_of_them_alone(service: ContainerService) -> None:
    models = service.every_home("ignore-term", stop_timeout=0.2)
    service.install(QUICK + "".join(models.values()), environment=service.with_distrobox())
    service.start()
    pids = service.load(*models)
    for name in models:
        assert service.events(f"unload?model={name}")[-1]["event"] == "stopped"
        assert not alive(pids.pop(name))
        assert all(map(alive, pids.values())), name
    assert wait_until(service.nothing_left), service.leftovers()


def test_when_the_daemon_dies_for_good_the_reaper_ends_all_in_every_home(service: ContainerService) -> None:
    models = service.every_home("ignore-term", stop_timeout=0.3)
    dropin = "[Service]\nRestartSec=50ms\n[Unit]\nStartLimitBurst=2"
    service.install(QUICK + "".join(models.values()), dropin=dropin, environment=service.with_distrobox())
    service.start()
    began = service.toolbox_began()
    pids = service.load(*models)
    plain = pids.pop("plain")  # ends with its daemon
    service.back(service.kill())
    assert all(map(alive, pids.values())), "one crash is not the end"
    assert service.pids(*pids) == pids
    assert not alive(plain)
    service.manager.systemctl("stop", SOCKET)  # else the next client brings it back
    service.kill()
    service.manager.wait_for(SERVICE, ActiveState="failed")
    assert wait_until(service.nothing_left, 40), service.leftovers()
    assert wait_until(service.reaped)
    assert not [name for name, pid in pids.items() if alive(pid)]
    assert service.toolbox_began() == began


def test_a_daemon_that_crashes_at_once_leaves_its_models_to_the_reaper(service: ContainerService) -> None:
    """The next program is broken: it never comes as far as looking for models."""
    service.install(QUICK + service.site.model("unit", home="systemd") + service.toolbox_model("box"), socket=False)
    service.start()
    pids = service.load("unit", "box")
    service.program('[ "$1" = --reap ] && exec python -m accelerd --reap\nexit 1')
    service.kill()
    service.manager.wait_for(SERVICE, ActiveState="failed")
    assert wait_until(service.nothing_left, 40), service.leftovers()
    assert not [name for name, pid in pids.items() if alive(pid)]


@pytest.mark.parametrize("how", ["kill", "restart"])
def test_without_survive_they_end_with_the_daemon_in_every_home(service: ContainerService, how: str) -> None:
    models = service.every_home("ignore-term", survive=False, stop_timeout=0.3)
    service.install(QUICK + "".join(models.values()), environment=service.with_distrobox())
    service.start()
    began = service.toolbox_began()
    pids = service.load(*models)
    if how == "kill":
        old = service.kill("KILL")
    else:
        old = service.main_pid()
        service.manager.systemctl("restart", SERVICE)
    service.back(old)
    assert not [name for name, pid in pids.items() if alive(pid)], "before it serves again"
    assert all(model["state"] == "stopped" for model in service.status()["models"])
    assert wait_until(service.nothing_left), service.leftovers()
    assert service.toolbox_began() == began
    service.load(*models)


def test_without_survive_the_toolbox_s_model_ends_although_no_daemon_comes(service: ContainerService) -> None:
    """The guard inside the container sees that the daemon has gone; the reaper does the rest."""
    model = service.toolbox_model("box", survive=False)
    service.install(QUICK + model, dropin="[Service]\nRestart=no", socket=False)
    service.start()
    pid = service.load("box")["box"]
    service.kill("KILL")
    assert wait_until(lambda: not alive(pid))
    assert wait_until(service.nothing_left), service.leftovers()


def test_what_a_model_in_a_toolbox_has_forked_ends_too(service: ContainerService) -> None:
    modes = ("fork-wrapper", "fork-wrapper-exit", "setsid-grandchild", "hold-stdout")
    models = [service.toolbox_model(mode, f"{mode},ignore-term", stop_timeout=0.2) for mode in modes]
    service.install(QUICK + "".join(models))
    service.start()
    for mode in modes:
        service.events(f"load?model={mode}")
    service.stop_all()
    assert wait_until(service.nothing_left), service.leftovers()


def test_the_user_s_own_programs_in_the_toolbox_go_on(service: ContainerService) -> None:
    service.install(QUICK + service.toolbox_model("box", "ignore-term", stop_timeout=0.2))
    argv = ["toolbox", "run", "--container", TOOLBOX, "sh", "-c", "echo $$; exec sleep 1000"]
    with service.manager.popen(argv, stdout=-1) as mine:
        assert mine.stdout is not None
        pid = int(mine.stdout.readline())
        service.start()
        service.load("box")
        service.stop_all()
        eventually(lambda: len(service.sessions()) == 1, "only the user's session is left")
        assert alive(pid)
        service.manager.run(["kill", f"-{signal.SIGKILL}", str(pid)])
        mine.wait(20)
    assert wait_until(service.nothing_left), service.leftovers()
