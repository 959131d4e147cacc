"""python -m tests.sim: a day of requests over thirty models, by accelerd's scheduler and by others."""

from __future__ import annotations

import argparse

from tests.sim.report import MANAGERS, as_json, play, table, together
from tests.sim.trace import CAPACITY, GB, make_trace


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="the first trace (default 1)")
    parser.add_argument("--seeds", type=int, default=1, help="how many traces, added up (default 1)")
    parser.add_argument("--days", type=float, default=1.0, help="length of a trace (default 1)")
    parser.add_argument("--kind", choices=("day", "random"), default="day", help="day: structured; random: none")
    parser.add_argument("--only", choices=sorted(MANAGERS), action="append", help="these managers alone")
    parser.add_argument("--json", action="store_true", help="figures for programs")
    wanted = parser.parse_args()
    seeds = range(wanted.seed, wanted.seed + wanted.seeds)
    traces = [make_trace(seed, wanted.days, wanted.kind) for seed in seeds]
    rows = [together([play(trace, name) for trace in traces]) for name in wanted.only or MANAGERS]
    about = {"kind": wanted.kind, "days": wanted.days, "seeds": list(seeds)}
    if wanted.json:
        print(as_json(rows, **about))
        return
    first = traces[0]
    size = sum(model.size for model in first.models)
    print(
        f"{len(first.models)} models of {size / GB:.0f} GB on {CAPACITY / GB:.0f} GB, {rows[0]['requests']} requests, "
        f"kind {wanted.kind}, {wanted.days:g} days, seeds {seeds[0]} to {seeds[-1]}; waits in seconds\n"
    )
    print(table(rows))


if __name__ == "__main__":
    main()
