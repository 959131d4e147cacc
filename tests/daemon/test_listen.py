"""Where accelerd listens under the real units and a real systemd --user: where the configuration says."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import socket
import sys
import threading
from collections.abc import Iterator

import pytest

from accelerd.config.model import ServerSettings
from tests.daemon.service import SERVICE, Service, installed
from tests.harness import eventually
from tests.ports import free_port
from tests.system.systemd_user import HTTP_SOCKET, SOCKET, UserManager

HOLD = """
import os, socket, sys
with socket.create_server(("127.0.0.1", int(sys.argv[1]))):
    print(os.getpid(), flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def service(user_manager: UserManager) -> Iterator[Service]:
    yield from installed(user_manager)


def listen(service: Service, *addresses: str, more: str = "") -> None:
    """Write the configuration."""
    text = f"[server]\nlisten = [{', '.join(repr(one) for one in addresses)}]\n{more}"
    service.manager.write(service.manager.home / ".config/accelerd/accelerd.toml", text)


def dropin(service: Service, text: str, unit: str = HTTP_SOCKET) -> None:
    """As the user's `systemctl --user edit` of a socket unit."""
    directory = service.manager.runtime_dir / "systemd/user" / f"{unit}.d"
    service.manager.write(directory / "override.conf", text)
    service.manager.systemctl("daemon-reload")


def status_at(port: int, key: str = "", host: str = "127.0.0.1") -> int | None:
    """HTTP status of the list of models there; None: nobody listens."""
    connection = http.client.HTTPConnection(host, port, timeout=20)
    try:
        connection.request("GET", "/v1/models", headers={"Authorization": f"Bearer {key}", "Host": "localhost"})
        return connection.getresponse().status
    except ConnectionRefusedError:
        return None
    finally:
        connection.close()


def listens(service: Service) -> str:
    """Where systemd listens for clients; "" while the unit is stopped."""
    seen = service.manager.properties(HTTP_SOCKET)
    return seen.get("Listen", "") if seen["ActiveState"] == "active" else ""


def test_another_port_is_opened_at_a_reload_and_held_by_systemd_after_a_restart(service: Service) -> None:
    service.install("")
    service.start()
    second = free_port()
    listen(service, f"127.0.0.1:{service.port}", f"[::1]:{service.port}", f"127.0.0.1:{second}")
    assert "server.listen: in effect now" in service.accelctl("reload")
    assert (status_at(service.port), status_at(second)) == (200, 200)
    assert service.status()["listen"] == [f"127.0.0.1:{service.port}", f"[::1]:{service.port}", f"127.0.0.1:{second}"]
    opened = [(one["address"], one["unit"], one["remote"], one["key"]) for one in service.status()["listeners"]]
    assert opened == [
        (f"127.0.0.1:{service.port}", HTTP_SOCKET, False, False),
        (f"[::1]:{service.port}", HTTP_SOCKET, False, False),
        (f"127.0.0.1:{second}", None, False, False),
    ]
    eventually(lambda: f"127.0.0.1:{second}" in service.manager.properties(HTTP_SOCKET)["Listen"], "systemd knows it")
    service.stop_all()
    assert (status_at(service.port), status_at(second)) == (None, None)
    service.start()
    assert f"127.0.0.1:{second}" in listens(service)
    assert (status_at(service.port), status_at(second)) == (200, 200)


@contextlib.contextmanager
def asking(port: int) -> Iterator[list[int | None]]:
    """A client that asks again and again: what it was answered, with None where it was refused."""
    answers: list[int | None] = []
    over = threading.Event()

    def ask() -> None:
        while not over.is_set():
            with contextlib.suppress(http.client.HTTPException, ConnectionResetError):  # accepted by who is ending
                answers.append(status_at(port))

    client = threading.Thread(target=ask)
    client.start()
    try:
        yield answers
    finally:
        over.set()
        client.join()


def restart_both_ways(service: Service, pid: int, answers: list[int | None]) -> None:
    for how in (["systemctl", "--user", "restart", SERVICE], ["kill", "-KILL"]):
        if how[0] == "kill":
            how = [*how, str(pid)]
        service.manager.run(how)
        pid = service.back(pid)
        count = len(answers)
        eventually(lambda count=count: len(answers) > count + 3, "it answers")


def test_no_connection_is_refused_at_a_port_that_was_opened_since(service: Service) -> None:
    service.install("")
    pid = service.start()
    second = free_port()
    listen(service, f"127.0.0.1:{service.port}", f"[::1]:{service.port}", f"127.0.0.1:{second}")
    service.accelctl("reload")
    with asking(second) as answers:
        restart_both_ways(service, pid, answers)
    assert set(answers) == {200}, answers
    listen(service, f"127.0.0.1:{service.port}", f"[::1]:{service.port}")
    service.accelctl("reload")
    assert (status_at(service.port), status_at(second)) == (200, None)
    service.manager.systemctl("restart", SERVICE)
    assert (status_at(service.port), status_at(second)) == (200, None)


def test_no_connection_is_refused_where_accelerd_goes_on_listening_when_another_address_is_closed(
    service: Service,
) -> None:
    """systemd can only close all that a unit has: the rest is stored until the unit has started again."""
    service.install("")
    pid = service.start()
    opened, own = free_port(), f"127.0.0.1:{service.port}"
    with asking(service.port) as answers:
        listen(service, own, f"127.0.0.1:{opened}")
        service.accelctl("reload")
        assert (status_at(opened), status_at(service.port, host="::1")) == (200, None)
        with asking(opened) as others:
            restart_both_ways(service, pid, others)
            assert f"127.0.0.1:{opened}" in listens(service), "the unit has started beside what was stored"
        listen(service, own)
        service.accelctl("reload")
        assert status_at(opened) is None
        restart_both_ways(service, service.status()["pid"], answers)
        assert status_at(opened) is None
    assert (set(answers), set(others)) == ({200}, {200}), (answers, others)
    assert own in listens(service)
    service.manager.systemctl("stop", SERVICE)
    assert status_at(service.port) == 200, "systemd starts it"


def test_an_address_that_is_taken_away_is_closed_in_systemd_too(service: Service) -> None:
    service.install("")
    pid = service.start()
    moved = free_port()
    listen(service, f"127.0.0.1:{moved}")
    service.manager.systemctl("reload", SERVICE)
    assert (status_at(service.port), status_at(service.port, host="::1"), status_at(moved)) == (None, None, 200)
    assert "warning" not in service.output(), "it is what somebody asked for"
    assert service.status()["listen"] == [f"127.0.0.1:{moved}"]
    service.manager.systemctl("restart", SERVICE)
    assert service.status()["pid"] != pid
    assert (status_at(service.port), status_at(moved)) == (None, 200)
    assert (listens(service).count(":"), str(moved) in listens(service)) == (1, True), listens(service)
    service.manager.systemctl("stop", SERVICE)  # the next connection starts it, at the new port
    assert (status_at(service.port), status_at(moved)) == (None, 200)


def test_what_a_dropin_of_the_socket_opens_to_others_is_not_served(service: Service) -> None:
    service.install("")
    exposed = free_port()
    dropin(service, f"[Socket]\nListenStream=0.0.0.0:{exposed}\n")
    for _ in range(2):
        service.manager.systemctl("start", *service.units)
        assert (status_at(service.port), status_at(exposed)) == (200, None)
        assert service.status()["listen"] == [f"127.0.0.1:{service.port}", f"[::1]:{service.port}"]
        said = f"warning  not listening on 0.0.0.0:{exposed}, which {HTTP_SOCKET} has opened: server.listen"
        assert said in service.output()
        service.stop_all()


def test_a_dropin_of_an_earlier_version_is_not_served_and_the_control_socket_stays(service: Service) -> None:
    """The one unit of 0.6 held both: systemd removes the file of the control socket when it is stopped."""
    service.install("")
    exposed = free_port()
    dropin(service, f"[Socket]\nListenStream=0.0.0.0:{exposed}\n", SOCKET)
    service.start()
    assert (status_at(service.port), status_at(exposed)) == (200, None)
    pid = service.status()["pid"]
    assert service.accelctl("status")
    service.manager.systemctl("restart", SERVICE)
    assert service.status()["pid"] != pid
    assert (status_at(service.port), status_at(exposed)) == (200, None)


def test_all_addresses_in_the_place_of_the_loopback_are_not_served(service: Service) -> None:
    """The same port: what is configured can be opened only when systemd has let go."""
    service.install("")
    dropin(service, f"[Socket]\nListenStream=\nListenStream=0.0.0.0:{service.port}\n")
    service.start()
    outside = outside_address()
    assert (status_at(service.port), status_at(service.port, host=outside)) == (200, None)


def outside_address() -> str:
    """An address of this machine that is not its loopback; without one the test has nothing to look at."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing
        except OSError:
            pytest.skip("this machine has no address beside its loopback")
        return str(probe.getsockname()[0])


def test_a_unix_socket_that_a_dropin_adds_is_not_served(service: Service) -> None:
    """It would need no key, and its mode may let in anybody."""
    service.install("")
    dropin(service, f"[Socket]\nListenStream={service.manager.home}/extra.sock\nSocketMode=0666\n")
    service.start()
    assert status_at(service.port) == 200
    assert f"{service.manager.home}/extra.sock of {HTTP_SOCKET} is not served" in service.output()


def test_a_key_goes_with_an_address_that_others_can_reach(service: Service) -> None:
    service.install("")
    service.start()
    exposed = free_port()
    keys = service.manager.write(service.manager.home / "keys", "secret\n")
    own = f"127.0.0.1:{service.port}"
    listen(service, own, f"0.0.0.0:{exposed}", more=f'key_file = "{keys}"\n')
    service.accelctl("reload")
    assert (status_at(exposed), status_at(exposed, "secret"), status_at(service.port)) == (401, 200, 401)
    assert [(one["remote"], one["key"]) for one in service.status()["listeners"]] == [(False, True), (True, True)]
    kept = http.client.HTTPConnection("127.0.0.1", exposed, timeout=20)
    kept.request("GET", "/v1/models", headers={"Authorization": "Bearer secret", "Host": "localhost"})
    assert kept.getresponse().read()
    listen(service, own)
    service.accelctl("reload")
    assert (status_at(exposed), status_at(service.port)) == (None, 200)
    with pytest.raises((http.client.HTTPException, OSError)):  # nobody goes on without the key that was needed
        ask_again(kept)
    kept.close()


def ask_again(connection: http.client.HTTPConnection) -> None:
    """Twice: the first request may be sent before it is known that the other side has closed."""
    for _ in range(2):
        connection.request("GET", "/v1/models", headers={"Host": "localhost"})
        connection.getresponse().read()


def test_a_reload_to_a_port_in_use_changes_nothing_and_names_the_holder(service: Service) -> None:
    service.install("")
    pid = service.start()
    busy = free_port()
    held = service.manager.popen([sys.executable, "-c", HOLD, str(busy)], stdin=-1, stdout=-1)
    try:
        assert held.stdout is not None
        holder = int(held.stdout.readline())
        listen(service, f"127.0.0.1:{busy}")
        done = service.manager.run([service.manager.home / ".local/bin/accelctl", "reload"], check=False)
        assert done.returncode != 0
        assert re.search(rf"cannot listen on 127\.0\.0\.1:{busy}: python\S* \(pid {holder}\)", done.stderr)
        assert status_at(service.port) == 200
        status = service.status()
        assert status["listen"] == [f"127.0.0.1:{service.port}", f"[::1]:{service.port}"]
        assert status["pid"] == pid
        assert status["config"]["in_use"] is False
        said = f"the configuration on disk is not in use: accelerd.toml: server: cannot listen on 127.0.0.1:{busy}: "
        assert status["status"].startswith(said)
        listen(service, f"127.0.0.1:{service.port}", f"[::1]:{service.port}")
        service.accelctl("reload")
        assert service.status()["config"]["in_use"] is True
        assert "not in use" not in service.status()["status"]
    finally:
        held.communicate()


def test_a_restart_to_a_port_in_use_ends_no_model_and_listens_when_it_is_free(service: Service) -> None:
    service.install(service.site.model("m"))
    old = service.start()
    pid = service.load("m")["m"]
    busy = free_port()
    held = service.manager.popen([sys.executable, "-c", HOLD, str(busy)], stdin=-1, stdout=-1)
    try:
        assert held.stdout is not None
        holder = int(held.stdout.readline())
        listen(service, f"127.0.0.1:{busy}", more=service.site.model("m"))
        service.manager.systemctl("restart", SERVICE)
        service.back(old)
        assert (service.pids("m")["m"], service.status()["listen"]) == (pid, [])
        problem = rf"cannot listen on 127\.0\.0\.1:{busy}: python\S* \(pid {holder}\) uses the port"
        said = service.accelctl("status")
        assert re.match(rf"! {problem}.*; accelerd tries again", " ".join(said.split()))
        assert re.match(problem, service.manager.properties(SERVICE)["StatusText"])
    finally:
        held.communicate()
    eventually(lambda: status_at(busy) == 200, "it listens")
    assert service.pids("m")["m"] == pid
    assert "cannot listen" not in service.accelctl("status")


def test_a_daemon_that_is_no_service_writes_no_units(service: Service) -> None:
    service.install("", socket=False)
    other = free_port()
    listen(service, f"127.0.0.1:{other}")
    program = service.manager.popen([service.manager.home / ".local/bin/accelerd"], stdin=-1, stdout=-1, stderr=-1)
    try:
        eventually(lambda: status_at(other) == 200, "it serves")
        assert not (service.manager.home / ".local/share/systemd/user" / f"{HTTP_SOCKET}.d").exists()
    finally:
        program.terminate()
        program.communicate(timeout=20)


def test_the_installer_can_have_the_unit_written_before_anything_listens(service: Service) -> None:
    service.install("")
    moved = free_port()
    listen(service, f"127.0.0.1:{moved}")
    service.manager.run([service.manager.home / ".local/bin/accelerd", "--write-socket-unit"])
    service.manager.systemctl("daemon-reload")
    service.manager.systemctl("start", *service.units)
    assert str(moved) in listens(service)
    assert (status_at(service.port), status_at(moved)) == (None, 200)
    assert "listening on" not in service.output()
    listen(service, *ServerSettings().listen)
    service.manager.run([service.manager.home / ".local/bin/accelerd", "--write-socket-unit"])
    written = service.manager.home / ".local/share/systemd/user" / f"{HTTP_SOCKET}.d"
    assert os.listdir(written) == [], "the unit says it by itself"
