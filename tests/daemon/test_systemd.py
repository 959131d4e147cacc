"""The real daemon under the real units and a real systemd --user: start, restart, reload, stop, crash, hang."""

from __future__ import annotations

import contextlib
import http.client
import json
import sys
import threading
from collections import Counter
from typing import Any, cast

import psutil
import pytest

from tests.daemon.kit import QUICK, Site, alive, marked, rest_of, side_by_side, sse
from tests.harness import ROOT, Daemon, eventually, first_event, streaming
from tests.ports import free_port
from tests.system.systemd_user import SOCKET, UserManager

UNITS = ROOT / "units" / "user"
SERVICE = "accelerd.service"
PROGRAMS = {"accelerd": "-m accelerd", "accelctl": "-c 'import sys; from accelerd.cli import main; sys.exit(main())'"}
STREAM = {"FAKE_TOKENS": "60", "FAKE_DELAY_MS": "20"}


class Deployed:
    """Our units with this checkout's programs, fake models, and a port of the test."""

    def __init__(self, manager: UserManager) -> None:
        self.manager = manager
        self.site = Site(manager.directory(manager.base / "site"))
        config = manager.home / ".config" / "accelerd" / "accelerd.toml"
        env = {"XDG_RUNTIME_DIR": str(manager.runtime_dir), "TEST_PREAMBLE": ""}
        nothing = cast(Any, None)  # its process belongs to systemd
        self.daemon = Daemon(nothing, free_port(), config, env, manager.logs / "unused", nothing)

    def install(self, *, dropin: str = "[Service]\nRestartSec=100ms") -> None:
        for name, arguments in PROGRAMS.items():
            command = f'#!/bin/sh\nexec {sys.executable} {arguments} "$@"\n'
            self.manager.script(self.manager.home / ".local/bin" / name, command)
        self.manager.install(SERVICE, (UNITS / SERVICE).read_text(), dropin=dropin)
        self.manager.install_sockets(self.daemon.port)

    def configure(self, toml: str) -> None:
        listen = f'[server]\nlisten = ["127.0.0.1:{self.daemon.port}", "[::1]:{self.daemon.port}"]\n'
        self.manager.write(self.daemon.config, listen + QUICK + toml)

    def start(self) -> int:
        self.manager.systemctl("start", SERVICE)
        return self.pid()

    def pid(self) -> int:
        return int(self.manager.properties(SERVICE)["MainPID"])


@pytest.fixture
def deployed(user_manager: UserManager) -> Deployed:
    return Deployed(user_manager)


def test_the_first_connection_starts_the_service_and_is_answered(deployed: Deployed) -> None:
    deployed.install()
    deployed.configure(deployed.site.model("m", prompt_cache=0))
    manager, daemon = deployed.manager, deployed.daemon
    manager.systemctl("start", SOCKET)
    assert manager.properties(SERVICE)["ActiveState"] == "inactive"
    assert daemon.chat("m").status == 200
    seen = manager.wait_for(SERVICE, ActiveState="active", StatusText="1 of 1 models loaded: m; 48.0 MiB reserved")
    assert (seen["Type"], seen["NRestarts"]) == ("notify", "0")
    assert daemon.status()["pid"] == int(seen["MainPID"])
    assert daemon.status()["listen"] == [f"127.0.0.1:{daemon.port}", f"[::1]:{daemon.port}"]
    over_six = http.client.HTTPConnection("::1", daemon.port, timeout=20)
    with contextlib.closing(over_six):
        over_six.request("GET", "/health")
        assert over_six.getresponse().read() == b'{"status":"ok"}\n'


def test_stop_lets_a_stream_end_and_leaves_no_process(deployed: Deployed) -> None:
    deployed.install()
    deployed.configure(deployed.site.model("m", "ok", STREAM) + deployed.site.model("family", "setsid-grandchild"))
    daemon, manager = deployed.daemon, deployed.manager
    pid = deployed.start()
    assert daemon.chat("family").status == 200
    with streaming(daemon, "m") as response, side_by_side() as do:
        assert first_event(response).startswith(b"data: ")
        stopping = do(manager.systemctl, "stop", SOCKET, SERVICE)
        text, complete = rest_of(response)
        assert (complete, sse(text)[-1]) == (True, "[DONE]")
        stopping.result(30)
    seen = manager.properties(SERVICE)
    assert (seen["ActiveState"], seen["Result"], seen["ExecMainStatus"]) == ("inactive", "success", "0")
    assert not alive(pid)
    assert marked(daemon) == []
    with pytest.raises(ConnectionRefusedError):
        daemon.send("GET", "/health")
    assert not daemon.control_socket.exists()


def test_restart_under_a_loop_of_requests_refuses_none(deployed: Deployed) -> None:
    deployed.install()
    deployed.configure(deployed.site.model("m", "ok", {"FAKE_TOKENS": "10", "FAKE_DELAY_MS": "5"}, preload=True))
    daemon, manager = deployed.daemon, deployed.manager
    manager.systemctl("start", SOCKET, SERVICE)
    counts: Counter[str] = Counter()
    over = threading.Event()

    def ask(stream: bool) -> None:
        while not over.is_set():
            try:
                counts[_outcome_of_stream(daemon) if stream else _outcome(daemon)] += 1
            except (OSError, http.client.HTTPException) as error:
                counts[f"REFUSED {type(error).__name__}"] += 1

    with side_by_side() as do:
        clients = [do(ask, number % 2 == 0) for number in range(4)]
        pids = {deployed.pid()}
        try:
            for restart in range(3):
                enough = counts.total() + 20
                eventually(lambda enough=enough: counts.total() > enough, f"requests flow before restart {restart}")
                manager.systemctl("restart", SERVICE)
                pids.add(deployed.pid())
                assert daemon.status()["pid"] == deployed.pid()  # the control socket is there as before
            enough = counts["200"] + 5
            eventually(lambda: counts["200"] > enough, "requests flow after the last restart")
        finally:
            over.set()
        for client in clients:
            client.result(30)
    print(f"over {len(pids) - 1} restarts: {dict(counts)}")
    assert len(pids) == 4
    assert [what for what in counts if what.startswith("REFUSED")] == []
    assert set(counts) <= {"200", "whole stream", "503 shutting_down", "stream: shutting_down"}
    eventually(lambda: len(marked(daemon)) == 1, "one engine, of the last daemon")


def _outcome(daemon: Daemon) -> str:
    answer = daemon.chat("m")
    return "200" if answer.status == 200 else f"{answer.status} {answer.code}"


def _outcome_of_stream(daemon: Daemon) -> str:
    with streaming(daemon, "m") as response:
        text, complete = rest_of(response)
        if response.status != 200:
            return f"{response.status} {json.loads(text)['error']['code']}"
        last = sse(text)[-1]
        return "whole stream" if complete and last == "[DONE]" else f"stream: {last['error']['code']}"


def test_reload_keeps_streams_and_a_broken_file_fails_the_job(deployed: Deployed) -> None:
    deployed.install()
    deployed.configure(deployed.site.model("m", "ok", STREAM))
    daemon, manager = deployed.daemon, deployed.manager
    pid = deployed.start()
    with streaming(daemon, "m") as response:
        assert first_event(response).startswith(b"data: ")
        engine = daemon.status("m")["pid"]
        deployed.configure(deployed.site.model("m", "ok", STREAM) + deployed.site.model("new"))
        manager.systemctl("reload", SERVICE)
        assert {m["name"] for m in daemon.status()["models"]} == {"m", "new"}
        deployed.configure('[models.m]\npath = "x\n')
        refused = manager.systemctl("reload", SERVICE, check=False)
        assert refused.returncode != 0
        manager.wait_for(SERVICE, ActiveState="active", SubState="running")
        assert "accelerd.toml:" in manager.output(SERVICE)
        text, complete = rest_of(response)
    assert (complete, sse(text)[-1]) == (True, "[DONE]")
    assert (deployed.pid(), daemon.status("m")["pid"]) == (pid, engine)
    assert daemon.chat("new").status == 200


def test_what_shall_not_survive_ends_with_a_killed_daemon(deployed: Deployed) -> None:
    deployed.install()
    deployed.configure(
        deployed.site.model("m", survive=False)
        + deployed.site.model("family", "setsid-grandchild", survive=False)
        + deployed.site.model("w", "fork-wrapper", survive=False)
    )
    daemon, manager = deployed.daemon, deployed.manager
    old = deployed.start()
    for name in ("m", "family", "w"):
        assert daemon.chat(name, max_tokens=1).status == 200
    left = [process.pid for process in marked(daemon)]
    assert len(left) == 5
    manager.run(["kill", "-KILL", str(old)])
    answer = daemon.chat("m", max_tokens=1)  # waits at the socket until the next daemon serves
    assert answer.status == 200
    seen = manager.wait_for(SERVICE, ActiveState="active", NRestarts="1")
    assert int(seen["MainPID"]) not in (0, old)
    assert [pid for pid in left if alive(pid)] == []
    assert [process.pid for process in marked(daemon)] == [daemon.status("m")["pid"]]


def test_a_daemon_that_hangs_is_restarted_by_the_watchdog(deployed: Deployed) -> None:
    deployed.install(dropin="[Service]\nRestartSec=100ms\nWatchdogSec=2")
    deployed.configure(deployed.site.model("m"))
    daemon, manager = deployed.daemon, deployed.manager
    old = deployed.start()
    assert daemon.chat("m").status == 200
    engine = daemon.status("m")["pid"]
    psutil.Process(old).suspend()
    seen = manager.wait_for(SERVICE, ActiveState="active", NRestarts="1")
    assert int(seen["MainPID"]) not in (0, old)
    assert daemon.chat("m").status == 200
    assert daemon.status("m")["pid"] == engine
    assert deployed.pid() == int(seen["MainPID"])


def test_an_engine_that_is_killed_does_not_take_the_service_along(deployed: Deployed) -> None:
    deployed.install()
    deployed.configure(deployed.site.model("m") + deployed.site.model("other"))
    daemon, manager = deployed.daemon, deployed.manager
    pid = deployed.start()
    for name in ("m", "other"):
        assert daemon.chat(name).status == 200
    other = daemon.status("other")["pid"]
    psutil.Process(daemon.status("m")["pid"]).kill()
    daemon.wait_state("m", "stopped")
    seen = manager.properties(SERVICE)
    assert (seen["ActiveState"], seen["SubState"], int(seen["MainPID"])) == ("active", "running", pid)
    assert daemon.status("other")["pid"] == other
    assert daemon.chat("m").status == 200


def test_a_second_instance_beside_the_service_is_refused(deployed: Deployed) -> None:
    deployed.install()
    deployed.configure(deployed.site.model("m"))
    pid = deployed.start()
    second = deployed.manager.run([deployed.manager.home / ".local/bin/accelerd"], check=False)
    assert second.returncode == 1
    assert f"another accelerd (pid {pid}) already runs for this user" in second.stderr
    assert deployed.daemon.chat("m").status == 200


def test_a_wrong_configuration_is_not_tried_again_and_again(deployed: Deployed) -> None:
    deployed.install()
    deployed.configure("[servr]\n")
    assert deployed.manager.systemctl("start", SERVICE, check=False).returncode != 0
    seen = deployed.manager.wait_for(SERVICE, ActiveState="failed")
    assert (seen["NRestarts"], seen["ExecMainStatus"]) == ("0", "78")
    assert "did you mean" in deployed.manager.output(SERVICE)
