"""A model that `accelctl add` adds, and what is said of it when it was added."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accelerd.base.names import accelctl
from accelerd.cli import npu_models
from accelerd.cli.commands.status import base_urls
from accelerd.cli.context import Context, configuration, how_to_start
from accelerd.cli.text import curl_with_key
from accelerd.estimate.model_kind import Identified, Kind

WORDS = {
    Kind.EMBEDDING: "an embedding model",
    Kind.RERANK: "a reranking model",
    Kind.COMPLETION: "a model without a chat template, for completions",
}


@dataclass
class NewModel:
    """A model to add."""

    what: str  # for people: its path or where it comes from
    table: dict[str, Any]  # keys of its drop-in that say which model
    name: str
    found: Identified | None = None  # None: not known to this program
    npu: npu_models.NpuModel | None = None
    download: str = ""  # what has to be downloaded first
    reason: str = ""  # why these files
    notes: list[str] = field(default_factory=list)
    too_big: bool = False  # for this machine
    fetched: Kind | None = None  # what the download found it to be

    @property
    def kind(self) -> Kind | None:
        """What it is for; None: not known to this program."""
        return self.found.kind if self.found is not None else self.fetched


def described(model: NewModel, file: Path | None, *, reloaded: bool) -> dict[str, Any]:
    kind = str(model.found.kind) if model.found is not None else None
    return {
        "name": model.name, "table": model.table, "kind": kind, "reason": model.reason or None, "notes": model.notes,
        "file": str(file) if file else None, "reloaded": reloaded,
    }  # fmt: skip


def result(context: Context, added: Sequence[dict[str, Any]], skipped: Sequence[str]) -> None:
    """The JSON: an object of one model, or all of them."""
    context.out.result(added[0] if len(added) == 1 and not skipped else {"models": added, "skipped": list(skipped)})


def say(context: Context, models: Sequence[NewModel], skipped: Sequence[str]) -> None:
    for model in models:
        for note in model.notes:
            context.out.wrapped(f"{model.name}: {note}", indent="  ", first="! ")
    for text in skipped:
        context.out.wrapped(text, indent="  ", first="! ")


def report(
    context: Context, models: Sequence[NewModel], files: Sequence[Path], skipped: Sequence[str], *, reloaded: bool
) -> None:
    out = context.out
    pairs = list(zip(models, files, strict=True))
    result(context, [described(model, file, reloaded=reloaded) for model, file in pairs], skipped)
    for model, file in pairs:
        kind = WORDS.get(model.kind) if model.kind is not None else None
        out.line(f"added {out.style(model.name, 'bold')}{f', {kind}' if kind else ''}: {model.what}")
        out.line(f"written to {file}")
    say(context, models, skipped)
    if not reloaded:
        out.line(how_to_start(context))
    others = {"embeddings", "rerank", "transcription"}  # there is no command to try them
    first = next((model for model in models if not model.too_big and not model.table.keys() & others), None)
    if first is not None:
        out.line(f"try it: {completion(context, first) if first.kind is Kind.COMPLETION else chat(first)}")


def chat(model: NewModel) -> str:
    return accelctl("chat", model.name, "Say hello")


def completion(context: Context, model: NewModel) -> str:
    """What has a model without a chat template go on with a text: a command, or without curl what to send."""
    config, _ = configuration(context)
    url = next(iter(base_urls(config.server.listen if config is not None else ())), "http://localhost:4000/v1")
    body = json.dumps({"model": model.name, "prompt": "Once upon a time", "max_tokens": 32}, ensure_ascii=False)
    if shutil.which("curl", path=context.env.get("PATH")) is None:
        return f"POST {url}/completions {body}"
    keys = config.server.key_file if config is not None else None
    curl = curl_with_key(keys) if keys is not None else "curl"
    return f"{curl} {shlex.join([f'{url}/completions', '--json', body])}"
