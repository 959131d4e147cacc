"""Has the daemon download a model of a hub or an address, and shows how far it is.

The daemon does it, because it looks for the files where it puts them. A download that was interrupted goes on where it
stopped when it is asked for again.
"""

from __future__ import annotations

from typing import Any

from accelerd.cli.context import Context
from accelerd.cli.progress import follow


def download(context: Context, source: str) -> dict[str, Any]:
    """Until every file of it is here; what the daemon says of them. Raises Failure."""
    return follow(context.out, source, map(shown, context.client.events("download", source=source)))


def shown(event: dict[str, Any]) -> dict[str, Any]:
    """A progress event with the keys of a load's."""
    if event.get("event") != "progress":
        return event
    kept = {**event, "state": "fetching", "line": event.get("file"), "memory": event.get("bytes")}
    return kept | {"memory_expected": event.get("total") or None}
