"""The exception that ends a command of accelctl: exit status, one line for the user, and what to do.

Only `accelerd.cli.main` prints it; every other module raises it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from enum import IntEnum
from typing import Any

from accelerd.cli.text import nearest


class ExitStatus(IntEnum):
    """The exit statuses, documented in `accelctl --help`: scripts depend on them."""

    OK = 0
    FAILED = 1
    USAGE = 2
    UNREACHABLE = 3
    CONFIG_INVALID = 4
    NO_SUCH_MODEL = 5
    INTERRUPTED = 130


class Failure(Exception):
    """`message` is one line without "error:", `hint` says what to do, `tail` are lines that an engine printed last."""

    def __init__(
        self,
        message: str,
        *,
        exit: ExitStatus = ExitStatus.FAILED,
        code: str = "failed",
        hint: str = "",
        tail: Sequence[str] = (),
        fields: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.exit = exit
        self.code = code
        self.hint = hint
        self.tail = tuple(tail)
        self.fields = fields or {}

    def json(self) -> dict[str, Any]:
        """The object that `--json` prints instead of the lines."""
        body: dict[str, Any] = {**self.fields, "code": self.code, "message": self.message}
        if self.hint:
            body["hint"] = self.hint
        if self.tail:
            body["tail"] = list(self.tail)
        return {"error": body}


def usage(message: str, hint: str = "") -> Failure:
    return Failure(message, exit=ExitStatus.USAGE, code="usage", hint=hint)


def no_model(name: str, known: Iterable[str], otherwise: str) -> Failure:
    """No model has that name; the hint is the name that was probably meant, or `otherwise`."""
    guess = nearest(name, known)
    hint = f"did you mean {guess}?" if guess else otherwise
    return Failure(f"there is no model {name!r}", exit=ExitStatus.NO_SUCH_MODEL, code="model_not_found", hint=hint)


def invalid(message: str, problems: Sequence[Mapping[str, Any]], hint: str = "") -> Failure:
    """The configuration is not valid, or would not be."""
    fields = {"problems": list(problems)}
    return Failure(message, exit=ExitStatus.CONFIG_INVALID, code="config_invalid", hint=hint, fields=fields)
