"""[remotes.NAME] and models of the engine `remote`: what is taken, shown and refused."""

from __future__ import annotations

import pytest

from accelerd.config import check
from accelerd.config.diff import diff
from accelerd.config.model import Price
from accelerd.config.show import show
from tests.config.config_home import Home
from tests.harness import ROOT

MAC = '[remotes.mac]\nurl = "https://mac.lan:1234/v1"\n'
BIG = '[models.big]\nengine = "remote"\nremote = "mac"\nmodel = "qwen3-30b"\n'


def test_a_remote_and_its_model(home: Home) -> None:
    text = MAC + 'stall_timeout = "30s"\nheaders = {X-Team = "blue"}\n' + BIG + 'capabilities = ["chat"]\n'
    config = home.load(text)
    remote, spec = config.remotes["mac"], config.models["big"]
    assert (remote.api, remote.stall_timeout, remote.headers) == ("openai", 30.0, (("X-Team", "blue"),))
    assert (spec.elsewhere, spec.capabilities, spec.slots) == (True, ("chat",), 1)


def test_a_price_of_a_model_here_or_elsewhere(home: Home) -> None:
    priced = "[models.big.price]\ninput = 0.5\noutput = 2\n[models.own]\npath = '/m'\nprice = {output = 0.25}\n"
    config = home.load(MAC + BIG + priced)
    assert [spec.price for spec in config.models.values()] == [Price(0.5, 2.0), Price(0.0, 0.25)]
    shown = show(config)
    for line in ("price.input = 0.5  # model (accelerd.toml:8)", "price.output = 2.0  # ", "price.output = 0.25  # "):
        assert line in shown
    assert shown.count("price.") == 3
    assert home.load(shown) == config
    for wrong in ("price.input = -1", "price.input = true", "price = 3", "price.per_image = 1"):
        problems = home.check(MAC + BIG + wrong)[1]
        assert [problem.key.partition(".price")[0] for problem in problems] == ["models.big"], wrong


def test_values_of_headers_are_not_shown(home: Home) -> None:
    said = show(home.load(MAC + 'headers = {Authorization = "Basic secret"}\n' + BIG))
    assert "secret" not in said
    assert 'url = "https://mac.lan:1234/v1"' in said
    assert "Basic secret" not in repr(home.load(MAC + 'headers = {Authorization = "Basic secret"}\n' + BIG))


def test_defaults_for_models_here_do_not_concern_it(home: Home) -> None:
    config = home.load('[defaults]\nhome = "toolbox"\ngroup = "gpu"\n' + MAC + BIG)
    assert not config.models["big"].contained


def test_its_models_are_replaced_when_a_remote_changes(home: Home) -> None:
    before, after = home.load(MAC + BIG), home.load(MAC.replace("1234", "1235") + BIG)
    changes = diff(before, after)
    assert (changes.relaunch, changes.settings) == (("big",), ("remotes.mac",))


@pytest.mark.parametrize(
    ("text", "key", "words"),
    [
        (BIG, "models.big.remote", "there is no [remotes.mac]"),
        (MAC + BIG.replace('"mac"', '"mack"'), "models.big.remote", "did you mean 'mac'"),
        (MAC + BIG.replace('remote = "mac"\n', ""), "models.big", 'set remote = "…"'),
        (MAC + BIG.replace('model = "qwen3-30b"\n', ""), "models.big", "the name that the remote has for it"),
        ('[remotes.mac]\napi = "openai"\n' + BIG, "remotes.mac", 'set url = "…"'),
        (MAC + 'key_file = "/k"\ncredential = "k"\n' + BIG, "remotes.mac.credential", "not both"),
        ('[remotes.mac]\nurl = "ftp://mac"\n' + BIG, "remotes.mac.url", "the address of a server"),
        ('[remotes.mac]\nurl = "https://me:pw@mac"\n' + BIG, "remotes.mac.url", "without user and password"),
        ('[remotes.mac]\nurl = "https://mac/v1?key=x:pw"\n' + BIG, "remotes.mac.url", "what begins with ? or #"),
        ('[remotes.mac]\nurl = "https://mac/v1#x"\n' + BIG, "remotes.mac.url", "what begins with ? or #"),
        ('[remotes.mac]\nurl = "mac.lan:1234"\n' + BIG, "remotes.mac.url", "the address of a server"),
        ('[remotes.mac]\nurl = "https://mac:99999/v1"\n' + BIG, "remotes.mac.url", "a port up to 65535"),
        (MAC + 'proxy = "http://me:pw@box:1"\n' + BIG, "remotes.mac.proxy", "without user"),
        (MAC + 'headers = {Host = "x"}\n' + BIG, "remotes.mac.headers.Host", "the name of a header"),
        (MAC + 'headers = {X = "a\\nb"}\n' + BIG, "remotes.mac.headers.X", "a text on one line"),
        (MAC + 'proxy = "socks5://box:1080"\n' + BIG, "remotes.mac.proxy", "an HTTP proxy"),
    ],
)
def test_mistakes(home: Home, text: str, key: str, words: str) -> None:
    config, problems = home.check(text)
    assert config is None
    errors = [one for one in problems if one.severity == "error"]
    assert [one.key for one in errors] == [key]
    assert words in errors[0].message
    assert ":pw" not in errors[0].message
    assert "99999" not in errors[0].message


def test_a_key_that_others_can_read_keeps_nothing_from_being_served(home: Home) -> None:
    path = home.write("sk-1\n", "mac.key")
    path.chmod(0o644)
    text = MAC.replace("https", "http") + f'key_file = "{path}"\nca_file = "/no/such/file"\n' + BIG
    config, problems = home.check(text)
    assert config is not None
    said = {one.key: one.message for one in problems}
    assert "chmod 600" in said["remotes.mac.key_file"]
    assert "without encryption" in said["remotes.mac.url"]
    assert "no such file" in said["remotes.mac.ca_file"]


def say(home: Home, text: str, environ: dict[str, str] | None = None) -> dict[str, str]:
    """The warnings, by key. There are no mistakes."""
    home.write(text + BIG)
    config, problems = check(home.main, home.path, environ)
    assert config is not None
    return {one.key: one.message for one in problems}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "contains no key"),
        (b"# mine\n\n", "contains no key"),
        (b"sk-hunter2\x1b[31m\n", "line 1 of {} has control characters"),
        (b"# mine\nsk-hun\rter2\n", "line 2 of {} has control characters"),
        (b"sk-hunter2\x00\n", "line 1 of {} has control characters"),
        ("sk-hünter2\n".encode(), "has spaces or letters"),
        (b"Bearer sk-hunter2\n", "has spaces or letters"),
        (b"sk-hunter2\nsk-hunter3\n", "has 2 keys; only the first is used"),
    ],
)
def test_a_key_that_cannot_be_sent_is_told_and_not_printed(home: Home, content: bytes, says: str) -> None:
    path = home.write(content, "mac.key")
    said = say(home, MAC + f'key_file = "{path}"\n')
    assert says.format(path) in said["remotes.mac.key_file"]
    assert str(path) in said["remotes.mac.key_file"]
    assert not any("hunter" in text or "\x1b" in text for text in said.values())


def test_a_credential_without_systemd_is_told_by_the_daemon_alone(home: Home) -> None:
    text = MAC + 'credential = "mac-key"\n'
    assert say(home, text) == {}
    assert "LoadCredential=mac-key:" in say(home, text, {})["remotes.mac.credential"]
    environ = {"CREDENTIALS_DIRECTORY": str(home.folder)}
    assert "no such file" in say(home, text, environ)["remotes.mac.credential"]
    home.write("sk-1\n", "mac-key")
    assert say(home, text, environ) == {}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "contains no certificate in PEM"),
        (b"\x30\x82\x01", "contains no certificate in PEM"),
        (b"-----BEGIN PRIVATE KEY-----\nMIIB\n-----END PRIVATE KEY-----\n", "it has a private key"),
        (b"-----BEGIN CERTIFICATE-----\nMII\n-----END CERTIFICATE-----\n", "a certificate that is broken"),
        (b"-----BEGIN CERTIFICATE-----\naGVsbG8=\n-----END CERTIFICATE-----\n", "a certificate that is broken"),
    ],
)
def test_a_file_without_a_certificate_is_told(home: Home, content: bytes, says: str) -> None:
    path = home.write(content, "ca.pem")
    said = say(home, MAC + f'ca_file = "{path}"\n')["remotes.mac.ca_file"]
    assert says in said
    assert str(path) in said


def test_certificates_that_can_be_used(home: Home) -> None:
    for path in (ROOT / "tests/fakes/certificates").iterdir():
        assert say(home, MAC + f'ca_file = "{path}"\n') == {}
    assert "no TLS" in say(home, MAC.replace("https", "http") + f'ca_file = "{path}"\n')["remotes.mac.ca_file"]


@pytest.mark.parametrize("host", ["mac.lan", "192.168.1.7", "[fd00::1]", "128.0.0.1"])
@pytest.mark.parametrize("header", ["Authorization", "X-API-Key", "X-Auth-Token", "Cookie"])
def test_headers_with_secrets_are_not_sent_in_the_clear(home: Home, host: str, header: str) -> None:
    text = f'[remotes.mac]\nurl = "http://{host}:1/v1"\nheaders = {{{header} = "hunter2"}}\n'
    (said,) = say(home, text).values()
    assert said.startswith(f"the header {header} is sent to this address without encryption")
    assert say(home, text.replace(header, "X-Team")) == {}
    for here in ("localhost", "127.0.0.1", "127.8.9.1", "[::1]"):
        assert say(home, text.replace(host, here)) == {}


@pytest.mark.parametrize(("api", "header", "told"), [
    ("openai", "authorization", True), ("openai", "x-api-key", False), ("anthropic", "X-Api-Key", True),
    ("anthropic", "Authorization", False),
])  # fmt: skip
def test_a_header_in_place_of_the_key(home: Home, api: str, header: str, told: bool) -> None:
    path = home.write("sk-1\n", "mac.key")
    said = say(home, f'{MAC}api = "{api}"\nkey_file = "{path}"\nheaders = {{{header} = "x"}}\n')
    assert (said == {f"remotes.mac.headers.{header}": "this is sent in place of the key, which has no effect"}) is told


def test_names_with_dots_are_quoted(home: Home) -> None:
    text = (MAC + 'ca_file = "/no"\n').replace("remotes.mac", 'remotes."mac.lan"')
    assert list(say(home, text + '[remotes.mac]\nurl = "https://x"\n')) == ['remotes."mac.lan".ca_file']


@pytest.mark.parametrize(
    ("end", "cut"),
    [
        ("/v1/chat/completions", "/chat/completions"),
        ("/v1/chat/completions/", "/chat/completions"),
        ("/v1/models", "/v1/models"),
        ("/api/chat", "/api/chat"),
        ("/api/v1/completions", "/completions"),
        ("/v1/messages", "/messages"),
        ("/openai/embeddings", "/embeddings"),
        ("/api/tags", "/api/tags"),
    ],
)
def test_an_address_ends_before_the_paths_of_the_api(home: Home, end: str, cut: str) -> None:
    text = f'[remotes.mac]\nurl = "https://mac.lan:1234{end}"\n{BIG}'
    (error,) = home.errors(text)
    assert f'an address without "{cut}" at its end' in error
    assert home.errors(text.replace(cut, "")) == []


@pytest.mark.parametrize("end", ["", "/", "/v1", "/v1/", "/api/v1", "/v1beta/openai", "/chat", "/models/v1", "/api"])
def test_addresses_that_are_none_of_these(home: Home, end: str) -> None:
    assert home.errors(f'[remotes.mac]\nurl = "https://mac.lan:1234{end}"\n{BIG}') == []


def test_what_a_model_can_do_is_listed_once(home: Home) -> None:
    home.write(MAC + BIG + 'capabilities = ["chat", "tools", "chat"]\n')
    config, problems = check(home.main, home.path)
    assert config is not None
    assert config.models["big"].capabilities == ("chat", "tools")
    assert [(one.severity, one.key, one.message) for one in problems] == [
        ("warning", "models.big.capabilities[2]", '"chat" is listed twice, and has no effect the second time')
    ]


def test_what_is_idle_there_is_its_servers_affair_unless_that_is_written_for_the_model(home: Home) -> None:
    ollama = MAC + 'api = "ollama"\n' + BIG
    told = home.load('[defaults]\nidle_timeout = "1m"\n' + ollama).models["big"]
    assert told.idle_after is None
    config = home.load(ollama + 'idle_timeout = "1m"\n')
    assert config.models["big"].idle_after == 60
    assert '\nidle_timeout = "1m"' in show(config)
    assert "\nidle_timeout" not in show(home.load(ollama))
    assert not [one for one in home.check(ollama + 'idle_timeout = "1m"\n')[1] if "idle_timeout" in one.key]
    (problem,) = [one for one in home.check(MAC + BIG + 'idle_timeout = "1m"\n')[1] if "idle_timeout" in one.key]
    assert 'mac has api = "openai", and only Ollama' in problem.message


def test_which_models_a_remote_offers(home: Home) -> None:
    config = home.load(MAC + 'models = ["qwen*", "bge-m3"]\n[remotes.box]\nurl = "http://box:11434"\napi = "ollama"\n')
    offered = {name: remote.patterns for name, remote in config.remotes.items()}
    assert offered == {"mac": ("qwen*", "bge-m3"), "box": ("*",)}
    assert [config.remotes["mac"].offers(name) for name in ("qwen3:8b", "bge-m3", "bge-m3:latest")] == [
        True,
        True,
        False,
    ]
    assert home.load(show(config)).remotes == config.remotes
    assert home.check(MAC + "models = [3]")[1]
    assert not home.load(MAC + "models = []").remotes["mac"].patterns


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ('[routes.r]\nmodels = ["mac/qwen3:8b"]\n', "routes.r.models[0]"),
        ('[routes.r]\nmodels = ["big"]\nfallbacks = ["mac/qwen3:8b"]\n', "routes.r.fallbacks[0]"),
        ('[server]\ndefault_model = "mac/qwen3:8b"\n', "server.default_model"),
    ],
)
def test_what_a_remote_only_offers_is_named_with_the_table_that_it_needs(home: Home, text: str, key: str) -> None:
    (problem,) = [one for one in home.check(MAC + BIG + text)[1] if one.severity == "error"]
    assert problem.key == key
    assert 'remote = "mac" and model = "qwen3:8b"' in problem.message


def test_what_a_model_elsewhere_does_not_read_is_told_once(home: Home) -> None:
    home.write(MAC + BIG + 'pin = true\npath = "/c"\nmmproj = "/p"\n')
    found = {one.key: (one.severity, one.message) for one in home.check()[1]}
    assert found["models.big.pin"] == (
        "warning",
        'has no effect with engine = "remote" (model (accelerd.toml:4)), whose models run elsewhere',
    )
    assert found["models.big.mmproj"][1].endswith('it is read with engine = "llama-server"')
    assert found["models.big.path"][0] == "error"
    assert len(home.check()[1]) == len(found) == 3
