"""Pins: cookies, owners that leave, limits, and what cannot be kept together. The scheduler behind is the real Core."""

from __future__ import annotations

import logging

import pytest

from accelerd.base import names
from accelerd.base.errors import AccelError
from accelerd.policy.pins import MOST, OWNER_MOST, PinChanged, PinEnd, Pins
from accelerd.scheduler.lifecycle import State
from accelerd.scheduler.placement import SharedLimits
from tests.scheduler.bench import MIB, Bench, model


class Table:
    """Pins over a bench, and what was told of them."""

    def __init__(self, *names: str, budget: int = 8) -> None:
        specs = [model(name, aliases=(f"{name}-alias",), idle_timeout=30.0) for name in names or ("a", "b", "c")]
        sizes = {"a": 2 * MIB, "b": 4 * MIB, "c": 8 * MIB}
        self.bench = Bench(specs, limits=SharedLimits(budget * MIB, "test", None), memory=sizes)
        self.bench.events.subscribe(PinChanged, self._changed)
        self.told: list[tuple[int, PinEnd | None]] = []
        self.pins = Pins(self.bench.core.holds, self.bench.clock, self.bench.events)

    def _changed(self, event: PinChanged) -> None:
        self.told.append((event.pin.cookie, event.end))

    def pin(self, name: str, owner: str = ":1.7", *, hold: bool = False) -> int:
        return self.pins.pin(name, "being used", "org.example.App", owner, hold=hold)


def code_of(error: pytest.ExceptionInfo[AccelError]) -> str:
    return error.value.code


def test_a_pin_loads_the_model_and_keeps_it() -> None:
    table = Table()
    cookie = table.pin("a-alias")
    assert [(p.cookie, p.model, p.owner, p.who) for p in table.pins.all()] == [(cookie, "a", ":1.7", "org.example.App")]
    table.bench.ready("a")
    table.bench.pass_time(100.0)
    assert table.bench.state("a") is State.READY
    table.pins.unpin(cookie, ":1.7")
    table.bench.pass_time(100.0)
    assert table.bench.state("a") is State.STOPPING
    assert table.told == [(cookie, None), (cookie, "released")]
    assert table.pins.all() == []


def test_a_hold_keeps_what_is_loaded_but_loads_nothing() -> None:
    table = Table()
    table.pin("a", hold=True)
    assert table.bench.state("a") is State.STOPPED
    table.bench.loaded("a")
    table.bench.pass_time(100.0)
    assert table.bench.state("a") is State.READY


def test_the_pins_of_an_owner_that_vanishes_are_released_and_nobody_elses() -> None:
    table = Table(budget=16)
    mine = [table.pin("a"), table.pin("a"), table.pin("b", hold=True)]
    other = table.pin("a", ":1.8")
    table.pins.owner_gone(":1.7")
    assert [p.cookie for p in table.pins.all()] == [other]
    assert table.told[-3:] == [(cookie, "owner-gone") for cookie in mine]
    assert table.bench.core.snapshot("a").holds == (f"pin {other}",)
    assert table.bench.core.snapshot("b").holds == ()
    table.pins.owner_gone(":1.7")
    table.pins.owner_gone(":1.99")
    assert len(table.told) == 7, "told once for each pin"
    table.pins.owner_gone(":1.8")
    table.bench.ready("a")
    table.bench.pass_time(100.0)
    assert table.bench.state("a") is State.STOPPING


def test_a_load_that_only_a_vanished_owner_wanted_is_not_begun() -> None:
    table = Table()
    table.bench.loaded("b")
    serving = table.bench.request("b")
    table.pin("c", ":1.9")  # waits until b has gone
    assert table.bench.core.snapshot("c").queue == 1
    table.pins.owner_gone(":1.9")
    assert table.bench.core.snapshot("c").queue == 0
    table.bench.end(serving)
    table.bench.pass_time(10.0)
    assert table.bench.loads() == ["b"]


def test_a_set_that_can_never_fit_is_a_conflict_and_leaves_nothing_behind() -> None:
    table = Table()
    table.pin("b")
    with pytest.raises(AccelError) as error:
        table.pin("c")
    assert code_of(error) == "pin_conflict"
    assert "beside b" in error.value.message
    assert "8.0 MiB" in error.value.message
    assert error.value.fields == {"pinned": ["b"]}
    assert len(table.pins.all()) == 1
    assert table.bench.core.snapshot("c").holds == ()
    assert [told for told in table.told if told[1] is None] == [(1, None)]
    table.pins.unpin(1, ":1.7")
    table.pin("c")


def test_a_model_larger_than_the_machine_cannot_be_pinned() -> None:
    table = Table(budget=3)
    with pytest.raises(AccelError) as error:
        table.pin("b")
    assert code_of(error) == "does_not_fit"
    assert table.pins.all() == []


def test_a_pin_belongs_to_its_owner() -> None:
    table = Table()
    cookie = table.pin("a")
    for stranger in (":1.8", ""):
        with pytest.raises(AccelError) as error:
            table.pins.unpin(cookie, stranger)
        assert code_of(error) == "pin_not_found"
    table.pins.unpin(cookie, ":1.7")
    with pytest.raises(AccelError) as error:
        table.pins.unpin(cookie, ":1.7")
    assert code_of(error) == "pin_not_found"


def test_pins_are_bounded_for_each_owner_and_in_all() -> None:
    table = Table()
    for _ in range(OWNER_MOST):
        table.pin("a", hold=True)
    with pytest.raises(AccelError) as error:
        table.pin("a", hold=True)
    assert code_of(error) == "too_many_pins"
    for number in range(OWNER_MOST, MOST):
        table.pin("a", f":2.{number}", hold=True)
    with pytest.raises(AccelError) as error:
        table.pin("a", ":3.1", hold=True)
    assert code_of(error) == "too_many_pins"
    table.pins.close()
    assert table.pins.all() == []
    assert table.bench.core.snapshot("a").holds == ()


def test_a_removed_model_drops_its_pins_and_says_why(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    table = Table()
    mine, other = table.pin("a"), table.pin("b")
    table.bench.configure([spec for spec in table.bench.models if spec.name != "a"])
    assert [p.cookie for p in table.pins.all()] == [other]
    assert table.told[-1] == (mine, "model-removed")
    assert "removed from the configuration" in caplog.text
    with pytest.raises(AccelError) as error:
        table.pins.unpin(mine, ":1.7")
    assert code_of(error) == "pin_not_found"
    table.bench.configure(table.bench.models)
    assert table.bench.core.snapshot("a").holds == ()


def test_pins_are_in_the_journal_with_their_reason(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    table = Table()
    table.pins.unpin(table.pin("a"), ":1.7")
    records = [r for r in caplog.records if getattr(r, "message_id", None) == names.MSG_PIN]
    assert [r.getMessage() for r in records] == [
        "a is pinned for org.example.App: being used",
        "a is no longer pinned for org.example.App (released)",
    ]
    assert records[0].fields["ACCELERD_MODEL"] == "a"  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("reason", "application"),
    [("", "x"), ("  ", "x"), ("y" * 257, "x"), ("two\nlines", "x"), ("\x1b[2J", "x"), ("y", "a b"), ("y", "z" * 256)],
)
def test_what_people_are_to_read_must_be_readable(reason: str, application: str) -> None:
    table = Table()
    with pytest.raises(AccelError) as error:
        table.pins.pin("a", reason, application, ":1.7", hold=False)
    assert code_of(error) == "bad_request"
    assert table.pins.all() == []
    assert table.told == []


def test_an_unknown_model_cannot_be_pinned() -> None:
    table = Table()
    with pytest.raises(AccelError) as error:
        table.pin("nobody")
    assert code_of(error) == "model_not_found"
    assert table.told == []
