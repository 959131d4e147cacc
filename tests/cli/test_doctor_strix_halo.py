"""accelctl doctor on AMD Strix Halo: kernel, firmware, IOMMU, GTT, TuneD, builds for ROCm; each with its source."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from msgspec.structs import replace

from accelerd.base.ports import Roots
from accelerd.cli.checks import strix_halo
from accelerd.cli.checks.base import Check, CheckContext
from accelerd.cli.connect import DaemonClient
from accelerd.cli.programs import ProgramResult
from accelerd.devices.model import Device, MemoryPool
from tests.tuning.machine import CPU, RADEON, STRIX_HALO

from .conftest import Ctl

GIB = 1 << 30
HALO = replace(
    STRIX_HALO, pools=(MemoryPool("vram", GIB), MemoryPool("gtt", 105 * GIB), MemoryPool("unified", 106 * GIB)),
    firmware={"mes": "0x00000080"},
)  # fmt: skip
SMALL = replace(HALO, name="AMD Radeon 680M", gfx="gfx1035")


class Programs:
    def __init__(self, profile: str | None) -> None:
        self.profile = profile

    def run(self, argv: Sequence[str], timeout: float = 10.0) -> ProgramResult:
        if argv[0] != "tuned-adm" or self.profile is None:
            return ProgramResult(127, "", "no such program")
        return ProgramResult(0, f"Current active profile: {self.profile}\n", "")


def context(
    ctl: Ctl, *devices: Device, kernel: str = "6.18.9-200.fc43.x86_64", cmdline: str = "quiet iommu=pt",
    profile: str | None = "accelerator-performance",
) -> CheckContext:  # fmt: skip
    proc = ctl.home / "proc"
    (proc / "sys/kernel").mkdir(parents=True, exist_ok=True)
    (proc / "sys/kernel/osrelease").write_text(f"{kernel}\n")
    (proc / "cmdline").write_text(f"{cmdline}\n")
    roots = Roots.from_env(ctl.env)
    roots = Roots(roots.config_file, roots.runtime, roots.state, roots.cache, roots.home, proc, ctl.home / "sys")
    found = CheckContext(roots, ctl.env, DaemonClient(Path("/nowhere")), Programs(profile))
    found.__dict__["devices"] = [*devices, CPU]
    return found


def about(checks: Sequence[Check], word: str) -> Check:
    [check] = [check for check in checks if word in check.detail]
    return check


def test_a_machine_that_is_as_recommended(ctl: Ctl) -> None:
    checks = list(strix_halo.strix_halo(context(ctl, HALO)))
    assert {check.level for check in checks} == {"ok"}
    for word in ("kernel 6.18.9", "MES 0x00000080", "5 to 12 %", "GTT: the GPU can use 105 GiB", "TuneD profile"):
        assert "2026-11" in about(checks, word).detail, "with its source and its date"


@pytest.mark.parametrize(
    ("kernel", "level"),
    [("6.18.3", "warn"), ("6.12.48+deb13-amd64", "warn"), ("6.18.4", "ok"), ("6.18.8", "ok"), ("7.1.3", "ok")],
)
def test_the_kernel(ctl: Ctl, kernel: str, level: str) -> None:
    check = about(list(strix_halo.strix_halo(context(ctl, HALO, kernel=kernel))), "6.18.9 or newer is recommended")
    assert check.level == level
    assert ("6.18.4 is the oldest" in check.detail) == (kernel != "7.1.3")
    assert check.level == "ok" or "reboot" in check.fix


@pytest.mark.parametrize(
    ("cmdline", "models", "words"),
    [
        ("quiet amd_iommu=off", "", "but the NPU cannot be used"),
        ("quiet", "", "to switch it off: sudo "),
        ("iommu=pt", '[models.n]\nengine = "flm"\nmodel = "qwen3:4b"\n', "there are models for the NPU"),
    ],
)
def test_the_price_of_the_iommu(ctl: Ctl, cmdline: str, models: str, words: str) -> None:
    ctl.configure(models)
    check = about(list(strix_halo.strix_halo(context(ctl, HALO, cmdline=cmdline))), "5 to 12 %")
    assert check.level == "ok"
    assert words in check.detail


@pytest.mark.parametrize(("profile", "level"), [(None, "warn"), ("balanced", "warn"),
                                                ("accelerator-performance powersave", "ok")])  # fmt: skip
def test_the_profile_of_tuned(ctl: Ctl, profile: str | None, level: str) -> None:
    check = about(list(strix_halo.strix_halo(context(ctl, HALO, profile=profile))), "TuneD")
    assert check.level == level
    assert level == "ok" or "tuned-adm profile accelerator-performance" in check.fix


def server(ctl: Ctl, device: str) -> None:
    """A llama-server of this machine with this device."""
    path = ctl.home / "bin/llama-server"
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"""#!/bin/sh
case "$*" in
  --version) echo "version: 7777 (abc)" >&2 ;;
  --list-devices) printf 'Available devices:\\n  {device}: AMD Radeon (96000 MiB, 1 MiB free)\\n' ;;
  *) printf '%s\\n' "-lm, --load-mode MODE   how to load" "-m, --model FILE   the model" "--list-devices   list" ;;
esac
""")
    path.chmod(0o755)
    ctl.configure(f'[engines.llama-server]\nbinary = "{path}"\n')


@pytest.mark.parametrize(
    ("gpu", "device", "words"),
    [
        (HALO, "ROCm0", "host-buffer patch"),
        (HALO, "Vulkan0", ""),
        (SMALL, "ROCm0", "--load-mode auto"),
        (SMALL, "Vulkan0", ""),
        (RADEON, "ROCm0", ""),
    ],
)
def test_builds_for_rocm(ctl: Ctl, gpu: Device, device: str, words: str) -> None:
    server(ctl, device)
    checks = list(strix_halo.rocm_builds(context(ctl, gpu)))
    assert len(checks) == bool(words)
    for check in checks:
        assert check.level == "warn"
        assert words in check.detail
        assert "https://github.com/ggml-org/llama.cpp/" in check.detail
        assert check.fix


def test_other_machines_are_not_told(ctl: Ctl) -> None:
    point = replace(HALO, name="AMD Radeon 890M Graphics", gfx="gfx1150")
    for others in ((RADEON,), (point,), (replace(HALO, gfx=None),), (replace(HALO, problem="no driver"),), ()):
        assert list(strix_halo.strix_halo(context(ctl, *others))) == []
