"""The devices of this machine: what there is, who drives it, what it holds and does, whether this user may use it.

Must never know models; reads /sys, /dev, /proc and udev, and vendor libraries only where they add something.
"""

from accelerd.devices.inventory import inventory
from accelerd.devices.model import Device, MemoryPool, Trouble

__all__ = ["Device", "MemoryPool", "Trouble", "inventory"]
