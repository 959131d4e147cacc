"""Which build of llama.cpp a toolbox or an image holds: `llama-server --version`, asked where it lives.

What an image says is remembered by the image's id; a toolbox may have got another build by hand and is asked each time.
"""

from __future__ import annotations

import re
from typing import Final

from msgspec import Struct

from accelerd.supervise.homes.containers.commands import CommandResult, CommandRunner
from accelerd.supervise.homes.containers.podman_docker import ContainerEngine
from accelerd.supervise.homes.home import HomeError

NONE: Final = 96  # an exit status that neither podman nor llama-server has
# In a login shell, which toolbox makes by itself: images put their programs on its PATH.
ASK: Final = f"command -v llama-server >/dev/null 2>&1 || exit {NONE}; exec llama-server --version"
PATIENCE: Final = 60.0  # s; an image of tens of gigabytes may have to be read first
_VERSION: Final = re.compile(r"^version: (.+)$", re.MULTILINE)


class ToolboxBuild(Struct, frozen=True):
    """`version` as llama-server writes it, "5412 (3a4b5c6)"; None: there is no llama-server."""

    version: str | None


class Builds:
    """All of this user's."""

    def __init__(self, engine: ContainerEngine, tools: CommandRunner) -> None:
        self._engine = engine
        self._tools = tools
        self._known: dict[str, ToolboxBuild] = {}

    async def inside(self, toolbox: str) -> ToolboxBuild:
        """In a toolbox that runs. HomeError when it does not answer."""
        enter = ("toolbox", "run", "--container", toolbox, "sh", "-c", ASK)
        return _build(await self._tools.call(*enter, within=PATIENCE), f"toolbox {toolbox}")

    async def of_image(self, image: str) -> ToolboxBuild:
        """In the image with this id, by a container that is gone at once. HomeError."""
        if image not in self._known:
            bounds = ("--rm", "--network=none", "--pull=never", f"--timeout={PATIENCE:.0f}")
            asked = (*bounds, "--entrypoint=sh", image, "-lc", ASK)
            done = await self._engine.call("run", *asked, within=PATIENCE + 10, check=False)
            self._known[image] = _build(done, f"image {image[:12]}")
        return self._known[image]


def _build(done: CommandResult, where: str) -> ToolboxBuild:
    if done.status == NONE:
        return ToolboxBuild(None)
    found = _VERSION.search(f"{done.err}\n{done.out}")
    if found is None:
        raise HomeError(f"{where} does not say which llama-server it holds: {done.why()}")
    return ToolboxBuild(found[1].strip())
