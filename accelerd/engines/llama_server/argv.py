"""The command line of one llama-server, from typed settings and what the installed build can do. Pure.

Each setting is written in the words this build knows, with its source and reason beside it. What a build cannot express
is an error that names it, unless leaving it out changes nothing a person asked for: what only a tuning rule advises is
left out with a warning. No value is ever split or interpreted: one value is one token.

Extra arguments come last, so they win over accelerd's own. What config/flags.py refuses is refused here by every name
that the build has for it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Final

from msgspec.structs import replace

from accelerd.base.decoding import whole_number
from accelerd.base.exits import Cause
from accelerd.base.sizes import human_size
from accelerd.config.flags import flag_name, why_owned
from accelerd.config.model import BUILT_IN as UNSET
from accelerd.config.model import ModelSpec
from accelerd.engines.base import Endpoint, TuningAdvice, fail
from accelerd.engines.llama_server import arguments, placement
from accelerd.engines.llama_server.command_line import CommandLine
from accelerd.engines.llama_server.environment import KEY_VARIABLE
from accelerd.engines.llama_server.features import Features, ProgramOption

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
    ("draft_max", ("--spec-draft-n-max", "--draft-max", "--draft"), "at most so many tokens are drafted"),
    ("draft_min", ("--spec-draft-n-min", "--draft-min"), "at least so many tokens are drafted"),
    ("draft_p_min", ("--spec-draft-p-min", "--draft-p-min"), "drafting ends at a less likely token"),
    ("draft_cache_type_k", ("--spec-draft-type-k", "--cache-type-k-draft", "-ctkd"), "type of the draft's keys"),
    ("draft_cache_type_v", ("--spec-draft-type-v", "--cache-type-v-draft", "-ctvd"), "type of the draft's values"),
    ("rope_scaling", ("--rope-scaling",), "RoPE scaling"),
    ("rope_scale", ("--rope-scale",), "RoPE scaling"),
    ("rope_freq_base", ("--rope-freq-base",), "RoPE base frequency"),
    ("rope_freq_scale", ("--rope-freq-scale",), "RoPE scaling"),
    ("yarn_orig_ctx", ("--yarn-orig-ctx",), "YaRN"),
    ("yarn_ext_factor", ("--yarn-ext-factor",), "YaRN"),
    ("yarn_attn_factor", ("--yarn-attn-factor",), "YaRN"),
    ("yarn_beta_slow", ("--yarn-beta-slow",), "YaRN"),
    ("yarn_beta_fast", ("--yarn-beta-fast",), "YaRN"),
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


def build(
    spec: ModelSpec,
    features: Features,
    endpoint: Endpoint,
    advice: Sequence[TuningAdvice] = (),
    gpus: Sequence[str] = (),
    cache: int = CACHE_MOST,
    key_file: str = "",
    checkpoints: int = CHECKPOINTS[0],
    names: Mapping[str, str] | None = None,
) -> CommandLine:
    """The whole command line. Raises AccelError('model_failed', cause="refused") listing all this build cannot do.

    `gpus`: what the program calls those that it shall use, where it has a choice. `cache`: bytes that are set aside for
    its prompt cache. `key_file`: where its key would be, if it takes none from the environment. `checkpoints`: of a
    conversation, as many as memory is reserved for. `names`: what
    it calls which GPU, by slot; None: it has one or is not asked.
    """
    line = CommandLine(spec, features, [features.binary], advice)
    _model(line)
    _listen(line, endpoint)
    _key(line, key_file)
    _memory(line, checkpoints)
    _prompt_cache(line, cache)
    if gpus:
        line.own(("--device", "-dev"), ",".join(gpus), reason="where accelerd has made room for it")
    placement.place(line, gpus, names)
    placement.lora(line)
    _work(line)
    _sampling(line)
    line.own(("--offline",), reason="accelerd downloads models itself")
    line.own(("--jinja",), reason="chat templates and tool calls as the model's maker wrote them")
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
    placement.fit(line)
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
        names = ("-ngl", "--n-gpu-layers", "--gpu-layers")
        _layers(line, "gpu_layers", names, spec.gpu_layers, "layers on the GPU")
    if spec.flash_attention is not None:
        _flash_attention(line, spec.flash_attention, features.find("--flash-attn", "-fa"))


def prompt_cache(spec: ModelSpec, options: Collection[str] | None) -> tuple[int, int]:
    """Bytes of main memory for its prompt cache: what it needs of them, and what it takes at most where it may.

    `options`: of the build; None: not known.
    """
    if spec.embeddings or spec.rerank or (options is not None and not set(CACHE_FLAGS).intersection(options)):
        return 0, 0
    told = whole_number(arguments.last(spec.extra_args, CACHE_FLAGS) or "")
    if told is not None:
        return told * MIB, 0
    return (0, CACHE_MOST) if spec.prompt_cache is None else (spec.prompt_cache, 0)


def _prompt_cache(line: CommandLine, size: int) -> None:
    spec = line.spec
    if arguments.last(spec.extra_args, CACHE_FLAGS) is not None:
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


def _layers(line: CommandLine, key: str, names: tuple[str, ...], wanted: int | str, reason: str) -> None:
    option = line.option(key, names)
    if option is None:
        return
    name = line.features.pick(*names) or names[0]
    if isinstance(wanted, int) or f"'{wanted}'" in option.text:
        line.add(name, str(wanted), key=key, reason=reason)
    elif wanted == "all":
        line.add(name, "999", key=key, reason=f"all {reason}, as this build takes only numbers")
    else:
        line.warnings.append(f"{key} = auto: this build takes only numbers, its own default is kept")


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
    _speculative(line)
    for key, names, reason in (
        ("embeddings", ("--embeddings", "--embedding"), "serves /v1/embeddings"),
        ("rerank", ("--rerank", "--reranking"), "serves /v1/rerank"),
    ):
        if getattr(spec, key) and line.option(key, names):
            line.add(line.features.pick(*names) or names[0], key=key, reason=reason)


def _speculative(line: CommandLine) -> None:
    spec = line.spec
    kinds = line.features.find("--spec-type")
    known = kinds.hint.split(",") if kinds else []
    if spec.spec_type is not None:
        if kinds is not None and (unknown := [kind for kind in spec.spec_type if kind not in known]) and len(known) > 1:
            line.refuse("spec_type", f"spec_type = {unknown[0]!r}: it takes {', '.join(known)}")
        else:
            line.set("spec_type", ("--spec-type",), ",".join(spec.spec_type), "how tokens are drafted")
    elif spec.draft_model is not None and "draft-simple" in known:
        line.add("--spec-type", "draft-simple", key="draft_model", reason="newer builds have several ways to draft")
    if spec.draft_gpu_layers is not None:
        names = ("--spec-draft-ngl", "--gpu-layers-draft", "--n-gpu-layers-draft", "-ngld")
        _layers(line, "draft_gpu_layers", names, spec.draft_gpu_layers, "layers of the draft model on the GPU")


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
    for name in dict.fromkeys(flag_name(token) for token in line.spec.extra_args if token.startswith("-")):
        _overrule(line, name)
    if unknown := arguments.read(line.spec).unknown:
        what = f"extra_args {', '.join(unknown)}: what this takes of memory is not in the forecast"
        line.warnings.append(f"{what}; a measurement after the load replaces it")
    if line.spec.extra_args:
        line.add(*line.spec.extra_args, key="extra_args", reason="as written, after everything else")


def _overrule(line: CommandLine, name: str) -> None:
    """Says of a flag of accelerd's that one of extra_args, further back, replaces it."""
    option = line.features.options.get(name)
    names = option.names if option else (name,)
    for index, flag in enumerate(line.flags):
        if flag.text.partition(" ")[0] in names:
            by = f"overruled by {name} of extra_args"
            line.flags[index] = replace(flag, note=f"{by}; {flag.note}" if flag.note else by)
            line.warnings.append(f"extra_args {name} overrules {flag.text} ({flag.source})")


def _why_owned(names: Iterable[str]) -> str | None:
    """Why an option must not be set: by any of its names, of which this build may have more than the configuration
    knows."""
    return next(filter(None, map(why_owned, names)), None)
