"""LangChain's models of OpenAI and Anthropic."""

from __future__ import annotations

from typing import Any

from checks import CHAT, EMBED, KEY, Target, check, main, refused
from langchain_anthropic import ChatAnthropic
from langchain_core.messages import HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings
from pydantic import BaseModel, ConfigDict


class Asked(BaseModel):
    """Where: called like the tool that the model calls."""

    model_config = ConfigDict(title="get_weather")
    city: str


@tool
def get_weather(city: str) -> str:
    """The weather there."""
    return f"sunny in {city}"


def chat(target: Target, **more: Any) -> Any:
    return ChatOpenAI(model=CHAT, base_url=target.url, api_key=KEY, max_retries=0, timeout=60, **more)


def seen(message: Any) -> Any:
    calls = [(one["name"], one["args"]) for one in getattr(message, "tool_calls", [])]
    return message.content, calls, getattr(message, "usage_metadata", None)


@check
def invoke(target: Target) -> Any:
    return seen(chat(target).invoke([SystemMessage("be brief"), HumanMessage("good day")]))


@check
def stream(target: Target) -> Any:
    return [piece.content for piece in chat(target, stream_usage=True).stream("good day")]


@check
def batch(target: Target) -> Any:
    return [seen(one) for one in chat(target).batch(["good day", "good night", "hello", "bye", "yes"])]


@check
async def astream(target: Target) -> Any:
    return [piece.content async for piece in chat(target).astream("good day")]


@check
def tools(target: Target) -> Any:
    model = chat(target).bind_tools([get_weather])
    first = model.invoke("good day")
    (call,) = first.tool_calls
    result = ToolMessage(get_weather.invoke(call["args"]), tool_call_id=call["id"])
    return seen(first), seen(model.invoke([HumanMessage("good day"), first, result]))


@check
def tools_stream(target: Target) -> Any:
    whole: Any = None
    for piece in chat(target).bind_tools([get_weather]).stream("good day"):
        whole = piece if whole is None else whole + piece
    return [(one["name"], one["args"]) for one in whole.tool_calls]


@check
def structured_output(target: Target) -> Any:
    return (
        chat(target).with_structured_output(Asked, method="function_calling", include_raw=True).invoke("hi")["parsed"]
    )


@check
def logprobs(target: Target) -> Any:
    answer = chat(target, logprobs=True, top_logprobs=1, max_tokens=2).invoke("good day")
    return len(answer.response_metadata["logprobs"]["content"])


@check
def several(target: Target) -> Any:
    return [one.text for one in chat(target, n=2, max_tokens=3).generate([[HumanMessage("good day")]]).generations[0]]


@check
def responses(target: Target) -> Any:
    return chat(target, use_responses_api=True).invoke("good day").text


@check
def too_long(target: Target) -> Any:
    return refused(lambda: chat(target).invoke("word " * 20_000))["status_code"]


@check
def completions(target: Target) -> Any:
    model = OpenAI(model=CHAT, base_url=target.url, api_key=KEY, max_retries=0, max_tokens=4)
    return model.invoke("good day"), list(model.stream("good day"))


@check
def completions_of_several_prompts(target: Target) -> Any:
    model = OpenAI(model=CHAT, base_url=target.url, api_key=KEY, max_retries=0, max_tokens=4)
    return model.batch(["a", "b", "c"]), [one[0].text for one in model.generate(["a", "b", "c"]).generations]


@check
def embeddings(target: Target) -> Any:
    model = OpenAIEmbeddings(
        model=EMBED, base_url=f"{target.embed}/v1", api_key=KEY, check_embedding_ctx_length=False, max_retries=0
    )
    return [round(sum(one), 3) for one in model.embed_documents(["one", "two"])], len(model.embed_query("one"))


@check
def anthropic(target: Target) -> Any:
    model: Any = ChatAnthropic(model=CHAT, base_url=target.root, api_key=KEY, max_tokens=32, max_retries=0)
    return seen(model.invoke("good day")), [piece.text for piece in model.stream("good day")]


@check
def anthropic_tools(target: Target) -> Any:
    model: Any = ChatAnthropic(model=CHAT, base_url=target.root, api_key=KEY, max_tokens=64, max_retries=0)
    return [(one["name"], one["args"]) for one in model.bind_tools([get_weather]).invoke("good day").tool_calls]


if __name__ == "__main__":
    main()
