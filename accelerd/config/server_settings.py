"""The tables [server], [scheduler] and [engines] of accelerd.toml: connections, which models are loaded, programs.

As in config/model.py, which has the others: each field that `key` declares is a key of the file.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from accelerd.config import values as toml
from accelerd.config.keys import each_once, key


@dataclass(frozen=True)
class ServerSettings:
    """Who may connect, from where, and time limits of connections."""

    listen: tuple[str, ...] = key(
        each_once(toml.Address, severity="error"),
        ("127.0.0.1:4000", "[::1]:4000"),
        "Addresses to listen on. An address that other machines can reach requires key_file.",
    )
    default_model: str | None = key(
        toml.Name, None, "The model or route for requests that name no model, if it can. Not needed with one model."
    )
    default_fallbacks: tuple[str, ...] = key(
        each_once(toml.Name),
        (),
        "Models and routes that answer, one after the other, what no model of what was asked for can answer. A variant "
        "of a model that was asked for is not asked again.",
    )
    allowed_hosts: tuple[str, ...] = key(
        each_once(toml.Host),
        (),
        "Host names that clients may use for this server, in addition to localhost and the addresses in listen.",
    )
    allowed_origins: tuple[str, ...] = key(each_once(toml.WebOrigin), (), "Web origins whose pages may use the API.")
    key_file: str | None = key(
        toml.FilePath,
        None,
        "File with API keys, one per line, that only you can read (mode 0600). Without it, clients need no key.",
    )
    max_body: int = key(toml.BodySize, 64 << 20, "Maximum size of a request body.")
    max_bodies: int = key(
        toml.BodySize, 512 << 20, "Maximum size of the bodies of all requests together, until they are answered."
    )
    max_connections: int = key(int, 1024, "Maximum number of open connections.", ge=1, le=1_000_000)
    header_timeout: float = key(toml.Duration, 10.0, "Time limit for receiving the request headers.")
    body_timeout: float = key(toml.Duration, 30.0, "Time limit for each pause while a request body is received.")
    write_timeout: float = key(toml.Duration, 60.0, "Close the connection if the client reads nothing for this time.")
    stall_timeout: float = key(
        toml.Duration, 300.0, "End an answer with an error if the engine sends nothing for this time."
    )
    keepalive_after: float = key(
        toml.Duration, 2.0, "While a model loads, streaming clients get the first keep-alive comment after this time."
    )
    repair: Literal["auto", "off"] = key(
        Literal["auto", "off"],
        "auto",
        'Fill in what engines leave out of their answers and what the published API has; "off": pass them on as they '
        "are.",
    )
    unknown_parameters: Literal["pass", "drop", "refuse"] = key(
        Literal["pass", "drop", "refuse"],
        "pass",
        "What happens to fields of a request that are neither in OpenAI's API nor, for its models, in llama-server's: "
        "they are passed on, dropped, or the request is refused.",
    )
    drain_timeout: float = key(toml.DurationOrZero, 25.0, "Time for running requests to finish when the daemon stops.")


@dataclass(frozen=True)
class SchedulerSettings:
    """Which models can be loaded together and how long requests wait."""

    memory: int | None = key(
        toml.MemoryOrAuto, None, 'Memory limit for all models together; "auto": no limit of its own.'
    )
    max_loaded: int | None = key(
        int,
        None,
        "Maximum number of loaded models; NPU models are counted separately. Default: limited only by memory.",
        ge=1,
        le=10_000,
    )
    max_queue: int = key(int, 256, "Maximum number of waiting requests; more are refused.", ge=1, le=1_000_000)
    queue_timeout: float = key(toml.Duration, 600.0, "Maximum time that a request waits for its model.")
    linger: float = key(
        toml.DurationOrZero,
        0.5,
        "Keep a model this long after its last request even if another model needs its memory.",
    )
    min_resident: float | None = key(
        toml.DurationOrAuto, None, 'Keep a model at least this long after its load; "auto": as long as the load took.'
    )
    memory_wait: float = key(
        toml.Duration, 30.0, "Maximum time that a request waits for memory that other programs use."
    )
    cool_down: float = key(
        toml.DurationOrZero,
        30.0,
        "Time without memory pressure after which a pinned or preloaded model that was unloaded is loaded again.",
    )
    max_overtake: float = key(toml.DurationOrZero, 20.0, "Maximum time that later requests can go first.")
    max_failures: int = key(
        int,
        5,
        "Number of failures within failure_window after which a model stays failed until it is reset.",
        ge=1,
        le=1000,
    )
    failure_window: float = key(toml.Duration, 600.0, "Period over which failures are counted.")
    backoff_initial: float = key(toml.Duration, 1.0, "Delay after the first failure; it doubles with each further one.")
    backoff_max: float = key(toml.Duration, 60.0, "Maximum delay between two attempts.")


@dataclass(frozen=True)
class LlamaServerSettings:
    """llama.cpp's llama-server."""

    binary: str = key(toml.Program, "llama-server", "The program: a name in PATH, or a path.")
    transport: Literal["auto", "unix", "tcp"] = key(
        Literal["auto", "unix", "tcp"], "auto", "How accelerd connects to llama-server."
    )


@dataclass(frozen=True)
class FlmSettings:
    """FastFlowLM, for models on an AMD NPU."""

    binary: str = key(toml.Program, "flm", "The program: a name in PATH, or a path.")


@dataclass(frozen=True)
class LemonadeSettings:
    """Lemonade Server: one that accelerd runs, or one that is already running."""

    binary: str | None = key(
        toml.Program,
        None,
        "The program: a name in PATH, or a path. Default: lemond, or lemonade-server if there is no lemond.",
    )
    download_backends: bool = key(
        bool, False, "Let the server that accelerd runs download programs that it lacks, such as whisper.cpp."
    )
    url: str | None = key(
        toml.ServerUrl,
        None,
        "A Lemonade Server that is already running on this machine. accelerd never starts or stops it.",
    )
    key_file: str | None = key(
        toml.FilePath, None, "File with that server's API key in its first line; only you can read it (mode 0600)."
    )
