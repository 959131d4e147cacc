"""A page about this machine: from the daemon, or by accelctl's own look where there is none; with --watch every second.

Full screen on a terminal, else as text, or as one JSON object a line. Knows neither what is shown nor how it is looked
at. Imports rich only where there is a terminal.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from accelerd.cli.context import Context
from accelerd.cli.failure import ExitStatus, Failure
from accelerd.cli.output import CliOutput, OutputPage

EVERY = 1.0  # s
# Codes of failures after which accelctl looks itself: no daemon, or one that does not know the route.
WITHOUT_DAEMON = frozenset({"not_running", "not_reachable", "not_permitted", "no_answer", "not_found"})

Fetch = Callable[[], dict[str, Any]]


class LivePage:
    """What `fetch` gets from the daemon, shown by `show`; once there is no daemon, what `directly` makes is asked.

    `directly` None: only the daemon knows it.
    """

    def __init__(
        self, context: Context, fetch: Fetch, directly: Callable[[], Fetch] | None,
        show: Callable[[CliOutput, dict[str, Any]], None],
    ) -> None:  # fmt: skip
        self._context = context
        self._fetch = fetch
        self._directly = directly
        self._show = show
        self._itself: Fetch | None = None

    def report(self, *, again: bool) -> int:
        if again:
            return self.watch()
        answer = self.ask()
        self._context.out.result(answer)
        self._show(self._context.out, answer)
        return ExitStatus.OK

    def ask(self) -> dict[str, Any]:
        if self._itself is None:
            try:
                return self._fetch()
            except Failure as failure:
                if self._directly is None or failure.code not in WITHOUT_DAEMON:
                    raise
                self._itself = self._directly()
        return self._itself()

    def watch(self, pause: Callable[[float], None] = time.sleep) -> int:
        """Until Ctrl-C, which ends it with exit status 0."""
        out = self._context.out
        try:
            if out.tty and not out.json_mode:
                self._on_screen(pause)
            while True:
                answer = self.ask()
                out.json_line(answer)
                if not out.json_mode:
                    self._show(out, answer)
                    out.line()
                    out.stdout.flush()
                pause(EVERY)
        except KeyboardInterrupt:
            return ExitStatus.OK

    def _on_screen(self, pause: Callable[[float], None]) -> None:
        from rich.console import Console
        from rich.live import Live
        from rich.text import Text

        out = self._context.out
        console = Console(file=out.stdout, highlight=False)
        with Live(console=console, auto_refresh=False, screen=console.is_terminal) as live:
            while True:
                page = OutputPage(out, self._context.env)
                self._show(page, self.ask())
                live.update(Text.from_ansi(page.text()), refresh=True)
                pause(EVERY)
