"""A model measured by a whole daemon with fake servers: what is tried, what wins, what stays as it was."""

from __future__ import annotations

import http.client
import json
from pathlib import Path
from typing import Any

import pytest

from tests.daemon.kit import QUICK, Site, alive, marked, side_by_side
from tests.harness import Daemon, DaemonFactory, UnixConnection, eventually, streaming

# On this machine's processor: threads, then the size of batches, then flash attention.
SPEEDS = {"": [100, 10], "-ub 1024": [200, 10], "-ub 256": [50, 10], "-fa off": [90, 9]}
TRIAL = "m@tune"


def speeds(**more: Any) -> dict[str, str]:
    return {"FAKE_SPEEDS": json.dumps({**SPEEDS, **more})}


def tune(daemon: Daemon, query: str = "m&quick=1") -> list[dict[str, Any]]:
    return daemon.events(f"tune?model={query}")


class Watched:
    """A measurement that is followed line by line."""

    def __init__(self, daemon: Daemon, query: str = "m&quick=1") -> None:
        self.connection = UnixConnection(daemon.control_socket)
        self.connection.request("POST", f"/accelerd/v1/tune?model={query}")
        self.response: http.client.HTTPResponse = self.connection.getresponse()

    def until(self, **wanted: Any) -> dict[str, Any]:
        """The first event that has these values."""
        while line := self.response.readline():
            event: dict[str, Any] = json.loads(line)
            if all(event.get(key) == value for key, value in wanted.items()):
                return event
        raise AssertionError(f"no event with {wanted}")

    def leave(self) -> None:
        self.response.close()
        self.connection.close()


def test_the_fastest_is_found_and_the_model_is_loaded_again(daemons: DaemonFactory, site: Site) -> None:
    daemon = daemons.start(QUICK + site.model("m", env=speeds(), threads=2))
    assert daemon.chat("m").status == 200
    events = tune(daemon)
    done = events[-1]
    assert done["event"] == "done", done
    assert done["settings"] == {"ubatch": 1024}  # a batch of 2048 is what llama-server takes anyway
    rows = {row["label"]: row for row in done["rows"]}
    assert next(iter(rows)) == "as it is now"
    assert rows["ubatch 1024"]["best"]
    assert rows["ubatch 1024"]["prompt"]["median"] == 200
    assert [label for label in rows if "flash_attention off" in label]
    assert not [row for row in done["rows"] if row["failed"]]
    told = [event["row"]["label"] for event in events if "row" in event]
    assert told == list(rows)[: len(told)]  # the last may come with the end only
    assert {event["phase"] for event in events if "phase" in event} >= {"unloading", "loading", "warming up"}
    daemon.wait_state("m", "ready")
    assert [m["name"] for m in daemon.status()["models"]] == ["m"]
    eventually(lambda: len(marked(daemon)) == 1, "only the model itself is left")
    tried = site.events("spawn", TRIAL)
    assert len(tried) == len(rows)
    assert all("-c" in spawn["argv"] for spawn in tried)


def test_what_was_not_loaded_is_not_loaded_afterwards(daemons: DaemonFactory, site: Site) -> None:
    daemon = daemons.start(QUICK + site.model("m", env=speeds()))
    assert tune(daemon)[-1]["event"] == "done"
    assert daemon.state("m") == "stopped"
    eventually(lambda: not marked(daemon), "nothing is left")


def test_a_candidate_that_cannot_start_is_a_row_and_no_more(daemons: DaemonFactory, site: Site, tmp_path: Path) -> None:
    wrapper = tmp_path / "picky"
    wrapper.write_text(f'#!/bin/sh\ncase "$*" in *"-ub 1024"*) echo "no such batch" >&2; exit 1;; esac\n'
                       f'exec {site.program} "$@"\n')  # fmt: skip
    wrapper.chmod(0o755)
    daemon = daemons.start(QUICK + site.model("m", env=speeds(**{"-ub 256": [300, 30]}), binary=str(wrapper)))
    done = tune(daemon)[-1]
    assert done["event"] == "done", done
    (failed,) = [row for row in done["rows"] if row["failed"]]
    assert failed["label"] == "ubatch 1024"
    assert "exited with status 1" in failed["failed"]
    assert "no such batch" in failed["failed"]
    assert done["settings"]["ubatch"] == 256


def test_a_model_that_does_not_start_at_all_is_not_measured(daemons: DaemonFactory, site: Site) -> None:
    daemon = daemons.start(QUICK + site.model("m", "exit:3"))
    end = tune(daemon)[-1]
    assert (end["event"], end["error"]["code"]) == ("error", "model_failed")
    assert end["error"]["message"].startswith("cannot measure m: ")
    assert [m["name"] for m in daemon.status()["models"]] == ["m"]


def test_nothing_better_changes_nothing(daemons: DaemonFactory, site: Site) -> None:
    daemon = daemons.start(
        QUICK + site.model("m", env={"FAKE_SPEEDS": json.dumps({"": [100, 10], "-ub 256": [101, 10]})})
    )
    done = tune(daemon)[-1]
    assert done["settings"] == {}
    assert next(row["label"] for row in done["rows"] if row["best"]) == "as it is now"


def test_a_setting_of_ones_own_that_would_be_replaced_is_named(daemons: DaemonFactory, site: Site) -> None:
    daemon = daemons.start(QUICK + site.model("m", env=speeds(), ubatch=256))
    done = tune(daemon)[-1]
    assert done["settings"]["ubatch"] == 1024
    (replaced,) = done["replaces"]
    assert replaced.startswith("ubatch = 256 (model (accelerd.toml:")


@pytest.mark.parametrize("where", ["loading", "measuring"])
def test_whoever_leaves_leaves_the_model_as_it_was(where: str, daemons: DaemonFactory, site: Site) -> None:
    mode = "slow-load:0.5" if where == "loading" else "slow-token:100"
    daemon = daemons.start(QUICK + site.model("m", mode, env=speeds(), idle_timeout="never"))
    daemon.events("load?model=m")
    before = daemon.status("m")
    watched = Watched(daemon)
    watched.until(phase=where)
    watched.leave()
    eventually(lambda: [m["name"] for m in daemon.status()["models"]] == ["m"], "the trial has gone")
    after = daemon.wait_state("m", "ready")
    assert after["pid"] != before["pid"]
    eventually(lambda: len(marked(daemon)) == 1, "nothing else is left")
    assert tune(daemon)[-1]["event"] == "done"


def test_busy_models_are_not_disturbed_unless_forced(daemons: DaemonFactory, site: Site) -> None:
    slow = {"FAKE_TOKENS": "400", "FAKE_DELAY_MS": "20"}
    daemon = daemons.start(QUICK + site.model("m", env=speeds()) + site.model("other", env=slow))
    with streaming(daemon, "other") as response:
        assert response.readline()
        (refused,) = tune(daemon)
        assert (refused["event"], refused["error"]["code"]) == ("error", "busy")
        assert "other (1 running, 0 waiting)" in refused["error"]["message"]
        assert "--force" in refused["error"]["message"]
        pid = daemon.status("other")["pid"]
        done = tune(daemon, "m&quick=1&force=1")[-1]
        assert done["event"] == "done"
        assert all(row["disturbed"] for row in done["rows"])
        assert alive(pid)
        assert response.readline() is not None


def test_one_measurement_at_a_time(daemons: DaemonFactory, site: Site) -> None:
    daemon = daemons.start(QUICK + site.model("m", "slow-token:50", env=speeds()) + site.model("n", env=speeds()))
    watched = Watched(daemon)
    watched.until(phase="measuring")
    (refused,) = tune(daemon, "n&quick=1")
    assert (refused["event"], refused["error"]["code"]) == ("error", "busy")
    watched.leave()


def test_clients_know_nothing_of_it(daemons: DaemonFactory, site: Site) -> None:
    daemon = daemons.start(QUICK + site.model("m", "slow-token:50", env=speeds()))
    watched = Watched(daemon)
    watched.until(phase="measuring")
    assert TRIAL in [m["name"] for m in daemon.status()["models"]]
    assert [m["id"] for m in daemon.send("GET", "/v1/models").json()["data"]] == ["m"]
    answer = daemon.chat(TRIAL)
    assert (answer.status, answer.code) == (404, "model_not_found")
    # Requests for the model itself are served meanwhile, by its own server.
    assert daemon.chat("m", max_tokens=1).status == 200
    watched.leave()


def test_memory_that_others_hold_is_respected(daemons: DaemonFactory, site: Site) -> None:
    toml = '[scheduler]\nmemory = "300MiB"\n' + QUICK.replace("[scheduler]\n", "")
    daemon = daemons.start(
        toml + site.model("m", memory="200MiB", env=speeds()) + site.model("big", memory="200MiB", pin=True)
    )
    daemon.events("load?model=big")
    end = tune(daemon)[-1]
    assert end["event"] == "error"
    assert "200 MiB held by big" in end["error"]["message"]
    assert daemon.state("big") == "ready"


def test_a_daemon_that_ends_does_not_wait_for_it(daemons: DaemonFactory, site: Site) -> None:
    daemon = daemons.start(QUICK + site.model("m", "slow-token:200", env=speeds()))
    watched = Watched(daemon)
    watched.until(phase="measuring")
    assert daemon.stop(within=10) == 0
    watched.leave()
    assert not marked(daemon)


def test_a_reload_meanwhile_does_not_end_it(daemons: DaemonFactory, site: Site) -> None:
    toml = QUICK + site.model("m", env=speeds())
    daemon = daemons.start(toml)
    with side_by_side() as do:
        asked = do(tune, daemon)
        eventually(lambda: any(m["name"] == TRIAL for m in daemon.status()["models"]), "it is being tried")
        daemon.configure(toml + site.model("n"))
        assert daemon.control("POST", "reload").json()["added"] == ["n"]
        assert asked.result(60)[-1]["event"] == "done"
    assert [m["name"] for m in daemon.status()["models"]] == ["m", "n"]


def test_only_what_generates_can_be_measured(daemons: DaemonFactory, site: Site) -> None:
    daemon = daemons.start(QUICK + site.model("e", embeddings=True))
    (refused,) = tune(daemon, "e")
    assert refused["error"]["code"] == "bad_request"
    assert (daemon.control("POST", "tune?model=nobody").code) == "model_not_found"
