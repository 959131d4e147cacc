"""A default that a model cannot have does not apply to it; what contradicts itself is still a mistake."""

from __future__ import annotations

from pathlib import Path

import pytest
from config_home import Home

LLAMA = '[models.chat]\npath = "/m.gguf"\n'
NPU = '[models.npu]\nengine = "flm"\nmodel = "qwen3:4b"\n'


def test_models_on_the_npu_stand_beside_a_toolbox_for_all_others(home: Home) -> None:
    config, problems = home.check(f'[defaults]\nhome = "toolbox"\ncontainer = "llama"\nparallel = 4\n{LLAMA}{NPU}')
    assert [problem for problem in problems if "no such file" not in problem.message] == []
    assert config is not None
    chat, npu = config.models["chat"], config.models["npu"]
    assert (chat.home, chat.container, chat.parallel) == ("toolbox", "llama", 4)
    assert (npu.home, npu.container, npu.parallel) == ("auto", None, 1)
    assert str(npu.origin("home")) == "built-in"


def test_the_example_of_the_page_on_npus_is_valid(home: Home) -> None:
    page = (Path(__file__).parents[2] / "docs/npu.md").read_text()
    (example,) = [part for part in page.split("```toml\n")[1:] if "[defaults]" in part.partition("```")[0]]
    config = home.load(example.partition("```")[0])
    assert {name: spec.home for name, spec in config.models.items()} == {"qwen": "toolbox", "npu/qwen3-4b": "auto"}


@pytest.mark.parametrize(
    ("defaults", "model", "field", "value"),
    [
        ("transcription = true", LLAMA, "transcription", False),
        ("rerank = true", NPU, "rerank", False),
        ("ubatch = 4096", LLAMA + "batch = 512\n", "ubatch", None),
        ("batch = 512", LLAMA + "ubatch = 4096\n", "batch", None),
        ("embeddings = true", LLAMA + "rerank = true\n", "embeddings", False),
        ("rerank = true", LLAMA + "embeddings = true\n", "rerank", False),
        ("kv_cache_type = 'q8_0'", LLAMA + "flash_attention = false\n", "cache_type_v", None),
        ("flash_attention = false", LLAMA + "kv_cache_type = 'q8_0'\n", "flash_attention", None),
        ("home = 'podman'\nimage = 'a:b'", LLAMA + "home = 'toolbox'\ncontainer = 'x'\n", "image", None),
        ("home = 'toolbox'\ncontainer = 'x'", LLAMA + "home = 'child'\n", "container", None),
        ("home = 'docker'\nimage = 'a:b'\ndevices = ['/dev/dri']", NPU, "devices", ()),
    ],
)
def test_what_is_said_of_the_model_itself_decides(
    home: Home, defaults: str, model: str, field: str, value: object
) -> None:
    config = home.load(f"[defaults]\n{defaults}\n{model}")
    (spec,) = config.models.values()
    assert getattr(spec, field) == value


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[defaults]\nbatch = 512\nubatch = 4096\n" + LLAMA, "defaults.ubatch: expected at most batch = 512"),
        ("[defaults]\ncontainer = 'x'\n" + LLAMA, "defaults.container: set home"),
        ("[defaults]\nhome = 'podman'\n" + LLAMA, 'defaults.home: home = "podman" requires image'),
        (NPU + "home = 'podman'\nimage = 'a:b'\n", "models.npu.home: flm does not run in a container"),
        ("[profiles.p]\nparallel = 2\n" + NPU + "profile = 'p'\n", "profiles.p.parallel: flm processes one request"),
    ],
)
def test_a_contradiction_within_the_defaults_or_the_model_is_a_mistake(home: Home, text: str, says: str) -> None:
    assert [says in problem for problem in home.errors(text)] == [True]


def test_a_default_that_applies_to_nobody_is_a_warning(home: Home) -> None:
    assert home.warnings("[defaults]\nparallel = 4\n" + NPU) == [
        "accelerd.toml:2: warning: defaults.parallel: applies to no model: each has a setting that it does not go with"
    ]
    assert home.warnings(f"[defaults]\nparallel = 4\n{NPU}" + '[models.c]\nengine = "lemonade"\nmodel = "x"\n') == []


def test_a_default_without_effect_on_some_model_is_no_warning(home: Home) -> None:
    found = home.warnings(f"[defaults]\nkv_cache_type = 'q8_0'\nmmap = false\n{NPU}")
    assert found == []
    assert home.warnings(f"{NPU}mmap = false\n") == [
        'accelerd.toml:4: warning: models.npu.mmap: has no effect with engine = "flm" (model (accelerd.toml:2)); '
        'it is read with engine = "llama-server" or "lemonade"'
    ]
