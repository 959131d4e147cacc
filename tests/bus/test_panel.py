"""contrib/panel/accelerd-panel: a desktop tool needs nothing but the bus. Tried without a display, on a real daemon."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import Daemon, DaemonFactory, dummy_gguf, eventually, fake_model
from tests.system.fake_services import Bus, private_bus

PANEL = Path(__file__).parents[2] / "contrib/panel/accelerd-panel"


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Bus]:
    with private_bus(tmp_path / "bus") as bus:
        yield bus


@pytest.fixture
def env(broker: Bus, tmp_path: Path) -> dict[str, str]:
    """No display, and no accelerd to be imported."""
    return {"PATH": os.environ["PATH"], "LANG": "C.UTF-8", "HOME": str(tmp_path)} | {
        "DBUS_SESSION_BUS_ADDRESS": broker.address
    }


@pytest.fixture
def daemon(broker: Bus, daemons: DaemonFactory, tmp_path: Path) -> Daemon:
    gguf = dummy_gguf(tmp_path)
    toml = fake_model("hello", gguf, aliases=["hi"]) + fake_model("broken", gguf, "exit:3")
    return daemons.start(toml, env={"DBUS_SESSION_BUS_ADDRESS": broker.address})


def panel(env: dict[str, str], *argv: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "ignore", str(PANEL), *argv]
    return subprocess.run(
        command, env=env, cwd="/", stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False
    )


def test_it_lists_loads_and_unloads(env: dict[str, str], daemon: Daemon) -> None:
    rows = panel(env, "list").stdout.splitlines()
    assert [row.split()[:3] for row in rows] == [["○", "broken", "stopped"], ["○", "hello", "stopped"]]
    done = panel(env, "load", "hi")
    assert (done.returncode, done.stderr) == (0, "")
    assert daemon.state("hello") == "ready"
    assert "●  hello   ready" in panel(env, "list").stdout
    done = panel(env, "unload", "hello")
    assert (done.returncode, done.stderr) == (0, "")
    assert daemon.state("hello") == "stopped"


def test_what_goes_wrong_is_said_in_words(env: dict[str, str], daemon: Daemon) -> None:
    done = panel(env, "load", "broken")
    assert done.returncode == 1
    assert done.stderr.strip()
    assert "Error" not in done.stderr.partition(" ")[0]  # the text, not the name in front of it
    assert "Traceback" not in done.stderr
    assert panel(env, "load", "nobody").stderr == "there is no model 'nobody'\n"
    assert panel(env, "load").returncode == 2


def test_it_shows_what_others_do(env: dict[str, str], daemon: Daemon, tmp_path: Path) -> None:
    """Without a display and without words it watches: each change is a table."""
    shown = tmp_path / "shown"
    with open(shown, "w") as out:
        command = [sys.executable, "-W", "ignore", str(PANEL)]
        watching = subprocess.Popen(command, env=env, cwd="/", stdin=subprocess.DEVNULL, stdout=out)
    try:
        eventually(lambda: "○  hello   stopped" in shown.read_text(), "it shows what is there")
        assert daemon.events("load?model=hello")[-1]["event"] == "ready"
        eventually(lambda: "●  hello   ready" in shown.read_text(), "it shows the load")
        daemon.stop()
        eventually(lambda: "accelerd is not running" in shown.read_text(), "it shows that nobody is there")
        assert watching.poll() is None
    finally:
        watching.kill()
        watching.wait(20)


def test_without_a_bus_it_says_so(tmp_path: Path) -> None:
    env = {"PATH": os.environ["PATH"], "LANG": "C.UTF-8", "DBUS_SESSION_BUS_ADDRESS": f"unix:path={tmp_path}/nobody"}
    done = panel(env, "list")
    assert done.returncode == 1
    assert "Could not connect" in done.stderr
    assert "Traceback" not in done.stderr


def test_it_needs_nothing_of_accelerd() -> None:
    tree = ast.parse(PANEL.read_text())
    imported = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    imported |= {str(n.module) for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    assert imported <= {"__future__", "argparse", "collections.abc", "gi", "gi.repository", "os", "re", "sys", "typing"}
