"""Lines of keys: by example for every way to write a key, and against tomllib for generated documents."""

from __future__ import annotations

import json
import tomllib
from typing import Any

import pytest
import tomli_w
from hypothesis import given, settings
from hypothesis import strategies as st

from accelerd.config.positions import KeyPath, find, repeated

EXAMPLE = '''\
# comment with [brackets] = "and" 'quotes'
title = "x # no comment"  # a = 1

[models.qwen]  # header
path = "/m.gguf"
sampling.temperature = 0.5
sampling . "top_p" = 0.9
text = """
[models.fake]
inner = 1
two quotes at the end""\"""
literal = \'\'\'
# not = a comment'' \\\'\'\'\'
aliases = [
  "a",  # one
  # none = here
  "b", "c",
]
env = { A = "1", "B.x" = "}", C = { d = [ { e = 1 }, 2 ] } }
when = 1979-05-27 07:32:00
[ models . "a/b \\u0041" ]
deep = [[1], [2,
3]]
[[tables]]
k = 1
[tables.sub]
j = 1
[[tables]]
k = 2
[[tables.inner]]
z = 1
last = true'''


def test_every_way_to_write_a_key() -> None:
    lines = find(EXAMPLE)
    expected: dict[KeyPath, int] = {
        ("title",): 2,
        ("models",): 4,
        ("models", "qwen"): 4,
        ("models", "qwen", "path"): 5,
        ("models", "qwen", "sampling"): 6,
        ("models", "qwen", "sampling", "temperature"): 6,
        ("models", "qwen", "sampling", "top_p"): 7,
        ("models", "qwen", "text"): 8,
        ("models", "qwen", "literal"): 12,
        ("models", "qwen", "aliases"): 14,
        ("models", "qwen", "aliases", 0): 15,
        ("models", "qwen", "aliases", 1): 17,
        ("models", "qwen", "aliases", 2): 17,
        ("models", "qwen", "env"): 19,
        ("models", "qwen", "env", "B.x"): 19,
        ("models", "qwen", "env", "C", "d", 0, "e"): 19,
        ("models", "qwen", "when"): 20,
        ("models", "a/b A"): 21,
        ("models", "a/b A", "deep", 1, 0): 22,
        ("models", "a/b A", "deep", 1, 1): 23,
        ("tables", 0, "k"): 25,
        ("tables", 0, "sub", "j"): 27,
        ("tables", 1): 28,
        ("tables", 1, "k"): 29,
        ("tables", 1, "inner", 0, "last"): 32,
    }
    assert {path: lines.get(path) for path in expected} == expected
    assert ("models", "fake") not in lines
    assert set(lines) == paths(tomllib.loads(EXAMPLE))


def test_a_header_wins_over_an_earlier_mention() -> None:
    assert find("[a.b]\n[a]\n")[("a",)] == 2


@pytest.mark.parametrize("text", ["", "\n\n", "# only a comment", "a=1", "\r\na = 1\r\n[b]\r\n"])
def test_small_documents(text: str) -> None:
    assert set(find(text)) == paths(tomllib.loads(text))


def paths(value: Any, prefix: KeyPath = ()) -> set[KeyPath]:
    """Every path of a parsed document."""
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found: set[KeyPath] = {prefix} if prefix else set()
    for key, child in children:
        found |= paths(child, (*prefix, key))
    return found


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
keys = st.one_of(st.sampled_from(["a", "b-1", "c_", "1"]), texts)
scalars = st.one_of(st.booleans(), st.integers(-9, 9), st.floats(allow_nan=False), st.dates(), st.datetimes(), texts)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3), max_leaves=12
)
documents = st.dictionaries(keys, values, max_size=4)


@settings(max_examples=150)
@given(documents, st.booleans())
def test_finds_exactly_the_paths_that_tomllib_finds(document: dict[str, Any], multiline: bool) -> None:
    text = tomli_w.dumps(document, multiline_strings=multiline)
    assert set(find(text)) == paths(tomllib.loads(text))


def quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


@st.composite
def written(draw: st.DrawFn) -> tuple[str, dict[KeyPath, int]]:
    """A document in mixed styles, with the lines of its keys noted while it is written."""
    out: list[str] = []
    expected: dict[KeyPath, int] = {}
    junk = ["", "# x = 1", "   # [y]", "\t", '# """']
    for number in range(draw(st.integers(1, 5))):
        out += draw(st.lists(st.sampled_from(junk), max_size=2))
        table = draw(st.sampled_from([f"t{number}", f"t{number}.u", f'"t.{number}"', f"'t{number}'"]))
        out.append(f"[{table}]")
        path: KeyPath = tuple(tomllib.loads(f"{table}=1")) + (("u",) if table.endswith(".u") else ())
        expected[path] = len(out)
        for index in range(draw(st.integers(0, 4))):
            out += draw(st.lists(st.sampled_from(junk), max_size=2))
            key = draw(st.sampled_from([f"k{index}", f'"k{index}"', f" k{index} "]))
            value = draw(
                st.sampled_from(
                    ["1", "'''\n[x]\n\n'''", '"""a\n"b" = 1\\\n\n"""', "[\n 1,\n# ]\n 2]", "{a = 1, b = ']'}"]
                )
                | texts.filter(str.isprintable).map(quoted)
            )
            expected[(*path, f"k{index}")] = len(out) + 1
            out += f"{key}= {value} # = {number}".split("\n")
    return draw(st.sampled_from(["\n", "\r\n"])).join(out), expected


@settings(max_examples=150)
@given(written())
def test_lines_are_where_the_keys_were_written(case: tuple[str, dict[KeyPath, int]]) -> None:
    text, expected = case
    tomllib.loads(text)
    lines = find(text)
    assert {path: lines.get(path) for path in expected} == expected


@settings(max_examples=100)
@given(written(), documents, st.data())
def test_nothing_is_repeated_in_a_valid_document_and_a_second_table_is(
    case: tuple[str, dict[KeyPath, int]], document: dict[str, Any], data: st.DataObject
) -> None:
    text, expected = case
    assert repeated(tomli_w.dumps(document).split("\n")) is None
    lines = text.split("\n")
    assert repeated(lines) is None
    tables = [line for line in lines if line.startswith(("[t", "['t", '["t'))]
    again = data.draw(st.sampled_from(tables))
    found = repeated([*lines, again])
    assert found is not None
    assert (found.first, found.again) == (expected[found.path], len(lines) + 1)
