"""All remotes: their clients, and what is known of their models.

A remote is asked what it has beside the first requests for it; another accelerd and Ollama, whose answer changes, again
while requests for them go on. One that offers its models is asked once it is configured, too, beside whoever wants the
list of models, and by a request for a name that only it can know: that alone waits for it. What is known stays while it
does not answer. Nobody is asked while nobody wants anything.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Final

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from accelerd.base.errors import AccelError
from accelerd.config.model import ModelSpec
from accelerd.config.remotes import Remote
from accelerd.engines.http import HttpError
from accelerd.engines.remote.client import RemoteClient, RemoteError
from accelerd.engines.remote.offered import offered, offers
from accelerd.engines.remote.state import RemoteModel, RemoteState, listed, ollama_list, ollama_shown

log = logging.getLogger(__name__)

FRESH: Final = 5.0  # s that what a remote says of itself is not asked again
PATIENCE: Final = 5.0  # s for one question
AT_ONCE: Final = 4  # questions to one remote
AGAIN: Final = 60.0  # s after a question that was not answered
UNSURE: Final = 1.0  # … by requests for a model of its own that is not known
WAITS: Final = 6.0  # s that a request waits for what its name may mean
CHANGING: Final = frozenset(("accelerd", "ollama"))  # what they say of their models changes


class OffersChanged(Struct, frozen=True):
    """A remote has other models than before."""

    remote: str


class Remotes:
    """To be used on the event loop's thread."""

    def __init__(
        self,
        now: Callable[[], float],
        environ: Mapping[str, str],
        publish: Callable[[object], None] = lambda event: None,
    ) -> None:
        self._now = now
        self._environ = environ
        self._publish = publish
        self.configured: dict[str, Remote] = {}
        self._wanted: dict[str, set[str]] = {}  # by remote, the models there that are configured here
        self._clients: dict[str, RemoteClient] = {}
        self._states: dict[str, RemoteState] = {}
        self._shown: dict[tuple[str, str], RemoteModel] = {}  # what Ollama has said of a model: asked once
        self._asking: dict[str, asyncio.Task[RemoteState]] = {}
        self._retiring: set[asyncio.Task[None]] = set()

    def configure(self, remotes: Mapping[str, Remote], models: Mapping[str, ModelSpec]) -> set[str]:
        """Take over a configuration: which remotes are others now. What is under way with one goes on."""
        changed = {name for name, remote in self.configured.items() if remotes.get(name) != remote}
        for name in changed:
            self._forget(name, remotes.get(name))
        self.configured = dict(remotes)
        self._wanted = {name: set() for name in remotes}
        for spec in models.values():
            if spec.elsewhere and spec.remote in self._wanted and spec.model is not None:
                self._wanted[spec.remote].add(spec.model)
        for name, remote in remotes.items():
            if remote.patterns and self.state(name).asked is None and name not in self._asking:
                self._ask(name)
        return changed

    def offered(self, configured: Mapping[str, ModelSpec]) -> list[ModelSpec]:
        """The models that remotes offer, as far as is known."""
        return offered(self.configured.values(), self.state, configured)

    def _forget(self, name: str, now: Remote | None) -> None:
        """What was known of it; at the same address it has the same models until it says otherwise."""
        before, state = self.configured[name], self._states.pop(name, None)
        if state is not None and now is not None and (now.url, now.api) == (before.url, before.api):
            self._states[name] = RemoteState(models=state.models)
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
            settled = state.models and remote.api not in CHANGING and not remote.patterns
            if self._now() - asked < fresh or settled:
                return
        self._ask(name)

    def touch_offering(self) -> None:
        """Somebody wants the list of models."""
        for name, remote in self.configured.items():
            if remote.patterns:
                self.touch(name)

    # --- names that are not known -------------------------------------------------------------------------------

    def may_have(self, name: str) -> list[str]:
        """The remotes to be asked before it can be said that there is no model of this name."""
        found = []
        for remote in self.configured.values():
            there, state = name.removeprefix(f"{remote.name}/"), self.state(remote.name)
            if not remote.offers(there):
                continue
            if state.asked is None or (there != name and self._now() - state.asked >= UNSURE):
                found.append(remote.name)
            else:
                self.touch(remote.name)
        return found

    async def learn(self, names: Sequence[str]) -> None:
        """Ask these, for a request that waits."""
        with suppress(TimeoutError):
            async with asyncio.timeout(WAITS):
                await asyncio.gather(*map(self.look, names))

    def why_unknown(self, name: str) -> AccelError | None:
        """The answer to a request for a model that only a remote could have; None: its name is of none."""
        remote = next((one for one in self.configured.values() if name.startswith(f"{one.name}/")), None)
        if remote is None or not remote.patterns:
            return None
        state, there = self.state(remote.name), name.removeprefix(f"{remote.name}/")
        if state.trouble and not state.models:
            text = f"{name} cannot be looked for: the remote {remote.name}: {state.trouble}"
            return AccelError("upstream_failed", text, param="model")
        text = f"there is no model {name!r}: the remote {remote.name} has no {there!r}"
        if state.trouble:
            text += f", or had none when it answered last ({state.trouble})"
        elif state.model(there) is not None:
            text += " that it offers; see its `models` in the configuration"
        return AccelError("model_not_found", f"{text}; see: accelctl remotes", param="model")

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
            if state.models.keys() != before.models.keys():
                self._publish(OffersChanged(name))
        return state

    async def _models(self, client: RemoteClient) -> dict[str, RemoteModel]:
        if client.remote.api != "ollama":
            return listed(await client.ask("/v1/models", within=PATIENCE))
        tags = await client.ask("/api/tags", within=PATIENCE)
        models = ollama_list(tags, await client.ask("/api/ps", within=PATIENCE))
        name, state = client.remote.name, RemoteState(models=models)
        wanted = {state.model(one) for one in self._wanted.get(name, ())}
        wanted |= {one for one in models.values() if offers(client.remote, one)}
        few = asyncio.Semaphore(AT_ONCE)
        shown = await asyncio.gather(*(self._show(client, one, few) for one in wanted if one and not one.tasks))
        return models | {one.name: one for one in shown}

    async def _show(self, client: RemoteClient, model: RemoteModel, few: asyncio.Semaphore) -> RemoteModel:
        """What Ollama knows of a model without loading it."""
        key = client.remote.name, model.name
        if key not in self._shown:
            body = msgspec.json.encode({"model": model.name})
            try:
                async with few:
                    self._shown[key] = ollama_shown(model, await client.ask("/api/show", body, within=PATIENCE))
            except HttpError:  # it was removed meanwhile
                return model
        return replace(self._shown[key], loaded=model.loaded, size=model.size)

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
