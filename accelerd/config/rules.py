"""What must hold between keys: each rule looks at the resolved configuration and yields the problems it sees.

Owns uniqueness of names, exactly-one, references, safety of listening and of what is passed to engines. Errors first;
`warnings` looks at the file system and is for `accelctl config check`. Must never change anything.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

from accelerd.config import flags, units
from accelerd.config.model import Config, ModelSpec, Origin
from accelerd.config.positions import KeyPath
from accelerd.config.problems import Problem, did_you_mean, key_text
from accelerd.config.resolve import Tables
from accelerd.config.walk import INVALID, TABLE, Entries, Entry


def errors(entries: Entries, tables: Tables, config: Config) -> Iterator[Problem]:
    """Every broken rule. Keys whose value was already found wrong break none."""
    for name in tables.models:
        yield from _one_source(entries, name, config.models.get(name))
        yield from _profiles_exist(entries, tables, name)
    yield from _unique_names(entries, tables)
    yield from _routes(entries, tables, config)
    for path, entry in entries.items():
        yield from _engine_input(path, entry)
    seen: set[tuple[str, Origin]] = set()
    wrong = {path[-1] for path, entry in entries.items() if path and entry.value is INVALID}
    for spec in config.models.values():
        for field, message in (*_consistent(spec), *_at_home(spec, wrong), *_of_engine(spec)):
            origin = spec.origin(field)
            if (field, origin) not in seen:  # a profile's mistake is one mistake
                seen.add((field, origin))
                yield _at(origin, spec, field, message)
    yield from _listening(entries, config)
    yield from _backoff(config)


def warnings(entries: Entries, tables: Tables, config: Config) -> Iterator[Problem]:
    """What is allowed but probably not meant: missing files, models that never fit, flags that have a setting."""
    for path, entry in entries.items():
        yield from _engine_advice(path, entry)
    seen: set[tuple[str, Origin]] = set()
    for spec in config.models.values():
        for field in ("path", "mmproj", "draft_model", "chat_template_file", "binary"):
            value, origin = getattr(spec, field), spec.origin(field)
            if field == "binary" and spec.contained:
                continue  # a path inside the container
            reason = _file_reason(value, program=field == "binary")
            if reason and (field, origin) not in seen:
                seen.add((field, origin))
                yield _at(origin, spec, field, reason, "warning")
        for field, message in _without_effect(spec):
            if (field, spec.origin(field)) not in seen:
                seen.add((field, spec.origin(field)))
                yield _at(spec.origin(field), spec, field, message, "warning")
        limit = config.scheduler.memory
        if spec.memory is not None and limit is not None and spec.memory > limit:
            text = f"{units.format_size(spec.memory)} never fits: scheduler.memory is {units.format_size(limit)}"
            yield _at(spec.origin("memory"), spec, "memory", text, "warning")
    key_file = config.server.key_file
    if key_file and not os.path.exists(key_file):
        yield _global(config, "server.key_file", f"no such file: {key_file}", "warning")
    programs = {
        "llama-server": config.llama_server.binary, "flm": config.flm.binary, "lemonade": config.lemonade.binary,
    }  # fmt: skip
    for engine, program in programs.items():
        reason = _file_reason(program, program=True)
        if reason:
            yield _global(config, f"engines.{engine}.binary", reason, "warning")


def _one_source(entries: Entries, name: str, spec: ModelSpec | None) -> Iterator[Problem]:
    table = entries[("models", name)]
    path, model = entries.get(("models", name, "path")), entries.get(("models", name, "model"))
    if table.value is not TABLE:
        return
    if path is None and model is None and not (spec and spec.home == "container"):
        text = 'needs path = "…" (a file) or model = "…" (the engine\'s own id)'
        yield Problem(table.file, table.line, key_text(("models", name)), text)
    elif spec is not None and spec.engine != "llama-server" and path is not None:
        text = f'{spec.engine} has models of its own: model = "…" names one ({spec.origin("engine")})'
        yield Problem(path.file, path.line, key_text(("models", name, "path")), text)
    elif path is not None and model is not None:
        text = f"path and model exclude each other, and path is set too ({_where(path)})"
        yield Problem(model.file, model.line, key_text(("models", name, "model")), text)


def _profiles_exist(entries: Entries, tables: Tables, name: str) -> Iterator[Problem]:
    entry = entries.get(("models", name, "profile"))
    if entry is None:
        return
    one = entry.items or (() if isinstance(entry.value, tuple | list) else ((entry.value, entry.line),))
    for index, (profile, line) in enumerate(one):
        if profile is not INVALID and profile not in tables.profiles:
            path: KeyPath = ("models", name, "profile", index) if entry.items else ("models", name, "profile")
            text = f"there is no [profiles.{key_text((profile,))}]{did_you_mean(profile, list(tables.profiles))}"
            yield Problem(entry.file, line, key_text(path), text)


def _unique_names(entries: Entries, tables: Tables) -> Iterator[Problem]:
    taken: dict[str, tuple[KeyPath, str]] = {}  # name → key and place
    for name in tables.models:
        taken[name] = (("models", name), _where(entries[("models", name)]))
    for name in tables.models:
        entry = entries.get(("models", name, "aliases"))
        for index, (alias, line) in enumerate(entry.items if entry else ()):
            if entry is None or alias is INVALID:
                continue
            path: KeyPath = ("models", name, "aliases", index)
            if alias in taken:
                owner, place = taken[alias]
                text = f"the name '{alias}' is already taken by {key_text(owner)} ({place})"
                yield Problem(entry.file, line, key_text(path), text)
            else:
                taken[alias] = (path, f"{entry.file}:{line}")


def _routes(entries: Entries, tables: Tables, config: Config) -> Iterator[Problem]:
    """A route is a name of its own, for models that exist."""
    aliases = {alias: spec.name for spec in config.models.values() for alias in spec.aliases}
    for name in config.routes:
        table = entries[("routes", name)]
        path: KeyPath = ("routes", name)
        if name in tables.models or name in aliases:
            owner = name if name in tables.models else aliases[name]
            yield Problem(table.file, table.line, key_text(path), f"the name '{name}' is already taken by {owner}")
        listed = entries.get((*path, "models"))
        if listed is None:
            yield Problem(table.file, table.line, key_text(path), "needs models = […], the preferred one first")
            continue
        if not listed.items:
            yield Problem(listed.file, listed.line, key_text((*path, "models")), "expected one model at least")
        for index, (model, line) in enumerate(listed.items):
            if model is not INVALID and model not in tables.models:
                text = f"there is no [models.{key_text((model,))}]{did_you_mean(model, list(tables.models))}"
                yield Problem(listed.file, line, key_text((*path, "models", index)), text)


def _engine_input(path: KeyPath, entry: Entry) -> Iterator[Problem]:
    for place, line, reason in _arguments(path, entry, flags.refused):
        yield Problem(entry.file, line, key_text(place), reason)
    if len(path) > 1 and path[-2] == "env":
        refusal = flags.refused_variable(str(path[-1]))
        if refusal:
            yield Problem(entry.file, entry.line, key_text(path), refusal)


def _engine_advice(path: KeyPath, entry: Entry) -> Iterator[Problem]:
    for place, line, reason in _arguments(path, entry, flags.better):
        yield Problem(entry.file, line, key_text(place), reason, "warning")
    literal = "is passed on literally: ~ and $ are not expanded"
    for place, line, reason in _arguments(path, entry, lambda text: literal if flags.unexpanded(text) else None):
        yield Problem(entry.file, line, key_text(place), reason, "warning")
    if len(path) > 1 and path[-2] == "env" and entry.usable and flags.unexpanded(str(entry.value)):
        yield Problem(entry.file, entry.line, key_text(path), literal, "warning")


def _arguments(
    path: KeyPath, entry: Entry, judge: Callable[[str], str | None]
) -> Iterator[tuple[KeyPath, int | None, str]]:
    if path and path[-1] == "extra_args":
        for index, (argument, line) in enumerate(entry.items):
            reason = None if argument is INVALID else judge(argument)
            if reason:
                yield (*path, index), line, reason


def _consistent(spec: ModelSpec) -> Iterator[tuple[str, str]]:
    if spec.batch is not None and spec.ubatch is not None and spec.ubatch > spec.batch:
        yield "ubatch", f"expected at most batch = {spec.batch} ({spec.origin('batch')}), got {spec.ubatch}"
    if spec.embeddings and spec.rerank:
        yield (
            "rerank",
            f"a model makes embeddings or ranks, not both; embeddings is set too ({spec.origin('embeddings')})",
        )
    if spec.flash_attention == "off" and spec.cache_type_v not in (None, "f32", "f16", "bf16"):
        where = spec.origin("flash_attention")
        yield "cache_type_v", f"a quantised V cache needs flash attention, which is off ({where})"


# What only llama-server can be told, by field.
LLAMA_SERVER_ONLY = (
    "cache_type_k", "cache_type_v", "flash_attention", "mmap", "gpu_layers", "batch", "ubatch", "threads", "gpus",
    "mmproj", "draft_model", "chat_template_file",
)  # fmt: skip


# … and what Lemonade hands on to the llama-servers that it runs.
LEMONADE_TOO = ("cache_type_k", "cache_type_v", "flash_attention", "mmap", "batch", "ubatch", "threads")


def _of_engine(spec: ModelSpec) -> Iterator[tuple[str, str]]:
    """What an engine cannot do."""
    if spec.engine == "llama-server":
        if spec.transcription:
            where = spec.origin("engine")
            yield "transcription", f"llama-server writes nothing down, the engines flm and lemonade do ({where})"
        return
    if spec.contained:
        yield "home", f"{spec.engine} runs on this machine, in no container ({spec.origin('engine')})"
    if spec.engine == "flm" and spec.rerank:
        yield "rerank", f"flm ranks nothing ({spec.origin('engine')})"
    if spec.engine == "flm" and spec.parallel > 1:
        yield "parallel", f"flm answers one request at a time ({spec.origin('engine')})"


NAMED_HOMES = ("toolbox", "distrobox", "container")  # need `container`
IMAGE_HOMES = ("podman", "docker")  # need `image`
UNIT_SETTINGS = ("memory_max", "memory_high", "cpu_weight", "io_class", "tasks_max")


def _at_home(spec: ModelSpec, wrong: Collection[str | int]) -> Iterator[tuple[str, str]]:
    """What the place where a model lives needs and cannot use. `wrong`: keys with a mistake of their own."""
    home = spec.home
    if home in NAMED_HOMES and spec.container is None and "container" not in wrong:
        what = "an existing container" if home == "container" else f"a {home}"
        yield "home", f'the name of {what} is needed: container = "…"'
    if spec.container is not None and home == "auto":
        yield "container", 'say what it is: home = "toolbox", "distrobox" or "container"'
    elif spec.container is not None and home not in NAMED_HOMES:
        yield "container", f'home = "{home}" ({spec.origin("home")}) has no container to name'
    if home in IMAGE_HOMES and spec.image is None and "image" not in wrong:
        yield "home", f'home = "{home}" needs an image: image = "…"'
    for field in ("image", "devices", "mounts"):
        if getattr(spec, field) and home not in IMAGE_HOMES:
            yield field, f'is for home = "podman" or "docker"; home is "{home}" ({spec.origin("home")})'
    if spec.memory_max is not None and spec.memory_high is not None and spec.memory_high > spec.memory_max:
        most = units.format_size(spec.memory_max)
        yield "memory_high", f"expected at most memory_max = {most} ({spec.origin('memory_max')})"
    if spec.memory_max is not None and spec.memory is not None and spec.memory > spec.memory_max:
        most = units.format_size(spec.memory_max)
        yield "memory", f"the model is killed beyond memory_max = {most} ({spec.origin('memory_max')})"


def _without_effect(spec: ModelSpec) -> Iterator[tuple[str, str]]:
    """Settings of a plain child that only a systemd unit could keep, and those that the engine has no use for."""
    if spec.engine != "llama-server":
        for field in LLAMA_SERVER_ONLY:
            if getattr(spec, field) is not None and not (spec.engine == "lemonade" and field in LEMONADE_TOO):
                yield field, f'has no effect with engine = "{spec.engine}" ({spec.origin("engine")})'
    if spec.home == "child":
        for field in UNIT_SETTINGS:
            if getattr(spec, field) is not None:
                yield field, f'has no effect with home = "child" ({spec.origin("home")})'
        if spec.survive and "survive" in spec.origins:
            yield "survive", f'a model with home = "child" ({spec.origin("home")}) ends with accelerd'


def _listening(entries: Entries, config: Config) -> Iterator[Problem]:
    server = config.server
    entry = entries.get(("server", "listen"))
    seen: set[str] = set()
    for index, (address, line) in enumerate(entry.items if entry else ()):
        if entry is None or address is INVALID:
            continue
        key = key_text(("server", "listen", index))
        if address in seen:
            yield Problem(entry.file, line, key, f"{address} is listed twice")
        elif not units.is_loopback(address):
            reason = _exposed(server.key_file, ("server", "key_file") in entries)
            if reason:
                yield Problem(entry.file, line, key, f"{address} can be reached from other machines {reason}")
        seen.add(address)
    reason = _key_file_reason(server.key_file) if server.key_file else None
    if reason:
        yield _global(config, "server.key_file", reason)


def _exposed(key_file: str | None, written: bool) -> str | None:
    """Why listening beyond this machine is refused. A key_file with a mistake of its own is already reported."""
    if key_file is None:
        advice = 'write key_file = "~/.config/accelerd/keys" (one key a line) or listen on 127.0.0.1'
        return None if written else f"and no key would be asked; {advice}"
    return None if os.path.exists(key_file) else f"and the file with the keys does not exist: {key_file}"


def _key_file_reason(path: str) -> str | None:
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        return f"cannot look at {path}: {error.strerror}"
    if not stat.S_ISREG(status.st_mode):
        return f"expected a regular file at {path}"
    if status.st_mode & 0o077:
        return f"the keys in {path} can be read by other users; run: chmod 600 {path}"
    return None


def _backoff(config: Config) -> Iterator[Problem]:
    settings = config.scheduler
    if settings.backoff_cap < settings.backoff_first:
        key = "backoff_cap" if "scheduler.backoff_cap" in config.origins else "backoff_first"
        first, cap = units.format_duration(settings.backoff_first), units.format_duration(settings.backoff_cap)
        yield _global(config, f"scheduler.{key}", f"backoff_first ({first}) is longer than backoff_cap ({cap})")


def _file_reason(value: str | None, *, program: bool) -> str | None:
    if value is None or not value.startswith("/"):
        return None
    path = Path(value)
    try:
        if path.is_dir():
            return f"expected a file, found a folder: {value}"
        if not path.exists():
            return f"no such file: {value}"
    except OSError as error:
        return f"cannot look at {value}: {error.strerror}"
    if not os.access(path, os.X_OK if program else os.R_OK):
        return f"cannot {'run' if program else 'read'} {value}: permission denied"
    return None


def _where(entry: Entry) -> str:
    return f"{entry.file}:{entry.line}"


def _at(origin: Origin, spec: ModelSpec, field: str, message: str, severity: Any = "error") -> Problem:
    """A problem at the place where a model's setting was written, whichever layer that was."""
    kind, _, profile = origin.layer.partition(" ")
    table: KeyPath = (
        ("profiles", profile) if profile else ("defaults",) if kind == "defaults" else ("models", spec.name)
    )
    key: KeyPath = ("kv_cache_type", field[-1]) if field.startswith("cache_type_") else (field,)
    return Problem(origin.file or "", origin.line, key_text((*table, *key)), message, severity)


def _global(config: Config, key: str, message: str, severity: Any = "error") -> Problem:
    origin = config.origins.get(key)
    file, line = (origin.file or "", origin.line) if origin else ("", None)
    return Problem(file, line, key, message, severity)
