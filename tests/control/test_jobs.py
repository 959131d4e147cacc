"""Jobs: they end once, joiners share one, cancelling works at any moment, ends can be read for a minute, floods end."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from accelerd.base.errors import AccelError
from accelerd.base.events import EventStream
from accelerd.control.jobs import KEPT_MOST, LINGER, UNFINISHED_MOST, Job, JobChanged, JobForgotten, Jobs, JobTold
from tests.fakes.clock import FakeClock


class Board:
    """Jobs with a clock of the test's, and all that was told of them. Checks what holds at every telling."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.states: dict[int, list[str]] = {}
        self.progress: dict[int, float] = {}
        self.gone: list[int] = []
        self.gone_one = asyncio.Event()
        self.told: list[tuple[int, Mapping[str, Any]]] = []
        events = EventStream()
        events.subscribe(JobChanged, lambda one: self._changed(one.job))
        events.subscribe(JobForgotten, lambda one: self._gone(one.job))
        events.subscribe(JobTold, lambda one: self.told.append((one.job.id, one.event)))
        self.jobs = Jobs(self.clock, events)

    def _changed(self, job: Job) -> None:
        assert job.id not in self.gone
        seen = self.states.setdefault(job.id, [])
        assert "done" not in seen, "told of after its end"
        assert (job.state == "done") is (job.result != "") is (job.finished is not None)
        assert job.progress == -1 or 0 <= job.progress <= 1
        assert job.progress >= self.progress.get(job.id, -1), "progress went back"
        self.progress[job.id] = job.progress
        seen.append(job.state)

    def _gone(self, job: Job) -> None:
        assert job.id not in self.gone
        assert self.states[job.id][-1] == "done"
        self.gone.append(job.id)
        self.gone_one.set()

    def tasks(self) -> int:
        """Those of jobs that are not over."""
        return sum(task.get_name().startswith("job ") for task in asyncio.all_tasks())


def run(test: Callable[[Board], Awaitable[None]]) -> Board:
    async def whole() -> Board:
        board = Board()
        await test(board)
        await board.jobs.close()
        assert board.jobs.all() == []
        assert sorted(board.gone) == sorted(board.states), "each job goes once"
        assert board.tasks() == 0
        return board

    return asyncio.run(whole())


async def nothing(job: Job) -> None:
    """Work that is over at once."""


async def for_ever(job: Job) -> None:
    await asyncio.get_running_loop().create_future()


async def turns(count: int = 3) -> None:
    """Let everything that can happen now happen."""
    for _ in range(count):
        await asyncio.sleep(0)


def test_a_job_begins_runs_and_is_done() -> None:
    async def test(board: Board) -> None:
        go = asyncio.Event()

        async def work(job: Job) -> None:
            job.report(waiting=True, phase="queued")
            await go.wait()
            job.report(progress=0.5, phase="reading")
            job.tell({"event": "progress"})

        job = board.jobs.start("load", "qwen", work)
        assert board.states[job.id] == ["waiting"], "told of before start returns"
        await turns()
        assert (job.state, job.phase, job.progress) == ("waiting", "queued", -1.0)
        go.set()
        assert await board.jobs.wait(job.id) is job
        assert (job.state, job.result, job.progress, job.phase, job.error) == ("done", "done", 1.0, "reading", None)
        assert board.states[job.id] == ["waiting", "running", "waiting", "running", "done"]
        assert board.told == [(job.id, {"event": "progress"})]
        assert job.last == {"event": "progress"}

    run(test)


@pytest.mark.parametrize(
    ("error", "result", "code"),
    [
        (AccelError("model_failed", "cannot load a: it ended"), "failed", "model_failed"),
        (AccelError("queue_timeout", "a was not free"), "timeout", "queue_timeout"),
        (AccelError("model_unloaded", "a was unloaded"), "superseded", "model_unloaded"),
        (TimeoutError(), "timeout", "request_timeout"),
        (ZeroDivisionError("secret"), "failed", "internal"),
    ],
)
def test_how_work_fails_is_how_its_job_ends(
    error: Exception, result: str, code: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def test(board: Board) -> None:
        async def work(job: Job) -> None:
            raise error

        job = await board.jobs.wait(board.jobs.start("load", "a", work).id)
        assert job.error is not None
        assert (job.result, job.error.code) == (result, code)
        assert "secret" not in job.error.message
        assert "Error" not in job.error.message

    with caplog.at_level(logging.ERROR):
        run(test)
    assert ("ended by a mistake" in caplog.text) is (code == "internal")


def test_who_joins_gets_the_same_job_until_it_is_over() -> None:
    async def test(board: Board) -> None:
        begun: list[int] = []

        async def work(job: Job) -> None:
            begun.append(job.id)
            await turns(5)

        first = board.jobs.start("load", "a", work, key="load a")
        assert board.jobs.start("load", "a", work, key="load a") is first
        assert board.jobs.start("load", "b", work, key="load b") is not first
        assert board.jobs.start("load", "a", work) is not first, "without a key none is joined"
        both = await asyncio.gather(board.jobs.wait(first.id), board.jobs.wait(first.id))
        assert both == [first, first]
        assert board.jobs.start("load", "a", work, key="load a") is not first
        assert begun.count(first.id) == 1

    run(test)


def test_a_cancelled_job_is_not_joined_but_waited_for() -> None:
    async def test(board: Board) -> None:
        release, order = asyncio.Event(), list[str]()

        async def slow_to_end(job: Job) -> None:
            try:
                await for_ever(job)
            finally:
                await release.wait()
                order.append("first has let go")

        async def second_work(job: Job) -> None:
            order.append("second begins")

        first = board.jobs.start("load", "a", slow_to_end, key="a")
        await turns()
        board.jobs.cancel(first.id)
        second = board.jobs.start("load", "a", second_work, key="a")
        assert second is not first
        assert board.jobs.start("load", "a", second_work, key="a") is second
        await turns()
        assert (first.state, second.state, order) == ("running", "waiting", [])
        release.set()
        await board.jobs.wait(second.id)
        assert (first.result, second.result) == ("canceled", "done")
        assert order == ["first has let go", "second begins"]

    run(test)


@pytest.mark.parametrize("after", [0, 1, 2, 3, 4])
def test_cancelling_works_at_any_moment(after: int) -> None:
    async def test(board: Board) -> None:
        async def work(job: Job) -> None:
            await turns(2)

        job = board.jobs.start("tune", "a", work, key="a")
        waiter = asyncio.ensure_future(board.jobs.wait(job.id))
        await turns(after)
        over = job.state == "done"
        board.jobs.cancel(job.id)
        board.jobs.cancel(job.id)
        assert await waiter is job
        assert job.result == ("done" if over else "canceled")
        assert job.error is None
        board.jobs.cancel(job.id)  # nothing, for one that is over

    run(test)


def test_who_gives_up_waiting_leaves_the_job_alone() -> None:
    async def test(board: Board) -> None:
        go = asyncio.Event()

        async def work(job: Job) -> None:
            await go.wait()

        job = board.jobs.start("load", "a", work)
        impatient = asyncio.ensure_future(board.jobs.wait(job.id))
        await turns()
        impatient.cancel()
        await turns()
        assert job.state == "running"
        go.set()
        assert (await board.jobs.wait(job.id)).result == "done"

    run(test)


def test_an_end_can_be_read_for_a_minute_and_then_no_more() -> None:
    async def test(board: Board) -> None:
        first = board.jobs.start("load", "a", nothing)
        await board.jobs.wait(first.id)
        board.clock.advance(LINGER / 2)
        second = board.jobs.start("load", "a", nothing)
        running = board.jobs.start("tune", "a", for_ever)
        await board.jobs.wait(second.id)
        board.clock.advance(LINGER / 2 - 0.001)
        board.jobs.sweep()
        assert board.jobs.all() == [first, second, running]
        assert (await board.jobs.wait(first.id)).result == "done", "who comes late misses nothing"
        board.clock.advance(0.001)
        board.jobs.sweep()
        assert board.jobs.all() == [second, running]
        assert board.gone == [first.id]
        for look in (lambda: board.jobs.find(first.id), lambda: board.jobs.cancel(first.id)):
            with pytest.raises(AccelError) as error:
                look()
            assert error.value.code == "job_not_found"
        with pytest.raises(AccelError):
            await board.jobs.wait(first.id)
        board.clock.advance(1e6)
        board.jobs.sweep()
        assert board.jobs.all() == [running]

    run(test)


def test_a_timer_forgets_them_without_being_asked() -> None:
    async def test(board: Board) -> None:
        job = board.jobs.start("load", "a", nothing)
        await board.jobs.wait(job.id)
        board.clock.advance(LINGER - 0.01)
        board.jobs.sweep()  # what is left of the minute is a moment
        board.clock.advance(0.01)
        async with asyncio.timeout(10):
            await board.gone_one.wait()
        assert (board.gone, board.jobs.all()) == ([job.id], [])

    run(test)


def test_a_flood_of_jobs_is_bounded_and_leaves_room_again() -> None:
    async def test(board: Board) -> None:
        flood = [board.jobs.start("load", str(n), for_ever, key=str(n)) for n in range(UNFINISHED_MOST)]
        for key in (None, "another"):
            with pytest.raises(AccelError) as error:
                board.jobs.start("load", "x", for_ever, key=key)
            assert error.value.code == "queue_full"
        assert len(board.states) == UNFINISHED_MOST, "what is refused was never shown"
        assert board.jobs.start("load", "7", for_ever, key="7") is flood[7], "joining is always possible"
        board.jobs.cancel(flood[0].id)
        await board.jobs.wait(flood[0].id)
        board.jobs.start("load", "x", for_ever)

    run(test)


def test_a_flood_of_short_jobs_does_not_pile_up_ends() -> None:
    async def test(board: Board) -> None:
        for _ in range(8):
            jobs = [board.jobs.start("load", "x", nothing) for _ in range(UNFINISHED_MOST)]
            await asyncio.gather(*(board.jobs.wait(job.id) for job in jobs))
            assert all(job.result == "done" for job in jobs)
        assert len(board.jobs.all()) == KEPT_MOST
        assert board.jobs.all()[-1] is jobs[-1], "the newest ends are kept"

    run(test)


def test_closing_ends_what_runs_and_starts_nothing_more() -> None:
    async def test(board: Board) -> None:
        ended: list[str] = []

        async def work(job: Job) -> None:
            try:
                await for_ever(job)
            finally:
                await turns()
                ended.append(job.subject)

        running = board.jobs.start("load", "begun", work)
        await turns()
        never_begun = board.jobs.start("load", "never begun", work)
        waiter = asyncio.ensure_future(board.jobs.wait(running.id))
        await turns(0)
        await board.jobs.close()
        assert ended == ["begun"]
        assert (running.result, never_begun.result) == ("canceled", "canceled")
        assert await waiter is running
        with pytest.raises(AccelError) as error:
            board.jobs.start("load", "late", work)
        assert error.value.code == "shutting_down"

    run(test)


def test_progress_never_goes_back_and_is_a_part_of_one() -> None:
    async def test(board: Board) -> None:
        seen: list[float] = []

        async def work(job: Job) -> None:
            for said in (0.0, 0.3, 0.2, math.nan, -1.0, 0.9, 7.0, 0.1):
                job.report(progress=said)
                seen.append(job.progress)

        job = board.jobs.start("load", "a", work)
        await board.jobs.wait(job.id)
        assert seen == [0.0, 0.3, 0.3, 0.3, 0.3, 0.9, 1.0, 1.0]
        job.report(progress=0.5, phase="late")
        job.tell({"late": True})
        assert (job.progress, job.phase, job.state, board.told) == (1.0, "", "done", [])

    run(test)


# --- anything, in any order -----------------------------------------------------------------------------------

KEYS = st.sampled_from([None, "a", "b"])
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("start"), KEYS),
        st.tuples(st.just("finish"), st.integers(0, 9)),
        st.tuples(st.just("fail"), st.integers(0, 9)),
        st.tuples(st.just("cancel"), st.integers(0, 9)),
        st.tuples(st.just("report"), st.integers(0, 9)),
        st.tuples(st.just("wait"), st.integers(0, 9)),
        st.tuples(st.just("turn"), st.integers(1, 4)),
        st.tuples(st.just("time"), st.sampled_from([1, 59, 60])),
    ),
    max_size=60,
)


@dataclass
class Scene:
    """Jobs whose works do as they are told."""

    board: Board
    ends: dict[int, asyncio.Future[None]] = field(default_factory=dict)
    known: list[Job] = field(default_factory=list)
    waits: list[tuple[Job, asyncio.Task[Job]]] = field(default_factory=list)

    async def work(self, job: Job) -> None:
        others = [one for one in self.known if one.key == job.key and one.key and one is not job]
        assert all(one.finished is not None or one.state == "waiting" for one in others), "two works of one key"
        await self.ends[job.id]

    def start(self, key: str | None) -> None:
        before = [one for one in self.known if one.key == key and key and one.finished is None]
        job = self.board.jobs.start("load", "x", self.work, key=key)
        if job not in self.known:
            self.known.append(job)
            self.ends[job.id] = asyncio.get_running_loop().create_future()
        else:
            assert job in before
            assert job.finished is None

    def do(self, what: str, number: int) -> None:
        if not self.known:
            return
        job = self.known[-1 - number % len(self.known)]
        end = self.ends[job.id]
        if what == "finish" and not end.done():
            end.set_result(None)
        elif what == "fail" and not end.done():
            end.set_exception(AccelError("model_failed", "it ended"))
            end.exception()  # a job that was cancelled never looks
        elif what == "cancel" and job.id not in self.board.gone:
            self.board.jobs.cancel(job.id)
        elif what == "report":
            job.report(progress=number / 9, phase=f"step {number}")
        elif what == "wait" and job.id not in self.board.gone:
            self.waits.append((job, asyncio.ensure_future(self.board.jobs.wait(job.id))))


@given(steps=STEPS)
@settings(max_examples=200)
def test_whatever_happens_every_job_ends_once_and_everybody_hears(steps: list[tuple[str, Any]]) -> None:
    async def test(board: Board) -> None:
        scene = Scene(board)
        for what, value in steps:
            if what == "start":
                scene.start(value)
            elif what == "turn":
                await turns(value)
            elif what == "time":
                board.clock.advance(value)
                board.jobs.sweep()
            else:
                scene.do(what, value)
            unfinished = [job for job in scene.known if job.finished is None]
            assert board.tasks() <= len(unfinished), "a task outlived its job"
            for job in scene.known:
                shown = job.finished is None or board.clock.now - job.finished < LINGER
                assert (job in board.jobs.all()) or not shown
        await board.jobs.close()
        for job in scene.known:
            assert board.states[job.id].count("done") == 1
        await turns()
        for job, waiter in scene.waits:
            assert waiter.done()
            assert waiter.exception() is not None or waiter.result() is job
            if waiter.exception() is not None:
                assert job.id in board.gone, "who began to wait in time hears of the end"

    run(test)
