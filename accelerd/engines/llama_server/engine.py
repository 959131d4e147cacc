"""The llama-server engine: turns a model of the configuration into a plan to start it.

Owns the order of the checks (program, model, features, command line) and the choice of the endpoint. Starts nothing but
the program's own `--help`; never spawns, stops or asks a server.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import secrets
import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

from msgspec.structs import replace

from accelerd.base import names
from accelerd.base.errors import AccelError
from accelerd.base.exits import Cause
from accelerd.config.model import LlamaServerSettings, ModelSpec
from accelerd.devices.model import Device
from accelerd.engines.base import (
    ContainerAccess,
    ContainerLookup,
    Dialect,
    Endpoint,
    Engine,
    EngineBuild,
    FixedServer,
    LaunchPlan,
    ModelTuner,
    ProgramOutput,
    Task,
    Traits,
    TunedModel,
    fail,
    on_this_machine,
    untuned,
)
from accelerd.engines.llama_server import argv, backend, environment, files, gpus
from accelerd.engines.llama_server import in_container as inside
from accelerd.engines.llama_server.features import FeatureReader, Features
from accelerd.engines.llama_server.fit_params import FitAnswer, FitParams
from accelerd.engines.llama_server.forecast import Forecaster
from accelerd.engines.llama_server.shortage import OUT_OF_MEMORY, TOO_LARGE
from accelerd.memory.model import Forecast

log = logging.getLogger(__name__)

MAX_SOCKET_PATH: Final = 103  # bytes; sun_path has 108 with its NUL, some systems 104
PROBES: Final = {
    "generate": ("/v1/completions", b'{"prompt": " ", "max_tokens": 1}'),
    "embeddings": ("/v1/embeddings", b'{"input": " "}'),
    "rerank": ("/v1/rerank", b'{"query": " ", "documents": [" "]}'),
}
GENERATES: Final[frozenset[Task]] = frozenset(
    ("chat", "completions", "messages", "responses", "tools", "vision")
)  # what of these a model lacks its template or file tells the server, which says so


def free_port() -> int:
    """A TCP port on 127.0.0.1 that was free a moment ago; whoever listens there must still be proved to be ours."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def new_token() -> str:
    """256 random bits; letters and digits only, since the server reads a list separated by commas."""
    return secrets.token_hex(32)


class PlannedLaunch(NamedTuple):
    """What the last plan for a model has found out."""

    told: ModelSpec  # as the configuration has it
    settled: ModelSpec
    build: EngineBuild


class LlamaServer(Engine):
    """Plans for llama.cpp's server. One object for all models: it remembers what the programs it has seen can do."""

    dialect = Dialect(streams_notice_disconnect=True, closes_after_streams=True)

    def __init__(
        self,
        settings: LlamaServerSettings,
        *,
        environ: Mapping[str, str] | None = None,
        cache: Path | None = None,
        search: Sequence[Path] = (),
        port: Callable[[], int] = free_port,
        token: Callable[[], str] = new_token,
        which: files.Which = files.system_which,
        features: FeatureReader | None = None,
        places: ContainerLookup = on_this_machine,
        tuner: ModelTuner = untuned,
        devices: Callable[[], Iterable[Device]] = tuple,
        forecaster: Forecaster | None = None,
        fit: FitParams | None = None,
    ) -> None:
        """`cache`: directory for what `--help` said; `search`: directories looked into after PATH."""
        self._devices = devices
        self._places = places
        self._tuner = tuner
        self._settings = settings
        self._environ = dict(os.environ if environ is None else environ)
        self._search = tuple(search)
        self._port = port
        self._token = token
        self._which = which
        self._features = features or FeatureReader(cache)
        self._forecaster = forecaster or Forecaster()
        self._fit = fit or FitParams(cache, features=self._features)
        self._planned: dict[str, PlannedLaunch] = {}  # by model

    async def features(self, spec: ModelSpec) -> Features:
        """What the build on this machine that the model would use can do. Raises AccelError('model_failed')."""
        binary = await asyncio.to_thread(
            files.find_binary, spec.binary or self._settings.binary, self._environ, self._search, self._which
        )
        found = await self._features.read(binary, environment.for_help(self._environ, spec))
        return replace(found, binary=binary)  # as it was named: a symlink may be what tells versions apart

    async def plan(self, spec: ModelSpec, runtime: Path, slots: Sequence[str] = ()) -> LaunchPlan:
        """A fresh plan: own endpoint under `runtime` (or a free port) and own secret on every call.

        `slots`: PCI slots of those it shall use; none: the program decides.
        """
        place = await self._places(spec)
        if isinstance(place, FixedServer):
            return inside.fixed_plan(spec, place)
        await asyncio.to_thread(files.check_files, spec)
        features, tuned, build = await self._tuned(spec, place)
        self._planned[spec.name] = PlannedLaunch(spec, tuned.spec, build)
        spec = tuned.spec
        endpoint, warning = await asyncio.to_thread(self._endpoint, spec, features, runtime)
        named, doubt = await self._named(spec, place, features, slots)
        line = argv.build(spec, features, endpoint, tuned.advice, named)
        secret = self._token()
        env, env_flags = environment.for_server(self._environ, spec, secret, tuned.advice)
        probe_path, probe_body = PROBES["embeddings" if spec.embeddings else "rerank" if spec.rerank else "generate"]
        return LaunchPlan(
            model=spec.name,
            argv=tuple(line.argv),
            env=env,
            endpoint=endpoint,
            secret=secret,
            flags=(*line.flags, *env_flags),
            warnings=(*filter(None, (warning, doubt)), *tuned.warnings, *line.warnings),
            probe_path=probe_path,
            probe_body=probe_body,
            backend=build.backend,
            out_of_memory=OUT_OF_MEMORY,
            too_large=TOO_LARGE,
        )

    async def _named(
        self, spec: ModelSpec, place: ContainerAccess | None, features: Features, slots: Sequence[str]
    ) -> tuple[tuple[str, ...], str | None]:
        """What the program calls the GPUs in these slots, where it has a choice; a warning where that is not known."""
        if not slots or spec.gpu_layers == 0:
            return (), None
        found = gpus.names_of(await self._listing(spec, place, features), self._devices(), slots)
        if found is None:
            return (), f"cannot tell which device of {features.binary} is {', '.join(slots)}: the program chooses"
        return found, None

    async def _listing(self, spec: ModelSpec, place: ContainerAccess | None, features: Features) -> str:
        """What its program lists as devices."""
        if place is None:
            return await self._features.devices(features, environment.for_help(self._environ, spec))
        inside_it = await place.look(spec, self._program(spec), inside.files_of(spec))
        return await self._features.devices_inside(inside_it, features, partial(place.ask, spec))

    def _program(self, spec: ModelSpec) -> str:
        """What is set for all models is a program of this machine: inside, its name alone may mean something."""
        return spec.binary or os.path.basename(self._settings.binary)

    async def settled(self, spec: ModelSpec) -> tuple[TunedModel, EngineBuild]:
        """The model with all that images and rules add, and its program. Raises AccelError('model_failed')."""
        place = await self._places(spec)
        if isinstance(place, FixedServer):
            fail(Cause.REFUSED, f"cannot set anything of {spec.name}: {place.source} knows what it runs")
        await asyncio.to_thread(files.check_files, spec)
        _, tuned, build = await self._tuned(spec, place)
        return tuned, build

    async def _tuned(self, spec: ModelSpec, place: ContainerAccess | None) -> tuple[Features, TunedModel, EngineBuild]:
        """What its build can do, and the model as that build sees it, with what rules add."""
        weights = files.shards(spec.path) if spec.path else []
        features, seen, computes = await self._build_of(spec, place)
        build = EngineBuild(spec.engine, features.version, computes, frozenset(features.options))
        return features, await self._tuner(seen, build, weights), build

    async def _build_of(self, spec: ModelSpec, place: ContainerAccess | None) -> tuple[Features, ModelSpec, str]:
        """What its build can do, the model as that build sees it, and what computes."""
        if place is None:
            features = await self.features(spec)
            listed = await self._features.devices(features, environment.for_help(self._environ, spec))
            return (
                features,
                spec,
                backend.of_listing(listed) or await asyncio.to_thread(backend.beside, features.binary),
            )
        found = await place.look(spec, self._program(spec), inside.files_of(spec))

        async def ask(*argv: str) -> ProgramOutput:
            return await place.ask(spec, *argv)

        features = await self._features.read_inside(found, ask)
        computes = backend.of_image(found.source)
        if computes in ("", "vulkan"):  # Vulkan's drivers differ
            computes = backend.of_listing(await self._features.devices_inside(found, features, ask)) or computes
        return features, inside.as_seen_inside(spec, found), computes

    async def forecast(self, spec: ModelSpec, devices: Sequence[Device], *, ask: bool) -> Forecast:
        """What the model will need. Never raises. `ask`: its programs may be asked, which can take seconds.

        What a plan has found out of the program is known without asking.
        """
        settled, build, answer = spec, None, None
        planned = self._planned.get(spec.name)
        if planned is not None and planned.told == spec:
            settled, build = planned.settled, planned.build
        if ask and spec.memory is None and spec.path:
            try:
                settled, build, answer = await self._asked(spec)
            except AccelError as error:
                log.info("the program of %s cannot be asked: %s", spec.name, error.message)
        return await asyncio.to_thread(self._forecaster.forecast, spec, settled, build, devices, answer)

    async def _asked(self, spec: ModelSpec) -> tuple[ModelSpec, EngineBuild, FitAnswer | None]:
        """The settled model, its program, and what llama-fit-params says. Raises AccelError('model_failed')."""
        tuned, build = await self.settled(spec)
        place = await self._places(spec)
        weights, answer = files.shards(spec.path or ""), None
        if place is None:
            features, env = await self.features(spec), environment.for_help(self._environ, spec)
            listed = await self._features.devices(features, env)
            answer = await self._fit.ask(tuned.spec, features, weights, env, listed=listed)
        elif not isinstance(place, FixedServer):
            found = await place.look(spec, self._program(spec), inside.files_of(spec))
            features = await self._features.read_inside(found, partial(place.ask, spec))
            answer = await self._fit.ask_inside(spec, tuned.spec, features, weights, found, place)
        if answer is not None and answer.why_not:
            log.info("llama-fit-params says nothing of %s: %s", spec.name, answer.why_not)
        return tuned.spec, build, answer

    def suggest_smaller(self, spec: ModelSpec, room: Mapping[str, int]) -> str:
        """What of the model would fit into so much of each pool: one clause, or nothing."""
        return self._forecaster.suggest_smaller(spec, room)

    def traits(self, spec: ModelSpec) -> Traits:
        """By its settings: of what is in the model's file it serves all."""
        tasks: frozenset[Task] = GENERATES
        if spec.home == "container":  # which knows by itself what it runs: its server says what it cannot do
            return Traits(GENERATES | {"embeddings", "rerank"})
        if spec.embeddings or spec.rerank:
            tasks = frozenset(("embeddings",) if spec.embeddings else ("rerank",))
        why_not = "" if spec.embeddings else f"{spec.name} is not started for that: set embeddings = true for it"
        return Traits(tasks, {"embeddings": why_not} if why_not else {}, device="cpu" if spec.gpu_layers == 0 else "")

    def _endpoint(self, spec: ModelSpec, features: Features, runtime: Path) -> tuple[Endpoint, str | None]:
        """Where the server shall listen; a warning where it cannot be what the settings say."""
        wanted = self._settings.transport
        if wanted == "tcp":
            return Endpoint(port=self._port()), None
        path = self._socket_path(spec.name, runtime)
        why = None
        host = features.find("--host")
        if host is None or not re.search(r"\bunix\b", host.text, re.IGNORECASE):
            why = "this build knows no unix sockets"
        elif path is None or "," in path:  # --host takes a list separated by commas
            why = f"{runtime} is no place for a socket that --host can name"
        if why or path is None:
            return Endpoint(port=self._port()), f"transport = unix: {why}; TCP is used" if wanted == "unix" else None
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        return Endpoint(unix=path), None

    @staticmethod
    def _socket_path(model: str, runtime: Path) -> str | None:
        """A name never used before: a left-over file would stop the server. None: the directory's name is too long."""
        folder = os.fspath(runtime / names.INSTANCE_DIR)
        unique = f"-{secrets.token_hex(4)}.sock"
        room = MAX_SOCKET_PATH - len(os.fsencode(folder)) - 1 - len(unique)
        if room < 1:
            return None
        readable = re.sub(r"[^A-Za-z0-9.-]", "-", model)[: min(room, 32)]
        return f"{folder}/{readable}{unique}"
