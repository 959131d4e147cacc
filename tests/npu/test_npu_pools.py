"""What people see of an NPU and its models, and what becomes of them with it: reports, the bus, levels, hazards."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from accelerd.base.events import EventStream
from accelerd.base.exits import Cause
from accelerd.bus import properties as bus_properties
from accelerd.cli.checks import npu as checks
from accelerd.cli.commands import explain, status
from accelerd.cli.device_view import show as show_devices
from accelerd.cli.memory_view import show as show_memory
from accelerd.cli.output import CliOutput
from accelerd.config.model import Config, ModelSpec
from accelerd.control.devices import claims_of, use_of
from accelerd.control.known_conflicts import RULES, KnownConflicts, Seat, found, taking_turns
from accelerd.devices.current_devices import DevicesChanged
from accelerd.devices.model import Device
from accelerd.estimate.placing import default_device
from accelerd.instances import InstanceInfo
from accelerd.memory.ledger import Holding, Ledger
from accelerd.memory.model import RAM, Claim, MemoryRequirement, MemorySnapshot, Pool
from accelerd.memory.report import ledger_of, report
from accelerd.policy.clock_boost import ClockBoost
from accelerd.policy.device_loss import DeviceLoss
from accelerd.scheduler.events import ModelInUse, ModelLoaded
from accelerd.scheduler.lifecycle import State
from tests.devices.told import Told

GIB = 1 << 30
APU_ID, NPU_ID = "0000:c1:00.0", "0000:c2:00.1"
APU = Device("gpu", "8060S", "amdgpu", APU_ID, apu=True, gfx="gfx1151")
NPU = Device("npu", "RyzenAI-npu5", "amdxdna", NPU_ID, vendor="1022", device="17f0", columns=8)
CPU = Device("cpu", "cpu")
POOLS = (
    Pool(RAM, "main memory", 128 * GIB, 8 * GIB),
    Pool(APU_ID, "8060S", 96 * GIB, GIB, backed_by=RAM, own=GIB),
    Pool(NPU_ID, "RyzenAI-npu5", 128 * GIB, 0, backed_by=RAM, contexts=16, columns=8),
)
LLM, ASR = Claim(NPU_ID, "flm", "llm"), Claim(NPU_ID, "flm", "asr", host="Lemonade")


plain = msgspec.to_builtins  # as JSON has it


def placed(*claims: Claim, size: int = 4 * GIB) -> MemoryRequirement:
    return MemoryRequirement({RAM: size}, "estimated", tuple(dict.fromkeys(c.device for c in claims)), claims=claims)


def on_gpu(size: int = 20 * GIB) -> MemoryRequirement:
    return MemoryRequirement({APU_ID: size}, "estimated", (APU_ID,))


def there(
    name: str, need: MemoryRequirement, number: int = 1, used: Mapping[str, int] | None = None, **more: Any
) -> Any:
    """A snapshot of a loaded model, as far as reports read it."""
    spec = more.pop("spec", None) or ModelSpec(name)
    return SimpleNamespace(
        spec=spec, need=need, held=dict(need.amounts), used=dict(used or {}), instance=number, state=State.READY,
        memory_used=sum((used or {}).values()) or None,
        device=next(iter(need.devices), "cpu"), history=(), **more,
    )  # fmt: skip


def shown(show: Callable[[CliOutput, dict[str, Any]], None], answer: dict[str, Any]) -> str:
    stream = io.StringIO()
    show(CliOutput(stream, stream, {}), answer)
    return stream.getvalue()


# --- reports ----------------------------------------------------------------------------------------------------


def test_an_npu_is_told_of_with_its_contexts_columns_and_models() -> None:
    both = placed(LLM, ASR)
    use = use_of(NPU, [there("a", placed(LLM), used={RAM: 3 * GIB}), there("b", both, 2), there("g", on_gpu(), 3)])
    assert use is not None
    assert (use.contexts, use.contexts_used, use.columns) == (16, 3, 8)
    assert [(one.model, one.kind, one.host) for one in use.models] == [
        ("a", "llm", ""), ("b", "llm", ""), ("b", "asr", "Lemonade"),
    ]  # fmt: skip
    assert (use.memory, use.memory_used) == (8 * GIB, 3 * GIB), "a model with two places has its memory once"
    assert use_of(APU, []) is None


def test_a_model_that_is_not_there_takes_no_place() -> None:
    gone = there("a", placed(LLM))
    gone.state = State.STOPPED
    use = use_of(NPU, [gone])
    assert use is not None
    assert plain(use) == {"contexts": 16, "contexts_used": 0, "columns": 8, "models": ()}


def test_the_memory_report_has_its_models_although_their_bytes_are_in_main_memory() -> None:
    holdings = [
        Holding("qwen", "resident", {RAM: 4 * GIB}, {RAM: 3 * GIB}, (LLM,)),
        Holding("big", "resident", {APU_ID: 20 * GIB}),
    ]
    told = plain(report(Ledger(POOLS, holdings), MemorySnapshot(0.0, POOLS, {})))
    main, gpu, npu = told["pools"]
    assert "npu" not in main
    assert "npu" not in gpu
    assert npu["npu"] == {
        "contexts": 16, "contexts_used": 1, "columns": 8,
        "models": [{"model": "qwen", "phase": "resident", "family": "flm", "kind": "llm", "contexts": 1, "host": "",
                    "memory": 3 * GIB}],
    }  # fmt: skip
    back = ledger_of(told)
    assert back.pools == {pool.id: pool for pool in POOLS}
    assert {held.model: held.claims for held in back.holdings} == {"qwen": (LLM,), "big": ()}
    page = shown(show_memory, {**told, "source": "daemon"})
    assert "1 of 16 hardware contexts in use, 8 columns shared by all models" in page
    assert "A qwen  flm llm, 1 context, 3.0 GiB of memory in all" in page


def test_the_devices_page_names_who_is_on_the_npu() -> None:
    use = use_of(NPU, [there("qwen", placed(LLM)), there("hears", placed(ASR, size=GIB), 2, {RAM: GIB})])
    assert use is not None
    page = shown(show_devices, {"devices": [NPU.json() | {"npu": plain(use)}]})
    assert "    2 of 16 hardware contexts in use, 8 columns shared by all models" in page
    assert "    qwen   flm llm, 1 context, 4.0 GiB of memory reserved" in page
    assert "    hears  flm asr in Lemonade, 1 context, 1.0 GiB of memory in use" in page


def test_status_and_explain_tell_the_npu_from_a_gpu() -> None:
    claims = plain(claims_of(placed(LLM), {pool.id: pool for pool in POOLS}))
    assert status.device({"device": NPU_ID, "claims": claims}) == "npu c2:00.1"
    assert status.device({"device": APU_ID, "claims": []}) == "gpu c1:00.0"
    assert explain.place(claims[0]) == "1 of 16 hardware contexts of RyzenAI-npu5, as flm llm"
    unknown = plain(claims_of(placed(ASR), {}))
    assert explain.place(unknown[0]) == f"1 hardware context of {NPU_ID}, as flm asr in Lemonade"


def test_on_the_bus() -> None:
    ledger = Ledger(POOLS, [Holding("qwen", "resident", {RAM: 4 * GIB}, {RAM: 3 * GIB}, (LLM,))])
    balances = {balance.pool.id: balance for balance in ledger.balances()}
    models = [there("qwen", placed(LLM), used={RAM: 3 * GIB})]
    npu = bus_properties.of_device(NPU, balances, models, None)
    assert {key: npu[key] for key in ("Contexts", "ContextsUsed", "Columns", "MemoryReserved", "MemoryUsed")} == {
        "Contexts": 16, "ContextsUsed": 1, "Columns": 8, "MemoryReserved": 4 * GIB, "MemoryUsed": 3 * GIB,
    }  # fmt: skip
    assert npu["Models"] == ["/org/accelerd1/models/qwen"]
    gpu = bus_properties.of_device(APU, balances, models, None)
    assert (gpu["Contexts"], gpu["ContextsUsed"], gpu["Columns"], gpu["Models"]) == (0, 0, 0, [])


# --- the device -------------------------------------------------------------------------------------------------


def test_a_model_of_flm_is_on_the_npu_or_nowhere() -> None:
    flm = ModelSpec("q", engine="flm")
    assert default_device(flm, [APU, NPU, CPU]) == NPU_ID
    assert default_device(flm, [APU, CPU]) == "cpu", "never on a GPU, whose level it would raise"
    assert default_device(ModelSpec("m"), [APU, NPU, CPU]) == APU_ID


class Keeper:
    """A LevelKeeper that only counts."""

    def __init__(self) -> None:
        self.used: list[str] = []

    def watch(self, devices: Any) -> None: ...

    def begin(self, slot: str) -> None:
        self.used.append(slot)

    def end(self, slot: str) -> None:
        self.used.remove(slot)


@pytest.mark.parametrize("where", [NPU_ID, ""], ids=["placed", "not placed yet"])
def test_work_on_the_npu_raises_no_gpus_level(where: str) -> None:
    keeper = Keeper()
    performance = ClockBoost(keeper, None, list, lambda name: where if name == "q" else APU_ID, EventStream())  # type: ignore[arg-type]
    performance.on_devices_changed(DevicesChanged((), (APU, NPU, CPU)))
    performance.on_model_in_use(ModelInUse(ModelSpec("q", engine="flm"), True))
    assert keeper.used == []
    performance.on_model_in_use(ModelInUse(ModelSpec("m"), True))
    assert keeper.used == [APU_ID]
    performance.on_model_in_use(ModelInUse(ModelSpec("q", engine="flm"), False))
    assert keeper.used == [APU_ID]


class Scheduler(Told):
    """Scheduler and watch in one, for the guard."""

    def __init__(self, **models: MemoryRequirement) -> None:
        super().__init__()
        self.models = models
        DeviceLoss(self, self.events)  # type: ignore[arg-type]

    def snapshots(self) -> list[Any]:
        engines = {name: "flm" if need.claims else "llama-server" for name, need in self.models.items()}
        return [
            there(name, need, number, spec=ModelSpec(name, engine=engines[name]))
            for number, (name, need) in enumerate(self.models.items(), 1)
        ]


def test_the_npu_that_goes_takes_its_models_with_it_and_the_gpu_its_own() -> None:
    everything = (APU, NPU, CPU)
    world = Scheduler(npu=placed(LLM), gpu=on_gpu())
    assert world.change(everything, (APU, CPU)) == [("lost", "npu", Cause.DEVICE_REMOVED)]
    assert world.change((APU, CPU), everything) == [("back", "npu")], "no GPU has come back"
    assert world.change(everything, (NPU, CPU)) == [("lost", "gpu", Cause.DEVICE_REMOVED)]
    assert ("back", "gpu") in world.change((NPU, CPU), everything)


def test_a_driver_that_is_bound_anew_ends_the_npus_models_and_nobody_elses() -> None:
    world = Scheduler(npu=placed(LLM), gpu=on_gpu())
    told = world.change((APU, NPU), (APU, NPU), gone=[NPU_ID])
    assert told == [("lost", "npu", Cause.DEVICE_RESET)]


def test_what_lost_the_npu_does_not_come_back_with_a_gpu() -> None:
    world = Scheduler(npu=placed(LLM))
    world.change((APU, NPU), (APU,))
    assert world.change((APU,), (APU, Device("gpu", "9070", "amdgpu", "0000:03:00.0", apu=False))) == []


# --- hazards ----------------------------------------------------------------------------------------------------


def test_every_hazard_has_its_source() -> None:
    assert all(rule.source.startswith("https://") and rule.fix for rule in RULES)


@pytest.mark.parametrize(("backend", "threatened"), [("rocm", True), ("radv", False), ("", False), ("cpu", False)])
def test_B_rocm_beside_flm(backend: str, threatened: bool) -> None:
    seats = [Seat("npu", placed(LLM)), Seat("gpu", on_gpu(), backend)]
    assert [hazard.models for hazard in found(seats)] == ([("npu", "gpu")] if threatened else [])
    assert not list(found([Seat("gpu", on_gpu(), backend)])), "alone it disturbs nobody"


def test_B_ryzenai_beside_flm_take_turns() -> None:
    ryzen = Seat("ryzen", placed(Claim(NPU_ID, "ryzenai-llm", "llm")))
    told = list(taking_turns("npu", placed(LLM), [Seat("npu", placed(LLM)), ryzen, Seat("gpu", on_gpu())]))
    assert [(one.id, one.models) for one in told] == [("npu-exclusive", ("npu", "ryzen"))]
    assert told[0].message == (
        "ryzen leaves when npu is loaded, and the other way round: "
        "flm and ryzenai-llm cannot use the NPU at the same time"
    )


class ModelInfo:
    """Backends by instance."""

    def __init__(self, **backends: str) -> None:
        self.backends = backends

    def facts(self, instance: int) -> InstanceInfo | None:
        name = list(self.backends)[instance - 1]
        return InstanceInfo(name, 1, 0.0, SimpleNamespace(backend=self.backends[name]))  # type: ignore[arg-type]


def test_it_is_told_once_in_the_journal(caplog: pytest.LogCaptureFixture) -> None:
    models = [there("npu", placed(LLM), 1), there("gpu", on_gpu(), 2)]
    hazards = KnownConflicts(lambda: models, ModelInfo(npu="", gpu="rocm"), lambda: [APU, NPU], EventStream())
    with caplog.at_level(logging.WARNING):
        for index in (0, 1, 0):
            hazards.on_model_loaded(ModelLoaded(models[index].spec, models[index].need, 1.0))
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "gpu computes with ROCm beside npu" in caplog.text
    assert [one.models for one in hazards.now()] == [("npu", "gpu")]


def test_explain_warns_of_what_would_be_and_of_the_devices_own_troubles() -> None:
    from accelerd.devices.model import DeviceTrouble

    unstable = DeviceTrouble("kernel 6.17.0 is unstable with ROCm on gfx1151", "install kernel 6.18.4")
    gpu = Device("gpu", "8060S", "amdgpu", APU_ID, apu=True, troubles=(unstable,))
    asked = there("gpu", on_gpu(), 2)
    asked.instance, asked.state = None, State.STOPPED
    hazards = KnownConflicts(
        lambda: [there("npu", placed(LLM), 1), asked], ModelInfo(npu=""), lambda: [gpu, NPU], EventStream()
    )
    lines = hazards.of(asked, SimpleNamespace(backend="rocm"))  # type: ignore[arg-type]
    assert len(lines) == 2
    assert "gpu computes with ROCm beside npu" in lines[0]
    assert "xdna-driver/issues/1605" in lines[0]
    assert lines[1] == ("8060S: kernel 6.17.0 is unstable with ROCm on gfx1151: install kernel 6.18.4")
    assert hazards.now() == [], "it is not loaded"


def surroundings(tmp_path: Path, status: Any, *models: ModelSpec) -> Any:
    roots = SimpleNamespace(sys=tmp_path / "sys", proc=tmp_path / "proc")
    return SimpleNamespace(roots=roots, status=status, config=Config(models={spec.name: spec for spec in models}))


def test_doctor_tells_what_the_daemon_knows(tmp_path: Path) -> None:
    hazard = next(found([Seat("npu", placed(LLM)), Seat("gpu", on_gpu(), "rocm")]))
    (check,) = checks.conflicts(surroundings(tmp_path, {"hazards": [plain(hazard)]}))
    assert (check.id, check.level) == ("npu", "warn")
    assert "gpu computes with ROCm beside npu" in check.detail
    assert check.fix == "run gpu with a llama-server built for Vulkan"


def test_doctor_sees_rocm_of_other_programs(tmp_path: Path) -> None:
    flm = ModelSpec("qwen", engine="flm")
    asked = surroundings(tmp_path, {"hazards": []}, flm)
    assert list(checks.conflicts(asked)) == []
    (tmp_path / "sys/class/kfd/kfd/proc/4712").mkdir(parents=True)
    (tmp_path / "proc/4712").mkdir(parents=True)
    (tmp_path / "proc/4712/comm").write_text("ollama\n")
    (check,) = checks.conflicts(asked)
    assert "ollama computes with ROCm beside qwen" in check.detail
    assert list(checks.conflicts(surroundings(tmp_path, {"hazards": []}, ModelSpec("m")))) == [], "no model is there"
