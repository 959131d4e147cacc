"""A configured model that is not on this machine: the first request has it downloaded, and nobody else notices."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemon.kit import QUICK, Site, history, rest_of, side_by_side, sse
from tests.downloads.hub_server import Hub, Repository, serving
from tests.harness import FAKE, Daemon, DaemonFactory, eventually, streaming
from tests.models import make_model

REPO = "tiny/hello-GGUF"
SIZE_MB = 6


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    folder = tmp_path / "hub" / REPO
    folder.mkdir(parents=True)
    make_model(folder, size_mb=SIZE_MB).rename(folder / "hello-Q4_K_M.gguf")
    with serving() as running:
        running.repositories[REPO] = Repository(folder)
        yield running


def start(daemons: DaemonFactory, site: Site, hub: Hub, more: str = "", **env: str) -> Daemon:
    wanted = f'[models.new]\nmodel = "{REPO}"\nbinary = "{FAKE}"\nenv = {{ FAKE_LOG = "{site.log}" }}\n'
    server = 'keepalive_after = "50ms"'
    around = {"HF_ENDPOINT": hub.base, "NO_PROXY": "*", "no_proxy": "*", **env}
    return daemons.start(QUICK + wanted + more, server=server, env=around)


def arriving(daemon: Daemon) -> bool:
    download = daemon.status("new")["download"]
    return bool(download and download["bytes"])


def test_the_first_request_waits_and_sees_how_far_it_is(daemons: DaemonFactory, site: Site, hub: Hub) -> None:
    hub.speed = SIZE_MB * (1 << 20) / 30
    daemon = start(daemons, site, hub, site.model("old"))
    assert daemon.chat("old").status == 200
    with side_by_side() as do:
        with streaming(daemon, "new") as response:
            asked = do(daemon.chat, "new")
            eventually(lambda: arriving(daemon), "bytes arrive")
            assert daemon.status("new")["state"] == "downloading"
            assert daemon.chat("old").status == 200, "others are served meanwhile"
            comments = iter(response.readline, b"")
            pattern = rb": downloading new \d+ % \(.* of [\d.]+ MiB, .*/s"
            assert any(re.match(pattern, line) for line in comments), "how far it is"
            hub.speed = None
            text, complete = rest_of(response)
        assert asked.result(30).status == 200
    assert complete
    assert sse(text)[-1] == "[DONE]"
    assert history(daemon, "new")[:3] == ["downloading", "stopped", "starting"]
    assert history(daemon, "old") == ["starting", "ready"], "nobody left for it"
    argv = site.events("spawn", "new")[0]["argv"]
    assert any(part.endswith("hello-Q4_K_M.gguf") for part in argv), argv


def test_who_waits_hears_why_it_cannot_be_downloaded(daemons: DaemonFactory, site: Site, hub: Hub) -> None:
    del hub.repositories[REPO]
    daemon = start(daemons, site, hub)
    answer = daemon.chat("new")
    assert (answer.status, answer.code) == (404, "hub_not_found")
    assert REPO in answer.json()["error"]["message"]
    assert daemon.status("new")["state"] == "failed"


def test_what_is_in_the_cache_of_other_programs_is_not_downloaded_again(
    daemons: DaemonFactory, site: Site, hub: Hub
) -> None:
    daemon = start(daemons, site, hub)
    assert daemon.chat("new").status == 200
    assert daemon.stop() == 0
    sent = hub.sent
    again = start(daemons, site, hub, HF_HUB_OFFLINE="1")
    assert again.chat("new").status == 200
    assert hub.sent == sent
    assert "downloading" not in history(again, "new")


def test_a_restart_ends_a_download_and_the_next_daemon_goes_on(daemons: DaemonFactory, site: Site, hub: Hub) -> None:
    hub.speed = SIZE_MB * (1 << 20) / 20
    daemon = start(daemons, site, hub)
    with side_by_side() as do:
        asked = do(daemon.chat, "new")
        eventually(lambda: arriving(daemon), "bytes arrive")
        assert daemon.stop() == 0
        assert asked.result(30).code == "shutting_down"
    hub.speed = None
    hub.asked.clear()
    again = start(daemons, site, hub)
    assert again.chat("new").status == 200
    assert any(one.range not in (None, "bytes=0-0") for one in hub.requests("GET", "/cdn/")), "it goes on where it was"


def test_files_that_were_deleted_are_downloaded_by_the_next_load(daemons: DaemonFactory, site: Site, hub: Hub) -> None:
    daemon = start(daemons, site, hub)
    assert daemon.chat("new").status == 200
    assert daemon.events("unload?model=new")[-1]["event"] == "stopped"
    model = next(Path(part) for part in site.events("spawn", "new")[0]["argv"] if part.endswith(".gguf"))
    assert model.name == "hello-Q4_K_M.gguf"
    for path in {model, model.resolve()}:
        path.unlink()
    assert daemon.events("load?model=new")[-1]["event"] == "ready"
    assert history(daemon, "new")[-5:] == ["stopped", "downloading", "stopped", "starting", "ready"]
    assert daemon.events("unload?model=new")[-1]["event"] == "stopped"
    for path in {model, model.resolve()}:
        path.unlink()
    assert daemon.chat("new").status == 200, "a request has them downloaded, too"
