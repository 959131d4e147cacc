"""What a request asks for that its engine leaves out, done here: shorter embeddings, the documents of a ranking. Pure.

Only requests that ask for it have an amendment. What the engine has done itself stays as it is.
"""

from __future__ import annotations

import binascii
import math
from array import array
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

import msgspec

from accelerd.base.decoding import from_json
from accelerd.base.errors import AccelError
from accelerd.gateway.request_body import EmbedBody, EmbeddingsBody, RerankBody
from accelerd.gateway.request_facts import RequestInfo
from accelerd.gateway.responses import EMBEDDINGS, RERANK

Json = dict[str, Any]
AMENDED: Final = (EMBEDDINGS, "/api/embed", RERANK)  # paths
UNIT: Final = 0.01  # as far may the length of a vector be from 1 that was made to be 1


def amendment(info: RequestInfo, body: bytes) -> Callable[[bytes], bytes] | None:
    """What makes the answer to this request of the engine's; None: that is the answer."""
    if isinstance(info, EmbeddingsBody | EmbedBody) and info.dimensions is not None:
        return partial(cut, info.dimensions)
    if isinstance(info, RerankBody) and info.return_documents and info.documents:
        return partial(with_documents, from_json(body, Json)["documents"])
    return None


# --- embeddings ------------------------------------------------------------------------------------------------------


def cut(dimensions: int, body: bytes) -> bytes:
    """Embeddings with so many dimensions, as OpenAI's and Ollama's APIs make them: the first ones, and of length 1
    again where they were. AccelError bad_request if there are not so many."""
    try:
        answer = from_json(body, Json)
        for one in answer["data"]:
            one["embedding"] = _cut(one["embedding"], dimensions)
    except (msgspec.DecodeError, binascii.Error, KeyError, TypeError, ValueError):
        return body  # not in OpenAI's shape
    return msgspec.json.encode(answer)


def _cut(found: Any, dimensions: int) -> Any:
    if isinstance(found, str):
        vector = array("f", binascii.a2b_base64(found))
        return binascii.b2a_base64(array("f", _shorter(vector, dimensions)), newline=False).decode()
    return _shorter(found, dimensions)


def _shorter(vector: Sequence[float], dimensions: int) -> Sequence[float]:
    if not vector:
        raise ValueError("no numbers")
    if len(vector) < dimensions:
        text = f"this model's embeddings have {len(vector)} dimensions, and {dimensions} were asked for"
        raise AccelError("bad_request", text, hint=f"ask for {len(vector)} or fewer", param="dimensions")
    if len(vector) == dimensions:
        return vector
    first = vector[:dimensions]
    if abs(math.hypot(*vector) - 1) > UNIT or not (length := math.hypot(*first)):
        return first
    return [value / length for value in first]


# --- rankings --------------------------------------------------------------------------------------------------------


class _Document(msgspec.Struct, gc=False):
    text: str


TEXTS: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
DOCUMENTS: Final = msgspec.json.Decoder(list[str | _Document])


def with_texts(body: bytes) -> bytes:
    """A ranking's request whose documents are texts and not objects with one, as Cohere's and Jina's may be. Others
    stay as they are: the engine says what it thinks of them."""
    fields = TEXTS.decode(body)
    try:
        documents = DOCUMENTS.decode(fields["documents"])
    except msgspec.DecodeError:
        return body
    texts = [one if isinstance(one, str) else one.text for one in documents]
    fields["documents"] = msgspec.Raw(msgspec.json.encode(texts))
    return msgspec.json.encode(fields)


def with_documents(documents: Sequence[Any], body: bytes) -> bytes:
    """A ranking with each document beside its score."""
    try:
        answer = from_json(body, Json)
        for one in answer["results"]:
            document = documents[one["index"]]
            one.setdefault("document", {"text": document} if isinstance(document, str) else document)
    except (msgspec.DecodeError, AttributeError, IndexError, KeyError, TypeError):
        return body  # not in Cohere's shape
    return msgspec.json.encode(answer)
