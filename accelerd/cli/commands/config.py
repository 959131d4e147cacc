"""accelctl config: check, show or describe the configuration. Works without the daemon: it reads the files itself."""

from __future__ import annotations

import argparse
import json
from typing import Any

from accelerd.cli.context import Context, configuration
from accelerd.cli.failure import ExitStatus, Failure, invalid
from accelerd.cli.text import count, errors_in


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="check|show|schema", required=True)
    for name, text in (
        ("check", "report all problems with file, line, key and the expected value"),
        ("show", "show the effective configuration with the origin of each value"),
        ("schema", "print a JSON Schema, which editors use for completion"),
    ):
        actions.add_parser(name, help=text, description=text)


def run(context: Context, args: argparse.Namespace) -> int:
    return {"check": check, "show": show, "schema": schema}[args.action](context)


def check(context: Context) -> int:
    out = context.out
    found, problems = configuration(context)
    listed = [problem.as_dict() for problem in problems]
    valid = found is not None and not errors_in(listed)
    models = list(found.models) if found else []
    out.result({"valid": valid, "file": str(context.roots.config_file), "models": models, "problems": listed})
    out.problems(listed)
    if not valid:
        if not out.json_mode:
            out.failure(broken(context, listed))
        return ExitStatus.CONFIG_INVALID
    warnings = f", {count(len(listed), 'warning')}" if listed else ""
    files = found.files if found else ()
    where = ", ".join(files) if files else f"{context.roots.config_file} does not exist, so the defaults apply"
    out.line(f"valid: {count(len(models), 'model')}{warnings} ({where})")
    return ExitStatus.OK


def broken(context: Context, problems: list[dict[str, Any]]) -> Failure:
    errors = count(errors_in(problems), "problem")
    return invalid(f"the configuration in {context.roots.config_file.parent} is not valid: {errors}", problems)


def show(context: Context) -> int:
    from accelerd import config

    found, problems = configuration(context)
    listed = [problem.as_dict() for problem in problems]
    if found is None:
        context.out.problems(listed)
        raise broken(context, listed)
    context.out.result(config.show_dict(found))
    context.out.line(config.show(found).rstrip("\n"))
    return ExitStatus.OK


def schema(context: Context) -> int:
    """The schema is JSON in either mode: there is nothing else to show."""
    from accelerd import config

    print(json.dumps(config.json_schema(), indent=2), file=context.out.stdout)
    return ExitStatus.OK
