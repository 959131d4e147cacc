"""The documented configuration is the one that is checked."""

from __future__ import annotations

import tomllib
from pathlib import Path

from accelerd.config import check
from accelerd.config.reference import INTRODUCTION, reference

DOC = Path(__file__).parents[2] / "docs" / "configuration.md"


def test_the_documented_keys_are_those_of_the_schema() -> None:
    assert DOC.read_text() == reference(), "stale: python -m accelerd.config.reference > docs/configuration.md"


def test_the_example_in_the_introduction_is_valid(tmp_path: Path) -> None:
    example = INTRODUCTION.partition("```toml\n")[2].partition("```")[0]
    assert tomllib.loads(example)["models"]
    file = tmp_path / "accelerd.toml"
    file.write_text(example)
    config, problems = check(file, tmp_path)
    assert config is not None, problems
    assert list(config.models) == ["qwen", "embed"]


def test_an_empty_list_of_profiles_is_none(tmp_path: Path) -> None:
    file = tmp_path / "accelerd.toml"
    file.write_text('[models.a]\npath = "/a.gguf"\nprofile = []\n')
    config, problems = check(file, tmp_path)
    assert config is not None, problems
