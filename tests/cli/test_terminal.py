"""accelctl on a real terminal: a conversation, and Ctrl-C that ends the answer and not the program."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from .conftest import Ctl
from .fake_daemon import FLEET, FakeDaemon, Reply, delta, status

# The terminal must be the child's controlling one: otherwise it sends no signal for Ctrl-C.
PROGRAM = (
    "import fcntl, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0);"
    "from accelerd.cli import main; sys.exit(main(sys.argv[1:]))"
)


class Terminal:
    """The other end of the terminal."""

    def __init__(self, descriptor: int, process: subprocess.Popen[bytes]) -> None:
        self._descriptor = descriptor
        self.process = process
        self.text = ""

    def expect(self, words: str) -> str:
        """Read until the words have come; what came before them is forgotten. Fails after 20 s of silence."""
        while words not in self.text:
            ready, _, _ = select.select([self._descriptor], [], [], 20)
            assert ready, f"waited for {words!r}, got {self.text!r}"
            self.text += os.read(self._descriptor, 4096).decode()
        before, _, self.text = self.text.partition(words)
        return before

    def type(self, text: str) -> None:
        os.write(self._descriptor, text.encode())


@contextmanager
def terminal(ctl: Ctl, *argv: str) -> Iterator[Terminal]:
    ours, theirs = os.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *argv], stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
        env=ctl.env | {"NO_COLOR": "1"},
        preexec_fn=hear_ctrl_c,
    )  # fmt: skip
    os.close(theirs)
    try:
        yield Terminal(ours, process)
        process.wait(20)
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def hear_ctrl_c() -> None:
    """Where the tests run in the background of a script, SIGINT is ignored, and that is inherited."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_conversation_remembers_and_ctrl_c_ends_only_the_answer(ctl: Ctl, daemon: FakeDaemon) -> None:
    gone = threading.Event()
    asked: list[list[str]] = []

    def chat(query: dict[str, str], body: bytes) -> Reply:
        messages = [m["content"] for m in json.loads(body)["messages"]]
        asked.append(messages)

        def endless() -> Iterator[bytes]:
            try:
                while True:
                    yield b"data: %s\n\n" % json.dumps(delta("again ")).encode()
                    threading.Event().wait(0.01)
            finally:
                gone.set()

        finite = [f"data: {json.dumps(item)}\n\n".encode() for item in (delta("fine"), delta(finish_reason="stop"))]
        return Reply(chunks=endless() if messages[-1] == "endless" else finite)

    daemon.answers["POST /v1/chat/completions"] = chat
    with terminal(ctl, "chat", "embed") as tty:
        tty.expect("> ")
        tty.type("hello\n")
        tty.expect("fine")
        tty.expect("1 token ")
        tty.expect("> ")
        tty.type("endless\n")
        tty.expect("again again")
        tty.type("\x03")
        tty.expect("interrupted")
        assert gone.wait(20), "the request was not ended"
        tty.expect("> ")
        tty.type("\x03")
        tty.expect("/exit or Ctrl-D quits")
        tty.expect("> ")
        tty.type("/new\n")
        tty.expect("new conversation")
        tty.expect("> ")
        tty.type("/system be kind\n")
        tty.expect("instructions set")
        tty.expect("> ")
        tty.type("once more\n")
        tty.expect("fine")
        tty.expect("> ")
        tty.type("/exit\n")
    assert tty.process.returncode == 0
    assert asked[0] == ["hello"]
    assert asked[1] == ["hello", "fine", "endless"]
    assert asked[2] == ["be kind", "once more"]


def test_ctrl_d_ends_the_conversation(ctl: Ctl, daemon: FakeDaemon) -> None:
    with terminal(ctl, "chat", "embed") as tty:
        tty.expect("> ")
        tty.type("/help\n")
        tty.expect("/exit quits")
        tty.expect("> ")
        tty.type("\x04")
    assert tty.process.returncode == 0


@pytest.mark.parametrize("word", ["/bye", "/quit"])
def test_habits_of_other_programs_end_the_conversation_too(ctl: Ctl, daemon: FakeDaemon, word: str) -> None:
    answer = status({**FLEET[2], "aliases": ["claude-*"]})
    daemon.answers["GET status"] = Reply(answer)
    with terminal(ctl, "chat", "claude-x") as tty:  # a name that only a pattern matches
        tty.expect("> ")
        tty.type(f"{word}\n")
    assert tty.process.returncode == 0


@pytest.mark.parametrize(
    "names",
    [{"hidden_aliases": ["x"]}, {"hidden_aliases": ["x*"]}, {"variants": [{"name": "x"}]},
     {"variants": [{"name": "y", "aliases": ["x"]}]}],
)  # fmt: skip
def test_a_conversation_by_a_name_that_is_not_listed(ctl: Ctl, daemon: FakeDaemon, names: dict[str, Any]) -> None:
    daemon.answers["GET status"] = Reply(status({**FLEET[2], **names}))
    with terminal(ctl, "chat", "x") as tty:
        tty.expect("> ")
        tty.type("\x04")
    assert tty.process.returncode == 0


def test_a_conversation_with_nobody_does_not_begin(ctl: Ctl, daemon: FakeDaemon) -> None:
    with terminal(ctl, "chat", "embd") as tty:
        tty.expect("did you mean embed?")
    assert tty.process.returncode == 5


def test_ctrl_c_while_a_model_loads(ctl: Ctl, daemon: FakeDaemon) -> None:
    left = threading.Event()

    def slow() -> Iterator[bytes]:
        try:
            while True:
                yield b'{"event": "progress", "state": "starting", "elapsed": 1.0}\n'
                threading.Event().wait(0.01)
        finally:
            left.set()

    daemon.answers["POST load"] = Reply(chunks=slow())
    with terminal(ctl, "load", "embed") as tty:
        tty.expect("embed: loading")
        tty.type("\x03")
        tty.expect("interrupted")
    assert tty.process.returncode == 130
    assert left.wait(20)
