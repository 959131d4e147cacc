"""All remotes: their clients, and what is known of their models.

A remote is asked what it has beside the first requests for it; another accelerd and Ollama, whose answer changes, again
while requests for them go on. Nobody is asked while nobody wants anything, and no request waits for it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Final

import msgspec
from msgspec.structs import replace

from accelerd.base.errors import AccelError
from accelerd.config.model import ModelSpec
from accelerd.config.remotes import Remote
from accelerd.engines.http import HttpError
from accelerd.engines.remote.client import RemoteClient, RemoteError
from accelerd.engines.remote.state import RemoteModel, RemoteState, listed, ollama_list, ollama_shown

log = logging.getLogger(__name__)

FRESH: Final = 5.0  # s that what a remote says of itself is not asked again
PATIENCE: Final = 5.0  # s for one question
AGAIN: Final = 60.0  # s after a question that was not answered
CHANGING: Final = frozenset(("accelerd", "ollama"))  # what they say of their models changes


class Remotes:
    """To be used on the event loop's thread."""

    def __init__(self, now: Callable[[], float], environ: Mapping[str, str]) -> None:
        self._now = now
        self._environ = environ
        self.configured: dict[str, Remote] = {}
        self._wanted: dict[str, set[str]] = {}  # by remote, the models there that are configured here
        self._clients: dict[str, RemoteClient] = {}
        self._states: dict[str, RemoteState] = {}
        self._shown: dict[tuple[str, str], RemoteModel] = {}  # what Ollama has said of a model: asked once
        self._asking: dict[str, asyncio.Task[RemoteState]] = {}
        self._retiring: set[asyncio.Task[None]] = set()

    def configure(self, remotes: Mapping[str, Remote], models: Mapping[str, ModelSpec]) -> None:
        """Take over a configuration. What is under way with a remote that has changed goes on."""
        for name, remote in self.configured.items():
            if remotes.get(name) != remote:
                self._forget(name)
        self.configured = dict(remotes)
        self._wanted = {name: set() for name in remotes}
        for spec in models.values():
            if spec.elsewhere and spec.remote in self._wanted and spec.model is not None:
                self._wanted[spec.remote].add(spec.model)

    def _forget(self, name: str) -> None:
        self._states.pop(name, None)
        self._shown = {key: model for key, model in self._shown.items() if key[0] != name}
        if (asking := self._asking.pop(name, None)) is not None:
            asking.cancel()
        if (client := self._clients.pop(name, None)) is not None:
            task = asyncio.create_task(client.retire(), name=f"end of the remote {name}")
            self._retiring.add(task)
            task.add_done_callback(self._retiring.discard)

    async def close(self) -> None:
        """After the last request."""
        clients, asking = list(self._clients.values()), list(self._asking.values())
        self._clients.clear()
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, *self._retiring, return_exceptions=True)
        await asyncio.gather(*(client.close() for client in clients))

    def client(self, name: str) -> RemoteClient:
        """Its client, which may have to be opened. AccelError."""
        client = self._clients.get(name)
        if client is None:
            remote = self.configured.get(name)
            if remote is None:
                raise AccelError("upstream_failed", f"there is no remote {name!r} any more")
            client = self._clients[name] = RemoteClient(remote, self._environ)
        return client

    # --- what is known ------------------------------------------------------------------------------------------

    def state(self, name: str) -> RemoteState:
        """As of the last time that somebody asked, or was answered."""
        return self._states.get(name, RemoteState())

    def known(self, name: str, model: str) -> RemoteModel | None:
        """What the remote has said of a model of its own."""
        return self.state(name).model(model)

    def answered(self, name: str, trouble: str = "") -> None:
        """A request for it has been answered, or not."""
        state = self.state(name)
        if state.trouble != trouble or state.reachable is not (not trouble):
            self._states[name] = replace(state, reachable=not trouble, trouble=trouble, detail="")

    def touch(self, name: str) -> None:
        """A request for it begins: ask it beside that what it has, if that is not known or may have changed."""
        asked, remote = self.state(name).asked, self.configured.get(name)
        if remote is None or name in self._asking:
            return
        if asked is not None:
            state = self.state(name)
            fresh = FRESH if remote.api in CHANGING else AGAIN
            if self._now() - asked < fresh or (state.models and remote.api not in CHANGING):
                return
        self._ask(name)

    async def look(self, name: str) -> RemoteState:
        """Ask it now, for a person who wants to know."""
        return await asyncio.shield(self._asking.get(name) or self._ask(name))

    def _ask(self, name: str) -> asyncio.Task[RemoteState]:
        task = self._asking[name] = asyncio.create_task(self._answer(name), name=f"asking the remote {name}")

        def over(done: asyncio.Task[RemoteState]) -> None:
            if self._asking.get(name) is done:
                del self._asking[name]

        task.add_done_callback(over)
        return task

    async def _answer(self, name: str) -> RemoteState:
        before, client = self.state(name), self.client(name)
        try:
            models = await self._models(client)
            client.answers()
            state = RemoteState(self._now(), True, models=models)
        except HttpError as error:
            problem, detail = (error.problem, error.detail) if isinstance(error, RemoteError) else (str(error), "")
            state = RemoteState(self._now(), False, problem, detail, before.models)
        if self._clients.get(name) is client:
            self._states[name] = state
        return state

    async def _models(self, client: RemoteClient) -> dict[str, RemoteModel]:
        if client.remote.api != "ollama":
            return listed(await client.ask("/v1/models", within=PATIENCE))
        tags = await client.ask("/api/tags", within=PATIENCE)
        models = ollama_list(tags, await client.ask("/api/ps", within=PATIENCE))
        name, state = client.remote.name, RemoteState(models=models)
        for wanted in self._wanted.get(name, ()):
            if (found := state.model(wanted)) is not None:
                shown = await self._show(client, found)
                models[found.name] = replace(shown, loaded=found.loaded)
        return models

    async def _show(self, client: RemoteClient, model: RemoteModel) -> RemoteModel:
        """What Ollama knows of a model without loading it."""
        key = client.remote.name, model.name
        if key not in self._shown:
            body = msgspec.json.encode({"model": model.name})
            self._shown[key] = ollama_shown(model, await client.ask("/api/show", body, within=PATIENCE))
        return self._shown[key]

    # --- orders -------------------------------------------------------------------------------------------------

    async def unload(self, spec: ModelSpec) -> bool:
        """Have Ollama give back the memory of a model, as a person wants; False: the remote knows no such order.

        AccelError upstream_failed.
        """
        remote = self.configured.get(spec.remote or "")
        if remote is None or remote.api != "ollama":
            return False
        body = msgspec.json.encode({"model": spec.model, "keep_alive": 0})
        try:
            await self.client(remote.name).ask("/api/generate", body, within=PATIENCE)
        except HttpError as error:
            raise AccelError("upstream_failed", f"{spec.name} was not unloaded: {error}") from None
        return True
