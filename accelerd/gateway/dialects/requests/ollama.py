"""Ollama's chat: reads requests into the neutral form, and writes them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final

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
    joined_text,
    joined_thinking,
    object_of,
    request_of,
    set_fields,
    text_of,
    untranslatable,
)

NAME: Final = "Ollama's chat"
ROLES: Final = ("system", "user", "assistant", "tool")
SIGNATURES: Final = {"iVBOR": "image/png", "/9j/": "image/jpeg", "R0lGOD": "image/gif", "UklGR": "image/webp"}


class Function(Struct, gc=False):
    name: str
    arguments: Any = None


class ToolCall(Struct, gc=False):
    function: Function
    id: str | None = None


class OneMessage(Struct, gc=False):
    role: str = ""
    content: str | None = None
    thinking: str | None = None
    images: list[str] | None = None
    tool_calls: list[ToolCall] | None = None
    tool_name: str | None = None
    tool_call_id: str | None = None


class FunctionTool(Struct, gc=False):
    name: str
    description: str | None = None
    parameters: Json | None = None


class ToolDefinition(Struct, gc=False):
    function: FunctionTool


class Options(Struct, gc=False):
    """Those that concern a request; the others concern how a model is loaded, which is the configuration's."""

    num_predict: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    repeat_penalty: float | None = None
    stop: str | list[str] | None = None


class Asked(Struct, gc=False, kw_only=True):
    """What a chat and a single prompt have in common."""

    model: str | None = None
    stream: bool | None = None
    format: str | Json | None = None
    options: Options | None = None
    think: bool | str | None = None
    logprobs: bool | None = None


class ChatRequest(Asked, gc=False, kw_only=True):
    messages: list[OneMessage]
    tools: list[ToolDefinition] | None = None


REQUEST: Final = msgspec.json.Decoder(ChatRequest)


def read_request(body: bytes, engine: str) -> Request:
    """AccelError bad_request, not_supported_by_model. `engine`: the API that it is translated to, for people."""
    asked = request_of(REQUEST, body)
    tools = (Tool(one.function.name, one.function.description, one.function.parameters) for one in asked.tools or ())
    return neutral(asked, _messages(asked.messages), engine, tools)


def neutral(asked: Asked, messages: Iterable[Message], engine: str, tools: Iterable[Tool] = ()) -> Request:
    """AccelError not_supported_by_model."""
    if asked.logprobs:
        untranslatable("`logprobs`", "logprobs", engine)
    options = asked.options or Options()
    shared = {name: getattr(options, name) for name in Sampling.__struct_fields__ if name != "max_tokens"}
    limit = options.num_predict if options.num_predict is not None and options.num_predict >= 0 else None
    schema = None if not asked.format else asked.format if isinstance(asked.format, dict) else {}
    return Request(
        tuple(messages),
        asked.stream is not False,
        asked.model,
        tuple(tools),
        sampling=Sampling(max_tokens=limit, **shared),
        stop=(options.stop,) if isinstance(options.stop, str) else tuple(options.stop or ()),
        schema=schema,
        think=asked.think,
    )


def _messages(messages: Iterable[OneMessage]) -> Iterator[Message]:
    """Calls and results have no ids where the client gives them none: results then belong to the calls in order."""
    results: list[Part] = []
    waiting: list[Call] = []  # for their results
    count = 0
    for number, message in enumerate(messages):
        role = message.role.lower()
        if role not in ROLES:
            at = f"messages[{number}].role"
            raise AccelError("bad_request", f"a message has the unknown role {message.role[:MAX_SHOWN]!r}", param=at)
        parts = tuple(parts_of(message))
        if role == "tool":
            shown = tuple(part for part in parts if isinstance(part, Text | Image))
            results.append(Result(_answered(message, waiting), shown))
            continue
        if results:
            yield Message("user", tuple(results))
            results = []
        if message.tool_calls:
            waiting = []
            for call in message.tool_calls:
                count += 1
                arguments = text_of(call.function.arguments or {})
                waiting.append(Call(call.id or f"call_{count}", call.function.name, arguments))
            parts += tuple(waiting)
        yield Message(role, parts)
    if results:
        yield Message("user", tuple(results))


def parts_of(message: OneMessage) -> Iterator[Part]:
    if message.thinking:
        yield Thinking(message.thinking)
    for data in message.images or ():
        kind = next((kind for start, kind in SIGNATURES.items() if data.startswith(start)), "image/jpeg")
        yield Image(data, kind)
    if message.content:
        yield Text(message.content)


def _answered(message: OneMessage, waiting: list[Call]) -> str:
    """The id of the call that a result belongs to: by id, by name, by order."""
    if message.tool_call_id:
        waiting[:] = [call for call in waiting if call.id != message.tool_call_id]
        return message.tool_call_id
    found = next((call for call in waiting if call.name == message.tool_name), waiting[0] if waiting else None)
    if found is None:
        return f"call_{message.tool_name or 'unknown'}"
    waiting.remove(found)
    return found.id


def write_request(request: Request) -> Json:
    body = given(model=request.model)
    names = {part.id: part.name for one in request.messages for part in one.parts if isinstance(part, Call)}
    body["messages"] = [written for one in request.messages for written in _written(one, names)]
    body["stream"] = request.stream
    tools = () if request.choice is Choice.NONE else request.tools
    if request.choice is Choice.ONE:
        tools = tuple(tool for tool in tools if tool.name == request.chosen)
    if tools:
        body["tools"] = [{"type": "function", "function": _tool(tool)} for tool in tools]
    options = set_fields(request.sampling)
    if "max_tokens" in options:
        options["num_predict"] = options.pop("max_tokens")
    if request.stop:
        options["stop"] = list(request.stop)
    form = "json" if request.schema == {} else request.schema
    return body | given(options=options or None, format=form, think=request.think)


def _tool(tool: Tool) -> Json:
    return given(name=tool.name, description=tool.description, parameters=tool.parameters)


def _written(message: Message, names: dict[str, str]) -> Iterator[Json]:
    for part in message.parts:
        if isinstance(part, Result):
            more = given(tool_name=names.get(part.id), tool_call_id=part.id)
            yield {"role": "tool", "content": joined_text(part.parts), **more, **_images(part.parts)}
    rest = tuple(part for part in message.parts if not isinstance(part, Result))
    if rest or not message.parts:
        yield {"role": message.role, **said(rest), **_images(rest)}


def _images(parts: Iterable[Part]) -> Json:
    images = [part for part in parts if isinstance(part, Image)]
    if any(image.url for image in images):
        untranslatable("an image at a URL", "messages", NAME)
    return {"images": [image.data for image in images]} if images else {}


def said(parts: tuple[Part, ...]) -> Json:
    said: Json = {"content": joined_text(parts, "\n\n")}
    if thinking := joined_thinking(parts):
        said["thinking"] = thinking
    if calls := [written_call(number, part) for number, part in enumerate(calls_in(parts))]:
        said["tool_calls"] = calls
    return said


def calls_in(parts: Iterable[Part]) -> Iterator[Call]:
    return (part for part in parts if isinstance(part, Call))


def written_call(number: int, call: Call) -> Json:
    function = {"index": number, "name": call.name, "arguments": object_of(call.arguments)}
    return {"id": call.id, "function": function}
