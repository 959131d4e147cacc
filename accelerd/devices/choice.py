"""Which device a program uses that takes "the GPU", or "the NPU": llama.cpp's rule, as far as it can be known.

Cards come before the GPU in the processor, which may be a tiny one (Granite Ridge) or the best of the house; a program
that is told otherwise by its settings is not meant here. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable

from accelerd.devices.model import Device

COMPUTE = frozenset({"amdgpu", "i915", "xe", "nvidia", "nouveau"})  # drivers behind which a model can run


def first_gpu(devices: Iterable[Device]) -> Device | None:
    """The first usable GPU; None when there is none."""
    usable = [d for d in devices if d.kind == "gpu" and d.problem is None and d.driver in COMPUTE]
    return min(usable, key=lambda d: (d.apu is True, d.slot or "~"), default=None)


def first_npu(devices: Iterable[Device]) -> Device | None:
    """The first usable NPU; None when there is none."""
    usable = [d for d in devices if d.kind == "npu" and d.problem is None]
    return min(usable, key=lambda d: d.slot or "~", default=None)
