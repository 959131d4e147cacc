"""The types of values in the user's TOML: syntax, validation and conversion.

Each is an Annotated type for msgspec. `Meta.extra` contains what msgspec does not support: `expects` completes
"expected …" in messages, `parse` converts the written value to the program's unit and `show` converts it back, `path`
marks file names and `secret` hides the value. Pure; knows no key and no table.
"""

import re
from collections.abc import Callable
from typing import Annotated, Any, Final, Literal
from urllib.parse import urlsplit

from msgspec import Meta

from accelerd.base.decoding import from_json
from accelerd.base.names import TRIAL_SUFFIX
from accelerd.config import units

Parse = Callable[[Any], Any]  # raises ValueError with the text that completes "expected …"

NAME: Final = "a name of at most 128 printable characters (not first: - . / or a space; not last: a space; no '/../')"
_LONGEST_NAME: Final = 128
_NAME_JSON: Final = rf"^[^\s./-](.{{0,{_LONGEST_NAME - 2}}}\S)?$"
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_DURATION_JSON: Final = r"^\s*[0-9.]+\s*((ms|s|sec|m|min|h|d)(\s*[0-9.]+\s*(ms|s|sec|m|min|h|d))*)?\s*$"
_SIZE_JSON: Final = r"^\s*[0-9.]+\s*([KMGTPkmgtp]([iI]?[bB])?|[bB])?\s*$"


def check_name(value: str) -> str:
    """Validates a model's name or alias; ValueError. No name can forge a log line, be taken for an option, or be a path
    out of a folder."""
    if (
        not 0 < len(value) <= _LONGEST_NAME
        or not value.isprintable()
        or value[0] in "-./"
        or value != value.strip()
        or ".." in value.split("/")
        or value.endswith(TRIAL_SUFFIX)
    ):
        raise ValueError(NAME)
    return value


def _type(expects: str, parse: Parse, json_pattern: str | None = None, **extra: Any) -> Meta:
    schema = {"pattern": json_pattern} if json_pattern else None
    return Meta(extra={"expects": expects, "parse": parse, **extra}, extra_json_schema=schema)


def _duration(least: float = 0, word: str = "") -> Meta:
    """Seconds, at least `least`; None for `word`."""
    expects = units.DURATION + ("; longer than zero" if least else "")
    return _amount(expects, units.parse_duration, units.format_duration, _DURATION_JSON, least, word)


def _size(least: int = 0, word: str = "") -> Meta:
    """Bytes, at least `least`; None for `word`."""
    expects = units.SIZE + (f"; at least {units.format_size(least)}" if least else "")
    return _amount(expects, units.parse_size, units.format_size, _SIZE_JSON, least, word)


def _amount(expects: str, parse: Parse, show: Parse, json_pattern: str, least: float, word: str) -> Meta:
    if word:
        expects, json_pattern = f'{expects}, or "{word}"', f"^{word}$|{json_pattern}"

    def checked(value: Any) -> Any:
        if word and value == word:
            return None
        amount = parse(value)
        if amount < least:
            raise ValueError(expects)
        return amount

    return _type(expects, checked, json_pattern, show=lambda value: word if value is None else show(value))


def _text(
    pattern: str, expects: str, *, json: bool = False, secret: bool = False, check: Callable[[str], None] | None = None
) -> Any:
    """The type of a string that matches the pattern as a whole. `json`: the JSON Schema has the pattern, too.

    `secret`: a wrong one is not quoted back. `check`: raises ValueError for what matches, and is wrong.
    """
    compiled = re.compile(pattern)

    def checked(value: str) -> str:
        try:
            if not compiled.fullmatch(value):
                raise ValueError
            if check is not None:
                check(value)
        except ValueError:
            raise ValueError(expects) from None
        return value

    return Annotated[str, _type(expects, checked, f"^{pattern}$" if json else None, secret=secret)]


def _port_is_one(url: str) -> None:
    """ValueError for one above 65535."""
    urlsplit(url).port  # noqa: B018


CACHE_TYPE: Final = 'a type such as "f16", "q8_0", "q5_1" or "q4_0", or another that the program knows'


def _cache_type(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_]{0,31}", value):
        raise ValueError(CACHE_TYPE)
    return value


def _host(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]*[A-Za-z0-9_])?|\[[0-9A-Fa-f:.]+\]", value):
        raise ValueError(_HOST)
    return value.lower()


def _one_line(value: str) -> str:
    if not value or _CONTROL.search(value):
        raise ValueError("a text that is not empty and has no control characters")
    return value


def _phrase(value: str) -> str:
    if not value.strip() or _CONTROL.search(value):
        raise ValueError("a word or phrase of at least one letter or sign")
    return value


def _header_name(value: str) -> str:
    if not re.fullmatch("[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}", value) or value.lower() in _OWN_HEADERS:
        raise ValueError(_HEADER_NAME)
    return value


def _header(value: str) -> str:
    if not re.fullmatch(r"[\x20-\x7e]*", value):
        raise ValueError("a text on one line, of Latin letters and signs")
    return value


def _json(value: str) -> str:
    try:
        from_json(value.encode())
    except ValueError as error:
        raise ValueError(f"a text in JSON ({error})") from error
    return value


def argument(check: Parse) -> Any:
    """The type of an argument, which `check` looks at and may not be quoted back: it may have a key in it."""
    return Annotated[str, _type("a string: one argument", lambda value: check(_no_nul(value)), secret=True)]


def line(check: Parse) -> Any:
    """The type of a text on one line that `check` looks at."""
    return Annotated[str, _type("a text on one line", lambda value: check(_one_line(value)))]


def json_text(check: Parse) -> Any:
    """The type of a text in JSON that `check` looks at."""
    return Annotated[str, _type("a text in JSON", lambda value: check(_json(value)))]


def text(expects: str, parse: Parse) -> Any:
    """The type of a string that `parse` makes something of."""
    return Annotated[str, _type(expects, parse)]


def anything(expects: str, parse: Parse, show: Parse) -> Any:
    """The type of a value that `parse` judges; in the schema for editors it is a table."""
    return Annotated[Any, Meta(extra={"expects": expects, "parse": parse, "show": show})]


# Ends of addresses that are a path of the API, not where its paths begin.
_API_PATH: Final = re.compile(
    r"(/(?:chat/completions|completions|embeddings|messages|responses|v1/models|v1/chat|api/(?:chat|generate|tags)))/?$"
)


def _remote_url(value: str) -> str:
    place, _, rest = value.partition("://")[2].partition("/")
    if "@" in place:
        raise ValueError("an address without user and password; a key is written in key_file")
    if "?" in value or "#" in value:
        raise ValueError("an address without what begins with ? or #; a key is written in key_file")
    if not _REMOTE_URL.fullmatch(value):
        raise ValueError(REMOTE_URL)
    try:
        _port_is_one(value)
    except ValueError:
        raise ValueError(REMOTE_URL) from None
    if path := _API_PATH.search(f"/{rest}"):
        raise ValueError(f'an address without "{path[1]}" at its end, which accelerd adds itself')
    return value


def _no_nul(value: str) -> str:
    if "\0" in value:
        raise ValueError("a string without NUL characters")
    return value


def _context(value: int | str) -> int | str | None:
    if value == "model":
        return None
    if value == "auto":
        return value
    if isinstance(value, str) or not 128 <= value <= 1 << 27:
        raise ValueError(_CONTEXT)
    return value


def _prompt_cache(value: int | str) -> int:
    size = 0 if value == "off" else units.parse_size(value)
    if 0 < size < 1 << 20:
        raise ValueError(f'{_PROMPT_CACHE}, or "auto"')
    return size


def _on_off(value: bool | str) -> str:
    return value if isinstance(value, str) else ("on" if value else "off")


_MILLISECOND = 0.001
_CONTEXT = 'a whole number of tokens from 128 to 134217728, "auto", or "model" for the whole trained context'
_PROMPT_CACHE = f'{units.SIZE}; at least 1 MiB, or "off"'
_HOST = 'a host name or address such as "box.local" or "[fd00::1]" (no scheme, no port, no "*")'


def _share(value: float) -> float:
    if not 0 <= value <= 1 << 40:
        raise ValueError(_SHARE)
    return value


def tensor_override(value: str) -> tuple[str, str]:
    """Pattern and buffer of an element of override_tensor; ValueError with what completes "expected …"."""
    pattern, equals, buffer = value.partition("=")
    if not pattern or not equals or not re.fullmatch(r"[A-Za-z][^\s,=]*", buffer):
        raise ValueError(_OVERRIDE)
    if "," in pattern:
        raise ValueError("a pattern without commas, which separate patterns for llama-server")
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"a regular expression before the =: {error}") from error
    return pattern, buffer


def _spec_type(value: str | list[str]) -> str | list[str]:
    if not all(re.fullmatch("[a-z0-9][a-z0-9-]{0,63}", one) for one in ([value] if isinstance(value, str) else value)):
        raise ValueError(_SPEC_TYPE)
    return value


def _override(value: str) -> str:
    tensor_override(_no_nul(value))
    return value


def _format_sizes(sizes: tuple[int, ...] | None) -> Any:
    if sizes is None:
        return None
    written = [units.format_size(size) for size in sizes]
    return written[0] if len(written) == 1 else written


_AUTHORITY: Final = r"(?:[A-Za-z0-9_](?:[A-Za-z0-9._-]*[A-Za-z0-9_])?|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?"
_REMOTE_URL: Final = re.compile(rf"https?://{_AUTHORITY}(?:/[A-Za-z0-9._~/-]*)?")
REMOTE_URL: Final = 'the address of a server, such as "https://mac.lan:1234/v1" (http or https, a port up to 65535)'
_HEADER_NAME = 'the name of a header that is not about the connection or the body, such as "X-Team"'
_OWN_HEADERS = frozenset(
    ("host", "connection", "content-length", "content-type", "transfer-encoding", "accept-encoding", "expect", "te",
     "trailer", "upgrade", "keep-alive", "proxy-authorization", "proxy-connection")
)  # fmt: skip
_SHARE = "a number of at least 0"
_SPEC_TYPE = 'a way of speculative decoding such as "draft-mtp", or an array of them (see llama-server --help)'
_OVERRIDE = 'PATTERN=BUFFER: a regular expression for names of tensors, and a buffer, such as "ffn_.*_exps=CPU"'

Duration = Annotated[int | float | str, _duration(_MILLISECOND)]
DurationOrZero = Annotated[int | float | str, _duration()]
DurationOrNever = Annotated[int | float | str, _duration(_MILLISECOND, "never")]
DurationOrAuto = Annotated[int | float | str, _duration(0, "auto")]
BodySize = Annotated[int | str, _size(1 << 10)]
MemoryOrAuto = Annotated[int | str, _size(1 << 20, "auto")]
Size = Annotated[int | str, _size()]
Reserve = Annotated[int | str, _size(0, "auto")]
Sizes = Annotated[Size | list[Size], Meta(extra={"show": _format_sizes})]
Share = Annotated[float, _type(_SHARE, _share)]
TensorOverride = Annotated[str, _type(_OVERRIDE, _override)]
MemoryLimit = Annotated[int | str, _size(16 << 20, "none")]
PromptCache = Annotated[
    int | str,
    _amount(
        _PROMPT_CACHE,
        _prompt_cache,
        lambda value: units.format_size(value) if value else "off",
        f"^off$|{_SIZE_JSON}",
        0,
        "auto",
    ),
]
Context = Annotated[
    int | str, _type(_CONTEXT, _context, "^(auto|model)$", show=lambda value: "model" if value is None else value)
]
FilePath = Annotated[str, _type("the path of a file", _one_line, path="file")]
Program = Annotated[str, _type("a program's name or path", _one_line, path="program")]
Name = Annotated[str, _type(NAME, check_name, _NAME_JSON)]
Address = Annotated[str, _type(units.ADDRESS, units.parse_address)]
Host = Annotated[str, _type(_HOST, _host)]
ServerUrl = _text(
    r"http://(?:localhost|127\.0\.0\.1|\[::1\]):[0-9]{1,5}",
    'the address of a server on this machine, such as "http://127.0.0.1:13305"',
)
WebOrigin = _text(
    r"[a-z][a-z0-9+.-]*://(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?",
    'an origin such as "https://chat.example.org" (scheme and host, no path, no "*")',
)
RemoteUrl = Annotated[
    str, _type(REMOTE_URL, _remote_url, f"^{_REMOTE_URL.pattern}$", secret=True)  # it may have a password
]
ProxyUrl = _text(
    rf"http://{_AUTHORITY}/?",
    'the address of an HTTP proxy, such as "http://proxy.lan:3128", without user',
    json=True,
    secret=True,
    check=_port_is_one,
)
HeaderName = Annotated[str, _type(_HEADER_NAME, _header_name)]
HeaderValue = Annotated[str, _type("a text on one line, of Latin letters and signs", _header, secret=True)]
CredentialName = _text("[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}", "the name of a systemd credential")
ModelId = _text(
    r"[A-Za-z0-9][\x21-\x7e]{0,511}",
    'a model of Hugging Face, such as "ORG/REPO:Q4_K_M" or "hf:ORG/REPO", or the engine\'s own name, without spaces '
    "(a file is `path`)",
)
ContainerName = _text(
    "[A-Za-z0-9][A-Za-z0-9_.-]{0,127}", "a container's name: letters, digits and _ . - (first a letter or digit)"
)
Image = _text("[A-Za-z0-9][A-Za-z0-9._/:@+-]{0,511}", 'an image such as "ghcr.io/ggml-org/llama.cpp:server-vulkan"')
Device = _text(
    r"/dev/[^\s:\x00-\x1f]+|[a-z0-9.-]+/[A-Za-z0-9._-]+=[A-Za-z0-9._:-]+",
    'a device such as "/dev/dri", or a CDI name such as "nvidia.com/gpu=all"',
)
Mount = _text(
    r"/[^:\x00-\x1f]*(?::/[^:\x00-\x1f]*(?::(?:ro|rw))?)?",
    '"HOST", "HOST:CONTAINER" or "HOST:CONTAINER:ro", both absolute paths',
)
HomeKind = Literal["auto", "child", "systemd", "toolbox", "distrobox", "podman", "docker", "container"]
Slot = _text(
    r"[0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]",
    'a PCI slot such as "0000:c1:00.0", in lower case (see lspci -D)',
    json=True,
)
YieldSignal = Literal["gamemode", "sleep"]
LevelPolicy = Literal["busy", "always", "never"]
BatteryPolicy = Literal["save", "ignore"]
IoClass = Literal["idle", "best-effort"]
Argument = Annotated[str, _type("a string: one argument", _no_nul, secret=True)]
EnvName = _text("[A-Za-z_][A-Za-z0-9_]*", "a variable's name of letters, digits and _", json=True)
EnvValue = Annotated[str, _type("a string", _no_nul, secret=True)]
TextLine = Annotated[str, _type("a text on one line", _one_line)]
Phrase = Annotated[str, _type("a word or phrase", _phrase)]
_URL_PATH: Final = r"/[\x21-z|~]{0,255}"  # without braces
UrlPath = _text(_URL_PATH, 'a path such as "/health", without placeholders and other braces')
PathPair = _text(
    rf"/v1/[a-z0-9/_-]{{1,64}}={_URL_PATH}",
    'a pair such as "/v1/rerank=/rerank", without placeholders and other braces',
)
FormField = _text(r"[a-z_]{1,32}=[\x21-~]{1,64}", 'a pair such as "translate=true"')
CacheType = Annotated[str, _type(CACHE_TYPE, _cache_type)]
SpecTypes = Annotated[str | list[str], _type(_SPEC_TYPE, _spec_type)]
OnOffAuto = Annotated[bool | Literal["on", "off", "auto"], Meta(extra={"parse": _on_off})]
Layers = Annotated[int, Meta(ge=0, le=10_000)] | Literal["all", "auto"]
