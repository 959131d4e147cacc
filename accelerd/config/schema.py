"""The user's TOML, declared: every table and key with its type, range and description.

The one source for validation (walk.py), the JSON Schema (jsonschema.py) and the documentation. The structs describe and
are never instantiated; every key is optional. Keys have the names of the fields in model.py.
"""

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from accelerd.config.values import (
    Address,
    Argument,
    BatteryPolicy,
    BodySize,
    CacheType,
    ContainerName,
    Context,
    Device,
    Duration,
    DurationOrAuto,
    DurationOrNever,
    DurationOrZero,
    EnvName,
    EnvValue,
    FilePath,
    HomeKind,
    Host,
    Image,
    IoClass,
    Layers,
    LevelPolicy,
    Line,
    MemoryLimit,
    MemoryOrAuto,
    ModelId,
    Mount,
    Name,
    OnOffAuto,
    Program,
    Reserve,
    ServerUrl,
    Size,
    Slot,
    WebOrigin,
    YieldSignal,
)


def about(description: str, **limits: Any) -> Meta:
    """A key's description for editors and documentation, and its range."""
    return Meta(description=description, **limits)


class ServerTable(Struct):
    """Who may connect, from where, and how long they may take."""

    listen: Annotated[list[Address], about("Addresses to listen on; one that other machines reach needs key_file.")]
    allowed_hosts: Annotated[
        list[Host], about("Host names that clients use for this server, beside localhost, 127.0.0.1, [::1].")
    ]
    allowed_origins: Annotated[list[WebOrigin], about("Web origins whose pages may call the API.")]
    key_file: Annotated[
        FilePath, about("File with one API key a line, readable by you alone (mode 0600). Without it no key is asked.")
    ]
    max_body: Annotated[BodySize, about("Largest request body.")]
    max_connections: Annotated[int, about("Connections open at once.", ge=1, le=1_000_000)]
    header_timeout: Annotated[Duration, about("Time for a whole request head to arrive.")]
    body_timeout: Annotated[Duration, about("Longest silence between two pieces of a request body.")]
    write_timeout: Annotated[Duration, about("How long a client may read nothing before it is cut off.")]
    stall_timeout: Annotated[Duration, about("How long an engine may send nothing in an answer.")]
    keepalive_after: Annotated[Duration, about("While a model loads, a streaming client hears a comment after this.")]
    drain_timeout: Annotated[DurationOrZero, about("Time for requests in flight to finish when the daemon stops.")]


class SchedulerTable(Struct):
    """What may be resident together and how long a request may wait."""

    memory: Annotated[MemoryOrAuto, about('A limit on the memory of all models together; "auto": what the pools have.')]
    max_loaded: Annotated[
        int,
        about(
            "Models loaded at once, those on an NPU counted apart; without it memory alone decides.", ge=1, le=10_000
        ),
    ]
    max_queue: Annotated[int, about("Requests waiting at once; further ones are refused.", ge=1, le=1_000_000)]
    queue_timeout: Annotated[Duration, about("Longest wait of a request for its model.")]
    linger: Annotated[
        DurationOrZero, about("A model stays this long after its last request although another waits for its room.")
    ]
    min_resident: Annotated[
        DurationOrAuto, about('A model stays at least this long after its load; "auto": as long as the load took.')
    ]
    memory_wait: Annotated[Duration, about("How long a request waits for memory that other programs have.")]
    cool_down: Annotated[
        DurationOrZero, about("Time without pressure until a kept model that gave way comes back by itself.")
    ]
    max_overtake: Annotated[DurationOrZero, about("No request is overtaken by later ones for longer than this.")]
    max_failures: Annotated[
        int, about("Failures within failure_window after which a model stays failed until reset.", ge=1, le=1000)
    ]
    failure_window: Annotated[Duration, about("The window in which failures are counted.")]
    backoff_first: Annotated[Duration, about("Wait after the first failure; it doubles with each further one.")]
    backoff_cap: Annotated[Duration, about("Longest wait between two attempts.")]


class MemoryTable(Struct):
    """What is left to other programs, and when models make room for them."""

    reserve: Annotated[
        Reserve,
        about('Main memory that no model is given; "auto" is a tenth of it, from 512 MiB to 8 GiB.'),
    ]
    gpu_reserve: Annotated[Size, about("Memory of each GPU that no model is given.")]
    yield_on: Annotated[
        list[YieldSignal],
        about(
            'The GPUs are emptied, as by `accelctl yield`, while GameMode knows of a game ("gamemode") and before '
            'the machine is suspended ("sleep").'
        ),
    ]
    soft_grace: Annotated[
        DurationOrZero,
        about(
            "How long other programs may use of the reserve before idle models make room. When half of it is used, "
            "models make room at once."
        ),
    ]


class DesktopTable(Struct):
    """What accelerd hears from the desktop and tells it."""

    delay_sleep: Annotated[
        bool,
        about(
            "A suspend waits, as long as logind allows, until requests have ended and the memory is given up that "
            "memory.yield_on says."
        ),
    ]
    on_battery: Annotated[
        BatteryPolicy,
        about(
            'On battery, or with the power profile "power-saver": "save" loads nothing before it is asked for and puts '
            'models away after battery_idle_timeout; "ignore" changes nothing.'
        ),
    ]
    battery_idle_timeout: Annotated[
        Duration,
        about("Time without requests after which models are put away on battery, unless idle_timeout is less."),
    ]
    notify: Annotated[
        bool,
        about(
            "Desktop notifications of what a person should know: a model that failed for good, memory that does not "
            "come back, a device that has gone."
        ),
    ]


class DevicePerformanceTable(Struct):
    """One GPU."""

    policy: Annotated[LevelPolicy, about("As in [performance], for this GPU.")]


class PerformanceTable(Struct):
    """When the GPU in the processor runs at its highest clocks."""

    policy: Annotated[
        LevelPolicy,
        about(
            'When its performance level is "high": while a model on it is in use, all the time, or never. '
            "Cards of their own are left alone."
        ),
    ]
    tail: Annotated[DurationOrZero, about("How long it stays so after the last request.")]
    devices: Annotated[dict[Slot, DevicePerformanceTable], about("GPUs with a policy of their own, by PCI slot.")]


class LlamaServerTable(Struct):
    """llama.cpp's llama-server."""

    binary: Annotated[Program, about("The program: a name that is looked up in PATH, or a path.")]
    transport: Annotated[Literal["auto", "unix", "tcp"], about("How accelerd talks to it.")]


class FlmTable(Struct):
    """FastFlowLM's flm, for models on an AMD NPU."""

    binary: Annotated[Program, about("The program: a name that is looked up in PATH, or a path.")]


class LemonadeTable(Struct):
    """Lemonade Server: one that accelerd runs for itself, or one that runs already."""

    binary: Annotated[
        Program, about("The program, a name or a path; without it lemond, or lemonade-server where there is no lemond.")
    ]
    url: Annotated[
        ServerUrl, about("A Lemonade Server of this machine that runs already: it is used, and never started or ended.")
    ]
    key_file: Annotated[FilePath, about("File with the API key of that server, readable by you alone (mode 0600).")]


class EnginesTable(Struct, rename={"llama_server": "llama-server"}):
    """The programs that run models."""

    llama_server: Annotated[LlamaServerTable, about("llama.cpp's llama-server.")]
    flm: Annotated[FlmTable, about("FastFlowLM's flm, for models on an AMD NPU.")]
    lemonade: Annotated[LemonadeTable, about("Lemonade Server.")]


class KvCacheTable(Struct):
    """Types of the two halves of the KV cache."""

    k: Annotated[CacheType, about("Type of the keys.")]
    v: Annotated[CacheType, about("Type of the values.")]


class SamplingTable(Struct):
    """Sampling defaults; what a request says wins."""

    temperature: Annotated[float, about("Randomness; 0 takes the likeliest token.", ge=0, le=10)]
    top_p: Annotated[float, about("The likeliest tokens that together have this probability.", ge=0, le=1)]
    top_k: Annotated[int, about("This many likeliest tokens; 0 takes all.", ge=0, le=1_000_000)]
    min_p: Annotated[float, about("Tokens at least this likely, relative to the likeliest.", ge=0, le=1)]
    repeat_penalty: Annotated[float, about("Penalty on repeated tokens; 1 is none.", ge=0, le=10)]
    presence_penalty: Annotated[float, about("Penalty on tokens that have appeared.", ge=-2, le=2)]
    frequency_penalty: Annotated[float, about("Penalty on tokens by how often they appeared.", ge=-2, le=2)]
    seed: Annotated[int, about("Random seed; -1 takes a new one each time.", ge=-1, le=(1 << 32) - 1)]
    max_tokens: Annotated[int, about("Longest answer, in tokens.", ge=1, le=1 << 24)]


class LayerTable(Struct):
    """What a model may take from anywhere: its own table, its profiles, [defaults]."""

    engine: Annotated[Literal["llama-server", "flm", "lemonade"], about("The engine that runs the model.")]
    binary: Annotated[Program, about("Another program than the one in the engine's own table.")]
    context: Annotated[Context, about('Context of one request, in tokens, or "model" for all it was trained for.')]
    parallel: Annotated[int, about("Requests the engine runs at once.", ge=1, le=1024)]
    kv_cache_type: Annotated[
        CacheType | KvCacheTable, about('Type of the KV cache: one for both halves, or {k = "q8_0", v = "f16"}.')
    ]
    flash_attention: Annotated[OnOffAuto, about("Flash attention.")]
    mmap: Annotated[bool, about("Map the model file instead of reading it into memory.")]
    gpu_layers: Annotated[Layers, about("Layers that run on the GPU.")]
    batch: Annotated[int, about("Tokens of a prompt taken together.", ge=1, le=1 << 20)]
    ubatch: Annotated[int, about("Tokens computed at once; at most batch.", ge=1, le=1 << 20)]
    threads: Annotated[int, about("CPU threads.", ge=1, le=4096)]
    gpus: Annotated[list[Slot], about("The GPUs that the model may use, by PCI slot; without it, any that it fits on.")]
    mmproj: Annotated[FilePath, about("Multimodal projector file.")]
    draft_model: Annotated[FilePath, about("A small model that drafts answers for this one (speculative decoding).")]
    chat_template_file: Annotated[FilePath, about("Jinja template instead of the one in the model file.")]
    embeddings: Annotated[bool, about("The model makes embeddings.")]
    rerank: Annotated[bool, about("The model ranks documents.")]
    transcription: Annotated[bool, about("The model writes down what it hears.")]
    sampling: Annotated[SamplingTable, about("Sampling defaults; what a request says wins.")]
    extra_args: Annotated[
        list[Argument], about("Further arguments for the engine, one string each; nothing is split or expanded.")
    ]
    env: Annotated[dict[EnvName, EnvValue], about("Further environment variables; nothing is expanded.")]
    start_timeout: Annotated[Duration, about("Longest start without visible progress.")]
    stop_timeout: Annotated[Duration, about("From SIGTERM to SIGKILL.")]
    home: Annotated[
        HomeKind,
        about(
            "Where the process lives: a plain child of accelerd, a systemd unit, a toolbox, a distrobox, a new podman "
            'or docker container, or an existing one. "auto": a unit where the user\'s systemd answers, else a child.'
        ),
    ]
    container: Annotated[ContainerName, about("Name of the toolbox, of the distrobox or of the existing container.")]
    image: Annotated[Image, about("What podman or docker runs.")]
    devices: Annotated[list[Device], about("Devices that podman or docker hands in.")]
    mounts: Annotated[
        list[Mount], about("Folders that podman or docker mounts; the model's own folder is mounted anyway.")
    ]
    survive: Annotated[
        bool, about("The model stays loaded while accelerd restarts, is upgraded or crashes, where its home allows it.")
    ]
    memory_max: Annotated[MemoryLimit, about("The kernel kills the model, and nothing else, beyond this much memory.")]
    memory_high: Annotated[MemoryLimit, about("The model is slowed down beyond this much memory.")]
    cpu_weight: Annotated[int, about("Share of the CPU when it is short; 100 is usual.", ge=1, le=10_000)]
    nice: Annotated[int, about("Scheduling priority; 19 is the most modest.", ge=0, le=19)]
    io_class: Annotated[IoClass, about("Priority of reading from disk.")]
    oom_score_adjust: Annotated[
        int,
        about("How soon the kernel picks the model when memory is short; desktops are at 200 or less.", ge=0, le=1000),
    ]
    tasks_max: Annotated[int, about("Processes and threads that the model may have.", ge=1, le=1 << 22)]
    concurrency: Annotated[int, about("Requests sent at once; without it, as many as parallel.", ge=1, le=1024)]
    idle_timeout: Annotated[DurationOrNever, about('Time without requests after which it is put away, or "never".')]
    preload: Annotated[bool, about("Load the model when the daemon starts.")]
    pin: Annotated[bool, about("Never put the model away for another one.")]
    group: Annotated[Name, about("Of the models of one group, only one is loaded at a time.")]
    exclusive: Annotated[bool, about("No other model is loaded beside it.")]
    memory: Annotated[MemoryOrAuto, about('Memory to reserve; "auto" is estimated at first, then measured.')]
    priority: Annotated[int, about("Models with less leave first when room is needed.", ge=-100, le=100)]


class ModelTable(LayerTable):
    """One model. One of path and model says what it is, unless an existing container knows."""

    path: Annotated[FilePath, about("The model's file; ~ works, other paths are relative to accelerd.toml.")]
    model: Annotated[ModelId, about('The engine\'s own id, such as "ggml-org/gemma-3-4b-it-GGUF:Q4_K_M".')]
    description: Annotated[Line, about("One line for people.")]
    aliases: Annotated[list[Name], about("Further names that clients may use.")]
    profile: Annotated[Name | list[Name], about("A profile, or several of which later ones win.")]


class RouteTable(Struct):
    """One name for several models."""

    models: Annotated[
        list[Name], about("The models, the preferred one first: the next is asked while its device is busy.")
    ]
    description: Annotated[Line, about("One line for people.")]


class Document(Struct):
    """accelerd's configuration."""

    server: Annotated[ServerTable, about("Who may connect, from where, and how long they may take.")]
    scheduler: Annotated[SchedulerTable, about("What may be resident together, how long a request may wait.")]
    memory: Annotated[MemoryTable, about("What is left to other programs, when models make room for them.")]
    performance: Annotated[PerformanceTable, about("When the GPU in the processor runs at its highest clocks.")]
    desktop: Annotated[DesktopTable, about("What accelerd hears from the desktop and tells it.")]
    engines: Annotated[EnginesTable, about("The programs that run models.")]
    defaults: Annotated[LayerTable, about("Settings of every model that says nothing else.")]
    profiles: Annotated[dict[Name, LayerTable], about("Named settings that models choose with profile.")]
    models: Annotated[dict[Name, ModelTable], about("The models, by the name that clients use.")]
    routes: Annotated[dict[Name, RouteTable], about("Names for several models, of which the first free one answers.")]
