"""accelctl reload: read the configuration again and say what that changed. A broken file changes nothing."""

from __future__ import annotations

import argparse

from accelerd.cli.context import Context
from accelerd.cli.failure import Exit, Failure
from accelerd.cli.problems import print_problems
from accelerd.cli.text import count

WORDS = {
    "added": "added",
    "removed": "removed",
    "relaunch": "restarted when its requests have ended",
    "updated": "updated in place",
}
LATER = frozenset({"server.listen"})


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = "Unchanged models keep running, with their streams. systemctl --user reload accelerd does the same."


def run(context: Context, args: argparse.Namespace) -> int:
    out = context.out
    try:
        changes = context.client.post("reload")
    except Failure as failure:
        problems = failure.fields.get("problems") or []
        if failure.code == "config_invalid" and not out.json_mode:
            print_problems(out, problems)
            failure.message = f"nothing was changed: the configuration has {count(len(problems), 'problem')}"
        raise
    out.result(changes)
    report(context, changes)
    return Exit.OK


def report(context: Context, changes: dict[str, list[str]]) -> None:
    """The changes as lines."""
    out = context.out
    for key, words in WORDS.items():
        for name in changes.get(key) or ():
            out.line(f"{name}: {words}")
    for key in changes.get("settings") or ():
        out.line(f"{key}: {'takes effect at the next start' if key in LATER else 'in use from now on'}")
    same = len(changes.get("unchanged") or ())
    if not any(changes.get(key) for key in (*WORDS, "settings")):
        out.line(f"nothing has changed ({count(same, 'model')})")
    elif same:
        out.line(f"{count(same, 'model')} unchanged")
