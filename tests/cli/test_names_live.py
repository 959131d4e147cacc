"""Names with any printable characters: every command of accelctl takes them, and so do the endpoint and the journal."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, unquote

import pytest

from accelerd.bus.paths import model_path
from accelerd.cli import run
from tests.daemon.kit import QUICK, Site
from tests.harness import Daemon, DaemonFactory

from .conftest import Result, Stream
from .test_config import gguf

NAMES = [
    "claude-sonnet-4@20250514", "model[1m]", "My Model (new)", "日本語 7B", "Größe", "it's", 'say "hi"', "a/b:c",
    "a%2f", "50% off", "$HOME", "back\\slash", "a;b|c&d", "emoji 🦙", "*", "#1", "é", "x" * 128,
]  # fmt: skip


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    directory = tmp_path_factory.mktemp("names")
    site = Site(directory)
    toml = [QUICK, *(site.model(name, memory=5_000_000) for name in NAMES)]
    with DaemonFactory(directory) as daemons:
        yield daemons.start("".join(toml))


def ctl(daemon: Daemon, *argv: str) -> Result:
    out, err = Stream(), Stream()
    env = daemon.env | {"ACCELERD_SOCKET": str(daemon.control_socket)}
    return Result(run(argv, env, Stream(), out, err), out.getvalue(), err.getvalue())


@pytest.mark.parametrize("name", NAMES)
def test_every_command_and_endpoint_takes_it(daemon: Daemon, name: str) -> None:
    answer = daemon.chat(name)
    assert (answer.status, unquote(answer.headers["x-accelerd-model"])) == (200, name), answer.body
    assert daemon.send("GET", f"/v1/models/{quote(name, safe='')}").json()["id"] == name
    [row] = json.loads(ctl(daemon, "status", name, "--json").out)["models"]
    assert (row["name"], row["state"]) == (name, "ready")
    assert json.loads(ctl(daemon, "explain", name, "--json").out)["model"] == name
    assert "fake server" in ctl(daemon, "logs", name).out
    assert json.loads(ctl(daemon, "chat", name, "--json", "--", "hi").out)["content"]
    assert ctl(daemon, "unload", name).out.startswith(f"{name} is stopped")
    said = ctl(daemon, "reset", name).out
    assert shlex.split(said.partition("load it: ")[2]) == ["accelctl", "load", name]
    assert ctl(daemon, "load", name).out.startswith(f"{name} is ready")
    assert ctl(daemon, "unload", "--", name).status == 0


def test_they_are_listed_as_they_are_and_none_meets_another_on_the_bus(daemon: Daemon) -> None:
    assert ctl(daemon, "models", "--names").out.splitlines()[: len(NAMES)] == NAMES
    assert [one["id"] for one in daemon.send("GET", "/v1/models").json()["data"]] == NAMES
    assert len({model_path(name) for name in NAMES}) == len(NAMES)


def test_a_model_is_added_removed_and_checked_under_each(daemon: Daemon, tmp_path: Path) -> None:
    file = gguf(tmp_path, "m.gguf")
    env = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "ACCELERD_SOCKET": str(tmp_path / "none")}

    def here(*argv: str) -> Result:
        out, err = Stream(), Stream()
        return Result(run(argv, env, Stream(), out, err), out.getvalue(), err.getvalue())

    for name in NAMES:
        assert here("add", str(file), f"--name={name}").status == 0, name
    found = json.loads(here("config", "check", "--json").out)
    assert sorted(found["models"]) == sorted(NAMES)
    assert not [one for one in found["problems"] if one.get("severity") != "warning"]
    for name in NAMES:
        assert here("remove", name).status == 0, name
    assert json.loads(here("config", "check", "--json").out)["models"] == []
