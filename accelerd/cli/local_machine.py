"""This machine's memory: from the daemon, or measured by accelctl where there is none. The same JSON either way."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from accelerd.cli.context import Context
from accelerd.cli.failure import Failure
from accelerd.cli.watching import Fetch

if TYPE_CHECKING:
    from accelerd.devices.inventory import Inventory
    from accelerd.devices.model import Device

# Codes of failures after which accelctl measures itself: no daemon, or one that does not know the route.
WITHOUT_DAEMON = frozenset({"not_running", "not_reachable", "not_permitted", "no_answer", "not_found"})


def source(context: Context, route: str, directly: Fetch) -> Fetch:
    """Fetches `route` from the daemon; once there is none, calls `directly` from then on."""
    daemon = True

    def ask() -> dict[str, Any]:
        nonlocal daemon
        if daemon:
            try:
                return {"source": "daemon", **context.client.get(route)}
            except Failure as failure:
                if failure.code not in WITHOUT_DAEMON:
                    raise
                daemon = False
        return directly()

    return ask


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
