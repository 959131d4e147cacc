"""Downloads for models that are asked for: started once, told to the scheduler, given up when nobody wants them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from accelerd.base.errors import AccelError
from accelerd.base.model_source import Source
from accelerd.config.model import ModelSpec
from accelerd.downloads.download import DownloadProgress as Fetched
from accelerd.memory.model import Forecast, in_ram
from accelerd.policy.downloads import ModelDownloads
from accelerd.scheduler.lifecycle import State
from tests.scheduler.bench import MIB, Bench, model, refusal

MISSING = Forecast((in_ram(0, "unknown"),), missing=True)
HERE = Forecast((in_ram(MIB, "its header"),))
SOURCE = "org/repo:Q4_K_M"


class World(Bench):
    """A hub of which a test says what comes, and a scheduler behind."""

    def __init__(self) -> None:
        super().__init__([model("new", model=SOURCE), model("old")], forecasts={"new": MISSING})
        self.fetched: list[str] = []
        self.given_up = 0
        self.hear: Callable[[Fetched], None]
        self.result: asyncio.Future[None]
        self.found = HERE
        self.downloads = ModelDownloads(self.core, self.look_again, self.events)  # type: ignore[arg-type]
        self.downloads.fetch = self.fetch

    async def fetch(self, source: Source, hear: Callable[[Fetched], None]) -> None:
        self.fetched.append(str(source))
        self.hear, self.result = hear, asyncio.get_running_loop().create_future()
        try:
            await self.result
        except asyncio.CancelledError:
            self.given_up += 1
            raise

    async def look_again(self, spec: ModelSpec) -> Forecast:
        return self.found


@asynccontextmanager
async def world() -> AsyncIterator[World]:
    made = World()
    try:
        yield made
    finally:
        await made.downloads.close()


async def turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_the_files_come_and_the_model_is_loaded() -> None:
    async with world() as w:
        waiting = w.request("new"), w.request("new")
        await turns()
        assert w.fetched == [SOURCE]
        w.hear(Fetched(12 * MIB, 100 * MIB, 4.0 * MIB, 22.0, "a.gguf"))
        seen = w.core.snapshot("new").download
        assert seen is not None
        assert (seen.bytes, seen.total, seen.remaining, seen.file) == (12 * MIB, 100 * MIB, 22.0, "a.gguf")
        w.result.set_result(None)
        await turns()
        assert w.loads() == ["new"]
        w.ready("new")
        assert any(one.lease for one in waiting)


@pytest.mark.parametrize(
    ("code", "state"),
    [("hub_offline", State.BACKOFF), ("hub_not_found", State.FAILED), ("model_gated", State.FAILED),
     ("canceled", State.FAILED)],
)  # fmt: skip
async def test_who_waits_hears_why_the_files_do_not_come(code: str, state: State) -> None:
    async with world() as w:
        waiting = w.request("new")
        await turns()
        w.result.set_exception(AccelError(code, "no"))
        await turns()
        assert refusal(waiting) == (code, "no")
        assert w.state("new") is state


async def test_a_download_without_files_is_an_error(caplog: Any) -> None:
    async with world() as w:
        waiting = w.request("new")
        await turns()
        w.found = MISSING
        w.result.set_result(None)
        await turns()
        assert refusal(waiting)[0] == "download_failed"
        assert w.loads() == []


async def test_a_mistake_in_the_download_leaves_nobody_waiting(caplog: pytest.LogCaptureFixture) -> None:
    async with world() as w:
        waiting = w.request("new")
        await turns()
        w.result.set_exception(ZeroDivisionError())
        await turns()
        assert refusal(waiting)[0] == "internal"
        assert "ZeroDivisionError" in caplog.text


async def test_what_nobody_wants_any_more_is_given_up() -> None:
    async with world() as w:
        w.request("new")
        await turns()
        w.core.begin_unload("new", force=False, done=lambda: None)
        await turns()
        assert w.given_up == 1
        w.request("new")
        await turns()
        w.configure([model("old")])
        await turns()
        assert (w.given_up, len(w.fetched)) == (2, 2)


async def test_another_source_replaces_the_download() -> None:
    async with world() as w:
        waiting = w.request("new")
        await turns()
        w.configure([model("new", model="org/other"), model("old")])
        await turns()
        assert (w.fetched, w.given_up) == ([SOURCE, "org/other"], 1)
        w.result.set_result(None)
        await turns()
        w.ready("new")
        assert waiting.lease is not None


async def test_the_end_of_the_daemon_ends_downloads() -> None:
    async with world() as w:
        w.request("new")
        await turns()
        await w.downloads.close()
        assert w.given_up == 1
        assert w.downloads._tasks == {}
