"""LlamaIndex's models that are like OpenAI's."""

from __future__ import annotations

from typing import Any

from checks import CHAT, EMBED, KEY, Target, check, main, refused
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.embeddings.openai_like import OpenAILikeEmbedding
from llama_index.llms.openai_like import OpenAILike

HELLO = [ChatMessage(role="system", content="be brief"), ChatMessage(role="user", content="good day")]


def get_weather(city: str) -> str:
    """The weather there."""
    return f"sunny in {city}"


def model(target: Target, **more: Any) -> OpenAILike:
    settings = {"is_chat_model": True, "is_function_calling_model": True, "max_retries": 0, "max_tokens": 64, **more}
    return OpenAILike(model=CHAT, api_base=target.url, api_key=KEY, context_window=4096, **settings)


def embedder(target: Target) -> OpenAILikeEmbedding:
    return OpenAILikeEmbedding(model_name=EMBED, api_base=f"{target.embed}/v1", api_key=KEY, max_retries=0)


@check
def chat(target: Target) -> Any:
    return model(target).chat(HELLO).message.content


@check
def complete(target: Target) -> Any:
    return model(target).complete("good day").text


@check
def complete_without_chat(target: Target) -> Any:
    return model(target, is_chat_model=False, max_tokens=4).complete("good day").text


@check
def stream_chat(target: Target) -> Any:
    return [piece.delta for piece in model(target).stream_chat(HELLO)]


@check
def stream_complete(target: Target) -> Any:
    return [piece.delta for piece in model(target, is_chat_model=False, max_tokens=4).stream_complete("good day")]


@check
async def achat(target: Target) -> Any:
    return (await model(target).achat(HELLO)).message.content


@check
async def astream_chat(target: Target) -> Any:
    return [piece.delta async for piece in await model(target).astream_chat(HELLO)]


@check
def tools(target: Target) -> Any:
    tool = FunctionTool.from_defaults(get_weather)
    return model(target).predict_and_call([tool], "good day").response


@check
def logprobs(target: Target) -> Any:
    return len(model(target, logprobs=True, top_logprobs=1, max_tokens=3).chat(HELLO).logprobs or [])


@check
def embeddings(target: Target) -> Any:
    one = embedder(target)
    return [round(sum(found), 3) for found in one.get_text_embedding_batch(["one", "two", "three"])], len(
        one.get_query_embedding("one")
    )


@check
def too_long(target: Target) -> Any:
    return refused(lambda: model(target).complete("word " * 20_000))["status_code"]


if __name__ == "__main__":
    main()
