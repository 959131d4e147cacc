"""Upkeep of the user's toolboxes: what they hold, refreshing one, pinning one. At most one refresh runs at a time.

Knows toolboxes and images; what runs in them it only sees and moves through the Models that it is given. Outlives its
askers: a refresh whose client has gone is undone to its end.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any, Final, Protocol

from msgspec.structs import asdict

from accelerd.base import names
from accelerd.base.errors import AccelError
from accelerd.supervise.homes.containers import images
from accelerd.supervise.homes.containers.podman_docker import Container
from accelerd.supervise.homes.containers.refresh import ToolboxRefresh
from accelerd.supervise.homes.containers.refresh_context import ModelInToolbox, RefreshContext, failed, put_back, sweep
from accelerd.supervise.homes.home import HomeError
from accelerd.system.records import NOTICE, event

log = logging.getLogger(__name__)

AT_ONCE: Final = 4  # toolboxes that are asked for their build side by side
UNDO_PATIENCE: Final = 20.0  # s, when the daemon ends in the middle of a refresh


class PinStore(Protocol):
    """Where pins are remembered: the daemon's state."""

    degraded: str | None

    @property
    def pins(self) -> Mapping[str, str]:
        """Image ids by toolbox."""
        ...

    def pin(self, toolbox: str, image: str | None) -> None: ...
    async def flush(self) -> None: ...


class RefreshJob:
    """A refresh under way. `task` ends with the last event, or an AccelError."""

    def __init__(self, toolbox: str, now: float) -> None:
        self.toolbox = toolbox
        self.began = now
        self.steps: list[dict[str, Any]] = []  # the last one changes until the next begins
        self.refresh: ToolboxRefresh | None = None
        self.task: asyncio.Task[dict[str, Any]]

    def say(
        self, step: str, *, model: str = "", line: str = "", done: int | None = None, total: int | None = None
    ) -> None:
        new = {"step": step, "model": model or None, "line": line, "done": done, "total": total}
        if self.steps and (self.steps[-1]["step"], self.steps[-1]["model"]) == (step, new["model"]):
            self.steps[-1] |= new
        else:
            self.steps.append(new)

    def abandon(self) -> None:
        """Nobody wants it any more: it is undone."""
        if not self.task.done() and not self.task.cancelling():
            self.task.cancel()


class ToolboxMaintenance:
    """Lists, refreshes and pins toolboxes."""

    def __init__(self, context: RefreshContext, pins: PinStore) -> None:
        self._context = context
        self._pins = pins
        self._job: RefreshJob | None = None
        self._repair = asyncio.Lock()
        self._closed = False
        self._trouble: str | None = None  # what the last repair could not do

    # --- list ---------------------------------------------------------------------------------------------------

    async def overview(self) -> dict[str, Any]:
        """Every toolbox and every known image, see docs/control.md. AccelError."""
        context = self._context
        there: list[Container] = []
        here: dict[str, str] = {}
        try:
            if context.engine.tools.has(context.engine.name):
                there = sorted((c for c in await context.engine.containers() if c.toolbox), key=lambda c: c.name)
                here = await context.engine.images()
        except HomeError as error:
            raise AccelError("toolbox_failed", str(error)) from error
        used, slots = context.models.used(), asyncio.Semaphore(AT_ONCE)

        async def one(container: Container) -> dict[str, Any]:
            async with slots:
                return await self._described(container, here, used.get(container.name, []))

        toolboxes = await asyncio.gather(*map(one, there))
        names_there = {container.name for container in there}
        return {
            "toolboxes": toolboxes,
            "missing": [
                {"name": name, "models": _models(models)} for name, models in used.items() if name not in names_there
            ],
            "known": [{**asdict(image), "here": image.name in here} for image in images.known().values()],
            "refreshing": self._job.toolbox if self._job is not None else None,
            "trouble": self._trouble,
        }

    async def _described(
        self, container: Container, here: Mapping[str, str], used: list[ModelInToolbox]
    ) -> dict[str, Any]:
        builds, known = self._context.builds, images.find(container.image)
        now = here.get(container.image)
        build, trouble = None, None
        try:
            found = await (builds.inside(container.name) if container.running else builds.of_image(container.image_id))
            build = found.version
        except HomeError as error:
            trouble = str(error)
        return {
            "name": container.name,
            "id": container.id,
            "running": container.running,
            "created": container.created,
            "image": container.image,
            "image_id": container.image_id,
            "newer": now if now != container.image_id else None,
            "build": build,
            "build_trouble": trouble,
            "pinned": self._pins.pins.get(container.name),
            "known": asdict(known) if known is not None else None,
            "models": _models(used),
        }

    # --- pin ----------------------------------------------------------------------------------------------------

    async def pin(self, name: str) -> dict[str, Any]:
        """Let nobody refresh it until it is unpinned. AccelError."""
        try:
            found = await self._context.find(name)
        except HomeError as error:
            raise AccelError("toolbox_failed", f"cannot pin {name}: {error}") from error
        await self._remember(name, found.image_id)
        return {"toolbox": name, "image": found.image, "pinned": found.image_id}

    async def unpin(self, name: str) -> dict[str, Any]:
        """Also of a toolbox that is no more. AccelError."""
        was = self._pins.pins.get(name)
        if was is None:
            try:
                await self._context.find(name)  # a name that was mistyped is an error
            except HomeError as error:
                raise AccelError("toolbox_failed", f"cannot unpin {name}: {error}") from error
        else:
            await self._remember(name, None)
        return {"toolbox": name, "was": was, "pinned": None}

    async def _remember(self, name: str, image: str | None) -> None:
        self._pins.pin(name, image)
        await self._pins.flush()
        if self._pins.degraded:
            raise AccelError("toolbox_failed", f"cannot remember the pin of {name} for long: {self._pins.degraded}")

    # --- refresh ------------------------------------------------------------------------------------------------

    def refresh(self, name: str, *, force: bool = False) -> RefreshJob:
        """Begin. AccelError at once when it may not be."""
        if self._closed:
            raise AccelError("shutting_down", "accelerd is shutting down", retry_after=5)
        if self._job is not None:
            raise AccelError("toolbox_busy", f"cannot refresh {name}: {self._job.toolbox} is being refreshed just now")
        pinned = self._pins.pins.get(name)
        if pinned is not None:
            raise AccelError(
                "toolbox_pinned",
                f"cannot refresh {name}: it is pinned to image {pinned[:12]}; accelctl toolbox unpin {name}",
            )
        job = self._job = RefreshJob(name, self._context.clock.monotonic())
        job.refresh = ToolboxRefresh(self._context, name, force=force, say=job.say)
        job.task = asyncio.create_task(self._run(job), name=f"refresh {name}")
        job.task.add_done_callback(_heard)
        return job

    async def _run(self, job: RefreshJob) -> dict[str, Any]:
        assert job.refresh is not None
        try:
            await self._repaired(job)
            return await job.refresh.run()
        except asyncio.CancelledError:
            event(log, NOTICE, f"the refresh of toolbox {job.toolbox} was given up", message_id=names.MSG_TOOLBOX)
            raise AccelError("toolbox_failed", f"the refresh of {job.toolbox} was given up") from None
        except AccelError as error:
            event(log, logging.WARNING, error.message, message_id=names.MSG_TOOLBOX)
            raise
        except Exception as error:
            event(log, logging.ERROR, "a refresh failed", message_id=names.MSG_BUG, exc_info=True)
            raise AccelError(
                "internal", f"accelerd failed while it refreshed {job.toolbox}; see its journal"
            ) from error
        finally:
            self._job = None

    # --- what an earlier daemon left ----------------------------------------------------------------------------

    async def begin(self) -> None:
        """Read what there is to repair; nothing is done yet."""
        await self._context.record.read()

    async def repair(self) -> None:
        """Put back what an interrupted refresh left, and remove what had to stay. Never raises: failures are logged."""
        try:
            await self._repaired(None)
            if self._context.record.left:
                await sweep(self._context)
        except AccelError as error:
            event(log, logging.WARNING, f"cannot repair toolboxes yet: {error}", message_id=names.MSG_TOOLBOX)
        except Exception:
            event(log, logging.ERROR, "a repair of toolboxes failed", message_id=names.MSG_BUG, exc_info=True)

    async def _repaired(self, job: RefreshJob | None) -> None:
        async with self._repair:
            begun = self._context.record.begun
            if begun is None:
                return
            say = job.say if job is not None else RefreshJob(begun.name, 0.0).say
            say("repair", line=begun.name)
            text = f"a refresh of toolbox {begun.name} was interrupted"
            event(log, NOTICE, f"{text}: repairing it", message_id=names.MSG_TOOLBOX)
            try:
                notes = await put_back(self._context, begun, say)
            except AccelError as error:
                self._trouble = f"{text}, and it cannot be repaired yet: {error}"
                raise failed(begun.name, error, f"{text} earlier and is not repaired yet") from error
            self._trouble = None
            what = "the new one is in place" if begun.stage == "proved" else "the old one is in place as before"
            event(log, NOTICE, "; ".join([f"{text}: {what}", *notes]), message_id=names.MSG_TOOLBOX)

    async def close(self) -> None:
        """Undo what is under way, for at most UNDO_PATIENCE: what is not done by then the next daemon repairs."""
        self._closed = True
        job = self._job
        if job is None:
            return
        if job.refresh is not None:
            job.refresh.again = False
        job.abandon()
        await asyncio.wait((job.task,), timeout=UNDO_PATIENCE)


def _models(used: list[ModelInToolbox]) -> list[dict[str, Any]]:
    return [{"name": model.name, "state": model.state, "loaded": model.loaded} for model in used]


def _heard(task: asyncio.Task[dict[str, Any]]) -> None:
    """Its outcome may be nobody's business any more: it is in the log."""
    if not task.cancelled():
        task.exception()
