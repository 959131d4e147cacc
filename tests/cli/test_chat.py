"""accelctl chat: one answer, prompts from a pipe, what goes wrong in a stream."""

from __future__ import annotations

import json
from typing import Any

import pytest

from accelerd.cli.answer import AnswerPrinter, ChatAnswer, ask, parse_sse
from accelerd.cli.connect import DaemonClient

from .conftest import Ctl
from .fake_daemon import FakeDaemon, Reply, delta, error, sse

CHAT = "POST /v1/chat/completions"
TIMINGS = {"predicted_per_second": 41.25, "predicted_n": 3}


def hello(*words: str) -> Reply:
    return sse(*[delta(word) for word in words or ("Hel", "lo")], delta(finish_reason="stop") | {"timings": TIMINGS})


class FakeClock:
    """A second passes with every look at it."""

    now = 0.0

    def monotonic(self) -> float:
        self.now += 1.0
        return self.now


class Recorder(AnswerPrinter):
    def __init__(self) -> None:
        self.seen: list[Any] = []

    def waiting(self, why: str) -> None:
        self.seen.append(("waiting", why))

    def piece(self, text: str, *, thinking: bool) -> None:
        self.seen.append(("thinking" if thinking else "content", text))


def test_one_prompt_one_answer(ctl: Ctl, daemon: FakeDaemon) -> None:
    daemon.answers[CHAT] = hello()
    result = ctl("chat", "embed", "say", "hello", "--max-tokens", "9", "--temperature", "0", "--system", "be brief")
    assert (result.status, result.out, result.err) == (0, "Hello\n", "")
    asked = json.loads(daemon.requests[0].body)
    assert asked == {
        "model": "embed", "stream": True, "stream_options": {"include_usage": True}, "max_tokens": 9,
        "temperature": 0.0,
        "messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "say hello"}],
    }  # fmt: skip
    assert daemon.requests[0].host == "localhost"


def test_numbers_below_the_answer_on_a_terminal(ctl: Ctl, daemon: FakeDaemon) -> None:
    daemon.answers[CHAT] = hello()
    result = ctl("chat", "embed", "hello", tty=True, NO_COLOR="1")
    assert result.out == "Hello\n"
    assert "2 tokens · 41.2 tokens/s · first token after" in result.err


@pytest.mark.parametrize(("tokens", "speed"), [(1, 40.0), (1, 11875.0), (20, 11692.3), (20, 4484.0)])
def test_what_was_generated_in_no_time_has_no_speed(ctl: Ctl, daemon: FakeDaemon, tokens: int, speed: float) -> None:
    words, quick = [f"t{n} " for n in range(tokens)], {"predicted_per_second": speed, "predicted_n": tokens}
    daemon.answers[CHAT] = sse(*map(delta, words), delta(finish_reason="stop") | {"timings": quick})
    assert "tokens/s" not in ctl("chat", "embed", "hello", tty=True, NO_COLOR="1").err
    assert json.loads(ctl("chat", "embed", "hello", "--json").out)["tokens_per_second"] is None


def test_the_prompt_from_a_pipe(ctl: Ctl, daemon: FakeDaemon) -> None:
    daemon.answers[CHAT] = hello()
    assert ctl("chat", "embed", stdin="two\nlines\n").out == "Hello\n"
    assert json.loads(daemon.requests[0].body)["messages"] == [{"role": "user", "content": "two\nlines"}]
    empty = ctl("chat", "embed", stdin="  \n")
    assert (empty.status, empty.out) == (2, "")


def test_comments_are_shown_while_the_model_loads(ctl: Ctl, daemon: FakeDaemon) -> None:
    daemon.answers[CHAT] = sse("loading embed, 1 s of 3 s", "", delta("Hi"), "keep-alive", delta(finish_reason="stop"))
    plain = ctl("chat", "embed", "hello")
    assert plain.out == "Hi\n"
    assert plain.err == "loading embed, 1 s of 3 s\n"
    spinner = ctl("chat", "embed", "hello", tty=True)
    assert "loading embed" in spinner.err
    assert spinner.out == "Hi\n"


def test_thinking_is_no_part_of_the_answer(ctl: Ctl, daemon: FakeDaemon) -> None:
    thought = {"choices": [{"delta": {"role": "assistant", "content": None, "reasoning_content": "hm"}}]}
    daemon.answers[CHAT] = sse(thought, delta("42"), delta(finish_reason="stop"))
    result = ctl("chat", "embed", "hello")
    assert (result.out.strip(), result.err.strip()) == ("42", "hm")
    value = json.loads(ctl("chat", "embed", "hello", "--json").out)
    assert (value["content"], value["reasoning"]) == ("42", "hm")


def test_an_answer_cannot_command_the_terminal(ctl: Ctl, daemon: FakeDaemon) -> None:
    daemon.answers[CHAT] = hello("a\x1b]0;title\x07", "\tb\n")
    assert ctl("chat", "embed", "hello").out == "a\\x1b]0;title\\x07\tb\n"


def test_one_answer_as_json(ctl: Ctl, daemon: FakeDaemon) -> None:
    usage = {"prompt_tokens": 3, "completion_tokens": 7, "total_tokens": 10}
    daemon.answers[CHAT] = sse(
        delta("Hi"), delta(finish_reason="length"), {"choices": [], "usage": usage, "timings": TIMINGS}
    )
    value = json.loads(ctl("chat", "embed", "hello", "--json").out)
    assert value["model"] == "embed"
    assert value["content"] == "Hi"
    assert value["finish_reason"] == "length"
    assert value["tokens"] == 7
    assert value["tokens_per_second"] == 41.25
    assert value["usage"] == usage
    assert value["timings"] == TIMINGS
    assert value["reasoning"] is None
    assert 0 <= value["first_token_seconds"] <= value["seconds"]


def test_json_lines_of_a_conversation_from_a_pipe(ctl: Ctl, daemon: FakeDaemon) -> None:
    replies = [hello("one"), error(503, "queue_full", "cannot queue it"), hello("three")]
    daemon.answers[CHAT] = lambda query, body: replies.pop(0)
    result = ctl("chat", "embed", "--json", stdin="a\n\nb\nc\n")
    assert result.status == 1
    first, second, third = map(json.loads, result.out.splitlines())
    assert (first["content"], third["content"]) == ("one", "three")
    assert second["error"]["code"] == "queue_full"
    remembered = json.loads(daemon.requests[-1].body)["messages"]
    assert [m["content"] for m in remembered] == ["a", "one", "c"]


def test_errors_before_and_inside_the_stream(ctl: Ctl, daemon: FakeDaemon) -> None:
    daemon.answers[CHAT] = error(429, "queue_full", "cannot take more than 256 waiting requests")
    assert ctl("chat", "embed", "hello").err == "accelctl: cannot take more than 256 waiting requests\n"
    body = {"error": {"code": "model_failed", "message": "it broke", "tail": ["bad\x1bline"]}}
    daemon.answers[CHAT] = sse("loading", body)
    inside = ctl("chat", "embed", "hello")
    assert (inside.status, inside.out) == (1, "")
    assert inside.err.endswith("  | bad\\x1bline\naccelctl: it broke\n")
    daemon.answers[CHAT] = sse(delta("Hal"), {"error": "upstream went away"})
    half = ctl("chat", "embed", "hello")
    assert (half.status, half.out) == (1, "Hal\n")
    assert half.err == "accelctl: upstream went away\n"


def test_a_stream_that_breaks_off_or_is_nonsense(ctl: Ctl, daemon: FakeDaemon) -> None:
    for reply, words in (
        (sse(delta("Hal"), done=False), "ended early"),
        (Reply(chunks=[b"data: {]\n\n"]), "not JSON"),
        (Reply(chunks=[b"data: 7\n\n"]), "not a JSON object"),
        (Reply(chunks=[b"data: "], cut=True), "the connection to accelerd broke"),
    ):
        daemon.answers[CHAT] = reply
        result = ctl("chat", "embed", "hello")
        assert result.status in (1, 3)
        assert words in result.err


def test_mistyped_model(ctl: Ctl, daemon: FakeDaemon) -> None:
    daemon.answers[CHAT] = error(404, "model_not_found", "cannot find it")
    result = ctl("chat", "embd", "hello")
    assert result.status == 5
    assert "did you mean embed?" in result.err


def test_ask_tells_the_display_in_order(daemon: FakeDaemon) -> None:
    daemon.answers[CHAT] = sse("loading", delta("a"), delta("b"), delta(finish_reason="stop"))
    seen = Recorder()
    answer = ask(DaemonClient(daemon.path), FakeClock(), "embed", [], {}, seen)
    assert seen.seen == [
        ("waiting", "waiting for the answer"),
        ("waiting", "loading"),
        ("content", "a"),
        ("content", "b"),
    ]
    assert answer.first_token == 2.0  # one event a second: the comment, then the first piece
    assert answer.rate == 1 / (answer.seconds - 2.0)


def test_ctrl_c_ends_the_answer_and_keeps_what_came(daemon: FakeDaemon) -> None:
    class Impatient(Recorder):
        def piece(self, text: str, *, thinking: bool) -> None:
            super().piece(text, thinking=thinking)
            raise KeyboardInterrupt

    daemon.answers[CHAT] = sse(delta("a"), delta("b"), delta(finish_reason="stop"))
    answer = ask(DaemonClient(daemon.path), FakeClock(), "embed", [], {}, Impatient())
    assert (answer.content, answer.interrupted, answer.finish_reason) == ("a", True, "interrupted")


def test_rate_without_enough_to_measure() -> None:
    assert ChatAnswer("m").rate is None
    assert ChatAnswer("m", pieces=1, seconds=1.0, first_token=1.0).rate is None
    assert ChatAnswer("m", pieces=20, seconds=1.0016, first_token=1.0).rate is None, "they arrived at once"
    assert ChatAnswer("m", pieces=21, seconds=1.5, first_token=1.0).rate == 40.0


def test_sse_fields_line_ends_and_cut_events() -> None:
    lines = [
        b": why\r\n",
        b"event: x\r\n",
        b"data: one\r\n",
        b"data:two\r\n",
        b"\r\n",
        b"\n",
        b"id: 7\n",
        b"data: tail\n",
    ]
    assert list(parse_sse(lines)) == [("comment", "why"), ("data", "one\ntwo")]
