"""What accelctl prints: text for people, one JSON value for programs, colour only on a terminal that wants it.

Owns stdout and stderr of the process. Every string from outside goes through `printable`: it may contain control
sequences.
"""

from __future__ import annotations

import io
import json
import os
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from accelerd.cli.failure import Failure
from accelerd.cli.text import clip, printable, width

STYLES = {
    "bold": "1",
    "dim": "2",
    "red": "31",
    "green": "32",
    "yellow": "33",
    "blue": "34",
    "magenta": "35",
    "cyan": "36",
}
BLOCKS = "█▒░▚▁·"  # what a stream must be able to write for bars to be drawn with more than ASCII
MAX_WIDTH = 120


class CliOutput:
    """`json_mode` replaces every `line` and `table` by the one `result`."""

    def __init__(self, stdout: TextIO, stderr: TextIO, env: Mapping[str, str], *, json_mode: bool = False) -> None:
        self.stdout = stdout
        self.stderr = stderr
        self.json_mode = json_mode
        self.tty = stdout.isatty()
        self.tty_errors = stderr.isatty()
        self._colours = not env.get("NO_COLOR") and env.get("TERM", "dumb") != "dumb"

    @property
    def live(self) -> bool:
        """May a progress display move the cursor on stderr?"""
        return self.tty_errors and self._colours and not self.json_mode

    @property
    def columns(self) -> int:
        return min(self._columns_of(self.stdout), MAX_WIDTH) if self.tty else MAX_WIDTH

    @property
    def blocks(self) -> bool:
        """Can bars be drawn with more than ASCII?"""
        try:
            BLOCKS.encode(getattr(self.stdout, "encoding", None) or "utf-8")
        except (LookupError, UnicodeEncodeError):
            return False
        return True

    @property
    def error_columns(self) -> int:
        return self._columns_of(self.stderr)

    def _columns_of(self, stream: TextIO) -> int:
        try:
            return os.get_terminal_size(stream.fileno()).columns or 80
        except OSError:
            return 80

    def style(self, text: str, *styles: str, errors: bool = False) -> str:
        """The text in colour, or as it is where colour is not wanted."""
        on_tty = self.tty_errors if errors else self.tty
        codes = ";".join(STYLES[name] for name in styles if name)
        return f"\x1b[{codes}m{text}\x1b[0m" if codes and on_tty and self._colours else text

    def line(self, text: str = "") -> None:
        if not self.json_mode:
            print(text, file=self.stdout)

    def wrapped(self, text: str, indent: str = "", first: str | None = None, style: str = "") -> None:
        lines = textwrap.wrap(
            printable(text), self.columns, initial_indent=indent if first is None else first, subsequent_indent=indent,
            break_long_words=False, break_on_hyphens=False,
        )  # fmt: skip
        for line in lines:
            self.line(self.style(line, style))

    def result(self, value: Any) -> None:
        """The one JSON value of a command; nothing without --json."""
        if self.json_mode:
            print(json.dumps(value, indent=2, ensure_ascii=False), file=self.stdout)

    def problems(self, problems: Sequence[Mapping[str, Any]]) -> None:
        """Mistakes of a configuration, in the form that editors jump to: "file:line: error: key: message"."""
        for problem in problems:
            file, line = problem.get("file"), problem.get("line")
            where = f"{file}:{line}" if file and line else str(file or "configuration")
            word = (
                self.style("warning", "yellow") if problem.get("severity") == "warning" else self.style("error", "red")
            )
            key = f"{problem['key']}: " if problem.get("key") else ""
            self.line(f"{printable(where)}: {word}: {printable(key + str(problem.get('message')))}")

    def json_line(self, value: Any) -> None:
        if self.json_mode:
            print(json.dumps(value, ensure_ascii=False), file=self.stdout, flush=True)

    def note(self, text: str) -> None:
        """A line beside the result: stderr, so that a pipe gets the result only."""
        print(self.style(text, "dim", errors=True), file=self.stderr, flush=True)

    def failure(self, failure: Failure) -> None:
        """One line on stderr with what to do; the engine's last lines before it. With --json one object on stdout."""
        if self.json_mode:
            self.result(failure.json())
            return
        for line in failure.tail:
            print(self.style(f"  | {printable(line)}", "dim", errors=True), file=self.stderr)
        mark = self.style("accelctl:", "bold", "red", errors=True)
        text = printable(failure.message)
        if failure.hint:
            text += f"{';' if not text.endswith(('.', '?')) else ''} {printable(failure.hint)}"
        columns = self.error_columns - len("accelctl: ")
        lines = (
            textwrap.wrap(text, columns, break_long_words=False, break_on_hyphens=False) if self.tty_errors else [text]
        )
        print(mark, "\n          ".join(lines), file=self.stderr, flush=True)

    def table(self, head: Sequence[str], rows: Sequence[Sequence[str]], styles: Sequence[Sequence[str]] = ()) -> None:
        """Left-aligned columns that fit the terminal: the widest gives way. `styles` go with the cells of `rows`."""
        cells = [[printable(cell) for cell in row] for row in rows]
        widths = [max(width(row[i]) for row in [list(head), *cells]) for i in range(len(head))]
        while sum(widths) + 2 * (len(widths) - 1) > self.columns and max(widths) > 8:
            widths[widths.index(max(widths))] -= 1
        self.line(self.style(join(head, widths), "dim"))
        for number, row in enumerate(cells):
            clipped = [clip(cell, widths[i]) for i, cell in enumerate(row)]
            marks = styles[number] if number < len(styles) else [""] * len(row)
            padded = [cell + " " * (widths[i] - width(cell)) for i, cell in enumerate(clipped)]
            padded[-1] = clipped[-1]
            self.line("  ".join(self.style(cell, mark) for cell, mark in zip(padded, marks, strict=True)).rstrip())

    def silence(self) -> None:
        """The reader of stdout has gone: let the interpreter's last flush go nowhere."""
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, self.stdout.fileno())
        os.close(null)


class OutputPage(CliOutput):
    """Output that is kept as text instead of printed, as wide and as colourful as that of a real one."""

    def __init__(self, real: CliOutput, env: Mapping[str, str]) -> None:
        self._buffer = io.StringIO()
        super().__init__(self._buffer, real.stderr, env)
        self.tty = real.tty
        self._real = real

    def text(self) -> str:
        return self._buffer.getvalue()

    @property
    def columns(self) -> int:
        return self._real.columns

    @property
    def blocks(self) -> bool:
        return self._real.blocks


def join(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join(cell + " " * (widths[i] - width(cell)) for i, cell in enumerate(cells)).rstrip()
