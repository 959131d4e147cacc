"""What a download will fetch: which files, how many bytes, what the model is and how much memory it will take.

Reads the header of one candidate from the hub, a few MiB; other quantizations of the same model are scaled by the size
of their files. Writes nothing. Blocks: call it in a thread.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from msgspec import Struct

from accelerd.base.errors import AccelError
from accelerd.base.model_source import Source
from accelerd.downloads.choice import Candidate, Choice, HubFile, choose, projector_of
from accelerd.downloads.hub import Listing, file_url, list_files, open_hub
from accelerd.estimate.estimate import Estimate, EstimateSettings, estimate
from accelerd.estimate.model_kind import Identified, identify_model
from accelerd.estimate.remote import NoRanges, Web, check_private, in_time, part_urls, read_model_at
from accelerd.estimate.tensors import GgufModel

DEFAULTS: Final = EstimateSettings(context=8192)


class Plan(Struct, frozen=True):
    """What will be fetched."""

    source: Source
    choice: Choice
    commit: str  # of the repository; empty for an address
    found: Identified | None  # None: the server shows no header
    memory: int  # bytes it will take in all, estimated; 0: not known
    total: int  # bytes to fetch, as far as the hub says

    @property
    def settled(self) -> Source:
        """The source with the quantization that was chosen, so that the next look finds the same files."""
        if self.source.url or self.source.file:
            return self.source
        return Source(self.source.repo, self.choice.candidate.quant)


class Remote(Struct, frozen=True):
    """A model on a server, its headers read."""

    url: str  # of the first file
    model: GgufModel
    size: int  # bytes of the model's files
    read: int  # bytes that were read
    projector: GgufModel | None = None


def plan(
    source: Source,
    env: Mapping[str, str],
    home: Path,
    *,
    room: int | None = None,
    settings: EstimateSettings = DEFAULTS,
) -> Plan:
    """What to fetch so that the model fits into `room` bytes of memory; None: whatever its size. AccelError."""
    web = open_hub(env, home)
    return in_time(lambda: _plan(source, web, room, settings))


def _plan(source: Source, web: Web, room: int | None, settings: EstimateSettings) -> Plan:
    if source.url:
        return _of_address(source, web, room, settings)
    listing = list_files(source.repo, web)
    headers = _Headers(listing, web, settings)

    def fits(candidate: Candidate) -> bool:
        return room is None or headers.memory(candidate) <= room

    choice = choose(listing.files, fits, quant=source.quant, file=source.file, where=source.repo)
    found = headers.known(choice.candidate).found
    return Plan(source, choice, listing.commit, found, headers.memory(choice.candidate), choice.size)


def read_remote(source: Source, env: Mapping[str, str], home: Path) -> Remote:
    """The headers of a model on a server. AccelError."""
    web = open_hub(env, home)
    return in_time(lambda: _read_remote(source, web))


def _read_remote(source: Source, web: Web) -> Remote:
    if source.url:
        check_private(source.url, web.hub)
        urls = part_urls(source.url)
        model, opened = read_model_at(urls, web)
        return Remote(urls[0], model, sum(file.size for file in opened), web.read)
    listing = list_files(source.repo, web)
    choice = choose(listing.files, lambda one: True, quant=source.quant, file=source.file, where=source.repo)
    model, size, projector = _read(listing, choice.candidate, choice.mmproj, web)
    return Remote(model.files[0], model, size, web.read, projector)


def _of_address(source: Source, web: Web, room: int | None, settings: EstimateSettings) -> Plan:
    check_private(source.url, web.hub)
    urls = part_urls(source.url)
    try:
        model, opened = read_model_at(urls, web)
    except NoRanges:
        files = tuple(HubFile(url) for url in urls)
        return Plan(source, Choice(Candidate("", files), "as named"), "", None, 0, 0)
    found = _runnable(identify_model(model), source.url)
    memory = estimate(model, settings).total
    choice = Choice(
        Candidate("", tuple(HubFile(file.url, file.size, file.version) for file in opened)),
        "as named",
        room is None or memory <= room,
    )
    return Plan(source, choice, "", found, memory, choice.size)


class _Known(Struct, frozen=True):
    """One candidate whose header was read."""

    candidate: Candidate
    size: int  # bytes of its files
    found: Identified
    estimate: Estimate


class _Headers:
    """Reads the header of the candidate that is asked about first, and scales for the others."""

    def __init__(self, listing: Listing, web: Web, settings: EstimateSettings) -> None:
        self._listing = listing
        self._web = web
        self._settings = settings
        self._known: _Known | None = None

    def known(self, candidate: Candidate) -> _Known:
        if self._known is None:
            mmproj = projector_of(self._listing.files)
            model, size, projector = _read(self._listing, candidate, mmproj, self._web)
            found = _runnable(identify_model(model), candidate.first)
            self._known = _Known(candidate, size, found, estimate(model, self._settings, projector))
        return self._known

    def memory(self, candidate: Candidate) -> int:
        """Bytes that the candidate will take."""
        known = self.known(candidate)
        size = candidate.size or known.size
        more = 0 if candidate is known.candidate else known.estimate.weights * (size - known.size) // known.size
        return known.estimate.total + more


def _read(
    listing: Listing, candidate: Candidate, mmproj: HubFile | None, web: Web
) -> tuple[GgufModel, int, GgufModel | None]:
    urls = [file_url(listing.repo, listing.commit, file.name, web) for file in candidate.files]
    model, opened = read_model_at(urls, web)
    size = sum(file.size for file in opened)
    if mmproj is None:
        return model, size, None
    extra, _ = read_model_at([file_url(listing.repo, listing.commit, mmproj.name, web)], web)
    return model, size, extra


def _runnable(found: Identified, name: str) -> Identified:
    """The same, or the refusal of a file that no engine can run. AccelError."""
    if not found.runs:
        raise AccelError("bad_request", f"{name}: {found.reason}", hint=found.hint)
    return found
