"""The table [models.NAME.command]: presets, what wins over them, and mistakes."""

from __future__ import annotations

from dataclasses import fields

import pytest

from accelerd.config.clashes import OF_REMOTE_MODELS, OWNED, READ_BY
from accelerd.config.command import filled
from accelerd.config.model import ModelSpec
from accelerd.config.show import show
from tests.config.config_home import Home

COMMAND = 'argv = ["x", "{port}"]\napi = ["chat"]\n'
HEAR = '[models.hear]\nengine = "command"\npath = "/models/ggml.bin"\n[models.hear.command]\n'


def test_a_preset_fills_what_is_not_written(home: Home) -> None:
    config = home.load(HEAR + 'preset = "whisper.cpp"\nready_status = 204\n')
    command = config.models["hear"].command
    assert command.argv[0] == "whisper-server"
    assert (command.api, command.ready_path, command.ready_status) == (("transcription",), "/health", 204)
    origin = config.models["hear"].origin
    assert str(origin("command.argv")) == "preset whisper.cpp"
    assert origin("command.ready_status").line == 6


def test_settings_come_from_profiles_too(home: Home) -> None:
    text = (
        '[profiles.p.command]\nargv = ["x", "{port}"]\napi = ["chat"]\n[models.m]\nengine = "command"\nprofile = "p"\n'
    )
    assert home.load(text).models["m"].command.argv == ("x", "{port}")


def test_what_is_shown_can_be_loaded_again(home: Home) -> None:
    text = HEAR + 'argv = ["a b", "--port", "{port}"]\napi = ["chat", "tools"]\npaths = ["/v1/rerank=/rerank"]\n'
    config = home.load(text + 'environment = ["HOST=[::1]:{port}"]\nprobe_path = "/p"\nprobe_body = "{}"\n')
    assert home.load(show(config)).models["hear"] == config.models["hear"]


@pytest.mark.parametrize(
    ("text", "key", "words"),
    [
        ('preset = "whisper"', "models.hear.command.preset", "did you mean 'whisper.cpp'"),
        ('preset = "no such thing"', "models.hear.command.preset", "there are whisper.cpp, "),
        ('api = ["chat"]', "models.hear.engine", "set command.argv, or command.preset"),
        ('argv = ["x", "{port}"]', "models.hear.engine", "set command.api"),
        ('argv = ["x"]\napi = ["chat"]', "models.hear.command", "{port} or {socket}"),
        ('argv = ["x", "{port}", "{socket}"]\napi = ["chat"]', "models.hear.command", "{port} or {socket}"),
        ('argv = ["x", "{host}"]\napi = ["chat"]', "models.hear.command.argv[1]", "one of the placeholders {port}, "),
        ('argv = ["x", "{port}", "{prot}"]\napi = ["chat"]', "models.hear.command.argv[2]", "did you mean {port}?"),
        ('argv = ["x", "${PORT}"]\napi = ["chat"]', "models.hear.command.argv[1]", "there is no $ before them"),
        ('argv = ["{model}", "{port}"]\napi = ["chat"]', "models.hear.command", "the first word of argv is a program"),
        ('argv = ["x", "{port}", "{context}"]\napi = ["chat"]', "models.hear.command", "set context = … to a number"),
        (
            'preset = "vllm"\nserved_name = "{nme}"',
            "models.hear.command.served_name",
            "{name}, {model} in place of {nme}",
        ),
        ('preset = "vllm"\nenvironment = ["A={host}"]', "models.hear.command.environment[0]", "in place of {host}"),
        ('preset = "vllm"\nready_path = "/{name}"', "models.hear.command.ready_path", "without placeholders"),
        ('preset = "vllm"\npaths = ["/v1/rerank=/{x}"]', "models.hear.command.paths[0]", "without placeholders"),
        (
            'preset = "vllm"\nprobe_path = "/v1/x"\nprobe_body = \'{"model": "{it}"}\'',
            "models.hear.command.probe_body",
            "in place of {it}",
        ),
        ('argv = ["x", "{port}"]\napi = ["dance"]', "models.hear.command.api[0]", "one of "),
        ('preset = "whisper.cpp"\npaths = ["rerank"]', "models.hear.command.paths[0]", "a pair such as"),
        ('preset = "whisper.cpp"\nprobe_body = "{"', "models.hear.command.probe_body", "a text in JSON"),
        ('preset = "whisper.cpp"\nprobe_body = "{}"', "models.hear.command", "no effect without probe_path"),
        ('preset = "ik_llama.cpp"\nkey_env = "K"', "models.hear.command", "key_env or {key_file}"),
        ('preset = "whisper.cpp"\nenvironment = ["{port}"]', "models.hear.command.environment[0]", "NAME=VALUE"),
        ('preset = "whisper.cpp"\nready_path = "health"', "models.hear.command.ready_path", "a path such as"),
        ('preset = "whisper.cpp"\nready_pth = "/"', "models.hear.command.ready_pth", "did you mean 'ready_path'"),
    ],
)
def test_a_mistake_is_named_once(home: Home, text: str, key: str, words: str) -> None:
    config, problems = home.check(HEAR + text)
    assert config is None
    errors = [one for one in problems if one.severity == "error"]
    assert [one.key for one in errors] == [key]
    assert words in errors[0].message


def test_a_model_without_the_file_that_its_command_needs(home: Home) -> None:
    config, problems = home.check(HEAR.replace('path = "/models/ggml.bin"\n', "") + 'preset = "whisper.cpp"')
    assert config is None
    assert "{model} in command.argv needs it" in problems[0].message


def test_a_command_needs_no_file(home: Home) -> None:
    text = '[models.m]\nengine = "command"\n[models.m.command]\npreset = "kokoro"\n'
    assert home.load(text).models["m"].path is None


def test_a_wrong_argument_is_not_quoted_back(home: Home) -> None:
    (error,) = home.errors(HEAR + 'argv = ["x", "{port}", "--api-key=hunter2{x}"]\napi = ["chat"]\n')
    assert "{x}" in error
    assert "hunter2" not in error


def test_doubled_braces_and_those_of_json_stand_for_themselves(home: Home) -> None:
    body = '{"model": "{name}", "messages": [{"content": "{{name}}", "role": "user"}]}'
    text = f"{HEAR}argv = ['x', '{{port}}', '{{{{name}}}}', '{{}}', '{{\"a\":1}}']\napi = ['chat']\n"
    command = home.load(f"{text}probe_path = '/p'\nprobe_body = '{body}'\n").models["hear"].command
    assert command.placeholders == {"port"}
    assert [filled(word, {"port": "1"}) for word in command.argv] == ["x", "1", "{name}", "{}", '{"a":1}']


@pytest.mark.parametrize("key", ["served_name", "probe_body"])
def test_every_key_that_needs_a_model_says_so(home: Home, key: str) -> None:
    text = HEAR.replace('path = "/models/ggml.bin"\n', "") + 'preset = "kokoro"\nprobe_path = "/p"\n'
    (error,) = home.errors(f"{text}{key} = '\"{{model}}\"'\n")
    assert f"{{model}} in command.{key} needs it" in error


@pytest.mark.parametrize(
    ("lines", "key", "engines"),
    [
        ('[models.m]\npath = "/m"\n[models.m.command]\npreset = "vllm"\n', "command", '"command" or "vllm"'),
        ('[models.m]\nremote = "mac"\n', "remote", '"remote"'),
        ('[models.m]\nengine = "flm"\nmodel = "a"\nremote = "mac"\n', "remote", '"remote"'),
        ('[models.m]\nengine = "lemonade"\nmodel = "a"\ncommand = {argv = ["x"]}\n', "command", '"command" or "vllm"'),
    ],
)
def test_settings_of_another_engine_are_a_mistake_that_names_it(home: Home, lines: str, key: str, engines: str) -> None:
    (error,) = home.errors(lines)
    assert f"models.m.{key}: has no effect with engine = " in error
    assert error.endswith(f"it is read with engine = {engines}")


@pytest.mark.parametrize(
    ("line", "engines"),
    [
        ("embeddings = true", '"llama-server", "flm" or "lemonade"'),
        ("sampling = {temperature = 0.5}", '"llama-server" or "lemonade"'),
        ('mmproj = "/p.gguf"', '"llama-server"'),
        ('capabilities = ["chat"]', '"remote"'),
        ("cpu_moe = true", '"llama-server"'),
    ],
)
def test_what_a_command_does_not_read_is_a_warning(home: Home, line: str, engines: str) -> None:
    found = home.warnings(HEAR.replace("[models.hear.command]", f"{line}\n[models.hear.command]") + COMMAND)
    assert [text for text in found if text.endswith(f"it is read with engine = {engines}")]


def test_every_setting_of_a_model_is_one_that_some_engine_reads() -> None:
    names = {each.name for each in fields(ModelSpec)}
    assert set(READ_BY) <= names
    assert names >= OF_REMOTE_MODELS
    assert {engine for engines in READ_BY.values() for engine in engines} == {*OWNED, "remote"}


def test_placeholders_where_they_are_none_are_a_warning(home: Home) -> None:
    lines = 'env = {A = "{port}", B = "{fine}"}\nextra_args = ["--port={port}", "{x}"]\n'
    found = home.warnings(HEAR.replace("[models.hear.command]", f"{lines}[models.hear.command]") + COMMAND)
    assert [text.partition("warning: ")[2].partition(";")[0] for text in found if "not replaced" in text] == [
        "models.hear.env.A: {port} is not replaced here",
        "models.hear.extra_args: {port} is not replaced here",
    ]


def test_a_program_that_is_not_there_is_a_warning(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(home.path))
    text = HEAR + 'api = ["chat"]\nargv = '
    assert "the program nosuch is not on PATH" in str(home.warnings(text + '["nosuch", "{port}"]'))
    assert "no such file: /no/such" in str(home.warnings(text + '["/no/such", "{port}"]'))
    (preset,) = [one for one in home.check(HEAR + 'preset = "whisper.cpp"')[1] if "whisper-server" in one.message]
    assert (preset.key, preset.line, preset.severity) == ("models.hear.command.preset", 5, "warning")
    program = home.path / "nosuch"
    program.write_text("#!/bin/sh\n")
    assert "on PATH" in str(home.warnings(text + '["nosuch", "{port}"]'))
    program.chmod(0o755)
    assert "on PATH" not in str(home.warnings(text + '["nosuch", "{port}"]'))


def test_what_only_a_shell_would_expand_is_a_warning(home: Home) -> None:
    found = home.warnings(
        HEAR + 'api = ["chat"]\nargv = ["~/x", "{port}", "~/y", "--a=$HOME"]\nenvironment = ["A=~/x"]'
    )
    assert [one.split(": ")[2] for one in found if "passed unchanged" in one] == [
        "models.hear.command.argv[2]",
        "models.hear.command.argv[3]",
        "models.hear.command.environment[0]",
    ]


VLLM = '[models.m]\nengine = "vllm"\nmodel = "org/model"\n'


def test_vllm_is_the_command_of_its_preset_and_has_settings_of_its_own(home: Home) -> None:
    text = VLLM + 'sleep_timeout = "1h"\n[models.m.vllm]\nsleep = true\n[models.m.command]\napi = ["embeddings"]\n'
    spec = home.load(text).models["m"]
    assert (spec.command.argv[:2], spec.command.api) == (("vllm", "serve"), ("embeddings",))
    assert (spec.vllm.sleep, spec.sleep_timeout) == (True, 3600.0)


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (VLLM + '[models.m.command]\npreset = "sglang"\n', 'engine = "vllm" has a preset of its own'),
        ('[models.m]\npath = "/m.gguf"\n[models.m.vllm]\nsleep = true\n', 'it is read with engine = "vllm"'),
        (VLLM + "[models.m.vllm]\ngpu_memory_utilization = 1.5\n", "gpu_memory_utilization"),
        ('[models.m]\nengine = "vllm"\n', "set path = "),
    ],
)
def test_mistakes_of_vllm_are_named(home: Home, lines: str, words: str) -> None:
    (error,) = home.errors(lines)
    assert words in error
