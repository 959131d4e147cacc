"""A Lemonade Server that runs already: it is used and never owned, and what it holds is not accelerd's.

Against the stand-in `lemond`, started by somebody else.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from accelerd.base.exits import Cause
from accelerd.config.model import LemonadeSettings
from accelerd.supervise.process.processes import ProcessTable
from tests.harness import eventually
from tests.npu.lemonade_kit import EMBED, GEMMA, QWEN, Foreign, LemonadeBench, foreign
from tests.ports import free_port


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[LemonadeBench]:
    with tempfile.TemporaryDirectory(prefix="acc-") as runtime:
        yield LemonadeBench(tmp_path, Path(runtime))
        assert ProcessTable().owned(runtime) == []


def uses(bench: LemonadeBench, server: Foreign, key: str | None = None) -> LemonadeBench:
    file = bench.roots.home / "key"
    file.write_text(f"{key or server.key or 'none'}\n")
    file.chmod(0o600)
    bench.settings = LemonadeSettings(url=server.url, key_file=str(file))
    return bench


async def test_a_running_server_is_used_and_lives_on(bench: LemonadeBench) -> None:
    with foreign(bench.standin, key="s3cret") as server:
        async with uses(bench, server):
            (number,) = await bench.loaded(QWEN)
            assert server.loaded() == [QWEN]
            exit = await bench.stopped(number)
            assert exit.cause is Cause.STOPPED
            assert server.loaded() == []
            await bench.loaded(EMBED)
        assert server.process.poll() is None, "it is never ended"
        assert server.loaded() == [], "what accelerd has loaded it has unloaded"
        assert len(bench.standin.requests("start")) == 1


async def test_what_was_loaded_before_is_taken_as_it_is_and_left_there(bench: LemonadeBench) -> None:
    with foreign(bench.standin) as server:
        server.ask("/api/v1/load", {"model_name": QWEN, "ctx_size": 1024})
        pid = server.ask("/api/v1/health")["all_models_loaded"][0]["pid"]
        async with uses(bench, server):
            (number,) = await bench.loaded(QWEN)
            assert bench.pid(number) == pid
            assert len(bench.standin.requests("/api/v1/load")) == 1, "not loaded anew"
            await bench.stopped(number)
            assert server.loaded() == [QWEN]
        assert bench.standin.requests("/api/v1/unload") == []


async def test_a_model_that_the_server_evicts_is_unloaded_by_server(bench: LemonadeBench) -> None:
    """One model of a type, as it is set up by default: the next one takes the place of the first."""
    with foreign(bench.standin, max_loaded=1) as server:
        async with uses(bench, server):
            first, other = await bench.loaded(QWEN, EMBED)
            (second,) = await bench.loaded(GEMMA)
            exit = await bench.gone(first)
            assert exit.cause is Cause.UNLOADED_BY_SERVER
            assert exit.message == f"the Lemonade Server unloaded it to load {GEMMA}"
            assert bench.heard.of(other) == ["ready"], "of another type"
            assert bench.heard.of(second) == ["ready"]


async def test_a_model_that_another_client_unloads_is_unloaded_by_server(bench: LemonadeBench) -> None:
    with foreign(bench.standin) as server:
        async with uses(bench, server):
            (number,) = await bench.loaded(QWEN)
            server.ask("/api/v1/unload", {"model_name": QWEN})
            exit = await bench.gone(number)
            assert exit.cause is Cause.UNLOADED_BY_SERVER
            assert "perhaps for another client" in exit.message


async def test_another_pid_is_another_life(bench: LemonadeBench) -> None:
    """Somebody loads it with other options: the backend that accelerd knew is no more."""
    with foreign(bench.standin) as server:
        async with uses(bench, server):
            (number,) = await bench.loaded(QWEN)
            server.ask("/api/v1/load", {"model_name": QWEN, "ctx_size": 512})
            exit = await bench.gone(number)
            assert exit.cause is Cause.UNLOADED_BY_SERVER
            assert exit.message.startswith("the Lemonade Server unloaded it: it was started again, as process ")


async def test_all_places_pinned(bench: LemonadeBench) -> None:
    with foreign(bench.standin, max_loaded=1) as server:
        async with uses(bench, server):
            (pinned,) = await bench.loaded(QWEN, pin=True)
            exit = await bench.gone(bench.start(GEMMA))
            assert exit.cause is Cause.SPAWN_FAILED, "it may be tried again"
            assert f"no place for {GEMMA}, what is there is pinned" in exit.message
            assert bench.heard.of(pinned) == ["ready"]


async def test_a_server_that_goes_takes_its_models_along(bench: LemonadeBench) -> None:
    with foreign(bench.standin) as server:
        async with uses(bench, server):
            (number,) = await bench.loaded(QWEN)
            server.close()
            exit = await bench.gone(number)
            assert exit.cause in (Cause.EXITED, Cause.UNLOADED_BY_SERVER)
            eventually(lambda: server.process.poll() is not None, "its end")
            again = await bench.gone(bench.start(QWEN))
            assert again.cause is Cause.EXITED
            assert f"no Lemonade Server answers at {server.url}" in again.message


async def test_nobody_there(bench: LemonadeBench) -> None:
    bench.settings = LemonadeSettings(url=f"http://127.0.0.1:{free_port()}")
    async with bench:
        exit = await bench.gone(bench.start(QWEN))
    assert "start it, or take the url away" in exit.message
    assert bench.standin.requests("start") == [], "none is started instead"


async def test_a_wrong_key(bench: LemonadeBench) -> None:
    with foreign(bench.standin, key="s3cret") as server:
        async with uses(bench, server, key="wrong"):
            exit = await bench.gone(bench.start(QWEN))
    assert "key_file" in exit.message
    assert "wrong" not in exit.message


async def test_a_key_that_cannot_be_read(bench: LemonadeBench) -> None:
    bench.settings = LemonadeSettings(url=f"http://127.0.0.1:{free_port()}", key_file=str(bench.roots.home / "none"))
    async with bench:
        exit = await bench.gone(bench.start(QWEN))
    assert exit.cause is Cause.REFUSED
    assert "cannot read the key of the Lemonade Server" in exit.message


async def test_a_model_that_is_not_downloaded_is_had_from_that_server(bench: LemonadeBench) -> None:
    """By its own client, which has to be told the port."""
    with foreign(bench.standin) as server:
        async with uses(bench, server):
            exit = await bench.gone(bench.start("Qwen3-32B-GGUF"))
    assert exit.cause is Cause.NO_MODEL
    assert exit.message.endswith(f"not downloaded; run lemonade pull Qwen3-32B-GGUF --port {server.port}")


@pytest.mark.parametrize(("mode", "text"), [(0o644, "chmod 600"), (0o600, "contains no key")])
async def test_a_key_file_is_read_like_the_one_of_accelerd(bench: LemonadeBench, mode: int, text: str) -> None:
    file = bench.roots.home / "key"
    file.write_text("# nothing\n" if mode == 0o600 else "secret\n")
    file.chmod(mode)
    bench.settings = LemonadeSettings(url=f"http://127.0.0.1:{free_port()}", key_file=str(file))
    async with bench:
        exit = await bench.gone(bench.start(QWEN))
    assert exit.cause is Cause.REFUSED
    assert text in exit.message
    assert "secret" not in exit.message
