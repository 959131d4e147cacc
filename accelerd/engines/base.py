"""What an engine tells the rest of the house: how to start a model, how to know it is ready, how it speaks.

An engine turns a ModelSpec into a LaunchPlan and never spawns, kills or waits. `supervise` runs plans and never decides
what to run.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from accelerd.config.model import ModelSpec, Origin
from accelerd.devices.model import Device
from accelerd.memory.model import Forecast


@dataclass(frozen=True)
class Endpoint:
    """Where an engine listens: a unix socket, or a TCP port on 127.0.0.1."""

    unix: str | None = None
    port: int | None = None

    def __str__(self) -> str:
        return f"unix:{self.unix}" if self.unix else f"127.0.0.1:{self.port}"


@dataclass(frozen=True)
class Flag:
    """One decision on the command line or in the environment, with its reason, for `accelctl explain`."""

    text: str  # as on the command line, "--ctx-size 8192"; an environment variable as "env NAME=value"
    source: str  # "accelerd.toml:12 models.qwen.context", "profiles.big", "defaults", "built-in"
    reason: str  # one clause for a person
    note: str = ""  # where a tuning rule's reason comes from, or what a rule would say instead


@dataclass(frozen=True)
class Tenancy:
    """A model inside a server of many models: which server that is, and what it is told to load it."""

    model: str  # as the server calls it
    load: Mapping[str, Any]  # the body of the request
    url: str | None = None  # of a server that runs already, and is used; None: one that accelerd starts for all of them
    key_file: str | None = None  # with the key of that server
    program: str | None = None  # the one to start; None: what there is
    pin: bool = False


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
    warm_path: str = "/v1/models"  # answers 200 with the secret and 401 with any other, once loaded
    health_path: str = "/health"
    probe_path: str = "/v1/completions"  # one tiny request that only a working model answers with 200
    probe_body: bytes | None = b'{"prompt": " ", "max_tokens": 1}'  # None: it is only asked for, with GET
    guarded: bool = True  # only who has the secret is answered; False: somebody else decides that
    keyed: bool = True  # the engine knows keys; False: whoever reaches its endpoint is answered, and no key is sent
    backend: str = ""  # what computes, as Build has it; "": not known
    prove: bool = False  # it says that it is well without a model too: ready only once the probe was answered
    probe_type: str = "application/json"  # of probe_body
    discreet: str = ""  # regex: once ready, only such lines of output are kept, others may hold prompts; "": all are
    out_of_memory: tuple[str, ...] = ()  # regexes: a line that says it got no memory; group `bytes`, `mib`: so much
    too_large: tuple[str, ...] = ()  # regexes: … but for a limit of the driver, where more room helps nobody
    tenancy: Tenancy | None = None  # it is loaded in a server; where it is to be reached is known after that


@dataclass(frozen=True)
class Answer:
    """What a short command said."""

    status: int
    out: str
    err: str


@dataclass(frozen=True)
class Inside:
    """A program and a model's files, as they are in a container."""

    program: str  # how it is called there
    build: str  # names exactly this program: it does the same as long as this stays
    files: Mapping[str, str]  # a file's name on this machine → its name there; what is missing cannot be seen there
    settings: Mapping[str, Any]  # what the image wants of models that do not say otherwise, by field of ModelSpec
    source: str  # who says so: the image


class Place(Protocol):
    """A container, where a model's program is another one than on this machine. AccelError('model_failed')."""

    async def look(self, spec: ModelSpec, program: str, files: Sequence[str]) -> Inside: ...
    async def ask(self, spec: ModelSpec, *argv: str) -> Answer:
        """Run a short command there, such as `llama-server --help`."""
        ...


@dataclass(frozen=True)
class Fixed:
    """A server that knows by itself what to run: it is only started and stopped."""

    endpoint: Endpoint
    command: tuple[str, ...]  # what starts it, for people
    source: str  # "container llama"


# Where a model's program is; None: on this machine.
Places = Callable[[ModelSpec], Awaitable[Place | Fixed | None]]


async def on_this_machine(spec: ModelSpec) -> None:
    """The Places of a machine without containers."""
    return


@dataclass(frozen=True)
class Build:
    """The program that a model would be run with, as tuning sees it."""

    engine: str
    version: str
    backend: str  # what computes: "radv", "amdvlk", "vulkan", "rocm", "cuda", "sycl", "metal", "cpu"; "": not known
    options: frozenset[str]  # every name of an option that it has


@dataclass(frozen=True)
class Advice:
    """What a tuning rule says of one setting."""

    setting: str  # field of ModelSpec, "env.NAME", or "extra_args" where those decide
    says: str  # "mmap = false"
    rule: Origin
    reason: str  # one clause
    source: str  # who found out: an address, a document
    why_not: str = ""  # why it is not followed; empty: it is

    @property
    def note(self) -> str:
        """One line beside the flag."""
        return f"{self.why_not}; {self.rule} would say {self.says}: {self.reason}" if self.why_not else self.source


@dataclass(frozen=True)
class Tuned:
    """A model with what the rules add to it."""

    spec: ModelSpec
    advice: tuple[Advice, ...] = ()
    warnings: tuple[str, ...] = ()


class Tuner(Protocol):
    """Sets what nobody has set, by rules. Never fails: what it does not know it leaves alone."""

    async def __call__(self, spec: ModelSpec, build: Build, weights: Sequence[str]) -> Tuned:
        """`weights`: the model's files, as they are called on this machine."""
        ...


async def untuned(spec: ModelSpec, build: Build, weights: Sequence[str]) -> Tuned:
    """The Tuner that knows no rules."""
    return Tuned(spec)


@dataclass(frozen=True)
class Dialect:
    """How the engine's HTTP behaves, for the gateway. Facts of the engine, not of one model."""

    streams_notice_disconnect: bool = False  # only a streamed request is cancelled promptly when its client goes
    busy: frozenset[int] = frozenset()  # statuses of "my queue is full, ask again": no client is told so
    masks_errors: bool = False  # it may answer an error with status 200
    closes_after_streams: bool = False  # it closes the connection after a stream; the next one may be opened ahead


Task = Literal[
    "chat", "completions", "embeddings", "rerank", "transcription", "speech", "messages", "responses", "tools", "vision"
]


@dataclass(frozen=True)
class Traits:
    """What a model can be asked for, and how its engine wants to be asked."""

    tasks: frozenset[Task]
    why_not: Mapping[str, str] = field(default_factory=dict)  # task → why it is not among them, and what to do
    wire_name: str | None = None  # what `model` in a request must say; None: whatever the client wrote
    paths: Mapping[str, str] = field(default_factory=dict)  # path of the API → the engine's own, where it differs
    labels: tuple[str, ...] = ()  # as the engine has them: "reasoning", "tool-calling"
    recipe: str = ""  # how a server of many engines runs it: "flm", "llamacpp", "whispercpp"
    device: str = ""  # kind of what it computes on: "npu", "gpu", "cpu"; "": not known


class Engine(Protocol):
    """Plans raise AccelError('model_failed', …) with what to do when a model cannot be started as configured."""

    dialect: Dialect

    async def plan(self, spec: ModelSpec, runtime: Path, slots: Sequence[str] = ()) -> LaunchPlan:
        """A fresh plan: own endpoint under `runtime` (or a free port) and own secret on every call.

        `slots`: PCI slots of the GPUs it shall use, where somebody has decided that.
        """
        ...

    async def forecast(self, spec: ModelSpec, devices: Sequence[Device], *, ask: bool) -> Forecast:
        """What the model will need on a machine with these devices. Never raises: what is not known counts 0.

        `ask`: its program may be asked, which can take seconds; without it the figure may be too high.
        """
        ...

    def suggest_smaller(self, spec: ModelSpec, room: Mapping[str, int]) -> str:
        """What of the model would fit into so much of each pool: one clause, or nothing. Quick."""
        ...

    def traits(self, spec: ModelSpec) -> Traits:
        """What the model can be asked for, as far as it is known by now. Quick, never raises."""
        ...
