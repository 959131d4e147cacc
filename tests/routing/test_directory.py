"""What a name means: models, aliases, routes, and the prefixes that say where a model runs."""

from __future__ import annotations

from typing import Any

import pytest

from accelerd.base.errors import AccelError
from accelerd.config.model import ModelSpec, Route
from accelerd.routing.directory import Directory

ON_NPU = {"small", "npu/tiny", "clash"}


def directory(*models: ModelSpec, routes: tuple[Route, ...] = ()) -> Directory:
    return Directory(models, routes, lambda spec: "npu" if spec.name in ON_NPU else "")


BIG, SMALL = ModelSpec("big", path="/b.gguf", aliases=("gpt-4o",)), ModelSpec("small", engine="flm", model="qwen3:4b")


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("big", "big"),
        ("gpt-4o", "big"),
        ("small", "small"),
        ("local/big", "big"),
        ("npu/small", "small"),
        ("both", "both"),
    ],
)
def test_every_name_is_found(name: str, meant: str) -> None:
    found = directory(BIG, SMALL, routes=(Route("both", ("big", "small")),)).find(name)
    assert found.name == meant


@pytest.mark.parametrize(
    "name", ["npu/big", "local/small", "local/gpt-4o", "local/local/big", "", "/", "/big", "xnpu/small"]
)
def test_a_prefix_that_is_not_true_is_no_name(name: str) -> None:
    with pytest.raises(AccelError) as caught:
        directory(BIG, SMALL).find(name)
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")


def test_a_name_that_begins_with_the_prefix_is_not_doubled() -> None:
    tiny = ModelSpec("npu/tiny", engine="flm", model="qwen3:0.6b")
    known = directory(tiny)
    assert known.find("npu/tiny") is tiny
    assert known.aliases(tiny) == ()
    for name in ("npu/npu/tiny", "local/npu/tiny"):
        with pytest.raises(AccelError):
            known.find(name)


def test_a_configured_name_wins_over_a_generated_one() -> None:
    clash, other = (
        ModelSpec("clash", engine="flm", model="x"),
        ModelSpec("other", path="/o.gguf", aliases=("npu/clash",)),
    )
    known = directory(clash, other)
    assert known.find("npu/clash") is other
    assert known.aliases(clash) == ()
    assert known.aliases(other) == ("npu/clash", "local/other")


def test_a_slip_is_answered_with_what_was_meant_routes_and_prefixes_too() -> None:
    known = directory(BIG, SMALL, routes=(Route("assistant", ("big",)),))
    for slip, meant in (("asistant", "assistant"), ("npu/smal", "npu/small"), ("gpt4o", "gpt-4o")):
        with pytest.raises(AccelError, match=f"did you mean {meant!r}"):
            known.find(slip)


def test_what_is_done_to_a_model_cannot_be_done_to_a_route() -> None:
    known = directory(BIG, SMALL, routes=(Route("both", ("big", "small")),))
    assert known.canonical("npu/small") == "small"
    assert known.canonical("unknown") == "unknown"
    with pytest.raises(AccelError, match="big, small") as caught:
        known.canonical("both")
    assert caught.value.code == "bad_request"


def test_a_model_elsewhere_is_not_local() -> None:
    spec = ModelSpec("big", engine="remote", remote="mac", model="big")
    known = Directory((spec,))
    assert known.aliases(spec) == ("mac/big",)
    assert known.meaning("local/big") is None


def test_a_model_of_a_remote_answers_to_its_name_there_unless_somebody_else_has_it() -> None:
    def there(remote: str, model: str, **more: Any) -> ModelSpec:
        return ModelSpec(f"{remote}/{model}", engine="remote", remote=remote, model=model, offered=True, **more)

    ours = ModelSpec("qwen3:8b", path="/q.gguf", aliases=("gpt-*",))
    mac = [there("mac", name) for name in ("qwen3:8b", "gpt-oss", "bge:latest", "only")]
    box = [there("box", "bge:latest"), there("box", "only")]
    known = Directory((ours, *mac, *box))
    meant = {
        "qwen3:8b": ours, "mac/qwen3:8b": mac[0], "gpt-oss": ours, "mac/gpt-oss": mac[1], "bge": mac[2],
        "bge:latest": mac[2], "box/bge": box[0], "only": mac[3], "only:latest": mac[3], "box/only": box[1],
    }  # fmt: skip
    assert {name: known.find(name) for name in meant} == meant
    assert [known.is_name(name) for name in ("only", "bge", "gpt-4", "other")] == [True, True, False, False]
    assert (known.canonical("bge"), known.canonical("box/only:latest")) == ("mac/bge:latest", "box/only")
    assert known.aliases(mac[3]) == ("only",)
    assert known.aliases(mac[0]) == known.aliases(mac[1]) == known.aliases(box[1]) == ()


def test_the_prefix_follows_what_becomes_known_of_the_device() -> None:
    kinds = {"m": ""}
    spec = ModelSpec("m", engine="lemonade", model="M")
    known = Directory((spec,), (), lambda one: kinds[one.name])
    assert known.aliases(spec) == ("local/m",)
    kinds["m"] = "npu"
    assert known.find("npu/m") is spec
    with pytest.raises(AccelError):
        known.find("local/m")


ANYTHING = (
    ModelSpec("qwen", path="/q.gguf", aliases=("claude-*", "gpt-4o")),
    ModelSpec("small", path="/s.gguf", aliases=("claude-haiku-*", "*[1m]")),
    ModelSpec("claude-own", path="/o.gguf"),
)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("claude-sonnet-4-5", "qwen"),
        ("claude-", "qwen"),
        ("claude-haiku-4-5-20251001", "small"),
        ("claude-own", "claude-own"),
        ("local/claude-own", "claude-own"),
        ("x[1m]", "small"),
        ("claude-x[1m]", "qwen"),
        ("o3-mini", "rest"),
        ("Claude-x", "rest"),
    ],
)
def test_an_alias_may_stand_for_many_names(name: str, meant: str) -> None:
    known = directory(*ANYTHING, routes=(Route("rest", ("qwen",), aliases=("*",)),))
    assert known.find(name).name == meant
    assert not any("*" in one for one in known.names())


@pytest.mark.parametrize("name", ["line\nbreak", "claude-\0", "\ud800", "\x9b"])
def test_no_alias_stands_for_what_cannot_be_printed(name: str) -> None:
    with pytest.raises(AccelError) as caught:
        directory(*ANYTHING, routes=(Route("rest", ("qwen",), aliases=("*",)),)).find(name)
    assert caught.value.code == "model_not_found"
    assert caught.value.message.isprintable()


@pytest.mark.parametrize("pattern", ["*", "claude-*", "*[1m]"])
def test_a_pattern_itself_is_no_name_for_people(pattern: str) -> None:
    known = directory(*ANYTHING, ModelSpec("rest", path="/r.gguf", aliases=("*",)))
    assert known.canonical(pattern) == pattern, "no model of this name"
    assert not known.is_name(pattern)
    assert known.find(pattern).name in ("qwen", "small", "rest"), "a client may write it like any other name"


def test_what_a_pattern_matches_is_no_name_for_people() -> None:
    known = directory(*ANYTHING)
    assert known.canonical("claude-x") == "claude-x"
    assert (known.is_name("claude-x"), known.is_name("gpt-4o"), known.is_name("local/qwen")) == (False, True, True)
    for name in ("1m", "gpt-4o-mini", "claude", "xm"):
        with pytest.raises(AccelError):
            known.find(name)


def test_a_route_has_aliases_too_and_either_may_be_the_default() -> None:
    route = Route("both", ("big", "small"), aliases=("auto",))
    for default, meant in (("both", "both"), ("auto", "both"), ("gpt-4o", "big"), (None, None)):
        known = Directory((BIG, SMALL), (route,), default=default)
        assert (known.default.name if known.default else None) == meant
        assert known.find("auto") is route
