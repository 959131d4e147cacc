"""pydantic-ai's agents over chat and responses."""

from __future__ import annotations

from typing import Any

from checks import CHAT, KEY, Target, check, main, refused
from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider


def openai(target: Target) -> OpenAIProvider:
    return OpenAIProvider(base_url=target.url, api_key=KEY)


def agent(target: Target, **more: Any) -> Agent[None, str]:
    return Agent(OpenAIChatModel(CHAT, provider=openai(target)), instructions="be brief", retries=0, **more)


def with_weather(one: Agent[None, str]) -> Agent[None, str]:
    @one.tool_plain
    def get_weather(city: str) -> str:
        """The weather there."""
        return f"sunny in {city}"

    return one


@check
async def run(target: Target) -> Any:
    return (await agent(target).run("good day")).output


@check
async def run_stream(target: Target) -> Any:
    async with agent(target).run_stream("good day") as result:
        return [piece async for piece in result.stream_text(debounce_by=None)][-1]


@check
async def tools(target: Target) -> Any:
    result = await with_weather(agent(target)).run("good day")
    return result.output, [part.part_kind for one in result.all_messages() for part in one.parts]


@check
async def tools_stream(target: Target) -> Any:
    async with with_weather(agent(target)).run_stream("good day") as result:
        return await result.get_output()


@check
async def conversation(target: Target) -> Any:
    one = agent(target)
    first = await one.run("good day")
    return (await one.run("and now?", message_history=first.all_messages())).output


@check
async def responses(target: Target) -> Any:
    return (await Agent(OpenAIResponsesModel(CHAT, provider=openai(target)), retries=0).run("good day")).output


@check
def too_long(target: Target) -> Any:
    return refused(lambda: agent(target).run_sync("word " * 20_000))["status_code"]


if __name__ == "__main__":
    main()
