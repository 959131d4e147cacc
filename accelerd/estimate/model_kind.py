"""What a model file is, from its header alone: a chat model, an embedding model, a projector, or nothing to run.

A refusal says what the file is and what to do instead. Never fails, never reads weights. Blocking: call it in a thread.
"""

from __future__ import annotations

import math
import os
import re
import stat
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from accelerd.base import volumes
from accelerd.estimate.gguf import MAGIC, GgufError, TruncatedError, open_file
from accelerd.estimate.model_facts import ENCODERS
from accelerd.estimate.tensors import PART, GgufModel, parts, read_model

RANK: Final = 4  # pooling types; NO_POOLING says that nobody has to pool
NO_POOLING: Final = 0
LISTED: Final = 4  # missing files that a message names
BEGINNING: Final = 4096  # bytes that tell what is no GGUF file
FULL_PATH: Final = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<end>\.gguf)", re.IGNORECASE)


class Kind(StrEnum):
    CHAT = "chat"
    COMPLETION = "completion"  # continues text; it has no chat template
    EMBEDDING = "embedding"
    RERANK = "rerank"
    PROJECTOR = "projector"  # turns pictures or sound into tokens of the model beside it
    NOT_A_MODEL = "not a model"


class Modality(StrEnum):
    VISION = "vision"
    AUDIO = "audio"


class Numbers(Struct, frozen=True):
    """What a model's header says in numbers; 0: nothing."""

    vocabulary: int = 0  # tokens
    width: int = 0  # of an embedding
    parameters: int = 0
    weights: int = 0  # bytes


class Identified(Struct, frozen=True):
    """`reason` and `hint` are of what cannot be run: one clause each, "it is a LoRA adapter", "name it in …"."""

    kind: Kind
    name: str = ""  # general.name
    context: int = 0  # tokens that it was trained for; 0: not known
    numbers: Numbers = Numbers()
    reason: str = ""
    hint: str = ""
    modalities: tuple[Modality, ...] = ()  # of a projector
    unsure: bool = False  # its header is beyond this program; a newer engine may know better
    drafts: bool = False  # can it be the draft_model of another one, and nothing else?
    adapts: bool = False  # is it a LoRA adapter of another model?
    first: Path | None = None  # of a file that is not the first of its model: the first

    @property
    def runs(self) -> bool:
        """Can an engine be started on the file?"""
        return self.kind not in (Kind.PROJECTOR, Kind.NOT_A_MODEL)


# --- what has no GGUF header -------------------------------------------------------------------------------------

WHISPER: Final = "llama.cpp runs GGUF files; for transcription use an audio model with its projector"
CONVERT: Final = "get the GGUF version of the model: look for a repository with GGUF in its name"
AGAIN: Final = "download it again"
MAGICS: Final[tuple[tuple[bytes, str, str], ...]] = (
    (b"lmgg", "it is an old ggml file, such as whisper.cpp uses", WHISPER),
    (b"tjgg", "it is a ggjt file, the format before GGUF", CONVERT),
    (b"fmgg", "it is a ggmf file, the format before GGUF", CONVERT),
    (b"algg", "it is a LoRA adapter in the format before GGUF", CONVERT),
    (b"nsgg", "it is a saved session of llama.cpp", "name the model's own file"),
    (b"qsgg", "it is a saved state of llama.cpp", "name the model's own file"),
    (b"PK\3\4", "it is a zip archive, such as PyTorch writes", CONVERT),
    (b"\x80\x02", "it is a Python pickle of PyTorch", CONVERT),
    (b"\x80\x03", "it is a Python pickle of PyTorch", CONVERT),
    (b"\x80\x04", "it is a Python pickle of PyTorch", CONVERT),
    (b"\x1f\x8b", "it is compressed with gzip", "unpack it first"),
    (b"\x28\xb5\x2f\xfd", "it is compressed with zstd", "unpack it first"),
    (b"\xfd7zXZ", "it is compressed with xz", "unpack it first"),
    (b"7z\xbc\xaf", "it is a 7-Zip archive", "unpack it first"),
    (b"\x89HDF", "it is an HDF5 file", CONVERT),
    (b"version https://git-lfs", "it is a Git LFS pointer, not the file itself", "fetch the file: git lfs pull"),
    (b"# xet", "it is a Xet pointer, not the file itself", AGAIN),
)


def _foreign(data: bytes, size: int) -> tuple[str, str]:
    """What a file is that does not begin like GGUF, and what to do."""
    if not size:
        return "it is empty", AGAIN
    for magic, reason, hint in MAGICS:
        if data.startswith(magic):
            return reason, hint
    text = data.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return "it is a web page, not the model", "download the file itself, not the page that shows it"
    if data[8:9] == b"{" and 2 <= int.from_bytes(data[:8], "little") <= 100 << 20:
        return "it is a safetensors file", CONVERT
    if text.startswith((b"{", b"[")):
        return "it is JSON, not a model; a server may have sent an error", AGAIN
    if not data.strip(b"\0"):
        return "it begins with zeros: its download did not finish", AGAIN
    if data.startswith(MAGIC[:size]) and size < len(MAGIC):
        return "the file ends within its header", AGAIN
    return "it is not a GGUF file", CONVERT


# --- what a GGUF header says it is -------------------------------------------------------------------------------

DIFFUSION_TEXT: Final = frozenset({"dream", "llada", "llada-moe", "rnd1"})
# image and video models: names that ComfyUI-GGUF and stable-diffusion.cpp write …
DIFFUSION: Final = frozenset({
    "aura", "auraflow", "chroma", "cosmos", "flux", "flux2", "hidream", "hunyuan_image", "hunyuan_video", "hyvid",
    "ltxv", "lumina2", "omnigen", "pixart", "qwen_image", "sd1", "sd2", "sd3", "sdxl", "stable-diffusion", "wan",
    "z_image", "zimage",
})  # fmt: skip
# … and how their tensors are called, with or without a name
DIFFUSION_TENSORS: Final = (
    "model.diffusion_model.", "diffusion_model.", "double_blocks.", "single_blocks.", "joint_blocks.",
    "transformer_blocks.", "first_stage_model.", "cond_stage_model.", "input_blocks.", "patch_embedding.",
)  # fmt: skip
SPEECH: Final = frozenset({"kokoro", "parler-tts", "dia", "snac", "wavtokenizer-dec", "outetts-dec", "vibevoice"})
DRAFT_HEADS: Final = frozenset({"eagle", "eagle2", "eagle3", "medusa", "dflash"})
FLAGS: Final = {"clip.has_vision_encoder": Modality.VISION, "clip.has_audio_encoder": Modality.AUDIO}


def identify(path: Path, read: Callable[[str], GgufModel] = read_model) -> Identified:
    """What is at that path; all files of a model in several are looked at. `read`: see ModelReader."""
    try:
        volumes.check(parts(str(path)))
        return _identify(path, read)
    except OSError as error:
        file = error.filename if isinstance(error.filename, str) and error.filename != str(path) else "it"
        return _refused(f"{file} cannot be read: {error.strerror or error}", "check its path and permissions")


def _identify(path: Path, read: Callable[[str], GgufModel]) -> Identified:
    if not (stat.S_ISREG(mode := os.stat(path).st_mode) or stat.S_ISDIR(mode)):  # opening a socket says less
        return _refused("it is not a regular file", "name a GGUF file")
    with open_file(path) as file:
        status = os.fstat(file.fileno())
        data = file.read(BEGINNING)
    if not data.startswith(MAGIC):
        return _refused(*_foreign(data, status.st_size))
    named = FULL_PATH.fullmatch(path.name)
    if named is not None and int(named["number"]) != 1:
        first = path.with_name(f"{named['stem']}-00001-of-{named['count']}{named['end']}")
        found = _refused(f"it is part {int(named['number'])} of {int(named['count'])} of a model", f"name {first.name}")
        return replace(found, first=first)
    if missing := [Path(one) for one in parts(str(path)) if not os.path.exists(one)]:
        more = f" and {len(missing) - LISTED} more" if len(missing) > LISTED else ""
        names = ", ".join(one.name for one in missing[:LISTED])
        return _refused(f"parts of the model are missing: {names}{more}", f"put all of them into {path.parent}")
    try:
        return identify_model(read(str(path)), named=PART.fullmatch(path.name) is not None)
    except TruncatedError as error:
        return _refused(str(error), "its download did not finish: download it again")
    except GgufError as error:
        return replace(_refused(str(error), "download it again, or get a newer version of it"), unsure=True)


def identify_model(model: GgufModel, *, named: bool = True) -> Identified:
    """What a model is whose headers have been read. `named`: its name says which part of how many it is."""
    name = model.header.values.get("general.name")
    found = _identify_header(model, named)
    found = replace(found, context=model.number("context_length"), numbers=_numbers(model))
    return replace(found, name=name.strip()) if isinstance(name, str) else found


def _numbers(model: GgufModel) -> Numbers:
    parameters = sum(math.prod(tensor.shape) for tensor in model.tensors.values())
    return Numbers(model.vocabulary, model.number("embedding_length"), parameters, model.weights)


def _identify_header(model: GgufModel, named: bool) -> Identified:
    values, architecture = model.header.values, model.architecture.lower()
    kind = values.get("general.type")
    if kind == "adapter" or "adapter.type" in values:
        only = _refused("it is a LoRA adapter, not a model", 'add it to its model: lora = [{path = "FILE"}]')
        return replace(only, adapts=True)
    if kind == "imatrix" or "imatrix.datasets" in values or architecture == "imatrix":
        return _refused("it is an importance matrix, which is used to quantize a model", "name the model's own file")
    if architecture == "controlvector":
        return _refused("it is a control vector, not a model", "name the model's own file")
    if architecture == "clip" or kind == "mmproj":
        modalities = tuple(one for key, one in FLAGS.items() if values.get(key) is True)
        hint = "name the file of the model that it belongs to; accelerd finds a projector beside it"
        what = "an audio projector" if modalities == (Modality.AUDIO,) else "a vision projector"
        return Identified(
            Kind.PROJECTOR, reason=f"it is {what}, not a model", hint=hint, modalities=modalities or (Modality.VISION,)
        )
    if architecture in DIFFUSION or any(one.startswith(DIFFUSION_TENSORS) for one in model.tensors):
        return _refused("it is a model that makes images or video", "llama-server cannot run it; Lemonade can")
    if architecture in DIFFUSION_TEXT:
        return _refused("it is a diffusion language model, which llama-server cannot serve", "choose another model")
    if architecture == "whisper":
        return _refused("it is a Whisper model, which llama-server cannot run", WHISPER)
    if architecture in SPEECH:
        return _refused("it makes speech of another model's output", "llama-server cannot serve it on its own")
    if architecture in DRAFT_HEADS:
        only = _refused("it only drafts tokens for another model", "name it as draft_model of that model")
        return replace(only, drafts=True)
    number = values.get("split.no", 0)
    if not named and isinstance(number, int) and number > 0:
        return _refused(f"it is part {number + 1} of a model in several files", "name the first of them")
    if not model.tensors:
        return _refused("it holds a vocabulary and no weights", "name the model's own file")
    if not architecture:
        return _refused("its header does not say what it is (general.architecture)", "get a newer version of it")
    if not any(one.startswith(("token_embd", "blk.")) for one in model.tensors):
        return _refused(f"it is no language model (architecture {architecture})", "name the model's own file")
    return Identified(_task(model))


def _task(model: GgufModel) -> Kind:
    """What a language model is for."""
    pooling = model.header.of_architecture("pooling_type")
    if pooling == RANK or not model.tensors.keys().isdisjoint(("cls.weight", "cls.output.weight")):
        return Kind.RERANK
    if model.architecture in ENCODERS or pooling not in (None, NO_POOLING):
        return Kind.EMBEDDING
    template = "tokenizer.chat_template"
    return Kind.CHAT if template in model.header.values or template in model.header.skipped else Kind.COMPLETION


def _refused(reason: str, hint: str) -> Identified:
    return Identified(Kind.NOT_A_MODEL, reason=reason, hint=hint)
