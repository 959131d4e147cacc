"""Reads of a JSON request body what routing needs (the model, whether it streams, tools) and that it is valid JSON.

Everything else stays bytes: one pass in C, without Python objects for what is skipped.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from accelerd.base.errors import AccelError
from accelerd.base.names import TRIAL_SUFFIX

MAX_ITEMS = 1 << 16  # messages or inputs in one request
MAX_NAME = 256  # characters of a model's name; configured ones are shorter


class JsonBody(msgspec.Struct, gc=False, kw_only=True):
    model: Annotated[str, msgspec.Meta(max_length=MAX_NAME)]
    stream: bool | None = False
    tools: msgspec.Raw = msgspec.Raw(b"")

    def wants_tools(self) -> bool:
        """Is `tools` there and not empty?"""
        return bytes(self.tools).translate(None, b" \t\r\n") not in (b"", b"[]", b"null")


class ChatBody(JsonBody, gc=False, kw_only=True):
    messages: Annotated[list[msgspec.Raw], msgspec.Meta(min_length=1, max_length=MAX_ITEMS)]
    n: int | None = None


class CompletionBody(JsonBody, gc=False, kw_only=True):
    prompt: msgspec.Raw
    n: int | None = None


class InputBody(JsonBody, gc=False, kw_only=True):
    input: msgspec.Raw


class RerankBody(JsonBody, gc=False, kw_only=True):
    query: str
    documents: Annotated[list[msgspec.Raw], msgspec.Meta(min_length=1, max_length=MAX_ITEMS)]


class MessagesBody(JsonBody, gc=False, kw_only=True):
    messages: Annotated[list[msgspec.Raw], msgspec.Meta(min_length=1, max_length=MAX_ITEMS)]


DECODERS: dict[str, msgspec.json.Decoder[JsonBody]] = {
    "/v1/chat/completions": msgspec.json.Decoder(ChatBody),
    "/v1/completions": msgspec.json.Decoder(CompletionBody),
    "/v1/embeddings": msgspec.json.Decoder(InputBody),
    "/v1/rerank": msgspec.json.Decoder(RerankBody),
    "/v1/messages": msgspec.json.Decoder(MessagesBody),
    "/v1/messages/count_tokens": msgspec.json.Decoder(MessagesBody),
    "/v1/responses": msgspec.json.Decoder(JsonBody),  # its input may be in an earlier response
    "/v1/audio/speech": msgspec.json.Decoder(InputBody),
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
    if found.model.endswith(TRIAL_SUFFIX):  # reserved for tuning runs
        raise AccelError("model_not_found", f"there is no model {found.model!r}; see GET /v1/models", param="model")
    return found


def with_model(body: bytes, model: str) -> bytes:
    """The body with another model in it; every other value byte for byte as it was."""
    fields = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    fields["model"] = msgspec.Raw(msgspec.json.encode(model))
    return msgspec.json.encode(fields)
