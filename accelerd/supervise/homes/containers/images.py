"""Known images with llama-server and the flags they need (images.toml), and which build of llama.cpp an image or a
toolbox really holds: `llama-server --version`, asked where it lives.

What an image says is remembered by the image's id; a toolbox may have got another build by hand and is asked each time.
"""

from __future__ import annotations

import re
import tomllib
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Final, Protocol

import msgspec
from msgspec import Struct

from accelerd.supervise.homes.containers.commands import CommandResult
from accelerd.supervise.homes.containers.podman_docker import ContainerEngine
from accelerd.supervise.homes.home import HomeError


class KnownImage(Struct, frozen=True):
    """One image of the list."""

    tag: str
    name: str  # with registry and tag
    toolbox: str  # how its makers call the toolbox
    backend: str
    devices: tuple[str, ...]
    groups: tuple[str, ...]
    options: tuple[str, ...]
    args: tuple[str, ...]  # that llama-server needs
    note: str = ""
    experimental: bool = False


@cache
def known() -> dict[str, KnownImage]:
    """By full name, "docker.io/kyuz0/amd-strix-halo-toolboxes:vulkan-radv"."""
    data = _data()
    found = {}
    for tag, table in data["images"].items():
        name = f"{data['repository']}:{tag}"
        fields = {"tag": tag, "name": name, "args": data["args"], **data["backends"][table["backend"]], **table}
        found[name] = msgspec.convert(fields, KnownImage)
    return found


def find(image: str) -> KnownImage | None:
    """The known image that a person may also have written without "docker.io/"."""
    return known().get(image) or known().get(f"docker.io/{image}")


def flags(image: str, kind: str, dev: Path) -> list[str]:
    """What `podman run` or `docker run` (`kind`) needs for this image on this machine; empty for unknown ones."""
    found = find(image)
    if found is None:
        return []
    rdma = _data()["rdma"]
    here = [device for device in found.devices if (dev / Path(device).relative_to("/dev")).exists()]
    options, groups = [*found.options], [*found.groups]
    if (dev / Path(rdma["device"]).relative_to("/dev")).exists():
        here.append(rdma["device"])
        options += rdma["options"]
        groups += rdma["groups"]
    # Rootless, a group's name means a group of the container: the user's own are kept instead.
    member = ["--group-add=keep-groups"] if kind == "podman" else [f"--group-add={group}" for group in groups]
    return [*(f"--device={device}" for device in here), *member, *options]


def settings(image: str) -> dict[str, Any]:
    """What models in this image need unless they say otherwise, by field of ModelSpec; empty for unknown images."""
    return dict(_data()["settings"]) if find(image) is not None else {}


@cache
def _data() -> dict[str, Any]:
    return tomllib.loads((resources.files(__package__) / "images.toml").read_text())


NONE: Final = 96  # an exit status that neither podman nor llama-server has
# In a login shell, which toolbox makes by itself: images put their programs on its PATH.
ASK: Final = f"command -v llama-server >/dev/null 2>&1 || exit {NONE}; exec llama-server --version"
PATIENCE: Final = 60.0  # s; an image of tens of gigabytes may have to be read first
_VERSION: Final = re.compile(r"^version: (.+)$", re.MULTILINE)


class Inside(Protocol):
    """Runs a short command in a toolbox that runs. HomeError."""

    async def __call__(self, container: str, *argv: str, within: float) -> CommandResult: ...


class ToolboxBuild(Struct, frozen=True):
    """`version` as llama-server writes it, "5412 (3a4b5c6)"; None: there is no llama-server."""

    version: str | None


class Builds:
    """All of this user's."""

    def __init__(self, engine: ContainerEngine, inside: Inside) -> None:
        self._engine = engine
        self._inside = inside
        self._known: dict[str, ToolboxBuild] = {}

    async def inside(self, toolbox: str) -> ToolboxBuild:
        """In a toolbox that runs. HomeError when it does not answer."""
        return _build(await self._inside(toolbox, "sh", "-c", ASK, within=PATIENCE), f"toolbox {toolbox}")

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
