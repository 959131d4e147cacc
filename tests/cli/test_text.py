"""Numbers, times and foreign text as people read them."""

from __future__ import annotations

import io

import pytest

from accelerd.base.sizes import human_size
from accelerd.cli.failure import Failure
from accelerd.cli.output import CliOutput
from accelerd.cli.text import clip, count, nearest, printable, span, width


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "-"), (0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (4800 << 20, "4.7 GiB"), (120 << 30, "120 GiB"),
     (1 << 60, "1024 PiB")],
)  # fmt: skip
def test_size(value: float | None, text: str) -> None:
    assert human_size(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "-"), (0, "0 s"), (0.42, "0.4 s"), (0.0123, "12 ms"), (9.99, "10 s"), (119, "119 s"), (150, "2 min"),
     (3590, "1 h"), (5580, "1 h 33 min"), (86400, "1 d"), (100000, "1 d 3 h"), (93.2, "93 s")],
)  # fmt: skip
def test_span(value: float | None, text: str) -> None:
    assert span(value) == text


def test_counts() -> None:
    assert [count(n, "model") for n in (0, 1, 2)] == ["0 models", "1 model", "2 models"]


def test_printable_keeps_text_and_escapes_what_a_terminal_obeys() -> None:
    assert printable("grüße 日本 \t\x1b[31m\u202e\x00") == "grüße 日本  \\x1b[31m\\u202e\\x00"


def test_clip_by_columns() -> None:
    assert clip("abcdef", 6) == "abcdef"
    assert clip("abcdef", 5) == "abcd…"
    assert width(clip("日本語日本語", 6)) <= 6


def test_nearest() -> None:
    known = ["qwen3-30b-a3b", "gemma-3-4b-it", "Embed"]
    assert nearest("qwen3-30b", known) == "qwen3-30b-a3b"
    assert nearest("it", known) == "gemma-3-4b-it"
    assert nearest("EMBED", known) == "Embed"
    assert nearest("zzz", known) is None


def test_table_keeps_alignment_when_it_is_clipped() -> None:
    text = io.StringIO()
    out = CliOutput(text, io.StringIO(), {})
    out.table(("A", "B"), [("x" * 200, "1"), ("y", "2")])
    head, first, second = text.getvalue().splitlines()
    assert len(first) <= 120
    assert head.index("B") == first.index("1") == second.index("2")


def test_failure_is_one_line_with_the_remedy() -> None:
    errors = io.StringIO()
    CliOutput(io.StringIO(), errors, {}).failure(Failure("it broke\x07", hint="mend it"))
    assert errors.getvalue() == "accelctl: it broke\\x07; mend it\n"
