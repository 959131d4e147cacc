"""The command line of one llama-server, from typed settings and what the installed build can do. Pure.

Each setting is written in the words this build knows, with its source and reason beside it. What a build cannot express
is an error that names it, unless leaving it out changes nothing a person asked for: what only a tuning rule advises is
left out with a warning. No value is ever split or interpreted: one value is one token.

Extra arguments come last, so they win over accelerd's own. What config/flags.py refuses is refused here by every name
that the build has for it.
"""

from __future__ import annotations

import shlex
from collections.abc import Collection, Iterable, Sequence
from typing import Any, Final

from msgspec import Struct, field

from accelerd.base.exits import Cause
from accelerd.base.sizes import human_size
from accelerd.config.flags import flag_name, why_owned
from accelerd.config.model import BUILT_IN as UNSET
from accelerd.config.model import ModelSpec
from accelerd.engines.base import Endpoint, Flag, TuningAdvice, fail
from accelerd.engines.llama_server.environment import KEY_VARIABLE
from accelerd.engines.llama_server.features import Features, ProgramOption

BUILT_IN: Final = "built-in"
UNQUANTISED: Final = ("f32", "f16", "bf16")
CACHE_LEAST: Final = 64 << 20  # bytes
CONVERSATIONS: Final = 32  # that fill the context, for which a cache is large enough
CHECKPOINTS: Final = (
    8,
    32,
)  # at least, and the program's own number: of a large window they can take more than the model
CHECKPOINT_MEMORY: Final = 1 << 30  # bytes that those beyond the least may take, of all slots together
CACHE_FLAGS: Final = ("--cache-ram", "-cram")
CACHE_MOST: Final = 8 << 30  # bytes, the program's own limit
CHECKPOINT_FLAGS: Final = ("--ctx-checkpoints", "--swa-checkpoints")
MIB: Final = 1 << 20
EMBEDDING_BATCH_CAP: Final = 8192  # tokens; the compute buffer grows with the physical batch

# setting → its names in this and earlier builds, and what it is for
PLAIN: Final[tuple[tuple[str, tuple[str, ...], str], ...]] = (
    ("threads", ("--threads", "-t"), "CPU threads"),
    ("mmproj", ("--mmproj",), "the model sees images through this projector"),
    ("draft_model", ("--spec-draft-model", "--model-draft", "-md"), "a small model drafts, this one checks"),
    ("chat_template_file", ("--chat-template-file",), "chat template instead of the model's own"),
)
SAMPLING: Final[tuple[tuple[str, tuple[str, ...]], ...]] = (
    ("temperature", ("--temp", "--temperature")),
    ("top_p", ("--top-p",)),
    ("top_k", ("--top-k",)),
    ("min_p", ("--min-p",)),
    ("repeat_penalty", ("--repeat-penalty",)),
    ("presence_penalty", ("--presence-penalty",)),
    ("frequency_penalty", ("--frequency-penalty",)),
    ("seed", ("--seed",)),
    ("max_tokens", ("--predict", "--n-predict", "-n")),
)

SECRET_VARIABLES: Final = frozenset({"HF_TOKEN"})  # may be set although its option may not


class CommandLine(Struct):
    """A command line in the making."""

    spec: ModelSpec
    features: Features
    argv: list[str]
    advice: Sequence[TuningAdvice] = ()  # what rules say of settings
    flags: list[Flag] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)
    key_file: str = ""  # that the program is told to read its key from

    def add(self, *tokens: str, key: str | None = None, reason: str) -> None:
        """Tokens for the setting `key`; None: a choice of accelerd's own."""
        self.argv += tokens
        about = [one for one in self.advice if one.setting == key]
        reasons = [reason, *(one.reason for one in about if not one.why_not)]
        source = BUILT_IN if key is None else str(self.spec.origin(key))
        note = "; ".join(one.note for one in about)
        self.flags.append(Flag(shlex.join(tokens), source, ": ".join(reasons), note))

    def option(self, key: str, names: Iterable[str]) -> ProgramOption | None:
        """The option that says `key`; where the build has none of the names, a refusal is noted."""
        names = tuple(names)
        option = self.features.find(*names)
        if option is None:
            self.refuse(key, f"{key}: it knows no {' or '.join(names)}")
        return option

    def refuse(self, key: str, why: str) -> None:
        """The build cannot say `key`: that stops the start if a person asked for it."""
        origin = self.spec.origin(key)
        if origin.by_rule:
            self.warnings.append(f"left out what {origin} advises: {why}")
        else:
            self.refusals.append(why)

    def set(self, key: str, names: tuple[str, ...], value: Any, reason: str) -> None:
        """`NAME VALUE` for a setting a person wrote; a value the help does not list is refused."""
        option = self.option(key, names)
        if option is None:
            return
        text = str(value)
        if option.choices and text not in option.choices:
            self.refuse(key, f"{key} = {text!r}: it takes {', '.join(option.choices)}")
            return
        self.add(self.features.pick(*names) or names[0], text, key=key, reason=reason)

    def own(self, names: tuple[str, ...], *values: str, reason: str) -> None:
        """A choice of accelerd's own, left out silently where the build does not know it, or knows a switch of that
        name instead of an option with a value."""
        option = self.features.find(*names)
        if option is not None and bool(option.hint) == bool(values):
            self.add(self.features.pick(*names) or names[0], *values, reason=reason)


def build(
    spec: ModelSpec,
    features: Features,
    endpoint: Endpoint,
    advice: Sequence[TuningAdvice] = (),
    gpus: Sequence[str] = (),
    cache: int = CACHE_MOST,
    key_file: str = "",
    checkpoints: int = CHECKPOINTS[0],
) -> CommandLine:
    """The whole command line. Raises AccelError('model_failed', cause="refused") listing all this build cannot do.

    `gpus`: what the program calls those that it shall use, where it has a choice. `cache`: bytes that are set aside for
    its prompt cache. `key_file`: where its key would be, if it takes none from the environment. `checkpoints`: of a
    conversation, as many as memory is reserved for.
    """
    line = CommandLine(spec, features, [features.binary], advice)
    _model(line)
    _listen(line, endpoint)
    _key(line, key_file)
    _memory(line, checkpoints)
    _prompt_cache(line, cache)
    if gpus:
        line.own(("--device", "-dev"), ",".join(gpus), reason="where accelerd has made room for it")
    _work(line)
    _sampling(line)
    line.own(("--offline",), reason="accelerd downloads models itself")
    line.own(("--jinja",), reason="chat templates and tool calls as the model's maker wrote them")
    line.own(("--no-ui", "--no-webui"), reason="accelerd answers the browser itself")
    if (colors := features.find("--log-colors")) and colors.hint:  # an older one is a switch that turns them on
        line.add("--log-colors", "off", reason="output goes to the journal")
    line.own(("--log-prefix",), reason="its own levels tell which lines of output matter")
    _extra(line)
    if line.refusals:
        program = f"{features.binary} ({features.version})"
        fail(Cause.REFUSED, f"cannot start {spec.name} as configured with {program}: {'; '.join(line.refusals)}")
    return line


def _model(line: CommandLine) -> None:
    spec = line.spec
    if spec.path:
        line.add("-m", spec.path, key="path", reason="the model's file")
    line.own(("--alias", "-a"), spec.name, reason="answers carry the configured name")


def _listen(line: CommandLine, endpoint: Endpoint) -> None:
    if endpoint.unix:
        line.add(
            "--host", endpoint.unix, reason="a socket only this user can reach, and no port that anybody could take"
        )
    else:
        line.add("--host", "127.0.0.1", "--port", str(endpoint.port), reason="a port that was free, on loopback only")


def _key(line: CommandLine, file: str) -> None:
    """Never on the command line itself, which every user of the machine can read."""
    option = line.features.find("--api-key")
    if option is not None and KEY_VARIABLE in option.env:
        return
    if line.features.find("--api-key-file"):
        line.key_file = file
        reason = "its key, from a file that only this user can read and that is removed once the program has read it"
        line.add("--api-key-file", file, reason=reason)
        return
    line.refusals.append(f"it takes its API key neither from the environment ({KEY_VARIABLE}) nor from a file")


def _memory(line: CommandLine, checkpoints: int) -> None:
    spec, features = line.spec, line.features
    line.own(
        ("--fit",), "off", reason="accelerd plans the memory: llama-server must not change context or layers by itself"
    )
    if spec.tokens is not None:
        # The server divides its context among the slots, so that each request has what the setting says.
        total = spec.tokens * spec.parallel
        times = f", {spec.parallel} requests at once" if spec.parallel > 1 else ""
        if spec.origin("context") == UNSET:
            times += "; as many as the model was trained for and the memory allows"
        line.set("context", ("-c", "--ctx-size"), total, f"{spec.tokens} tokens for each request{times}")
    else:
        line.warnings.append(
            'context = "model": the whole context that the model was trained for may need far more memory than its file'
        )
    line.set("parallel", ("-np", "--parallel"), spec.parallel, "the number of requests that run at once")
    if spec.parallel > 1:
        line.own(("--no-kv-unified",), reason="every request has its context for itself")
    if spec.cache_type_k is not None:
        line.set("cache_type_k", ("--cache-type-k", "-ctk"), spec.cache_type_k, "type of the KV cache's keys")
    if spec.cache_type_v is not None:
        _values_cache(line, spec.cache_type_v)
    line.own(CHECKPOINT_FLAGS, str(checkpoints), reason="saved states to go back to: as many as memory is reserved for")
    if spec.mmap is not None:
        _mmap(line, spec.mmap)
    if spec.gpu_layers is not None:
        _gpu_layers(line, spec.gpu_layers)
    if spec.flash_attention is not None:
        _flash_attention(line, spec.flash_attention, features.find("--flash-attn", "-fa"))


def prompt_cache(spec: ModelSpec, options: Collection[str] | None) -> tuple[int, int]:
    """Bytes of main memory for its prompt cache: what it needs of them, and what it takes at most where it may.

    `options`: of the build; None: not known.
    """
    if spec.embeddings or spec.rerank or (options is not None and not set(CACHE_FLAGS).intersection(options)):
        return 0, 0
    told = argument(spec.extra_args, CACHE_FLAGS)
    if told is not None and told.isascii() and told.isdigit():
        return int(told) * MIB, 0
    return (0, CACHE_MOST) if spec.prompt_cache is None else (spec.prompt_cache, 0)


def argument(arguments: Sequence[str], names: Collection[str]) -> str | None:
    """The last value that extra_args give an option."""
    found = None
    for index, argument in enumerate(arguments):
        flag, _, value = argument.partition("=")
        if flag in names:
            found = value or (arguments[index + 1] if index + 1 < len(arguments) else "")
    return found


def _prompt_cache(line: CommandLine, size: int) -> None:
    spec = line.spec
    if argument(spec.extra_args, CACHE_FLAGS) is not None:
        return
    if spec.embeddings or spec.rerank:
        size = 0
        line.own(CACHE_FLAGS, "0", reason="no prompt cache: it has no conversations")
    elif spec.prompt_cache is None:
        reason = f"at most {human_size(size)} of main memory, to spare when it was started, for earlier conversations"
        line.own(CACHE_FLAGS, str(size // MIB), reason=reason if size else "no main memory to spare for a prompt cache")
    else:
        size = spec.prompt_cache
        if size or line.features.find(*CACHE_FLAGS):
            reason = f"{human_size(size)} of main memory for earlier conversations" if size else "no prompt cache"
            line.set("prompt_cache", CACHE_FLAGS, size // MIB, reason)
    if not size:
        line.own(("--no-cache-idle-slots",), reason="it needs the prompt cache")


def _values_cache(line: CommandLine, wanted: str) -> None:
    spec = line.spec
    if wanted not in UNQUANTISED and spec.origin("cache_type_v").by_rule and not line.features.find("--flash-attn"):
        line.refuse("cache_type_v", f"cache_type_v = {wanted} needs flash attention, which it does not know")
        return
    line.set("cache_type_v", ("--cache-type-v", "-ctv"), wanted, "type of the KV cache's values")
    if spec.flash_attention == "off" and wanted not in UNQUANTISED:
        line.warnings.append(f"cache_type_v = {wanted} needs flash attention, which is off: it may not start")


def _mmap(line: CommandLine, wanted: bool) -> None:
    reason = "the file is mapped into memory" if wanted else "the weights are read into memory"
    mode = line.features.find("--load-mode", "-lm")
    if mode:
        line.set("mmap", ("-lm", "--load-mode"), "mmap" if wanted else "none", reason)
    elif wanted and line.features.find("--mmap"):
        line.add("--mmap", key="mmap", reason=reason)
    elif wanted:
        line.warnings.append("mmap = true is what this build does anyway")
    elif line.option("mmap", ("--no-mmap",)):
        line.add("--no-mmap", key="mmap", reason=reason)


def _gpu_layers(line: CommandLine, wanted: int | str) -> None:
    option = line.option("gpu_layers", ("--n-gpu-layers", "--gpu-layers", "-ngl"))
    if option is None:
        return
    if isinstance(wanted, int) or f"'{wanted}'" in option.text:
        line.add("-ngl", str(wanted), key="gpu_layers", reason="layers on the GPU")
    elif wanted == "all":
        line.add("-ngl", "999", key="gpu_layers", reason="all layers on the GPU, as this build takes only numbers")
    else:
        line.warnings.append("gpu_layers = auto: this build takes only numbers, its own default is kept")


def _flash_attention(line: CommandLine, wanted: str, option: ProgramOption | None) -> None:
    if option is None or option.hint:
        line.set("flash_attention", ("-fa", "--flash-attn"), wanted, "flash attention")
    elif wanted == "on":
        line.add("-fa", key="flash_attention", reason="flash attention")
    elif wanted == "auto":
        line.warnings.append("flash_attention = auto: this build knows only on and off, it stays off")


def _work(line: CommandLine) -> None:
    spec = line.spec
    if spec.embeddings and spec.rerank:
        line.refusals.append("embeddings and rerank: llama-server does one or the other")
    batch, ubatch = spec.batch, spec.ubatch
    if (spec.embeddings or spec.rerank) and ubatch is None and spec.tokens is not None:
        # An input longer than the physical batch is answered with status 500.
        size = min(spec.tokens, EMBEDDING_BATCH_CAP)
        reason = "a whole input must fit one batch"
        line.set("context", ("-b", "--batch-size"), max(batch or size, size), reason)
        line.set("context", ("-ub", "--ubatch-size"), size, reason)
    else:
        if batch is not None:
            line.set("batch", ("-b", "--batch-size"), batch, "tokens of a prompt put in at once")
        if ubatch is not None:
            line.set("ubatch", ("-ub", "--ubatch-size"), ubatch, "tokens computed at once")
    for key, names, reason in PLAIN:
        value = getattr(spec, key)
        if value is not None:
            line.set(key, names, value, reason)
    kinds = line.features.find("--spec-type")
    if spec.draft_model is not None and kinds and "draft-simple" in f"{kinds.hint} {kinds.choices}":
        line.add("--spec-type", "draft-simple", key="draft_model", reason="newer builds have several ways to draft")
    for key, names, reason in (
        ("embeddings", ("--embeddings", "--embedding"), "serves /v1/embeddings"),
        ("rerank", ("--rerank", "--reranking"), "serves /v1/rerank"),
    ):
        if getattr(spec, key) and line.option(key, names):
            line.add(line.features.pick(*names) or names[0], key=key, reason=reason)


def _sampling(line: CommandLine) -> None:
    for key, names in SAMPLING:
        value = getattr(line.spec.sampling, key)
        if value is not None:
            line.set(f"sampling.{key}", names, value, "where a request does not say")


def _extra(line: CommandLine) -> None:
    """A value that looks like a refused option is refused too: which of the two it is, only the build knows."""
    options = line.features.options
    for token in line.spec.extra_args:
        name = flag_name(token)
        option = options.get(name)
        reason = _why_owned(option.names if option else (name,))
        if reason:
            line.refusals.append(f"extra_args {name}: {reason}")
        elif not name.startswith("--") or len(name) == 2:
            continue  # a value, or a short name that could be a negative number
        elif option is None:
            line.warnings.append(f"extra_args {name} is not in the help of this build: it may refuse to start")
        elif option.removed:
            line.refusals.append(f"extra_args {name}: {option.text}")
    owned = {name: why for option in options.values() if (why := _why_owned(option.names)) for name in option.env}
    for name, _ in line.spec.env:
        if name in owned and name not in SECRET_VARIABLES:
            line.refusals.append(f"env {name}: {owned[name]}")
    if line.spec.extra_args:
        line.add(*line.spec.extra_args, key="extra_args", reason="as written, after everything else")


def _why_owned(names: Iterable[str]) -> str | None:
    """Why an option must not be set: by any of its names, of which this build may have more than the configuration
    knows."""
    return next(filter(None, map(why_owned, names)), None)
