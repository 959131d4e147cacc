"""Every recorded tree is read without an exception, and the report on it is the one that was looked at and kept.

After a change that is meant: ACCELERD_UPDATE_SNAPSHOTS=1 pytest tests/devices/test_recorded.py, then read the diff.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest

from accelerd.base.ports import Roots
from accelerd.devices.drivers import DeviceReader
from accelerd.devices.host import read_host
from accelerd.devices.inventory import Inventory
from accelerd.devices.model import Device
from accelerd.devices.udev import SysfsSource
from tests.devices.recorded import TREES, fixture, lay_out, machine
from tests.fakes.clock import FakeClock

SNAPSHOTS = Path(__file__).parent / "snapshots"
CASES = [pytest.param(archive, tree, id=tree) for archive, trees in TREES.items() for tree in trees]
DISCRETE = {"rx7700s", "rx7900xtx", "rx9070xt", "a380-i915", "a380-xe", "b580", "b580-6.16"}


def devices(roots: Roots) -> list[Device]:
    looking = Inventory(
        roots, SysfsSource(roots.sys), lambda node: True,
        host=lambda where: read_host(where, which=lambda name: None, libraries=()), ask_driver=lambda node: None,
    )  # fmt: skip
    return looking.scan()


def report(roots: Roots) -> list[dict[str, Any]]:
    found = [d for d in devices(roots) if d.kind != "cpu"]
    readings = [DeviceReader(device, roots, FakeClock()).read() for device in found]
    return [{**d.json(), "readings": msgspec.to_builtins(r)} for d, r in zip(found, readings, strict=True)]


@pytest.mark.parametrize(("archive", "tree"), CASES)
def test_a_recorded_tree(archive: str, tree: str, tmp_path: Path) -> None:
    roots = machine(tmp_path)
    lay_out(fixture(archive), tree, roots)
    found = json.loads(json.dumps(report(roots)))
    kept = SNAPSHOTS / f"{tree}.json"
    if os.environ.get("ACCELERD_UPDATE_SNAPSHOTS"):
        kept.write_text(json.dumps(found, indent=1, ensure_ascii=False, sort_keys=True) + "\n")
    assert found == json.loads(kept.read_text())


@pytest.mark.parametrize(("archive", "tree"), CASES)
def test_cards_and_processors_are_told_apart(archive: str, tree: str, tmp_path: Path) -> None:
    roots = machine(tmp_path)
    lay_out(fixture(archive), tree, roots)
    [gpu] = [d for d in devices(roots) if d.kind == "gpu"]
    assert gpu.problem is None
    assert gpu.apu is (tree not in DISCRETE)
    assert gpu.unified is gpu.apu


@pytest.mark.parametrize("tree", TREES["lact-snapshots-amd-apu-dgpu.tgz"])
def test_every_reading_of_a_card_has_a_value_that_can_be(tree: str, tmp_path: Path) -> None:
    roots = machine(tmp_path)
    lay_out(fixture("lact-snapshots-amd-apu-dgpu.tgz"), tree, roots)
    [gpu] = [d for d in devices(roots) if d.kind == "gpu"]
    seen = DeviceReader(gpu, roots, FakeClock()).read()
    assert seen.busy is not None
    assert seen.power is not None
    assert seen.temperature is not None
    assert 0 <= seen.busy <= 100
    assert 0 < seen.power < 400
    assert 20 < seen.temperature < 100
    assert (seen.stale, seen.reasons) == ({}, {})
    assert seen.clocks["sclk"].highest
