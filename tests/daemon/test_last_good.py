"""A start that finds mistakes in the configuration serves the last one without any, and says so."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from tests.daemon.kit import Site
from tests.harness import Daemon, DaemonFactory, eventually

CLAIM = "the configuration on disk is not in use: "


def kept(daemon: Daemon) -> Path:
    return Path(daemon.env["XDG_STATE_HOME"]) / "accelerd" / "configuration.json"


def stopped_after_a_good_start(daemons: DaemonFactory, toml: str) -> Daemon:
    daemon = daemons.start(toml)
    eventually(kept(daemon).exists, "the configuration is kept")
    assert daemon.stop() == 0
    return daemon


@pytest.mark.parametrize(
    ("mistake", "where"),
    [
        ("[models.broken\n", "accelerd.toml:"),  # no TOML
        ('[models.m2]\npath = "/m.gguf"\ncontxt = 5\n', "accelerd.toml:"),
        ('[[models]]\npath = "/m.gguf"\n', "accelerd.toml:"),
    ],
)
def test_a_start_with_a_mistake_serves_what_was_good_last(
    daemons: DaemonFactory, site: Site, mistake: str, where: str
) -> None:
    first = stopped_after_a_good_start(daemons, site.model("m"))
    second = daemons.start(site.model("m", context=4096) + mistake, port=first.port)
    assert second.chat("m").status == 200
    status = second.status()
    assert status["status"].startswith(CLAIM + where)
    assert any(problem["severity"] == "error" for problem in status["config"]["problems"])
    assert status["config"]["in_use"] is False
    assert f"STATUS={CLAIM}{where}" in "\n".join(second.messages())
    assert "the last one without any is in use" in second.output()
    assert second.control("POST", "reload").status == 422
    assert second.chat("m").status == 200
    second.configure(site.model("m", context=4096))
    assert second.control("POST", "reload").json()["relaunch"] == ["m"]
    assert CLAIM not in second.status()["status"]
    assert second.status()["config"]["in_use"] is True


def test_what_a_reload_took_over_is_what_was_good_last(daemons: DaemonFactory, site: Site) -> None:
    first = daemons.start(site.model("a"))
    first.configure(site.model("b"))
    assert first.control("POST", "reload").status == 200
    first.configure("nonsense")
    assert first.control("POST", "reload").status == 422
    assert first.status()["status"].startswith(CLAIM)
    assert first.stop() == 0
    second = daemons.start("nonsense", port=first.port)
    assert [model["name"] for model in second.status()["models"]] == ["b"]


def test_a_drop_in_that_others_could_have_written_is_not_used(daemons: DaemonFactory, site: Site) -> None:
    first = stopped_after_a_good_start(daemons, site.model("m"))
    folder = first.config.with_name("accelerd.toml.d")
    folder.mkdir(mode=0o700)
    (folder / "x.toml").write_text(site.model("x"))
    (folder / "x.toml").chmod(0o666)
    second = daemons.start(site.model("m"), port=first.port)
    assert [model["name"] for model in second.status()["models"]] == ["m"]
    assert "accelerd.toml.d/x.toml: the file is writable by everyone" in second.status()["status"]


def test_only_its_owner_may_read_what_is_kept(daemons: DaemonFactory, site: Site) -> None:
    daemon = stopped_after_a_good_start(daemons, site.model("m", env={"HF_TOKEN": "secret"}))
    assert stat.S_IMODE(os.stat(kept(daemon)).st_mode) == 0o600
    assert "secret" not in daemon.output()


@pytest.mark.parametrize("damage", ["", "{}", "[1", '{"config_file": "/elsewhere.toml", "files": []}'])
def test_without_a_good_one_there_is_no_start(daemons: DaemonFactory, site: Site, damage: str) -> None:
    first = stopped_after_a_good_start(daemons, site.model("m"))
    kept(first).write_text(damage)
    second = daemons.launch("nonsense", port=first.port)
    assert second.process.wait(20) == 78
    assert "the configuration is not valid" in second.output()


def test_a_good_one_that_names_a_missing_key_file_is_not_used(
    daemons: DaemonFactory, site: Site, tmp_path: Path
) -> None:
    keys = tmp_path / "keys"
    keys.write_text("secret-key\n")
    keys.chmod(0o600)
    first = daemons.start(site.model("m"), server=f"key_file = {json.dumps(str(keys))}")
    eventually(kept(first).exists, "the configuration is kept")
    assert first.stop() == 0
    keys.chmod(0o644)
    second = daemons.launch("nonsense", port=first.port)
    assert second.process.wait(20) == 78, "nobody is served without the keys that were wanted"
