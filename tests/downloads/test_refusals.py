"""What is refused or cannot be downloaded, and what the user is told to do."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from pathlib import Path

import psutil
import pytest

from accelerd.base.errors import AccelError
from accelerd.base.model_source import Source
from accelerd.downloads.cache import cached
from accelerd.downloads.download import COMMAND, Download, DownloadProgress
from accelerd.downloads.fetch import require_space
from tests.downloads.hub_server import Hub, Repository
from tests.downloads.kit import REPO, begun, children, digest, refusal, request, run
from tests.harness import command_line
from tests.memory.gguf_maker import string, u32, write


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
    lines = [" ".join(command_line(one)) for one in psutil.Process().children(recursive=True)]
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
