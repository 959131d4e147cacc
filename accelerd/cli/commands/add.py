"""accelctl add: find models, write a drop-in for each, reload the daemon, and say how to try them.

Writes only through config.write_dropin, never a file or a model that the user wrote.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from accelerd.base.errors import AccelError
from accelerd.base.model_source import ADDRESSES, SCHEME, Source, is_source
from accelerd.base.names import accelctl
from accelerd.base.sizes import human_size
from accelerd.cli import npu_models
from accelerd.cli.commands.model import KEPT
from accelerd.cli.commands.remove import is_own, own_dropin
from accelerd.cli.context import Context, configuration, hub_errors, own_environment, reload
from accelerd.cli.failure import ExitStatus, Failure, invalid, usage
from accelerd.cli.fit import gguf_files
from accelerd.cli.live_page import WITHOUT_DAEMON
from accelerd.cli.local_machine import LocalMachine
from accelerd.cli.new_models import NewModel, described, report, result, say
from accelerd.cli.progress import follow
from accelerd.cli.text import count, errors_in
from accelerd.downloads.cache import cached, place_of
from accelerd.downloads.choice import quant_of
from accelerd.downloads.plan import plan
from accelerd.estimate.estimate import EstimateSettings
from accelerd.estimate.model_kind import Identified, Kind, identify
from accelerd.routing.directory import LOCAL, NPU

if TYPE_CHECKING:
    from accelerd.config import Config, ModelSpec

EPILOG = """\
SOURCE is one of
  hf:ORG/REPO or hf:ORG/REPO:QUANT, a model on Hugging Face, which is downloaded;
    without QUANT accelerd chooses one that fits this machine
  https://…/model.gguf, which is downloaded
  a GGUF file, or any part of a split one
  a directory: all models in it
  part of a file name, searched in ~/models and the caches of llama.cpp,
    Hugging Face, LM Studio and others
  npu/NAME, a model that FastFlowLM runs on the NPU, such as npu/qwen3-4b;
    flm downloads it
What a model is for (chat, embeddings, reranking) is read from its file.
"""
Result = TypeVar("Result")
TASKS = {Kind.EMBEDDING: "embeddings", Kind.RERANK: "rerank"}  # keys of a model's table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("sources", metavar="SOURCE", nargs="+", help="a file, a directory, hf:ORG/REPO, …; see below")
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
    parser.add_argument("--no-pull", action="store_true", help="download it when it is first loaded, not now")
    parser.add_argument("--force", action="store_true", help="download it even if this machine has too little memory")
    parser.add_argument("--replace", action="store_true", help="overwrite a model that `accelctl add` added")
    parser.add_argument("--dry-run", action="store_true", help="print what would be written and exit")


def run(context: Context, args: argparse.Namespace) -> int:
    check_names(args)
    check_settings(args)
    config, problems = configuration(context)
    if config is None:
        listed = [one.as_dict() for one in problems]
        message = f"nothing was added: the configuration is not valid ({count(errors_in(listed), 'problem')})"
        raise invalid(message, listed, "see: accelctl config check")
    skipped: list[str] = []
    models = [model for source in args.sources for model in look_up(context, source, args, config, skipped)]
    single = len(args.sources) == 1 and len(models) == 1
    if not single and (args.name or args.alias):
        raise usage("--name and --alias are for one model", "add the models one by one to name them")
    if not args.name and not args.replace:
        models = without_twins(models, config, skipped, single=single)
    if not models:
        raise Failure("nothing was added", code="exists", tail=skipped)
    choose_names(context, models, config, args)
    for model in models:
        model.table |= settings(args)
        if model.found is not None and model.found.kind in TASKS and not args.embeddings:
            model.table[TASKS[model.found.kind]] = True
    if args.dry_run:
        return dry_run(context, models, skipped)
    files: list[Path] = []
    try:
        for model in models:
            files.append(write(context, model, args))
    finally:  # what was written before a failure is in use, too
        reloaded = bool(files) and reload(context)
    warn_of_size(context, models)
    report(context, models, files, skipped, reloaded=reloaded)
    return ExitStatus.OK


def check_names(args: argparse.Namespace) -> None:
    """Refuse names that no model can have, before anything is downloaded. Raises Failure."""
    from accelerd.config.values import check_name

    for name in filter(None, (args.name, *args.alias)):
        try:
            check_name(name)
        except ValueError as error:
            raise usage(f"{name!r} cannot be a name: expected {error}") from None
        if name.startswith((NPU, LOCAL)):
            text = f"{name!r} cannot be a name: accelerd itself puts {NPU} or {LOCAL} before the names of models"
            raise usage(text, f"for instance: {name.partition('/')[2] or 'hello'}")


def check_settings(args: argparse.Namespace) -> None:
    """Refuse values that no model can have, by the name of their option. Raises Failure."""
    from accelerd.config.walk import PathBase, TreeWalker

    for key, value in settings(args).items():
        walker = TreeWalker("", {}, PathBase("/", "/"))
        walker.walk({"defaults": {key: value}} if key in SETTINGS else {})
        for problem in walker.problems:
            raise usage(f"--{key.replace('_', '-')}: {problem.message}")


# --- which models ---------------------------------------------------------------------------------------------


def look_up(
    context: Context, source: str, args: argparse.Namespace, config: Config, skipped: list[str]
) -> Iterator[NewModel]:
    """The models that a source names; what else lies in a directory is told in `skipped`. Raises Failure."""
    if source.startswith(npu_models.PREFIX):
        npu = npu_models.look_up(context, source, config.flm.binary)
        yield NewModel(npu.tag, npu.table, npu.name, npu=npu)
        return
    source = gguf_files.without_scheme(source)
    if not source.strip():
        raise usage("the name of the model is empty", "write . for this directory")
    local = gguf_files.looks_like_path(source)
    if source.startswith((*ADDRESSES, SCHEME)) or (not local and is_source(source)):
        yield of_hub(context, source, args)
        return
    path = Path(source).expanduser().absolute()
    if local and gguf_files.is_directory(path):
        yield from in_directory(path, skipped)
    elif local:
        yield of_file(gguf_files.by_path(path))
    elif (spec := config.models.get(source)) is not None and not args.name:
        text = f"{source} is a model of the configuration already ({where(spec)})"
        raise Failure(text, code="exists", hint=f"load it: {accelctl('load', source)}")
    else:
        yield of_file(gguf_files.by_name(source, gguf_files.well_known(context.roots.home, context.env)))


def of_hub(context: Context, text: str, args: argparse.Namespace) -> NewModel:
    """A model of a hub or an address; what its files need is asked before the first of them is fetched."""
    source = Source.parse(text)
    env, home = context.env, context.roots.home
    if (here := cached(source, env, home)) is not None:
        found = identify(here.model)
        if not found.runs:
            raise Failure(f"{here.model} cannot be used: {found.reason}", code="bad_model", hint=found.hint)
        if source.repo and not source.file:
            source = Source(source.repo, source.quant or quant_of(here.model.name))
        return named(source, text, found, env, home)
    if args.no_pull and source.url:
        raise usage("--no-pull is for models of a hub: an address is downloaded when it is added")
    if args.no_pull:
        return named(source, text, None, env, home)
    machine = LocalMachine(context.roots, context.clock)
    settings = EstimateSettings(context=args.context or 8192)
    try:
        planned = plan(source, env, home, room=machine.room, settings=settings)
    except AccelError as error:
        if error.code != "model_gated":
            raise
        model = named(source, text, None, env, home)
        model.download = str(source)  # the daemon may have a token that accelctl has not
        return model
    if not planned.choice.fits and not args.force:
        raise Failure(
            f"{text} was not added: it needs {human_size(planned.memory)} of memory, and this machine has "
            f"{human_size(machine.room)} for models",
            code="does_not_fit", hint="choose a smaller model or quantization, or use --force",
        )  # fmt: skip
    model = named(planned.settled, text, planned.found, env, home)
    model.download = str(planned.settled)
    model.reason = f"{planned.choice.reason}; {human_size(planned.total)} to download"
    return model


def named(source: Source, text: str, found: Identified | None, env: Mapping[str, str], home: Path) -> NewModel:
    title = found.name if found is not None else ""
    if source.url:
        path = place_of(source.url, env, home)
        return NewModel(text, {"path": str(path)}, gguf_files.name_of(path, title), found)
    name = gguf_files.name_of(Path(source.file), title) if source.file else gguf_files.name_of_id(source.repo)
    return NewModel(text, {"model": str(source)}, name, found)


def of_file(found: gguf_files.FoundModel) -> NewModel:
    table = {"path": str(found.path)}
    if found.mmproj:
        table["mmproj"] = str(found.mmproj)
    return NewModel(str(found.path), table, found.name, found.found)


def in_directory(folder: Path, skipped: list[str]) -> Iterator[NewModel]:
    """Every model below a directory; links to one file are one model."""
    seen: set[str] = set()
    unseen: list[bool] = []
    for path in sorted(gguf_files.files_below(folder, lambda: unseen.append(True))):
        real = gguf_files.real_path(path)
        if real in seen:
            continue
        seen.add(real)
        found = identify(path)
        if found.runs:
            yield of_file(gguf_files.model_at(path))
        elif found.kind is not Kind.PROJECTOR:
            skipped.append(f"skipped {path}: {found.reason}; {found.hint}")
    within = f"{gguf_files.MAX_ENTRIES} files and {gguf_files.MAX_DEPTH} levels"
    if not seen:
        text = f"there is no GGUF file in {folder}" + f" within the {within} that are searched" * bool(unseen)
        raise Failure(text, code="not_found", hint="name the directory of the models" if unseen else "")
    if unseen:
        skipped.append(f"{folder} has more than the {within} that are searched; name the directory of the models")


def without_twins(models: Sequence[NewModel], config: Config, skipped: list[str], *, single: bool) -> list[NewModel]:
    """Without models that are configured already, under another name too: a second entry is rarely meant."""
    left: list[NewModel] = []
    for model in models:
        twin = next((spec for spec in config.models.values() if same(spec, model.table)), None)
        if twin is None:
            left += [model] if all(model.table != other.table for other in left) else []
        elif single:
            text = f"this model is configured already as {twin.name} ({where(twin)})"
            raise Failure(text, code="exists", hint="to add it again, give another --name")
        else:
            skipped.append(f"skipped {model.what}: it is configured already as {twin.name} ({where(twin)})")
    return left


def same(spec: ModelSpec, table: dict[str, Any]) -> bool:
    if "path" in table:
        return bool(spec.path == table["path"])
    if "engine" in table:
        return spec.engine == table["engine"] and npu_models.same(spec.model or "", table["model"])
    if spec.engine != "llama-server" or not spec.model or not is_source(spec.model):
        return False
    one, other = Source.parse(spec.model), Source.parse(table["model"])
    same_quant = one.quant == other.quant or not (one.quant and other.quant)
    return (one.repo, one.file) == (other.repo, other.file) and same_quant


def where(spec: ModelSpec) -> str:
    origin = spec.origin("path" if spec.path else "model")
    return f"{origin.file}:{origin.line}"


def choose_names(context: Context, models: Sequence[NewModel], config: Config, args: argparse.Namespace) -> None:
    """Names that no other model has. Failure where the user's own model has the one that was asked for."""
    others = dict.fromkeys(config.routes, "a route")
    others |= {alias: f"an alias of {route.name}" for route in config.routes.values() for alias in route.aliases}
    others |= {alias: f"an alias of {spec.name}" for spec in config.models.values() for alias in spec.aliases}
    taken = {*config.models, *others}
    for model in models:
        model.name = args.name or (model.name if args.replace else gguf_files.unique(model.name, taken))
        taken.add(model.name)
        if model.name not in config.models:
            if model.name in others:
                text = f"{model.name} is {others[model.name]} already"
                raise Failure(text, code="exists", hint="give another --name, or change it in the configuration")
            continue
        file = own_dropin(context.roots, model.name)
        if not is_own(file):
            place = where(config.models[model.name])
            text = f"{model.name} is a model of yours, which accelctl does not change ({place})"
            raise Failure(text, code="exists", hint="give another --name, or change it there")
        if not args.replace:
            hint = "give another --name, or overwrite it with --replace"
            raise Failure(f"{model.name} was added already ({file})", code="exists", hint=hint)


SETTINGS = ("context", "parallel", "memory", "idle_timeout", "preload", "pin", "embeddings")  # options that are keys


def settings(args: argparse.Namespace) -> dict[str, Any]:
    """The options that were given, as keys of the model's table."""
    given = {key: value for key in SETTINGS if (value := getattr(args, key)) is not None and value is not False}
    return ({"aliases": args.alias} if args.alias else {}) | given


# --- writing --------------------------------------------------------------------------------------------------


def write(context: Context, model: NewModel, args: argparse.Namespace) -> Path:
    """Download what has to be, and write the drop-in. Raises Failure."""
    from accelerd.config.dropin import write_dropin

    if model.npu is not None and not args.no_pull:
        npu_models.fetch(context, model.npu)
    if model.download:
        if model.reason and not context.out.json_mode:
            context.out.note(f"{model.what}: {model.reason}")
        try:
            with hub_errors(context):
                events = context.client.events("download", source=model.download)
                files = follow(context.out, model.download, events, lambda _: KEPT)
            # it knows best which files it has fetched, and where it has put an address
            key, value = ("path", files.get("model")) if "path" in model.table else ("model", files.get("source"))
            model.table[key] = value or model.table[key]
            model.fetched = Kind(files.get("kind") or Kind.CHAT)
            if model.found is None and (task := TASKS.get(model.fetched)):
                model.table[task] = True
        except Failure as failure:
            if "path" in model.table or failure.code not in WITHOUT_DAEMON:
                raise
            text = "accelerd is not running: it downloads the model when it is first loaded"
            model.notes.append(text + own_environment(context))
    home = context.roots.home
    return valid(context, model, lambda *what: write_dropin(*what, overwrite=args.replace, home=home))


def valid(context: Context, model: NewModel, act: Callable[[Path, str, dict[str, Any]], Result]) -> Result:
    """What `act` makes of the model's drop-in. Failure, with all mistakes shown, where it cannot be."""
    from accelerd.config import ConfigErrors

    try:
        return act(context.roots.config_file, model.name, {"models": {model.name: model.table}})
    except ConfigErrors as errors:
        listed = [problem.as_dict() for problem in errors.problems]
        if not context.out.json_mode:
            context.out.problems(listed)
        raise invalid(f"{model.name} was not added: it would make the configuration invalid", listed) from None


def warn_of_size(context: Context, models: Sequence[NewModel]) -> None:
    """Tell of each that is too large for this machine, as its settings are now."""
    here = LocalMachine(context.roots, context.clock)
    for model in models:
        spec = here.config.models.get(model.name)
        if spec is not None and spec.path and (needed := here.lacks(spec, context.client)):
            model.too_big = True
            model.notes.append(
                f"it needs {human_size(needed)}, which this machine does not have; "
                f"{accelctl('fit', model.name)} shows which context would fit"
            )


def dry_run(context: Context, models: Sequence[NewModel], skipped: Sequence[str]) -> int:
    import tomli_w

    from accelerd.config.dropin import check_dropin

    for model in models:
        valid(context, model, lambda *what: check_dropin(*what, home=context.roots.home))
    result(context, [described(model, None, reloaded=False) for model in models], skipped)
    context.out.line(tomli_w.dumps({"models": {model.name: model.table for model in models}}).rstrip("\n"))
    say(context, models, skipped)
    return ExitStatus.OK
