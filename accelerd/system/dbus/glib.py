"""The first import of PyGObject, by one thread at a time.

Its import machinery makes two of each module that two threads import in the same moment, whose types then do not know
each other. Every thread that uses it calls `load` first; what is imported once may be imported anywhere.
"""

from __future__ import annotations

import importlib
import threading

_one_at_a_time = threading.Lock()


def load() -> None:
    """Have GLib, GObject and Gio. ImportError where there is no PyGObject."""
    with _one_at_a_time:
        for name in ("GLib", "GObject", "Gio"):
            importlib.import_module(f"gi.repository.{name}")
