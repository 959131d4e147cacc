"""A lab of hosts behind one accelerd: three more accelerds, an LM Studio, an Ollama. Whichever dies, no request is lost
that had not begun to be answered."""

from __future__ import annotations

import http.client
import itertools
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.daemon.kit import QUICK, Site
from tests.fakes.fake_remote import FakeRemote
from tests.harness import PATIENCE, Daemon, DaemonFactory, streaming

REQUESTS, CLIENTS = 200, 12
QUICKLY = {"FAKE_TOKENS": "4", "FAKE_DELAY_MS": "3"}
HOSTS = {"tower": ("big", "coder", "embed"), "nas": ("big", "tools", "embed"), "laptop": ("small", "tools")}
ROUTES = """\
[routes.reasoning_fast]
fallbacks = ["local"]
[[routes.reasoning_fast.deployments]]
model = "tower-big"
weight = 3
[[routes.reasoning_fast.deployments]]
model = "mac-qwen"
[[routes.reasoning_fast.deployments]]
model = "nas-big"
order = 2

[routes.reasoning_slow]
fallbacks = ["reasoning_fast"]
[[routes.reasoning_slow.deployments]]
model = "nas-big"
[[routes.reasoning_slow.deployments]]
model = "tower-big"
order = 2

[routes.tools_fast]
models = ["laptop-tools", "nas-tools"]

[routes.tools_slow]
deployments = [{model = "nas-tools", weight = 2}, {model = "laptop-tools"}, {model = "tower-big", order = 2}]
retries = 1

[routes.vision]
models = ["mac-qwen", "old-llava"]

[routes.embedding]
models = ["tower-embed", "nas-embed", "local-embed"]

[routes.coding]
deployments = [{model = "tower-coder"}, {model = "old-llama", order = 2}]
session_affinity = true

[routes.smart-router]
models = ["tools_fast", "coding", "reasoning_fast"]
"""
CHATS = ("reasoning_fast", "reasoning_slow", "tools_fast", "tools_slow", "coding", "smart-router", "laptop-small")
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
TOOL = {"type": "function", "function": {"name": "light_off"}}


def remote(name: str, url: str, api: str, **models: str) -> str:
    """A host, and its models by what they are called here."""
    lines = [f"[remotes.{name}]", f'url = "{url}/v1"', f'api = "{api}"', 'connect_timeout = "5s"']
    for model, wire in models.items():
        lines += [f"[models.{name}-{model}]", 'engine = "remote"', f'remote = "{name}"', f'model = "{wire}"']
        lines += ["concurrency = 4"]
        if api in ("openai", "ollama"):
            able = ["chat", "tools"] + ["vision"] * (wire in ("qwen", "llava"))
            lines += [f"capabilities = {json.dumps(able)}"]
    return "\n".join(lines) + "\n"


def power_off(host: Daemon) -> None:
    host.process.kill()
    host.process.wait()


class Lab:
    """All of it. `kill` ends a host as a power cut does."""

    def __init__(self, factory: DaemonFactory, site: Site) -> None:
        self.fakes: dict[str, FakeRemote] = {}
        self.dead: set[str] = set()
        self.kill: dict[str, Callable[[], None]] = {}
        toml = [QUICK]
        for name, models in HOSTS.items():
            own = [
                site.model(model, env=QUICKLY, home="child", parallel=4, embeddings=model == "embed")
                for model in models
            ]
            host = factory.start(QUICK + "".join(own))
            self.kill[name] = partial(power_off, host)
            toml.append(remote(name, f"http://127.0.0.1:{host.port}", "accelerd", **{one: one for one in models}))
        for name, api, models in (("mac", "openai", ("qwen",)), ("old", "ollama", ("llama", "llava"))):
            folder = Path(site.directory, name)
            folder.mkdir()
            fake = FakeRemote(folder, models=[{"id": one} for one in models])
            self.fakes[name] = fake
            self.kill[name] = fake.close
            toml.append(remote(name, fake.url, api, **{one: one for one in models}))
        local = {"env": QUICKLY, "home": "child", "parallel": 4}
        toml += [site.model("local", **local), site.model("local-embed", **local, embeddings=True), ROUTES]
        self.door: Daemon = factory.start("".join(toml), server='default_fallbacks = ["local"]')


@pytest.fixture(scope="module")
def lab(factory: DaemonFactory, sites: Site) -> Iterator[Lab]:
    lab = Lab(factory, sites)
    yield lab
    for name, fake in lab.fakes.items():
        if name not in lab.dead:
            fake.close()


def ask(door: Daemon, number: int, *, images: bool) -> str:
    """The request of that number: what is wrong with its answer, or nothing."""
    kinds = [*CHATS, "embedding", "stream", *(["vision"] if images else [])]
    kind = kinds[number % len(kinds)]
    if kind == "stream":
        return stream(door, CHATS[number % len(CHATS)])
    text: Any = f"please number {number}"
    if kind == "embedding":
        answer = door.send("POST", "/v1/embeddings", {"model": kind, "input": text})
    else:
        more = {"tools": [TOOL]} if kind.startswith("tools") else {}
        content = [{"type": "text", "text": text}, IMAGE] if kind == "vision" else text
        answer = door.chat(kind, messages=[{"role": "user", "content": content}], **more)
    if answer.status != 200:
        return f"{kind}: {answer.status} {answer.body!r}"
    said = answer.json()
    if kind in CHATS[:-1] and answer.headers.get("x-accelerd-route") != kind:
        return f"{kind}: {answer.headers}"
    return "" if said["model"] == kind else f"{kind}: it is called {said['model']}"


def stream(door: Daemon, model: str) -> str:
    """One that has begun may end with an error, but says so; one that has not is not lost."""
    with streaming(door, model) as response:
        try:
            body = response.read()
        except http.client.IncompleteRead as cut:
            body = cut.partial
        events = [line for line in body.split(b"\n") if line.startswith(b"data: ")]
        if response.status != 200 or not events:
            return f"stream of {model}: {response.status} {events}"
    begun = b'"content"' in events[0] or b'"role"' in events[0]
    return "" if events[-1] == b"data: [DONE]" or begun else f"stream of {model}: {events}"


def while_asking(lab: Lab, victim: str, *, images: bool) -> list[str]:
    """What has gone wrong while the victim dies amid the requests."""
    answered = itertools.count(1)

    def one(number: int) -> str:
        wrong = ask(lab.door, number, images=images)
        if next(answered) == REQUESTS // 4:
            lab.dead.add(victim)
            lab.kill[victim]()
        return wrong

    with ThreadPoolExecutor(CLIENTS) as pool:
        found = list(filter(None, pool.map(one, range(REQUESTS), timeout=3 * PATIENCE)))
    assert victim in lab.dead
    return found


def test_a_host_that_dies_takes_no_request_with_it(lab: Lab) -> None:
    """One after the other: each time the others that are left answer, and in the end this machine alone."""
    for victim in ("mac", "tower", "laptop", "nas", "old"):
        assert while_asking(lab, victim, images=victim != "old") == [], victim
    (table,) = lab.door.control("GET", "routes?route=reasoning_fast").json()["routes"]
    states = {one["model"]: one for one in table["deployments"]}
    assert {name for name, one in states.items() if one["answered"]} >= {"tower-big", "nas-big", "local"}
    assert states["tower-big"]["last_failure"]["code"] == "upstream_failed"
    assert (states["local"]["health"], states["local"]["stage"]) == ("usable", "fallback")
    assert sum(one["share"] for one in states.values()) == pytest.approx(1)
