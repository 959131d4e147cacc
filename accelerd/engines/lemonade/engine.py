"""The engine `lemonade`: turns a model of the configuration into a load request for a Lemonade Server.

Describes models from what servers have listed. Never starts a server; the home of the same name does.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from accelerd.base.errors import AccelError
from accelerd.base.exits import Cause
from accelerd.config.model import LemonadeSettings, ModelSpec
from accelerd.devices.model import Device
from accelerd.engines.base import Dialect, Endpoint, Engine, LaunchPlan, Tenancy, Traits, fail
from accelerd.engines.http import HttpError
from accelerd.engines.lemonade import model, request
from accelerd.engines.lemonade.catalogue import Catalogue
from accelerd.engines.lemonade.client import LemonadeClient, ServerAddress
from accelerd.engines.llama_server.dialect import DIALECT
from accelerd.engines.llama_server.environment import NO_BACKTRACE
from accelerd.engines.llama_server.output import NOTABLE, OUT_OF_MEMORY, TOO_LARGE
from accelerd.memory.model import Forecast, MemoryRequirement

log = logging.getLogger(__name__)

# Environment variables for the server and its backends: model directories, devices, proxies.
INHERITED = (
    "PATH", "HOME", "USER", "LOGNAME", "LANG", "LANGUAGE", "TZ", "TMPDIR", "XDG_RUNTIME_DIR", "XDG_CACHE_HOME",
    "LD_LIBRARY_PATH", "HF_HOME", "HF_HUB_CACHE", "HF_TOKEN", "HF_ENDPOINT", "http_proxy", "https_proxy", "no_proxy",
    "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR", "CUDA_VISIBLE_DEVICES",
    "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HSA_OVERRIDE_GFX_VERSION", "GGML_VK_VISIBLE_DEVICES",
    "MESA_VK_DEVICE_SELECT", "XILINX_XRT", "FLM_MODEL_PATH", "LEMONADE_CACHE_DIR", "LEMONADE_DEFAULTS_PATH",
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
    ) -> None:
        """`catalogue`: shared with the home."""
        self._settings = settings
        self._catalogue = catalogue
        self._environ = dict(os.environ if environ is None else environ)

    async def plan(self, spec: ModelSpec, runtime: Path, placed: MemoryRequirement | None = None) -> LaunchPlan:
        """The load request. The model's address is known after the load."""
        if not spec.model:
            fail(Cause.REFUSED, f'{spec.name}: set model = "…" to one of Lemonade\'s models')
        await self._ask()
        recipe = self._catalogue.recipe(spec)
        known = self._catalogue.of(spec.model)
        asked = request.build(spec, recipe, known.context)
        settings = self._settings
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
            warnings=asked.warnings,
            guarded=False,
            notable=NOTABLE if recipe == "llamacpp" else "",
            out_of_memory=OUT_OF_MEMORY if recipe == "llamacpp" else (),
            too_large=TOO_LARGE if recipe == "llamacpp" else (),
            tenancy=Tenancy(
                model=spec.model,
                load=asked.body,
                url=settings.url,
                key_file=settings.key_file,
                program=spec.binary or settings.binary,
                pin=spec.pin,
            ),
        )

    async def forecast(self, spec: ModelSpec, devices: Sequence[Device], *, ask: bool) -> Forecast:
        if ask and spec.memory is None:
            await self._ask()
        return model.forecast(spec, devices, self._catalogue, self._settings.url or "Lemonade Server")

    def suggest_smaller(self, spec: ModelSpec, room: Mapping[str, int]) -> str:
        """Nothing: Lemonade's models are whole or not there."""
        return ""

    def traits(self, spec: ModelSpec) -> Traits:
        return model.traits(spec, self._catalogue, own=self._settings.url is None)

    async def _ask(self) -> None:
        """Gets the list of the running server, if there is one. Never raises."""
        url = self._settings.url
        try:
            address = self._catalogue.address
            if url is not None:
                address = ServerAddress(url, await asyncio.to_thread(read_key, self._settings.key_file))
            if address is not None:
                self._catalogue.note(await LemonadeClient(address).models())
        except (HttpError, AccelError) as error:
            log.info("cannot get the models of the Lemonade Server: %s", error)


def read_key(key_file: str | None) -> str:
    """The first line of the file; "" without one. AccelError('model_failed'). Blocking."""
    if key_file is None:
        return ""
    try:
        return (Path(key_file).read_text().splitlines() or [""])[0].strip()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not a text file"
        fail(Cause.REFUSED, f"cannot read the key of the Lemonade Server from {key_file}: {why}")


def _shown(body: Mapping[str, object]) -> list[str]:
    """The request as options of Lemonade's client, for users."""
    return [f"--{name.replace('_', '-')}={value}" for name, value in body.items()
            if name not in ("model_name", "save_options")]  # fmt: skip
