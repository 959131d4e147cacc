"""accelctl reload and version: what concerns the daemon itself. A broken configuration changes nothing."""

from __future__ import annotations

import argparse

from accelerd import __version__
from accelerd.base import names
from accelerd.cli.context import Command, Context, no_arguments
from accelerd.cli.failure import ExitStatus, Failure
from accelerd.cli.text import count, errors_in

CHANGES = {
    "added": "added",
    "removed": "removed",
    "relaunch": "changed; the next load uses the new settings",
    "updated": "updated without a restart",
}
RESTARTS = "restarts when its running requests have ended"
NOT_LOADED = ("stopped", "failed", "backoff")


def reload(context: Context, args: argparse.Namespace) -> int:
    out = context.out
    try:
        changes = context.client.post("reload")
    except Failure as failure:
        problems = failure.fields.get("problems") or []
        if failure.code == "config_invalid" and problems and not out.json_mode:
            out.problems(problems)
            failure.message = f"nothing was changed: the configuration has {count(errors_in(problems), 'error')}"
        raise
    out.result(changes)
    if not out.json_mode:
        report(context, changes)
    return ExitStatus.OK


def report(context: Context, changes: dict[str, list[str]]) -> None:
    out = context.out
    models = context.client.get("status").get("models") or () if changes.get("relaunch") else ()
    loaded = {model["name"] for model in models if model["state"] not in NOT_LOADED}
    for key, words in CHANGES.items():
        for name in changes.get(key) or ():
            out.line(f"{name}: {RESTARTS if key == 'relaunch' and name in loaded else words}")
    for key in changes.get("settings") or ():
        out.line(f"{key}: in effect now")
    same = len(changes.get("unchanged") or ())
    if not any(changes.get(key) for key in (*CHANGES, "settings")):
        out.line(f"nothing has changed ({count(same, 'model')})")
    elif same:
        out.line(f"{count(same, 'model')} unchanged")


def version(context: Context, args: argparse.Namespace) -> int:
    daemon: str | None = None
    reason = ""
    try:
        daemon = str(context.client.get("status").get("version"))
    except Failure as failure:
        reason = failure.message
    out = context.out
    out.result({"accelctl": __version__, "accelerd": daemon})
    out.line(f"accelctl {__version__}")
    out.line(f"accelerd {daemon}" if daemon else f"accelerd: {reason}")
    if daemon and daemon != __version__ and not out.json_mode:
        out.note(f"the running daemon has another version; restart it: systemctl --user restart {names.PROGRAM}")
    return ExitStatus.OK


COMMANDS = {
    "reload": Command(
        no_arguments, reload,
        "Models whose configuration has not changed keep running. systemctl --user reload accelerd does the same.",
    ),
    "version": Command(no_arguments, version, "The exit status is 0 also when the daemon is not running."),
}  # fmt: skip
