"""Anthropic's messages: reads requests into the neutral form, and writes them."""

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
    image_of,
    object_of,
    request_of,
    text_of,
    untranslatable,
)

NAME: Final = "Anthropic's messages"
MAX_TOKENS: Final = 8192  # of an answer, which this API must be told: where the client sets no limit
SAMPLING: Final = ("max_tokens", "temperature", "top_p", "top_k")
CHOICES: Final = {"auto": Choice.AUTO, "none": Choice.NONE, "any": Choice.ANY, "tool": Choice.ONE}
BUDGETS: Final = {"minimal": 2048, "low": 2048, "medium": 8192, "high": 16384, "xhigh": 32768, "max": 32768}
LEAST_BUDGET: Final = 1024  # tokens, by this API
ANY_OBJECT: Final[Json] = {"type": "object"}


class Source(Struct, gc=False):
    type: str
    media_type: str = "image/jpeg"
    data: str = ""
    url: str = ""


class Block(Struct, gc=False):
    """Content of a message of any type."""

    type: str
    text: str = ""
    thinking: str = ""
    signature: str = ""
    source: Source | None = None
    id: str = ""
    name: str = ""
    input: Any = None
    tool_use_id: str = ""
    content: Any = None  # of a tool's result: a text, or blocks
    is_error: bool | None = None


class OneMessage(Struct, gc=False):
    role: str
    content: str | list[Block] = ""


class ToolDefinition(Struct, gc=False):
    name: str
    type: str | None = None
    description: str | None = None
    input_schema: Json | None = None
    strict: bool | None = None


class ToolChoice(Struct, gc=False):
    type: str
    name: str = ""
    disable_parallel_tool_use: bool | None = None


class ThinkingSwitch(Struct, gc=False):
    type: str
    budget_tokens: int | None = None


class Format(Struct, gc=False):
    schema: Json | None = None


class OutputConfig(Struct, gc=False):
    effort: str | None = None
    format: Format | None = None


class Metadata(Struct, gc=False):
    user_id: str | None = None


class MessagesRequest(Struct, gc=False):
    messages: list[OneMessage]
    model: str | None = None
    system: str | list[Block] | None = None
    stream: bool | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    stop_sequences: list[str] | None = None
    tools: list[ToolDefinition] | None = None
    tool_choice: ToolChoice | None = None
    thinking: ThinkingSwitch | None = None
    output_config: OutputConfig | None = None
    metadata: Metadata | None = None


REQUEST: Final = msgspec.json.Decoder(MessagesRequest)
BLOCKS: Final = list[Block]


def read_request(body: bytes, engine: str) -> Request:
    """AccelError bad_request, not_supported_by_model. `engine`: the API that it is translated to, for people."""
    asked = request_of(REQUEST, body)
    messages = [_message(message, number, engine) for number, message in enumerate(asked.messages)]
    if asked.system:
        system = [Block("text", asked.system)] if isinstance(asked.system, str) else asked.system
        messages.insert(0, Message("system", tuple(Text(block.text) for block in system if block.text)))
    choice = asked.tool_choice or ToolChoice("")
    if choice.type and choice.type not in CHOICES:
        text = f"`tool_choice.type` is none of {', '.join(CHOICES)}"
        raise AccelError("bad_request", text, param="tool_choice.type")
    parallel = None if choice.disable_parallel_tool_use is None else not choice.disable_parallel_tool_use
    config = asked.output_config or OutputConfig()
    return Request(
        tuple(messages),
        bool(asked.stream),
        asked.model,
        tuple(_tools(asked.tools or (), engine)),
        CHOICES.get(choice.type),
        choice.name,
        parallel,
        Sampling(**{name: getattr(asked, name) for name in SAMPLING}),
        tuple(asked.stop_sequences or ()),
        _schema(config.format),
        _think(asked.thinking, config),
        asked.thinking.budget_tokens if asked.thinking is not None else None,
        asked.metadata.user_id if asked.metadata is not None else None,
    )


def _schema(form: Format | None) -> Json | None:
    if form is None or form.schema is None:
        return None
    return {} if form.schema == ANY_OBJECT else form.schema


def _think(switch: ThinkingSwitch | None, config: OutputConfig) -> bool | str | None:
    if switch is not None and switch.type == "disabled":
        return False
    if config.effort is not None:
        return config.effort
    return None if switch is None else True


def _tools(tools: Iterable[ToolDefinition], engine: str) -> Iterator[Tool]:
    for number, tool in enumerate(tools):
        if tool.type not in (None, "custom"):
            untranslatable(f"Anthropic's own tool {tool.type[:MAX_SHOWN]!r}", f"tools[{number}].type", engine)
        yield Tool(tool.name, tool.description, tool.input_schema, tool.strict)


def _message(message: OneMessage, number: int, engine: str) -> Message:
    at = f"messages[{number}]"
    if message.role not in ("user", "assistant", "system"):
        raise AccelError(
            "bad_request", f"a message has the unknown role {message.role[:MAX_SHOWN]!r}", param=f"{at}.role"
        )
    if isinstance(message.content, str):
        return Message(message.role, (Text(message.content),) if message.content else ())
    parts = list(_parts(message.content, f"{at}.content", engine))
    return Message(message.role, tuple(sorted(parts, key=lambda part: not isinstance(part, Result))))


def _parts(blocks: Iterable[Block], at: str, engine: str) -> Iterator[Part]:
    for block in blocks:
        if block.type == "tool_use":
            yield Call(block.id, block.name, text_of(block.input or {}))
        elif block.type == "tool_result":
            yield Result(block.tool_use_id, tuple(_result(block.content, at, engine)), bool(block.is_error))
        elif block.type == "thinking":
            yield Thinking(block.thinking, block.signature)
        elif block.type != "redacted_thinking":  # only Anthropic can read it
            yield _shown(block, at, engine)


def _shown(block: Block, at: str, engine: str) -> Text | Image:
    source = block.source
    if block.type == "text":
        return Text(block.text)
    if block.type == "image" and source is not None and source.type == "base64":
        return Image(source.data, source.media_type)
    if block.type == "image" and source is not None and source.type == "url":
        return image_of(source.url)
    if block.type == "document" and source is not None and source.type == "text":
        return Text(source.data)
    return untranslatable(f"content of type {block.type[:MAX_SHOWN]!r}", at, engine)


def _result(content: Any, at: str, engine: str) -> Iterator[Text | Image]:
    if isinstance(content, str):
        if content:
            yield Text(content)
        return
    try:
        blocks = msgspec.convert(content or [], BLOCKS)
    except msgspec.ValidationError as error:
        raise AccelError("bad_request", f"the request is not valid: {error}", param=at) from None
    for block in blocks:
        yield _shown(block, at, engine)


def write_request(request: Request) -> Json:
    body = given(model=request.model)
    system = [part for one in request.messages if one.role == "system" for part in one.parts if isinstance(part, Text)]
    if system:
        body["system"] = system[0].text if len(system) == 1 else [{"type": "text", "text": one.text} for one in system]
    rest = [one for one in request.messages if one.role != "system"]
    said = [{"role": one.role, "content": _content(one.parts)} for one in rest]
    body["messages"] = [one for one in said if one["content"] or one["role"] == "user"]  # the API refuses empty ones
    body |= {name: value for name in SAMPLING if (value := getattr(request.sampling, name)) is not None}
    body.setdefault("max_tokens", MAX_TOKENS)
    if request.tools:
        body["tools"] = [_tool(tool) for tool in request.tools]
    body |= given(tool_choice=_written_choice(request), stop_sequences=list(request.stop) or None)
    _set_thinking(body, request)
    config: Json = {}
    if request.schema is not None:
        config["format"] = {"type": "json_schema", "schema": request.schema or ANY_OBJECT}
    body |= given(output_config=config or None, metadata={"user_id": request.user} if request.user else None)
    if request.stream:
        body["stream"] = True
    return body


def _written_choice(request: Request) -> Json | None:
    if request.choice is None and (request.parallel is None or not request.tools):
        return None
    wanted = request.choice or Choice.AUTO
    choice: Json = {"type": next(word for word, one in CHOICES.items() if one is wanted)}
    if wanted is Choice.ONE:
        choice["name"] = request.chosen
    if request.parallel is not None and wanted is not Choice.NONE:
        choice["disable_parallel_tool_use"] = not request.parallel
    return choice


def _set_thinking(body: Json, request: Request) -> None:
    """Only where the API allows it, which refuses other requests: no call without a thought before, no forced call."""
    if request.think is None:
        return
    if request.think is False:
        body["thinking"] = {"type": "disabled"}
        return
    unthought = any(
        any(isinstance(part, Call) for part in one.parts) and not any(map(_is_signed, one.parts))
        for one in request.messages
    )
    if unthought or request.choice in (Choice.ANY, Choice.ONE):
        return
    effort = request.think if isinstance(request.think, str) else "medium"
    budget = request.budget or BUDGETS.get(effort, BUDGETS["medium"])
    if request.sampling.max_tokens is None:
        body["max_tokens"] = MAX_TOKENS + budget
    elif budget >= request.sampling.max_tokens:
        budget = request.sampling.max_tokens // 2
    if budget < LEAST_BUDGET:
        return
    body["thinking"] = {"type": "enabled", "budget_tokens": budget}
    for name in ("temperature", "top_p", "top_k"):
        body.pop(name, None)


def _is_signed(part: Part) -> bool:
    return isinstance(part, Thinking) and bool(part.signature)


def _tool(tool: Tool) -> Json:
    schema = tool.parameters or {"type": "object", "properties": {}}
    return given(name=tool.name, description=tool.description, input_schema=schema, strict=tool.strict)


def _content(parts: Iterable[Part]) -> str | list[Json]:
    """Of a message in a request. A thought without a signature is left out: the API refuses it."""
    blocks = [block_of(part) for part in parts if not isinstance(part, Thinking) or part.signature]
    return blocks[0]["text"] if len(blocks) == 1 and blocks[0]["type"] == "text" else blocks or ""


def block_of(part: Part) -> Json:
    match part:
        case Text():
            return {"type": "text", "text": part.text}
        case Thinking():
            return {"type": "thinking", "thinking": part.text, "signature": part.signature}
        case Call():
            return {"type": "tool_use", "id": part.id, "name": part.name, "input": object_of(part.arguments)}
        case Image():
            if part.url:
                return {"type": "image", "source": {"type": "url", "url": part.url}}
            source = {"type": "base64", "media_type": part.media_type, "data": part.data}
            return {"type": "image", "source": source}
        case Result():
            block: Json = {"type": "tool_result", "tool_use_id": part.id, "content": _content(part.parts)}
            return {**block, "is_error": True} if part.failed else block
