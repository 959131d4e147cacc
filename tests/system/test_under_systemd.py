"""The shipped units and the system room together, under a real systemd --user."""

from __future__ import annotations

import http.client
import json
import re
import sys
import threading

import pytest

from tests.ports import free_port
from tests.system.systemd_user import HTTP_SOCKET, REPO, SOCKET, UserManager, wait_until

UNITS = REPO / "units/user"
SERVICE = "accelerd.service"


class Deployed:
    """Our two units, with the stand-in in the daemon's place and a port of the test."""

    def __init__(self, manager: UserManager) -> None:
        self.manager = manager
        self.port = free_port()

    def install(self, *, arguments: str = "", dropin: str = "", socket: bool = True) -> None:
        command = f"#!/bin/sh\nexec {sys.executable} -m tests.system.standin {arguments}\n"
        self.manager.script(self.manager.home / ".local/bin/accelerd", command)
        self.manager.script(self.manager.home / ".local/bin/accelctl", '#!/bin/sh\nkill -HUP "$MAINPID"\n')
        self.manager.install(SERVICE, (UNITS / SERVICE).read_text(), dropin=dropin)
        if socket:
            self.manager.install_sockets(self.port)

    def get(self, path: str = "/", host: str = "127.0.0.1") -> dict[str, object]:
        connection = http.client.HTTPConnection(host, self.port, timeout=20)
        try:
            connection.request("GET", path)
            return dict(json.loads(connection.getresponse().read()))
        finally:
            connection.close()

    def main_pid(self) -> int:
        return int(self.manager.properties(SERVICE)["MainPID"])

    def start(self) -> int:
        self.manager.systemctl("start", SERVICE)
        return self.main_pid()


@pytest.fixture
def deployed(user_manager: UserManager) -> Deployed:
    return Deployed(user_manager)


def test_units_pass_systemd_analyze_without_a_warning(user_manager: UserManager) -> None:
    for program in ("accelerd", "accelctl"):
        user_manager.script(user_manager.home / ".local/bin" / program, "#!/bin/sh\n")
    done = user_manager.run(
        ["systemd-analyze", "--user", "verify", *(UNITS / unit for unit in (SERVICE, SOCKET, HTTP_SOCKET))], check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_loaded_unit_bounds_the_number_of_tasks(deployed: Deployed) -> None:
    deployed.install()
    deployed.start()
    seen = deployed.manager.properties(SERVICE)
    assert seen["TasksMax"] == "4096"
    assert seen["OOMPolicy"] == "continue"
    assert seen["KillMode"] == "mixed"


def test_the_service_runs_on_the_sockets_of_the_socket_unit(deployed: Deployed) -> None:
    deployed.install()
    pid = deployed.start()
    assert deployed.manager.properties(SERVICE)["StatusText"] == "serving 3 sockets"
    for host in ("127.0.0.1", "::1"):
        assert deployed.get(host=host)["pid"] == pid
    control = deployed.manager.runtime_dir / "accelerd/accelerd.sock"
    assert control.stat().st_mode & 0o777 == 0o600
    assert control.parent.stat().st_mode & 0o777 == 0o700


def test_the_first_connection_starts_the_service(deployed: Deployed) -> None:
    deployed.install()
    deployed.manager.systemctl("start", SOCKET)
    assert deployed.manager.properties(SERVICE)["ActiveState"] == "inactive"
    assert deployed.get()["pid"] == deployed.main_pid()


def test_what_the_service_inherits(deployed: Deployed) -> None:
    deployed.install()
    deployed.start()
    seen = deployed.get()
    assert not {"NOTIFY_SOCKET", "WATCHDOG_USEC", "LISTEN_FDS", "LISTEN_PID"} & set(seen["env"])  # type: ignore[call-overload]
    assert (seen["umask"], seen["core"], seen["watchdog"]) == ("077", 0, 30.0)
    assert not seen["no_new_privs"], "rootless podman needs the setuid newuidmap"


def test_a_hung_loop_is_restarted_by_the_watchdog(deployed: Deployed) -> None:
    deployed.install(dropin="[Service]\nWatchdogSec=2\nRestartSec=100ms")
    pid = deployed.start()
    with pytest.raises((OSError, http.client.HTTPException)):
        deployed.get("/hang")
    seen = deployed.manager.wait_for(SERVICE, ActiveState="active", NRestarts="1")
    assert int(seen["MainPID"]) not in (0, pid)
    assert deployed.get()["pid"] == int(seen["MainPID"])


def test_a_healthy_service_feeds_the_watchdog(deployed: Deployed) -> None:
    deployed.install(dropin="[Service]\nWatchdogSec=2")
    pid = deployed.start()
    first = fed = deployed.manager.properties(SERVICE)["WatchdogTimestampMonotonic"]
    for _ in range(2):
        last = fed
        assert wait_until(lambda last=last: deployed.manager.properties(SERVICE)["WatchdogTimestampMonotonic"] != last)
        fed = deployed.manager.properties(SERVICE)["WatchdogTimestampMonotonic"]
    assert int(fed) > int(first)
    assert deployed.main_pid() == pid


def test_a_crash_loop_ends_in_failed_and_reset_failed_revives(deployed: Deployed) -> None:
    deployed.install(arguments="--exit 1", dropin="[Service]\nRestartSec=50ms")
    deployed.manager.systemctl("start", SERVICE, check=False)
    seen = deployed.manager.wait_for(SERVICE, ActiveState="failed")
    assert seen["NRestarts"] == "5"
    deployed.install()
    deployed.manager.systemctl("reset-failed", SERVICE)
    deployed.start()
    assert deployed.manager.properties(SERVICE)["ActiveState"] == "active"


def test_a_wrong_configuration_is_not_tried_again(deployed: Deployed) -> None:
    deployed.install(arguments="--exit 78", dropin="[Service]\nRestartSec=50ms")
    deployed.manager.systemctl("start", SERVICE, check=False)
    seen = deployed.manager.wait_for(SERVICE, ActiveState="failed")
    assert (seen["NRestarts"], seen["ExecMainStatus"]) == ("0", "78")


def test_reload_is_a_reloading_and_ready_pair(deployed: Deployed) -> None:
    deployed.install()
    pid = deployed.start()
    deployed.manager.systemctl("reload", SERVICE)
    seen = deployed.manager.wait_for(SERVICE, ActiveState="active", StatusText="reloaded 1 times")
    assert int(seen["MainPID"]) == pid


@pytest.mark.parametrize("how", ["restart", "crash"])
def test_no_connection_is_refused_while_the_service_comes_back(deployed: Deployed, how: str) -> None:
    deployed.install(dropin="[Service]\nRestartSec=50ms\n[Unit]\nStartLimitBurst=50")
    pids = {deployed.start()}
    socket_since = deployed.manager.properties(HTTP_SOCKET)["ActiveEnterTimestampMonotonic"]
    refused, answers, over = [], [], threading.Event()

    def ask() -> None:
        while not over.is_set():
            try:
                answers.append(deployed.get()["pid"])
            except ConnectionRefusedError as error:
                refused.append(error)
            except (OSError, http.client.HTTPException):
                continue  # accepted by the process that was ending: allowed to fail, not to be refused

    clients = [threading.Thread(target=ask) for _ in range(3)]
    for client in clients:
        client.start()
    try:
        for _ in range(3):
            old = deployed.main_pid()
            if how == "restart":
                deployed.manager.systemctl("restart", SERVICE)
            else:
                deployed.manager.run(["kill", "-KILL", str(old)])
            assert wait_until(lambda old=old: deployed.main_pid() not in (0, old))
            new = deployed.main_pid()
            assert wait_until(lambda new=new: new in answers), deployed.manager.output(SERVICE)
            pids.add(new)
    finally:
        over.set()
        for client in clients:
            client.join()
    assert refused == []
    assert len(pids) == 4
    assert deployed.manager.properties(HTTP_SOCKET)["ActiveEnterTimestampMonotonic"] == socket_since


def test_stop_of_both_units_means_off_until_the_next_start(deployed: Deployed) -> None:
    deployed.install()
    deployed.start()
    control = deployed.manager.runtime_dir / "accelerd/accelerd.sock"
    deployed.manager.systemctl("stop", SOCKET, SERVICE)
    with pytest.raises(ConnectionRefusedError):
        deployed.get()
    assert not control.exists()
    assert deployed.manager.properties(SERVICE)["Result"] == "success"
    pid = deployed.start()
    assert deployed.get()["pid"] == pid


def test_the_socket_unit_starts_on_a_machine_without_the_ipv6_loopback(deployed: Deployed) -> None:
    # A documentation address is as absent as ::1 is with net.ipv6.conf.lo.disable_ipv6=1: EADDRNOTAVAIL either way.
    deployed.install()
    text = (UNITS / HTTP_SOCKET).read_text().replace(":4000", f":{deployed.port}").replace("[::1]", "[2001:db8::1]")
    deployed.manager.install(HTTP_SOCKET, text)
    deployed.start()
    assert deployed.manager.properties(HTTP_SOCKET)["ActiveState"] == "active"
    assert deployed.get()["pid"] == deployed.main_pid()
    deployed.manager.systemctl("stop", SOCKET, SERVICE)
    deployed.manager.install(HTTP_SOCKET, text.replace("FreeBind=yes", ""))
    assert deployed.manager.systemctl("start", HTTP_SOCKET, check=False).returncode != 0


def test_a_busy_port_fails_the_start_with_the_holder_in_the_text(deployed: Deployed) -> None:
    held = deployed.manager.popen([sys.executable, "-c", HOLD, str(deployed.port)], stdin=-1, stdout=-1)
    try:
        assert held.stdout is not None
        pid = int(held.stdout.readline())
        deployed.install(
            arguments=f"--listen 127.0.0.1:{deployed.port} --listen [::1]:{deployed.port}",
            dropin="[Service]\nRestartSec=50ms",
        )
        assert deployed.manager.systemctl("start", SERVICE, check=False).returncode != 0
        deployed.manager.wait_for(SERVICE, ActiveState="failed")
        output = deployed.manager.output(SERVICE)
        assert re.search(rf"cannot listen on \[::1\]:{deployed.port}: python\S* \(pid {pid}\) uses the port", output)
        assert "READY" not in output
    finally:
        held.communicate()


HOLD = """
import os, socket, sys
with socket.create_server(("::1", int(sys.argv[1])), family=socket.AF_INET6):
    print(os.getpid(), flush=True)
    sys.stdin.read()
"""


def test_a_second_instance_ends_with_the_pid_of_the_first(deployed: Deployed) -> None:
    deployed.install()
    pid = deployed.start()
    second = deployed.manager.run(
        [deployed.manager.home / ".local/bin/accelerd", "--listen", "127.0.0.1:0"], check=False
    )
    assert second.returncode == 1
    assert f"another accelerd (pid {pid}) already runs" in second.stderr
    assert deployed.get()["pid"] == pid
