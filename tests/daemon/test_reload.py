"""A new configuration under a running daemon: all of it or nothing, and no stream is cut for it."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.daemon.kit import QUICK, Site, marked, rest_of, side_by_side, sse, tokens, whole_stream
from tests.harness import Daemon, DaemonFactory, eventually, first_event, streaming

STREAM = {"FAKE_TOKENS": "40", "FAKE_DELAY_MS": "25"}


def hang_up(daemon: Daemon) -> list[str]:
    """Reload by SIGHUP; what the service manager heard of it."""
    daemon.messages()
    daemon.process.send_signal(signal.SIGHUP)
    heard: list[str] = []
    eventually(lambda: heard.extend(daemon.messages()) or "READY=1" in heard, "reloaded")
    return heard


def test_a_broken_file_at_sighup_changes_nothing_and_is_reported(daemons: DaemonFactory, site: Site) -> None:
    daemon = daemons.start(QUICK + site.model("m"))
    assert daemon.chat("m").status == 200
    pid = daemon.status("m")["pid"]
    daemon.configure(QUICK + site.model("m", context=4096) + '\n[models.broken]\npath = "x\n')
    line = daemon.config.read_text().splitlines().index('path = "x') + 1
    heard = hang_up(daemon)
    assert heard.index("RELOADING=1") < heard.index("READY=1")
    assert any(message.startswith("MONOTONIC_USEC=") for message in heard)
    assert f"{daemon.config.name}:{line}:" in daemon.output()
    problems = daemon.status()["config"]["problems"]
    assert [(p["file"], p["line"]) for p in problems] == [(daemon.config.name, line)]
    assert daemon.chat("m").status == 200
    assert (daemon.status("m")["pid"], site.spawns()) == (pid, 1)
    daemon.configure(QUICK + site.model("m"))
    hang_up(daemon)
    assert daemon.status()["config"]["problems"] == []
    assert daemon.status("m")["pid"] == pid


@pytest.mark.parametrize(
    ("mistake", "key"),
    [("contxt = 5", "models.m.contxt"), ("context = -1", "models.m.context"), ("context = ", "")],
)
def test_a_broken_file_at_a_reload_by_control(daemons: DaemonFactory, site: Site, mistake: str, key: str) -> None:
    daemon = daemons.start(site.model("m"))
    daemon.messages()
    header = '[models."m"]\n'
    daemon.configure(site.model("m").replace(header, f"{header}{mistake}\n"))
    answer = daemon.control("POST", "reload")
    assert (answer.status, answer.code) == (422, "config_invalid")
    (problem,) = answer.json()["error"]["problems"]
    assert (problem["file"], problem["key"] or "") == (daemon.config.name, key)
    assert problem["message"]
    assert daemon.config.read_text().splitlines()[problem["line"] - 1] == mistake
    heard = daemon.messages()
    assert heard.index("RELOADING=1") < heard.index("READY=1")
    assert daemon.chat("m").status == 200


def test_a_configuration_that_is_gone_is_none_that_is_empty(daemons: DaemonFactory, site: Site) -> None:
    """The main file, the folder of drop-ins, and both with the directory above them."""
    daemon = daemons.start(site.model("a"))
    dropins = Path(f"{daemon.config}.d")
    dropins.mkdir(mode=0o700)
    (dropins / "b.toml").write_text(site.model("b"))
    assert daemon.control("POST", "reload").json()["added"] == ["b"]
    for gone in (daemon.config, dropins, daemon.config.parent):
        away = gone.with_name("away")
        gone.rename(away)
        refused = daemon.control("POST", "reload")
        assert refused.status == 422
        assert f"{dropins if gone == dropins else daemon.config} is gone" in refused.body.decode()
        assert f"{gone.name if gone != daemon.config.parent else daemon.config.name}: " in daemon.status()["status"]
        assert [model["name"] for model in daemon.status()["models"]] == ["a", "b"]
        away.rename(gone)
        assert daemon.control("POST", "reload").json()["unchanged"] == ["a", "b"]
    # What is meant can be said: files are taken out of the folder, and a file may be empty.
    (dropins / "b.toml").unlink()
    assert daemon.control("POST", "reload").json()["removed"] == ["b"]
    dropins.rmdir()
    assert daemon.control("POST", "reload").status == 200
    daemon.configure("")
    assert daemon.control("POST", "reload").json()["removed"] == ["a"]


def test_a_program_that_is_not_there_replaces_no_model(daemons: DaemonFactory, site: Site) -> None:
    """In the engine's table and in the model's own; what fails is another start when the path is corrected."""
    daemon = daemons.start(site.model("m"))
    pid = _load(daemon, "m")
    for written in (
        '[engines.llama-server]\nbinary = "/mistyped"\n' + site.model("m").replace("binary = ", "# "),
        site.model("m", binary="/mistyped"),
    ):
        daemon.configure(written)
        refused = daemon.control("POST", "reload")
        assert (refused.status, refused.code) == (422, "config_invalid")
        (problem,) = refused.json()["error"]["problems"]
        assert "no such file: /mistyped" in problem["message"]
        assert daemon.config.read_text().splitlines()[problem["line"] - 1] == 'binary = "/mistyped"'
        assert daemon.status("m")["pid"] == pid
    daemon.configure(site.model("m"))
    assert daemon.control("POST", "reload").json()["unchanged"] == ["m"]


def test_streams_go_on_while_models_are_kept_replaced_and_removed(daemons: DaemonFactory, site: Site) -> None:
    def toml(names: str, **changed: object) -> str:
        return QUICK + "".join(site.model(name, "ok", STREAM, **(changed if name in "bd" else {})) for name in names)

    daemon = daemons.start(toml("abce"))
    running = {name: _load(daemon, name) for name in "abce"}
    with contextlib.ExitStack() as stack:
        streams = {name: stack.enter_context(streaming(daemon, name)) for name in "abc"}
        for response in streams.values():
            assert first_event(response).startswith(b"data: ")
        daemon.configure(toml("abde", context=4096).replace('[models."e"]', '[models."e"]\nidle_timeout = "1h"'))
        answer = daemon.control("POST", "reload").json()
        changes = {kind: answer[kind] for kind in ("added", "removed", "relaunch", "updated", "unchanged")}
        assert changes == {
            "added": ["d"], "removed": ["c"], "relaunch": ["b"], "updated": ["e"], "unchanged": ["a"],
        }  # fmt: skip
        seen = {m["name"]: m for m in daemon.status()["models"]}
        assert [seen[n]["pid"] for n in "abce"] == [running[n] for n in "abce"]
        assert [seen[n]["state"] for n in "abce"] == ["ready", "draining", "draining", "ready"]
        assert (seen["b"]["outdated"], seen["e"]["idle_timeout"]) == (True, 3600.0)
        gone = daemon.chat("c")
        assert (gone.status, gone.code) == (404, "model_not_found")
        with side_by_side() as do:
            waiting = do(daemon.chat, "b", max_tokens=1)
            for response in streams.values():
                text, complete = rest_of(response)
                assert complete
                assert sse(text)[-1] == "[DONE]"
                assert len(tokens(sse(text))) == 40
            assert waiting.result(20).status == 200
    replaced = daemon.wait_state("b", "ready")
    assert replaced["pid"] != running["b"]
    assert (daemon.state("a"), daemon.status("a")["pid"]) == ("ready", running["a"])
    argv = site.events("spawn", "b")[-1]["argv"]
    assert argv[argv.index("-c") + 1] == "4096"
    eventually(lambda: not psutil.pid_exists(running["c"]), "the removed one ends")
    assert {m["name"] for m in daemon.status()["models"]} == set("abde")
    assert {name: site.spawns(name) for name in "abce"} == {"a": 1, "b": 2, "c": 1, "e": 1}
    assert daemon.chat("d", max_tokens=1).status == 200


def _load(daemon: Daemon, name: str) -> int:
    assert daemon.events(f"load?model={name}")[-1]["event"] == "ready"
    return int(daemon.status(name)["pid"])


def test_a_model_that_is_loading_starts_again_with_its_new_settings(daemons: DaemonFactory, site: Site) -> None:
    daemon = daemons.start(QUICK + site.model("m", "slow-load:60,chatter:50"))
    with side_by_side() as do:
        asked = do(daemon.chat, "m")
        daemon.wait_state("m", "starting")
        daemon.configure(QUICK + site.model("m", context=4096))
        assert daemon.control("POST", "reload").json()["relaunch"] == ["m"]
        assert asked.result(20).status == 200
    assert len(marked(daemon)) == 1


def test_a_model_that_is_removed_while_it_loads(daemons: DaemonFactory, site: Site) -> None:
    daemon = daemons.start(QUICK + site.model("m", "slow-load:60,chatter:50") + site.model("other"))
    with side_by_side() as do:
        asked, loading = do(daemon.chat, "m"), do(daemon.events, "load?model=m")
        eventually(lambda: daemon.status("m")["queue"] == 2 and site.spawns(), "it loads")
        daemon.configure(QUICK + site.model("other"))
        assert daemon.control("POST", "reload").json()["removed"] == ["m"]
        assert asked.result(20).code == "model_not_found"
        assert loading.result(20)[-1]["error"]["code"] == "model_not_found"
    eventually(lambda: marked(daemon) == [], "it is gone")
    eventually(lambda: [m["name"] for m in daemon.status()["models"]] == ["other"], "and forgotten")


def test_many_reloads_at_once_end_with_the_newest_files(daemons: DaemonFactory, site: Site) -> None:
    daemon = daemons.start(QUICK + site.model("m0"))
    with side_by_side() as do:
        reloads = []
        for number in range(1, 6):
            daemon.configure(QUICK + site.model(f"m{number}"))
            daemon.process.send_signal(signal.SIGHUP)
            reloads.append(do(daemon.control, "POST", "reload"))
        assert {r.result(20).status for r in reloads} == {200}
    assert daemon.control("POST", "reload").status == 200
    assert [m["name"] for m in daemon.status()["models"]] == ["m5"]


KEYED = 'key_file = "{}"'


def test_profiles_and_a_key_file_that_changes(daemons: DaemonFactory, site: Site) -> None:
    keys = _keys(site.directory, "sk-first-secret\n# a comment\nsk-second-secret\n")
    profile = '[profiles.long]\ncontext = 16384\nparallel = 2\n[defaults]\nidle_timeout = "1h"\n'
    daemon = daemons.start(profile + site.model("m", profile="long"), server=KEYED.format(keys))

    def ask(key: str | None) -> int:
        headers = {"Authorization": f"Bearer {key}"} if key is not None else {}
        body = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
        return daemon.send("POST", "/v1/chat/completions", body, headers).status

    assert [ask(key) for key in ("sk-first-secret", "sk-second-secret", "sk-third-secret", "", None)] == [
        200, 200, 401, 401, 401,
    ]  # fmt: skip
    assert daemon.send("GET", "/v1/models").status == 401
    shown = daemon.status("m")
    assert shown["idle_timeout"] == 3600.0
    argv = site.events("spawn", "m")[0]["argv"]
    assert (argv[argv.index("-c") + 1], argv[argv.index("-np") + 1]) == ("32768", "2")
    keys.write_text("sk-third-secret\n")
    assert daemon.control("POST", "reload").status == 200
    assert [ask(key) for key in ("sk-first-secret", "sk-third-secret")] == [401, 200]
    keys.unlink()
    refused = daemon.control("POST", "reload")
    assert (refused.status, refused.code) == (422, "config_invalid")
    assert str(keys) in refused.json()["error"]["message"]
    assert ask("sk-third-secret") == 200
    assert "secret" not in daemon.output()


def test_without_its_key_file_the_daemon_does_not_start(daemons: DaemonFactory, site: Site) -> None:
    missing = site.directory / "keys"
    daemon = daemons.launch(site.model("m"), server=KEYED.format(missing))
    assert daemon.process.wait(20) == 78  # EX_CONFIG: systemd does not try again
    assert str(missing) in daemon.output()
    assert "READY=1" not in daemon.messages()


def _keys(directory: Path, text: str) -> Path:
    path = directory / "keys"
    path.write_text(text)
    path.chmod(0o600)
    return path


Reload = Callable[[Daemon], object]


@pytest.mark.parametrize("how", [hang_up, lambda daemon: daemon.control("POST", "reload")])
def test_a_reload_under_a_stream_of_requests_fails_none(daemons: DaemonFactory, site: Site, how: Reload) -> None:
    daemon = daemons.start(QUICK + site.model("m", parallel=2))
    with side_by_side() as do:
        asked = [do(whole_stream, daemon, "m") for _ in range(30)]
        for context in (4096, 8192):
            daemon.configure(QUICK + site.model("m", parallel=2, context=context))
            how(daemon)
        outcomes = [request.result(30) for request in asked]
    assert all(status == 200 and complete and events[-1] == "[DONE]" for status, events, complete in outcomes)
