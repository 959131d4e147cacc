"""What the tests of downloads share: a small repository, and downloads by the real process."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from accelerd.base.errors import AccelError
from accelerd.base.model_source import Source
from accelerd.downloads.download import Download, DownloadDone, DownloadProgress, DownloadRequest
from tests.harness import command_line
from tests.memory.gguf_maker import Listed, flag, string

REPO = "tiny/hello-GGUF"
PROJECTOR = {"general.architecture": string("clip"), "clip.has_vision_encoder": flag(True)}
PATCH: Listed = {"v.patch_embd.weight": ((64, 64), 0)}


def request(env: dict[str, str], text: str = f"hf:{REPO}", **more: object) -> DownloadRequest:
    return DownloadRequest(Source.parse(text), Path(env["HOME"]), **{"pause": 0.01, **more})  # type: ignore[arg-type]


async def run(
    env: dict[str, str],
    text: str = f"hf:{REPO}",
    on_progress: Callable[[DownloadProgress], None] | None = None,
    **more: object,
) -> DownloadDone:
    return await Download(request(env, text, **more), env, on_progress).run()


async def begun(
    env: dict[str, str], text: str = f"hf:{REPO}", arrived: int = 1
) -> tuple[Download, asyncio.Task[DownloadDone]]:
    """A download of which so many bytes have arrived."""
    reached = asyncio.Event()

    def look(progress: DownloadProgress) -> None:
        if progress.bytes >= arrived:
            reached.set()

    download = Download(request(env, text), env, look)
    task = asyncio.create_task(download.run())
    await reached.wait()
    return download, task


def children() -> list[psutil.Process]:
    return [one for one in psutil.Process().children() if "accelerd.downloads" in command_line(one)]


async def refusal(env: dict[str, str], text: str = f"hf:{REPO}", **more: object) -> AccelError:
    with pytest.raises(AccelError) as error:
        await run(env, text, **more)
    return error.value


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def partials(env: dict[str, str]) -> list[Path]:
    return list(Path(env["HOME"]).rglob("*.incomplete"))
