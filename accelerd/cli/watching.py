"""A page that is shown anew every second until Ctrl-C: on a terminal's own screen, as text, or as JSON a line.

Knows neither what is shown nor where it comes from. Imports rich only where there is a terminal.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from accelerd.cli.context import Context
from accelerd.cli.failure import Exit
from accelerd.cli.output import Output

EVERY = 1.0  # s

InferenceRequest = Callable[[], dict[str, Any]]
Show = Callable[[Output, dict[str, Any]], None]


def watch(context: Context, ask: InferenceRequest, show: Show, pause: Callable[[float], None] = time.sleep) -> int:
    """Until Ctrl-C, which is how one leaves it and no failure."""
    out = context.out
    try:
        if out.json_mode:
            while True:
                out.json_line(ask())
                pause(EVERY)
        if not out.tty:
            while True:
                show(out, ask())
                out.line()
                out.stdout.flush()
                pause(EVERY)
        return on_screen(out, context, ask, show, pause)
    except KeyboardInterrupt:
        return Exit.OK


def on_screen(out: Output, context: Context, ask: InferenceRequest, show: Show, pause: Callable[[float], None]) -> int:
    """The terminal's own page, drawn anew."""
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console = Console(file=out.stdout, highlight=False)
    with Live(console=console, auto_refresh=False, screen=console.is_terminal) as live:
        while True:
            page = out.page(context.env)
            show(page.out, ask())
            live.update(Text.from_ansi(page.text()), refresh=True)
            pause(EVERY)
