"""Models inside one server that throws all of them out when a load fails: no load begins while one of them works, and
none of them gets work while one is being loaded. And one that the server has under two names."""

from __future__ import annotations

import pytest

from accelerd.base.exits import Cause
from accelerd.config.model import SchedulerSettings
from accelerd.memory.model import Forecast, Shared, in_ram
from accelerd.scheduler.lifecycle import State
from accelerd.scheduler.placement import SharedLimits
from tests.scheduler.bench import MIB, Bench, model

SETTINGS = SchedulerSettings(min_resident=0, linger=0, max_overtake=20)


def inside(name: str, server: str = "Lemonade", *, cuts: bool = True) -> Forecast:
    return Forecast((in_ram(MIB, "test"),), shared=Shared(server, name, cuts))


def bench(**models: Forecast) -> Bench:
    specs = [model(name, parallel=2) for name in models]
    return Bench(specs, SETTINGS, SharedLimits(None, "no limit", None), forecasts=models)


def started(table: Bench) -> list[str]:
    return [name for _, name in table.started]


def test_a_load_waits_until_nobody_is_at_work_who_could_be_cut() -> None:
    table = bench(chat=inside("chat"), other=inside("other"))
    table.loaded("chat")
    running = table.request("chat")
    waiting = table.request("other")
    assert started(table) == ["chat"]
    table.end(running)
    assert started(table) == ["chat", "other"]
    table.ready("other")
    assert waiting.lease


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (inside("chat"), inside("other", "http://127.0.0.1:13305")),  # not the same server
        (inside("chat", cuts=False), inside("other", cuts=False)),  # it knows who works, since it is asked itself
        (inside("chat"), Forecast((in_ram(MIB, "test"),))),  # not in a server
        (Forecast((in_ram(MIB, "test"),)), inside("other")),
    ],
)
def test_others_do_not_wait(first: Forecast, second: Forecast) -> None:
    table = bench(chat=first, other=second)
    table.loaded("chat")
    assert table.request("chat").lease
    table.request("other")
    assert started(table) == ["chat", "other"]
    assert table.request("chat").lease, "while it is loaded"


def test_during_a_load_nobody_begins_what_could_be_cut() -> None:
    """Not on the fast path either, when nobody waits for the load any more."""
    table = bench(chat=inside("chat"), other=inside("other"))
    table.loaded("chat")
    waiting = table.request("other")
    assert started(table) == ["chat", "other"]
    table.core.cancel("other", waiting.waiter)
    assert table.core.acquire("chat") is None
    held = table.request("chat")
    assert not held.lease
    table.ready("other")
    assert held.lease


def test_a_failed_load_lets_the_others_go_on() -> None:
    table = bench(chat=inside("chat"), other=inside("other"))
    table.loaded("chat")
    table.request("other")
    held = table.request("chat")
    assert not held.lease
    table.gone("other", Cause.EXITED)
    assert held.lease


def test_a_load_does_not_wait_for_ever_behind_ever_new_requests() -> None:
    """They have the usual time to overtake; then they wait, and the load begins when those under way have ended."""
    table = bench(chat=inside("chat"), other=inside("other"))
    table.loaded("chat")
    running = table.request("chat")
    waiting = table.request("other")
    overtaking = table.request("chat")
    assert overtaking.lease
    table.end(running)
    table.pass_time(21)
    late = table.request("chat")
    assert not late.lease
    assert started(table) == ["chat"]
    table.end(overtaking)
    assert started(table) == ["chat", "other"]
    assert not late.lease
    table.ready("other")
    assert waiting.lease
    assert late.lease
    assert table.state("chat") is State.READY, "it has not been unloaded for it"


def test_older_requests_come_before_the_load() -> None:
    table = bench(chat=inside("chat"), other=inside("other"))
    table.loaded("chat")
    first, second = table.request("chat"), table.request("chat")
    older = table.request("chat")  # it has two slots
    table.pass_time(1)
    table.request("other")
    table.end(first)
    assert older.lease
    assert started(table) == ["chat"]
    table.end(second)
    table.end(older)
    assert started(table) == ["chat", "other"]


def test_one_model_under_two_names_is_swapped_after_its_requests() -> None:
    table = bench(short=inside("qwen", cuts=False), long=inside("qwen", cuts=False))
    table.loaded("short")
    running = table.request("short")
    waiting = table.request("long")
    table.pass_time(1)
    assert table.state("short") is State.READY
    table.end(running)
    table.pass_time(1)
    assert table.state("short") is State.STOPPING
    assert "are one model of Lemonade, qwen" in table.core.snapshot("short").reason
    table.gone("short")
    table.ready("long")
    assert waiting.lease
