"""Variants in accelerd.toml: what they say, what they must not, and that a reload keeps the process."""

from __future__ import annotations

import json

import pytest

from accelerd.config.diff import diff
from accelerd.config.show import show
from tests.config.config_home import Home

MODEL = '[models.m]\npath = "/m.gguf"\n'
ROUTE = '[routes.r]\nmodels = ["m"]\n'


def test_fields_may_be_nested_or_dotted(home: Home) -> None:
    text = MODEL + (
        '[models.m.variants."gpt 4"]\nset = {temperature = 0.2, stop = ["a"], chat_template_kwargs = {x = {y = 1}}}\n'
        'default = {"chat_template_kwargs.enable_thinking" = false, empty = {}}\nremove = ["seed", "a.b"]\n'
        'system = "Be brief.\\nAlways."\nsystem_mode = "instead"\nhidden = true\naliases = ["fast-*"]\n'
        "[models.m.variants.other.set]\ntop_k = 3\n"
    )
    config = home.load(text)
    one, other = config.models["m"].variants
    assert {path: json.loads(value) for path, value in one.set} == {
        ("temperature",): 0.2,
        ("stop",): ["a"],
        ("chat_template_kwargs", "x", "y"): 1,
    }
    assert dict(one.default) == {("chat_template_kwargs", "enable_thinking"): b"false", ("empty",): b"{}"}
    assert one.remove == (("seed",), ("a", "b"))
    assert (one.system, one.system_mode, one.hidden, one.aliases) == (
        "Be brief.\nAlways.",
        "instead",
        True,
        ("fast-*",),
    )
    assert (other.name, dict(other.set)) == ("other", {("top_k",): b"3"})
    assert config.models["m"].origin("variants.gpt 4.remove").line == 6
    again = home.load(show(config)).models["m"]
    assert again.variants == (one, other)


def test_routes_have_variants_too(home: Home) -> None:
    config = home.load(MODEL + ROUTE + "[routes.r.variants.calm]\nset = {temperature = 0}\n")
    assert config.routes["r"].variants[0].name == "calm"
    assert home.load(show(config)).routes == config.routes


def test_a_route_may_name_a_variant(home: Home) -> None:
    text = MODEL + "[models.m.variants.v]\n" + '[routes.r]\nmodels = ["v"]\nfallbacks = ["m"]\n'
    assert home.load(text).routes["r"].models == ("v",)


@pytest.mark.parametrize(
    ("text", "key", "words"),
    [
        ('set = {model = "x"}', "set", "without model, by which"),
        ("default = {stream = true}", "default", "without stream, by which"),
        ('set = "x"', "set", "a table of request fields"),
        ("set = {at = nan}", "set", "values that JSON has"),
        ('set = {"a..b" = 1}', "set", "dots between the parts"),
        ('remove = ["stream.x"]', "remove[0]", "not model or stream"),
        ('remove = [""]', "remove[0]", "the name of a field"),
        ('system_mode = "after"', "system_mode", 'one of "before", "instead"'),
        ('sytem = "x"', "sytem", "did you mean 'system'"),
    ],
)
def test_a_mistake_is_named_once(home: Home, text: str, key: str, words: str) -> None:
    config, problems = home.check(MODEL + f"[models.m.variants.v]\n{text}\n")
    assert config is None
    errors = [one for one in problems if one.severity == "error"]
    assert [one.key for one in errors] == [f"models.m.variants.v.{key}"]
    assert words in errors[0].message


@pytest.mark.parametrize(
    "more",
    [
        "[models.m.variants.m]\n",
        '[models.o]\npath = "/o.gguf"\n[models.m.variants.o]\n',
        "[models.m.variants.v]\n[routes.r.variants.v]\n" + ROUTE,
        '[models.m.variants.v]\naliases = ["m"]\n',
        '[models.o]\npath = "/o.gguf"\nhidden_aliases = ["v"]\n[models.m.variants.v]\n',
    ],
)
def test_a_name_that_is_taken_names_both_places(home: Home, more: str) -> None:
    errors = home.errors(MODEL + more)
    assert len(errors) == 1
    assert "is already taken by" in errors[0]
    assert errors[0].count("accelerd.toml:") == 2


def test_a_route_that_leads_to_a_variant_of_itself(home: Home) -> None:
    text = MODEL + '[routes.r]\nmodels = ["m"]\nfallbacks = ["calm"]\n[routes.r.variants.calm]\n'
    assert any("leads back to itself" in error for error in home.errors(text))


def test_a_changed_variant_is_no_reason_for_a_new_process(home: Home) -> None:
    before = home.load(MODEL + "[models.m.variants.v]\nset = {top_k = 1}\n")
    after = home.load(MODEL + "[models.m.variants.v]\nset = {top_k = 2}\n")
    assert diff(before, after).updated == ("m",)


@pytest.mark.parametrize(
    ("model", "told"),
    [
        ('path = "/m"\n', False),
        ('path = "/m"\nembeddings = true\n', True),
        ('engine = "command"\npath = "/m"\ncommand = {preset = "whisper.cpp"}\n', True),
        ('engine = "command"\npath = "/m"\ncommand = {preset = "koboldcpp"}\n', False),
        ('engine = "remote"\nremote = "r"\nmodel = "m"\ncapabilities = ["speech"]\n', True),
        ('engine = "remote"\nremote = "r"\nmodel = "m"\ncapabilities = ["messages"]\n', False),
        ('engine = "remote"\nremote = "r"\nmodel = "m"\n', False),
    ],
)
def test_a_system_prompt_for_a_model_that_does_not_chat_is_a_warning(home: Home, model: str, told: bool) -> None:
    remote = '[remotes.r]\nurl = "https://box"\n'
    _, problems = home.check(f'{remote}[models.m]\n{model}[models.m.variants."a.b"]\nsystem = "Be brief."\n')
    found = [one.key for one in problems if "a system prompt is for chats" in one.message]
    assert found == (['models.m.variants."a.b".system'] if told else [])
    assert not [one for one in problems if one.severity == "error"]
