"""A chat that is interrupted by other requests takes as many tokens from the cache as with bare llama-server."""

from __future__ import annotations

import json
import shlex
import subprocess
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.harness import DaemonFactory, eventually
from tests.models import make_model
from tests.ports import free_port

Ask = Callable[[list[dict[str, str]], int], dict[str, Any]]  # messages, tokens of the answer → the response
TURNS = 4
TITLE = "Make a short title for it"  # as chat programs do after each answer


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("models"))


def cached_of_four_turns(ask: Ask) -> tuple[int, int]:
    """Tokens of the prompts of a chat that came from the cache, and all of them."""
    messages: list[dict[str, str]] = [{"role": "system", "content": "You talk about boats, fish and the weather."}]
    cached = total = 0
    for turn in range(TURNS):
        messages.append({"role": "user", "content": f"{turn}: and what does the fisherman say when it rains?"})
        answer = ask(messages, 4)
        usage = answer["usage"]
        cached += usage["prompt_tokens_details"]["cached_tokens"]
        total += usage["prompt_tokens"]
        messages.append({"role": "assistant", "content": answer["choices"][0]["message"]["content"]})
        ask([{"role": "user", "content": f"{TITLE}, number {turn}"}], 2)
    return cached, total


def asking(url: str, name: str) -> Ask:
    def ask(messages: list[dict[str, str]], most: int) -> dict[str, Any]:
        body = {"model": name, "messages": messages, "max_tokens": most, "temperature": 0}
        request = urllib.request.Request(
            f"{url}/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as response:
            return dict(json.load(response))

    return ask


def test_a_chat_with_requests_for_titles_is_cached_as_by_bare_llama_server(
    daemons: DaemonFactory, llama_server: str, model: Path
) -> None:
    port = free_port()
    bare = subprocess.Popen(
        [llama_server, "-m", str(model), "--host", "127.0.0.1", "--port", str(port), "-t", "1"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        url = f"http://127.0.0.1:{port}"

        def up() -> bool:
            try:
                with urllib.request.urlopen(f"{url}/health", timeout=2) as response:
                    return bool(response.status == 200)
            except OSError:
                return False

        eventually(up, "llama-server is up")
        expected, total = cached_of_four_turns(asking(f"{url}/v1", "m"))
    finally:
        bare.kill()
        bare.wait()
    assert expected > total / 3, "else the test shows nothing"
    for parallel in (1, 2):
        daemon = daemons.start(
            f'[engines.llama-server]\nbinary = "{llama_server}"\n'
            f'[models.m]\npath = "{model}"\nthreads = 1\ncontext = 4096\nparallel = {parallel}\n'
        )
        cached, again = cached_of_four_turns(asking(daemon.url, "m"))
        assert again == total
        assert cached >= 0.95 * expected, (
            f"{cached} of {total} tokens from the cache, {expected} bare, {parallel} slots"
        )
        explained = daemon.control("GET", "explain?model=m").json()
        (flag,) = (one for one in explained["flags"] if one["text"].startswith("--cache-ram"))
        size = int(shlex.split(flag["text"])[1]) << 20
        assert explained["placement"]["prompt_cache"] == size > 0
        held = [
            one
            for pool in daemon.control("GET", "memory").json()["pools"]
            for one in pool["holdings"]
            if one["prompt_cache"]
        ]
        assert [one["prompt_cache"] for one in held] == [size], "on the ledger as the model's"
        assert not [line for line in daemon.output().splitlines() if "cache-idle-slots" in line and "disabling" in line]
