"""LiteLLM as a client: its own names for errors, and its bridges from one API to another."""

from __future__ import annotations

import os
from typing import Any

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # it would look for prices in the network

import litellm
from checks import CHAT, EMBED, KEY, WEATHER, Target, check, main, refused

litellm.telemetry = False
litellm.suppress_debug_info = True
HELLO: list[Any] = [{"role": "user", "content": "good day"}]
TOOLS: list[Any] = [{"type": "function", "function": {"name": "get_weather", "parameters": WEATHER}}]


def given(target: Target, **more: Any) -> dict[str, Any]:
    return {"model": f"openai/{CHAT}", "api_base": target.url, "api_key": KEY, "num_retries": 0, "timeout": 60, **more}


def text(answer: Any) -> Any:
    choice = answer.choices[0]
    return choice.message.content, choice.finish_reason, answer.usage.total_tokens


@check
def completion(target: Target) -> Any:
    return text(litellm.completion(messages=HELLO, **given(target)))


@check
def completion_stream(target: Target) -> Any:
    chunks = litellm.completion(messages=HELLO, stream=True, **given(target))
    return [chunk.choices[0].delta.content for chunk in chunks if chunk.choices]


@check
async def completion_async(target: Target) -> Any:
    return text(await litellm.acompletion(messages=HELLO, **given(target)))


@check
def completion_tools(target: Target) -> Any:
    (call,) = litellm.completion(messages=HELLO, tools=TOOLS, **given(target)).choices[0].message.tool_calls
    return call.function.name, call.function.arguments


@check
def completion_batch(target: Target) -> Any:
    return [text(one) for one in litellm.batch_completion(messages=[HELLO, HELLO, HELLO], **given(target))]


@check
def completion_settings(target: Target) -> Any:
    return text(litellm.completion(messages=HELLO, temperature=0, max_tokens=4, seed=1, stop=["zzz"], **given(target)))


@check
def text_completion(target: Target) -> Any:
    more = given(target, model=f"text-completion-openai/{CHAT}")
    return [one.text for one in litellm.text_completion(prompt="good day", max_tokens=4, **more).choices]


@check
def text_completion_prompts(target: Target) -> Any:
    more = given(target, model=f"text-completion-openai/{CHAT}")
    return [one.text for one in litellm.text_completion(prompt=["a", "b"], max_tokens=4, **more).choices]


@check
def embedding(target: Target) -> Any:
    more = given(target, model=f"openai/{EMBED}", api_base=f"{target.embed}/v1")
    return [len(one["embedding"]) for one in litellm.embedding(input=["one", "two"], **more).data]


@check
def responses(target: Target) -> Any:
    return litellm.responses(input="good day", **given(target)).output[0].content[0].text


@check
def messages(target: Target) -> Any:
    more = given(target, model=f"anthropic/{CHAT}", api_base=target.root)
    return text(litellm.completion(messages=HELLO, max_tokens=32, **more))


@check
def messages_stream(target: Target) -> Any:
    more = given(target, model=f"anthropic/{CHAT}", api_base=target.root)
    chunks = litellm.completion(messages=HELLO, max_tokens=32, stream=True, **more)
    return [chunk.choices[0].delta.content for chunk in chunks if chunk.choices]


@check
def too_long(target: Target) -> Any:
    return refused(
        lambda: litellm.completion(messages=[{"role": "user", "content": "word " * 20_000}], **given(target))
    )


if __name__ == "__main__":
    main()
