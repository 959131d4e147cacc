"""The NPU's neighbours: what works beside models on it and is known to disturb them. Each finding with its source.

What the NPU itself lacks (driver, firmware, memory that may be locked, amd_iommu=off) is told with the devices.
"""

from __future__ import annotations

from collections.abc import Iterator

from accelerd.cli.checks.base import Check, Surroundings
from accelerd.cli.failure import Failure
from accelerd.control.known_conflicts import RULES
from accelerd.devices import kfd
from accelerd.devices.files import text
from accelerd.memory.npu_rules import NPU_ENGINES

ROCM = next(rule for rule in RULES if rule.id == "rocm-beside-flm")


def neighbours(s: Surroundings) -> Iterator[Check]:
    """Is ROCm in use beside FastFlowLM?"""
    if not isinstance(s.status, Failure) and (hazards := s.status.get("hazards")):
        for one in hazards:
            yield Check("npu", "warn", f"{one['message']} ({one['source']})", one["fix"])
        return
    on_npu = [spec.name for spec in s.config.models.values() if spec.engine in NPU_ENGINES]
    strangers = [name for pid in kfd.users(s.roots.sys) if (name := text(s.roots.proc / str(pid) / "comm"))]
    if on_npu and strangers:
        words = {"npu": ", ".join(on_npu), "other": ", ".join(dict.fromkeys(strangers))}
        detail = f"{ROCM.message.format(**words)} ({ROCM.source})"
        yield Check("npu", "warn", detail, f"when it happens: {ROCM.fix.format(**words)}, or end it")
