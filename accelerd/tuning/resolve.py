"""Holds rules against one model on one device with one program: what is set, what would have been, and why. Pure.

Sets only what nobody has set: a user's own setting, in whatever layer, and what a container's image wants come first.
A rule never makes a start fail: what cannot go together with what is set already is left out and said.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any, Final

from msgspec import Struct

from accelerd.config import flags
from accelerd.config.model import ModelSpec, SetBy
from accelerd.devices.model import Device
from accelerd.engines.base import EngineBuild, TunedModel, TuningAdvice
from accelerd.estimate.gguf import Header
from accelerd.tuning.rules import TuningRule
from accelerd.tuning.schema import PHYSICAL

VENDORS: Final = {"1002": "amd", "10de": "nvidia", "8086": "intel"}
UNQUANTISED: Final = ("f32", "f16", "bf16")
WRITTEN: Final = {"cache_type_k": "kv_cache_type.k", "cache_type_v": "kv_cache_type.v"}  # as in accelerd.toml
PATTERNS: Final = ("gfx", "driver", "engine", "architecture", "image")


class RuleContext(Struct):
    """What a rule's `when` is held against, in its words; None: not known."""

    device: str | None = None
    vendor: str | None = None
    gfx: str | None = None
    driver: str | None = None
    apu: bool | None = None
    unified: bool | None = None
    engine: str | None = None
    backend: str | None = None
    image: str | None = None
    option: frozenset[str] = frozenset()
    architecture: str | None = None
    moe: bool | None = None
    task: str | None = None
    size: int | None = None


def situation(
    spec: ModelSpec, device: Device | None, build: EngineBuild, header: Header | None, size: int | None
) -> RuleContext:
    """`device` None: it is not known; `header` None: the model cannot be looked into; `size`: bytes of its files."""
    context = RuleContext(
        engine=build.engine,
        backend=build.backend or None,
        image=build.image or None,
        option=build.options,
        task="embeddings" if spec.embeddings else "rerank" if spec.rerank else "generate",
        size=size,
    )
    if device is not None:
        context.device, context.gfx, context.driver, context.apu = device.kind, device.gfx, device.driver, device.apu
        context.vendor = VENDORS.get(device.vendor, device.vendor) or None
        context.unified = device.unified if device.kind == "gpu" else None
    if header is not None and header.architecture:
        context.architecture, context.moe = header.architecture.lower(), header.experts > 0
    return context


def holds(when: Mapping[str, Any], here: RuleContext) -> bool:
    """Do all conditions hold? What is not known does not."""
    return all(_holds(key, wanted, here) for key, wanted in when.items())


def _holds(key: str, wanted: Any, here: RuleContext) -> bool:
    several = wanted if isinstance(wanted, tuple) else (wanted,)
    match key:
        case "min_size":
            return here.size is not None and here.size >= wanted
        case "max_size":
            return here.size is not None and here.size <= wanted
        case "option":
            return here.option.issuperset(several)
    value = getattr(here, key)
    if value is None:
        return False
    if key in PATTERNS:
        return any(fnmatchcase(value.lower(), pattern) for pattern in several)
    return value in several


def tune(rules: Sequence[TuningRule], spec: ModelSpec, here: RuleContext, cores: int) -> TunedModel:
    """The model with what the rules set, and what they say of the rest. `cores`: physical ones of the processor."""
    chosen: dict[str, tuple[TuningRule, Any]] = {}
    for rule in rules:
        if holds(rule.when, here):
            for setting, value in rule.sets.items():
                chosen[setting] = (rule, cores if value == PHYSICAL and setting == "threads" else value)
    given = _given_as_arguments(spec)
    advice: list[TuningAdvice] = []
    follow: dict[str, tuple[TuningRule, Any]] = {}
    for setting, (rule, value) in chosen.items():
        if setting in given:
            advice.append(_advice("extra_args", setting, rule, value, f"{given[setting]} is your own"))
        elif (owner := _owner(spec, setting)) is None:
            follow[setting] = (rule, value)
        elif _current(spec, setting) != value:
            advice.append(_advice(setting, setting, rule, value, owner))
    warnings = [
        f"left out what {follow.pop(setting)[0].origin} advises: {why}"
        for setting, why in _conflicts(spec, given, follow)
    ]
    advice += [_advice(setting, setting, rule, value) for setting, (rule, value) in follow.items()]
    return TunedModel(_with(spec, follow), tuple(advice), tuple(warnings))


def _with(spec: ModelSpec, follow: Mapping[str, tuple[TuningRule, Any]]) -> ModelSpec:
    values = {key: value for key, (_, value) in follow.items() if not key.startswith("env.")}
    env = {key.removeprefix("env."): value for key, (_, value) in follow.items() if key.startswith("env.")}
    origins = {**spec.origins, **{key: rule.origin for key, (rule, _) in follow.items()}}
    return replace(spec, **values, env=tuple(sorted({**env, **dict(spec.env)}.items())), origins=origins)


def _current(spec: ModelSpec, setting: str) -> Any:
    table, _, name = setting.partition(".")
    return dict(spec.env).get(name) if table == "env" else getattr(spec, setting)


def _owner(spec: ModelSpec, setting: str) -> str | None:
    """Who has set it already, in words; None: nobody."""
    if _current(spec, setting) is None:
        return None
    origin = spec.origin(setting)
    return f"{origin.layer} says so" if origin.by is SetBy.IMAGE else "your own setting"


def _given_as_arguments(spec: ModelSpec) -> dict[str, str]:
    """Settings that extra_args decide, and by which flag."""
    found: dict[str, str] = {}
    for argument in spec.extra_args:
        for setting in flags.settings_of(argument):
            found[setting] = argument.partition("=")[0]
    return found


def _conflicts(
    spec: ModelSpec, given: Mapping[str, str], follow: Mapping[str, tuple[TuningRule, Any]]
) -> list[tuple[str, str]]:
    """Settings of `follow` that cannot go with what is set, and why."""

    def value(setting: str) -> Any:
        return follow[setting][1] if setting in follow else _current(spec, setting)

    found = []
    flash = "unknown" if "flash_attention" in given else value("flash_attention")
    quantised = "cache_type_v" in follow and follow["cache_type_v"][1] not in UNQUANTISED
    if quantised and flash != "on":
        where = _where(spec, "flash_attention") if flash in ("off", "auto") else "which is not known to be on"
        found.append(
            ("cache_type_v", f"{_says('cache_type_v', follow['cache_type_v'][1])} needs flash attention, {where}")
        )
    for half, other in (("cache_type_k", "cache_type_v"), ("cache_type_v", "cache_type_k")):
        own = given.get(other) or _current(spec, other)
        if half in follow and own not in (None, follow[half][1]) and half not in dict(found):
            found.append((half, f"the other half of the KV cache is {own} ({_origin(spec, other, given)})"))
    if "cache_type_v" in dict(found) and "cache_type_k" in follow and "cache_type_k" not in dict(found):
        found.append(("cache_type_k", "the halves of the KV cache go together"))
    batch, ubatch = value("batch"), value("ubatch")
    if batch is not None and ubatch is not None and ubatch > batch:
        loser, other = ("ubatch", "batch") if "ubatch" in follow else ("batch", "ubatch")
        if loser in follow:
            text = f"{_says(loser, value(loser))} does not go with {_says(other, value(other))}"
            found.append((loser, text if other in follow else f"{text} ({spec.origin(other)})"))
    if spec.fit and "gpu_layers" in follow:
        found.append(("gpu_layers", f"fit chooses the layers ({spec.origin('fit')})"))
    if (spec.embeddings or spec.rerank) and "ubatch" in follow and "ubatch" not in dict(found):
        found.append(("ubatch", "a whole input must fit one batch"))
    return found


def _origin(spec: ModelSpec, setting: str, given: Mapping[str, str]) -> str:
    return str(spec.origin("extra_args" if setting in given else setting))


def _where(spec: ModelSpec, setting: str) -> str:
    return f"which is {_current(spec, setting)} ({spec.origin(setting)})"


def _says(setting: str, value: Any) -> str:
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return f"{WRITTEN.get(setting, setting)} = {text}"


def _advice(at: str, setting: str, rule: TuningRule, value: Any, why_not: str = "") -> TuningAdvice:
    return TuningAdvice(at, _says(setting, value), rule.origin, rule.reason, rule.source, why_not)
