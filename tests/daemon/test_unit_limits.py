"""The limits of the unit and accelerd's own: how long a stop may take, and how often there may be a start."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator

import pytest

from accelerd.base import names
from tests.daemon.kit import rest_of, side_by_side, sse
from tests.daemon.service import SERVICE, SOCKET, Service, installed
from tests.harness import eventually, first_event, streaming
from tests.system.systemd_user import UserManager

HOLD = """
import fcntl, os, sys
os.makedirs(os.path.dirname(sys.argv[1]), 0o700, exist_ok=True)
with open(sys.argv[1], "w") as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    print(os.getpid(), file=file, flush=True)
    print(os.getpid(), flush=True)
    sys.stdin.read()
"""
SLOW = {"FAKE_TOKENS": "60", "FAKE_DELAY_MS": "50"}


@pytest.fixture
def service(user_manager: UserManager) -> Iterator[Service]:
    yield from installed(user_manager)


def test_a_drain_may_last_longer_than_the_unit_says(service: Service) -> None:
    service.install(service.site.model("m", "ok", SLOW), dropin="[Service]\nTimeoutStopSec=2")
    service.start()
    with streaming(service, "m") as response, side_by_side() as do:
        assert first_event(response).startswith(b"data: ")
        stopping = do(service.manager.systemctl, "stop", SOCKET, SERVICE)
        text, complete = rest_of(response)
        assert (complete, sse(text)[-1]) == (True, "[DONE]")
        stopping.result(30)
    seen = service.manager.properties(SERVICE)
    assert (seen["ActiveState"], seen["Result"], seen["ExecMainStatus"]) == ("inactive", "success", "0")


def test_a_daemon_that_ends_by_a_bug_of_its_own_lets_requests_end(service: Service) -> None:
    service.install(service.site.model("m", "ok", {"FAKE_TOKENS": "20", "FAKE_DELAY_MS": "50"}))
    service.program(f"exec {sys.executable} -m tests.daemon.broken_daemon")
    pid = service.start()
    with streaming(service, "m") as response, side_by_side() as do:
        assert first_event(response).startswith(b"data: ")
        reload = do(service.manager.run, [service.manager.home / ".local/bin/accelctl", "reload"], check=False)
        text, complete = rest_of(response)
        assert (complete, sse(text)[-1]) == (True, "[DONE]")
        assert reload.result(30).returncode != 0
    service.back(pid)
    assert "this part is broken on purpose" in service.output()


def test_why_it_could_not_start_is_said_by_accelctl(service: Service) -> None:
    service.install("", dropin="[Service]\nRestartSec=50ms")
    lock = service.manager.runtime_dir / names.RUNTIME_DIR / names.LOCK_FILE
    held = service.manager.popen([sys.executable, "-c", HOLD, lock], stdin=-1, stdout=-1)
    try:
        assert held.stdout is not None
        holder = int(held.stdout.readline())
        service.manager.systemctl("start", *service.units, check=False)
        service.manager.wait_for(SERVICE, ActiveState="failed")
        said = service.manager.run([service.manager.home / ".local/bin/accelctl", "status"], check=False).stderr
        cause = rf"another accelerd \(pid {holder}\) already runs for this user"
        assert re.search(rf"accelerd has failed to start, last at \d\d:\d\d: {cause}", said)
    finally:
        held.communicate()
    service.manager.systemctl("reset-failed", SERVICE, SOCKET)
    service.start()
    assert service.chat("nothing").status == 404


def test_restarts_that_somebody_asks_for_do_not_count_as_crashes(service: Service) -> None:
    limit = "[Unit]\nStartLimitIntervalSec=300\nStartLimitBurst=3\n[Service]\nRestartSec=50ms"
    service.install(service.site.model("m"), dropin=limit)
    service.start()
    for _ in range(5):
        service.manager.systemctl("restart", SERVICE)
    assert service.chat("m").status == 200
    pid = service.main_pid()
    for _ in range(2):
        service.kill()
        pid = service.back(pid)
    service.kill()
    service.manager.wait_for(SERVICE, ActiveState="failed")
    eventually(service.reaped, "the reaper is through")
    said = service.manager.run([service.manager.home / ".local/bin/accelctl", "status"], check=False).stderr
    assert "systemctl --user reset-failed accelerd.service accelerd.socket" in said
    hint = "systemctl --user reset-failed accelerd.service accelerd.socket && systemctl --user restart accelerd.socket"
    assert hint in said
    service.manager.run(["sh", "-c", hint])
    assert service.chat("m").status == 200
