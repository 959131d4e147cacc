"""Does every model fit on this machine, do all of them together? Estimated from headers, without running a program.

Also whether the machine swaps: a model that is partly in swap answers a hundred times slower.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from accelerd.base.names import accelctl
from accelerd.base.sizes import human_size
from accelerd.cli.checks.base import Check, CheckContext
from accelerd.cli.text import count
from accelerd.devices.host import machine_memory
from accelerd.memory.model import RAM

MUCH_SWAP = 1 << 30  # bytes; desktops keep less than that there and never miss it


def memory(s: CheckContext) -> Iterator[Check]:
    found = machine_memory(s.roots)
    if found is None:
        yield Check("memory", "warn", "the size of the machine's memory is unknown", "set memory in [scheduler]")
        return
    total, available = found
    limit, models = s.config.scheduler.memory, s.config.models
    reserve = next(pool.reserve for pool in s.machine.snapshot().pools if pool.id == RAM)
    kept = f"{human_size(limit)} for models" if limit is not None else f"{human_size(reserve)} kept for other programs"
    facts = f"{human_size(available)} of {human_size(total)} free, {kept}"
    too_big = {name: needed for name, spec in models.items() if (needed := s.machine.too_big(spec))}
    if too_big:
        names = ", ".join(f"{name} ({human_size(needed)})" for name, needed in too_big.items())
        fix = f"{accelctl('fit', next(iter(too_big)))}   (shows which context fits; or use a smaller quantization)"
        yield Check("memory", "warn", f"{facts}: not enough for {names}", fix)
        return
    together: Counter[str] = Counter()
    for spec in models.values():
        together.update(s.machine.ways(spec)[0].amounts)
    if models:
        beside = "" if s.machine.takes(together) else ", not all at once"
        facts += f"; {count(len(models), 'model')}: {human_size(together.total())}{beside}"
    yield Check("memory", "ok", facts)


def swap(s: CheckContext) -> Iterator[Check]:
    used, total = s.swap()
    if not total:
        yield Check("swap", "ok", "no swap")
    elif used > MUCH_SWAP:
        text = f"{human_size(used)} of {human_size(total)} in use: a model that is partly in swap is very slow"
        yield Check("swap", "warn", text, "accelctl memory   (shows what uses memory; close what you do not need)")
    else:
        yield Check("swap", "ok", f"{human_size(used)} of {human_size(total)} in use")
