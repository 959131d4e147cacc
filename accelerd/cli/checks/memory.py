"""Does every model fit on this machine, do all of them together? Estimated from headers, without running a program.

Also whether the machine swaps: a model that is partly in swap answers a hundred times slower.
"""

from __future__ import annotations

from collections.abc import Iterator

from accelerd.base.sizes import human_size
from accelerd.cli.checks.base import Check, CheckContext
from accelerd.cli.text import count
from accelerd.devices.host import machine_memory

MUCH_SWAP = 1 << 30  # bytes; desktops keep less than that there and never miss it


def memory(s: CheckContext) -> Iterator[Check]:
    from accelerd.engines.llama_server.forecast import Forecaster
    from accelerd.memory.ledger import Ledger
    from accelerd.memory.model import RAM

    found = machine_memory(s.roots)
    if found is None:
        yield Check("memory", "warn", "the size of the machine's memory is unknown", "set memory in [scheduler]")
        return
    total, available = found
    ledger = Ledger(s.machine.snapshot().pools).alone()
    limit = s.config.scheduler.memory
    forecaster = Forecaster()
    options = {name: forecaster.forecast(spec, spec, None, s.devices).options for name, spec in s.config.models.items()}
    kept = (
        f"{human_size(limit)} for models"
        if limit is not None
        else f"{human_size(ledger.pools[RAM].reserve)} kept for other programs"
    )
    facts = f"{human_size(available)} of {human_size(total)} free, {kept}"
    too_big = {
        name: ways[0].total
        for name, ways in options.items()
        if not any(ledger.fits(need.amounts) and (limit is None or need.total <= limit) for need in ways)
    }
    if too_big:
        names = ", ".join(f"{name} ({human_size(needed)})" for name, needed in too_big.items())
        fix = f"accelctl fit {next(iter(too_big))}   (shows the context that would fit; or use a smaller quantization)"
        yield Check("memory", "warn", f"{facts}: not enough for {names}", fix)
        return
    if options:
        together: dict[str, int] = {}
        for ways in options.values():
            for pool, amount in ways[0].amounts.items():
                together[pool] = together.get(pool, 0) + amount
        needed = sum(together.values())
        beside = ledger.fits(together) and (limit is None or needed <= limit)
        facts += f"; {count(len(options), 'model')}: {human_size(needed)}" + ("" if beside else ", not all at once")
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
