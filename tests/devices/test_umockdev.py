"""The devices of a machine that umockdev makes up: real libudev and real uevents, without hardware and without rights.

Each test runs in a process of its own under umockdev-wrapper, which has to be loaded before Python is.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.devices.recorded import ROOT, fixture

INSIDE = "tests/devices/umock_live.py"
SHOW = """
import json
from accelerd.devices.inventory import inventory
from accelerd.base.ports import Roots
print(json.dumps([device.json() for device in inventory(Roots.from_env())]))
"""


def umockdev(*command: str) -> str:
    """Run it, and return what it prints. That the program is missing is a failure: tests/run installs it."""
    if shutil.which(command[0]) is None:
        pytest.fail(f"no {command[0]}: run tests/run, or install the packages umockdev and gir1.2-umockdev-1.0")
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def inside(name: str) -> None:
    """One test of umock_live.py."""
    umockdev(
        "umockdev-wrapper", sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"{INSIDE}::{name}"
    )  # fmt: skip


def test_a_strix_halo_is_one_gpu_one_npu_and_one_pool() -> None:
    inside("test_one_gpu_one_npu_and_what_they_do")


def test_the_pools_of_a_strix_halo() -> None:
    inside("test_pools_of_memory")


def test_device_removed() -> None:
    inside("test_a_daemon_fails_the_models_of_a_gpu_that_goes")


def test_device_reset() -> None:
    inside("test_a_daemon_reloads_once_after_a_reset_then_quarantines")


def test_wedged_events() -> None:
    inside("test_a_wedged_gpu_is_told_once_and_with_how_bad_it_is")


def test_driver_loads_later() -> None:
    inside("test_a_driver_that_loads_later")


def test_renumbered_card() -> None:
    inside("test_a_card_with_another_number_is_the_same")


def test_bound_again() -> None:
    inside("test_a_gpu_that_is_bound_again_in_a_moment_has_gone_and_come")


def test_a_monitor_is_plugged_in() -> None:
    inside("test_a_monitor_that_is_plugged_in_changes_nothing")


def test_the_daemons_route() -> None:
    inside("test_a_daemon_lists_its_devices_with_who_uses_them")


def test_the_draft_of_a_strix_halo(tmp_path: Path) -> None:
    """The description that was assembled from posted values of real machines."""
    described = fixture("strixhalo.umockdev")
    gpu, npu, cpu = json.loads(umockdev("umockdev-run", "-d", str(described), "--", sys.executable, "-c", SHOW))
    assert (gpu["kind"], gpu["name"], gpu["gfx"], gpu["unified"]) == (
        "gpu", "AMD Radeon 8060S Graphics", "gfx1151", True,
    )  # fmt: skip
    sizes = {pool["name"]: pool["total"] for pool in gpu["pools"]}
    vram, gtt = 1073741824, 112742891520
    assert sizes == {"vram": vram, "visible vram": vram, "gtt": gtt, "unified": vram + gtt}
    assert (npu["kind"], npu["columns"], npu["firmware"]) == ("npu", 8, {"npu": "1.1.2.65"})
    assert cpu["kind"] == "cpu"
