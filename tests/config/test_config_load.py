"""From files to resolved models: values, layers, merging of files, origins."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from config_home import FULL, Home
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from accelerd.config import Config
from accelerd.config.machine_settings import PerformanceSettings
from accelerd.config.model import ModelSpec, Origin, Sampling


def test_every_setting_arrives_in_the_units_of_the_program(home: Home) -> None:
    config = home.load(FULL)
    assert config.server.listen == ("127.0.0.1:4100", "[::1]:4100")
    assert config.server.allowed_hosts == ("box.local",)
    assert config.server.allowed_origins == ("https://chat.example.org",)
    assert (config.server.max_body, config.server.header_timeout) == (8 << 20, 1.5)
    assert (config.scheduler.memory, config.scheduler.linger) == (12 << 30, 0)
    assert config.llama_server.binary == str(home.path / "bin/llama-server")
    assert config.llama_server.transport == "unix"
    assert config.models["qwen"] == ModelSpec(
        name="qwen",
        path=str(home.path / "models/qwen.gguf"),
        description="small",
        aliases=("gpt-4o", "qwen/small:7b"),
        binary="llama-server-next",
        context=8192,
        parallel=2,
        cache_type_k="q8_0",
        cache_type_v="f16",
        flash_attention="on",
        mmap=False,
        gpu_layers=33,
        batch=1024,
        ubatch=512,
        threads=4,
        mmproj=str(home.folder / "proj.gguf"),
        chat_template_file=str(home.folder / "chat.jinja"),
        sampling=Sampling(temperature=1.0, top_p=0.9),
        extra_args=("--cache-ram", "0"),
        env=(("A", "1"), ("B", "2")),
        start_timeout=180.0,
        stop_timeout=2.5,
        concurrency=3,
        idle_timeout=None,
        preload=True,
        pin=True,
        group="big",
        exclusive=True,
        memory=500 << 20,
    )
    assert config.files == (str(home.main),)


@pytest.mark.parametrize(
    ("line", "field", "value"),
    [
        ('kv_cache_type = "q8_0"', "cache_type_k", "q8_0"),
        ('kv_cache_type = "q8_0"', "cache_type_v", "q8_0"),
        ('kv_cache_type = {k = "q4_0"}', "cache_type_v", None),
        ("flash_attention = false", "flash_attention", "off"),
        ('flash_attention = "auto"', "flash_attention", "auto"),
        ('gpu_layers = "all"', "gpu_layers", "all"),
        ("gpu_layers = 0", "gpu_layers", 0),
        ("idle_timeout = 90", "idle_timeout", 90.0),
        ('memory = "auto"', "memory", None),
        ("sampling.temperature = 0", "sampling", Sampling(temperature=0.0)),
        ("embeddings = true", "embeddings", True),
    ],
)
def test_ways_to_write_a_setting(model: Callable[[str], Config], line: str, field: str, value: Any) -> None:
    assert getattr(model(line).models["m"], field) == value


def test_an_engines_own_id_instead_of_a_path(home: Home) -> None:
    spec = home.load('[models.g]\nmodel = "ggml-org/gemma-3-4b-it-GGUF:Q4_K_M"').models["g"]
    assert (spec.model, spec.path) == ("ggml-org/gemma-3-4b-it-GGUF:Q4_K_M", None)


@pytest.mark.parametrize(
    "text", ["", "\n# nothing\n", "\ufeff# with a byte order mark\n", "[models]\n[profiles]\n[server]\n"]
)
def test_an_empty_file_is_the_built_in_configuration(home: Home, text: str) -> None:
    config = home.load(text)
    assert (config, config.files) == (Config(), (str(home.main),))


def test_a_missing_file_is_a_valid_empty_configuration(home: Home) -> None:
    assert home.check() == (Config(), [])
    assert home.load().files == ()


def test_a_folder_of_drop_ins_alone_is_enough(home: Home) -> None:
    home.write('[models.a]\npath = "/a"', "accelerd.toml.d/a.toml")
    assert list(home.load().models) == ["a"]


def test_model_over_profiles_over_defaults_over_built_in(home: Home) -> None:
    config = home.load(
        """\
[defaults]
context = 1024
batch = 100
idle_timeout = "1h"
extra_args = ["--default"]
env = {A = "defaults", B = "defaults", C = "defaults"}
sampling = {temperature = 0.1, top_p = 0.1, top_k = 1}
[profiles.small]
context = 2048
threads = 2
kv_cache_type = "q8_0"
[profiles.warm]
threads = 3
preload = true
env.B = "warm"
sampling.top_p = 0.2
kv_cache_type.v = "f16"
extra_args = ["--warm"]
[models.m]
path = "/m"
profile = ["small", "warm"]
context = 4096
env = {C = "model"}
sampling = {top_k = 3}
[models.plain]
path = "/p"
[models.one]
path = "/o"
profile = "small"
extra_args = []
"""
    )
    m, plain, one = (config.models[name] for name in ("m", "plain", "one"))
    assert (m.context, m.batch, m.threads, m.preload, m.idle_timeout) == (4096, 100, 3, True, 3600.0)
    assert m.env == (("A", "defaults"), ("B", "warm"), ("C", "model"))
    assert m.sampling == Sampling(temperature=0.1, top_p=0.2, top_k=3)
    assert (m.cache_type_k, m.cache_type_v) == ("q8_0", "f16")
    assert (m.extra_args, plain.extra_args, one.extra_args) == (("--warm",), ("--default",), ())
    assert (plain.context, plain.threads, plain.preload) == (1024, None, False)
    assert (one.context, one.threads) == (2048, 2)

    file = "accelerd.toml"
    assert m.origin("context") == Origin("model", file, 22)
    assert m.origin("batch") == Origin("defaults", file, 3)
    assert m.origin("threads") == Origin("profile warm", file, 13)
    assert m.origin("parallel") == Origin("built-in")
    assert m.origin("env.B") == Origin("profile warm", file, 15)
    assert m.origin("sampling.top_k") == Origin("model", file, 24)
    assert (m.origin("cache_type_k").line, m.origin("cache_type_v").line) == (11, 17)
    assert str(m.origin("batch")) == "defaults (accelerd.toml:3)"


def test_drop_ins_merge_over_the_main_file_in_order_of_name(home: Home) -> None:
    home.write(
        '[server]\nmax_body = "1MiB"\nallowed_hosts = ["a"]\n'
        '[models.m]\npath = "/m"\ncontext = 1024\naliases = ["x", "y"]\nenv = {A = "1", B = "1"}\n'
        '[models.n]\npath = "/n"\n'
    )
    home.write('[models.m]\ncontext = 3072\nenv.B = "3"\n[models.z]\npath="/z"', "accelerd.toml.d/20-b.toml")
    home.write('models.m.context = 2048\nmodels.m.aliases = ["q"]\n', "accelerd.toml.d/10-a.toml")
    home.write("[models.m]\ncontext = 9999\n", "accelerd.toml.d/99.toml.disabled")
    home.write("[models.m]\ncontext = 9999\n", "accelerd.toml.d/.99-editor.toml")
    config = home.load()
    m = config.models["m"]
    assert (m.context, m.aliases, m.env, m.path) == (3072, ("q",), (("A", "1"), ("B", "3")), "/m")
    assert m.origin("context") == Origin("model", "accelerd.toml.d/20-b.toml", 2)
    assert m.origin("aliases") == Origin("model", "accelerd.toml.d/10-a.toml", 2)
    assert m.origin("path") == Origin("model", "accelerd.toml", 5)
    assert list(config.models) == ["m", "n", "z"]
    assert config.server.max_body == 1 << 20
    assert config.origins["server.max_body"] == Origin("server", "accelerd.toml", 2)
    assert [Path(file).name for file in config.files] == ["accelerd.toml", "10-a.toml", "20-b.toml"]


def test_order_of_models_is_the_order_in_the_files(home: Home) -> None:
    config = home.load("".join(f'[models.{name}]\npath = "/{name}"\n' for name in ("z", "a", "m")))
    assert list(config.models) == ["z", "a", "m"]


HALVES = st.fixed_dictionaries({}, optional={"k": st.just("q4_0"), "v": st.just("q5_1")})
LAYER: dict[str, st.SearchStrategy[Any]] = {
    "context": st.integers(128, 10_000),
    "threads": st.integers(1, 64),
    "preload": st.booleans(),
    "kv_cache_type": st.sampled_from(["f16", "q8_0"]) | HALVES,
    "env": st.dictionaries(st.sampled_from("ABC"), st.text("xyz", max_size=3), max_size=3),
    "sampling": st.fixed_dictionaries({}, optional={"top_k": st.integers(0, 9), "seed": st.integers(0, 9)}),
    "extra_args": st.lists(st.sampled_from(["--x", "y z", "$HOME"]), max_size=2),
}  # fmt: skip
layers = st.fixed_dictionaries({}, optional=LAYER)


def flat(layer: dict[str, Any]) -> dict[str, Any]:
    """What one table says, key by key: the reference for merging."""
    out: dict[str, Any] = {}
    for key, value in layer.items():
        if key == "kv_cache_type":
            halves = value if isinstance(value, dict) else {"k": value, "v": value}
            out |= {f"cache_type_{half}": half_type for half, half_type in halves.items()}
        elif isinstance(value, dict):
            out |= {f"{key}.{inner}": deep for inner, deep in value.items()}
        else:
            out[key] = tuple(value) if isinstance(value, list) else value
    return out


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(layers, layers, layers, st.lists(layers, min_size=1, max_size=2))
def test_merging_is_what_applying_the_tables_one_after_another_gives(
    home: Home, defaults: dict[str, Any], first: dict[str, Any], second: dict[str, Any], model: list[dict[str, Any]]
) -> None:
    import tomli_w

    home.write(
        tomli_w.dumps(
            {
                "models": {"m": {"path": "/m", "profile": ["first", "second"]} | model[0]},
                "profiles": {"second": second, "first": first},
                "defaults": defaults,
            }
        )
    )
    home.write(tomli_w.dumps({"models": {"m": model[-1]}}), "accelerd.toml.d/x.toml")
    spec = home.load().models["m"]
    expected: dict[str, Any] = {}
    for layer in (defaults, first, second, model[0], model[-1]):
        expected |= flat(layer)
    env = {key.removeprefix("env."): value for key, value in expected.items() if key.startswith("env.")}
    assert dict(spec.env) == env
    for key in ("context", "threads", "cache_type_k", "cache_type_v", "preload", "extra_args"):
        assert getattr(spec, key) == expected.get(key, getattr(ModelSpec(""), key))
    assert spec.sampling.top_k == expected.get("sampling.top_k")
    assert spec.sampling.seed == expected.get("sampling.seed")
    assert {key for key in spec.origins if key in expected} == set(expected)


def test_thirty_models_load_fast_and_without_the_servers_libraries(home: Home) -> None:
    text = "[profiles.p]\ncontext = 8192\nsampling = {temperature = 0.5}\n"
    for number in range(30):
        text += (
            f'[models.m{number}]\npath = "~/{number}.gguf"\naliases = ["a{number}", "b{number}"]\nprofile = "p"\n'
            'kv_cache_type = "q8_0"\nflash_attention = true\nextra_args = ["--x", "1"]\n'
            'env = {A = "1"}\nmemory = "1GiB"\n'
        )
    home.write(text)
    # CPU seconds of this thread: the goal is 20 ms, and a busy machine doubles it.
    program = (
        "import sys, time, pathlib, accelerd.config as c\n"
        "heavy = {'aiohttp', 'rich', 'uvloop', 'tomli_w', 'pydbus'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "file, home = map(pathlib.Path, sys.argv[1:])\n"
        "def once():\n"
        "    start = time.thread_time(); config = c.load(file, home); assert len(config.models) == 30\n"
        "    return time.thread_time() - start\n"
        "print(min(once() for _ in range(5)))\n"
    )
    command = [sys.executable, "-c", program, str(home.main), str(home.path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 0.060


def test_the_performance_policy_and_that_of_one_device(home: Home) -> None:
    config = home.load(
        '[performance]\npolicy = "always"\nhold_time = 0\n[performance.devices."0000:c1:00.0"]\npolicy = "never"\n'
    )
    assert config.performance == PerformanceSettings("always", 0.0, {"0000:c1:00.0": "never"})
    assert config.origins["performance.devices.0000:c1:00.0.policy"].line == 5
    assert home.load("").performance == PerformanceSettings("busy", 10.0, {})


@pytest.mark.parametrize("slot", ["c1:00.0", "0000:C1:00.0", "card0", "../x", "0000:c1:00.9"])
def test_a_device_is_named_by_its_slot(home: Home, slot: str) -> None:
    (problem,) = home.errors(f'[performance.devices."{slot}"]\npolicy = "never"\n')
    assert "expected a PCI slot" in str(problem)
