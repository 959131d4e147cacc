"""A command line in the making: tokens with source and reason, what is left out with a warning, and what is refused."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from typing import Any, Final

from msgspec import Struct, field

from accelerd.config.model import ModelSpec
from accelerd.engines.base import Flag, TuningAdvice
from accelerd.engines.llama_server.features import Features, ProgramOption

BUILT_IN: Final = "built-in"


class CommandLine(Struct):
    """A command line in the making."""

    spec: ModelSpec
    features: Features
    argv: list[str]
    advice: Sequence[TuningAdvice] = ()  # what rules say of settings
    flags: list[Flag] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)
    key_file: str = ""  # that the program is told to read its key from

    def add(self, *tokens: str, key: str | None = None, reason: str) -> None:
        """Tokens for the setting `key`; None: a choice of accelerd's own."""
        self.argv += tokens
        about = [one for one in self.advice if one.setting == key]
        reasons = [reason, *(one.reason for one in about if not one.why_not)]
        source = BUILT_IN if key is None else str(self.spec.origin(key))
        note = "; ".join(one.note for one in about)
        self.flags.append(Flag(shlex.join(tokens), source, ": ".join(reasons), note))

    def option(self, key: str, names: Iterable[str]) -> ProgramOption | None:
        """The option that says `key`; where the build has none of the names, a refusal is noted."""
        names = tuple(names)
        option = self.features.find(*names)
        if option is None:
            self.refuse(key, f"{key}: it knows no {' or '.join(names)}")
        return option

    def refuse(self, key: str, why: str) -> None:
        """The build cannot say `key`: that stops the start if a person asked for it."""
        origin = self.spec.origin(key)
        if origin.by_rule:
            self.warnings.append(f"left out what {origin} advises: {why}")
        else:
            self.refusals.append(why)

    def set(self, key: str, names: tuple[str, ...], value: Any, reason: str) -> None:
        """`NAME VALUE` for a setting a person wrote; a value the help does not list is refused."""
        option = self.option(key, names)
        if option is None:
            return
        text = str(value)
        if option.choices and text not in option.choices:
            self.refuse(key, f"{key} = {text!r}: it takes {', '.join(option.choices)}")
            return
        self.add(self.features.pick(*names) or names[0], text, key=key, reason=reason)

    def own(self, names: tuple[str, ...], *values: str, reason: str) -> None:
        """A choice of accelerd's own, left out silently where the build does not know it, or knows a switch of that
        name instead of an option with a value."""
        option = self.features.find(*names)
        if option is not None and bool(option.hint) == bool(values):
            self.add(self.features.pick(*names) or names[0], *values, reason=reason)
