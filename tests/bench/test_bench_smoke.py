"""The benchmark itself works: every row comes out, and goals are judged as written. No time is asserted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from .__main__ import find_nginx
from .names import ROWS as NAMES
from .names import STREAMED
from .native import HERE, BenchError
from .report import LINES, Line, table, verdict
from .rounds import ROWS, Results


def nginx_options() -> list[str]:
    try:
        find_nginx(None)
    except BenchError:
        return ["--without-nginx"]
    return []


def test_one_short_run_produces_every_row(tmp_path: Path) -> None:
    options = ["--rounds", "1", "--seconds", "0.05", "--idle", "0.1", "--no-nice", "--json", str(tmp_path / "out.json")]
    done = subprocess.run(
        [str(HERE / "run"), *options, *nginx_options()],
        env={**os.environ, "PYTHON": sys.executable, "XDG_CACHE_HOME": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    written = json.loads((tmp_path / "out.json").read_text())
    assert written["problems"] == []
    assert set(written["samples"]) == {row.key for row in ROWS}
    for line, entry in zip(LINES, written["lines"], strict=True):
        assert "accelerd" in entry["values"], line
        assert line.title in done.stdout
        assert line.goal is None or line.goal.text in done.stdout


def test_every_kind_of_name_is_measured(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.names", "--rounds", "1", "--seconds", "0.02"],
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")},
        cwd=HERE.parents[1],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert not done.stderr
    requests, _, chunks = done.stdout.partition("CPU for a chunk")
    assert [row.name for row in NAMES if f" {row.name} " not in requests] == []
    assert [row.name for row in STREAMED if f" {row.name} " not in chunks] == []


def results(nginx_cpu: list[float], accelerd_cpu: list[float], wakeups: float = 0.0) -> Results:
    """Hand-made results of as many rounds as there are numbers; only CPU per request and wake-ups differ."""

    def samples(cpu: list[float] | None, latency: float, rounds: int) -> list[dict[str, float]]:
        keys = ("rps", "p50", "p99", "ttft_p50", "ttft_p99", "delay_p50", "delay_p99", "cpu_chunk")
        base = dict.fromkeys(keys, latency)
        return [base if cpu is None else {**base, "cpu": cpu[number]} for number in range(rounds)]

    rounds = len(nginx_cpu)
    rest = {line.key: [0.1] for line in LINES if line.row is None} | {"wakeups_idle": [wakeups]}
    return Results(
        samples={
            row.key: {
                "direct": samples(None, 50.0, rounds),
                "nginx": samples(nginx_cpu, 100.0, rounds),
                "accelerd": samples(accelerd_cpu, 301.0, rounds),
            }
            for row in ROWS
        },
        rest={"nginx": rest, "accelerd": rest},
        contenders=["direct", "nginx", "accelerd"],
    )


def line(row: str | None, key: str, added: bool = False) -> Line:
    return next(line for line in LINES if (line.row, line.key, line.added) == (row, key, added))


@pytest.mark.parametrize(
    ("accelerd_cpu", "reached"),
    [([25.0, 58.0, 30.0], True), ([35.0, 58.0, 35.0], False)],  # per round: 2.5 2.9 3.0 and 3.5 2.9 3.5
)
def test_cpu_is_judged_by_the_ratio_inside_each_round(accelerd_cpu: list[float], reached: bool) -> None:
    assert verdict(results([10.0, 20.0, 10.0], accelerd_cpu), line("embeddings16", "cpu")) is reached


def test_added_latency_is_taken_from_direct_and_one_wakeup_is_a_miss() -> None:
    found = results([10.0], [20.0], wakeups=0.1)
    assert verdict(found, line("chat1", "p50", added=True)) is False  # 301 - 50 = 251
    assert verdict(found, line(None, "wakeups_idle")) is False
    assert verdict(found, line(None, "wakeups_loaded")) is True  # 0.1 as well
    assert verdict(found, line(None, "start")) is True
    text = table(found)
    assert "2.0 x nginx; CPU <= 3 x nginx: ok" in text
    assert text.count("MISS") == 5  # added latency thrice, CPU per chunk (301 / 100), wake-ups


def test_a_missing_nginx_is_named_with_the_way_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BenchError, match="apt install nginx-light"):
        find_nginx(None, places=())
