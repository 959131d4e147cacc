"""Which of a repository's files make up the model that is meant: quantization, parts, projector, draft model. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from msgspec import Struct, field

from accelerd.base.errors import AccelError

# What is taken when nobody says: 4 bits are the usual balance of size and quality. What is not here comes after these:
# first what has more bits, the smallest first, then what has fewer, the largest first.
PREFERRED: Final = (
    "Q4_K_M", "UD-Q4_K_XL", "Q4_K_XL", "MXFP4", "MXFP4_MOE", "Q4_K_L", "Q4_K_S", "Q4_0", "IQ4_NL", "IQ4_XS", "Q4_1",
    "Q5_K_M", "UD-Q5_K_XL", "Q5_K_S",
)  # fmt: skip
PROJECTORS: Final = ("F16", "BF16", "Q8_0")  # in this order, then any
QUANT: Final = re.compile(
    r"(?:^|[-._/])((?:UD-)?(?:I?Q\d(?:_[0-9A-Z]+)*|TQ\d_\d|MXFP\d(?:_MOE)?|NVFP\d|BF16|F16|F32|FP16|FP32))(?=[-._/]|$)",
    re.IGNORECASE,
)
BITS: Final = re.compile(r"\d{1,9}")
SHARD: Final = re.compile(r"-(\d{5})-of-(\d{5})(?=\.gguf$)", re.IGNORECASE)
NO_MODEL: Final = re.compile(r"(?:^|[-._])(?:imatrix|lora|vocab|control-?vector|eagle\d?)(?:[-._]|$)", re.IGNORECASE)
DRAFT: Final = re.compile(r"(?:^|[-._])(?:draft|drafter)(?:[-._]|$)", re.IGNORECASE)
USUAL_BITS: Final = 4
LISTED: Final = 12
LONGEST: Final = 400  # characters of a list of files in a message


class HubFile(Struct, frozen=True):
    """A file of a repository."""

    name: str  # with its folder
    size: int = 0  # bytes; 0: not known
    version: str = ""  # what changes when the file does


class Candidate(Struct, frozen=True):
    """One model of a repository."""

    quant: str  # "Q4_K_M"; empty where the name does not say
    files: tuple[HubFile, ...]  # the parts in their order

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)

    @property
    def first(self) -> str:
        return self.files[0].name

    @property
    def label(self) -> str:
        return self.quant or self.first


class Choice(Struct, frozen=True):
    """What is taken of a repository, and why."""

    candidate: Candidate
    reason: str  # for people: "Q4_K_S: Q4_K_M does not fit this machine"
    fits: bool = True
    mmproj: HubFile | None = None
    draft: HubFile | None = None
    others: tuple[str, ...] = field(default=())  # the other quantizations that are there

    @property
    def files(self) -> tuple[HubFile, ...]:
        """Everything to fetch."""
        more = tuple(file for file in (self.mmproj, self.draft) if file is not None)
        return (*self.candidate.files, *more)

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)


def choose(
    files: Iterable[HubFile],
    room_for: Callable[[Candidate], bool],
    *,
    quant: str = "",
    file: str = "",
    where: str = "the repository",
) -> Choice:
    """What to take of these files. `room_for` is asked of one after another, the best first. AccelError.

    `quant`, `file`: what the user named; that is taken whether it fits or not.
    """
    listed = sorted(files, key=lambda one: one.name)
    ranked = sorted(candidates(listed) or candidates(listed, drafts=True), key=_rank)
    if file:
        named = _of_file(listed, file, where)
        return _with_extras(listed, ranked, named, f"{file}, as named", room_for(named))
    if not ranked:
        others = ", ".join(one.name for one in listed if is_gguf(one.name))[:LONGEST]
        what = f"no GGUF model, only {others}" if others else "no GGUF model"
        hint = "look for a repository with GGUF in its name"
        raise AccelError("hub_not_found", f"{where} has {what}", hint=hint)
    if quant:
        found = _named(ranked, quant, where)
        return _with_extras(listed, ranked, found[0], f"{found[0].label}, as named", room_for(found[0]))
    _one_model(ranked, where)
    for index, one in enumerate(ranked):
        if room_for(one):
            return _with_extras(listed, ranked, one, _reason(ranked, index), True)
    smallest = min(ranked, key=lambda one: one.size)
    what = "the only model" if len(ranked) == 1 else "the smallest"
    return _with_extras(listed, ranked, smallest, f"{smallest.label} is {what}, and does not fit this machine", False)


def candidates(files: Sequence[HubFile], *, drafts: bool = False) -> list[Candidate]:
    """The models among the files of a repository; one of which parts are missing is none."""
    groups: dict[str, dict[int, HubFile]] = {}
    counts: dict[str, int] = {}
    for file in files:
        name = file.name
        if not is_gguf(name) or is_projector(name) or NO_MODEL.search(_stem(name)) or (is_draft(name) and not drafts):
            continue
        shard = SHARD.search(file.name)
        key = SHARD.sub("", file.name)
        counts[key] = int(shard[2]) if shard else 1
        groups.setdefault(key, {})[int(shard[1]) if shard else 1] = file
    return [
        Candidate(quant_of(key), tuple(parts[number] for number in sorted(parts)))
        for key, parts in groups.items()
        if sorted(parts) == list(range(1, counts[key] + 1))
    ]


def _of_file(files: Sequence[HubFile], name: str, where: str) -> Candidate:
    """The model that the file belongs to."""
    shard = SHARD.search(name)
    key = SHARD.sub("", name)
    parts = [one for one in files if SHARD.sub("", one.name) == key] if shard else []
    parts = parts or [one for one in files if one.name == name]
    if not parts or (shard and len(parts) != int(shard[2])):
        what = f"no {name}" if not parts else f"{len(parts)} of the {int(shard[2] if shard else 1)} parts of {name}"
        raise AccelError("hub_not_found", f"{where} has {what}", hint="check the name on its page")
    return Candidate(quant_of(key), tuple(parts))


def quant_of(name: str) -> str:
    """ "UD-Q4_K_XL" of a file's name, or of its folder's where the name does not say."""
    folder, _, base = SHARD.sub("", name).rpartition("/")
    for text in (re.sub(r"\.gguf$", "", base, flags=re.IGNORECASE), folder):
        if found := QUANT.findall(text):
            return str(found[-1]).upper()
    return ""


def is_gguf(name: str) -> bool:
    return name.lower().endswith(".gguf")


def is_projector(name: str) -> bool:
    return is_gguf(name) and "mmproj" in name.lower().rpartition("/")[2]


def is_draft(name: str) -> bool:
    return is_gguf(name) and not is_projector(name) and DRAFT.search(_stem(name)) is not None


def _stem(name: str) -> str:
    return name.rpartition("/")[2][: -len(".gguf")]


def _rank(candidate: Candidate) -> tuple[int, int, int]:
    if candidate.quant in PREFERRED:
        return PREFERRED.index(candidate.quant), 0, candidate.size
    found = BITS.search(candidate.quant)
    bits = int(found[0]) if found else USUAL_BITS
    return (100, bits, candidate.size) if bits >= USUAL_BITS else (200, -bits, -candidate.size)


def _named(ranked: Sequence[Candidate], quant: str, where: str) -> list[Candidate]:
    """Those of that quantization: the same word, else one that begins or ends with it ("Q4_K" for "Q4_K_M")."""
    wanted = quant.upper()
    same = [one for one in ranked if one.quant == wanted] or [one for one in ranked if one.quant == f"UD-{wanted}"]
    pattern = re.compile(rf"(?:^|[-._/]){re.escape(wanted)}(?=[-._/]|$)", re.IGNORECASE)
    found = same or [one for one in ranked if pattern.search(SHARD.sub("", one.first))]
    if not found:
        raise AccelError("hub_not_found", f"{where} has no {quant}", hint=f"it has {_names(ranked)}")
    if len({one.quant for one in found}) < len(found):
        _one_model(found, where)
    return found


def _one_model(ranked: Sequence[Candidate], where: str) -> None:
    """Refuse to choose between different models: in one repository, only the quantization may differ."""
    if len({_family(one) for one in ranked}) > 1:
        names = [one.first for one in ranked]
        listed = ", ".join(f"hf:{where}/{name}" for name in names)
        hint = f"name one of its files: {listed[:LONGEST]}{'…' if len(listed) > LONGEST else ''}"
        raise AccelError("bad_request", f"{where} has several models", hint=hint, candidates=names)


def _family(candidate: Candidate) -> str:
    """What the names of one model in several quantizations have in common."""
    base = SHARD.sub("", candidate.first).rpartition("/")[2].lower().removesuffix(".gguf")
    return re.sub(r"[-._]+", "-", QUANT.sub("", base)).strip("-").removesuffix("-imat").removesuffix("-i1")


def _reason(ranked: Sequence[Candidate], index: int) -> str:
    taken = ranked[index].label
    if len(ranked) == 1:
        return f"{taken}, the only model there"
    if not index:
        usual = ", the usual balance of size and quality" if ranked[0].quant in PREFERRED else ""
        return f"{taken}{usual}; it fits this machine"
    first = ranked[0].label
    rest = f" and {index - 1} more do" if index > 1 else " does"
    return f"{taken}: {first}{rest} not fit this machine"


def _with_extras(
    files: Sequence[HubFile], ranked: Sequence[Candidate], taken: Candidate, reason: str, fits: bool
) -> Choice:
    drafts = [file for file in files if is_draft(file.name) and not SHARD.search(file.name)]
    draft = min(drafts, key=lambda file: (quant_of(file.name) != taken.quant, file.size), default=None)
    others = tuple(one.label for one in ranked if one is not taken)
    return Choice(taken, reason, fits, projector_of(files), draft, others)


def projector_of(files: Iterable[HubFile]) -> HubFile | None:
    """The projector that is taken of those in a repository."""

    def place(file: HubFile) -> int:
        quant = quant_of(file.name)
        return PROJECTORS.index(quant) if quant in PROJECTORS else len(PROJECTORS)

    return min((file for file in files if is_projector(file.name)), key=place, default=None)


def _names(ranked: Sequence[Candidate]) -> str:
    names = [one.label for one in ranked]
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more
