"""What keeping a model is worth: recency, habit, bursts and timers each tell; nothing overflows, nothing is certain."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from accelerd.scheduler.keep_value import HORIZONS, Usage, reload_cost

DAY = 86400.0


def used(*times: float) -> Usage:
    usage = Usage()
    for time in times:
        usage.note(time)
    return usage


def every(period: float, count: int, begin: float = 0.0) -> list[float]:
    return [begin + period * i for i in range(count)]


def test_what_was_used_lately_is_likelier_than_what_was_used_long_ago() -> None:
    assert used(5000.0).likelihood(6000.0) > used(1000.0).likelihood(6000.0)


def test_the_longer_it_is_not_used_the_less_likely_it_gets() -> None:
    usage = used(0.0, 20.0, 40.0)
    chances = [usage.likelihood(40.0 + age) for age in (1, 60, 600, 3600, 6 * 3600, 2 * DAY)]
    assert chances == sorted(chances, reverse=True)
    assert chances[-1] < chances[0] / 20


def test_a_favourite_is_likelier_than_what_was_used_once_as_lately() -> None:
    assert used(*every(3600.0, 24)).likelihood(DAY) > 2 * used(23 * 3600.0).likelihood(DAY)


def test_a_timer_is_known_by_its_period() -> None:
    """Used every 20 min, last 19 min ago; against as many uses in one burst that ended as lately."""
    timer = used(*every(1200.0, 30))
    burst = used(*every(10.0, 30, begin=29 * 1200.0 - 290.0))
    now = 29 * 1200.0 + 1140.0
    assert timer.last == burst.last
    assert timer.likelihood(now) > burst.likelihood(now)


def test_a_timer_that_did_not_come_is_believed_no_longer() -> None:
    usage = used(*every(1200.0, 30))
    expected, missed = usage.likelihood(29 * 1200.0 + 1100.0), usage.likelihood(29 * 1200.0 + 3 * 1200.0)
    assert missed < expected / 2


def test_within_a_burst_it_stays() -> None:
    """An agent that alternates: 30 s ago is nothing; an hour ago it is over."""
    usage = used(*every(40.0, 50))
    assert usage.likelihood(49 * 40.0 + 30.0) > 3 * usage.likelihood(49 * 40.0 + 3600.0)


def test_a_model_nobody_used_yet_is_neither_certain_nor_impossible() -> None:
    assert 0 < Usage().likelihood(1e6) < used(0.0).likelihood(1.0)
    assert Usage().last is None


def test_a_habit_that_changed_is_forgotten() -> None:
    """A month of every minute, then a month of twice a day: it looks like twice a day."""
    old = used(*every(60.0, 20_000), *every(DAY / 2, 400, begin=20_000 * 60.0 + DAY))
    new = used(*every(DAY / 2, 400, begin=20_000 * 60.0 + DAY))
    assert old.last == new.last
    now = (old.last or 0.0) + 3 * 3600.0
    assert math.isclose(old.likelihood(now), new.likelihood(now), rel_tol=0.1)


def test_a_longer_load_costs_more_and_even_a_short_one_something() -> None:
    assert 0 < reload_cost(0.0) < reload_cost(2.0) < reload_cost(34.0)


@given(
    st.lists(st.floats(min_value=0.0, max_value=30 * DAY), max_size=200),
    st.floats(min_value=0.0, max_value=365 * DAY),
)
def test_it_is_a_positive_number_whatever_happened(gaps: list[float], age: float) -> None:
    usage, now = Usage(), 1000.0
    usage.note(now)
    for gap in gaps:
        now += gap
        usage.note(now)
    likelihood = usage.likelihood(now + age)
    assert 0 < likelihood <= 3600.0 / min(HORIZONS) * (len(gaps) + 1)
    assert likelihood >= usage.likelihood(now + age + 365 * DAY)


def test_times_that_do_not_rise_do_no_harm() -> None:
    """Requests of one moment, and a note that comes late."""
    usage = used(10.0, 10.0, 9.0)
    assert usage.likelihood(8.0) > 0


def test_weights_do_not_overflow() -> None:
    usage = used(*every(5.0, 10_000))
    assert math.isfinite(usage.likelihood(10_000 * 5.0))
    assert usage.likelihood(10_000 * 5.0) > usage.likelihood(10_000 * 5.0 + DAY)
