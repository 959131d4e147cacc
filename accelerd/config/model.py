"""A model as the rest of the program sees it: every setting resolved, each with the place it came from.

Pure data. `config.load` makes it; scheduler, engines and gateway read it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Origin:
    """Where a setting's value was written."""

    layer: str  # "model", "profile big", "defaults", "built-in"
    file: str | None = None
    line: int | None = None

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}" if self.file else ""
        return f"{self.layer} ({where})" if where else self.layer

    @property
    def by_rule(self) -> bool:
        """Nobody asked for it: a tuning rule advises it."""
        return self.layer.startswith(TUNING_RULE)


BUILT_IN = Origin("built-in")
TUNING_RULE = "tuning rule "  # so begins the layer of what a rule set, its name follows


@dataclass(frozen=True)
class Sampling:
    """Sampling defaults of a model; a request's own values win. None: the engine's default."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repeat_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    max_tokens: int | None = None


@dataclass(frozen=True)
class ModelSpec:
    """One model, resolved. Times in seconds, sizes in bytes; None means "the engine's own default" or "no limit"."""

    name: str
    engine: str = "llama-server"
    path: str | None = None  # absolute; exactly one of path and model is set
    model: str | None = None  # the engine's own id, "ggml-org/gemma-3-4b-it-GGUF:Q4_K_M"
    description: str = ""
    aliases: tuple[str, ...] = ()
    # what runs
    binary: str | None = None
    context: int | None = 8192  # tokens per request; None: all that the model was trained for
    parallel: int = 1  # requests the engine runs at once
    cache_type_k: str | None = None
    cache_type_v: str | None = None
    flash_attention: Literal["on", "off", "auto"] | None = None
    mmap: bool | None = None
    gpu_layers: int | Literal["all", "auto"] | None = None
    batch: int | None = None
    ubatch: int | None = None
    threads: int | None = None
    gpus: tuple[str, ...] | None = None  # PCI slots of the GPUs it may use; None: the one or those that it fits on
    mmproj: str | None = None
    draft_model: str | None = None  # a small model's file, for speculative decoding
    chat_template_file: str | None = None
    embeddings: bool = False
    rerank: bool = False
    transcription: bool = False
    sampling: Sampling = Sampling()
    extra_args: tuple[str, ...] = ()
    env: tuple[tuple[str, str], ...] = field(default=(), repr=False)  # may hold tokens: never shown
    start_timeout: float = 120.0  # without progress
    stop_timeout: float = 5.0  # SIGTERM to SIGKILL
    # where it lives
    home: Literal["auto", "child", "systemd", "toolbox", "distrobox", "podman", "docker", "container"] = "auto"
    container: str | None = None  # the name of a toolbox, a distrobox or an existing container
    image: str | None = None  # podman and docker: what to run
    devices: tuple[str, ...] = ()  # podman and docker: device nodes to hand in, "/dev/dri"
    mounts: tuple[str, ...] = ()  # podman and docker: "HOST[:CONTAINER[:ro]]"; the model's folder is mounted anyway
    survive: bool = True  # stay loaded when the daemon restarts, where the home can
    memory_max: int | None = None  # bytes; the kernel kills the model beyond
    memory_high: int | None = None  # bytes; it is slowed down beyond
    cpu_weight: int | None = None  # 1 to 10000, 100 is usual
    nice: int | None = None
    io_class: Literal["idle", "best-effort"] | None = None
    oom_score_adjust: int = 200  # a model goes before the desktop
    tasks_max: int | None = None
    # how it is scheduled
    concurrency: int | None = None  # requests sent to the engine at once; None: parallel
    idle_timeout: float | None = 600.0  # None: never put away
    preload: bool = False
    pin: bool = False
    group: str | None = None
    exclusive: bool = False
    memory: int | None = None  # declared bytes; None: estimated, then measured
    priority: int = 0  # one with more leaves later
    origins: dict[str, Origin] = field(default_factory=dict, compare=False, repr=False)

    @property
    def slots(self) -> int:
        return self.concurrency or self.parallel

    @property
    def contained(self) -> bool:
        """Does its program live in a container?"""
        return self.home in ("toolbox", "distrobox", "podman", "docker", "container")

    def origin(self, key: str) -> Origin:
        return self.origins.get(key, BUILT_IN)

    def launch_key(self) -> tuple[Any, ...]:
        """What the running process depends on: two specs with equal keys need no restart between them."""
        return tuple(getattr(self, name) for name in LAUNCH_FIELDS)


LAUNCH_FIELDS = (
    "name", "engine", "path", "model", "binary", "context", "parallel", "cache_type_k", "cache_type_v",
    "flash_attention", "mmap", "gpu_layers", "batch", "ubatch", "threads", "gpus", "mmproj", "draft_model",
    "chat_template_file", "embeddings", "rerank", "transcription", "sampling", "extra_args", "env", "home",
    "container", "image", "devices", "mounts", "survive", "memory_max", "memory_high", "cpu_weight", "nice", "io_class",
    "oom_score_adjust", "tasks_max",
)  # fmt: skip


@dataclass(frozen=True)
class ServerSettings:
    """[server]: who may connect, from where, and how long they may take. Times in seconds, sizes in bytes."""

    listen: tuple[str, ...] = ("127.0.0.1:4000", "[::1]:4000")
    allowed_hosts: tuple[str, ...] = ()  # beside localhost, 127.0.0.1 and [::1]
    allowed_origins: tuple[str, ...] = ()
    key_file: str | None = None  # one API key a line; None: no key asked
    max_body: int = 64 << 20
    max_connections: int = 1024
    header_timeout: float = 10.0  # a whole request head
    body_timeout: float = 30.0  # between two pieces of a request body
    write_timeout: float = 60.0  # a client that reads nothing
    stall_timeout: float = 300.0  # an engine that sends nothing in a stream
    keepalive_after: float = 2.0  # a streaming client hears the first comment after this
    drain_timeout: float = 25.0  # requests in flight when the daemon stops


@dataclass(frozen=True)
class SchedulerSettings:
    """[scheduler]: what may be resident together and how long a request may wait."""

    memory: int | None = None  # bytes for all models together; None: what the pools have
    max_loaded: int | None = None
    max_queue: int = 256
    queue_timeout: float = 600.0
    linger: float = 0.5  # a model stays this long after its last request although another waits
    min_resident: float | None = None  # s that a model stays after its load; None: as long as the load took
    memory_wait: float = 30.0  # s that a request waits for memory that other programs have
    cool_down: float = 30.0  # s without pressure until a model that gave way comes back by itself
    max_overtake: float = 20.0  # nobody is overtaken by later requests for longer than this
    max_failures: int = 5  # in failure_window, then the model is failed until reset
    failure_window: float = 600.0
    backoff_first: float = 1.0
    backoff_cap: float = 60.0


@dataclass(frozen=True)
class MemorySettings:
    """[memory]: what is left to other programs, and when models make room for them. Sizes in bytes."""

    reserve: int | None = None  # of main memory; None: a tenth, from 512 MiB to 8 GiB
    gpu_reserve: int = 256 << 20  # of each GPU
    yield_on: tuple[Literal["gamemode", "sleep"], ...] = ("gamemode",)
    soft_grace: float = 1.0  # s


@dataclass(frozen=True)
class LlamaServerSettings:
    """[engines.llama-server]"""

    binary: str = "llama-server"
    transport: Literal["auto", "unix", "tcp"] = "auto"


@dataclass(frozen=True)
class FlmSettings:
    """[engines.flm]"""

    binary: str = "flm"


@dataclass(frozen=True)
class LemonadeSettings:
    """[engines.lemonade]"""

    binary: str | None = None  # None: lemond, else lemonade-server of before 10.1
    url: str | None = None  # of a server that runs already and is used, not owned
    key_file: str | None = None  # with the key of that server


@dataclass(frozen=True)
class Route:
    """One name for several models, the preferred one first."""

    name: str
    models: tuple[str, ...]  # names of models
    description: str = ""


@dataclass(frozen=True)
class PerformanceSettings:
    """[performance]: when the GPU in the processor runs at its highest clocks."""

    policy: Literal["busy", "always", "never"] = "busy"
    tail: float = 10.0  # s after the last request
    devices: dict[str, Literal["busy", "always", "never"]] = field(default_factory=dict)  # PCI slot → its own policy


@dataclass(frozen=True)
class DesktopSettings:
    """[desktop]: what accelerd hears from the desktop and tells it."""

    delay_sleep: bool = True
    on_battery: Literal["save", "ignore"] = "save"
    battery_idle_timeout: float = 60.0  # s
    notify: bool = True


@dataclass(frozen=True)
class Config:
    """A whole valid configuration. Order of models is the order in the files: preload follows it."""

    server: ServerSettings = ServerSettings()
    scheduler: SchedulerSettings = SchedulerSettings()
    memory: MemorySettings = MemorySettings()
    performance: PerformanceSettings = PerformanceSettings()
    desktop: DesktopSettings = DesktopSettings()
    llama_server: LlamaServerSettings = LlamaServerSettings()
    flm: FlmSettings = FlmSettings()
    lemonade: LemonadeSettings = LemonadeSettings()
    models: dict[str, ModelSpec] = field(default_factory=dict)
    routes: dict[str, Route] = field(default_factory=dict)
    files: tuple[str, ...] = ()
    origins: dict[str, Origin] = field(default_factory=dict, compare=False, repr=False)  # "server.listen" → …


@dataclass(frozen=True)
class ConfigApplied:
    """Published when a configuration comes into force, at the start and after every reload."""

    config: Config
