"""accelctl add: find a model, write a drop-in for it, reload the daemon, and say how to try it.

Writes only through config.write_dropin, never the user's own file.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from accelerd.cli import npu_models
from accelerd.cli.connect import START_COMMANDS
from accelerd.cli.context import Context, configuration, reload
from accelerd.cli.failure import ExitStatus, Failure, invalid
from accelerd.cli.fit import gguf_files
from accelerd.cli.text import count

MODEL_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[\w.-]+(:[\w.-]+)?$")
EPILOG = """\
PATH-OR-NAME is one of
  a GGUF file, any part of a split one, or a directory with one model
  part of a file name, searched in ~/models and the caches of llama.cpp,
    Hugging Face, LM Studio and others
  a Hugging Face id, org/repo or org/repo:QUANT; llama-server downloads it
  npu/NAME, a model that FastFlowLM runs on the NPU, such as npu/qwen3-4b;
    flm downloads it
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="PATH-OR-NAME")
    parser.add_argument("--name", help="its name in requests; default: made from the file name")
    parser.add_argument(
        "--alias", action="append", default=[], metavar="NAME", help="another name for it; may be repeated"
    )
    parser.add_argument("--context", type=int, metavar="N", help="context of one request in tokens")
    parser.add_argument("--parallel", type=int, metavar="N", help="number of concurrent requests")
    parser.add_argument(
        "--memory", metavar="SIZE", help='memory to reserve, such as "12GiB"; default: estimated from the file'
    )
    parser.add_argument(
        "--idle-timeout", metavar="TIME", help='unload it after this idle time, such as "10min", or "never"'
    )
    parser.add_argument("--preload", action="store_true", help="load it when accelerd starts")
    parser.add_argument("--pin", action="store_true", help="never unload it for another model")
    parser.add_argument("--embeddings", action="store_true", help="it is an embedding model")
    parser.add_argument("--no-pull", action="store_true", help="do not download a model for the NPU")
    parser.add_argument("--replace", action="store_true", help="overwrite an existing drop-in of that name")
    parser.add_argument("--dry-run", action="store_true", help="print what would be written and exit")


def run(context: Context, args: argparse.Namespace) -> int:
    from accelerd import config

    found, problems = configuration(context)
    if found is None:
        message = f"nothing was added: the configuration is not valid ({count(len(problems), 'problem')})"
        raise invalid(message, [one.as_dict() for one in problems], "see: accelctl config check")
    if args.source.startswith(npu_models.PREFIX):
        wanted = npu_models.look_up(context, args.source, found.flm.binary)
        table, guess = wanted.table, wanted.name
    else:
        wanted = None
        table, guess = look_up(context, args.source)
    taken = {name for spec in found.models.values() for name in (spec.name, *spec.aliases)}
    if not args.name:
        refuse_twin(found.models.values(), table, args.replace)
    name = args.name or (guess if args.replace else gguf_files.unique(guess, taken))
    table |= settings(args)
    if args.dry_run:
        return dry_run(context, name, table)
    if wanted is not None and not args.no_pull:
        npu_models.fetch(context, wanted)
    document = {"models": {name: table}}
    try:
        file = config.write_dropin(
            context.roots.config_file, name, document, overwrite=args.replace, home=context.roots.home
        )
    except config.ConfigErrors as errors:
        raise refused(context, name, errors.problems) from None
    reloaded = reload(context)
    report(context, name, table, file, reloaded)
    return ExitStatus.OK


def look_up(context: Context, source: str) -> tuple[dict[str, Any], str]:
    """The keys that say which model, and a name for it."""
    path = Path(source).expanduser()
    named_as_file = "/" in source and source.lower().endswith(".gguf")
    looks_like_path = source.startswith(("/", "~", ".")) or path.exists() or named_as_file
    if not looks_like_path and MODEL_ID.match(source):
        return {"model": source}, gguf_files.name_of_id(source)
    places = gguf_files.well_known(context.roots.home, context.env)
    found = gguf_files.by_path(path.absolute()) if looks_like_path else gguf_files.by_name(source, places)
    table = {"path": str(found.path)}
    if found.mmproj:
        table["mmproj"] = str(found.mmproj)
    return table, gguf_files.name_of(found.path)


def settings(args: argparse.Namespace) -> dict[str, Any]:
    """The options that were given, as keys of the model's table."""
    keys = ("context", "parallel", "memory", "idle_timeout", "preload", "pin", "embeddings")
    given = {key: getattr(args, key) for key in keys if getattr(args, key) not in (None, False)}
    return ({"aliases": args.alias} if args.alias else {}) | given


def refuse_twin(models: Any, table: dict[str, Any], replace: bool) -> None:
    """Refuse a model that is configured already, under another name too: a second entry is rarely meant."""
    for spec in models:
        same = spec.path == table["path"] if "path" in table else spec.model == table["model"]
        if "engine" in table:
            same = spec.engine == table["engine"] and npu_models.same(spec.model or "", table["model"])
        if same and not replace:
            origin = spec.origin("path" if spec.path else "model")
            raise Failure(
                f"this model is configured already as {spec.name} ({origin.file}:{origin.line})", code="exists",
                hint="to add it again, give another --name",
            )  # fmt: skip


def refused(context: Context, name: str, problems: Iterable[Any]) -> Failure:
    listed = [problem.as_dict() for problem in problems]
    if not context.out.json_mode:
        context.out.problems(listed)
    return invalid(f"nothing was added: {name} would make the configuration invalid", listed)


def dry_run(context: Context, name: str, table: dict[str, Any]) -> int:
    import tomli_w

    context.out.result({"name": name, "table": table, "file": None, "reloaded": False})
    context.out.line(tomli_w.dumps({"models": {name: table}}).rstrip("\n"))
    return ExitStatus.OK


def report(context: Context, name: str, table: dict[str, Any], file: Path, reloaded: bool) -> None:
    out = context.out
    out.result({"name": name, "table": table, "file": str(file), "reloaded": reloaded})
    out.line(f"added {out.style(name, 'bold')}: {table.get('path') or table.get('model')}")
    out.line(f"written to {file}")
    if "model" in table and "engine" not in table:
        out.line("llama-server downloads it when it is first loaded, which may take long")
    if not reloaded:
        out.line(f"start the daemon: {START_COMMANDS}")
    if not table.keys() & {"embeddings", "transcription"}:  # there is no command for these
        out.line(f"try it: accelctl chat {name} 'Say hello'")
