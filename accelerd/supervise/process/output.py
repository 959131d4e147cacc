"""What an engine prints: read from its pipe, kept in a bounded ring of raw bytes per model, fed to the journal.

Writing costs a memcpy; decoding, escaping and cutting lines happen when somebody reads. Never blocks on a reader and
never grows with what an engine prints: a flood stays in the pipe, which slows the engine down and not the daemon.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
from collections import deque
from collections.abc import Callable
from typing import Final

from accelerd.base.ports import Clock

RING_BYTES: Final = 100_000
FOLLOW_BYTES: Final = 256 * 1024  # what one reader may lag behind
LINE_BYTES: Final = 4096
CUT_MARK: Final = " [… line cut]"
TAIL_LINES: Final = 20
LOOKED_AT: Final = 1000  # lines a second of which it is found out whether they matter
REDACTED_BYTES: Final = 64 * 1024  # of a line without an end that a redactor looks at

# C0 but the tab, DEL, C1, line and paragraph separators, and the marks that reorder text on a terminal.
_CONTROL = [*range(0x09), *range(0x0A, 0x20), *range(0x7F, 0xA0), *range(0x2028, 0x202F), *range(0x2066, 0x206A)]
_ESCAPES: Final = {code: f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" for code in _CONTROL}


def printable(raw: bytes) -> str:
    """One line of output as text that is safe on a terminal and in a log: at most LINE_BYTES, controls escaped."""
    cut = len(raw) > LINE_BYTES
    text = raw[:LINE_BYTES].removesuffix(b"\r").decode("utf-8", "replace").translate(_ESCAPES)
    return text + CUT_MARK if cut else text


class OutputRing:
    """The newest RING_BYTES that the instances of one model printed. Survives them; used on the loop's thread."""

    def __init__(self, limit: int = RING_BYTES) -> None:
        self._limit = limit
        self._data = bytearray()
        self._followers: set[Follower] = set()
        self.total = 0  # bytes ever written: a position for `lines(since=…)`, and a sign of life

    def write(self, chunk: bytes) -> None:
        """Append, forgetting the oldest bytes."""
        self.total += len(chunk)
        self._data += chunk[-self._limit :]
        if len(self._data) > 2 * self._limit:  # trimmed only now and then, so that a byte costs O(1)
            del self._data[: -self._limit]
        for follower in self._followers:
            follower.feed(chunk)

    def lines(self, last: int | None = None, since: int = 0) -> list[str]:
        """The lines kept, oldest first: only the `last` ones, only what was written after position `since`."""
        want = min(self._limit, self.total - since, len(self._data))
        raw = bytes(self._data[len(self._data) - want :])
        pieces = raw.split(b"\n")
        if pieces[-1] == b"":
            pieces.pop()
        if want < self.total - since and len(pieces) > 1:
            del pieces[0]  # its beginning is forgotten
        if last is not None:
            pieces = pieces[-last:] if last > 0 else []
        return [printable(piece) for piece in pieces]

    def kept(self) -> bytes:
        """What the next accelerd is given of it."""
        return bytes(self._data[-self._limit :])

    def last_line(self) -> str:
        """The newest line with something on it, finished or not; empty when nothing was printed."""
        for piece in reversed(bytes(self._data[-2 * LINE_BYTES :]).split(b"\n")):
            if piece.strip():
                return printable(piece)
        return ""

    def follow(self, last: int = 0) -> Follower:
        """A reader of lines as they come, after the `last` ones: `with ring.follow() as lines: async for line in …`."""
        return Follower(self._followers, self.lines(last))

    def close(self) -> None:
        """End every reader after the lines that it still has. The daemon is shutting down."""
        for follower in tuple(self._followers):
            follower.finish()


class Follower:
    """One reader of a ring: an async iterator of printable lines. What it cannot keep up with is skipped, and noted."""

    def __init__(self, registry: set[Follower], backlog: list[str], limit: int = FOLLOW_BYTES) -> None:
        self._registry = registry
        self._ready = backlog[::-1]  # lines to hand out, the next one last
        self._limit = limit
        self._data = bytearray()
        self._skipped = 0
        self._ended = False
        self._wake = asyncio.Event()
        registry.add(self)

    def __enter__(self) -> Follower:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop listening; may be called twice."""
        self._registry.discard(self)
        self.finish()

    def finish(self) -> None:
        self._ended = True
        self._wake.set()

    def feed(self, chunk: bytes) -> None:
        """From the ring: never blocks, drops when the reader lags."""
        if self._skipped or len(self._data) + len(chunk) > self._limit:  # one gap, not many small ones
            self._skipped += len(chunk)
        else:
            self._data += chunk
        self._wake.set()

    def __aiter__(self) -> Follower:
        return self

    async def __anext__(self) -> str:
        while not self._ready:
            self._take_lines()
            if self._ready:
                break
            if self._ended:
                raise StopAsyncIteration
            self._wake.clear()
            await self._wake.wait()
        return self._ready.pop()

    def _take_lines(self) -> None:
        end = self._data.rfind(b"\n") + 1
        if not end and (self._ended or self._skipped or len(self._data) > LINE_BYTES):
            end = len(self._data)  # nothing more will come of this line, or too much
        if end:
            raw = bytes(self._data[:end])
            del self._data[:end]
            self._ready = [printable(piece) for piece in reversed(raw.removesuffix(b"\n").split(b"\n"))]
        if self._skipped and not self._data:
            self._ready.insert(0, f"[… {self._skipped} bytes of output skipped: this reader was too slow]")
            self._skipped = 0


class JournalFeed:
    """Lines of one model's output to a sink, with a log level: what matters at info, the engine's chatter at debug.

    At most `rate` lines a second are sent and LOOKED_AT are looked at; the rest is counted and said.
    """

    def __init__(self, sink: Callable[[str, int], None], clock: Clock, rate: int, *, verbose: bool = False) -> None:
        """`verbose`: chatter is sent too; else the newest of it is kept for `explain`."""
        self.notable: re.Pattern[bytes] | None = None  # the beginning of lines that matter; None: no line does
        self.errors_only = False  # of these, those with the group `error`: warnings of requests may quote them
        self._sink = sink
        self._clock = clock
        self._rate = rate
        self._verbose = verbose
        self._window = clock.monotonic()
        self._sent = self._seen = 0  # lines in this window
        self._suppressed = 0
        self._partial = b""
        self._skip = False  # until the end of a line that was cut or suppressed
        self._unsent: deque[bytes] = deque(maxlen=TAIL_LINES)

    def feed(self, chunk: bytes) -> None:
        """Take a piece of output. A flood costs one count of its newlines."""
        start = 0
        while start < len(chunk):
            if not self._open_window():
                self._suppress(chunk[start:])
                return
            end = chunk.find(b"\n", start)
            piece = chunk[start:] if end < 0 else chunk[start:end]
            start = len(chunk) if end < 0 else end + 1
            if self._skip:
                self._skip = end < 0
                continue
            # A line longer than the cap is sent once, cut; its rest is not looked at.
            self._partial += piece[: LINE_BYTES + 1 - len(self._partial)]
            if end >= 0 or len(self._partial) > LINE_BYTES:
                self._skip = end < 0
                self._take(self._partial)
                self._partial = b""

    def flush(self) -> None:
        """The instance has ended: send what is left."""
        if self._partial:
            self._take(self._partial)
        self._partial, self._skip = b"", False
        self._note()

    def explain(self) -> None:
        """It has ended although nobody asked it to: its last chatter may say why."""
        while self._unsent:
            self._sink(printable(self._unsent.popleft()), logging.INFO)

    def _open_window(self) -> bool:
        now = self._clock.monotonic()
        if now - self._window >= 1.0:
            self._note()
            self._window, self._sent, self._seen = now, 0, 0
        return self._sent < self._rate and self._seen < LOOKED_AT

    def _suppress(self, rest: bytes) -> None:
        self._suppressed += rest.count(b"\n")
        self._partial = b""
        self._skip = not rest.endswith(b"\n")

    def _take(self, raw: bytes) -> None:
        if not raw.strip():
            return
        self._seen += 1
        found = self.notable.match(raw) if self.notable is not None else None
        notable = found is not None and (not self.errors_only or found.groupdict().get("error", raw) is not None)
        if notable or self._verbose:
            self._sent += 1
            self._sink(printable(raw), logging.INFO if notable else logging.DEBUG)
        else:
            self._unsent.append(raw)

    def _note(self) -> None:
        if self._suppressed:
            level = logging.INFO if self._sent >= self._rate else logging.DEBUG
            self._sink(f"[… {self._suppressed} lines of output suppressed here]", level)
            self._suppressed = 0


class OutputRedactor:
    """A filter for the output of an engine that prints what people ask it: lines that are known to be harmless pass.

    Whole lines only: nothing passes before its end is seen. Which lines are harmless is said by the plan.
    """

    def __init__(self, harmless: str) -> None:
        """`harmless`: a regex that the beginning of a line must match."""
        self._harmless = re.compile(harmless.encode())
        self._partial = b""
        self._lost = False  # until the end of a line that is too long

    def __call__(self, chunk: bytes) -> bytes:
        """Of the lines that end in `chunk`, the harmless ones."""
        *ended, partial = (self._partial + chunk).split(b"\n")
        if ended and self._lost:
            del ended[0]
            self._lost = False
        if len(partial) > REDACTED_BYTES:
            partial, self._lost = b"", True
        self._partial = partial if not self._lost else b""
        return b"".join(line + b"\n" for line in ended if self._harmless.match(line))


READ_BYTES: Final = 64 * 1024
BURST_BYTES: Final = 256 * 1024  # of output, in one BURST_WINDOW; a flood waits in the pipe
BURST_WINDOW: Final = 0.05  # s
REST_BYTES: Final = 2 << 20  # what is read at most after the end


class OutputReader:
    """Owns the non-blocking descriptor `fd`; `on_output` gets what arrives there, on the loop's thread."""

    def __init__(self, fd: int, on_output: Callable[[bytes], None]) -> None:
        self._fd: int | None = fd
        self._on_output = on_output
        self._loop = asyncio.get_running_loop()
        self._window = 0.0
        self._window_bytes = 0
        self._resume: asyncio.TimerHandle | None = None
        self._loop.add_reader(fd, self._seen)

    def finish(self) -> None:
        """Take what is left, at most REST_BYTES, and close."""
        self._drain(REST_BYTES)
        self.close()

    def close(self) -> None:
        """What is still in the pipe stays there. May be called twice."""
        if self._resume is not None:
            self._resume.cancel()
            self._resume = None
        if self._fd is not None:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = None

    def _seen(self) -> None:
        now = self._loop.time()
        if now - self._window > BURST_WINDOW:
            self._window, self._window_bytes = now, 0
        self._window_bytes += self._drain(READ_BYTES)
        if self._window_bytes > BURST_BYTES and self._fd is not None:
            self._loop.remove_reader(self._fd)
            self._resume = self._loop.call_later(BURST_WINDOW, self._read_again)

    def _read_again(self) -> None:
        self._resume = None
        if self._fd is not None:
            self._loop.add_reader(self._fd, self._seen)

    def _drain(self, limit: int) -> int:
        taken = 0
        while taken < limit and self._fd is not None:
            try:
                chunk = os.read(self._fd, READ_BYTES)
            except BlockingIOError:
                break
            if not chunk:
                self.close()
                break
            taken += len(chunk)
            self._on_output(chunk)
        return taken
