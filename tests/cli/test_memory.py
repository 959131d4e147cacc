"""accelctl memory: what a person sees of the pools in any width, with and without colours; what was learned."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest

from accelerd.base.ports import Roots
from accelerd.cli.commands import memory
from accelerd.cli.connect import DaemonClient
from accelerd.cli.context import Context
from accelerd.cli.memory_view import shared, show
from accelerd.cli.output import CliOutput
from accelerd.cli.text import width

from .conftest import Ctl, Stream
from .fake_daemon import FakeDaemon, Reply, error

GIB = 1 << 30
SLOT = "0000:c4:00.0"


def held(model: str, phase: str = "resident", reserved: int = 20, used: int | None = 19, **more: Any) -> dict[str, Any]:
    """Sizes in GiB."""
    return {
        "model": model, "phase": phase, "reserved": reserved * GIB, "used": used * GIB if used is not None else None,
        "leases": 0, "idle": None, "pin": False, "priority": 0,
    } | more  # fmt: skip


GPU: dict[str, Any] = {
    "id": SLOT, "label": "AMD Radeon 8060S Graphics", "capacity": 96 * GIB, "reserve": GIB, "backed_by": "ram",
    "own": 2 * GIB, "foreign": 6 * GIB, "foreign_users": [{"pid": 7, "process": "game\x1b[31m", "size": 5 * GIB}],
    "spilled": 0, "free": 38 * GIB,
    "holdings": [
        held("qwen3-30b-a3b", reserved=24, used=12, leases=2, pin=True),
        held("gemma", "loading", 16, None), held("embed", "lost", 1, 1), held("glm", "leaving", 10, 10),
    ],
}  # fmt: skip
RAM: dict[str, Any] = {
    "id": "ram", "label": "main memory", "capacity": 128 * GIB, "reserve": 8 * GIB, "backed_by": None, "own": 0,
    "foreign": 18 * GIB, "foreign_users": [{"pid": 1, "process": "firefox", "size": 9 * GIB}], "spilled": 55 * GIB,
    "free": 43 * GIB, "holdings": [held("tiny", reserved=4, used=4, idle=200.0)],
}  # fmt: skip
NPU: dict[str, Any] = {
    "id": "0000:c5:00.1", "label": "RyzenAI-npu5", "capacity": 128 * GIB, "reserve": 0, "backed_by": "ram", "own": 0,
    "foreign": 0, "foreign_users": [], "spilled": 0, "free": 128 * GIB, "holdings": [],
    "npu": {"contexts": 16, "contexts_used": 1, "columns": 8, "models": [
        {"model": "tiny", "phase": "resident", "family": "flm", "kind": "llm", "contexts": 1, "memory": GIB},
    ]},
}  # fmt: skip
ANSWER: dict[str, Any] = {
    "pools": [RAM, GPU, NPU], "stall": {"some": 12.5, "full": 0.0}, "degraded": None,
    "yielded": {"what": "the GPU", "pools": [SLOT], "remaining": 7199.0, "why": "accelctl yield", "holds": []},
    "waiting": [
        {"model": "big", "requests": 3, "state": "stopped", "fits": True, "wanted": {SLOT: 70 * GIB, "ram": GIB},
         "reason": "it needs 70.0 GiB of AMD Radeon 8060S Graphics, of which 38.0 GiB are free"},
        {"model": "gemma", "requests": 1, "state": "starting", "fits": True, "wanted": {SLOT: 16 * GIB}, "reason": "x"},
    ],
}  # fmt: skip


@pytest.fixture
def knowing(daemon: FakeDaemon) -> FakeDaemon:
    daemon.answers["GET memory"] = Reply(ANSWER)
    return daemon


def drawn(lines: list[str], title: str) -> tuple[str, list[str]]:
    """The bar of a pool, and the lines below it."""
    at = next(number for number, line in enumerate(lines) if line.startswith(title))
    end = next((n for n in range(at, len(lines)) if not lines[n].strip()), len(lines))
    return lines[at + 1][2:], lines[at + 2 : end]


def test_a_page(ctl: Ctl, knowing: FakeDaemon) -> None:
    text = ctl("memory").out
    lines = text.splitlines()
    assert "\x1b" not in text
    bar, below = drawn(lines, "AMD Radeon 8060S Graphics (c4:00.0)  38.0 GiB free of 96.0 GiB")
    assert len(bar) == 78
    # 24 of 96 GiB are 19 cells, of which 12 GiB are in use and the rest only reserved; each begins with its letter.
    assert re.fullmatch(r"B█{8}▒{10}C▒{12}DE█{7}o░{4}·{31}▁", bar), bar
    assert "  B qwen3-30b-a3b   24.0 GiB  12.0 GiB of it in use, pinned, 2 requests" in below
    assert "  C gemma           16.0 GiB  loading, reserved, not in use yet" in below
    assert "  D embed            1.0 GiB  ended, memory not released by the device" in below
    assert "  E glm             10.0 GiB  leaving" in below
    assert "  o others           6.0 GiB  game\\x1b[31m 5.0 GiB" in below
    assert "  · free            38.0 GiB" in below
    assert "  ▁ reserve          1.0 GiB  kept free of models" in below
    bar, below = drawn(lines, "main memory  43.0 GiB free of 128 GiB")
    assert bar.startswith("A█")
    assert "  A tiny       4.0 GiB  idle for 3 min" in below
    assert "  s spilled   55.0 GiB  in use by AMD Radeon 8060S Graphics" in below
    assert "  o others    18.0 GiB  firefox 9.0 GiB" in below
    assert "RyzenAI-npu5 (c5:00.1)  128 GiB free of 128 GiB" in lines
    places, below = drawn(lines, "RyzenAI-npu5")
    assert places == "1 of 16 hardware contexts in use, 8 columns shared by all models"
    assert below[0] == "  A tiny  flm llm, 1 context, 1.0 GiB of memory in all", "what is not in use needs no bar"
    told = " ".join(text.split())
    assert re.search(r"! the GPU is yielded until [^(]*\(accelctl yield\); to end this: accelctl resume", told)
    assert "! programs waited for memory 12.5 % of the last 10 s" in told
    assert (
        "big: 3 requests for 71.0 GiB: it needs 70.0 GiB of AMD Radeon 8060S Graphics, of which 38.0 GiB are free"
        in told
    )
    assert "gemma: 1 request: loading" in told


@pytest.mark.parametrize("columns", [60, 80, 120])
@pytest.mark.parametrize("blocks", [True, False])
def test_every_line_fits_the_terminal(columns: int, blocks: bool) -> None:
    class Narrow(CliOutput):
        @property
        def columns(self) -> int:
            return columns

    encoding = "utf-8" if blocks else "ascii"
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    show(Narrow(stream, Stream(), {"TERM": "dumb"}), {**ANSWER, "source": "daemon"})
    stream.flush()
    written = stream.buffer.getvalue().decode(encoding)  # type: ignore[attr-defined]
    lines = written.splitlines()
    assert max(width(line) for line in lines) <= columns, lines
    if blocks:
        assert any("█" in line for line in lines)
    else:
        bar, _ = drawn(lines, "AMD")
        assert written.isascii()
        assert re.fullmatch(r"B#+\++C\++DE#+o/+\.+x", bar), bar


def test_colours_on_a_terminal_only_and_never_the_only_sign(ctl: Ctl, knowing: FakeDaemon) -> None:
    coloured, plain = ctl("memory", tty=True).out, ctl("memory", tty=True, NO_COLOR="1").out
    assert "\x1b[31mD\x1b[0m" in coloured, "what is lost is red"
    assert "\x1b" not in plain
    assert re.sub(r"\x1b\[[\d;]*m", "", coloured) == plain


def test_a_pool_with_more_than_it_should_hold() -> None:
    pool = {**GPU, "free": -2 * GIB, "foreign": 46 * GIB}
    stream = Stream()
    show(CliOutput(stream, Stream(), {}), {"pools": [pool]})
    lines = stream.getvalue().splitlines()
    assert "2.0 GiB over the limit of 96.0 GiB" in lines[0]
    assert width(lines[1]) <= 80


def test_what_is_missing_is_no_failure() -> None:
    stream = Stream()
    for answer in ({}, {"pools": [{}]}, {"pools": [{"id": "x", "holdings": [{}]}], "waiting": [{}], "yielded": {}}):
        show(CliOutput(stream, Stream(), {}), answer)
    assert "nothing is known about this machine's memory" in stream.getvalue()


def test_every_part_has_a_cell_and_all_have_no_more_than_there_are() -> None:
    assert shared([1, 0, 10**9], 10**9, 10) == [1, 0, 9]
    assert shared([1] * 20, 20, 10) == [1] * 20, "more parts than cells: each keeps its letter"
    assert shared([50, 50], 100, 10) == [5, 5]
    assert shared([], 100, 10) == []
    assert shared([5], 0, 10) == [0]
    for sizes in ([33, 33, 34], [1, 1, 98], [49, 2, 49], [5, 5, 5]):
        found = shared(sizes, 100, 78)
        assert sum(found) <= 78
        assert all(abs(cells - size * 0.78) < 2 for cells, size in zip(found, sizes, strict=True))


def test_json_is_the_daemons_answer(ctl: Ctl, knowing: FakeDaemon) -> None:
    assert json.loads(ctl("memory", "--json").out) == {"source": "daemon", **ANSWER}


@pytest.mark.parametrize("answer", [None, error(404, "not_found", "no route")])
def test_without_a_daemon_or_with_an_old_one_it_measures_itself(
    ctl: Ctl, request: pytest.FixtureRequest, answer: Reply | None
) -> None:
    if answer is not None:
        request.getfixturevalue("daemon").answers["GET memory"] = answer
    text = ctl("memory")
    assert text.status == 0
    assert text.out.startswith("accelerd is not running: measured by accelctl")
    value = json.loads(ctl("memory", "--json").out)
    assert value["source"] == "direct"
    [main] = [pool for pool in value["pools"] if pool["id"] == "ram"]
    assert set(main) == set(RAM)
    assert main["capacity"] > main["foreign"] > 0


def test_the_configurations_reserve_holds_without_a_daemon_too(ctl: Ctl) -> None:
    ctl.configure('[memory]\nreserve = "3GiB"\n')
    [main] = [pool for pool in json.loads(ctl("memory", "--json").out)["pools"] if pool["id"] == "ram"]
    assert main["reserve"] == 3 * GIB


def test_another_failure_is_told(ctl: Ctl, daemon: FakeDaemon) -> None:
    daemon.answers["GET memory"] = error(500, "internal", "cannot measure memory: a driver does not answer")
    found = ctl("memory")
    assert (found.status, found.out) == (1, "")
    assert "a driver does not answer" in found.err


class Pauses:
    """So many seconds, then Ctrl-C."""

    def __init__(self, number: int) -> None:
        self.left = number

    def __call__(self, seconds: float) -> None:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


def context(ctl: Ctl, *, tty: bool = False, json_mode: bool = False) -> tuple[Context, io.StringIO]:
    stream = Stream(tty=tty)
    out = CliOutput(stream, Stream(), ctl.env, json_mode=json_mode)
    roots = Roots.from_env(ctl.env)
    return Context(roots, DaemonClient(ctl.socket), out, Stream(), ctl.env), stream


def test_watching_draws_the_page_again_until_ctrl_c(ctl: Ctl, knowing: FakeDaemon) -> None:
    for tty in (True, False):
        here, stream = context(ctl, tty=tty)
        assert memory.asked(here).watch(Pauses(3)) == 0
        assert stream.getvalue().count("c4:00.0") >= 3
        assert ("\x1b[?1049h" in stream.getvalue()) is tty, "the terminal's other screen"
    assert len(knowing.requests) == 6


def test_watching_for_programs_is_a_line_a_second_also_when_the_daemon_goes(ctl: Ctl, short: Path) -> None:
    here, stream = context(ctl, json_mode=True)
    page = memory.asked(here)
    with FakeDaemon(short / "s", {"GET memory": Reply(ANSWER)}).serve():
        assert page.watch(Pauses(2)) == 0
    assert page.watch(Pauses(1)) == 0
    assert [json.loads(line)["source"] for line in stream.getvalue().splitlines()] == ["daemon", "daemon", "direct"]


# --- what was learned -----------------------------------------------------------------------------------------

LEARNED = {
    "learned": [
        {"model": "qwen", "file": "/m/qwen.gguf", "devices": [SLOT], "estimate": {SLOT: 20 * GIB, "ram": GIB},
         "measured": {SLOT: 19 * GIB, "ram": GIB}, "need": None, "lacked": None, "shortages": 0, "runs": 3, "at": 1e9},
        {"model": "", "file": "/m/old.gguf", "devices": [], "estimate": {"ram": 4 * GIB}, "measured": {},
         "need": 5 * GIB, "lacked": 4 * GIB, "shortages": 2, "runs": 0, "at": None},
    ]
}  # fmt: skip


def test_learned(ctl: Ctl, daemon: FakeDaemon) -> None:
    daemon.answers["GET memory/learned"] = Reply(LEARNED)
    lines = ctl("memory", "learned").out.splitlines()
    assert lines[0].split("  ")[0] == "MODEL"
    assert re.split(r"\s{2,}", lines[1])[:5] == ["qwen", "c4:00.0", "20.0 GiB", "19.0 GiB", "+5.3 %"], (
        "of the GPU, all three"
    )
    assert lines[1].endswith(" h  -") or lines[1].endswith(" d  -")
    assert "/m/old.gguf  processor  4.0 GiB   -" in lines[2]
    assert "ran out of memory 2 times; gets 5.0 GiB" in lines[2]
    assert json.loads(ctl("memory", "learned", "--json").out) == LEARNED
    daemon.answers["GET memory/learned"] = Reply({"learned": []})
    assert "Nothing yet" in ctl("memory", "learned").out


def test_forget(ctl: Ctl, daemon: FakeDaemon) -> None:
    daemon.answers["POST memory/forget"] = Reply({"forgotten": 2})
    assert ctl("memory", "forget", "qwen").out == "discarded 2 measurements of qwen\n"
    assert ctl("memory", "forget", "--all").out == "discarded 2 measurements\n"
    assert [request.query for request in daemon.requests] == [{"model": "qwen"}, {"all": "1"}]
    daemon.answers["POST memory/forget"] = Reply({"forgotten": 0})
    assert ctl("memory", "forget", "qwen").out == "nothing has been measured of qwen\n"
    assert json.loads(ctl("memory", "forget", "qwen", "--json").out) == {"forgotten": 0}


def test_forget_a_model_that_is_not_there(ctl: Ctl, daemon: FakeDaemon) -> None:
    daemon.answers["POST memory/forget"] = error(404, "model_not_found", "cannot find model 'gema'")
    result = ctl("memory", "forget", "gemma-3")
    assert result.status == 5
    assert "did you mean gemma-3-4b-it?" in result.err


def test_usage(ctl: Ctl) -> None:
    for argv in (
        ("memory", "frob"),
        ("memory", "forget"),
        ("memory", "forget", "a", "--all"),
        ("memory", "learned", "x"),
    ):
        result = ctl(*argv)
        assert result.status == 2
        assert result.err.count("\n") == 1


def test_learned_needs_the_daemon(ctl: Ctl) -> None:
    assert ctl("memory", "learned").status == 3
