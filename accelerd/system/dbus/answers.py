"""Answers to GDBus's method invocations, each exactly once, and the memory of the answered ones.

GLib before 2.84 hands an invocation to a binding with a reference that nobody gives back: each call would stay for
ever, with its message. What is left of it once it is answered and GDBus is through with it is dropped here.
Lives in the GLib thread.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from accelerd.base.errors import BUS_NAMES, AccelError
from accelerd.base.names import BUS_ERROR

BUG: Final = "accelerd has a bug, see its journal: journalctl --user -u accelerd"


class Answers:
    """See the module's text."""

    def __init__(self, later: Callable[[Callable[[], None]], object]) -> None:
        """`later(work)` does it when the thread comes back from GDBus."""
        self._later = later
        self._answered: list[Any] = []

    def give(self, invocation: Any, values: Any) -> None:
        """A tuple of the method's out arguments."""
        invocation.return_value(values)
        self._over(invocation)

    def refuse(self, invocation: Any, error: AccelError) -> None:
        self.fail(invocation, BUS_ERROR + BUS_NAMES[error.code], error.message)

    def fail(self, invocation: Any, name: str, text: str) -> None:
        """With an error that is not ours."""
        invocation.return_dbus_error(name, text.replace("\0", "").encode(errors="replace").decode())
        self._over(invocation)

    def _over(self, invocation: Any) -> None:
        if not self._answered:
            self._later(self._drop)
        self._answered.append(invocation)

    def _drop(self) -> None:
        answered, self._answered = self._answered, []
        for invocation in answered:
            if invocation.__grefcount__ > 1 and hasattr(invocation, "_unref"):
                invocation._unref()
