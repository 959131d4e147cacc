"""Which listed device is which card: by name and size, in the order of slots among cards that look alike."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from accelerd.config.model import LlamaServerSettings, ModelSpec
from accelerd.devices.model import Device, MemoryPool
from accelerd.engines.llama_server import LlamaServer
from accelerd.engines.llama_server.output import listed, names_of
from accelerd.memory.model import MemoryRequirement
from tests.engines.helps import THIS_YEAR, model_file

GIB = 1 << 30
POOLS = (MemoryPool("vram", GIB), MemoryPool("gtt", 120 * GIB), MemoryPool("unified", 121 * GIB))
HALO = Device("gpu", "AMD Radeon 8060S Graphics", slot="0000:c1:00.0", gfx="gfx1151", unified=True, pools=POOLS)
XTX = Device("gpu", "AMD Radeon RX 7900 XTX", slot="0000:03:00.0", gfx="gfx1100", pools=(MemoryPool("vram", 24 * GIB),))
CARD_1 = Device("gpu", "NVIDIA GeForce RTX 3090", slot="0000:01:00.0", pools=(MemoryPool("vram", 24 * GIB),))
CARD_2 = Device("gpu", "NVIDIA GeForce RTX 3090", slot="0000:41:00.0", pools=(MemoryPool("vram", 24 * GIB),))

TWO_AMD = """ggml_vulkan: Found 2 Vulkan devices:
Available devices:
  Vulkan0: AMD Radeon Graphics (RADV GFX1151) (124004 MiB, 120000 MiB free)
  Vulkan1: AMD Radeon RX 7900 XTX (RADV NAVI31) (24560 MiB, 24000 MiB free)
"""
TWO_CUDA = """Available devices:
  CUDA0: NVIDIA GeForce RTX 3090 (24124 MiB, 23800 MiB free)
  CUDA1: NVIDIA GeForce RTX 3090 (24124 MiB, 23800 MiB free)
"""
NAMELESS = """Available devices:
  SYCL0: Intel Graphics
  SYCL1: Intel Graphics
"""


def test_a_listing_is_read() -> None:
    assert [(one.name, one.size) for one in listed(TWO_AMD)] == [
        ("Vulkan0", 124004 << 20),
        ("Vulkan1", 24560 << 20),
    ]
    assert [one.text for one in listed(TWO_CUDA)] == ["NVIDIA GeForce RTX 3090"] * 2
    assert listed("Available devices:\n  (none)\n") == []


@pytest.mark.parametrize(
    ("told", "devices", "wanted", "expected"),
    [
        (TWO_AMD, (HALO, XTX), [XTX.id], ("Vulkan1",)),
        (TWO_AMD, (XTX, HALO), [HALO.id], ("Vulkan0",)),
        (TWO_AMD, (HALO, XTX), [XTX.id, HALO.id], ("Vulkan1", "Vulkan0")),
        (TWO_CUDA, (CARD_2, CARD_1), [CARD_2.id], ("CUDA1",)),
        (TWO_CUDA, (CARD_2, CARD_1), [CARD_1.id, CARD_2.id], ("CUDA0", "CUDA1")),
        (NAMELESS, (HALO, XTX), [XTX.id], None),
        (TWO_CUDA, (CARD_1,), [CARD_2.id], None),
        ("Available devices:\n  Vulkan0: AMD Radeon Graphics (RADV GFX1151)\n", (HALO,), [HALO.id], ()),
        ("nonsense", (HALO, XTX), [XTX.id], ()),
    ],
)
def test_a_slot_has_the_name_that_the_program_calls_it_by(
    told: str, devices: tuple[Device, ...], wanted: list[str], expected: tuple[str, ...] | None
) -> None:
    assert names_of(told, devices, wanted) == expected


@pytest.mark.parametrize(
    ("told", "slots", "flag", "warned"),
    [
        (TWO_AMD, (XTX.id,), "--device Vulkan1", False),
        (TWO_AMD, (), None, False),
        (NAMELESS, (XTX.id,), None, True),
    ],
)
def test_a_plan_names_the_card_where_room_was_made(
    tmp_path: Path, told: str, slots: tuple[str, ...], flag: str | None, warned: bool
) -> None:
    program = tmp_path / "llama-server"
    more = (
        "-dev,  --device <dev1,dev2,..>          devices to use\n--list-devices                          print them\n"
    )
    (tmp_path / "help").write_text(f"{THIS_YEAR}\n{more}")
    (tmp_path / "listing").write_text(told)
    program.write_text(f"#!/bin/sh\ncase $1 in --list-devices) cat {tmp_path}/listing;; --version) echo version: 1;; "
                       f"*) cat {tmp_path}/help;; esac\n")  # fmt: skip
    program.chmod(0o755)
    server = LlamaServer(LlamaServerSettings(binary=str(program)), devices=lambda: (HALO, XTX))
    placed = MemoryRequirement({}, "estimated", slots)
    plan = asyncio.run(server.plan(ModelSpec("m", path=str(model_file(tmp_path / "models"))), tmp_path, placed))
    assert (flag in " ".join(plan.argv)) if flag else "--device" not in plan.argv
    assert any("cannot tell which device" in warning for warning in plan.warnings) is warned
