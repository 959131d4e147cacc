"""How much processes wait for memory: the kernel's pressure stall information. Reads one small file."""

from __future__ import annotations

from pathlib import Path

from accelerd.devices.files import lines
from accelerd.memory.model import Stall


def read_stall(proc: Path) -> Stall | None:
    """The last 10 s; None where the kernel does not tell (built without PSI, or started with psi=0)."""
    found: dict[str, float] = {}
    for line in lines(proc / "pressure/memory"):
        kind, *values = line.split()
        value = next((word.removeprefix("avg10=") for word in values if word.startswith("avg10=")), "")
        try:
            share = float(value)
        except ValueError:
            continue
        if kind in ("some", "full") and 0 <= share <= 100:
            found[kind] = share
    return Stall(found["some"], found.get("full", 0.0)) if "some" in found else None
