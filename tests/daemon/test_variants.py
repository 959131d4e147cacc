"""Variants under a daemon: one process, what the engine gets, what clients are told."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.daemon.kit import QUICK, Site
from tests.daemon.test_command import program, seen
from tests.harness import Daemon, DaemonFactory, streaming

VARIANTS = """
[models.m.variants.creative]
set = {temperature = 1.2}
description = "More colourful."
[models.m.variants.strict]
set = {temperature = 0, "chat_template_kwargs.enable_thinking" = false}
remove = ["seed", "top_k"]
[models.m.variants.brief]
system = "Be brief."
default = {max_tokens = 5}
[models.m.variants.pirate]
system = "You are a pirate."
system_mode = "instead"
hidden = true
[models.m.variants.plain]
aliases = ["gpt-4*"]
[routes.r]
models = ["strict"]
[routes.r.variants.calm]
set = {top_p = 0.5}
"""


@pytest.fixture(scope="module")
def daemon(factory: DaemonFactory, sites: Site) -> Daemon:
    return factory.start(QUICK + model(sites) + VARIANTS, server='default_model = "brief"')


def model(sites: Site) -> str:
    """One that records its requests, and has another name for itself."""
    return program(sites, "m", "--port", "{port}", api=["chat", "transcription"])


def sent(daemon: Daemon, sites: Site, model: str | None, **more: Any) -> dict[str, Any]:
    """What the engine got for a chat."""
    messages = [{"role": "system", "content": "Theirs."}, {"role": "user", "content": "hi"}]
    named = {} if model is None else {"model": model}
    answer = daemon.send("POST", "/v1/chat/completions", {"messages": messages, **named, **more})
    assert answer.status == 200, answer.body
    assert answer.headers["x-accelerd-model"] == "m"
    assert answer.json()["model"] == (model or "m")
    return dict(json.loads(seen(sites, "m")[-1]["body"]))


def test_five_names_of_one_process(daemon: Daemon, sites: Site) -> None:
    assert daemon.events("load?model=m")[-1]["event"] == "ready"
    before = len(seen(sites, "m"))
    assert sent(daemon, sites, "creative", temperature=0.1, seed=3) == {
        "model": "creative", "temperature": 1.2, "seed": 3, "messages": sent(daemon, sites, "m")["messages"],
    }  # fmt: skip
    strict = sent(daemon, sites, "strict", seed=3, top_k=4, chat_template_kwargs={"a": 1})
    assert strict["chat_template_kwargs"] == {"a": 1, "enable_thinking": False}
    assert not {"seed", "top_k"} & set(strict)
    assert sent(daemon, sites, "brief")["messages"][0]["content"] == "Be brief.\n\nTheirs."
    assert sent(daemon, sites, "brief", max_tokens=9)["max_tokens"] == 9
    assert sent(daemon, sites, None)["max_tokens"] == 5  # the default is a variant
    assert [one["content"] for one in sent(daemon, sites, "pirate")["messages"]] == ["You are a pirate.", "hi"]
    assert sent(daemon, sites, "gpt-4o")["model"] == "gpt-4o"
    assert len({one["pid"] for one in seen(sites, "m")[before:]}) == 1


def test_a_route_names_a_variant_and_has_some(daemon: Daemon, sites: Site) -> None:
    seen = sent(daemon, sites, "calm", top_p=1, seed=5)
    assert (seen["top_p"], seen["temperature"]) == (0.5, 0)
    assert "seed" not in seen
    assert "top_p" not in sent(daemon, sites, "r")


def test_a_stream_has_the_name_that_was_asked_for(daemon: Daemon) -> None:
    with streaming(daemon, "creative") as response:
        events = response.read().decode()
    models = {json.loads(line[6:])["model"] for line in events.split("\n") if line.startswith("data: {")}
    assert models == {"creative"}


def test_they_are_listed_unless_hidden(daemon: Daemon) -> None:
    listed = {one["id"]: one for one in daemon.send("GET", "/v1/models").json()["data"]}
    assert list(listed) == ["m", "creative", "strict", "brief", "plain", "r", "calm"]
    assert (listed["creative"]["variant_of"], listed["creative"]["description"]) == ("m", "More colourful.")
    assert listed["calm"]["variant_of"] == "r"
    assert daemon.send("GET", "/v1/models/pirate").json()["variant_of"] == "m"
    anthropic = daemon.send("GET", "/v1/models", headers={"anthropic-version": "2023-06-01"}).json()
    assert [one["id"] for one in anthropic["data"]] == list(listed)


def test_operations_of_people_mean_the_model(daemon: Daemon) -> None:
    assert daemon.control("POST", "unload?model=strict").status in (200, 202)
    daemon.wait_state("m", "stopped")
    assert daemon.events("load?model=creative")[-1]["event"] == "ready"


def test_another_edit_is_in_force_after_a_reload_and_the_process_stays(daemon: Daemon, sites: Site) -> None:
    assert daemon.events("load?model=m")[-1]["event"] == "ready"
    before = daemon.status("m")["pid"]
    for temperature in (1.5, 1.2):  # and back, for the other tests
        daemon.configure(QUICK + model(sites) + VARIANTS.replace("1.2", str(temperature)))
        assert daemon.control("POST", "reload").status == 200
        assert sent(daemon, sites, "creative")["temperature"] == temperature
    assert daemon.status("m")["pid"] == before
