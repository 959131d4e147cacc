"""Reads one device repeatedly: amdgpu, i915 and xe, NPU drivers, and drivers with only a hwmon directory.

Blocking, to be run in a thread, because a driver may be slow. Checks the runtime state first and does not touch a
sleeping device. Never raises because of a driver: ValueCache handles fallbacks, last values and reasons.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

from msgspec.structs import replace

from accelerd.base.ports import Clock, Roots
from accelerd.devices import amdgpu, gpu_metrics
from accelerd.devices.amdgpu import MOST_MHZ
from accelerd.devices.files import MOST_BYTES, AttributeFiles, UnreadableValue, names
from accelerd.devices.host import machine_memory, memory_pool
from accelerd.devices.hwmon import Hwmon, main_temperature
from accelerd.devices.inventory import INTEL_DRIVERS, below_sys
from accelerd.devices.model import Device, MemoryPool, unmeasured
from accelerd.devices.readings import Frequency, Readings, ValueCache

LEVEL = re.compile(r"[a-z_]{2,24}$")
ASLEEP = frozenset({"suspended", "suspending"})


class DeviceReader:
    """Reads one device. For nvidia only its runtime state, see nvml.py."""

    def __init__(self, device: Device, roots: Roots, clock: Clock, files: AttributeFiles | None = None) -> None:
        self.device = device
        self._directory = below_sys(device.directory, roots) if device.directory is not None else None
        self._roots = roots
        self._files = files or AttributeFiles()
        self._values = ValueCache(clock)
        self._driver: Driver | None = None
        if self._directory is not None and (driver := DRIVERS.get(device.driver or "")):
            self._driver = driver(device, self._directory, self._files, self._values, clock)

    def read(self) -> Readings:
        return self._taken(lambda driver: driver.read())

    def memory(self) -> Readings:
        """Only the pools: a few small files, no sensor, no query of the firmware."""
        return self._taken(lambda driver: driver.memory())

    def _taken(self, ask: Callable[[Driver], Readings]) -> Readings:
        self._values.begin()
        if self.device.kind == "cpu":
            readings = Readings(pools=memory_pool("ram", machine_memory(self._roots)))
        elif self._asleep():
            self._values.forget()
            return Readings(asleep=True, pools=unmeasured(self.device.pools))
        elif self._driver is None:
            driver = self.device.driver
            readings = Readings(reasons={"all": f"the driver {driver} is not supported" if driver else "no driver"})
        else:
            readings = ask(self._driver)
        if not readings.pools:
            integrated = self.device.driver in INTEL_DRIVERS and self.device.unified
            pools = memory_pool("unified", machine_memory(self._roots)) if integrated else ()
            readings = replace(readings, pools=pools or unmeasured(self.device.pools))
        stale, reasons = dict(self._values.stale), {**self._values.reasons, **readings.reasons}
        return replace(readings, stale=stale, reasons=reasons)

    def _asleep(self) -> bool:
        """Is the device suspended? Reading most attributes would wake it."""
        if self._directory is None:
            return False
        try:
            return self._files.text(self._directory / "power/runtime_status") in ASLEEP
        except UnreadableValue:
            return False  # no power management: the device is on


class RateCounter:
    """The increase per second of a growing counter."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._last: tuple[float, float] | None = None

    def rate(self, value: float) -> float:
        """UnreadableValue at the first reading, and if the counter went backwards."""
        now = self._clock.monotonic()
        last, self._last = self._last, (now, value)
        if last is None or now <= last[0] or value < last[1]:
            raise UnreadableValue("available from the second reading on", absent=True)
        return (value - last[1]) / (now - last[0])


class Driver:
    """A driver with nothing but a hwmon directory; the base of those that have more."""

    def __init__(
        self, device: Device, directory: Path, files: AttributeFiles, values: ValueCache, clock: Clock
    ) -> None:
        self._device = device
        self._directory = directory
        self._files = files
        self._values = values
        self._sensors = Hwmon(directory, files)
        self._counter = RateCounter(clock)

    def read(self) -> Readings:
        get, sensors = self._values.get, self._sensors
        temperatures = get("temperatures", sensors.temperatures) or {}
        return Readings(
            power=get("power", sensors.power, lambda: self._counter.rate(sensors.energy())),
            temperature=get("temperature", partial(main_temperature, temperatures)),
            temperatures=temperatures,
        )

    def memory(self) -> Readings:
        """Only the pools."""
        return Readings()

    def _number(self, name: str, low: int, high: int) -> int:
        return self._files.number(self._directory / name, low, high)


class Amdgpu(Driver):
    _before: dict[str, float] | None = None  # the metrics of the reading before

    def read(self) -> Readings:
        get, sensors = self._values.get, self._sensors
        metrics = get("gpu_metrics", self._metrics) or {}
        fresh = "gpu_metrics" not in self._values.stale

        def measured(name: str, low: float = 0, high: float = 1e9) -> Callable[[], float]:
            def way() -> float:
                if name not in metrics or not fresh:
                    raise UnreadableValue(f"no {name} in gpu_metrics", absent=True)
                if not low <= metrics[name] <= high:
                    raise UnreadableValue(f"{name} in gpu_metrics is out of range: {metrics[name]:g}")
                return metrics[name]

            return way

        temperatures = get("temperatures", sensors.temperatures) or {}
        throttling = gpu_metrics.throttling(metrics, self._before) if fresh else ()
        self._before = metrics if fresh and metrics else None
        read, write = get("dram_read", measured("dram_reads")), get("dram_write", measured("dram_writes"))
        return Readings(
            busy=get("busy", lambda: float(self._number("gpu_busy_percent", 0, 100)), measured("busy", 0, 100)),
            clocks=self._clocks(measured),
            power=get("power", sensors.power, measured("power", 0, 2000)),
            temperature=get("temperature", partial(main_temperature, temperatures), measured("temperature", -50, 150)),
            temperatures=temperatures,
            pools=self._pools(),
            level=get("level", self._level),
            throttling=throttling,
            dram_read=read * 1e6 if read is not None else None,
            dram_write=write * 1e6 if write is not None else None,
            npu_busy=gpu_metrics.npu_load(metrics) if fresh else None,
            npu_power=get("npu_power", measured("npu_power", 0, 200)),
            npu_clock=get("npu_clock", measured("npuclk", 0, MOST_MHZ)),
        )

    def memory(self) -> Readings:
        return Readings(pools=self._pools())

    def _clocks(self, measured: Callable[..., Callable[[], float]]) -> dict[str, Frequency]:
        """From the sensor, which is exact; else the star, which may be missing; else the metrics, which are a mean."""
        found = {}
        for name in ("sclk", "mclk", "fclk"):
            steps = self._values.get(f"{name} steps", partial(self._steps, name))

            def starred(steps: amdgpu.ClockSteps | None = steps) -> float:
                if steps is None or steps.now is None:
                    raise UnreadableValue("no star", absent=True)
                return float(steps.now)

            now = self._values.get(name, partial(self._sensors.clock, name), starred, measured(name, 0, MOST_MHZ))
            if steps is not None or now is not None:
                lowest, highest = (steps.lowest, steps.highest) if steps is not None else (None, None)
                found[name] = Frequency(now, lowest, highest)
        return found

    def _steps(self, name: str) -> amdgpu.ClockSteps:
        found = amdgpu.clock_steps(self._files.text(self._directory / f"pp_dpm_{name}"))
        if found is None:
            raise UnreadableValue(f"pp_dpm_{name}: contains no clock")
        return found

    def _metrics(self) -> dict[str, float]:
        data = self._files.bytes(self._directory / "gpu_metrics")
        if not data:
            raise UnreadableValue("gpu_metrics: empty")
        found = gpu_metrics.decode(data)
        if not found:
            raise UnreadableValue(f"gpu_metrics: unknown version {gpu_metrics.version(data)}, or incomplete")
        return found

    def _level(self) -> str:
        level = self._files.text(self._directory / "power_dpm_force_performance_level")
        if not LEVEL.match(level):
            raise UnreadableValue(f"power_dpm_force_performance_level: {level[:20]!r} is not a level")
        return level

    def _pools(self) -> tuple[MemoryPool, ...]:
        used: dict[str, int | None] = {}
        for pool in self._device.pools:
            file = amdgpu.POOL_FILES.get(pool.name)
            if file is not None:
                way = partial(self._number, f"mem_info_{file}_used", 0, min(pool.total, MOST_BYTES))
                used[pool.name] = self._values.get(f"memory {pool.name}", way)
        parts = [used[name] for name in ("vram", "gtt") if name in used]
        known = [part for part in parts if part is not None]
        used["unified"] = sum(known) if len(known) == len(parts) else None
        return tuple(replace(pool, used=used.get(pool.name)) for pool in self._device.pools)


class Intel(Driver):
    """i915 and xe. Their load comes only from fdinfo."""

    def read(self) -> Readings:
        get = self._values.get
        where = self._frequencies()
        clock = Frequency(
            now=get("sclk", *[self._mhz(path) for path in where["now"]]),
            lowest=get("lowest sclk", *[self._mhz(path) for path in where["lowest"]]),
            highest=get("highest sclk", *[self._mhz(path) for path in where["highest"]]),
        )
        return replace(
            super().read(),
            clocks={"sclk": clock} if clock != Frequency() else {},
            throttling=self._throttling(),
            reasons=self._untold(),
        )

    def memory(self) -> Readings:
        return Readings(reasons=self._untold())

    def _untold(self) -> dict[str, str]:
        told = self._device.unified
        return {} if told else {"memory": f"the driver {self._device.driver} does not report memory sizes"}

    def _frequencies(self) -> dict[str, list[Path]]:
        """Files of the first graphics tile: below the device with xe, below the card with i915."""
        xe = self._directory / "tile0/gt0/freq0"
        cards = [self._directory / "drm" / name for name in names(self._directory / "drm") if name.startswith("card")]
        i915 = [card / "gt/gt0" for card in cards]
        return {
            "now": [
                xe / "act_freq",
                *(gt / "rps_act_freq_mhz" for gt in i915),
                *(c / "gt_act_freq_mhz" for c in cards),
            ],
            "lowest": [xe / "rpn_freq", *(gt / "rps_RPn_freq_mhz" for gt in i915)],
            "highest": [xe / "max_freq", *(gt / "rps_max_freq_mhz" for gt in i915)],
        }

    def _mhz(self, path: Path) -> Callable[[], float]:
        return lambda: float(self._files.number(path, 0, MOST_MHZ))

    def _throttling(self) -> tuple[str, ...]:
        where = self._frequencies()["now"]
        found: dict[str, None] = {}
        for directory, prefix in [(where[0].parent / "throttle", "reason_")] + [
            (path.parent, "throttle_reason_") for path in where[1:]
        ]:
            for name in names(directory):
                if name.startswith(prefix) and name != "throttle_reason_status":
                    try:
                        held = self._files.number(directory / name, 0, 1)
                    except UnreadableValue:
                        continue
                    if held:
                        found[name.removeprefix(prefix)] = None
        return tuple(found)


class IntelNpu(Driver):
    """ivpu: busy time, clock and memory."""

    def read(self) -> Readings:
        now = self._values.get("npuclk", lambda: self._number("npu_current_frequency_mhz", 0, MOST_MHZ))
        most = self._values.get("highest npuclk", lambda: self._number("npu_max_frequency_mhz", 0, MOST_MHZ))
        return Readings(
            busy=self._values.get("busy", self._busy),
            clocks={"npuclk": Frequency(now, None, most)} if now is not None or most is not None else {},
            pools=self.memory().pools,
        )

    def memory(self) -> Readings:
        memory = self._values.get("memory", lambda: self._number("npu_memory_utilization", 0, MOST_BYTES))
        return Readings(pools=(MemoryPool("ram", memory, memory),) if memory else ())

    def _busy(self) -> float:
        return min(100.0, self._counter.rate(self._number("npu_busy_time_us", 0, 1 << 62)) / 1e4)


DRIVERS: dict[str, type[Driver]] = {
    "amdgpu": Amdgpu,
    **dict.fromkeys(("i915", "xe"), Intel),
    **dict.fromkeys(("intel_vpu", "ivpu"), IntelNpu),
    **dict.fromkeys(("nouveau", "amdxdna"), Driver),
}
