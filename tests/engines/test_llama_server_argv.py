"""The command line: every setting in the words of the build, with source and reason; what it cannot say is refused."""

from __future__ import annotations

import shlex
from dataclasses import fields, replace
from typing import Any

import pytest

from accelerd.base.errors import AccelError
from accelerd.config.lora import LoraAdapter
from accelerd.config.model import LAUNCH_FIELDS, ModelSpec, Origin, Sampling
from accelerd.engines.base import Endpoint
from accelerd.engines.llama_server.argv import CACHE_MOST, build, prompt_cache
from accelerd.engines.llama_server.command_line import CommandLine
from accelerd.engines.llama_server.features import Features, parse_help
from accelerd.engines.llama_server.placement import EXPERTS
from tests.engines.helps import ANCIENT, OLDER, THIS_YEAR
from tests.fakes.fake_server_cli import FORK

UNIX = Endpoint(unix="/run/user/1000/accelerd/instances/m-1.sock")
TCP = Endpoint(port=4711)


def features_of(text: str) -> Features:
    return Features("/bin/llama", "7.7", {name: option for option in parse_help(text) for name in option.names})


NEW, OLD, VERY_OLD = features_of(THIS_YEAR), features_of(OLDER), features_of(ANCIENT)
FORKED = features_of(FORK)


def line(features: Features = NEW, endpoint: Endpoint = UNIX, **settings: Any) -> CommandLine:
    return build(ModelSpec("m", **{"path": "/m.gguf", "context": 4096, **settings}), features, endpoint)


def argv(features: Features = NEW, endpoint: Endpoint = UNIX, **settings: Any) -> str:
    return shlex.join(line(features, endpoint, **settings).argv)


def refused(features: Features = NEW, **settings: Any) -> str:
    with pytest.raises(AccelError) as caught:
        line(features, **settings)
    assert caught.value.code == "model_failed"
    assert caught.value.fields["cause"] == "refused"
    return caught.value.message


def test_the_plainest_model() -> None:
    assert argv() == (
        "/bin/llama -m /m.gguf --alias m --host /run/user/1000/accelerd/instances/m-1.sock --fit off -c 4096 -np 1"
        " --cache-ram 8192 --offline --jinja --log-colors off"
    )
    assert argv(OLD, TCP) == ("/bin/llama -m /m.gguf --alias m --host 127.0.0.1 --port 4711 -c 4096 -np 1 --jinja")


@pytest.mark.parametrize(
    ("settings", "new", "old"),
    [
        ({"context": 8192}, "-c 8192", "-c 8192"),
        ({"context": 8192, "parallel": 4}, "-c 32768 -np 4 --no-kv-unified", "-c 32768 -np 4"),
        ({"cache_type_k": "q8_0"}, "--cache-type-k q8_0", "--cache-type-k q8_0"),
        ({"cache_type_v": "q8_0"}, "--cache-type-v q8_0", "--cache-type-v q8_0"),
        ({"flash_attention": "on"}, "-fa on", "-fa"),
        ({"flash_attention": "off"}, "-fa off", ""),
        ({"flash_attention": "auto"}, "-fa auto", ""),
        ({"mmap": False}, "-lm none", "--no-mmap"),
        ({"mmap": True}, "-lm mmap", ""),
        ({"gpu_layers": 12}, "-ngl 12", "-ngl 12"),
        ({"gpu_layers": "all"}, "-ngl all", "-ngl 999"),
        ({"gpu_layers": "auto"}, "-ngl auto", ""),
        ({"batch": 512}, "-b 512", "-b 512"),
        ({"ubatch": 64}, "-ub 64", "-ub 64"),
        ({"threads": 3}, "--threads 3", "--threads 3"),
        ({"draft_model": "/d.gguf"}, "--spec-draft-model /d.gguf --spec-type draft-simple", "--model-draft /d.gguf"),
        ({"mmproj": "/p.gguf"}, "--mmproj /p.gguf", "--mmproj /p.gguf"),
        ({"embeddings": True}, "-b 4096 -ub 4096 --embeddings", "-b 4096 -ub 4096 --embeddings"),
        ({"embeddings": True, "context": 65536}, "-b 8192 -ub 8192 --embeddings", "-ub 8192 --embeddings"),
        ({"embeddings": True, "ubatch": 99}, "-ub 99 --embeddings", "-ub 99 --embeddings"),
        ({"embeddings": True, "batch": 9000}, "-b 9000 -ub 4096", "-b 9000 -ub 4096"),
        ({"sampling": Sampling(temperature=0.0)}, "--temp 0.0", "--temp 0.0"),
        ({"sampling": Sampling(top_p=0.5, top_k=4)}, "--top-p 0.5 --top-k 4", "--top-p 0.5 --top-k 4"),
        ({"sampling": Sampling(seed=-1)}, "--seed -1", "--seed -1"),
        ({"sampling": Sampling(repeat_penalty=1.1)}, "--repeat-penalty 1.1", "--repeat-penalty 1.1"),
        ({"sampling": Sampling(max_tokens=9)}, "--predict 9", "--predict 9"),
        ({"extra_args": ("--metrics",)}, "--log-colors off --metrics", "--metrics"),
        ({"split_mode": "row"}, "--split-mode row", "--split-mode row"),
        (
            {"override_tensor": ("a.b=CPU", "c=CUDA1")},
            "--override-tensor a.b=CPU,c=CUDA1",
            "--override-tensor a.b=CPU,c=CUDA1",
        ),
        ({"cpu_moe": True}, "--cpu-moe", rf"--override-tensor '{EXPERTS}=CPU'"),
        ({"n_cpu_moe": 2}, "--n-cpu-moe 2", rf"--override-tensor 'blk\.(0|1){EXPERTS}=CPU'"),
        (
            {"n_cpu_ffn": 1, "override_tensor": ("x=CPU",)},
            "--override-tensor x=CPU --n-cpu-ffn 1",
            r"--override-tensor 'x=CPU,blk\.(0)\.ffn_(up|down|gate)\.=CPU'",
        ),
        ({"lora": (LoraAdapter("/a.gguf"),)}, "--lora /a.gguf", "--lora /a.gguf"),
        (
            {"lora": (LoraAdapter("/a:1.gguf"), LoraAdapter("/b,c.gguf"))},
            """--lora '/a:1.gguf,"/b,c.gguf"'""",
            "--lora /a:1.gguf --lora /b,c.gguf",
        ),
        (
            {"lora": (LoraAdapter("/a.gguf"), LoraAdapter('/b,"c.gguf', 0.25))},
            """--lora-scaled '/a.gguf:1,"/b,""c.gguf:0.25"'""",
            """--lora-scaled /a.gguf 1 --lora-scaled '/b,"c.gguf' 0.25""",
        ),
        ({"draft_max": 5, "draft_min": 0}, "--spec-draft-n-max 5 --spec-draft-n-min 0", "--draft-max 5 --draft-min 0"),
        ({"draft_gpu_layers": 3}, "--spec-draft-ngl 3", "--gpu-layers-draft 3"),
        ({"draft_gpu_layers": "all"}, "--spec-draft-ngl all", "--gpu-layers-draft 999"),
    ],
)
def test_settings_in_two_builds(settings: dict[str, Any], new: str, old: str) -> None:
    assert new in argv(NEW, **settings)
    assert old in argv(OLD, **settings)
    if not old:
        assert len(line(OLD, **settings).argv) == len(line(OLD).argv)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"rerank": True}, "-b 4096 -ub 4096 --rerank"),
        ({"chat_template_file": "/t.jinja"}, "--chat-template-file /t.jinja"),
        ({"sampling": Sampling(min_p=0.1)}, "--min-p 0.1"),
        ({"tensor_split": (3.0, 0.5)}, "--tensor-split 3,0.5"),
        ({"fit": True, "fit_target": (1 << 30, 3 << 19)}, "--fit on --fit-target 1024,2 -c"),
        ({"fit": True, "fit_ctx": 999, "context": None}, "--fit on --fit-ctx 999"),
        ({"mmproj": "/p", "mmproj_offload": False}, "--no-mmproj-offload"),
        ({"spec_type": ("draft-mtp", "ngram-simple"), "draft_p_min": 0.5},
         "--spec-draft-p-min 0.5 --spec-type draft-mtp,ngram-simple"),
        ({"draft_model": "/d", "spec_type": ("ngram-simple",)}, "--spec-draft-model /d --spec-type ngram-simple"),
        ({"draft_cache_type_k": "q8_0", "draft_cache_type_v": "q4_0"},
         "--spec-draft-type-k q8_0 --spec-draft-type-v q4_0"),
        ({"rope_scaling": "yarn", "rope_scale": 4.0, "yarn_orig_ctx": 32768},
         "--rope-scaling yarn --rope-scale 4.0 --yarn-orig-ctx 32768"),
        ({"sampling": Sampling(presence_penalty=0.2, frequency_penalty=0.3)},
         "--presence-penalty 0.2 --frequency-penalty 0.3"),
    ],
)  # fmt: skip
def test_settings_of_this_years_build(settings: dict[str, Any], expected: str) -> None:
    assert expected in argv(**settings)


def test_a_gpu_is_named_as_the_program_names_it() -> None:
    names = {"0000:03:00.0": "CUDA1", "0000:41:00.0": "CUDA0"}
    spec = ModelSpec("m", path="/m.gguf", main_gpu="0000:03:00.0", mmproj_device="0000:41:00.0")
    said = shlex.join(build(spec, NEW, UNIX, (), ("CUDA1",), names=names).argv)
    assert "--device CUDA1 --main-gpu 0 --mmproj-device CUDA0" in said
    assert "--device CUDA0,CUDA1 --main-gpu 1" in shlex.join(
        build(spec, NEW, UNIX, (), ("CUDA0", "CUDA1"), names=names).argv
    )
    only = shlex.join(build(spec, NEW, UNIX).argv)  # a program that has one device only
    assert "--main-gpu 0" in only
    assert "--mmproj-device" not in only
    with pytest.raises(AccelError, match="main_gpu: cannot tell which of its devices is 0000:03:00"):
        build(spec, NEW, UNIX, names={"0000:41:00.0": "CUDA0"})


def test_what_a_build_cannot_place_is_refused() -> None:
    assert "cpu_moe: it knows no --cpu-moe" in refused(
        features_of(OLDER.replace("-ot,   --override-tensor", "-x")), cpu_moe=True
    )
    assert "spec_type = 'draft-eagle3': it takes none, draft-simple" in refused(spec_type=("draft-eagle3",))
    assert "split_mode = 'tensor': it takes none, layer, row" in refused(split_mode="tensor")
    assert "fit: it knows no --fit" in refused(OLD, fit=True)
    assert "rope_scale: it knows no --rope-scale" in refused(OLD, rope_scale=2.0)


def test_what_extra_arguments_overrule_is_named() -> None:
    built = line(gpu_layers="all", extra_args=("-ngl", "5", "--fit", "on", "--metrics"))
    assert "extra_args -ngl overrules -ngl all (built-in)" in built.warnings
    assert "extra_args --fit overrules --fit off (built-in)" in built.warnings
    notes = {flag.text: flag.note for flag in built.flags}
    assert notes["-ngl all"] == "overruled by -ngl of extra_args"
    assert notes["-m /m.gguf"] == ""
    (only,) = line(extra_args=("--control-vector-layer-range", "1", "2")).warnings or ("",)
    assert only == ""


def test_memory_that_nobody_can_forecast_is_a_warning() -> None:
    text = features_of(THIS_YEAR + "\n--rpc SERVERS                           other machines\n")
    (warning,) = line(text, extra_args=("--rpc", "box:1")).warnings
    assert warning.startswith("extra_args --rpc: what this takes of memory is not in the forecast")


def test_no_model_may_use_the_network() -> None:
    assert "--offline" in line().argv
    assert "--offline" in line(model="org/model").argv
    assert not {"-hf", "--hf-repo"} & set(line(model="org/model").argv)


def test_every_launch_setting_changes_the_plan() -> None:
    """A launch setting that nobody reads would be a lie in the configuration."""
    other: dict[str, Any] = {
        "name": "other", "path": "/other.gguf", "context": 99, "parallel": 2, "cache_type_k": "q8_0",
        "cache_type_v": "q8_0", "flash_attention": "on", "mmap": True, "gpu_layers": 1, "batch": 1, "ubatch": 1,
        "threads": 1, "mmproj": "/p", "chat_template_file": "/t", "embeddings": True, "rerank": True,
        "draft_model": "/d.gguf", "extra_args": ("-x",), "prompt_cache": 1 << 20,
        "split_mode": "none", "main_gpu": "0000:03:00.0",
        "tensor_split": (1.0,), "override_tensor": ("a=CPU",), "cpu_moe": True, "n_cpu_moe": 1, "n_cpu_ffn": 1,
        "fit": True, "lora": (LoraAdapter("/a.gguf"),), "mmproj_offload": True, "spec_type": ("draft-mtp",),
        "draft_max": 1, "draft_min": 1, "draft_p_min": 0.5, "draft_gpu_layers": 1, "draft_cache_type_k": "q8_0",
        "draft_cache_type_v": "q8_0", "rope_scaling": "none", "rope_scale": 1.0, "rope_freq_base": 1.0,
        "rope_freq_scale": 1.0, "yarn_orig_ctx": 1, "yarn_ext_factor": 1.0, "yarn_attn_factor": 1.0,
        "yarn_beta_slow": 1.0, "yarn_beta_fast": 1.0,
    }  # fmt: skip
    elsewhere = {
        "engine", "model", "binary", "env", "sampling", "gpus", "transcription", "mmproj_device", "command", "remote",
        "capabilities", "vllm",
    }  # fmt: skip
    with_fit = {"fit_target": (1,), "fit_ctx": 1}
    homes = {"home", "container", "image", "devices", "mounts", "survive", "memory_max", "memory_high", "cpu_weight",
             "nice", "io_class", "oom_score_adjust", "tasks_max"}  # fmt: skip
    assert {*other, *elsewhere, *homes, *with_fit} == set(LAUNCH_FIELDS)
    base = ModelSpec("m", path="/m.gguf", context=4096)
    plain = build(base, NEW, UNIX).argv
    for key, value in other.items():
        assert build(replace(base, **{key: value}), NEW, UNIX).argv != plain, key
    fits = replace(base, fit=True)
    for key, value in with_fit.items():
        assert build(replace(fits, **{key: value}), NEW, UNIX).argv != build(fits, NEW, UNIX).argv, key
    for item in fields(Sampling):
        assert build(replace(base, sampling=Sampling(**{item.name: 1})), NEW, UNIX).argv != plain, item.name


def test_context_that_is_not_set_is_warned_about() -> None:
    built = line(context=None)
    assert "-c" not in built.argv
    assert any('context = "model"' in warning for warning in built.warnings)
    assert not line().warnings


def test_flags_carry_source_and_reason_and_make_up_the_whole_line() -> None:
    origins = {
        "context": Origin("model", "/c/accelerd.toml", 12),
        "mmap": Origin("profile big"),
        "sampling.temperature": Origin("defaults", "/c/accelerd.toml", 3),
    }
    built = line(mmap=False, sampling=Sampling(temperature=0.5), origins=origins)
    sources = {flag.text: flag.source for flag in built.flags}
    assert sources["-c 4096"] == "model (/c/accelerd.toml:12)"
    assert sources["-lm none"] == "profile big"
    assert sources["--temp 0.5"] == "defaults (/c/accelerd.toml:3)"
    assert sources["--fit off"] == "built-in"
    assert shlex.split(" ".join(flag.text for flag in built.flags)) == built.argv[1:]
    assert all(flag.reason for flag in built.flags)


def test_a_fork_is_told_in_its_own_words() -> None:
    """Names that differ, a switch where others take a value, a key from a file, types of the cache of its own."""
    model = ModelSpec("m", path="/m.gguf", context=4096, cache_type_k="q8_KV", flash_attention="on", embeddings=True)
    built = build(model, FORKED, TCP, key_file="/run/1.key")
    assert shlex.join(built.argv) == (
        "/bin/llama -m /m.gguf --host 127.0.0.1 --port 4711 --api-key-file /run/1.key -c 4096 -np 1"
        " --cache-type-k q8_KV --ctx-checkpoints 8 -fa on --cache-ram 0 -b 4096 -ub 4096 --embeddings --jinja"
    )
    assert built.key_file == "/run/1.key"
    assert "flash_attention = 'auto': it takes" not in str(built.warnings)
    with pytest.raises(AccelError, match="flash_attention = 'most': it takes auto, on, off, 0, 1"):
        build(ModelSpec("m", path="/m.gguf", flash_attention="most"), FORKED, TCP)  # type: ignore[arg-type]


def test_where_the_environment_takes_the_key_no_file_is_written() -> None:
    built = build(ModelSpec("m", path="/m.gguf"), NEW, TCP, key_file="/run/1.key")
    assert built.key_file == ""
    assert "/run/1.key" not in built.argv


@pytest.mark.parametrize(
    ("features", "settings", "named"),
    [
        (NEW, {"cache_type_k": "q3_x"}, "cache_type_k = 'q3_x': it takes f32, f16, bf16, q8_0, q4_0, q5_1"),
        (NEW, {"embeddings": True, "rerank": True}, "one or the other"),
        (OLD, {"rerank": True}, "rerank: it knows no --rerank or --reranking"),
        (OLD, {"sampling": Sampling(min_p=0.1)}, "sampling.min_p: it knows no --min-p"),
        (OLD, {"chat_template_file": "/t"}, "chat_template_file"),
        (VERY_OLD, {}, "neither from the environment (LLAMA_API_KEY) nor from a file"),
        (VERY_OLD, {"gpu_layers": 3}, "gpu_layers: it knows no"),
        (VERY_OLD, {"flash_attention": "on"}, "flash_attention: it knows no"),
    ],
)
def test_what_a_build_cannot_say_is_refused(features: Features, settings: dict[str, Any], named: str) -> None:
    message = refused(features, **settings)
    assert named in message
    assert message.startswith("cannot start m as configured with /bin/llama (7.7): ")


def test_all_refusals_come_at_once() -> None:
    message = refused(OLD, rerank=True, chat_template_file="/t", extra_args=("--port", "1"))
    assert message.count(";") == 2


@pytest.mark.parametrize(
    ("settings", "warning"),
    [
        ({"flash_attention": "auto"}, "flash_attention = auto"),
        ({"gpu_layers": "auto"}, "gpu_layers = auto"),
        ({"mmap": True}, "mmap = true"),
        ({"extra_args": ("--bogus",)}, "--bogus is not in the help"),
        ({"cache_type_v": "q8_0", "flash_attention": "off"}, "needs flash attention"),
    ],
)
def test_what_is_harmless_is_a_warning(settings: dict[str, Any], warning: str) -> None:
    assert warning in " ".join(line(OLD, **settings).warnings)


@pytest.mark.parametrize(
    "arguments",
    [
        ("--host", "0.0.0.0"), ("--port", "80"), ("--api-key", "k"), ("--api_key", "k"), ("--api-key=k",),
        ("--api-key-file", "/f"), ("-hft", "t"), ("--hf_token", "t"), ("--model", "/x"), ("-m", "/x"), ("-a", "x"),
        ("-hf", "x/y"), ("--tools", "all"), ("--tools_runtime", "docker:x"), ("--agent",), ("--mcp-servers-json", "{}"),
        ("--models-dir", "/"), ("--api-prefix", "/x"), ("--log-prompts-dir", "/x"), ("--draft-max", "3"),
    ],
)  # fmt: skip
def test_arguments_that_accelerd_owns_are_refused(arguments: tuple[str, ...]) -> None:
    assert "extra_args -" in refused(extra_args=arguments)


@pytest.mark.parametrize("variable", ["LLAMA_ARG_HOST", "LLAMA_ARG_API_KEY_FILE", "LLAMA_ARG_TOOLS", "LLAMA_API_KEY"])
def test_environment_that_accelerd_owns_is_refused(variable: str) -> None:
    assert f"env {variable}: " in refused(env=((variable, "x"),))


def test_environment_that_is_the_users_is_not_refused() -> None:
    assert line(env=(("HF_TOKEN", "t"), ("LD_LIBRARY_PATH", "/opt"), ("LLAMA_ARG_THREADS", "3"))).refusals == []


@pytest.mark.parametrize("value", ["-x", "--host 0.0.0.0", "a b", "$(id)", "a;b", "'", '"', "\n", "{port}", "*", "ü"])
def test_a_value_is_one_token_whatever_is_in_it(value: str) -> None:
    def built_with(text: str) -> list[str]:
        model = ModelSpec(text, path=f"/models/{text}", context=1, mmproj=text, chat_template_file=text,
                          extra_args=("--metrics", text))  # fmt: skip
        return build(model, NEW, UNIX).argv

    tokens = built_with(value)
    for name, expected in (("-m", f"/models/{value}"), ("--alias", value), ("--mmproj", value),
                           ("--chat-template-file", value), ("--metrics", value)):  # fmt: skip
        assert tokens[tokens.index(name) + 1] == expected
    assert len(tokens) == len(built_with("v"))


def test_extra_arguments_are_last_and_in_order() -> None:
    extra = ("-b", "1", "--temp", "-0.5", "-b", "2")
    assert tuple(line(extra_args=extra, sampling=Sampling(temperature=1)).argv[-6:]) == extra


# --- the prompt cache ---


def cached(cache: int, features: Features = NEW, **settings: Any) -> str:
    spec = ModelSpec("m", **{"path": "/m.gguf", "context": 4096, **settings})
    words = build(spec, features, UNIX, cache=cache).argv
    return shlex.join(words[words.index("-np") + 2 : words.index("--offline")] if "--offline" in words else words)


NEWEST = features_of(THIS_YEAR + "--cache-idle-slots, --no-cache-idle-slots\n                 save idle slots\n")


def test_the_prompt_cache_is_as_large_as_what_was_set_aside_for_it() -> None:
    assert cached(3 << 30, NEWEST) == "--cache-ram 3072"
    assert cached(0, NEWEST) == "--cache-ram 0 --no-cache-idle-slots", "else it complains of the second"
    assert cached(0) == "--cache-ram 0"
    assert cached(0, NEWEST, prompt_cache=1 << 30) == "--cache-ram 1024"
    assert cached(1 << 30, NEWEST, prompt_cache=0) == "--cache-ram 0 --no-cache-idle-slots"
    for task in ("embeddings", "rerank"):
        assert cached(1 << 30, NEWEST, **{task: True, "ubatch": 512}).startswith("--cache-ram 0 --no-cache-idle-slots")


def test_the_reason_says_how_large_the_prompt_cache_is_and_whose_choice_it_was() -> None:
    spec = ModelSpec("m", path="/m.gguf", context=4096)
    (flag,) = (one for one in build(spec, NEW, UNIX, cache=3 << 30).flags if one.text.startswith("--cache-ram"))
    assert (flag.source, "3.0 GiB of main memory" in flag.reason) == ("built-in", True)


def test_a_build_without_a_prompt_cache_is_given_none_and_refuses_a_size_of_yours() -> None:
    assert "--cache-ram" not in cached(1 << 30, OLD)
    assert "--cache-ram" not in cached(0, OLD, prompt_cache=0)
    assert "prompt_cache: it knows no --cache-ram" in refused(OLD, prompt_cache=1 << 30)


def test_a_prompt_cache_in_extra_args_is_the_only_one() -> None:
    assert cached(1 << 30, NEWEST, extra_args=("-cram", "256")) == ""
    options = frozenset(NEWEST.options)
    for arguments, wanted in (((), (0, CACHE_MOST)), (("-cram", "256"), (256 << 20, 0)), (("--cache-ram=0",), (0, 0)),
                              (("--cache-ram", "64", "-cram", "-1"), (0, CACHE_MOST)),
                              (("--cache-ram", "9" * 5000), (0, CACHE_MOST))):  # fmt: skip
        assert prompt_cache(ModelSpec("m", extra_args=arguments), options) == wanted
