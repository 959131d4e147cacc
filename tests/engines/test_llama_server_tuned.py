"""What rules advise on the command line: as the installed build says it, with its reason, and never in the way."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from accelerd.config.model import ModelSpec, Origin, SetBy
from accelerd.engines.base import LaunchPlan, TunedModel
from accelerd.engines.llama_server import engine as engine_module
from accelerd.engines.llama_server import output
from accelerd.engines.llama_server.argv import CommandLine, build
from accelerd.tuning.tuner import RuleTuner
from tests.engines.helps import ANCIENT, OLDER, THIS_YEAR, program, runs
from tests.engines.test_llama_server_argv import NEW, OLD, TCP, VERY_OLD, features_of
from tests.engines.test_llama_server_inside import Container
from tests.engines.test_llama_server_plan import engine
from tests.memory.gguf_maker import string, write
from tests.tuning.machine import CPU, RADEON, STRIX_HALO, own, tuned

DEVICES = "--list-devices                          print list of available devices and exit\n"
STRIX_LIST = """\
ggml_vulkan: Found 1 Vulkan devices:
ggml_vulkan: 0 = AMD Radeon 8060S Graphics (RADV GFX1151) (radv) | uma: 1 | fp16: 1 | matrix cores: KHR_coopmat
Available devices:
  Vulkan0: AMD Radeon 8060S Graphics (RADV GFX1151) (126976 MiB, 120000 MiB free)
"""


def line(features: Any, result: TunedModel) -> CommandLine:
    return build(replace(result.spec, name="m", context=4096), features, TCP, result.advice)


# --- the command line ---


@pytest.mark.parametrize(
    ("features", "expected"),
    [
        (NEW, ["-lm none", "-fa on", "-ngl all", "-b 2048", "-ub 256", "--cache-type-k q8_0", "--cache-type-v q8_0"]),
        (OLD, ["--no-mmap", "-fa", "-ngl 999", "-b 2048", "-ub 256", "--cache-type-k q8_0", "--cache-type-v q8_0"]),
    ],
)
def test_strix_halo_in_the_words_of_two_builds(features: Any, expected: list[str]) -> None:
    made = line(features, tuned())
    by_rule = [flag for flag in made.flags if flag.source.startswith("tuning rule strix-halo-")]
    assert sorted(flag.text for flag in by_rule) == sorted(expected)
    assert all("(rules.toml:" in flag.source and "https://" in flag.note for flag in by_rule)
    assert made.warnings == []
    mmap = next(flag for flag in by_rule if "strix-halo-mmap" in flag.source)
    assert mmap.reason == (
        "the weights are read into memory: a mapped file makes unified memory crawl, or the driver crash"
    )


def test_a_build_that_cannot_be_told_starts_all_the_same() -> None:
    made = line(features_of(ANCIENT.replace("path\n", "path\n  --api-key KEY  (env: LLAMA_API_KEY)\n", 1)), tuned())
    assert "--no-mmap" in made.argv
    assert made.refusals == []
    for words in ("gpu_layers: it knows no", "flash_attention: it knows no", "batch: it knows no", "cache_type_k"):
        assert any(w.startswith("left out what tuning rule strix-halo-") and words in w for w in made.warnings), words
    assert any("cache_type_v = q8_0 needs flash attention, which it does not know" in w for w in made.warnings)


def test_a_type_that_a_build_does_not_know_is_left_out() -> None:
    features = features_of(THIS_YEAR.replace("q8_0, ", ""))
    made = line(features, tuned())
    assert "--cache-type-k" not in made.argv
    assert any("cache_type_k = 'q8_0': it takes" in warning for warning in made.warnings)


def test_a_persons_wish_still_stops_the_start() -> None:
    result = tuned(ModelSpec("qwen", path="/m", gpu_layers=3, origins={"gpu_layers": own()}))
    with pytest.raises(Exception, match="gpu_layers: it knows no"):
        line(VERY_OLD, result)


def test_a_setting_of_ones_own_says_what_the_rule_would_say() -> None:
    spec = ModelSpec("qwen", path="/m", mmap=True, extra_args=("-ub", "64"), origins={
        "mmap": own(12), "extra_args": own(14),
    })  # fmt: skip
    made = line(NEW, tuned(spec))
    flags = {flag.text: flag for flag in made.flags}
    assert flags["-lm mmap"].source == "model (accelerd.toml:12)"
    assert flags["-lm mmap"].reason == "the file is mapped into memory"
    assert flags["-lm mmap"].note.startswith("your own setting; tuning rule strix-halo-mmap (rules.toml:")
    assert flags["-ub 64"].note.startswith("-ub is your own; tuning rule strix-halo-radv-dense-batch")


# --- the whole plan ---


def machine(tmp_path: Path, text: str, listing: str = "", devices: Any = (STRIX_HALO, CPU)) -> Any:
    """An engine with a program that lists devices, and rules for this machine."""
    folder = tmp_path / "bin"
    folder.mkdir(exist_ok=True)
    (folder / "listing").write_text(listing)
    says = f'[ "$1" = --list-devices ] && {{ echo x >> "$0.listed"; cat {shlex.quote(str(folder))}/listing; exit; }}'
    binary = program(folder, text, extra=says)
    return engine(binary, tuner=RuleTuner(tmp_path / "accelerd.toml", lambda: devices))


def plan(server: Any, spec: ModelSpec, tmp_path: Path) -> LaunchPlan:
    return asyncio.run(server.plan(spec, tmp_path))


def qwen(tmp_path: Path, **settings: Any) -> ModelSpec:
    pairs = {"general.architecture": string("qwen3")}
    file = write(tmp_path / "qwen.gguf", pairs, {"token_embd.weight": ((8,), 0)})
    return ModelSpec("qwen", path=str(file), context=4096, **settings)


def shown(made: LaunchPlan) -> dict[str, str]:
    return {flag.text: flag.source for flag in made.flags if flag.source.startswith("tuning rule")}


def test_a_plan_on_strix_halo(tmp_path: Path) -> None:
    server = machine(tmp_path, THIS_YEAR + DEVICES, STRIX_LIST)
    made = plan(server, qwen(tmp_path), tmp_path)
    assert set(shown(made)) == {
        "-lm none", "-fa on", "-ngl all", "-b 2048", "-ub 256", "--cache-type-k q8_0", "--cache-type-v q8_0",
    }  # fmt: skip
    assert made.warnings == ()


def test_the_same_model_with_rocm_gets_its_variables_shown(tmp_path: Path) -> None:
    listing = "Available devices:\n  ROCm0: AMD Radeon 8060S Graphics (126976 MiB, 1 MiB free)\n"
    made = plan(machine(tmp_path, THIS_YEAR + DEVICES, listing), qwen(tmp_path), tmp_path)
    assert {"-b 2048", "-ub 512", "env ROCBLAS_USE_HIPBLASLT=1"} < set(shown(made))
    assert made.env["ROCBLAS_USE_HIPBLASLT"] == "1"
    mine = plan(
        machine(tmp_path, THIS_YEAR + DEVICES, listing),
        qwen(tmp_path, env=(("ROCBLAS_USE_HIPBLASLT", "0"),), origins={"env.ROCBLAS_USE_HIPBLASLT": own(7)}),
        tmp_path,
    )
    (flag,) = [flag for flag in mine.flags if "HIPBLASLT" in flag.text]
    assert (flag.text, flag.source) == ("env ROCBLAS_USE_HIPBLASLT=…", "model (accelerd.toml:7)")
    assert "recommends env.ROCBLAS_USE_HIPBLASLT = 1" in flag.note


@pytest.mark.parametrize("text", [OLDER, THIS_YEAR])
def test_without_a_list_of_devices_only_what_is_sure_is_set(text: str, tmp_path: Path) -> None:
    made = plan(machine(tmp_path, text), qwen(tmp_path), tmp_path)
    assert len(shown(made)) == 5
    assert "-b" not in made.argv


def test_a_program_for_the_processor_is_tuned_for_the_processor(tmp_path: Path) -> None:
    made = plan(machine(tmp_path, THIS_YEAR + DEVICES, "Available devices:\n  (none)\n"), qwen(tmp_path), tmp_path)
    assert [text.split()[0] for text in shown(made)] == ["--threads"]
    layers = plan(machine(tmp_path, THIS_YEAR + DEVICES, STRIX_LIST), qwen(tmp_path, gpu_layers=0), tmp_path)
    assert [text.split()[0] for text in shown(layers)] == ["--threads"]
    unusable = (structs.replace(STRIX_HALO, problem="may not be opened"), CPU)
    none = plan(machine(tmp_path, THIS_YEAR + DEVICES, STRIX_LIST, unusable), qwen(tmp_path), tmp_path)
    assert [text.split()[0] for text in shown(none)] == ["--threads"]


def test_a_card_comes_before_what_is_part_of_the_processor(tmp_path: Path) -> None:
    server = machine(tmp_path, THIS_YEAR + DEVICES, STRIX_LIST, (STRIX_HALO, RADEON, CPU))
    assert shown(plan(server, qwen(tmp_path), tmp_path)) == {}


def test_devices_are_asked_for_once_and_again_for_other_drivers(tmp_path: Path) -> None:
    server = machine(tmp_path, THIS_YEAR + DEVICES, STRIX_LIST)
    for settings in ({}, {"ubatch": 64}, {"env": (("AMD_VULKAN_ICD", "RADV"),)}, {"env": (("OTHER", "1"),)}):
        plan(server, qwen(tmp_path, **settings), tmp_path)
    listed = (tmp_path / "bin" / "llama-server.listed").read_text()
    assert (len(listed.split()), runs(tmp_path / "bin" / "llama-server")) == (2, 1)


# As builds of 2026 say it: which driver a Vulkan device has stands among the debug lines alone.
DEBUG = (
    "0.00.157.255 D ggml_vulkan: Found 1 Vulkan devices:\n"
    "0.00.157.641 D ggml_vulkan: 0 = AMD Radeon 8060S Graphics (%s) | uma: 1 | fp16: 1 | warp size: 64\n"
)
NAMELESS = "Available devices:\n  Vulkan0: AMD Radeon 8060S Graphics (98304 MiB, 97000 MiB free)\n"


@pytest.mark.parametrize(
    ("driver", "rule"),
    [
        ("AMD open-source driver", "strix-halo-amdvlk-batch"),
        ("radv", "strix-halo-radv-dense-batch"),
        ("AMD proprietary driver", None),
    ],
)
def test_the_driver_of_a_vulkan_device_is_asked_for_where_the_list_does_not_say_it(
    tmp_path: Path, driver: str, rule: str | None
) -> None:
    says = f'case "$*" in *--list-devices) case $1 in -v|--verbose) printf "{DEBUG % driver}" >&2;; esac; '
    says += f'printf "{NAMELESS}"; exit;; esac'
    folder = tmp_path / "bin"
    folder.mkdir()
    verbose = "-v,    --verbose, --log-verbose          set verbosity level to infinity\n"
    binary = program(folder, THIS_YEAR + DEVICES + verbose, extra=says)
    server = engine(binary, tuner=RuleTuner(tmp_path / "accelerd.toml", lambda: [STRIX_HALO]))
    batch = {source.split()[2] for flag, source in shown(plan(server, qwen(tmp_path), tmp_path)).items()
             if flag.startswith("-ub ")}  # fmt: skip
    assert batch == ({rule} if rule else set())


def test_a_program_that_hangs_when_it_lists_devices_still_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "bin"
    folder.mkdir()
    binary = program(folder, THIS_YEAR + DEVICES, extra='[ "$1" = --list-devices ] && exec sleep 60')
    server = engine(binary, tuner=RuleTuner(tmp_path / "accelerd.toml", lambda: [STRIX_HALO]))
    monkeypatch.setattr(engine_module, "HELP_TIMEOUT", 2.0)
    assert "-ngl all" in shown(plan(server, qwen(tmp_path), tmp_path))


def test_a_header_that_cannot_be_read_costs_rules_and_not_the_start(tmp_path: Path) -> None:
    spec = qwen(tmp_path)
    Path(spec.path or "").write_bytes(b"GGUF" + b"\xff" * 60)
    made = plan(machine(tmp_path, THIS_YEAR + DEVICES, STRIX_LIST), spec, tmp_path)
    assert "-ub" not in made.argv
    assert "-lm" in made.argv


def test_a_users_rules_are_read_again_when_they_change_and_a_mistake_is_said(tmp_path: Path) -> None:
    server = machine(tmp_path, THIS_YEAR + DEVICES, STRIX_LIST)
    mine = '[rules.mine]\nset = { ubatch = 64 }\nsource = "I"\nreason = "I say so"\n'
    (tmp_path / "tuning.toml").write_text(mine)
    assert shown(plan(server, qwen(tmp_path), tmp_path))["-ub 64"] == "tuning rule mine (tuning.toml:1)"
    (tmp_path / "tuning.toml").write_text(mine.replace("64", "many"))
    made = plan(server, qwen(tmp_path), tmp_path)
    assert "-ub 256" in shown(made)
    (warning,) = made.warnings
    assert warning.startswith("your own tuning rules do not hold, there is a mistake in them: tuning.toml:2:")
    (tmp_path / "tuning.toml").unlink()
    assert plan(server, qwen(tmp_path), tmp_path).warnings == ()


def test_a_container_is_known_by_its_image_and_the_images_settings_come_first(tmp_path: Path) -> None:
    there = Container(tmp_path, THIS_YEAR + DEVICES)
    there.settings = {"flash_attention": "auto", "mmap": False}

    async def places(spec: ModelSpec) -> Any:
        return there

    server = engine("llama-server", places=places, tuner=RuleTuner(tmp_path / "accelerd.toml", lambda: [STRIX_HALO]))
    made = plan(server, qwen(tmp_path, home="toolbox", container="llama"), tmp_path)
    sources = {flag.text: flag for flag in made.flags}
    assert "-ub 256" in shown(made)  # the size and kind of the model are read on this machine
    assert sources["-fa auto"].source.startswith("image ")
    assert sources["-fa auto"].note.startswith("image docker.io/kyuz0/")
    assert sources["-lm none"].note == ""
    assert not [argv for argv in there.asked if "--list-devices" in argv]


def test_a_plan_with_its_notes_can_be_kept(tmp_path: Path) -> None:
    import msgspec

    made = plan(machine(tmp_path, THIS_YEAR + DEVICES, STRIX_LIST), qwen(tmp_path), tmp_path)
    data = msgspec.json.encode(replace(made, env={}, secret=""))
    assert msgspec.json.decode(data, type=LaunchPlan).flags == made.flags
    earlier = json.loads(data)
    for flag in earlier["flags"]:
        del flag["note"]  # written by a version that knew none
    assert msgspec.json.decode(json.dumps(earlier).encode(), type=LaunchPlan).flags[0].note == ""


# --- what computes ---


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (STRIX_LIST, "radv"),
        ("ggml_vulkan: 0 = AMD Radeon (AMD open-source driver) | uma: 1\nAvailable devices:\n  Vulkan0: AMD (1 MiB)\n",
         "amdvlk"),
        ("Available devices:\n  Vulkan0: NVIDIA GeForce (1 MiB)\n  Vulkan1: AMD (RADV NAVI31) (2 MiB)\n", "vulkan"),
        ("Available devices:\n  ROCm0: AMD (1 MiB, 1 MiB free)\n", "rocm"),
        ("ggml_cuda_init: found 1\nAvailable devices:\n  CUDA0: NVIDIA (1 MiB, 1 MiB free)\n", "cuda"),
        ("Available devices:\n  SYCL0: Intel Arc (1 MiB)\n", "sycl"),
        ("Available devices:\n  (none)\n", "cpu"),
        ("Available devices:\n", ""),
        ("Available devices:\n  Quantum0: box (1 qubit)\n", ""),
        ("error: unknown argument", ""),
        ("", ""),
    ],
)  # fmt: skip
def test_what_a_list_of_devices_tells(text: str, expected: str) -> None:
    assert output.backend_listed(text) == expected


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        ("image docker.io/kyuz0/amd-strix-halo-toolboxes:vulkan-radv", "radv"),
        ("image docker.io/kyuz0/amd-strix-halo-toolboxes:vulkan-amdvlk", "amdvlk"),
        ("image docker.io/kyuz0/amd-strix-halo-toolboxes:rocm-7.14-rocmfpx", "rocm"),
        ("image docker.io/kyuz0/amd-strix-halo-toolboxes:vulkan-rocmfpx", "vulkan"),
        ("image docker.io/kyuz0/amd-strix-halo-toolboxes:therock-nightly", "rocm"),
        ("image ghcr.io/ggml-org/llama.cpp:server-cuda12", "cuda"),
        ("image ghcr.io/ggml-org/llama.cpp:server-intel", "sycl"),
        ("image ghcr.io/ggml-org/llama.cpp:server", ""),
        ("container llama", ""),
    ],
)
def test_what_an_image_tells(image: str, expected: str) -> None:
    assert output.backend_of_image(image) == expected


def test_what_libraries_tell(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "lib").mkdir()
    binary = tmp_path / "bin" / "llama-server"
    binary.touch()
    assert output.backend_beside(str(binary)) == ""
    for name in ("libggml-base.so", "libggml-cpu-haswell.so", "libggml-vulkan.so.0"):
        (tmp_path / "lib" / name).touch()
    assert output.backend_beside(str(binary)) == "vulkan"
    os.symlink(tmp_path / "lib" / "libggml-base.so", tmp_path / "bin" / "libggml-hip.so")
    assert output.backend_beside(str(binary)) == ""  # which of the two it is, cannot be said


def test_origins_of_rules_are_told_from_a_persons() -> None:
    assert Origin("tuning rule x", "rules.toml", 3, SetBy.RULE).by_rule
    assert not own().by_rule
