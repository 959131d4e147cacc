"""NVIDIA cards through NVML, if nvidia-ml-py and the library are installed.

The library is opened for each reading and closed afterwards, because an open library keeps cards awake; it is never
opened for a sleeping card. Returns readings and memory users, or a reason; never raises.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from msgspec import Struct, field
from msgspec.structs import replace

from accelerd.devices.files import MOST_BYTES
from accelerd.devices.host import memory_pool
from accelerd.devices.model import MemoryPool
from accelerd.devices.readings import Frequency, Readings

Importer = Callable[[str], Any]

THROTTLE = {  # nvmlClocksEventReasons
    0x4: "power limit",
    0x8: "hardware slowdown",
    0x20: "temperature",
    0x40: "temperature",
    0x80: "power brake",
}


class NvmlCard(Struct, frozen=True):
    """One card: its readings, and the memory of its users in bytes by pid."""

    readings: Readings
    processes: dict[int, int] = field(default_factory=dict)
    unsized: frozenset[int] = frozenset()  # pids with unknown usage, which is 0 in `processes`


def each_card(importer: Importer, visit: Callable[[Any, Any, str], None]) -> str | None:
    """Opens the library, calls visit(nvml, handle, slot) for every card, and closes it; why some or all are missing."""
    try:
        nvml = importer("pynvml")
    except Exception as error:  # a broken library raises all sorts of exceptions
        return f"cannot import pynvml: {first_line(error)}"
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        return first_line(error)
    try:
        for index in range(nvml.nvmlDeviceGetCount()):
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            visit(nvml, handle, short_slot(string(nvml.nvmlDeviceGetPciInfo(handle).busId)))
    except nvml.NVMLError as error:
        return first_line(error)
    finally:
        with contextlib.suppress(nvml.NVMLError):
            nvml.nvmlShutdown()
    return None


def look(
    slots: Iterable[str],
    memory: tuple[int, int] | None,
    importer: Importer = importlib.import_module,
    *,
    sensors: bool = True,
) -> tuple[dict[str, NvmlCard], str | None]:
    """The cards by PCI slot, and why some or all are missing.

    `memory` is the machine's, for cards without memory of their own. Without `sensors` only memory is read.
    """
    wanted = set(slots)
    found: dict[str, NvmlCard] = {}

    def visit(nvml: Any, handle: Any, slot: str) -> None:
        if slot in wanted:
            reader = NvmlReader(nvml, handle)
            found[slot] = reader.card(memory) if sensors else reader.holders(reader.pools(memory))

    return found, each_card(importer, visit)


class NvmlReader:
    """Reads one card while the library is open."""

    def __init__(self, nvml: Any, handle: Any) -> None:
        self._nvml = nvml
        self._handle = handle
        self._reasons: dict[str, str] = {}

    def card(self, memory: tuple[int, int] | None) -> NvmlCard:
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
        if told is None:  # GB10 and similar use main memory and report "not supported"
            return memory_pool("unified", memory)
        total, used = int(told.total), int(told.used)
        if not 0 < total <= MOST_BYTES:
            self._reasons["memory"] = f"out of range: {total}"
            return ()
        return (MemoryPool("vram", total, used if 0 <= used <= total else None),)

    def holders(self, pools: tuple[MemoryPool, ...]) -> NvmlCard:
        """The users of the card: compute and graphics processes. Programs that use Vulkan count as graphics."""
        processes: dict[int, int] = {}
        unsized = set()
        most = max((pool.total for pool in pools), default=MOST_BYTES)
        for name, function in (
            ("processes", "nvmlDeviceGetComputeRunningProcesses"),
            ("drawing processes", "nvmlDeviceGetGraphicsRunningProcesses"),
        ):
            for process in self._ask(name, function) or ():
                pid, used = int(process.pid), process.usedGpuMemory
                if used is None or not 0 <= used <= most:  # unknown in some containers; all bits set in older versions
                    unsized.add(pid)
                    used = 0
                processes[pid] = max(processes.get(pid, 0), int(used))
        unsized -= {pid for pid, used in processes.items() if used}
        return NvmlCard(Readings(pools=pools, reasons=self._reasons), processes, frozenset(unsized))

    def _clocks(self) -> Iterator[tuple[str, Frequency]]:
        for name, domain in (("sclk", self._nvml.NVML_CLOCK_GRAPHICS), ("mclk", self._nvml.NVML_CLOCK_MEM)):
            now = self._ask(name, "nvmlDeviceGetClockInfo", domain)
            most = self._ask(f"highest {name}", "nvmlDeviceGetMaxClockInfo", domain)
            if now is not None or most is not None:
                yield name, Frequency(now, None, most)

    def _ask(self, name: str, function: str, *arguments: Any) -> Any:
        """The library's answer, or None; records the reason."""
        try:
            return getattr(self._nvml, function)(self._handle, *arguments)
        except (self._nvml.NVMLError, AttributeError) as error:  # this version may not have the function
            self._reasons[name] = first_line(error)
            return None


def within(value: float, low: float, high: float) -> float | None:
    return float(value) if low <= value <= high else None


def short_slot(bus: str) -> str:
    """ "00000000:01:00.0" (NVML's domain has eight digits) as "0000:01:00.0"."""
    domain, _, rest = bus.lower().partition(":")
    return f"{domain[-4:]:0>4}:{rest}"


def string(value: bytes | str) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
