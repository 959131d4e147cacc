"""The command line of `flm serve`, with a reason for each argument. Pure.

Only certain extra arguments are allowed; accelerd sets address, model and context.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from msgspec import Struct, field

from accelerd.base.exits import Cause
from accelerd.config.model import ModelSpec
from accelerd.engines.base import Flag, fail
from accelerd.engines.flm.catalogue import EMBEDDER, WHISPER
from accelerd.engines.flm.model import LEAST_CONTEXT, context_of, parts

QUEUE: Final = 10  # default length of the server's queue
SOCKETS: Final = 10  # default number of connections; further ones are closed silently
SPARE: Final = 8  # additional connections: health checks, idle ones of the pool
POWER: Final = ("default", "powersaver", "balanced", "performance", "turbo")
# Allowed in extra_args. Each has a value.
EXTRA: Final = (
    "--pmode", "--prefill-chunk-len", "--img-pre-resize", "--socket", "--q-len", "--preemption", "--cors",
    "--modelscope", "--hf", "--hf-branch",
)  # fmt: skip
REGISTRY: Final = ("--modelscope", "--hf", "--hf-branch")  # from 1.0 on: where models are from, in every command
NUMBERS: Final = ("--prefill-chunk-len", "--img-pre-resize", "--socket", "--q-len")
SHORT: Final = {"-r": "--img-pre-resize", "-s": "--socket", "-q": "--q-len"}
NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]*")
BUILT_IN: Final = "built-in"


class FlmCommandLine(Struct):
    """The arguments, with reasons and warnings."""

    argv: list[str]
    flags: list[Flag] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def add(self, *words: str, source: object, reason: str) -> None:
        self.argv += words
        self.flags.append(Flag(" ".join(words), str(source), reason))


def build(spec: ModelSpec, program: str, tag: str, port: int) -> FlmCommandLine:
    """AccelError('model_failed') for extra arguments that are not allowed."""
    found = parts(spec, tag)
    extra = checked(spec.extra_args)
    line = FlmCommandLine([program])
    which = spec.origin("model")
    if "llm" in found:
        line.add("serve", tag, source=which, reason="the model")
    else:
        line.add("serve", source=BUILT_IN, reason=f"without a language model: an option enables {tag}")
    if "llm" in found and spec.tokens is not None:
        becomes = context_of(spec.tokens)
        reason = "tokens of one request"
        if becomes != spec.tokens:
            reason += f"; FastFlowLM rounds it to {becomes}, a power of two and at least {LEAST_CONTEXT}"
        line.add("--ctx-len", str(spec.tokens), source=spec.origin("context"), reason=reason)
    reason = "a free port, reachable only from this machine"
    line.add("--port", str(port), "--host", "127.0.0.1", source=BUILT_IN, reason=reason)
    if "asr" in found:
        line.add("--asr", "1", source=spec.origin("transcription"), reason=f"enables transcription with {WHISPER}")
    if "embed" in found:
        line.add("--embed", "1", source=spec.origin("embeddings"), reason=f"enables embeddings with {EMBEDDER}")
    if "--q-len" not in extra:
        reason = "length of its queue; accelerd queues requests itself"
        line.add("--q-len", str(max(QUEUE, spec.slots)), source=BUILT_IN, reason=reason)
    if "--socket" not in extra:
        reason = "number of connections; further ones would be closed without an answer"
        line.add("--socket", str(max(SOCKETS, spec.slots) + SPARE), source=BUILT_IN, reason=reason)
    line.add("--quiet", source=BUILT_IN, reason="no banner and no progress bars in its output")
    for name, value in extra.items():
        line.add(name, value, source=spec.origin("extra_args"), reason="as written in extra_args")
    if "--pmode" in extra:
        line.warnings.append("extra_args --pmode: FastFlowLM does not change the power mode of the NPU on Linux")
    if spec.slots > 1:
        line.warnings.append(
            f"concurrency = {spec.slots} ({spec.origin('concurrency')}): FastFlowLM processes one request at a time; "
            "the others wait in its queue"
        )
    return line


def checked(arguments: Sequence[str]) -> dict[str, str]:
    """The extra arguments by their long names. AccelError('model_failed')."""
    found: dict[str, str] = {}
    rest = list(arguments)
    while rest:
        name, equals, value = rest.pop(0).partition("=")
        name = SHORT.get(name, name)
        wrong = ""
        if not equals and rest and name in EXTRA:
            equals, value = "=", rest.pop(0)
        if name not in EXTRA:
            wrong = f"not allowed; the allowed options are {', '.join(EXTRA)}"
        elif not equals:
            wrong = "the value is missing"
        elif name in NUMBERS and not (value.isascii() and value.isdigit()):
            wrong = f"expected a number, not {value!r}"
        elif name == "--pmode" and value not in POWER:
            wrong = f"expected one of {', '.join(POWER)}, not {value!r}"
        elif name in ("--hf", "--hf-branch") and not NAME.fullmatch(value):
            wrong = f"expected a name without spaces, not {value!r}"
        elif name in ("--preemption", "--cors", "--modelscope") and value not in ("0", "1"):
            wrong = f"expected 0 or 1, not {value!r}"
        if wrong:
            fail(Cause.REFUSED, f"cannot start flm: extra_args {name}: {wrong}")
        found[name] = value
    return found


def registry(arguments: Sequence[str]) -> list[str]:
    """Of the extra arguments those that the command for a download takes, too."""
    return [word for name, value in checked(arguments).items() if name in REGISTRY for word in (name, value)]
