"""The engine `command`: plans the start of any program that serves HTTP, as `command` of the model describes it.

Knows no particular program: what is known of some is data, in config/presets.toml. Starts nothing, asks nothing.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Final

from msgspec import Struct, field

from accelerd.base.exits import Cause
from accelerd.config.command import filled, placeholders
from accelerd.config.model import ModelSpec
from accelerd.config.variants import Variant
from accelerd.devices.model import Device, usable
from accelerd.engines.base import (
    ContainerAccess,
    ContainerLookup,
    Dialect,
    Endpoint,
    Engine,
    FixedServer,
    Flag,
    LaunchPlan,
    Traits,
    fail,
    on_this_machine,
)
from accelerd.engines.endpoints import free_port, key_path, new_token, unix_endpoint
from accelerd.engines.llama_server.environment import device_flags, inherited
from accelerd.engines.program import find
from accelerd.memory.model import RAM, Forecast, MemoryRequirement

HINT: Final = "install it, or set binary = … to its path"
OPEN_TO_ALL: Final = "it has no key: while this model is loaded, every user of this machine can use it"
# What it prints once it serves may be what was said to it: only that is kept which tells of its end.
DISCREET: Final = r"GGML_(?:ASSERT|ABORT)|terminate called|std::bad_alloc|(?i:out of memory)|Traceback \(most recent"
OUT_OF_MEMORY: Final = (r"(?i)out of ?memory", r"std::bad_alloc", r"(?i)failed to allocate")
TRANSCRIPTIONS, TRANSLATIONS = "/v1/audio/transcriptions", "/v1/audio/translations"
ROOM: Final = 1.1  # memory by size of the model's file, where nothing was declared or measured


class CommandLine(Struct):
    """The arguments, with reasons."""

    argv: list[str] = field(default_factory=list)
    flags: list[Flag] = field(default_factory=list)


class Command(Engine):
    """Plans for servers of any kind. One object for all models."""

    dialect = Dialect(own_names=True)

    def __init__(
        self,
        *,
        environ: Mapping[str, str] | None = None,
        port: Callable[[], int] = free_port,
        token: Callable[[], str] = new_token,
        places: ContainerLookup = on_this_machine,
    ) -> None:
        """`port()`: a free one."""
        self._environ = dict(os.environ if environ is None else environ)
        self._port = port
        self._token = token
        self._places = places

    async def plan(self, spec: ModelSpec, runtime: Path, placed: MemoryRequirement | None = None) -> LaunchPlan:
        """A new plan with an own endpoint and key. AccelError('model_failed') with advice."""
        command, place = spec.command, await self._places(spec)
        if isinstance(place, FixedServer):
            endpoint, program, seen = place.endpoint, "", spec.path or ""
        else:
            endpoint = await asyncio.to_thread(self._endpoint, spec, runtime)
            program, seen = await self._found(spec, place)
        key_file = key_path(runtime) if "key_file" in command.placeholders else ""
        given = {
            "port": str(endpoint.port or ""),
            "socket": endpoint.unix or "",
            "model": seen or spec.model or "",
            "name": spec.name,
            "key_file": key_file,
            "context": str(spec.context) if isinstance(spec.context, int) else "",
            "parallel": str(spec.slots),
        }
        if isinstance(place, FixedServer):
            line = CommandLine(list(place.command))
        else:
            line = _line(spec, program, given, self._own(spec))
        keyed = bool(key_file or command.key_env)
        secret = self._token() if keyed else ""
        return LaunchPlan(
            model=spec.name,
            argv=tuple(line.argv),
            env=self._env(spec, secret, given),
            endpoint=endpoint,
            secret=secret,
            flags=(*line.flags, *self._env_flags(spec)),
            warnings=() if keyed or endpoint.unix else (OPEN_TO_ALL,),
            files=tuple(filter(None, [spec.path])),
            warm_path=command.ready_path,
            health_path=command.ready_path,
            health_status=command.ready_status,
            probe_path=command.probe_path or command.ready_path,
            probe_body=_probe(spec, given),
            not_found_hint=filled(command.not_found_hint or "", given),
            guarded=False,
            keyed=keyed,
            prove=command.probe_path is not None,
            key_file=key_file,
            discreet=DISCREET,
            out_of_memory=OUT_OF_MEMORY,
        )

    def _own(self, spec: ModelSpec) -> list[Flag]:
        """Options that an engine built on this one adds to `argv`."""
        return []

    def _endpoint(self, spec: ModelSpec, runtime: Path) -> Endpoint:
        """Where it shall listen. AccelError('model_failed'). Blocking."""
        if "socket" not in spec.command.placeholders:
            return Endpoint(port=self._port())
        endpoint = unix_endpoint(spec.name, runtime)
        if endpoint is None:
            fail(Cause.REFUSED, f"{runtime} is no place for a socket: its name is too long", "use {port} in argv")
        return endpoint

    async def _found(self, spec: ModelSpec, place: ContainerAccess | None) -> tuple[str, str]:
        """The program and the model's file, as they are called where it runs. AccelError('model_failed')."""
        wanted = spec.binary or spec.command.argv[0]
        if place is None:
            if spec.path and not await asyncio.to_thread(os.path.exists, spec.path):
                fail(Cause.NO_MODEL, f"no such file: {spec.path}", f"correct path ({spec.origin('path')})")
            return await asyncio.to_thread(find, wanted, self._environ, HINT), spec.path or ""
        files = [spec.path] if spec.path else []
        found = await place.look(spec, wanted, files)
        seen = found.files.get(spec.path or "", "")
        if files and not seen:
            fail(Cause.NO_MODEL, f"{spec.path} is not visible in {found.source}", "add its folder to mounts")
        return found.program, seen

    def _env(self, spec: ModelSpec, secret: str, given: Mapping[str, str]) -> dict[str, str]:
        key = {spec.command.key_env: secret} if spec.command.key_env else {}
        own = dict(_filled(spec, word, given).split("=", 1) for word in spec.command.environment)
        taken = {name: self._environ[name] for name in spec.command.inherit if name in self._environ}
        return {**inherited(self._environ), **taken, **own, **dict(spec.env), **key}

    def _env_flags(self, spec: ModelSpec) -> list[Flag]:
        found = device_flags(self._environ)
        for name, _ in spec.env:
            source = str(spec.origins.get(f"env.{name}") or spec.origin("env"))
            found.append(Flag(f"env {name}=…", source, "as written; values are not shown"))
        if spec.command.key_env:
            reason = "a key made for this start"
            found.append(Flag(f"env {spec.command.key_env}=…", str(spec.origin("command.key_env")), reason))
        return found

    async def forecast(self, spec: ModelSpec, devices: Sequence[Device], *, ask: bool) -> Forecast:
        """What is declared; else the size of its file, until it was measured."""
        size = await asyncio.to_thread(size_of, spec.path) if spec.path else 0
        declared = spec.memory is not None
        if spec.memory is not None:
            amount, source = spec.memory, f"declared: {spec.origin('memory')}"
        elif size:
            amount, source = int(size * ROOM), "guessed from the size of its file"
        else:
            amount, source = 0, "not known before it was measured; set memory = … to declare it"
        key = hashlib.sha256(repr((spec.command, spec.path, spec.model, spec.extra_args, size)).encode()).hexdigest()
        gpus = usable(devices) if spec.command.device == "gpu" else ()
        wanted = [gpu for gpu in gpus if gpu.id in (spec.gpus or ())]
        if chosen := (wanted or list(gpus))[:1]:
            need = MemoryRequirement({chosen[0].id: amount}, source, (chosen[0].id,), declared=declared)
        else:
            need = MemoryRequirement({RAM: amount}, source, declared=declared)
        return Forecast((need,), "" if declared else key)

    def suggest_smaller(self, spec: ModelSpec, room: Mapping[str, int]) -> str:
        """Nothing: its settings are not ours."""
        return ""

    def traits(self, spec: ModelSpec) -> Traits:
        command = spec.command
        paths, edits = dict(pair.split("=", 1) for pair in command.paths), dict[str, Variant]()
        if command.translation_fields:
            paths[TRANSLATIONS] = paths.get(TRANSCRIPTIONS, TRANSCRIPTIONS)
            edits[TRANSLATIONS] = _setting(command.translation_fields)
        return Traits(
            tasks=frozenset(command.api),
            wire_name=_served(spec),
            paths=paths,
            edits=edits,
            device=command.device if command.device == "cpu" else "",
            context=spec.context if isinstance(spec.context, int) else None,
        )


@cache
def _setting(fields: tuple[str, ...]) -> Variant:
    """What requests get, whatever the client has written."""
    pairs = (field.split("=", 1) for field in fields)
    return Variant("", set=tuple(((name,), json.dumps(value).encode()) for name, value in pairs))


def _line(spec: ModelSpec, program: str, given: Mapping[str, str], own: list[Flag]) -> CommandLine:
    line, source = CommandLine([program]), str(spec.origin("command.argv"))
    for word in spec.command.argv[1:]:
        text = _filled(spec, word, given)
        line.argv.append(text)
        line.flags.append(Flag(text, source, "as written" if text == word else f"{word} in argv"))
    for flag in own:
        line.argv += flag.text.split()
        line.flags.append(flag)
    for word in spec.extra_args:
        line.argv.append(word)
        line.flags.append(Flag(word, str(spec.origin("extra_args")), "as written in extra_args"))
    return line


def _filled(spec: ModelSpec, word: str, given: Mapping[str, str]) -> str:
    """AccelError('model_failed') for a placeholder without a value."""
    for name in placeholders(word):
        if not given[name]:
            fail(Cause.REFUSED, f"cannot start {spec.name}: {{{name}}} of its command has no value")
    return filled(word, given)


def _probe(spec: ModelSpec, given: Mapping[str, str]) -> bytes | None:
    """The body with values as they are written in strings of JSON."""
    body = spec.command.probe_body
    if body is None:
        return None
    return _filled(spec, body, {name: json.dumps(value)[1:-1] for name, value in given.items()}).encode()


def _served(spec: ModelSpec) -> str | None:
    name = spec.command.served_name
    return name and filled(name, {"name": spec.name, "model": spec.model or spec.path or ""})


def size_of(path: str, endings: tuple[str, ...] = ("",)) -> int:
    """Bytes; 0 for what cannot be read. Of a folder the files in it whose names end so. Blocking."""
    try:
        with os.scandir(path) as entries:
            return sum(entry.stat().st_size for entry in entries if entry.name.endswith(endings) and entry.is_file())
    except NotADirectoryError:
        return os.path.getsize(path)
    except OSError:
        return 0
