"""umockdev's testbed, imported without the warnings of its own bindings. Only of use under umockdev-wrapper."""

from __future__ import annotations

import warnings
from typing import Any


def testbed() -> Any:
    """An empty machine; the process has one at a time."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # gi's importer is older than Python's idea of one
        import gi

        gi.require_version("UMockdev", "1.0")
        from gi.repository import UMockdev

        return UMockdev.Testbed.new()
