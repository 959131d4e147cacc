"""The engine `command`: its plans, forecasts and capabilities, from settings and from presets."""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
from pathlib import Path
from typing import Any, get_args

import pytest

from accelerd.base.errors import AccelError
from accelerd.config.command import PLACEHOLDERS, CommandSettings, of_preset, placeholders, presets
from accelerd.config.model import ModelSpec
from accelerd.devices.model import Device
from accelerd.engines.base import LaunchPlan, Task
from accelerd.engines.command import Command
from tests.harness import ROOT

PROGRAM = str(ROOT / "tests/fakes/http_program.py")


def engine(**environ: str) -> Command:
    base = {"PATH": os.environ["PATH"], "HOME": "/home/u", **environ}
    return Command(environ=base, port=lambda: 4711, token=lambda: "5ec7e7")


def spec(tmp_path: Path, *argv: str, **settings: Any) -> ModelSpec:
    weights = tmp_path / "weights.bin"
    weights.write_bytes(b"w" * 1000)
    more = {name: settings.pop(name) for name in ("path", "model", "extra_args", "memory", "env") if name in settings}
    command = CommandSettings(argv=(PROGRAM, *argv), **{"api": ("transcription",), **settings})
    return ModelSpec("hear", engine="command", command=command, **{"path": str(weights), **more})


def plan(model: ModelSpec, tmp_path: Path, **environ: str) -> LaunchPlan:
    return asyncio.run(engine(**environ).plan(model, tmp_path))


def test_placeholders_are_filled_and_nothing_else_is_changed(tmp_path: Path) -> None:
    words = ("--port", "{port}", "-m={model}", "{name}:{parallel}", "$HOME", "a b", "{}")
    made = plan(spec(tmp_path, *words, extra_args=("{port}",)), tmp_path)
    weights = tmp_path / "weights.bin"
    assert made.argv == (PROGRAM, "--port", "4711", f"-m={weights}", "hear:1", "$HOME", "a b", "{}", "{port}")
    assert (made.endpoint.port, made.secret, made.keyed) == (4711, "", False)
    assert made.files == (str(weights),)
    assert any("every user of this machine" in text for text in made.warnings)


def test_a_socket_and_a_key_need_no_warning(tmp_path: Path) -> None:
    made = plan(spec(tmp_path, "--socket", "{socket}", "--key-file", "{key_file}"), tmp_path)
    assert made.endpoint.unix == made.argv[2]
    assert (made.key_file, made.secret, made.warnings) == (made.argv[4], "5ec7e7", ())
    assert "5ec7e7" not in " ".join((*made.argv, *(flag.text for flag in made.flags), *made.env.values()))


def test_a_key_in_the_environment_is_not_shown(tmp_path: Path) -> None:
    model = spec(
        tmp_path, "{port}", key_env="VLLM_API_KEY", environment=("HOST=[::1]:{port}",), env=(("HF_TOKEN", "hf_1"),)
    )
    made = plan(model, tmp_path, LD_PRELOAD="x")
    assert made.env["HOST"] == "[::1]:4711"
    assert (made.env["VLLM_API_KEY"], made.env["HF_TOKEN"]) == ("5ec7e7", "hf_1")
    assert "LD_PRELOAD" not in made.env
    shown = [flag.text for flag in made.flags]
    assert {"env VLLM_API_KEY=…", "env HF_TOKEN=…"} <= set(shown)
    assert not any("hf_1" in text or "5ec7e7" in text for text in shown)


def test_a_probe_names_the_model_as_json_writes_it(tmp_path: Path) -> None:
    model = spec(
        tmp_path, "{port}", path=None, model='a"b', probe_path="/p", probe_body='{"m":"{model}","n":"{{name}}"}'
    )
    assert plan(model, tmp_path).probe_body == b'{"m":"a\\"b","n":"{name}"}'
    assert (
        engine().traits(spec(tmp_path, "{port}", model="m", path=None, served_name="{{x}}-{model}")).wire_name
        == "{x}-m"
    )


def test_a_file_that_is_not_there_is_named_before_anything_is_started(tmp_path: Path) -> None:
    with pytest.raises(AccelError, match="no such file: /no/such") as caught:
        plan(spec(tmp_path, "{port}", path="/no/such.bin"), tmp_path)
    assert caught.value.code == "model_failed"


@pytest.mark.parametrize("word", ["{model}", "--n={context}"])
def test_a_placeholder_without_a_value_is_named(tmp_path: Path, word: str) -> None:
    with pytest.raises(AccelError, match=f"{{{word.partition('{')[2]}") as caught:
        plan(spec(tmp_path, "{port}", word, path=None), tmp_path)
    assert caught.value.code == "model_failed"


def test_a_folder_whose_name_is_too_long_for_a_socket_is_named(tmp_path: Path) -> None:
    with pytest.raises(AccelError, match="no place for a socket"):
        plan(spec(tmp_path, "--socket", "{socket}"), tmp_path / ("x" * 120))


def test_a_file_in_the_place_of_the_folder_is_left_to_the_start(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="acc-") as runtime:  # a short name
        (Path(runtime) / "instances").write_text("")
        made = plan(spec(tmp_path, "--socket", "{socket}"), Path(runtime))
    assert made.endpoint.unix is not None


def test_a_missing_program_is_named(tmp_path: Path) -> None:
    wanted = ModelSpec("x", engine="command", command=CommandSettings(argv=("no-such-server", "{port}"), api=("chat",)))
    with pytest.raises(AccelError, match="cannot find the program no-such-server"):
        plan(wanted, tmp_path)


def test_a_probe_has_what_the_model_is_called_as_json(tmp_path: Path) -> None:
    probe = {"probe_path": "/load", "probe_body": '{"model": "{model}", "text": "{{it}}", "n": {}}'}
    made = plan(
        spec(tmp_path, "{port}", path=None, model='a"b\\c', not_found_hint="run: pull {model}", **probe), tmp_path
    )
    assert made.probe_body is not None
    assert json.loads(made.probe_body) == {"model": 'a"b\\c', "text": "{it}", "n": {}}
    assert made.not_found_hint == 'run: pull a"b\\c'
    assert (made.probe_path, made.prove) == ("/load", True)


def test_variables_are_inherited_by_name_and_what_is_written_wins(tmp_path: Path) -> None:
    model = spec(tmp_path, "{port}", inherit=("OLLAMA_MODELS", "HF_HOME", "NOT_THERE"), env=(("HF_HOME", "/own"),))
    made = plan(model, tmp_path, OLLAMA_MODELS="/big", HF_HOME="/accelerds", OTHER="x")
    assert (made.env["OLLAMA_MODELS"], made.env["HF_HOME"]) == ("/big", "/own")
    assert not {"NOT_THERE", "OTHER"} & set(made.env)


def test_a_program_that_has_ollamas_api_alone_can_be_declared(tmp_path: Path) -> None:
    assert engine().traits(spec(tmp_path, "{port}", api=("ollama",))).tasks == {"ollama"}


GPU = Device("gpu", "AMD Radeon 8060S Graphics", "amdgpu", "0000:c1:00.0")


@pytest.mark.parametrize(
    ("settings", "amounts"),
    [
        ({}, {"ram": 1100}),
        ({"memory": 5 << 20}, {"ram": 5 << 20}),
        ({"device": "gpu"}, {GPU.id: 1100}),
        ({"device": "gpu", "memory": 7}, {GPU.id: 7}),
        ({"path": None}, {"ram": 0}),
        ({"path": "/no/such/file"}, {"ram": 0}),
    ],
)
def test_what_it_needs_is_declared_or_the_size_of_its_file(
    tmp_path: Path, settings: dict[str, Any], amounts: dict[str, int]
) -> None:
    found = asyncio.run(engine().forecast(spec(tmp_path, "{port}", **settings), [GPU], ask=True))
    assert found.options[0].amounts == amounts
    assert bool(found.key) is not bool(settings.get("memory"))  # what is measured corrects a guess only


def test_a_folder_of_files_counts_as_a_whole(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for name in "ab":
        (folder / name).write_bytes(b"w" * 500)
    found = asyncio.run(engine().forecast(spec(tmp_path, "{port}", path=str(folder)), [], ask=False))
    assert found.options[0].total == 1100


def test_capabilities_and_paths_are_the_declared_ones(tmp_path: Path) -> None:
    traits = engine().traits(
        spec(tmp_path, "{port}", api=("rerank", "embeddings"), paths=("/v1/rerank=/rerank",), served_name="{name}-1")
    )
    assert traits.tasks == {"rerank", "embeddings"}
    assert (traits.paths, traits.wire_name) == ({"/v1/rerank": "/rerank"}, "hear-1")


@pytest.mark.parametrize("name", list(presets()))
def test_a_preset_is_whole(name: str) -> None:
    preset = presets()[name]
    settings = CommandSettings(**of_preset(name))
    assert settings == preset.settings
    assert settings.api
    assert set(settings.api) <= set(get_args(Task))
    assert {found for word in settings.argv for found in placeholders(word)} <= set(PLACEHOLDERS)
    assert len(settings.placeholders & {"port", "socket"}) == 1
    assert preset.source.startswith("https://")
    assert preset.version
