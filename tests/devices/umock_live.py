"""What runs inside umockdev: the real libudev, the real monitor, a real daemon, on a machine that is made up.

Not collected by itself: test_umockdev.py runs each of these under umockdev-wrapper.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from accelerd.base.events import EventStream
from accelerd.base.ports import Roots, SystemClock
from accelerd.devices.current_devices import DevicesChanged, DeviceWatch
from accelerd.devices.inventory import Inventory
from accelerd.devices.observer import DeviceObserver
from accelerd.devices.udev_events import PyudevMonitor
from accelerd.memory.measure import Meter
from tests.devices import strix_halo
from tests.devices.strix_halo import GIB, GPU, GPU_SLOT, GTT, GTT_USED, NPU_LOAD, NPU_SLOT, VRAM, VRAM_USED
from tests.devices.umock import testbed
from tests.memory.machines import TOTAL, Machine, amdgpu

CARD, RENDER = f"/sys{GPU}/drm/card1", f"/sys{GPU}/drm/renderD128"


@pytest.fixture(autouse=True)
def settled() -> None:
    """Instead of everybody's: a testbed holds descriptors for as long as its process lives, which is one test."""


def roots() -> Roots:
    return Roots.from_env(dict(os.environ))


class Stage:
    """A testbed with a watch on it."""

    def __init__(self) -> None:
        self.bed = testbed()
        self.events = EventStream()
        self.diffs: list[DevicesChanged] = []
        self._heard = asyncio.Event()
        self.watch = DeviceWatch(Inventory(roots()).scan, PyudevMonitor(), self.events, settle=0.05)
        self.events.subscribe(DevicesChanged, self.hear)

    def hear(self, diff: DevicesChanged) -> None:
        self.diffs.append(diff)
        self._heard.set()

    def has(self, text: str) -> None:
        assert self.bed.add_from_string(text)

    async def until(self, condition: Callable[[DevicesChanged], Any]) -> DevicesChanged:
        """The first diff of which it is true."""
        async with asyncio.timeout(10):
            while not (found := [diff for diff in self.diffs if condition(diff)]):
                self._heard.clear()
                await self._heard.wait()
        return found[0]


def ids(diff: DevicesChanged) -> dict[str, list[str]]:
    parts = ("added", "removed", "changed", "reset", "recovered")
    return {part: [d.id for d in getattr(diff, part)] for part in parts if getattr(diff, part)}


def test_one_gpu_one_npu_and_what_they_do() -> None:
    bed = testbed()
    assert bed.add_from_string(strix_halo.description())
    gpu, npu, cpu = Inventory(roots()).scan()
    assert (gpu.kind, gpu.id, gpu.name, gpu.gfx) == ("gpu", GPU_SLOT, "AMD Radeon 8060S Graphics", "gfx1151")
    assert (gpu.apu, gpu.unified, gpu.problem) == (True, True, None)
    sizes = {pool.name: (pool.total, pool.used) for pool in gpu.pools}
    assert sizes == {
        "vram": (VRAM, VRAM_USED), "visible vram": (VRAM, VRAM_USED), "gtt": (GTT, GTT_USED),
        "unified": (98 * GIB, VRAM_USED + GTT_USED),
    }  # fmt: skip
    assert gpu.firmware == {"mes": "0x00000080", "vbios": "113-MADEUP-001"}
    assert (npu.kind, npu.id, npu.name, npu.columns) == ("npu", NPU_SLOT, "RyzenAI-npu5", 8)
    assert npu.firmware == {"npu": "1.1.2.65"}
    assert cpu.kind == "cpu"
    seen = {look.device.id: look.readings for look in DeviceObserver(roots(), SystemClock()).look([gpu, npu, cpu])}
    assert (seen[GPU_SLOT].busy, seen[GPU_SLOT].power, seen[GPU_SLOT].temperature) == (12, 23.5, 51)
    assert (seen[GPU_SLOT].level, seen[GPU_SLOT].dram_read) == ("auto", 40e9)
    assert (seen[NPU_SLOT].busy, seen[NPU_SLOT].power) == (NPU_LOAD, 1.5)


def test_pools_of_memory(tmp_path: Path) -> None:
    """umockdev makes up no /proc: that one is of files."""
    bed = testbed()
    assert bed.add_from_string(strix_halo.description())
    m = Machine(tmp_path)
    inside = replace(m.roots, sys=Path("/sys"))
    m.process(7, "llama-server", amdgpu(Inventory(inside).scan()[0], 1, vram=300 << 20, gtt=10 * GIB))
    meter = Meter(inside, m.clock, DeviceObserver(inside, m.clock))
    seen = meter.look(Inventory(inside).scan(), {1: [7]})
    gpu, npu = (next(pool for pool in seen.pools if pool.id == id) for id in (GPU_SLOT, NPU_SLOT))
    others = VRAM_USED + GTT_USED - (300 << 20) - 10 * GIB
    assert (gpu.capacity, gpu.own, gpu.foreign, gpu.backed_by) == (VRAM + GTT, VRAM, others, "ram")
    assert (npu.own, npu.capacity, npu.foreign, npu.backed_by) == (0, TOTAL, 0, "ram")
    assert seen.used == {1: {GPU_SLOT: (300 << 20) + 10 * GIB, "ram": 0}}
    bed.set_attribute(f"/sys{GPU}", "mem_info_gtt_used", str(GTT_USED + GIB))
    assert meter.look(Inventory(inside).scan(), {1: [7]}).pools[1].foreign == others + GIB
    assert meter.untold == {}


async def test_a_driver_that_loads_later() -> None:
    stage = Stage()
    bare = strix_halo.device(GPU, "pci", {"PCI_CLASS": "38000", "PCI_ID": "1002:1586", "PCI_SLOT_NAME": GPU_SLOT}, {})
    stage.has("\n".join(bare) + "\n")
    await stage.watch.start()
    assert [(d.id, d.problem) for d in stage.watch.current() if d.kind == "gpu"] == [
        (GPU_SLOT, "no driver is bound to the device")
    ]
    stage.bed.remove_device(f"/sys{GPU}")
    stage.has(strix_halo.kfd() + strix_halo.gpu())
    # The description comes piece by piece: where that takes longer than the watch waits, it went and came back.
    diff = await stage.until(lambda diff: [d for d in (*diff.changed, *diff.added) if d.problem is None])
    assert [d.id for d in (*diff.changed, *diff.added)] == [GPU_SLOT]
    assert stage.watch.current()[0].problem is None
    await stage.watch.close()


async def test_a_card_with_another_number_is_the_same() -> None:
    stage = Stage()
    stage.has(strix_halo.description())
    await stage.watch.start()
    before = stage.watch.current()[0]
    for path in (CARD, RENDER, f"/sys{GPU}/hwmon/hwmon5", f"/sys{GPU}"):
        stage.bed.uevent(path, "remove")
        stage.bed.remove_device(path)
    await stage.until(lambda diff: diff.removed)
    stage.has(strix_halo.gpu(card=0, render=129))
    diff = await stage.until(lambda diff: diff.added)
    assert diff.added[0].id == before.id == GPU_SLOT
    assert diff.added[0].node == "/dev/dri/renderD129"
    assert structs.replace(diff.added[0], node=before.node) == before
    await stage.watch.close()


async def test_a_wedged_gpu_is_told_once_and_with_how_bad_it_is() -> None:
    stage = Stage()
    stage.has(strix_halo.description())
    await stage.watch.start()
    stage.bed.set_property(CARD, "WEDGED", "none")
    stage.bed.uevent(CARD, "change")
    assert ids(await stage.until(lambda diff: diff.recovered)) == {"recovered": [GPU_SLOT]}
    stage.bed.set_property(CARD, "WEDGED", "rebind,bus-reset")
    stage.bed.uevent(CARD, "change")
    stage.bed.uevent(CARD, "change")
    assert ids(await stage.until(lambda diff: diff.reset)) == {"reset": [GPU_SLOT]}
    assert len(stage.diffs) == 2
    await stage.watch.close()


async def test_a_gpu_that_is_bound_again_in_a_moment_has_gone_and_come() -> None:
    stage = Stage()
    stage.has(strix_halo.description())
    await stage.watch.start()
    stage.bed.uevent(RENDER, "remove")
    stage.bed.uevent(f"/sys{GPU}", "unbind")
    stage.bed.uevent(f"/sys{GPU}", "bind")
    stage.bed.uevent(RENDER, "add")
    diff = await stage.until(bool)
    assert ids(diff) == {"removed": [GPU_SLOT], "added": [GPU_SLOT]}
    await stage.watch.close()


async def test_a_monitor_that_is_plugged_in_changes_nothing() -> None:
    stage = Stage()
    stage.has(strix_halo.description())
    scans = 0

    def scan() -> list[Any]:
        nonlocal scans
        scans += 1
        return Inventory(roots()).scan()

    stage.watch = DeviceWatch(scan, PyudevMonitor(), stage.events, settle=0.01)
    await stage.watch.start()
    stage.bed.set_property(CARD, "HOTPLUG", "1")
    stage.bed.uevent(CARD, "change")
    stage.bed.set_property(CARD, "WEDGED", "none")
    stage.bed.uevent(CARD, "change")  # heard after the first one: so that has been dealt with
    await stage.until(lambda diff: diff.recovered)
    assert scans == 2
    await stage.watch.close()


def environment(bed: Any) -> dict[str, str]:
    """With these a daemon sees the made-up machine too."""
    return {"LD_PRELOAD": os.environ["LD_PRELOAD"], "UMOCKDEV_DIR": bed.get_root_dir()}


def test_a_daemon_fails_the_models_of_a_gpu_that_goes(daemons: Any, tmp_path: Path) -> None:
    from tests.daemon.kit import Site, alive

    bed = testbed()
    assert bed.add_from_string(strix_halo.description())
    site = Site(tmp_path)
    daemon = daemons.start(site.model("m") + site.model("p", gpu_layers=0), env=environment(bed))
    assert (daemon.chat("m").status, daemon.chat("p").status) == (200, 200)
    assert (daemon.status("m")["device"], daemon.status("p")["device"]) == (GPU_SLOT, "cpu")
    pid = daemon.status("m")["pid"]
    for path in (CARD, RENDER, f"/sys{GPU}/hwmon/hwmon5", f"/sys{GPU}"):
        bed.uevent(path, "remove")
        bed.remove_device(path)
    found = daemon.wait_state("m", "failed")
    assert found["error"]["cause"] == "device-removed"
    assert not alive(pid)
    assert daemon.state("p") == "ready"
    refused = daemon.chat("m")
    assert (refused.status, refused.code) == (503, "model_failed")
    assert [d["kind"] for d in daemon.control("GET", "devices").json()["devices"]] == ["npu", "cpu"]
    assert bed.add_from_string(strix_halo.gpu(card=0, render=129))  # umockdev makes a node once
    daemon.wait_state("m", "stopped")
    assert daemon.chat("m").status == 200


def test_a_daemon_reloads_once_after_a_reset_then_quarantines(daemons: Any, tmp_path: Path) -> None:
    from tests.daemon.kit import Site
    from tests.harness import eventually

    bed = testbed()
    assert bed.add_from_string(strix_halo.description())
    site = Site(tmp_path)
    daemon = daemons.start(site.model("m"), env=environment(bed))
    assert daemon.chat("m").status == 200
    first = daemon.status("m")["pid"]
    bed.set_property(CARD, "WEDGED", "bus-reset")
    bed.uevent(CARD, "change")
    eventually(lambda: daemon.status("m")["pid"] not in (None, first), "another process, without a request")
    daemon.wait_state("m", "ready")
    bed.uevent(CARD, "change")
    found = daemon.wait_state("m", "failed")
    assert found["error"]["cause"] == "device-reset"
    assert "quarantined" in found["reason"]
    assert site.spawns("m") == 2
    assert daemon.chat("m").status == 503


def test_a_daemon_lists_its_devices_with_who_uses_them(daemons: Any) -> None:
    bed = testbed()
    assert bed.add_from_string(strix_halo.description())
    daemon = daemons.start(env=environment(bed))
    answer = daemon.control("GET", "devices").json()
    gpu = next(d for d in answer["devices"] if d["kind"] == "gpu")
    assert (gpu["id"], gpu["readings"]["busy"], gpu["readings"]["level"]) == (GPU_SLOT, 12, "auto")
    assert gpu["others"] == VRAM_USED + GTT_USED, "nobody whom this user may look at uses it"
    assert (gpu["holders"], gpu["level_owner"], answer["degraded"]) == ([], None, None)
    assert daemon.control("POST", "devices").code == "method_not_allowed"
