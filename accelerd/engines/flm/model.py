"""One FastFlowLM model as configured: its tasks, its memory and NPU contexts, and its readiness probe. Pure.

The NPU uses main memory; GPU memory is not used.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from typing import Final

from accelerd.config.model import ModelSpec
from accelerd.devices.model import Device
from accelerd.engines.base import Task, Traits
from accelerd.engines.flm.catalogue import EMBEDDER, KNOWN, WHISPER, FlmModel, model_name
from accelerd.memory.model import RAM, Claim, MemoryRequirement

LEAST_CONTEXT: Final = 512
USUAL_CONTEXT: Final = 8192  # tokens, of a model that tells nothing
MIB: Final = 1 << 20
BESIDE: Final = 256 * MIB  # buffers and the program
FAMILY: Final = "flm"
NO_NPU: Final = "npu"  # the device of a claim on a machine without one
BOUNDARY: Final = "accelerd-4f1f7c9e"
RATE: Final = 16_000  # samples a second

CHAT: Final = "ask /v1/chat/completions"
NEVER: Final[dict[str, str]] = {
    "messages": "FastFlowLM has no path for that; /v1/messages itself is translated",
    "responses": f"FastFlowLM does not support /v1/responses; {CHAT}",
    "rerank": "FastFlowLM does not support reranking; use a llama-server model with rerank = true",
}


def context_of(asked: int) -> int:
    """The context that FastFlowLM uses: a power of two, at least 512."""
    return 1 << (max(asked, LEAST_CONTEXT) - 1).bit_length()


def parts(spec: ModelSpec, tag: str) -> dict[str, str]:
    """The models that the server runs, by kind of NPU context: "llm", "asr", "embed".

    FastFlowLM has one model for each of the latter two, enabled by an option.
    """
    found = {} if tag in (WHISPER, EMBEDDER) else {"llm": tag}
    if spec.transcription or tag == WHISPER:
        found["asr"] = WHISPER
    if spec.embeddings or tag == EMBEDDER:
        found["embed"] = EMBEDDER
    return found


def traits(spec: ModelSpec, known: FlmModel) -> Traits:
    """Derived from the settings and FastFlowLM's labels."""
    found = parts(spec, known.tag)
    tasks: set[Task] = set()
    why = dict(NEVER)
    if "llm" in found:
        tasks |= {"chat", "completions"}
        if "tool-calling" in known.labels:
            tasks.add("tools")
        else:
            why["tools"] = f"{known.tag} does not support tool calls; qwen3:4b does: accelctl add npu/qwen3-4b"
        if "audio" in known.labels:
            tasks.add("audio")
        if "vision" in known.labels:
            tasks.add("vision")
        else:
            why["vision"] = f"{known.tag} does not support images; qwen3vl-it:4b does: accelctl add npu/qwen3vl-it-4b"
    else:
        what = "transcription" if "asr" in found else "embeddings"
        for task in ("chat", "completions", "tools", "vision", "audio", "messages", "responses"):
            why[task] = f"{spec.name} supports only {what}"
    if "asr" in found:
        tasks.add("transcription")
    else:
        add = f"accelctl add {model_name(WHISPER)}, or transcription = true for {spec.name}"
        why["transcription"] = f"{known.tag} does not support transcription, {WHISPER} does: {add}"
    if "embed" in found:
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
        context=(context_of(spec.tokens) if spec.tokens else known.context) or None,
    )


def probe(spec: ModelSpec, tag: str) -> tuple[str, bytes, str]:
    """Path, body and content type of the request that a ready model answers."""
    found = parts(spec, tag)
    if "llm" in found:
        said = {"model": tag, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1, "stream": False}
        return "/v1/chat/completions", json.dumps(said).encode(), "application/json"
    if "asr" in found:
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


def npu(devices: Sequence[Device]) -> Device | None:
    """The NPU that FastFlowLM uses: one from AMD, working ones first."""
    found = [device for device in devices if device.kind == "npu" and device.vendor in ("", "1022")]
    return min(found, key=lambda d: (d.problem is not None, d.driver != "amdxdna", d.id), default=None)


def need(spec: ModelSpec, known: FlmModel, devices: Sequence[Device]) -> MemoryRequirement:
    """Its only placement."""
    device = npu(devices)
    where = device.id if device is not None else NO_NPU
    claims = tuple(Claim(where, FAMILY, kind) for kind in parts(spec, known.tag))
    on = (where,) if device is not None else ()
    if spec.memory is not None:
        source = f"declared: {spec.origin('memory')}"
        return MemoryRequirement({RAM: spec.memory}, source, on, claims=claims, declared=True)
    amounts = sizes(spec, known)
    source = "estimated from FastFlowLM's list of models"
    if known.guessed:
        source = f"guessed from its name: no list of models has the size of {known.tag}"
    return MemoryRequirement({RAM: sum(amounts.values())}, source, on, {RAM: amounts}, claims)


def sizes(spec: ModelSpec, known: FlmModel) -> dict[str, int]:
    """Bytes: "weights", "kv cache", "compute"."""
    found = parts(spec, known.tag)
    weights = sum((known if kind == "llm" else KNOWN[tag]).footprint for kind, tag in found.items())
    tokens = context_of(spec.tokens) if spec.tokens is not None else known.context or USUAL_CONTEXT
    cache = known.cache * tokens if "llm" in found else 0
    return {"weights": weights, "kv cache": cache, "compute": BESIDE} if weights else {}


def lockable_needed(spec: ModelSpec, known: FlmModel) -> int:
    """Bytes that the program locks."""
    return sum(sizes(spec, known).values()) + 2 * BESIDE
