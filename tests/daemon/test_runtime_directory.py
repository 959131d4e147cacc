"""The runtime directory, or what clients look for in it, is removed while the daemon runs: it is made again."""

from __future__ import annotations

import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.daemon.kit import QUICK, Site, rest_of
from tests.harness import PATIENCE, Daemon, DaemonFactory, eventually, streaming


def move(folder: Path) -> None:
    folder.rename(folder.with_name("away"))


def remove(folder: Path) -> None:
    """At one stroke: what is removed file by file may be made again meanwhile."""
    move(folder)
    shutil.rmtree(folder.with_name("away"))


def answers(daemon: Daemon) -> bool:
    return daemon.control_socket.exists() and daemon.control("GET", "status").status == 200


@pytest.mark.parametrize("go", [remove, move], ids=["removed", "moved"])
def test_it_is_made_again_and_models_get_new_sockets(
    daemons: DaemonFactory, site: Site, go: Callable[[Path], None]
) -> None:
    daemon = daemons.start(QUICK + site.model("m", "slow-token:20", {"FAKE_TOKENS": "100"}) + site.model("other"))
    folder = daemon.control_socket.parent
    assert daemon.chat("m", max_tokens=1).status == 200
    with streaming(daemon, "m") as response:
        go(folder)
        eventually(lambda: answers(daemon), "it answers")
        eventually(lambda: f"somebody removed {folder}" in daemon.output(), "it is said")
        assert [stat.S_IMODE(path.stat().st_mode) for path in (folder, daemon.control_socket)] == [0o700, 0o600]
        assert rest_of(response)[1], "the request goes on"
    assert daemon.chat("m", max_tokens=1).status == 200
    assert site.spawns("m") == 2
    assert daemon.chat("other").status == 200
    assert daemon.stop() == 0


def test_a_control_socket_that_is_removed_again_and_again(daemons: DaemonFactory, site: Site) -> None:
    daemon = daemons.start(site.model("m"))
    for _ in range(2):
        daemon.control_socket.unlink()
        eventually(lambda: answers(daemon), "it answers")
    assert daemon.stop() == 0


def test_no_second_daemon_starts_meanwhile(daemons: DaemonFactory, site: Site) -> None:
    """The lock is had again, too."""
    first = daemons.start(site.model("m"))
    remove(first.control_socket.parent)
    eventually(lambda: answers(first), "it answers")
    second = subprocess.run(
        [sys.executable, "-m", "accelerd"], env=first.env, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert second.returncode == 1
    assert f"another accelerd (pid {first.process.pid}) already runs" in second.stderr
    assert answers(first)


def test_what_lies_in_the_place_of_the_instances_is_named(daemons: DaemonFactory, site: Site) -> None:
    daemon = daemons.start(QUICK + site.model("m"))
    folder = daemon.control_socket.parent / "instances"
    if folder.exists():
        folder.rmdir()
    folder.write_text("of somebody else")
    answer = daemon.chat("m")
    assert answer.status == 503
    assert str(folder) in answer.json()["error"]["message"]
    assert "Traceback" not in daemon.output()
    folder.unlink()
    eventually(lambda: daemon.chat("m").status == 200, "it is served when that has gone")


def test_where_it_cannot_be_made_that_is_said(daemons: DaemonFactory, site: Site) -> None:
    daemon = daemons.start(site.model("m"))
    folder = daemon.control_socket.parent
    move(folder)
    folder.write_text("of somebody else")
    said = f"the runtime directory {folder} was removed and cannot be made again"
    eventually(lambda: said in daemon.output(), "it is said")
    folder.unlink()
    folder.with_name("away").rename(folder)
    assert daemon.control("GET", "status").json()["degraded"].count(said) == 1
    assert daemon.stop() == 0
