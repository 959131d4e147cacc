"""Downloads from a local hub by the real process: progress, going on, checksums, refusals, the cache others share."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from accelerd.base.errors import AccelError
from accelerd.base.model_source import Source
from accelerd.downloads.cache import cached
from accelerd.downloads.download import COMMAND, Download, DownloadDone, DownloadProgress, DownloadRequest
from accelerd.downloads.fetch import require_space
from accelerd.estimate.model_kind import Kind
from tests.downloads.hub_server import COMMIT, Hub, Repository, serving
from tests.memory.gguf_maker import Listed, flag, string, u32, write
from tests.models import make_model

REPO = "tiny/hello-GGUF"
PROJECTOR = {"general.architecture": string("clip"), "clip.has_vision_encoder": flag(True)}
PATCH: Listed = {"v.patch_embd.weight": ((64, 64), 0)}


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serving() as running:
        yield running


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real chat model of some MB."""
    return make_model(tmp_path_factory.mktemp("models"), size_mb=6)


@pytest.fixture
def repository(hub: Hub, model: Path, tmp_path: Path) -> Repository:
    """The model in two quantizations, with a projector and a page."""
    folder = tmp_path / "hub" / REPO
    folder.mkdir(parents=True)
    shutil.copy(model, folder / "hello-Q4_K_M.gguf")
    shutil.copy(model, folder / "hello-Q8_0.gguf")
    with (folder / "hello-Q8_0.gguf").open("ab") as file:
        file.write(bytes(4 << 20))
    write(folder / "mmproj-hello-f16.gguf", PROJECTOR, PATCH)
    (folder / "README.md").write_text("hello")
    hub.repositories[REPO] = made = Repository(folder)
    return made


@pytest.fixture
def env(hub: Hub, tmp_path: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING", "XDG_"))}
    return {**kept, "HOME": str(tmp_path / "home"), "HF_ENDPOINT": hub.base, "NO_PROXY": "*", "no_proxy": "*"}


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
    return [one for one in psutil.Process().children() if "accelerd.downloads" in one.cmdline()]


async def refusal(env: dict[str, str], text: str = f"hf:{REPO}", **more: object) -> AccelError:
    with pytest.raises(AccelError) as error:
        await run(env, text, **more)
    return error.value


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def partials(env: dict[str, str]) -> list[Path]:
    return list(Path(env["HOME"]).rglob("*.incomplete"))


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


# --- refusals -----------------------------------------------------------------------------------------------------


async def test_a_gated_model_wants_a_token(
    hub: Hub, repository: Repository, env: dict[str, str], tmp_path: Path
) -> None:
    repository.gated = True
    error = await refusal(env)
    assert error.code == "model_gated"
    assert f"accept them at {hub.base}/{REPO}, and save a token" in error.hint
    wrong = await refusal({**env, "HF_TOKEN": "hf_wrong"})
    assert wrong.code == "model_gated"
    assert "does not accept the token" in wrong.problem
    assert "hf_wrong" not in wrong.message
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    (credentials / "hf_token").write_text(f"{hub.token}\n")
    hub.asked.clear()
    done = await run({**env, "CREDENTIALS_DIRECTORY": str(credentials)})
    assert digest(done.files.model) == digest(repository.folder / "hello-Q4_K_M.gguf")
    assert {one.token for one in hub.asked if "/resolve/" in one.path} == {f"Bearer {hub.token}"}
    assert {one.token for one in hub.asked if "/cdn/" in one.path} == {None}, "the other host hears no token"


async def test_the_token_is_on_no_command_line(hub: Hub, repository: Repository, env: dict[str, str]) -> None:
    repository.gated, hub.speed = True, 1e6
    login = Path(env["HOME"]) / ".cache/huggingface/token"
    login.parent.mkdir(parents=True)
    login.write_text(hub.token)
    _, task = await begun(env)
    lines = [" ".join(one.cmdline()) for one in psutil.Process().children(recursive=True)]
    assert any("accelerd.downloads" in line for line in lines)
    assert not any(hub.token in line for line in lines)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_private_model_is_not_there_without_a_token(
    hub: Hub, repository: Repository, env: dict[str, str]
) -> None:
    repository.private = True
    assert (await refusal(env)).code == "hub_not_found"
    assert (await run({**env, "HF_TOKEN": hub.token})).files.model.exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [("tiny/nothing", "no such repository"), (f"{REPO}:Q2_K", "has no Q2_K; it has Q4_K_M"),
     (f"{REPO}/other.gguf", "has no other.gguf")],
)  # fmt: skip
async def test_what_the_hub_does_not_have(repository: Repository, env: dict[str, str], text: str, words: str) -> None:
    error = await refusal(env, text)
    assert error.code == "hub_not_found"
    assert words in error.message


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set"),
        ({"HF_ENDPOINT": "http://127.0.0.1:9"}, "cannot reach 127.0.0.1:9"),
    ],
)
async def test_without_a_network(env: dict[str, str], more: dict[str, str], words: str) -> None:
    error = await refusal({**env, **more})
    assert error.code == "hub_offline"
    assert words in error.problem
    assert error.hint


async def test_what_is_no_model_is_refused_before_it_is_fetched(hub: Hub, env: dict[str, str], tmp_path: Path) -> None:
    folder = tmp_path / "hub/tiny/adapter"
    folder.mkdir(parents=True)
    pairs = {"general.architecture": string("llama"), "general.type": string("adapter"), "adapter.rank": u32(8)}
    write(folder / "adapter.gguf", pairs, {"blk.0.attn_q.weight.lora_a": ((4096, 2048), 0)})
    hub.repositories["tiny/adapter"] = Repository(folder)
    error = await refusal(env, "tiny/adapter")
    assert error.code == "bad_request"
    assert "it is a LoRA adapter" in error.problem
    assert hub.sent < (folder / "adapter.gguf").stat().st_size


@pytest.mark.parametrize(
    ("junk", "words"),
    [(b"<html>no such model</html>", "web page"), (b"\x1f\x8b\x08\0\0", "gzip"), (b"hello", "not a GGUF file"),
     (b"GGUF\3\0\0\0", "ends within")],
)  # fmt: skip
async def test_junk_is_discarded_and_the_address_stays_usable(
    hub: Hub, repository: Repository, env: dict[str, str], junk: bytes, words: str
) -> None:
    file, hub.ranges = repository.folder / "moved.gguf", False
    url = f"{hub.base}/cdn{file}"
    file.write_bytes(junk)
    error = await refusal(env, url)
    assert error.code == "download_failed"
    assert words in error.problem
    assert cached(Source(url=url), env, Path(env["HOME"])) is None
    shutil.copy(repository.folder / "hello-Q8_0.gguf", file)
    assert digest((await run(env, url)).files.model) == digest(file)


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"Content-Encoding": "gzip"}, "'gzip', which was not asked for"),
        ({"Content-Length": "-5"}, "'-5', which is not a number of bytes"),
        ({"Content-Length": "9" * 30}, "which is not a number of bytes"),
    ],
)
async def test_headers_that_cannot_be_true_are_refused(
    hub: Hub, repository: Repository, env: dict[str, str], said: dict[str, str], words: str, ranges: bool
) -> None:
    hub.said, hub.ranges = said, ranges
    url = f"{hub.base}/cdn{repository.folder}/hello-Q8_0.gguf"
    error = await refusal(env, url)
    assert error.code == "bad_request"
    assert words in error.problem
    assert cached(Source(url=url), env, Path(env["HOME"])) is None


async def test_a_length_that_the_disk_does_not_have_is_refused_before_it_arrives(
    hub: Hub, repository: Repository, env: dict[str, str]
) -> None:
    hub.said, hub.ranges = {"Content-Length": str(1 << 58)}, False
    error = await refusal(env, f"{hub.base}/cdn{repository.folder}/hello-Q8_0.gguf")
    assert error.code == "disk_full"


async def test_several_models_are_listed(hub: Hub, repository: Repository, env: dict[str, str]) -> None:
    shutil.copy(repository.folder / "hello-Q8_0.gguf", repository.folder / "goodbye-Q8_0.gguf")
    error = await refusal(env)
    assert error.code == "bad_request"
    assert "goodbye-Q8_0.gguf" in error.fields["candidates"]


def test_a_full_disk_is_noticed_before_the_first_byte(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    with pytest.raises(AccelError) as error:
        require_space(tmp_path / "not/yet/there", free + (1 << 30))
    assert error.value.code == "disk_full"
    assert "HF_HOME" in error.value.hint
    require_space(tmp_path, 0)


ON_A_SMALL_DISK = 'mount -t tmpfs -o size=80m none "$HOME" && exec "$@"'


async def test_a_disk_that_others_fill_meanwhile(
    hub: Hub, repository: Repository, env: dict[str, str], tmp_path: Path
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    hub.speed = 4 << 20
    namespace = ("unshare", "--user", "--map-root-user", "--mount", "sh", "-c", ON_A_SMALL_DISK, "sh")

    def fill(progress: DownloadProgress) -> None:
        if progress.bytes:
            (process,) = children()
            with contextlib.suppress(OSError), open(f"/proc/{process.pid}/root{home}/other", "ab") as file:
                while True:
                    file.write(bytes(1 << 20))

    with pytest.raises(AccelError) as error:
        await Download(request(env), env, fill, command=(*namespace, *COMMAND)).run()
    assert error.value.code == "disk_full"
    assert str(home) in error.value.problem
    assert "what has arrived is kept" in error.value.hint


async def test_a_disk_that_takes_no_large_files(repository: Repository, env: dict[str, str]) -> None:
    """As FAT does, and a limit of the process."""
    limited = ("sh", "-c", 'ulimit -f 4096 && exec "$@"', "sh", *COMMAND)
    with pytest.raises(AccelError) as error:
        await Download(request(env), env, command=limited).run()
    assert error.value.code == "disk_full"
    assert "takes no file of that size" in error.value.problem
    assert "large files" in error.value.hint


async def test_a_cache_that_cannot_be_written(repository: Repository, env: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    error = await refusal({**env, "HF_HOME": str(tmp_path / "file")})
    assert error.code == "download_failed"
    assert "set HF_HOME" in error.hint


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
