"""Where the files of a model lie: in the hub's cache, which other programs share, in llama.cpp's, in accelerd's folder.

Reads directories only: no network, and nothing of huggingface-hub. The layout of the hub's cache is that library's:
models--ORG--REPO/{refs/main,snapshots/COMMIT/FILE,blobs/ETAG}.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

from msgspec import Struct

from accelerd.base import volumes
from accelerd.base.errors import AccelError
from accelerd.base.files import read_small
from accelerd.base.model_source import Source
from accelerd.downloads.choice import Choice, HubFile, choose, is_gguf
from accelerd.estimate.tensors import parts

MOST: Final = 4096  # files of one repository that are looked at


class Files(Struct, frozen=True):
    """Everything of a model that an engine is started on."""

    model: Path  # the first part
    shards: tuple[Path, ...] = ()  # all parts, where there are several
    mmproj: Path | None = None
    draft: Path | None = None


def hub_home(env: Mapping[str, str], home: Path) -> Path:
    """$HF_HOME, as huggingface-hub finds it."""
    if value := env.get("HF_HOME"):
        return expand(value, env, home)
    cache = env.get("XDG_CACHE_HOME")
    return (expand(cache, env, home) if cache else home / ".cache") / "huggingface"


def hub_cache(env: Mapping[str, str], home: Path) -> Path:
    """The folder with the repositories."""
    value = env.get("HF_HUB_CACHE") or env.get("HUGGINGFACE_HUB_CACHE")
    return expand(value, env, home) if value else hub_home(env, home) / "hub"


def expand(text: str, env: Mapping[str, str], home: Path) -> Path:
    """A path in an environment variable, with "~" and "$VARIABLE"."""
    for name, value in env.items():
        text = text.replace(f"${{{name}}}", value) if "$" in text else text
        if text == f"${name}" or text.startswith(f"${name}/"):
            text = value + text[len(name) + 1 :]
    if text == "~" or text.startswith("~/"):
        text = f"{home}{text[1:]}"
    return Path(text)


def repository(source: Source, env: Mapping[str, str], home: Path) -> Path:
    """The folder of a repository in the cache."""
    return hub_cache(env, home) / f"models--{source.repo.replace('/', '--')}"


def data_folder(env: Mapping[str, str], home: Path) -> Path:
    """Where the files of addresses lie."""
    value = env.get("XDG_DATA_HOME", "")
    return (Path(value) if value.startswith("/") else home / ".local/share") / "accelerd/models"


def place_of(url: str, env: Mapping[str, str], home: Path) -> Path:
    """Where the file of an address lies: SERVER/PATH, so that two servers' model.gguf do not meet.

    A query gets a folder of its own: it may name another file. Only its digest, because it may also be secret.
    """
    split = urlsplit(url)
    names = [name for name in unquote(split.path).split("/") if name not in ("", ".", "..")]
    if split.query:
        names.insert(-1, f"query-{hashlib.sha256(split.query.encode()).hexdigest()[:12]}")
    return data_folder(env, home).joinpath(split.netloc.rpartition("@")[2].replace(":", "_"), *names)


def cached(source: Source, env: Mapping[str, str], home: Path) -> Files | None:
    """The files of a model that are here, all of them; None when something is missing. AccelError: a disk hangs."""
    try:
        volumes.check([os.fspath(place_of(source.url, env, home) if source.url else hub_cache(env, home))])
    except volumes.NoAnswer as error:
        raise AccelError("download_failed", f"cannot see which models are here: {error.strerror}") from None
    if source.url:
        files = [Path(one) for one in parts(str(place_of(source.url, env, home)))]
        if not all(file.is_file() for file in files):
            return None
        return Files(files[0], tuple(files) if len(files) > 1 else ())
    folder = repository(source, env, home)
    for snapshot in _snapshots(folder):
        files_here = _files_in(snapshot)
        try:
            choice = choose(files_here, lambda one: True, quant=source.quant, file=source.file, where=source.repo)
        except AccelError:
            continue
        return located(choice, snapshot)
    return _of_llama_cpp(source, env, home)


def located(choice: Choice, folder: Path, prefix: str = "") -> Files:
    """The files of a choice in a folder, where each name begins with `prefix`."""

    def place(file: HubFile) -> Path:
        return folder / f"{prefix}{file.name}"

    model = tuple(map(place, choice.candidate.files))
    return Files(
        model[0],
        model if len(model) > 1 else (),
        place(choice.mmproj) if choice.mmproj else None,
        place(choice.draft) if choice.draft else None,
    )


def _of_llama_cpp(source: Source, env: Mapping[str, str], home: Path) -> Files | None:
    """What llama-server itself has downloaded (-hf), before it used the hub's cache: ORG_REPO_FILE in a folder."""
    given, cache = env.get("LLAMA_CACHE"), env.get("XDG_CACHE_HOME")
    folder = Path(given) if given else (expand(cache, env, home) if cache else home / ".cache") / "llama.cpp"
    prefix = f"{source.repo.replace('/', '_')}_"
    try:
        names = sorted(name for name in os.listdir(folder) if name.startswith(prefix) and is_gguf(name))
    except OSError:
        return None
    files = [HubFile(name.removeprefix(prefix)) for name in names[:MOST]]
    file = source.file.replace("/", "_")
    try:
        choice = choose(files, lambda one: True, quant=source.quant, file=file, where=source.repo)
    except AccelError:
        return None
    return located(choice, folder, prefix)


def _snapshots(folder: Path) -> list[Path]:
    """That of the main branch first, then older ones."""
    try:
        commit = read_small(folder / "refs/main").decode().strip()
    except (OSError, ValueError):
        commit = ""
    try:
        found = sorted((folder / "snapshots").iterdir(), key=lambda path: -path.stat().st_mtime)
    except OSError:
        return []
    return sorted((path for path in found if path.is_dir()), key=lambda path: path.name != commit)


def _files_in(snapshot: Path) -> list[HubFile]:
    """The GGUF files that are there: a link whose file is gone is not."""
    found: list[HubFile] = []
    for folder, folders, names in os.walk(snapshot):
        folders.sort()
        for name in sorted(names):
            path = Path(folder, name)
            if not is_gguf(name) or len(found) >= MOST:
                continue
            try:
                found.append(HubFile(str(path.relative_to(snapshot)), path.stat().st_size))
            except OSError:
                continue
    return found
