"""The engine `flm`: plans the start of a FastFlowLM server for a model.

First checks with the program whether the NPU works and the model is installed, because a server stays up after its
model failed, and downloads a missing model. Starts no server, downloads nothing.
"""

from __future__ import annotations

import logging
import os
import resource
import time
from asyncio import to_thread
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from accelerd.base.errors import AccelError
from accelerd.base.exits import Cause
from accelerd.base.sizes import human_size
from accelerd.config.model import FlmSettings, ModelSpec
from accelerd.devices.files import text
from accelerd.devices.model import Device
from accelerd.engines.base import Dialect, Endpoint, Engine, Flag, LaunchPlan, Traits, fail
from accelerd.engines.endpoints import free_port
from accelerd.engines.flm import argv, catalogue, model, program, stack
from accelerd.engines.flm.catalogue import KNOWN, FlmModel
from accelerd.memory.model import Forecast, MemoryRequirement

log = logging.getLogger(__name__)

OPEN_TO_ALL: Final = "flm has no API key: while this model is loaded, every user of this machine can use it"
# Its own messages; it also prints request contents.
DISCREET: Final = r"(?:\x1b\[[0-9;]*m)*\[(?:ERROR|Error|WARNING|Warning|Linux)\]"
NOTABLE: Final = r"(?:\x1b\[[0-9;]*m)*\[(?:(?P<error>ERROR|Error)|WARNING|Warning)\] ?"
OUT_OF_MEMORY: Final = (
    r"(?i)std::bad_alloc",
    r"(?i)failed to allocate (?:bo|buffer)",
    r"(?i)mmap.*cannot allocate memory",
)


def lockable() -> int | None:
    """Bytes that child processes can lock; None: unlimited."""
    most = resource.getrlimit(resource.RLIMIT_MEMLOCK)[1]
    return None if most == resource.RLIM_INFINITY or os.geteuid() == 0 else most


class Flm(Engine):
    """Plans for FastFlowLM servers. One object for all models; it caches the program's answers."""

    dialect = Dialect(busy=frozenset({503}), masks_errors=True)

    def __init__(
        self,
        settings: FlmSettings,
        *,
        environ: Mapping[str, str] | None = None,
        port: Callable[[], int] = free_port,
        now: Callable[[], float] = time.monotonic,
        proc: Path = Path("/proc"),
        lockable: Callable[[], int | None] = lockable,
    ) -> None:
        """`now()`: monotonic seconds; `lockable()`: bytes of memory that can be locked, None: unlimited."""
        self._settings = settings
        self._environ = dict(os.environ if environ is None else environ)
        self._port = port
        self._proc = proc
        self._lockable = lockable
        self._program = program.FlmProgram(now)
        self._known: dict[str, FlmModel] = {}  # from the program's last list

    async def plan(self, spec: ModelSpec, runtime: Path, placed: MemoryRequirement | None = None) -> LaunchPlan:
        """A new plan with a free port. AccelError('model_failed') with advice."""
        argv.checked(spec.extra_args)
        path = await to_thread(program.find, spec.binary or self._settings.binary, self._environ)
        env = self._env(spec)
        warnings = [OPEN_TO_ALL, *await self._ready(spec, path, env)]
        known, doubt = await self._present(spec, path, env)
        warnings += doubt
        may, wants = self._lockable(), model.lockable_needed(spec, known)
        if may is not None and may < wants:
            limit = f"the memory lock limit is {human_size(may)}, but {known.tag} needs {human_size(wants)}"
            warnings.append(f"{limit}: {stack.MEMLOCK_FIX}")
        port = await to_thread(self._port)
        line = argv.build(spec, path, known.tag, port)
        probe_path, probe_body, probe_type = model.probe(spec, known.tag)
        return LaunchPlan(
            model=spec.name,
            argv=tuple(line.argv),
            env=env,
            endpoint=Endpoint(port=port),
            secret="",
            flags=(*line.flags, *self._env_flags(spec)),
            warnings=(*warnings, *line.warnings),
            warm_path="/api/version",
            health_path="/api/version",
            probe_path=probe_path,
            probe_body=probe_body,
            probe_type=probe_type,
            keyed=False,
            prove=True,
            discreet=DISCREET,
            notable=NOTABLE,
            out_of_memory=OUT_OF_MEMORY,
        )

    async def _ready(self, spec: ModelSpec, path: str, env: Mapping[str, str]) -> list[str]:
        """Returns warnings. AccelError if the program cannot use the NPU."""
        try:
            report = await self._program.validate(path, env)
        except program.FlmUnavailable as error:
            return [f"cannot check whether the NPU works: {error}"]
        wrong = stack.troubles(report, command_line=text(self._proc / "cmdline") or "", lockable=self._lockable())
        if wrong:
            said = "; ".join(f"{one.message}: {one.fix}" for one in wrong)
            fail(Cause.REFUSED, f"cannot use the NPU for {spec.name}: {said}")
        if report.get("ready") is not True and report.get("memlock_ok") is not False:
            return ["flm validate reports that the NPU is not ready, without a reason; run: flm validate"]
        return []

    async def _present(self, spec: ModelSpec, path: str, env: Mapping[str, str]) -> tuple[FlmModel, list[str]]:
        """The model in the program's list, and warnings. AccelError if it is not installed."""
        wanted = spec.model or ""
        try:
            models = self._known = await self._program.models(path, env)
        except program.FlmUnavailable as error:
            return self._guess(spec), [f"cannot check which models are installed: {error}"]
        tag = catalogue.find_tag(wanted, models)
        if tag is None:
            near = catalogue.similar_tags(wanted, models)
            hint = f"did you mean {' or '.join(near)}?" if near else "see: flm list"
            fail(Cause.NO_MODEL, catalogue.why_absent(wanted, models) or "", hint)
        missing = [one for one in model.parts(spec, tag).values() if one in models and not models[one].installed]
        if missing:
            self._program.forget()  # so that it can be used right after the download
            here = "is not installed" if len(missing) == 1 else "are not installed"
            command = " && ".join(" ".join(("flm pull", one, *argv.registry(spec.extra_args))) for one in missing)
            fail(Cause.NO_MODEL, f"{' and '.join(missing)} {here}", f"run: {command}")
        return models[tag], []

    def _guess(self, spec: ModelSpec) -> FlmModel:
        """The model, without running the program."""
        known = {**KNOWN, **self._known}
        tag = catalogue.tag_of(spec.model or "", known)
        return known.get(tag) or catalogue.of_name(tag)

    async def forecast(self, spec: ModelSpec, devices: Sequence[Device], *, ask: bool) -> Forecast:
        """Main memory and NPU contexts. Never raises. `ask`: the program may be run."""
        if ask:
            try:
                path = await to_thread(program.find, spec.binary or self._settings.binary, self._environ)
                self._known = await self._program.models(path, self._env(spec))
            except (AccelError, program.FlmUnavailable) as error:
                log.info("cannot get information about %s from flm: %s", spec.name, error)
        return Forecast((model.need(spec, self._guess(spec), devices),))

    def suggest_smaller(self, spec: ModelSpec, room: Mapping[str, int]) -> str:
        """A shorter context, where that would do."""
        known = self._guess(spec)
        sizes = model.sizes(spec, known)
        free = room.get("ram", 0) - sum(sizes.values()) + sizes.get("kv cache", 0)
        if spec.memory is not None or not sizes.get("kv cache") or free < known.cache * model.LEAST_CONTEXT:
            return ""
        tokens = 1 << (free // known.cache).bit_length() - 1
        return f"it would fit with context = {tokens}" if tokens >= 2048 else ""

    def traits(self, spec: ModelSpec) -> Traits:
        """From its settings and FastFlowLM's labels."""
        return model.traits(spec, self._guess(spec))

    def _env(self, spec: ModelSpec) -> dict[str, str]:
        return {**program.environment(self._environ), **dict(spec.env)}

    def _env_flags(self, spec: ModelSpec) -> list[Flag]:
        said = [Flag("env FLM_DISABLE_UPDATE_CHECK=1", "built-in", "do not contact the internet at each start")]
        return said + [
            Flag(f"env {name}=…", str(spec.origins.get(f"env.{name}") or spec.origin("env")), "as written")
            for name, _ in spec.env
        ]
