"""Downloading the files of a model, as a job that everybody sees and may cancel.

Owns the job and its events. Which files that are, and the process that fetches them, is the business of downloads/.
Writes no configuration.
"""

from __future__ import annotations

import asyncio
import logging
import os
import platform
from collections.abc import Callable
from typing import Final

import msgspec
from msgspec.structs import replace

from accelerd.base.errors import AccelError
from accelerd.base.model_source import Source, is_source
from accelerd.config.model import ModelSpec
from accelerd.control.jobs import Job, while_waiting
from accelerd.control.operations import Request, operation
from accelerd.control.parts import ControlParts
from accelerd.control.status import DownloadStep, room_of
from accelerd.downloads.download import Download, DownloadDone, DownloadProgress, DownloadRequest
from accelerd.engines.llama_server.forecast import settings_of
from accelerd.estimate.estimate import EstimateSettings
from accelerd.system.records import event

log = logging.getLogger(__name__)

CONTEXT: Final = 8192  # tokens a slot, where the configuration does not say: what most requests do with

STILL_HERE: Final = 5.0  # s between two events of a download that does not get on

Hear = Callable[[DownloadProgress], None]


class DownloadModelRequest(Request, frozen=True):
    source: str  # ORG/REPO[:QUANT], hf:ORG/REPO[:QUANT] or an address


class Downloaded(msgspec.Struct, tag="downloaded", tag_field="event"):
    """Everything is on this machine."""

    source: str  # with the quantization that was taken: as it should stand in the configuration
    model: str  # path of the file, of the first part where there are several
    mmproj: str | None
    draft: str | None
    kind: str  # what the model is for: "chat", "embedding", …
    name: str  # as its file has it, or ""
    reason: str  # why these files were taken
    elapsed: float


@operation("job", "download", outcome=Downloaded, progress=True)
async def download(parts: ControlParts, request: DownloadModelRequest) -> Job:
    """Download a model's files: of the hub, or from an address. Joins a download of them that is under way."""
    return start(parts, Source.parse(request.source))


def start(parts: ControlParts, source: Source) -> Job:
    """The job. AccelError queue_full."""

    async def work(job: Job) -> Downloaded:
        def tell(now: DownloadProgress) -> None:
            job.report(progress=now.share if now.total else None, phase="downloading")
            job.tell(
                DownloadStep(
                    source=source.public,
                    file=now.file,
                    bytes=now.bytes,
                    total=now.total or None,
                    rate=now.rate,
                    remaining=now.remaining,
                    progress=job.progress if job.progress >= 0 else None,
                    reason=now.reason,
                    elapsed=job.elapsed,
                )
            )

        room, _ = room_of(parts.scheduler.limits, parts.scheduler.memory.ledger())
        wanted = DownloadRequest(source, parts.roots.home, room, _settings(parts, source))
        event(log, logging.INFO, f"downloading {source.public}")
        fetching = Download(wanted, os.environ, tell, clock=parts.clock)
        try:
            # Also where nothing arrives, as while what is here already is read: else clients take it for a hang.
            done: DownloadDone = await while_waiting(fetching.run(), lambda: tell(fetching.progress), STILL_HERE)
        except asyncio.CancelledError:
            parts.accepting()  # or that is why
            raise
        event(log, logging.INFO, f"downloaded {source.public} in {job.elapsed:.0f} s")
        files, found = done.files, done.found
        return Downloaded(
            source=done.source,
            model=str(files.model),
            mmproj=str(files.mmproj) if files.mmproj is not None else None,
            draft=str(files.draft) if files.draft is not None else None,
            kind=found.kind,
            name=found.name,
            reason=done.reason,
            elapsed=job.elapsed,
        )

    return parts.jobs.start("download", source.public, work, key=f"download {source}")


def stop(parts: ControlParts) -> None:
    """Nobody waits for them while the daemon ends: what has arrived is kept."""
    for job in parts.jobs.all():
        if job.kind == "download":
            parts.jobs.cancel(job.id)


def is_for(job: Job, spec: ModelSpec) -> bool:
    """Does the job download the files of this model?"""
    return job.kind == "download" and job.key == f"download {_source(spec)}"


def _source(spec: ModelSpec) -> Source | None:
    return Source.parse(spec.model) if spec.model and is_source(spec.model) else None


def _settings(parts: ControlParts, source: Source) -> EstimateSettings | None:
    """What the files will be run with, for the choice of the quantization: of the configured model that needs most."""
    specs = [one.spec for one in parts.scheduler.snapshots() if _source(one.spec) == source]
    gpus = [device for device in parts.devices.current() if device.kind == "gpu"]
    known = [settings_of(spec, None, gpus, platform.machine())[0] for spec in specs]
    largest = max(known, key=lambda one: one.context, default=None)
    return replace(largest, context=CONTEXT * largest.slots) if largest and not largest.context else largest


async def fetch(parts: ControlParts, source: Source, hear: Hear) -> None:
    """Have the files here, for accelerd itself: `hear` how far that is. AccelError, also when somebody cancels the job.

    Joins a download that is under way. Whoever is cancelled while waiting ends the download, unless others follow it.
    """
    job = start(parts, source)
    with parts.jobs.follow(job) as events:
        async for step in events:
            if isinstance(step, DownloadStep):
                hear(DownloadProgress(step.bytes, step.total or 0, step.rate, step.remaining, step.file))
    if job.result != "done":
        raise job.error or AccelError("canceled", f"the download of {source.public} was canceled")
