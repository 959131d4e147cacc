"""The rules of the performance level, under a clock that the test moves."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from accelerd.devices.level import (
    COOL_AGAIN,
    FAST,
    MOST_REPEATS,
    RARE,
    RETRY,
    SLOW,
    TOO_HOT,
    TRUCE,
    LevelGovernor,
    LevelNote,
    LevelOrder,
    LevelReading,
    LevelRules,
    Policy,
)
from tests.fakes.clock import FakeClock

FINE = LevelReading("high", 2900, 600, 2900, 97, 60, 90)
STUCK = LevelReading("auto", 600, 600, 2900, 97, 50, 30)


class Device:
    """A governor whose orders are carried out at once, on a device that does as it is told."""

    def __init__(self, policy: Policy = "busy", *, tail: float = 10.0, unsuitable: str | None = None) -> None:
        self.clock = FakeClock()
        self.governor = LevelGovernor(self.clock, "gpu", LevelRules(policy, tail), unsuitable)
        self.level = "auto"
        self.heat = 60.0
        self.works = True
        self.notes: list[LevelNote] = []

    def obey(self) -> None:
        """Carry out what is ordered now."""
        match self.governor.order():
            case LevelOrder.RAISE if self.works:
                self.level = "high"
                self.notes += self.governor.raised("test")
            case LevelOrder.RAISE:
                self.notes += self.governor.failed("no right to")
            case LevelOrder.RESTORE:
                if self.level == "high":
                    self.level = "auto"
                self.notes += self.governor.restored()

    def look(self, reading: LevelReading | None = None) -> None:
        reading = reading or LevelReading(self.level, 2900, 600, 2900, 97, self.heat, 90)
        self.notes += self.governor.observe(reading, "a rival")

    def step(self) -> None:
        if self.governor.look_due():
            self.look()
        self.obey()

    def wait(self, seconds: float) -> int:
        """Time goes by as with a keeper; how often it would have woken."""
        end, wakes = self.clock.now + seconds, 0
        self.step()
        while (due := self.governor.deadline()) <= end:
            self.clock.now = max(due, self.clock.now + 0.05)
            wakes += 1
            self.step()
        self.clock.now = max(self.clock.now, end)
        return wakes

    def told(self, kind: str) -> list[str]:
        return [note.text for note in self.notes if note.kind == kind]


def test_busy_is_raised_with_the_first_use_and_restored_after_the_tail() -> None:
    device = Device()
    device.step()
    assert device.level == "auto"
    device.governor.begin()
    device.step()
    assert device.level == "high"
    device.governor.end()
    device.wait(9)
    assert device.level == "high"
    device.wait(2)
    assert device.level == "auto"


def test_a_use_within_the_tail_keeps_it_raised_without_an_order() -> None:
    device = Device()
    for _ in range(20):
        device.governor.begin()
        device.wait(1)
        device.governor.end()
        device.wait(8)
        assert device.level == "high"
    assert len(device.told("level")) == 1


def test_two_models_on_one_device_count_together() -> None:
    device = Device(tail=0)
    device.governor.begin()
    device.governor.begin()
    device.step()
    device.governor.end()
    device.wait(60)
    assert device.level == "high"
    device.governor.end()
    device.step()
    assert device.level == "auto"


def test_always_and_never() -> None:
    always, never = Device("always"), Device("never")
    for device in (always, never):
        device.step()
        device.governor.begin()
        device.wait(60)
    assert (always.level, never.level) == ("high", "auto")
    always.governor.configure(LevelRules("never"))
    always.step()
    assert always.level == "auto"
    assert never.governor.report()["reason"] == 'the policy is "never"'


def test_a_card_of_its_own_is_left_alone_and_not_even_read() -> None:
    for policy in ("busy", "always"):
        device = Device(policy, unsuitable="a card of its own")
        device.governor.begin()
        assert device.governor.order() is None
        assert not device.governor.look_due()
        assert device.governor.deadline() == math.inf
        assert device.governor.report()["reason"] == "a card of its own"


def test_idle_there_is_no_timer() -> None:
    for policy in ("busy", "never"):
        device = Device(policy)
        device.step()
        assert device.governor.deadline() == math.inf
        device.governor.begin()
        device.wait(30)
        device.governor.end()
        device.wait(60)
        assert device.governor.deadline() == math.inf
    always = Device("always")
    always.step()
    assert always.wait(600) <= 600 / RARE + 1, "nobody uses it: seldom"


@pytest.mark.parametrize(("works", "every"), [(True, FAST), (False, SLOW)])
def test_it_is_looked_at_while_it_is_used(works: bool, every: float) -> None:
    device = Device()
    device.works = works
    device.governor.begin()
    device.step()
    assert device.wait(60) == pytest.approx(60 / every, abs=3)


def test_too_hot_lowers_it_until_it_is_cool_again() -> None:
    device = Device()
    device.governor.begin()
    device.step()
    device.heat = TOO_HOT
    device.wait(3)
    assert device.level == "auto"
    assert device.governor.report()["state"] == "hot"
    device.heat = COOL_AGAIN
    device.wait(60)
    assert device.level == "auto"
    device.heat = COOL_AGAIN - 1
    device.wait(3)
    assert device.level == "high"
    assert len(device.told("level")) == 5, device.notes  # raised, hot, restored, cool, raised


def test_a_device_that_is_hot_from_the_start_is_not_raised() -> None:
    device = Device()
    device.heat = 101
    device.governor.begin()
    device.wait(10)
    assert device.level == "auto"
    device.governor.end()
    device.wait(60)
    assert device.governor.deadline() == math.inf, "nobody waits for it to cool down"


def test_the_clock_that_is_stuck_low_is_told_once() -> None:
    device = Device()
    device.works = False
    device.governor.begin()
    device.step()
    device.look(STUCK)
    device.clock.advance(4.9)
    device.look(STUCK)
    assert not device.governor.stuck
    device.clock.advance(0.1)
    device.look(STUCK)
    assert device.governor.report()["stuck"]
    assert device.told("stuck") == [
        "gpu is 97 % busy at 600 MHz and 30 W: the clock is stuck low; "
        "the performance level high fixes this, but is not set: no right to"
    ]
    device.look(FINE)
    assert not device.governor.stuck
    for _ in range(3):
        device.clock.advance(5)
        device.look(STUCK)
    assert device.governor.stuck
    assert len(device.told("stuck")) == 1


@pytest.mark.parametrize(
    "reading",
    [
        LevelReading("auto", 1700, 600, 2900, 99, 94, 86),  # held down by power management: not that case
        LevelReading("auto", 600, 600, 2900, 10, 40, 9),  # idle
        LevelReading("auto", 600, 600, 2900, 99, 94, 60),  # takes power
        LevelReading("high", 2900, 2900, 2900, 99, 60, 40),  # at "high" the driver calls the highest clock the lowest
        LevelReading("auto", None, 600, 2900, 99, 50, 30),
        LevelReading("auto", 600, 600, 2900, None, 50, 30),
        LevelReading("auto", 600, 600, 2900, 99, 50, None),
        LevelReading(),
    ],
)
def test_what_is_no_stuck_clock(reading: LevelReading) -> None:
    device = Device()
    device.governor.begin()
    for _ in range(20):
        device.look(reading)
        device.clock.advance(2)
    assert not device.governor.stuck


def test_a_lowest_clock_above_1000_mhz_counts_too() -> None:
    device = Device()
    for _ in range(5):
        device.look(LevelReading("auto", 1300, 1100, 2900, 99, 50, 30))
        device.clock.advance(2)
    assert device.governor.stuck


def test_what_somebody_else_sets_is_set_again_and_they_are_named() -> None:
    device = Device()
    device.governor.begin()
    device.step()
    device.level = "low"
    device.wait(FAST)
    assert device.level == "high"
    assert "gpu: a rival set the performance level to low; raising it again" in device.told("level")


def test_against_somebody_who_does_not_stop_it_gives_up_for_a_while() -> None:
    device = Device()
    device.governor.begin()
    device.step()
    for _ in range(MOST_REPEATS + 3):
        device.level = "auto"
        device.wait(FAST)
    assert device.level == "auto"
    assert device.governor.report()["reason"] == "a rival repeatedly sets the performance level to auto"
    assert sum("raising it again" in text for text in device.told("level")) == MOST_REPEATS
    device.wait(TRUCE)
    assert device.level == "high", "it is tried again then"


def test_somebody_who_sets_it_now_and_then_is_no_fight() -> None:
    device = Device()
    device.governor.begin()
    device.step()
    for _ in range(20):
        device.level = "auto"
        device.wait(300)
        assert device.level == "high"


def test_who_has_taken_the_clocks_over_is_left_alone() -> None:
    device = Device()
    device.governor.begin()
    device.step()
    device.level = "manual"
    device.wait(10)
    assert device.level == "manual"
    assert device.governor.report()["state"] == "yielded"


def test_what_cannot_be_done_is_told_once_and_tried_now_and_then() -> None:
    device = Device()
    device.works = False
    device.governor.begin()
    device.wait(RETRY * 3)
    assert device.told("unable") == ["gpu: cannot raise the performance level: no right to"]
    assert device.governor.report()["state"] == "unable"
    device.works = True
    device.wait(RETRY)
    assert device.level == "high"


def test_a_new_use_tries_at_once_what_failed_before() -> None:
    device = Device()
    device.works = False
    device.governor.begin()
    device.step()
    device.governor.end()
    device.wait(11)
    device.works = True
    device.governor.begin()
    device.step()
    assert device.level == "high"


def test_a_helper_that_has_forgotten_is_asked_again_and_nobody_is_blamed() -> None:
    device = Device()
    device.governor.begin()
    device.step()
    device.level = "auto"
    device.notes += device.governor.dropped()
    device.look()
    device.obey()
    assert device.level == "high"
    assert not any("rival" in note.text for note in device.notes)


EVENTS = st.lists(
    st.one_of(
        st.sampled_from(["begin", "end", "break", "mend", "busy", "always", "never", "rival", "manual", "release"]),
        st.floats(0.1, 400),  # seconds that go by
        st.integers(30, 110),  # °C
    ),
    max_size=60,
)


@settings(max_examples=300)
@given(EVENTS)
def test_whatever_happens_it_ends_as_it_should(events: list[str | float | int]) -> None:
    """Never raised when nobody wants it, never a timer without a use, never an endless loop."""
    device = Device()
    for event in events:
        match event:
            case "begin":
                device.governor.begin()
            case "end" if device.governor.users:
                device.governor.end()
            case "break" | "mend":
                device.works = event == "mend"
            case "busy" | "always" | "never":
                device.governor.configure(LevelRules(event))
            case "rival" | "manual":
                device.level = "auto" if event == "rival" else "manual"
            case "release" if device.level == "manual":
                device.level = "auto"
            case int():
                device.heat = event
            case float():
                assert device.wait(event) <= event / FAST + 12
        device.step()
        assert device.governor.order() is None, "an order is carried out once"
        policy, users = device.governor.rules.policy, device.governor.users
        if policy == "never":
            assert not device.governor.held
        if policy != "always" and not users:
            assert device.governor.deadline() <= device.clock.now + 10 or device.governor.deadline() == math.inf
    while device.governor.users:
        device.governor.end()
    device.governor.configure(LevelRules("busy", 1.0))
    device.wait(20)
    assert not device.governor.held
    assert device.level != "high"
    assert device.governor.deadline() == math.inf
