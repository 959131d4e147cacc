"""Long work made visible: the NDJSON events of load, unload and refresh as a bar on a terminal, else as plain lines.

Imports rich only when there is a terminal to draw on. Must never change the outcome: the last event decides that.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from accelerd.base.sizes import human_size
from accelerd.cli.output import Output
from accelerd.cli.text import clip, printable, span

PLAIN_INTERVAL = 5.0  # seconds of the daemon's time between two plain lines of one state

WORDS = {
    "queued": "waits for room",
    "starting": "loading",
    "draining": "waits for running requests",
    "stopping": "stopping",
    "killing": "does not stop, killed",
    "backoff": "waits before the next try",
}
PULLING = "pulls the image"
FETCHING = "fetches the model"
MEASURED = ("starting", PULLING, FETCHING)  # states in which bytes say how far it is


class Display(Protocol):
    def show(self, event: dict[str, Any]) -> None: ...


def follow(out: Output, model: str, events: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Show every progress event; return the last event, which is none."""
    last: dict[str, Any] = {}
    with display(out, model) as shown:
        for event in events:
            last = event
            if event.get("event") == "progress":
                shown.show(event)
    return last


def amount(event: dict[str, Any]) -> str:
    """Bytes so far, of what is expected where that is known."""
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


class Silent:
    """--json: only the outcome counts."""

    def show(self, event: dict[str, Any]) -> None:
        """Nothing is shown."""


class Plain:
    """One line per change of state, and one every few seconds."""

    def __init__(self, out: Output, model: str) -> None:
        self._out = out
        self._model = model
        self._state = ""
        self._shown_at = 0.0

    def show(self, event: dict[str, Any]) -> None:
        state, elapsed = str(event.get("state")), float(event.get("elapsed") or 0)
        if state == self._state and elapsed - self._shown_at < PLAIN_INTERVAL:
            return
        self._state, self._shown_at = state, elapsed
        facts = [span(elapsed), amount(event), printable(str(event.get("line") or ""))]
        self._out.note(f"{self._model}: {WORDS.get(state, state)} ({'; '.join(fact for fact in facts if fact)})")


class Bar:
    """Two lines on a terminal, drawn by rich: the bar, and what the engine printed last."""

    def __init__(self, out: Output, model: str) -> None:
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

        state = str(event.get("state"))
        done = fraction(event)
        grid = Table.grid(padding=(0, 1))
        elapsed = span(event.get("elapsed") or 0)
        time = f"{elapsed} of about {span(event['expected'])}" if event.get("expected") else elapsed
        bar = ProgressBar(total=1.0, completed=done or 0.0, pulse=done is None, width=max(self._console.width - 64, 10))
        grid.add_row(Text(self._model, "bold"), WORDS.get(state, state), bar, Text(time), Text(amount(event), "cyan"))
        line = clip(printable(str(event.get("line") or "")), self._console.width - 4)
        self.live.update(Group(grid, Text(f"  {line}", "dim", no_wrap=True)))


@contextmanager
def display(out: Output, model: str) -> Iterator[Display]:
    """The right display for where the output goes."""
    if out.json_mode:
        yield Silent()
    elif not out.live:
        yield Plain(out, model)
    else:
        bar = Bar(out, model)
        with bar.live:
            yield bar
