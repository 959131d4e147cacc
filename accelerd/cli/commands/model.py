"""accelctl load, unload, reset, logs and download: what one does with one model."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from shlex import quote
from typing import Any

from accelerd.base.names import FIELD_MODEL, accelctl
from accelerd.base.sizes import human_size
from accelerd.cli.context import Command, Context, hub_errors, unknown_name
from accelerd.cli.failure import ExitStatus, Failure
from accelerd.cli.progress import follow
from accelerd.cli.text import printable, span

GOING_ON = {"downloading": "its download goes on", "starting": "it goes on loading"}  # after a Ctrl-C
KEPT = "what has arrived is kept, and the next download goes on there"


def model_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL")


def models_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("models", nargs="+", metavar="MODEL")


Act = Callable[[Context, str], dict[str, Any]]  # on one model: its JSON. Raises Failure


def one_by_one(context: Context, models: Sequence[str], act: Act) -> int:
    """`act` on each model; where there are several, one that fails does not keep the others from their turn."""
    results, status = [], ExitStatus.OK
    for model in models:
        try:
            results.append(act(context, model))
        except Failure as failure:
            known = failure if failure.code != "model_not_found" or failure.hint else unknown_name(context, model)
            if len(models) == 1 or known.exit == ExitStatus.UNREACHABLE:
                raise known from None
            status = known.exit
            results.append({"model": model, **known.json()})
            if not context.out.json_mode:
                context.out.failure(known)
    context.out.result(results[0] if len(models) == 1 else {"models": results})
    return status


def operation(context: Context, route: str, model: str, **query: Any) -> dict[str, Any]:
    """Run a long operation on a model, with its progress shown: its last event, with seconds. Failure when it fails."""
    started = context.clock.monotonic()

    def left(state: str) -> str:
        going_on = GOING_ON.get(state) if route == "load" else None
        return f"{model}: {going_on}; to end that: {accelctl('unload', model)}" if going_on else ""

    last = follow(context.out, model, context.client.events(route, model=model, **query), left)
    return {"model": model, "seconds": round(context.clock.monotonic() - started, 3), **last}


def load(context: Context, args: argparse.Namespace) -> int:
    return one_by_one(context, args.models, load_one)


def load_one(context: Context, name: str) -> dict[str, Any]:
    try:
        with hub_errors(context):
            last = operation(context, "load", name)
    except Failure as failure:
        if not failure.hint and failure.tail and failure.code in ("model_failed", "model_backing_off"):
            failure.hint = f"see its output: {accelctl('logs', name)}; its command line: {accelctl('explain', name)}"
        raise
    used = last.get("memory_used")
    facts = span(last["seconds"]) + (f", {human_size(used)}" if used else "")
    context.out.line(f"{name} is {context.out.style('ready', 'green')} ({facts})")
    return last


def unload_arguments(parser: argparse.ArgumentParser) -> None:
    models_argument(parser)
    parser.add_argument("-f", "--force", action="store_true", help="abort running requests instead of waiting for them")


def unload(context: Context, args: argparse.Namespace) -> int:
    def unload_one(context: Context, name: str) -> dict[str, Any]:
        last = operation(context, "unload", name, force=1 if args.force else None)
        context.out.line(f"{name} is stopped ({span(last['seconds'])})")
        return last

    return one_by_one(context, args.models, unload_one)


def reset(context: Context, args: argparse.Namespace) -> int:
    answer = context.client.post("reset", model=args.model)
    context.out.result({"model": args.model, **answer})
    state = answer.get("state", "reset")
    todo = f"load it: {accelctl('load', args.model)}" if state == "stopped" else "it had no failures to clear"
    context.out.line(f"{args.model} is {state}; {todo}")
    return ExitStatus.OK


def download_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SOURCE", help="hf:ORG/REPO, hf:ORG/REPO:QUANT or https://…/model.gguf")


def download(context: Context, args: argparse.Namespace) -> int:
    with hub_errors(context):
        last = follow(context.out, args.source, context.client.events("download", source=args.source), lambda _: KEPT)
    context.out.result(last)
    context.out.line(f"{args.source} is on this machine: {last['model']}")
    if last.get("reason"):
        context.out.line(f"  {printable(last['reason'])}")
    context.out.line(f"to use it: {accelctl('add', last['source'])}")
    return ExitStatus.OK


def logs_arguments(parser: argparse.ArgumentParser) -> None:
    model_argument(parser)
    parser.add_argument("-f", "--follow", action="store_true", help="keep printing new lines until Ctrl-C")
    parser.add_argument("-n", "--lines", "--tail", type=line_count, metavar="N", help="print only the last N lines")


def line_count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a number of lines, got {text!r}")
    return int(text)


def older(model: str) -> str:
    """What shows the output of earlier runs."""
    return f"journalctl --user {quote(f'{FIELD_MODEL}={model}')}"


def logs(context: Context, args: argparse.Namespace) -> int:
    out = context.out
    any_line = False
    for line in context.client.lines("logs", model=args.model, lines=args.lines, follow=args.follow):
        any_line = True
        out.json_line({"line": line})
        out.line(printable(line))
        if args.follow:
            out.stdout.flush()
    if not any_line and not out.json_mode:
        out.note(f"{args.model}: no output since accelerd started; older output: {older(args.model)}")
    return ExitStatus.OK


COMMANDS = {
    "load": Command(models_argument, load),
    "unload": Command(unload_arguments, unload),
    "reset": Command(model_argument, reset),
    "download": Command(
        download_arguments,
        download,
        "accelctl add downloads by itself. A download that was interrupted goes on where it stopped.",
    ),
    "logs": Command(
        logs_arguments,
        logs,
        f"Older output, also of earlier runs, is in the journal: {older('MODEL')}",
    ),
}
