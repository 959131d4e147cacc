"""accelctl logs, reload, explain and version."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from accelerd import __version__

from .conftest import Ctl
from .fake_daemon import EXPLAINED, FLEET, FakeDaemon, Reply, delta, error, model, sse, status


def test_logs_prints_lines_harmless(ctl: Ctl, daemon: FakeDaemon) -> None:
    daemon.answers["GET logs"] = Reply(chunks=[b"one\ntw", b"o \x1b[31m\n", b"last"])
    result = ctl("logs", "-n", "5", "embed")
    assert result.out == "one\ntwo \\x1b[31m\nlast\n"
    assert daemon.requests[-1].query == {"model": "embed", "lines": "5"}


def test_logs_follow_and_json(ctl: Ctl, daemon: FakeDaemon) -> None:
    daemon.answers["GET logs"] = Reply(chunks=[b"one\n", b"two\n"])
    result = ctl("logs", "-f", "embed", "--json")
    assert [json.loads(line) for line in result.out.splitlines()] == [{"line": "one"}, {"line": "two"}]
    assert daemon.requests[-1].query == {"model": "embed", "follow": "1"}


@pytest.mark.parametrize(
    ("more", "line"),
    [
        ({"parts": {"compute": 1 << 20, "weights": 4 << 30}, "prompt_cache": 2 << 30},
         "of it 4.0 GiB for weights, 2.0 GiB for prompt cache, 1.0 MiB for compute"),
        ({"parts": {"weights": 4 << 30, "prompt cache": 2 << 30}, "prompt_cache": 2 << 30},
         "of it 4.0 GiB for weights, 2.0 GiB for prompt cache"),
        ({"parts": {}, "prompt_cache": 2 << 30}, "of it 2.0 GiB for prompt cache"),
        ({"parts": {}, "prompt_cache": 0}, None),
    ],
)  # fmt: skip
def test_explain_says_what_the_memory_is_for(
    ctl: Ctl, daemon: FakeDaemon, more: dict[str, Any], line: str | None
) -> None:
    daemon.answers["GET explain"] = Reply({**EXPLAINED, "placement": {**EXPLAINED["placement"], **more}})
    lines = [one.strip() for one in ctl("explain", "gemma-3-4b-it").out.splitlines()]
    assert [one for one in lines if one.startswith("of it")] == ([line] if line else [])


def test_logs_of_a_silent_model_and_of_none(ctl: Ctl, daemon: FakeDaemon) -> None:
    daemon.answers["GET logs"] = Reply(chunks=[])
    assert (
        "embed: no output since accelerd started; older output: journalctl --user ACCELERD_MODEL=embed"
        in ctl("logs", "embed").err
    )
    daemon.answers["GET logs"] = error(404, "model_not_found", "cannot find it")
    assert ctl("logs", "embd").status == 5


def test_models_show_the_engine_s_own_words_where_it_has_some(ctl: Ctl, daemon: FakeDaemon) -> None:
    assert "LABELS" not in ctl("models").out
    tenant = model("npu", engine="lemonade", recipe="flm", labels=["reasoning", "tool-calling"])
    daemon.answers["GET status"] = Reply(status(model("qwen"), tenant))
    head, plain, other = (line.split() for line in ctl("models").out.splitlines())
    assert head[-1] == "LABELS"
    assert plain[-3:] == ["llama-server", "-", "-"]
    assert " ".join(other).endswith("lemonade: flm - reasoning, tool-calling")


def test_what_models_reserve_for_prompt_caches_is_said(ctl: Ctl, daemon: FakeDaemon) -> None:
    one, other = dict(FLEET[0], prompt_cache=128 << 20), dict(FLEET[1], prompt_cache=0)
    daemon.answers["GET status"] = Reply(status(one, other))
    assert ctl("models").out.splitlines()[-1] == f"RESERVES includes prompt caches: {one['name']} 128 MiB"
    daemon.answers["GET status"] = Reply(status(other))
    assert "prompt caches" not in ctl("models").out


def test_names_are_those_that_the_daemon_knows(ctl: Ctl, daemon: FakeDaemon) -> None:
    models = status(*FLEET)["models"]
    wanted = [m["name"] for m in models] + [alias for m in models for alias in m["aliases"]]
    assert ctl("models", "--names").out.split() == wanted
    assert json.loads(ctl("models", "--names", "--json").out) == wanted


def test_names_without_a_daemon_are_those_configured(ctl: Ctl) -> None:
    ctl.configure('[models.qwen]\npath = "/m.gguf"\naliases = ["gpt-4o"]\n')
    result = ctl("models", "--names")
    assert (result.status, result.out, result.err) == (0, "qwen\ngpt-4o\n", "")
    variants = '[models.qwen.variants.warm]\naliases = ["warmer", "w-*"]\n[routes.r]\nmodels = ["qwen"]\n'
    ctl.configure('[models.qwen]\npath = "/m.gguf"\n' + variants + "[routes.r.variants.cold]\nhidden = true\n")
    assert ctl("models", "--names").out == "qwen\nr\nwarm\ncold\nwarmer\n"
    ctl.configure("broken = [")
    result = ctl("models", "--names")
    assert (result.status, result.out, result.err) == (0, "", "")


def test_completion_does_not_start_a_daemon_that_was_stopped(ctl: Ctl, tmp_path: Path) -> None:
    """systemd listens on the socket: a connection would start the service."""
    programs = tmp_path / "bin"
    programs.mkdir()
    script = '#!/bin/sh\ncase "$*" in *.socket) s=active;; *) s=${SERVICE:-inactive};; esac\necho "ActiveState=$s"\n'
    (programs / "systemctl").write_text(script)
    (programs / "systemctl").chmod(0o755)
    ctl.configure('[models.written]\npath = "/m.gguf"\n')
    path = Path(ctl.env["XDG_RUNTIME_DIR"]) / "accelerd/accelerd.sock"
    path.parent.mkdir()
    env = {"PATH": f"{programs}:/usr/bin:/bin", "ACCELERD_SOCKET": ""}
    with FakeDaemon(path, {"GET status": Reply(status(model("running")))}).serve() as daemon:
        assert ctl("models", "--names", **env).out == "written\n"
        assert daemon.requests == []
        assert ctl("models", "--names", **env, SERVICE="active").out == "running\n"


def test_logs_that_are_followed_until_the_daemon_dies(ctl: Ctl, daemon: FakeDaemon) -> None:
    daemon.answers["GET logs"] = Reply(chunks=[b"one\n"], cut=True)
    result = ctl("logs", "-f", "embed")
    assert (result.status, result.out) == (3, "one\n")
    assert "the connection to accelerd broke" in result.err


def test_reload_says_what_changed(ctl: Ctl, daemon: FakeDaemon) -> None:
    changes = {"added": ["a"], "removed": ["b"], "relaunch": ["c"], "updated": ["d"], "unchanged": ["e", "f"]}
    daemon.answers["POST reload"] = Reply(changes)
    text = ctl("reload").out
    for line in ("a: added", "b: removed", "c: changed; the next load uses", "d: updated", "2 models unchanged"):
        assert line in text
    daemon.answers["GET status"] = Reply(status(model("c", "ready")))
    assert "c: restarts when its running requests have ended" in ctl("reload").out
    assert json.loads(ctl("reload", "--json").out) == changes


def test_reload_without_changes(ctl: Ctl, daemon: FakeDaemon) -> None:
    daemon.answers["POST reload"] = Reply({"unchanged": ["e"]})
    assert ctl("reload").out == "nothing has changed (1 model)\n"
    daemon.answers["POST reload"] = Reply({"unchanged": ["e"], "settings": ["routes.auto"]})
    assert ctl("reload").out.splitlines() == ["routes.auto: in effect now", "1 model unchanged"]
    daemon.answers["POST reload"] = Reply({"unchanged": ["e"], "settings": ["memory.reserve", "server.listen"]})
    assert ctl("reload").out.splitlines() == [
        "memory.reserve: in effect now",
        "server.listen: in effect now",
        "1 model unchanged",
    ]


def test_reload_of_a_broken_configuration_lists_every_problem(ctl: Ctl, daemon: FakeDaemon) -> None:
    problems = [
        {
            "file": "accelerd.toml",
            "line": 3,
            "key": "models.a.contxt",
            "message": "no such key; is it 'context'?",
        },
        {"file": "accelerd.toml", "line": 9, "key": "models.b.parallel", "message": "expected a whole number"},
    ]
    daemon.answers["POST reload"] = error(422, "config_invalid", "cannot use it", problems=problems)
    result = ctl("reload")
    assert result.status == 4
    assert "accelerd.toml:3: error: models.a.contxt: no such key" in result.out
    assert "accelerd.toml:9: error: models.b.parallel" in result.out
    assert result.err == "accelctl: nothing was changed: the configuration has 2 errors\n"
    assert json.loads(ctl("reload", "--json").out)["error"]["problems"] == problems


def test_explain(ctl: Ctl, daemon: FakeDaemon) -> None:
    daemon.answers["GET explain"] = Reply(EXPLAINED)
    text = " ".join(ctl("explain", "gemma-3-4b-it").out.split())
    for part in (EXPLAINED["command"], "tokens for one request [accelerd.toml:12]",
                 "5.0 GiB (file size + 10 %)", str(EXPLAINED["placement"]["reason"]), "! this build has no --no-mmap",
                 "75 s ago starting → ready: answered"):  # fmt: skip
        assert part in text
    assert "is answered by" not in text
    assert json.loads(ctl("explain", "gemma-3-4b-it", "--json").out) == EXPLAINED
    assert ctl("explain", "gpt-4o").out.startswith("gpt-4o is answered by gemma-3-4b-it\n")


def test_explain_of_a_model_that_cannot_be_planned(ctl: Ctl, daemon: FakeDaemon) -> None:
    daemon.answers["GET explain"] = error(503, "model_failed", "cannot find the program llama-server")
    result = ctl("explain", "embed")
    assert (result.status, result.err) == (1, "accelctl: cannot find the program llama-server\n")


def test_version_with_and_without_daemon(ctl: Ctl, daemon: FakeDaemon) -> None:
    daemon.answers["GET status"] = Reply(status(version="0.0.9"))
    result = ctl("version")
    assert f"accelctl {__version__}" in result.out
    assert "accelerd 0.0.9" in result.out
    assert "systemctl --user restart accelerd" in result.err
    assert json.loads(ctl("version", "--json").out) == {"accelctl": __version__, "accelerd": "0.0.9"}
    alone = ctl("version", "--socket", "/nowhere")
    assert alone.status == 0
    assert "is not running" in alone.out


def test_explain_says_where_it_lives(ctl: Ctl, daemon: FakeDaemon) -> None:
    for home, place, words in (
        ("systemd", "accelerd-m.service", ", process 4712 in unit accelerd-m.service"),
        ("toolbox", "llama", ", process 4712 in toolbox llama"),
        ("child", None, ", process 4712\n"),
    ):
        daemon.answers["GET explain"] = Reply({**EXPLAINED, "pid": 4712, "home": home, "place": place})
        assert words in ctl("explain", "gemma-3-4b-it").out


ROUTED = {
    "route": "assistant", "description": "", "answers": "npu/small",
    "reason": "big has no free slot (1 requests run, 0 wait); npu/small is free",
    "models": [
        {"model": "big", "state": "ready", "device": "0000:c1:00.0", "free": False, "ahead": 1,
         "why": "has no free slot"},
        {"model": "npu/small", "state": "ready", "device": "0000:c2:00.1", "free": True, "ahead": 0, "why": "is free",
         "price": {"input": 0.5, "output": 1.25}},
    ],
}  # fmt: skip


def test_explain_of_a_route_shows_the_order_and_who_would_answer(ctl: Ctl, daemon: FakeDaemon) -> None:
    daemon.answers["GET explain"] = Reply(ROUTED)
    lines = ctl("explain", "assistant").out.splitlines()
    assert lines[0] == "assistant is a route; a request now goes to npu/small"
    assert "npu/small is free" in lines[1]
    assert lines[-2:] == [
        "  1. big has no free slot",
        "  2. npu/small is free; costs 0.5 for a million tokens in, 1.25 out",
    ]
    assert json.loads(ctl("explain", "assistant", "--json").out) == ROUTED


VARIANTS = [
    {"name": "creative", "aliases": ["claude-*"], "description": "", "hidden": True},
    {"name": "short", "aliases": [], "description": "few words", "hidden": False},
]
CREATIVE = {
    **VARIANTS[0], "of": "gemma-3-4b-it", "protected": ["model", "stream"],
    "edits": [
        {"kind": "remove", "field": "seed", "value": None, "source": "model (a.toml:10)"},
        {"kind": "default", "field": "top_k", "value": 40, "source": "model (a.toml:9)"},
        {"kind": "set", "field": "x.y", "value": {"ä": [True, "b"]}, "source": "model (a.toml:8)"},
    ],
    "system": {"characters": 24, "mode": "instead", "source": "model (a.toml:11)"},
}  # fmt: skip


def test_explain_of_a_variant_shows_what_it_does_and_then_its_model(ctl: Ctl, daemon: FakeDaemon) -> None:
    daemon.answers["GET explain"] = Reply({**EXPLAINED, "variants": VARIANTS, "variant": CREATIVE})
    text = ctl("explain", "creative").out
    before, _, model = text.partition("\n\n")
    assert before.splitlines() == [
        "creative is a variant of gemma-3-4b-it",
        "  remove seed",
        "      [model (a.toml:10)]",
        "  default top_k = 40",
        "      [model (a.toml:9)]",
        '  set x.y = {"ä": [true, "b"]}',
        "      [model (a.toml:8)]",
        "  a system prompt of 24 characters instead of the client's",
        "      [model (a.toml:11)]",
        "  model and stream stay as the client has written them; it is hidden: GET /v1/models does not have it",
    ]
    assert EXPLAINED["command"] in " ".join(model.split())
    assert "Variants\n  creative, claude-*, hidden\n  short: few words\n" in model
    assert ctl("explain", "claude-3").out.startswith("claude-3 is creative, a variant of gemma-3-4b-it\n")


def test_explain_of_a_route_names_its_variants_and_those_on_the_way(ctl: Ctl, daemon: FakeDaemon) -> None:
    before = {
        **CREATIVE,
        "of": "assistant",
        "system": {"characters": 1, "mode": "before", "source": "route (a.toml:3)"},
    }
    answer = {**ROUTED, "by_variants": ["creative", "calm"], "variants": VARIANTS[1:]}
    daemon.answers["GET explain"] = Reply(answer)
    text = ctl("explain", "assistant").out
    assert text.startswith("assistant is a route; a request now goes to npu/small, by creative, calm\n")
    assert text.endswith("Variants\n  short: few words\n")
    daemon.answers["GET explain"] = Reply({**answer, "variant": before})
    text = ctl("explain", "creative").out
    assert "a system prompt of 1 character before the client's" in text
    assert "assistant is a route" in text


def test_models_have_their_variants_and_all_aliases(ctl: Ctl, daemon: FakeDaemon) -> None:
    one = model("qwen", "ready", aliases=["gpt-4*"], hidden_aliases=["old"], variants=VARIANTS)
    route = {
        "name": "r",
        "models": ["qwen"],
        "description": "",
        "aliases": [],
        "variants": [{**VARIANTS[1], "name": "r-2"}],
    }
    daemon.answers["GET status"] = Reply(status(one, routes=[route]))
    text = ctl("models").out
    assert "gpt-4*, old (hidden)" in text
    assert [line.split(maxsplit=3) for line in text.splitlines() if line.startswith(("creative", "short", "r-2"))] == [
        ["creative", "(hidden),", "claude-*", "(hidden)  qwen  -"],
        ["short", "qwen", "few", "words"],
        ["r-2", "r", "few", "words"],
    ]
    assert json.loads(ctl("models", "--json").out)[0]["variants"] == VARIANTS


def test_explain_with_a_prompt_shows_the_tier_and_what_its_score_is_the_sum_of(ctl: Ctl, daemon: FakeDaemon) -> None:
    parts = [
        {"name": "tokenCount", "score": -1.0, "weight": 0.1, "found": []},
        {"name": "codePresence", "score": 1.0, "weight": 0.3, "found": ["function", "python"]},
        {"name": "questionComplexity", "score": 0.0, "weight": 0.02, "found": []},
    ]
    found = {"tier": "medium", "score": 0.2, "cause": "score", "keyword": None, "dimensions": parts}
    daemon.answers["GET explain"] = Reply({**ROUTED, "complexity": found})
    text = ctl("explain", "assistant", "--prompt", "Write a python function & more").out
    assert daemon.requests[-1].query == {"model": "assistant", "prompt": "Write a python function & more"}
    assert "medium by score; the score is 0.20\n" in text
    assert "    -0.100  tokenCount\n    +0.300  codePresence (function, python)\n" in text
    assert "questionComplexity" not in text
    ruled = {**found, "cause": "keyword rule", "keyword": "python"}
    daemon.answers["GET explain"] = Reply({**ROUTED, "complexity": ruled})
    assert "medium by keyword python; the score" in ctl("explain", "assistant", "--prompt", "python").out


def deployment(model: str, **more: Any) -> dict[str, Any]:
    return {
        "stage": "order 1", "member": model, "model": model, "weight": 1, "state": "ready", "device": "cpu",
        "requests": 0, "queue": 0, "ahead": 0, "why": "is free", "health": "usable", "cooling": None,
        "last_failure": None, "answered": 0, "share": None, **more,
    }  # fmt: skip


def test_routes_are_a_table_of_what_may_answer(ctl: Ctl, daemon: FakeDaemon) -> None:
    failed = {"ago": 65.0, "code": "upstream_failed", "message": "refused"}
    deployments = [
        deployment("big", weight=3, health="cooling", cooling=12.0, last_failure=failed, answered=3, share=0.75),
        deployment(
            "far", stage="fallback", member="elsewhere", weight=None, requests=2, queue=7, health="trial", cooling=0.0
        ),
        deployment("lost", health="model not found there", cooling=9.0),
    ]
    route = {"route": "assistant", "description": "", "answers": "far", "reason": "…", "deployments": deployments}
    daemon.answers["GET routes"] = Reply({"routes": [route]})
    first, _, big, far, lost = ctl("routes", "assistant").out.splitlines()
    assert "model not found there, 9 s left" in lost
    assert daemon.requests[-1].query == {"route": "assistant"}
    assert first == "assistant: a request now goes to far"
    cells = [re.split(r" {2,}", line.strip()) for line in (big, far)]
    assert cells[0] == ["1", "big", "3", "ready", "0", "0", "cooling, 12 s left", "3 (75%)", "65 s ago: refused"]
    assert cells[1] == ["fallback", "far (elsewhere)", "-", "ready", "2", "7", "to be tried", "0", "-"]
    assert json.loads(ctl("routes", "--json").out) == {"routes": [route]}
    assert daemon.requests[-1].query == {}
    daemon.answers["GET routes"] = Reply({"routes": []})
    assert ctl("routes").out.startswith("No routes.")


def routed() -> Reply:
    answer = status(*FLEET)
    names = [m["name"] for m in answer["models"]]
    answer["models"][0]["prefixed"] = f"local/{names[0]}"
    answer["routes"] = [{"name": "assistant", "models": names[:2], "description": "whoever is free"}]
    return Reply(answer)


def test_routes_are_shown_and_are_names_like_others(ctl: Ctl, daemon: FakeDaemon) -> None:
    daemon.answers["GET status"] = routed()
    first, second, *others = (m["name"] for m in status(*FLEET)["models"])
    shown = ctl("models").out
    assert f"{first}, {second}" in shown.partition("ROUTE")[2]
    assert "whoever is free" in shown
    known = ctl("models", "--names").out.split()
    assert "assistant" in known
    assert f"local/{first}" in known
    only = ctl("status", "assistant").out
    assert first in only
    assert second in only
    assert not any(other in only for other in others)
    assert first in ctl("status", f"local/{first}").out
    assert "did you mean assistant" in ctl("status", "asistant").err


def test_one_may_talk_to_a_route(ctl: Ctl, daemon: FakeDaemon) -> None:
    daemon.answers["GET status"] = routed()
    daemon.answers["POST /v1/chat/completions"] = sse(delta("hello"), delta(finish_reason="stop"))
    assert ctl("chat", "assistant", "hi").out.strip() == "hello"
    assert json.loads(daemon.requests[-1].body)["model"] == "assistant"
