"""Models inside a Lemonade Server that accelerd runs: how they are loaded, watched, accounted and ended.

Against the stand-in `lemond`.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from accelerd.base import names
from accelerd.base.exits import Cause
from accelerd.engines.base import Endpoint
from accelerd.supervise.http_probe import status
from accelerd.supervise.process.processes import ProcTable
from tests.npu.lemonade_kit import EMBED, GEMMA, QWEN, LemonadeHouse
from tests.supervise.house import alive


@pytest.fixture
def house(tmp_path: Path) -> Iterator[LemonadeHouse]:
    """To be used as `async with house:`; after the test no marked process may live."""
    with tempfile.TemporaryDirectory(prefix="acc-") as runtime:
        made = LemonadeHouse(tmp_path, Path(runtime))
        yield made
        assert ProcTable().owned(runtime) == []


async def test_a_model_is_asked_straight_at_its_backend(house: LemonadeHouse) -> None:
    async with house:
        (number,) = await house.loaded(QWEN)
        server = house.own
        assert server.client is not None
        assert house.endpoint(number) != server.client.address.port
        endpoint = Endpoint(port=house.endpoint(number))
        assert await status(endpoint, "/v1/completions", within=5, body=b'{"prompt": "hi", "max_tokens": 1}') == 200
        pid = house.pid(number)
        assert pid != server.pid
        exit = await house.stopped(number)
        assert exit.cause is Cause.STOPPED
        assert not alive(pid)
        assert alive(server.pid), "the server stays for the next one"


async def test_what_has_no_server_of_its_own_is_asked_at_lemonade(house: LemonadeHouse) -> None:
    async with house:
        (number,) = await house.loaded("Whisper-Large-v3-Turbo")
        assert house.own.client is not None
        assert house.endpoint(number) == house.own.client.address.port
        facts = house.supervisor.facts(number)
        assert facts is not None
        assert facts.plan is not None
        assert facts.plan.secret == house.own.client.address.key
        house.supervisor.probe(number)
        assert await house.heard.wait("probed", number) is True


async def test_one_server_for_all_models(house: LemonadeHouse) -> None:
    async with house:
        first, second, third = await house.loaded(QWEN, GEMMA, EMBED)
        assert len(house.standin.requests("start")) == 1
        await house.stopped(second)
        assert alive(house.pid(first))
        assert alive(house.pid(third))
        assert [one["body"]["model_name"] for one in house.standin.requests("/api/v1/unload")] == [GEMMA]


async def test_the_users_own_folders_are_never_touched(house: LemonadeHouse) -> None:
    """--port is written back into the server's config.json: that must be accelerd's own."""
    home = house.roots.home
    for folder in (home / ".cache/lemonade", home / ".config/lemonade"):
        folder.mkdir(parents=True)
        (folder / "config.json").write_text('{"port": 13305}')
    (home / ".cache/lemonade/user_models.json").write_text('{"Mine": {"recipe": "llamacpp"}}')
    async with house:
        await house.loaded(QWEN)
        assert house.own.client is not None
        port = house.own.client.address.port
    for folder in (home / ".cache/lemonade", home / ".config/lemonade"):
        assert json.loads((folder / "config.json").read_text()) == {"port": 13305}
    own = house.roots.cache / "lemonade"
    assert json.loads((own / "config.json").read_text())["port"] == port, "the trap is there, in a folder of our own"
    assert json.loads((own / "user_models.json").read_text()) == {"Mine": {"recipe": "llamacpp"}}
    assert (own / "config.json").stat().st_mode & 0o077 == 0


async def test_the_settings_that_matter_are_written_before_the_start(house: LemonadeHouse) -> None:
    async with house:
        await house.loaded(QWEN)
    said = json.loads((house.roots.cache / "lemonade/config.json").read_text())
    assert said["host"] == "127.0.0.1"
    assert said["max_loaded_models"] == -1
    assert said["auto_evict"] is False
    assert said["flm"]["prefer_system"] is True, "without it lemond of 10.10 and later has no flm"
    assert said["no_broadcast"] is True


async def test_the_key_is_in_the_environment_and_asked_for(house: LemonadeHouse) -> None:
    async with house:
        await house.loaded(QWEN)
        assert house.own.client is not None
        address = house.own.client.address
        (start,) = house.standin.requests("start")
        assert start["env"]["LEMONADE_API_KEY"] == address.key
        assert address.key not in " ".join(start["argv"])
        endpoint = Endpoint(port=address.port)
        assert await status(endpoint, "/api/v1/health", within=5) == 401
        assert await status(endpoint, "/api/v1/health", within=5, bearer=address.key) == 200
        for request in house.standin.requests("/api/v1/load"):
            assert request["key"] == address.key


async def test_settings_become_options_of_the_load_and_are_not_saved(house: LemonadeHouse) -> None:
    async with house:
        await house.loaded(QWEN, context=8192, parallel=2, flash_attention="on", mmap=False, ubatch=512,
                           cache_type_k="q8_0", cache_type_v="q8_0", extra_args=("--swa-full",))  # fmt: skip
    (load,) = house.standin.requests("/api/v1/load")
    body = load["body"]
    assert body["save_options"] is False
    assert body["ctx_size"] == 16384
    assert body["llamacpp_args"] == "-np 2 -fa on --no-mmap -ub 512 -ctk q8_0 -ctv q8_0 --swa-full"


@pytest.mark.parametrize("argument", ["--port", "-ngl", "--ctx-size=9", "--metrics", "--mmproj"])
async def test_arguments_that_lemonade_refuses_are_refused_before(house: LemonadeHouse, argument: str) -> None:
    async with house:
        exit = await house.gone(house.start(extra_args=(argument, "1")))
    assert exit.cause is Cause.REFUSED
    assert f"Lemonade sets {argument.partition('=')[0]} itself" in exit.message
    assert house.standin.requests("start") == []


async def test_failed_load_evicts_all(house: LemonadeHouse) -> None:
    """The others' ends are noticed within a second, and are not believed to be accelerd's own."""
    house.standin.say(fail={GEMMA: "out of luck"})
    async with house:
        first, second = await house.loaded(QWEN, EMBED)
        house.standin.say(load_seconds=1.0)  # the second try takes so long: before it ends all is known
        failing = house.start(GEMMA)
        exits = [await house.gone(first), await house.gone(second)]
        assert "gone" not in house.heard.of(failing)
        failed = await house.gone(failing)
    for exit in exits:
        assert exit.cause is Cause.UNLOADED_BY_SERVER
        assert "the Lemonade Server unloaded it" in exit.message
        assert GEMMA in exit.message
    assert failed.cause is Cause.EXITED
    assert "out of luck" in failed.message


async def test_a_load_that_fails_for_want_of_a_file_costs_nobody_anything(house: LemonadeHouse) -> None:
    house.standin.say(fail={GEMMA: "file not found"})
    async with house:
        (first,) = await house.loaded(QWEN)
        failed = await house.gone(house.start(GEMMA))
        assert "file not found" in failed.message
        assert alive(house.pid(first))
        assert house.heard.of(first) == ["ready"]


async def test_the_npu_takes_only_one_of_two(house: LemonadeHouse) -> None:
    async with house:
        (hybrid,) = await house.loaded("Llama-3.2-3B-Hybrid")
        (whisper,) = await house.loaded("Whisper-Large-v3-Turbo")
        exit = await house.gone(hybrid)
        assert exit.cause is Cause.UNLOADED_BY_SERVER
        assert "the NPU takes only one of the two" in exit.message
        assert alive(house.pid(whisper))


async def test_flm_models_of_different_kinds_live_side_by_side(house: LemonadeHouse) -> None:
    """And of one kind, the next one takes the place of the first."""
    async with house:
        first, embeds = await house.loaded("qwen3-4b-FLM", "embed-gemma-300m-FLM")
        assert "gone" not in house.heard.of(first)
        await house.loaded("llama3.2-1b-FLM")
        exit = await house.gone(first)
        assert exit.cause is Cause.UNLOADED_BY_SERVER
        assert "the NPU takes only one of the two" in exit.message
        assert house.heard.of(embeds) == ["ready"]


async def test_a_backend_that_dies_is_noticed_at_once_and_called_dead(house: LemonadeHouse) -> None:
    async with house:
        first, second = await house.loaded(QWEN, EMBED)
        os.kill(house.pid(first), signal.SIGKILL)
        exit = await house.gone(first)
        assert exit.cause is Cause.EXITED
        assert "its backend in the Lemonade Server ended" in exit.message
        assert alive(house.pid(second))
        (again,) = await house.loaded(QWEN)
        assert alive(house.pid(again))


async def test_the_death_of_the_server_is_the_end_of_all_and_the_next_load_starts_it_anew(
    house: LemonadeHouse,
) -> None:
    async with house:
        first, second = await house.loaded(QWEN, EMBED)
        pids = house.pid(first), house.pid(second)
        os.kill(house.own.pid, signal.SIGKILL)
        for number in (first, second):
            exit = await house.gone(number)
            assert exit.cause is Cause.SIGNALED
            assert "the Lemonade Server that held it was ended by SIGKILL" in exit.message
        assert not any(map(alive, pids)), "told only when nothing of it is left"
        (again,) = await house.loaded(QWEN)
        assert alive(house.pid(again))
        assert len(house.standin.requests("start")) == 2


async def test_a_server_without_models_is_ended_after_a_while(house: LemonadeHouse) -> None:
    house.idle = 0.05
    async with house:
        (number,) = await house.loaded(QWEN)
        pid = house.own.pid
        await house.stopped(number)
        await house.until(lambda: not alive(pid))
        await house.loaded(QWEN)
        assert len(house.standin.requests("start")) == 2


async def test_a_server_that_does_not_start_says_why(house: LemonadeHouse) -> None:
    house.standin.say(start_fails="Error: no license")
    async with house:
        exit = await house.gone(house.start())
    assert exit.cause is Cause.EXITED
    assert "ended as soon as it was started: Error: no license" in exit.message


async def test_without_a_lemonade_it_says_so(house: LemonadeHouse) -> None:
    (house.standin.bin / "lemond").unlink()
    async with house:
        exit = await house.gone(house.start())
    assert exit.cause is Cause.NO_PROGRAM
    assert "neither lemond nor lemonade-server is in PATH" in exit.message


async def test_a_model_that_is_not_downloaded_is_not_downloaded_by_a_load(house: LemonadeHouse) -> None:
    async with house:
        exit = await house.gone(house.start("Qwen3-32B-GGUF"))
    assert exit.cause is Cause.NO_MODEL
    assert exit.message == "Qwen3-32B-GGUF is not downloaded: run lemonade pull Qwen3-32B-GGUF"
    assert house.standin.requests("/api/v1/load") == []


async def test_a_model_that_lemonade_does_not_know(house: LemonadeHouse) -> None:
    async with house:
        exit = await house.gone(house.start("Qwen3-4B-GUFF"))
    assert exit.cause is Cause.NO_MODEL
    assert exit.message == "Lemonade knows no model Qwen3-4B-GUFF: did you mean Qwen3-4B-GGUF?"


async def test_a_model_that_cannot_run_here(house: LemonadeHouse) -> None:
    async with house:
        exit = await house.gone(house.start("Windows-Only-NPU"))
    assert exit.cause is Cause.REFUSED
    assert "No Windows" in exit.message


async def test_a_residency_conflict_is_told_and_may_be_tried_again(house: LemonadeHouse) -> None:
    house.standin.say(conflict=[QWEN])
    async with house:
        exit = await house.gone(house.start(QWEN))
    assert exit.cause is Cause.SPAWN_FAILED
    assert "may not displace what it holds" in exit.message


async def test_out_of_memory_in_a_backend_is_told_as_that(house: LemonadeHouse) -> None:
    house.standin.say(fail={QWEN: "llama_model_load: unable to allocate ROCm0 buffer"})
    async with house:
        exit = await house.gone(house.start(QWEN))
    assert exit.cause is Cause.OOM_KILLED


async def test_stopped_while_it_loads(house: LemonadeHouse) -> None:
    """A load that is broken off would cost the others: it is awaited, then undone."""
    async with house:
        (first,) = await house.loaded(EMBED)
        house.standin.say(load_seconds=0.5)
        number = house.start(QWEN)
        await house.until(lambda: len(house.standin.requests("/api/v1/load")) == 2)
        exit = await house.stopped(number)
        assert exit.cause is Cause.STOPPED
        assert house.heard.of(first) == ["ready"]
        assert [one["body"]["model_name"] for one in house.standin.requests("/api/v1/unload")] == [QWEN]


async def test_a_backend_that_does_not_end_is_killed(house: LemonadeHouse) -> None:
    house.standin.say(stubborn=True)
    async with house:
        (number,) = await house.loaded(QWEN, stop_timeout=0.2)
        pid = house.pid(number)
        exit = await house.stopped(number)
        assert exit.cause is Cause.STOPPED
        assert not alive(pid)
        assert alive(house.own.pid)


async def test_what_a_backend_starts_is_accounted_to_its_model_and_the_server_to_nobody(house: LemonadeHouse) -> None:
    house.standin.say(helper_mib=64)
    async with house:
        first, second = await house.loaded(QWEN, EMBED)
        found = await asyncio.to_thread(house.supervisor.process_finder())
        assert len(found[first]) == len(found[second]) == 2
        assert not set(found[first]) & set(found[second])
        assert house.own.pid not in {*found[first], *found[second]}
        assert (await house.supervisor.memory(first) or 0) > 64 << 20


async def test_a_pin_is_told_to_those_that_know_pins(house: LemonadeHouse) -> None:
    async with house:
        await house.loaded(QWEN, pin=True)
    (load,) = house.standin.requests("/api/v1/load")
    assert load["body"]["pinned"] is True


async def test_an_older_one_is_not_told_of_pins(house: LemonadeHouse) -> None:
    house.standin.say(version="10.2.0")
    async with house:
        await house.loaded(QWEN, pin=True)
    (load,) = house.standin.requests("/api/v1/load")
    assert "pinned" not in load["body"]


async def test_the_server_and_its_backends_carry_the_mark_of_the_daemon(house: LemonadeHouse) -> None:
    """By it the next daemon finds what a crash has left."""
    async with house:
        (number,) = await house.loaded(QWEN)
        marked = {one.pid for one in ProcTable().owned(str(house.roots.runtime))}
        assert {house.own.pid, house.pid(number)} <= marked
        found = await asyncio.to_thread(Path(f"/proc/{house.pid(number)}/environ").read_bytes)
        assert f"{names.ENV_OWNER}={house.roots.runtime}".encode() in found.split(b"\0")


async def test_loads_wait_for_each_other_and_one_that_waits_can_be_stopped(house: LemonadeHouse) -> None:
    async with house:
        await house.loaded(EMBED)
        house.standin.say(load_seconds=0.7)
        first = house.start(QWEN)
        await house.until(lambda: len(house.standin.requests("/api/v1/load")) == 2)
        second = house.start(GEMMA)
        exit = await house.stopped(second)
        assert exit.cause is Cause.STOPPED
        assert "ready" not in house.heard.of(first), "not held up by the other's load"
        await house.ready(first)
        assert [one["body"]["model_name"] for one in house.standin.requests("/api/v1/load")] == [EMBED, QWEN]
        found = await asyncio.to_thread(house.supervisor.process_finder())
        assert len(found[first]) == 1


async def test_stopped_while_another_one_loads(house: LemonadeHouse) -> None:
    """Lemonade unloads nothing while it loads: after its grace the backend is killed, and the other's load goes on."""
    async with house:
        (first,) = await house.loaded(EMBED, stop_timeout=0.1)
        house.standin.say(load_seconds=1.5)
        second = house.start(QWEN)
        await house.until(lambda: len(house.standin.requests("/api/v1/load")) == 2)
        exit = await house.stopped(first)
        assert exit.cause is Cause.STOPPED
        assert "ready" not in house.heard.of(second)
        await house.ready(second)


async def test_what_flm_prints_is_kept_by_nobody(house: LemonadeHouse) -> None:
    """It prints what it is asked."""
    async with house:
        (number,) = await house.loaded("qwen3-4b-FLM")
        before = house.supervisor.output("qwen3-4b-FLM").total
        house.own._printed(b"[Prompt] a secret\n")
        assert house.supervisor.output("qwen3-4b-FLM").total == before
        await house.stopped(number)


async def test_the_next_daemon_knows_the_models_before_a_server_runs(house: LemonadeHouse) -> None:
    async with house:
        await house.loaded(QWEN)
    async with house:
        found = house.engine.traits(house.spec("qwen3-4b-FLM"))
        assert found.labels == ("reasoning", "tool-calling")
        assert len(house.standin.requests("start")) == 1


async def test_stopped_while_the_server_starts(house: LemonadeHouse) -> None:
    house.standin.say(start_seconds=30)
    async with house:
        number = house.start(QWEN)
        await house.until(lambda: None in house.home._servers and house.own.pid)
        pid = house.own.pid
        exit = await house.stopped(number)
        assert exit.cause is Cause.STOPPED
        assert not alive(pid)
        house.standin.say(start_seconds=0)
        await house.loaded(QWEN)
