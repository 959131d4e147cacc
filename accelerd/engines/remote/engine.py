"""The engine `remote`: what is sent for a model of a server elsewhere, and what that model can do.

Nothing is started for it. Asks nobody: what a remote says of its models is given to it by whoever has asked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from accelerd.config.model import ModelSpec
from accelerd.config.remotes import Remote
from accelerd.devices.model import Device
from accelerd.engines.base import Dialect, Endpoint, Engine, Flag, LaunchPlan, Traits
from accelerd.engines.remote.state import USUAL, RemoteModel
from accelerd.memory.model import Forecast, MemoryRequirement

NOTHING: Final = MemoryRequirement({}, "a server elsewhere has it")
KIND: Final = "remote"  # of device

# What is known of a model of a remote, by the remote's name and the model's there; None: nothing.
Known = Callable[[str, str], RemoteModel | None]


class RemoteEngine(Engine):
    """One object for all models and remotes."""

    dialect = Dialect()

    def __init__(self, remotes: Mapping[str, Remote], known: Known = lambda remote, model: None) -> None:
        self._remotes = remotes
        self._known = known

    async def plan(self, spec: ModelSpec, runtime: Path, placed: MemoryRequirement | None = None) -> LaunchPlan:
        """Nothing is run."""
        remote = self._remotes[spec.remote or ""]
        parts = urlsplit(remote.url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        return LaunchPlan(
            model=spec.name,
            argv=(),
            env={},
            endpoint=Endpoint(host=parts.hostname or "", port=port),
            secret="",
            flags=self._flags(spec, remote),
            keyed=False,
        )

    def _flags(self, spec: ModelSpec, remote: Remote) -> tuple[Flag, ...]:
        flags = [
            Flag(remote.address("/v1/…"), f"remotes.{remote.name}", "the server that answers"),
            Flag(f"model {spec.model}", str(spec.origin("model")), "its name there"),
        ]
        if (source := remote.key_file or remote.credential) is not None:
            flags.append(Flag("key …", f"remotes.{remote.name}", f"from {source}; never shown"))
        if remote.proxy is not None:
            flags.append(Flag(f"proxy {remote.proxy}", f"remotes.{remote.name}", "all its requests go by it"))
        return tuple(flags)

    async def forecast(self, spec: ModelSpec, devices: Sequence[Device], *, ask: bool) -> Forecast:
        """No memory of this machine."""
        return Forecast((NOTHING,))

    def suggest_smaller(self, spec: ModelSpec, room: Mapping[str, int]) -> str:
        """Nothing: it takes no room."""
        return ""

    def traits(self, spec: ModelSpec) -> Traits:
        """What is declared; else what the remote has said of it; else what most servers can do."""
        known = self._known(spec.remote or "", spec.model or "")
        remote = self._remotes.get(spec.remote or "")
        asked = known.tasks if known is not None else frozenset()
        usual = USUAL[remote.api if remote is not None else "openai"]
        context = known.context if known is not None else None
        return Traits(
            tasks=frozenset(spec.capabilities) or asked or usual,
            wire_name=spec.model,
            device=KIND,
            context=spec.context if isinstance(spec.context, int) else context,
            size=known.size if known is not None else None,
        )
