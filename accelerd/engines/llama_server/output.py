"""What llama-server prints, read: its list of devices, what computes in a build, and that it gets no memory.

The words for backends are those of engines.base.EngineBuild; what is not recognised is "", not known. `--list-devices`
tells a name of ggml's own ("Vulkan1"), a description and a size, but no PCI slot; the inventory knows slot, name and
sizes. Cards that look alike are taken in the order of their slots, as drivers do. Starts nothing.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from typing import Final

from msgspec import Struct

from accelerd.devices.model import Device

# It exits with 1 or aborts then, as for every other failure. From builds of 2024 to 2026 with CPU, Vulkan, CUDA, ROCm
# and SYCL backends; each is searched for in a line, and a group `bytes` or `mib` is how much was asked for. Notices
# after which it goes on (no pinned memory) are not among them.
# The level stands before what says it, after the time: "0.04.104.917 W srv …".
NOTABLE: Final = r"(?:\d+\.\d\d\.\d{3}\.\d{3} )?(?:(?P<error>E)|W) "
OUT_OF_MEMORY: Final = (
    # llama.cpp itself, whatever the backend: weights, KV cache, compute buffers
    r"failed to allocate (?:\S+ )?buffer of size (?P<bytes>\d{1,18})",
    r"unable to allocate \S+ buffer",
    r"failed to allocate (?:compute|buffer for kv cache)",
    # processor
    r"insufficient memory \(attempted to allocate +(?P<mib>\d{1,12}(?:\.\d+)?) MB\)",
    r"mmap failed: Cannot allocate memory",
    r"std::bad_alloc",
    # Vulkan and its drivers
    r"Device memory allocation of size (?P<bytes>\d{1,18}) failed",
    r"^(?!.*pinned memory).*(?:ErrorOutOf|VK_ERROR_OUT_OF_)(?:Device|Host|DEVICE_|HOST_)(?:Memory|MEMORY)",
    r"Not enough memory for command submission",
    # CUDA, and ROCm, which calls itself that too
    r"allocating (?P<mib>\d{1,12}(?:\.\d+)?) MiB on device \d+: \w+ failed: out of memory",
    r"(?:CUDA|ROCm|HIP|MUSA) error: out of memory",
    # SYCL
    r"(?:ZE|UR|PI)_(?:RESULT_)?ERROR_OUT_OF_(?:DEVICE|HOST)_MEMORY",
)

# One piece of memory larger than the driver ever gives: no amount of room helps, a smaller batch does.
TOO_LARGE: Final = (r"^(?!.*pinned memory).*exceeds device (?:memory allocation|buffer size) limit",)

# ggml's names of devices, without their number, as `--list-devices` prints them.
DEVICE_NAMES: Final = {
    "vulkan": "vulkan", "rocm": "rocm", "hip": "rocm", "cuda": "cuda", "sycl": "sycl", "metal": "metal", "mtl": "metal",
}  # fmt: skip
LIBRARIES: Final = {"vulkan": "vulkan", "hip": "rocm", "cuda": "cuda", "sycl": "sycl"}  # of libggml-NAME.so
_DEVICE: Final = re.compile(r"^\s+([A-Za-z]+)\d*: ", re.MULTILINE)
_VULKAN_DRIVER: Final = re.compile(r"ggml_vulkan: \d+ = .*$", re.MULTILINE)
_FIRST_VULKAN: Final = re.compile(r"ggml_vulkan: 0 = .*$", re.MULTILINE)
_LIBRARY: Final = re.compile(r"libggml-([a-z]+)\.so")
LINE: Final = re.compile(
    r"^\s+(?P<name>[A-Za-z]+\d+): (?P<text>.*?)(?: \((?P<total>\d{1,12}) MiB(?:, \d+ MiB free)?\))?\s*$", re.MULTILINE
)
WORD: Final = re.compile(r"[a-z]+\d+[a-z]*|\d{3,}[a-z]*")  # "gfx1151", "8060s", "7900": what tells cards apart
NEAR: Final = 0.1  # sizes that differ by less may be the same memory, counted in another way


def backend_listed(text: str) -> str:
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


def lacks_driver(text: str) -> bool:
    """Does a list of devices leave open which Vulkan driver computes? Newer builds say it only among debug lines."""
    return backend_listed(text) == "vulkan" and _FIRST_VULKAN.search(text) is None


def vulkan_drivers(text: str) -> list[str]:
    """What ggml says of each device's driver while it starts."""
    return _VULKAN_DRIVER.findall(text)


def backend_of_image(source: str) -> str:
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


def backend_beside(binary: str) -> str:
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


class ListedDevice(Struct, frozen=True):
    """One line of `--list-devices`."""

    name: str
    text: str
    size: int | None  # bytes


def listed(told: str) -> list[ListedDevice]:
    """What the program can compute on, in its own order."""
    found = []
    for match in LINE.finditer(told.partition("Available devices")[2]):
        size = int(match["total"]) << 20 if match["total"] else None
        found.append(ListedDevice(match["name"], match["text"], size))
    return found


def device_names(told: str, devices: Iterable[Device]) -> dict[str, str] | None:
    """What the program calls the GPUs, by slot, as far as it can be told; None when it has no choice."""
    there = listed(told)
    if len(there) < 2:
        return None
    gpus = sorted((d for d in devices if d.kind == "gpu" and d.slot), key=lambda device: device.id)
    pairs = sorted(
        ((_likeness(one, gpu), -index, -place) for index, one in enumerate(there) for place, gpu in enumerate(gpus)),
        reverse=True,
    )
    found: dict[str, str] = {}
    taken: set[int] = set()
    for likeness, index, place in pairs:
        gpu = gpus[-place]
        if likeness > 0 and gpu.id not in found and -index not in taken:
            found[gpu.id] = there[-index].name
            taken.add(-index)
    return found


def names_of(told: str, devices: Iterable[Device], wanted: Sequence[str]) -> tuple[str, ...] | None:
    """What the program calls the GPUs in these slots; () when it has no choice, None when one cannot be told."""
    found = device_names(told, devices)
    if found is None:
        return ()
    return tuple(found[slot] for slot in wanted) if all(slot in found for slot in wanted) else None


def _likeness(one: ListedDevice, gpu: Device) -> float:
    """0: it is not this one."""
    ours = set(WORD.findall(f"{gpu.name} {gpu.gfx or ''}".lower()))
    theirs = set(WORD.findall(one.text.lower()))
    words = len(ours & theirs)
    sizes = [pool.total for pool in gpu.pools if pool.name in ("vram", "unified", "gtt")]
    near = one.size is not None and any(abs(size - one.size) <= NEAR * size for size in sizes if size)
    return words + (0.5 if near else 0.0)
