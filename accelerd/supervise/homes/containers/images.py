"""Known images with llama-server, and the flags they need: images.toml as objects. Knows no engine of containers."""

from __future__ import annotations

import tomllib
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from msgspec import Struct


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
        backend = data["backends"][table["backend"]]
        name = f"{data['repository']}:{tag}"
        found[name] = KnownImage(
            tag=tag,
            name=name,
            toolbox=table["toolbox"],
            backend=table["backend"],
            devices=tuple(backend["devices"]),
            groups=tuple(backend["groups"]),
            options=tuple(backend["options"]),
            args=tuple(data["args"]),
            note=table.get("note", ""),
            experimental=table.get("experimental", False),
        )
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
