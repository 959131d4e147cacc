"""The daemon's own end: asked for once, twice, or forced by a part that fails."""

from __future__ import annotations

import contextlib
import http.client
import signal
import time

import psutil
import pytest

from tests.daemon.kit import QUICK, Site, marked, rest_of, side_by_side, sse, whole_stream
from tests.harness import Daemon, DaemonFactory, UnixConnection, eventually, first_event, streaming

ENDLESS = {"FAKE_TOKENS": "100000"}


def ended(daemon: Daemon) -> None:
    """Nothing of it is left."""
    assert marked(daemon) == []
    with pytest.raises(ConnectionRefusedError):
        daemon.send("GET", "/health")


def test_sigterm_under_load_answers_everybody(daemons: DaemonFactory, site: Site) -> None:
    toml = site.model("first", "slow-token:20", {"FAKE_TOKENS": "400"}, parallel=1) + site.model("second")
    daemon = daemons.start(QUICK + toml, server='drain_timeout = "20s"')
    assert daemon.chat("first", max_tokens=1).status == 200
    assert daemon.chat("second").status == 200
    daemon.messages()
    with side_by_side() as do:
        running = do(whole_stream, daemon, "first")
        eventually(lambda: len(site.events("start", "first")) == 2, "one runs")
        queued = [do(daemon.chat, "first") for _ in range(3)]
        queued_stream = do(whole_stream, daemon, "first")
        eventually(lambda: daemon.status("first")["queue"] == 4, "the others wait")
        daemon.process.send_signal(signal.SIGTERM)
        for request in queued:
            answer = request.result(20)
            assert (answer.status, answer.code) == (503, "shutting_down")
            assert int(answer.headers["retry-after"]) > 0
        status, events, _ = queued_stream.result(20)
        assert events[-1]["error"]["code"] == "shutting_down" if status == 200 else status == 503
        status, events, complete = running.result(20)
        assert (status, complete, events[-1]) == (200, True, "[DONE]")
    assert daemon.process.wait(20) == 0
    ended(daemon)
    messages = daemon.messages()
    assert "STOPPING=1" in messages
    assert "READY=1" not in messages
    assert any(m.startswith("STATUS=stopping") for m in messages)
    assert len(site.events("term")) == 2
    output = daemon.output()
    assert "requests that wait for a model are refused (only a restart hands them on): 4\n" in output
    assert output.index("second: ready → stopping") < output.index("first: ready → stopping")  # the youngest first


def test_a_request_that_outlasts_the_drain_timeout_ends_with_an_error(daemons: DaemonFactory, site: Site) -> None:
    daemon = daemons.start(site.model("m", "slow-token:20", ENDLESS), server='drain_timeout = "300ms"')
    with streaming(daemon, "m") as response:
        assert first_event(response).startswith(b"data: ")
        told = time.monotonic()
        daemon.process.send_signal(signal.SIGTERM)
        text, complete = rest_of(response)
    assert not complete
    assert sse(text)[-1]["error"]["code"] == "shutting_down"
    assert daemon.process.wait(20) == 0
    assert 0.3 <= time.monotonic() - told < 18
    ended(daemon)


def test_readers_of_logs_and_idle_connections_delay_nothing(daemons: DaemonFactory, site: Site) -> None:
    daemon = daemons.start(site.model("m"), server='drain_timeout = "20s"')
    assert daemon.chat("m").status == 200
    with contextlib.ExitStack() as stack:
        reader = stack.enter_context(contextlib.closing(UnixConnection(daemon.control_socket)))
        reader.request("GET", "/accelerd/v1/logs?model=m&follow=1")
        followed = stack.enter_context(contextlib.closing(reader.getresponse()))
        assert followed.status == 200
        idle = stack.enter_context(contextlib.closing(http.client.HTTPConnection("127.0.0.1", daemon.port)))
        idle.request("GET", "/health")
        assert idle.getresponse().read()
        told = time.monotonic()
        assert daemon.stop() == 0
        assert time.monotonic() - told < 18
    ended(daemon)


def test_sigterm_while_a_model_loads(daemons: DaemonFactory, site: Site) -> None:
    daemon = daemons.start(site.model("m", "slow-load:60,chatter:20", preload=True))
    daemon.wait_state("m", "starting")
    with side_by_side() as do:
        asked = do(daemon.chat, "m")
        loading = do(daemon.events, "load?model=m")
        eventually(lambda: daemon.status("m")["queue"] == 3 and site.spawns(), "all wait")
        told = time.monotonic()
        assert daemon.stop() == 0
        assert time.monotonic() - told < 18
        assert asked.result(5).code == "shutting_down"
        assert loading.result(5)[-1]["error"]["code"] == "shutting_down"
    ended(daemon)


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_kills_at_once(daemons: DaemonFactory, site: Site, second: signal.Signals) -> None:
    toml = site.model("m", "slow-token:20,ignore-term", ENDLESS, stop_timeout=60) + site.model("idle", "ignore-term")
    daemon = daemons.start(toml, server='drain_timeout = "60s"')
    assert daemon.chat("idle").status == 200
    with streaming(daemon, "m") as response:
        assert first_event(response).startswith(b"data: ")
        daemon.process.send_signal(signal.SIGTERM)
        eventually(lambda: "STOPPING=1" in daemon.messages(), "it stops")
        assert daemon.process.poll() is None
        told = time.monotonic()
        daemon.process.send_signal(second)
        assert daemon.process.wait(20) == 0
        assert time.monotonic() - told < 18
        assert not rest_of(response)[1]
    ended(daemon)


def test_a_second_signal_while_the_models_end(daemons: DaemonFactory, site: Site) -> None:
    daemon = daemons.start(site.model("m", "ignore-term", stop_timeout=60))
    assert daemon.chat("m").status == 200
    daemon.process.send_signal(signal.SIGTERM)
    eventually(lambda: site.events("term"), "the engine was told")
    told = time.monotonic()
    assert daemon.stop() == 0
    assert time.monotonic() - told < 18
    ended(daemon)


def test_the_watchdog_is_fed_at_half_its_interval(daemons: DaemonFactory) -> None:
    daemon = daemons.start(env={"WATCHDOG_USEC": "200000"})
    daemon.messages()
    began, seen = time.monotonic(), 0
    while seen < 5:
        seen += daemon.messages().count("WATCHDOG=1")
        assert time.monotonic() - began < 30
        time.sleep(0.02)
    assert time.monotonic() - began > 0.3  # fed, not flooded
    daemon.process.send_signal(signal.SIGSTOP)
    try:
        eventually(lambda: psutil.Process(daemon.process.pid).status() == psutil.STATUS_STOPPED, "it hangs")
        daemon.messages()
        time.sleep(0.3)
        assert daemon.messages() == []
    finally:
        daemon.process.send_signal(signal.SIGCONT)
    eventually(lambda: "WATCHDOG=1" in daemon.messages(), "it lives again")


def test_a_background_task_that_fails_ends_the_daemon_with_its_reason(daemons: DaemonFactory, site: Site) -> None:
    daemon = daemons.start(site.model("m", "slow-token:20", {"FAKE_TOKENS": "20"}), module="tests.daemon.broken_daemon")
    with streaming(daemon, "m") as response:
        assert first_event(response).startswith(b"data: ")
        daemon.process.send_signal(signal.SIGHUP)
        text, complete = rest_of(response)
        assert (complete, sse(text)[-1]) == (True, "[DONE]")  # even so, what runs may end
    assert daemon.process.wait(20) not in (0, None)
    assert "ZeroDivisionError: this part is broken on purpose" in daemon.output()
    assert "never retrieved" not in daemon.output()
    ended(daemon)


def test_the_watchdog_is_fed_while_such_a_daemon_ends(daemons: DaemonFactory, site: Site) -> None:
    toml = site.model("m", "slow-token:20", {"FAKE_TOKENS": "50"})
    daemon = daemons.start(toml, env={"WATCHDOG_USEC": "20000"}, module="tests.daemon.broken_daemon")
    with streaming(daemon, "m") as response:
        assert first_event(response).startswith(b"data: ")
        daemon.process.send_signal(signal.SIGHUP)
        eventually(lambda: "accelerd is stopping" in daemon.output(), "it ends")
        daemon.messages()
        eventually(lambda: "WATCHDOG=1" in daemon.messages(), "it is fed while the request ends")
        assert rest_of(response)[1]
    assert daemon.process.wait(20) not in (0, None)
    assert "not alive" not in daemon.output()


def test_a_reload_that_fails_so_answers_who_asked(daemons: DaemonFactory) -> None:
    daemon = daemons.start(module="tests.daemon.broken_daemon", server='drain_timeout = "20s"')
    asked = time.monotonic()
    answer = daemon.control("POST", "reload")
    assert (answer.status, answer.code) == (500, "internal")
    assert b"broken on purpose" not in answer.body
    assert daemon.process.wait(20) != 0
    assert time.monotonic() - asked < 18
