"""The servers elsewhere: are they there, and what do they have?

Asks each now, which loads nothing there.
"""

from __future__ import annotations

import asyncio

import msgspec

from accelerd.config.remotes import Remote
from accelerd.control.known_conflicts import REMOTE_UNREACHABLE, KnownConflict
from accelerd.control.operations import operation
from accelerd.control.parts import ControlParts


class RemoteModelStatus(msgspec.Struct):
    """A model of a remote. None and empty: the remote does not say."""

    name: str
    loaded: bool | None
    queue: int | None
    context: int | None
    capabilities: list[str]
    size: int | None = None  # bytes of its files
    names: list[str] = []  # by which it can be asked for here


class RemoteStatus(msgspec.Struct):
    name: str
    url: str
    api: str
    key: str | None  # where its key is read: a file, or the name of a credential
    reachable: bool
    trouble: str | None  # why it does not answer, in plain words
    models: list[RemoteModelStatus]  # those there
    used: list[str]  # configured models that it answers for; what it offers beside them is in `models`
    missing: list[str]  # of these, such as it does not have


class RemotesStatus(msgspec.Struct):
    remotes: list[RemoteStatus]


@operation("look", "remotes")
async def remotes(parts: ControlParts) -> RemotesStatus:
    """Every server elsewhere, as it answers now."""
    known = parts.remotes.configured
    return RemotesStatus(list(await asyncio.gather(*(_status(parts, remote) for remote in known.values()))))


async def _status(parts: ControlParts, remote: Remote) -> RemoteStatus:
    state = await parts.remotes.look(remote.name)
    directory = parts.router.directory
    ours = [spec for spec in directory.models.values() if spec.elsewhere and spec.remote == remote.name]
    used = [spec for spec in ours if not spec.offered]
    names: dict[str, list[str]] = {}  # here, by the name there
    for spec in ours:
        there = state.model(spec.model or "")
        if there is not None:
            names.setdefault(there.name, []).extend((spec.name, *directory.aliases(spec)))
    lacks = [spec.name for spec in used if state.models and state.model(spec.model or "") is None]
    return RemoteStatus(
        name=remote.name,
        url=remote.url,
        api=remote.api,
        key=remote.key_file or remote.credential,
        reachable=bool(state.reachable),
        trouble=": ".join(filter(None, (state.trouble, state.detail))) or None,
        models=[
            RemoteModelStatus(
                one.name, one.loaded, one.queue, one.context, sorted(one.tasks), one.size, names.get(one.name, [])
            )
            for one in state.models.values()
        ],
        used=[spec.name for spec in used],
        missing=lacks if state.reachable else [],
    )


def unreachable(parts: ControlParts) -> list[KnownConflict]:
    """The remotes that did not answer the last request or question, with the models that they answer for."""
    found = []
    for name in parts.remotes.configured:
        state = parts.remotes.state(name)
        models = tuple(s.spec.name for s in parts.scheduler.snapshots() if s.spec.elsewhere and s.spec.remote == name)
        if state.trouble:
            text = f"the remote {name} does not answer: {state.trouble}"
            found.append(
                KnownConflict(REMOTE_UNREACHABLE, models, text, "accelctl remotes asks again", "docs/remotes.md")
            )
    return found
