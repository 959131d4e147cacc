"""The llama-server engine: turns a model of the configuration into a plan to start it.

Owns the order of the checks (program, model, features, command line) and the choice of the endpoint. Starts nothing but
the program's own `--help`; never spawns, stops or asks a server.
"""

from __future__ import annotations

import asyncio
import logging
import operator
import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct, field, structs

from accelerd.base.decoding import from_json
from accelerd.base.errors import AccelError
from accelerd.base.exits import Cause
from accelerd.config.model import LlamaServerSettings, ModelSpec
from accelerd.devices.model import Device
from accelerd.engines.base import (
    ContainerAccess,
    ContainerLookup,
    ContainerProgram,
    Endpoint,
    Engine,
    EngineBuild,
    FixedServer,
    Flag,
    LaunchPlan,
    ModelTuner,
    Task,
    Traits,
    TunedModel,
    fail,
    on_this_machine,
    untuned,
)
from accelerd.engines.endpoints import free_port, key_path, new_token, unix_endpoint
from accelerd.engines.http import HttpError, has_path, request
from accelerd.engines.llama_server import argv, environment, files, fit_params, output, placement, probe
from accelerd.engines.llama_server.dialect import DIALECT
from accelerd.engines.llama_server.features import FeatureReader, Features
from accelerd.engines.llama_server.forecast import Forecaster
from accelerd.engines.program import Program, find, local
from accelerd.estimate.model_kind import Identified, Kind, Modality
from accelerd.estimate.tensors import parts
from accelerd.memory.model import Forecast, MemoryRequirement

log = logging.getLogger(__name__)

HELP_TIMEOUT: Final = 20.0  # seconds; a build with GPU backends wakes its drivers first
HINT: Final = "install llama.cpp, or set `binary` under [engines.llama-server] to the program's path"
PROPS_BYTES: Final = 1 << 20  # it has the chat template
# That builds differ in: they are asked whether they have them.
PATHS: Final[Mapping[Task, str]] = {
    "messages": "/v1/messages", "responses": "/v1/responses", "transcription": "/v1/audio/transcriptions"
}  # fmt: skip
PROBES: Final = {
    "generate": ("/v1/completions", b'{"prompt": " ", "max_tokens": 1}'),
    "embeddings": ("/v1/embeddings", b'{"input": " "}'),
    "rerank": ("/v1/rerank", b'{"query": " ", "documents": [" "]}'),
}
GENERATES: Final[frozenset[Task]] = frozenset(
    ("chat", "completions", "messages", "responses", "tools", "vision", "audio")
)  # what of these a model lacks its template or file tells the server, which says so


class Settled(Struct, frozen=True):
    """A model with the program that runs it, and with all that images and tuning rules add."""

    files: files.SeenFiles
    tuned: TunedModel  # with the names that hold where the program is
    program: Program
    features: Features
    build: EngineBuild
    place: ContainerAccess | None  # None: on this machine
    found: ContainerProgram | None


class Served(Struct, frozen=True):
    """What a running server has said of its model."""

    spec: ModelSpec
    context: int  # tokens of one request; 0: not known
    modalities: tuple[str, ...]  # "vision", "audio"
    absent: frozenset[Task]  # of PATHS


class GenerationSettings(Struct):
    """Of GET /props."""

    n_ctx: int = 0  # tokens of one request


class Properties(Struct):
    """The answer to GET /props."""

    default_generation_settings: GenerationSettings = field(default_factory=GenerationSettings)
    modalities: dict[str, bool] = field(default_factory=dict)


class LlamaServer(Engine):
    """Plans for llama.cpp's server. One object for all models: it remembers what the programs it has seen can do."""

    dialect = DIALECT

    def __init__(
        self,
        settings: LlamaServerSettings,
        *,
        environ: Mapping[str, str] | None = None,
        cache: Path | None = None,
        search: Sequence[Path] = (),
        port: Callable[[], int] = free_port,
        token: Callable[[], str] = new_token,
        places: ContainerLookup = on_this_machine,
        tuner: ModelTuner = untuned,
        devices: Callable[[], Iterable[Device]] = tuple,
        limit: int | None = None,
    ) -> None:
        """`cache`: directory for what `--help` said; `search`: looked into after PATH; `limit`: bytes of all models"""
        self._devices = devices
        self._places = places
        self._tuner = tuner
        self._settings = settings
        self._environ = dict(os.environ if environ is None else environ)
        self._search = tuple(search)
        self._port = port
        self._token = token
        self._features = FeatureReader(cache)
        self._forecaster = Forecaster(limit=limit)
        self._fit = fit_params.FitParams(cache, self._features)
        self._files = files.FileReader(self._environ, self._forecaster.reader)
        self._settled: dict[str, Settled] = {}  # by model, of its last plan
        self._seen: dict[str, files.SeenFiles] = {}  # by model
        self._traits: dict[str, tuple[tuple[object, ...], Traits]] = {}  # by model: of what, and what
        self._served: dict[str, Served] = {}  # by model
        self._fixed: dict[str, FixedServer] = {}  # by model, as it was seen last
        self._absent: dict[tuple[str | int, ...], frozenset[Task]] = {}  # by a program's identity

    async def features(self, spec: ModelSpec) -> Features:
        """What the build on this machine that the model would use can do. Raises AccelError('model_failed')."""
        return await self._features.read(await asyncio.to_thread(self._local, spec))

    def _local(self, spec: ModelSpec) -> Program:
        path = find(spec.binary or self._settings.binary, self._environ, HINT, self._search)
        env = environment.for_help(self._environ, spec)
        return local(path, env, HELP_TIMEOUT, environment.DRIVER_VARIABLES)

    async def plan(self, spec: ModelSpec, runtime: Path, placed: MemoryRequirement | None = None) -> LaunchPlan:
        """A fresh plan: own endpoint under `runtime` (or a free port) and own secret on every call.

        `placed`: the GPUs that it shall use (none: the program decides), and the memory for its prompt cache.
        """
        if isinstance(fixed := await self._places(spec), FixedServer):
            self._fixed[spec.name] = fixed
            return _fixed_plan(spec, fixed)
        settled = self._settled[spec.name] = await self.settle(spec)
        spec, features, tuned = settled.tuned.spec, settled.features, settled.tuned
        if placed is not None and placed.context is not None and settled.files.spec.context == "auto":
            spec = replace(spec, context=placed.context)
        trained = settled.files.model.context
        beyond = (
            f"context = {spec.context}: {spec.name} was trained for {trained}, and llama-server may allow no more"
            if spec.tokens and 0 < trained < spec.tokens
            else None
        )
        endpoint, warning = await asyncio.to_thread(self._endpoint, spec, features, runtime)
        named, doubt = await self._named(settled, placed.devices if placed is not None else ())
        called = output.device_names(await self._listed(settled), self._devices())
        needed, spare = argv.prompt_cache(spec, settled.build.options)
        granted = needed or (spare if placed is None else min(placed.cache, spare))
        key_file = key_path(runtime)
        line = argv.build(spec, features, endpoint, tuned.advice, named, granted, key_file,
                          self._forecaster.checkpoints(settled.files.spec), called)  # fmt: skip
        secret = self._token()
        env, env_flags = environment.for_server(self._environ, spec, "" if line.key_file else secret, tuned.advice)
        probe_path, probe_body = PROBES["embeddings" if spec.embeddings else "rerank" if spec.rerank else "generate"]
        return LaunchPlan(
            model=spec.name,
            argv=tuple(line.argv),
            env=env,
            endpoint=endpoint,
            secret=secret,
            flags=(*line.flags, *env_flags),
            files=tuple(files.files_of(settled.files.spec)),
            warnings=(*filter(None, (warning, doubt, beyond)), *tuned.warnings, *line.warnings),
            probe_path=probe_path,
            probe_body=probe_body,
            key_file=line.key_file,
            guard=("/tokenize", b'{"content": ""}'),
            backend=settled.build.backend,
            prompt_cache=granted,
            context=spec.tokens if settled.files.spec.context == "auto" else None,
            notable=output.NOTABLE,
            out_of_memory=output.OUT_OF_MEMORY,
            too_large=output.TOO_LARGE,
        )

    async def _named(self, settled: Settled, slots: Sequence[str]) -> tuple[tuple[str, ...], str | None]:
        """What the program calls the GPUs in these slots, where it has a choice; a warning where that is not known."""
        if not slots or settled.tuned.spec.gpu_layers == 0:
            return (), None
        program = settled.program
        found = output.names_of(await self._features.devices(program, settled.features), self._devices(), slots)
        if found is None:
            return (), f"cannot tell which device of {program.path} is {', '.join(slots)}: the program chooses"
        return found, None

    async def _listed(self, settled: Settled | None) -> str:
        """What `--list-devices` says, where a setting may name a GPU."""
        if settled is None or not placement.names_gpus(settled.tuned.spec):
            return ""
        return await self._features.devices(settled.program, settled.features)

    async def settle(self, spec: ModelSpec) -> Settled:
        """The model with all that images and rules add, and its program. Raises AccelError('model_failed')."""
        place = await self._places(spec)
        if isinstance(place, FixedServer):
            fail(Cause.REFUSED, f"cannot set anything of {spec.name}: {place.source} knows what it runs")
        own = self._seen[spec.name] = await asyncio.to_thread(self._files.check, spec)
        spec = own.spec
        program, features, build, found = await self._program(spec, place)
        seen = files.as_seen_inside(spec, found) if found is not None else spec
        tuned = await self._tuner(seen, build, parts(spec.path) if spec.path else [])
        if spec.context == "auto":
            context = await self._context(own, tuned.spec, build)
            tuned = structs.replace(tuned, spec=replace(tuned.spec, context=context))
        return Settled(own, tuned, program, features, build, place, found)

    async def _program(
        self, spec: ModelSpec, place: ContainerAccess | None
    ) -> tuple[Program, Features, EngineBuild, ContainerProgram | None]:
        """The model's program, asked what it can do and what computes in it. AccelError('model_failed')."""
        found, backend = None, ""
        if place is None:
            program = await asyncio.to_thread(self._local, spec)
        else:
            # What is set for all models is a program of this machine: inside, its name alone may mean something.
            name = spec.binary or os.path.basename(self._settings.binary)
            found = await place.look(spec, name, files.files_of(spec))
            program = Program(found.program, (found.build,), partial(place.ask, spec, found.program))
            backend = output.backend_of_image(found.source)
        features = await self._features.read(program)
        if backend in ("", "vulkan"):  # Vulkan's drivers differ
            backend = output.backend_listed(await self._features.devices(program, features)) or backend
        if place is None and not backend:
            backend = await asyncio.to_thread(output.backend_beside, program.path)
        image = found.source.removeprefix("image ") if found is not None else ""
        build = EngineBuild(spec.engine, features.version, backend, frozenset(features.options), image, program.path)
        return program, features, build, found

    async def build(self, spec: ModelSpec) -> EngineBuild:
        place = await self._places(spec)
        if isinstance(place, FixedServer):
            fail(Cause.REFUSED, f"cannot ask the program of {spec.name}: {place.source} knows what it runs")
        _, _, build, _ = await self._program(spec, place)
        return build

    async def _context(self, own: files.SeenFiles, tuned: ModelSpec, build: EngineBuild) -> int | None:
        """The context that a model without one of its own gets where there is room."""
        known = await asyncio.to_thread(self._forecaster.forecast, own.spec, tuned, build, tuple(self._devices()))
        context = known.options[0].context or own.spec.tokens
        return min(context, own.model.context) if context and own.model.context else context

    async def forecast(self, spec: ModelSpec, devices: Sequence[Device], *, ask: bool) -> Forecast:
        """What the model will need. Never raises. `ask`: its programs may be asked, which can take seconds.

        What a plan has found out of the program is known without asking.
        """
        if spec.home == "container":
            return await self._forecast_fixed(spec, devices, ask=ask)
        own = self._seen[spec.name] = await asyncio.to_thread(self._files.look, spec)
        settled, answer = self._settled.get(spec.name), None
        if settled is not None and settled.files != own:
            settled = None
        if ask and spec.memory is None and own.spec.path:
            try:
                settled = await self.settle(spec)
                answer = await self._ask_tool(settled)
            except AccelError as error:
                log.info("the program of %s cannot be asked: %s", spec.name, error.message)
        seen, build = (settled.tuned.spec, settled.build) if settled is not None else (own.spec, None)
        called = output.device_names(await self._listed(settled), devices)
        found = await asyncio.to_thread(self._forecaster.forecast, own.spec, seen, build, devices, answer, called)
        askable = spec.memory is None and bool(own.spec.path) and not spec.contained
        return structs.replace(found, provisional=askable and not ask and not found.key)

    async def _forecast_fixed(self, spec: ModelSpec, devices: Sequence[Device], *, ask: bool) -> Forecast:
        """Of a container that is there: its ports are asked of its engine."""
        if ask:
            try:
                if isinstance(there := await self._places(spec), FixedServer):
                    self._fixed[spec.name] = there
            except AccelError as error:
                log.info("the ports of %s are not known: %s", spec.name, error.message)
        known = self._fixed.get(spec.name)
        found = await asyncio.to_thread(self._forecaster.forecast, spec, spec, None, devices)
        return structs.replace(found, ports=known.ports if known is not None else ())

    async def _ask_tool(self, settled: Settled) -> fit_params.FitAnswer | None:
        """What llama-fit-params says; None: there is none."""
        spec, program = settled.files.spec, settled.program
        weights, listed = parts(spec.path or ""), ""
        if settled.place is None or settled.found is None:
            env = environment.for_help(self._environ, spec)
            tool = await asyncio.to_thread(fit_params.beside, program.path, env)
            listed = await self._features.devices(program, settled.features)
        else:
            tool = fit_params.inside(spec, settled.found, settled.place, weights)
        if tool is None:
            return None
        answer = await self._fit.ask(tool, settled.tuned.spec, settled.features, weights, listed)
        if answer.why_not:
            log.debug("llama-fit-params says nothing of %s: %s", spec.name, answer.why_not)
        return answer

    def suggest_smaller(self, spec: ModelSpec, room: Mapping[str, int]) -> str:
        """What of the model would fit into so much of each pool: one clause, or nothing."""
        return self._forecaster.suggest_smaller(spec, room)

    def traits(self, spec: ModelSpec) -> Traits:
        """By its settings and what its files and its server say. Made once for the same: routes ask at each request."""
        name = spec.name
        basis = spec, self._seen.get(name), self._served.get(name), self._forecaster.known(name)
        made = self._traits.get(name)
        if made is None or any(map(operator.is_not, made[0], basis)):
            made = self._traits[name] = basis, self._traits_of(spec)
        return made[1]

    def _traits_of(self, spec: ModelSpec) -> Traits:
        device = "cpu" if spec.gpu_layers == 0 else ""
        if spec.home == "container":  # which knows by itself what it runs: its server says what it cannot do
            return Traits(GENERATES | {"embeddings", "rerank", "transcription", "llama-server"}, device=device)
        own, served = self._seen.get(spec.name), self._served.get(spec.name)
        if own is None or (own.told is not spec and own.told != spec):
            own = files.SeenFiles(spec, spec, Identified(Kind.CHAT))
        context = self._forecaster.context(own.spec) or own.model.context or None
        trained = own.model.context or None
        if trained and context:
            context = min(context, trained)
        sees: Collection[str] = own.projector.modalities if own.projector else (Modality.VISION,) if spec.mmproj else ()
        absent: frozenset[Task] = frozenset()
        if served is not None and (served.spec is spec or served.spec == spec):
            context, sees, absent = served.context or context, served.modalities, served.absent
        if own.spec.embeddings or own.spec.rerank:
            task: Task = "embeddings" if own.spec.embeddings else "rerank"
            why = f"{spec.name} is started for {'embeddings' if own.spec.embeddings else 'reranking'} only"
            others = (GENERATES | {"embeddings", "rerank", "transcription"}) - {task}
            return Traits(
                frozenset((task, "llama-server")),
                dict.fromkeys(others, why),
                device=device,
                context=context,
                trained=trained,
                meta=files.meta_of(own.model, context),
            )
        why_not: dict[str, str] = {
            one: f"the llama-server of {spec.name} has no {PATHS[one]}: update llama.cpp" for one in absent
        }
        why_not["embeddings"] = (
            f"{spec.name} is started to generate text: add an embedding model (accelctl add), or set embeddings = true "
            "for it, and it generates none"
        )
        why_not["files"] = "llama-server takes text, images and audio: send what the file says as text"
        belongs = "set mmproj to the one that belongs to the model"
        if Modality.VISION not in sees:
            why_not["vision"] = f"{spec.name} has no projector for images: {belongs}"
        if Modality.AUDIO not in sees:
            why_not["transcription"] = why_not["audio"] = f"{spec.name} has no projector for audio: {belongs}"
        tasks = frozenset(task for task in (*GENERATES, *PATHS, "llama-server") if task not in why_not)
        meta = files.meta_of(own.model, context)
        return Traits(tasks, why_not, device=device, context=context, trained=trained, meta=meta)

    async def probe(self, plan: LaunchPlan, *, thorough: bool) -> LaunchPlan | None:
        if plan.probe_path != PROBES["generate"][0]:
            return plan  # embedding and reranking keep nothing
        return await probe.harmless(plan, thorough=thorough)

    async def loaded(self, spec: ModelSpec, plan: LaunchPlan) -> None:
        try:
            status, data = await request(plan.endpoint, "/props", within=2.0, bearer=plan.secret, most=PROPS_BYTES)
            said = from_json(data, Properties) if status == 200 else Properties()
        except (HttpError, msgspec.MsgspecError) as error:
            log.debug("%s does not say what it serves: %s", spec.name, error)
            return
        context = said.default_generation_settings.n_ctx
        if isinstance(spec.context, int) and 0 < context < spec.context:
            text = "%s serves %d tokens a request, not %d: the model was trained for no more"
            log.warning(text, spec.name, context, spec.context)
        if status == 200:
            sees = tuple(name for name, yes in said.modalities.items() if yes)
            self._served[spec.name] = Served(spec, context, sees, await self._lacks(spec, plan))

    async def _lacks(self, spec: ModelSpec, plan: LaunchPlan) -> frozenset[Task]:
        """Which of PATHS the program does not have. It is asked once; one of an earlier daemon is not known."""
        settled = self._settled.get(spec.name)
        if settled is None:
            return frozenset()
        program = settled.program.identity
        if program not in self._absent:
            has = [await has_path(plan.endpoint, path, plan.secret) for path in PATHS.values()]
            self._absent[program] = frozenset(task for task, there in zip(PATHS, has, strict=True) if not there)
        return self._absent[program]

    def _endpoint(self, spec: ModelSpec, features: Features, runtime: Path) -> tuple[Endpoint, str | None]:
        """Where the server shall listen; a warning where it cannot be what the settings say."""
        wanted = self._settings.transport
        if wanted == "tcp":
            return Endpoint(port=self._port()), None
        endpoint, why = unix_endpoint(spec.name, runtime), None
        host = features.find("--host")
        if host is None or not re.search(r"\bunix\b", host.text, re.IGNORECASE):
            why = "this build knows no unix sockets"
        elif endpoint is None or "," in (endpoint.unix or ""):  # --host takes a list separated by commas
            why = f"{runtime} is no place for a socket that --host can name"
        if why or endpoint is None:
            return Endpoint(port=self._port()), f"transport = unix: {why}; TCP is used" if wanted == "unix" else None
        return endpoint, None


def _fixed_plan(spec: ModelSpec, there: FixedServer) -> LaunchPlan:
    """For a container that knows what it runs. Its key, where it wants one, is LLAMA_API_KEY of the model's env."""
    reason = "the container knows what it runs: flags and environment are those it was made with"
    return LaunchPlan(
        model=spec.name,
        argv=there.command,
        env={},
        endpoint=there.endpoint,
        secret=dict(spec.env).get(environment.KEY_VARIABLE, ""),
        flags=(Flag(" ".join(there.command), there.source, reason),),
        guarded=False,
        notable=output.NOTABLE,
        out_of_memory=output.OUT_OF_MEMORY,
        too_large=output.TOO_LARGE,
    )
