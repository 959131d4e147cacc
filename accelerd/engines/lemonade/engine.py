"""The engine `lemonade`: turns a model of the configuration into a load request for a Lemonade Server.

Describes models from what servers have listed. Never starts a server; the home of the same name does.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path

from accelerd.base.errors import AccelError
from accelerd.base.exits import Cause
from accelerd.config import key_file
from accelerd.config.model import LemonadeSettings, ModelSpec
from accelerd.devices.model import Device
from accelerd.engines.base import Dialect, Endpoint, Engine, LaunchPlan, OwnedServer, Tenancy, Traits, fail
from accelerd.engines.http import HttpError
from accelerd.engines.lemonade import model, program, request
from accelerd.engines.lemonade.catalogue import Catalogue
from accelerd.engines.lemonade.client import LemonadeClient, ServerAddress
from accelerd.engines.llama_server.dialect import DIALECT
from accelerd.engines.llama_server.environment import NO_BACKTRACE
from accelerd.engines.llama_server.features import Features
from accelerd.engines.llama_server.output import NOTABLE, OUT_OF_MEMORY, TOO_LARGE
from accelerd.memory.model import Forecast, MemoryRequirement

log = logging.getLogger(__name__)

# Environment variables for the server and its backends: model directories, devices, proxies.
INHERITED = (
    "PATH", "HOME", "USER", "LOGNAME", "LANG", "LANGUAGE", "TZ", "TMPDIR", "XDG_RUNTIME_DIR", "XDG_CACHE_HOME",
    "XDG_CONFIG_HOME",
    "LD_LIBRARY_PATH", "HF_HOME", "HF_HUB_CACHE", "HF_TOKEN", "HF_ENDPOINT", "http_proxy", "https_proxy", "no_proxy",
    "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR", "CUDA_VISIBLE_DEVICES",
    "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HSA_OVERRIDE_GFX_VERSION", "GGML_VK_VISIBLE_DEVICES",
    "MESA_VK_DEVICE_SELECT", "XILINX_XRT", "FLM_MODEL_PATH", "LEMONADE_CACHE_DIR", "LEMONADE_DEFAULTS_PATH",
    "LEMONADE_EXTRA_MODELS_DIR",
)  # fmt: skip


class Lemonade(Engine):
    """Plans for models in a Lemonade Server. One object for all models."""

    dialect = Dialect(
        streams_notice_disconnect=True,
        busy=frozenset((503,)),
        masks_errors=True,
        too_long=DIALECT.too_long,  # it passes on what its llama-server says
        choice=DIALECT.choice,
    )

    def __init__(
        self,
        settings: LemonadeSettings,
        catalogue: Catalogue,
        *,
        environ: Mapping[str, str] | None = None,
        llama: Callable[[], Awaitable[Features]] | None = None,
        devices: Callable[[], Sequence[Device] | None] = lambda: None,
    ) -> None:
        """`catalogue`: shared with the home; `llama()`: accelerd's own llama-server. AccelError without one."""
        self._settings = settings
        self._llama = llama
        self._devices = devices
        self._catalogue = catalogue
        self._environ = dict(os.environ if environ is None else environ)

    async def plan(self, spec: ModelSpec, runtime: Path, placed: MemoryRequirement | None = None) -> LaunchPlan:
        """The load request. The model's address is known after the load."""
        if not spec.model:
            fail(Cause.REFUSED, f'{spec.name}: set model = "…" to one of Lemonade\'s models')
        await self._ask()
        recipe = self._catalogue.recipe(spec)
        known = self._catalogue.of(spec.model)
        settings, own = self._settings, OwnedServer()
        server, llama = self._catalogue.release, None
        warnings: list[str] = []
        if settings.url is None:
            server = (await program.find(spec.binary or settings.binary, self._environ)).version
            llama, warnings = await self._llama_server(recipe, server)
            path = llama.binary if llama is not None else ""
            own = OwnedServer(spec.binary or settings.binary, path, settings.download_backends)
        asked = request.build(spec, recipe, known.context, server, llama)
        return LaunchPlan(
            model=spec.name,
            argv=("lemonade", "load", spec.model, *_shown(asked.body)),
            env={
                NO_BACKTRACE: "1",  # for llama.cpp's backends
                **{n: value for n, value in self._environ.items() if n in INHERITED or n.startswith("LC_")},
            },
            endpoint=Endpoint(),
            secret="",
            flags=asked.flags,
            warnings=(*warnings, *asked.warnings),
            guarded=False,
            notable=NOTABLE if recipe == "llamacpp" else "",
            out_of_memory=OUT_OF_MEMORY if recipe == "llamacpp" else (),
            too_large=TOO_LARGE if recipe == "llamacpp" else (),
            tenancy=Tenancy(
                model=spec.model,
                load=asked.body,
                url=settings.url,
                key_file=settings.key_file,
                own=own,
                pin=spec.pin,
            ),
        )

    async def _llama_server(self, recipe: str, server: tuple[int, ...]) -> tuple[Features | None, list[str]]:
        """The one that the server's models of llama.cpp run with, and warnings; None: the server has its own."""
        if self._llama is None:
            return None, []
        try:
            found = await self._llama()
        except AccelError as error:
            doubt = error.problem
        else:
            integrated = any(one.kind == "gpu" and one.apu is not False for one in self._devices() or ())
            if not (server and server < request.LOAD_MODE_SINCE and integrated) or found.find("--no-mmap"):
                return found, []
            # It would pass that option on machines with an integrated GPU, and no model would load.
            needed = ".".join(map(str, request.LOAD_MODE_SINCE))
            doubt = f"Lemonade before {needed} cannot run {found.binary}, which has no option --no-mmap"
        doubt += "; Lemonade runs this model with a llama-server that it has itself, if any"
        return None, [doubt] if recipe == "llamacpp" else []

    async def forecast(self, spec: ModelSpec, devices: Sequence[Device], *, ask: bool) -> Forecast:
        if ask and spec.memory is None:
            await self._ask()
        return model.forecast(spec, devices, self._catalogue, self._settings.url)

    def suggest_smaller(self, spec: ModelSpec, room: Mapping[str, int]) -> str:
        """Nothing: Lemonade's models are whole or not there."""
        return ""

    def traits(self, spec: ModelSpec) -> Traits:
        return model.traits(spec, self._catalogue, own=self._settings.url is None, devices=self._devices())

    async def _ask(self) -> None:
        """Gets the list of the running server, if there is one. Never raises."""
        url = self._settings.url
        try:
            address = self._catalogue.address
            if url is not None:
                address = ServerAddress(url, await asyncio.to_thread(read_key, self._settings.key_file))
            if address is not None:
                client = LemonadeClient(address)
                self._catalogue.note(await client.models())
                self._catalogue.release = (await client.health(within=10.0)).release
        except (HttpError, AccelError) as error:
            log.info("cannot get the models of the Lemonade Server: %s", error)


def read_key(path: str | None) -> str:
    """The file's first key; "" without a file. AccelError('model_failed'). Blocking."""
    if path is None:
        return ""
    key, trouble = key_file.to_send(path)
    if trouble:
        fail(Cause.REFUSED, f"cannot read the key of the Lemonade Server (engines.lemonade.key_file): {trouble}")
    return key


def _shown(body: Mapping[str, object]) -> list[str]:
    """The request as options of Lemonade's client, for users."""
    return [f"--{name.replace('_', '-')}={value}" for name, value in body.items()
            if name not in ("model_name", "save_options")]  # fmt: skip
