"""The tasks that a FastFlowLM model supports, alternatives for the others, and the readiness probe. Pure."""

from __future__ import annotations

import json
import struct
from typing import Final

from accelerd.config.model import ModelSpec
from accelerd.engines.base import Task, Traits
from accelerd.engines.flm import argv
from accelerd.engines.flm.catalogue import EMBEDDER, WHISPER, FlmModel, model_name

BOUNDARY: Final = "accelerd-4f1f7c9e"
RATE: Final = 16_000  # samples a second

CHAT: Final = "ask /v1/chat/completions"
NEVER: Final[dict[str, str]] = {
    "messages": f"FastFlowLM does not support /v1/messages; {CHAT}",
    "responses": f"FastFlowLM does not support /v1/responses; {CHAT}",
    "rerank": "FastFlowLM does not support reranking; use a llama-server model with rerank = true",
}


def traits(spec: ModelSpec, known: FlmModel) -> Traits:
    """Derived from the settings and FastFlowLM's labels."""
    own, hears, embeds = argv.parts(spec, known.tag)
    tasks: set[Task] = set()
    why = dict(NEVER)
    if own is not None:
        tasks |= {"chat", "completions"}
        if "tool-calling" in known.labels:
            tasks.add("tools")
        else:
            why["tools"] = f"{known.tag} does not support tool calls; qwen3:4b does: accelctl add npu/qwen3-4b"
        if "vision" in known.labels:
            tasks.add("vision")
        else:
            why["vision"] = f"{known.tag} does not support images; qwen3vl-it:4b does: accelctl add npu/qwen3vl-it-4b"
    else:
        what = "transcription" if hears else "embeddings"
        for task in ("chat", "completions", "tools", "vision", "messages", "responses"):
            why[task] = f"{spec.name} supports only {what}"
    if hears:
        tasks.add("transcription")
    else:
        add = f"accelctl add {model_name(WHISPER)}, or transcription = true for {spec.name}"
        why["transcription"] = f"{known.tag} does not support transcription, {WHISPER} does: {add}"
    if embeds:
        tasks.add("embeddings")
    else:
        add = f"accelctl add {model_name(EMBEDDER)}, or embeddings = true for {spec.name}"
        why["embeddings"] = f"{known.tag} does not support embeddings, {EMBEDDER} does: {add}"
    return Traits(
        frozenset(tasks),
        why,
        wire_name=known.tag,  # FastFlowLM loads whatever model a request names, and a default for an unknown name
        labels=known.labels,
        recipe="flm",
        device="npu",
    )


def probe(spec: ModelSpec, tag: str) -> tuple[str, bytes, str]:
    """Path, body and content type of the request that a ready model answers."""
    own, hears, _ = argv.parts(spec, tag)
    if own is not None:
        said = {"model": own, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1, "stream": False}
        return "/v1/chat/completions", json.dumps(said).encode(), "application/json"
    if hears:
        return "/v1/audio/transcriptions", _form(tag, silence()), f"multipart/form-data; boundary={BOUNDARY}"
    return "/v1/embeddings", json.dumps({"model": tag, "input": "Hi"}).encode(), "application/json"


def silence(seconds: float = 1.0) -> bytes:
    """A silent WAV file."""
    data = bytes(int(seconds * RATE) * 2)
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, RATE, RATE * 2, 2, 16)
    body = b"WAVE" + form + struct.pack("<4sI", b"data", len(data)) + data
    return struct.pack("<4sI", b"RIFF", len(body)) + body


def _form(tag: str, sound: bytes) -> bytes:
    model = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="model"\r\n\r\n{tag}\r\n'
    file = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="silence.wav"\r\n'
    return f"{model}{file}Content-Type: audio/wav\r\n\r\n".encode() + sound + f"\r\n--{BOUNDARY}--\r\n".encode()
