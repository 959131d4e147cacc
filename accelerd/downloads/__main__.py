"""The process of one download: reads a request from standard input, fetches, prints what happens as JSON lines.

The only module that imports huggingface-hub: for what a file is at the hub (its commit, sum and size), for errors with
their reasons, and for tokens, which it renews. Files come into the cache of that library, so that other programs find
them. Nobody may see the token: it is never printed, logged or passed on a command line.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

from accelerd.base.errors import AccelError
from accelerd.base.model_source import Source
from accelerd.downloads.cache import Files, cached, hub_cache, located, place_of, repository
from accelerd.downloads.download import (
    ENCODER,
    REQUESTS,
    Arrived,
    DownloadDone,
    DownloadFailed,
    DownloadRequest,
    Message,
    Planned,
)  # fmt: skip
from accelerd.downloads.fetch import Fetcher, RemoteFile, disk_error, locked, require_space
from accelerd.downloads.hub import credential, endpoint, offline, token
from accelerd.downloads.plan import DEFAULTS, Plan, plan
from accelerd.estimate.model_kind import identify
from accelerd.estimate.remote import GATED, PRIVATE, Web, gated, host, private

if TYPE_CHECKING:
    from huggingface_hub.file_download import HfFileMetadata

EVERY: Final = 0.25  # s between two reports
SAFE: Final = re.compile(r"[A-Za-z0-9._-]{1,128}")
QUIET: Final = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_UPDATE_CHECK": "1",
}


def main() -> int:
    request = REQUESTS.decode(sys.stdin.buffer.readline())
    if not os.environ.get("HF_TOKEN") and (given := credential(os.environ)):
        os.environ["HF_TOKEN"] = given  # the library does not know of systemd's credentials
    os.environ.update(dict.fromkeys(QUIET, "1"))
    try:
        say(DownloadProcess(request, os.environ).run())
    except AccelError as error:
        candidates = tuple(error.fields.get("candidates", ()))
        say(DownloadFailed(error.code, error.problem, error.hint, candidates))
        return 1
    except OSError as error:
        failed = disk_error(error, hub_cache(os.environ, request.home))
        say(DownloadFailed(failed.code, failed.problem, failed.hint))
        return 1
    return 0


def say(message: Message) -> None:
    try:
        sys.stdout.buffer.write(ENCODER.encode(message) + b"\n")
        sys.stdout.buffer.flush()
    except BrokenPipeError:  # who asked has gone
        os._exit(1)


class DownloadProcess:
    """One request."""

    def __init__(self, request: DownloadRequest, env: Mapping[str, str]) -> None:
        self._request = request
        self._source = request.source
        self._env = env
        self._home = request.home
        self._total = 0
        self._before = 0  # bytes of the files that are complete
        self._here: int | None = None  # bytes of the one that arrives
        self._new = 0
        self._said = 0.0
        self._file = ""

    def run(self) -> DownloadDone:
        """Everything is here. AccelError."""
        source = self._source
        if (here := cached(source, self._env, self._home)) is not None:
            return self._done(source, here, "it was downloaded before")
        if not source.url and not offline(self._env):
            hub_token(self._env, self._home)  # renews a login that has expired, for all that follows
        settled = plan(
            source, self._env, self._home, room=self._request.room, settings=self._request.settings or DEFAULTS
        )
        self._total = settled.total
        say(Planned(str(settled.settled), settled.choice.reason, settled.total, settled.memory, settled.found))
        files = self._address(settled) if source.url else self._repository(settled)
        return self._done(settled.settled, files, settled.choice.reason)

    def _done(self, source: Source, files: Files, reason: str) -> DownloadDone:
        found = identify(files.model)
        if not found.runs:
            raise AccelError("download_failed", f"{files.model}: {found.reason}", hint=found.hint)
        return DownloadDone(str(source), files, found, reason)

    # --- a repository of the hub ------------------------------------------------------------------------------

    def _repository(self, settled: Plan) -> Files:
        folder = repository(self._source, self._env, self._home)
        choice = settled.choice
        # what belongs to the model comes first: as soon as the model is there, all of it is
        wanted = [file.name for file in reversed(choice.files)]
        metadata = {name: self._metadata(settled.commit, name) for name in wanted}
        self._total = sum(one.size or 0 for one in metadata.values()) or settled.total
        missing = 0
        for one in metadata.values():
            blob = folder / "blobs" / safe(one.etag)
            size = one.size or 0
            missing += 0 if blob.exists() else size - length(blob.with_name(f"{blob.name}.incomplete"))
        require_space(folder, missing)
        fetcher = self._fetcher(hub_token(self._env, self._home))
        commit = settled.commit
        for name, one in metadata.items():
            commit = one.commit_hash or settled.commit
            self._fetch(fetcher, folder, safe(commit), name, one)
        if commit != "main":
            write(folder / "refs/main", commit)
        return located(choice, folder / "snapshots" / commit)

    def _metadata(self, commit: str, name: str) -> HfFileMetadata:
        """What the hub says of a file."""
        from huggingface_hub import get_hf_file_metadata, hf_hub_url

        known = hub_token(self._env, self._home) if private(endpoint(self._env)) else None
        url = hf_hub_url(self._source.repo, name, revision=commit, endpoint=endpoint(self._env))
        try:
            return get_hf_file_metadata(url, token=known or False, timeout=20)
        except Exception as error:
            raise hub_error(error, self._source.repo, endpoint(self._env)) from error

    def _fetch(self, fetcher: Fetcher, folder: Path, commit: str, name: str, one: HfFileMetadata) -> None:
        """One file is in the cache."""
        etag = safe(one.etag)
        blob, pointer = folder / "blobs" / etag, folder / "snapshots" / commit / name
        self._file = name
        try:
            blob.parent.mkdir(parents=True, exist_ok=True)
            pointer.parent.mkdir(parents=True, exist_ok=True)
            lock = hub_cache(self._env, self._home) / ".locks" / folder.name / f"{etag}.lock"
            with locked(lock, self._tell):
                if not pointer.exists() and not blob.exists():
                    url = f"{endpoint(self._env)}/{self._source.repo}/resolve/{commit}/{quote(name)}"
                    partial = blob.with_name(f"{etag}.incomplete")
                    fetcher.fetch(RemoteFile(url, name, one.size or 0, etag), partial, blob, self._tell)
                link(blob, pointer)
        except OSError as error:
            raise disk_error(error, folder) from error
        self._complete(length(pointer))

    # --- an address -------------------------------------------------------------------------------------------

    def _address(self, settled: Plan) -> Files:
        places = [place_of(file.name, self._env, self._home) for file in settled.choice.files]
        require_space(places[0].parent, settled.total)
        fetcher = self._fetcher(None)
        for file, place in zip(settled.choice.files, places, strict=True):
            self._file = place.name
            try:
                place.parent.mkdir(parents=True, exist_ok=True)
                with locked(place.with_name(f".{place.name}.lock"), self._tell):
                    if not place.exists():
                        version = hashlib.sha256(file.version.encode()).hexdigest()[:12]
                        partial = place.with_name(f"{place.name}.{version}.incomplete")
                        wanted = RemoteFile(file.name, place.name, file.size, resumable=bool(file.version))
                        fetcher.fetch(wanted, partial, place, self._tell)
            except OSError as error:
                raise disk_error(error, place.parent) from error
            self._complete(length(place))
        return Files(places[0], tuple(places) if len(places) > 1 else ())

    # --- both -------------------------------------------------------------------------------------------------

    def _fetcher(self, known: str | None) -> Fetcher:
        return Fetcher(Web(endpoint(self._env), known), self._request.attempts, self._request.pause)

    def _tell(self, here: int | None = None) -> None:
        """Of the file that arrives, so many bytes are here."""
        if here is not None:
            if self._here is not None:
                self._new += max(0, here - self._here)
            self._here = here
        now = time.monotonic()
        if now - self._said >= EVERY:
            self._said = now
            count = self._before + (self._here or 0)
            say(Arrived(count, max(self._total, count), self._file, self._new))

    def _complete(self, size: int) -> None:
        self._before += size
        self._here = None
        self._said = 0.0
        self._tell()


def hub_token(env: Mapping[str, str], home: Path) -> str | None:
    """The user's token; a login that has expired is renewed."""
    from huggingface_hub import get_token

    try:
        return get_token()
    except Exception:  # it cannot be renewed: the hub will say what it thinks of the old one
        return token(env, home)


def hub_error(error: Exception, repo: str, hub: str) -> AccelError:
    """What an error of huggingface-hub means to a person."""
    from huggingface_hub import errors

    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.GatedRepoError):
        return gated(repo, hub)
    if isinstance(error, errors.RepositoryNotFoundError | errors.EntryNotFoundError | errors.RevisionNotFoundError):
        return AccelError("hub_not_found", f"{host(hub)} has no {repo}, or does not show it to you", hint=PRIVATE)
    if isinstance(error, errors.OfflineModeIsEnabled):
        return AccelError("hub_offline", "HF_HUB_OFFLINE is set, so nothing is downloaded", hint="unset it")
    if status in (401, 403):
        return AccelError("model_gated", f"{host(hub)} does not let you read {repo} (HTTP {status})", hint=GATED)
    if isinstance(status, int) and status < 500:
        return AccelError(
            "download_failed", f"{host(hub)} answers with HTTP {status} for {repo}", hint="try again later"
        )
    what = f"answers with HTTP {status}" if status else f"cannot be reached ({type(error).__name__})"
    return AccelError("hub_offline", f"{host(hub)} {what}", hint="check the network, then try again")


def safe(text: str | None) -> str:
    """A commit or sum that becomes the name of a file. AccelError."""
    if text is None or not SAFE.fullmatch(text) or text.startswith("."):
        raise AccelError(
            "download_failed", "the hub does not say which version of the file it has", hint="check HF_ENDPOINT"
        )
    return text


def length(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def link(blob: Path, pointer: Path) -> None:
    """The snapshot names the file; on a disk without symbolic links, it takes it."""
    if pointer.exists():
        return
    pointer.unlink(missing_ok=True)  # a link whose file had gone
    try:
        pointer.symlink_to(os.path.relpath(blob, pointer.parent))
    except OSError:
        blob.rename(pointer)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.new")
    new.write_text(text)
    new.replace(path)


if __name__ == "__main__":
    sys.exit(main())
