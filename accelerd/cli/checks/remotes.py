"""Servers elsewhere: can their keys be read by their owner alone, do they answer, do they have the models?

Only where the configuration names some. The daemon asks them, who has their credentials.
"""

from __future__ import annotations

from collections.abc import Iterator

from accelerd.cli.checks.base import Check, CheckContext
from accelerd.cli.failure import Failure
from accelerd.cli.text import count, printable
from accelerd.config import key_file


def remotes(s: CheckContext) -> Iterator[Check]:
    """Each remote."""
    for remote in s.config.remotes.values():
        if remote.key_file is not None and (reason := key_file.read(remote.key_file)[1]):
            yield Check("remotes", "fail", f"the key of {remote.name}: {reason}", f"chmod 600 {remote.key_file}")
    if not s.config.remotes or isinstance(s.status, Failure):
        return
    try:
        found = s.client.get("remotes", timeout=30.0)["remotes"]
    except Failure as failure:
        yield Check("remotes", "warn", f"accelerd does not say whether they answer: {failure.message}")
        return
    for one in found:
        if not one["reachable"]:
            text = printable(f"{one['name']}: {one['trouble']}")
            yield Check("remotes", "warn", text, f"curl -v {one['url']}/models")
            continue
        yield Check("remotes", "ok", printable(f"{one['name']} answers and has {count(len(one['models']), 'model')}"))
        for name in one["missing"]:
            text = f"{one['name']} has no model of the name that {name} gives it"
            yield Check("remotes", "warn", text, "accelctl remotes")
