"""An engine that prints without end costs the daemon little, the others nothing, and can still be read."""

from __future__ import annotations

import time

import psutil
import pytest

from tests.daemon.kit import QUICK, Site
from tests.harness import Daemon, DaemonFactory, UnixConnection, eventually

WATCHED = 1.5  # s


@pytest.fixture(scope="module")
def daemon(factory: DaemonFactory, sites: Site) -> Daemon:
    models = [sites.model("loud", "flood"), sites.model("binary", "binary-output"), sites.model("calm")]
    return factory.start(QUICK + "".join(models))


@pytest.mark.parametrize("name", ["loud", "binary"])
def test_a_flood_costs_little_and_keeps_no_other_model_waiting(daemon: Daemon, name: str) -> None:
    assert daemon.chat("calm").status == 200
    process = psutil.Process(daemon.process.pid)
    assert daemon.events(f"load?model={name}")[-1]["event"] == "ready"
    before, logged, began = sum(process.cpu_times()[:2]), daemon.log.stat().st_size, time.monotonic()
    memory = process.memory_info().rss
    while time.monotonic() - began < WATCHED:
        assert daemon.chat("calm").status == 200
        time.sleep(0.02)
    took = time.monotonic() - began
    share = (sum(process.cpu_times()[:2]) - before) / took
    assert share < 0.5
    assert daemon.log.stat().st_size - logged < 1 << 20  # what goes to the log is limited too
    assert process.memory_info().rss - memory < 16 << 20
    assert daemon.chat(name).status == 200
    lines = daemon.control("GET", f"logs?model={name}&lines=20")
    assert len(lines.body) < 20 * 20_000
    assert not set(lines.body) & (set(range(32)) - {9, 10})  # nothing that a terminal would obey
    if name == "loud":
        assert rb"flooding the log with a line \x1b[31mof text" in lines.body.splitlines()
    assert daemon.events(f"unload?model={name}")[-1]["event"] == "stopped"


def test_a_reader_of_a_flood_that_stops_reading_is_not_waited_for(daemon: Daemon) -> None:
    assert daemon.events("load?model=loud")[-1]["event"] == "ready"
    reader = UnixConnection(daemon.control_socket)
    reader.request("GET", "/accelerd/v1/logs?model=loud&follow=1")
    response = reader.getresponse()
    assert b"flooding" in response.readline() + response.readline()
    memory = psutil.Process(daemon.process.pid).memory_info().rss
    assert daemon.chat("calm").status == 200
    assert daemon.events("unload?model=loud")[-1]["event"] == "stopped"
    assert psutil.Process(daemon.process.pid).memory_info().rss - memory < 16 << 20
    descriptors = psutil.Process(daemon.process.pid).num_fds()
    response.close()
    reader.close()
    eventually(lambda: psutil.Process(daemon.process.pid).num_fds() < descriptors, "the reader is forgotten")
