"""accelctl add of models on a hub and of addresses: what is chosen, refused, downloaded by the daemon, and written."""

from __future__ import annotations

import json
import shutil
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from accelerd.base.sizes import human_size
from tests.downloads.hub_server import COMMIT, Hub, Repository, serving
from tests.models import make_model

from .conftest import Ctl
from .fake_daemon import FakeDaemon, Reply, error, events

REPO = "tiny/Hello-GGUF"
RELOADED = Reply({"added": ["hello"], "unchanged": []})


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("models"), size_mb=6)


@pytest.fixture
def hub(ctl: Ctl, model: Path, tmp_path: Path) -> Iterator[Hub]:
    """A hub with one model in two quantizations."""
    folder = tmp_path / "hub" / REPO
    folder.mkdir(parents=True)
    for quant in ("Q4_K_M", "Q8_0"):
        shutil.copy(model, folder / f"Hello-{quant}.gguf")
    with serving() as running:
        running.repositories[REPO] = Repository(folder)
        ctl.env |= {"HF_ENDPOINT": running.base, "NO_PROXY": "*", "no_proxy": "*"}
        yield running


def progress(got: int, **more: Any) -> dict[str, Any]:
    step = {"event": "progress", "bytes": got, "total": 9_800_000_000, "rate": 80e6, "remaining": 120.0, "elapsed": 7.0}
    return {**step, "file": "Hello-Q4_K_M.gguf", **more}


def downloads(daemon: FakeDaemon, **more: Any) -> None:
    """The daemon downloads what it is asked for."""
    daemon.answers["POST reload"] = RELOADED
    daemon.answers["POST download"] = lambda query, body: events(
        progress(1_200_000_000), {"event": "downloaded", "source": query["source"], **more}
    )


def written(ctl: Ctl) -> dict[str, Any]:
    [file] = (ctl.config_file.parent / "accelerd.toml.d").iterdir()
    return tomllib.loads(file.read_text())["models"]


@pytest.mark.parametrize("text", [f"hf:{REPO}", REPO])
def test_the_quantization_that_fits_is_downloaded_and_written(
    ctl: Ctl, daemon: FakeDaemon, hub: Hub, text: str
) -> None:
    downloads(daemon)
    result = ctl("add", text)
    assert result.status == 0, result.err
    assert written(ctl) == {"hello": {"model": f"{REPO}:Q4_K_M"}}
    assert [(one.route, one.query) for one in daemon.requests] == [
        ("download", {"source": f"{REPO}:Q4_K_M"}), ("reload", {}),
    ]  # fmt: skip
    assert "1.1 GiB of 9.1 GiB, 76.3 MiB/s, 8.0 GiB and 2 min left" in result.err
    reason = "Q4_K_M, the usual balance of size and quality; it fits this machine; 5.7 MiB to download"
    assert f"{text}: {reason}\n" in result.err
    assert "accelctl chat hello" in result.out


def test_what_is_in_the_cache_is_not_asked_of_the_hub(ctl: Ctl, daemon: FakeDaemon, hub: Hub, model: Path) -> None:
    daemon.answers["POST reload"] = RELOADED
    snapshot = ctl.home / f".cache/huggingface/hub/models--{REPO.replace('/', '--')}/snapshots/{COMMIT}"
    snapshot.mkdir(parents=True)
    shutil.copy(model, snapshot / "Hello-Q8_0.gguf")
    assert ctl("add", f"hf:{REPO}").status == 0
    assert written(ctl) == {"hello": {"model": f"{REPO}:Q8_0"}}
    assert hub.asked == []
    for again in (REPO, f"{REPO}:Q8_0"):
        result = ctl("add", again)
        assert (result.status, "is configured already as hello" in result.err) == (1, True)
    assert ctl("add", f"{REPO}:Q4_K_M", "--no-pull").status == 0, "another quantization is another model"


def test_the_quantization_that_is_named_is_taken(ctl: Ctl, daemon: FakeDaemon, hub: Hub) -> None:
    downloads(daemon)
    assert ctl("add", f"{REPO}:Q8_0", "--name", "big").status == 0
    assert written(ctl) == {"big": {"model": f"{REPO}:Q8_0"}}


def test_what_cannot_fit_is_refused_before_a_byte_is_fetched(ctl: Ctl, daemon: FakeDaemon, hub: Hub) -> None:
    downloads(daemon)
    own = ctl.configure('[scheduler]\nmemory = "4MiB"\n')
    result = ctl("add", f"hf:{REPO}")
    assert result.status == 1
    assert "of memory, and this machine has 4.0 MiB for models; choose a smaller model" in result.err
    assert daemon.requests == []
    assert not own.with_name("accelerd.toml.d").exists()
    assert ctl("add", f"hf:{REPO}", "--force").status == 0


def test_a_download_that_fails_adds_nothing(ctl: Ctl, daemon: FakeDaemon, hub: Hub) -> None:
    daemon.answers["POST download"] = error(507, "disk_full", "there is no room in /home for 9.1 GiB")
    result = ctl("add", f"hf:{REPO}")
    assert (result.status, "there is no room in /home" in result.err) == (1, True)
    assert not ctl.config_file.parent.exists()


def test_without_a_daemon_it_is_downloaded_at_its_first_load(ctl: Ctl, hub: Hub) -> None:
    result = ctl("add", f"hf:{REPO}")
    assert result.status == 0
    assert written(ctl) == {"hello": {"model": f"{REPO}:Q4_K_M"}}
    assert "it downloads the model when it is first loaded" in " ".join(result.out.split())


def test_an_address_becomes_the_path_of_its_file(ctl: Ctl, daemon: FakeDaemon, hub: Hub) -> None:
    downloads(daemon, model="/data/Hello-Q8_0.gguf")
    address = f"{hub.base}/{REPO}/resolve/main/Hello-Q8_0.gguf"
    result = ctl("add", address)
    assert result.status == 0, result.err
    assert written(ctl) == {"hello": {"path": "/data/Hello-Q8_0.gguf"}}
    assert daemon.requests[0].query == {"source": address}
    assert ctl("add", address, "--no-pull", "--name", "later").status == 2


def test_a_repository_that_is_gated_or_not_there(ctl: Ctl, daemon: FakeDaemon, hub: Hub) -> None:
    hub.repositories[REPO].gated = True
    missing = ctl("add", "hf:nobody/Nothing-GGUF", "--json")
    assert (missing.status, json.loads(missing.out)["error"]["code"]) == (1, "hub_not_found")
    assert daemon.requests == []
    daemon.answers["POST download"] = error(403, "model_gated", f"{REPO} wants a token that may read it")
    gated = ctl("add", f"hf:{REPO}")
    assert (gated.status, f"{REPO} wants a token" in gated.err) == (1, True)


def test_the_daemon_may_have_a_token_that_accelctl_has_not(ctl: Ctl, daemon: FakeDaemon, hub: Hub) -> None:
    hub.repositories[REPO].gated = True
    downloads(daemon, kind="embedding")
    daemon.answers["POST download"] = events({"event": "downloaded", "source": f"{REPO}:Q8_0", "kind": "embedding"})
    assert ctl("add", f"hf:{REPO}").status == 0
    assert written(ctl) == {"hello": {"model": f"{REPO}:Q8_0", "embeddings": True}}


def test_a_download_alone_adds_nothing(ctl: Ctl, daemon: FakeDaemon) -> None:
    downloads(daemon, model="/cache/Hello-Q4_K_M.gguf", reason="Q4_K_M fits this machine")
    result = ctl("download", f"hf:{REPO}")
    assert result.status == 0, result.err
    assert result.out.splitlines() == [
        f"hf:{REPO} is on this machine: /cache/Hello-Q4_K_M.gguf", "  Q4_K_M fits this machine",
        f"to use it: accelctl add hf:{REPO}",
    ]  # fmt: skip
    assert "1.1 GiB of 9.1 GiB" in result.err
    assert not ctl.config_file.parent.exists()
    assert json.loads(ctl("download", f"hf:{REPO}", "--json").out)["event"] == "downloaded"
    daemon.answers["POST download"] = error(400, "bad_request", "x names no model of a hub")
    assert ctl("download", "x").status == 1


@pytest.mark.parametrize("command", [("add", f"hf:{REPO}"), ("download", REPO), ("load", "hello")])
@pytest.mark.parametrize("code", ["model_gated", "hub_not_found", "hub_offline", "download_failed"])
def test_what_only_this_shell_has_set_is_said(
    ctl: Ctl, daemon: FakeDaemon, hub: Hub, command: tuple[str, str], code: str
) -> None:
    for route in ("download", "load"):
        daemon.answers[f"POST {route}"] = error(503, code, "cannot download it")
    said = "cannot download it; accelerd has its own environment, not HF_ENDPOINT, HF_TOKEN of this shell"
    assert said in ctl(*command, HF_TOKEN="hf_geheim").err
    assert "geheim" not in ctl(*command, HF_TOKEN="hf_geheim").err
    for route in ("download", "load"):
        daemon.answers[f"POST {route}"] = error(503, "disk_full", "cannot download it")
    assert "environment" not in ctl(*command).err


def test_offline_it_can_be_written_without_asking_anybody(ctl: Ctl) -> None:
    offline = {"HF_HUB_OFFLINE": "1"}
    refused = ctl("add", f"hf:{REPO}", **offline)
    assert (refused.status, "HF_HUB_OFFLINE is set" in refused.err) == (1, True)
    assert ctl("add", f"hf:{REPO}:Q8_0", "--no-pull", **offline).status == 0
    assert written(ctl) == {"hello": {"model": f"{REPO}:Q8_0"}}


def test_fit_of_a_configured_model_that_is_not_here_yet_asks_its_llama_server(ctl: Ctl, hub: Hub) -> None:
    server = ctl.home / "llama-server"
    server.write_text('#!/bin/sh\necho "-m, --model FILE   the model"\necho "version: 7777 (abc)" >&2\n')
    server.chmod(0o755)
    ctl.configure(f'[engines.llama-server]\nbinary = "{server}"\n[models.hello]\nmodel = "{REPO}:Q8_0"\n')
    found = json.loads(ctl("fit", "hello", "--json").out)
    assert found["fits"]
    assert not [note for note in found["notes"] if "could not be queried" in note]


def test_remove_says_how_a_download_is_deleted(ctl: Ctl, daemon: FakeDaemon, hub: Hub, model: Path) -> None:
    daemon.answers["POST reload"] = RELOADED
    repository = ctl.home / f".cache/huggingface/hub/models--{REPO.replace('/', '--')}"
    snapshot = repository / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()

    def put(quant: str) -> tuple[Path, Path]:
        blob = repository / "blobs" / quant
        shutil.copy(model, blob)
        link = snapshot / f"Hello-{quant}.gguf"
        link.symlink_to(Path("../../blobs") / quant)
        return link, blob

    link, blob = put("Q8_0")
    assert ctl("add", f"hf:{REPO}:Q8_0").status == 0
    assert ctl("remove", "hello").out.splitlines()[-1].endswith(f": rm -r {repository}")
    put("Q4_K_M")
    assert ctl("add", f"hf:{REPO}:Q8_0").status == 0
    line = ctl("remove", "hello").out.splitlines()[-1]
    assert line.endswith(f"to free {human_size(model.stat().st_size)}: rm {link} {blob}"), "the other one stays"
