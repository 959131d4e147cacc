"""The interface of an engine: how to start a model, how to check that it is ready, and its HTTP dialect.

An engine turns a ModelSpec into a LaunchPlan and never spawns, kills or waits. `supervise` runs plans and never decides
what to run.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NoReturn, Protocol

from msgspec import Struct

from accelerd.base.errors import AccelError
from accelerd.base.exits import Cause
from accelerd.config.model import ModelSpec, Origin
from accelerd.config.variants import Variant
from accelerd.devices.model import Device
from accelerd.memory.model import Forecast, MemoryRequirement


def fail(cause: Cause, problem: str, hint: str = "") -> NoReturn:
    """A model cannot be started as configured."""
    raise AccelError("model_failed", problem, hint=hint, cause=cause.value)


class Endpoint(Struct, frozen=True):
    """Where an engine listens: a unix socket, or a TCP port on this machine."""

    unix: str | None = None
    port: int | None = None
    host: str = "127.0.0.1"

    def __str__(self) -> str:
        return f"unix:{self.unix}" if self.unix else f"{self.host}:{self.port}"


class Flag(Struct, frozen=True):
    """One decision on the command line or in the environment, with its reason, for `accelctl explain`."""

    text: str  # as on the command line, "--ctx-size 8192"; an environment variable as "env NAME=value"
    source: str  # "accelerd.toml:12 models.qwen.context", "profiles.big", "defaults", "built-in"
    reason: str  # one clause, for users
    note: str = ""  # where a tuning rule's reason comes from, or what a rule would say instead


class OwnedServer(Struct, frozen=True):
    """How accelerd starts a server for several models."""

    program: str | None = None  # None: the default
    llama_server: str = ""  # path of the program for llama.cpp's models; "": the server's own
    downloads: bool = False  # may it download programs that it lacks?


class Tenancy(Struct, frozen=True):
    """A model inside a server with several models: the server, and the request that loads the model."""

    model: str  # the server's name for it
    load: Mapping[str, Any]  # the body of the request
    url: str | None = None  # of a server that is already running; None: accelerd starts one
    key_file: str | None = None  # with the key of that server
    own: OwnedServer = OwnedServer()
    pin: bool = False


class SleepPaths(Struct, frozen=True):
    """Where an engine is told by POST to move its weights to main memory and back, and says by GET where they are."""

    sleep: str
    wake: str
    asleep: str  # answers {field: true} while they are in main memory
    field: str


@dataclass(frozen=True)
class LaunchPlan:
    """Everything needed to start one instance of a model. The secret is never shown, logged or put in argv."""

    model: str
    argv: tuple[str, ...]
    env: dict[str, str] = field(repr=False)  # the child's whole environment
    endpoint: Endpoint
    secret: str = field(repr=False)  # bearer token that only this instance accepts
    flags: tuple[Flag, ...]
    warnings: tuple[str, ...] = ()
    files: tuple[str, ...] = ()  # of the model, on this machine, that the program opens
    warm_path: str = "/v1/models"  # answers 200 with the secret and 401 with any other, once loaded
    health_path: str = "/health"
    health_status: int = 200  # there, of one that is ready
    probe_path: str = "/v1/completions"  # one tiny request that only a working model answers with 200
    probe_body: bytes | None = b'{"prompt": " ", "max_tokens": 1}'  # None: it is only asked for, with GET
    guarded: bool = True  # the secret is required for requests; False: another server decides
    keyed: bool = (
        True  # the engine supports keys; False: no key is sent, and everyone who reaches the endpoint can use it
    )
    backend: str = ""  # as in EngineBuild; "": unknown
    prompt_cache: int = 0  # bytes of main memory that the engine may use for it
    context: int | None = None  # tokens of one request, where the setting leaves that open
    prove: bool = False  # it reports healthy even without a model: ready only after it has answered the probe
    not_found_hint: str = ""  # what to do if the probe is answered with 404: the engine has not got the model
    probe_type: str = "application/json"  # of probe_body
    key_file: str = (
        ""  # where the program reads its key from: to be written before its start, and removed once it is ready
    )
    # path and body of a request that needs the key and no model, for builds that answer warm_path to everyone
    guard: tuple[str, bytes] | None = None
    discreet: str = ""  # regex: once ready, only matching output is kept, since the rest may contain prompts; "": all
    notable: str = ""  # regex: the beginning of output lines that matter, by the engine's own level; group `error`
    out_of_memory: tuple[
        str, ...
    ] = ()  # regexes of output lines that report a failed allocation; groups `bytes`, `mib`: its size
    too_large: tuple[str, ...] = ()  # regexes: … because of a limit of the driver, where free memory does not help
    sleep: SleepPaths | None = None  # None: it cannot sleep
    queue_metric: tuple[str, str] | None = None  # path of its metrics, and the gauge of the requests that wait in it
    tenancy: Tenancy | None = None  # it is loaded in a server; its address is known after that


class ProgramOutput(Struct, frozen=True):
    """The result of a short command."""

    status: int
    out: str
    err: str


class ContainerProgram(Struct, frozen=True):
    """A program and a model's files inside a container."""

    program: str  # its path there
    build: str  # identifies the program; it behaves the same as long as this does not change
    files: Mapping[str, str]  # path on this machine → path there; missing: not visible there
    settings: Mapping[str, Any]  # default settings of the image, by field of ModelSpec
    source: str  # the image


class ContainerAccess(Protocol):
    """Access to a container with its own engine program. AccelError('model_failed')."""

    async def look(self, spec: ModelSpec, program: str, files: Sequence[str]) -> ContainerProgram: ...
    async def ask(self, spec: ModelSpec, *argv: str) -> ProgramOutput:
        """Run a short command there, such as `llama-server --help`."""
        ...


class FixedServer(Struct, frozen=True):
    """A server with a fixed command: it is only started and stopped."""

    endpoint: Endpoint
    command: tuple[str, ...]  # the command that starts it, for users
    source: str  # "container llama"
    ports: tuple[tuple[str, int], ...] = ()  # that it publishes on this machine: address, number


# Finds where a model's program runs; None: on this machine.
ContainerLookup = Callable[[ModelSpec], Awaitable[ContainerAccess | FixedServer | None]]


async def on_this_machine(spec: ModelSpec) -> None:
    """The ContainerLookup of a machine without containers."""
    return


class EngineBuild(Struct, frozen=True):
    """The program that runs a model, for tuning."""

    engine: str
    version: str
    backend: str  # "radv", "amdvlk", "vulkan", "rocm", "cuda", "sycl", "metal", "cpu"; "": unknown
    options: frozenset[str]  # all names of its options
    image: str = ""  # of the container that it runs in
    program: str = ""  # its path


class TuningAdvice(Struct, frozen=True):
    """A tuning rule's recommendation for one setting."""

    setting: str  # field of ModelSpec, "env.NAME", or "extra_args" if they override it
    says: str  # "mmap = false"
    rule: Origin
    reason: str  # one clause
    source: str  # URL or document
    why_not: str = ""  # why it is not applied; empty: it is

    @property
    def note(self) -> str:
        """A note for the flag."""
        return f"{self.why_not}; {self.rule} recommends {self.says}: {self.reason}" if self.why_not else self.source


class TunedModel(Struct, frozen=True):
    """A model with the settings that tuning rules add."""

    spec: ModelSpec
    advice: tuple[TuningAdvice, ...] = ()
    warnings: tuple[str, ...] = ()


# Sets unset settings by tuning rules; the last argument: paths of the model's files on this machine. Never raises.
ModelTuner = Callable[[ModelSpec, EngineBuild, Sequence[str]], Awaitable[TunedModel]]


async def untuned(spec: ModelSpec, build: EngineBuild, weights: Sequence[str]) -> TunedModel:
    """A ModelTuner without rules."""
    return TunedModel(spec)


class Dialect(Struct, frozen=True):
    """How the engine's HTTP server behaves. The same for all models of the engine."""

    streams_notice_disconnect: bool = False  # cancels only streamed requests promptly when the client disconnects
    busy: frozenset[int] = frozenset()  # statuses for a full queue: the gateway retries
    masks_errors: bool = False  # may report an error with status 200
    request_faults: str = ""  # regex: messages of errors with status 500 that only say what is wrong with the request
    too_long: str = ""  # type of errors for a prompt that is too long, with n_prompt_tokens and n_ctx
    # regex: messages of request faults for an input that does not fit one batch; groups: tokens of the two
    too_large: str = ""
    advice: tuple[tuple[str, str], ...] = ()  # regexes of errors' messages, and what to do, with {model} in it
    # regex: a choice of a plain chat completion without its null fields; groups: before `logprobs`, and from there to
    # `refusal`; the same in every response, so that nobody has to read it
    choice: bytes = b""
    temperature: float | None = None  # of requests that say none, without a setting; None: unknown
    top_p: float | None = None  # the same
    own_names: bool = False  # in its answers the model may have any name
    key_refused: str = ""  # in the line that it prints when it is asked with a wrong key, as accelerd does once
    closes_after_streams: bool = False  # it closes the connection after a stream; the next one may be opened ahead


Task = Literal[
    "chat", "completions", "embeddings", "rerank", "transcription", "speech", "images", "messages", "responses",
    "tools", "vision", "audio", "files", "ollama", "llama-server",
]  # fmt: skip


@dataclass(frozen=True)
class Traits:
    """The tasks of a model, and how to send requests to its engine."""

    tasks: frozenset[Task]
    why_not: Mapping[str, str] = field(default_factory=dict)  # task → why it is not supported, and what to do
    wire_name: str | None = None  # required value of `model` in a request; None: any
    paths: Mapping[str, str] = field(default_factory=dict)  # API path → the engine's path, if different
    edits: Mapping[str, Variant] = field(default_factory=dict)  # API path → what is changed in requests to it
    labels: tuple[str, ...] = ()  # the engine's labels: "reasoning", "tool-calling"
    recipe: str = ""  # Lemonade's recipe: "flm", "llamacpp", "whispercpp"
    device: str = ""  # "npu", "gpu", "cpu"; "": unknown
    context: int | None = None  # tokens that one request may take; None: unknown
    trained: int | None = None  # tokens of the longest context that it was trained for; None: unknown
    size: int | None = None  # bytes of its files, where its server says it
    # what its file says in numbers, by llama-server's names: n_ctx_train, n_params, …; None: nothing
    meta: Mapping[str, int] | None = None


class Engine(Protocol):
    """`plan` raises AccelError('model_failed') with advice if a model cannot be started as configured."""

    dialect: Dialect

    async def plan(self, spec: ModelSpec, runtime: Path, placed: MemoryRequirement | None = None) -> LaunchPlan:
        """A new plan, with a new endpoint under `runtime` (or a free port) and a new secret.

        `placed`: the GPUs to use and the memory for the prompt cache; None: not decided.
        """
        ...

    async def forecast(self, spec: ModelSpec, devices: Sequence[Device], *, ask: bool) -> Forecast:
        """Estimates the memory that the model needs on these devices. Never raises; unknown sizes count 0.

        `ask`: the program may be run for it, which can take seconds; otherwise the estimate may be too high, and is
        provisional if asking would help.
        """
        ...

    async def build(self, spec: ModelSpec) -> EngineBuild:
        """The program that would run the model, whose files may be elsewhere. AccelError."""
        raise AccelError("not_supported", f"nothing is known of the program of {spec.engine}", param="model")

    def suggest_smaller(self, spec: ModelSpec, room: Mapping[str, int]) -> str:
        """What of the model would fit into so much of each pool: one clause, or nothing. Quick."""
        ...

    def traits(self, spec: ModelSpec) -> Traits:
        """The known abilities of the model. Fast, never raises."""
        ...

    async def probe(self, plan: LaunchPlan, *, thorough: bool) -> LaunchPlan | None:
        """The plan to probe a ready instance by, which costs no client what is cached of its prompts. HttpError.

        None: it works as far as that can be seen. `thorough`: also with what is cached put aside.
        """
        return plan

    async def loaded(self, spec: ModelSpec, plan: LaunchPlan) -> None:
        """An instance is ready: what only the running engine knows of the model is asked. Never raises."""
        return
