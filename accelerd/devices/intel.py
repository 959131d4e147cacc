"""What i915 and xe tell of an Intel GPU. An integrated one has no memory of its own: it is the machine's.

A discrete card's memory is told by neither driver in a file; it stays unknown until somebody uses it (fdinfo).
"""

from __future__ import annotations

from accelerd.devices.host import Host
from accelerd.devices.model import MemoryPool
from accelerd.devices.udev import PciFunction

DRIVERS = frozenset({"i915", "xe"})


def integrated(function: PciFunction) -> bool:
    """Intel's own graphics sit on the root bus; a card is always behind a port."""
    return function.slot.split(":")[:2] == ["0000", "00"]


def pools(function: PciFunction, host: Host) -> tuple[MemoryPool, ...]:
    if not integrated(function) or host.memory is None:
        return ()
    total, available = host.memory
    return (MemoryPool("unified", total, total - available),)
