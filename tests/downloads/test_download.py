"""Downloads from a local hub by the real process: progress, going on, checksums, refusals, the cache others share."""

from __future__ import annotations

import asyncio
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from accelerd.base.errors import AccelError
from accelerd.base.model_source import Source
from accelerd.downloads.cache import cached
from accelerd.downloads.download import Download, DownloadProgress
from accelerd.estimate.model_kind import Kind
from tests.downloads.hub_server import COMMIT, Hub, Repository
from tests.downloads.kit import REPO, begun, children, digest, partials, refusal, request, run
from tests.models import make_model

# --- what arrives -----------------------------------------------------------------------------------------------


async def test_a_model_arrives_whole_with_its_projector(hub: Hub, repository: Repository, env: dict[str, str]) -> None:
    seen: list[DownloadProgress] = []
    done = await run(env, on_progress=seen.append)
    assert done.source == f"{REPO}:Q4_K_M"
    assert done.files.model.name == "hello-Q4_K_M.gguf"
    assert digest(done.files.model) == digest(repository.folder / "hello-Q4_K_M.gguf")
    assert done.files.mmproj is not None
    assert digest(done.files.mmproj) == digest(repository.folder / "mmproj-hello-f16.gguf")
    assert done.found.kind is Kind.CHAT
    assert "Q4_K_M" in done.reason
    total = sum((repository.folder / name).stat().st_size for name in ("hello-Q4_K_M.gguf", "mmproj-hello-f16.gguf"))
    assert (seen[-1].bytes, seen[-1].total) == (total, total)
    assert [one.bytes for one in seen] == sorted(one.bytes for one in seen)
    assert seen[0].reason == done.reason
    assert not partials(env)
    assert not hub.requests("GET", "Q8_0"), "what was not chosen is not asked for"


async def test_what_is_here_is_not_fetched_again(hub: Hub, repository: Repository, env: dict[str, str]) -> None:
    done = await run(env)
    hub.asked.clear()
    again = await run(env)
    assert again.files == done.files == cached(Source(REPO), env, Path(env["HOME"]))
    assert not hub.asked, "no network is needed for what is here"
    offline = await run({**env, "HF_HUB_OFFLINE": "1", "HF_ENDPOINT": "http://127.0.0.1:9"})
    assert offline.files == done.files


CLIENT = """
import sys, huggingface_hub
print(huggingface_hub.hf_hub_download(sys.argv[1], sys.argv[2], local_files_only=len(sys.argv) > 3))
"""


async def client(env: dict[str, str], *argv: str) -> Path:
    """The real client's own download."""
    command = [sys.executable, "-c", CLIENT, REPO, *argv]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    process = await asyncio.create_subprocess_exec(*command, env={**env, "HF_HUB_DISABLE_XET": "1"}, **options)  # type: ignore[arg-type]
    out, _ = await process.communicate()
    assert process.returncode == 0
    return Path(out.decode().strip())


async def test_other_programs_find_what_accelerd_fetched(repository: Repository, env: dict[str, str]) -> None:
    done = await run(env, f"hf:{REPO}:q8_0")
    assert await client(env, "hello-Q8_0.gguf", "offline") == done.files.model
    assert done.files.model.is_symlink()
    assert COMMIT in str(done.files.model)


async def test_accelerd_finds_what_other_programs_fetched(
    hub: Hub, repository: Repository, env: dict[str, str]
) -> None:
    path = await client(env, "hello-Q8_0.gguf")
    hub.asked.clear()
    done = await run(env, f"{REPO}:Q8_0")
    assert done.files.model == path
    assert not hub.requests("GET", "/cdn/")


async def test_the_quantization_that_fits_is_taken(repository: Repository, env: dict[str, str], tmp_path: Path) -> None:
    shutil.copy(make_model(tmp_path / "made", size_mb=3), repository.folder / "hello-Q2_K.gguf")
    download = Download(request(env, room=1), env)
    done = await download.run()
    assert done.source == f"{REPO}:Q2_K"
    assert download.planned is not None
    assert download.planned.reason == done.reason == "Q2_K is the smallest, and does not fit this machine"
    shutil.rmtree(env["HOME"])
    whole = Download(request(env, f"{REPO}:Q4_K_M"), env)
    await whole.run()
    assert whole.planned is not None
    assert whole.planned.memory > download.planned.memory + (2 << 20)
    shutil.rmtree(env["HOME"])
    done = await run(env, room=whole.planned.memory - 1)
    assert (done.source, done.reason) == (f"{REPO}:Q2_K", "Q2_K: Q4_K_M and 1 more do not fit this machine")


async def test_all_parts_arrive(hub: Hub, env: dict[str, str], tmp_path: Path) -> None:
    folder = tmp_path / "hub/tiny/parts"
    folder.mkdir(parents=True)
    first = make_model(tmp_path / "made", split=3)
    for path in first.parent.glob("*.gguf"):
        shutil.copy(path, folder / f"parts-Q4_0{path.name[-len('-00001-of-00003.gguf') :]}")
    hub.repositories["tiny/parts"] = Repository(folder)
    hub.large = 10
    done = await run(env, "tiny/parts")
    assert [path.name for path in done.files.shards] == [f"parts-Q4_0-0000{n}-of-00003.gguf" for n in (1, 2, 3)]
    assert done.files.model == done.files.shards[0]
    assert all(digest(path) == digest(folder / path.name) for path in done.files.shards)


# --- what goes wrong on the way -----------------------------------------------------------------------------------


async def test_an_answer_that_breaks_off_goes_on_where_it_stopped(
    hub: Hub, repository: Repository, env: dict[str, str]
) -> None:
    hub.cuts = [1 << 20, 1 << 20, 300_000]
    size = (repository.folder / "hello-Q8_0.gguf").stat().st_size
    repository.folder.joinpath("mmproj-hello-f16.gguf").unlink()
    before = hub.sent
    done = await run(env, f"{REPO}:Q8_0")
    assert digest(done.files.model) == digest(repository.folder / "hello-Q8_0.gguf")
    starts = [one.range for one in hub.requests("GET", "/cdn/") if one.range and one.range.startswith("bytes=1048576-")]
    assert starts
    assert hub.sent - before < size + (3 << 20), "no byte is fetched twice but for the header"


async def test_a_download_that_was_killed_goes_on(hub: Hub, repository: Repository, env: dict[str, str]) -> None:
    hub.speed = 4e6
    _, task = await begun(env, f"{REPO}:Q8_0", 2 << 20)
    (child,) = children()
    child.send_signal(signal.SIGKILL)
    with pytest.raises(AccelError, match="ended before it was complete"):
        await task
    (partial,) = partials(env)
    kept = partial.stat().st_size
    assert kept >= 1 << 20
    hub.speed = None
    hub.asked.clear()
    seen: list[DownloadProgress] = []
    done = await run(env, f"{REPO}:Q8_0", on_progress=seen.append)
    assert digest(done.files.model) == digest(repository.folder / "hello-Q8_0.gguf")
    assert f"bytes={kept}-" in str([one.range for one in hub.requests("GET", "/cdn/")])
    assert min(one.bytes for one in seen if one.file == "hello-Q8_0.gguf") >= kept


@pytest.mark.parametrize("how", ["cancel", "task"])
async def test_a_download_can_be_canceled(hub: Hub, repository: Repository, env: dict[str, str], how: str) -> None:
    hub.speed = 1e6
    download, task = await begun(env)
    if how == "cancel":
        download.cancel()
        with pytest.raises(AccelError) as error:
            await task
        assert error.value.code == "canceled"
    else:
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert not children()


async def test_a_damaged_answer_is_fetched_once_more(hub: Hub, repository: Repository, env: dict[str, str]) -> None:
    repository.folder.joinpath("mmproj-hello-f16.gguf").unlink()
    hub.damage = 1
    done = await run(env, f"{REPO}:Q8_0")
    assert digest(done.files.model) == digest(repository.folder / "hello-Q8_0.gguf")


async def test_what_stays_damaged_is_never_used(hub: Hub, repository: Repository, env: dict[str, str]) -> None:
    hub.damage = 1000
    error = await refusal(env)
    assert error.code == "download_failed"
    assert "checksum is wrong" in error.problem
    assert cached(Source(REPO), env, Path(env["HOME"])) is None
    assert all(not path.stat().st_size for path in partials(env)), "a damaged part is not gone on with"


async def test_a_server_without_ranges_sends_all_again(hub: Hub, repository: Repository, env: dict[str, str]) -> None:
    other = "model.gguf"
    shutil.copy(repository.folder / "hello-Q8_0.gguf", repository.folder / other)
    hub.ranges = False
    hub.large = 1 << 40  # served by the hub itself, whole
    done = await run(env, f"{hub.base}/{REPO}/resolve/main/{other}")
    assert digest(done.files.model) == digest(repository.folder / other)
    assert "127.0.0.1" in str(done.files.model)


async def test_an_address_is_downloaded_into_the_data_folder(
    hub: Hub, repository: Repository, env: dict[str, str]
) -> None:
    url = f"{hub.base}/cdn{repository.folder}/hello-Q8_0.gguf"
    hub.cuts = [1 << 20]
    done = await run(env, url)
    assert done.source == url
    assert done.files.model.is_relative_to(Path(env["HOME"]) / ".local/share/accelerd/models")
    assert digest(done.files.model) == digest(repository.folder / "hello-Q8_0.gguf")
    hub.asked.clear()
    assert (await run(env, url)).files == done.files
    assert not hub.asked


@pytest.mark.parametrize("status", [503, 403, 429, 404])  # the other host's, whose addresses are for a short time
async def test_a_server_that_refuses_for_a_while(
    hub: Hub, repository: Repository, env: dict[str, str], status: int
) -> None:
    (repository.folder / "mmproj-hello-f16.gguf").unlink()
    hub.speed, hub.down_status, hub.cuts = 2e6, status, [4 << 20]
    _, task = await begun(env, f"{REPO}:Q8_0")
    hub.down, hub.speed = 3, None
    done = await task
    assert hub.down == 0
    assert digest(done.files.model) == digest(repository.folder / "hello-Q8_0.gguf")


async def test_a_server_that_stays_away(hub: Hub, repository: Repository, env: dict[str, str]) -> None:
    hub.cuts = [1 << 20, *[0] * 100]
    error = await refusal(env, attempts=2)
    assert error.code == "download_failed"
    assert "goes on" in error.hint
    assert cached(Source(REPO), env, Path(env["HOME"])) is None


async def test_a_server_that_sends_a_little_at_a_time_is_not_asked_for_ever(
    hub: Hub, repository: Repository, env: dict[str, str]
) -> None:
    (repository.folder / "mmproj-hello-f16.gguf").unlink()
    hub.cuts = [1000] * 10_000
    error = await refusal(env, attempts=4)
    assert error.code == "download_failed"
    assert "sends nothing more" in error.message or "broke off" in error.message
    assert len(hub.cuts) >= 10_000 - 8


# --- what the process says -----------------------------------------------------------------------------------------

SAYS = """
import sys
sys.stdin.readline()
for line in sys.argv[1:]:
    print(line, flush=True)
"""
ARRIVED = '{{"type":"arrived","bytes":{},"total":1000,"file":"a.gguf","new":{}}}'


class Seconds:
    """A clock that goes on a second at each look."""

    def __init__(self) -> None:
        self._now = 0.0

    def monotonic(self) -> float:
        self._now += 1.0
        return self._now


async def test_the_speed_is_smoothed_and_counts_only_what_is_new(env: dict[str, str]) -> None:
    seen: list[DownloadProgress] = []
    counts = [(400, 0), (450, 50), (500, 100), (600, 200)]
    command = (sys.executable, "-c", SAYS, "no JSON", *(ARRIVED.format(*one) for one in counts))
    download = Download(request(env), env, seen.append, clock=Seconds(), command=command)
    with pytest.raises(AccelError, match="ended before it was complete"):
        await download.run()
    assert [one.bytes for one in seen] == [400, 450, 500, 600]
    assert (seen[0].rate, seen[0].remaining) == (0.0, None)
    assert seen[1].rate == seen[2].rate == 50.0
    assert seen[2].remaining == 10.0
    assert 50.0 < seen[3].rate < 100.0
    assert seen[3].share == 0.6


async def test_a_code_of_a_newer_process_is_still_an_error(env: dict[str, str]) -> None:
    line = '{"type":"failed","code":"made_up","problem":"no luck","hint":"wait"}'
    with pytest.raises(AccelError) as error:
        await Download(request(env), env, command=(sys.executable, "-c", SAYS, line)).run()
    assert (error.value.code, error.value.message) == ("download_failed", "no luck; wait")


async def test_a_download_that_was_canceled_before_it_began(env: dict[str, str]) -> None:
    download = Download(request(env), env, command=(sys.executable, "-c", SAYS))
    download.cancel()
    with pytest.raises(AccelError) as error:
        await download.run()
    assert error.value.code == "canceled"
