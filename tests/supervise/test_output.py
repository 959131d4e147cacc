"""What an engine prints is bounded, harmless and never in the way."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from dataclasses import replace

import pytest

from accelerd.engines.llama_server.output import NOTABLE
from accelerd.supervise.process.output import (
    CUT_MARK,
    LINE_BYTES,
    LOOKED_AT,
    RING_BYTES,
    TAIL_LINES,
    JournalFeed,
    OutputRing,
    printable,
)
from tests.supervise.bench import SupervisorBench


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"plain \xc3\xa9 text\ttab", "plain é text\ttab"),
        (b"\x1b[31mred\x1b]0;title\x07", "\\x1b[31mred\\x1b]0;title\\x07"),
        (b"bell\x07 nul\x00 del\x7f back\x08", "bell\\x07 nul\\x00 del\\x7f back\\x08"),
        (b"windows\r", "windows"),
        (b"50 %\r100 %", "50 %\\x0d100 %"),
        ("c1 \x9b31m".encode(), "c1 \\x9b31m"),
        (b"\xff\xfe broken", "\ufffd\ufffd broken"),
        ("turned \u202eeman\u2028new".encode(), "turned \\u202eeman\\u2028new"),
    ],
)
def test_control_characters_are_escaped(raw: bytes, text: str) -> None:
    assert printable(raw) == text


def test_a_long_line_is_cut_and_says_so() -> None:
    line = printable(b"x" * 1_000_000)
    assert line == "x" * LINE_BYTES + CUT_MARK


def test_the_ring_keeps_the_newest_bytes_and_whole_lines() -> None:
    ring = OutputRing(limit=1000)
    for number in range(10_000):
        ring.write(b"line %d\n" % number)
    lines = ring.lines()
    assert lines[-1] == "line 9999"
    assert lines == [f"line {number}" for number in range(10_000 - len(lines), 10_000)]
    assert len("\n".join(lines)) <= 1000
    assert ring.lines(3) == ["line 9997", "line 9998", "line 9999"]
    assert ring.lines(0) == []


def test_one_chunk_larger_than_the_ring() -> None:
    ring = OutputRing(limit=100)
    ring.write(b"a" * 1000 + b"\nend\n")
    assert ring.lines() == ["end"]
    assert ring.total == 1005


def test_lines_since_a_position() -> None:
    ring = OutputRing()
    assert ring.lines() == []
    assert ring.last_line() == ""
    ring.write(b"before\n")
    position = ring.total
    assert ring.lines(20, since=position) == []
    ring.write(b"after\n\npart")
    assert ring.lines(20, since=position) == ["after", "", "part"]
    assert ring.last_line() == "part"
    ring.write(b"ly\n \n")
    assert ring.last_line() == "partly"


async def test_followers_get_whole_lines_as_they_come() -> None:
    ring = OutputRing()
    ring.write(b"old\nnewer\n")
    with ring.follow(last=1) as lines:
        assert await anext(lines) == "newer"
        ring.write(b"half")
        waiting = asyncio.ensure_future(anext(lines))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not waiting.done()
        ring.write(b" and half\nnext\nthe last")
        assert await waiting == "half and half"
        ring.close()
        assert [line async for line in lines] == ["next", "the last"]


async def test_a_slow_follower_loses_output_and_is_told_how_much() -> None:
    ring = OutputRing()
    with ring.follow() as lines:
        for _ in range(100):
            ring.write(b"x" * 9_999 + b"\n")
        ring.write(b"last\n")
        ring.close()
        got = [line async for line in lines]
    assert got[-1].startswith("[… ")
    skipped = int(got[-1].split()[1])
    assert skipped + 10_000 * (len(got) - 1) == 1_000_005


async def test_a_closed_follower_costs_nothing_more() -> None:
    ring = OutputRing()
    with ring.follow() as lines:
        ring.write(b"one\n")
    ring.write(b"two\n")
    assert [line async for line in lines] == ["one"]


def test_the_journal_gets_so_many_lines_a_second() -> None:
    clock, sent = Clock(), list[str]()
    feed = JournalFeed(lambda line, _: sent.append(line), clock, 3, verbose=True)
    feed.feed(b"1\n2\n3\n4\n5\nsix")
    feed.feed(b" goes on\n")
    assert sent == ["1", "2", "3"]
    clock.now += 1
    feed.feed(b"7\n")
    assert sent[3:] == ["[… 3 lines of output suppressed here]", "7"]
    feed.feed(b"par")
    feed.feed(b"tial\n\n \nend")
    feed.flush()
    assert sent[5:] == ["partial", "end"]


def test_the_journal_gets_a_line_without_end_once() -> None:
    sent = list[str]()
    feed = JournalFeed(lambda line, _: sent.append(line), Clock(), 10, verbose=True)
    for _ in range(1000):
        feed.feed(b"y" * 65536)
    feed.feed(b"\nnext\n")
    assert [line[:4] for line in sent] == ["yyyy", "next"]
    assert sent[0].endswith(CUT_MARK)


LLAMA = (
    b"0.00.834.253 I srv  llama_server: model loaded\n"
    b"0.04.104.917 W srv    operator(): a slot is slow\n"
    b"I slot print_timing: id  3 | eval time = 0.39 ms\n"
    b"W srv  update: cache is full\n"
    b"0.04.105.070 D slot launch_slot_: W is no level here\n"
    b"0.05.000.001 E srv    operator(): got exception\n"
    b"GGML_ASSERT(n > 0) failed\n"
)


def test_what_matters_to_the_engine_comes_at_info_and_its_chatter_at_debug() -> None:
    sent = list[tuple[str, int]]()
    feed = JournalFeed(lambda line, level: sent.append((line.split(": ")[-1], level)), Clock(), 50, verbose=True)
    feed.notable = re.compile(NOTABLE.encode())
    feed.feed(LLAMA)
    assert [line for line, level in sent if level == logging.INFO] == [
        "a slot is slow",
        "cache is full",
        "got exception",
    ]
    assert len(sent) == 7
    feed.explain()
    assert len(sent) == 7, "what was sent is not said again"
    sent.clear()
    feed.errors_only = True  # once it serves: a warning may quote a request
    feed.feed(LLAMA)
    assert [line for line, level in sent if level == logging.INFO] == ["got exception"]


def test_chatter_is_said_after_all_when_the_engine_failed() -> None:
    sent = list[tuple[str, int]]()
    feed = JournalFeed(lambda line, level: sent.append((line, level)), Clock(), 50)
    feed.notable = re.compile(NOTABLE.encode())
    feed.feed(LLAMA * 10)
    assert len(sent) == 30, "chatter is neither sent nor does it suppress what matters"
    feed.explain()
    assert len(sent) == 30 + TAIL_LINES
    assert sent[-1] == ("GGML_ASSERT(n > 0) failed", logging.INFO)


def test_a_flood_of_chatter_is_not_looked_at_line_by_line() -> None:
    clock, sent = Clock(), list[tuple[str, int]]()
    feed = JournalFeed(lambda line, level: sent.append((line, level)), clock, 50)
    feed.feed(b"I chatter\n" * (LOOKED_AT + 7))
    assert sent == []
    clock.now += 1
    feed.feed(b"I chatter\n")
    assert sent == [("[… 7 lines of output suppressed here]", logging.DEBUG)]


@pytest.mark.parametrize("mode", ["flood", "binary-output"])
async def test_flood_costs_a_bounded_share_of_the_loop(bench: SupervisorBench, mode: str) -> None:
    async with bench:
        number = bench.start(mode)
        await bench.ready(number)
        ring = bench.supervisor.output("m")
        cpu, began = time.process_time(), time.monotonic()
        start = ring.total
        async with asyncio.timeout(10):
            while ring.total - start < 2 << 20:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        elapsed = time.monotonic() - began
        assert (time.process_time() - cpu) / elapsed < 0.5
        assert (ring.total - start) / elapsed < 20 << 20
        assert sum(map(len, ring.lines())) < 4 * RING_BYTES  # escapes are longer than what they stand for
        assert all("\x1b" not in line and len(line) <= 4 * LINE_BYTES + len(CUT_MARK) for line in ring.lines())
        exit = await bench.stopped(number)
        assert len(exit.tail) <= 20
        assert len(bench.journal) < 60 * (elapsed + 5)


async def test_output_survives_the_instance_and_is_told_to_the_journal(bench: SupervisorBench) -> None:
    bench.engine.edit = lambda _, plan: replace(plan, argv=("/bin/sh", "-c", "echo out; echo err >&2; exit 1"))
    async with bench:
        await bench.gone(bench.start())
        exit = await bench.gone(bench.start())
        assert bench.supervisor.output("m").lines() == ["out", "err", "out", "err"]
        assert exit.tail == ("out", "err")
        assert bench.supervisor.output("never ran").lines() == []
    assert bench.journal == [("m", "out"), ("m", "err")] * 2
