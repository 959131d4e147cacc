"""The form between two APIs: a request, an answer, and the events of a streamed answer.

Has what at least two of the APIs can express. Readers and writers are in the modules of the APIs.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Any, Final, NoReturn, TypeVar

import msgspec
from msgspec import Struct

from accelerd.base.decoding import from_json
from accelerd.base.errors import AccelError
from accelerd.gateway.response_framing import FramingError

Json = dict[str, Any]
T = TypeVar("T")
MAX_CALLS: Final = 1024  # of tools, in one answer
MAX_SHOWN: Final = 40  # characters of a client's word in a message


class StopReason(enum.Enum):
    END = "end"  # of the answer, or one of the client's stop sequences
    LENGTH = "length"
    CALLS = "calls"  # tools are to be called
    REFUSED = "refused"


# --- content, in requests and answers --------------------------------------------------------------------------------


class Text(Struct, frozen=True):
    """A text; as an event, what is added to one."""

    text: str


class Thinking(Struct, frozen=True):
    """What was thought; as an event, what is added to it. `signature`: Anthropic takes no thought back without one."""

    text: str
    signature: str = ""


class Image(Struct, frozen=True):
    data: str = ""  # base64
    media_type: str = ""  # of the data
    url: str = ""  # instead of data


class Call(Struct, frozen=True):
    """The call of a tool. `arguments`: JSON, as the model has written it."""

    id: str
    name: str
    arguments: str


class Result(Struct, frozen=True):
    """What a tool has returned."""

    id: str  # of the call
    parts: tuple[Text | Image, ...]
    failed: bool = False


Part = Text | Thinking | Image | Call | Result


class Message(Struct, frozen=True):
    """Results stand in messages of the user, before all else there."""

    role: str  # "system", "user", "assistant"
    parts: tuple[Part, ...]


# --- requests --------------------------------------------------------------------------------------------------------


class Tool(Struct, frozen=True):
    name: str
    description: str | None = None
    parameters: Json | None = None  # a JSON schema
    strict: bool | None = None


class Choice(enum.Enum):
    """Which tools the model may call."""

    AUTO = "auto"
    NONE = "none"
    ANY = "any"  # at least one
    ONE = "one"  # a particular one


class Sampling(Struct, frozen=True):
    """None: the engine's default."""

    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    repeat_penalty: float | None = None


class Request(Struct, frozen=True):
    messages: tuple[Message, ...]
    stream: bool
    model: str | None = None
    tools: tuple[Tool, ...] = ()
    choice: Choice | None = None
    chosen: str = ""  # the tool, if it is a particular one
    parallel: bool | None = None  # may several tools be called at once?
    sampling: Sampling = Sampling()
    stop: tuple[str, ...] = ()
    schema: Json | None = None  # of the answer; {}: any JSON object
    think: bool | str | None = None  # a string: the effort, "low", "medium", "high" or another word
    budget: int | None = None  # tokens for thinking
    user: str | None = None
    with_usage: bool = False  # is usage wanted in a stream of chat completions?


class Inputs(Struct, frozen=True):
    """A request for embeddings."""

    input: str | list[str]
    model: str | None = None
    dimensions: int | None = None
    stream: bool = False
    with_usage: bool = False


# --- answers ---------------------------------------------------------------------------------------------------------


class Usage(Struct, frozen=True):
    """Tokens. `prompt` includes those that were cached."""

    prompt: int = 0
    cached: int = 0
    answer: int = 0


class Answer(Struct, frozen=True):
    """A whole answer."""

    id: str
    parts: tuple[Part, ...]
    stop: StopReason
    usage: Usage
    sequence: str | None = None  # the stop sequence, where the engine names it


class Vectors(Struct, frozen=True):
    """Embeddings, in the order of the inputs."""

    vectors: list[list[float]]
    tokens: int  # of all inputs


class Begin(Struct, frozen=True):
    """The first event. `usage`: what is known of it already."""

    id: str
    usage: Usage = Usage()


class CallBegin(Struct, frozen=True):
    number: int  # of the call in this answer
    id: str
    name: str


class CallText(Struct, frozen=True):
    """More of a call's arguments."""

    number: int
    arguments: str


class Stop(Struct, frozen=True):
    reason: StopReason
    sequence: str | None = None


class Failed(Struct, frozen=True):
    """The engine's own error, after which nothing follows. `error`: in OpenAI's shape."""

    error: Json


Event = Begin | Text | Thinking | CallBegin | CallText | Stop | Usage | Failed


class Answering(Struct, frozen=True):
    """What a writer needs beside the events."""

    model: str  # as the client is to see it
    created: float  # seconds since 1970
    now: Callable[[], float]  # monotonic
    began: float  # when the request was received
    leased: float  # when its model was ready for it
    with_usage: bool = False


# --- helpers of readers and writers ----------------------------------------------------------------------------------


def request_of(decoder: msgspec.json.Decoder[T], body: bytes) -> T:
    """A client's request. AccelError bad_request that names what is wrong."""
    try:
        return decoder.decode(body)
    except RecursionError:
        raise AccelError("bad_request", "the body is nested too deeply") from None
    except msgspec.DecodeError as error:
        _, _, at = str(error).rpartition("`$.")
        param = at.rstrip("`") if at != str(error) else None
        raise AccelError("bad_request", f"the request is not valid: {error}", param=param) from None


def answer_of(kind: type[T], body: bytes) -> T:
    """An engine's whole answer. AccelError upstream_failed."""
    try:
        return from_json(body, kind)
    except msgspec.DecodeError:
        raise AccelError("upstream_failed", "the engine answered in an unknown format") from None


def event_of(decoder: msgspec.json.Decoder[T], data: bytes) -> T:
    """The data of an engine's event. FramingError."""
    try:
        return decoder.decode(data)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        raise FramingError("it sent an event of an unknown format") from None


def untranslatable(what: str, param: str, engine: str) -> NoReturn:
    """AccelError not_supported_by_model: the client wants what the engine's API cannot express."""
    raise AccelError("not_supported_by_model", f"{what} cannot be translated to {engine}", param=param)


def error_in(error: Any) -> Json:
    """An engine's error in OpenAI's shape, whatever the shape that it has."""
    if isinstance(error, dict):
        return {**error, "message": str(error.get("message") or "no reason given")}
    return {"message": str(error) if error else "no reason given", "type": "upstream_error"}


def object_of(arguments: str) -> Json:
    """A call's arguments as an object. What a model has written that is none stays readable in one."""
    if not arguments.strip():
        return {}
    try:
        found = from_json(arguments)
    except msgspec.DecodeError:
        found = None
    return found if isinstance(found, dict) else {"arguments": arguments}


def text_of(value: Any) -> str:
    """Decoded JSON as JSON in a string."""
    return msgspec.json.encode(value).decode()


def joined_text(parts: tuple[Part, ...], between: str = "") -> str:
    return between.join(part.text for part in parts if isinstance(part, Text))


def joined_thinking(parts: tuple[Part, ...]) -> str:
    return "".join(part.text for part in parts if isinstance(part, Thinking))


def image_of(url: str) -> Image:
    """A URL's image; of a data URL its content."""
    head, comma, data = url.partition(",")
    kind, mark, encoding = head.removeprefix("data:").rpartition(";")
    if comma and mark and encoding == "base64" and head.startswith("data:"):
        return Image(data, kind.partition(";")[0] or "image/jpeg")
    return Image(url=url)


def given(**fields: Any) -> Json:
    """The fields that have a value."""
    return {name: value for name, value in fields.items() if value is not None}


def set_fields(struct: Struct) -> Json:
    """The fields of a struct that have a value, in their order."""
    return {name: value for name in struct.__struct_fields__ if (value := getattr(struct, name)) is not None}
