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


def key_file(path: Path, text: str) -> str:
    path.write_text(text)
    path.chmod(0o600)
    return f"key_file = {json.dumps(str(path))}"


@pytest.mark.parametrize("content", ["", "# sk-laptop\n", None])
def test_a_key_file_without_keys_is_a_mistake_as_any_other(
    daemons: DaemonFactory, site: Site, tmp_path: Path, content: str | None
) -> None:
    first = daemons.start(site.model("m"), server=key_file(tmp_path / "keys", "sk-first\n"))
    eventually(kept(first).exists, "the configuration is kept")
    other = tmp_path / "other"
    wanted = key_file(other, content or "")
    if content is None:
        other.unlink()
    first.config.write_text(first.config.read_text().replace(str(tmp_path / "keys"), str(other)))
    refused = first.control("POST", "reload")
    reason = f"server.key_file: {other} contains no key"
    if content is None:
        reason = f"server.key_file: no such file: {other}"
    assert (refused.status, refused.code) == (422, "config_invalid")
    assert refused.json()["error"]["message"].count(str(other)) == 1
    assert reason in refused.json()["error"]["message"]
    assert first.stop() == 0
    second = daemons.start(site.model("m"), port=first.port, server=wanted)
    status = second.status()
    assert status["status"].startswith(CLAIM)
    assert reason in status["status"]
    assert [model["name"] for model in status["models"]] == ["m"]
    answers = [second.send("GET", "/v1/models", headers={"X-Api-Key": key}).status for key in ("sk-first", "other", "")]
    assert answers == [200, 401, 401], "the keys that were good last"
    assert "sk-first" not in kept(second).read_text() + second.output()


@pytest.mark.parametrize("damage", ["others read it", "empty", "missing"])
def test_a_good_one_whose_key_file_cannot_be_used_is_not_used(
    daemons: DaemonFactory, site: Site, tmp_path: Path, damage: str
) -> None:
    keys = tmp_path / "keys"
    wanted = key_file(keys, "secret-key\n")
    first = daemons.start(site.model("m"), server=wanted)
    eventually(kept(first).exists, "the configuration is kept")
    assert first.stop() == 0
    if damage == "others read it":
        keys.chmod(0o644)
    elif damage == "empty":
        keys.write_text("")
    else:
        keys.unlink()
    for toml, server in (("nonsense", ""), (site.model("m"), wanted)):
        second = daemons.launch(toml, port=first.port, server=server)
        assert second.process.wait(20) == 78, "nobody is served without the keys that were wanted"
    assert f"server.key_file: {reason_of(damage, keys)}" in second.output()


def reason_of(damage: str, keys: Path) -> str:
    return {
        "others read it": f"other users can read the keys in {keys}; run: chmod 600 {keys}",
        "empty": f"{keys} contains no key",
        "missing": f"no such file: {keys}",
    }[damage]
