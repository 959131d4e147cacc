"""Rules as files: the package's are whole, a user's add, replace and switch off, and every mistake has its place."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_type_hints

import pytest

from accelerd.config.model import LayerTable, ModelSpec
from accelerd.tuning.rules import TuningRules, load, packaged, user_file
from accelerd.tuning.schema import SetTable, WhenTable

GOOD = """\
[rules.mine]
when = { gfx = "gfx1151", backend = ["radv", "rocm"], min_size = "20GiB", option = "--jinja" }
set = { mmap = true, kv_cache_type = { k = "q8_0", v = "f16" }, env = { A = "b" } }
source = "my own measurements"
reason = "it was faster"
"""


def read(folder: Path, text: str, **more: str) -> TuningRules:
    """The rules with the user's files tuning.toml and, by name, those of tuning.toml.d."""
    config = folder / "accelerd.toml"
    user_file(config).write_text(text)
    for name, content in more.items():
        (folder / "tuning.toml.d").mkdir(exist_ok=True)
        (folder / "tuning.toml.d" / f"{name}.toml").write_text(content)
    return load(config)


def names(rules: TuningRules) -> list[str]:
    return [rule.name for rule in rules.rules]


def test_every_rule_of_the_package_says_who_and_why() -> None:
    for rule in packaged():
        assert re.search(r"https://\S+", rule.source), rule.name
        assert rule.reason, rule.name
        assert rule.reason[0].islower() or rule.reason.startswith("GPU"), rule.name
        assert rule.origin.line, rule.name
        assert str(rule.origin) == f"tuning rule {rule.name} (rules.toml:{rule.origin.line})"
        assert rule.when, f"{rule.name} would hold everywhere"


def test_every_rule_sets_fields_that_there_are_and_that_nobody_may_have_set() -> None:
    spec = ModelSpec("m")
    for rule in packaged():
        for setting in rule.sets:
            if not setting.startswith("env."):
                assert getattr(spec, setting) is None, f"{rule.name}: {setting}"


def test_a_rule_writes_settings_as_accelerd_toml_does() -> None:
    assert set(get_type_hints(SetTable)) < set(get_type_hints(LayerTable))


def test_without_files_of_the_user_the_packages_rules_hold(tmp_path: Path) -> None:
    rules = load(tmp_path / "accelerd.toml")
    assert names(rules) == [rule.name for rule in packaged()]
    assert rules.problems == ()


def test_a_users_rule_is_added_at_the_end(tmp_path: Path) -> None:
    rules = read(tmp_path, GOOD)
    assert rules.problems == ()
    mine = rules.rules[-1]
    assert mine.when == {
        "gfx": "gfx1151", "backend": ("radv", "rocm"), "min_size": 20 << 30, "option": "--jinja",
    }  # fmt: skip
    assert mine.sets == {"mmap": True, "cache_type_k": "q8_0", "cache_type_v": "f16", "env.A": "b"}
    assert str(mine.origin) == "tuning rule mine (tuning.toml:1)"


def test_a_users_rule_of_the_same_name_replaces_and_comes_last(tmp_path: Path) -> None:
    rules = read(tmp_path, GOOD.replace("mine", "strix-halo-mmap"), later=GOOD.replace("mine", "second"))
    assert rules.problems == ()
    assert names(rules)[-2:] == ["strix-halo-mmap", "second"]
    assert names(rules).count("strix-halo-mmap") == 1
    assert rules.rules[-2].sets["mmap"] is True
    assert rules.rules[-1].origin.file == "tuning.toml.d/later.toml"


def test_a_rule_can_be_switched_off(tmp_path: Path) -> None:
    rules = read(tmp_path, "[rules.cpu-threads]\nenabled = false\n")
    assert rules.problems == ()
    assert "cpu-threads" not in names(rules)
    assert len(rules.rules) == len(packaged()) - 1


def test_switching_off_a_rule_that_there_is_not_is_said(tmp_path: Path) -> None:
    rules = read(tmp_path, "[rules.nothing]\nenabled = false\n")
    assert [str(p) for p in rules.problems] == [
        "tuning.toml:1: warning: rules.nothing: there is no rule nothing to switch off"
    ]
    assert len(rules.rules) == len(packaged())


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("mmap = true", "mmap = 3", "tuning.toml:3: rules.mine.set.mmap: expected true or false, got 3"),
        ("mmap = true", "mmpa = true", "tuning.toml:3: rules.mine.set.mmpa: unknown key; did you mean 'mmap'?"),
        ("mmap = true", "context = 5", "tuning.toml:3: rules.mine.set.context: unknown key"),
        ('gfx = "gfx1151"', 'gfx = "gfx 1151"', "tuning.toml:2: rules.mine.when.gfx: expected a word"),
        ('"rocm"]', '"hip"]', "tuning.toml:2: rules.mine.when.backend[1]: expected one of"),
        ('"20GiB"', '"20 apples"', "tuning.toml:2: rules.mine.when.min_size: expected a size"),
        ('"--jinja"', '"jinja"', "tuning.toml:2: rules.mine.when.option: expected an option's name"),
        ("gfx = ", "color = ", "tuning.toml:2: rules.mine.when.color: unknown key"),
        ('source = "my own measurements"\n', "", 'tuning.toml:1: rules.mine: needs source = "…"'),
        ('reason = "it was faster"', "", 'tuning.toml:1: rules.mine: needs reason = "…"'),
        ("mmap = true,", "batch = 5, ubatch = 6,", "tuning.toml:3: rules.mine.set.ubatch: expected at most batch = 5"),
        ("[rules.mine]", "[rule.mine]", "tuning.toml:1: rule: unknown section; did you mean 'rules'?"),
        ("[rules.mine]", "[rules.mine", "tuning.toml:1:12: invalid TOML"),
    ],
)
def test_a_mistake_has_its_place_and_the_packages_rules_hold(old: str, new: str, problem: str, tmp_path: Path) -> None:
    assert old in GOOD
    rules = read(tmp_path, GOOD.replace(old, new))
    assert str(rules.problems[0]).startswith(problem)
    assert names(rules) == [rule.name for rule in packaged()]


def test_a_rule_that_sets_nothing_is_a_mistake(tmp_path: Path) -> None:
    rules = read(tmp_path, '[rules.empty]\nwhen = { gfx = "x" }\nsource = "s"\nreason = "r"\n')
    assert str(rules.problems[0]) == "tuning.toml:1: rules.empty: needs set = {…}: what it sets"


def test_rules_that_somebody_else_could_write_are_not_read(tmp_path: Path) -> None:
    user_file(tmp_path / "accelerd.toml").write_text(GOOD)
    user_file(tmp_path / "accelerd.toml").chmod(0o666)
    rules = load(tmp_path / "accelerd.toml")
    assert "is writable by everyone" in str(rules.problems[0])
    assert "mine" not in names(rules)


def test_the_document_names_every_condition_and_setting() -> None:
    text = (Path(__file__).parents[2] / "docs" / "tuning.md").read_text()
    for key in (*get_type_hints(WhenTable), *get_type_hints(SetTable)):
        assert f"`{key}`" in text, key
