"""What makes AMD Strix Halo (gfx1151) stable and fast beside settings: kernel, firmware, IOMMU, GTT, TuneD, and builds.

What breaks it is a trouble of the device (`devices/troubles.py`), which other checks show. Each finding names its
source and when it was read there.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from accelerd.base.errors import AccelError
from accelerd.base.sizes import human_size
from accelerd.cli.checks.base import Check, CheckContext
from accelerd.cli.checks.engine import ON_THE_HOST, build_of
from accelerd.config.model import ModelSpec
from accelerd.devices.host import Host, read_host
from accelerd.devices.model import Device, usable
from accelerd.devices.troubles import GOOD_KERNEL
from accelerd.memory.npu_rules import NPU_ENGINES

ID: Final = "strix-halo"
BEST_KERNEL: Final = (6, 18, 9)
PROFILE: Final = "accelerator-performance"
TOOLBOXES: Final = "(kyuz0/amd-strix-halo-toolboxes, 2026-11)"
HOST_BUFFERS: Final = "(https://github.com/ggml-org/llama.cpp/pull/25992, 2026-11)"
LOAD_MODE: Final = "(https://github.com/ggml-org/llama.cpp/issues/27360, 2026-11)"


def strix_halo(s: CheckContext) -> Iterator[Check]:
    """Of a machine with one; nothing of any other."""
    gpu = next((device for device in usable(s.devices) if device.gfx == "gfx1151"), None)
    if gpu is None:
        return
    host = read_host(s.roots)
    yield from kernel(host)
    yield from firmware(gpu)
    yield iommu(s, host)
    yield from gtt(gpu)
    yield tuned(s)


def kernel(host: Host) -> Iterator[Check]:
    if host.kernel is None:
        return
    here, least, best = (".".join(map(str, one)) for one in (host.kernel, GOOD_KERNEL, BEST_KERNEL))
    if host.kernel >= BEST_KERNEL:
        yield Check(ID, "ok", f"kernel {here}; {best} or newer is recommended {TOOLBOXES}")
    else:
        text = f"kernel {here}: {least} is the oldest that is stable, {best} or newer is recommended {TOOLBOXES}"
        fix = "sudo dnf upgrade kernel, or sudo apt full-upgrade, then reboot"
        yield Check(ID, "ok" if host.kernel >= GOOD_KERNEL else "warn", text, fix)


def firmware(gpu: Device) -> Iterator[Check]:
    """A bad one is a trouble of the device."""
    if mes := gpu.firmware.get("mes"):
        text = f"firmware: MES {mes}; that of linux-firmware-20251125 (MES 0x83) hangs {TOOLBOXES}"
        yield Check(ID, "ok", text)


def iommu(s: CheckContext, host: Host) -> Check:
    """Without it memory is faster, and there is no NPU."""
    if "amd_iommu=off" in host.command_line:
        return Check(ID, "ok", f"amd_iommu=off: 5 to 12 % faster than iommu=pt, but the NPU cannot be used {TOOLBOXES}")
    text = f"the IOMMU is on: amd_iommu=off would be 5 to 12 % faster, but without the NPU {TOOLBOXES}"
    if any(spec.engine in NPU_ENGINES for spec in s.config.models.values()):
        return Check(ID, "ok", f"{text}; there are models for the NPU")
    return Check(ID, "ok", f"{text}; to switch it off: {host.change_command_line('amd_iommu=off')}")


def gtt(gpu: Device) -> Iterator[Check]:
    """What is too small or too large is a trouble of the device."""
    sizes = {pool.name: pool.total for pool in gpu.pools}
    if size := sizes.get("gtt"):
        text = f"GTT: the GPU can use {human_size(size)} of main memory (ttm.pages_limit sets it) {TOOLBOXES}"
        yield Check(ID, "ok", text)


def tuned(s: CheckContext) -> Check:
    """Which profile of TuneD is active?"""
    outcome = s.programs.run(["tuned-adm", "active"])
    switch = f"sudo tuned-adm profile {PROFILE}"
    if outcome.status == 127:
        text = f"TuneD is not installed; its profile {PROFILE} is recommended {TOOLBOXES}"
        return Check(ID, "warn", text, f"install the package tuned, then: {switch}")
    active = outcome.stdout.partition("Current active profile:")[2].strip()
    if PROFILE in active.split():
        return Check(ID, "ok", f"TuneD profile {active} {TOOLBOXES}")
    text = f"TuneD profile {active or 'none'}; {PROFILE} is recommended {TOOLBOXES}"
    return Check(ID, "warn", text, switch)


def rocm_builds(s: CheckContext) -> Iterator[Check]:
    """Builds of this machine that lack what container images have, on the integrated GPUs that need it."""
    gpu = next((device for device in usable(s.devices) if device.gfx in ("gfx1151", "gfx1035")), None)
    if gpu is None:
        return
    models = [spec for spec in s.config.models.values() if spec.home in ON_THE_HOST and spec.engine == "llama-server"]
    if not s.config.models:
        models = [ModelSpec("any")]
    for spec in {spec.binary or s.config.llama_server.binary: spec for spec in reversed(models)}.values():
        try:
            build = build_of(s, spec)
        except AccelError:
            continue  # `engine.programs` tells why
        if build.backend != "rocm":
            continue
        if gpu.gfx == "gfx1151":
            text = (
                f"llama-server {build.version} for ROCm: builds of one's own lack the host-buffer patch of the images"
            )
            fix = "use a container image, or a build with --vulkan: docs/gpu.md"
            yield Check(ID, "warn", f"{text} {HOST_BUFFERS}", fix)
        elif spec.mmap is None and "--load-mode" in build.options:
            text = f"{gpu.name}: ROCm may lose the device with --load-mode auto {LOAD_MODE}"
            yield Check("rocm", "warn", text, f"mmap = false in the model's table, {spec.origin('mmap')}")
