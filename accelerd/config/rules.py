"""Checks that involve several keys: each rule looks at the resolved configuration and yields the problems it finds.

Owns unique names, mutually exclusive keys, references of models, and the safety of addresses and of arguments for
engines; route_rules.py checks routes. `warnings` and `lost_programs` also look at the file system, by
on_disk.py. Must never change anything.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final

from accelerd.base import volumes
from accelerd.base.errors import AccelError
from accelerd.base.model_source import Source
from accelerd.config import flags, key_file, on_disk, units
from accelerd.config.clashes import clashes, of_another_engine, without_effect
from accelerd.config.command import presets
from accelerd.config.model import BUILT_IN, Config, ModelSpec, Origin
from accelerd.config.named_files import named_files
from accelerd.config.positions import KeyPath
from accelerd.config.problems import Problem, Severity, did_you_mean, key_text
from accelerd.config.resolve import CACHE_TYPES, ConfigTables
from accelerd.config.route_rules import default_model, idle_fallbacks, routes, variants_in
from accelerd.config.walk import INVALID, TABLE, ConfigEntries, ConfigEntry, problem_at, where


def errors(entries: ConfigEntries, tables: ConfigTables, config: Config) -> Iterator[Problem]:
    """Every violated rule. Keys with an invalid value violate none."""
    for name in tables.models:
        yield from _one_source(entries, name, config.models.get(name))
        yield from _profiles_exist(entries, tables, name)
    yield from _unique_names(entries, tables)
    yield from routes(entries, tables, config)
    yield from _remotes(entries, tables, config)
    yield from default_model(entries, config)
    for path, file, line, argument in _arguments(entries):
        if reason := flags.refused(argument):
            yield Problem(file, line, key_text(path), reason)
    for path, entry in _variables(entries):
        if reason := flags.refused_variable(str(path[-1])):
            yield problem_at(entry, path, reason)
    wrong = {path[-1] for path, entry in entries.items() if path and entry.value is INVALID}
    yield from _of_models(config, lambda spec: [clash[:2] for clash in clashes(spec, wrong)])
    yield from _listening(entries, config)
    yield from _backoff(config)


def warnings(
    entries: ConfigEntries, tables: ConfigTables, config: Config, environ: Mapping[str, str] | None
) -> Iterator[Problem]:
    """Probable mistakes: missing files, models that never fit, flags that have their own setting.

    `environ`: of the daemon, if this is it.
    """
    literal = "is passed unchanged: ~ and $ are not expanded"
    for path, file, line, argument in _arguments(entries):
        if advice := flags.better(argument):
            yield Problem(file, line, key_text(path), advice, "warning")
        if flags.unexpanded(argument):
            yield Problem(file, line, key_text(path), literal, "warning")
    for path, entry in _variables(entries):
        if entry.usable and flags.unexpanded(str(entry.value)):
            yield problem_at(entry, path, literal, "warning")
    for path, entry in entries.items():
        if path[-2:] in (("command", "argv"), ("command", "environment")):
            for index, (word, line) in enumerate(entry.items):
                first = index == 0 and path[-1] == "argv"  # ~/ is expanded there
                if not first and word is not INVALID and flags.unexpanded(word.partition("=")[2] or word):
                    yield Problem(entry.file, line, key_text((*path, index)), literal, "warning")
    for key in sorted(frozenset.intersection(*tables.unfit.values())) if tables.unfit else ():
        path = ("defaults", *_written_as(key))
        yield problem_at(
            entries[path], path, "applies to no model: each has a setting that it does not go with", "warning"
        )
    # All at once, for each volume in one process. What lies on one that does not answer is only a warning.
    volumes.look((path for spec in config.models.values() for _, path in named_files(spec)), on_disk.PATIENCE)
    limit = config.scheduler.memory
    yield from _of_models(
        config,
        lambda spec: (
            *without_effect(spec),
            *on_disk.files(spec),
            *_fits(spec, limit),
            *_same_container(spec, config),
            *_kept_there(spec, config),
        ),
        "warning",
    )
    for path, text in on_disk.remotes(config, environ):
        origin = config.origins.get(".".join(path), BUILT_IN)
        yield Problem(origin.file or "", origin.line, key_text(path), text, "warning")
    yield from idle_fallbacks(entries, config)
    for engine, program in _programs(config).items():
        if reason := on_disk.file_reason(program, program=True):
            yield _global(config, f"engines.{engine}.binary", reason, "warning")


def lost_programs(before: Config, now: Config) -> Iterator[Problem]:
    """Programs that models would be started with from now on, and that cannot be run: these models run as they are."""

    def check(spec: ModelSpec) -> Iterator[tuple[str, str]]:
        old = before.models.get(spec.name)
        changed = old is not None and not spec.contained and spec.binary != old.binary
        if changed and (reason := on_disk.file_reason(spec.binary, program=True)):
            yield "binary", reason

    yield from _of_models(now, check)
    earlier = _programs(before)
    for engine, program in _programs(now).items():
        users = [spec for spec in now.models.values() if spec.engine == engine and not (spec.binary or spec.contained)]
        changed = program != earlier[engine] and any(spec.name in before.models for spec in users)
        if changed and (reason := on_disk.file_reason(program, program=True)):
            yield _global(now, f"engines.{engine}.binary", reason)


def _programs(config: Config) -> dict[str, str | None]:
    """By engine."""
    return {"llama-server": config.llama_server.binary, "flm": config.flm.binary, "lemonade": config.lemonade.binary}


def _of_models(
    config: Config, check: Callable[[ModelSpec], Iterable[tuple[str, str]]], severity: Severity = "error"
) -> Iterator[Problem]:
    """What `check` says of the settings of each model, at the place where the setting was written, in whatever table.

    A mistake in a profile is reported once.
    """
    seen: set[tuple[str, Origin]] = set()
    for spec in config.models.values():
        for field, message in check(spec):
            origin = spec.origin(field)
            if (field, origin) in seen:
                continue
            seen.add((field, origin))
            table: KeyPath = origin.table or ("models", spec.name)
            yield Problem(origin.file or "", origin.line, key_text((*table, *_written_as(field))), message, severity)


def _written_as(field: str) -> KeyPath:
    """A field of ModelSpec as it is written in a table."""
    key = next((key for key, start in CACHE_TYPES.items() if field in (f"{start}_k", f"{start}_v")), None)
    if key:
        return (key, field[-1])
    table, _, rest = field.partition(".")
    name, _, last = rest.rpartition(".")  # of a variant; it may have dots itself
    return tuple(filter(None, (table, name, last)))


def _arguments(entries: ConfigEntries) -> Iterator[tuple[KeyPath, str, int | None, str]]:
    """Every valid element of extra_args, with its key, file and line."""
    for path, entry in entries.items():
        if path and path[-1] == "extra_args":
            for index, (argument, line) in enumerate(entry.items):
                if argument is not INVALID:
                    yield (*path, index), entry.file, line, argument


def _variables(entries: ConfigEntries) -> Iterator[tuple[KeyPath, ConfigEntry]]:
    return ((path, entry) for path, entry in entries.items() if len(path) > 1 and path[-2] == "env")


def _one_source(entries: ConfigEntries, name: str, spec: ModelSpec | None) -> Iterator[Problem]:
    table: KeyPath = ("models", name)
    path, model = entries.get((*table, "path")), entries.get((*table, "model"))
    if entries[table].value is not TABLE or (spec is not None and any(of_another_engine(spec))):
        return
    if spec is not None and spec.engine in ("command", "vllm"):
        yield from _source_of_command(entries, table, spec)
    elif spec is not None and spec.elsewhere and path is None and model is None:
        yield problem_at(entries[table], table, 'set model = "…", the name that the remote has for it')
    elif path is None and model is None and not (spec and spec.home == "container"):
        yield problem_at(
            entries[table], table, 'set path = "…" (a file) or model = "…" (of Hugging Face, or the engine\'s own name)'
        )
    elif spec is not None and spec.engine != "llama-server" and path is not None:
        text = f'{spec.engine} does not use model files; set model = "…" instead ({spec.origin("engine")})'
        yield problem_at(path, (*table, "path"), text)
    elif path is not None and model is not None:
        yield problem_at(
            model, (*table, "model"), f"set either path or model, not both; path is set, too ({where(path)})"
        )
    elif spec is not None and spec.engine == "llama-server" and model is not None and model.usable:
        try:
            Source.parse(spec.model or "")
        except AccelError as error:
            yield problem_at(model, (*table, "model"), error.message)


def _source_of_command(entries: ConfigEntries, table: KeyPath, spec: ModelSpec) -> Iterator[Problem]:
    """A model of the engine `command` has what its argv names, and no more."""
    command, given = spec.command, [name for name in ("path", "model") if getattr(spec, name) is not None]
    if command.preset is not None and command.preset not in presets():
        hint = did_you_mean(command.preset, list(presets())) or f"; there are {', '.join(presets())}"
        origin = spec.origin("command.preset")
        text = f"there is no preset '{command.preset}'{hint}"
        yield Problem(origin.file or "", origin.line, key_text((*table, "command", "preset")), text)
    elif (key := command.has("model")) and not given:
        text = f'set path = "…" (a file) or model = "…": {{model}} in command.{key} needs it'
        yield problem_at(entries[table], table, text)
    elif len(given) == 2:
        yield problem_at(entries[*table, "model"], (*table, "model"), "set either path or model, not both")


def _profiles_exist(entries: ConfigEntries, tables: ConfigTables, name: str) -> Iterator[Problem]:
    entry = entries.get(("models", name, "profile"))
    if entry is None:
        return
    one = entry.items or (() if isinstance(entry.value, tuple | list) else ((entry.value, entry.line),))
    for index, (profile, line) in enumerate(one):
        if profile is not INVALID and profile not in tables.profiles:
            path: KeyPath = ("models", name, "profile", index) if entry.items else ("models", name, "profile")
            text = f"there is no [profiles.{key_text((profile,))}]{did_you_mean(profile, list(tables.profiles))}"
            yield Problem(entry.file, line, key_text(path), text)


def _unique_names(entries: ConfigEntries, tables: ConfigTables) -> Iterator[Problem]:
    """Models, routes, their variants, and the aliases of all of these."""
    owners: list[KeyPath] = [("models", name) for name in tables.models]
    owners += [("routes", name) for name in tables.routes]
    owners += variants_in(entries)
    taken: dict[str, tuple[KeyPath, str]] = {}  # name → whose it is, and place

    def clash(name: str) -> str:
        owner, place = taken[name]
        return f"the name '{name}' is already taken by {key_text(owner)} ({place})"

    for owner in owners:
        if (name := str(owner[-1])) in taken:
            yield problem_at(entries[owner], owner, clash(name))
        else:
            taken[name] = (owner, where(entries[owner]))
    for owner, key in itertools.product(owners, ALIASES):
        entry = entries.get((*owner, key))
        for index, (alias, line) in enumerate(entry.items if entry else ()):
            if entry is None or alias is INVALID:
                continue
            path = key_text((*owner, key, index))
            if alias not in taken:
                taken[alias] = (owner, f"{entry.file}:{line}")
            elif taken[alias][0] == owner:
                text = f"'{alias}' is a name of this {str(owner[-2]).removesuffix('s')} already"
                yield Problem(entry.file, line, path, text, "warning")
            else:
                yield Problem(entry.file, line, path, clash(alias))


ALIASES: Final = ("aliases", "hidden_aliases")


def _remotes(entries: ConfigEntries, tables: ConfigTables, config: Config) -> Iterator[Problem]:
    """Models name a remote that is there; a remote has an address and one key at most."""
    for name, spec in config.models.items():
        path: KeyPath = ("models", name)
        if not spec.elsewhere or entries[path].value is not TABLE:
            continue
        named = entries.get((*path, "remote"))
        if named is None:
            yield problem_at(entries[path], path, 'set remote = "…", one of the [remotes]')
        elif named.usable and named.value not in tables.remotes:
            text = f"there is no [remotes.{key_text((named.value,))}]{did_you_mean(named.value, list(tables.remotes))}"
            yield problem_at(named, (*path, "remote"), text)
    for name in config.remotes:
        path = ("remotes", name)
        if (*path, "url") not in entries:
            yield problem_at(entries[path], path, 'set url = "…", such as "https://mac.lan:1234/v1"')
        if (*path, "key_file") in entries and (both := entries.get((*path, "credential"))) is not None:
            yield problem_at(both, (*path, "credential"), "set either key_file or credential, not both")


def _listening(entries: ConfigEntries, config: Config) -> Iterator[Problem]:
    server = config.server
    entry = entries.get(("server", "listen"))
    if entry is not None and entry.usable and not entry.items:
        problem = 'expected at least one address, such as "127.0.0.1:4000"'
        yield Problem(entry.file, entry.line, "server.listen", problem)
    for index, (address, line) in enumerate(entry.items if entry else ()):
        exposed = address is not INVALID and not units.is_loopback(address)
        if entry is not None and exposed and ("server", "key_file") not in entries:
            advice = 'set key_file = "~/.config/accelerd/keys" (one key per line) or listen on 127.0.0.1'
            text = f"{address} can be reached from other machines without a key; {advice}"
            yield Problem(entry.file, line, key_text(("server", "listen", index)), text)
    if server.key_file is not None and (reason := key_file.read(server.key_file)[1]):
        yield _global(config, "server.key_file", reason)


def _backoff(config: Config) -> Iterator[Problem]:
    settings = config.scheduler
    if settings.backoff_max < settings.backoff_initial:
        key = "backoff_max" if "scheduler.backoff_max" in config.origins else "backoff_initial"
        first, cap = units.format_duration(settings.backoff_initial), units.format_duration(settings.backoff_max)
        yield _global(config, f"scheduler.{key}", f"backoff_initial ({first}) is longer than backoff_max ({cap})")


def _fits(spec: ModelSpec, limit: int | None) -> Iterator[tuple[str, str]]:
    if spec.memory is not None and limit is not None and spec.memory > limit:
        size, most = units.format_size(spec.memory), units.format_size(limit)
        yield "memory", f"{size} never fits, because scheduler.memory is {most}"


def _kept_there(spec: ModelSpec, config: Config) -> Iterator[tuple[str, str]]:
    remote = config.remotes.get(spec.remote or "")
    if spec.elsewhere and spec.idle_after is not None and remote is not None and remote.api != "ollama":
        text = f'has no effect: {remote.name} has api = "{remote.api}", and only Ollama can be told to unload a model'
        yield "idle_timeout", text


def _same_container(spec: ModelSpec, config: Config) -> Iterator[tuple[str, str]]:
    before = itertools.takewhile(lambda other: other.name != spec.name, config.models.values())
    if other := next((one for one in before if one.same_container(spec)), None):
        yield (
            "container",
            f"{other.name} is the same container: the two take turns; `aliases` gives one model more names",
        )


def _global(config: Config, key: str, message: str, severity: Severity = "error") -> Problem:
    origin = config.origins.get(key, BUILT_IN)
    return Problem(origin.file or "", origin.line, key, message, severity)
