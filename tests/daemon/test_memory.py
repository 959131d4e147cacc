"""A model that is killed by the OOM killer, seen from outside: its name for it, its new figure, its neighbours."""

from __future__ import annotations

import contextlib
import http.client
import json
import shutil
from pathlib import Path

from tests.daemon.kit import QUICK, Site, kill_engine, side_by_side
from tests.harness import DaemonFactory, eventually

CRAMPED = "tests.daemon.oom_main"
MIB = 1 << 20


def test_an_oom_kill_is_named_remembered_and_leaves_neighbours_alone(daemons: DaemonFactory, site: Site) -> None:
    limit = 'memory = "220MiB"\n'
    toml = QUICK + limit + site.model("a", memory="100MiB") + site.model("b", memory="100MiB")
    daemon = daemons.start(toml, module=CRAMPED)
    for name in ("b", "a"):
        assert daemon.events(f"load?model={name}")[-1]["event"] == "ready"
    neighbour = daemon.status("b")["pid"]
    kill_engine(daemon, "a")
    seen = daemon.wait_state("a", "stopped")
    assert seen["error"]["cause"] == "oom-kill"
    assert "memory" in seen["error"]["message"]
    assert "reserves 125 MiB instead of 100 MiB" in seen["reason"]
    assert (seen["memory"], seen["retry_in"]) == (125 * MIB, None)
    assert daemon.status("b")["pid"] == neighbour
    assert daemon.status()["pid"] == daemon.process.pid
    # The next request has b leave: both no longer fit.
    assert daemon.chat("a").status == 200
    assert daemon.state("b") == "stopped"
    assert daemon.status("a")["error"] is None
    # Too much for this machine: refused with the arithmetic.
    for _ in range(2):
        kill_engine(daemon, "a")
        daemon.wait_state("a", "stopped", "failed")
        refused = daemon.chat("a")
        if refused.status != 200:
            break
    assert (refused.status, refused.code) == (503, "model_out_of_memory")
    assert daemon.chat("b").status == 200
    assert daemon.stop() == 0
    # It is known to the next daemon, until a person has it forgotten.
    again = daemons.start(toml)
    figure = again.status("a")
    assert figure["memory"] > 150 * MIB
    assert figure["memory_source"].startswith("ran out of memory with 156 MiB in an earlier run")
    assert again.control("POST", "reset?model=a").json() == {"state": "stopped"}
    assert again.status("a")["memory"] == 100 * MIB
    assert again.chat("a").status == 200


def test_a_load_that_is_killed_by_the_oom_killer_is_tried_once_more(daemons: DaemonFactory, site: Site) -> None:
    daemon = daemons.start(QUICK + site.model("a", "slow-load:20", memory="100MiB"), module=CRAMPED)
    with side_by_side() as do:
        request = do(daemon.chat, "a")
        for attempt in (1, 2):
            eventually(lambda attempt=attempt: site.spawns("a") == attempt, f"attempt {attempt}")
            kill_engine(daemon, "a")
        answer = request.result(20)
    assert (answer.status, answer.code) == (503, "model_out_of_memory")
    assert daemon.state("a") == "stopped"
    assert site.spawns("a") == 2


def test_a_load_that_gets_no_memory_has_others_make_room_and_is_tried_once_more(
    daemons: DaemonFactory, site: Site, tmp_path: Path
) -> None:
    """As a GPU that is full answers: the engine exits with 1, and only its words tell why."""
    words = tmp_path / "words"
    words.write_text("E alloc_tensor_range: failed to allocate Vulkan0 buffer of size 52428800\n")
    failing = f"words:{words},once:{tmp_path / 'failed'},exit:1"
    toml = QUICK + 'memory = "220MiB"\n' + site.model("a", failing, memory="100MiB") + site.model("b", memory="100MiB")
    daemon = daemons.start(toml)
    assert daemon.chat("b").status == 200
    assert daemon.chat("a").status == 200
    assert (daemon.state("b"), site.spawns("a")) == ("stopped", 2)
    told = daemon.output()
    assert "ran out of memory after" in told
    assert "before it was ready: an allocation of 50.0 MiB failed" in told
    assert "from now on it reserves 125 MiB instead of 100 MiB" in told
    assert daemon.stop() == 0
    again = daemons.start(toml)
    figure = again.status("a")
    assert figure["memory"] == 125 * MIB
    assert figure["memory_source"].startswith("ran out of memory with 100 MiB in an earlier run")
    assert again.control("POST", "reset?model=a").json() == {"state": "stopped"}
    assert again.status("a")["memory"] == 100 * MIB


def test_a_load_that_never_gets_its_memory_is_given_up_with_its_figures(
    daemons: DaemonFactory, site: Site, tmp_path: Path
) -> None:
    words = tmp_path / "words"
    words.write_text("ggml_vulkan: Device memory allocation of size 107374182400 failed.\n")
    limit = 'memory = "1GiB"\n'
    daemon = daemons.start(QUICK + limit + site.model("a", f"words:{words},exit:1", memory="100MiB"))
    refused = daemon.chat("a")
    assert (refused.status, refused.code) == (503, "model_out_of_memory")
    assert site.spawns("a") == 1, "it needs more than there is: trying again is pointless"
    seen = daemon.status("a")
    assert (seen["error"]["cause"], seen["memory"]) == ("oom-kill", 100 << 30)
    assert "an allocation of 100 GiB failed" in seen["error"]["message"]


def test_what_a_model_was_seen_to_use_is_what_it_needs_the_next_time(daemons: DaemonFactory, site: Site) -> None:
    toml = QUICK + site.model("a", f"alloc:{80 * MIB}", memory="30MiB")
    daemon = daemons.start(toml)
    assert daemon.chat("a").status == 200
    state = Path(daemon.env["XDG_STATE_HOME"]) / "accelerd/state.json"
    eventually(lambda: state.exists() and json.loads(state.read_text())["learned"], "it was measured")
    assert daemon.stop() == 0
    [entry] = json.loads(state.read_text())["learned"]
    assert (entry["model"], entry["file"], entry["settled"]) == ("a", str(site.gguf), True)
    again = daemons.start(toml)
    figure = again.status("a")
    assert 80 * MIB < figure["memory"] == entry["peak"]["ram"]
    assert "the figure in the configuration was 30.0 MiB" in figure["memory_source"]
    assert again.control("POST", "reset?model=a").json() == {"state": "stopped"}
    assert again.status("a")["memory"] == 30 * MIB
    assert again.stop() == 0
    assert json.loads(state.read_text())["learned"] == []


def test_a_load_goes_on_although_its_client_has_gone(daemons: DaemonFactory, site: Site) -> None:
    daemon = daemons.start(QUICK + site.model("a", "slow-load:2"))
    client = http.client.HTTPConnection("127.0.0.1", daemon.port)
    with contextlib.closing(client):
        body = json.dumps({"model": "a", "messages": [{"role": "user", "content": "hi"}]})
        client.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
        daemon.wait_state("a", "starting")
    eventually(lambda: daemon.status()["scheduler"]["queue"] == 0, "its place in the queue is free")
    seen = daemon.wait_state("a", "ready")
    assert (seen["leases"], site.spawns("a")) == (0, 1)
    assert daemon.status()["scheduler"]["memory_used"] == seen["memory"]


def test_without_systemd_it_starts_and_says_where_models_live(daemons: DaemonFactory, site: Site) -> None:
    daemon = daemons.start(QUICK + site.model("a") + site.model("b", home="systemd"))
    assert daemon.chat("a").status == 200
    assert daemon.status("a")["home"] == "child"
    answer = daemon.chat("b")
    assert (answer.status, answer.code) == (503, "model_failed")
    assert "this machine has none" in answer.json()["error"]["message"]


def test_a_systemd_that_does_not_answer_makes_it_degraded(daemons: DaemonFactory, site: Site) -> None:
    """Its socket is there and nobody is behind it: the start is not held up."""
    runtime = Path(daemons.environment()["XDG_RUNTIME_DIR"])
    (runtime / "systemd").mkdir()
    (runtime / "systemd/private").touch()
    nowhere = {"XDG_RUNTIME_DIR": str(runtime), "DBUS_SESSION_BUS_ADDRESS": "unix:path=/nonexistent/bus"}
    daemon = daemons.start(QUICK + site.model("a") + site.model("b", home="systemd"), env=nowhere)
    assert "no systemd user manager answers" in daemon.status()["degraded"]
    assert daemon.chat("a").status == 200
    answer = daemon.chat("b")
    assert (answer.status, answer.code) == (503, "model_failed")
    assert 'home = "systemd"' in answer.json()["error"]["message"]


def test_a_state_directory_that_disappears_is_made_again(daemons: DaemonFactory, site: Site) -> None:
    daemon = daemons.start(QUICK + site.model("a") + site.model("b"))
    state = Path(daemon.env["XDG_STATE_HOME"]) / "accelerd"
    assert daemon.chat("a").status == 200
    shutil.rmtree(state, ignore_errors=True)
    assert daemon.chat("b").status == 200
    assert daemon.stop() == 0
    assert len(json.loads((state / "state.json").read_text())["models"]) == 2


def test_a_runtime_directory_that_disappears_is_made_again(daemons: DaemonFactory, site: Site) -> None:
    daemon = daemons.start(QUICK + site.model("a") + site.model("b"))
    assert daemon.chat("a").status == 200
    instances = Path(daemon.env["XDG_RUNTIME_DIR"]) / "accelerd" / "instances"
    shutil.rmtree(instances)
    assert daemon.chat("b").status == 200
    assert daemon.stop() == 0
