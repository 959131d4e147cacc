"""What a configuration may not do: unsafe names, flags that accelerd owns, listening without a key."""

from __future__ import annotations

import errno
import os
import socket

import pytest
import tomli_w
from config_home import Home
from hypothesis import given
from hypothesis import strategies as st

from accelerd.config import ConfigErrors
from accelerd.config.values import check_name

GOOD = ["a", "qwen3", "Qwen/Qwen3-30B-A3B:Q4_K_M", "gpt-4.1", "a..b", "0", "x" * 128, "a/b/c", "a_b-c.d:e", "_x",
        "claude-sonnet-4@20250514", "model[1m]", "My Model (new)", "Größtes", "日本語", "a;b", "a%2f"]  # fmt: skip
BAD = ["", "-x", ".x", "/x", " x", "x ", "a\n", "a\tb", "a\r\nX-Evil: 1", "a\0", "a\x1b[31m", "a\u202e", "a\u00a0b",
       "x" * 129, "a/../b", "a/..", "../a", "--host", "x\u2028", "a\u200b", "m@tune"]  # fmt: skip


def quoted(name: str) -> str:
    return '"' + "".join(f"\\U{ord(c):08x}" for c in name) + '"'


@pytest.mark.parametrize("name", GOOD)
def test_names_that_are_allowed(home: Home, name: str) -> None:
    config = home.load(
        f'[models.{quoted(name)}]\npath = "/m"\n[models.other]\npath = "/o"\naliases = [{quoted("z" + name[1:])}]'
    )
    assert list(config.models) == [name, "other"]
    assert config.models["other"].aliases == ("z" + name[1:],)


@pytest.mark.parametrize("name", BAD)
def test_names_that_could_forge_a_header_a_log_line_or_a_path_are_refused(home: Home, name: str) -> None:
    for text in (
        f"[models.{quoted(name)}]\npath = '/m'",
        f"[models.m]\npath = '/m'\naliases = ['ok', {quoted(name)}]",
        f"[profiles.{quoted(name)}]\n[models.m]\npath = '/m'",
        f"[models.m]\npath = '/m'\ngroup = {quoted(name)}",
    ):
        errors = home.errors(text)
        assert len(errors) == 1
        assert "expected a name of at most 128 printable characters" in errors[0]
        assert errors[0].isprintable()


@given(st.text(max_size=20))
def test_an_accepted_name_is_safe_everywhere(name: str) -> None:
    try:
        check_name(name)
    except ValueError:
        return
    assert name.isprintable()
    assert name == name.strip()
    assert name[0] not in "-./"
    assert ".." not in name.split("/")


@pytest.mark.parametrize("name", ["..", "../x", "a/../../etc/passwd", "/etc/passwd", "a\0b", "..%2fx"])
def test_a_name_that_is_a_path_out_of_the_folder_is_no_name(name: str) -> None:
    with pytest.raises(ValueError, match="a name of at most 128"):
        check_name(name)


def test_names_and_aliases_are_unique_and_the_error_names_both_places(home: Home) -> None:
    home.write('[models.a]\npath = "/a"\naliases = ["x", "b", "a"]\n[models.b]\npath = "/b"\naliases = [\n"x"]\n')
    home.write('[models.c]\npath = "/c"\naliases = ["a", "y", "y"]\n', "accelerd.toml.d/c.toml")
    assert home.errors() == [
        "accelerd.toml:3: models.a.aliases[1]: the name 'b' is already taken by models.b (accelerd.toml:4)",
        "accelerd.toml:7: models.b.aliases[0]: the name 'x' is already taken by models.a (accelerd.toml:3)",
        "accelerd.toml.d/c.toml:3: models.c.aliases[0]: the name 'a' is already taken by models.a (accelerd.toml:1)",
    ]


def test_a_name_that_a_model_has_already_is_a_warning(home: Home) -> None:
    config, problems = home.check('[models.a]\npath = "/a"\naliases = ["x", "a", "x", "b"]\n')
    assert [str(problem) for problem in problems if problem.key != "models.a.path"] == [
        "accelerd.toml:3: warning: models.a.aliases[1]: 'a' is a name of this model already",
        "accelerd.toml:3: warning: models.a.aliases[2]: 'x' is a name of this model already",
    ]
    assert config is not None
    assert config.models["a"].aliases == ("x", "b")


@pytest.mark.parametrize(
    ("argument", "flag", "why"),
    [
        ("--host", "--host", "address of the engine"),
        ("--host=0.0.0.0", "--host", "address of the engine"),
        ("--port", "--port", "address of the engine"),
        ("--api-key", "--api-key", "generates a key"),
        ("--api_key", "--api-key", "generates a key"),  # llama-server takes _ for - in long flags
        ("--api-key-file", "--api-key-file", "generates a key"),
        ("--alias", "--alias", "aliases"),
        ("-a", "-a", "aliases"),
        ("--path", "--path", "serve files"),
        ("--media-path", "--media-path", "serve files"),
        ("-m", "-m", "select the model"),
        ("-hf", "-hf", "select the model"),
        ("--tools", "--tools", "run commands"),
        ("--agent", "--agent", "run commands"),
        ("-ag", "-ag", "run commands"),
        ("--mcp-servers-json", "--mcp-servers-json", "run commands"),
        ("--mcp_anything", "--mcp-anything", "run commands"),
        ("--models-dir", "--models-dir", "loads and unloads"),
        ("--hf-token", "--hf-token", "accelerd downloads models itself"),
        ("-c", "-c", "context = "),
        ("--parallel", "--parallel", "parallel = "),
        ("--list-devices", "--list-devices", "exit"),
    ],
)
def test_flags_that_accelerd_owns_or_that_open_a_shell_are_refused_with_the_reason(
    home: Home, argument: str, flag: str, why: str
) -> None:
    for table in ("defaults", "profiles.p", "models.m"):
        text = f"[{table}]\nextra_args = ['--verbose',\n'{argument}', '1']\n[models.m2]\npath = '/m'\n"
        text = text.replace("[models.m]", "[models.m]\npath = '/m'")
        (error,) = home.errors(text)
        line = 4 if table == "models.m" else 3
        assert error.startswith(f"accelerd.toml:{line}: {table}.extra_args[1]: {flag} is not allowed: ")
        assert why in error


@pytest.mark.parametrize(
    ("argument", "flag"),
    [("-c 99", "-c"), ("--verbose ", "--verbose"), ("--tools\\tall", "--tools"), ("-b  512", "-b")],
)
def test_a_flag_and_its_value_are_two_words(home: Home, argument: str, flag: str) -> None:
    (error,) = home.errors(f'[defaults]\nextra_args = ["--verbose", "{argument}"]\n')
    assert error.startswith("accelerd.toml:2: defaults.extra_args[1]: ")
    assert f'two: "{flag}", "…"' in error


@pytest.mark.parametrize("value", ["- a b", "-1 2", "a -b c", '--kwargs={"a": 1}', "a\\n-b c"])
def test_a_value_may_have_spaces(home: Home, value: str) -> None:
    escaped = value.replace('"', '\\"')
    assert home.errors(f'[defaults]\nextra_args = ["--verbose", "{escaped}"]\n') == []


def test_a_refused_flag_is_found_beside_another_mistake_in_the_same_array(home: Home) -> None:
    assert [error.split(": ")[1] for error in home.errors("[defaults]\nextra_args = [1, '--tools']")] == [
        "defaults.extra_args[0]",
        "defaults.extra_args[1]",
    ]


@pytest.mark.parametrize("key", ["model", "path", "binary", "mmproj", "chat_template_file"])
@pytest.mark.parametrize("value", ["x\\u0000y", "x\\ny", ""])
def test_nothing_that_breaks_argv_apart(home: Home, key: str, value: str) -> None:
    rest = "" if key in ("model", "path") else "path = '/m'\n"
    (error,) = home.errors(f'[models.m]\n{rest}{key} = "{value}"\n')
    assert f"models.m.{key}: expected " in error


@pytest.mark.parametrize("value", ["x --host 0.0.0.0", "--host", "-m", "x y"])
def test_a_model_id_is_never_a_flag(home: Home, value: str) -> None:
    (error,) = home.errors(f"[models.m]\nmodel = '{value}'\n")
    assert "models.m.model: expected a model of Hugging Face" in error


def test_a_path_is_never_a_flag(home: Home) -> None:
    spec = home.load("[models.m]\npath = '--host'\n").models["m"]
    assert spec.path == f"{home.folder}/--host"


def test_one_token_stays_one_token(home: Home) -> None:
    tokens = ["--chat-template-kwargs", '{"a": "b c"}', "$HOME", "${X}", "a b  c", "*", "~", "`id`", "", "\\", "%s"]
    document = {"models": {"m": {"path": "/m", "extra_args": tokens, "env": {"X": "$(id) {port} ~"}}}}
    spec = home.load(tomli_w.dumps(document)).models["m"]
    assert spec.extra_args == tuple(tokens)
    assert spec.env == (("X", "$(id) {port} ~"),)


def test_nul_in_an_argument_is_refused_and_not_quoted_back(home: Home) -> None:
    (error,) = home.errors('[defaults]\nextra_args = ["secret\\u0000"]')
    assert "extra_args[0]: expected a string without NUL characters, got a string" in error


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("LLAMA_API_KEY", "generates a key"),
        ("LLAMA_ARG_HOST", "equivalent to a llama-server flag"),
        ("LLAMA_ARG_TOOLS", "equivalent to a llama-server flag"),
        ("ACCELERD_INSTANCE", "recognise its processes"),
        ("ACCELERD_ANYTHING", "recognise its processes"),
    ],
)
def test_environment_that_accelerd_owns_is_refused(home: Home, name: str, why: str) -> None:
    (error,) = home.errors(f"[defaults]\nenv.{name} = 'hunter2'")
    assert error.startswith(f"accelerd.toml:2: defaults.env.{name}: cannot set {name}: ")
    assert why in error
    assert "hunter2" not in error


@pytest.mark.parametrize("name", ["1A", "A=B", "A B", "A\\n", "", "Ä"])
def test_names_of_variables(home: Home, name: str) -> None:
    (error,) = home.errors(f'[defaults.env]\n"{name}" = "hunter2"')
    assert "expected a variable's name of letters, digits and _" in error


def test_values_of_env_are_never_shown(home: Home) -> None:
    problems = home.errors("[defaults.env]\nA = ['hunter2']\nB = {C = 'hunter2'}\nD = \"hunter2\\u0000\"\nE = 424242")
    assert len(problems) == 4
    assert not any("hunter2" in text or "424242" in text for text in problems)
    config = home.load("[models.m]\npath='/m'\nenv.T = 'hunter2'")
    assert "hunter2" not in repr(config)


@pytest.mark.parametrize("address", ["0.0.0.0:4000", "[::]:4000", "192.168.7.7:4000", "[fd00::1]:4000"])
def test_listening_beyond_the_machine_needs_a_key_file(home: Home, address: str) -> None:
    text = f'[server]\nlisten = ["127.0.0.1:4000",\n"{address}"]\n'
    assert home.errors(text) == [
        f"accelerd.toml:3: server.listen[1]: {address} can be reached from other machines without a key; "
        'set key_file = "~/.config/accelerd/keys" (one key per line) or listen on 127.0.0.1'
    ]
    keys = home.path / "keys"
    with_keys = text + 'key_file = "~/keys"\n'
    assert home.errors(with_keys) == [f"accelerd.toml:4: server.key_file: no such file: {keys}"]
    keys.write_text("k")
    keys.chmod(0o600)
    assert home.load(with_keys).server.key_file == str(keys)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o602])
def test_a_key_file_that_others_can_read_is_refused_with_the_remedy(home: Home, mode: int) -> None:
    keys = home.path / "keys"
    keys.write_text("hunter2")
    keys.chmod(mode)
    assert home.errors('[server]\nkey_file = "~/keys"') == [
        f"accelerd.toml:2: server.key_file: other users can read the keys in {keys}; run: chmod 600 {keys}"
    ]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "no such file: {}"),
        (b"", "{} contains no key"),
        (b"# sk-hunter2\n \n", "{} contains no key"),
        (b"hunter2\xff", "cannot read {}: it is not UTF-8"),
        (b"# two\nhunter2\nhunt\x7fer2\n", "line 3 of {} has control characters, which no key has; write it anew"),
    ],
)
def test_a_key_file_without_keys_is_a_mistake(home: Home, content: bytes | None, reason: str) -> None:
    keys = home.path / "keys"
    if content is not None:
        keys.write_bytes(content)
        keys.chmod(0o600)
    mistake = f"accelerd.toml:2: server.key_file: {reason.format(keys)}"
    assert home.errors('[server]\nkey_file = "~/keys"') == [mistake]


def test_a_key_file_that_cannot_be_reached(home: Home) -> None:
    (home.path / "keys").symlink_to("keys")
    (error,) = home.errors('[server]\nkey_file = "~/keys"')
    assert error == f"accelerd.toml:2: server.key_file: cannot read {home.path}/keys: {os.strerror(errno.ELOOP)}"


def test_a_key_file_that_is_no_file(home: Home) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(home.path / "keys"))
    (error,) = home.errors('[server]\nkey_file = "~/keys"')
    assert f"expected a regular file at {home.path}/keys" in error


def test_listening_twice_on_one_address(home: Home) -> None:
    (error,) = home.errors('[server]\nlisten = ["[::1]:4000", "[0::1]:4000"]')
    assert error == 'accelerd.toml:2: server.listen[1]: "[::1]:4000" is listed twice'


def test_load_refuses_what_check_reports(home: Home) -> None:
    home.write("[defaults]\nextra_args = ['--tools', 'all']")
    with pytest.raises(ConfigErrors, match="run commands"):
        home.load()
