"""The configuration as the rest of the program sees it, and the declaration of every key of accelerd.toml but those of
config/server_settings.py and config/machine_settings.py.

Each field that `key` declares is a key of the file; its type, range, description and default are written here and
nowhere else. Times are in seconds, sizes in bytes. Pure data: `config.load` fills it; the other rooms read it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from enum import Enum
from typing import Annotated, Any, Final, Literal

from msgspec import Struct

from accelerd.config import values as toml
from accelerd.config.command import CommandSettings
from accelerd.config.keys import about, array, described, each_once, key, launch_fields, named, table
from accelerd.config.lora import ADAPTERS, LoraAdapter, adapter_tables
from accelerd.config.machine_settings import DesktopSettings, MemorySettings, PerformanceSettings
from accelerd.config.problems import Source
from accelerd.config.remotes import Remote, RemoteTask
from accelerd.config.routes import Route as Route
from accelerd.config.server_settings import FlmSettings as FlmSettings
from accelerd.config.server_settings import LemonadeSettings as LemonadeSettings
from accelerd.config.server_settings import LlamaServerSettings as LlamaServerSettings
from accelerd.config.server_settings import SchedulerSettings as SchedulerSettings
from accelerd.config.server_settings import ServerSettings as ServerSettings
from accelerd.config.variants import VARIANTS, Variant
from accelerd.config.vllm import VllmSettings


class SetBy(Enum):
    USER = "user"
    RULE = "tuning rule"
    IMAGE = "container image"


@dataclass(frozen=True)
class Origin:
    layer: str  # for people: "model", "profile big", "defaults", "built-in", "tuning rule strix-halo-mmap"
    file: str | None = None
    line: int | None = None
    by: SetBy = SetBy.USER
    table: tuple[str, ...] = field(default=(), compare=False)  # of the file: ("profiles", "big"); (): none

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}" if self.file else ""
        return f"{self.layer} ({where})" if where else self.layer

    @property
    def by_rule(self) -> bool:
        return self.by is SetBy.RULE


BUILT_IN = Origin("built-in")
DEFAULTS: Final = ("defaults",)
USUAL_CONTEXT: Final = 8192  # tokens; most requests do with it


@dataclass(frozen=True)
class Sampling:
    """Default sampling parameters. Values in a request take precedence."""

    temperature: float | None = key(float, None, "Randomness; 0 always selects the most likely token.", ge=0, le=10)
    top_p: float | None = key(
        float, None, "Consider only the most likely tokens that together reach this probability.", ge=0, le=1
    )
    top_k: int | None = key(
        int, None, "Consider only this many of the most likely tokens; 0 means all.", ge=0, le=10**6
    )
    min_p: float | None = key(
        float, None, "Consider only tokens with at least this probability, relative to the most likely one.", ge=0, le=1
    )
    repeat_penalty: float | None = key(float, None, "Penalty for repeated tokens; 1 means none.", ge=0, le=10)
    presence_penalty: float | None = key(float, None, "Penalty for tokens that have already appeared.", ge=-2, le=2)
    frequency_penalty: float | None = key(
        float, None, "Penalty for tokens in proportion to how often they have appeared.", ge=-2, le=2
    )
    seed: int | None = key(int, None, "Random seed; -1 uses a new one for each request.", ge=-1, le=(1 << 32) - 1)
    max_tokens: int | None = key(int, None, "Maximum length of an answer, in tokens.", ge=1, le=1 << 24)


@dataclass(frozen=True)
class Price:
    """What a million tokens of a model cost, in any currency, the same for all models."""

    input: float = key(float, 0.0, "Price of a million tokens of requests.", ge=0, le=10**9)
    output: float = key(float, 0.0, "Price of a million tokens of answers.", ge=0, le=10**9)

    @property
    def both(self) -> float:
        """What models are compared by: how long an answer will be is not known before."""
        return self.input + self.output


class KvCacheTable(Struct):
    """Types of the two halves of the KV cache."""

    k: Annotated[toml.CacheType, about("Type of the keys.")]
    v: Annotated[toml.CacheType, about("Type of the values.")]


@dataclass(frozen=True)
class ModelSpec:
    """One model. Set exactly one of path and model, except for an existing container."""

    name: str
    engine: str = key(
        Literal["llama-server", "flm", "lemonade", "command", "vllm", "remote"],
        "llama-server",
        "The engine that runs the model.",
    )
    path: str | None = key(
        toml.FilePath,
        None,
        "The model file. ~ is expanded; relative paths start at the folder of accelerd.toml.",
        model_only=True,
    )
    model: str | None = key(
        toml.ModelId,
        None,
        "A model of Hugging Face, which accelerd downloads for llama-server; for other engines their own name for it.",
        model_only=True,
    )
    description: str = key(toml.TextLine, "", "A description for people, on one line.", model_only=True, live=True)
    aliases: tuple[str, ...] = key(
        array(toml.Name),
        (),
        "Additional names for clients. A star in one stands for any characters: `claude-*`.",
        model_only=True,
        live=True,
    )
    unlisted: bool = key(bool, False, "Leave the model out of GET /v1/models; requests may still name it.", live=True)
    hidden_aliases: tuple[str, ...] = key(
        array(toml.Name), (), "Aliases that GET /v1/models does not show.", model_only=True, live=True
    )
    variants: tuple[Variant, ...] = key(
        VARIANTS,
        (),
        "Further names, whose requests get other fields or a system prompt: [models.NAME.variants.OTHER].",
        model_only=True,
        live=True,
    )
    # what runs
    binary: str | None = key(toml.Program, None, "The program to run instead of the engine's `binary`.")
    context: int | Literal["auto"] | None = key(
        toml.Context,
        "auto",
        'Context length of one request in tokens, or "model" for the whole trained context; "auto" is that within the '
        "memory of the machine, and 8192 for other engines than llama-server.",
    )
    parallel: int = key(int, 1, "Number of requests that the engine processes at the same time.", ge=1, le=1024)
    cache_type_k: str | None = key(
        toml.CacheType | KvCacheTable,
        None,
        'Data type of the KV cache: one for both halves, or {k = "q8_0", v = "f16"}.',
        name="kv_cache_type",
    )
    cache_type_v: str | None = None  # from kv_cache_type, too
    prompt_cache: int | None = key(
        toml.PromptCache,
        None,
        'Main memory in which the engine keeps conversations that it may have to go on with, or "off"; "auto" is up '
        "to 8 GiB of what is free when the model is loaded.",
    )
    flash_attention: Literal["on", "off", "auto"] | None = key(toml.OnOffAuto, None, "Use flash attention.")
    mmap: bool | None = key(bool, None, "Map the model file into memory instead of reading it.")
    gpu_layers: int | Literal["all", "auto"] | None = key(toml.Layers, None, "Number of layers that run on the GPU.")
    batch: int | None = key(int, None, "Logical batch size: prompt tokens per batch.", ge=1, le=1 << 20)
    ubatch: int | None = key(int, None, "Physical batch size, in tokens; at most `batch`.", ge=1, le=1 << 20)
    threads: int | None = key(int, None, "Number of CPU threads.", ge=1, le=4096)
    gpus: tuple[str, ...] | None = key(
        each_once(toml.Slot, severity="error"),
        None,
        "The GPUs that the model may use, by PCI slot. Default: any on which it fits.",
    )
    split_mode: Literal["none", "layer", "row", "tensor"] | None = key(
        Literal["none", "layer", "row", "tensor"],
        None,
        'How several GPUs share the model: not at all ("none": one GPU has all of it), by whole layers, by rows of the '
        "weights, or by tensors. Default: by layers, where one GPU is not enough.",
    )
    main_gpu: str | None = key(
        toml.Slot,
        None,
        'The GPU that has the model with split_mode = "none", or the small tensors with "row", by PCI slot.',
    )
    tensor_split: tuple[float, ...] | None = key(
        array(toml.Share), None, "How much of the model each GPU of `gpus` gets, in proportion, such as [3, 1]."
    )
    override_tensor: tuple[str, ...] = key(
        array(toml.TensorOverride),
        (),
        "Where single weights lie: the first pattern that matches a tensor's name decides. Buffers are CPU (main "
        "memory) and the names that `llama-server --list-devices` prints.",
    )
    cpu_moe: bool = key(bool, False, "Keep the experts of all layers in main memory.")
    n_cpu_moe: int | None = key(
        int, None, "Keep the experts of so many of the first layers in main memory.", ge=0, le=10_000
    )
    n_cpu_ffn: int | None = key(
        int, None, "Keep the dense feed-forward weights of so many of the first layers in main memory.", ge=0, le=10_000
    )
    fit: bool = key(
        bool,
        False,
        "Let llama-server put as many layers on the GPUs as fit when it starts. accelerd counts what fits into the "
        "GPUs' whole memory, less fit_target.",
    )
    fit_target: tuple[int, ...] | None = key(
        toml.Sizes,
        None,
        "Memory that `fit` leaves free on each GPU: one size for all, or an array. llama-server's default: 1 GiB.",
    )
    fit_ctx: int | None = key(
        int, None, 'With context = "model", the smallest context that `fit` may choose, in tokens.', ge=128, le=1 << 27
    )
    lora: tuple[LoraAdapter, ...] = key(
        described(ADAPTERS, "", extra={"show": adapter_tables}),
        (),
        'LoRA adapters. A request can set other scales with the field "lora", such as [{"id": 0, "scale": 0.5}].',
    )
    mmproj: str | None = key(
        toml.FilePath, None, "Multimodal projector file. Without one, the model accepts no images."
    )
    mmproj_offload: bool | None = key(
        bool, None, "Run the projector on a GPU. llama-server's default: true; false keeps it in main memory."
    )
    mmproj_device: str | None = key(
        toml.Slot, None, "The GPU of the projector, by PCI slot. Default: the first one of the model."
    )
    draft_model: str | None = key(toml.FilePath, None, "File of a small draft model for speculative decoding.")
    spec_type: tuple[str, ...] | None = key(
        toml.SpecTypes,
        None,
        'Ways of speculative decoding, one or an array, such as "draft-mtp" for a model with its own draft layers or '
        '"ngram-mod". Default: the draft model, if there is one.',
    )
    draft_max: int | None = key(int, None, "Maximum number of tokens that are drafted at once.", ge=1, le=1024)
    draft_min: int | None = key(int, None, "Minimum number of tokens that are drafted at once.", ge=0, le=1024)
    draft_p_min: float | None = key(
        float, None, "Minimum probability of a drafted token; drafting ends at a less likely one.", ge=0, le=1
    )
    draft_gpu_layers: int | Literal["all", "auto"] | None = key(
        toml.Layers, None, "Number of layers of the draft model that run on the GPU."
    )
    draft_cache_type_k: str | None = key(
        toml.CacheType | KvCacheTable,
        None,
        "Data type of the draft model's KV cache, as in `kv_cache_type`.",
        name="draft_kv_cache_type",
    )
    draft_cache_type_v: str | None = None  # from draft_kv_cache_type, too
    rope_scaling: Literal["none", "linear", "yarn"] | None = key(
        Literal["none", "linear", "yarn"], None, "RoPE scaling, for contexts beyond what the model was trained for."
    )
    rope_scale: float | None = key(float, None, "RoPE scale: the context grows by this factor.", gt=0, le=10**6)
    rope_freq_base: float | None = key(float, None, "RoPE base frequency.", gt=0, le=10**12)
    rope_freq_scale: float | None = key(
        float, None, "RoPE frequency scale: the context grows by 1 divided by it.", gt=0, le=10**6
    )
    yarn_orig_ctx: int | None = key(
        int, None, "YaRN: the context that the model was trained for; 0 is what its file says.", ge=0, le=1 << 27
    )
    yarn_ext_factor: float | None = key(
        float, None, "YaRN: extrapolation mix; 0 is full interpolation, -1 the model's own.", ge=-1, le=1000
    )
    yarn_attn_factor: float | None = key(float, None, "YaRN: scale of the attention magnitude.", ge=-1, le=1000)
    yarn_beta_slow: float | None = key(float, None, "YaRN: high correction dimension.", ge=-1, le=10_000)
    yarn_beta_fast: float | None = key(float, None, "YaRN: low correction dimension.", ge=-1, le=10_000)
    chat_template_file: str | None = key(toml.FilePath, None, "Jinja chat template to use instead of the model's own.")
    embeddings: bool = key(
        bool, False, "The model computes embeddings. Without this key and `rerank`, its file's header decides."
    )
    rerank: bool = key(
        bool, False, "The model reranks documents. Without this key and `embeddings`, its file's header decides."
    )
    transcription: bool = key(bool, False, "The model transcribes audio.")
    sampling: Sampling = key(table(Sampling), Sampling(), "Default sampling parameters; a request can override them.")
    command: CommandSettings = key(
        table(CommandSettings),
        CommandSettings(),
        'With engine = "command": the program that serves the model, and what it can do.',
    )
    vllm: VllmSettings = key(table(VllmSettings), VllmSettings(), 'With engine = "vllm": what only vLLM has.')
    remote: str | None = key(
        toml.Name, None, 'With engine = "remote": which of the [remotes] answers.', model_only=True
    )
    capabilities: tuple[RemoteTask, ...] = key(
        each_once(RemoteTask),
        (),
        'With engine = "remote": what the model can do. Default: what its remote says of it, else chat, completions, '
        "embeddings, tools and vision.",
        model_only=True,
    )
    extra_args: tuple[str, ...] = key(
        array(toml.Argument), (), "Additional arguments for the engine, one string each, passed unchanged."
    )
    # may hold tokens: never shown
    env: tuple[tuple[str, str], ...] = key(
        named(toml.EnvName, toml.EnvValue), (), "Additional environment variables, passed unchanged.", repr=False
    )
    start_timeout: float = key(toml.Duration, 120.0, "A start without progress fails after this time.", live=True)
    stop_timeout: float = key(toml.Duration, 5.0, "Time between SIGTERM and SIGKILL.", live=True)
    # where it lives
    home: toml.HomeKind = key(
        toml.HomeKind,
        "auto",
        "Where the process runs: a child process of accelerd, a systemd unit, a toolbox, a distrobox, a new podman or "
        'docker container, or an existing container. "auto": a unit if the user\'s systemd is available, else a child.',
    )
    container: str | None = key(toml.ContainerName, None, "Name of the toolbox, distrobox or existing container.")
    image: str | None = key(toml.Image, None, "Image for podman or docker.")
    devices: tuple[str, ...] = key(each_once(toml.Device), (), "Devices to pass to podman or docker.")
    mounts: tuple[str, ...] = key(
        each_once(toml.Mount),
        (),
        "Directories that podman or docker mounts, in addition to the directory of the model.",
    )
    survive: bool = key(
        bool, True, "Keep the model loaded while accelerd restarts, is upgraded or crashes, if its home supports it."
    )
    memory_max: int | None = key(
        toml.MemoryLimit,
        None,
        "Hard memory limit (MemoryMax=): beyond it, the kernel kills the model and nothing else.",
    )
    memory_high: int | None = key(
        toml.MemoryLimit, None, "Soft memory limit (MemoryHigh=): beyond it, the model is slowed down."
    )
    cpu_weight: int | None = key(int, None, "CPU weight (CPUWeight=); the system's default is 100.", ge=1, le=10_000)
    nice: int | None = key(int, None, "Nice value; 19 is the lowest priority.", ge=0, le=19)
    io_class: toml.IoClass | None = key(toml.IoClass, None, "I/O scheduling class for disk access.")
    oom_score_adjust: int = key(
        int,
        200,
        "OOM score adjustment: the higher, the earlier the kernel kills the model when memory runs out. Desktop "
        "programs have 200 or less.",
        ge=0,
        le=1000,
    )
    tasks_max: int | None = key(int, None, "Maximum number of processes and threads (TasksMax=).", ge=1, le=1 << 22)
    # how it is scheduled
    concurrency: int | None = key(
        int, None, "Number of requests sent to the engine at once. Default: `parallel`.", live=True, ge=1, le=1024
    )
    idle_timeout: float | None = key(
        toml.DurationOrNever, 600.0, 'Unload the model after this time without requests, or "never".', live=True
    )
    sleep_timeout: float | None = key(
        toml.DurationOrNever,
        None,
        "Unload a model that has been asleep for this time (`vllm.sleep`). Default: when its memory is needed.",
        live=True,
    )
    preload: bool = key(bool, False, "Load the model when the daemon starts.", live=True)
    pin: bool = key(bool, False, "Never unload the model to make room for another one.", live=True)
    group: str | None = key(toml.Name, None, "Only one model of a group is loaded at a time.", live=True)
    exclusive: bool = key(bool, False, "Load no other model at the same time.", live=True)
    memory: int | None = key(
        toml.MemoryOrAuto, None, 'Memory to reserve; "auto" estimates it first and measures it later.', live=True
    )
    priority: int = key(
        int, 0, "Models with a lower priority are unloaded first when memory is needed.", live=True, ge=-100, le=100
    )
    price: Price = key(
        table(Price),
        Price(),
        "What a million tokens cost. Of deployments that are equal otherwise the cheaper one answers.",
        model_only=True,
        live=True,
    )
    origins: dict[str, Origin] = field(default_factory=dict, compare=False, repr=False, metadata={"live": True})
    offered: bool = field(default=False, metadata={"live": True})  # by its remote: it is not configured

    @property
    def removal(self) -> str:
        """What has happened when there is no such model any more, after its name."""
        return f"is not offered by {self.remote} any more" if self.offered else "was removed from the configuration"

    @property
    def tokens(self) -> int | None:
        """The context where nobody knows the memory for a longer one; None: the whole trained one."""
        return USUAL_CONTEXT if self.context == "auto" else self.context

    @property
    def elsewhere(self) -> bool:
        """Does a server elsewhere run it? Then it needs no memory here, and no rule for what is loaded concerns it."""
        return self.engine == "remote"

    @property
    def idle_after(self) -> float | None:
        """Seconds without requests after which it leaves; None: never. One elsewhere only if that is written for it."""
        written = "idle_timeout" in self.origins and self.origin("idle_timeout").table != DEFAULTS
        return self.idle_timeout if written or not self.elsewhere else None

    @property
    def slots(self) -> int:
        return self.concurrency or self.parallel

    @property
    def contained(self) -> bool:
        return not self.elsewhere and self.home in ("toolbox", "distrobox", "podman", "docker", "container")

    def same_container(self, other: ModelSpec) -> bool:
        """Are both the one container that is there? It runs once, and ends with either of them."""
        return self.home == other.home == "container" and self.container == other.container

    def origin(self, key: str) -> Origin:
        return self.origins.get(key, BUILT_IN)

    def launch_key(self) -> tuple[Any, ...]:
        """What the running process depends on: two specs with equal keys need no restart between them."""
        return tuple(getattr(self, name) for name in LAUNCH_FIELDS)


LAUNCH_FIELDS = launch_fields(ModelSpec)
# Of llama-server, and such that most models do without them.
FINE_SETTINGS = (
    "split_mode", "main_gpu", "tensor_split", "override_tensor", "cpu_moe", "n_cpu_moe", "n_cpu_ffn", "fit",
    "fit_target", "fit_ctx", "lora", "mmproj_offload", "mmproj_device", "spec_type", "draft_max", "draft_min",
    "draft_p_min", "draft_gpu_layers", "draft_cache_type_k", "draft_cache_type_v", "rope_scaling", "rope_scale",
    "rope_freq_base", "rope_freq_scale", "yarn_orig_ctx", "yarn_ext_factor", "yarn_attn_factor", "yarn_beta_slow",
    "yarn_beta_fast",
)  # fmt: skip


@dataclass(frozen=True)
class Config:
    """A whole valid configuration. Models are in the order of the files, which is also the order of preloading."""

    server: ServerSettings = ServerSettings()  # noqa: RUF009  (frozen)
    scheduler: SchedulerSettings = SchedulerSettings()  # noqa: RUF009  (frozen)
    memory: MemorySettings = MemorySettings()  # noqa: RUF009  (frozen)
    performance: PerformanceSettings = PerformanceSettings()  # noqa: RUF009  (frozen)
    desktop: DesktopSettings = DesktopSettings()  # noqa: RUF009  (frozen)
    llama_server: LlamaServerSettings = LlamaServerSettings()  # noqa: RUF009  (frozen)
    flm: FlmSettings = FlmSettings()  # noqa: RUF009  (frozen)
    lemonade: LemonadeSettings = LemonadeSettings()  # noqa: RUF009  (frozen)
    models: dict[str, ModelSpec] = field(default_factory=dict)
    routes: dict[str, Route] = field(default_factory=dict)
    remotes: dict[str, Remote] = field(default_factory=dict)
    sources: tuple[Source, ...] = field(default=(), compare=False, repr=False)  # may hold tokens: never shown
    origins: dict[str, Origin] = field(default_factory=dict, compare=False, repr=False)  # "server.listen" → …

    @property
    def files(self) -> tuple[str, ...]:
        return tuple(str(source.path.absolute()) for source in self.sources)


@dataclass(frozen=True)
class ConfigApplied:
    """Published when a configuration comes into force, at the start and after every reload."""

    config: Config


ENGINES = ("llama_server", "flm", "lemonade")  # fields of Config that are tables of [engines]
SECTIONS: dict[str, str] = {  # table in the file → field of Config
    (f"engines.{each.name.replace('_', '-')}" if each.name in ENGINES else each.name): each.name
    for each in fields(Config)
    if each.name not in ("models", "routes", "remotes", "sources", "origins")
}


def sections(config: Config) -> Iterator[tuple[str, Any]]:
    """Every table that is not of a model or a route, with its settings."""
    for section, name in SECTIONS.items():
        yield section, getattr(config, name)


LayerTable = table(ModelSpec, "LayerTable", model_only=False)  # allowed in [defaults], profiles and models
