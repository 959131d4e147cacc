"""What the engine plans, and what it refuses before any server is started, with what to do."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from accelerd.base.errors import AccelError
from accelerd.config.model import FlmSettings, ModelSpec
from accelerd.devices.model import Device
from accelerd.engines.base import LaunchPlan
from accelerd.engines.flm.engine import Flm
from accelerd.memory.model import RAM
from tests.npu.kit import FlmOnPath

NPU = Device("npu", "RyzenAI-npu5", driver="amdxdna", slot="0000:c2:00.1", vendor="1022", columns=8)
GPU = Device("gpu", "Radeon", driver="amdgpu", slot="0000:c1:00.0", vendor="1002")


@pytest.fixture
def flm(tmp_path: Path) -> FlmOnPath:
    return FlmOnPath(tmp_path).pulled("qwen3:4b")


def engine(flm: FlmOnPath, **more: Any) -> Flm:
    more = {"lockable": lambda: None, "proc": flm.directory, **more}
    return Flm(FlmSettings(), environ={"PATH": flm.path, "HOME": "/nonexistent", "HF_TOKEN": "x"}, **more)


def spec(model: str = "qwen3:4b", **more: Any) -> ModelSpec:
    return ModelSpec(name="npu/m", engine="flm", model=model, **more)


async def planned(flm: FlmOnPath, model: ModelSpec, **more: Any) -> LaunchPlan:
    return await engine(flm, **more).plan(model, flm.directory)


async def refusal(flm: FlmOnPath, model: ModelSpec | None = None, **more: Any) -> tuple[str, str]:
    with pytest.raises(AccelError) as caught:
        await planned(flm, model or spec(), **more)
    return caught.value.fields["cause"], caught.value.message


def value(plan: LaunchPlan, option: str) -> str:
    return plan.argv[plan.argv.index(option) + 1]


async def test_the_command_line(flm: FlmOnPath) -> None:
    plan = await planned(flm, spec("qwen3-4b-FLM", context=8192))
    assert plan.argv[:3] == (str(flm.program), "serve", "qwen3:4b")
    assert (value(plan, "--ctx-len"), value(plan, "--host")) == ("8192", "127.0.0.1")
    assert plan.endpoint.port == int(value(plan, "--port")) != 52625
    assert "--quiet" in plan.argv
    assert "--asr" not in plan.argv
    assert "--embed" not in plan.argv
    assert plan.prove
    assert plan.guarded
    assert not plan.keyed
    assert plan.secret == ""
    assert any("has no API key" in warning for warning in plan.warnings)


async def test_B_a_context_becomes_a_power_of_two_and_512_at_least(flm: FlmOnPath) -> None:
    def said(plan: LaunchPlan) -> str:
        return next(flag.reason for flag in plan.flags if flag.text.startswith("--ctx-len"))

    assert "rounds it to 16384" in said(await planned(flm, spec(context=10000)))
    assert "rounds it to 512" in said(await planned(flm, spec(context=128)))
    assert "rounds" not in said(await planned(flm, spec(context=4096)))
    assert "--ctx-len" not in (await planned(flm, spec(context=None))).argv


async def test_whisper_and_embeddings_come_by_a_switch_and_not_by_their_name(flm: FlmOnPath) -> None:
    flm.pulled("whisper-v3:turbo", "embed-gemma:300m")
    heard = await planned(flm, spec("whisper-v3:turbo"))
    assert "whisper-v3:turbo" not in heard.argv
    assert value(heard, "--asr") == "1"
    assert "--ctx-len" not in heard.argv
    assert heard.probe_path == "/v1/audio/transcriptions"
    assert b"RIFF" in heard.probe_body
    made = await planned(flm, spec("embed-gemma"))
    assert value(made, "--embed") == "1"
    assert made.probe_path == "/v1/embeddings"
    both = await planned(flm, spec(transcription=True, embeddings=True))
    assert both.argv[2] == "qwen3:4b"
    assert {"--asr", "--embed"} <= set(both.argv)


async def test_only_what_changes_how_a_model_runs_may_stand_in_extra_args(flm: FlmOnPath) -> None:
    plan = await planned(flm, spec(extra_args=("--pmode", "balanced", "--q-len=3")))
    assert value(plan, "--pmode") == "balanced"
    assert plan.argv.count("--q-len") == 1
    assert value(plan, "--q-len") == "3"
    for bad in (("--port", "80"), ("--host", "0.0.0.0"), ("--pmode", "loud"), ("--q-len", "x"), ("--q-len",), ("x",)):
        assert (await refusal(flm, spec(extra_args=bad)))[0] == "refused"


async def test_B_what_has_no_effect_on_linux_or_helps_nobody_is_said(flm: FlmOnPath) -> None:
    plan = await planned(flm, spec(extra_args=("--pmode", "turbo"), concurrency=4))
    assert any("does not change the power mode of the NPU" in warning for warning in plan.warnings)
    assert any("one request at a time" in warning for warning in plan.warnings)


async def test_the_server_gets_no_token_and_asks_no_internet(flm: FlmOnPath) -> None:
    plan = await planned(flm, spec())
    assert "HF_TOKEN" not in plan.env
    assert plan.env["FLM_DISABLE_UPDATE_CHECK"] == "1"


@pytest.mark.parametrize(
    ("settings", "command_line", "says"),
    [
        ({"kernel": "6.14.0-generic"}, "", r"kernel 6\.14\.0-generic is too old.*6\.17"),
        ({"firmware": [1, 0, 0, 63]}, "", r"firmware of /dev/accel/accel0 is 1\.0\.0\.63.*linux-firmware"),
        ({"columns": 5}, "", r"has 5 columns.*needs an NPU with 8"),
        ({"drm": "0.5"}, "", r"amdxdna 0\.5 is too old.*0\.6"),
        ({"device": False}, "", r"finds no AMD NPU.*render"),
        ({"device": False}, "quiet amd_iommu=off", r"amd_iommu=off disables the NPU.*iommu=pt"),
        ({"memlock": 8 << 20}, "", r"lock limit is 8.0 MiB.*DefaultLimitMEMLOCK=infinity"),
    ],
)
async def test_B_validate_says_what_is_wrong_before_a_start(
    flm: FlmOnPath, settings: dict[str, Any], command_line: str, says: str
) -> None:
    flm.set(**settings)
    (flm.directory / "cmdline").write_text(command_line)
    cause, message = await refusal(flm, lockable=lambda: 8 << 20)
    assert cause == "refused"
    assert re.search(says, message, re.DOTALL), message
    assert flm.served() == []


async def test_B_a_soft_limit_of_locked_memory_is_no_reason_where_more_may_be_asked_for(flm: FlmOnPath) -> None:
    """Every home raises it to the hard one."""
    flm.set(memlock=8 << 20)
    plan = await planned(flm, spec(), lockable=lambda: 16 << 30)
    assert not any("lock" in warning for warning in plan.warnings)


async def test_B_a_hard_limit_below_the_model_is_named(flm: FlmOnPath) -> None:
    plan = await planned(flm, spec(), lockable=lambda: 1 << 30)
    assert any("lock limit is 1.0 GiB" in warning and "qwen3:4b" in warning for warning in plan.warnings)


async def test_a_model_that_is_not_here_is_not_fetched_by_a_start(flm: FlmOnPath) -> None:
    assert await refusal(flm, spec("qwen3:8b")) == (
        "no-model",
        "qwen3:8b is not installed; run: flm pull qwen3:8b",
    )
    cause, message = await refusal(flm, spec(transcription=True))
    assert cause == "no-model"
    assert "flm pull whisper-v3:turbo" in message


async def test_a_model_that_was_fetched_meanwhile_is_seen_at_once(flm: FlmOnPath) -> None:
    one = engine(flm)
    with pytest.raises(AccelError):
        await one.plan(spec("qwen3:8b"), flm.directory)
    flm.pulled("qwen3:8b")
    assert (await one.plan(spec("qwen3:8b"), flm.directory)).argv[2] == "qwen3:8b"


async def test_a_slip_in_a_name_is_answered_with_the_one_that_was_meant(flm: FlmOnPath) -> None:
    cause, message = await refusal(flm, spec("qwen3:5b"))
    assert cause == "no-model"
    assert "did you mean" in message
    assert "qwen3:4b" in message


async def test_without_the_program_it_is_said_how_to_get_it(tmp_path: Path) -> None:
    one = Flm(FlmSettings(), environ={"PATH": str(tmp_path)})
    with pytest.raises(AccelError) as caught:
        await one.plan(spec(), tmp_path)
    assert caught.value.fields["cause"] == "no-program"
    assert "install FastFlowLM" in caught.value.message


async def test_a_program_that_says_nothing_of_use_is_tried_with_a_warning(flm: FlmOnPath) -> None:
    flm.set(validate_garbage=True)
    plan = await planned(flm, spec())
    assert any(
        "cannot check whether the NPU works: flm validate --json printed no JSON" in warning
        for warning in plan.warnings
    )


async def test_a_refusal_without_a_reason_is_passed_on_as_a_warning(flm: FlmOnPath) -> None:
    flm.set(ready=False)
    plan = await planned(flm, spec())
    assert any("not ready, without a reason" in warning for warning in plan.warnings)


async def test_the_program_is_not_asked_again_for_some_seconds(flm: FlmOnPath) -> None:
    at = [0.0]
    one = engine(flm, now=lambda: at[0])
    for moment in (0.0, 1.0, 4.9):
        at[0] = moment
        await one.plan(spec(), flm.directory)
    assert [record["argv"][0] for record in flm.noted("argv")] == ["validate", "list"]
    at[0] = 20.0
    await one.plan(spec(), flm.directory)
    assert len(flm.noted("argv")) == 4


async def test_B_a_model_takes_main_memory_and_a_place_on_the_npu_and_nothing_of_the_gpu(flm: FlmOnPath) -> None:
    (need,) = (await engine(flm).forecast(spec(context=8192), (GPU, NPU), ask=True)).options
    assert set(need.amounts) == {RAM}
    assert need.devices == (NPU.id,)
    assert need.parts["weights"] == 3_100_000_000
    assert need.parts["kv cache"] == 8192 * 147456
    assert [(claim.device, claim.family, claim.kind) for claim in need.claims] == [(NPU.id, "flm", "llm")]
    (both,) = (await engine(flm).forecast(spec(transcription=True), (NPU,), ask=False)).options
    assert [claim.kind for claim in both.claims] == ["llm", "asr"]
    (told,) = (await engine(flm).forecast(spec(memory=5 << 30), (), ask=False)).options
    assert told.amounts == {RAM: 5 << 30}
    assert told.declared
    assert told.devices == ()


async def test_what_a_model_can_be_asked_for_is_said_and_what_it_cannot(flm: FlmOnPath) -> None:
    found = engine(flm).traits(spec("Qwen3-4B-FLM"))
    assert found.tasks == {"chat", "completions", "tools"}
    assert found.wire_name == "qwen3:4b"
    assert found.device == "npu"
    assert "reasoning" in found.labels
    assert "/v1/messages itself is translated" in found.why_not["messages"]
    assert "does not support /v1/responses" in found.why_not["responses"]
    assert "does not support reranking" in found.why_not["rerank"]
    assert "npu/embed-gemma-300m" in found.why_not["embeddings"]
    small = engine(flm).traits(spec("llama3.2:1b"))
    assert "tools" not in small.tasks
    assert "tools" in small.why_not
    assert engine(flm).traits(spec("whisper-v3")).tasks == {"transcription"}
    assert engine(flm).traits(spec(transcription=True)).tasks == {"chat", "completions", "tools", "transcription"}
    assert engine(flm).traits(spec("embed-gemma:300m")).tasks == {"embeddings"}


async def test_a_newer_flm_asks_for_the_driver_and_not_for_a_kernel(flm: FlmOnPath) -> None:
    """With the DKMS package of the driver an older kernel is fine, from 1.0 on."""
    flm.set(version="1.0.4", kernel="6.14.0-37-generic")
    assert (await planned(flm, spec())).argv[1] == "serve"
    flm.set(version="1.0.4", kernel="6.14.0-37-generic", drm="0.5")
    cause, message = await refusal(flm)
    assert cause == "refused"
    assert "the driver amdxdna 0.5 is too old for FastFlowLM, which needs 0.6" in message
    assert "kernel 6.14" not in message
    flm.set(version="0.9.45", kernel="6.14.0-37-generic")
    assert "6.17" in (await refusal(flm))[1]


async def test_a_model_for_another_npu_is_told_from_one_that_does_not_exist(flm: FlmOnPath) -> None:
    """The list of a newer flm has only what the NPU of this machine can run."""
    flm.set(version="1.0.2", unlisted=["gpt-oss:20b"])
    assert "FastFlowLM has gpt-oss:20b, but not for this NPU" in (await refusal(flm, spec("gpt-oss-20b")))[1]
    assert "FastFlowLM has no model gpt-oss:120b" in (await refusal(flm, spec("gpt-oss:120b")))[1]


@pytest.mark.parametrize(
    ("tag", "least", "most"), [("gemma4-it:12b", 7e9, 12e9), ("hunyuan:0.5b", 0.5e9, 1.5e9), ("granite:tiny", 1e9, 8e9)]
)
async def test_of_a_model_in_no_list_the_size_is_guessed_and_said_to_be(tag: str, least: float, most: float) -> None:
    made = Flm(FlmSettings(), environ={"PATH": "/nonexistent"})
    (need,) = (await made.forecast(spec(tag, context=512), [NPU], ask=True)).options
    assert least < need.parts["weights"] < most
    assert "guessed from its name" in need.source
    (whole,) = (await made.forecast(spec(tag, context=None), [NPU], ask=True)).options
    assert whole.parts["kv cache"] > 0, "its length of context is not known either"


async def test_a_listed_size_is_believed_and_a_missing_one_is_guessed(flm: FlmOnPath) -> None:
    flm.set(without_footprint=["qwen3:4b"])
    (need,) = (await engine(flm).forecast(spec(), [NPU], ask=True)).options
    assert need.parts["weights"] == int(3.1e9), "as the table has it"
    assert "guessed" not in need.source


@pytest.mark.parametrize("arguments", [("--modelscope", "1"), ("--hf=someone/Some-Model-NPU2", "--hf-branch", "v1.0")])
async def test_where_models_are_from_is_said_in_every_command(flm: FlmOnPath, arguments: tuple[str, ...]) -> None:
    flm.set(version="1.0.4")
    words = " ".join(arguments).replace("=", " ").split()
    plan = await planned(flm, spec(extra_args=arguments))
    assert list(plan.argv[-len(words) :]) == words
    cause, message = await refusal(flm, spec("qwen3:8b", extra_args=arguments))
    assert cause == "no-model"
    assert f"run: flm pull qwen3:8b {' '.join(words)}" in message


@pytest.mark.parametrize("arguments", [("--hf", "a b"), ("--hf-branch", "--x"), ("--modelscope", "yes"), ("--hf",)])
async def test_a_registry_that_is_none_is_refused(flm: FlmOnPath, arguments: tuple[str, ...]) -> None:
    assert f"extra_args {arguments[0]}" in (await refusal(flm, spec(extra_args=arguments)))[1]
