"""What engines say wrongly by the API of a path reaches its clients as that API has it, streams piece by piece."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from accelerd.base.errors import AccelError
from accelerd.config.model import ModelSpec, ServerSettings
from accelerd.engines.base import Dialect, Traits
from accelerd.engines.llama_server.dialect import DIALECT
from accelerd.gateway import stream_events
from accelerd.gateway.corrections import Renamed, correction_for, error_event, is_cut, renamed
from accelerd.gateway.engine_errors import corrected_error, lacks_model
from tests.gateway.bench import ALL, SSE_HEAD, Asked, Bench, Speaker, bench, chunk, on_both_loops, plain, until
from tests.gateway.client import CHAT, chat, request

RESPONSES, MESSAGES = "/v1/responses", "/v1/messages"
USER = {"messages": [{"role": "user", "content": "hi"}]}
BODIES: dict[str, dict[str, Any]] = {CHAT: USER, MESSAGES: {"max_tokens": 9, **USER}, RESPONSES: {"input": "hi"}}


def said(message: str, kind: str = "server_error", code: int = 500, **more: Any) -> bytes:
    return json.dumps({"error": {"code": code, "message": message, "type": kind, **more}}).encode()


def event(name: str, **data: Any) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (name.encode(), json.dumps({"type": name, **data}).encode())


def events(stream: bytes) -> list[Any]:
    """Their data; each has the name of its type."""
    found = []
    for block in stream.split(b"\n\n"):
        lines = dict(line.split(b": ", 1) for line in block.split(b"\n") if line and not line.startswith(b":"))
        if b"data" in lines:
            found.append(json.loads(lines[b"data"]))
            assert lines[b"event"].decode() == found[-1]["type"]
    return found


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (404, {"error": {"message": "The model `x` does not exist", "code": "model_not_found"}}, True),
        (400, {"error": {"message": "no", "code": "model_not_found", "param": "model"}}, True),
        (404, {"error": {"message": "Unknown model", "param": "model"}}, True),
        (404, {"error": "model 'big:7b' not found"}, True),
        (404, {"error": {"message": 'model "big:7b" not found, try pulling it first', "type": "api_error"}}, True),
        (404, {"type": "error", "error": {"type": "not_found_error", "message": "model: big:7b"}}, True),
        (404, {"object": "error", "message": "The model `big:7b` does not exist.", "code": 404}, True),
        (404, {"error": {"message": "The model `big:7b2` does not exist."}}, False),
        (404, {"error": {"code": 404, "message": "File Not Found", "type": "not_found_error"}}, False),
        (404, {"error": {"message": "Invalid URL (POST /v1/big:7b)"}}, False),
        (404, {"detail": "Not Found"}, False),
        (404, [1], False),
        (400, {"error": {"message": "model 'big:7b' takes no images", "param": "model"}}, False),
        (500, {"error": {"message": "gone", "code": "model_not_found"}}, False),
    ],
)
def test_what_says_that_a_server_has_no_such_model(status: int, body: Any, expected: bool) -> None:
    assert lacks_model(status, msgspec.json.encode(body), "big:7b") is expected


@pytest.mark.parametrize(
    "message",
    [
        "Failed to parse messages: Missing 'role' in message: {}",
        "Failed to parse tools: [json.exception.type_error.302] type must be string, but is null; tools = []",
        "image input is not supported - hint: if this is unexpected, you may need to provide the mmproj",
        "\n------------\nWhile executing CallExpression at line 3\nError: Jinja Exception: roles must alternate",
        '"prompt" elements must be a string, a list of tokens or a JSON object',
        "'messages' is required",
        "Cannot use both json_schema and grammar",
    ],
)
def test_what_only_the_request_caused_is_a_bad_request(message: str) -> None:
    status, body = corrected_error(500, said(message), CHAT, "m", DIALECT)
    assert (status, json.loads(body)["error"]["type"]) == (400, "invalid_request_error")
    assert json.loads(body)["error"]["message"] == message
    assert corrected_error(500, said(message), CHAT, "m")[0] == 500, "another engine may mean something else"


@pytest.mark.parametrize(
    "message", ["Compute error.", "device lost", "Invalid input batch.", "got exception: x", "std::bad_alloc", ""]
)
def test_the_engines_own_failures_stay_its_own(message: str) -> None:
    assert corrected_error(500, said(message), CHAT, "m", DIALECT)[0] == 500


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "no reason given"), (b"<html>", "no reason given"), (b"[]", "[]"), (b"\xff", "\ufffd"),
        (b'{"error":"text"}', "text"), (b'{"detail":1}', "no reason given"), (b'{"detail":"Not Found"}', "Not Found"),
        (b'{"object":"error","message":"no such model","code":404}', "no such model"),
        (b'{"error":"Input validation error","error_type":"Validation"}', "Input validation error"),
        (b"\r\n  no  'file'\tfield\r\nmore\n", "no 'file' field"), (b"x" * 100_000, "x" * 400),
        (b"<!doctype html><style>a{}</style>\n<title>502 Bad Gateway</title><h1>nginx</h1>", "502 Bad Gateway"),
        (b"[" * 100_000, "[" * 400),
    ],
    ids=range(13),
)  # fmt: skip
def test_whatever_an_engine_says_is_an_error_of_the_api(body: bytes, message: str) -> None:
    for path in (*BODIES, "/v1/audio/transcriptions"):
        status, said = corrected_error(400, body, path, "m", DIALECT)
        error = json.loads(said)["error"]
        assert (status, error["message"], error["type"]) == (400, message, "invalid_request_error")
    assert json.loads(corrected_error(503, body, CHAT, "m")[1])["error"]["type"] == "server_error"
    assert json.loads(corrected_error(503, body, MESSAGES, "m")[1])["error"]["type"] == "overloaded_error"
    assert json.loads(corrected_error(400, body, "/api/chat", "m")[1]) == {"error": message}


@pytest.mark.parametrize("path", ["/v1/images/variations", "/v1/audio/speech", "/v1/messages/count_tokens"])
@pytest.mark.parametrize("body", [b"", b"<html></html>", b'{"detail":1}'])
def test_a_path_that_an_engine_has_not_is_named_where_it_says_nothing(path: str, body: bytes) -> None:
    status, said = corrected_error(404, body, path, "m", DIALECT)
    assert (status, json.loads(said)["error"]["message"]) == (404, f"the engine of m has nothing at {path}")


@pytest.mark.parametrize(
    ("kind", "sent"),
    [
        ("application/json; charset=utf-8", "application/json; charset=utf-8"),
        ("text/plain", "application/json"), ("text/html; charset=utf-8", "application/json"),
    ],
)  # fmt: skip
@on_both_loops
async def test_an_error_is_json_and_says_so(tmp_path: Path, kind: str, sent: str) -> None:
    async with bench(tmp_path) as b, await b.client() as client:
        b.engine.says(plain(b'{"error":{"message":"no"}}', 500, kind))
        response = await client.ask(body={"model": "m", **USER})
        assert (response.status, response.headers["content-type"]) == (500, sent)
        assert response.json()["error"]["message"] == "no"


def test_a_refusal_for_length_has_openais_code_and_names_the_key() -> None:
    too_long = said("request (9 tokens) exceeds 8", "exceed_context_size_error", 400, n_prompt_tokens=9, n_ctx=8)
    for path in (CHAT, RESPONSES):
        status, body = corrected_error(400, too_long, path, "qwen", DIALECT)
        error = json.loads(body)["error"]
        assert (status, error["code"], error["n_ctx"]) == (400, "context_length_exceeded", 8)
        assert error["message"].startswith("request (9 tokens) exceeds 8; ")
        assert "`context` for qwen" in error["message"]
    answer = json.loads(corrected_error(400, too_long, MESSAGES, "qwen", DIALECT)[1])
    assert (answer["type"], answer["error"]["type"]) == ("error", "invalid_request_error")
    assert answer["error"]["message"].startswith("prompt is too long: 9 tokens > 8 maximum")


def test_nobody_is_sent_for_a_longer_context_than_the_model_was_trained_for() -> None:
    too_long = said("request (9 tokens) exceeds 8", "exceed_context_size_error", 400, n_prompt_tokens=9, n_ctx=8)
    for path in BODIES:
        message = json.loads(corrected_error(400, too_long, path, "qwen", DIALECT, 8)[1])["error"]["message"]
        assert message.endswith("; qwen was trained for no more than 8")
        message = json.loads(corrected_error(400, too_long, path, "qwen", DIALECT, 16)[1])["error"]["message"]
        assert "`context` for qwen" in message


def test_an_embedding_without_pooling_is_told_how_to_get_one() -> None:
    message = "Pooling type 'none' is not OAI compatible. Please use a different pooling type"
    refused = said(message, code=400)
    status, body = corrected_error(400, refused, "/v1/embeddings", "{qwen}", DIALECT)
    assert status == 400
    assert json.loads(body)["error"]["message"].startswith(message)
    assert 'extra_args = ["--pooling", "mean"] for {qwen},' in json.loads(body)["error"]["message"]
    body = corrected_error(400, refused, "/v1/embeddings", "qwen")[1]
    assert json.loads(body)["error"]["message"] == message, "another engine has other options"


@pytest.mark.parametrize("path", ["/v1/embeddings", "/v1/rerank"])
def test_an_input_longer_than_a_batch_is_refused_for_length(path: str) -> None:
    message = "input (901 tokens) is too large to process. increase the physical batch size (current batch size: 512)"
    status, body = corrected_error(500, said(message), path, "bge", DIALECT)
    error = json.loads(body)["error"]
    assert (status, error["code"], error["type"]) == (400, "context_length_exceeded", "invalid_request_error")
    assert error["message"].startswith("the input has 901 tokens, a batch of this model 512; ")
    assert "`ubatch`, `batch` and `context` for bge" in error["message"]
    assert corrected_error(500, said(message), path, "bge")[0] == 500, "another engine may mean something else"


@pytest.mark.parametrize(
    ("status", "kind"),
    [(400, "invalid_request_error"), (404, "not_found_error"), (503, "overloaded_error"), (500, "api_error")],
)
@pytest.mark.parametrize("path", [MESSAGES, "/v1/messages/count_tokens"])
@on_both_loops
async def test_anthropics_clients_get_anthropics_errors(tmp_path: Path, path: str, status: int, kind: str) -> None:
    async with bench(tmp_path) as b, await b.client() as client:
        b.engine.says(plain(said("no", code=status), status))
        response = await client.ask(path=path, body={"model": "m", **BODIES[MESSAGES]})
        assert response.status == status
        assert response.json() == {"type": "error", "error": {"type": kind, "message": "no", "code": status}}


@pytest.mark.parametrize("assembles", [False, True])
@on_both_loops
async def test_a_request_that_is_at_fault_does_not_count_against_the_engine(tmp_path: Path, assembles: bool) -> None:
    dialect = Dialect(streams_notice_disconnect=assembles, request_faults="must be")
    async with bench(tmp_path, others={"llama-server": Speaker(dialect)}) as b, await b.client() as client:
        for _ in range(6):
            b.engine.says(plain(said("it must be so"), 500))
            assert (await client.ask(body={"model": "m", **USER})).status == 400
        assert b.scheduler.snapshot("m").state.value == "ready"
        assert len(b.engine.requests) == 6, "nothing else was asked of it"


# --- OpenAI's Responses API ------------------------------------------------------------------------------------------

CALL = {"id": "fc_1", "type": "function_call", "call_id": "call_1", "name": "f"}
PART = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
TEXT = {
    "type": "message",
    "id": "msg_1",
    "role": "assistant",
    "content": [{**PART, "text": "ab"}],
    "status": "completed",
}
HEAD = {"id": "resp_1", "object": "response"}
STREAM = [
    event("response.created", response={**HEAD, "status": "in_progress"}),
    event("response.in_progress", response={**HEAD, "status": "in_progress"}),
    event("response.output_item.added", item={"type": "message", "id": "msg_1", "content": []}),
    event("response.content_part.added", item_id="msg_1", part={"type": "output_text", "text": ""}),
    event("response.output_text.delta", item_id="msg_1", delta="a"),
    event("response.output_text.delta", item_id="msg_1", delta="b\n\ndata: {}"),
    event("response.output_item.added", item={**CALL, "arguments": ""}),
    event("response.function_call_arguments.delta", item_id="fc_1", delta="{}"),
    event("response.output_text.done", item_id="msg_1", text="ab"),
    event("response.content_part.done", item_id="msg_1", part=PART),
    event("response.output_item.done", item=TEXT),
    event("response.output_item.done", item={**CALL, "arguments": "{}"}),
    event("response.completed", response={**HEAD, "status": "completed", "created_at": 5, "output": [TEXT]}),
]


async def asked(b: Bench, path: str, *stream: bytes, close: bool = False) -> Any:
    async with await b.client() as client:
        ends = () if close else (b"0\r\n\r\n",)
        b.engine.says(SSE_HEAD, *[chunk(one) for one in stream], *ends, close=close)
        return await client.ask(path=path, body={"model": "m", "stream": True, **BODIES[path]})


@on_both_loops
async def test_events_of_a_response_have_what_its_clients_demand(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        response = await asked(b, RESPONSES, *STREAM)
        assert response.complete
        found = events(response.body)
    assert [one["sequence_number"] for one in found] == list(range(len(STREAM) + 1))
    kinds = [one["type"] for one in found]
    assert kinds.index("response.function_call_arguments.done") == kinds.index("response.completed") - 2
    for one in found:
        if "response" in one:
            assert {"id", "created_at", "model", "output", "tools", "error"} <= one["response"].keys()
            assert (one["response"]["id"], one["response"]["model"]) == ("resp_1", "m")
            assert one["response"]["created_at"] == found[0]["response"]["created_at"]
        elif one.get("item_id", one.get("item", {}).get("id")) == "msg_1":
            assert one["output_index"] == 0
            assert one.get("content_index") == (None if "item" in one else 0)
        else:
            assert one["output_index"] == 1
    assert found[-1]["response"]["output"] == [TEXT]
    assert [one["delta"] for one in found if one["type"] == "response.output_text.delta"] == ["a", "b\n\ndata: {}"]


@given(st.lists(st.integers(1, 60), min_size=1))
def test_pieces_do_not_matter(sizes: list[int]) -> None:
    stream = b": ping\n\n" + b"".join(STREAM)

    def of(pieces: list[bytes]) -> list[Any]:
        correction = correction_for(RESPONSES, "m")
        assert correction is not None
        found = events(b"".join([correction.feed(piece) for piece in pieces]) + correction.end())
        return [{**one, "response": None} for one in found]  # with times

    pieces, at, turn = [], 0, 0
    while at < len(stream):
        pieces.append(stream[at : at + sizes[turn % len(sizes)]])
        at, turn = at + len(pieces[-1]), turn + 1
    assert of(pieces) == of([stream])


@pytest.mark.parametrize("begun", [False, True])
@on_both_loops
async def test_a_response_that_fails_ends_with_an_error_and_a_failed_response(tmp_path: Path, begun: bool) -> None:
    """The engine's own event of it, and its death."""
    before = STREAM[:5] if begun else []
    error = b'data: {"error":{"code":500,"message":"Compute error.","type":"server_error"}}\n\n'
    async with bench(tmp_path) as b:
        by_engine = events((await asked(b, RESPONSES, *before, error)).body)
        response = await asked(b, RESPONSES, *before, b": ping\n\n", close=True)
        assert not response.complete
        for found, code in ((by_engine, "500"), (events(response.body), "upstream_failed")):
            assert [one["type"] for one in found[-2:]] == ["error", "response.failed"]
            assert [one["sequence_number"] for one in found] == list(range(len(found)))
            assert found[0]["type"] == "response.created"
            assert found[-2]["code"] == code
            assert found[-2]["message"]
            assert found[-1]["response"]["error"] == {"code": code, "message": found[-2]["message"]}
            assert found[-1]["response"]["id"] == found[0]["response"]["id"]
        await b.settled()


@pytest.mark.parametrize("answer", [said("too long", code=400), b"<html>"])
@on_both_loops
async def test_a_refusal_after_comments_is_a_failed_response(tmp_path: Path, answer: bytes) -> None:
    async with bench(tmp_path, ServerSettings(keepalive_after=0.02)) as b, await b.client() as client:
        b.instances.hold = True
        b.engine.says(plain(answer, 400))
        client.send(request(path=RESPONSES, body={"model": "m", "input": "hi", "stream": True}))
        await client.head()
        await client.reader.readuntil(b": loading m")
        await until(lambda: b.scheduler.queued == 1, "it waits")
        b.instances.let_go()
        rest = await client.rest()
        assert rest.count(b"event: error\n") == rest.count(b"event: response.failed\n") == 1
        assert (b"too long" in rest) == (b"too long" in answer)


@pytest.mark.parametrize("path", BODIES)
def test_errors_of_accelerds_own_are_events_of_the_path(path: str) -> None:
    stream = error_event(AccelError("queue_timeout", "no room"), path)
    names = {CHAT: [], MESSAGES: ["error"], RESPONSES: ["response.created", "error", "response.failed"]}[path]
    assert [line[7:].decode() for line in stream.split(b"\n") if line.startswith(b"event: ")] == names
    assert b"no room" in stream


# --- several prompts -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prompt", [["a", "b"], [1, 2], "a"])
@on_both_loops
async def test_of_several_prompts_no_event_is_null(tmp_path: Path, prompt: Any) -> None:
    """A stream of one prompt has none, and goes through unread."""
    texts = [f'data: {{"choices":[{{"index":{index},"text":"data: null"}}]}}\n\n'.encode() for index in range(2)]
    pieces = [b"data: null\n\n", texts[0], b"data: nu", b"ll\n\n" + texts[1], b"data: [DONE]\n\n"]
    async with bench(tmp_path) as b, await b.client() as client:
        b.engine.says(SSE_HEAD, *[chunk(piece) for piece in pieces], b"0\r\n\r\n")
        answer = await client.ask(path="/v1/completions", body={"model": "m", "prompt": prompt, "stream": True})
    kept = b"".join(texts) + pieces[-1] if isinstance(prompt, list) else b"".join(pieces)
    assert (answer.complete, answer.body) == (True, kept)


# --- chats -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("logprobs", [None, {"content": []}])
@on_both_loops
async def test_a_plain_chat_has_the_fields_that_openais_always_has(tmp_path: Path, logprobs: Any) -> None:
    """Of each choice, whatever the model says."""
    nasty = '{"finish_reason":"stop","index":0,"message":{"role":"assistant","content":"x"}}, "logprobs": 1'
    message = {"role": "assistant", "content": nasty}
    more = {} if logprobs is None else {"logprobs": logprobs}
    choices = [{"finish_reason": "stop", "index": index, "message": message, **more} for index in range(2)]
    said = {"choices": choices, "object": "chat.completion"}
    async with bench(tmp_path, others={"llama-server": Speaker(DIALECT)}) as b, await b.client() as client:
        b.engine.says(plain(json.dumps(said, separators=(",", ":")).encode()))
        answer = (await client.ask(body={"model": "m", **USER})).json()
    found = None if logprobs is None else {**logprobs, "refusal": None}
    expected = [{**one, "message": {**message, "refusal": None}, "logprobs": found} for one in choices]
    assert answer == {**said, "choices": expected}


# --- Anthropic's Messages API ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reason", "sequence", "right"),
    [
        ("end_turn", "stop", "stop_sequence"),
        ("end_turn", '"stop_sequence":null', "stop_sequence"),
        ("end_turn", None, "end_turn"),
        ("max_tokens", None, "max_tokens"),
        ("tool_use", None, "tool_use"),
    ],
)
@on_both_loops
async def test_a_stop_by_a_sequence_is_said_to_be_one(
    tmp_path: Path, reason: str, sequence: str | None, right: str
) -> None:
    stop = {"stop_reason": reason, "stop_sequence": sequence}
    message = json.dumps(
        {"type": "message", "content": [{"text": '"stop_sequence":null'}], **stop}, separators=(",", ":")
    )
    delta = json.dumps({"type": "message_delta", "delta": stop}, separators=(",", ":"))
    async with bench(tmp_path) as b, await b.client() as client:
        b.engine.says(plain(message.encode()))
        answer = await client.ask(path=MESSAGES, body={"model": "m", **BODIES[MESSAGES]})
        assert answer.json() == {**json.loads(message), "stop_reason": right}
        stream = await asked(b, MESSAGES, f"event: message_delta\ndata: {delta}\n\n".encode())
        assert events(stream.body) == [{"type": "message_delta", "delta": {**stop, "stop_reason": right}}]


@on_both_loops
async def test_an_error_in_a_stream_of_messages_has_its_shape(tmp_path: Path) -> None:
    error = b'event: error\ndata: {"code":500,"message":"Compute error.","type":"server_error"}\n\n'
    async with bench(tmp_path) as b:
        first = event("message_start", message={})
        found = events((await asked(b, MESSAGES, first, error)).body)
    assert found[0] == {"type": "message_start", "message": {}}
    assert found[1] == {"type": "error", "error": {"type": "api_error", "message": "Compute error.", "code": 500}}


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (b'{"model":"qwen3:4b","x":[0.10,1e5]}', b'{"model":"mine","x":[0.10,1e5]}'),
        (b'{"x": {"model": "theirs"}}', b'{"x":{"model": "theirs"}}'),
        (b'{"response": {"model": "theirs"}}', b'{"response":{"model":"mine"}}'),
        (b'{"message": {"model": "theirs"}}', b'{"message":{"model":"mine"}}'),
        (b'{"model": null, "message": "model"}', b'{"model":null,"message":"model"}'),
        (b"RIFF\x00", b"RIFF\x00"),
        (b'["model"]', b'["model"]'),
        (b'{"response":{"response":{"model":"theirs"}}}', b'{"response":{"response":{"model":"theirs"}}}'),
        (b'{"response":' * 100_000, b'{"response":' * 100_000),
        (b'{"x": {"model": "theirs"}, "model": "theirs"}', b'{"x":{"model": "theirs"},"model":"mine"}'),
        (b'{ "model" :\t"a \\"b" , "y": 1}', b'{ "model" :\t"mine" , "y": 1}'),
        (b'{"y": "\\"model\\": \\"x\\"", "model": "x"}', b'{"y": "\\"model\\": \\"x\\"", "model": "mine"}'),
        (b'{"model": "theirs"} "model"', b'{"model": "theirs"} "model"'),
        (b'{"model": "theirs", }', b'{"model": "theirs", }'),
    ],
    ids=range(14),
)
def test_a_response_carries_the_name_that_clients_know(said: bytes, expected: bytes) -> None:
    assert renamed(said, "mine") == expected


@given(st.recursive(st.none() | st.floats() | st.text(), lambda one: st.lists(one) | st.dictionaries(st.text(), one)))
def test_json_that_ends_too_early_is_told_from_what_is_only_odd(value: Any) -> None:
    body = json.dumps(value).encode()  # with NaN
    assert not is_cut(body)
    if isinstance(value, list | dict | str):
        assert is_cut(body[:-1])
    assert not is_cut(b"[" * 100_000)


@pytest.mark.parametrize("path", [CHAT, "/v1/messages", "/v1/responses"])
@on_both_loops
async def test_an_event_that_does_not_end_is_an_error(
    tmp_path: Path, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_events, "MAX_EVENT", 1 << 20)
    speaker = Speaker(of={"a": Traits(ALL, wire_name="theirs")})
    models = [ModelSpec("a", path="/a.gguf")]
    async with bench(tmp_path, models=models, others={"llama-server": speaker}) as b, await b.client() as client:
        event = b"data: " + b"x" * 100_000

        async def script(one: Asked) -> None:
            one.writer.write(SSE_HEAD + chunk(event + b"\n") + chunk(b"\n"))
            while True:
                one.writer.write(chunk(event))
                await one.writer.drain()

        b.engine.script = script
        answer = await client.ask("POST", path, chat("a", stream=True, max_tokens=1, input="x"))
        assert answer.complete is False
        assert b"it sent an event of more than 1 MiB" in answer.body


@pytest.mark.parametrize("size", [1, 7, 4096])
def test_events_carry_the_name_that_clients_know(size: int) -> None:
    """However they are cut, and whatever else is corrected; what the model says is not touched."""
    content = r"say \"model\":\"x\""
    stream = f': hello\n\ndata: {{"model":"/models/a.gguf","choices":[{{"delta":{{"content":"{content}"}}}}]}}\n\n'
    stream += 'event: response.created\ndata: {"type":"response.created","response":{"model":"a"}}\n\ndata: [DONE]\n\n'
    for path in ("/v1/completions", CHAT, RESPONSES):
        correction = Renamed("mine", correction_for(path, "mine"))
        data = stream.encode()
        parts = [correction.feed(data[at : at + size]) for at in range(0, len(data), size)]
        said = b"".join([*parts, correction.end()])
        assert b"/models" not in said
        assert said.count(b'"model":"mine"') == 2
        assert content.encode() in said
        assert said.startswith(b": hello\n\n")
        assert said.endswith(b"data: [DONE]\n\n")
