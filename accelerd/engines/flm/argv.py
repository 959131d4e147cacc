"""The command line of one `flm serve`, with the reason of each word. Pure.

Extra arguments are taken only from FastFlowLM's own list of what changes how a model runs; where it listens, which
model it is and how long its context is are accelerd's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from accelerd.base.errors import AccelError
from accelerd.base.exits import Cause
from accelerd.config.model import ModelSpec
from accelerd.engines.base import Flag
from accelerd.engines.flm.catalogue import EMBEDDER, WHISPER

LEAST_CONTEXT: Final = 512
QUEUE: Final = 10  # requests that wait at one server, by default
SOCKETS: Final = 10  # connections at once, by default; one more is closed without a word
SPARE: Final = 8  # connections beside those of requests: health, the pool's idle ones
POWER: Final = ("default", "powersaver", "balanced", "performance", "turbo")
# What may stand in extra_args. Each has a value.
EXTRA: Final = ("--pmode", "--prefill-chunk-len", "--img-pre-resize", "--socket", "--q-len", "--preemption", "--cors")
NUMBERS: Final = ("--prefill-chunk-len", "--img-pre-resize", "--socket", "--q-len")
SHORT: Final = {"-r": "--img-pre-resize", "-s": "--socket", "-q": "--q-len"}
BUILT_IN: Final = "built-in"


@dataclass
class Line:
    """argv after the program's name, and what there is to say of it."""

    argv: list[str]
    flags: list[Flag] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def add(self, *words: str, source: object, reason: str) -> None:
        self.argv += words
        self.flags.append(Flag(" ".join(words), str(source), reason))


def context_of(asked: int) -> int:
    """What FastFlowLM makes of a context: a power of two, from 512 on."""
    return 1 << (max(asked, LEAST_CONTEXT) - 1).bit_length()


def parts(spec: ModelSpec, tag: str) -> tuple[str | None, bool, bool]:
    """The model that it is to start with, and whether it hears and makes embeddings too.

    Its one model for each of these comes by a switch, not by its name.
    """
    alone = tag in (WHISPER, EMBEDDER)
    return None if alone else tag, spec.transcription or tag == WHISPER, spec.embeddings or tag == EMBEDDER


def build(spec: ModelSpec, program: str, tag: str, port: int) -> Line:
    """AccelError('model_failed') for extra arguments that may not be passed on."""
    own, hears, embeds = parts(spec, tag)
    extra = checked(spec.extra_args)
    line = Line([program])
    which = spec.origin("model")
    if own is not None:
        line.add("serve", own, source=which, reason="the model")
    else:
        line.add("serve", source=BUILT_IN, reason=f"without a model of its own: {tag} comes by a switch")
    if own is not None and spec.context is not None:
        becomes = context_of(spec.context)
        reason = "tokens of one request"
        if becomes != spec.context:
            reason += f"; FastFlowLM makes {becomes} of it, a power of two and {LEAST_CONTEXT} at least"
        line.add("--ctx-len", str(spec.context), source=spec.origin("context"), reason=reason)
    line.add("--port", str(port), "--host", "127.0.0.1", source=BUILT_IN, reason="a free port of this machine alone")
    if hears:
        line.add(
            "--asr", "1", source=spec.origin("transcription"), reason=f"it writes down what it hears, by {WHISPER}"
        )
    if embeds:
        line.add("--embed", "1", source=spec.origin("embeddings"), reason=f"it makes embeddings, by {EMBEDDER}")
    if "--q-len" not in extra:
        reason = "requests that it lets wait; accelerd sends it no more at once than it answers"
        line.add("--q-len", str(max(QUEUE, spec.slots)), source=BUILT_IN, reason=reason)
    if "--socket" not in extra:
        reason = "connections at once; one more would be closed without an answer"
        line.add("--socket", str(max(SOCKETS, spec.slots) + SPARE), source=BUILT_IN, reason=reason)
    line.add("--quiet", source=BUILT_IN, reason="no pictures and no progress bars in its output")
    for name, value in extra.items():
        line.add(name, value, source=spec.origin("extra_args"), reason="as written in extra_args")
    if "--pmode" in extra:
        line.warnings.append("extra_args --pmode: on Linux FastFlowLM leaves the NPU's power mode as it is")
    if spec.slots > 1:
        line.warnings.append(
            f"concurrency = {spec.slots} ({spec.origin('concurrency')}): FastFlowLM answers one request at a time, "
            "the others wait in its own queue"
        )
    return line


def checked(arguments: Sequence[str]) -> dict[str, str]:
    """The extra arguments by their long names. AccelError('model_failed')."""
    found: dict[str, str] = {}
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        name, equals, value = word.partition("=")
        name = SHORT.get(name, name)
        if name not in EXTRA:
            _refuse(f"extra_args {name}: FastFlowLM's server takes {', '.join(EXTRA)} and nothing else from there")
        if not equals:
            if not rest:
                _refuse(f"extra_args {name}: its value is missing")
            value = rest.pop(0)
        if name in NUMBERS and not (value.isascii() and value.isdigit()):
            _refuse(f"extra_args {name}: expected a number, not {value!r}")
        if name == "--pmode" and value not in POWER:
            _refuse(f"extra_args --pmode: expected one of {', '.join(POWER)}, not {value!r}")
        if name in ("--preemption", "--cors") and value not in ("0", "1"):
            _refuse(f"extra_args {name}: expected 0 or 1, not {value!r}")
        found[name] = value
    return found


def _refuse(message: str) -> None:
    raise AccelError("model_failed", f"cannot start flm: {message}", cause=Cause.REFUSED.value)
