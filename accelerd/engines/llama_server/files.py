"""The files of a model: checked before anything is run, their sizes, and their names in a container.

Looks at names, permissions and the first bytes; never reads a model. Blocking: call it in a thread.
"""

from __future__ import annotations

import os
import re
from dataclasses import replace
from typing import Any, Final

from accelerd.base.exits import Cause
from accelerd.config.model import ModelSpec, Origin, SetBy
from accelerd.engines.base import ContainerProgram, fail

FILES: Final = ("path", "mmproj", "draft_model", "chat_template_file")
GGUF_MAGIC: Final = b"GGUF"
SHARD: Final = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")
OVERHEAD: Final = 256 << 20  # bytes beside the weights: compute buffers and a small KV cache


def check_files(spec: ModelSpec) -> None:
    """Raises AccelError('model_failed') for a model, projector or template that cannot be read."""
    if spec.path:
        match = SHARD.fullmatch(os.path.basename(spec.path))
        if match and int(match["number"]) != 1:
            first = f"{match['stem']}-00001-of-{match['count']}.gguf"
            fail(
                Cause.NO_MODEL,
                f"cannot load {spec.path}: it is part {int(match['number'])} of {int(match['count'])} of a model;"
                f" set path to the first one, {first}",
            )
        for shard in shards(spec.path):
            _check_gguf(shard, "model")
    if spec.mmproj:
        _check_gguf(spec.mmproj, "projector")
    if spec.draft_model:
        _check_gguf(spec.draft_model, "draft model")
    if spec.chat_template_file and not os.access(spec.chat_template_file, os.R_OK):
        fail(Cause.NO_MODEL, f"cannot read the chat template {spec.chat_template_file}: is chat_template_file right?")


def shards(path: str) -> list[str]:
    """All files of a model, whose first is given."""
    folder, name = os.path.split(path)
    match = SHARD.fullmatch(name)
    if not match:
        return [path]
    count = int(match["count"])
    return [os.path.join(folder, f"{match['stem']}-{i:05d}-of-{match['count']}.gguf") for i in range(1, count + 1)]


def _check_gguf(path: str, what: str) -> None:
    try:
        # Not to hang on a FIFO. (An opener and not fdopen, which leaks the descriptor of a directory.)
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as f:
            magic = f.read(8)
    except FileNotFoundError:
        fail(Cause.NO_MODEL, f"cannot find the {what} {path}")
    except IsADirectoryError:
        fail(Cause.NO_MODEL, f"cannot load {path}: it is a directory", "name the .gguf file in it")
    except OSError as e:
        fail(Cause.NO_MODEL, f"cannot read the {what} {path}: {e.strerror}")
    if not magic:
        fail(Cause.NO_MODEL, f"cannot load {path}: the file is empty")
    if magic.startswith(b"version "):
        fail(Cause.NO_MODEL, f"cannot load {path}: it is a Git LFS pointer", "fetch the file itself (git lfs pull)")
    if not magic.startswith(GGUF_MAGIC):
        fail(Cause.NO_MODEL, f"cannot load {path}: it is not a GGUF file")


def footprint(spec: ModelSpec) -> tuple[int, str]:
    """Bytes to reserve, and why. Never raises; (0, "unknown: …") where nothing can be said."""
    if not spec.path:
        return 0, "unknown: the model is downloaded by llama-server; set memory"
    files = shards(spec.path)
    total = 0
    for path in [*files, *([spec.mmproj] if spec.mmproj else [])]:
        try:
            total += os.stat(path).st_size
        except OSError as e:
            return 0, f"unknown: cannot read {path}: {e.strerror}"
    what = "file size" if len(files) == 1 else f"size of {len(files)} files"
    return total * 11 // 10 + OVERHEAD, f"{what}{' and projector' if spec.mmproj else ''} + 10 % + 256 MiB"


def files_of(spec: ModelSpec) -> list[str]:
    """The files that the program will open, all shards of a model among them."""
    named = [value for field in FILES[1:] if (value := getattr(spec, field))]
    return [*(shards(spec.path) if spec.path else []), *named]


def as_seen_inside(spec: ModelSpec, found: ContainerProgram) -> ModelSpec:
    """The model with the names and settings that hold inside. AccelError('model_failed'): a file cannot be seen."""
    hidden = [file for file in files_of(spec) if file not in found.files]
    if hidden:
        where = f"{spec.home} {spec.container}" if spec.container else f"{spec.home} {spec.image}"
        fail(
            Cause.NO_MODEL, f"cannot see {hidden[0]} in {where}: put it below your home directory, or mount its folder"
        )
    changed: dict[str, Any] = {field: found.files[value] for field in FILES if (value := getattr(spec, field))}
    wanted = {key: value for key, value in found.settings.items() if getattr(spec, key) is None}
    origins = {**spec.origins, **{key: Origin(found.source, by=SetBy.IMAGE) for key in wanted}}
    return replace(spec, **changed, **wanted, origins=origins)
