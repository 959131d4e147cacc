"""accelctl remove: remove models that `accelctl add` added. Files that a user wrote are not touched."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerd.base import volumes
from accelerd.base.errors import AccelError
from accelerd.base.names import accelctl
from accelerd.base.ports import Roots
from accelerd.base.sizes import human_size
from accelerd.cli.commands.model import one_by_one
from accelerd.cli.context import Context, configuration, reload
from accelerd.cli.failure import Failure, invalid, no_model

if TYPE_CHECKING:
    from accelerd.config import ModelSpec


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("names", nargs="+", metavar="NAME")


def run(context: Context, args: argparse.Namespace) -> int:
    return one_by_one(context, args.names, remove)


def remove(context: Context, name: str) -> dict[str, Any]:
    """One model; its JSON. Raises Failure."""
    file = dropin(context, name)
    before_it, _ = configuration(context)
    spec = before_it.models.get(name) if before_it is not None else None
    files = [file, *measured(file, name)]
    before = {one: one.read_bytes() for one in files}
    for one in files:
        one.unlink()
    found, problems = configuration(context)
    if found is None:
        from accelerd.config.problems import first_error, key_text

        for one, data in before.items():
            restore(one, data)
        why = f"without {name} the configuration would be" if before_it is not None else "the configuration is"
        raise invalid(
            f"nothing was removed: {why} invalid: {first_error(problems)}",
            [problem.as_dict() for problem in problems],
            next((f"delete your own settings of {name} first ({one.file}:{one.line}), then: {accelctl('remove', name)}"
                  for one in problems if one.key == key_text(("models", name))), ""),
        )  # fmt: skip
    left = unused_files(context, spec, found.models.values()) if spec is not None else []
    size = sum(one.stat().st_size for one in {one.resolve() for one in left})
    answer = {"name": name, "file": str(file), "reloaded": reload(context)}
    context.out.line(f"removed {name} ({file})")
    if left:
        context.out.line(f"its files were kept; to free {human_size(size)}: {shlex.join(delete_command(left))}")
    return {**answer, "kept": [str(one) for one in left], "kept_bytes": size}


def files_of(context: Context, spec: ModelSpec) -> list[Path]:
    """Every file of the model that is here, and what each that is a link leads to."""
    from accelerd.base.model_source import Source, is_source
    from accelerd.downloads.cache import cached
    from accelerd.estimate.tensors import parts

    named = [Path(spec.path)] if spec.path else []
    if spec.engine == "llama-server" and spec.model and is_source(spec.model):
        here = None
        with suppress(AccelError):  # its disk does not answer
            here = cached(Source.parse(spec.model), context.env, context.roots.home)
        named += [one for one in (here.model, here.mmproj, here.draft) if one is not None] if here is not None else []
    named += [Path(one) for one in (spec.mmproj, spec.draft_model, *(adapter.path for adapter in spec.lora)) if one]
    all_parts = [part for one in named for part in parts(str(one))]
    seen = volumes.look(all_parts)
    answering = [part for part in all_parts if not isinstance(seen[part], volumes.NoAnswer)]
    present = [part for part in map(Path, answering) if part.is_file()]
    targets = [part.resolve() for part in present if part.is_symlink()]
    return list(dict.fromkeys((*present, *targets)))


def unused_files(context: Context, spec: ModelSpec, others: Iterable[ModelSpec]) -> list[Path]:
    """The files of a model that none of the others needs."""
    used = {file.resolve() for other in others for file in files_of(context, other)}
    return [file for file in files_of(context, spec) if file.resolve() not in used]


def delete_command(files: Sequence[Path]) -> list[str]:
    """What deletes the files: of a repository in the hub's cache that holds no other models, all of it."""
    folders = {parent for file in files for parent in file.parents if parent.name.startswith("models--")}
    ours = {file.resolve() for file in files}
    if len(folders) == 1:
        [folder] = folders
        blobs = {one.resolve() for one in folder.rglob("*") if one.is_file() and one.suffix.lower() == ".gguf"}
        if all(folder in file.parents for file in files) and blobs <= ours:
            return ["rm", "-r", str(folder)]
    return ["rm", *map(str, files)]


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
    from accelerd.config.problems import HEADER

    return file.is_file() and file.read_text(errors="replace").startswith(f"{HEADER}accelctl")


def restore(file: Path, data: bytes) -> None:
    """Put the drop-in back as it was, for this user only."""
    file.touch(mode=0o600)
    file.write_bytes(data)
