"""Models inside a Lemonade Server that accelerd runs: how they are loaded, watched, accounted and ended.

Against the stand-in `lemond`.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from accelerd.base import names
from accelerd.base.exits import Cause
from accelerd.config.model import LemonadeSettings
from accelerd.engines.base import Endpoint
from accelerd.engines.http import request
from accelerd.memory.resident import resident
from accelerd.supervise.homes.child_home import ChildHome
from accelerd.supervise.homes.home import LaunchRequest, MainProcess, OnExit, OnOutput
from accelerd.supervise.process.processes import ProcessTable
from tests.npu.lemonade_kit import EMBED, GEMMA, QWEN, STANDINS, LemonadeBench
from tests.supervise.bench import alive


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[LemonadeBench]:
    """To be used as `async with bench:`; after the test no marked process may live."""
    with tempfile.TemporaryDirectory(prefix="acc-") as runtime:
        made = LemonadeBench(tmp_path, Path(runtime))
        yield made
        assert ProcessTable().owned(runtime) == []


async def test_a_model_is_asked_straight_at_its_backend(bench: LemonadeBench) -> None:
    async with bench:
        (number,) = await bench.loaded(QWEN)
        server = bench.own
        assert server.client is not None
        assert bench.endpoint(number) != server.client.address.endpoint.port
        endpoint = Endpoint(port=bench.endpoint(number))
        asked = b'{"prompt": "hi", "max_tokens": 1}'
        key = bench.own.backend_key
        assert (await request(endpoint, "/v1/completions", within=5, bearer=key, body=asked))[0] == 200
        assert (await request(endpoint, "/v1/completions", within=5, body=asked))[0] == 401, "for nobody else"
        assert key != server.client.address.key
        pid = bench.pid(number)
        assert pid != server.pid
        exit = await bench.stopped(number)
        assert exit.cause is Cause.STOPPED
        assert not alive(pid)
        assert alive(server.pid), "the server stays for the next one"


async def test_what_has_no_server_of_its_own_is_asked_at_lemonade(bench: LemonadeBench) -> None:
    async with bench:
        (number,) = await bench.loaded("Whisper-Large-v3-Turbo")
        assert bench.own.client is not None
        assert bench.endpoint(number) == bench.own.client.address.endpoint.port
        facts = bench.supervisor.facts(number)
        assert facts is not None
        assert facts.plan is not None
        assert facts.plan.secret == bench.own.client.address.key
        bench.supervisor.probe(number)
        assert await bench.heard.wait("probed", number) is True


async def test_one_server_for_all_models(bench: LemonadeBench) -> None:
    async with bench:
        first, second, third = await bench.loaded(QWEN, GEMMA, EMBED)
        assert len(bench.standin.requests("start")) == 1
        await bench.stopped(second)
        assert alive(bench.pid(first))
        assert alive(bench.pid(third))
        assert [one["body"]["model_name"] for one in bench.standin.requests("/api/v1/unload")] == [GEMMA]


async def test_the_users_own_folders_are_never_touched(bench: LemonadeBench) -> None:
    """--port is written back into the server's config.json: that must be accelerd's own."""
    home = bench.roots.home
    for folder in (home / ".cache/lemonade", home / ".config/lemonade"):
        folder.mkdir(parents=True)
        (folder / "config.json").write_text('{"port": 13305}')
    (home / ".cache/lemonade/user_models.json").write_text('{"Mine": {"recipe": "llamacpp"}}')
    async with bench:
        await bench.loaded(QWEN)
        assert bench.own.client is not None
        port = bench.own.client.address.endpoint.port
    for folder in (home / ".cache/lemonade", home / ".config/lemonade"):
        assert json.loads((folder / "config.json").read_text()) == {"port": 13305}
    own = bench.roots.cache / "lemonade"
    assert json.loads((own / "config.json").read_text())["port"] == port, "the trap is there, in a folder of our own"
    assert json.loads((own / "user_models.json").read_text()) == {"Mine": {"recipe": "llamacpp"}}
    assert (own / "config.json").stat().st_mode & 0o077 == 0


async def test_the_settings_that_matter_are_written_before_the_start(bench: LemonadeBench) -> None:
    async with bench:
        await bench.loaded(QWEN)
    said = json.loads((bench.roots.cache / "lemonade/config.json").read_text())
    assert said["host"] == "127.0.0.1"
    assert said["max_loaded_models"] == -1
    assert said["auto_evict"] is False
    assert said["flm"]["prefer_system"] is True, "without it lemond of 10.10 and later has no flm"
    assert said["no_broadcast"] is True


async def test_its_models_of_llama_cpp_run_with_accelerds_llama_server_and_nothing_is_fetched(
    bench: LemonadeBench,
) -> None:
    async with bench:
        (number,) = await bench.loaded(QWEN)
        command = await asyncio.to_thread(Path(f"/proc/{bench.pid(number)}/cmdline").read_bytes)
    program = str(bench.standin.bin / "llama-server")
    assert program.encode() in command
    said = json.loads((bench.roots.cache / "lemonade/config.json").read_text())
    assert {said["llamacpp"][name] for name in ("cpu_bin", "vulkan_bin", "rocm_bin", "cuda_bin")} == {program}
    assert said["no_fetch_executables"] is True
    assert said["auto_check_model_updates"] is False
    assert bench.standin.requests("fetch") == []


async def test_a_llama_server_out_of_path_is_used_and_one_in_path_is_not_preferred(bench: LemonadeBench) -> None:
    """The daemon's PATH need not have it, and what is there need not be the configured one."""
    elsewhere = bench.roots.home / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "llama-server").symlink_to(STANDINS / "llama-server")
    (bench.standin.bin / "llama-server").unlink()
    (bench.standin.bin / "llama-server").write_text("#!/bin/sh\nexit 1\n")
    (bench.standin.bin / "llama-server").chmod(0o755)
    bench.llama_server = str(elsewhere / "llama-server")
    async with bench:
        await bench.loaded(QWEN)
    assert bench.standin.requests("fetch") == []


async def test_without_a_llama_server_nothing_is_fetched_unless_it_is_asked_for(bench: LemonadeBench) -> None:
    (bench.standin.bin / "llama-server").unlink()
    async with bench:
        exit = await bench.gone(bench.start(QWEN))
        assert "Fetching executable artifacts is disabled for llamacpp:cpu" in exit.message
        assert "download_backends = true under [engines.lemonade]" in exit.message
        assert bench.standin.requests("fetch") == []
    bench.settings = LemonadeSettings(download_backends=True)
    async with bench:
        exit = await bench.gone(bench.start(QWEN))
        assert "download_backends" not in exit.message
        assert bench.standin.requests("fetch")


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://10.0.0.7"])
async def test_a_web_page_reaches_no_backend(bench: LemonadeBench, origin: str) -> None:
    async with bench:
        (number,) = await bench.loaded(QWEN)
        url, body = f"http://127.0.0.1:{bench.endpoint(number)}/v1/completions", b'{"prompt": "hi", "max_tokens": 1}'

        def status_and_origin(**headers: str) -> tuple[int, str | None]:
            asked = urllib.request.Request(url, body, {"Origin": origin, **headers})
            try:
                with urllib.request.urlopen(asked, timeout=5) as answer:
                    return answer.status, answer.headers.get("Access-Control-Allow-Origin")
            except urllib.error.HTTPError as error:
                return error.code, error.headers.get("Access-Control-Allow-Origin")

        assert await asyncio.to_thread(status_and_origin) == (401, None)
        key = bench.own.backend_key
        assert await asyncio.to_thread(status_and_origin, Authorization=f"Bearer {key}") == (200, None)


async def test_where_the_users_models_are_is_taken_over(bench: LemonadeBench) -> None:
    """From the settings of the user's own server, which lie in ~/.config after 11.7: they are newer than ~/.cache."""
    home = bench.roots.home
    for folder, name, models in ((".cache", "old", "Old"), (".config", "new", "New")):
        own = home / folder / "lemonade"
        own.mkdir(parents=True)
        (own / "config.json").write_text(json.dumps({"port": 1, "extra_models_dir": f"/models/{name}"}))
        (own / "user_models.json").write_text(json.dumps({models: {"recipe": "llamacpp"}}))
    async with bench:
        await bench.loaded(QWEN)
    own = bench.roots.cache / "lemonade"
    assert json.loads((own / "config.json").read_text())["extra_models_dir"] == "/models/new"
    assert json.loads((own / "user_models.json").read_text()) == {"New": {"recipe": "llamacpp"}}


async def test_a_model_that_the_user_registered_is_loaded_by_its_full_name(bench: LemonadeBench) -> None:
    bench.standin.say(models={"Mine": {"recipe": "llamacpp"}})
    async with bench:
        (number,) = await bench.loaded("user.Mine")
        assert [one["body"]["model_name"] for one in bench.standin.requests("/api/v1/load")] == ["user.Mine"]
        exit = await bench.stopped(number)
        assert exit.cause is Cause.STOPPED
        exit = await bench.gone(bench.start("user.Other"))
        assert exit.cause is Cause.NO_MODEL


async def test_what_lemonade_says_is_one_line_without_control_characters(bench: LemonadeBench) -> None:
    bench.standin.say(fail={QWEN: "Invalid arguments:\n  \x1b[31m-x\x07\n\tis not one"})
    async with bench:
        exit = await bench.gone(bench.start(QWEN))
    assert "Invalid arguments: [31m-x is not one" in exit.message
    assert exit.message.isprintable()


async def test_a_server_that_is_busy_with_an_unload_is_not_called_dead(bench: LemonadeBench) -> None:
    """It answers nobody meanwhile, for two seconds."""
    async with bench:
        first, second, third = await bench.loaded(QWEN, GEMMA, EMBED)
        bench.standin.say(pace=1)
        began = bench.own.pid
        bench.supervisor.stop(first, Cause.STOPPED)
        await bench.until(lambda: bench.standin.requests("/api/v1/unload"))
        os.kill(bench.pid(third), signal.SIGKILL)  # of this one it must be asked whether it is there
        exits = [await bench.gone(first), await bench.gone(third)]
        assert [exit.cause for exit in exits] == [Cause.STOPPED, Cause.EXITED]
        assert "its backend in the Lemonade Server ended" in exits[1].message
        assert bench.heard.of(second) == ["ready"]
        assert bench.own.pid == began
        bench.standin.say(pace=0)


async def test_the_key_is_in_the_environment_and_asked_for(bench: LemonadeBench) -> None:
    async with bench:
        await bench.loaded(QWEN)
        assert bench.own.client is not None
        address = bench.own.client.address
        (start,) = bench.standin.requests("start")
        assert start["env"]["LEMONADE_API_KEY"] == address.key
        assert address.key not in " ".join(start["argv"])
        endpoint = address.endpoint
        assert (await request(endpoint, "/api/v1/health", within=5))[0] == 401
        assert (await request(endpoint, "/api/v1/health", within=5, bearer=address.key))[0] == 200
        for sent in bench.standin.requests("/api/v1/load"):
            assert sent["key"] == address.key


async def test_settings_become_options_of_the_load_and_are_not_saved(bench: LemonadeBench) -> None:
    async with bench:
        await bench.loaded(QWEN, context=8192, parallel=2, flash_attention="on", mmap=False, ubatch=512,
                           cache_type_k="q8_0", cache_type_v="q8_0", extra_args=("--swa-full",))  # fmt: skip
    (load,) = bench.standin.requests("/api/v1/load")
    body = load["body"]
    assert body["save_options"] is False
    assert body["ctx_size"] == 16384
    assert (
        body["llamacpp_args"] == f"-np 2 -fa on --load-mode none -ub 512 -ctk q8_0 -ctv q8_0 --alias {QWEN} --swa-full"
    )


@pytest.mark.parametrize("argument", ["--port", "--ctx-size=9", "--metrics", "-mmu", "-hf", "-md"])
async def test_arguments_that_lemonade_refuses_are_refused_before(bench: LemonadeBench, argument: str) -> None:
    async with bench:
        exit = await bench.gone(bench.start(extra_args=(argument, "1")))
    assert exit.cause is Cause.REFUSED
    assert f"{argument.partition('=')[0]} is not allowed, because Lemonade sets it itself" in exit.message
    assert bench.standin.requests("start") == []


async def test_failed_load_evicts_all(bench: LemonadeBench) -> None:
    """The others' ends are noticed within a second, and are not believed to be accelerd's own."""
    bench.standin.say(fail={GEMMA: "out of luck"})
    async with bench:
        first, second = await bench.loaded(QWEN, EMBED)
        bench.standin.say(load_seconds=1.0)  # the second try takes so long: before it ends all is known
        failing = bench.start(GEMMA)
        exits = [await bench.gone(first), await bench.gone(second)]
        assert "gone" not in bench.heard.of(failing)
        failed = await bench.gone(failing)
    for exit in exits:
        assert exit.cause is Cause.UNLOADED_BY_SERVER
        assert "the Lemonade Server unloaded it" in exit.message
        assert GEMMA in exit.message
    assert failed.cause is Cause.EXITED
    assert "out of luck" in failed.message


async def test_a_load_that_fails_for_want_of_a_file_costs_nobody_anything(bench: LemonadeBench) -> None:
    bench.standin.say(fail={GEMMA: "file not found"})
    async with bench:
        (first,) = await bench.loaded(QWEN)
        failed = await bench.gone(bench.start(GEMMA))
        assert "file not found" in failed.message
        assert alive(bench.pid(first))
        assert bench.heard.of(first) == ["ready"]


async def test_the_npu_takes_only_one_of_two(bench: LemonadeBench) -> None:
    async with bench:
        (hybrid,) = await bench.loaded("Llama-3.2-3B-Hybrid")
        (whisper,) = await bench.loaded("Whisper-Large-v3-Turbo")
        exit = await bench.gone(hybrid)
        assert exit.cause is Cause.UNLOADED_BY_SERVER
        assert "the NPU runs only one of the two" in exit.message
        assert alive(bench.pid(whisper))


async def test_flm_models_of_different_kinds_live_side_by_side(bench: LemonadeBench) -> None:
    """And of one kind, the next one takes the place of the first."""
    async with bench:
        first, embeds = await bench.loaded("qwen3-4b-FLM", "embed-gemma-300m-FLM")
        assert "gone" not in bench.heard.of(first)
        await bench.loaded("llama3.2-1b-FLM")
        exit = await bench.gone(first)
        assert exit.cause is Cause.UNLOADED_BY_SERVER
        assert "the NPU runs only one of the two" in exit.message
        assert bench.heard.of(embeds) == ["ready"]


async def test_a_backend_that_dies_is_noticed_at_once_and_called_dead(bench: LemonadeBench) -> None:
    async with bench:
        first, second = await bench.loaded(QWEN, EMBED)
        os.kill(bench.pid(first), signal.SIGKILL)
        exit = await bench.gone(first)
        assert exit.cause is Cause.EXITED
        assert "its backend in the Lemonade Server ended" in exit.message
        assert alive(bench.pid(second))
        (again,) = await bench.loaded(QWEN)
        assert alive(bench.pid(again))


async def test_the_death_of_the_server_is_the_end_of_all_and_the_next_load_starts_it_anew(
    bench: LemonadeBench,
) -> None:
    async with bench:
        first, second = await bench.loaded(QWEN, EMBED)
        pids = bench.pid(first), bench.pid(second)
        os.kill(bench.own.pid, signal.SIGKILL)
        for number in (first, second):
            exit = await bench.gone(number)
            assert exit.cause is Cause.SIGNALED
            assert "the Lemonade Server that held it was ended by SIGKILL" in exit.message
        assert not any(map(alive, pids)), "told only when nothing of it is left"
        (again,) = await bench.loaded(QWEN)
        assert alive(bench.pid(again))
        assert len(bench.standin.requests("start")) == 2


class ForgetfulHome(ChildHome):
    """As systemd does where the bus was away when a process ended."""

    async def start(self, launch: LaunchRequest, on_output: OnOutput, on_exit: OnExit) -> MainProcess:
        main = await super().start(launch, on_output, on_exit)
        release = main.release

        async def forget() -> None:
            await release()
            main.status = main.result = None

        main.release = forget  # type: ignore[method-assign]
        return main


async def test_an_end_of_the_server_that_nobody_saw_is_told_as_that(bench: LemonadeBench) -> None:
    bench.extra = {"systemd": ForgetfulHome()}
    async with bench:
        (number,) = await bench.loaded(QWEN)
        os.kill(bench.own.pid, signal.SIGKILL)
        exit = await bench.gone(number)
        assert exit.cause is Cause.EXITED
        assert "the Lemonade Server that held it ended" in exit.message


async def test_a_server_without_models_is_ended_after_a_while(bench: LemonadeBench) -> None:
    bench.idle = 0.05
    async with bench:
        (number,) = await bench.loaded(QWEN)
        pid = bench.own.pid
        await bench.stopped(number)
        await bench.until(lambda: not alive(pid))
        await bench.loaded(QWEN)
        assert len(bench.standin.requests("start")) == 2


async def test_a_server_that_does_not_start_says_why(bench: LemonadeBench) -> None:
    bench.standin.say(start_fails="Error: no license")
    async with bench:
        exit = await bench.gone(bench.start())
    assert exit.cause is Cause.EXITED
    assert "ended as soon as it was started: Error: no license" in exit.message


async def test_without_a_lemonade_it_says_so(bench: LemonadeBench) -> None:
    (bench.standin.bin / "lemond").unlink()
    async with bench:
        exit = await bench.gone(bench.start())
    assert exit.cause is Cause.NO_PROGRAM
    assert "neither lemond nor lemonade-server is on PATH" in exit.message


async def test_a_model_that_is_not_downloaded_is_not_downloaded_by_a_load(bench: LemonadeBench) -> None:
    async with bench:
        exit = await bench.gone(bench.start("Qwen3-32B-GGUF"))
    assert exit.cause is Cause.NO_MODEL
    assert "run lemonade pull Qwen3-32B-GGUF" in exit.message
    assert "start a Lemonade Server of your own" in exit.message, "accelerd's has a key that its client does not know"
    assert f"{bench.roots.home}/.cache/huggingface/hub" in exit.message
    assert "HF_HOME" in exit.message
    assert bench.standin.requests("/api/v1/load") == []


async def test_a_model_that_lemonade_does_not_know(bench: LemonadeBench) -> None:
    async with bench:
        exit = await bench.gone(bench.start("Qwen3-4B-GUFF"))
    assert exit.cause is Cause.NO_MODEL
    assert exit.message == "Lemonade knows no model Qwen3-4B-GUFF: did you mean Qwen3-4B-GGUF?"


async def test_a_model_that_cannot_run_here(bench: LemonadeBench) -> None:
    async with bench:
        exit = await bench.gone(bench.start("Windows-Only-NPU"))
    assert exit.cause is Cause.REFUSED
    assert "No Windows" in exit.message


async def test_a_residency_conflict_is_told_and_may_be_tried_again(bench: LemonadeBench) -> None:
    bench.standin.say(conflict=[QWEN])
    async with bench:
        exit = await bench.gone(bench.start(QWEN))
    assert exit.cause is Cause.SPAWN_FAILED
    assert "may not displace what it holds" in exit.message


async def test_out_of_memory_in_a_backend_is_told_as_that(bench: LemonadeBench) -> None:
    bench.standin.say(fail={QWEN: "llama_model_load: unable to allocate ROCm0 buffer"})
    async with bench:
        exit = await bench.gone(bench.start(QWEN))
    assert exit.cause is Cause.OOM_KILLED


async def test_stopped_while_it_loads(bench: LemonadeBench) -> None:
    """A load that is broken off would cost the others: it is awaited, then undone."""
    async with bench:
        (first,) = await bench.loaded(EMBED)
        bench.standin.say(load_seconds=0.5)
        number = bench.start(QWEN)
        await bench.until(lambda: len(bench.standin.requests("/api/v1/load")) == 2)
        exit = await bench.stopped(number)
        assert exit.cause is Cause.STOPPED
        assert bench.heard.of(first) == ["ready"]
        assert [one["body"]["model_name"] for one in bench.standin.requests("/api/v1/unload")] == [QWEN]


async def test_a_backend_that_does_not_end_is_killed(bench: LemonadeBench) -> None:
    bench.standin.say(stubborn=True)
    async with bench:
        (number,) = await bench.loaded(QWEN, stop_timeout=0.2)
        pid = bench.pid(number)
        exit = await bench.stopped(number)
        assert exit.cause is Cause.STOPPED
        assert not alive(pid)
        assert alive(bench.own.pid)


async def test_what_a_backend_starts_is_accounted_to_its_model_and_the_server_to_nobody(bench: LemonadeBench) -> None:
    bench.standin.say(helper_mib=64)
    async with bench:
        first, second = await bench.loaded(QWEN, EMBED)
        found = await asyncio.to_thread(bench.supervisor.process_finder())
        assert len(found[first]) == len(found[second]) == 2
        assert not set(found[first]) & set(found[second])
        assert bench.own.pid not in {*found[first], *found[second]}
        assert resident(Path("/proc"), found[first]) > 64 << 20


async def test_a_pin_is_told_to_those_that_know_pins(bench: LemonadeBench) -> None:
    async with bench:
        await bench.loaded(QWEN, pin=True)
    (load,) = bench.standin.requests("/api/v1/load")
    assert load["body"]["pinned"] is True


@pytest.mark.parametrize(("version", "told"), [("10.7.0", False), ("10.8.0", True)])
async def test_an_older_one_is_not_told_of_pins(bench: LemonadeBench, version: str, told: bool) -> None:
    bench.standin.say(version=version)
    async with bench:
        await bench.loaded(QWEN, pin=True)
    (load,) = bench.standin.requests("/api/v1/load")
    assert ("pinned" in load["body"]) is told


async def test_the_server_and_its_backends_carry_the_mark_of_the_daemon(bench: LemonadeBench) -> None:
    """By it the next daemon finds what a crash has left."""
    async with bench:
        (number,) = await bench.loaded(QWEN)
        marked = {one.pid for one in ProcessTable().owned(str(bench.roots.runtime))}
        assert {bench.own.pid, bench.pid(number)} <= marked
        found = await asyncio.to_thread(Path(f"/proc/{bench.pid(number)}/environ").read_bytes)
        assert f"{names.ENV_OWNER}={bench.roots.runtime}".encode() in found.split(b"\0")


async def test_loads_wait_for_each_other_and_one_that_waits_can_be_stopped(bench: LemonadeBench) -> None:
    async with bench:
        await bench.loaded(EMBED)
        bench.standin.say(load_seconds=0.7)
        first = bench.start(QWEN)
        await bench.until(lambda: len(bench.standin.requests("/api/v1/load")) == 2)
        second = bench.start(GEMMA)
        exit = await bench.stopped(second)
        assert exit.cause is Cause.STOPPED
        assert "ready" not in bench.heard.of(first), "not held up by the other's load"
        await bench.ready(first)
        assert [one["body"]["model_name"] for one in bench.standin.requests("/api/v1/load")] == [EMBED, QWEN]
        found = await asyncio.to_thread(bench.supervisor.process_finder())
        assert len(found[first]) == 1


async def test_stopped_while_another_one_loads(bench: LemonadeBench) -> None:
    """Lemonade unloads nothing while it loads: after its grace the backend is killed, and the other's load goes on."""
    async with bench:
        (first,) = await bench.loaded(EMBED, stop_timeout=0.1)
        bench.standin.say(load_seconds=1.5)
        second = bench.start(QWEN)
        await bench.until(lambda: len(bench.standin.requests("/api/v1/load")) == 2)
        exit = await bench.stopped(first)
        assert exit.cause is Cause.STOPPED
        assert "ready" not in bench.heard.of(second)
        await bench.ready(second)


async def test_what_flm_prints_is_kept_by_nobody(bench: LemonadeBench) -> None:
    """It prints what it is asked."""
    async with bench:
        (number,) = await bench.loaded("qwen3-4b-FLM")
        before = bench.supervisor.output("qwen3-4b-FLM").total
        bench.own._printed(b"[Prompt] a secret\n")
        assert bench.supervisor.output("qwen3-4b-FLM").total == before
        await bench.stopped(number)


async def test_the_next_daemon_knows_the_models_before_a_server_runs(bench: LemonadeBench) -> None:
    async with bench:
        await bench.loaded(QWEN)
    async with bench:
        found = bench.engine.traits(bench.spec("qwen3-4b-FLM"))
        assert found.labels == ("reasoning", "tool-calling")
        assert len(bench.standin.requests("start")) == 1


async def test_stopped_while_the_server_starts(bench: LemonadeBench) -> None:
    bench.standin.say(start_seconds=30)
    async with bench:
        number = bench.start(QWEN)
        await bench.until(lambda: None in bench.home._servers and bench.own.pid)
        pid = bench.own.pid
        exit = await bench.stopped(number)
        assert exit.cause is Cause.STOPPED
        assert not alive(pid)
        bench.standin.say(start_seconds=0)
        await bench.loaded(QWEN)
