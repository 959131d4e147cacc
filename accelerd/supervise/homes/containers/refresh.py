"""One refresh of one toolbox: pull, try the new image beside, swap the names, move the models one by one, then remove
the old toolbox; or put everything back as it was.

The old toolbox is never stopped before each model that ran in it is ready in the new one, and never at all while a
person is inside. Each step is on disk before it is done. Decides nothing about models but where they run.
"""

from __future__ import annotations

import logging
import re
from typing import Any, Final

from accelerd.base import names
from accelerd.base.errors import AccelError
from accelerd.supervise.homes.containers.images import ToolboxBuild
from accelerd.supervise.homes.containers.podman_docker import Container, Pulled, pull
from accelerd.supervise.homes.containers.refresh_context import (
    GRACE,
    PendingRefresh,
    RefreshContext,
    Say,
    before,
    beside,
    described,
    failed,
    load,
    put_back,
    sweep,
)
from accelerd.supervise.homes.home import HomeError
from accelerd.system.records import NOTICE, event

log = logging.getLogger(__name__)

LOCAL: Final = "localhost/"  # images made on this machine: there is nowhere to pull them from


class ToolboxRefresh:
    """One run of it: `run` once."""

    def __init__(self, context: RefreshContext, name: str, *, force: bool, say: Say) -> None:
        self._context = context
        self._name = name
        self._force = force
        self._say = say
        self.again = True  # are models loaded again when it is undone?
        self._moved: list[str] = []
        self._notes: list[str] = []

    async def run(self) -> dict[str, Any]:
        """The last event, see docs/control.md. AccelError: all is as it was, or the error says what is not."""
        context, name = self._context, self._name
        try:
            old = await context.find(name)
            await self._free_names()
            await self._nobody_inside(old)
            image = await self._newest(old)
            if image == old.image_id and not self._force:
                return {"event": "current", "toolbox": name, "image": old.image, "image_id": image}
            was = await self._build_of(old)
            await context.record.begin(PendingRefresh(name, old.id, boot=context.record.boot()))
        except HomeError as error:
            raise failed(name, error, "nothing was changed") from error
        try:
            await self._try(old, was)
            await self._nobody_inside(old)
            loaded = tuple(model.name for model in context.on(name) if model.loaded)
            await context.record.begin(PendingRefresh(name, old.id, "swap", loaded, context.record.boot()))
            now = await self._swap(old)
            await self._move(old)
            await context.record.begin(PendingRefresh(name, old.id, "proved"))
        except AccelError as error:
            raise failed(name, error, await self._undo()) from error
        except BaseException:
            await self._undo()
            raise
        return await self._finish(old, was, now)

    # --- steps --------------------------------------------------------------------------------------------------

    async def _free_names(self) -> None:
        """Make sure that the two names are free, and remove what an earlier refresh had to leave."""
        context = self._context
        await sweep(context)
        for name in (beside(self._name), before(self._name)):
            there = await context.engine.inspect(name)
            if there is None or there.name != name:
                continue
            user_sessions = (
                await context.user_sessions(there) if there.id in {left.id for left in context.record.left} else []
            )
            why = f"{described(user_sessions)} is inside" if user_sessions else "rename or remove it"
            raise AccelError("toolbox_busy", f"cannot refresh {self._name}: there is a container {name}: {why}")

    async def _nobody_inside(self, old: Container) -> None:
        user_sessions = await self._context.user_sessions(old) if old.running else []
        if user_sessions and not self._force:
            raise AccelError(
                "toolbox_busy",
                f"cannot refresh {self._name}: {described(user_sessions)} is inside; leave it first, or use --force, "
                "which keeps the old toolbox beside the new one until then",
                inside=[str(session) for session in user_sessions],
            )

    async def _newest(self, old: Container) -> str:
        """Pull; the id of the image that the name stands for now."""
        engine, image = self._context.engine, old.image
        if not image or image == old.image_id or re.fullmatch("[0-9a-f]{64}", image):
            raise HomeError(
                "its image has no name, so there is nothing to pull: make the toolbox anew from one that has"
            )
        if not image.startswith(LOCAL):
            self._say("pull", line=image)

            def show(pulled: Pulled) -> None:
                self._say("pull", line=pulled.line, done=pulled.done, total=pulled.total)

            await pull(engine, image, show)
        found = await engine.image(image)
        if found is None:
            raise HomeError(f"there is no image {image} any more: pull or build it")
        return str(found["Id"]).removeprefix("sha256:")

    async def _build_of(self, old: Container) -> ToolboxBuild:
        """The build in the old one; not knowing it is no reason to refuse the new one."""
        builds = self._context.builds
        try:
            return await (builds.inside(old.name) if old.running else builds.of_image(old.image_id))
        except HomeError as error:
            self._notes.append(str(error))
            return ToolboxBuild(None)

    async def _make(self, name: str, image: str) -> None:
        done = await self._context.tools.call("toolbox", "create", "--assumeyes", "--image", image, "--container", name)
        if done.status != 0:
            raise HomeError(f"cannot make toolbox {name}: {done.why()}")

    async def _try(self, old: Container, was: ToolboxBuild) -> None:
        """Make one beside the old, see whether it works, and remove it: podman tells a container only the name that it
        was created with, so it is created again under the right one."""
        engine, trial = self._context.engine, beside(self._name)
        self._say("try", line=old.image)
        await self._make(trial, old.image)
        await engine.start(trial)
        await self._probe(trial, was)
        await engine.remove(trial)

    async def _probe(self, toolbox: str, was: ToolboxBuild) -> ToolboxBuild:
        found = await self._context.builds.inside(toolbox)
        if found.version is None and was.version is not None:
            raise HomeError(f"there is no llama-server in the new one; the old one holds {was.version}")
        return found

    async def _swap(self, old: Container) -> ToolboxBuild:
        """From here on the name stands for the new toolbox; models still run in the old one."""
        context, name = self._context, self._name
        self._say("swap")
        async with context.locks.exclusive(name):
            await context.engine.rename(old.id, before(name))
            await self._make(name, old.image)
            await context.engine.start(name)
            return await self._probe(name, ToolboxBuild(None))

    async def _move(self, old: Container) -> None:
        """One after the other, so that the others go on serving."""
        while on_old := await self._context.running_in(self._name, old):
            model = on_old[0]
            self._say("drain", model=model.name)
            await self._context.models.unload(model.name)
            if model.loaded:
                self._say("load", model=model.name)
                await load(self._context, model.name)
                self._moved.append(model.name)

    async def _finish(self, old: Container, was: ToolboxBuild, now: ToolboxBuild) -> dict[str, Any]:
        """The new one is proved. What fails from here on is said, and done by the next refresh."""
        context, name = self._context, self._name
        self._say("remove")
        new = await context.find(name)
        try:
            old_now = await context.engine.inspect(old.id)
            if old_now is not None:
                self._notes += filter(None, [await context.remove(old_now)])
            if (
                not old.running
                and not any(model.loaded for model in context.on(name))
                and not await context.user_sessions(new)
            ):
                await context.engine.stop(new.id, GRACE)
            await context.record.end()
        except HomeError as error:
            self._notes.append(f"the old one is not removed yet: {error}")
        text = f"toolbox {name} holds {new.image} {new.image_id[:12]} now, llama.cpp {now.version or 'none'}"
        event(log, NOTICE, text, message_id=names.MSG_TOOLBOX)
        return {
            "event": "refreshed", "toolbox": name, "image": new.image, "image_id": new.image_id,
            "old_image_id": old.image_id, "build": now.version, "old_build": was.version, "models": self._moved,
            "notes": self._notes,
        }  # fmt: skip

    async def _undo(self) -> str:
        """Put everything back; what came of that, in words."""
        begun = self._context.record.begun
        assert begun is not None
        self._say("undo")
        try:
            notes = await put_back(self._context, begun, self._say, again=self.again)
        except AccelError as error:
            text = f"putting the old one back failed too: {error}; accelctl toolbox refresh {self._name} tries it again"
            event(log, logging.ERROR, f"toolbox {self._name}: {text}", message_id=names.MSG_TOOLBOX)
            return text
        return "; ".join(["the old one is in place as before", *notes])
