"""Finds and checks the files a start needs: the program and the model, before anything is run.

Looks at names, permissions and the first bytes; never reads a model. Blocking: call it in a thread.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from accelerd.base.exits import Cause
from accelerd.config.model import ModelSpec
from accelerd.engines.base import fail

Which = Callable[[str, str], str | None]  # name, search path → file

GGUF_MAGIC: Final = b"GGUF"
SHARD: Final = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")
HINT: Final = "install llama.cpp, or set `binary` under [engines.llama-server] to the program's path"
OVERHEAD: Final = 256 << 20  # bytes beside the weights: compute buffers and a small KV cache


def system_which(name: str, path: str) -> str | None:
    return shutil.which(name, path=path)


def find_binary(wanted: str, environ: Mapping[str, str], extra_dirs: Sequence[Path], which: Which) -> str:
    """The program's path. A name is looked up on PATH, then in `extra_dirs`; a path may begin with ~."""
    if "/" not in wanted:
        path = environ.get("PATH", os.defpath)
        found = which(wanted, os.pathsep.join([path, *map(str, extra_dirs)]))
        if found is None:
            places = "PATH" + "".join(f" and not in {d}" for d in extra_dirs)
            fail(Cause.NO_PROGRAM, f"cannot find the program {wanted}: it is not on {places}", HINT)
        return os.path.abspath(found)
    path = expand_home(wanted, environ)
    if not os.path.isabs(path):
        fail(Cause.NO_PROGRAM, f"cannot use {wanted}: write a name on PATH or an absolute path")
    if not os.path.exists(path):
        fail(Cause.NO_PROGRAM, f"cannot find the program {path}", HINT)
    if not os.path.isfile(path):
        fail(Cause.NO_PROGRAM, f"cannot run {path}: it is not a file")
    if not os.access(path, os.X_OK):
        fail(Cause.NO_PROGRAM, f"cannot run {path}: it is not executable (chmod +x helps if it is a program)")
    return path


def expand_home(path: str, environ: Mapping[str, str]) -> str:
    """`~` and `~/…` in terms of the environment given, not of this process."""
    home = environ.get("HOME")
    if home and (path == "~" or path.startswith("~/")):
        return home + path[1:]
    return os.path.expanduser(path)


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
