"""The watch over devices: what it makes of events, that they settle first, and that it rests when nothing happens."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from msgspec.structs import replace

from accelerd.base.events import EventStream
from accelerd.devices.current_devices import DevicesChanged, DeviceWatch, compare
from accelerd.devices.model import Device, MemoryPool
from accelerd.devices.udev_events import AT_ONCE, MOST_FAILURES, PyudevMonitor, Uevent

PLACE = Path("/sys/devices/pci0000:00/0000:c1:00.0")
GPU = Device("gpu", "8060S", "amdgpu", "0000:c1:00.0", "/dev/dri/renderD128", directory=PLACE)
CARD = Device("gpu", "9070", "amdgpu", "0000:03:00.0", "/dev/dri/renderD129", directory=PLACE.parent / "0000:03:00.0")
CPU = Device("cpu", "cpu")
SETTLE = 0.02


class FakeMonitor:
    """Events that a test makes."""

    def __init__(self, error: Exception | None = None) -> None:
        self._error = error
        self.heard: Callable[[Uevent], None]
        self.lost: Callable[[], None]
        self.closed = False

    def open(self, heard: Callable[[Uevent], None], lost: Callable[[], None]) -> None:
        if self._error is not None:
            raise self._error
        self.heard, self.lost = heard, lost

    def close(self) -> None:
        self.closed = True

    def say(self, action: str, path: Path | str = PLACE, node: str | None = None, wedged: str | None = None) -> None:
        self.heard(Uevent(action, str(path), node, wedged))


class Bench:
    def __init__(self, *devices: Device, error: Exception | None = None) -> None:
        self.devices: list[Device] = list(devices)
        self.scans = 0
        self.monitor = FakeMonitor(error)
        self.events = EventStream()
        self.watch = DeviceWatch(self.scan, self.monitor, self.events, settle=SETTLE, first_scan=5)
        self.diffs: asyncio.Queue[DevicesChanged] = asyncio.Queue()
        self.events.subscribe(DevicesChanged, self.diffs.put_nowait)

    def scan(self) -> Iterable[Device]:
        self.scans += 1
        return list(self.devices)

    async def next(self) -> DevicesChanged:
        return await asyncio.wait_for(self.diffs.get(), 5)


@asynccontextmanager
async def running(*devices: Device, error: Exception | None = None) -> AsyncIterator[Bench]:
    bench = Bench(*devices, error=error)
    await bench.watch.start()
    yield bench
    await bench.watch.close()
    assert bench.monitor.closed


async def test_the_first_list_is_no_change() -> None:
    async with running(GPU, CPU) as bench:
        assert bench.watch.current() == (GPU, CPU)
        assert bench.diffs.empty()


async def test_nothing_is_timed_while_nothing_happens() -> None:
    async with running(GPU, CPU) as bench:
        loop: Any = asyncio.get_running_loop()
        assert [handle for handle in loop._scheduled if not handle.cancelled()] == []
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert bench.scans == 1


async def test_a_dozen_events_are_one_scan_and_one_diff() -> None:
    async with running(CPU) as bench:
        bench.devices = [GPU, CPU]
        for _ in range(12):
            bench.monitor.say("add", PLACE / "drm/card0")
        diff = await bench.next()
        assert (diff.added, diff.removed, diff.after, bench.scans) == ((GPU,), (), (GPU, CPU), 2)
        assert bench.diffs.empty()


async def test_a_device_that_goes() -> None:
    async with running(GPU, CARD, CPU) as bench:
        bench.devices = [CARD, CPU]
        bench.monitor.say("remove", PLACE / "drm/renderD128", "/dev/dri/renderD128")
        diff = await bench.next()
        assert (diff.removed, diff.added, diff.before) == ((GPU,), (), (GPU, CARD, CPU))
        assert bench.watch.current() == (CARD, CPU)


async def test_a_device_that_is_there_again_before_anybody_looked() -> None:
    for path, node in ((PLACE / "drm/renderD128", GPU.node), (PLACE, None)):
        async with running(GPU, CPU) as bench:
            bench.monitor.say("remove", path, node)
            diff = await bench.next()
            assert (diff.removed, diff.added) == ((GPU,), (GPU,))


async def test_things_below_a_device_that_go_are_not_its_end() -> None:
    async with running(GPU, CPU) as bench:
        bench.monitor.say("remove", PLACE / "drm/card0/card0-HDMI-A-1")
        bench.monitor.say("change", PLACE / "drm/card0", "/dev/dri/card0", wedged="none")
        assert (await bench.next()).recovered == (GPU,), "and nothing else"


async def test_the_worst_of_several_wedges_counts() -> None:
    async with running(GPU, CARD, CPU) as bench:
        for how in ("none", "rebind", "none"):
            bench.monitor.say("change", PLACE / "drm/card0", "/dev/dri/card0", wedged=how)
        diff = await bench.next()
        assert (diff.reset, diff.recovered) == ((GPU,), ())


async def test_a_driver_that_comes_later_changes_the_device() -> None:
    bare = replace(GPU, driver=None, node=None, problem="no driver is bound to the device")
    async with running(bare, CPU) as bench:
        bench.devices = [GPU, CPU]
        bench.monitor.say("bind")
        diff = await bench.next()
        assert (diff.changed, diff.added, diff.removed) == ((GPU,), (), ())


async def test_other_numbers_are_no_other_device() -> None:
    moved = replace(GPU, node="/dev/dri/renderD129")
    assert compare((GPU,), (moved,)).changed == (moved,)
    assert compare((GPU, CARD), (CARD, GPU)).removed == ()


async def test_memory_that_is_used_makes_no_change() -> None:
    pools = [(MemoryPool("vram", 10, used),) for used in (1, 9)]
    async with running(replace(GPU, pools=pools[0])) as bench:
        bench.devices = [replace(GPU, pools=pools[1])]
        bench.monitor.say("add")
        bench.monitor.say("add", CARD.directory or "")
        await bench.watch.rescan()
        assert bench.diffs.empty()


async def test_a_node_whose_permissions_change_is_looked_at_and_a_display_is_not() -> None:
    closed = replace(GPU, problem="may not be opened")
    async with running(closed, CPU) as bench:
        bench.devices = [GPU, CPU]
        bench.monitor.say("change", PLACE / "drm/card0", "/dev/dri/card0")
        assert bench.watch._timer is None
        bench.monitor.say("change", PLACE / "drm/renderD128", "/dev/dri/renderD128")
        assert (await bench.next()).changed == (GPU,)


async def test_lost_events_are_made_up_for_by_a_scan() -> None:
    async with running(CPU) as bench:
        bench.devices = [GPU, CPU]
        bench.monitor.lost()
        assert (await bench.next()).added == (GPU,)


@pytest.mark.parametrize("error", [ImportError("no libudev"), OSError(97, "no netlink")])
async def test_without_events_the_list_is_still_there(error: Exception) -> None:
    async with running(GPU, CPU, error=error) as bench:
        assert bench.watch.current() == (GPU, CPU)
        assert "changes of devices are not detected" in (bench.watch.degraded or "")
        bench.devices = [CPU]
        await bench.watch.rescan()
        assert bench.watch.current() == (CPU,)
        assert (await bench.next()).removed == (GPU,)


async def test_events_during_a_scan_are_looked_at_after_it() -> None:
    async with running(CPU) as bench:
        go, began = threading.Event(), threading.Event()

        def slow() -> list[Device]:
            found = list(bench.devices)
            began.set()
            go.wait(5)
            return found

        bench.watch._scan = slow
        bench.monitor.say("add")
        await asyncio.to_thread(began.wait, 5)
        bench.devices = [GPU, CPU]
        bench.monitor.say("add")
        await asyncio.sleep(2 * SETTLE)  # the second one falls due while the first scan has not ended
        go.set()
        assert (await bench.next()).added == (GPU,)


async def test_a_driver_that_does_not_answer_does_not_hold_up_the_start() -> None:
    go = threading.Event()

    def scan() -> list[Device]:
        go.wait(5)
        return [GPU]

    watch = DeviceWatch(scan, FakeMonitor(), EventStream(), first_scan=0.01)
    await watch.start()
    assert watch.current() == ()
    go.set()
    await watch.rescan()
    assert watch.current() == (GPU,)
    await watch.close()


async def test_a_scan_that_fails_keeps_what_was_known(caplog: pytest.LogCaptureFixture) -> None:
    async with running(GPU, CARD) as bench:

        def broken() -> list[Device]:
            raise ValueError("a bug")

        bench.watch._scan = broken
        bench.monitor.say("remove")
        diff = await bench.next()
        assert (diff.removed, diff.after) == ((GPU,), (CARD,))
        assert "the device scan failed" in caplog.text


# --- the monitor ---


class FakePyudev:
    """A pyudev.Monitor over one end of a socket pair: a byte is an event, what `trouble` holds an error."""

    def __init__(self) -> None:
        self.ours, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.ours.setblocking(False)
        self.trouble: list[OSError] = []

    def fileno(self) -> int:
        return self.ours.fileno()

    def poll(self, timeout: float) -> Any:
        if self.trouble:
            self.ours.recv(100)
            raise self.trouble.pop(0)
        try:
            data = self.ours.recv(100).decode()
        except BlockingIOError:
            return None
        return SimpleNamespace(
            action=data, subsystem="drm", sys_path=str(PLACE), device_node=None, properties={"WEDGED": "none"}
        )  # fmt: skip

    def close(self) -> None:
        self.ours.close()
        self.theirs.close()


@asynccontextmanager
async def listening() -> AsyncIterator[tuple[FakePyudev, asyncio.Queue[Uevent | None]]]:
    udev, heard = FakePyudev(), asyncio.Queue()  # type: ignore[var-annotated]
    monitor = PyudevMonitor(lambda: udev)
    monitor.open(heard.put_nowait, lambda: heard.put_nowait(None))
    yield udev, heard
    monitor.close()
    udev.close()


async def test_events_are_heard_as_they_come() -> None:
    async with listening() as (udev, heard):
        for _ in range(AT_ONCE + 3):
            udev.theirs.send(b"change")
        for _ in range(AT_ONCE + 3):
            event = await asyncio.wait_for(heard.get(), 5)
            assert event == Uevent("change", str(PLACE), None, "none")


async def test_an_overflow_is_told_and_the_next_event_is_heard() -> None:
    async with listening() as (udev, heard):
        udev.trouble.append(OSError(105, "No buffer space available"))
        udev.theirs.send(b"add")
        assert await asyncio.wait_for(heard.get(), 5) is None
        udev.theirs.send(b"bind")
        event = await asyncio.wait_for(heard.get(), 5)
        assert event is not None
        assert event.action == "bind"


async def test_a_socket_that_is_broken_for_good_is_let_go(caplog: pytest.LogCaptureFixture) -> None:
    async with listening() as (udev, heard):
        udev.trouble += [OSError(9, "Bad file descriptor")] * 100
        for _ in range(MOST_FAILURES + 5):
            udev.theirs.send(b"add")
        for _ in range(MOST_FAILURES):
            assert await asyncio.wait_for(heard.get(), 5) is None
        await asyncio.sleep(0)
        assert heard.empty()
        assert "cannot receive device events" in caplog.text


async def test_the_real_monitor_opens_and_closes() -> None:
    monitor = PyudevMonitor()
    monitor.open(lambda event: None, lambda: None)
    monitor.close()
