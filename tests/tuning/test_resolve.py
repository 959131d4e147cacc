"""What rules make of a model: on known devices, beside a user's own settings, and where things do not go together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from accelerd.config.model import ModelSpec, Origin, SetBy
from accelerd.estimate.gguf import Header
from accelerd.tuning.resolve import holds, situation, tune
from accelerd.tuning.rules import TuningRule, packaged
from tests.tuning.machine import CORES, CPU, DENSE, GEFORCE, GIB, MOE, RADEON, STRIX_HALO, build, changes, own, tuned

ALWAYS = {"mmap": False, "flash_attention": "on", "gpu_layers": "all", "cache_type_k": "q8_0", "cache_type_v": "q8_0"}
DEEPSEEK = Header(3, 1, {"general.architecture": "deepseek2", "deepseek2.expert_count": 64})
HIPBLASLT = {"env.ROCBLAS_USE_HIPBLASLT": "1"}


def rule(name: str, when: dict[str, Any] | None = None, **sets: Any) -> TuningRule:
    origin = Origin(f"tuning rule {name}", "tuning.toml", 1, SetBy.RULE)
    return TuningRule(name, when or {}, sets, "a book", "so it is", origin)


@pytest.mark.parametrize(
    ("backend", "header", "expected"),
    [
        ("radv", DENSE, {"batch": 2048, "ubatch": 256}),
        ("radv", MOE, {"batch": 2048, "ubatch": 1024}),
        ("radv", DEEPSEEK, {"batch": 2048, "ubatch": 256}),
        ("radv", Header(3, 1, {"general.architecture": "qwen3next", "qwen3next.expert_count": 512}),
         {"batch": 2048, "ubatch": 512}),
        ("radv", None, {}),
        ("amdvlk", DENSE, {"batch": 2048, "ubatch": 512}),
        ("rocm", DENSE, {"batch": 2048, "ubatch": 512, **HIPBLASLT}),
        ("rocm", MOE, {"batch": 2048, "ubatch": 2048, **HIPBLASLT}),
        ("rocm", DEEPSEEK, {"batch": 2048, "ubatch": 2048, **HIPBLASLT}),
        ("rocm", None, HIPBLASLT),
        ("", DENSE, {}),
    ],
)  # fmt: skip
def test_strix_halo(backend: str, header: Header | None, expected: dict[str, Any]) -> None:
    result = tuned(backend=backend, header=header)
    assert changes(result) == {**ALWAYS, **expected}
    assert result.warnings == ()
    assert all(one.reason and one.source and not one.why_not for one in result.advice)


@pytest.mark.parametrize(
    ("image", "header", "ubatch"),
    [
        ("docker.io/kyuz0/amd-strix-halo-toolboxes:vulkan-radv", MOE, 1024),
        ("docker.io/kyuz0/amd-strix-halo-toolboxes:vulkan-radv-performance", MOE, 2048),
        ("docker.io/kyuz0/amd-strix-halo-toolboxes:vulkan-radv-performance", DEEPSEEK, 2048),
        ("docker.io/kyuz0/amd-strix-halo-toolboxes:vulkan-radv-performance", DENSE, 256),
        ("", DEEPSEEK, 256),
    ],
)
def test_an_image_with_another_driver_has_values_of_its_own(image: str, header: Header, ubatch: int) -> None:
    here = situation(ModelSpec("m"), STRIX_HALO, replace(build("radv"), image=image), header, GIB)
    spec = tune(packaged(), ModelSpec("m"), here, CORES).spec
    assert (spec.batch, spec.ubatch) == (2048, ubatch)


def test_what_tune_has_measured_on_this_machine_wins_over_every_rule() -> None:
    """`accelctl tune` writes settings, into a drop-in of its own."""
    written = own(layer="model", file="accelerd.toml.d/zz-tune-qwen.toml")
    measured = {"batch": 4096, "ubatch": 64, "flash_attention": "off", "cache_type_k": "f16", "cache_type_v": "f16"}
    spec = ModelSpec("qwen", path="/m", origins=dict.fromkeys(measured, written), **measured)
    for backend in ("radv", "amdvlk", "rocm"):
        for header in (DENSE, MOE, DEEPSEEK):
            result = tuned(spec, backend=backend, header=header)
            assert {key: getattr(result.spec, key) for key in measured} == measured


def test_an_embedding_model_takes_its_input_in_one_batch() -> None:
    assert changes(tuned(embeddings=True)) == {"mmap": False, "flash_attention": "on", "gpu_layers": "all"}


@pytest.mark.parametrize("device", [RADEON, GEFORCE, None, replace(STRIX_HALO, gfx=None)])
def test_a_device_that_no_rule_knows_is_left_alone(device: Any) -> None:
    assert changes(tuned(device=device)) == {}


def test_a_large_model_with_rocm_is_not_mapped() -> None:
    assert changes(tuned(device=RADEON, backend="rocm", size=19 * GIB)) == {"mmap": False}
    assert changes(tuned(device=RADEON, backend="rocm", size=18 * GIB)) == {}


def test_the_processor_gets_a_thread_a_core_and_nothing_else() -> None:
    assert changes(tuned(device=CPU, backend="cpu")) == {"threads": CORES}
    assert changes(tuned(device=CPU, backend="cpu", threads=1)) == {}


# --- who wins ---


@pytest.mark.parametrize("layer", ["model", "profile big", "defaults"])
def test_a_users_own_setting_wins_in_every_layer_and_is_marked(layer: str) -> None:
    spec = ModelSpec("qwen", path="/m", mmap=True, ubatch=128, origins={"mmap": own(layer=layer), "ubatch": own(9)})
    result = tuned(spec)
    assert (result.spec.mmap, result.spec.ubatch, result.spec.batch) == (True, 128, 2048)
    assert result.spec.origin("mmap") == own(layer=layer)
    notes = {one.setting: one.note for one in result.advice if one.why_not}
    assert notes["mmap"].startswith("your own setting; tuning rule strix-halo-mmap (rules.toml:")
    assert "recommends mmap = false: a mapped file makes" in notes["mmap"]
    assert set(notes) == {"mmap", "ubatch"}


def test_a_user_who_says_the_same_is_not_told() -> None:
    spec = ModelSpec("qwen", path="/m", mmap=False, origins={"mmap": own()})
    result = tuned(spec)
    assert not [one for one in result.advice if one.setting == "mmap"]
    assert result.spec.origin("mmap") == own()


def test_an_image_wins_over_a_rule_and_a_user_over_both() -> None:
    image = Origin("image docker.io/somebody/llama:vulkan-radv", by=SetBy.IMAGE)
    result = tuned(ModelSpec("qwen", path="/m", flash_attention="off", origins={"flash_attention": image}))
    assert result.spec.flash_attention == "off"
    (note,) = [one.note for one in result.advice if one.setting == "flash_attention"]
    assert note.startswith("image docker.io/somebody/llama:vulkan-radv says so; tuning rule strix-halo-flash-attention")


def test_an_argument_of_the_users_own_is_a_setting_too() -> None:
    spec = ModelSpec("qwen", path="/m", extra_args=("-ub", "64", "--no-mmap", "-fa=off", "-ctk", "q4_0"))
    result = tuned(spec)
    assert changes(result) == {"gpu_layers": "all", "batch": 2048}
    notes = [one.note for one in result.advice if one.setting == "extra_args"]
    assert any(note.startswith("-ub is your own; ") and "ubatch = 256" in note for note in notes)
    assert [warning for warning in result.warnings if "kv_cache_type.v = q8_0 needs flash attention" in warning]


def test_a_variable_of_the_users_own_wins() -> None:
    spec = ModelSpec("qwen", path="/m", env=(("OTHER", "x"), ("ROCBLAS_USE_HIPBLASLT", "0")))
    result = tuned(spec, backend="rocm")
    assert dict(result.spec.env) == {"OTHER": "x", "ROCBLAS_USE_HIPBLASLT": "0"}
    (note,) = [one.note for one in result.advice if one.setting.startswith("env.")]
    assert note.startswith("your own setting; ")
    added = tuned(ModelSpec("qwen", path="/m", env=(("Z", "x"),)), backend="rocm").spec
    assert dict(added.env) == {"Z": "x", "ROCBLAS_USE_HIPBLASLT": "1"}


def test_a_later_rule_wins_setting_by_setting() -> None:
    rules = (rule("one", batch=1024, mmap=False), rule("two", batch=4096))
    result = tuned(rules=rules)
    assert changes(result) == {"batch": 4096, "mmap": False}
    assert {one.setting: one.rule.layer for one in result.advice} == {
        "batch": "tuning rule two", "mmap": "tuning rule one",
    }  # fmt: skip


def test_rules_leave_what_a_launch_depends_on_to_the_configuration() -> None:
    """A model is not restarted because rules changed: its own settings are what it is compared by."""
    spec = ModelSpec("qwen", path="/m")
    before = spec.launch_key()
    assert tuned(spec).spec.launch_key() != before
    assert spec.launch_key() == before


# --- what does not go together ---


@pytest.mark.parametrize(
    ("settings", "left_out", "words"),
    [
        (
            {"flash_attention": "off"},
            {"cache_type_v", "cache_type_k"},
            "needs flash attention, which is off (model (acc",
        ),
        ({"flash_attention": "auto"}, {"cache_type_v", "cache_type_k"}, "needs flash attention, which is auto"),
        ({"batch": 128}, {"ubatch"}, "ubatch = 256 does not go with batch = 128 (model (accelerd.toml:5))"),
        ({"ubatch": 4096}, {"batch"}, "batch = 2048 does not go with ubatch = 4096"),
        ({"cache_type_k": "f16"}, {"cache_type_v"}, "the other half of the KV cache is f16"),
        ({"cache_type_v": "q4_0"}, {"cache_type_k"}, "the other half of the KV cache is q4_0"),
    ],
)
def test_what_does_not_go_with_a_users_setting_is_left_out(
    settings: dict[str, Any], left_out: set[str], words: str
) -> None:
    result = tuned(ModelSpec("qwen", path="/m", **settings, origins={key: own() for key in settings}))
    for key, value in settings.items():
        assert getattr(result.spec, key) == value
    assert not left_out & set(changes(result))
    assert any(words in warning for warning in result.warnings), result.warnings
    assert len(result.warnings) == len(left_out)


def test_rules_that_contradict_each_other_do_no_harm() -> None:
    result = tuned(rules=(rule("small", batch=128), rule("large", ubatch=512), rule("v", cache_type_v="q8_0")))
    assert changes(result) == {"batch": 128}
    assert len(result.warnings) == 2


# --- conditions ---


@pytest.mark.parametrize(
    ("when", "expected"),
    [
        ({}, True),
        ({"device": "gpu"}, True), ({"device": "cpu"}, False),
        ({"vendor": "amd"}, True), ({"vendor": "nvidia"}, False),
        ({"gfx": "gfx1151"}, True), ({"gfx": "gfx115?"}, True), ({"gfx": ("gfx9*", "gfx11*")}, True),
        ({"gfx": "gfx11"}, False),
        ({"driver": "amdgpu"}, True), ({"apu": True}, True), ({"apu": False}, False), ({"unified": True}, True),
        ({"engine": "llama-*"}, True), ({"engine": "vllm"}, False),
        ({"backend": ("radv", "rocm")}, True), ({"backend": "rocm"}, False),
        ({"option": "--a"}, True), ({"option": ("--a", "--b")}, True), ({"option": ("--a", "--c")}, False),
        ({"architecture": "qwen*"}, True), ({"architecture": "llama"}, False),
        ({"moe": False}, True), ({"moe": True}, False),
        ({"task": "generate"}, True), ({"task": "rerank"}, False),
        ({"min_size": 5}, True), ({"min_size": 6}, False), ({"max_size": 5}, True), ({"max_size": 4}, False),
        ({"device": "gpu", "moe": True}, False),
    ],
)  # fmt: skip
def test_conditions(when: dict[str, Any], expected: bool) -> None:
    here = situation(ModelSpec("m"), STRIX_HALO, build("radv", "--a", "--b"), DENSE, 5)
    assert holds(when, here) is expected


@pytest.mark.parametrize(
    "when",
    [{"gfx": "*"}, {"apu": False}, {"apu": True}, {"backend": "cpu"}, {"moe": False}, {"min_size": 0},
     {"architecture": "*"}, {"device": "gpu"}],
)  # fmt: skip
def test_what_is_not_known_does_not_hold(when: dict[str, Any]) -> None:
    assert not holds(when, situation(ModelSpec("m"), None, build(""), None, None))


def test_the_path_of_the_rules_is_in_the_package() -> None:
    assert (Path(__file__).parents[2] / "accelerd" / "tuning" / "rules.toml").is_file()
