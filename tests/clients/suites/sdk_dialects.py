"""The packages openai, anthropic and ollama with an engine that has only one API: what they see of each is compared.

llama-server itself has OpenAI's and Anthropic's API; Ollama's is compared between the two engines that have one each.
"""

from __future__ import annotations

import json
from itertools import groupby
from typing import Any

from anthropic import Anthropic
from checks import CHAT, KEY, PIXEL, WEATHER, Target, check, main, refused
from ollama import Client
from openai import OpenAI

HELLO: list[Any] = [{"role": "user", "content": "good day"}]
FUNCTION: Any = {
    "type": "function",
    "function": {"name": "get_weather", "description": "the weather", "parameters": WEATHER},
}
TOOL: Any = {"name": "get_weather", "description": "the weather", "input_schema": WEATHER}
LONG = [{"role": "user", "content": "word " * 20_000}]


def once(kinds: Any) -> list[Any]:
    """Each once where several come in a row."""
    return [kind for kind, _ in groupby(kinds)]


# --- OpenAI ----------------------------------------------------------------------------------------------------------


def openai(target: Target, **more: Any) -> Any:
    client = OpenAI(base_url=target.url, api_key=KEY, max_retries=0, timeout=60)
    return client.chat.completions.create(**{"model": CHAT, "messages": HELLO, "max_tokens": 64, **more})


def shape(chunk: Any) -> Any:
    """What a chunk is."""
    if not chunk.choices:
        return chunk.usage.completion_tokens
    choice = chunk.choices[0]
    parts = [name for name in ("role", "content", "tool_calls") if getattr(choice.delta, name)]
    return parts, choice.finish_reason


def calls(chunks: list[Any]) -> Any:
    """The calls that a stream's deltas make, by number."""
    found: dict[int, list[str]] = {}
    for part in (part for one in chunks if one.choices for part in one.choices[0].delta.tool_calls or ()):
        known = found.setdefault(part.index, ["", ""])
        known[0] += part.function.name or ""
        known[1] += part.function.arguments or ""
    return found


@check
def chat(target: Target) -> Any:
    answer = openai(target)
    return answer.choices[0].message.content, answer.choices[0].finish_reason, answer.usage.total_tokens, answer.model


@check
def chat_stream(target: Target) -> Any:
    chunks = list(openai(target, stream=True))
    text = "".join(one.choices[0].delta.content or "" for one in chunks)
    return text, once(map(shape, chunks)), {one.object for one in chunks}


@check
def chat_stream_usage(target: Target) -> Any:
    return once(map(shape, openai(target, stream=True, max_tokens=4, stream_options={"include_usage": True})))


@check
def chat_tools_stream(target: Target) -> Any:
    chunks = list(openai(target, stream=True, tools=[FUNCTION]))
    return calls(chunks), once(map(shape, chunks))


@check
def chat_tool_loop(target: Target) -> Any:
    said = openai(target, tools=[FUNCTION], tool_choice="auto").choices[0].message
    call = said.tool_calls[0]
    result = {"role": "tool", "tool_call_id": call.id, "content": "sunny"}
    answer = openai(target, tools=[FUNCTION], messages=[*HELLO, said, result])
    return call.function.name, json.loads(call.function.arguments), answer.choices[0].message.content


@check
def chat_too_long(target: Target) -> Any:
    return refused(lambda: openai(target, messages=LONG))["status_code"]


@check
def chat_image(target: Target) -> Any:
    parts = [{"type": "text", "text": "what?"}, {"type": "image_url", "image_url": {"url": PIXEL}}]
    return refused(lambda: openai(target, messages=[{"role": "user", "content": parts}]))["status_code"] >= 400


# --- Anthropic -------------------------------------------------------------------------------------------------------


def anthropic(target: Target) -> Anthropic:
    return Anthropic(base_url=target.root, api_key=KEY, max_retries=0, timeout=60)


def message(target: Target, **more: Any) -> Any:
    return anthropic(target).messages.create(**{"model": CHAT, "max_tokens": 64, "messages": HELLO, **more})


@check
def message_plain(target: Target) -> Any:
    answer = message(target, system="be brief", metadata={"user_id": "me"})
    return answer.content, answer.stop_reason, answer.usage.output_tokens, answer.model


@check
def message_stream(target: Target) -> Any:
    with anthropic(target).messages.stream(model=CHAT, max_tokens=4, messages=HELLO) as stream:
        kinds = [event.type for event in stream]
        return kinds, stream.get_final_message().content, stream.get_final_message().stop_reason


@check
def message_tools_stream(target: Target) -> Any:
    with anthropic(target).messages.stream(model=CHAT, max_tokens=64, messages=HELLO, tools=[TOOL]) as stream:
        kinds = [event.type for event in stream]
        last = stream.get_final_message()
        return kinds, last.content, last.stop_reason, last.usage.output_tokens


@check
def message_tool_loop(target: Target) -> Any:
    first = message(target, tools=[TOOL], tool_choice={"type": "auto", "disable_parallel_tool_use": True})
    call = next(one for one in first.content if one.type == "tool_use")
    result = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": call.id, "content": "sunny"}]}
    said = [*HELLO, {"role": "assistant", "content": first.content}, result]
    return call.name, call.input, message(target, tools=[TOOL], messages=said).content


@check
def message_thinking(target: Target) -> Any:
    return message(target, max_tokens=2048, thinking={"type": "enabled", "budget_tokens": 1024}).content


@check
def message_too_long(target: Target) -> Any:
    return refused(lambda: message(target, messages=LONG))["status_code"]


# --- Ollama ----------------------------------------------------------------------------------------------------------


def ollama(target: Target, **more: Any) -> Any:
    return Client(host=target.root).chat(**{"model": CHAT, "messages": HELLO, "options": {"num_predict": 64}, **more})


@check
def ollama_chat(target: Target) -> Any:
    answer = ollama(target, keep_alive="5m", think=False)
    return answer.message, answer.done_reason, answer.eval_count, answer.prompt_eval_count, answer.model


@check
def ollama_stream(target: Target) -> Any:
    lines = list(ollama(target, stream=True, options={"num_predict": 4, "num_ctx": 2048}))
    return [one.message.content for one in lines], [one.done for one in lines], lines[-1].done_reason


@check
def ollama_tools_stream(target: Target) -> Any:
    lines = list(ollama(target, stream=True, tools=[FUNCTION]))
    return [one.message for one in lines], lines[-1].eval_count, lines[-1].total_duration > 0


@check
def ollama_tool_loop(target: Target) -> Any:
    first = ollama(target, tools=[FUNCTION])
    call = first.message.tool_calls[0].function
    said = [*HELLO, first.message, {"role": "tool", "tool_name": call.name, "content": "sunny"}]
    return call.arguments, ollama(target, tools=[FUNCTION], messages=said).message.content


@check
def ollama_refusals(target: Target) -> Any:
    assert ollama(target).done  # where the API is missing, everything is refused
    image = [{"role": "user", "content": "what?", "images": [PIXEL.partition(",")[2]]}]
    asked: list[Any] = [{"messages": LONG}, {"messages": image}, {"model": "nobody"}, {"messages": [{"role": "robot"}]}]
    return [refused(lambda more=more: ollama(target, **more))["status_code"] for more in asked]


@check
def ollama_models(target: Target) -> Any:
    client = Client(host=target.root)
    shown = client.show(CHAT)
    return [one.model for one in client.list().models], shown.capabilities, len(shown.modelinfo)


@check
def ollama_generate(target: Target) -> Any:
    client = Client(host=target.root)
    asked: dict[str, Any] = {"model": CHAT, "prompt": "good day", "system": "be brief", "options": {"num_predict": 64}}
    whole, lines = client.generate(**asked), list(client.generate(**asked, stream=True, keep_alive="5m"))
    text = "".join(one.response for one in lines)
    return whole.response, whole.done_reason, whole.eval_count, text, once(one.done for one in lines)


@check
def ollama_loads(target: Target) -> Any:
    client = Client(host=target.root)
    loaded = client.generate(CHAT), client.chat(CHAT), client.pull(CHAT)
    running = [one.model for one in client.ps().models]
    unknown, unwanted = refused(lambda: client.pull("nobody")), refused(lambda: client.delete(CHAT))
    refusals = unknown["status_code"], unwanted["status_code"]
    return [one.done_reason for one in loaded[:2]], loaded[2].status, CHAT in running, refusals


if __name__ == "__main__":
    main()
