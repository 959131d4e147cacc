"""One daemon per user and port, whatever an earlier one left behind; and no wall clock in what it decides."""

from __future__ import annotations

import ast
import http.client
import os
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

import accelerd
from tests.daemon.kit import QUICK, Site, alive, marked, rest_of, sse
from tests.harness import DaemonFactory, eventually, first_event, streaming
from tests.ports import free_port

SLOW = {"FAKE_TOKENS": "60", "FAKE_DELAY_MS": "20"}
PACKAGE = Path(accelerd.__file__).parent


def run_accelerd(env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """An accelerd that is not expected to stay."""
    command = [sys.executable, "-m", "accelerd"]
    return subprocess.run(command, env=env, cwd=env["HOME"], capture_output=True, text=True, timeout=20)


def test_a_second_instance_ends_and_disturbs_nothing(daemons: DaemonFactory, site: Site) -> None:
    daemon = daemons.start(site.model("m", "ok", SLOW))
    with streaming(daemon, "m") as response:
        assert first_event(response).startswith(b"data: ")
        second = run_accelerd(daemon.env)
        assert second.returncode == 1
        assert f"another accelerd (pid {daemon.process.pid}) already runs for this user" in second.stderr
        assert "Traceback" not in second.stderr
        text, complete = rest_of(response)
    assert complete
    assert sse(text)[-1] == "[DONE]"
    assert daemon.chat("m", max_tokens=1).status == 200
    assert daemon.control("GET", "status").status == 200
    assert site.spawns() == 1


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_busy_port_is_said_first_and_had_when_it_is_free(
    daemons: DaemonFactory, site: Site, tmp_path: Path, host: str
) -> None:
    """All that is not about the port works meanwhile: the other addresses, the control socket, a reload."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    own, model = free_port(), site.model("m", preload=True)
    with socket.create_server((host, 0), family=family) as held, socket.create_server(("127.0.0.1", 0)) as other:
        busy = f"[{host}]:{held.getsockname()[1]}".replace("[127.0.0.1]", "127.0.0.1")
        problem = f"cannot listen on {busy}: {psutil.Process().name()} (pid {os.getpid()}) uses the port"
        dropin = tmp_path / "config/accelerd/accelerd.toml.d/listen.toml"
        dropin.parent.mkdir(parents=True)
        dropin.write_text(f'[server]\nlisten = ["127.0.0.1:{own}", "{busy}"]\n')
        daemon = daemons.start(model, port=own, env={"XDG_CONFIG_HOME": str(tmp_path / "config")})
        assert problem in daemon.output()
        daemon.wait_state("m", "ready")
        assert daemon.chat("m").status == 200
        status = daemon.status()
        assert status["status"].startswith(problem)
        assert status["config"]["in_use"]
        assert status["listen"] == [f"127.0.0.1:{own}"]
        assert [one["address"] for one in status["listeners"] if one["problem"]] == [busy]
        daemon.configure(model + site.model("n"))
        assert daemon.control("POST", "reload").json()["added"] == ["n"]
        newly = f"127.0.0.1:{other.getsockname()[1]}"
        dropin.write_text(f'[server]\nlisten = ["127.0.0.1:{own}", "{busy}", "{newly}"]\n')
        assert f"cannot listen on {newly}" in daemon.control("POST", "reload").json()["error"]["message"]
        dropin.write_text(f'[server]\nlisten = ["127.0.0.1:{own}", "{busy}"]\n')
        assert daemon.control("POST", "reload").status == 200
    eventually(lambda: daemon.status()["listen"] == [f"127.0.0.1:{own}", busy], "it is had")
    assert daemon.status()["status"].startswith("1 of 2 models loaded")
    assert not any(one["problem"] for one in daemon.status()["listeners"])
    connection = http.client.HTTPConnection(host, int(busy.rpartition(":")[2]), timeout=20)
    connection.request("GET", "/health", headers={"Host": "localhost"})
    assert connection.getresponse().status == 200
    connection.close()


def test_without_any_address_the_control_socket_is_served(daemons: DaemonFactory, site: Site) -> None:
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
        daemon = daemons.start(site.model("m"), port=port)
        assert "serves its control socket only" in daemon.output()
        assert daemon.events("load?model=m")[-1]["event"] == "ready"
    eventually(lambda: daemon.status()["listen"] == [f"127.0.0.1:{port}"], "it is had")
    assert daemon.chat("m").status == 200


def test_after_sigkill_the_next_daemon_takes_the_stale_socket_and_no_engine_is_left(
    daemons: DaemonFactory, site: Site
) -> None:
    first = daemons.start(QUICK + site.model("m", "fork-wrapper"))
    assert first.chat("m").status == 200
    wrapper, server = sorted(process.pid for process in first.children())
    os.kill(first.process.pid, signal.SIGKILL)
    first.process.wait()
    assert first.control_socket.exists()
    eventually(lambda: not alive(wrapper), "the child dies with its daemon")
    assert [process.pid for process in marked(first)] == [server]  # what the child had forked outlives it
    env = {"XDG_RUNTIME_DIR": first.env["XDG_RUNTIME_DIR"]}
    first.notify.path.unlink()
    second = daemons.start(QUICK + site.model("m"), env=env)
    assert second.control_socket == first.control_socket
    assert not alive(server)
    assert f"leftover process python3[{server}]" in second.output()
    assert second.chat("m").status == 200
    assert second.status()["pid"] == second.process.pid


def test_something_else_in_the_place_of_the_socket_is_not_removed(daemons: DaemonFactory, site: Site) -> None:
    first = daemons.start()
    assert first.stop() == 0
    first.control_socket.unlink(missing_ok=True)
    first.control_socket.write_text("a file of somebody's")
    ended = run_accelerd(first.env)
    assert ended.returncode == 1
    assert "not a socket" in ended.stderr
    assert first.control_socket.read_text() == "a file of somebody's"


def test_the_sockets_directory_and_file_are_for_the_user_alone(daemons: DaemonFactory) -> None:
    daemon = daemons.start()
    found = daemon.control_socket.stat()
    assert stat.S_IMODE(found.st_mode) == 0o600
    assert stat.S_IMODE(daemon.control_socket.parent.stat().st_mode) == 0o700


HAND_OVER = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1")
os.execv(sys.executable, [sys.executable, "-m", "accelerd"])
"""


def test_the_file_of_a_socket_that_systemd_handed_over_outlives_the_daemon(daemons: DaemonFactory) -> None:
    env = daemons.environment()
    config = Path(env["XDG_CONFIG_HOME"]) / "accelerd" / "accelerd.toml"
    config.parent.mkdir(parents=True)
    config.write_text(f'[server]\nlisten = ["127.0.0.1:{free_port()}"]\n')
    path = Path(env["XDG_RUNTIME_DIR"]) / "accelerd" / "accelerd.sock"
    path.parent.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as handed:
        handed.bind(str(path))
        handed.listen()
        process = subprocess.Popen(
            [sys.executable, "-c", HAND_OVER, str(handed.fileno())],
            env=env,
            cwd=env["HOME"],
            pass_fds=(handed.fileno(),),
        )
        try:
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(20)
                client.connect(str(path))
                client.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                assert client.recv(1000).startswith(b"HTTP/1.1 200")
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0
        assert path.exists()  # systemd still listens on it, for the next daemon


def test_a_broken_configuration_at_the_start_names_every_mistake(daemons: DaemonFactory, site: Site) -> None:
    daemon = daemons.launch(site.model("m", contxt=5, parallel=0))
    assert daemon.process.wait(20) == 78
    output = daemon.output()
    assert "models.m.contxt" in output
    assert "did you mean" in output
    assert "models.m.parallel" in output
    assert "Traceback" not in output
    assert "READY=1" not in daemon.messages()


# --- the wall clock ---

WALL_CLOCK = (
    {
        ("time", name)
        for name in (
            "time",
            "time_ns",
            "localtime",
            "gmtime",
            "ctime",
            "strftime",
            "asctime",
            "clock_gettime",
            "mktime",
        )
    }
    | {("datetime", name) for name in ("now", "utcnow", "today", "fromtimestamp")}
    | {("date", "today")}
)
# Dates for people and for OpenAI's objects: nothing is decided by them.
ALLOWED = {
    # Dates that clients are told.
    ("gateway/gateway.py", "time.time"): 3,
    ("gateway/corrections.py", "time.time"): 1,
    ("gateway/whole_responses.py", "time.time"): 2,
    ("gateway/dialects/translation.py", "time.time"): 1,
    ("gateway/response_framing.py", "time.time"): 1,  # a Retry-After that is a date, of a server that sends no Date
    ("gateway/responses.py", "time.time"): 1,
    ("gateway/responses.py", "time.strftime"): 2,
    ("gateway/responses.py", "time.gmtime"): 2,
    ("system/logs.py", "time.strftime"): 1,
    ("system/logs.py", "time.localtime"): 1,
    ("cli/commands/toolbox.py", "datetime.now"): 1,
    ("memory/learned.py", "time.time"): 1,  # when something was learned, for people
    (
        "cli/time_of_day.py",
        "datetime.now",
    ): 4,  # "until 22:30", how long ago something happened
    ("cli/time_of_day.py", "datetime.fromtimestamp"): 1,
    # CLOCK_BOOTTIME and CLOCK_MONOTONIC, which nobody sets.
    ("supervise/process/processes.py", "time.clock_gettime"): 1,
    ("system/suspend.py", "time.clock_gettime"): 2,
}


def wall_clock_reads(path: Path) -> list[str]:
    """Every mention of the wall clock in a module, also by a name imported from `time` or `datetime`."""
    tree = ast.parse(path.read_text())
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            owner = node.value.attr if isinstance(node.value, ast.Attribute) else getattr(node.value, "id", "")
            if (owner, node.attr) in WALL_CLOCK:
                found.append(f"{owner}.{node.attr}")
        elif isinstance(node, ast.ImportFrom) and node.module == "time":
            found += [f"time.{alias.name}" for alias in node.names if ("time", alias.name) in WALL_CLOCK]
    return found


def test_no_timer_can_see_the_wall_clock() -> None:
    seen: dict[tuple[str, str], int] = {}
    modules = sorted(PACKAGE.rglob("*.py"))
    assert len(modules) > 50
    for path in modules:
        for what in wall_clock_reads(path):
            key = (path.relative_to(PACKAGE).as_posix(), what)
            seen[key] = seen.get(key, 0) + 1
    assert {key: count for key, count in seen.items() if count > ALLOWED.get(key, 0)} == {}


def test_the_search_finds_what_it_is_for(tmp_path: Path) -> None:
    lines = [
        "import time, datetime",
        "from time import time_ns",
        "time.time() + time.monotonic()",
        "datetime.datetime.now()",
    ]
    (tmp_path / "m.py").write_text("\n".join(lines))
    assert sorted(wall_clock_reads(tmp_path / "m.py")) == ["datetime.now", "time.time", "time.time_ns"]
