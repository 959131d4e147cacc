"""Asks accelerd and the engine itself the same, and says in which fields the answers differ.

Both engines are llama-servers with the same command line: one is accelerd's child, the other is started here. They get
the same requests in the same order, so that their caches are the same, too.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import socket as sockets
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tests.compare.bodies import CHAT, COMPLETIONS, COUNT, EMBEDDINGS, MESSAGES, RERANK, RESPONSES, Body
from tests.gateway.client import Client, Response, request
from tests.harness import Daemon, DaemonFactory, eventually
from tests.models import make_model

REPLY = "Hello from accelerd, this is a tiny model speaking."
CONTEXT = 2048  # tokens of a slot
SECRET = "direct"
SLOTS = (1, 4)
CHANCE = ("id", "id_slot", "created", "created_at", "completed_at", "item_id", "call_id", "tool_call_id")
TIMES = ("_ms", "_per_second")
MISSING = "(missing)"
LARGER = "; for more, set a larger {} for {} in accelerd's configuration"
TOO_MANY = re.compile(r"Field 'n(?:_cmpl)?': .* <= \d+, but got (\d+)")
MOST = 128  # answers to one request
TOO_LARGE = re.compile(r"input \((\d+) tokens\) is too large .*size: (\d+)\)")
ADDED = ("sequence_number", "output_index", "content_index", "logprobs")
BEGUN = ("id", "object", "status")
STREAMED = (*BEGUN, "created_at", "model", "output", "usage")
WHOLE = (*STREAMED, "completed_at")


class Answer(NamedTuple):
    status: int
    kind: str  # Content-Type
    parts: list[Any]  # the body, or its events

    @property
    def ok(self) -> bool:
        return self.status == 200


class Difference(NamedTuple):
    where: str
    engine: Any
    accelerd: Any

    def __str__(self) -> str:
        return f"{self.where}: the engine {shown(self.engine)}, accelerd {shown(self.accelerd)}"


def shown(value: Any) -> str:
    text = value if value is MISSING else json.dumps(value, ensure_ascii=False)
    return text if len(text) < 200 else text[:200] + "…"


def configuration(directory: Path, program: str) -> str:
    """A daemon's, with a model for each kind of request and each number of slots."""
    toml = f"[engines.llama-server]\nbinary = {json.dumps(program)}\n[defaults]\nthreads = 1\n"
    for kind, setting in (("chat", ""), ("embed", "embeddings = true\n"), ("rerank", "rerank = true\n")):
        options = {"reply": REPLY, "ctx": CONTEXT} if kind == "chat" else {}
        path = make_model(directory, kind, **options)
        for slots in SLOTS:
            toml += f"[models.{kind}{slots}]\npath = {json.dumps(str(path))}\nparallel = {slots}\n{setting}"
            toml += f"context = {CONTEXT * slots if kind == 'chat' else 512 * slots}\n"
    return toml


def model_for(body: Body, slots: int) -> str:
    kind = {EMBEDDINGS: "embed", RERANK: "rerank", "/v1/reranking": "rerank", "/rerank": "rerank"}
    return f"{kind.get(body.path, 'chat')}{slots}"


@contextlib.contextmanager
def engine(daemon: Daemon, model: str) -> Iterator[Path]:
    """A llama-server with the command line of the model's, and its socket."""
    argv = list(daemon.control("GET", f"explain?model={model}").json()["argv"])
    with tempfile.TemporaryDirectory(prefix="acc-") as runtime:
        socket = Path(runtime) / "engine.sock"
        argv[argv.index("--host") + 1] = str(socket)
        env = {"PATH": os.environ["PATH"], "HOME": runtime, "LLAMA_API_KEY": SECRET}
        with open(Path(runtime) / "output", "wb") as output:
            process = subprocess.Popen(argv, env=env, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        try:
            eventually(lambda: process.poll() is not None or loaded(socket), f"{model} answers directly")
            assert process.poll() is None, (Path(runtime) / "output").read_text()
            yield socket
        finally:
            process.kill()
            process.wait()


def loaded(socket: Path) -> bool:
    with sockets.socket(sockets.AF_UNIX) as connection:
        try:
            connection.connect(str(socket))
        except OSError:
            return False
        connection.sendall(b"GET /health HTTP/1.0\r\n\r\n")
        return b" 200 " in connection.makefile("rb").readline()


def asked(body: Body, model: str, *, stream: bool, path: str | None = None) -> bytes:
    """The request."""
    fields: dict[str, Any] = {"model": model, "seed": 1, "temperature": 0, "cache_prompt": False}
    if body.path.startswith("/v1/messages") and body.path != COUNT:
        fields["max_tokens"] = 100
    fields |= body.fields
    if stream:
        fields["stream"] = True
    sent = {key: value for key, value in fields.items() if value is not ...}
    return request("POST", path or body.path, sent, {"Authorization": f"Bearer {SECRET}", "Connection": "close"})


async def by_accelerd(port: int, body: Body, model: str, *, stream: bool) -> Answer:
    async with await Client.open(port) as client:
        client.send(asked(body, model, stream=stream))
        return answer(await client.response())


async def by_engine(socket: Path, body: Body, model: str, *, stream: bool) -> Answer:
    async with await Client.open_unix(socket) as client:
        client.send(asked(body, model, stream=stream))
        return answer(await client.response())


def answer(response: Response) -> Answer:
    kind = response.headers.get("content-type", "").partition(";")[0]
    assert response.complete, (response.head, response.body)
    if kind == "text/event-stream":
        return Answer(response.status, kind, [event(block) for block in blocks(response.body)])
    try:
        return Answer(response.status, kind, [json.loads(response.body)])
    except ValueError:
        return Answer(response.status, kind, [response.body.decode("utf-8", "replace")])


def blocks(stream: bytes) -> list[bytes]:
    """The events of a stream, without comments."""
    found = [b"\n".join(line for line in b.split(b"\n") if not line.startswith(b":")) for b in stream.split(b"\n\n")]
    return [block for block in found if block]


def event(block: bytes) -> Any:
    """An event's fields; JSON decoded where it is JSON."""
    fields: dict[str, Any] = {}
    for line in block.decode().split("\n"):
        name, _, value = line.partition(": ")
        try:
            fields[name] = json.loads(value)
        except ValueError:
            fields[name] = value
    return fields


def comparable(value: Any, key: str = "") -> Any:
    """Without what differs between any two answers; numbers with the digits that every way of printing has."""
    if isinstance(value, dict):
        if "cache_read_input_tokens" in value:  # Anthropic's API has no way to do without the cache
            value = {**value, "input_tokens": value["input_tokens"] + value["cache_read_input_tokens"]}
            del value["cache_read_input_tokens"]
        return {k: comparable(v, k) for k, v in value.items()}
    if isinstance(value, list):
        return [comparable(v, key) for v in value]
    if (key in CHANCE and value is not None) or (key.endswith(TIMES) and isinstance(value, int | float)):
        return type(value).__name__ if not isinstance(value, int | float) else "number"
    return round(value, 4) if isinstance(value, float) else value


def by_choice(parts: Sequence[Any]) -> list[Any]:
    """Events in an order that does not depend on which of several answers came first."""

    def index(part: Any) -> int:
        data = part.get("data") if isinstance(part, dict) else None
        choices = data.get("choices") if isinstance(data, dict) else None
        return choices[0]["index"] if choices else 1000

    return sorted(parts, key=index)


def refused_here(body: Body, engine: Answer, accelerd: Answer) -> bool:
    """Has accelerd refused by itself what the engine refuses too, or what OpenAI and Anthropic refuse? Or the engine
    what accelerd has made of it, which it takes?"""
    if engine.status == 400 and accelerd.ok and body.path == RERANK:
        return isinstance(body.fields["documents"][0], dict)  # it takes texts only
    error = accelerd.parts[0].get("error") if accelerd.status == 400 else None
    if error is None or error.get("code") not in ("bad_request", "not_supported_by_model") or not error["message"]:
        return False
    return engine.status in (400, 500) or body.fields.get("messages") in ([], "hello")


def mended(body: Body, model: str, engine: Answer) -> Answer:
    """The engine's answer without what accelerd repairs: what clients of the API would stumble over."""
    if engine.status != 200:
        status, error = engine.status, dict(engine.parts[0]["error"])
        if status == 500:  # the engine's way to refuse what it cannot read
            status = 400
            error |= {"code": 400, "type": "invalid_request_error"}
        anthropic = body.path.startswith("/v1/messages")
        if "n_ctx" in error:
            tokens, limit = error["n_prompt_tokens"], error["n_ctx"]
            text = f"prompt is too long: {tokens} tokens > {limit} maximum" if anthropic else error["message"]
            error |= {
                "code": "context_length_exceeded",
                "message": f"{text}; {model} was trained for no more than {CONTEXT}",
            }
        elif (large := TOO_LARGE.match(error["message"])) is not None:
            text = f"the input has {large[1]} tokens, a batch of this model {large[2]}"
            keys = LARGER.format("`ubatch`, `batch` and `context`", model)
            error |= {"code": "context_length_exceeded", "message": text + keys}
        if anthropic:
            error["type"] = "invalid_request_error"
            return Answer(status, engine.kind, [{"type": "error", "error": error}])
        return Answer(status, engine.kind, [{"error": error}])
    if body.path in (CHAT, "/chat/completions") and engine.kind == "application/json":
        for choice in engine.parts[0]["choices"]:
            if choice.setdefault("logprobs", None) is not None:
                choice["logprobs"]["refusal"] = None
            choice["message"]["refusal"] = None
    if (dimensions := body.fields.get("dimensions")) is not None and body.path == EMBEDDINGS:
        for one in engine.parts[0]["data"]:
            first = one["embedding"][:dimensions]
            one["embedding"] = [value / math.hypot(*first) for value in first]
    if body.fields.get("return_documents"):
        for one in engine.parts[0]["results"]:
            one["document"] = {"text": body.fields["documents"][one["index"]]}
    if body.path == COMPLETIONS:
        return engine._replace(parts=[part for part in engine.parts if part.get("data", part) is not None])
    if body.path == MESSAGES:
        for part in engine.parts:
            message = part.get("data", part).get("delta", part)
            if message.get("stop_sequence") is not None:
                message["stop_reason"] = "stop_sequence"
    return engine


def repeated(answer: Answer, count: int) -> Answer:
    """An answer so often, as the engine gives it where it has the slots."""
    if not answer.ok:
        return answer

    def numbered(part: Any, number: int) -> Any:
        data = part.get("data", part)
        if not isinstance(data, dict):
            return part
        choices = [{**choice, "index": choice["index"] * count + number} for choice in data["choices"]]
        return {**part, "data": {**data, "choices": choices}} if data is not part else {**part, "choices": choices}

    if answer.kind == "application/json":
        choices = [choice for number in range(count) for choice in numbered(answer.parts[0], number)["choices"]]
        whole = {**answer.parts[0], "choices": sorted(choices, key=lambda choice: int(choice["index"]))}
        return answer._replace(parts=[whole])
    *events, end = answer.parts
    return answer._replace(parts=[*(numbered(part, number) for number in range(count) for part in events), end])


def with_one_usage(parts: Sequence[Any]) -> list[Any]:
    """The events of several answers with the usage of all in the last one that has it."""
    used = [part for part in parts if isinstance(part["data"], dict) and part["data"].get("choices") == []]
    if len(used) < 2:
        return list(parts)
    usages = [part["data"]["usage"] for part in used]
    tokens = sum(usage["completion_tokens"] for usage in usages)
    whole = {**usages[-1], "completion_tokens": tokens, "total_tokens": usages[-1]["prompt_tokens"] + tokens}
    last = {**used[-1], "data": {**used[-1]["data"], "usage": whole}}
    *events, end = [part for part in parts if part not in used]
    return [*events, last, end]


def unnumbered(parts: Sequence[Any]) -> list[Any]:
    """Events of the Responses API without what accelerd adds; see test_openai_client.py for whether that is right."""
    found = []
    for part in parts:
        data = {key: value for key, value in part["data"].items() if key not in ADDED}
        if data["type"] == "response.function_call_arguments.done":
            continue
        if data["type"] == "response.content_part.added":
            data["part"] = {key: value for key, value in data["part"].items() if key not in ("annotations", "logprobs")}
        if "response" in data:
            ended = data["type"] in ("response.completed", "response.incomplete")
            data["response"] = unfilled(data["response"], STREAMED if ended else BEGUN)
            if ended:
                data["type"], part = "response.completed", {**part, "event": "response.completed"}
        found.append({**part, "data": data})
    return found


def unfilled(response: Any, known: Sequence[str] = WHOLE) -> Any:
    """A response without what accelerd fills in; llama-server calls it completed when it has reached its limit."""
    found = {key: value for key, value in response.items() if key in known}
    if response.get("incomplete_details") == {"reason": "max_output_tokens"}:
        found["status"] = "completed"
        if "completed_at" in known:
            found["completed_at"] = 0
    if "usage" in found:
        found["usage"] = {key: value for key, value in found["usage"].items() if key != "output_tokens_details"}
    return found


def differences(body: Body, model: str, engine: Answer, accelerd: Answer) -> list[Difference]:
    """Field by field. What accelerd refuses or mends by intention is no difference."""
    if refused_here(body, engine, accelerd):
        return []
    engine = mended(body, model, engine)
    found = []
    if engine.status != accelerd.status:
        found.append(Difference("status", engine.status, accelerd.status))
    if engine.kind != accelerd.kind:
        found.append(Difference("content-type", engine.kind, accelerd.kind))
    there, here = by_choice(engine.parts), by_choice(accelerd.parts)
    if accelerd.kind == "text/event-stream" and body.path == CHAT:
        there = with_one_usage(there)
    if body.path == RESPONSES and accelerd.kind == "text/event-stream":
        here = unnumbered(here)
    elif body.path in (RESPONSES, "/responses") and accelerd.ok:
        here = [unfilled(one) for one in here]
    found += of_values("", comparable(there), comparable(here))
    return found


def of_values(where: str, there: Any, here: Any) -> Iterator[Difference]:
    if isinstance(there, dict) and isinstance(here, dict):
        for key in {**there, **here}:
            yield from of_values(f"{where}.{key}", there.get(key, MISSING), here.get(key, MISSING))
    elif isinstance(there, list) and isinstance(here, list) and len(there) == len(here):
        for index, (one, other) in enumerate(zip(there, here, strict=True)):
            yield from of_values(f"{where}[{index}]", one, other)
    elif there != here:
        yield Difference(where, there, here)


class Pair(NamedTuple):
    """accelerd, and an engine of its own for each model."""

    daemon: Daemon
    engines: dict[str, Path]

    async def compare(self, body: Body, slots: int, *, stream: bool) -> list[Difference]:
        model = model_for(body, slots)
        there = await by_engine(self.engines[model], body, model, stream=stream)
        refused = TOO_MANY.match(there.parts[0]["error"]["message"]) if there.status == 400 else None
        if refused is not None and 1 < (count := int(refused[1])) <= MOST:
            alone = body._replace(fields={**body.fields, "n": ..., "n_cmpl": ...})
            there = repeated(await by_engine(self.engines[model], alone, model, stream=stream), count)
        here = await by_accelerd(self.daemon.port, body, model, stream=stream)
        return differences(body, model, there, here)


@contextlib.contextmanager
def pair(directory: Path, program: str, slots: Sequence[int] = SLOTS) -> Iterator[Pair]:
    with DaemonFactory(directory) as factory, contextlib.ExitStack() as stack:
        daemon = factory.start(configuration(directory / "models", program))
        models = [f"{kind}{count}" for kind in ("chat", "embed", "rerank") for count in slots]
        yield Pair(daemon, {model: stack.enter_context(engine(daemon, model)) for model in models})
