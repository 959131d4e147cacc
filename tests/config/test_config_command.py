"""The table [models.NAME.command]: presets, what wins over them, and mistakes."""

from __future__ import annotations

import pytest

from accelerd.config.show import show
from tests.config.config_home import Home

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
        ('argv = ["x", "{host}"]\napi = ["chat"]', "models.hear.command.argv[1]", "one of the placeholders"),
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
    assert "{model} in command needs it" in problems[0].message


def test_a_command_needs_no_file(home: Home) -> None:
    text = '[models.m]\nengine = "command"\n[models.m.command]\npreset = "kokoro"\n'
    assert home.load(text).models["m"].path is None
