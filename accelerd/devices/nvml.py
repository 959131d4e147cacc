"""NVIDIA cards through NVML, where nvidia-ml-py and its library are there: what the driver tells nobody else.

Opened for one look and closed again, because an open library keeps cards awake; never opened for a card that sleeps.
Answers with Readings and holders, or with a reason; never with an exception.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from accelerd.devices.files import MOST_BYTES
from accelerd.devices.model import MemoryPool
from accelerd.devices.readings import Frequency, Readings
from accelerd.devices.vendors import first_line, short_slot, text

Importer = Callable[[str], Any]

THROTTLE = {  # nvmlClocksEventReasons, and the words for them
    0x4: "power limit",
    0x8: "hardware slowdown",
    0x20: "temperature",
    0x40: "temperature",
    0x80: "power brake",
}


@dataclass(frozen=True)
class Card:
    """One card: its readings, and bytes by pid of those who use it."""

    readings: Readings
    processes: dict[int, int] = field(default_factory=dict)
    unsized: frozenset[int] = frozenset()  # of them, those of which it does not tell how much: theirs is 0 above


def look(
    slots: Iterable[str],
    memory: tuple[int, int] | None,
    importer: Importer = importlib.import_module,
    *,
    sensors: bool = True,
) -> tuple[dict[str, Card], str | None]:
    """The cards by PCI slot, and why some or all are missing. `memory`: the machine's, for cards that have none.

    Without `sensors` nothing but the memory is asked for.
    """
    wanted = set(slots)
    found: dict[str, Card] = {}
    try:
        nvml = importer("pynvml")
    except Exception as error:  # a broken library says so in many ways
        return found, f"cannot import pynvml: {first_line(error)}"
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        return found, first_line(error)
    reason = None
    try:
        for index in range(nvml.nvmlDeviceGetCount()):
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            slot = short_slot(text(nvml.nvmlDeviceGetPciInfo(handle).busId))
            if slot in wanted:
                reader = Reader(nvml, handle)
                found[slot] = reader.card(memory) if sensors else reader.holders(reader.pools(memory))
    except nvml.NVMLError as error:
        reason = first_line(error)
    finally:
        with contextlib.suppress(nvml.NVMLError):
            nvml.nvmlShutdown()
    return found, reason


class Reader:
    """One card while the library is open."""

    def __init__(self, nvml: Any, handle: Any) -> None:
        self._nvml = nvml
        self._handle = handle
        self._reasons: dict[str, str] = {}

    def card(self, memory: tuple[int, int] | None) -> Card:
        nvml, ask = self._nvml, self._ask
        pools = self.pools(memory)
        power, load = ask("power", "nvmlDeviceGetPowerUsage"), ask("busy", "nvmlDeviceGetUtilizationRates")
        temperature = ask("temperature", "nvmlDeviceGetTemperature", nvml.NVML_TEMPERATURE_GPU)
        bits = ask("throttling", "nvmlDeviceGetCurrentClocksThrottleReasons") or 0
        readings = Readings(
            busy=within(load.gpu, 0, 100) if load is not None else None,
            clocks=dict(self._clocks()),
            power=within(power / 1000, 0, 5000) if power is not None else None,
            temperature=within(temperature, -50, 150) if temperature is not None else None,
            pools=pools,
            throttling=tuple({word: None for bit, word in THROTTLE.items() if bits & bit}),
            reasons=self._reasons,
        )
        holders = self.holders(pools)
        return replace(holders, readings=readings)

    def pools(self, memory: tuple[int, int] | None) -> tuple[MemoryPool, ...]:
        told = self._ask("memory", "nvmlDeviceGetMemoryInfo")
        if told is None:  # GB10 and its like share the machine's memory, and say "not supported"
            return (MemoryPool("unified", memory[0], memory[0] - memory[1]),) if memory is not None else ()
        total, used = int(told.total), int(told.used)
        if not 0 < total <= MOST_BYTES:
            self._reasons["memory"] = f"out of range: {total}"
            return ()
        return (MemoryPool("vram", total, used if 0 <= used <= total else None),)

    def holders(self, pools: tuple[MemoryPool, ...]) -> Card:
        """Who uses it: programs that compute, and those that draw, which Vulkan's are to NVIDIA."""
        processes: dict[int, int] = {}
        unsized = set()
        most = max((pool.total for pool in pools), default=MOST_BYTES)
        for name, function in (
            ("processes", "nvmlDeviceGetComputeRunningProcesses"),
            ("drawing processes", "nvmlDeviceGetGraphicsRunningProcesses"),
        ):
            for process in self._ask(name, function) or ():
                pid, used = int(process.pid), process.usedGpuMemory
                if used is None or not 0 <= used <= most:  # in some containers; all bits set in older versions
                    unsized.add(pid)
                    used = 0
                processes[pid] = max(processes.get(pid, 0), int(used))
        unsized -= {pid for pid, used in processes.items() if used}
        return Card(Readings(pools=pools, reasons=self._reasons), processes, frozenset(unsized))

    def _clocks(self) -> Iterator[tuple[str, Frequency]]:
        for name, domain in (("sclk", self._nvml.NVML_CLOCK_GRAPHICS), ("mclk", self._nvml.NVML_CLOCK_MEM)):
            now = self._ask(name, "nvmlDeviceGetClockInfo", domain)
            most = self._ask(f"highest {name}", "nvmlDeviceGetMaxClockInfo", domain)
            if now is not None or most is not None:
                yield name, Frequency(now, None, most)

    def _ask(self, name: str, function: str, *arguments: Any) -> Any:
        """The library's answer, or None with the reason noted."""
        try:
            return getattr(self._nvml, function)(self._handle, *arguments)
        except (self._nvml.NVMLError, AttributeError) as error:  # this version of it may lack the function
            self._reasons[name] = first_line(error)
            return None


def within(value: float, low: float, high: float) -> float | None:
    return float(value) if low <= value <= high else None
