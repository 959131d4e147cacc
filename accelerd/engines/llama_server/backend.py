"""What computes in a build of llama-server, and by which driver: from what it lists, its image, or its libraries.

The words are those of engines.base.Build. Guesses nothing: what is not recognised is "", not known. Starts nothing.
"""

from __future__ import annotations

import os
import re
from typing import Final

# ggml's names of devices, without their number, as `--list-devices` prints them.
DEVICE_NAMES: Final = {
    "vulkan": "vulkan", "rocm": "rocm", "hip": "rocm", "cuda": "cuda", "sycl": "sycl", "metal": "metal", "mtl": "metal",
}  # fmt: skip
LIBRARIES: Final = {"vulkan": "vulkan", "hip": "rocm", "cuda": "cuda", "sycl": "sycl"}  # of libggml-NAME.so
_DEVICE: Final = re.compile(r"^\s+([A-Za-z]+)\d*: ", re.MULTILINE)
_FIRST_VULKAN: Final = re.compile(r"^ggml_vulkan: 0 = .*$", re.MULTILINE)
_LIBRARY: Final = re.compile(r"libggml-([a-z]+)\.so")


def of_listing(text: str) -> str:
    """From `--list-devices`; its first device is the one that computes."""
    if "Available devices" not in text:
        return ""
    listed = text.partition("Available devices")[2]
    first = _DEVICE.search(listed)
    if first is None:
        return "cpu" if "(none)" in listed else ""
    name = DEVICE_NAMES.get(first[1].lower(), "")
    if name != "vulkan":
        return name
    # Mesa's driver is in the device's name, AMD's own only in what ggml says while it starts.
    said = " ".join([listed[first.start() :].strip().split("\n", 1)[0], *_FIRST_VULKAN.findall(text)])
    if "RADV" in said or "(radv)" in said:
        return "radv"
    return "amdvlk" if "AMD open-source driver" in said or "AMDVLK" in said else "vulkan"


def of_image(source: str) -> str:
    """From an image's name: "image docker.io/…:vulkan-radv" is "radv"."""
    tag = source.lower().rpartition("/")[2]
    words = re.split(r"[^a-z0-9]+", tag)
    for word in words:
        if word in ("radv", "amdvlk"):
            return word
        if word == "vulkan":
            return next((driver for driver in ("radv", "amdvlk") if driver in words), "vulkan")
        if word.startswith(("rocm", "hip", "therock")):
            return "rocm"
        if word.startswith("cuda"):
            return "cuda"
        if word in ("sycl", "intel"):
            return "sycl"
    return ""


def beside(binary: str) -> str:
    """From the libraries that lie with the program, for builds that list no devices. Blocking."""
    folder = os.path.dirname(os.path.realpath(binary))
    found: set[str] = set()
    for place in (folder, os.path.join(os.path.dirname(folder), "lib")):
        try:
            names = os.listdir(place)
        except OSError:
            continue  # no such folder: most programs stand alone
        found |= {LIBRARIES[m[1]] for name in names if (m := _LIBRARY.match(name)) and m[1] in LIBRARIES}
    return found.pop() if len(found) == 1 else ""
