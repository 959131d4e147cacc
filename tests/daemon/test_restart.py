"""Models that outlive the daemon, and models that nobody will want any more: the shipped units under a real systemd."""

from __future__ import annotations

import http.client
import shutil
import threading
from collections.abc import Iterator

import pytest

from accelerd.base import names
from tests.daemon.kit import QUICK, alive, marked, rest_of, side_by_side, sse
from tests.daemon.service import REAPERS, SERVICE, SOCKET, UNITS, Service, installed
from tests.harness import eventually, streaming
from tests.system.systemd_user import UserManager, wait_until

LONG_WAIT = "[Service]\nRestartSec=2s"  # time for a test to do something in between


@pytest.fixture
def service(user_manager: UserManager) -> Iterator[Service]:
    yield from installed(user_manager)


def two_models(service: Service, **settings: object) -> str:
    return QUICK + service.site.model("a", **settings) + service.site.model("b", **settings)


def test_a_killed_daemon_comes_back_and_its_models_never_noticed(service: Service) -> None:
    service.install(two_models(service))
    service.start()
    pids = service.load("a", "b")
    old = service.kill()
    service.back(old)
    for model in ("a", "b"):
        assert service.chat(model).status == 200
    assert service.pids("a", "b") == pids
    assert service.site.spawns() == 2, "no reload"
    history = service.control("GET", "explain?model=a").json()["history"]
    assert [(step["from"], step["to"]) for step in history] == [("stopped", "starting"), ("starting", "ready")]
    assert "taken over" in service.status("a")["reason"]
    assert "2 of 2 models" in service.output()
    service.stop_all()
    assert wait_until(service.nothing_left), service.leftovers()


def test_a_model_that_was_loading_when_the_daemon_was_killed_goes_on_loading(service: Service) -> None:
    service.install(QUICK + service.site.model("a", "slow-load:2"))
    service.start()
    service.control("GET", "status")
    with side_by_side() as do:
        do(_ignore_errors, service.events, "load?model=a")
        pid = eventually(lambda: service.site.events("spawn", "a"), "it is started")[0]["pid"]
        eventually(lambda: service.status("a")["pid"] == pid, "it is known")
        service.back(service.kill())
    assert service.chat("a").status == 200
    assert service.pids("a") == {"a": pid}
    assert service.site.spawns() == 1


def test_models_are_taken_over_although_the_runtime_directory_was_removed(service: Service) -> None:
    """What listens at a port goes on meanwhile; also what was loading then."""
    tcp = '[engines.llama-server]\ntransport = "tcp"\n'
    models = service.site.model("a") + service.site.model("slow", "slow-load:2")
    service.install(QUICK + tcp + models, socket=False)
    service.start()
    pids = service.load("a")
    with side_by_side() as do:
        do(_ignore_errors, service.events, "load?model=slow")
        pids["slow"] = eventually(lambda: service.status("slow")["pid"], "it is started")
        folder = service.instances.parent
        folder.rename(folder.with_name("away"))
        eventually(lambda: f"somebody removed {folder}" in service.output(), "it is made again")
        service.back(service.kill())
    assert service.pids("a", "slow") == pids
    assert service.chat("a").status == 200
    assert service.site.spawns() == 2
    service.stop_all()
    shutil.rmtree(folder.with_name("away"))
    assert wait_until(service.nothing_left), service.leftovers()


def _ignore_errors(function: object, *arguments: object) -> None:
    try:
        function(*arguments)  # type: ignore[operator]
    except (OSError, http.client.HTTPException, ValueError):
        return  # the daemon it talked to was killed


def test_a_restart_keeps_the_models_and_neither_refuses_nor_breaks_a_request(service: Service) -> None:
    slow = {"FAKE_DELAY_MS": "20"}
    service.install(QUICK + service.site.model("a", env=slow, parallel=8))
    service.start()
    pids = service.load("a")
    outcomes: list[object] = []
    over = threading.Event()

    def ask() -> None:
        while not over.is_set():
            try:
                outcomes.append(service.chat("a").status)
            except (OSError, http.client.HTTPException) as error:
                outcomes.append(error)

    clients = [threading.Thread(target=ask) for _ in range(4)]
    for client in clients:
        client.start()
    try:
        for _ in range(3):
            old = service.main_pid()
            service.manager.systemctl("restart", SERVICE)
            service.back(old)
            count = len(outcomes)
            assert wait_until(lambda count=count: len(outcomes) > count + 8)
    finally:
        over.set()
        for client in clients:
            client.join()
    assert set(outcomes) == {200}, outcomes
    assert service.pids("a") == pids
    assert service.site.spawns() == 1


def test_a_restart_lets_a_running_stream_end(service: Service) -> None:
    service.install(QUICK + service.site.model("a", "slow-token:40", {"FAKE_TOKENS": "30"}))
    service.start()
    pids = service.load("a")
    with streaming(service, "a") as response, side_by_side() as do:
        assert response.readline()
        restart = do(service.manager.systemctl, "restart", SERVICE)
        text, complete = rest_of(response)
        restart.result(20)
    service.wait_state("a", "ready")
    assert complete
    assert sse(text)[-1] == "[DONE]"
    assert service.pids("a") == pids


@pytest.mark.parametrize("how", ["stop", "kill -TERM"])
def test_an_end_for_good_leaves_nothing_not_even_what_ignores_sigterm(service: Service, how: str) -> None:
    deaf = service.site.model("deaf", "ignore-term", stop_timeout=0.3)
    service.install(two_models(service, stop_timeout=0.3) + deaf, socket=False)
    old = service.start()
    pids = service.load("a", "b", "deaf")
    if how == "stop":
        service.stop_all()
        assert not [pid for pid in pids.values() if alive(pid)], "stop returns when all is over"
    else:
        service.kill("TERM")
        assert wait_until(lambda: not alive(old))
    assert wait_until(service.nothing_left), service.leftovers()
    assert wait_until(service.reaped)
    assert service.manager.properties(SERVICE)["Result"] == "success"


def test_a_restart_that_becomes_a_stop_ends_the_models(service: Service) -> None:
    service.install(QUICK + service.site.model("a", "slow-token:30", {"FAKE_TOKENS": "60"}))
    service.start()
    service.load("a")
    with streaming(service, "a") as response:
        assert response.readline()
        service.manager.systemctl("restart", "--no-block", SERVICE)
        service.manager.wait_for(SERVICE, ActiveState="deactivating")
        service.manager.systemctl("stop", "--no-block", SOCKET, SERVICE)
        rest_of(response)
    service.manager.wait_for(SERVICE, ActiveState="inactive")
    assert wait_until(service.nothing_left), service.leftovers()


def test_when_systemd_gives_up_the_reaper_ends_what_is_left(service: Service) -> None:
    service.install(two_models(service), dropin="[Service]\nRestartSec=50ms\n[Unit]\nStartLimitBurst=2", socket=False)
    service.start()
    pids = service.load("a", "b")
    service.back(service.kill())
    assert all(map(alive, pids.values())), "one crash is not the end"
    service.kill()
    service.manager.wait_for(SERVICE, ActiveState="failed")
    assert wait_until(service.nothing_left), service.leftovers()
    assert wait_until(service.reaped)
    assert "ended 2 processes of it" in service.manager.output(names.REAPER_UNIT)


def test_a_stop_while_systemd_waits_to_restart_it_ends_the_models(service: Service) -> None:
    service.install(two_models(service), dropin=LONG_WAIT)
    service.start()
    pids = service.load("a", "b")
    service.kill()
    service.manager.wait_for(SERVICE, SubState="auto-restart")
    assert all(map(alive, pids.values()))
    service.stop_all()
    assert wait_until(service.nothing_left), service.leftovers()


def test_a_broken_configuration_at_a_restart_ends_nothing(service: Service) -> None:
    service.install(two_models(service))
    old = service.start()
    pids = service.load("a", "b")
    kept = service.manager.home / ".local/state/accelerd" / names.LAST_GOOD_FILE
    eventually(kept.exists, "the configuration is kept")
    service.configure("nonsense = 1\n")
    service.manager.systemctl("restart", SERVICE)
    service.back(old)
    assert service.pids("a", "b") == pids
    assert service.chat("a").status == 200
    assert "not in use" in service.status()["status"]


def test_a_broken_configuration_at_a_restart_is_an_end_for_good_where_no_good_one_is_kept(service: Service) -> None:
    service.install(two_models(service), socket=False)
    service.start()
    service.load("a")
    kept = service.manager.home / ".local/state" / names.STATE_DIR / names.LAST_GOOD_FILE
    assert wait_until(kept.exists)
    kept.unlink()
    service.configure("nonsense = 1\n")
    assert service.manager.systemctl("restart", SERVICE, check=False).returncode != 0
    service.manager.wait_for(SERVICE, ActiveState="failed")
    assert wait_until(service.nothing_left), service.leftovers()


def test_the_reaper_does_nothing_while_accelerd_runs(service: Service) -> None:
    service.install(two_models(service))
    service.start()
    pids = service.load("a", "b")
    service.manager.systemctl("start", *REAPERS)
    done = service.manager.run([service.manager.home / ".local/bin/accelerd", "--reap"])
    assert "nothing is reaped: another accelerd" in done.stderr
    assert service.pids("a", "b") == pids
    assert service.chat("a").status == 200


def test_what_changed_while_no_daemon_ran_is_replaced_and_what_was_removed_is_ended(service: Service) -> None:
    site = service.site
    service.install(two_models(service) + site.model("c"), dropin=LONG_WAIT, socket=False)
    service.start()
    pids = service.load("a", "b", "c")
    service.kill()
    service.manager.wait_for(SERVICE, SubState="auto-restart")
    service.configure(QUICK + site.model("a") + site.model("b", context=1024))
    service.manager.systemctl("start", SERVICE)
    assert service.chat("a").status == 200
    assert service.chat("b").status == 200
    assert service.pids("a") == {"a": pids["a"]}
    assert service.pids("b")["b"] != pids["b"]
    assert wait_until(lambda: not alive(pids["b"]) and not alive(pids["c"]))
    assert {process.pid for process in marked(service)} == set(service.pids("a", "b").values())
    assert "c is no longer configured" in service.output()


def test_a_model_that_shall_not_survive_ends_with_the_daemon(service: Service) -> None:
    service.install(QUICK + service.site.model("a") + service.site.model("b", survive=False))
    service.start()
    pids = service.load("a", "b")
    service.back(service.kill())
    assert service.pids("a") == {"a": pids["a"]}
    assert wait_until(lambda: not alive(pids["b"]))
    assert service.state("b") == "stopped"
    pids = service.load("a", "b")
    old = service.main_pid()
    service.manager.systemctl("restart", SERVICE)
    service.back(old)
    assert service.pids("a") == {"a": pids["a"]}
    assert not alive(pids["b"])


def test_a_model_that_died_while_no_daemon_ran_is_loaded_anew(service: Service) -> None:
    service.install(two_models(service), dropin=LONG_WAIT, socket=False)
    service.start()
    pids = service.load("a", "b")
    service.kill()
    service.manager.wait_for(SERVICE, SubState="auto-restart")
    service.manager.run(["kill", "-KILL", str(pids["a"])])
    assert wait_until(lambda: not alive(pids["a"]))
    service.manager.systemctl("start", SERVICE)
    assert service.chat("a").status == 200
    assert service.pids("b") == {"b": pids["b"]}
    assert service.status("a")["error"] is None
    assert service.site.spawns("a") == 2


def test_an_adopted_model_is_an_ordinary_one(service: Service) -> None:
    """Its crash is seen, its output is heard, its idle time ends it, it can be unloaded."""
    service.install(QUICK + service.site.model("a", idle_timeout=1.0) + service.site.model("b"))
    service.start()
    pids = service.load("a", "b")
    service.back(service.kill())
    service.wait_state("a", "stopped")
    assert not alive(pids["a"])
    service.manager.run(["kill", "-KILL", str(pids["b"])])
    service.wait_state("b", "stopped")
    assert "SIGKILL" in service.status("b")["error"]["message"]
    service.load("b")
    service.back(service.kill())
    assert service.events("unload?model=b")[-1]["event"] == "stopped"
    assert not service.files() - {"placeholder"}, service.leftovers()


def test_units_with_the_reaper_pass_systemd_analyze(user_manager: UserManager) -> None:
    for program in ("accelerd", "accelctl"):
        user_manager.script(user_manager.home / ".local/bin" / program, "#!/bin/sh\n")
    paths = [UNITS / name for name in (SERVICE, SOCKET, names.REAPER_UNIT)]
    done = user_manager.run(["systemd-analyze", "--user", "verify", *paths], check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_requests_that_wait_in_a_restart_are_served_by_the_next_daemon(service: Service) -> None:
    """Also those that already stream comments, and longer than the requests in flight may take."""
    model = service.site.model("a", "slow-token:100", {"FAKE_TOKENS": "30"}, parallel=1)
    service.install('keepalive_after = "50ms"\n' + QUICK + model)
    old = service.start()
    service.load("a")
    with side_by_side() as do:
        with streaming(service, "a") as running:
            assert running.readline().startswith(b"data: ")
            plain = [do(service.chat, "a") for _ in range(2)]
            with streaming(service, "a") as commented:
                assert commented.readline().startswith(b": waiting for a")
                eventually(lambda: service.status("a")["queue"] == 3, "they wait")
                service.manager.systemctl("restart", "--no-block", SERVICE)
                assert rest_of(running)[1], "who was being answered has the whole answer"
                service.back(old)
                text, complete = rest_of(commented)
        assert [request.result(60).status for request in plain] == [200, 200]
    assert (complete, sse(text)[-1]) == (True, "[DONE]")
    assert service.site.spawns() == 1, "the model stayed"
    assert "requests that wait for the next accelerd: 3" in service.output()
