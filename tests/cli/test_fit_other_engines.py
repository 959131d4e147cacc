"""accelctl fit of models on an NPU: configured ones by what the daemon knows, others by FastFlowLM's own list."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec

from accelerd.cli.fit.other_engines import OtherEngineFit
from accelerd.cli.fit.verdict import MachineState
from accelerd.config.model import ModelSpec
from accelerd.memory.ledger import Holding, Ledger
from accelerd.memory.model import RAM, Claim, MemoryRequirement, MemorySnapshot, Pool
from accelerd.memory.report import HolderFacts, report
from tests.npu.kit import FlmOnPath, flm_model

from .conftest import Ctl
from .fake_daemon import FakeDaemon, Reply

GIB = 1 << 30
NPU = "0000:c2:00.1"
SPEC = ModelSpec("npu/qwen3-4b", engine="flm", model="qwen3:4b")


def claims(family: str = "flm", contexts: int = 1) -> tuple[Claim, ...]:
    return (Claim(NPU, family, "llm", contexts),)


def need(size: int = 4, family: str = "flm", contexts: int = 1) -> MemoryRequirement:
    return MemoryRequirement({RAM: size * GIB}, "estimated from FastFlowLM's list of models", (NPU,),
        {"weights": size * GIB},
                claims(family, contexts))  # fmt: skip


def pools(free: int = 60) -> tuple[Pool, ...]:
    return (
        Pool(RAM, "main memory", 64 * GIB, 0, 64 * GIB - free * GIB),
        Pool(NPU, "RyzenAI-npu5", 64 * GIB, 0, backed_by=RAM, contexts=16, columns=8),
    )


def told(*holdings: Holding) -> dict[str, Any]:
    found = report(Ledger(pools(), holdings), MemorySnapshot(0.0, pools(), {}), lambda model: HolderFacts())
    return {**msgspec.to_builtins(found), "waiting": [], "yielded": None, "degraded": None}


def held(name: str, size: int, family: str = "flm", contexts: int = 1) -> Holding:
    return Holding(name, "resident", {RAM: size * GIB}, {}, claims(family, contexts))


def verdict(
    wanted: MemoryRequirement, *holdings: Holding, pinned: tuple[str, ...] = (), free: int = 60
) -> tuple[bool, bool, str]:
    facts = {name: {"pin": True} for name in pinned}
    found = OtherEngineFit(SPEC, [wanted], MachineState(Ledger(pools(free), holdings), facts))
    return found.fits_now, found.fits, found.text


def test_what_fits_beside_what_is_there() -> None:
    assert verdict(need(4), held("a", 4)) == (True, True, "fits on RyzenAI-npu5")


def test_whoever_shares_its_memory_may_have_to_leave() -> None:
    gpu = Holding("gpu", "resident", {RAM: 30 * GIB})
    assert verdict(need(40), held("a", 20), gpu, free=64)[:2] == (False, True)
    assert verdict(need(40), held("a", 20), gpu, free=64, pinned=("gpu",)) == (
        False, False, "does not fit on RyzenAI-npu5: it needs 40.0 GiB of main memory, 6.0 GiB more than is free",
    )  # fmt: skip
    assert verdict(need(30), held("a", 20), gpu, free=64) == (False, True, "fits on RyzenAI-npu5 after unloading a")


def test_the_rules_of_the_npu_count() -> None:
    assert verdict(need(4, "whispercpp"), held("a", 4)) == (False, True, "fits on RyzenAI-npu5 after unloading a")
    now, fits, text = verdict(need(4, "whispercpp"), held("a", 4), pinned=("a",))
    assert (now, fits) == (False, False)
    assert text.endswith("a is loaded, and whispercpp and flm cannot use the NPU at the same time")
    assert verdict(need(1, contexts=4), held("a", 1, contexts=14)) == (
        False, True, "fits on RyzenAI-npu5 after unloading a",
    )  # fmt: skip
    text = verdict(need(1, contexts=4), held("a", 1, contexts=14), pinned=("a",))[2]
    assert text.endswith("it needs 4 of 16 hardware contexts of RyzenAI-npu5, and 14 are in use")


def test_without_an_npu() -> None:
    nowhere = MemoryRequirement({RAM: GIB}, "estimated", (), {}, (Claim("npu", "flm", "llm"),))
    assert verdict(nowhere)[2] == "does not fit on the NPU: this machine has no working NPU; see: accelctl doctor"


def test_a_configured_model_is_asked_of_the_daemon(ctl: Ctl, daemon: FakeDaemon) -> None:
    ctl.configure(flm_model())
    option = {"amounts": {RAM: 4 * GIB}, "devices": [NPU], "parts": {"weights": 4 * GIB}, "source": "measured",
              "claims": [{"device": NPU, "family": "flm", "kind": "llm", "contexts": 1, "host": ""}]}  # fmt: skip
    daemon.answers |= {
        "GET memory": Reply(told(held("other", 2))),
        "GET fit": Reply({"model": SPEC.name, "state": "stopped", "options": [option],
                          "placement": {"fits": True, "reason": "it fits"}}),
    }  # fmt: skip
    answer = ctl("fit", "npu/qwen3-4b")
    assert answer.status == 0, answer.err
    text = " ".join(answer.out.split())
    assert text.startswith("fits on RyzenAI-npu5 npu/qwen3-4b: flm qwen3:4b, measured.")
    assert "1 hardware context of 16, as flm llm" in text
    found = json.loads(ctl("fit", "npu/qwen3-4b", "--json").out)
    assert (found["fits"], found["now"], found["machine"], found["devices"]) == (True, True, "daemon", [NPU])
    assert found["claims"] == [{**option["claims"][0], "of": 16}]


def test_what_is_not_for_it_is_refused(ctl: Ctl, daemon: FakeDaemon) -> None:
    ctl.configure(flm_model())
    answer = ctl("fit", "npu/qwen3-4b", "--kv", "q8_0")
    assert answer.status == 2
    assert "npu/qwen3-4b runs with flm, which takes none of these options but --ctx" in answer.err


def test_a_model_that_is_not_configured_is_looked_up_in_flms_list(ctl: Ctl, daemon: FakeDaemon, tmp_path: Path) -> None:
    flm = FlmOnPath(tmp_path / "flm")
    ctl.env["PATH"] = flm.path
    daemon.answers |= {"GET memory": Reply(told())}
    answer = ctl("fit", "npu/qwen3-4b", "--json")
    found = json.loads(answer.out)
    assert found["model"] == {"name": "npu/qwen3-4b", "engine": "flm", "model": "qwen3:4b"}
    assert found["amounts"][RAM] > 3 * GIB
    assert "this machine has no working NPU" in found["verdict"]
    assert answer.status == 1


def test_lemonades_models_are_the_daemons_to_know(ctl: Ctl) -> None:
    ctl.configure('[models.q]\nengine = "lemonade"\nmodel = "Qwen3-4B-GGUF"\n')
    answer = ctl("fit", "q")
    assert answer.status == 1
    assert "only the daemon can find out what q needs, by asking lemonade" in answer.err


def test_the_limit_for_all_models_counts() -> None:
    machine = MachineState(Ledger(pools(), [held("a", 4)]), {}, limit=10 * GIB)
    assert OtherEngineFit(SPEC, [need(8)], machine).text == "fits on RyzenAI-npu5 after unloading a"
    assert OtherEngineFit(SPEC, [need(12)], machine).text == (
        "does not fit on RyzenAI-npu5: it needs 12.0 GiB, more than scheduler.memory allows for all models"
    )
