"""The models that remotes offer without a table of their own in the configuration, and their names here. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from accelerd.base.names import ANY
from accelerd.config.model import ModelSpec, Origin
from accelerd.config.remotes import Remote
from accelerd.config.values import check_name
from accelerd.engines.remote.state import RemoteModel, RemoteState

MOST = 500  # of one remote: each is a name that people may choose from


def offers(remote: Remote, model: RemoteModel) -> bool:
    """Is it one of those that the remote is asked to offer, and can it have a name here?

    Models that another accelerd has of remotes of its own are left out: two could offer them to each other for ever.
    """
    if not remote.offers(model.name) or (remote.api == "accelerd" and model.device == "remote") or ANY in model.name:
        return False
    try:
        check_name(model.name)  # it is an alias, too
        check_name(f"{remote.name}/{model.name}")
    except ValueError:
        return False
    return True


def offered(
    remotes: Iterable[Remote], state_of: Callable[[str], RemoteState], configured: Mapping[str, ModelSpec]
) -> list[ModelSpec]:
    """Those that no configured model stands for, in the order of the remotes and of their lists."""
    found = []
    for remote in remotes:
        state = state_of(remote.name)
        known = (state.model(one.model or "") for one in configured.values() if one.remote == remote.name)
        ours = {one.name for one in known if one is not None}
        models = [one for one in state.models.values() if offers(remote, one)][:MOST]
        found += [_spec(remote, one) for one in models if one.name not in ours]
    return [spec for spec in found if spec.name not in configured]


def _spec(remote: Remote, model: RemoteModel) -> ModelSpec:
    origin = Origin(f"what {remote.name} has")
    origins = dict.fromkeys(("engine", "remote", "model"), origin)
    return ModelSpec(
        f"{remote.name}/{model.name}",
        engine="remote",
        remote=remote.name,
        model=model.name,
        offered=True,
        origins=origins,
    )
