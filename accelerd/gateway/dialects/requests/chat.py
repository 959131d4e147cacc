"""OpenAI's chat completions: reads requests into the neutral form, and writes them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

import msgspec
from msgspec import Struct

from accelerd.base.errors import AccelError
from accelerd.gateway.dialects.neutral import (
    MAX_SHOWN,
    Call,
    Choice,
    Image,
    Json,
    Message,
    Part,
    Request,
    Result,
    Sampling,
    Text,
    Thinking,
    Tool,
    given,
    image_of,
    joined_text,
    joined_thinking,
    request_of,
    set_fields,
    text_of,
    untranslatable,
)

NAME: Final = "OpenAI's chat completions"
CHOICES: Final = {"auto": Choice.AUTO, "none": Choice.NONE, "required": Choice.ANY}
EFFORTS: Final = ((2048, "low"), (8192, "medium"))  # tokens of a budget, and the effort that they are; more is "high"


class ImageUrl(Struct, gc=False):
    url: str


class ContentPart(Struct, gc=False):
    type: str
    text: str = ""
    image_url: ImageUrl | str | None = None


class Function(Struct, gc=False):
    name: str | None = None
    arguments: str | Json | None = None  # FastFlowLM and others have sent objects


class ToolCall(Struct, gc=False):
    function: Function | None = None
    id: str | None = None
    index: int | None = None


class ChatMessage(Struct, gc=False):
    """Of a request or an answer, or what is added to one in a stream."""

    role: str | None = None
    content: str | list[ContentPart] | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None  # as vLLM and Ollama have it
    refusal: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None


class FunctionTool(Struct, gc=False):
    name: str
    description: str | None = None
    parameters: Json | None = None
    strict: bool | None = None


class ToolDefinition(Struct, gc=False):
    type: str = "function"
    function: FunctionTool | None = None


class Schema(Struct, gc=False):
    schema: Json = {}


class Format(Struct, gc=False):
    type: str
    json_schema: Schema | None = None
    schema: Json | None = None  # llama-server's own form


class StreamOptions(Struct, gc=False):
    include_usage: bool | None = None


class ChatRequest(Sampling, frozen=True, gc=False):
    messages: list[ChatMessage] = msgspec.field(default_factory=list)
    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    tools: list[ToolDefinition] | None = None
    tool_choice: str | Json | None = None
    parallel_tool_calls: bool | None = None
    max_completion_tokens: int | None = None
    stop: str | list[str] | None = None
    response_format: Format | None = None
    reasoning_effort: str | None = None
    chat_template_kwargs: Json | None = None
    user: str | None = None
    n: int | None = None
    logprobs: bool | int | None = None


REQUEST: Final = msgspec.json.Decoder(ChatRequest)


def read_request(body: bytes, engine: str) -> Request:
    """AccelError bad_request, not_supported_by_model. `engine`: the API that it is translated to, for people."""
    asked = request_of(REQUEST, body)
    if (asked.n or 1) > 1:
        untranslatable("more than one answer (`n`)", "n", engine)
    if asked.logprobs:
        untranslatable("`logprobs`", "logprobs", engine)
    choice, chosen = _choice(asked.tool_choice)
    schema = None
    if (form := asked.response_format) is not None and form.type != "text":
        schema = form.json_schema.schema if form.json_schema is not None else form.schema or {}
    think: bool | str | None = asked.reasoning_effort
    if think in (None, "none"):
        think = None if think is None else False
        switch = (asked.chat_template_kwargs or {}).get("enable_thinking")
        think = switch if isinstance(switch, bool) else think
    limit = asked.max_tokens if asked.max_completion_tokens is None else asked.max_completion_tokens
    sampling = Sampling(**{name: getattr(asked, name) for name in Sampling.__struct_fields__} | {"max_tokens": limit})
    stop = (asked.stop,) if isinstance(asked.stop, str) else tuple(asked.stop or ())
    return Request(
        tuple(_messages(asked.messages, engine)),
        bool(asked.stream),
        asked.model,
        tuple(_tools(asked.tools or (), engine)),
        choice,
        chosen,
        asked.parallel_tool_calls,
        sampling,
        stop,
        schema,
        think,
        user=asked.user,
        with_usage=bool(asked.stream_options and asked.stream_options.include_usage),
    )


def _choice(wanted: str | Json | None) -> tuple[Choice | None, str]:
    if isinstance(wanted, dict):
        function = wanted.get("function")
        name = function.get("name") if isinstance(function, dict) else None
        if not isinstance(name, str):
            raise AccelError("bad_request", "`tool_choice` names no function", param="tool_choice")
        return Choice.ONE, name
    if wanted is None:
        return None, ""
    if wanted not in CHOICES:
        raise AccelError("bad_request", f"`tool_choice` is none of {', '.join(CHOICES)}", param="tool_choice")
    return CHOICES[wanted], ""


def _tools(tools: Iterable[ToolDefinition], engine: str) -> Iterator[Tool]:
    for number, tool in enumerate(tools):
        if tool.function is None:
            untranslatable(f"a tool of type {tool.type[:MAX_SHOWN]!r}", f"tools[{number}]", engine)
        function = tool.function
        yield Tool(function.name, function.description, function.parameters, function.strict)


def _messages(messages: Iterable[ChatMessage], engine: str) -> Iterator[Message]:
    results: list[Part] = []
    for number, message in enumerate(messages):
        parts = tuple(_content(message.content, number, engine))
        if message.role in ("tool", "function"):
            shown = tuple(part for part in parts if isinstance(part, Text | Image))
            results.append(Result(message.tool_call_id or "", shown))
            continue
        if results:
            yield Message("user", tuple(results))
            results = []
        if message.role in ("system", "developer"):
            yield Message("system", parts)
        elif message.role == "assistant":
            yield Message("assistant", (*thinking_of(message), *parts, *calls_of(message)))
        elif message.role == "user":
            yield Message("user", parts)
        else:
            at = f"messages[{number}].role"
            raise AccelError(
                "bad_request", f"a message has the unknown role {str(message.role)[:MAX_SHOWN]!r}", param=at
            )
    if results:
        yield Message("user", tuple(results))


def _content(content: str | list[ContentPart] | None, number: int, engine: str) -> Iterator[Text | Image]:
    if isinstance(content, str):
        if content:
            yield Text(content)
        return
    for part in content or ():
        if part.type in ("text", "refusal"):
            yield Text(part.text)
        elif part.type == "image_url" and part.image_url is not None:
            yield image_of(part.image_url if isinstance(part.image_url, str) else part.image_url.url)
        else:
            untranslatable(f"content of type {part.type[:MAX_SHOWN]!r}", f"messages[{number}].content", engine)


def thinking_of(message: ChatMessage) -> Iterator[Thinking]:
    if text := message.reasoning_content or message.reasoning:
        yield Thinking(text)


def calls_of(message: ChatMessage) -> Iterator[Call]:
    for call in message.tool_calls or ():
        function = call.function or Function()
        yield Call(call.id or "", function.name or "", arguments_of(function))


def arguments_of(function: Function) -> str:
    return function.arguments or "" if not isinstance(function.arguments, dict) else text_of(function.arguments)


def write_request(request: Request) -> Json:
    body = given(model=request.model)
    body["messages"] = [written for message in request.messages for written in _written(message)]
    body |= set_fields(request.sampling)
    if request.tools:
        body["tools"] = [{"type": "function", "function": set_fields(tool)} for tool in request.tools]
    if request.choice is Choice.ONE:
        body["tool_choice"] = {"type": "function", "function": {"name": request.chosen}}
    elif request.choice is not None:
        body["tool_choice"] = next(word for word, choice in CHOICES.items() if choice is request.choice)
    if request.schema == {}:
        body["response_format"] = {"type": "json_object"}
    elif request.schema is not None:
        form = {"name": "answer", "schema": request.schema}
        body["response_format"] = {"type": "json_schema", "json_schema": form}
    body |= given(
        stop=list(request.stop) or None,
        parallel_tool_calls=request.parallel,
        reasoning_effort=_effort(request),
        user=request.user,
    )
    if request.stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    return body


def _effort(request: Request) -> str | None:
    """ "none" is understood by llama-server, vLLM and OpenAI; that thinking is wanted is said by an effort only."""
    if request.think is None or isinstance(request.think, str):
        return request.think
    if not request.think:
        return "none"
    budget = EFFORTS[-1][0] if request.budget is None else request.budget
    return next((effort for tokens, effort in EFFORTS if budget <= tokens), "high")


def _written(message: Message) -> Iterator[Json]:
    rest = tuple(part for part in message.parts if not isinstance(part, Result))
    for part in message.parts:
        if isinstance(part, Result):
            yield {"role": "tool", "tool_call_id": part.id, "content": _written_content(part.parts)}
    if message.role == "assistant":
        yield assistant(rest)
    elif message.role == "system":
        yield {"role": "system", "content": joined_text(rest, "\n\n")}
    elif rest or not message.parts:
        yield {"role": message.role, "content": _written_content(rest)}


def assistant(parts: tuple[Part, ...]) -> Json:
    """A message, as it is in requests and in answers."""
    calls = [part for part in parts if isinstance(part, Call)]
    text = joined_text(parts)
    message: Json = {"role": "assistant", "content": text or (None if calls else "")}
    if thinking := joined_thinking(parts):
        message["reasoning_content"] = thinking
    if calls:
        message["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments or "{}"}}
            for call in calls
        ]
    return message


def _written_content(parts: tuple[Part, ...]) -> str | list[Json]:
    if len(parts) == 1 and isinstance(parts[0], Text):
        return parts[0].text
    content: list[Json] = []
    for part in parts:
        if isinstance(part, Text):
            content.append({"type": "text", "text": part.text})
        elif isinstance(part, Image):
            url = part.url or f"data:{part.media_type};base64,{part.data}"
            content.append({"type": "image_url", "image_url": {"url": url}})
    return content or ""
