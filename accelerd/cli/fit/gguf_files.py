"""Finds GGUF files: by path, by directory, by a part of the name in the places where other programs keep them.

Reads directories and headers. Must never follow a network, change anything, or choose between two models by itself:
what is ambiguous is listed.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from accelerd.base import volumes
from accelerd.base.model_source import HOSTS
from accelerd.cli.failure import ExitStatus, Failure
from accelerd.estimate.model_kind import Identified, Kind, identify

SHARD = re.compile(r"-(\d{5})-of-(\d{5})$")
PROJECTOR = "mmproj"
FEW = 4  # files beside a model whose headers are read to find its projector
MAX_DEPTH = 7  # below a well-known directory; a hub snapshot is at five
MAX_ENTRIES = 50_000  # looked at in one directory tree, so that a link to a whole disk does not hang
UNREAL = ("/proc", "/sys", "/dev")  # hold no files of models
SHOWN = 8  # candidates that an error lists


@dataclass(frozen=True)
class FoundModel:
    """A model's first file, what its header says, and its projector if exactly one lies beside it."""

    path: Path
    found: Identified
    mmproj: Path | None = None

    @property
    def name(self) -> str:
        return name_of(self.path, self.found.name)


def well_known(home: Path, env: Mapping[str, str]) -> list[Path]:
    """Where models lie on most machines, most likely first; only what exists."""
    cache = Path(env.get("XDG_CACHE_HOME") or home / ".cache")
    data = Path(env.get("XDG_DATA_HOME") or home / ".local/share")
    hub = env.get("HF_HUB_CACHE") or (f"{env['HF_HOME']}/hub" if env.get("HF_HOME") else cache / "huggingface/hub")
    places = [
        home / "models",
        home / "Models",
        data / "models",
        data / "accelerd/models",
        Path(env.get("LLAMA_CACHE") or cache / "llama.cpp"),
        Path(hub),
        home / ".lmstudio/models",
        cache / "lm-studio/models",
        data / "nomic.ai/GPT4All",
        Path("/usr/share/models"),
        Path("/usr/local/share/models"),
        Path("/srv/models"),
        Path("/opt/models"),
    ]
    seen = volumes.look(map(str, places))
    return [place for place in places if isinstance(found := seen[str(place)], volumes.Seen) and found.is_dir]


def without_scheme(text: str) -> str:
    """A path, where the address of a file on this machine is what was copied."""
    return unquote(text.removeprefix("file://")) if text.startswith("file:///") else text


def looks_like_path(text: str) -> bool:
    named_as_file = "/" in text and text.lower().endswith(".gguf") and text.partition("/")[0].lower() not in HOSTS
    return text.startswith(("/", "~", ".")) or named_as_file or _there(text)


def _there(text: str) -> bool:
    seen = volumes.look([text])[text]
    return isinstance(seen, volumes.NoAnswer) or not seen.error


def by_path(path: Path) -> FoundModel:
    """The model at a file or in a directory with exactly one. Raises Failure."""
    if is_directory(path):
        candidates = sorted(files_below(path))
        if not candidates:
            raise Failure(f"there is no GGUF file in {path}", code="not_found")
        if len(candidates) > 1:
            raise ambiguous(f"{path} holds {len(candidates)} models", candidates)
        path = candidates[0]
    return model_at(path)


def is_directory(path: Path) -> bool:
    """Failure if its disk does not answer."""
    (seen,) = volumes.look([str(path)]).values()
    if isinstance(seen, volumes.NoAnswer):
        raise Failure(f"cannot read {path}: {seen.strerror}", code="no_answer")
    return seen.is_dir


def model_at(path: Path) -> FoundModel:
    """The model of which that file is any part. Raises Failure."""
    is_directory(path)
    found = identify(path)
    if found.first is not None:
        path, found = found.first, identify(found.first)
    if not path.exists() and not path.is_symlink():  # a link says itself what is wrong with it
        raise Failure(f"there is no such file: {path}", code="not_found")
    if not found.runs:
        raise Failure(f"{path} cannot be used: {found.reason}", code="bad_model", hint=found.hint)
    return FoundModel(path, found, projector(path))


def by_name(text: str, places: list[Path]) -> FoundModel:
    """The one model whose path below a well-known directory has every word of the text. Raises Failure."""
    words = text.lower().split()
    seen: dict[str, Path] = {}
    for place in places:
        for path in files_below(place):
            relative = str(path.relative_to(place)).lower()
            if all(word in relative for word in words):
                seen.setdefault(real_path(path), path)
    candidates = sorted(seen.values())
    exact = [path for path in candidates if text.lower() in (path.name.lower(), path.stem.lower(), name_of(path))]
    if len(exact) == 1:
        candidates = exact
    if not candidates:
        looked = ", ".join(map(str, places)) or "none of the usual directories exist"
        raise Failure(
            f"found no GGUF file with {text!r} in its name (searched: {looked})",
            code="not_found",
            hint="give its path, or the name of a model of Hugging Face: hf:ORG/REPO",
        )
    if len(candidates) > 1:
        raise ambiguous(f"{text!r} matches {len(candidates)} models", candidates)
    return model_at(candidates[0])


def real_path(path: Path) -> str:
    """Of what lies on a disk that does not answer, the path itself."""
    return str(path) if isinstance(volumes.look([str(path)])[str(path)], volumes.NoAnswer) else os.path.realpath(path)


def ambiguous(message: str, candidates: list[Path]) -> Failure:
    more = len(candidates) - SHOWN
    shown = [str(path) for path in candidates[:SHOWN]] + ([f"… and {more} more"] if more > 0 else [])
    return Failure(
        message, exit=ExitStatus.USAGE, code="ambiguous", hint="give the path of one of them", tail=shown,
        fields={"candidates": [str(path) for path in candidates]},
    )  # fmt: skip


def files_below(directory: Path, on_limit: Callable[[], None] = lambda: None) -> Iterator[Path]:
    """Every model below a directory: first shards only, no projectors, no hidden directories, no disks that hang.

    `on_limit`: there is more than is looked at.
    """
    left = MAX_ENTRIES
    below = volumes.look(volumes.mounts_below(str(directory)))
    hang = {point for point, seen in below.items() if isinstance(seen, volumes.NoAnswer)}
    for folder, folders, files in _walk(str(directory), hang):
        depth = len(Path(folder).relative_to(directory).parts)
        folders[:] = sorted(f for f in folders if not f.startswith(".") and os.path.join(folder, f) not in UNREAL)
        left -= len(files) + len(folders)
        if left < 0 or (depth == MAX_DEPTH and folders):
            on_limit()
        if left < 0:
            return
        folders[:] = folders if depth < MAX_DEPTH else []
        for name in files:
            path = Path(folder, name)
            shard = SHARD.search(path.stem)
            if path.suffix.lower() == ".gguf" and not is_projector(path) and not (shard and shard[1] != "00001"):
                yield path


def _walk(top: str, hang: Collection[str]) -> Iterator[tuple[str, list[str], list[str]]]:
    """os.walk, which would look where links of a disk that hangs lead."""
    folders: list[str] = []
    files: list[str] = []
    try:
        with os.scandir(top) as entries:
            for entry in entries:
                if not hang or os.path.abspath(entry.path) not in hang:
                    (folders if entry.is_dir(follow_symlinks=False) else files).append(entry.name)
    except OSError:
        return
    yield top, folders, files
    for name in folders:
        yield from _walk(os.path.join(top, name), hang)


def is_projector(path: Path) -> bool:
    return PROJECTOR in path.name.lower()


def projector(path: Path) -> Path | None:
    """The projector that belongs to a model: the only one in a directory with only this model."""
    stem = SHARD.sub("", path.stem)
    beside = [p for p in path.parent.iterdir() if p.suffix.lower() == ".gguf" and SHARD.sub("", p.stem) != stem]
    named = [p for p in beside if is_projector(p)]
    others = [p for p in beside if not is_projector(p)]
    if len(others) <= FEW:
        unnamed = [p for p in others if identify(p).kind is Kind.PROJECTOR]
        named, others = [*named, *unnamed], [p for p in others if p not in unnamed]
    return named[0] if len(named) == 1 and not others else None


QUANT = re.compile(
    r"[-._](?:UD[-_])?(?:I?Q\d+(?:_[0-9A-Z]+)*|TQ\d(?:_\d)?|MXFP\d(?:_MOE)?|NVFP4|BF16|FP?16|FP?32|FP8)$", re.IGNORECASE
)
REPOSITORY = re.compile(r"^[\w.-]+?_[\w.-]+-GGUF_(?=.)", re.IGNORECASE)  # llama.cpp's cache: org_repo-GGUF_file
NO_NAME = re.compile(r"(?:ggml-)?model|file|download|weights|[0-9a-f]{8,}")  # that say nothing of the model
UNSUITABLE = re.compile(r"[^\w.-]+")


def name_of(path: Path, title: str = "") -> str:
    """A model's name from its file's: lower case, without repository, shard and quantization; else from its title."""
    own = tidy(REPOSITORY.sub("", SHARD.sub("", path.stem))) if path.suffix.lower() == ".gguf" else ""
    return (own if not NO_NAME.fullmatch(own) else "") or tidy(title) or own or "model"


def name_of_id(id: str) -> str:
    """A model name from "org/repo[:quant]"."""
    return tidy(id.partition(":")[0].rpartition("/")[2]) or "model"


def tidy(text: str) -> str:
    text = re.sub(r"[-._]GGUF$", "", unicodedata.normalize("NFC", text), flags=re.IGNORECASE)
    text = re.sub(r"[-._]GGUF$", "", QUANT.sub("", f"-{text}"), flags=re.IGNORECASE)
    return UNSUITABLE.sub("-", text.lower()).strip("-._")


def unique(name: str, taken: set[str]) -> str:
    """The name, or the name with the first free number."""
    if name not in taken:
        return name
    number = 2
    while f"{name}-{number}" in taken:
        number += 1
    return f"{name}-{number}"
