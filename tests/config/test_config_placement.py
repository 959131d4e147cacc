"""Settings of where a model lies, of adapters, drafting and RoPE: what they mean, and every mistake at its place."""

from __future__ import annotations

import tomllib

import pytest
from config_home import Home

from accelerd.config import show
from accelerd.config.lora import LoraAdapter

A, B = "0000:03:00.0", "0000:41:00.0"
MODEL = 'path = "/m.gguf"'


def test_a_table_of_adapters_is_read_and_shown_again(home: Home) -> None:
    home.write(
        f"""
[models.m]
{MODEL}
lora = [{{ path = "style.gguf" }}, {{ path = "~/tone.gguf", scale = -0.5 }}]
[models.n]
{MODEL}
[[models.n.lora]]
path = "/a:b.gguf"
"""
    )
    config = home.load()
    folder = home.folder
    assert config.models["m"].lora == (LoraAdapter(f"{folder}/style.gguf"), LoraAdapter(f"{home.path}/tone.gguf", -0.5))
    assert config.models["n"].lora == (LoraAdapter("/a:b.gguf", 1.0),)
    again = tomllib.loads(show(config))["models"]
    assert again["m"]["lora"][1] == {"path": f"{home.path}/tone.gguf", "scale": -0.5}


def test_one_value_stands_for_an_array_of_one(home: Home) -> None:
    home.write(f'[models.m]\n{MODEL}\nfit = true\nfit_target = "1GiB"\nspec_type = "ngram-mod"\n')
    spec = home.load().models["m"]
    assert (spec.fit_target, spec.spec_type) == ((1 << 30,), ("ngram-mod",))
    home.write(
        f'[models.m]\n{MODEL}\nfit = true\nfit_target = ["1GiB", "2GiB"]\ndraft_kv_cache_type = {{k = "q8_0"}}\n'
    )
    spec = home.load().models["m"]
    assert (spec.fit_target, spec.draft_cache_type_k, spec.draft_cache_type_v) == ((1 << 30, 2 << 30), "q8_0", None)
    assert 'fit_target = ["1GiB", "2GiB"]' in show(home.load())


@pytest.mark.parametrize(
    ("text", "line", "key", "says"),
    [
        (
            'lora = ["a.gguf"]',
            3,
            "lora[0]",
            'expected a table such as {path = "style.gguf", scale = 0.5}',
        ),
        ("lora = [\n{path = 'a'},\n{scale = 2}]", 5, "lora[1]", 'expected a table with path = "…"'),
        ("lora = [{path = 'a', sale = 2}]", 3, "lora[0].sale", "unknown key; did you mean 'scale'?"),
        ("lora = [{path = 'a', scale = 'x'}]", 3, "lora[0].scale", 'expected a number from -100 to 100, got "x"'),
        ("lora = [{path = '/a:b', scale = 2}]", 3, "lora[0]", "expected a path without a colon where scale is not 1"),
        ("override_tensor = ['a=CPU',\n'ffn']", 4, "override_tensor[1]", "expected PATTERN=BUFFER"),
        ("override_tensor = ['a{1,2}=CPU']", 3, "override_tensor[0]", "a pattern without commas"),
        (
            "override_tensor = ['(a=CPU']",
            3,
            "override_tensor[0]",
            "expected a regular expression before the =",
        ),
        ("override_tensor = ['a=CPU,b=CPU']", 3, "override_tensor[0]", "expected PATTERN=BUFFER"),
        ("cpu_moe = true\nn_cpu_moe = 3", 4, "n_cpu_moe", "set either n_cpu_moe or cpu_moe, not both"),
        ("tensor_split = [3, 1]", 3, "tensor_split", "set gpus = […], too"),
        (f"gpus = ['{A}']\ntensor_split = [3, 1]", 4, "tensor_split", "expected a number for each of the 1 gpus"),
        (f"gpus = ['{A}', '{B}']\ntensor_split = [0, 0]", 4, "tensor_split", "at least one number above 0"),
        (f"gpus = ['{A}']\ntensor_split = [-1]", 4, "tensor_split[0]", "expected a number of at least 0"),
        (f"gpus = ['{A}']\nsplit_mode = 'none'\ntensor_split = [1]", 5, "tensor_split", "one GPU has all of the model"),
        (f"gpus = ['{A}']\nsplit_mode = 'none'\nmain_gpu = '{B}'", 5, "main_gpu", f"expected one of gpus = [{A}]"),
        ("split_mode = 'none'\nmain_gpu = 0", 4, "main_gpu", "expected a PCI slot"),
        ("fit = true\ngpu_layers = 9", 4, "gpu_layers", "llama-server fits nothing where this is set"),
        ("fit = true\noverride_tensor = ['a=CPU']", 4, "override_tensor", "llama-server fits nothing"),
        (f"mmproj_offload = false\nmmproj_device = '{A}'", 4, "mmproj_device", "the projector is on no GPU"),
        ("draft_min = 5\ndraft_max = 4", 3, "draft_min", "expected at most draft_max = 4"),
        ("rope_scale = 2\nrope_freq_scale = 0.5", 4, "rope_freq_scale", "set either rope_freq_scale or rope_scale"),
        ("rope_scale = 0", 3, "rope_scale", "expected a number above 0"),
        ("rope_scaling = 'dynamic'", 3, "rope_scaling", 'expected one of "none", "linear", "yarn"'),
        ("spec_type = 'Draft MTP'", 3, "spec_type", "expected a way of speculative decoding"),
        ("n_draft = 5", 3, "n_draft", "unknown key"),
        ("ncmoe = 5", 3, "ncmoe", "unknown key; did you mean 'n_cpu_moe'?"),
        ("spec_draft_n_max = 5", 3, "spec_draft_n_max", "did you mean 'draft_max'?"),
    ],
)
def test_a_mistake_is_reported_where_it_stands(home: Home, text: str, line: int, key: str, says: str) -> None:
    home.write(f"[models.m]\n{MODEL}\n{text}\n")
    errors = [problem for problem in home.check()[1] if problem.severity == "error"]
    assert [(one.line, one.key) for one in errors] == [(line, f"models.m.{key}")]
    assert says in errors[0].message


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (f"main_gpu = '{A}'", 'main_gpu: has no effect without split_mode = "none" or "row"'),
        ("fit_target = 5", "fit_target: has no effect without fit = true"),
        ("fit = true\nfit_ctx = 4096", 'fit_ctx: has no effect without fit = true and context = "model"'),
        ("draft_max = 5", "draft_max: has no effect without draft_model or spec_type"),
        ("mmproj_offload = false", "mmproj_offload: has no effect without mmproj"),
        ("extra_args = ['-ot', 'a=CPU']", "-ot has its own setting: use override_tensor"),
        ("extra_args = ['--lora-scaled', 'a:1']", "--lora-scaled has its own setting: use lora"),
        ("extra_args = ['-ctkd', 'q8_0']", "-ctkd has its own setting: use draft_kv_cache_type"),
        ("lora = [{path = '/none.gguf'}]", "lora: no such file: /none.gguf"),
        ("engine = 'lemonade'\nmodel = 'x'\ncpu_moe = true", "cpu_moe: has no effect with engine"),
    ],
)
def test_what_does_nothing_is_warned_about(home: Home, text: str, says: str) -> None:
    source = "" if "model = 'x'" in text else MODEL
    home.write(f"[models.m]\n{source}\n{text}\n")
    assert any(says in f"{one.key}: {one.message}" for one in home.check()[1]), home.check()[1]
