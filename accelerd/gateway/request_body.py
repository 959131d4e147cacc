"""Reads of a request body what routing needs (the model, whether it streams, tools) and that it is valid.

Everything else stays bytes. Of JSON one pass in C, without Python objects for what is skipped. Of multipart/form-data
(RFC 7578 and RFC 2046) strict and bounded: a form that can be interpreted in two ways is refused.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated
from urllib.parse import parse_qsl, unquote

import msgspec

from accelerd.base.errors import AccelError
from accelerd.base.names import TRIAL_SUFFIX

MAX_ITEMS = 1 << 16  # messages or inputs in one request
MAX_KEYS = 1 << 13  # in one object: engines look through all of them for each one more
MAX_WORK = MAX_KEYS * MAX_KEYS  # keys looked through, in all objects: as for two of MAX_KEYS
MAX_TOKENS = 1 << 20  # keys, strings, beginnings and ends of objects: 16 for each of MAX_ITEMS messages
BAD_ESCAPE = re.compile("%(?![0-9A-Fa-f]{2})")
MAX_NAME = 256  # characters of a model's name; configured ones are shorter
MAX_ANSWERS = 128  # `n`, as OpenAI has it
MAX_PARTS = 64
MAX_PART_HEAD = 4 << 10  # bytes of one part's headers
FORM = "multipart/form-data"
BOUNDARY = re.compile(
    r"multipart/form-data *; *(?:charset=[A-Za-z0-9-]+ *; *)?boundary=(?:\"([0-9A-Za-z'()+_,./:=? -]{0,69}"
    r"[0-9A-Za-z'()+_,./:=?-])\"|([0-9A-Za-z'+_.-]{1,70}))(?: *; *charset=[A-Za-z0-9-]+)? *",
    re.IGNORECASE,
)
HEADER = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([\t -~\x80-\xff]*)")
# filename* and other parameters may follow; a quoted string knows \" and \\ only.
DISPOSITION = re.compile(
    rb"form-data[ \t]*((?:;[ \t]*[!#$%&'*+.^_`|~0-9A-Za-z-]+=(?:\"(?:[^\"\\\r\n]|\\[\"\\])*\"|[^\s\";]+)[ \t]*)+)",
    re.IGNORECASE,
)
PARAMETER = re.compile(rb";[ \t]*([^=]+)=(?:\"((?:[^\"\\]|\\.)*)\"|([^\s\";]+))")
# In JSON whose strings have no quotes in them: where an object begins or ends, a string, or a key (1).
TOKEN = re.compile(rb'\{|\}|"[^"]*"([ \t\r\n]*:)?')
GO_PART = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(ns|us|µs|ms|s|m|h)")
GO_DURATION = re.compile(rf"[-+]?(?:0|(?:{GO_PART.pattern})+)")
UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
ONCE = ("model", "stream", "file")  # fields of a form that cannot be repeated


class JsonBody(msgspec.Struct, gc=False, kw_only=True):
    model: Annotated[str, msgspec.Meta(max_length=MAX_NAME)] | None = None  # None: the only one that there is
    stream: bool | None = False
    tools: msgspec.Raw = msgspec.Raw(b"")

    def wants_tools(self) -> bool:
        """Is `tools` there and not empty?"""
        return bytes(self.tools).translate(None, b" \t\r\n") not in (b"", b"[]", b"null")


class SeveralBody(JsonBody, gc=False, kw_only=True):
    """Of a request that may ask for several answers."""

    n: Annotated[int, msgspec.Meta(le=MAX_ANSWERS)] | None = None
    n_cmpl: Annotated[int, msgspec.Meta(le=MAX_ANSWERS)] | None = None  # llama-server's own name for it

    @property
    def answers(self) -> int:
        """To each prompt."""
        return self.n_cmpl or self.n or 1

    def has_several(self) -> bool:
        """Are there more answers than one, or may there be?"""
        return self.answers > 1


class ChatBody(SeveralBody, gc=False, kw_only=True):
    messages: Annotated[list[msgspec.Raw], msgspec.Meta(min_length=1, max_length=MAX_ITEMS)]


class CompletionBody(SeveralBody, gc=False, kw_only=True):
    prompt: msgspec.Raw

    def has_several(self) -> bool:
        return bytes(memoryview(self.prompt)[:1]) == b"[" or self.answers > 1


class PromptBody(JsonBody, gc=False, kw_only=True):
    prompt: msgspec.Raw


class InputBody(JsonBody, gc=False, kw_only=True):
    input: msgspec.Raw


class SpeechBody(InputBody, gc=False, kw_only=True):
    """Its `stream`, which some servers have, means sound as it is made; `stream_format` may ask for events."""

    stream_format: str | None = None

    def __post_init__(self) -> None:
        self.stream = self.stream_format == "sse"


class EmbeddingsBody(JsonBody, gc=False, kw_only=True):
    input: msgspec.Raw = msgspec.Raw(b"")
    content: msgspec.Raw = msgspec.Raw(b"")  # llama-server's own name for it, with a response of its own
    dimensions: Annotated[int, msgspec.Meta(ge=1)] | None = None

    def __post_init__(self) -> None:
        if not memoryview(self.input) and not memoryview(self.content):
            raise ValueError("Object missing required field `input`")


class RerankBody(JsonBody, gc=False, kw_only=True):
    query: str
    documents: Annotated[list[msgspec.Raw], msgspec.Meta(max_length=MAX_ITEMS)] = []
    texts: Annotated[list[msgspec.Raw], msgspec.Meta(max_length=MAX_ITEMS)] = []  # as Text Embeddings Inference has it
    return_documents: bool | None = None

    def __post_init__(self) -> None:
        if not self.documents and not self.texts:
            raise ValueError("Object missing required field `documents`")

    def has_objects(self) -> bool:
        """Is a document an object?"""
        return any(bytes(memoryview(one)[:1]) == b"{" for one in self.documents)


class OwnCompletionBody(SeveralBody, gc=False, kw_only=True):
    """llama-server's own, whose answers are a list if they are several."""

    prompt: msgspec.Raw


class InfillBody(SeveralBody, gc=False, kw_only=True):
    input_prefix: msgspec.Raw
    input_suffix: msgspec.Raw


class MessagesBody(JsonBody, gc=False, kw_only=True):
    messages: Annotated[list[msgspec.Raw], msgspec.Meta(min_length=1, max_length=MAX_ITEMS)]


class OllamasBody(JsonBody, gc=False, kw_only=True):
    """Of a request in Ollama's API."""

    stream: bool | None = True
    keep_alive: float | str | None = None

    def __post_init__(self) -> None:
        if self.stream is None:
            self.stream = True
        self.keep()  # msgspec says that a ValueError is the client's

    def keep(self) -> float | None:
        """Seconds that the model is to stay afterwards; None: as long as the configuration says. ValueError."""
        seconds = go_seconds(self.keep_alive) if isinstance(self.keep_alive, str) else self.keep_alive
        return None if seconds is None or not seconds >= 0 else seconds

    def is_empty(self) -> bool:
        """Is there nothing to answer? Then the model is to be loaded, or with `keep_alive` 0 unloaded."""
        return False


class OllamaBody(OllamasBody, gc=False, kw_only=True):
    messages: Annotated[list[msgspec.Raw], msgspec.Meta(max_length=MAX_ITEMS)] = []

    def is_empty(self) -> bool:
        return not self.messages


class GenerateBody(OllamasBody, gc=False, kw_only=True):
    prompt: str = ""

    def is_empty(self) -> bool:
        return not self.prompt


class OllamasEmbedding(OllamasBody, gc=False, kw_only=True):
    """Its answer is no stream, whatever it says."""

    def __post_init__(self) -> None:
        self.stream = False
        self.keep()


class EmbedBody(OllamasEmbedding, gc=False, kw_only=True):
    input: msgspec.Raw
    dimensions: Annotated[int, msgspec.Meta(ge=1)] | None = None


class EmbedOneBody(OllamasEmbedding, gc=False, kw_only=True):
    prompt: str


def go_seconds(text: str) -> float:
    """A duration as Go writes it, such as "1h30m", "-1s" or "0". ValueError."""
    if GO_DURATION.fullmatch(text) is None:
        raise ValueError(f"Invalid duration {text[:40]!r}")
    seconds = sum(float(number) * UNITS[unit] for number, unit in GO_PART.findall(text))
    return -seconds if text.startswith("-") else seconds


DECODERS: dict[str, msgspec.json.Decoder[JsonBody]] = {
    "/v1/chat/completions": msgspec.json.Decoder(ChatBody),
    "/v1/chat/completions/input_tokens": msgspec.json.Decoder(ChatBody),
    "/v1/completions": msgspec.json.Decoder(CompletionBody),
    "/v1/embeddings": msgspec.json.Decoder(EmbeddingsBody),
    "/v1/rerank": msgspec.json.Decoder(RerankBody),
    "/v1/messages": msgspec.json.Decoder(MessagesBody),
    "/v1/messages/count_tokens": msgspec.json.Decoder(MessagesBody),
    "/v1/responses": msgspec.json.Decoder(JsonBody),  # its input may be in an earlier response
    "/v1/responses/input_tokens": msgspec.json.Decoder(JsonBody),
    "/v1/audio/speech": msgspec.json.Decoder(SpeechBody),
    "/v1/images/generations": msgspec.json.Decoder(PromptBody),
    "/api/chat": msgspec.json.Decoder(OllamaBody),
    "/api/generate": msgspec.json.Decoder(GenerateBody),
    "/api/embed": msgspec.json.Decoder(EmbedBody),
    "/api/embeddings": msgspec.json.Decoder(EmbedOneBody),
    "/completion": msgspec.json.Decoder(OwnCompletionBody),
    "/infill": msgspec.json.Decoder(InfillBody),
    "/embedding": msgspec.json.Decoder(EmbeddingsBody),
    "/tokenize": msgspec.json.Decoder(JsonBody),
    "/detokenize": msgspec.json.Decoder(JsonBody),
    "/apply-template": msgspec.json.Decoder(MessagesBody),
}


def read_json(path: str, body: bytes) -> JsonBody:
    """Read the body of a POST to `path`. AccelError bad_request that names what is wrong."""
    try:
        if not body.isascii():
            body.decode()  # msgspec does not check strings that it skips
        found = DECODERS[path].decode(body)
    except UnicodeDecodeError as error:
        raise AccelError("bad_request", f"the body is not UTF-8: byte {error.start}") from None
    except msgspec.ValidationError as error:
        text = str(error)  # "Object missing required field `model`", "Expected `str`, got `int` - at `$.model`"
        _, _, at = text.rpartition("`$.")
        param = at.rstrip("`") if at != text else None
        if param is None and "required field" in text:
            param = text.rsplit("`", 2)[-2]
        raise AccelError("bad_request", f"the request is not valid: {text}", param=param) from None
    except msgspec.DecodeError as error:
        raise AccelError("bad_request", f"the body is not JSON: {error}") from None
    except RecursionError:
        raise AccelError("bad_request", "the body is nested too deeply") from None
    if len(body) > 5 * MAX_KEYS and body.count(b":") > MAX_KEYS:
        check_keys(body)
    if found.model:
        check_name(found.model)
    else:
        found.model = None  # some clients, such as llama.vim, write an empty one if none is configured
    return found


def check_name(model: str) -> None:
    """AccelError model_not_found for a name that is reserved for tuning runs, and for one that is too long."""
    if model.endswith(TRIAL_SUFFIX) or len(model) > MAX_NAME:
        text = f"there is no model {model[:MAX_NAME]!r}; see GET /v1/models"
        raise AccelError("model_not_found", text, param="model")


def model_in_path(path: str) -> str:
    """The name of a model at the end of a path. AccelError model_not_found where that is no valid percent-encoding."""
    try:
        if BAD_ESCAPE.search(path):
            raise ValueError
        return unquote(path, errors="strict")[: MAX_NAME + 1]
    except ValueError:
        text = f"there is no model {path[:MAX_NAME]!r}: its name is not valid percent-encoding"
        raise AccelError("model_not_found", text, param="model") from None


def model_in_query(target: bytes) -> str | None:
    """The model that the query of a request names. AccelError model_not_found."""
    query = target.partition(b"?")[2].decode("latin-1")
    model = next((value for key, value in parse_qsl(query) if key == "model"), None)
    if model is not None:
        check_name(model)
    return model


def check_keys(body: bytes) -> None:
    """AccelError bad_request for valid JSON with so many keys that an engine would take long to read it."""
    keys, work = [0], 0  # of the objects that a token is in; of all
    plain = body.replace(rb"\\", b"").replace(rb"\"", b"")
    for number, token in enumerate(TOKEN.finditer(plain)):
        if number >= MAX_TOKENS:
            raise AccelError("bad_request", f"the body has more than {MAX_TOKENS} keys, strings and objects")
        if token[1]:
            keys[-1] += 1
            if keys[-1] > MAX_KEYS:
                raise AccelError("bad_request", f"the body has an object of more than {MAX_KEYS} keys")
            work += keys[-1]
            if work > MAX_WORK:
                raise AccelError("bad_request", "the body has too many objects of thousands of keys")
        elif token[0] == b"{":
            keys.append(0)
        elif token[0] == b"}":
            keys.pop()


def with_model(body: bytes, model: str) -> bytes:
    """The body with another model in it; every other value byte for byte as it was."""
    fields = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    fields["model"] = msgspec.Raw(msgspec.json.encode(model))
    return msgspec.json.encode(fields)


class FormBody(msgspec.Struct, frozen=True):
    """What was found in a form."""

    model: str | None
    stream: bool
    at: tuple[int, int] | None  # where the model's name is in the body
    mark: bytes  # the line before each part

    def wants_tools(self) -> bool:
        return False

    def with_model(self, body: bytes, model: str) -> bytes:
        """The body with another model in it, every other byte as it was."""
        if self.at is None:
            return form_part(self, "model", model.encode()) + body
        start, end = self.at
        return body[:start] + model.encode() + body[end:]


def form_fields(body: bytes, form: FormBody) -> list[tuple[str, bytes]]:
    """The name of each part of a valid form, and the part, from the line before it to the next such line."""
    found: list[tuple[str, bytes]] = []
    at = len(form.mark)
    while not body.startswith(b"--", at):
        name, content = part_head(body, line_end(body, at))
        end = body.find(b"\r\n" + form.mark, content - 2)
        found.append((name, body[at - len(form.mark) : end + 2]))
        at = end + 2 + len(form.mark)
    return found


def form_part(form: FormBody, name: str, content: bytes) -> bytes:
    """A part with a field of ours, from the line before it to the next such line."""
    return b'%b\r\nContent-Disposition: form-data; name="%b"\r\n\r\n%b\r\n' % (form.mark, name.encode(), content)


def boundary_of(content_type: str) -> str:
    """AccelError bad_request."""
    match = BOUNDARY.fullmatch(content_type)
    if match is None:
        raise wrong("the Content-Type has no valid boundary")
    return match[1] or match[2]


def content_type(boundary: str) -> str:
    """The header for a body with that boundary."""
    return f'{FORM}; boundary="{boundary}"'


def read_form(body: bytes, boundary: str, files: Sequence[str] = ("file",)) -> FormBody:
    """Read a form, in which one of the fields `files` must be. AccelError bad_request that names what is wrong."""
    mark = b"--" + boundary.encode()
    if not body.startswith(mark):
        raise wrong("it does not start with its boundary")
    found: dict[str, tuple[int, int]] = {}
    at, parts = len(mark), 0
    while True:
        if body.startswith(b"--", at):
            if body[at + 2 :].strip(b" \t\r\n"):
                raise wrong("there is data after its end")
            break
        start = line_end(body, at)
        parts += 1
        if parts > MAX_PARTS:
            raise wrong(f"it has more than {MAX_PARTS} parts")
        name, content = part_head(body, start)
        end = body.find(b"\r\n" + mark, content - 2)  # an empty part: the line that ends its head is the delimiter's
        if end < 0:
            raise wrong("a part has no end")
        if name in ONCE or name in files:
            if name in found and name in ONCE:
                raise wrong(f"the field {name} is repeated", name)
            found[name] = (content, max(content, end))
        at = end + 2 + len(mark)
    if not any(name in found for name in files):
        raise wrong(f"the field {files[0]} is missing", files[0])
    place = found.get("model")
    model = None if place is None else text(body, place, "model", MAX_NAME)
    return FormBody(model, streams(body, found.get("stream")), place, mark)


def line_end(body: bytes, at: int) -> int:
    """Where the line after a boundary begins."""
    while body[at : at + 1] in (b" ", b"\t"):
        at += 1
    if not body.startswith(b"\r\n", at):
        raise wrong("a boundary is not on a line of its own")
    return at + 2


def part_head(body: bytes, start: int) -> tuple[str, int]:
    """A part's name, and where its content begins."""
    end = body.find(b"\r\n\r\n", start, start + MAX_PART_HEAD)
    if end < 0:
        raise wrong("the headers of a part are incomplete or too long")
    name = None
    for line in body[start:end].split(b"\r\n"):
        header = HEADER.fullmatch(line)
        if header is None:
            raise wrong("a part has an invalid header")
        key = header[1].lower()
        if key == b"content-transfer-encoding" and header[2].strip().lower() not in (b"binary", b"8bit", b"7bit"):
            raise wrong("encoded parts are not supported")
        if key == b"content-disposition":
            if name is not None:
                raise wrong("a part has two names")
            name = part_name(header[2].strip())
    if name is None:
        raise wrong("a part has no name")
    return name, end + 4


def part_name(value: bytes) -> str:
    match = DISPOSITION.fullmatch(value)
    named = [m for m in PARAMETER.finditer(match[1]) if m[1].strip().lower() == b"name"] if match else []
    if len(named) != 1:
        raise wrong("a part has no name, or more than one")
    return re.sub(rb"\\(.)", rb"\1", named[0][2] if named[0][2] is not None else named[0][3]).decode("utf-8", "replace")


def text(body: bytes, at: tuple[int, int], name: str, most: int) -> str:
    raw = body[at[0] : at[1]]
    try:
        found = raw.decode() if len(raw) <= 4 * most else ""
    except UnicodeDecodeError:
        raise wrong(f"the field {name} is not UTF-8", name) from None
    if not 0 < len(found) <= most or not found.isprintable():
        raise wrong(f"the field {name} is empty, too long or not printable text", name)
    return found


def streams(body: bytes, at: tuple[int, int] | None) -> bool:
    if at is None or at[0] == at[1]:
        return False
    value = text(body, at, "stream", 8).lower()
    if value not in ("true", "false", "1", "0"):
        raise wrong("the field stream must be true or false", "stream")
    return value in ("true", "1")


def wrong(what: str, param: str | None = None) -> AccelError:
    return AccelError("bad_request", f"the form is not valid: {what}", param=param)
