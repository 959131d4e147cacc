"""accelctl tune: benchmark a model with several settings, and on yes write the fastest ones as a drop-in.

The daemon measures and writes nothing; this module writes and measures nothing. Ctrl-C leaves the model as it was.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from accelerd.base.names import accelctl
from accelerd.cli.context import Context, reload
from accelerd.cli.failure import ExitStatus, invalid
from accelerd.cli.output import CliOutput
from accelerd.cli.progress import display
from accelerd.cli.text import printable, span
from accelerd.tuning.search import USUAL_ANSWER, USUAL_PROMPT

if TYPE_CHECKING:
    from rich.console import RenderableType

DROPIN = "zz-tune-{}"  # comes after the drop-in that names the model
HEAD = ("SETTINGS", "PROMPT T/S", "ANSWER T/S", "A REQUEST", "")
EPILOG = f"""\
The model is unloaded, loaded with each of several settings, given the same prompts, and finally loaded as before.
"A REQUEST" is the time of a request with {USUAL_PROMPT} tokens and an answer of {USUAL_ANSWER}, computed from the
rates that were measured. Other models should be idle meanwhile.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("--quick", action="store_true", help="fewer settings, fewer repeats")
    parser.add_argument(
        "--force", action="store_true", help="also while other models are busy, which distorts the numbers"
    )
    parser.add_argument("--yes", action="store_true", help="save the fastest settings without asking")
    parser.add_argument("--no", action="store_true", help="measure only, save nothing")


def run(context: Context, args: argparse.Namespace) -> int:
    query = {"quick": 1 if args.quick else None, "force": 1 if args.force else None}
    last = watch(context.out, args.model, context.client.events("tune", model=args.model, **query))
    out, settings = context.out, last.get("settings") or {}
    summary(out, last)
    wanted = bool(settings) and not args.no and (args.yes or agreed(context, last))
    file = write(context, last) if wanted else None
    out.result({**last, "file": file})
    if file:
        out.line(f"written to {file}")
    elif settings and not args.no:
        out.line(f"nothing was written; to save the settings: {accelctl('tune', last['model'], '--yes')}")
    return ExitStatus.OK


# --- while it goes on -----------------------------------------------------------------------------------------


def watch(out: CliOutput, model: str, events: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Show each step and each row; return the last event."""
    rows: list[dict[str, Any]] = []
    last: dict[str, Any] = {}

    def line(rows: Sequence[dict[str, Any]], doing: str) -> str:
        return f"{model}: {doing or '  '.join(cell for cell in cells(rows[-1]) if cell)}"

    with display(out, line, table) as show:
        for event in events:
            last = event
            if row := event.get("row"):
                if row.get("best"):
                    rows = [{**one, "best": False} for one in rows]
                rows = [*rows, row]
                show(rows, "")
            elif event.get("phase"):
                show(rows, step(event))
    return last


def step(event: dict[str, Any]) -> str:
    """ "measuring: ubatch 512 (2 of 3)"."""
    count = f" ({event['repeat']} of {event['repeats']})" if event.get("repeat") else ""
    return printable(f"{event['phase']}: {event.get('label') or ''}{count}")


def table(rows: Sequence[dict[str, Any]], doing: str) -> RenderableType:
    from rich.console import Group
    from rich.spinner import Spinner
    from rich.table import Table
    from rich.text import Text

    table = Table(*HEAD, box=None, pad_edge=False, header_style="dim")
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in cells(row)), style="bold" if row.get("best") else "")
    return Group(table, Spinner("dots", Text(doing, "dim"))) if doing else table


def cells(row: dict[str, Any]) -> tuple[str, ...]:
    if row.get("failed"):
        return row["label"], "-", "-", "-", f"failed: {row['failed']}"
    remarks = [word for word in ("best", "disturbed") if row.get(word)]
    return row["label"], rate(row["prompt"]), rate(row["generation"]), span(row["seconds"]), ", ".join(remarks)


def rate(series: dict[str, Any] | None) -> str:
    """ "812 ± 3"."""
    if series is None:
        return "-"
    digits = 0 if series["median"] >= 100 else 1
    return f"{series['median']:.{digits}f} ± {series['spread']:.{digits}f}"


# --- afterwards -----------------------------------------------------------------------------------------------


def summary(out: CliOutput, last: dict[str, Any]) -> None:
    load = last["load"]
    out.line(f"{out.style(last['model'], 'bold')} on {last['device']} with {last['program']}:")
    out.line(f"{load['prompt']} tokens and an answer of {load['answer']}, {load['repeats']} times each")
    out.line()
    rows = last["rows"]
    styles = [("green" if row.get("best") else "", "", "", "", "") for row in rows]
    out.table(HEAD, [cells(row) for row in rows], styles)
    out.line()
    if not last["settings"]:
        out.line("Nothing that was tried is faster than it is now, by more than chance.")
        return
    out.line("The best, as it stands in the configuration:")
    for line in document_text(last).splitlines():
        out.line(f"  {line}")
    for replaced in last["replaces"]:
        out.wrapped(f"it takes the place of your own {replaced}", indent="  ", first="! ", style="yellow")


def agreed(context: Context, last: dict[str, Any]) -> bool:
    """Ask, where there is somebody to ask."""
    out = context.out
    if out.json_mode or not out.tty:
        return False
    out.line(f"Write this for {printable(last['model'])}? [Y/n]")
    out.stdout.flush()
    said = context.stdin.readline()
    return bool(said) and said.strip().lower() in ("", "y", "yes")


def document(last: dict[str, Any]) -> dict[str, Any]:
    return {"models": {last["model"]: last["settings"]}}


def document_text(last: dict[str, Any]) -> str:
    import tomli_w

    return tomli_w.dumps(document(last)).rstrip("\n")


def remarks(last: dict[str, Any]) -> list[str]:
    load = last["load"]
    lines = [f"Measured by accelctl tune on {last['device']} with {last['program']}:"]
    lines.append(f"{load['prompt']} tokens and an answer of {load['answer']}, {load['repeats']} times each.")
    for row in last["rows"]:
        lines.append("  ".join(cell for cell in cells(row) if cell))
    return lines


def write(context: Context, last: dict[str, Any]) -> str:
    """The drop-in's path; the daemon has read it then."""
    from accelerd import config
    from accelerd.config.problems import first_error

    name = DROPIN.format(last["model"])
    try:
        file = config.write_dropin(
            context.roots.config_file, name, document(last), overwrite=True, home=context.roots.home,
            remarks=remarks(last),
        )  # fmt: skip
    except config.ConfigErrors as errors:
        text = f"nothing was written: with it the configuration would not be valid ({first_error(errors.problems)})"
        raise invalid(text, [problem.as_dict() for problem in errors.problems]) from None
    reload(context)
    return str(file)
