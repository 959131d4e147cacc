"""The anthropic package: messages, streams, tools, counting, and what it raises."""

from __future__ import annotations

from typing import Any

from anthropic import Anthropic, AsyncAnthropic
from checks import CHAT, KEY, PIXEL, WEATHER, Target, check, main, refused

HELLO: list[Any] = [{"role": "user", "content": "good day"}]
TOOL: Any = {"name": "get_weather", "description": "the weather", "input_schema": WEATHER}


def client(target: Target) -> Anthropic:
    return Anthropic(base_url=target.root, api_key=KEY, max_retries=0, timeout=60)


def ask(target: Target, **more: Any) -> Any:
    return client(target).messages.create(**{"model": CHAT, "max_tokens": 64, "messages": HELLO, **more})


@check
def message(target: Target) -> Any:
    return ask(target)


@check
def message_stream_events(target: Target) -> Any:
    return [event.type for event in ask(target, stream=True)]


@check
def message_helper_stream(target: Target) -> Any:
    with client(target).messages.stream(model=CHAT, max_tokens=64, messages=HELLO) as stream:
        return list(stream.text_stream), stream.get_final_message().stop_reason


@check
def message_settings(target: Target) -> Any:
    return ask(
        target, system="be brief", temperature=0.5, top_k=20, top_p=0.9, metadata={"user_id": "me"}, max_tokens=4
    )


@check
def message_system_parts(target: Target) -> Any:
    parts = [{"type": "text", "text": "be brief", "cache_control": {"type": "ephemeral"}}]
    said = [{"role": "user", "content": [{"type": "text", "text": "good day"}]}]
    return ask(target, system=parts, messages=said).content


@check
def message_stop_sequence(target: Target) -> Any:
    return ask(target, stop_sequences=["accelerd"]).content


@check
def message_tools(target: Target) -> Any:
    return ask(target, tools=[TOOL])


@check
def message_tools_stream(target: Target) -> Any:
    with client(target).messages.stream(model=CHAT, max_tokens=64, messages=HELLO, tools=[TOOL]) as stream:
        return [event.type for event in stream], stream.get_final_message().content


@check
def message_tool_loop(target: Target) -> Any:
    first = ask(target, tools=[TOOL])
    call = next(one for one in first.content if one.type == "tool_use")
    result = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": call.id, "content": "sunny"}]}
    said = [*HELLO, {"role": "assistant", "content": first.content}, result]
    return call.name, call.input, ask(target, tools=[TOOL], messages=said)


@check
def message_thinking(target: Target) -> Any:
    return ask(target, max_tokens=2048, thinking={"type": "enabled", "budget_tokens": 1024})


@check
def count_tokens(target: Target) -> Any:
    return client(target).messages.count_tokens(model=CHAT, messages=HELLO)


@check
def message_raw(target: Target) -> Any:
    raw = client(target).messages.with_raw_response.create(model=CHAT, max_tokens=8, messages=HELLO)
    return raw.status_code, raw.headers["content-type"]


@check
async def message_async_many(target: Target) -> Any:
    import asyncio

    async with AsyncAnthropic(base_url=target.root, api_key=KEY, max_retries=0, timeout=60) as many:
        asked = [many.messages.create(model=CHAT, max_tokens=n + 1, messages=HELLO) for n in range(6)]
        return [answer.content for answer in await asyncio.gather(*asked)]


@check
def message_beta(target: Target) -> Any:
    return client(target).beta.messages.create(model=CHAT, max_tokens=8, messages=HELLO, betas=["x"]).content


@check
def message_image(target: Target) -> Any:
    source = {"type": "base64", "media_type": "image/png", "data": PIXEL.partition(",")[2]}
    said = [{"role": "user", "content": [{"type": "image", "source": source}]}]
    return refused(lambda: ask(target, messages=said))["error"] != ""


@check
def message_too_long(target: Target) -> Any:
    return refused(lambda: ask(target, messages=[{"role": "user", "content": "word " * 20_000}]))["status_code"]


@check
def models_list(target: Target) -> Any:
    return CHAT in [one.id for one in client(target).models.list()]


if __name__ == "__main__":
    main()
