"""What the guard tells the scheduler: which models were on a device, and what has become of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from msgspec.structs import replace

from accelerd.base.exits import Cause
from accelerd.config.model import ModelSpec
from accelerd.devices.model import Device
from accelerd.memory.model import MemoryRequirement
from accelerd.policy.device_loss import DeviceLoss
from accelerd.scheduler.lifecycle import State
from tests.devices.told import Told

APU = Device("gpu", "8060S", "amdgpu", "0000:c1:00.0", apu=True)
CARD = Device("gpu", "9070", "amdgpu", "0000:03:00.0", apu=False)
CPU = Device("cpu", "cpu")


@dataclass
class World(Told):
    """Scheduler and watch in one."""

    models: dict[int, ModelSpec] = field(default_factory=dict)
    placed: dict[int, tuple[str, ...]] = field(default_factory=dict)  # where the scheduler has made room for them

    def __post_init__(self) -> None:
        self.guard: Any = DeviceLoss(self, self.events)  # type: ignore[arg-type]

    def snapshots(self) -> list[Any]:
        return [
            SimpleNamespace(
                spec=s, instance=i, state=State.READY, need=MemoryRequirement({}, "test", self.placed.get(i, ()))
            )
            for i, s in self.models.items()
        ]


def model(name: str, **settings: Any) -> ModelSpec:
    return ModelSpec(name=name, path="/m.gguf", **settings)


def test_only_models_of_the_device_that_has_gone_end() -> None:
    world = World({1: model("g"), 2: model("p", gpu_layers=0)})
    assert world.change((APU, CPU), (CPU,)) == [("lost", "g", Cause.DEVICE_REMOVED)]


def test_a_model_that_is_split_over_two_cards_ends_with_either() -> None:
    split, single = (APU.id, CARD.id), (CARD.id,)
    world = World({1: model("split"), 2: model("single")}, {1: split, 2: single})
    assert world.change((APU, CARD), (CARD,)) == [("lost", "split", Cause.DEVICE_REMOVED)]
    world = World({1: model("split"), 2: model("single")}, {1: split, 2: single})
    assert {told[1] for told in world.change((APU, CARD), (APU,))} == {"split", "single"}


def test_a_model_stays_on_the_device_that_it_was_started_on() -> None:
    world = World({1: model("old")})
    assert world.change((APU, CPU), (CARD, APU, CPU)) == [("back", "old")]
    world.models[2] = model("new")  # started when the card was there: it is the first choice
    both = (CARD, APU, CPU)
    assert world.change(both, (APU, CPU)) == [("lost", "new", Cause.DEVICE_REMOVED)]
    del world.models[2]
    assert world.change((APU, CPU), (CPU,)) == [("lost", "old", Cause.DEVICE_REMOVED)]


def test_a_reset_and_a_driver_that_was_bound_again_lose_what_was_there() -> None:
    world = World({1: model("g")})
    assert world.change((APU,), (APU,), wedged={APU.id: "rebind"}) == [("lost", "g", Cause.DEVICE_RESET)]
    assert world.change((APU,), (APU,), gone=[APU.id]) == [("lost", "g", Cause.DEVICE_RESET), ("back", "g")]
    assert world.change((APU,), (APU,), wedged={APU.id: "none"}) == [("suspect", "g")]


def test_a_device_that_can_be_used_again_is_back() -> None:
    closed = replace(APU, problem="may not be opened")
    world = World({1: model("g")})
    assert world.change((CPU,), (closed, CPU)) == []
    assert world.change((closed, CPU), (APU, CPU)) == [("back", "g")]
