"""The model that `accelctl fit` is asked about: a file, an address, or one of the configuration, with its headers read.

Reads headers only, from a disk or a server. Every error becomes a Failure that says what to do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from accelerd.base.errors import AccelError
from accelerd.base.model_source import ADDRESSES, SCHEME, Source, is_source
from accelerd.base.names import ANY
from accelerd.cli.context import Context
from accelerd.cli.failure import ExitStatus, Failure, no_model
from accelerd.cli.fit import gguf_files
from accelerd.config import Config
from accelerd.config.model import ModelSpec, Origin
from accelerd.downloads.cache import cached
from accelerd.downloads.plan import Remote, read_remote
from accelerd.engines.llama_server import arguments
from accelerd.engines.llama_server.forecast import ModelFiles
from accelerd.estimate.gguf import GgufError
from accelerd.estimate.model_facts import facts
from accelerd.estimate.tensors import GgufModel, ModelReader, identity, parts
from accelerd.routing.directory import LOCAL

ASKED = Origin("command line")
RANK = 4  # of a pooling type: the model ranks


@dataclass(frozen=True)
class Subject:
    spec: ModelSpec
    read: ModelFiles
    size: int  # bytes of its files
    configured: bool = False
    remote: Remote | None = None

    @property
    def model(self) -> GgufModel:
        return self.read.model


def find(context: Context, text: str, given: Mapping[str, Any], config: Config) -> Subject:
    """What `text` names: an address, a configured model, a file. `given`: fields of its ModelSpec. Failure."""
    text = gguf_files.without_scheme(text)
    if text.startswith((*ADDRESSES, SCHEME)):
        return of_address(text, gguf_name(text), given, context)
    if gguf_files.looks_like_path(text):
        return of_file(gguf_files.by_path(Path(text).expanduser().absolute()), given)
    specs = config.models.values()
    known = next((spec for spec in specs if text in (spec.name, *spec.aliases)), None)
    known = known or next((spec for spec in specs if text == f"{LOCAL}{spec.name}"), None)
    if known is not None:
        return of_spec(known, given, context)
    if is_source(text):
        return of_address(text, gguf_name(text), given, context)
    try:
        return of_file(gguf_files.by_name(text, gguf_files.well_known(context.roots.home, context.env)), given)
    except Failure as failure:
        if failure.code != "not_found":
            raise
        names = [name for spec in config.models.values() for name in (spec.name, *spec.aliases) if ANY not in name]
        unknown = no_model(text, names, "give a path, an address, or hf:ORG/REPO")
        unknown.message = f"there is no model and no file called {text}"
        raise unknown from None


def gguf_name(text: str) -> str:
    if text.startswith(ADDRESSES):
        return gguf_files.name_of(Path(text.partition("?")[0]))
    return gguf_files.name_of_id(text.removeprefix(SCHEME))


def of_file(found: gguf_files.FoundModel, given: Mapping[str, Any]) -> Subject:
    """A file on this machine, as `accelctl add` would add it."""
    projector = str(found.mmproj) if found.mmproj else None
    spec = ModelSpec(name=found.name, path=str(found.path), mmproj=projector)
    return local(spec, given)


def of_spec(spec: ModelSpec, given: Mapping[str, Any], context: Context) -> Subject:
    """A model of the configuration; one of a hub is looked up there as long as it is not downloaded."""
    if spec.path:
        return replace(local(spec, given), configured=True)
    if spec.model:
        here = cached(parsed(spec.model), context.env, context.roots.home)
        if here is None:
            return replace(of_address(spec.model, spec.name, given, context, spec), configured=True)
        mmproj = spec.mmproj or (str(here.mmproj) if here.mmproj else None)
        return replace(local(replace(spec, path=str(here.model), mmproj=mmproj), given), configured=True)
    raise Failure(f"{spec.name} names no file, so its memory is known only after it has been loaded", code="not_known")


def local(spec: ModelSpec, given: Mapping[str, Any]) -> Subject:
    reader = ModelReader()

    def read(name: str | None) -> GgufModel | None:
        if not name:
            return None
        try:
            return reader.read(name)
        except GgufError as error:
            raise Failure(f"cannot read {name}: {error}", code="bad_model", hint="is the download complete?") from error
        except OSError as error:
            text = f"cannot read {error.filename or name}: {error.strerror}"
            raise Failure(text, code="not_found" if isinstance(error, FileNotFoundError) else "failed") from error

    told = arguments.read(spec).spec
    model, projector, draft = (read(name) for name in (spec.path, told.mmproj, told.draft_model))
    assert model is not None
    adapters = [adapter.path for adapter in told.lora]
    lora = tuple(filter(None, map(read, adapters)))
    names = [name for name in (spec.path, told.mmproj, told.draft_model, *adapters) if name]
    try:
        size = sum(Path(file).stat().st_size for name in names for file in parts(name))
        found = ModelFiles(model, projector, draft, tuple(identity(name) for name in names), lora)
    except OSError as error:
        raise Failure(f"cannot read {error.filename}: {error.strerror}") from error
    return Subject(asked(spec, model, given), found, size)


def of_address(
    text: str, name: str, given: Mapping[str, Any], context: Context, spec: ModelSpec | None = None
) -> Subject:
    try:
        found = read_remote(parsed(text), context.env, context.roots.home)
    except AccelError as error:
        raise unread(error) from error
    read = ModelFiles(found.model, found.projector, None, ())
    return Subject(asked(spec or ModelSpec(name=name), found.model, given), read, found.size, remote=found)


def parsed(text: str) -> Source:
    """The source that is named. Failure."""
    try:
        return Source.parse(text)
    except AccelError as error:
        raise unread(error) from error


def unread(error: AccelError) -> Failure:
    shown = error.fields.get("candidates", ())[: gguf_files.SHOWN]
    code, exit = ("ambiguous", ExitStatus.USAGE) if shown else ("not_readable", ExitStatus.FAILED)
    return Failure(error.problem, exit=exit, code=code, hint=error.hint, tail=[*shown])


def asked(spec: ModelSpec, model: GgufModel, given: Mapping[str, Any]) -> ModelSpec:
    """The model with what is asked for, as what its header says it is for."""
    known = facts(model)
    if known.encoder and not (spec.embeddings or spec.rerank):
        given = {**given, ("rerank" if known.pooling == RANK else "embeddings"): True}
    origins = {**spec.origins, **dict.fromkeys(given, ASKED)}
    return replace(spec, **given, origins=origins) if given else spec
