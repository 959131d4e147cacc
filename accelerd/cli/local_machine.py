"""This machine's devices and memory as accelctl sees them without a daemon; the same JSON as from one."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

from accelerd.base.ports import Clock, Roots

if TYPE_CHECKING:
    from accelerd.cli.connect import DaemonClient
    from accelerd.config import Config, ModelSpec, Problem
    from accelerd.devices.inventory import Inventory
    from accelerd.devices.model import Device
    from accelerd.devices.observer import DeviceObserver
    from accelerd.engines.llama_server.forecast import Forecaster
    from accelerd.memory.ledger import Ledger
    from accelerd.memory.measure import Meter
    from accelerd.memory.model import MemoryRequirement, MemorySnapshot


class LocalMachine:
    def __init__(self, roots: Roots, clock: Clock, inventory: Inventory | None = None) -> None:
        from accelerd.devices.inventory import Inventory as SystemInventory

        self._roots = roots
        self._clock = clock
        self._inventory = inventory or SystemInventory(roots)

    @cached_property
    def checked(self) -> tuple[Config | None, list[Problem]]:
        """The configuration or None, and its problems."""
        from accelerd import config

        found, problems = config.check(self._roots.config_file, self._roots.home)
        return found, list(problems)

    @cached_property
    def config(self) -> Config:
        """The configuration; the built-in one where the file is not valid."""
        from accelerd import config

        return self.checked[0] or config.Config()

    @cached_property
    def _observer(self) -> DeviceObserver:
        """The same one every time, because load and power are known from two looks."""
        from accelerd.devices.observer import DeviceObserver

        return DeviceObserver(self._roots, self._clock)

    @cached_property
    def _meter(self) -> Meter:
        from accelerd.memory.measure import Meter

        kept = self.config.memory
        return Meter(self._roots, self._clock, self._observer, reserve=kept.reserve, gpu_reserve=kept.gpu_reserve)

    def devices(self) -> list[Device]:
        return self._inventory.scan()

    def snapshot(self) -> MemorySnapshot:
        """All memory in use, as other programs'."""
        return self._meter.look(self.devices(), {})

    @cached_property
    def _scanned(self) -> list[Device]:
        return self.devices()

    @cached_property
    def _empty(self) -> Ledger:
        """The pools with no models in them, and nobody else."""
        from accelerd.memory.ledger import Ledger

        return Ledger(self.snapshot().pools).alone()

    @cached_property
    def _forecaster(self) -> Forecaster:
        from accelerd.engines.llama_server.forecast import Forecaster

        return Forecaster(limit=self.config.scheduler.memory)

    def ways(self, spec: ModelSpec) -> tuple[MemoryRequirement, ...]:
        """The ways to place a model of llama-server, by its header alone; the best first."""
        return self._forecaster.forecast(spec, spec, None, self._scanned).options

    @cached_property
    def room(self) -> int:
        """Bytes that one model may take at most: of main memory, or of all GPUs together."""
        from accelerd.memory.model import RAM

        pools = [pool for pool in self._empty.pools.values() if pool.contexts is None]
        own = sum(pool.room for pool in pools if pool.id != RAM and pool.backed_by is None)
        most = max(own, *(pool.room for pool in pools))
        limit = self.config.scheduler.memory
        return most if limit is None else min(most, limit)

    def takes(self, amounts: Mapping[str, int]) -> bool:
        """Would this be room enough if nothing else ran?"""
        limit = self.config.scheduler.memory
        return self._empty.fits(amounts) and (limit is None or sum(amounts.values()) <= limit)

    def too_big(self, spec: ModelSpec) -> int | None:
        """The bytes that a model needs which cannot fit whatever else is ended; None: it can."""
        ways = self.ways(spec)
        return None if any(self.takes(need.amounts) for need in ways) else ways[0].total

    def lacks(self, spec: ModelSpec, client: DaemonClient) -> int | None:
        """As `too_big`, which may say too much: the daemon knows what the program makes of the model."""
        from accelerd.cli.failure import Failure

        needed = self.too_big(spec)
        if needed is None:
            return None
        try:
            ways = [option["amounts"] for option in client.get("fit", model=spec.name)["options"]]
        except Failure:
            return needed  # it does not run, or does not know the model yet
        return None if any(map(self.takes, ways)) else sum(ways[0].values())

    def device_page(self) -> dict[str, Any]:
        """As GET /accelerd/v1/devices."""
        import msgspec

        from accelerd.control.devices import device_report

        looks = self._observer.look(self.devices())
        found = [msgspec.to_builtins(device_report(look, {})) for look in looks]
        return {"source": "direct", "devices": found, "degraded": None}

    def memory_page(self) -> dict[str, Any]:
        """As GET /accelerd/v1/memory: without models."""
        import msgspec

        from accelerd.memory.ledger import Ledger
        from accelerd.memory.report import report

        seen = self.snapshot()
        untold = "; ".join(f"{id}: {why}" for id, why in self._meter.untold.items())
        return {
            "source": "direct",
            **msgspec.to_builtins(report(Ledger(seen.pools), seen)),
            "waiting": [],
            "yielded": None,
            "degraded": f"unknown: {untold}" if untold else None,
        }
