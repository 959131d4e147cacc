"""A lab of hosts behind one accelerd, each in a network namespace: three more accelerds, an LM Studio, an Ollama.
Whichever dies or cannot be reached any more, no request is lost that had not begun to be answered."""

from __future__ import annotations

import contextlib
import functools
import http.client
import itertools
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.daemon.kit import QUICK, Site
from tests.daemon.network import Host, Network, NoNamespacesError
from tests.fakes.fake_remote import FakeRemote
from tests.harness import PATIENCE, Answer, Daemon, DaemonFactory, UnixConnection, eventually, exchange

REQUESTS, CLIENTS = 200, 12
QUICKLY = {"FAKE_TOKENS": "4", "FAKE_DELAY_MS": "3"}
HOSTS = {"tower": ("big", "coder", "embed"), "nas": ("big", "tools", "embed"), "laptop": ("small", "tools")}
ROUTES = """\
[routes.reasoning_fast]
fallbacks = ["local"]
cooldown = "1s"
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
retries = 2

[routes.embedding]
models = ["tower-embed", "nas-embed", "local-embed"]

[routes.coding]
deployments = [{model = "tower-coder"}, {model = "old-llama", order = 2}]
session_affinity = true

[routes.smart-router.tiers]
simple = ["laptop-small", "tools_fast"]
medium = "reasoning_fast"
complex = "coding"
reasoning = "reasoning_slow"
"""
CHATS = ("reasoning_fast", "reasoning_slow", "tools_fast", "tools_slow", "coding", "smart-router", "laptop-small")
PROMPTS = {  # by tier
    "simple": "hello",
    "medium": "Explain how to configure a database API endpoint.",
    "complex": "Design a distributed microservice architecture: a REST API with authentication and encryption, a "
    "database schema with an index, a kubernetes cluster, and refactor this async function to implement a cache.",
    "reasoning": "Think step by step and reason through this: prove that the algorithm terminates.",
}
KEY = "sk-lab"
PORT = 4000
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
TOOL = {"type": "function", "function": {"name": "light_off"}}


def remote(name: str, url: str, api: str, **models: str) -> str:
    """A host, and its models by what they are called here. The limits are short: a request that is lost is noticed."""
    lines = [f"[remotes.{name}]", f'url = "{url}/v1"', f'api = "{api}"', 'connect_timeout = "1s"']
    lines += ['first_byte_timeout = "4s"', 'stall_timeout = "4s"', 'key_file = "@KEY@"']
    for model, wire in models.items():
        lines += [f"[models.{name}-{model}]", 'engine = "remote"', f'remote = "{name}"', f'model = "{wire}"']
        lines += ["concurrency = 4"]
        if api in ("openai", "ollama"):
            able = ["chat", "tools"] + ["vision"] * (wire in ("qwen", "llava"))
            lines += [f"capabilities = {json.dumps(able)}"]
    return "\n".join(lines) + "\n"


def power_off(daemon: Daemon) -> None:
    """As a power cut does it: engines, too."""
    for process in (*daemon.children(), daemon.process):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    daemon.process.wait()


class Lab:
    """All of it. `off` ends a host, `network.cut` takes its cable out."""

    def __init__(self, factory: DaemonFactory, site: Site, network: Network) -> None:
        self.network = network
        self.hosts: dict[str, Host] = {}
        self.off: dict[str, Callable[[], None]] = {}
        key = Path(site.directory, "key")
        key.write_text(KEY)
        key.chmod(0o600)
        toml = [QUICK]
        for name, models in HOSTS.items():
            own = [
                site.model(model, env=QUICKLY, home="child", parallel=4, embeddings=model == "embed")
                for model in models
            ]
            host = self.hosts[name] = network.host()
            daemon = factory.start(
                QUICK + "".join(own),
                server=f'key_file = "{key}"',
                address="0.0.0.0",
                port=PORT + len(self.hosts),
                enter=host.enter,
            )
            self.off[name] = functools.partial(power_off, daemon)
            toml.append(
                remote(name, f"http://{host.address}:{daemon.port}", "accelerd", **{one: one for one in models})
            )
        for name, api, models in (("mac", "openai", ("qwen",)), ("old", "ollama", ("llama", "llava"))):
            folder = Path(site.directory, name)
            folder.mkdir()
            host = self.hosts[name] = network.host()
            ids = [{"id": one} for one in models]
            fake = FakeRemote(folder, key=KEY, models=ids, address=host.address, enter=host.enter)
            self.off[name] = fake.close
            toml.append(remote(name, fake.url, api, **{one: one for one in models}))
        local = {"env": QUICKLY, "home": "child", "parallel": 4}
        toml += [site.model("local", **local), site.model("local-embed", **local, embeddings=True), ROUTES]
        text = "".join(toml).replace("@KEY@", str(key))
        self.door = factory.start(text, server='default_fallbacks = ["local"]', port=PORT, enter=network.first.enter)

    def close(self) -> None:
        for name in list(self.off):
            self.off.pop(name)()

    def post(self, path: str, model: str, **body: Any) -> Answer:
        """Asked over its socket: nothing of ours is in its network."""
        connection = UnixConnection(self.door.control_socket)
        connection.timeout = 3 * PATIENCE
        return exchange(connection, "POST", path, {"model": model, **body}, {})

    def chat(self, model: str, content: Any, **more: Any) -> Answer:
        return self.post("/v1/chat/completions", model, messages=[{"role": "user", "content": content}], **more)


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    try:
        network = Network()
    except NoNamespacesError as error:
        pytest.skip(f"no network namespaces: {error}")
    yield network
    network.close()


@pytest.fixture(scope="module")
def lab(network: Network, factory: DaemonFactory, sites: Site) -> Iterator[Lab]:
    lab = Lab(factory, sites, network)
    yield lab
    lab.close()


def ask(lab: Lab, number: int, *, images: bool) -> str:
    """The request of that number: what is wrong with its answer, or nothing."""
    kinds = [*CHATS, "embedding", "stream", *(["vision"] if images else [])]
    kind = kinds[number % len(kinds)]
    if kind == "stream":
        return stream(lab, CHATS[number % len(CHATS)])
    text: Any = f"please number {number}"
    if kind == "embedding":
        answer = lab.post("/v1/embeddings", kind, input=text)
    else:
        text = list(PROMPTS.values())[number % len(PROMPTS)] if kind == "smart-router" else text
        more = {"tools": [TOOL]} if kind.startswith("tools") else {}
        answer = lab.chat(kind, [{"type": "text", "text": text}, IMAGE] if kind == "vision" else text, **more)
    if answer.status != 200:
        return f"{kind}: {answer.status} {answer.body!r}"
    said = answer.json()
    if kind in CHATS[:-1] and answer.headers.get("x-accelerd-route") != kind:
        return f"{kind}: {answer.headers}"
    return "" if said["model"] == kind else f"{kind}: it is called {said['model']}"


def stream(lab: Lab, model: str) -> str:
    """One that has begun may end with an error, but says so; one that has not is not lost."""
    try:
        answer = lab.chat(model, "hi", stream=True)
        status, body = answer.status, answer.body
    except http.client.IncompleteRead as cut:
        status, body = 200, cut.partial
    events = [line for line in body.split(b"\n") if line.startswith(b"data: ")]
    if status != 200 or not events:
        return f"stream of {model}: {status} {events}"
    begun = b'"content"' in events[0] or b'"role"' in events[0]
    return "" if events[-1] == b"data: [DONE]" or begun else f"stream of {model}: {events}"


def while_asking(lab: Lab, happens: Callable[[], None], *, images: bool) -> list[str]:
    """What goes wrong while that happens amid the requests."""
    answered, happened = itertools.count(1), list[bool]()

    def one(number: int) -> str:
        wrong = ask(lab, number, images=images)
        if next(answered) == REQUESTS // 4:
            happens()
            happened.append(True)
        return wrong

    with ThreadPoolExecutor(CLIENTS) as pool:
        found = list(filter(None, pool.map(one, range(REQUESTS), timeout=3 * PATIENCE)))
    assert happened
    return found


def who(lab: Lab, model: str, content: str = "hi") -> str | None:
    return lab.chat(model, content).headers.get("x-accelerd-model")


def test_whichever_host_goes_takes_no_request_with_it(lab: Lab) -> None:
    """In this order, as little is left in the end. Before, each request goes to the tier that it needs."""
    found = {tier: who(lab, "smart-router", prompt) for tier, prompt in PROMPTS.items()}
    assert found.pop("medium") in ("tower-big", "mac-qwen")
    assert found == {"simple": "laptop-small", "complex": "tower-coder", "reasoning": "nas-big"}

    # The cable of a host is out: nobody says that it is gone, and the time limits decide. Then it is used again.
    for name, model in (("tower", "tower-big"), ("mac", "mac-qwen")):
        host = lab.hosts[name]
        assert while_asking(lab, functools.partial(lab.network.cut, host), images=True) == [], name
        lab.network.join(host)
        eventually(lambda model=model: who(lab, model) == model, f"{model} answers again", within=3 * PATIENCE)

    # One host after the other dies: each time the others that are left answer, and in the end this machine alone.
    for name in ("mac", "tower", "laptop", "nas", "old"):
        assert while_asking(lab, lab.off.pop(name), images=name != "old") == [], name
    (table,) = lab.door.control("GET", "routes?route=reasoning_fast").json()["routes"]
    states = {one["model"]: one for one in table["deployments"]}
    assert {name for name, one in states.items() if one["answered"]} >= {"tower-big", "nas-big", "local"}
    assert states["tower-big"]["last_failure"]["code"] == "upstream_failed"
    assert (states["local"]["health"], states["local"]["stage"]) == ("usable", "fallback")
    assert sum(one["share"] for one in states.values()) == pytest.approx(1)
