"""What a model of FastFlowLM can be asked for, what cannot be asked of it and whom to ask instead, and the tiny request
that only a working one answers. Pure.
"""

from __future__ import annotations

import json
import struct
from typing import Final

from accelerd.config.model import ModelSpec
from accelerd.engines.base import Task, Traits
from accelerd.engines.flm import argv
from accelerd.engines.flm.catalogue import EMBEDDER, WHISPER, Known
from accelerd.engines.flm.names import model_name

BOUNDARY: Final = "accelerd-4f1f7c9e"
RATE: Final = 16_000  # samples a second

CHAT: Final = "ask /v1/chat/completions"
NEVER: Final[dict[str, str]] = {
    "messages": f"FastFlowLM has no Anthropic messages; {CHAT}",
    "responses": f"FastFlowLM has no responses; {CHAT}",
    "rerank": "FastFlowLM ranks nothing; a model of llama-server with rerank = true does",
}


def traits(spec: ModelSpec, known: Known) -> Traits:
    """By its settings, and by the labels that FastFlowLM gives it."""
    own, hears, embeds = argv.parts(spec, known.tag)
    tasks: set[Task] = set()
    why = dict(NEVER)
    if own is not None:
        tasks |= {"chat", "completions"}
        if "tool-calling" in known.labels:
            tasks.add("tools")
        else:
            why["tools"] = f"{known.tag} was not trained to call tools; qwen3:4b was: accelctl add npu/qwen3-4b"
        if "vision" in known.labels:
            tasks.add("vision")
        else:
            why["vision"] = f"{known.tag} sees no pictures; qwen3vl-it:4b does: accelctl add npu/qwen3vl-it-4b"
    else:
        what = "writes down what it hears" if hears else "makes embeddings"
        for task in ("chat", "completions", "tools", "vision", "messages", "responses"):
            why[task] = f"{spec.name} {what} and does nothing else"
    if hears:
        tasks.add("transcription")
    else:
        add = f"accelctl add {model_name(WHISPER)}, or transcription = true for {spec.name}"
        why["transcription"] = f"{known.tag} writes nothing down, {WHISPER} does: {add}"
    if embeds:
        tasks.add("embeddings")
    else:
        add = f"accelctl add {model_name(EMBEDDER)}, or embeddings = true for {spec.name}"
        why["embeddings"] = f"{known.tag} makes no embeddings, {EMBEDDER} does: {add}"
    return Traits(
        frozenset(tasks),
        why,
        wire_name=known.tag,  # it loads another model when a request names another, and a default for an unknown one
        labels=known.labels,
        recipe="flm",
        device="npu",
    )


def probe(spec: ModelSpec, tag: str) -> tuple[str, bytes, str]:
    """Path, body and its type, of what is to be answered before the model counts as ready."""
    own, hears, _ = argv.parts(spec, tag)
    if own is not None:
        said = {"model": own, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1, "stream": False}
        return "/v1/chat/completions", json.dumps(said).encode(), "application/json"
    if hears:
        return "/v1/audio/transcriptions", _form(tag, silence()), f"multipart/form-data; boundary={BOUNDARY}"
    return "/v1/embeddings", json.dumps({"model": tag, "input": "Hi"}).encode(), "application/json"


def silence(seconds: float = 1.0) -> bytes:
    """A WAV file in which nothing is heard."""
    data = bytes(int(seconds * RATE) * 2)
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, RATE, RATE * 2, 2, 16)
    body = b"WAVE" + form + struct.pack("<4sI", b"data", len(data)) + data
    return struct.pack("<4sI", b"RIFF", len(body)) + body


def _form(tag: str, sound: bytes) -> bytes:
    model = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="model"\r\n\r\n{tag}\r\n'
    file = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="silence.wav"\r\n'
    return f"{model}{file}Content-Type: audio/wav\r\n\r\n".encode() + sound + f"\r\n--{BOUNDARY}--\r\n".encode()
