"""Shows a page again every second until Ctrl-C: full screen on a terminal, else as text, or as one JSON object a line.

Knows neither what is shown nor where it comes from. Imports rich only where there is a terminal.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from accelerd.cli.context import Context
from accelerd.cli.failure import ExitStatus
from accelerd.cli.output import CliOutput, OutputPage

EVERY = 1.0  # s

Fetch = Callable[[], dict[str, Any]]
Show = Callable[[CliOutput, dict[str, Any]], None]


def watch(context: Context, ask: Fetch, show: Show, pause: Callable[[float], None] = time.sleep) -> int:
    """Until Ctrl-C, which ends it with exit status 0."""
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
        return ExitStatus.OK


def on_screen(out: CliOutput, context: Context, ask: Fetch, show: Show, pause: Callable[[float], None]) -> int:
    """Full screen, redrawn in place."""
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console = Console(file=out.stdout, highlight=False)
    with Live(console=console, auto_refresh=False, screen=console.is_terminal) as live:
        while True:
            page = OutputPage(out, context.env)
            show(page, ask())
            live.update(Text.from_ansi(page.text()), refresh=True)
            pause(EVERY)
