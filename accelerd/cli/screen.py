"""Prints an answer while it streams: text to stdout as it arrives, a spinner on stderr until it does.

Imports rich for the spinner only, and only on a terminal. Control characters of a model's text other than newline and
tab are escaped: a terminal could obey them.
"""

from __future__ import annotations

from typing import Any

from accelerd.cli.answer import ChatAnswer
from accelerd.cli.output import CliOutput
from accelerd.cli.text import count, escape, printable, span


class AnswerPrinter:
    """Shows one answer; `close` must be called in the end."""

    def __init__(self, out: CliOutput) -> None:
        self._out = out
        self._spinner: Any = None
        self._said = ""
        self._thinking = False
        self._at_line_start = True

    def waiting(self, why: str) -> None:
        if self._out.live:
            self._spin(printable(why))
        elif why != self._said and self._said and not self._out.json_mode:
            self._out.note(printable(why))
        self._said = why

    def _spin(self, why: str) -> None:
        from rich.text import Text

        if self._spinner is None:
            from rich.console import Console

            self._spinner = Console(file=self._out.stderr, highlight=False).status(Text(why, "dim"))
            self._spinner.start()
        else:
            self._spinner.update(Text(why, "dim"))

    def piece(self, text: str, *, thinking: bool) -> None:
        self.stop_spinner()
        if self._out.json_mode:
            return
        safe = "".join(c if c.isprintable() or c in "\n\t" else escape(c) for c in text)
        if thinking != self._thinking:
            if self._thinking and not self._at_line_start:
                safe = f"\n\n{safe.lstrip()}"
            self._thinking = thinking
        self._at_line_start = safe.endswith("\n") if safe else self._at_line_start
        # thinking is no part of the answer: a pipe must not get it
        stream = self._out.stderr if thinking else self._out.stdout
        stream.write(self._out.style(safe, "dim" if thinking else "", errors=thinking))
        stream.flush()

    def stop_spinner(self) -> None:
        if self._spinner is not None:
            self._spinner.stop()
            self._spinner = None

    def close(self) -> None:
        """End the line of the answer, whatever ended the answer."""
        self.stop_spinner()
        if not self._at_line_start:
            self._out.line()
            self._at_line_start = True


def summary(answer: ChatAnswer) -> str:
    """The line of numbers below an answer."""
    parts = [count(answer.tokens, "token")]
    if answer.rate is not None:
        parts.append(f"{answer.rate:.1f} tokens/s")
    if answer.first_token is not None:
        parts.append(f"first token after {span(answer.first_token)}")
    if answer.interrupted:
        parts.append("interrupted")
    elif answer.finish_reason == "length":
        parts.append("cut off at the token limit")
    return " · ".join(parts)
