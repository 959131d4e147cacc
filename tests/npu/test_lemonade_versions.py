"""Both generations of Lemonade, told apart by what they say of themselves: against stand-ins of 10.0, 10.2, 11.7 and
what comes after, and against a real lemond where ACCELERD_TEST_LEMOND names one (the first two tests)."""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from accelerd.base.errors import AccelError
from accelerd.base.exits import Cause
from accelerd.base.ports import Roots
from accelerd.engines.base import OwnedServer
from accelerd.engines.lemonade.program import features, find
from accelerd.supervise.homes.lemonade import program
from accelerd.supervise.process.processes import ProcessTable
from tests.npu.lemonade_kit import EMBED, QWEN, REAL, LemonadeBench
from tests.supervise.bench import alive

VERSIONS = ["10.0.0", "10.2.0", "10.4.0", "10.8.0", "11.7.0", "11.8.0"]


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[LemonadeBench]:
    with tempfile.TemporaryDirectory(prefix="acc-") as runtime:
        yield LemonadeBench(tmp_path, Path(runtime), ())
        assert ProcessTable().owned(runtime) == []


def generation(bench: LemonadeBench, version: str) -> None:
    """Have this version, and no other."""
    legacy = version.startswith("10.0")
    name = "lemonade-server" if legacy else "lemond"
    (bench.standin.bin / name).symlink_to(Path(__file__).parent / "standins" / name)
    bench.standin.say(version=version)


async def test_the_program_is_known_by_its_help(bench: LemonadeBench) -> None:
    """Of a real lemond too, where there is one."""
    if REAL:
        (bench.standin.bin / "lemond").symlink_to(REAL)
    else:
        generation(bench, "11.8.0")
    found = await find(None, {"PATH": bench.standin.path, "HOME": str(bench.roots.home)})
    assert found.path.endswith("/lemond")
    assert not found.legacy
    if not REAL:
        assert found.config_dir
        assert found.no_broadcast


async def test_the_server_starts_in_its_own_folders_and_ends(bench: LemonadeBench) -> None:
    """Of a real lemond too, where there is one: a model that nobody has is refused by name."""
    if REAL:
        (bench.standin.bin / "lemond").symlink_to(REAL)
    else:
        generation(bench, "11.7.0")
    async with bench:
        exit = await bench.gone(bench.start("No-Such-Model-GGUF"))
        assert exit.cause is Cause.NO_MODEL
        assert "Lemonade knows no model No-Such-Model-GGUF" in exit.message
        pid = bench.own.pid
        assert alive(pid)
        assert bench.own.client is not None
        assert (await bench.own.client.health()).release >= (10, 1)
    assert not alive(pid)
    assert not (bench.roots.home / ".cache/lemonade").exists()
    assert not (bench.roots.home / ".config/lemonade").exists()


@pytest.mark.parametrize("version", VERSIONS)
async def test_every_generation_serves(bench: LemonadeBench, version: str) -> None:
    generation(bench, version)
    async with bench:
        first, second = await bench.loaded(QWEN, EMBED)
        assert bench.own.client is not None
        assert (await bench.own.client.health()).version == version
        pid = bench.pid(first)
        assert pid != bench.own.pid, "10.0 does not tell it: then who listens is looked for"
        exit = await bench.stopped(first)
        assert exit.cause is Cause.STOPPED
        assert not alive(pid)
        assert bench.heard.of(second) == ["ready"]
    assert not (bench.roots.home / ".cache/lemonade").exists(), "the user's own"


async def test_after_11_7_the_settings_lie_in_a_folder_of_their_own(bench: LemonadeBench) -> None:
    generation(bench, "11.8.0")
    async with bench:
        await bench.loaded(QWEN)
    assert json.loads((bench.roots.state / "lemonade/config.json").read_text())["max_loaded_models"] == -1
    (start,) = bench.standin.requests("start")
    assert start["argv"][:2] == [str(bench.roots.cache / "lemonade"), str(bench.roots.state / "lemonade")]


async def test_the_older_generation_is_told_by_options_and_variables(bench: LemonadeBench) -> None:
    generation(bench, "10.0.0")
    async with bench:
        await bench.loaded(QWEN)
    (start,) = bench.standin.requests("start")
    assert start["argv"][0] == "serve"
    assert "--no-tray" in start["argv"]
    assert start["env"]["LEMONADE_NO_BROADCAST"] == "1"
    assert start["argv"][start["argv"].index("--max-loaded-models") + 1] == "-1"
    assert start["env"]["LEMONADE_CACHE_DIR"] == str(bench.roots.cache / "lemonade")


@pytest.mark.parametrize("version", ["10.1.0", "11.7.0", "11.8.0"])
async def test_its_log_is_not_that_of_the_users_own(bench: LemonadeBench, version: str) -> None:
    generation(bench, version)
    log = bench.roots.runtime / "lemonade/lemonade-server.log"  # XDG_RUNTIME_DIR is the runtime directory here
    log.parent.mkdir()
    log.write_text("theirs\n")
    async with bench:
        await bench.loaded(QWEN)
    assert log.read_text() == "theirs\n"


async def test_the_older_one_runs_beside_the_users_own(bench: LemonadeBench) -> None:
    """10.0 runs once for a user, by a lock in XDG_RUNTIME_DIR: accelerd's has one of its own."""
    generation(bench, "10.0.0")
    env = {"PATH": bench.standin.path, "HOME": str(bench.roots.home), "XDG_RUNTIME_DIR": str(bench.roots.runtime)}
    argv = [str(bench.standin.bin / "lemonade-server"), "serve", "--port", "0"]
    users = await asyncio.create_subprocess_exec(
        *argv, env=env, stdout=asyncio.subprocess.DEVNULL, stdin=asyncio.subprocess.DEVNULL
    )
    try:
        await bench.until(lambda: len(bench.standin.requests("start")) == 1)
        async with bench:
            await bench.loaded(QWEN)
        assert users.returncode is None
    finally:
        users.terminate()
        await users.wait()


async def test_the_newer_generation_is_taken_where_there_are_both(bench: LemonadeBench) -> None:
    generation(bench, "10.0.0")
    generation(bench, "11.7.0")
    found = await find(None, {"PATH": bench.standin.path, "HOME": str(bench.roots.home)})
    assert os.path.basename(found.path) == "lemond"


async def test_a_program_that_is_named_and_missing() -> None:
    with pytest.raises(AccelError, match=r"cannot find the program lemond-of-mine: it is not on PATH"):
        await find("lemond-of-mine", {"PATH": "/usr/bin"})


def test_what_a_person_has_set_in_the_private_folder_stays(tmp_path: Path) -> None:
    roots = Roots(tmp_path / "c.toml", tmp_path / "run", tmp_path / "state", tmp_path / "cache", home=tmp_path)
    folders = program.Folders.of(roots)
    lemond = features("/bin/lemond", "usage: lemond [cache_dir] --port")
    program.prepare(lemond, folders, 1, {}, OwnedServer())
    file = folders.cache / "config.json"
    said = json.loads(file.read_text())
    file.write_text(json.dumps({**said, "llamacpp": {"backend": "rocm"}, "broadcast": True}))
    program.prepare(lemond, folders, 2, {}, OwnedServer())
    said = json.loads(file.read_text())
    assert said["llamacpp"] == {"backend": "rocm", "prefer_system": True}
    assert said["port"] == 2
    assert "broadcast" not in said, "its older name decides, or a lemond of 11.6 would refuse both"
