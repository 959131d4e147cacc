"""What an operation is: its name and kind, a typed request, a typed answer, and the function between them.

The adapters (HTTP in control/http.py, D-Bus in bus/) walk the registry of operations and turn what they received into
the request with `parse`, which is the only place that checks arguments. Knows no adapter and nothing of models.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Awaitable, Callable, Mapping
from types import ModuleType
from typing import Annotated, Any, Final, Literal, NamedTuple, TypeVar

import msgspec
from msgspec import Struct

from accelerd.base.errors import AccelError

Kind = Literal["look", "action", "job", "claim", "stream"]
"""look: reads. action: is done when it is answered. job: is carried out by a Job, whose events may be followed.
claim: holds as long as the client that made it is there. stream: tells events as long as the client listens."""

WORDS: Final[dict[Any, str]] = {bool: "true or false", str: "text", int: "a whole number", float: "a number"}
SHOWN: Final = 60  # characters of a wrong name or value that are quoted back


class Request(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """What an operation is asked. Keys are in kebab case: `allow_evict` is `allow-evict` for clients."""


class NoArguments(Request, frozen=True):
    """For operations that take none."""


class ModelRequest(Request, frozen=True):
    """`model` is any name of a model: configured, alias or generated (local/NAME, npu/NAME)."""

    model: str


R = TypeVar("R", bound=Request)
F = TypeVar("F", bound=Callable[..., Awaitable[Any]])


class Operation(Struct, frozen=True):
    """One operation. `call(request, owner)`: `owner` names the client, for claims. AccelError."""

    name: str  # "load", "toolbox/refresh"
    kind: Kind
    request: type[Request]
    answer: Any  # a Struct or a union of Structs; of a job: its last event
    call: Callable[[Any, str], Awaitable[Any]]
    doc: str
    progress: bool = False  # of a job: does it tell events before its last one?


class _Marked(NamedTuple):
    """What `operation` was given, until somebody asks for the operations: their types need not be read at the start."""

    function: Callable[..., Awaitable[Any]]
    kind: Kind
    name: str
    outcome: Any
    progress: bool


_MARKED: Final[list[_Marked]] = []


def operation(kind: Kind, name: str, *, outcome: Any = None, progress: bool = False) -> Callable[[F], F]:
    """Marks the function that carries out an operation: (parts, request if it takes one, owner of a claim) → answer.

    Its annotations are the request and the answer, its docstring `doc`. `outcome`: of a job, which returns the Job, the
    type of its last event.
    """

    def mark(function: F) -> F:
        _MARKED.append(_Marked(function, kind, name, outcome, progress))
        return function

    return mark


def operations_of(parts: Any, *modules: ModuleType) -> dict[str, Operation]:
    """The operations of these modules by name, carried out on `parts`."""
    wanted = {module.__name__ for module in modules}
    return {one.name: _bound(one, parts) for one in _MARKED if one.function.__module__ in wanted}


def _bound(marked: _Marked, parts: Any) -> Operation:
    function, kind, name, outcome, progress = marked
    hints = typing.get_type_hints(function)

    def call(request: Request, owner: str) -> Awaitable[Any]:
        given = {key: value for key, value in (("request", request), ("owner", owner)) if key in hints}
        return function(parts, **given)

    doc = (inspect.getdoc(function) or "").partition("\n")[0]
    answer = hints["return"] if outcome is None else outcome
    return Operation(name, kind, hints.get("request", NoArguments), answer, call, doc, progress)


def parse(kind: type[R], given: Mapping[str, Any], *, text: bool) -> R:
    """The request that was given, checked. `text`: values are strings, as in a URL; else they have their types.

    AccelError bad_request, with `param`: a key that is unknown or missing, or a value that is not allowed.
    """
    fields = {field.encode_name: field for field in msgspec.structs.fields(kind)}
    for key in given:
        if key not in fields:
            have = f"there are {', '.join(sorted(fields))}" if fields else "there are none"
            raise AccelError("bad_request", f"there is no argument {key[:SHOWN]!r}: {have}", param=key[:SHOWN])
    found: dict[str, Any] = {}
    for key, field in fields.items():
        if key in given:
            found[field.name] = _value(key, field.type, given[key], text=text)
        elif field.required:
            raise AccelError("bad_request", f"the argument {key} is missing", param=key)
    return kind(**found)


def _value(key: str, kind: Any, value: Any, *, text: bool) -> Any:
    if text and value == "" and kind is bool:
        return False
    try:
        return msgspec.convert(value, kind, strict=not text)
    except msgspec.ValidationError:
        shown = repr(value[:SHOWN]) if isinstance(value, str) else f"{value!r:.{SHOWN}}"
        raise AccelError("bad_request", f"{key} must be {_expected(kind)}, not {shown}", param=key) from None


def _expected(kind: Any) -> str:
    """What a value must be, in words."""
    if typing.get_origin(kind) is Annotated:
        base, *notes = typing.get_args(kind)
        return next((note.description for note in notes if note.description), None) or _expected(base)
    choices = typing.get_args(kind)
    if typing.get_origin(kind) is Literal:
        return " or ".join(choices)
    return WORDS.get(kind) or " or ".join(_expected(one) for one in choices if one is not type(None))
