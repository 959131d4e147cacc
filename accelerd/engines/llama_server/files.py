"""The files of a model: where they are, what their headers say, their sizes, and their names in a container.

Checks them before anything is run; never reads weights. Blocking: call it in a thread.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, NoReturn

from msgspec import Struct

from accelerd.base import volumes
from accelerd.base.errors import AccelError
from accelerd.base.exits import Cause
from accelerd.base.model_source import Source
from accelerd.base.names import accelctl
from accelerd.config.model import ModelSpec, Origin, SetBy
from accelerd.config.named_files import named_files
from accelerd.downloads.cache import cached
from accelerd.engines.base import ContainerProgram, fail
from accelerd.estimate.model_kind import Identified, Kind, identify
from accelerd.estimate.tensors import Identity, ModelReader, identity, parts

FILES: Final = ("path", "mmproj", "draft_model", "chat_template_file")
FROM_HEADER: Final = Origin("the model's file")
MOST_KNOWN: Final = 512  # files
OVERHEAD: Final = 256 << 20  # bytes beside the weights: compute buffers and a small KV cache


class SeenFiles(Struct, frozen=True):
    """A model with the files that it is started on, and what their headers say."""

    told: ModelSpec  # as the configuration has it
    spec: ModelSpec
    model: Identified
    projector: Identified | None = None


class FileReader:
    """Says what files are, and remembers it for as long as they do not change. Blocking: call it in a thread."""

    def __init__(self, environ: Mapping[str, str], reader: ModelReader | None = None) -> None:
        """`environ`: where models of a hub lie, HF_HOME and others."""
        self._environ = environ
        self._reader = reader or ModelReader()
        self._known: dict[str, tuple[Identity, Identified]] = {}

    def look(self, spec: ModelSpec) -> SeenFiles:
        """A model's files, whatever they are; without a path while a model of a hub is not here."""
        found = self._located(spec)
        model = self._identify(found.path) if found.path else Identified(Kind.CHAT)
        projector = self._identify(found.mmproj) if found.mmproj else None
        return SeenFiles(spec, with_task(found, model.kind), model, projector)

    def check(self, spec: ModelSpec) -> SeenFiles:
        """The same. AccelError('model_failed') for a file that cannot be what the configuration says."""
        try:
            volumes.check(path for _, path in named_files(spec))
        except volumes.NoAnswer as error:
            fail(Cause.LOAD_TIMEOUT, f"cannot read the files of {spec.name}: {error.strerror}")
        seen = self.look(spec)
        if spec.model and not seen.spec.path:
            try:
                Source.parse(spec.model)
            except AccelError as error:
                fail(Cause.NO_MODEL, error.problem, error.hint)
            hint = f"{accelctl('load', spec.name)} downloads it"
            fail(Cause.NOT_DOWNLOADED, f"not all files of {spec.model} are on this machine", hint)
        if seen.spec.path and not seen.model.runs and not seen.model.unsure:
            _refuse(seen.spec.path, "model", seen.model)
        projector = seen.projector
        if seen.spec.mmproj and projector and projector.kind is not Kind.PROJECTOR and not projector.unsure:
            _refuse(seen.spec.mmproj, "projector", projector)
        if draft := seen.spec.draft_model:
            found = self._identify(draft)
            if not found.runs and not found.drafts and not found.unsure:
                _refuse(draft, "draft model", found)
        for adapter in seen.spec.lora:
            found = self._identify(adapter.path)
            if not found.adapts and not found.unsure:
                _refuse(adapter.path, "LoRA adapter", found)
        template = spec.chat_template_file
        if template and not os.access(template, os.R_OK):
            fail(Cause.NO_MODEL, f"cannot read the chat template {template}: is chat_template_file right?")
        return seen

    def _located(self, spec: ModelSpec) -> ModelSpec:
        """With the paths of what was downloaded for it."""
        if spec.path or not spec.model:
            return spec
        try:
            source = Source.parse(spec.model)
            found = cached(source, self._environ, Path(self._environ.get("HOME") or Path.home()))
        except AccelError:  # `check` says so
            return spec
        if found is None:
            return spec
        own = {"mmproj": found.mmproj, "draft_model": found.draft}
        given = {key: str(path) for key, path in own.items() if path is not None and getattr(spec, key) is None}
        changed: dict[str, Any] = {"path": str(found.model), **given}
        return replace(spec, **changed, origins={**spec.origins, **dict.fromkeys(changed, spec.origin("model"))})

    def _identify(self, path: str) -> Identified:
        try:
            now = identity(path)
        except OSError:
            return identify(Path(path))  # which says why it cannot be read
        known = self._known.get(path)
        if known is None or known[0] != now:
            while len(self._known) >= MOST_KNOWN:
                self._known.pop(next(iter(self._known)))
            known = self._known[path] = now, identify(Path(path), self._reader.read)
        return known[1]


def meta_of(model: Identified, context: int | None) -> dict[str, int] | None:
    """What the header of a model says in numbers, as llama-server's `meta` has it; None: nothing."""
    numbers = model.numbers
    if not numbers.parameters:
        return None
    found = {
        "n_vocab": numbers.vocabulary,
        "n_ctx": context or 0,
        "n_ctx_train": model.context,
        "n_embd": numbers.width,
        "n_params": numbers.parameters,
        "size": numbers.weights,
    }
    return {name: number for name, number in found.items() if number}


def with_task(spec: ModelSpec, kind: Kind) -> ModelSpec:
    """`embeddings` or `rerank` where the model's header says so and the user says nothing of either."""
    key = {Kind.EMBEDDING: "embeddings", Kind.RERANK: "rerank"}.get(kind)
    if key is None or spec.embeddings or spec.rerank or "embeddings" in spec.origins or "rerank" in spec.origins:
        return spec
    changed: dict[str, Any] = {key: True}
    return replace(spec, **changed, origins={**spec.origins, key: FROM_HEADER})


def _refuse(path: str, what: str, found: Identified) -> NoReturn:
    if not os.path.lexists(path):
        fail(Cause.NO_MODEL, f"cannot find the {what} {path}")
    reason = found.reason or f"it is a {found.kind} model, not a {what}"
    fail(Cause.NO_MODEL, f"cannot use {path} as {what}: {reason}", found.hint)


def footprint(spec: ModelSpec) -> tuple[int, str]:
    """Bytes to reserve, and why. Never raises; (0, "unknown: …") where nothing can be said."""
    if not spec.path:
        return 0, "unknown: its files are not downloaded yet"
    files = parts(spec.path)
    total = 0
    for path in [*files, *([spec.mmproj] if spec.mmproj else [])]:
        try:
            volumes.check([path])
            total += os.stat(path).st_size
        except OSError as e:
            return 0, f"unknown: cannot read {path}: {e.strerror}"
    what = "file size" if len(files) == 1 else f"size of {len(files)} files"
    return total * 11 // 10 + OVERHEAD, f"{what}{' and projector' if spec.mmproj else ''} + 10 % + 256 MiB"


def files_of(spec: ModelSpec) -> list[str]:
    """The files that the program will open, all shards of a model among them."""
    named = [value for field in FILES[1:] if (value := getattr(spec, field))]
    return [*(parts(spec.path) if spec.path else []), *named, *(adapter.path for adapter in spec.lora)]


def as_seen_inside(spec: ModelSpec, found: ContainerProgram) -> ModelSpec:
    """The model with the names and settings that hold inside. AccelError('model_failed'): a file cannot be seen."""
    hidden = [file for file in files_of(spec) if file not in found.files]
    if hidden:
        where = f"{spec.home} {spec.container}" if spec.container else f"{spec.home} {spec.image}"
        fail(
            Cause.NO_MODEL, f"cannot see {hidden[0]} in {where}: put it below your home directory, or mount its folder"
        )
    changed: dict[str, Any] = {field: found.files[value] for field in FILES if (value := getattr(spec, field))}
    changed["lora"] = tuple(replace(adapter, path=found.files[adapter.path]) for adapter in spec.lora)
    wanted = {key: value for key, value in found.settings.items() if getattr(spec, key) is None}
    origins = {**spec.origins, **{key: Origin(found.source, by=SetBy.IMAGE) for key in wanted}}
    return replace(spec, **changed, **wanted, origins=origins)
