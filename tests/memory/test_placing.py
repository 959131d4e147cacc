"""Where a model can be placed on machines of several kinds, and in which order."""

from __future__ import annotations

import pytest

from accelerd.devices.model import Device, DeviceTrouble, MemoryPool, room, usable
from accelerd.estimate.estimate import EstimateSettings, estimate
from accelerd.estimate.placing import FROM_HEADER, divided, options
from accelerd.memory.model import RAM, MemoryRequirement
from tests.memory.animals import MIB, animal

GIB = 1 << 30


def card(slot: int, size: int, driver: str = "amdgpu", **more: object) -> Device:
    pools = (MemoryPool("vram", size), MemoryPool("gtt", 64 * GIB))
    return Device("gpu", f"card {slot}", driver, f"0000:0{slot}:00.0", pools=pools, apu=False, **more)  # type: ignore[arg-type]


APU = Device("gpu", "Radeon 8060S", "amdgpu", "0000:c1:00.0", apu=True, unified=True,
             pools=(MemoryPool("vram", GIB // 2), MemoryPool("gtt", 100 * GIB),
                    MemoryPool("unified", 100 * GIB + GIB // 2)))  # fmt: skip
CPU = Device("cpu", "Ryzen", pools=(MemoryPool("ram", 128 * GIB),))
NPU = Device("npu", "XDNA", "amdxdna", "0000:c6:00.1")


def ways(
    gpus: list[Device], *, layers: int | str | None = None, wanted: list[str] | None = None, **settings: object
) -> tuple[MemoryRequirement, ...]:
    found = estimate(animal(layers=9), EstimateSettings(context=8192, **settings))  # type: ignore[arg-type]
    return options(found, usable(gpus), gpu_layers=layers, wanted_gpus=wanted)


def test_without_a_gpu_all_is_in_main_memory() -> None:
    (need,) = ways([CPU, NPU])
    assert (set(need.amounts), need.devices, need.source) == ({RAM}, (), FROM_HEADER)
    assert need.total == sum(need.parts.values())
    assert set(need.parts) == {"weights", "kv cache", "compute", "output", "program"}
    assert ways([card(1, 8 * GIB), CPU], layers=0) == (need,)
    assert ways([card(1, 8 * GIB), CPU], backend="cpu")[0].devices == ()


def test_a_unified_gpu_takes_its_part_and_main_memory_the_rest() -> None:
    (need,) = ways([APU, CPU])
    assert need.devices == (APU.id,)
    assert set(need.amounts) == {RAM, APU.id}
    embedding = 512 * 32000 * 2
    assert embedding < need.amounts[RAM] < embedding + 80 * MIB
    assert need.amounts[APU.id] > need.amounts[RAM]
    assert room(APU) == 100 * GIB + GIB // 2


def test_the_largest_card_comes_first_then_they_share() -> None:
    small, large, other = card(1, 8 * GIB), card(2, 24 * GIB), card(3, 12 * GIB, driver="nvidia")
    found = ways([small, APU, other, large, CPU])
    assert [need.devices for need in found] == [
        (large.id,), (other.id,), (small.id,), (large.id, small.id),
    ]  # fmt: skip
    alone, shared = found[0], found[-1]
    assert shared.amounts[large.id] > shared.amounts[small.id] > 300 * MIB
    assert shared.total > alone.total  # each has a context and a buffer of its own
    assert found[0].amounts[RAM] == found[1].amounts[RAM]


def test_three_cards_share_by_two_and_by_three() -> None:
    cards = [card(i, 8 * GIB) for i in (1, 2, 3)]
    found = ways(cards)
    assert [len(need.devices) for need in found] == [1, 1, 1, 2, 3]
    assert set(found[-1].amounts) == {RAM, *(one.id for one in cards)}


def test_a_gpu_in_the_processor_is_taken_where_it_is_asked_for() -> None:
    both = [card(1, 8 * GIB), APU]
    assert [need.devices for need in ways(both)] == [("0000:01:00.0",)]
    assert [need.devices for need in ways(both, wanted=[APU.id])] == [(APU.id,)]
    assert [need.devices for need in ways(both, wanted=[APU.id, "0000:01:00.0", "0000:99:00.0"])] == [
        (APU.id,), ("0000:01:00.0",),
    ]  # fmt: skip
    assert ways([APU], wanted=["0000:99:00.0"])[0].devices == ()  # it is not there: the processor is what is left


def test_some_layers_on_the_gpu_leave_the_others_with_their_cache_in_main_memory() -> None:
    (all_of_them,) = ways([card(1, 8 * GIB)])
    (some,) = ways([card(1, 8 * GIB)], layers=4)
    assert some.amounts[RAM] > all_of_them.amounts[RAM]
    assert some.amounts["0000:01:00.0"] < all_of_them.amounts["0000:01:00.0"]
    assert some.parts["weights"] == all_of_them.parts["weights"]
    assert ways([card(1, 8 * GIB)], layers=500) == ways([card(1, 8 * GIB)], layers="all") == (all_of_them,)


@pytest.mark.parametrize(
    "broken",
    [
        card(1, 8 * GIB, problem="no permission"),
        card(1, 8 * GIB, driver="vfio-pci"),
        card(1, 8 * GIB, troubles=(DeviceTrouble("it hangs", blocks=True),)),
    ],
)
def test_a_gpu_that_cannot_be_used_is_no_place(broken: Device) -> None:
    assert usable([broken, CPU]) == ()


def test_layers_are_divided_by_what_each_has() -> None:
    assert divided(10, [1, 1]) == [5, 5]
    assert divided(9, [24, 8]) == [7, 2]
    assert divided(3, [0, 0, 0]) == [1, 1, 1]
    assert divided(1, [1, 100]) == [1, 0]
    assert divided(7, [5, 0, 5]) == [4, 0, 3]
