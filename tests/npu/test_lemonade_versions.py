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

from accelerd.base.exits import Cause
from accelerd.base.ports import Roots
from accelerd.supervise.homes.lemonade import program
from accelerd.supervise.process.processes import ProcTable
from accelerd.supervise.process.spawn import NoProgram
from tests.npu.lemonade_kit import EMBED, QWEN, REAL, LemonadeHouse
from tests.supervise.house import alive

VERSIONS = ["10.0.0", "10.2.0", "10.10.0", "11.7.0", "11.8.0"]


@pytest.fixture
def house(tmp_path: Path) -> Iterator[LemonadeHouse]:
    with tempfile.TemporaryDirectory(prefix="acc-") as runtime:
        yield LemonadeHouse(tmp_path, Path(runtime), ())
        assert ProcTable().owned(runtime) == []


def generation(house: LemonadeHouse, version: str) -> None:
    """Have this version, and no other."""
    legacy = version.startswith("10.0")
    name = "lemonade-server" if legacy else "lemond"
    (house.standin.bin / name).symlink_to(Path(__file__).parent / "standins" / name)
    house.standin.say(version=version)


async def test_the_program_is_known_by_its_help(house: LemonadeHouse) -> None:
    """Of a real lemond too, where there is one."""
    if REAL:
        (house.standin.bin / "lemond").symlink_to(REAL)
    else:
        generation(house, "11.8.0")
    found = await program.find(None, {"PATH": house.standin.path, "HOME": str(house.roots.home)})
    assert found.path.endswith("/lemond")
    assert not found.legacy
    if not REAL:
        assert found.config_dir
        assert found.no_broadcast


async def test_the_server_starts_in_its_own_folders_and_ends(house: LemonadeHouse) -> None:
    """Of a real lemond too, where there is one: a model that nobody has is refused by name."""
    if REAL:
        (house.standin.bin / "lemond").symlink_to(REAL)
    else:
        generation(house, "11.7.0")
    async with house:
        exit = await house.gone(house.start("No-Such-Model-GGUF"))
        assert exit.cause is Cause.NO_MODEL
        assert "Lemonade knows no model No-Such-Model-GGUF" in exit.message
        pid = house.own.pid
        assert alive(pid)
        assert house.own.client is not None
        assert (await house.own.client.health()).release >= (10, 1)
    assert not alive(pid)
    assert not (house.roots.home / ".cache/lemonade").exists()
    assert not (house.roots.home / ".config/lemonade").exists()


@pytest.mark.parametrize("version", VERSIONS)
async def test_every_generation_serves(house: LemonadeHouse, version: str) -> None:
    generation(house, version)
    async with house:
        first, second = await house.loaded(QWEN, EMBED)
        assert house.own.client is not None
        assert (await house.own.client.health()).version == version
        pid = house.pid(first)
        assert pid != house.own.pid, "10.0 does not tell it: then who listens is looked for"
        exit = await house.stopped(first)
        assert exit.cause is Cause.STOPPED
        assert not alive(pid)
        assert house.heard.of(second) == ["ready"]
    assert not (house.roots.home / ".cache/lemonade").exists(), "the user's own"


async def test_after_11_7_the_settings_lie_in_a_folder_of_their_own(house: LemonadeHouse) -> None:
    generation(house, "11.8.0")
    async with house:
        await house.loaded(QWEN)
    assert json.loads((house.roots.state / "lemonade/config.json").read_text())["max_loaded_models"] == -1
    (start,) = house.standin.requests("start")
    assert start["argv"][:2] == [str(house.roots.cache / "lemonade"), str(house.roots.state / "lemonade")]


async def test_the_older_generation_is_told_by_options_and_variables(house: LemonadeHouse) -> None:
    generation(house, "10.0.0")
    async with house:
        await house.loaded(QWEN)
    (start,) = house.standin.requests("start")
    assert start["argv"][0] == "serve"
    assert "--no-tray" in start["argv"]
    assert start["env"]["LEMONADE_NO_BROADCAST"] == "1"
    assert start["argv"][start["argv"].index("--max-loaded-models") + 1] == "-1"
    assert start["env"]["LEMONADE_CACHE_DIR"] == str(house.roots.cache / "lemonade")


async def test_the_older_one_runs_beside_the_users_own(house: LemonadeHouse) -> None:
    """10.0 runs once for a user, by a lock in XDG_RUNTIME_DIR: accelerd's has one of its own."""
    generation(house, "10.0.0")
    env = {"PATH": house.standin.path, "HOME": str(house.roots.home), "XDG_RUNTIME_DIR": str(house.roots.runtime)}
    argv = [str(house.standin.bin / "lemonade-server"), "serve", "--port", "0"]
    users = await asyncio.create_subprocess_exec(
        *argv, env=env, stdout=asyncio.subprocess.DEVNULL, stdin=asyncio.subprocess.DEVNULL
    )
    try:
        await house.until(lambda: len(house.standin.requests("start")) == 1)
        async with house:
            await house.loaded(QWEN)
        assert users.returncode is None
    finally:
        users.terminate()
        await users.wait()


async def test_the_newer_generation_is_taken_where_there_are_both(house: LemonadeHouse) -> None:
    generation(house, "10.0.0")
    generation(house, "11.7.0")
    found = await program.find(None, {"PATH": house.standin.path, "HOME": str(house.roots.home)})
    assert os.path.basename(found.path) == "lemond"


async def test_a_program_that_is_named_and_missing() -> None:
    with pytest.raises(NoProgram, match=r"no such program in PATH"):
        await program.find("lemond-of-mine", {"PATH": "/usr/bin"})


def test_what_a_person_has_set_in_the_private_folder_stays(tmp_path: Path) -> None:
    roots = Roots(tmp_path / "c.toml", tmp_path / "run", tmp_path / "state", tmp_path / "cache", home=tmp_path)
    folders = program.Folders.of(roots)
    lemond = program.features("/bin/lemond", "usage: lemond [cache_dir] --port")
    program.prepare(lemond, folders, 1, {})
    file = folders.cache / "config.json"
    said = json.loads(file.read_text())
    file.write_text(json.dumps({**said, "llamacpp": {"backend": "rocm"}, "broadcast": True}))
    program.prepare(lemond, folders, 2, {})
    said = json.loads(file.read_text())
    assert said["llamacpp"] == {"backend": "rocm", "prefer_system": True}
    assert said["port"] == 2
    assert "broadcast" not in said, "its older name decides, or a lemond of 11.6 would refuse both"
