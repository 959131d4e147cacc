"""The devices of this machine: what there is, who drives it, what it holds, whether this user may use it.

A snapshot for now. Must never know models; reads /sys, /dev and udev, and vendor libraries only when asked to.
"""

from accelerd.devices.inventory import inventory
from accelerd.devices.model import Device, MemoryPool

__all__ = ["Device", "MemoryPool", "inventory"]
