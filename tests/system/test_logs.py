"""Logging: the journal's protocol, the terminal, escaping, and strangers who cannot flood or forge it."""

from __future__ import annotations

import array
import logging
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from accelerd.base import names
from accelerd.system.journal import JournalClient, JournalHandler, is_journal_stream, priority, serialize
from accelerd.system.logs import TerminalHandler, configure, wants_colour
from accelerd.system.records import NOTICE, escape, event

MESSAGE_ID = names.MSG_STATE_CHANGED


class Journald:
    """journald's end of the native protocol."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))
        self.socket.settimeout(5)

    def entry(self) -> dict[str, str]:
        """The next entry, out of a datagram or a sealed memfd."""
        data, ancillary, _, _ = self.socket.recvmsg(1 << 20, socket.CMSG_SPACE(4))
        for _, kind, content in ancillary:
            assert kind == socket.SCM_RIGHTS
            with os.fdopen(array.array("i", content)[0], "rb") as file:
                data = os.pread(file.fileno(), 1 << 26, 0)
                with pytest.raises(PermissionError):
                    os.ftruncate(file.fileno(), 0)  # sealed: the sender cannot change it under the reader's eyes
        return parse(data)


def parse(data: bytes) -> dict[str, str]:
    fields: dict[str, str] = {}
    while data:
        line, _, data = data.partition(b"\n")
        name, equals, value = line.partition(b"=")
        if not equals:
            (size,) = struct.unpack_from("<Q", data)
            value, data = data[8 : 8 + size], data[9 + size :]
        assert name.decode() not in fields
        fields[name.decode()] = value.decode()
    return fields


@pytest.fixture
def journald(tmp_path: Path) -> Iterator[Journald]:
    end = Journald(tmp_path / "socket")
    yield end
    end.socket.close()


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    """A logger of the test's own, so that nothing else hears it."""
    own = logging.Logger("accelerd.test", logging.DEBUG)
    yield own
    for handler in own.handlers:
        handler.close()


@pytest.fixture
def journal(journald: Journald, logger: logging.Logger) -> JournalHandler:
    handler = JournalHandler(JournalClient(journald.path))
    logger.addHandler(handler)
    return handler


def test_an_event_arrives_with_fields_place_and_message_id(
    journald: Journald, journal: JournalHandler, logger: logging.Logger
) -> None:
    event(logger, logging.WARNING, "100% ready", message_id=MESSAGE_ID, model="qwen", state_to="ready", reason=None)
    entry = journald.entry()
    assert int(entry.pop("CODE_LINE")) > 0
    assert entry == {
        "ACCELERD_MODEL": "qwen",
        "ACCELERD_STATE_TO": "ready",
        "PRIORITY": "4",
        "SYSLOG_IDENTIFIER": "accelerd",
        "MESSAGE": "100% ready",
        "LOGGER": "accelerd.test",
        "CODE_FILE": __file__,
        "CODE_FUNC": "test_an_event_arrives_with_fields_place_and_message_id",
        "MESSAGE_ID": MESSAGE_ID,
    }


def test_plain_logging_calls_may_carry_fields_too(
    journald: Journald, journal: JournalHandler, logger: logging.Logger
) -> None:
    extra = {"fields": {"ACCELERD_CHILD_PID": 7, "_UID": "0", "lower": "x", "A=B": "x"}, "message_id": MESSAGE_ID}
    logger.info("started %s", "qwen", extra=extra)
    entry = journald.entry()
    assert (entry["MESSAGE"], entry["ACCELERD_CHILD_PID"], entry["MESSAGE_ID"]) == ("started qwen", "7", MESSAGE_ID)
    assert not {"_UID", "lower", "A"} & set(entry)


def test_a_stranger_cannot_forge_lines_or_fields(
    journald: Journald, journal: JournalHandler, logger: logging.Logger
) -> None:
    evil = "x\nPRIORITY=0\r\x1b[2J\x9b\u2028\u202e\ud800\x00"
    event(logger, logging.INFO, f"model {evil}", model=evil, priority_="1", PRIORITY="0", MESSAGE="forged")
    entry = journald.entry()
    shown = "x\\nPRIORITY=0\\r\\e[2J\\x9b\\u2028\\u202e\\ud800\\x00"
    assert entry["MESSAGE"] == f"model {shown}"
    assert entry["ACCELERD_MODEL"] == shown
    assert entry["PRIORITY"] == "6"


def test_a_value_with_newlines_goes_by_length() -> None:
    entry = {"MESSAGE": "one\nPRIORITY=0\ntwo", "PRIORITY": "6"}
    assert parse(serialize(entry)) == entry


def test_an_exception_keeps_its_traceback_with_escaped_lines(
    journald: Journald, journal: JournalHandler, logger: logging.Logger
) -> None:
    try:
        raise ValueError("bad \x1b[31mthing")
    except ValueError:
        logger.exception("cannot do it")
    message = journald.entry()["MESSAGE"]
    assert message.startswith("cannot do it\nTraceback (most recent call last):\n")
    assert message.endswith("ValueError: bad \\e[31mthing")


def test_a_call_with_wrong_arguments_is_logged_and_not_raised(
    journald: Journald, journal: JournalHandler, logger: logging.Logger
) -> None:
    logger.info("%d models", "many")
    assert "'%d models' (cannot format: TypeError" in journald.entry()["MESSAGE"]


def test_a_large_entry_goes_by_sealed_memfd(journald: Journald) -> None:
    client = JournalClient(journald.path)
    text = "x" * (12 << 20)
    assert client.send({"MESSAGE": text})
    assert journald.entry() == {"MESSAGE": text}
    client.close()


def test_a_dead_journal_costs_messages_and_nothing_else(
    journald: Journald, journal: JournalHandler, logger: logging.Logger
) -> None:
    journald.socket.close()
    logger.info("lost")
    journald.path.unlink()
    logger.info("lost too")
    assert journal.dropped == 2
    again = Journald(journald.path)
    logger.info("here again")
    assert again.entry()["MESSAGE"] == "2 log messages were lost: the journal did not accept them"
    assert again.entry()["MESSAGE"] == "here again"
    assert journal.dropped == 0
    again.socket.close()


def test_a_journal_that_reads_nothing_never_blocks(journal: JournalHandler, logger: logging.Logger) -> None:
    for _ in range(5000):
        logger.info("x" * 4000)
    assert journal.dropped > 0


def test_priorities_are_those_of_syslog() -> None:
    levels = (logging.CRITICAL, logging.ERROR, logging.WARNING, NOTICE, logging.INFO, logging.DEBUG)
    assert [priority(level) for level in levels] == [2, 3, 4, 5, 6, 7]


def test_the_journal_is_chosen_only_when_it_reads_this_very_stream(tmp_path: Path) -> None:
    read, write = os.pipe()
    try:
        found = os.fstat(write)
        assert is_journal_stream(f"{found.st_dev}:{found.st_ino}", write)
        for other in (f"{found.st_dev}:{found.st_ino + 1}", "", ":", "8:x", f"{found.st_ino}"):
            assert not is_journal_stream(other, write)
        assert not is_journal_stream(f"{found.st_dev}:{found.st_ino}", 9999)
    finally:
        os.close(read)
        os.close(write)


# --- terminal ---


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


def test_the_terminal_shows_time_level_model_and_text(pipe: tuple[int, int], logger: logging.Logger) -> None:
    logger.addHandler(TerminalHandler(pipe[1], colour=False))
    event(logger, logging.INFO, "ready after 2.1 s", model="qwen")
    line = os.read(pipe[0], 1000).decode()
    assert line[2] == line[5] == ":"
    assert line[8:] == " info     qwen: ready after 2.1 s\n"


def test_colours_frame_and_never_come_from_the_text(pipe: tuple[int, int], logger: logging.Logger) -> None:
    logger.addHandler(TerminalHandler(pipe[1], colour=True))
    event(logger, logging.ERROR, "bad \x1b[2J", model="q")
    line = os.read(pipe[0], 1000).decode()
    assert "\x1b[31merror   \x1b[0m \x1b[1;34mq\x1b[0m: bad \\e[2J\n" in line


def test_a_reader_who_stopped_costs_messages_and_not_time(pipe: tuple[int, int], logger: logging.Logger) -> None:
    handler = TerminalHandler(pipe[1], colour=False)
    logger.addHandler(handler)
    for _ in range(100):
        logger.info("y" * 2000)
    assert handler.dropped > 0
    while len(os.read(pipe[0], 1 << 20)) == 1 << 20:
        continue
    logger.info("back")
    assert b"log messages were lost: the output was blocked" in os.read(pipe[0], 1 << 20)
    assert handler.dropped == 0


def test_a_terminal_that_has_gone_is_survived(logger: logging.Logger) -> None:
    read, write = os.pipe()
    os.close(read)
    handler = TerminalHandler(write, colour=False)
    logger.addHandler(handler)
    logger.info("anybody?")
    os.close(write)
    logger.info("anybody?")
    assert handler.dropped == 2


def test_colour_is_for_terminals_that_want_it(pipe: tuple[int, int]) -> None:
    leader, follower = os.openpty()
    try:
        assert wants_colour(follower, {"TERM": "xterm"})
        assert not wants_colour(follower, {"TERM": "dumb"})
        assert not wants_colour(follower, {"TERM": "xterm", "NO_COLOR": "1"})
        assert not wants_colour(pipe[1], {"TERM": "xterm"})
    finally:
        os.close(leader)
        os.close(follower)


def test_escape_leaves_what_people_write() -> None:
    assert escape("größtes 模型 🦙") == "größtes 模型 🦙"


# --- configure ---


@pytest.fixture
def root() -> Iterator[logging.Logger]:
    """The root logger, put back afterwards."""
    logger = logging.getLogger()
    level, handlers = logger.level, list(logger.handlers)
    yield logger
    for handler in set(logger.handlers) - set(handlers):
        logger.removeHandler(handler)
        handler.close()
    logger.setLevel(level)


def test_configure_chooses_the_handler_and_is_repeatable(
    root: logging.Logger, pipe: tuple[int, int], journald: Journald
) -> None:
    found = os.fstat(pipe[1])
    first = configure("debug", env={}, fd=pipe[1])
    assert isinstance(first, TerminalHandler)
    stream = {"JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino}", names.ENV_LOG_LEVEL: "warning"}
    second = configure(env=stream, fd=pipe[1], journal=journald.path)
    assert isinstance(second, JournalHandler)
    assert first not in root.handlers
    assert root.level == logging.WARNING
    logging.getLogger("accelerd.any").warning("to the journal")
    assert journald.entry()["MESSAGE"] == "to the journal"


def test_an_unknown_level_is_refused(root: logging.Logger) -> None:
    with pytest.raises(ValueError, match="cannot use log level 'loud': choose one of debug, info"):
        configure("loud", env={})


def test_a_record_that_cannot_be_sent_is_counted_and_never_printed_or_raised(
    capsys: pytest.CaptureFixture[str], journald: Journald, journal: JournalHandler, pipe: tuple[int, int]
) -> None:
    class Evil:
        def __str__(self) -> str:
            raise RuntimeError("no")

    record = logging.LogRecord("x", logging.INFO, __file__, 1, "text", (), None)
    record.fields = {"A": Evil()}
    terminal = TerminalHandler(pipe[1], colour=False)
    for handler in (journal, terminal):
        handler.handle(record)
        assert handler.dropped == 1
    assert capsys.readouterr().err == ""
