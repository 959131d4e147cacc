"""The whole daemon and the performance level: helper, bus and daemon are real, /sys and polkit are not."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.daemon.kit import Site
from tests.harness import Daemon, DaemonFactory, eventually, streaming
from tests.helper.world import APU, CARD, World, glib_worker, world

__all__ = ["glib_worker"]

SHORT = '[performance]\nhold_time = "300ms"\n'
LONG = '[performance]\nhold_time = "60s"\n'
MODULE = "tests.daemon.level_daemon"


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[World]:
    with world(tmp_path) as made:
        yield made


def start(daemons: DaemonFactory, machine: World, site: Site, settings: str = SHORT) -> Daemon:
    # a stream of this fake server stays open until its client goes
    toml = settings + site.model("m", "stall-token") + site.model("cpu", "stall-token", gpu_layers=0)
    env = {"DBUS_SYSTEM_BUS_ADDRESS": machine.address, "TEST_SYSFS": str(machine.sysfs.path)}
    daemon = daemons.start(toml, module=MODULE, env=env)
    eventually(lambda: daemon.status()["performance"], "the devices are known")
    return daemon


def performance(daemon: Daemon, slot: str = APU) -> Any:
    return next(entry for entry in daemon.status()["performance"] if entry["slot"] == slot)


def test_the_level_is_raised_with_the_first_lease_and_restored_after_the_tail(
    machine: World, daemons: DaemonFactory, site: Site
) -> None:
    machine.sysfs.add()
    daemon = start(daemons, machine, site)
    assert performance(daemon) == {
        "slot": APU, "name": "AMD Radeon Graphics (Strix Halo)", "policy": "busy", "state": "left",
        "reason": "no model is in use", "level": None, "by": None, "stuck": False,
    }  # fmt: skip
    with streaming(daemon, "m"):
        machine.sysfs.becomes("high")
        entry = eventually(lambda: (e := performance(daemon))["state"] == "raised" and e, "it says so")
        assert (entry["level"], entry["by"], entry["reason"]) == ("high", "the helper", "a model is in use")
    machine.sysfs.becomes("auto")
    assert eventually(lambda: performance(daemon)["state"] == "left", "it says so")


def end(children: list[psutil.Process]) -> None:
    """Models that had no time to notice that their daemon is gone."""
    for child in children:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()


def test_kill_9_of_the_daemon_restores_the_level(machine: World, daemons: DaemonFactory, site: Site) -> None:
    machine.sysfs.add()
    daemon = start(daemons, machine, site, LONG)
    with streaming(daemon, "m"):
        machine.sysfs.becomes("high")
        children = daemon.children()
        daemon.process.send_signal(signal.SIGKILL)
        daemon.process.wait()
        machine.sysfs.becomes("auto")
    end(children)


def test_the_end_of_the_daemon_restores_the_level(machine: World, daemons: DaemonFactory, site: Site) -> None:
    machine.sysfs.add()
    daemon = start(daemons, machine, site, '[performance]\npolicy = "always"\n')
    machine.sysfs.becomes("high")
    assert daemon.stop() == 0
    machine.sysfs.becomes("auto")


def test_a_card_of_its_own_and_a_model_on_the_processor_change_nothing(
    machine: World, daemons: DaemonFactory, site: Site
) -> None:
    machine.sysfs.add(CARD, apu=False, pci_class="0x030000")
    daemon = start(daemons, machine, site)
    with streaming(daemon, "m"):
        assert performance(daemon, CARD)["state"] == "unsuitable"
        assert "below their boost" in performance(daemon, CARD)["reason"]
    with streaming(daemon, "cpu"):
        assert performance(daemon, CARD)["level"] is None, "it was not even looked at"
    assert machine.sysfs.level(CARD) == "auto"
    assert not machine.helper_runs()


def test_a_policy_for_one_device_and_a_reload(machine: World, daemons: DaemonFactory, site: Site) -> None:
    machine.sysfs.add()
    never = f'[performance]\npolicy = "always"\n[performance.devices."{APU}"]\npolicy = "never"\n'
    daemon = start(daemons, machine, site, never)
    assert performance(daemon)["state"] == "left"
    assert performance(daemon)["policy"] == "never"
    daemon.configure(never.replace("never", "always"))
    answer = daemon.control("POST", "reload").json()
    assert answer["settings"] == ["performance.devices"]
    machine.sysfs.becomes("high")


def test_what_another_program_overwrites_is_raised_again_and_it_is_named(
    machine: World, daemons: DaemonFactory, site: Site
) -> None:
    machine.sysfs.add()
    rival = machine.caller()
    assert rival.bus("RequestName", "(su)", "net.hadess.PowerProfiles", 0) == 1
    daemon = start(daemons, machine, site)
    with streaming(daemon, "m"):
        eventually(lambda: performance(daemon)["state"] == "raised", "the helper's answer is here, not only its write")
        machine.sysfs.put("low")
        machine.sysfs.becomes("high")
        text = "power-profiles-daemon set the performance level to low; raising it again"
        eventually(lambda: text in daemon.output(), "it is named")
    machine.sysfs.becomes("low")


def test_a_helper_that_was_killed_is_asked_again(machine: World, daemons: DaemonFactory, site: Site) -> None:
    machine.sysfs.add()
    daemon = start(daemons, machine, site)
    with streaming(daemon, "m"):
        machine.sysfs.becomes("high")
        machine.kill_helper()
        machine.start_helper()
        machine.sysfs.becomes("auto")
        machine.sysfs.becomes("high")
    machine.sysfs.becomes("auto")
    assert "was restarted; raising the performance level again" in daemon.output()
    assert "set the performance level to low" not in daemon.output(), "nobody is blamed"


def test_without_the_helper_and_without_the_right_to_write_the_daemon_says_so_once(
    tmp_path: Path, daemons: DaemonFactory, site: Site
) -> None:
    with world(tmp_path) as machine:
        machine.deny()
        device = machine.sysfs.add(level=None)  # nothing there that could be written
        daemon = start(daemons, machine, site, '[performance]\nhold_time = "0s"\n')
        assert not (device / "power_dpm_force_performance_level").exists()
        for _ in range(3):
            with streaming(daemon, "m"):
                entry = eventually(lambda: (e := performance(daemon))["state"] == "unable" and e, "it says so")
        assert "polkit denies" in entry["reason"]
        assert "usermod -aG accelerd" in entry["reason"]
        assert daemon.output().count("cannot raise the performance level") == 1


def test_with_the_udev_rule_alone_the_daemon_writes_itself_and_the_next_one_repairs(
    tmp_path: Path, daemons: DaemonFactory, site: Site
) -> None:
    with world(tmp_path) as machine:
        machine.sysfs.add()
        (machine.directory / "services/org.accelerd1.Helper.service").unlink()
        daemon = start(daemons, machine, site, LONG)
        with streaming(daemon, "m"):
            machine.sysfs.becomes("high")
            assert eventually(lambda: performance(daemon)["by"], "it says so") == "accelerd itself"
            children = daemon.children()
            daemon.process.send_signal(signal.SIGKILL)
            daemon.process.wait()
        end(children)
        assert machine.sysfs.level() == "high", "nobody is there to put it back"
        runtime = Path(daemon.env["XDG_RUNTIME_DIR"]) / "accelerd"
        assert (runtime / "levels.json").exists()
        env = {key: daemon.env[key] for key in ("XDG_RUNTIME_DIR", "DBUS_SYSTEM_BUS_ADDRESS", "TEST_SYSFS")}
        (Path(env["XDG_RUNTIME_DIR"]) / "notify").unlink()
        daemons.start("", module=MODULE, env=env)
        machine.sysfs.becomes("auto")
        assert not (runtime / "levels.json").exists()
