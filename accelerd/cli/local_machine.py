"""This machine's memory, measured by accelctl where there is no daemon. The same JSON as from one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from accelerd.cli.context import Context

if TYPE_CHECKING:
    from accelerd.devices.inventory import Inventory
    from accelerd.devices.model import Device


class LocalMachine:
    """This machine, measured without a daemon."""

    def __init__(self, context: Context, inventory: Inventory | None = None) -> None:
        from accelerd import config
        from accelerd.devices.inventory import Inventory as SystemInventory
        from accelerd.devices.observer import DeviceObserver
        from accelerd.memory.measure import Meter

        roots, clock = context.roots, context.clock
        self.config, _ = config.check(roots.config_file, roots.home)
        reserves = (self.config or config.Config()).memory
        self._inventory = inventory or SystemInventory(roots)
        self._meter = Meter(
            roots, clock, DeviceObserver(roots, clock), reserve=reserves.reserve, gpu_reserve=reserves.gpu_reserve
        )

    def devices(self) -> list[Device]:
        """The devices now."""
        return self._inventory.scan()

    def look(self) -> dict[str, Any]:
        """As GET /accelerd/v1/memory: with all memory counted as other programs', and no models."""
        import msgspec

        from accelerd.memory.ledger import Ledger
        from accelerd.memory.report import report

        seen = self._meter.look(self.devices(), {})
        untold = "; ".join(f"{id}: {why}" for id, why in self._meter.untold.items())
        return {
            "source": "direct",
            **msgspec.to_builtins(report(Ledger(seen.pools), seen)),
            "waiting": [],
            "yielded": None,
            "degraded": f"unknown: {untold}" if untold else None,
        }
