"""The tier of a request: LiteLLM's for every recorded prompt, and the text that is judged LiteLLM's, too."""

from __future__ import annotations

import json
from typing import Any

import pytest

from accelerd.config.complexity import ComplexitySettings, KeywordRule, Tier, complexity_of
from accelerd.routing import complexity_words
from accelerd.routing.asks import last_ask, without_blocks
from accelerd.routing.complexity import Classifier, Keywords, has_steps
from accelerd.routing.verdict import Cause
from tests.routing.tiers import cases

RECORDED = json.loads((cases.HERE / "recorded.json").read_text(encoding="utf-8"))
USUAL = Classifier(ComplexitySettings())


def settings(written: dict[str, Any]) -> ComplexitySettings:
    """Of a table with LiteLLM's keys; its tiers are in capitals."""
    rules = written.get("keyword_tier_rules", ())
    own = tuple(KeywordRule(tuple(map(str.strip, rule["keywords"])), Tier(rule["tier"].lower())) for rule in rules)
    return complexity_of({**written, "keyword_tier_rules": own})


@pytest.mark.parametrize("name", cases.CONFIGS)
def test_every_prompt_has_the_tier_and_the_score_that_litellm_gives_it(name: str) -> None:
    classifier = Classifier(settings(cases.CONFIGS[name]))
    for each in RECORDED["prompts"]:
        found, (tier, score) = classifier.classify(each["prompt"]), each["tiers"][name]
        assert (found.tier.value, found.score) == (tier, pytest.approx(score, abs=1e-12)), each["prompt"]


def test_what_is_recorded_is_what_is_asked() -> None:
    assert [each["prompt"] for each in RECORDED["prompts"]] == cases.prompts()  # else record it again
    assert len(RECORDED["prompts"]) >= 500
    assert len(set(cases.natural())) >= 100
    for name in cases.CONFIGS:  # each tier is met, and the settings matter
        assert {each["tiers"][name][0] for each in RECORDED["prompts"]} == set(Tier), name
    assert len({json.dumps([each["tiers"][name] for each in RECORDED["prompts"]]) for name in cases.CONFIGS}) == 5


def test_what_a_person_has_asked_last_is_what_litellm_takes() -> None:
    for messages, ask in zip(cases.CONVERSATIONS, RECORDED["asks"], strict=True):
        assert last_ask(json.dumps({"model": "m", "messages": messages}).encode()) == ask, messages


@pytest.mark.parametrize(
    ("body", "ask"),
    [
        ({"input": "a text"}, "a text"),
        ({"input": [{"role": "user", "content": [{"type": "input_text", "text": "an item"}]}]}, "an item"),
        ({"input": [{"role": "user", "content": "it"}, {"type": "function_call_output", "output": "error"}]}, "it"),
        ({"input": "<environment_context>cwd</environment_context>list <user_instructions>a</user_instructions> it"},
         "list it"),
        ({"prompt": " complete this"}, "complete this"),
        ({"prompt": ["several"]}, ""),
        ({"prompt": [1, 2]}, ""),
        ({"messages": None, "prompt": "p"}, "p"),
        ({"messages": "no list"}, ""),
        ({"messages": [1, "two", None]}, ""),
        ({"messages": [{"role": ["user"], "content": "x"}]}, ""),
        ({"messages": [{"role": "user", "content": [1, {"type": "text", "text": 5}, {"type": "text"}]}]}, ""),
        ({"input": 5}, ""),
        ({}, ""),
        ([], ""),
    ],
)  # fmt: skip
def test_of_each_api_the_text_is_found_and_what_has_none_is_no_error(body: Any, ask: str) -> None:
    assert last_ask(json.dumps(body).encode()) == ask


@pytest.mark.parametrize(
    "body", [b"", b"--form\r\n", b"\xff", b'{"messages": [{"role": "user", "content": ' + b"[" * 5000]
)
def test_a_body_that_is_no_json_asks_nothing(body: bytes) -> None:
    assert last_ask(body) == ""


def test_blocks_of_several_kinds_may_overlap() -> None:
    blocks = (("<a>", "</a>"), ("<b>", "</b>"))
    assert without_blocks("1 <a> x <b> y </a> z </b> 2 <B>w</B>", blocks) == "1 2"
    assert without_blocks("İ <a>x</a> y", blocks) == "İ y"


@pytest.mark.parametrize(
    ("message", "tier", "cause"),
    [
        ("", Tier.MEDIUM, Cause.NO_TEXT),
        ("yes", Tier.SIMPLE, Cause.SCORE),
        ("think step by step and compare and contrast two sorting algorithms", Tier.REASONING, Cause.REASONING_MARKERS),
    ],
)
def test_the_verdict_says_what_has_decided(message: str, tier: Tier, cause: Cause) -> None:
    found = USUAL.classify(message)
    assert (found.tier, found.cause) == (tier, cause)


def test_the_verdict_names_what_was_found() -> None:
    found = {each.name: each.found for each in USUAL.classify("Return the latency of the GPU in Python").dimensions}
    assert found["codePresence"] == ("return", "python")
    assert found["technicalTerms"] == ("latency", "gpu")


def test_of_several_rules_the_highest_tier_counts_and_its_first_keyword_is_named() -> None:
    rules = (
        KeywordRule(("lamp", "light"), Tier.SIMPLE),
        KeywordRule(("prove", "light"), Tier.REASONING),
        KeywordRule(("prove",), Tier.REASONING),
    )
    classifier = Classifier(ComplexitySettings(keyword_tier_rules=rules))
    for text, tier, keyword in (("the lamp", "simple", "lamp"), ("Prove the light", "reasoning", "prove")):
        found = classifier.classify(text)
        assert (found.tier, found.cause, found.keyword) == (tier, Cause.KEYWORD_RULE, keyword)


def test_a_keyword_is_a_whole_word_a_phrase_or_one_without_spaces() -> None:
    keywords = Keywords(["Api", "c++", "pull request", "发票", "a.b"])
    for text, found in (
        ("capital apis", ()),
        ("an api, a.b", ("Api", "a.b")),
        ("c++x axb", ("c++",)),
        ("c++ ", ()),  # no word ends there
        ("spull requests", ("pull request",)),
        ("我需要开发票了", ("发票",)),
    ):
        assert keywords.found(text, set(text.replace(",", " ").split())) == found, text


def test_of_a_very_long_message_the_begin_and_the_end_are_read_and_the_whole_is_measured() -> None:
    task = "Return the latency of the GPU in Python; evaluate it and think carefully"
    for text in (task + " hello" * 100_000, "hello " * 100_000 + task):
        found = {each.name: (each.score, each.found) for each in USUAL.classify(text).dimensions}
        assert found["tokenCount"] == (1.0, ())
        assert (found["codePresence"][1], found["technicalTerms"][1]) == (("return", "python"), ("latency", "gpu"))
        assert found["reasoningMarkers"][1] == ("think carefully", "evaluate")
    assert USUAL.classify("x" * 65_536 + "\n" + task + "\n" + "x" * 65_536).tier is Tier.SIMPLE


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("first a, then b", True),
        ("firsthen", False),
        ("first\nthen", False),
        ("first\nfirst then", True),
        ("then first", False),
        ("first a\nthen first b\nthen c", False),
        ("step\n 7", True),
        ("version 1.5", False),
        ("12. now", True),
        ("f() x", False),
        ("f(a) x", True),
    ],
)
def test_steps(text: str, steps: bool) -> None:
    assert has_steps(text) is steps


def test_texts_that_patterns_choke_on_are_read_in_one_pass() -> None:
    """Each takes minutes where the way back is searched again from every place."""
    for text in ("first " * 200_000, "first\n" * 200_000 + "then", "1" * 1_000_000, "step" + " " * 1_000_000):
        assert not has_steps(text)
    assert without_blocks("<a>" * 300_000, (("<a>", "</a>"),)) == "<a>" * 300_000


def test_the_words_are_all_sought_in_lower_case() -> None:
    for words in (
        complexity_words.CODE,
        complexity_words.REASONING,
        complexity_words.TECHNICAL,
        complexity_words.SIMPLE,
    ):
        assert all(word == word.lower().strip() for word in words)
        assert len(set(words)) == len(words)
