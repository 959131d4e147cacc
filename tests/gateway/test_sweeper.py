"""The one timer: who is given up when, and that it sleeps when there is nobody to watch."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from accelerd.gateway.sweeper import SWEEP_PERIOD, WHOLE_ANSWER_TIMEOUT, Sweeper
from tests.fakes.clock import FakeClock


class Timer:
    def __init__(self, loop: Loop, due: float, call: Callable[[], None]) -> None:
        self.loop, self.due, self.call = loop, due, call

    def cancel(self) -> None:
        self.loop.timers.remove(self)


class Loop(asyncio.AbstractEventLoop):
    """Only call_later, on a fake clock."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.timers: list[Timer] = []

    def call_later(self, delay: float, callback: Any, *args: Any, context: Any = None) -> Any:
        timer = Timer(self, self.clock.now + delay, callback)
        self.timers.append(timer)
        return timer

    def advance(self, seconds: float) -> None:
        end = self.clock.now + seconds
        while due := [t for t in self.timers if t.due <= end]:
            timer = min(due, key=lambda t: t.due)
            self.timers.remove(timer)
            self.clock.now = timer.due
            timer.call()
        self.clock.now = end


class Lease:
    def __init__(self, now: float) -> None:
        self.progress = now


class Relay:
    def __init__(self, now: float | None) -> None:
        self.lease = Lease(now) if now is not None else None
        self.paused = False
        self.stalls: list[float] = []

    def stall(self, seconds: float) -> None:
        self.stalls.append(seconds)


class Client:
    aborted = False

    def abort(self) -> None:
        self.aborted = True


def bench() -> tuple[Sweeper, Loop, FakeClock]:
    clock = FakeClock()
    loop = Loop(clock)
    return Sweeper(loop, clock), loop, clock


def test_it_sleeps_when_nobody_is_watched() -> None:
    sweeper, loop, clock = bench()
    assert not loop.timers
    relay: Any = Relay(clock.now)
    sweeper.watch(relay, stream=True)
    assert len(loop.timers) == 1
    sweeper.watch(Relay(clock.now), stream=True)  # type: ignore[arg-type]
    assert len(loop.timers) == 1, "one timer for all"
    sweeper.close()
    assert not loop.timers
    sweeper, loop, clock = bench()
    sweeper.watch(relay, stream=True)
    sweeper.forget(relay)
    loop.advance(SWEEP_PERIOD)
    assert not loop.timers, "went on without anybody to watch"


def test_a_silent_stream_is_given_up_within_a_period() -> None:
    sweeper, loop, clock = bench()
    relay: Any = Relay(clock.now)
    sweeper.stall_timeout = 300.0
    sweeper.watch(relay, stream=True)
    loop.advance(300)
    assert not relay.stalls
    loop.advance(SWEEP_PERIOD)
    assert relay.stalls == [300.0]


def test_a_stream_that_says_something_lives_for_ever() -> None:
    sweeper, loop, clock = bench()
    relay: Any = Relay(clock.now)
    sweeper.watch(relay, stream=True)
    for _ in range(100):
        loop.advance(299)
        relay.lease.progress = clock.now
    assert not relay.stalls


def test_a_plain_answer_has_more_time() -> None:
    sweeper, loop, clock = bench()
    relay: Any = Relay(clock.now)
    sweeper.watch(relay, stream=False)
    loop.advance(WHOLE_ANSWER_TIMEOUT)
    assert not relay.stalls
    loop.advance(SWEEP_PERIOD)
    assert relay.stalls == [WHOLE_ANSWER_TIMEOUT]


def test_who_waits_for_a_lease_is_not_stalled() -> None:
    sweeper, loop, _ = bench()
    relay: Any = Relay(None)
    sweeper.watch(relay, stream=True)
    loop.advance(10_000)
    assert not relay.stalls


def test_an_engine_is_not_blamed_for_a_client_that_does_not_read() -> None:
    sweeper, loop, clock = bench()
    relay: Any = Relay(clock.now)
    relay.paused = True
    sweeper.watch(relay, stream=True)
    loop.advance(10_000)
    assert not relay.stalls


def test_a_client_that_reads_nothing_is_cut_off_once() -> None:
    sweeper, loop, _ = bench()
    client, quick, gone = Client(), Client(), Client()
    sweeper.write_timeout = 60.0
    for each in (client, quick, gone):
        sweeper.paused(each)
    loop.advance(30)
    sweeper.resumed(quick)
    sweeper.resumed(gone)
    sweeper.resumed(gone)
    loop.advance(30)
    assert not client.aborted
    loop.advance(SWEEP_PERIOD)
    assert client.aborted
    assert not quick.aborted
    assert not gone.aborted
    assert not loop.timers


def test_each_pause_has_its_own_time() -> None:
    sweeper, loop, _ = bench()
    client = Client()
    for _ in range(10):
        sweeper.paused(client)
        loop.advance(59)
        sweeper.resumed(client)
    assert not client.aborted


def test_short_timeouts_are_kept_too() -> None:
    sweeper, loop, clock = bench()
    sweeper.write_timeout, sweeper.stall_timeout = 1.0, 2.0
    client, relay = Client(), Relay(clock.now)
    sweeper.watch(relay, stream=True)  # type: ignore[arg-type]
    sweeper.paused(client)
    loop.advance(1.3)
    assert client.aborted
    loop.advance(1)
    assert relay.stalls[:1] == [2.0]
