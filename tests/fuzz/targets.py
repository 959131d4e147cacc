"""The parsers that read what others wrote. A target gets bytes; whatever it raises is a fault.

Expected refusals are caught here, each by the type that the parser promises.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import tempfile
from collections.abc import Callable
from functools import cache
from itertools import permutations
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec

from accelerd.base.decoding import from_json
from accelerd.base.errors import AccelError
from accelerd.base.model_source import Source as ModelSource
from accelerd.bus.paths import device_path, model_path
from accelerd.config.load import evaluate
from accelerd.config.problems import Source
from accelerd.control.state_store import StateStore
from accelerd.devices.model import Device, MemoryPool, usable
from accelerd.downloads.choice import choose
from accelerd.downloads.hub import list_files
from accelerd.engines.flm import stack
from accelerd.engines.flm.catalogue import of_listing
from accelerd.engines.lemonade import client as lemonade
from accelerd.engines.lemonade.program import features
from accelerd.engines.llama_server import fit_params, output
from accelerd.engines.llama_server.features import parse_help
from accelerd.estimate.estimate import EstimateSettings, estimate
from accelerd.estimate.gguf import Budget, GgufError
from accelerd.estimate.model_kind import identify_model
from accelerd.estimate.placing import options
from accelerd.estimate.remote import Web, part_urls, total_of
from accelerd.estimate.tensors import GgufModel, read_part
from accelerd.gateway.corrections import MESSAGES, correction_for, refusal_event
from accelerd.gateway.dialects.neutral import Answering
from accelerd.gateway.dialects.translation import CHAT, OLLAMA, TranslatedResponse, Translation
from accelerd.gateway.dialects.translation import MESSAGES as MESSAGES_API
from accelerd.gateway.engine_errors import corrected_error, hidden_error
from accelerd.gateway.handover import unpack
from accelerd.gateway.one_by_one import JoinedStreams
from accelerd.gateway.request_body import DECODERS, boundary_of, read_form, read_json, with_model
from accelerd.gateway.request_media import media
from accelerd.gateway.request_parser import RequestParser
from accelerd.gateway.response_framing import Chunked, FramingError, parse_head
from accelerd.gateway.responses import RESPONSES
from accelerd.gateway.stream_assembly import ask_for_stream, assemble
from accelerd.supervise.exit_messages import failed_allocation
from accelerd.supervise.homes.containers.refresh_context import RefreshRecord
from accelerd.supervise.instance_records import RecordStore

GIB = 1 << 30
GPUS = usable(
    Device("gpu", "card", "amdgpu", f"0000:0{slot}:00.0", pools=(MemoryPool("vram", size),), apu=False)
    for slot, size in ((1, 8 * GIB), (2, 24 * GIB))
)
BOUNDARY = "xyz"


def gguf(data: bytes) -> None:
    """A model's header, and what is concluded from it."""
    try:
        header, tensors = read_part(cast(Any, io.BytesIO(data)), 1 << 40, Budget())
    except GgufError:
        return
    model = GgufModel(header, tensors, ("m.gguf",))
    identify_model(model)
    adapter = GgufModel(header, {f"{name}.lora_a": tensor for name, tensor in tensors.items()}, ("a.gguf",))
    found = estimate(model, EstimateSettings(context=4096), model, model, (adapter,))
    for need in options(found, GPUS, gpu_layers=None, wanted_gpus=None):
        assert all(amount >= 0 for amount in need.amounts.values())


def request_head(data: bytes) -> None:
    """A client's requests, in pieces of the size that the first byte says."""
    size, data = (data[0] or 1, data[1:]) if data else (1, data)
    parser = RequestParser(local=False)
    for at in range(0, len(data), size):
        if parser.malformed is None:
            parser.feed(data[at : at + size])
    for request in parser.requests:
        request.encode()


def json_body(data: bytes) -> None:
    """A request's body, of the path that the first byte says, and what is made of it."""
    paths = list(DECODERS)
    path, body = paths[data[0] % len(paths)] if data else paths[0], data[1:]
    try:
        found = read_json(path, body)
    except AccelError:
        return
    found.wants_tools()
    media(body)
    with_model(body, "other")
    ask_for_stream(body)


def form_body(data: bytes) -> None:
    """A form, or the header that says how it is divided."""
    with contextlib.suppress(AccelError):
        found = read_form(data, BOUNDARY)
        read_form(found.with_model(data, "other"), BOUNDARY)
    with contextlib.suppress(AccelError):
        boundary_of(data.decode("latin-1"))


def response_head(data: bytes) -> None:
    """The head of an engine's response."""
    with contextlib.suppress(FramingError):
        parse_head(data)


def chunked(data: bytes) -> None:
    """A chunked body: in one piece and byte for byte the same comes of it."""

    def fed(pieces: list[bytes]) -> tuple[bool, bytes]:
        parser, payload = Chunked(), cast(list[bytes], [])
        try:
            for piece in pieces:
                parser.feed(piece, payload)
        except FramingError:
            return False, b""
        return parser.done, b"".join(payload)

    assert fed([data]) == fed([data[at : at + 1] for at in range(len(data))])


def events(data: bytes) -> None:
    """An engine's stream, put together and corrected, and the error in it."""
    with contextlib.suppress(AccelError):
        assemble(data)
    for correction in (correction_for(RESPONSES, "m"), correction_for(MESSAGES, "m"), JoinedStreams(2)):
        assert correction is not None
        for at in range(0, len(data), 100):
            correction.feed(data[at : at + 100])
        correction.end()
    hidden_error(data)
    for path in (RESPONSES, MESSAGES, "/v1/chat/completions"):
        _, corrected = corrected_error(500, data, path, "m")
        refusal_event(corrected, path, "m")


def config(data: bytes) -> None:
    """A configuration file."""
    text = data.decode("utf-8", "replace")
    files = [Source("accelerd.toml", Path("/nonexistent/accelerd.toml"), text)]
    evaluate(files, Path("/nonexistent/accelerd.toml"), Path("/nonexistent"), with_warnings=False)


def dialects(data: bytes) -> None:
    """What a client sends and what an engine answers, in an API that the other has not: byte for byte the same."""
    to = Answering("m", 0.0, lambda: 0.0, 0.0, 0.0)
    for client, engine in permutations((CHAT, MESSAGES_API, OLLAMA), 2):
        translation = Translation(client, engine)
        with contextlib.suppress(AccelError):
            translation.request(translation.request(data).body)
        response = TranslatedResponse(translation, to)
        response.error(data)
        with contextlib.suppress(AccelError):
            response.answer(data)
        fed: list[int] = []
        for size in (len(data) or 1, 1):
            stream, written = response.stream(), b""
            with contextlib.suppress(FramingError):
                for at in range(0, len(data), size):
                    written += stream.feed(data[at : at + size])
                written += stream.end()
                fed.append(len(written))
        assert len(fed) != 1 or not fed[0], "cut elsewhere it is an error"
        assert len(set(fed)) <= 1


class Offline(Web):
    """A hub that says one thing."""

    def __init__(self, said: bytes) -> None:
        super().__init__("https://hub")
        self._said = said

    def json(self, url: str) -> Any:
        try:
            return from_json(self._said)
        except msgspec.DecodeError as error:
            raise AccelError("download_failed", str(error)) from None


def hub(data: bytes) -> None:
    """A hub's answers, addresses, and names of models."""
    with contextlib.suppress(AccelError):
        found = list_files("org/repo", Offline(data))
        choose(found.files, lambda one: True, where="org/repo")
    text = data.decode("utf-8", "replace")
    with contextlib.suppress(AccelError, ValueError):
        source = ModelSource.parse(text)
        if source.url:
            part_urls(source.url)
    response = cast(Any, type("Response", (), {"headers": {"Content-Range": data.decode("latin-1")}}))
    with contextlib.suppress(AccelError):
        total_of(response, 0, "https://hub/x")


@cache
def folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="acc-fuzz-"))


def state_files(data: bytes) -> None:
    """What an earlier daemon has left, damaged."""
    place = folder()
    for name in ("state.json", "toolboxes.json", "1-aa.json"):
        (place / name).write_bytes(data)
        (place / name).chmod(0o600)
    StateStore(place / "state.json").load_seconds("m")
    RecordStore(place, "/run/user/1/accelerd").read_all()
    asyncio.run(RefreshRecord(place / "toolboxes.json", Path("/proc")).read())
    with contextlib.suppress(ValueError):
        unpack(data)
    for left in place.iterdir():
        left.unlink()


def bus_names(data: bytes) -> None:
    """Names of models and devices as parts of object paths."""
    text = data.decode("utf-8", "replace")
    paths = {model_path(text), model_path(text + "_"), device_path(text)}
    assert len(paths) == 3
    assert all(part.isascii() and part.replace("_", "").replace("/", "").isalnum() for part in paths)


def tools(data: bytes) -> None:
    """What engines and their tools print and answer."""
    text = data.decode("utf-8", "replace")
    parse_help(text)
    fit_params.parse(text)
    output.backend_listed(text)
    output.device_names(text, GPUS)
    output.vulkan_drivers(text)
    failed_allocation(cast(Any, SimpleNamespace(too_large=(), out_of_memory=output.OUT_OF_MEMORY)), text.splitlines())
    features("lemond", text, text)
    lemonade.release(text)
    said = lemonade._object(data)
    lemonade._refusal(500, said, "/x")
    lemonade._loaded(said)
    lemonade._listed(said)
    of_listing(said)
    stack.troubles(said)
    stack.devices(said)


TARGETS: dict[str, Callable[[bytes], None]] = {
    one.__name__.replace("_", "-"): one
    for one in (gguf, request_head, json_body, form_body, response_head, chunked, events, dialects, config, hub,
                state_files, bus_names, tools)
}  # fmt: skip
CORPUS = Path(__file__).parent / "corpus"


def seeds(target: str) -> list[bytes]:
    """Its inputs that are worth to begin with: one a file."""
    return [path.read_bytes() for path in sorted((CORPUS / target).iterdir())]
