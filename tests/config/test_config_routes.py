"""Routes in accelerd.toml: deployments, fallbacks, what they refer to, and cycles."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
from config_home import Home
from hypothesis import given
from hypothesis import strategies as st

from accelerd.config import Config, Problem
from accelerd.config.routes import Deployment, cycle_from

MODELS = '[models.a]\npath = "/a"\n[models.b]\npath = "/b"\n'


def mistakes(home: Home, text: str) -> list[tuple[str, str]]:
    found: list[Problem] = home.check(MODELS + text)[1]
    return [(one.key, one.message) for one in found if one.severity == "error"]


def test_fallbacks_that_are_further_names_of_what_was_asked_before_are_a_warning(home: Home) -> None:
    def warned(text: str) -> list[tuple[str, str]]:
        found: list[Problem] = home.check(text)[1]
        assert not [one for one in found if one.severity == "error"]
        return sorted((one.key, one.message) for one in found if "has no effect" in one.message)

    variants = "[models.a.variants.a-cold]\n[models.a.variants.a-hot]\n[models.b.variants.b-cold]\n"
    team = '[routes.team]\nmodels = ["a-hot"]\n'
    cannot = "asked before, and cannot answer by another name either"
    assert warned(MODELS + variants + team + 'fallbacks = ["b-cold", "a-cold", "b", "b"]\n') == [
        ("routes.team.fallbacks[1]", f"has no effect: a-cold is a variant of a, which is {cannot}"),
        ("routes.team.fallbacks[2]", f"has no effect: b is {cannot}"),
        ("routes.team.fallbacks[3]", '"b" is listed twice, and has no effect the second time'),
    ]
    assert not warned(MODELS + variants + team + 'context_fallbacks = ["b"]\nfallbacks = ["b"]\n')
    assert not warned(MODELS + variants + '[server]\ndefault_fallbacks = ["a-cold"]\n'), "for those who ask for b"
    alone = '[models.a]\npath = "/a"\n[models.a.variants.a-cold]\n[server]\ndefault_fallbacks = ["a-cold"]\n'
    assert warned(alone) == [
        ("server.default_fallbacks[0]", f"has no effect: a-cold is a variant of a, which is {cannot}")
    ]


def test_a_route_with_everything(home: Home) -> None:
    route = home.load(
        MODELS
        + """\
[routes.fast]
models = ["a"]
[routes.team]
fallbacks = ["fast", "b"]
context_fallbacks = ["b"]
retries = 2
cooldown = "1m"
session_affinity = true
prefer = "efficiency"
[[routes.team.deployments]]
model = "b"
order = 2
[[routes.team.deployments]]
model = "a"
weight = 3
"""
    ).routes["team"]
    assert route.deployments == (Deployment("b", 2, 1), Deployment("a", 1, 3))
    assert route.members == ("a", "b"), "the lowest order first"
    assert route.refers_to == ("a", "b", "fast", "b", "b")
    assert (route.retries, route.cooldown, route.session_affinity, route.prefer) == (2, 60.0, True, "efficiency")


@pytest.mark.parametrize(
    ("text", "key", "message"),
    [
        ("[routes.r]\n", "routes.r", "set models = […], in order of preference, or deployments = "),
        ("[routes.r]\nmodels = []\n", "routes.r.models", "expected at least one model"),
        ("[routes.r]\ndeployments = []\n", "routes.r.deployments", "expected at least one model"),
        (
            '[routes.r]\nmodels = ["a"]\ndeployments = [{model = "b"}]\n',
            "routes.r.deployments",
            "set either models or deployments, not both; models is set, too (accelerd.toml:6)",
        ),
        ("[routes.r]\ndeployments = [{order = 2}]\n", "routes.r.deployments[0]", 'expected a table with model = "…"'),
        ('[routes.r]\ndeployments = ["a"]\n', "routes.r.deployments[0]", "expected a table such as {model = "),
        ('[routes.r]\nmodels = ["aa"]\n', "routes.r.models[0]", "there is no model or route 'aa'; did you mean 'a'?"),
        ('[routes.r]\ndeployments = [{model = "a"}, {model = "c"}]\n', "routes.r.deployments[1]", "there is no model"),
        ('[routes.r]\nmodels = ["a"]\nfallbacks = ["b", "rr"]\n', "routes.r.fallbacks[1]", "did you mean 'r'?"),
        ('[routes.r]\nmodels = ["a"]\ncontext_fallbacks = ["x"]\n', "routes.r.context_fallbacks[0]", "'x'"),
        ('[server]\ndefault_fallbacks = ["a", "x"]\n', "server.default_fallbacks[1]", "there is no model or route 'x'"),
        ('[routes.r]\ndeployments = [{model = "a", weight = 0}]\n', "routes.r.deployments[0].weight", "from 1 to"),
        ('[routes.r]\nmodels = ["a", "r"]\n', "routes.r.models", "the route leads back to itself: r → r"),
    ],
)
def test_a_mistake_in_a_route(home: Home, text: str, key: str, message: str) -> None:
    (found,) = mistakes(home, text)
    assert found[0] == key
    assert message in found[1]


def test_a_cycle_is_named_once_where_it_begins(home: Home) -> None:
    text = """\
[routes.one]
models = ["a"]
fallbacks = ["two"]
[routes.two]
deployments = [{model = "b"}, {model = "three"}]
[routes.three]
models = ["a"]
context_fallbacks = ["one"]
[routes.beside]
models = ["one"]
"""
    assert mistakes(home, text) == [("routes.one.fallbacks", "the route leads back to itself: one → two → three → one")]
    assert not mistakes(home, text.replace('["one"]\n[', '["b"]\n['))


def test_what_is_written_is_shown(home: Home) -> None:
    from accelerd.config.show import show

    text = show(home.load(MODELS + '[routes.r]\ndeployments = [{model = "a", weight = 2}]\nfallbacks = ["b"]\n'))
    assert 'deployments = [{model = "a", order = 1, weight = 2}]' in text
    assert 'fallbacks = ["b"]' in text
    assert 'cooldown = "30s"' in text
    assert "context_fallbacks" not in text


@given(st.dictionaries(st.sampled_from("abcdef"), st.lists(st.sampled_from("abcdef"), max_size=3)))
def test_a_cycle_is_found_exactly_where_there_is_one(refers: dict[str, list[str]]) -> None:
    def leads_back(start: str) -> bool:
        reached = set(refers.get(start, ()))
        while more := {next_one for one in reached for next_one in refers.get(one, ())} - reached:
            reached |= more
        return start in reached

    for start in "abcdef":
        way = cycle_from(start, refers)
        assert bool(way) is leads_back(start)
        if way:
            assert way[0] == way[-1] == start
            assert all(after in refers[before] for before, after in pairwise(way))


@pytest.mark.parametrize(
    ("text", "key", "kept"),
    [
        ('[routes.x]\nmodels = ["a", "b", "a"]', "routes.x.models[2]", lambda c: c.routes["x"].models == ("a", "b")),
        (
            '[routes.x]\nmodels = ["a"]\nfallbacks = ["b", "b"]',
            "routes.x.fallbacks[1]",
            lambda c: c.routes["x"].fallbacks == ("b",),
        ),
        (
            '[routes.x]\nmodels = ["a"]\ncontext_fallbacks = ["b", "a", "b"]',
            "routes.x.context_fallbacks[2]",
            lambda c: c.routes["x"].context_fallbacks == ("b", "a"),
        ),
        (
            '[routes.x]\n[routes.x.tiers]\nsimple = ["a", "a"]',
            "routes.x.tiers.simple[1]",
            lambda c: c.routes["x"].tiers.simple == ("a",),
        ),
        (
            '[server]\ndefault_fallbacks = ["a", "b", "b"]',
            "server.default_fallbacks[2]",
            lambda c: c.server.default_fallbacks == ("a", "b"),
        ),
        (
            '[routes.x]\nmodels = ["a"]\nvariants.v.remove = ["seed", "a.b", "seed"]',
            "routes.x.variants.v.remove[2]",
            lambda c: c.routes["x"].variants[0].remove == (("seed",), ("a", "b")),
        ),
        (
            '[routes.x.tiers]\nsimple = "a"\n[routes.x.complexity]\n'
            'keyword_tier_rules = [{keywords = ["k", "l", "k"], tier = "medium"}]',
            "routes.x.complexity.keyword_tier_rules[0].keywords[2]",
            lambda c: c.routes["x"].complexity.keyword_tier_rules[0].keywords == ("k", "l"),
        ),
        (
            '[server]\nallowed_hosts = ["Box.lan", "box.LAN"]',
            "server.allowed_hosts[1]",
            lambda c: c.server.allowed_hosts == ("box.lan",),
        ),
    ],
)
def test_what_is_listed_twice_counts_once_and_is_a_warning(
    home: Home, text: str, key: str, kept: Callable[[Config], bool]
) -> None:
    config, problems = home.check(MODELS + text)
    assert config is not None
    assert kept(config)
    (found,) = [one for one in problems if "listed twice" in one.message]
    assert (found.key, found.severity) == (key, "warning")


@pytest.mark.parametrize(
    ("text", "key"),
    [
        (
            '[[routes.x.deployments]]\nmodel="a"\n[[routes.x.deployments]]\nmodel="a"\nweight=2',
            "routes.x.deployments[1]",
        ),
        ('[models.c]\npath="/c"\ngpus=["0000:01:00.0","0000:01:00.0"]', "models.c.gpus[1]"),
        (
            '[models.c]\nengine="command"\n[models.c.command]\npreset="kokoro"\nenvironment=["A=1","A={port}"]',
            "models.c.command.environment[1]",
        ),
        (
            '[models.c]\nengine="command"\n[models.c.command]\npreset="kokoro"\npaths=["/v1/a=/b","/v1/a=/c"]',
            "models.c.command.paths[1]",
        ),
    ],
)
def test_what_is_listed_twice_with_different_meanings_is_a_mistake(home: Home, text: str, key: str) -> None:
    ((found, message),) = mistakes(home, text)
    assert found == key
    assert message.endswith(" is listed twice")
