"""The user's toolboxes: what they hold, refreshing one, pinning one to its image.

Knows neither podman nor models: asks the upkeep. A refresh that nobody follows any more is undone.
"""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

from accelerd.control.jobs import PROGRESS_EVERY, Job
from accelerd.control.operations import Request, operation
from accelerd.control.parts import ControlParts


class ToolboxRequest(Request, frozen=True):
    name: str


class RefreshRequest(Request, frozen=True):
    name: str
    force: bool = False  # although somebody is inside


class ToolboxModel(msgspec.Struct):
    name: str
    state: str
    loaded: bool


class KnownToolboxImage(msgspec.Struct):
    """An entry of the list of known images. `here`: it is on this machine."""

    tag: str
    name: str
    toolbox: str
    backend: str
    devices: list[str]
    groups: list[str]
    options: list[str]
    args: list[str]
    note: str
    experimental: bool
    here: bool | msgspec.UnsetType = msgspec.UNSET


class ToolboxStatus(msgspec.Struct):
    name: str
    id: str
    running: bool
    created: str
    image: str
    image_id: str
    newer: str | None  # the id of an image of the same name that is here already
    build: str | None  # what `llama-server --version` says inside
    build_trouble: str | None
    pinned: str | None  # the image id that it is kept at
    known: KnownToolboxImage | None
    models: list[ToolboxModel]


class MissingToolbox(msgspec.Struct):
    """One that models want and that does not exist."""

    name: str
    models: list[ToolboxModel]


class Toolboxes(msgspec.Struct):
    toolboxes: list[ToolboxStatus]
    missing: list[MissingToolbox]
    known: list[KnownToolboxImage]
    refreshing: str | None
    trouble: str | None  # what of an interrupted refresh could not be repaired


class PinnedToolbox(msgspec.Struct):
    toolbox: str
    image: str
    pinned: str  # image id


class UnpinnedToolbox(msgspec.Struct):
    toolbox: str
    was: str | None  # None: it was not pinned
    pinned: None = None


class RefreshProgress(msgspec.Struct, tag="progress", tag_field="event"):
    """A step of a refresh. `done` of `total` bytes."""

    step: str
    model: str | None
    line: str
    done: int | None
    total: int | None
    elapsed: float


class Refreshed(msgspec.Struct, tag="refreshed", tag_field="event"):
    toolbox: str
    image: str
    image_id: str
    old_image_id: str
    build: str | None
    old_build: str | None
    models: list[Any]
    notes: list[str]
    elapsed: float


class Current(msgspec.Struct, tag="current", tag_field="event"):
    """The image was the newest: nothing was changed."""

    toolbox: str
    image: str
    image_id: str
    elapsed: float


@operation("look", "toolboxes")
async def toolboxes(parts: ControlParts) -> Toolboxes:
    """Every toolbox, and every known image."""
    return msgspec.convert(await parts.upkeep.overview(), Toolboxes)


@operation("action", "toolbox/pin")
async def pin(parts: ControlParts, request: ToolboxRequest) -> PinnedToolbox:
    """Refuse the refresh of a toolbox from now on."""
    return PinnedToolbox(**await parts.upkeep.pin(request.name))


@operation("action", "toolbox/unpin")
async def unpin(parts: ControlParts, request: ToolboxRequest) -> UnpinnedToolbox:
    """Allow the refresh of a toolbox again."""
    return UnpinnedToolbox(**await parts.upkeep.unpin(request.name))


@operation("job", "toolbox/refresh", outcome=Refreshed | Current, progress=True)
async def refresh(parts: ControlParts, request: RefreshRequest) -> Job:
    """Replace a toolbox by one of the newest image, and move its models. Undone when it fails or is canceled."""

    async def work(job: Job) -> Refreshed | Current:
        refresh, told = parts.upkeep.refresh(request.name, force=request.force), 0
        try:
            done: set[asyncio.Task[dict[str, Any]]] = set()
            while not done:
                done, _ = await asyncio.wait((refresh.task,), timeout=PROGRESS_EVERY)
                for step in refresh.steps[told:]:  # each once, the one under way again and again
                    job.report(phase=step["step"])
                    job.tell(RefreshProgress(**step, elapsed=job.elapsed))
                told = max(len(refresh.steps) - 1, 0)
            outcome = refresh.task.result() | {"elapsed": job.elapsed}
            return msgspec.convert(outcome, Refreshed | Current)
        finally:
            refresh.abandon()

    return parts.jobs.start("refresh", request.name, work)
