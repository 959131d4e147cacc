"""What the managers made of the same traces, as a table and as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from tests.sim.baselines import BASELINES
from tests.sim.machine import Machine, Manager, Result
from tests.sim.ours import Ours
from tests.sim.trace import GB, Trace

MANAGERS: dict[str, Callable[[Machine], Manager]] = {"accelerd": Ours, **BASELINES}


def play(trace: Trace, manager: str) -> Result:
    """One manager over one trace, to its end."""
    machine = Machine(trace, manager)
    result = machine.run(MANAGERS[manager](machine))
    assert machine.over, f"{manager} leaves requests without an answer"
    return result


def together(results: Sequence[Result]) -> dict[str, Any]:
    """The figures of one manager, over all of its traces."""
    waits = sorted(wait for result in results for wait in result.waits)

    def share(part: float) -> float:
        return round(waits[min(len(waits) - 1, int(part * len(waits)))], 2) if waits else 0.0

    return {
        "manager": results[0].manager,
        "requests": sum(r.requests for r in results),
        "loads": sum(r.loads for r in results),
        "gb_moved": round(sum(r.bytes_moved for r in results) / GB),
        "wait_mean": round(sum(waits) / max(1, len(waits)), 3),
        "wait_p50": share(0.5),
        "wait_p95": share(0.95),
        "wait_p99": share(0.99),
        "wait_max": share(1.0),
        "failed": sum(len(r.failed) for r in results),
        "failed_loads": sum(r.failed_loads for r in results),
        "evicted_in_use": sum(r.evicted_in_use for r in results),
        "game_lacked_s": round(sum(r.game_lacked for r in results)),
        "game_lacked_gb_h": round(sum(r.game_lacked_bytes for r in results) / GB / 3600, 1),
    }


HEADS = {
    "manager": "",
    "loads": "loads",
    "gb_moved": "GB moved",
    "wait_mean": "mean wait",
    "wait_p50": "p50",
    "wait_p95": "p95",
    "wait_p99": "p99",
    "wait_max": "max",
    "failed": "failed",
    "failed_loads": "loads failed",
    "evicted_in_use": "evicted in use",
    "game_lacked_s": "game lacked s",
    "game_lacked_gb_h": "GB h",
}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The figures in columns; waits are seconds."""
    cells = [list(HEADS.values()), *([str(row[key]) for key in HEADS] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(HEADS))]
    lines = []
    for line in cells:
        first, *others = (
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=False))
        )
        lines.append("  ".join((first, *others)).rstrip())
    return "\n".join(lines)


def as_json(rows: Sequence[dict[str, Any]], **about: Any) -> str:
    return json.dumps({**about, "managers": list(rows)}, indent=2)
