"""Shows the NDJSON progress events of long operations: as a bar on a terminal, else as lines.

Imports rich only when there is a terminal to draw on. Must never change the outcome: the last event decides that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from accelerd.base.sizes import human_size
from accelerd.cli.output import CliOutput
from accelerd.cli.text import clip, printable, span

if TYPE_CHECKING:
    from rich.console import RenderableType

LINE_INTERVAL = 5.0  # seconds of the daemon's time between two lines about one state

WORDS = {
    "queued": "waiting for memory",
    "starting": "loading",
    "draining": "waiting for running requests",
    "offloading": "moving its weights to main memory",
    "waking": "moving its weights back to the GPU",
    "stopping": "stopping",
    "killing": "not responding, being killed",
    "backoff": "waiting before the next attempt",
    "pulling": "pulling the image",
    "fetching": "downloading the model",
    "downloading": "downloading the model",
}
FETCHES = ("fetching", "downloading")  # states whose bytes may be those of an earlier attempt
MEASURED = ("starting", "pulling", "fetching", "downloading")  # states whose bytes and times say how far they are


def follow(
    out: CliOutput, model: str, events: Iterable[dict[str, Any]], left: Callable[[str], str] | None = None
) -> dict[str, Any]:
    """Show every progress event; return the last event. `left`: what a Ctrl-C in a state leaves, for the user."""
    last: dict[str, Any] = {}
    try:
        with display(out, ProgressLines(model), lambda event: drawing(model, event, out.error_columns)) as show:
            for event in events:
                last = event
                if event.get("event") == "progress":
                    show(with_download(event))
    except KeyboardInterrupt:
        said = left(str(last.get("state", ""))) if left is not None else ""
        raise KeyboardInterrupt(*filter(None, [said])) from None
    return last


def with_download(event: dict[str, Any]) -> dict[str, Any]:
    """The event; what is said of a download has the keys that a load's memory has."""
    at = event.get("download") or event
    if "bytes" not in at:
        return event
    told = {"memory": at["bytes"], "memory_expected": at.get("total") or None, "line": at.get("file")}
    rate, remaining = at.get("rate"), at.get("remaining")
    return {"state": "fetching", **event, **told, "rate": rate, "remaining": remaining, "expected": None}


def amount(event: dict[str, Any]) -> str:
    """Bytes so far, how many are expected, how fast they come and how long it takes, where that is known."""
    if not event.get("memory"):
        return ""
    expected = event.get("memory_expected")
    parts = [human_size(event["memory"]) + (f" of {human_size(expected)}" if expected else "")]
    if event.get("rate"):
        parts.append(f"{human_size(event['rate'])}/s")
    left = human_size(expected - event["memory"]) if expected and event.get("state") in FETCHES else ""
    if event.get("remaining") is not None:
        left += f"{' and ' if left else ''}{span(event['remaining'])}"
    if left:
        parts.append(f"{left} left")
    return ", ".join(parts)


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
    """The line for each change of state, and one every few seconds."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._state = ""
        self._shown_at = 0.0

    def __call__(self, event: dict[str, Any]) -> str | None:
        state, elapsed = str(event.get("state")), float(event.get("elapsed") or 0)
        if state == self._state and elapsed - self._shown_at < LINE_INTERVAL:
            return None
        self._state, self._shown_at = state, elapsed
        facts = [span(elapsed), amount(event), printable(str(event.get("line") or ""))]
        return f"{self._model}: {in_words(event)} ({'; '.join(fact for fact in facts if fact)})"


def drawing(model: str, event: dict[str, Any], columns: int) -> RenderableType:
    """Two lines on a terminal: the bar; how much, how fast, and what the engine printed last."""
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    done, words, elapsed = fraction(event), in_words(event), span(event.get("elapsed") or 0)
    time = f"{elapsed} of about {span(event['expected'])}" if event.get("expected") else elapsed
    left = columns - sum(map(len, (model, words, time))) - 6
    bar = ProgressBar(total=1.0, completed=done or 0.0, pulse=done is None, width=min(max(left, 10), 60))
    grid = Table.grid(padding=(0, 1))
    grid.add_row(Text(model, "bold"), words, bar, Text(time))
    facts = (amount(event), printable(str(event.get("line") or "")))
    below = clip(" · ".join(fact for fact in facts if fact), columns - 4)
    return Group(grid, Text(f"  {below}", "dim", no_wrap=True))


@contextmanager
def display(
    out: CliOutput, line: Callable[..., str | None], draw: Callable[..., RenderableType]
) -> Iterator[Callable[..., None]]:
    """What shows a step where the output goes: as `draw` on a terminal, else as `line`; nowhere with --json."""
    if out.json_mode:
        yield lambda *step: None
    elif not out.live:

        def note(*step: Any) -> None:
            if text := line(*step):
                out.note(text)

        yield note
    else:
        from rich.console import Console
        from rich.live import Live

        console = Console(file=out.stderr, highlight=False)
        with Live(console=console, transient=True, refresh_per_second=8) as live:
            yield lambda *step: live.update(draw(*step))
