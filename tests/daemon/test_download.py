"""Downloads by the whole daemon, from a local hub: progress, leaving and coming back, what configured models see."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.downloads.hub_server import Hub, Repository, serving
from tests.harness import Daemon, DaemonFactory, UnixConnection, command_line, eventually
from tests.models import make_model

REPO = "tiny/hello-GGUF"
SIZE = 3 << 20


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    folder = tmp_path / "hub" / REPO
    folder.mkdir(parents=True)
    shutil.copy(make_model(tmp_path, size_mb=SIZE >> 20), folder / "hello-Q4_K_M.gguf")
    with serving() as running:
        running.repositories[REPO] = Repository(folder)
        yield running


@pytest.fixture
def daemon(daemons: DaemonFactory, hub: Hub, tmp_path: Path) -> Daemon:
    env = {"HF_ENDPOINT": hub.base, "HF_HOME": str(tmp_path / "cache"), "NO_PROXY": "*", "no_proxy": "*"}
    return daemons.start(env=env)


def download(daemon: Daemon, source: str = REPO) -> tuple[UnixConnection, Iterator[dict[str, Any]]]:
    """The connection of a client that downloads, and the events that it gets."""
    connection = UnixConnection(daemon.control_socket)
    connection.request("POST", f"/accelerd/v1/download?source={source}")
    response = connection.getresponse()

    def events() -> Iterator[dict[str, Any]]:
        with response:
            while line := response.readline():
                yield json.loads(line)
        connection.close()

    return connection, events()


def processes(daemon: Daemon) -> list[psutil.Process]:
    return [one for one in psutil.Process(daemon.process.pid).children() if "accelerd.downloads" in command_line(one)]


def results(daemon: Daemon) -> list[str]:
    """Of the jobs that download, the oldest first."""
    return [job["result"] for job in daemon.control("GET", "jobs").json()["jobs"] if job["kind"] == "download"]


def test_bytes_and_the_time_left_are_told_until_everything_is_here(daemon: Daemon, hub: Hub) -> None:
    hub.speed = 2 << 20
    *steps, last = download(daemon, f"hf:{REPO}")[1]
    assert {step["event"] for step in steps} == {"progress"}
    arrived = [step["bytes"] for step in steps]
    assert arrived == sorted(arrived)
    assert any(0 < step["bytes"] < step["total"] and step["rate"] and step["remaining"] for step in steps), steps
    assert (last["event"], last["source"], last["kind"]) == ("downloaded", f"{REPO}:Q4_K_M", "chat")
    assert Path(last["model"]).stat().st_size > SIZE // 2
    assert not processes(daemon)
    sent = hub.sent
    [again] = [event for event in download(daemon)[1] if event["event"] != "progress"]
    assert again["model"] == last["model"]
    assert hub.sent == sent, "nothing is fetched twice"


def test_two_clients_share_a_download_that_ends_when_both_have_left(daemon: Daemon, hub: Hub) -> None:
    hub.speed = 200_000
    (first, told), (second, others) = download(daemon), download(daemon, f"https://huggingface.co/{REPO}")
    while next(told)["bytes"] == 0:
        pass
    assert next(others)["event"] == "progress"
    [process] = processes(daemon)
    first.close()
    told.close()  # type: ignore[attr-defined]
    assert next(others)["event"] == "progress"
    assert process.is_running()
    second.close()
    others.close()  # type: ignore[attr-defined]
    eventually(lambda: not processes(daemon), "its process has ended")
    eventually(lambda: results(daemon) == ["canceled"], "its job has ended")
    [partial] = Path(daemon.env["HF_HOME"]).rglob("*.incomplete")
    hub.speed, before, arrived = None, len(hub.asked), partial.stat().st_size
    assert arrived > 0
    *_, last = download(daemon)[1]
    assert last["event"] == "downloaded"
    ranges = [one.range or "" for one in hub.asked[before:]]
    assert any(one.startswith(f"bytes={arrived}-") for one in ranges), f"it goes on where it stopped: {ranges}"


@pytest.mark.parametrize("source", ["tiny/none", "tiny/secret"])
def test_what_the_hub_does_not_give_is_an_error_with_what_to_do(daemon: Daemon, hub: Hub, source: str) -> None:
    hub.repositories["tiny/secret"] = Repository(hub.repositories[REPO].folder, gated=True)
    *_, last = download(daemon, source)[1]
    assert last["event"] == "error"
    assert last["error"]["code"] == {"tiny/none": "hub_not_found", "tiny/secret": "model_gated"}[source]
    assert source in last["error"]["message"]


def test_a_daemon_that_ends_does_not_wait_for_it(daemon: Daemon, hub: Hub) -> None:
    hub.speed = 100_000
    connection, told = download(daemon)
    while next(told)["bytes"] == 0:
        pass
    [process] = processes(daemon)
    assert daemon.stop() == 0
    assert not process.is_running()
    *_, last = told
    assert last["error"]["code"] == "shutting_down"
    connection.close()
