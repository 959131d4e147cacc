"""What a llama-server will need of memory, from the model's header and its settings; and what would fit into less.

Owns the way from the settings of a model to those of the estimate: the same that `argv` writes on the command line.
Never raises: what cannot be read counts 0 and says so. Starts nothing.
"""

from __future__ import annotations

import hashlib
import logging
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final

import msgspec
from msgspec import Struct
from msgspec.structs import asdict, replace

from accelerd.config.model import USUAL_CONTEXT, ModelSpec
from accelerd.config.values import tensor_override
from accelerd.devices.model import Device, usable
from accelerd.devices.model import room as room_of
from accelerd.engines.base import EngineBuild
from accelerd.engines.llama_server import arguments, argv, files, placement
from accelerd.engines.llama_server.fit_params import FitAnswer, FitRow
from accelerd.estimate import smaller
from accelerd.estimate.compute import logits
from accelerd.estimate.context import contexts
from accelerd.estimate.estimate import REPACKED, Estimate, EstimateSettings, estimate
from accelerd.estimate.gguf import GgufError
from accelerd.estimate.placing import options
from accelerd.estimate.tensor_places import HOST
from accelerd.estimate.tensors import GgufModel, Identity, ModelReader, identity
from accelerd.memory.measure import GPU_RESERVE
from accelerd.memory.model import RAM, Forecast, MemoryRequirement, in_ram
from accelerd.memory.resident import usual_reserve

log = logging.getLogger(__name__)

FROM_TOOL: Final = "estimated by llama-fit-params"
MIB: Final = 1 << 20
UNBOUNDED: Final = 1 << 60  # bytes
UNKNOWN_UBATCH: Final = 2048  # the largest that a tuning rule sets
FEW_OUTPUTS: Final = "--load-mode"  # builds with this option reserve scores only for the tokens that are asked for
MOST_KNOWN: Final = 256  # models
STARTS: Final = (("--spec-draft-n-max", 3), ("--draft-max", 16))  # tokens that are drafted at once, by the build
NGRAM: Final = 64  # tokens that are drafted from the text itself, at most
KEEPS_STATES: Final = frozenset({"draft-mtp", "draft-eagle3", "draft-dflash", "draft-dspark"})
FIT_TARGET: Final = 1 << 30  # llama-server's default


class ModelFiles(Struct, frozen=True):
    """The files of a model, read."""

    model: GgufModel
    projector: GgufModel | None
    draft: GgufModel | None
    identities: tuple[Identity, ...]
    lora: tuple[GgufModel, ...] = ()

    def estimate(self, settings: EstimateSettings) -> Estimate:
        return estimate(self.model, settings, self.projector, self.draft, self.lora)


class ForecastInputs(Struct, frozen=True):
    """What a later suggestion needs of an earlier forecast."""

    read: ModelFiles
    settings: EstimateSettings
    spec: ModelSpec  # as settled
    gpus: tuple[Device, ...]
    gpu_layers: int | str | None
    told: ModelSpec | None = None  # as the configuration has it
    build: EngineBuild | None = None  # None: it was not asked
    answer: FitAnswer | None = None
    contexts: tuple[int, ...] = ()  # that it may have where the setting leaves that open
    names: Mapping[str, str] | None = None  # what the program calls the GPUs, by slot


class Forecaster:
    """For all models of the engine. Blocking, but for `suggest_smaller`: call it in a thread.

    `limit`: bytes that all models together may have.
    """

    def __init__(self, machine: Callable[[], str] = platform.machine, limit: int | None = None) -> None:
        self.reader = ModelReader()
        self._limit = limit
        self._machine = machine
        self._known: dict[str, ForecastInputs] = {}

    def forecast(
        self,
        spec: ModelSpec,
        settled: ModelSpec,
        build: EngineBuild | None,
        devices: Sequence[Device],
        answer: FitAnswer | None = None,
        names: Mapping[str, str] | None = None,
    ) -> Forecast:
        """`spec`: with names as they are here; `settled`: with all that is added to it; `build` None: not asked.

        `answer`: what llama-fit-params says of it with the longest context that it may have. `names`: what the program
        calls the GPUs, by slot.
        """
        if spec.memory is not None:
            declared = self._declared(spec, devices)
            return with_cache(declared, settled, build) if spec.path else declared
        if not spec.path:
            return Forecast((in_ram(*files.footprint(spec)),))
        earlier = self._known.get(spec.name)
        if build is None and earlier is not None and earlier.told == spec:  # what was asked before still holds
            settled, build, answer = earlier.spec, earlier.build, answer or earlier.answer
            names = earlier.names
        gpus = usable(devices)
        settings, layers = settings_of(settled, build, gpus, self._machine(), names)
        try:
            read = self._read(spec, settled, arguments.read(settled).spec)
        except (GgufError, OSError) as error:
            return Forecast((self._unread(spec, error),))
        settings = with_checkpoints(settings, settled, read)
        known = ForecastInputs(read, settings, settled, gpus, layers, spec, build, answer, names=names)
        if spec.context == "auto":
            known = replace(known, contexts=contexts_of(known, devices, self._limit))
        while len(self._known) >= MOST_KNOWN:
            self._known.pop(next(iter(self._known)))
        self._known[spec.name] = known
        placed = tuple(need for context in known.contexts or (None,) for need in self._placed(known, context))
        return with_cache(Forecast(placed, self._key(known, build) if build is not None else ""), settled, build)

    @staticmethod
    def _placed(known: ForecastInputs, context: int | None) -> Iterable[MemoryRequirement]:
        """The ways to place the model with this context; None: that of its settings."""
        settings, answer = known.settings, known.answer
        unknown = ", ".join(arguments.read(known.spec).unknown)
        beside = f"what {unknown} in extra_args changes is not known before it is loaded"
        if context is not None:
            settings = replace(settings, context=context * settings.slots)
        found = known.read.estimate(settings)
        for need in options(found, known.gpus, gpu_layers=known.gpu_layers, wanted_gpus=known.spec.gpus):
            if answer is not None and answer.rows:
                need = corrected(need, found, answer, weights_only=context not in (None, *known.contexts[:1]))
            source = f"{need.source}; {beside}" if unknown else need.source
            yield replace(need, context=context, source=source)

    def known(self, name: str) -> ForecastInputs | None:
        """What the last forecast of the model was made of."""
        return self._known.get(name)

    def context(self, spec: ModelSpec) -> int | None:
        """The context that the model gets where there is room for it, as far as that is known."""
        known = self._known.get(spec.name)
        return next(iter(known.contexts), spec.tokens) if known is not None and known.told == spec else spec.tokens

    def suggest_smaller(self, spec: ModelSpec, room: Mapping[str, int]) -> str:
        """One clause on what of the model would fit into `room`; empty where nothing would, or nothing is known."""
        known = self._known.get(spec.name)
        if known is None or spec.memory is not None:
            return ""
        return offers(known, room, backing(known.gpus))

    def checkpoints(self, spec: ModelSpec) -> int:
        """How many saved states of a conversation memory is reserved for."""
        known = self._known.get(spec.name)
        return known.settings.checkpoints if known is not None and known.told == spec else argv.CHECKPOINTS[0]

    def _read(self, spec: ModelSpec, settled: ModelSpec, told: ModelSpec) -> ModelFiles:
        """`told`: `settled` with what extra_args say; a file that they name is called here as it is there."""
        assert spec.path is not None

        def named(field: str) -> str | None:
            there: str | None = getattr(told, field)
            return there if there != getattr(settled, field) else getattr(spec, field)

        extra = [named("mmproj"), named("draft_model")]
        adapters = [one.path for one in (*spec.lora, *told.lora[len(settled.lora) :])]
        projector, draft = (self.reader.read(name) if name else None for name in extra)
        names = (spec.path, *filter(None, extra), *adapters)
        lora = tuple(map(self.reader.read, adapters))
        return ModelFiles(self.reader.read(spec.path), projector, draft, tuple(map(identity, names)), lora)

    @staticmethod
    def _unread(spec: ModelSpec, error: GgufError | OSError) -> MemoryRequirement:
        """The files' sizes where a header says nothing, 0 where there are no files."""
        size, source = files.footprint(spec)
        why = error.strerror if isinstance(error, OSError) else str(error)
        log.info("cannot estimate %s from its header: %s", spec.name, why)
        return in_ram(size, source if not size else f"{source}, as its header cannot be read: {why}")

    @staticmethod
    def _declared(spec: ModelSpec, devices: Sequence[Device]) -> Forecast:
        """So much, on the device that it would take."""
        assert spec.memory is not None
        source = f"declared: {spec.origin('memory')}"
        gpus = usable(devices)
        wanted = [gpu for gpu in gpus if gpu.id in (spec.gpus or ())]
        chosen = [] if spec.gpu_layers == 0 else wanted or ([gpu for gpu in gpus if gpu.apu is not True] or gpus[:1])
        if not chosen:
            return Forecast((in_ram(spec.memory, source, declared=True),))
        return Forecast(
            tuple(MemoryRequirement({gpu.id: spec.memory}, source, (gpu.id,), declared=True) for gpu in chosen)
        )

    @staticmethod
    def _key(known: ForecastInputs, build: EngineBuild | None) -> str:
        """Names the files, the settings that matter, and the program."""
        settings = {name: sorted(value) if isinstance(value, frozenset) else value
                    for name, value in asdict(known.settings).items()}  # fmt: skip
        version = (build.engine, build.version, build.backend) if build is not None else ()
        said = (known.read.identities, settings, known.gpu_layers, version, arguments.read(known.spec).unknown)
        return hashlib.sha256(msgspec.json.encode(said, order="sorted")).hexdigest()


def with_checkpoints(settings: EstimateSettings, spec: ModelSpec, read: ModelFiles) -> EstimateSettings:
    """As many saved states as the program would keep by itself, or as many as take the memory that is set for them."""
    if not settings.checkpoints or arguments.last(spec.extra_args, (*argv.CHECKPOINT_FLAGS, "-ctxcp")) is not None:
        return settings
    one = estimate(read.model, replace(settings, checkpoints=1)).checkpoints
    least, most = argv.CHECKPOINTS
    return replace(settings, checkpoints=max(least, min(most, argv.CHECKPOINT_MEMORY // max(1, one))))


def contexts_of(known: ForecastInputs, devices: Sequence[Device], limit: int | None = None) -> tuple[int, ...]:
    """The contexts of one request that the model may have on this machine, the best first."""
    spec, trained = known.spec, known.read.model.number("context_length")
    if spec.memory is not None:  # a person has said what it needs, with the usual context
        trained = min(trained, USUAL_CONTEXT)
    if spec.embeddings or spec.rerank:  # a longer input does not fit one batch
        trained = min(trained, argv.EMBEDDING_BATCH_CAP)
    room = {gpu.id: max(0, room_of(gpu) - GPU_RESERVE) for gpu in known.gpus}
    main = sum(pool.total for device in devices if device.kind == "cpu" for pool in device.pools)
    room[RAM] = main - usual_reserve(main) if main else UNBOUNDED
    if spec.memory_max is not None:
        room[RAM] = min(room[RAM], spec.memory_max)
    if not main and not known.gpus:  # nothing is known of this machine
        trained = min(trained, USUAL_CONTEXT)
    return contexts(ways(known), room, trained, backing(known.gpus), limit)


def corrected(
    need: MemoryRequirement, found: Estimate, answer: FitAnswer, *, weights_only: bool = False
) -> MemoryRequirement:
    """The need with what llama-fit-params knows better, which rounds every size down to whole MiB.

    `weights_only`: it was asked with another context.

    Its rows say what lies in main memory and what on devices. How it divides a model among several devices, or fits it,
    holds only at the moment when it is asked: there the division of the estimate stays.

    Its compute buffers hold the logits of every token of a batch, which newer servers do not reserve: where those
    decide, they are an upper bound only.
    """
    shares = {pool: dict(share) for pool, share in need.shares.items()}
    places: list[tuple[Sequence[str], Sequence[FitRow]]] = [((RAM, *need.devices), answer.rows)]
    if need.devices and answer.on_devices and found.settings.fit_target is None:
        places = [((RAM,), answer.in_main_memory), (need.devices, answer.on_devices)]
    buffers = {pool: share.get("compute", 0) for pool, share in shares.items()}
    largest = max(buffers, key=lambda pool: buffers[pool], default=RAM)  # where the logits are
    for pools, rows in places:
        doubt = MIB * (len(rows) + 1)
        told = {"weights": sum(row.model for row in rows)}
        if not weights_only:
            told["kv cache"] = sum(row.context for row in rows)
        if not weights_only and (rows != answer.on_devices or len(rows) == len(pools)):  # buffers of as many devices
            compute = sum(row.compute for row in rows)
            smaller = compute + doubt < sum(buffers.get(pool, 0) for pool in pools)
            if smaller or largest not in pools or compute > 2 * logits(found.facts, found.batch.tokens):
                told["compute"] = compute
        for name, size in told.items():
            parts = {pool: shares.get(pool, {}).get(name, 0) for pool in pools}
            if abs(size - sum(parts.values())) > doubt:
                for pool, part in divided_like(parts, size + doubt).items():
                    shares.setdefault(pool, {})[name] = part
    amounts = {pool: sum(share.values()) for pool, share in shares.items()}
    return need if amounts == need.amounts else replace(need, amounts=amounts, shares=shares, source=FROM_TOOL)


def divided_like(parts: Mapping[str, int], size: int) -> dict[str, int]:
    """So much, divided as the parts are; with no parts all of it in the first place."""
    total = sum(parts.values())
    found = {place: size * part // total if total else 0 for place, part in parts.items()}
    first = max(found, key=lambda place: found[place])
    found[first] += size - sum(found.values())  # what rounding took
    return found


def with_cache(found: Forecast, spec: ModelSpec, build: EngineBuild | None) -> Forecast:
    """The forecast with the main memory that the model's prompt cache needs, or takes of what is free."""
    fixed, spare = argv.prompt_cache(spec, build.options if build is not None else None)
    parts = found.options[0].parts
    if spare and parts:  # a small one has no use for as much as the program would take
        state = (parts.get("kv cache", 0) + parts.get("checkpoints", 0)) // max(1, spec.parallel)
        spare = min(spare, max(argv.CACHE_LEAST, argv.CONVERSATIONS * state))
    return replace(found, options=tuple(need.with_cache(fixed) for need in found.options), spare_cache=spare)


def settings_of(
    spec: ModelSpec,
    build: EngineBuild | None,
    gpus: Sequence[Device],
    machine: str,
    names: Mapping[str, str] | None = None,
) -> tuple[EstimateSettings, int | str | None]:
    """What the estimate is made for, and the layers on GPUs; extra_args count.

    `build` None: the program was not asked; then more than it may take. `names`: what it calls the GPUs, by slot.
    """
    told = arguments.read(spec)
    spec = told.spec
    options = build.options if build is not None else frozenset[str]()
    whole = spec.embeddings or spec.rerank
    batch, ubatch = spec.batch or 2048, spec.ubatch or (UNKNOWN_UBATCH if build is None and gpus else 512)
    if whole and spec.ubatch is None and spec.tokens is not None:
        ubatch = min(spec.tokens, argv.EMBEDDING_BATCH_CAP)
        batch = max(spec.batch or ubatch, ubatch)
    kinds = set(spec.spec_type or ())
    default = next((number for option, number in STARTS if option in options), STARTS[-1][1])
    drafted = (spec.draft_max or default) if spec.draft_model or any(kind.startswith("draft") for kind in kinds) else 0
    drafted = max(drafted, NGRAM if any(kind.startswith("ngram") for kind in kinds) else 0)
    settings = EstimateSettings(
        context=(spec.tokens or 0) * spec.parallel,
        slots=spec.parallel,
        type_k=spec.cache_type_k or "f16",
        type_v=spec.cache_type_v or "f16",
        flash=spec.flash_attention or "auto",
        batch=batch,
        ubatch=ubatch,
        mmap=spec.mmap is not False,
        embeddings=spec.embeddings,
        rerank=spec.rerank,
        few_outputs=FEW_OUTPUTS in options,
        drafted=drafted,
        checkpoints=argv.CHECKPOINTS[0] if build is None or options.intersection(argv.CHECKPOINT_FLAGS) else 0,
        repacked=REPACKED.get(machine, frozenset()),
        backend=build.backend if build is not None else "",
        overrides=tuple(_overrides(spec, gpus, names)),
        split_mode=spec.split_mode or "layer",
        main_gpu=spec.main_gpu if spec.split_mode == "none" else None,
        tensor_split=spec.tensor_split,
        fit_target=(spec.fit_target or (FIT_TARGET,)) if spec.fit else None,
        projector_at=HOST if spec.mmproj_offload is False else spec.mmproj_device,
        draft_type_k=spec.draft_cache_type_k or "f16",
        draft_type_v=spec.draft_cache_type_v or "f16",
        draft_layers=spec.draft_gpu_layers if isinstance(spec.draft_gpu_layers, int) else None,
        own_drafts="draft-mtp" in kinds and not spec.draft_model,
        kept_states=(spec.draft_max or default) if kinds & KEEPS_STATES else 0,
    )
    return replace(settings, **told.estimate), spec.gpu_layers


def _overrides(spec: ModelSpec, gpus: Sequence[Device], names: Mapping[str, str] | None) -> Iterator[tuple[str, str]]:
    """Patterns with the GPU that they name, in the order of the command line; what cannot be told is left out."""
    by_name = {name: slot for slot, name in (names or {}).items()}
    for one in spec.override_tensor:
        pattern, buffer = tensor_override(one)
        if buffer.startswith("CPU") or buffer.endswith("_Host"):
            yield pattern, HOST
        elif buffer in by_name:
            yield pattern, by_name[buffer]
        elif names is None and len(gpus) == 1:
            yield pattern, gpus[0].id
    for key, _, pattern, _ in placement.ON_HOST:
        if (value := getattr(spec, key)) not in (None, False):
            yield placement.of_layers(pattern, value), HOST


def offers(known: ForecastInputs, room: Mapping[str, int], backing: smaller.Backing) -> str:
    """One clause on smaller settings with which the model would fit into `room`; nothing where none would do."""
    trained = known.read.model.number("context_length")
    context = (known.contexts or (known.spec.tokens,))[-1] or trained
    most = min(context, trained) if trained else context  # more is no use
    kind = known.settings.type_k
    found = list(smaller.suggest_smaller(ways(known), room, most, kind, backing))
    if cache_of(known):
        without = smaller.largest_context(ways(known, cached=False), room, most, backing=backing)
        if without > (found[0].context if found else 0):
            own = "" if without == context else f" and context = {without}"
            return smaller.described([f"{_no_cache(known.spec)}{own}", *map(smaller.setting, found)])
    return smaller.describe(found)


def _no_cache(spec: ModelSpec) -> str:
    """The setting without which no memory is set aside for a prompt cache."""
    told = arguments.last(spec.extra_args, argv.CACHE_FLAGS) is not None  # extra_args have the last word
    return "--cache-ram 0 in extra_args" if told else 'prompt_cache = "auto"'


def cache_of(known: ForecastInputs) -> int:
    """Bytes of main memory that its prompt cache needs in any case."""
    return argv.prompt_cache(known.spec, known.build.options if known.build is not None else None)[0]


def ways(known: ForecastInputs, *, cached: bool = True) -> smaller.Ways:
    """How the model could be placed with another context and another type of its cache.

    `cached`: with the prompt cache that it needs.
    """
    prompts = cache_of(known) if cached else 0

    def placed_with(context: int, kind: str | None) -> Sequence[MemoryRequirement]:
        settings = replace(known.settings, context=context * known.settings.slots)
        if kind is not None:
            flash = "on" if settings.flash == "off" else settings.flash
            settings = replace(settings, type_k=kind, type_v=kind, flash=flash)
        found = known.read.estimate(settings)
        placed = options(found, known.gpus, gpu_layers=known.gpu_layers, wanted_gpus=known.spec.gpus)
        return [need.with_cache(prompts) for need in placed]

    return placed_with


def backing(gpus: Sequence[Device]) -> dict[str, tuple[str, int]]:
    """GPUs whose memory is main memory, and what they have for themselves of it."""
    return {gpu.id: (RAM, sum(pool.total for pool in gpu.pools if pool.name == "vram")) for gpu in gpus if gpu.unified}
