"""A fork of llama-server with other ways to say the same: it is run with what it has, and never less safely."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from accelerd.engines.base import Endpoint, LaunchPlan
from accelerd.engines.http import request
from accelerd.supervise.process.endpoint_files import prepare, remove_strays
from tests.daemon.kit import QUICK, Site, side_by_side
from tests.harness import Daemon, DaemonFactory, eventually

FORK = {"FAKE_FORK": "1"}


def fork_model(site: Site, name: str, mode: str = "ok", **settings: object) -> str:
    """`--help` belongs to a file: the fork's is another one than the fake server's."""
    wrapper = site.directory / "fork"
    wrapper.write_text(f'#!/bin/sh\nexec {site.program} "$@"\n')
    wrapper.chmod(0o755)
    return site.model(name, mode, FORK, binary=str(wrapper), **settings)


def spawn_of(site: Site, word: str) -> dict[str, Any]:
    """The last start with this word on its command line: a fork has no --alias by which to find it."""
    return [one for one in site.events("spawn") if word in one["argv"]][-1]


def key_files(daemon: Daemon) -> list[Path]:
    return sorted((Path(daemon.env["XDG_RUNTIME_DIR"]) / "accelerd/instances").glob("*.key"))


@pytest.fixture(scope="module")
def daemon(factory: DaemonFactory, sites: Site) -> Daemon:
    toml = [
        fork_model(sites, "m", kv_cache_type="q6_0"),
        fork_model(sites, "embeds", embeddings=True),
        fork_model(sites, "slow", "slow-load:30"),
        fork_model(sites, "fails", "exit:3"),
    ]
    return factory.start(QUICK + "".join(toml))


def test_it_serves_and_its_key_is_nowhere_to_be_seen(daemon: Daemon, sites: Site) -> None:
    assert daemon.chat("m").status == 200
    spawned = spawn_of(sites, "--cache-type-k")
    argv = spawned["argv"]
    assert argv[argv.index("--cache-type-k") + 1] == "q6_0"
    assert "--fit" not in argv, "a switch there"
    assert "LLAMA_API_KEY" not in spawned["env"]
    assert not Path(argv[argv.index("--api-key-file") + 1]).exists(), "it has read it"
    assert key_files(daemon) == []


async def test_others_on_this_machine_cannot_use_it(daemon: Daemon, sites: Site) -> None:
    assert daemon.chat("m").status == 200
    argv = spawn_of(sites, "--cache-type-k")["argv"]
    port = int(argv[argv.index("--port") + 1])
    for key in ("", "guessed"):
        body = b'{"prompt": "x"}'
        status, _ = await request(Endpoint(port=port), "/v1/completions", within=5.0, bearer=key, body=body, most=1000)
        assert status == 401


def test_its_name_for_embeddings_is_understood(daemon: Daemon, sites: Site) -> None:
    answer = daemon.send("POST", "/v1/embeddings", {"model": "embeds", "input": "a"})
    assert answer.status == 200
    assert spawn_of(sites, "--embeddings")


def test_while_it_loads_only_this_user_can_read_the_key(daemon: Daemon) -> None:
    with side_by_side() as do:
        loading = do(daemon.events, "load?model=slow")
        (file,) = eventually(lambda: key_files(daemon), "it is written")
        assert file.stat().st_mode & 0o777 == 0o600
        assert len(file.read_text().strip()) == 64
        assert daemon.events("unload?model=slow&force=1")[-1]["event"] == "stopped"
        assert loading.result()[-1]["event"] == "error"
    assert key_files(daemon) == []


def test_a_start_that_fails_leaves_no_key(daemon: Daemon) -> None:
    assert daemon.chat("fails").status == 503
    assert key_files(daemon) == []


def test_what_a_killed_daemon_leaves_the_next_one_removes(tmp_path: Path) -> None:
    """Where an engine that lives on has not read its key yet, the file stays."""
    left, used, other = tmp_path / "1.key", tmp_path / "2.key", tmp_path / "3.json"
    for path in (left, used):
        prepare(LaunchPlan("m", (), {}, Endpoint(port=1), "secret", (), key_file=str(path)))
    other.touch()
    remove_strays(tmp_path, {str(used)})
    assert sorted(tmp_path.iterdir()) == [used, other]
