"""What the engine has computed of a prompt is used again, through accelerd as well as without it; on a real model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.harness import DaemonFactory
from tests.real.bare import LONG, ask, bare_server

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2 * LONG)]
CHAT = "/v1/chat/completions"
SAID = (
    "I would like to plan a walking tour of three days through a hilly region, with two nights in small guest houses, "
    "and I want to know what to pack, how far one can walk in a day with a heavy bag, and where to find water. "
    "Last year the three of us carried tents and far too much food, walked in the rain for half of the time and were "
    "happy whenever there was a roof; this time we would rather sleep in beds and eat what the people there cook. "
)
TURNS = (
    SAID + "Please begin with the question of what to pack, and be brief.",
    "Thank you. And how far can one walk in a day, when every hour has two hundred metres of ascent? " + SAID,
    "What would you change if it rains on the second day, so that all paths through the woods are mud? " + SAID,
    "Good. Now put all of it into one list, in the order of the days, and add what I forgot to ask. " + SAID,
)
IMAGE = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5"
    "ErkJggg=="
)


def cached(usage: dict[str, Any]) -> int:
    return int(usage["prompt_tokens_details"]["cached_tokens"])


def title_request(messages: list[dict[str, str]]) -> list[dict[str, str]]:
    """What Open WebUI asks after each answer."""
    told = "\n".join(f"{message['role'].upper()}: {message['content'][:80]}" for message in messages[-2:])
    task = (
        "### Task:\nGenerate a concise title of three to five words for the chat history, as JSON.\n### Chat history:\n"
    )
    return [{"role": "user", "content": task + told}]


def conversation(port: int) -> tuple[int, int]:
    """Four turns of a chat, each followed by a request for a title: the tokens of the prompts, and those cached."""
    messages: list[dict[str, str]] = []
    total = found = 0
    for turn in TURNS:
        messages.append({"role": "user", "content": turn})
        body = {"model": "m", "messages": messages, "max_tokens": 24, "temperature": 0}
        answer = ask(port, CHAT, body)
        assert answer.status == 200, answer.body
        whole = answer.json()
        total += whole["usage"]["prompt_tokens"]
        found += cached(whole["usage"])
        messages.append({"role": "assistant", "content": whole["choices"][0]["message"]["content"]})
        title = ask(port, CHAT, {"model": "m", "messages": title_request(messages), "max_tokens": 8, "temperature": 0})
        assert title.status == 200, title.body
    return total, found


def toml(llama_server: str, model: Path, **settings: object) -> str:
    lines = [
        f'[engines.llama-server]\nbinary = "{llama_server}"',
        f'[models.m]\npath = "{model}"',
        "parallel = 1",
        "threads = 1",
    ]
    return "\n".join([*lines, *(f"{key} = {value}" for key, value in settings.items())]) + "\n"


def test_a_chat_that_is_asked_for_titles_meanwhile_is_cached_as_without_accelerd(
    daemons: DaemonFactory, llama_server: str, gemma_model: Path, tmp_path: Path
) -> None:
    daemon = daemons.start(toml(llama_server, gemma_model, context=4096))
    total, through = conversation(daemon.port)
    with bare_server(llama_server, gemma_model, tmp_path / "bare.log", *["-c", "4096", "-np", "1", "-t", "1"]) as port:
        bare_total, bare = conversation(port)
    print(f"cached: {through} of {total} through accelerd, {bare} of {bare_total} by llama-server alone")
    assert total == bare_total > 1500
    assert bare > total / 2, "the engine's own cache works"
    assert through >= 0.95 * bare


def test_a_long_prompt_stays_cached_when_images_are_refused(
    daemons: DaemonFactory, llama_server: str, gemma_model: Path
) -> None:
    daemon = daemons.start(toml(llama_server, gemma_model, context=8192))
    messages = [{"role": "user", "content": SAID * 60}]
    body = {"model": "m", "messages": messages, "max_tokens": 1, "temperature": 0}
    first = ask(daemon.port, CHAT, body).json()["usage"]
    assert first["prompt_tokens"] > 6000
    assert cached(first) == 0
    pid = daemon.status("m")["pid"]
    picture = {"type": "image_url", "image_url": {"url": IMAGE}}
    text = {"type": "text", "text": "What is this?"}
    for number in range(10):
        asked = [{"role": "user", "content": [text, picture] if number % 2 else [picture]}]
        refused = ask(daemon.port, CHAT, {"model": "m", "messages": asked, "stream": number % 3 == 0})
        assert refused.status in (400, 415, 422), refused.body
        assert "image" in refused.json()["error"]["message"]
    again = ask(daemon.port, CHAT, body).json()["usage"]
    assert cached(again) >= first["prompt_tokens"] - 4, "all but the last tokens, which are computed for the answer"
    assert daemon.status("m")["pid"] == pid
