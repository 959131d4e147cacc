"""A process that nothing ends: really so, since it hangs in a system call on a file system that does not answer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.daemon.hung_disk import HungDisk
from tests.daemon.kit import QUICK, Site, side_by_side
from tests.harness import Daemon, DaemonFactory, eventually

IMPATIENT = "tests.daemon.impatient_daemon"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[HungDisk]:
    with HungDisk(tmp_path / "hung") as disk:
        yield disk


def start(daemons: DaemonFactory, site: Site, disk: HungDisk) -> Daemon:
    stuck = site.model("a", f"hang-on-term:{disk.file}", stop_timeout=0.2, memory="100MiB")
    toml = QUICK + 'memory = "220MiB"\n' + stuck + site.model("b", memory="100MiB") + site.model("c", memory="150MiB")
    return daemons.start(toml, module=IMPATIENT)


def test_what_cannot_be_killed_is_never_called_stopped(daemons: DaemonFactory, site: Site, disk: HungDisk) -> None:
    daemon = start(daemons, site, disk)
    assert daemon.events("load?model=a")[-1]["event"] == "ready"
    pid = daemon.status("a")["pid"]
    with side_by_side() as do:
        unload = do(daemon.events, "unload?model=a")
        eventually(lambda: psutil.Process(pid).status() == psutil.STATUS_DISK_SLEEP, "it hangs")
        events = unload.result(20)
    # The order to stop fails, with the reason.
    assert (events[-1]["event"], events[-1]["error"]["code"]) == ("error", "model_stuck")
    assert "hangs in a driver" in events[-1]["error"]["message"]
    seen = daemon.status("a")
    assert (seen["state"], seen["pid"]) == ("killing", pid)
    assert "its memory stays counted" in seen["reason"]
    assert daemon.status()["scheduler"]["memory_used"] == seen["memory"]
    # Others go on in what is left; nobody gets its memory; its own requests are told at once.
    assert daemon.chat("b").status == 200
    assert daemon.events("unload?model=b")[-1]["event"] == "stopped"
    refused = daemon.chat("a")
    assert (refused.status, refused.code) == (503, "model_stuck")
    eventually(lambda: "cannot end a: still there" in daemon.output(), "it is in the log")
    # The driver comes back to life.
    disk.answer()
    daemon.wait_state("a", "stopped")
    assert not psutil.pid_exists(pid)
    assert daemon.chat("c").status == 200


def test_the_daemon_ends_in_time_and_says_what_it_leaves(daemons: DaemonFactory, site: Site, disk: HungDisk) -> None:
    daemon = start(daemons, site, disk)
    assert daemon.events("load?model=a")[-1]["event"] == "ready"
    pid = daemon.status("a")["pid"]
    daemon.stop(within=30)
    assert "has not ended: giving up" in daemon.output()
    assert psutil.Process(pid).status() == psutil.STATUS_DISK_SLEEP
    disk.answer()
    eventually(lambda: not psutil.pid_exists(pid), "it ends")
