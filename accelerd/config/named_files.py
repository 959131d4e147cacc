"""The files on this machine that a model's settings name. Shards and what a hub has are not named. Pure."""

from __future__ import annotations

from accelerd.config.model import ModelSpec


def named_files(spec: ModelSpec) -> list[tuple[str, str]]:
    """Key and path of each."""
    # The program of a model in a container is a path inside.
    keys = ("path", "mmproj", "draft_model", "chat_template_file", *(() if spec.contained else ("binary",)))
    named = [(key, value) for key in keys if (value := getattr(spec, key)) and value.startswith("/")]
    return [*named, *(("lora", adapter.path) for adapter in spec.lora)]
