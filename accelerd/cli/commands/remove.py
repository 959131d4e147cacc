"""accelctl remove: remove a model that `accelctl add` added. Files that a user wrote are not touched."""

from __future__ import annotations

import argparse
from pathlib import Path

from accelerd.base.ports import Roots
from accelerd.cli.context import Context, configuration, reload
from accelerd.cli.failure import ExitStatus, Failure, invalid, no_model


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME")


def run(context: Context, args: argparse.Namespace) -> int:
    file = dropin(context, args.name)
    files = [file, *measured(file, args.name)]
    before = {one: one.read_bytes() for one in files}
    for one in files:
        one.unlink()
    found, problems = configuration(context)
    if found is None:
        for one, data in before.items():
            restore(one, data)
        raise invalid(
            f"nothing was removed: without {args.name} the configuration would be invalid ({problems[0]})",
            [problem.as_dict() for problem in problems],
        )
    context.out.result({"name": args.name, "file": str(file), "reloaded": reload(context)})
    context.out.line(f"removed {args.name} ({file}); its model file was kept")
    return ExitStatus.OK


def measured(file: Path, name: str) -> list[Path]:
    """The drop-in that `accelctl tune` wrote for it, which is invalid without the model."""
    from accelerd.cli.commands.tune import DROPIN
    from accelerd.config.dropin import file_name

    tuned = file.with_name(file_name(DROPIN.format(name)))
    return [tuned] if tuned.is_file() else []


def dropin(context: Context, name: str) -> Path:
    """The drop-in of that model, if accelctl wrote it. Raises Failure otherwise."""
    file = own_dropin(context.roots, name)
    if file.is_file():
        if is_own(file):
            return file
        raise Failure(f"{file} was not written by accelctl", hint="delete it yourself, then: accelctl reload")
    found, _ = configuration(context)
    models = found.models if found else {}
    if name in models:
        spec = models[name]
        where = spec.origin("path" if spec.path else "model")
        raise Failure(
            f"{name} was not added by accelctl; it is configured in {where.file}:{where.line}",
            hint="delete it there, then: accelctl reload",
        )
    raise no_model(name, models, "see: accelctl config show")


def own_dropin(roots: Roots, name: str) -> Path:
    """Where `accelctl add` writes a model of that name."""
    from accelerd.config.dropin import file_name
    from accelerd.config.load import dropin_dir

    return dropin_dir(roots.config_file) / file_name(name)


def is_own(file: Path) -> bool:
    """Was it written by accelctl?"""
    from accelerd.config.dropin import HEADER

    return file.is_file() and file.read_text(errors="replace").startswith(f"{HEADER}accelctl")


def restore(file: Path, data: bytes) -> None:
    """Put the drop-in back as it was, for this user only."""
    file.touch(mode=0o600)
    file.write_bytes(data)
