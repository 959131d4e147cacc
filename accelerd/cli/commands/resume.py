"""accelctl resume: end a yield, whoever asked for it: models may use the memory again."""

from __future__ import annotations

import argparse

from accelerd.cli.context import Context
from accelerd.cli.failure import Exit
from accelerd.cli.text import printable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = "Also ends what GameMode or a sleep of the machine began. Ends with 0 also when there was nothing."


def run(context: Context, args: argparse.Namespace) -> int:
    answer = context.client.post("resume")
    out = context.out
    out.result(answer)
    if not answer.get("resumed"):
        out.line("nothing was yielded")
        return Exit.OK
    back = ", ".join(map(printable, answer.get("back") or ()))
    what = printable(str(answer.get("what") or "the memory"))
    follows = f"what shall always be loaded comes back: {back}" if back else "models are loaded when they are asked for"
    out.line(f"models may use {what} again; {follows}")
    return Exit.OK
