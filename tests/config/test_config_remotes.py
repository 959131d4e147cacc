"""[remotes.NAME] and models of the engine `remote`: what is taken, shown and refused."""

from __future__ import annotations

import pytest

from accelerd.config.diff import diff
from accelerd.config.model import Price
from accelerd.config.show import show
from tests.config.config_home import Home

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
        ('[remotes.mac]\nurl = "https://me:pw@mac"\n' + BIG, "remotes.mac.url", "the address of a server"),
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
