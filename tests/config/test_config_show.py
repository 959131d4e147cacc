"""The resolved configuration as text, and the JSON Schema."""

from __future__ import annotations

import dataclasses
import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from config_home import FULL, Home
from hypothesis import given
from hypothesis import strategies as st

from accelerd.config import Config, json_schema, show, show_dict
from accelerd.config.lora import LoraAdapter
from accelerd.config.machine_settings import PerformanceSettings
from accelerd.config.model import LlamaServerSettings, ModelSpec, Sampling, SchedulerSettings, ServerSettings
from accelerd.config.problems import Source
from accelerd.config.show import toml


def test_what_is_shown_loads_again_to_the_same_configuration(home: Home) -> None:
    home.write(FULL.replace('env = {B = "2", A = "1"}\n', ""))
    home.write('[models."a/b:c"]\nmodel = "x/y"\ngpu_layers = "all"\nidle_timeout = "never"', "accelerd.toml.d/x.toml")
    config = home.load()
    text = show(config)
    (home.dropins / "x.toml").unlink()
    again = home.load(text)
    assert again == config


def test_every_value_has_its_origin(home: Home) -> None:
    text = show(home.load('[defaults]\ncontext = 1024\n[models.q]\npath = "/q"\nidle_timeout = 90\n'))
    assert f"# {home.main}" in text
    assert "[models.q]" in text
    assert 'path = "/q"  # model (accelerd.toml:4)' in text
    assert "context = 1024  # defaults (accelerd.toml:2)" in text
    assert 'idle_timeout = "1m30s"  # model (accelerd.toml:5)' in text
    assert "parallel = 1  # built-in" in text
    assert "# threads: not set" in text
    for line in text.splitlines():
        assert not line or line[0] in "#[" or re.search(r"  # \S", line), line


def test_values_of_env_are_hidden(home: Home) -> None:
    config = home.load('[models.q]\npath = "/q"\nenv.TOKEN = "hunter2"\n')
    assert 'env.TOKEN = "***"  # model (accelerd.toml:3)' in show(config)
    assert "hunter2" not in show(config) + json.dumps(show_dict(config))


def test_for_json(home: Home) -> None:
    config = home.load('[models."a.b"]\npath = "/q"\nmemory = "1GiB"\n')
    shown = json.loads(json.dumps(show_dict(config)))
    assert shown["files"] == [str(home.main)]
    assert shown["tables"]['models."a.b"']["memory"] == {
        "value": "1GiB", "layer": "model", "file": "accelerd.toml", "line": 3,
    }  # fmt: skip
    assert shown["tables"]["server"]["header_timeout"]["value"] == "10s"


def test_nothing_configured() -> None:
    assert show(Config()).startswith("# no configuration file: built-in values\n")
    assert tomllib.loads(show(Config()))["server"]["max_body"] == "64MiB"


@given(st.text(st.characters(exclude_categories=["Cs"])) | st.booleans() | st.integers(-99, 99) | st.floats(0, 1))
def test_every_value_is_written_as_toml(value: Any) -> None:
    assert tomllib.loads(f"k = {toml([value, value])}")["k"] == [value, value]


def test_the_configurations_path_cannot_break_out_of_its_comment() -> None:
    assert tomllib.loads(
        show(Config(sources=(Source("accelerd.toml", Path("/home/a\nserver = 1/accelerd.toml"), ""),)))
    )["server"]["listen"]


SCHEMA = json_schema()
TABLES = SCHEMA["$defs"]


def test_the_schema_is_strict_and_described() -> None:
    assert SCHEMA["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    json.dumps(SCHEMA)
    for name, table in TABLES.items():
        assert table["additionalProperties"] is False, name
        assert "required" not in table, name
        for key, value in table["properties"].items():
            assert value.get("description"), f"{name}.{key}"


@pytest.mark.parametrize(
    ("table", "settings", "elsewhere"),
    [
        ("ServerTable", ServerSettings, {}),
        ("SchedulerTable", SchedulerSettings, {}),
        ("PerformanceTable", PerformanceSettings, {}),
        ("LlamaServerTable", LlamaServerSettings, {}),
        ("SamplingTable", Sampling, {}),
        ("LoraAdapterTable", LoraAdapter, {}),
        (
            "ModelTable",
            ModelSpec,
            {
                "name": None,
                "origins": None,
                "offered": None,
                "cache_type_k": "kv_cache_type",
                "cache_type_v": "kv_cache_type",
                "draft_cache_type_k": "draft_kv_cache_type",
                "draft_cache_type_v": "draft_kv_cache_type",
            },
        ),
    ],
)
def test_every_setting_of_the_program_has_a_key_and_every_key_a_setting(
    table: str, settings: type[Any], elsewhere: dict[str, str | None]
) -> None:
    fields = {elsewhere.get(field.name, field.name) for field in dataclasses.fields(settings)} - {None}
    extra = {"profile"} if table == "ModelTable" else set()
    assert set(TABLES[table]["properties"]) == fields | extra


def test_only_a_model_says_what_it_is() -> None:
    only = set(TABLES["ModelTable"]["properties"]) - set(TABLES["LayerTable"]["properties"])
    more = {"hidden_aliases", "variants", "remote", "capabilities", "price"}
    assert only == {"path", "model", "description", "aliases", "profile", *more}


def test_the_schema_knows_the_built_in_values() -> None:
    assert TABLES["ModelTable"]["properties"]["idle_timeout"]["default"] == "10m"
    assert TABLES["ServerTable"]["properties"]["max_body"]["default"] == "64MiB"
    assert TABLES["ServerTable"]["properties"]["listen"]["default"] == ["127.0.0.1:4000", "[::1]:4000"]


def test_the_defaults_in_the_schema_are_values_that_load_to_the_defaults(home: Home) -> None:
    def defaults(table: str) -> dict[str, Any]:
        properties = TABLES[table]["properties"].items()
        return {key: value["default"] for key, value in properties if "default" in value}

    document = {
        "server": defaults("ServerTable"),
        "scheduler": defaults("SchedulerTable"),
        "performance": defaults("PerformanceTable"),
        "engines": {"llama-server": defaults("LlamaServerTable")},
        "models": {"m": {"path": "/m"} | defaults("ModelTable")},
    }
    config = home.load(tomli_w.dumps(document))
    assert config == Config(models={"m": ModelSpec("m", path="/m")})


@pytest.mark.parametrize(
    ("table", "key", "good", "bad"),
    [
        ("ModelTable", "idle_timeout", ["never", "1h30m", "90", "1.5 h"], ["nie", "10x", "m"]),
        ("ModelTable", "start_timeout", ["500ms", "1h 30m"], ["never", "ten"]),
        ("ModelTable", "memory", ["auto", "12GiB", "500m", "1.5 G", "100B"], ["lots", "12 Gibi"]),
        ("ModelTable", "group", ["a/b:c", "a b", "日本"], ["-a", " a", "a "]),
    ],
)
def test_patterns_of_the_schema_agree_with_the_loader(
    home: Home, table: str, key: str, good: list[str], bad: list[str]
) -> None:
    pattern = TABLES[table]["properties"][key]["pattern"]
    for text, right in [(text, True) for text in good] + [(text, False) for text in bad]:
        assert bool(re.search(pattern, text)) is right, text
        text_errors = home.errors(f'[models.m]\npath = "/m"\n{key} = "{text}"')
        if key != "memory" or text != "100B":  # too small, which a pattern cannot say
            assert (not text_errors) is right, text


def test_the_policy_of_a_device_is_shown_and_loads_again(home: Home) -> None:
    config = home.load('[performance.devices."0000:c1:00.0"]\npolicy = "never"\n')
    text = show(config)
    assert '[performance.devices."0000:c1:00.0"]\npolicy = "never"  # performance (' in text
    assert home.load(text).performance == config.performance
