"""JSON and numbers of other programs: one error for whatever is wrong with it."""

from __future__ import annotations

import msgspec
import pytest

from accelerd.base.decoding import from_json, whole_number


class Known(msgspec.Struct):
    name: str


def test_values_and_types() -> None:
    assert from_json(b'{"a": [1, null, "\xc3\xa4"]}') == {"a": [1, None, "ä"]}
    assert from_json('{"name": "x", "more": [[]]}', Known) == Known("x")
    assert from_json("null", Known | None) is None


@pytest.mark.parametrize(
    "data",
    [
        b"", b"{", b"nul", b"\xff", b'{"a": "\xff"}', b"1 2", "\ud800", '"\ud800"', b"[" * 100_000,
        b'{"a":' * 100_000 + b"1" + b"}" * 100_000, b'{"name": "x", "more": ' + b"[" * 100_000,
    ],
    ids=range(11),
)  # fmt: skip
@pytest.mark.parametrize("kind", [None, Known, dict[str, object]])
def test_what_is_wrong_is_a_decode_error(data: bytes | str, kind: type | None) -> None:
    with pytest.raises(msgspec.DecodeError):
        from_json(data, kind) if kind is not None else from_json(data)


@pytest.mark.parametrize(("text", "number"), [("0", 0), ("007", 7), ("9" * 18, 10**18 - 1)])
def test_a_whole_number(text: str, number: int) -> None:
    assert whole_number(text) == number


@pytest.mark.parametrize(
    "text",
    ["", "-1", "+1", " 1", "1 ", "1_0", "0x1", "1.0", "\u00b2", "\u0663", "9" * 19, "9" * 5000],
    ids=range(12),
)
def test_what_is_no_whole_number(text: str) -> None:
    assert whole_number(text) is None
