"""The types of values in the user's TOML: syntax, validation and conversion.

Each is an Annotated type for msgspec. `Meta.extra` contains what msgspec does not support: `expects` completes
"expected …" in messages, `parse` converts the written value to the program's unit and `show` converts it back, `path`
marks file names and `secret` hides the value. Pure; knows no key and no table.
"""

import re
from collections.abc import Callable
from typing import Annotated, Any, Final, Literal

from msgspec import Meta

from accelerd.config import units

Parse = Callable[[Any], Any]  # raises ValueError with the text that completes "expected …"

NAME_PATTERN: Final = r"^[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}$"
NAME: Final = "a name of at most 128 letters, digits and . _ : / - (first a letter or digit; no '..' between slashes)"
_NAME: Final = re.compile(NAME_PATTERN[:-1] + r"\Z")
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_HOST: Final = re.compile(r"(?:[A-Za-z0-9_](?:[A-Za-z0-9._-]*[A-Za-z0-9_])?|\[[0-9A-Fa-f:.]+\])\Z")
_ORIGIN: Final = re.compile(r"[a-z][a-z0-9+.-]*://(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?\Z")
_URL: Final = re.compile(r"http://(?:localhost|127\.0\.0\.1|\[::1\]):[0-9]{1,5}\Z")
_MODEL_ID: Final = re.compile(r"[A-Za-z0-9][\x21-\x7e]{0,511}\Z")
_ENV_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_CONTAINER: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}\Z")
_IMAGE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/:@+-]{0,511}\Z")
_SLOT: Final = re.compile(r"[0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]\Z")
_DEVICE: Final = re.compile(r"(?:/dev/[^\s:\x00-\x1f]+|[a-z0-9.-]+/[A-Za-z0-9._-]+=[A-Za-z0-9._:-]+)\Z")
_MOUNT: Final = re.compile(r"/[^:\x00-\x1f]*(?::/[^:\x00-\x1f]*(?::(?:ro|rw))?)?\Z")
_DURATION_JSON: Final = r"^\s*[0-9.]+\s*((ms|s|sec|m|min|h|d)(\s*[0-9.]+\s*(ms|s|sec|m|min|h|d))*)?\s*$"
_SIZE_JSON: Final = r"^\s*[0-9.]+\s*([KMGTPkmgtp]([iI]?[bB])?|[bB])?\s*$"


def check_name(value: str) -> str:
    """Validates a model's name or alias; ValueError. The grammar keeps it safe in headers, logs, paths and argv."""
    if not _NAME.match(value) or ".." in value.split("/"):
        raise ValueError(NAME)
    return value


def _at_least(least: float, parse: Parse, expects: str) -> Parse:
    def checked(value: Any) -> Any:
        parsed = parse(value)
        if parsed < least:
            raise ValueError(expects)
        return parsed

    return checked


def _matching(pattern: re.Pattern[str], expects: str) -> Parse:
    def checked(value: str) -> str:
        if not pattern.match(value):
            raise ValueError(expects)
        return value

    return checked


def _or(word: str, parse: Parse) -> Parse:
    return lambda value: None if value == word else parse(value)


def _or_none(word: str, show: Parse) -> Parse:
    return lambda value: word if value is None else show(value)


def _lower(parse: Parse) -> Parse:
    return lambda value: parse(value).lower()


def _one_line(value: str) -> str:
    if not value or _CONTROL.search(value):
        raise ValueError("a text that is not empty and has no control characters")
    return value


def _no_nul(value: str) -> str:
    if "\0" in value:
        raise ValueError("a string without NUL characters")
    return value


def _context(value: int | str) -> int:
    if isinstance(value, str) or not 128 <= value <= 1 << 27:
        raise ValueError(_CONTEXT)
    return value


def _on_off(value: bool | str) -> str:
    return value if isinstance(value, str) else ("on" if value else "off")


def _type(expects: str, parse: Parse, json_pattern: str | None = None, **extra: Any) -> Meta:
    schema = {"pattern": json_pattern} if json_pattern else None
    return Meta(extra={"expects": expects, "parse": parse, **extra}, extra_json_schema=schema)


_MILLISECOND = 0.001
_DURATION = f"{units.DURATION}; longer than zero"
_DURATION_NEVER = f'{units.DURATION}; longer than zero, or "never"'
_DURATION_AUTO = f'{units.DURATION}, or "auto"'
_BODY = f"{units.SIZE}; at least 1KiB"
_MEMORY = f'{units.SIZE}; at least 1MiB, or "auto"'
_RESERVE = f'{units.SIZE}, or "auto"'
_LIMIT = f'{units.SIZE}; at least 16MiB, or "none"'
_CONTAINERS = "a container's name: letters, digits and _ . - (first a letter or digit)"
_IMAGES = 'an image such as "ghcr.io/ggml-org/llama.cpp:server-vulkan"'
_DEVICES = 'a device such as "/dev/dri", or a CDI name such as "nvidia.com/gpu=all"'
_SLOTS = 'a PCI slot such as "0000:c1:00.0", in lower case (see lspci -D)'
_MOUNTS = '"HOST", "HOST:CONTAINER" or "HOST:CONTAINER:ro", both absolute paths'
_CONTEXT = 'a whole number of tokens from 128 to 134217728, or "model" for the whole trained context'
_HOSTS = 'a host name or address such as "box.local" or "[fd00::1]" (no scheme, no port, no "*")'
_ORIGINS = 'an origin such as "https://chat.example.org" (scheme and host, no path, no "*")'
_URLS = 'the address of a server on this machine, such as "http://127.0.0.1:13305"'
_MODEL = 'the engine\'s own id of a model, such as "ggml-org/gemma-3-4b-it-GGUF:Q4_K_M", without spaces'
_ENV = "a variable's name of letters, digits and _"

Duration = Annotated[
    int | float | str,
    _type(
        _DURATION,
        _at_least(_MILLISECOND, units.parse_duration, _DURATION),
        _DURATION_JSON,
        show=units.format_duration,
    ),
]
DurationOrZero = Annotated[
    int | float | str,
    _type(units.DURATION, units.parse_duration, _DURATION_JSON, show=units.format_duration),
]
DurationOrNever = Annotated[
    int | float | str,
    _type(
        _DURATION_NEVER,
        _or("never", _at_least(_MILLISECOND, units.parse_duration, _DURATION_NEVER)),
        f"^never$|{_DURATION_JSON}",
        show=_or_none("never", units.format_duration),
    ),
]
DurationOrAuto = Annotated[
    int | float | str,
    _type(
        _DURATION_AUTO,
        _or("auto", units.parse_duration),
        f"^auto$|{_DURATION_JSON}",
        show=_or_none("auto", units.format_duration),
    ),
]
BodySize = Annotated[
    int | str, _type(_BODY, _at_least(1 << 10, units.parse_size, _BODY), _SIZE_JSON, show=units.format_size)
]
MemoryOrAuto = Annotated[
    int | str,
    _type(
        _MEMORY,
        _or("auto", _at_least(1 << 20, units.parse_size, _MEMORY)),
        f"^auto$|{_SIZE_JSON}",
        show=_or_none("auto", units.format_size),
    ),
]
Size = Annotated[int | str, _type(units.SIZE, units.parse_size, _SIZE_JSON, show=units.format_size)]
Reserve = Annotated[
    int | str,
    _type(
        _RESERVE,
        _or("auto", units.parse_size),
        f"^auto$|{_SIZE_JSON}",
        show=_or_none("auto", units.format_size),
    ),
]
MemoryLimit = Annotated[
    int | str,
    _type(
        _LIMIT,
        _or("none", _at_least(16 << 20, units.parse_size, _LIMIT)),
        f"^none$|{_SIZE_JSON}",
        show=_or_none("none", units.format_size),
    ),
]
Context = Annotated[
    int | str,
    _type(_CONTEXT, _or("model", _context), "^model$", show=_or_none("model", lambda value: value)),
]
FilePath = Annotated[str, _type("the path of a file", _one_line, path="file")]
Program = Annotated[str, _type("a program's name or path", _one_line, path="program")]
Name = Annotated[str, _type(NAME, check_name, NAME_PATTERN)]
Address = Annotated[str, _type(units.ADDRESS, units.parse_address)]
Host = Annotated[str, _type(_HOSTS, _lower(_matching(_HOST, _HOSTS)))]
ServerUrl = Annotated[str, _type(_URLS, _matching(_URL, _URLS))]
WebOrigin = Annotated[str, _type(_ORIGINS, _matching(_ORIGIN, _ORIGINS))]
ModelId = Annotated[str, _type(_MODEL, _matching(_MODEL_ID, _MODEL))]
ContainerName = Annotated[str, _type(_CONTAINERS, _matching(_CONTAINER, _CONTAINERS))]
Image = Annotated[str, _type(_IMAGES, _matching(_IMAGE, _IMAGES))]
Device = Annotated[str, _type(_DEVICES, _matching(_DEVICE, _DEVICES))]
Mount = Annotated[str, _type(_MOUNTS, _matching(_MOUNT, _MOUNTS))]
HomeKind = Literal["auto", "child", "systemd", "toolbox", "distrobox", "podman", "docker", "container"]
Slot = Annotated[str, _type(_SLOTS, _matching(_SLOT, _SLOTS), r"^[0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]$")]
YieldSignal = Literal["gamemode", "sleep"]
LevelPolicy = Literal["busy", "always", "never"]
BatteryPolicy = Literal["save", "ignore"]
IoClass = Literal["idle", "best-effort"]
Argument = Annotated[str, _type("a string: one argument", _no_nul, secret=True)]
EnvName = Annotated[str, _type(_ENV, _matching(_ENV_NAME, _ENV), r"^[A-Za-z_][A-Za-z0-9_]*$")]
EnvValue = Annotated[str, _type("a string", _no_nul, secret=True)]
TextLine = Annotated[str, _type("a text on one line", _one_line)]
CacheType = Literal["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl"]
OnOffAuto = Annotated[bool | Literal["on", "off", "auto"], Meta(extra={"parse": _on_off})]
Layers = Annotated[int, Meta(ge=0, le=10_000)] | Literal["all", "auto"]
