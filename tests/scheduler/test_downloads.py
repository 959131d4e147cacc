"""Models whose files are not on this machine: requests wait for the download, and nothing else does."""

from __future__ import annotations

import pytest

from accelerd.base.errors import AccelError
from accelerd.base.exits import Cause
from accelerd.memory.model import Forecast, in_ram
from accelerd.scheduler.events import FilesWanted
from accelerd.scheduler.lifecycle import State
from accelerd.scheduler.placement import SharedLimits
from accelerd.scheduler.record import DownloadProgress
from tests.scheduler.bench import MIB, Bench, model, refusal

UNKNOWN = Forecast((in_ram(0, "unknown: not downloaded yet"),), missing=True)
HERE = Forecast((in_ram(60 * MIB, "its header"),))
SOURCE = "org/repo:Q4_K_M"


class Hub(Bench):
    """A bench on which "new" is not downloaded yet; `wanted` is what was asked for."""

    def __init__(self, **settings: object) -> None:
        self.wanted: list[str] = []
        specs = [model("old"), model("new", model=SOURCE, **settings)]
        limits = SharedLimits(100 * MIB, "test", None)
        super().__init__(specs, limits=limits, memory={"old": 60 * MIB}, forecasts={"new": UNKNOWN})
        self.events.subscribe(FilesWanted, lambda event: self.wanted.append(event.spec.model or ""))

    def arrive(self) -> None:
        self.core.files.arrived("new", HERE)

    def fail(self, code: str = "upstream_failed") -> None:
        again = code == "upstream_failed"
        self.core.files.failed("new", AccelError(code, "the hub does not answer"), again=again)


def test_a_download_is_asked_for_once_and_nobody_leaves_for_it() -> None:
    hub = Hub()
    hub.loaded("old")
    hub.pass_time(60)
    waiting = [hub.request("new") for _ in range(3)]
    hub.pass_time(30)
    assert hub.wanted == [SOURCE]
    assert hub.state("new") is State.DOWNLOADING
    assert hub.state("old") is State.READY, "its place is not needed yet"
    assert hub.core.memory_held() == 60 * MIB
    assert not any(one.lease or one.error for one in waiting)
    served = hub.request("old")
    assert served.lease is not None, "who wants another model is served meanwhile"


def test_when_the_files_are_there_the_model_is_admitted_like_any_other() -> None:
    hub = Hub()
    hub.loaded("old")
    hub.pass_time(60)
    waiting = hub.request("new")
    hub.pass_time(30)
    hub.arrive()
    assert hub.core.snapshot("new").memory == 60 * MIB
    assert hub.state("old") is State.STOPPING, "now it has to leave"
    hub.gone("old")
    hub.ready("new")
    assert waiting.lease is not None
    assert hub.wanted == [SOURCE]


def test_the_time_of_a_download_is_no_time_in_the_queue() -> None:
    hub = Hub()
    limit = hub.settings.queue_timeout
    waiting = hub.request("new")
    hub.pass_time(20 * limit)
    assert waiting.error is None
    hub.arrive()
    hub.pass_time(limit - 1)
    assert waiting.error is None, "it has the whole time for the load"
    hub.pass_time(2)
    assert refusal(waiting)[0] == "queue_timeout"


def test_the_news_of_a_download_can_be_read() -> None:
    hub = Hub()
    assert (hub.core.snapshot("new").missing, hub.core.snapshot("new").download) == (True, None)
    hub.request("new")
    hub.core.files.progress("new", DownloadProgress(12, 100, 4.0, 22.0))
    seen = hub.core.snapshot("new").download
    assert seen is not None
    assert (seen.bytes, seen.total, seen.rate, seen.remaining) == (12, 100, 4.0, 22.0)
    hub.arrive()
    assert (hub.core.snapshot("new").missing, hub.core.snapshot("new").download) == (False, None)


def test_whoever_waits_hears_why_the_files_do_not_come() -> None:
    hub = Hub()
    waiting = hub.request("new"), hub.request_load("new")
    hub.fail()
    assert {refusal(one) for one in waiting} == {("upstream_failed", "the hub does not answer")}
    late = hub.request("new")
    assert refusal(late)[0] == "model_backing_off"
    assert late.error is not None
    hub.pass_time(late.error.retry_after or 0)
    again = hub.request("new")
    assert (hub.wanted, again.error) == ([SOURCE, SOURCE], None)


def test_pauses_between_downloads_that_fail_grow() -> None:
    hub = Hub()
    pauses = []
    for _ in range(3):
        hub.request("new")
        hub.fail()
        late = hub.request("new")
        assert late.error is not None
        assert late.error.retry_after is not None
        pauses.append(late.error.retry_after)
        hub.pass_time(late.error.retry_after)
    assert pauses[0] < pauses[1] < pauses[2]


def test_what_trying_again_does_not_mend_is_said_to_each_request() -> None:
    hub = Hub()
    hub.request("new")
    hub.fail("not_found")
    assert hub.state("new") is State.FAILED
    assert refusal(hub.request("new")) == ("not_found", "the hub does not answer")
    hub.pass_time(hub.settings.backoff_initial)
    assert hub.request("new").error is None, "the user may have changed something"
    assert hub.wanted == [SOURCE, SOURCE]


def test_a_reset_has_it_tried_at_once() -> None:
    hub = Hub()
    hub.request("new")
    hub.fail("not_found")
    hub.core.reset("new")
    assert hub.request("new").error is None
    assert hub.wanted == [SOURCE, SOURCE]


@pytest.mark.parametrize("how", ["preload", "pin"])
def test_a_model_that_is_to_be_loaded_is_tried_again_without_a_request(how: str) -> None:
    hub = Hub(**{how: True})
    hub.request_load("new", may_evict=False)
    hub.fail()
    hub.pass_time(2 * hub.settings.backoff_initial)
    assert hub.wanted == [SOURCE, SOURCE]
    hub.arrive()
    assert hub.loads() == ["new"]


def test_a_download_goes_on_when_its_clients_leave_and_then_nothing_is_loaded() -> None:
    hub = Hub()
    waiting = hub.request("new")
    assert waiting.waiter is not None
    hub.core.cancel("new", waiting.waiter)
    assert hub.state("new") is State.DOWNLOADING
    hub.arrive()
    assert (hub.state("new"), hub.loads()) == (State.STOPPED, [])


def test_an_unload_ends_the_wait_and_late_news_change_nothing() -> None:
    hub = Hub()
    waiting = hub.request("new")
    done: list[bool] = []
    hub.core.begin_unload("new", force=False, done=lambda: done.append(True))
    assert (refusal(waiting)[0], done, hub.state("new")) == ("model_unloaded", [True], State.STOPPED)
    hub.fail()
    hub.core.files.progress("new", DownloadProgress(1))
    assert hub.state("new") is State.STOPPED
    assert hub.core.snapshot("new").download is None


def test_another_source_is_downloaded_instead() -> None:
    hub = Hub()
    waiting = hub.request("new")
    hub.configure([model("old"), model("new", model="org/other")])
    assert hub.wanted == [SOURCE, "org/other"]
    assert waiting.error is None
    hub.configure([model("old"), model("new", model="org/other", idle_timeout=5.0)])
    assert hub.wanted == [SOURCE, "org/other"], "what does not concern the files leaves the download alone"


def test_files_that_came_by_themselves_are_not_waited_for() -> None:
    hub = Hub()
    waiting = hub.request("new")
    hub.forecasts["new"] = HERE
    hub.configure([model("old"), model("new", model=SOURCE)])
    assert hub.loads() == ["new"]
    hub.ready("new")
    assert waiting.lease is not None


def test_a_model_that_is_removed_is_not_waited_for() -> None:
    hub = Hub()
    waiting = hub.request("new")
    hub.configure([model("old")])
    assert refusal(waiting)[0] == "model_not_found"
    hub.arrive()
    hub.fail()
    assert [s.spec.name for s in hub.core.snapshots()] == ["old"]


def test_the_end_of_the_daemon_refuses_those_who_wait_for_a_download() -> None:
    hub = Hub()
    waiting = hub.request("new")
    hub.core.shutdown(keep=True)
    assert refusal(waiting)[0] == "shutting_down"
    hub.arrive()
    assert hub.loads() == []


def test_a_load_that_is_canceled_ends_its_download_unless_somebody_waits() -> None:
    hub = Hub()
    waiting, load = hub.request("new"), hub.request_load("new")
    assert load.waiter is not None
    assert waiting.waiter is not None
    hub.core.cancel("new", load.waiter)
    assert not hub.core.holds.abandon("new", "the load was canceled"), "a client waits for it"
    hub.core.cancel("new", waiting.waiter)
    assert hub.core.holds.abandon("new", "the load was canceled")
    assert hub.state("new") is State.STOPPED


def test_a_download_for_a_hold_goes_on() -> None:
    hub = Hub()
    hub.core.holds.hold("new", "me", load=True)
    assert hub.wanted == [SOURCE]
    assert not hub.core.holds.abandon("new", "the load was canceled")
    hub.arrive()
    assert hub.loads() == ["new"]


@pytest.mark.parametrize("pinned", [False, True])
def test_files_that_were_deleted_since_they_came_are_downloaded_again_once(pinned: bool) -> None:
    hub = Hub(pin=pinned)
    first = hub.request("new")
    hub.arrive()
    hub.ready("new")
    hub.end(first)
    hub.core.begin_unload("new", force=False, done=lambda: None)
    hub.gone("new")
    again = hub.request("new"), hub.request_load("new")
    hub.gone("new", Cause.NOT_DOWNLOADED, "not all files are on this machine")
    assert (hub.state("new"), hub.wanted) == (State.DOWNLOADING, [SOURCE, SOURCE])
    assert not any(one.error for one in again), "they wait for it"
    hub.arrive()
    hub.gone("new", Cause.NOT_DOWNLOADED, "not all files are on this machine")
    assert {refusal(one)[0] for one in again} == {"model_failed"}, "what does not help is not done for ever"
    assert (hub.state("new"), hub.wanted) == (State.FAILED, [SOURCE, SOURCE])
