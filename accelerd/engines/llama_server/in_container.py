"""A model whose llama-server is in a container: its settings as that program must be told them. Pure.

Files have other names inside, an image may want settings of its own, and a container that knows by itself what to run
is only started.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from accelerd.base.exits import Cause
from accelerd.config.model import ModelSpec, Origin, SetBy
from accelerd.engines.base import ContainerProgram, FixedServer, Flag, LaunchPlan, fail
from accelerd.engines.llama_server.environment import KEY_VARIABLE
from accelerd.engines.llama_server.files import shards
from accelerd.engines.llama_server.shortage import OUT_OF_MEMORY, TOO_LARGE

FILES: Final = ("path", "mmproj", "draft_model", "chat_template_file")


def files_of(spec: ModelSpec) -> list[str]:
    """The files that the program will open, all shards of a model among them."""
    named = [value for field in FILES[1:] if (value := getattr(spec, field))]
    return [*(shards(spec.path) if spec.path else []), *named]


def as_seen_inside(spec: ModelSpec, found: ContainerProgram) -> ModelSpec:
    """The model with the names and settings that hold inside. AccelError('model_failed'): a file cannot be seen."""
    hidden = [file for file in files_of(spec) if file not in found.files]
    if hidden:
        where = f"{spec.home} {spec.container}" if spec.container else f"{spec.home} {spec.image}"
        fail(
            Cause.NO_MODEL, f"cannot see {hidden[0]} in {where}: put it below your home directory, or mount its folder"
        )
    changed: dict[str, Any] = {field: found.files[value] for field in FILES if (value := getattr(spec, field))}
    wanted = {key: value for key, value in found.settings.items() if getattr(spec, key) is None}
    origins = {**spec.origins, **{key: Origin(found.source, by=SetBy.IMAGE) for key in wanted}}
    return replace(spec, **changed, **wanted, origins=origins)


def fixed_plan(spec: ModelSpec, there: FixedServer) -> LaunchPlan:
    """For a container that knows what it runs. Its key, where it wants one, is LLAMA_API_KEY of the model's env."""
    reason = "the container knows what it runs: flags and environment are those it was made with"
    return LaunchPlan(
        model=spec.name,
        argv=there.command,
        env={},
        endpoint=there.endpoint,
        secret=dict(spec.env).get(KEY_VARIABLE, ""),
        flags=(Flag(" ".join(there.command), there.source, reason),),
        guarded=False,
        out_of_memory=OUT_OF_MEMORY,
        too_large=TOO_LARGE,
    )
