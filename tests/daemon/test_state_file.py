"""The state file of a whole daemon: whatever is wrong with it, the daemon serves, and says so."""

from __future__ import annotations

import json
from pathlib import Path

from tests.daemon.kit import Site
from tests.harness import Daemon, DaemonFactory, eventually


def state_of(daemons: DaemonFactory) -> Path:
    """Where the daemons of this test keep their state; the directory is there."""
    path = Path(daemons.environment()["XDG_STATE_HOME"]) / "accelerd" / "state.json"
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path


def serves(daemon: Daemon) -> None:
    assert daemon.chat("m").status == 200
    assert daemon.status("m")["load_seconds"] > 0


def test_a_load_is_remembered_over_a_restart(daemons: DaemonFactory, site: Site) -> None:
    path = state_of(daemons)
    first = daemons.start(site.model("m"))
    assert first.status("m")["load_seconds"] is None
    serves(first)
    took = first.status("m")["load_seconds"]
    assert first.stop() == 0
    assert path.stat().st_mode & 0o777 == 0o600
    assert daemons.start(site.model("m")).status("m")["load_seconds"] == took


def test_a_state_file_of_garbage_is_set_aside(daemons: DaemonFactory, site: Site) -> None:
    path = state_of(daemons)
    for garbage in (b'{"version": 1, "models": {"x', b"\xff\x00garbage", b'{"version": 1, "x": ' + b"[" * 100_000):
        path.write_bytes(garbage)
        daemon = daemons.start(site.model("m"))
        serves(daemon)
        assert "remembered" not in daemon.status()["degraded"]
        assert daemon.stop() == 0
        assert "cannot use the state file" in daemon.output()
        assert garbage in [kept.read_bytes() for kept in path.parent.glob("state.json.corrupt-*")]
        assert json.loads(path.read_bytes())["models"]


def test_a_state_file_of_a_newer_version_is_left_alone(daemons: DaemonFactory, site: Site) -> None:
    path = state_of(daemons)
    path.write_text('{"version": 99, "models": "in another way"}')
    before = path.read_bytes()
    daemon = daemons.start(site.model("m"))
    serves(daemon)
    assert "newer accelerd (version 99)" in daemon.status()["degraded"]
    assert daemon.stop() == 0
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.glob(f"*{path.name}*")] == [path.name], "nothing is put beside it"


def test_a_state_directory_that_cannot_be_used_makes_the_daemon_degraded(daemons: DaemonFactory, site: Site) -> None:
    path = state_of(daemons)
    path.parent.rmdir()
    path.parent.write_text("a file, and neither root nor anybody else can make a directory of it")
    daemon = daemons.start(site.model("m"))
    serves(daemon)
    assert str(path) in daemon.status()["degraded"]
    assert daemon.stop() == 0


def test_a_state_directory_that_is_lost_while_the_daemon_runs(daemons: DaemonFactory, site: Site) -> None:
    path = state_of(daemons)
    daemon = daemons.start(site.model("m"))
    assert "remembered" not in daemon.status()["degraded"]
    for name in path.parent.iterdir():
        name.unlink()
    path.parent.rmdir()
    path.parent.write_text("in the way")
    serves(daemon)
    eventually(lambda: "not remembered" in (daemon.status()["degraded"] or ""), "it says so")
    assert daemon.chat("m").status == 200
    path.parent.unlink()
    assert daemon.stop() == 0  # the last attempt makes it again
    assert json.loads(path.read_bytes())["models"]
