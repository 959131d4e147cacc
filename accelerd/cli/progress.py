"""Shows the NDJSON progress events of long operations: as a bar on a terminal, else as lines.

Imports rich only when there is a terminal to draw on. Must never change the outcome: the last event decides that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from accelerd.base.sizes import human_size
from accelerd.cli.output import CliOutput
from accelerd.cli.text import clip, printable, span

LINE_INTERVAL = 5.0  # seconds of the daemon's time between two lines about one state

WORDS = {
    "queued": "waiting for memory",
    "starting": "loading",
    "draining": "waiting for running requests",
    "stopping": "stopping",
    "killing": "not responding, being killed",
    "backoff": "waiting before the next attempt",
    "pulling": "pulling the image",
    "fetching": "downloading the model",
}
MEASURED = ("starting", "pulling", "fetching")  # states whose bytes and times say how far they are

ShowEvent = Callable[[dict[str, Any]], None]


def follow(out: CliOutput, model: str, events: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Show every progress event; return the last event."""
    last: dict[str, Any] = {}
    with display(out, model) as show:
        for event in events:
            last = event
            if event.get("event") == "progress":
                show(event)
    return last


def amount(event: dict[str, Any]) -> str:
    """Bytes so far, and how many are expected where that is known."""
    if not event.get("memory"):
        return ""
    expected = event.get("memory_expected")
    return human_size(event["memory"]) + (f" of {human_size(expected)}" if expected else "")


def fraction(event: dict[str, Any]) -> float | None:
    """How far a load or a pull is, from 0 to 0.99, by time and by bytes; None when neither is known."""
    shares = [
        event[part] / event[whole]
        for part, whole in (("elapsed", "expected"), ("memory", "memory_expected"))
        if event.get(whole) and event.get(part) is not None
    ]
    return min(max(shares), 0.99) if shares and event.get("state") in MEASURED else None


def in_words(event: dict[str, Any]) -> str:
    """The state as a person reads it; an event may bring words of its own."""
    state = str(event.get("state"))
    return str(event.get("words") or WORDS.get(state, state))


class ProgressLines:
    """A line for each change of state, and one every few seconds."""

    def __init__(self, out: CliOutput, model: str) -> None:
        self._out = out
        self._model = model
        self._state = ""
        self._shown_at = 0.0

    def show(self, event: dict[str, Any]) -> None:
        state, elapsed = str(event.get("state")), float(event.get("elapsed") or 0)
        if state == self._state and elapsed - self._shown_at < LINE_INTERVAL:
            return
        self._state, self._shown_at = state, elapsed
        facts = [span(elapsed), amount(event), printable(str(event.get("line") or ""))]
        self._out.note(f"{self._model}: {in_words(event)} ({'; '.join(fact for fact in facts if fact)})")


class TerminalProgress:
    """Two lines on a terminal, drawn by rich: the bar, and what the engine printed last."""

    def __init__(self, out: CliOutput, model: str) -> None:
        from rich.console import Console
        from rich.live import Live

        self._model = model
        self._console = Console(file=out.stderr, highlight=False)
        self.live = Live(console=self._console, transient=True, auto_refresh=True, refresh_per_second=8)

    def show(self, event: dict[str, Any]) -> None:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        done = fraction(event)
        grid = Table.grid(padding=(0, 1))
        elapsed = span(event.get("elapsed") or 0)
        time = f"{elapsed} of about {span(event['expected'])}" if event.get("expected") else elapsed
        bar = ProgressBar(total=1.0, completed=done or 0.0, pulse=done is None, width=max(self._console.width - 64, 10))
        grid.add_row(Text(self._model, "bold"), in_words(event), bar, Text(time), Text(amount(event), "cyan"))
        line = clip(printable(str(event.get("line") or "")), self._console.width - 4)
        self.live.update(Group(grid, Text(f"  {line}", "dim", no_wrap=True)))


@contextmanager
def display(out: CliOutput, model: str) -> Iterator[ShowEvent]:
    """What shows events where the output goes; with --json only the outcome is printed."""
    if out.json_mode:
        yield lambda event: None
    elif not out.live:
        yield ProgressLines(out, model).show
    else:
        bar = TerminalProgress(out, model)
        with bar.live:
            yield bar.show
