"""What a reload changes."""

from __future__ import annotations

import pytest
from config_home import Home

from accelerd.config import Config, diff
from accelerd.config.diff import ConfigDiff
from accelerd.config.model import LAUNCH_FIELDS, ModelSpec
from accelerd.config.rules import lost_programs

BASE = '[models.a]\npath = "/a"\n[models.b]\npath = "/b"\n'


@pytest.mark.parametrize(
    "line",
    ["context = 1024", 'path = "/other"', "parallel = 2", 'kv_cache_type = "q8_0"', 'env.X = "1"',
     "extra_args = ['-v']", "sampling.top_k = 1", "mmap = true", 'binary = "other"', "embeddings = true"],
)  # fmt: skip
def test_a_change_of_what_runs_needs_a_relaunch(home: Home, line: str) -> None:
    old = home.load(BASE)
    home.write(f"[models.a]\n{line}", "accelerd.toml.d/x.toml")
    assert diff(old, home.load()) == ConfigDiff(relaunch=("a",), unchanged=("b",))


@pytest.mark.parametrize(
    "line",
    ["idle_timeout = 1", "preload = true", "pin = true", "exclusive = true", 'group = "g"', 'memory = "1G"',
     "concurrency = 2", 'aliases = ["z"]', 'description = "d"', "start_timeout = 1", "stop_timeout = 1",
     "price.output = 3"],
)  # fmt: skip
def test_other_changes_leave_the_process_alone(home: Home, line: str) -> None:
    old = home.load(BASE)
    assert diff(old, home.load(BASE + line)) == ConfigDiff(updated=("b",), unchanged=("a",))


def test_removed_and_added_models(home: Home) -> None:
    old = home.load(BASE)
    new = home.load('[models.c]\npath = "/c"\n[models.b]\npath = "/b"\n')
    assert diff(old, new) == ConfigDiff(added=("c",), removed=("a",), unchanged=("b",))
    assert diff(new, old) == ConfigDiff(added=("a",), removed=("c",), unchanged=("b",))
    assert diff(old, Config()) == ConfigDiff(removed=("a", "b"))


def test_the_same_settings_written_elsewhere_are_no_change(home: Home) -> None:
    old = home.load(BASE + "context = 1024\nenv = {A = '1', B = '2'}\n")
    new = home.load(
        "# moved\n[defaults]\ncontext = 1024\nenv = {B = '2', A = '1'}\n"
        "[models.a]\npath='/a'\nenv = {}\n[models.b]\npath='/b'"
    )
    assert diff(old, new).unchanged == ("b",)
    assert not diff(old, old)
    assert diff(old, new)


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ('[server]\nmax_body = "1MiB"\n', ("server.max_body",)),
        ("[scheduler]\nlinger = 3\nmax_loaded = 1\n", ("scheduler.max_loaded", "scheduler.linger")),
    ],
)
def test_settings_outside_models(home: Home, text: str, keys: tuple[str, ...]) -> None:
    assert diff(home.load(BASE), home.load(text + BASE)) == ConfigDiff(unchanged=("a", "b"), settings=keys)


def test_another_binary_for_the_engine_relaunches_the_models_that_use_it(home: Home) -> None:
    base = BASE + 'binary = "own"\n'
    new = home.load('[engines.llama-server]\nbinary = "/opt/llama-server"\n' + base)
    assert diff(home.load(base), new) == ConfigDiff(
        relaunch=("a",), unchanged=("b",), settings=("engines.llama-server.binary",)
    )


def test_every_field_of_a_model_is_either_launched_with_or_updated(home: Home) -> None:
    scheduling = {
        "description", "aliases", "hidden_aliases", "variants", "unlisted", "start_timeout", "stop_timeout",
        "concurrency", "idle_timeout", "sleep_timeout", "preload", "pin", "group", "exclusive", "memory", "priority",
        "price", "origins", "offered",
    }  # fmt: skip
    assert set(ModelSpec.__dataclass_fields__) == set(LAUNCH_FIELDS) | scheduling


def test_for_json() -> None:
    assert ConfigDiff(added=("a",)).as_dict() == {
        "added": ["a"], "removed": [], "relaunch": [], "updated": [], "unchanged": [], "settings": [],
    }  # fmt: skip


def test_routes_are_told_by_name(home: Home) -> None:
    routed = BASE + '[routes.auto]\nmodels = ["a", "b"]\n'
    assert diff(home.load(BASE), home.load(routed)).settings == ("routes.auto",)
    assert diff(home.load(routed), home.load(routed.replace('"a", ', ""))).settings == ("routes.auto",)
    assert diff(home.load(routed), home.load(BASE)).settings == ("routes.auto",)
    assert not diff(home.load(routed), home.load(routed))


def test_a_program_that_models_would_lose_is_a_mistake_where_it_is_written(home: Home) -> None:
    def lost(before: str, now: str) -> list[tuple[int | None, str]]:
        old = home.load(before)
        return [(one.line, one.key) for one in lost_programs(old, home.load(now)) if one.severity == "error"]

    there, gone = '[engines.llama-server]\nbinary = "/bin/sh"\n', '[engines.llama-server]\nbinary = "/mistyped"\n'
    assert lost(there + BASE, gone + BASE) == [(2, "engines.llama-server.binary")]
    assert lost(BASE, gone + BASE) == [(2, "engines.llama-server.binary")]
    assert lost(gone + BASE, gone + BASE + "context = 512") == [], "it is no worse than before"
    assert lost(gone + BASE, there + BASE) == []
    assert lost("", gone + BASE) == [], "no model loses anything"
    own = BASE.replace("\n[models.b]", '\nbinary = "/bin/sh"\n[models.b]')
    assert lost(own, own.replace("/bin/sh", "/bin")) == [(3, "models.a.binary")]
    assert lost(own, own + 'binary = "/etc/passwd"') == [(6, "models.b.binary")]
    flm = '[models.c]\nengine = "flm"\nmodel = "x:1b"\n'
    assert lost(flm, gone + flm) == [], "another engine's"
    assert lost(flm, '[engines.flm]\nbinary = "/mistyped"\n' + flm) == [(2, "engines.flm.binary")]
