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
from accelerd.supervise.homes.containers.builds import Build
from accelerd.supervise.homes.containers.engine import Container
from accelerd.supervise.homes.containers.pull import Pulled, pull
from accelerd.supervise.homes.containers.refresh_kit import (
    GRACE,
    Kit,
    Say,
    before,
    beside,
    described,
    failed,
    load,
    put_back,
    sweep,
)
from accelerd.supervise.homes.containers.refresh_record import Begun
from accelerd.supervise.homes.home import HomeError
from accelerd.system.records import NOTICE, event

log = logging.getLogger(__name__)

LOCAL: Final = "localhost/"  # images made on this machine: there is nowhere to pull them from


class Refresh:
    """One run of it: `run` once."""

    def __init__(self, kit: Kit, name: str, *, force: bool, say: Say) -> None:
        self._kit = kit
        self._name = name
        self._force = force
        self._say = say
        self.again = True  # are models loaded again when it is undone?
        self._moved: list[str] = []
        self._notes: list[str] = []

    async def run(self) -> dict[str, Any]:
        """The last event, see docs/control.md. AccelError: all is as it was, or the error says what is not."""
        kit, name = self._kit, self._name
        try:
            old = await kit.find(name)
            await self._free_names()
            await self._nobody_inside(old)
            image = await self._newest(old)
            if image == old.image_id and not self._force:
                return {"event": "current", "toolbox": name, "image": old.image, "image_id": image}
            was = await self._build_of(old)
            await kit.record.begin(Begun(name, old.id, boot=kit.record.boot()))
        except HomeError as error:
            raise failed(name, error, "nothing was changed") from error
        try:
            await self._try(old, was)
            await self._nobody_inside(old)
            loaded = tuple(model.name for model in kit.on(name) if model.loaded)
            await kit.record.begin(Begun(name, old.id, "swap", loaded, kit.record.boot()))
            now = await self._swap(old)
            await self._move(old)
            await kit.record.begin(Begun(name, old.id, "proved"))
        except (HomeError, AccelError) as error:
            raise failed(name, error, await self._undo()) from error
        except BaseException:
            await self._undo()
            raise
        return await self._finish(old, was, now)

    # --- steps ------------------------------------------------------------------------------------------------

    async def _free_names(self) -> None:
        """The two names that are needed are nobody's. What an earlier refresh had to leave goes now."""
        kit = self._kit
        await sweep(kit)
        for name in (beside(self._name), before(self._name)):
            there = await kit.engine.inspect(name)
            if there is None or there.name != name:
                continue
            visitors = await kit.visitors(there) if there.id in {left.id for left in kit.record.left} else []
            why = f"{described(visitors)} is inside" if visitors else "rename or remove it"
            raise AccelError("toolbox_busy", f"cannot refresh {self._name}: there is a container {name}: {why}")

    async def _nobody_inside(self, old: Container) -> None:
        visitors = await self._kit.visitors(old) if old.running else []
        if visitors and not self._force:
            raise AccelError(
                "toolbox_busy",
                f"cannot refresh {self._name}: {described(visitors)} is inside; leave it first, or use --force: it "
                "keeps the old toolbox beside the new one until then",
                inside=[str(visitor) for visitor in visitors],
            )

    async def _newest(self, old: Container) -> str:
        """Pull, and say which image the name stands for now."""
        engine, image = self._kit.engine, old.image
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

    async def _build_of(self, old: Container) -> Build:
        """What the old one holds; one that cannot say it is not held against the new."""
        builds = self._kit.builds
        try:
            return await (builds.inside(old.name) if old.running else builds.of_image(old.image_id))
        except HomeError as error:
            self._notes.append(str(error))
            return Build(None)

    async def _make(self, name: str, image: str) -> None:
        done = await self._kit.tools.call("toolbox", "create", "--assumeyes", "--image", image, "--container", name)
        if done.status != 0:
            raise HomeError(f"cannot make toolbox {name}: {done.why()}")

    async def _try(self, old: Container, was: Build) -> None:
        """Make one beside the old, see whether it works, and remove it: podman tells a container its first name only,
        so that it is made again under the right one."""
        engine, trial = self._kit.engine, beside(self._name)
        self._say("try", line=old.image)
        await self._make(trial, old.image)
        await engine.start(trial)
        await self._probe(trial, was)
        await engine.remove(trial)

    async def _probe(self, toolbox: str, was: Build) -> Build:
        found = await self._kit.builds.inside(toolbox)
        if found.version is None and was.version is not None:
            raise HomeError(f"there is no llama-server in the new one; the old one holds {was.version}")
        return found

    async def _swap(self, old: Container) -> Build:
        """From here on the name stands for the new toolbox; models still run in the old one."""
        kit, name = self._kit, self._name
        self._say("swap")
        async with kit.doors.closed(name):
            await kit.engine.rename(old.id, before(name))
            await self._make(name, old.image)
            await kit.engine.start(name)
            return await self._probe(name, Build(None))

    async def _move(self, old: Container) -> None:
        """One after the other, so that the others go on serving."""
        while on_old := await self._kit.running_in(self._name, old):
            model = on_old[0]
            self._say("drain", model=model.name)
            await self._kit.models.unload(model.name)
            if model.loaded:
                self._say("load", model=model.name)
                await load(self._kit, model.name)
                self._moved.append(model.name)

    async def _finish(self, old: Container, was: Build, now: Build) -> dict[str, Any]:
        """The new one is proved. What fails from here on is said, and done by the next refresh."""
        kit, name = self._kit, self._name
        self._say("remove")
        new = await kit.find(name)
        try:
            old_now = await kit.engine.inspect(old.id)
            if old_now is not None:
                self._notes += filter(None, [await kit.remove(old_now)])
            if not old.running and not any(model.loaded for model in kit.on(name)) and not await kit.visitors(new):
                await kit.engine.stop(new.id, GRACE)
            await kit.record.end()
        except HomeError as error:
            self._notes.append(f"the old one is not gone yet: {error}")
        text = f"toolbox {name} holds {new.image} {new.image_id[:12]} now, llama.cpp {now.version or 'none'}"
        event(log, NOTICE, text, message_id=names.MSG_TOOLBOX)
        return {
            "event": "refreshed", "toolbox": name, "image": new.image, "image_id": new.image_id,
            "old_image_id": old.image_id, "build": now.version, "old_build": was.version, "models": self._moved,
            "notes": self._notes,
        }  # fmt: skip

    async def _undo(self) -> str:
        """Put everything back; what came of that, in words."""
        begun = self._kit.record.begun
        assert begun is not None
        self._say("undo")
        try:
            notes = await put_back(self._kit, begun, self._say, again=self.again)
        except (HomeError, AccelError) as error:
            text = f"putting the old one back failed too: {error}; accelctl toolbox refresh {self._name} tries it again"
            event(log, logging.ERROR, f"toolbox {self._name}: {text}", message_id=names.MSG_TOOLBOX)
            return text
        return "; ".join(["the old one is in place as before", *notes])
