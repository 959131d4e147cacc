"""Turns samples into the table, the goals and the JSON.

Differences and ratios are taken inside each round and only then summarised: the machine's drift from one round to the
next is not a property of a contender.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass

from .rounds import ROWS, Results

WIDTH = 46
CELL = 20


@dataclass(frozen=True)
class Goal:
    """What accelerd should reach: a limit on its median, or on its median multiple of nginx."""

    limit: float
    text: str
    times_nginx: bool = False


@dataclass(frozen=True)
class Line:
    """One line of the table. `added`: less the direct value of the same round."""

    row: str | None  # None: at rest
    key: str
    title: str
    added: bool = False
    best: Callable[[list[float]], float] = min
    goal: Goal | None = None
    ratio: bool = False
    digits: int = 0


CPU_GOAL = Goal(3.0, "CPU <= 3 x nginx", times_nginx=True)
LATENCY_GOAL = Goal(250.0, "added p50 <= 250 us")
START_GOAL = Goal(0.4, "start <= 0.4 s")
RSS_GOAL = Goal(50.0, "RSS <= 50 MB")
IDLE_GOAL = Goal(0.0, "no wake-ups")
LOADED_GOAL = Goal(0.5, "wake-ups <= 0.5/s")
OTHERS = ("llama-swap", "litellm")


def _load_lines(row: str, cpu: Goal | None) -> tuple[Line, ...]:
    return (
        Line(row, "cpu", "CPU per request, us", goal=cpu, ratio=True, digits=1),
        Line(row, "rps", "requests/s", best=max),
        Line(row, "p50", "p50, us"),
        Line(row, "p99", "p99, us"),
    )


def _latency_lines(row: str, goal: Goal | None) -> tuple[Line, ...]:
    return (
        Line(row, "p50", "p50, us"),
        Line(row, "p50", "added p50, us", added=True, goal=goal, ratio=True),
        Line(row, "p99", "added p99, us", added=True),
    )


LINES = (
    *_latency_lines("chat1", LATENCY_GOAL),
    Line("chat1", "cpu", "CPU per request, us", ratio=True, digits=1),
    *_latency_lines("chat1x2", LATENCY_GOAL),
    *_load_lines("embeddings16", CPU_GOAL),
    *_load_lines("embeddings16x2", CPU_GOAL),
    Line("stream16", "ttft_p50", "time to first token p50, us"),
    Line("stream16", "ttft_p50", "added time to first token p50, us", added=True, goal=LATENCY_GOAL, ratio=True),
    Line("stream16", "ttft_p99", "added time to first token p99, us", added=True),
    Line("stream16", "delay_p50", "chunk delay p50, us"),
    Line("stream16", "delay_p50", "added chunk delay p50, us", added=True),
    Line("stream16", "delay_p99", "added chunk delay p99, us", added=True),
    Line("stream16", "cpu_chunk", "CPU per chunk, us", goal=CPU_GOAL, ratio=True, digits=1),
    *_latency_lines("assembled1", None),
    *_load_lines("assembled16", None),
    Line(None, "start", "start to first 200, s", goal=START_GOAL, digits=3),
    Line(None, "rss_idle", "RSS idle, MB", goal=RSS_GOAL, digits=1),
    Line(None, "pss_idle", "PSS idle, MB", digits=1),
    Line(None, "rss_loaded", "RSS after load, MB", goal=RSS_GOAL, digits=1),
    Line(None, "pss_loaded", "PSS after load, MB", digits=1),
    Line(None, "wakeups_idle", "wake-ups/s idle, nothing loaded", goal=IDLE_GOAL, digits=1),
    Line(None, "wakeups_loaded", "wake-ups/s idle, models loaded", goal=LOADED_GOAL, digits=1),
    Line(None, "cpu_idle", "CPU idle, ms/s", digits=2),
    Line(None, "cpu_loaded", "CPU idle, models loaded, ms/s", digits=2),
)


@dataclass(frozen=True)
class Value:
    """A line's value for one contender."""

    median: float
    best: float


def values(results: Results, line: Line, contender: str) -> list[float]:
    """The line's value in each round; empty where it means nothing."""
    if line.row is None:
        return results.rest.get(contender, {}).get(line.key, [])
    samples = results.samples[line.row]
    mine = [sample[line.key] for sample in samples[contender] if line.key in sample]
    if not line.added:
        return mine
    return [] if contender == "direct" else [a - b[line.key] for a, b in zip(mine, samples["direct"], strict=True)]


def summary(results: Results, line: Line, contender: str) -> Value | None:
    found = values(results, line, contender)
    return Value(statistics.median(found), line.best(found)) if found else None


def ratio(results: Results, line: Line, one: str = "accelerd", other: str = "nginx") -> float | None:
    """Median over the rounds of one contender's value divided by another's; None where that means nothing."""
    if not {one, other} <= set(results.contenders):
        return None
    pairs = zip(values(results, line, one), values(results, line, other), strict=True)
    found = [a / b for a, b in pairs if b > 0]
    return statistics.median(found) if found else None


def verdict(results: Results, line: Line) -> bool | None:
    """Is the line's goal reached? None: there is no goal, or nothing to judge it by."""
    if line.goal is None or "accelerd" not in results.contenders:
        return None
    if line.goal.times_nginx:
        value = ratio(results, line)
    else:
        found = summary(results, line, "accelerd")
        value = found.median if found else None
    return None if value is None else value <= line.goal.limit


def _remark(results: Results, line: Line) -> str:
    parts = []
    multiple = ratio(results, line) if line.ratio else None
    if multiple is not None:
        parts.append(f"{multiple:.1f} x nginx")
    for other in OTHERS:
        if line.ratio and (times := ratio(results, line, other, "accelerd")) is not None:
            parts.append(f"{other} {times:.1f} x accelerd")
    if line.goal is not None:
        reached = verdict(results, line)
        parts.append(f"{line.goal.text}: {'not judged' if reached is None else 'ok' if reached else 'MISS'}")
    return "; ".join(parts)


def table(results: Results) -> str:
    """The table, as text."""
    titles = {row.key: row.title for row in ROWS}
    out = [" " * WIDTH + "".join(f"{name:>{CELL}}" for name in results.contenders)]
    section: str | None = ""
    for line in LINES:
        if line.row != section:
            section = line.row
            out.append(titles[section] if section else "at start and at rest")
        cells = ""
        for name in results.contenders:
            value = summary(results, line, name)
            shown = f"{value.median:.{line.digits}f} ({value.best:.{line.digits}f})" if value else "-"
            cells += f"{shown:>{CELL}}"
        out.append(f"  {line.title:<{WIDTH - 2}}{cells}   {_remark(results, line)}".rstrip())
    return "\n".join(out)


def as_json(results: Results, environment: dict[str, object]) -> dict[str, object]:
    """Everything, for a machine: the raw samples too."""
    lines = [
        {
            "row": line.row,
            "key": line.key,
            "title": line.title,
            "added": line.added,
            "values": {
                name: {"median": value.median, "best": value.best}
                for name in results.contenders
                if (value := summary(results, line, name))
            },
            "times_nginx": ratio(results, line) if line.ratio else None,
            "goal": line.goal.text if line.goal else None,
            "reached": verdict(results, line),
        }
        for line in LINES
    ]
    return {
        "environment": environment,
        "lines": lines,
        "samples": results.samples,
        "rest": results.rest,
        "foreign": results.foreign,
        "problems": results.problems,
    }
