"""The openai package: chat, completions, embeddings, responses, and what it raises."""

from __future__ import annotations

from typing import Any

from checks import CHAT, EMBED, KEY, PIXEL, RERANK, WEATHER, Target, check, main, refused
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel

HELLO: list[Any] = [{"role": "user", "content": "good day"}]
TOOLS: list[Any] = [{"type": "function", "function": {"name": "get_weather", "parameters": WEATHER}}]


class City(BaseModel):
    city: str


def client(target: Target, base: str = "") -> OpenAI:
    return OpenAI(base_url=base or target.url, api_key=KEY, max_retries=0, timeout=60)


def chat(target: Target, **more: Any) -> Any:
    return client(target).chat.completions.create(**{"model": CHAT, "messages": HELLO, **more})


@check
def models_list(target: Target) -> Any:
    return CHAT in [one.id for one in client(target).models.list()]


@check
def chat_plain(target: Target) -> Any:
    return chat(target)


@check
def chat_stream(target: Target) -> Any:
    return list(chat(target, stream=True))


@check
def chat_stream_with_usage(target: Target) -> Any:
    return list(chat(target, stream=True, stream_options={"include_usage": True}))


@check
def chat_several_choices(target: Target) -> Any:
    return chat(target, n=2, max_tokens=4)


@check
def chat_logprobs(target: Target) -> Any:
    return chat(target, logprobs=True, top_logprobs=2, max_tokens=3)


@check
def chat_logprobs_stream(target: Target) -> Any:
    return list(chat(target, logprobs=True, top_logprobs=2, max_tokens=3, stream=True))


@check
def chat_tools(target: Target) -> Any:
    return chat(target, tools=TOOLS)


@check
def chat_tools_stream(target: Target) -> Any:
    return list(chat(target, tools=TOOLS, stream=True))


@check
def chat_tool_loop(target: Target) -> Any:
    first = chat(target, tools=TOOLS).choices[0].message
    result = {"role": "tool", "tool_call_id": first.tool_calls[0].id, "content": "sunny"}
    return chat(target, messages=[*HELLO, first, result], tools=TOOLS)


@check
def chat_tool_without_parameters(target: Target) -> Any:
    tool: Any = {"type": "function", "function": {"name": "get_weather", "description": "the weather"}}
    return chat(target, tools=[tool], max_tokens=40).choices[0].message.role


@check
def chat_json_object(target: Target) -> Any:
    return chat(target, response_format={"type": "json_object"}, max_tokens=20).choices[0].message.role


@check
def chat_parse(target: Target) -> Any:
    schema = {"type": "json_schema", "json_schema": {"name": "city", "schema": City.model_json_schema()}}
    return chat(target, response_format=schema, max_tokens=20).choices[0].message.role


@check
def chat_many_settings(target: Target) -> Any:
    return chat(
        target, seed=1, stop=["zzz"], max_completion_tokens=5, temperature=0, top_p=0.9, presence_penalty=0.1,
        frequency_penalty=0.1, logit_bias={"5": 1}, user="me", metadata={"a": "b"}, store=False, n=1,
        service_tier="auto", reasoning_effort="low", parallel_tool_calls=True, tool_choice="auto",
    )  # fmt: skip


@check
def chat_parts_and_developer(target: Target) -> Any:
    parts = [{"type": "text", "text": "good "}, {"type": "text", "text": "day"}]
    return chat(target, messages=[{"role": "developer", "content": "be brief"}, {"role": "user", "content": parts}])


@check
def chat_engine_settings(target: Target) -> Any:
    more = {"cache_prompt": True, "min_p": 0.05, "top_k": 20, "timings_per_token": True, "n_probs": 1}
    return chat(target, max_tokens=3, extra_body=more)


@check
def chat_progress(target: Target) -> Any:
    answer = chat(target, max_tokens=3, extra_body={"return_progress": True})
    return answer.choices, sorted(answer.model_dump())


@check
def chat_raw(target: Target) -> Any:
    raw = client(target).chat.completions.with_raw_response.create(model=CHAT, messages=HELLO)
    return raw.status_code, raw.headers["content-type"], raw.parse()


@check
def chat_streaming_response(target: Target) -> Any:
    with client(target).chat.completions.with_streaming_response.create(model=CHAT, messages=HELLO) as response:
        return response.status_code, len(list(response.iter_lines())) > 0


@check
def chat_helper_stream(target: Target) -> Any:
    with client(target).chat.completions.stream(model=CHAT, messages=HELLO) as stream:
        kinds = [event.type for event in stream]
        return kinds, stream.get_final_completion()


@check
async def chat_async_many(target: Target) -> Any:
    import asyncio

    async with AsyncOpenAI(base_url=target.url, api_key=KEY, max_retries=0, timeout=60) as many:
        asked = [many.chat.completions.create(model=CHAT, messages=HELLO, max_tokens=n + 1) for n in range(6)]
        return [answer.choices for answer in await asyncio.gather(*asked)]


@check
def chat_image(target: Target) -> Any:
    image = {"type": "image_url", "image_url": {"url": PIXEL}}
    return refused(lambda: chat(target, messages=[{"role": "user", "content": [image]}]))["status_code"] >= 400


@check
def chat_bad_role(target: Target) -> Any:
    return refused(lambda: chat(target, messages=[{"role": "nobody", "content": "a"}, {"content": "b"}]))["error"] != ""


@check
def chat_too_long(target: Target) -> Any:
    return refused(lambda: chat(target, messages=[{"role": "user", "content": "word " * 20_000}]))["status_code"]


@check
def completion(target: Target) -> Any:
    return client(target).completions.create(model=CHAT, prompt="good day", max_tokens=5)


@check
def completion_stream(target: Target) -> Any:
    return list(client(target).completions.create(model=CHAT, prompt="good day", max_tokens=5, stream=True))


@check
def completion_prompts(target: Target) -> Any:
    return client(target).completions.create(model=CHAT, prompt=["a", "b", "c"], max_tokens=4)


@check
def completion_prompts_stream(target: Target) -> Any:
    chunks = client(target).completions.create(model=CHAT, prompt=["a", "b"], max_tokens=4, stream=True)
    text: dict[int, str] = {}
    for chunk in chunks:
        for choice in chunk.choices:
            text[choice.index] = text.get(choice.index, "") + choice.text
    return sorted(text.items())


@check
def completion_several(target: Target) -> Any:
    return client(target).completions.create(model=CHAT, prompt="good day", max_tokens=4, n=2)


@check
def completion_tokens(target: Target) -> Any:
    return client(target).completions.create(model=CHAT, prompt=[1, 2, 3], max_tokens=4)


@check
def completion_token_lists(target: Target) -> Any:
    return client(target).completions.create(model=CHAT, prompt=[[1, 2, 3], [4, 5]], max_tokens=4)


@check
def completion_logprobs(target: Target) -> Any:
    return client(target).completions.create(model=CHAT, prompt="good day", max_tokens=3, logprobs=2)


@check
def embedding(target: Target) -> Any:
    answer = client(target, f"{target.embed}/v1").embeddings.create(model=EMBED, input="one")
    return len(answer.data[0].embedding), answer.usage


@check
def embedding_list(target: Target) -> Any:
    answer = client(target, f"{target.embed}/v1").embeddings.create(
        model=EMBED, input=["one", "two"], encoding_format="float"
    )
    return [(one.index, one.embedding[:4]) for one in answer.data], answer.usage


@check
def embedding_tokens(target: Target) -> Any:
    answer = client(target, f"{target.embed}/v1").embeddings.create(model=EMBED, input=[[1, 2], [3]])
    return [len(one.embedding) for one in answer.data]


@check
def embedding_content(target: Target) -> Any:
    answer = client(target, f"{target.embed}/v1").post("/embeddings", body={"content": "one"}, cast_to=object)
    return sorted(answer) if isinstance(answer, dict) else type(answer).__name__


@check
def responses(target: Target) -> Any:
    answer = client(target).responses.create(model=CHAT, input="good day")
    usage = answer.usage  # accelerd fills in what the schema demands beside the numbers
    return answer.output_text, answer.status, usage.input_tokens, usage.output_tokens, usage.total_tokens


@check
def responses_messages(target: Target) -> Any:
    return client(target).responses.create(model=CHAT, instructions="be brief", input=HELLO).output_text


@check
def responses_stream(target: Target) -> Any:
    return [event.type for event in client(target).responses.create(model=CHAT, input="good day", stream=True)]


@check
def responses_helper_stream(target: Target) -> Any:
    with client(target).responses.stream(model=CHAT, input="good day") as stream:
        return [event.type for event in stream], stream.get_final_response().output_text


@check
def responses_tools(target: Target) -> Any:
    tool: Any = {"type": "function", "name": "get_weather", "parameters": WEATHER, "strict": False}
    first = client(target).responses.create(model=CHAT, input="good day", tools=[tool])
    call = next(item for item in first.output if item.type == "function_call")
    given: Any = [*HELLO, call, {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}]
    return call.name, call.arguments, client(target).responses.create(model=CHAT, input=given, tools=[tool]).output_text


@check
def responses_count(target: Target) -> Any:
    return client(target).responses.input_tokens.count(model=CHAT, input="good day")


@check
def rerank(target: Target) -> Any:
    body = {"model": RERANK, "query": "cat", "documents": ["a cat", "house"]}
    return client(target, f"{target.rerank}/v1").post("/rerank", body=body, cast_to=object)


@check
def rerank_tei(target: Target) -> Any:
    body = {"model": RERANK, "query": "cat", "texts": ["a cat", "house"]}
    return client(target, f"{target.rerank}/v1").post("/rerank", body=body, cast_to=object)


@check
def without_v1(target: Target) -> Any:
    bare = client(target, target.root)
    return bare.chat.completions.create(model=CHAT, messages=HELLO).choices, len(bare.models.list().data) > 0


@check
def without_v1_responses(target: Target) -> Any:
    return client(target, target.root).responses.create(model=CHAT, input="good day").output_text


@check
def without_v1_embeddings(target: Target) -> Any:
    return len(client(target, target.embed).embeddings.create(model=EMBED, input=["one"]).data)


@check
def bad_json(target: Target) -> Any:
    return refused(lambda: client(target).post("/chat/completions", content=b"{", cast_to=object))["status_code"] >= 400


@check
def no_messages(target: Target) -> Any:
    return refused(lambda: chat(target, messages=[]))["error"] != ""


if __name__ == "__main__":
    main()
