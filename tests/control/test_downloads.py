"""The operation `download`: one job for all who want the same files, its events, its end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from accelerd.base.errors import AccelError
from accelerd.base.events import EventStream
from accelerd.base.model_source import Source
from accelerd.base.ports import SystemClock
from accelerd.config.model import ModelSpec
from accelerd.control import downloads
from accelerd.control.jobs import Job, Jobs
from accelerd.control.operations import operations_of, parse
from accelerd.control.status import downloads_under_way
from accelerd.downloads.cache import Files
from accelerd.downloads.download import DownloadDone, DownloadProgress, DownloadRequest
from accelerd.estimate.model_kind import Identified, Kind
from accelerd.memory.ledger import Ledger
from accelerd.memory.model import RAM, Pool
from accelerd.scheduler.placement import SharedLimits
from tests.settled import pytest_pyfunc_call, settled

__all__ = ["pytest_pyfunc_call", "settled"]

FILES = Files(Path("/hub/m-Q4_K_M.gguf"), mmproj=Path("/hub/mmproj.gguf"))


class Site:
    """Downloads that go as the test says."""

    def __init__(self, memory: int | None = None) -> None:
        self.begun: list[tuple[DownloadRequest, Callable[[DownloadProgress], None]]] = []
        self.ends: asyncio.Queue[DownloadDone | AccelError] = asyncio.Queue()
        self.ended = 0
        self.specs: list[ModelSpec] = []
        ledger = Ledger([Pool(RAM, "main memory", 64 << 30, 4 << 30)])
        self.jobs = Jobs(SystemClock(), EventStream())
        self.parts: Any = SimpleNamespace(
            jobs=self.jobs,
            clock=SystemClock(),
            roots=SimpleNamespace(home=Path("/home/me")),
            accepting=lambda: None,
            devices=SimpleNamespace(current=tuple),
            scheduler=SimpleNamespace(
                snapshots=lambda: [SimpleNamespace(spec=spec) for spec in self.specs],
                limits=SharedLimits(memory, "scheduler.memory", None),
                memory=SimpleNamespace(ledger=lambda: ledger),
            ),
        )

    def __call__(self, request: DownloadRequest, env: Any, tell: Any, *, clock: Any) -> Any:
        """In place of Download."""

        async def run() -> DownloadDone:
            self.begun.append((request, tell))
            try:
                outcome = await self.ends.get()
            finally:
                self.ended += 1
            if isinstance(outcome, AccelError):
                raise outcome
            return outcome

        return SimpleNamespace(run=run, progress=DownloadProgress())

    async def ask(self, source: str) -> Job:
        operation = operations_of(self.parts, downloads)["download"]
        job: Job = await operation.call(parse(operation.request, {"source": source}, text=True), "")
        return job

    async def under_way(self, count: int = 1) -> None:
        async with asyncio.timeout(5):
            while len(self.begun) < count:  # noqa: ASYNC110
                await asyncio.sleep(0)


def done(source: str = "tiny/hello:Q4_K_M") -> DownloadDone:
    return DownloadDone(source, FILES, Identified(Kind.CHAT, "Hello 1B", "", ""), "Q4_K_M: it fits")


def a_site(monkeypatch: pytest.MonkeyPatch, **settings: Any) -> Site:
    site = Site(**settings)
    monkeypatch.setattr(downloads, "Download", site)
    return site


async def test_a_download_tells_how_far_it_is_and_what_came(monkeypatch: pytest.MonkeyPatch) -> None:
    site = a_site(monkeypatch)
    job = await site.ask("hf:tiny/hello")
    with site.jobs.follow(job) as events:
        await site.under_way()
        _, tell = site.begun[0]
        tell(DownloadProgress(reason="Q4_K_M"))
        tell(DownloadProgress(300, 1000, 50.0, 14.0, "m.gguf", "Q4_K_M"))
        assert (job.progress, job.phase) == (0.3, "downloading")
        assert [(one.source, one.bytes) for one in downloads_under_way(site.parts)] == [("tiny/hello", 300)]
        site.ends.put_nowait(done())
        told = [msgspec.to_builtins(event) for event in [event async for event in events]]
    assert downloads_under_way(site.parts) == []
    first, second, last = told
    assert (first["total"], first["progress"], first["remaining"]) == (None, None, None)
    assert second["source"] == "tiny/hello"
    assert [second[key] for key in ("file", "bytes", "total", "rate", "remaining", "progress")] == [
        "m.gguf", 300, 1000, 50.0, 14.0, 0.3,
    ]  # fmt: skip
    assert last["event"] == "downloaded"
    assert last["source"] == "tiny/hello:Q4_K_M"
    assert (last["model"], last["mmproj"], last["draft"]) == ("/hub/m-Q4_K_M.gguf", "/hub/mmproj.gguf", None)
    assert (last["kind"], last["name"]) == ("chat", "Hello 1B")
    await site.jobs.close()


async def test_a_download_that_does_not_get_on_is_still_heard_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever follows it must not take it for a daemon that hangs."""
    monkeypatch.setattr(downloads, "STILL_HERE", 0.01)
    site = a_site(monkeypatch)
    job = await site.ask("hf:tiny/hello")
    with site.jobs.follow(job) as events:
        told = []
        async for event in events:
            told.append(msgspec.to_builtins(event))
            if len(told) == 3:
                site.ends.put_nowait(done())
    assert [(one["event"], one["bytes"]) for one in told[:3]] == [("progress", 0)] * 3
    assert told[-1]["event"] == "downloaded"
    await site.jobs.close()


@pytest.mark.parametrize(("limit", "room"), [(None, 60 << 30), (8 << 30, 8 << 30)])
async def test_what_is_taken_fits_the_memory_that_models_may_have(
    monkeypatch: pytest.MonkeyPatch, limit: int | None, room: int
) -> None:
    site = a_site(monkeypatch, memory=limit)
    await site.ask("tiny/hello")
    await site.under_way()
    request, _ = site.begun[0]
    assert (request.room, request.home) == (room, Path("/home/me"))
    await site.jobs.close()


async def test_the_same_files_are_downloaded_once_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    site, heard = a_site(monkeypatch), list[int]()
    job = await site.ask("hf:tiny/hello:Q4_K_M")
    assert await site.ask("https://huggingface.co/tiny/hello:Q4_K_M") is job
    assert await site.ask("tiny/hello:Q8_0") is not job
    waiting = asyncio.ensure_future(
        downloads.fetch(site.parts, Source.parse("tiny/hello:Q4_K_M"), lambda now: heard.append(now.bytes))
    )
    await site.under_way(2)
    site.begun[0][1](DownloadProgress(7, 10))
    site.ends.put_nowait(done())
    await waiting
    assert heard == [7]
    await site.jobs.close()


async def test_who_waits_hears_why_the_files_do_not_come(monkeypatch: pytest.MonkeyPatch) -> None:
    site, source = a_site(monkeypatch), Source.parse("tiny/secret")
    site.ends.put_nowait(AccelError("model_gated", "tiny/secret is gated"))
    with pytest.raises(AccelError, match="is gated") as refused:
        await downloads.fetch(site.parts, source, lambda now: None)
    assert refused.value.code == "model_gated"
    waiting = asyncio.ensure_future(downloads.fetch(site.parts, source, lambda now: None))
    await site.under_way(2)
    [job] = [job for job in site.jobs.all() if job.finished is None]
    site.jobs.cancel(job.id)
    with pytest.raises(AccelError) as canceled:
        await waiting
    assert canceled.value.code == "canceled"
    await site.jobs.close()


async def test_a_download_ends_with_the_last_who_wants_it(monkeypatch: pytest.MonkeyPatch) -> None:
    site, source = a_site(monkeypatch), Source.parse("tiny/hello")
    two = [asyncio.ensure_future(downloads.fetch(site.parts, source, lambda now: None)) for _ in range(2)]
    await site.under_way()
    two[0].cancel()
    await asyncio.wait(two, timeout=0.05)
    assert site.ended == 0
    two[1].cancel()
    await asyncio.wait(two)
    await site.jobs.close()
    assert site.ended == 1


@pytest.mark.parametrize("source", ["", "hello", "hf:", "ftp://x/y.gguf", "https://example.org/page.html", "a/../b"])
async def test_what_names_no_model_is_refused_at_once(monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    site = a_site(monkeypatch)
    with pytest.raises(AccelError) as refused:
        await site.ask(source)
    assert refused.value.code == "bad_request"
    assert site.jobs.all() == []


async def test_what_is_secret_in_an_address_is_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    site = a_site(monkeypatch)
    job = await site.ask("https://example.org:8443/m.gguf?token=geheim")
    other = await site.ask("https://example.org:8443/m.gguf?token=another")
    assert other is not job, "what is fetched may differ"
    await site.under_way(2)
    request, tell = site.begun[0]
    assert "geheim" in str(request.source)
    tell(DownloadProgress(1, 2))
    assert job.subject == job.last.source == "https://example.org:8443/m.gguf"
    waiting = asyncio.ensure_future(downloads.fetch(site.parts, request.source, lambda now: None))
    await asyncio.sleep(0)  # it follows the job
    site.jobs.cancel(job.id)
    with pytest.raises(AccelError) as canceled:
        await waiting
    assert "geheim" not in canceled.value.message
    await site.jobs.close()


async def test_a_daemon_that_ends_says_so_to_who_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    site = a_site(monkeypatch)
    waiting = asyncio.ensure_future(downloads.fetch(site.parts, Source.parse("tiny/hello"), lambda now: None))
    await site.under_way()

    def ending() -> None:
        raise AccelError("shutting_down", "accelerd is shutting down")

    site.parts.accepting = ending
    downloads.stop(site.parts)
    downloads.stop(site.parts)
    with pytest.raises(AccelError) as ended:
        await waiting
    assert ended.value.code == "shutting_down"
    assert site.ended == 1
    await site.jobs.close()


async def test_the_quantization_is_chosen_for_what_the_model_is_configured_with(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    site = a_site(monkeypatch)
    site.specs = [
        ModelSpec(name="small", model="tiny/hello", context=2048),
        ModelSpec(name="large", model="tiny/hello", context=32768, parallel=2, cache_type_k="q8_0"),
        ModelSpec(name="other", model="tiny/other", parallel=3),
        ModelSpec(name="file", path="/m/a.gguf", context=1 << 20),
    ]
    for source in ("hf:tiny/hello", "tiny/other", "tiny/unknown"):
        await site.ask(source)
    await site.under_way(3)
    first, second, third = (request.settings for request, _ in site.begun)
    assert first is not None
    assert (first.context, first.slots, first.type_k) == (65536, 2, "q8_0")
    assert second is not None
    assert (second.context, second.slots) == (8192 * 3, 3)
    assert third is None
    await site.jobs.close()
