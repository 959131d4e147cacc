"""FastFlowLM's names, as people, Lemonade and FastFlowLM itself write them."""

from __future__ import annotations

import pytest

from accelerd.engines.flm import catalogue
from accelerd.engines.flm.catalogue import KNOWN


@pytest.mark.parametrize(
    ("written", "tag"),
    [
        ("qwen3:4b", "qwen3:4b"),
        ("qwen3-4b", "qwen3:4b"),
        ("qwen3-4b-FLM", "qwen3:4b"),
        ("Qwen3-4B-FLM", "qwen3:4b"),
        ("QWEN3:4B", "qwen3:4b"),
        ("llama3.2-1b-FLM", "llama3.2:1b"),
        ("qwen3-it-4b", "qwen3-it:4b"),
        ("qwen3-it:4b", "qwen3-it:4b"),
        ("deepseek-r1-0528-8b", "deepseek-r1-0528:8b"),
        ("qwen3.6-moe-35b-a3b", "qwen3.6-moe:35b-a3b"),
        ("whisper-v3", "whisper-v3:turbo"),
        ("gpt-oss", "gpt-oss:20b"),
    ],
)
def test_every_spelling_finds_its_tag(written: str, tag: str) -> None:
    assert catalogue.find_tag(written, KNOWN) == tag


@pytest.mark.parametrize("written", ["qwen3", "qwen4-4b", "", "4b", "qwen3:5b"])
def test_what_is_not_there_or_not_one_is_not_guessed(written: str) -> None:
    assert catalogue.find_tag(written, KNOWN) is None


def test_a_family_or_a_slip_has_neighbours() -> None:
    assert catalogue.similar_tags("qwen3", KNOWN)[:1] != []
    assert set(catalogue.similar_tags("qwen3", KNOWN)) <= set(KNOWN)
    assert "qwen3:4b" in catalogue.similar_tags("qwen3-5b", KNOWN)
    assert catalogue.similar_tags("qwem3-4b", KNOWN)[0] == "qwen3:4b"
    assert catalogue.similar_tags("zzzz", KNOWN) == []


@pytest.mark.parametrize("tag", KNOWN)
def test_names_go_there_and_back(tag: str) -> None:
    assert catalogue.find_tag(catalogue.model_name(tag).removeprefix("npu/"), KNOWN) == tag
    assert catalogue.find_tag(f"{catalogue.plain_name(tag)}-FLM", KNOWN) == tag


def test_a_model_newer_than_the_list_keeps_its_colon_or_gets_one() -> None:
    assert catalogue.tag_of("qwen9:7b") == "qwen9:7b"
    assert catalogue.tag_of("Qwen9-7B-FLM") == "qwen9:7b"
