"""Which models are loaded, for whom and how long: the scheduler's promises, kept by a whole daemon."""

from __future__ import annotations

import contextlib
import itertools
import json
import queue
import socket
import threading
import time
from concurrent.futures import Future
from typing import Any

import pytest

from tests.daemon.kit import Site, history, rest_of, side_by_side, sse, tokens, whole_stream
from tests.harness import Answer, Daemon, DaemonFactory, UnixConnection, eventually, first_event, streaming

NAMES = "abc"
ROOM_FOR_ONE = '[scheduler]\nmemory = "1GB"\nlinger = "100ms"\n'


def scheduler(**settings: object) -> str:
    return "[scheduler]\n" + "".join(
        f'{key} = "{value}"\n' if isinstance(value, str) else f"{key} = {value}\n" for key, value in settings.items()
    )


def three(site: Site, **settings: Any) -> str:
    return "".join(site.model(name, memory="900MB", parallel=1, **settings) for name in NAMES)


def ready(daemon: Daemon) -> list[str]:
    return [m["name"] for m in daemon.status()["models"] if m["state"] == "ready"]


def load(daemon: Daemon, name: str) -> None:
    assert daemon.events(f"load?model={name}")[-1]["event"] == "ready"


def test_three_models_on_a_budget_for_one_are_all_reachable(daemons: DaemonFactory, site: Site) -> None:
    daemon = daemons.start(ROOM_FOR_ONE + three(site))
    for name in NAMES * 2:
        assert daemon.chat(name).headers["x-accelerd-model"] == name
        assert ready(daemon) == [name]
        assert daemon.status()["scheduler"]["memory_used"] == 900_000_000
    assert site.spawns() == 6
    assert "made room for b" in daemon.output()


def test_forty_interleaved_requests_at_once_cost_three_loads(daemons: DaemonFactory, site: Site) -> None:
    daemon = daemons.start(ROOM_FOR_ONE + three(site))
    order = list(itertools.islice(itertools.cycle(NAMES), 40))
    with side_by_side() as do:
        requests = [(name, do(daemon.chat, name)) for name in order]
        answers = [(name, request.result(60)) for name, request in requests]
    assert all(a.status == 200 and a.headers["x-accelerd-model"] == name for name, a in answers)
    assert site.spawns() == 3
    assert len(site.events("start")) == 40
    assert _overlaps(site) == 0


def test_forty_interleaved_requests_that_trickle_in_cost_three_loads(daemons: DaemonFactory, site: Site) -> None:
    daemon = daemons.start(ROOM_FOR_ONE.replace("100ms", "500ms") + three(site))

    def work(first: int) -> list[Future[Answer]]:
        """Five requests, one after the other, whether or not there is an answer yet."""
        sent = []
        for number in range(first, 40, 8):
            sent.append(do(daemon.chat, NAMES[number % 3]))
            time.sleep(0.12)
        return sent

    with side_by_side() as do:
        workers = [do(work, first) for first in range(8)]
        answers = [request.result(60) for worker in workers for request in worker.result(60)]
    assert [a.status for a in answers] == [200] * 40
    assert site.spawns() == 3


def test_eight_clients_that_wait_for_each_answer_share_loads(daemons: DaemonFactory, site: Site) -> None:
    """Three loads are out of reach: the client of the ninth request is one of those who wait. But one each is far."""
    daemon = daemons.start(ROOM_FOR_ONE + three(site))
    todo: queue.SimpleQueue[str] = queue.SimpleQueue()
    for name in itertools.islice(itertools.cycle(NAMES), 40):
        todo.put(name)

    def work() -> list[int]:
        found = []
        while True:
            try:
                found.append(daemon.chat(todo.get_nowait()).status)
            except queue.Empty:
                return found

    with side_by_side() as do:
        workers = [do(work) for _ in range(8)]
        assert [status for worker in workers for status in worker.result(60)] == [200] * 40
    print(f"{site.spawns()} loads for 40 requests")
    assert site.spawns() <= 12
    assert _overlaps(site) == 0


def _overlaps(site: Site) -> int:
    """How many engines were started while another lived: none when there is room for one."""
    lives = []
    for spawn in site.events("spawn"):
        ends = [e["t"] for e in site.events("exit") if e["pid"] == spawn["pid"]]
        lives.append((spawn["t"], ends[0] if ends else float("inf")))
    return sum(later[0] < earlier[1] for earlier, later in itertools.pairwise(sorted(lives)))


def test_a_running_stream_is_never_cut_by_a_swap(daemons: DaemonFactory, site: Site) -> None:
    slow = {"FAKE_TOKENS": "30", "FAKE_DELAY_MS": "20"}
    models = [site.model(name, "ok", slow, memory="900MB") for name in "ab"]
    daemon = daemons.start(ROOM_FOR_ONE + "max_overtake = 0\n" + "".join(models))
    load(daemon, "a")
    with side_by_side() as do, streaming(daemon, "a") as response:
        assert first_event(response).startswith(b"data: ")
        swap = do(daemon.chat, "b", max_tokens=1)
        text, complete = rest_of(response)
        assert complete
        assert sse(text)[-1] == "[DONE]"
        assert len(tokens(sse(text))) == 30
        assert swap.result(20).status == 200


def test_nobody_is_overtaken_for_longer_than_the_bound(daemons: DaemonFactory, site: Site) -> None:
    # a linger that no pause of the clients is as long as: only the bound lets `b` in
    toml = scheduler(memory="1GB", linger="60s", max_overtake="400ms") + three(site)
    daemon = daemons.start(toml)
    load(daemon, "a")
    over, begun = threading.Event(), threading.Barrier(4)

    def insist() -> int:
        """Keeps `a` busy for ever."""
        begun.wait(30)
        count = 0
        while not over.is_set():
            assert daemon.chat("a").status == 200
            count += 1
        return count

    with side_by_side() as do:
        busy = [do(insist) for _ in range(3)]
        try:
            begun.wait(30)
            eventually(lambda: len(site.events("start")) > 3, "they are busy")
            assert daemon.chat("b").status == 200  # within the harness's patience
        finally:
            over.set()
        assert all(one.result(30) > 0 for one in busy)
    assert "other requests waited long enough" in daemon.output()


def test_an_idle_model_is_put_away_and_comes_back_when_asked(daemons: DaemonFactory, site: Site) -> None:
    models = [
        site.model("a", idle_timeout=0.2),
        site.model("b", idle_timeout="never"),
        site.model("c", pin=True, idle_timeout=0.2),
    ]
    daemon = daemons.start("".join(models))
    for name in NAMES:
        assert daemon.chat(name).status == 200
    daemon.wait_state("a", "stopped")
    assert daemon.status("a")["reason"] == "idle for 0 s" or "idle for" in daemon.status("a")["reason"]
    assert ready(daemon) == ["b", "c"]
    assert daemon.chat("a").status == 200
    assert site.spawns("a") == 2


def test_preload_follows_the_order_of_the_file_and_evicts_nobody(daemons: DaemonFactory, site: Site) -> None:
    models = [
        site.model("second", preload=True, memory="300MB"),
        site.model("first", preload=True, memory="300MB"),
        site.model("broken", "exit:1", preload=True, memory="100MB"),
        site.model("too-much", preload=True, memory="900MB"),
        site.model("last", preload=True, memory="100MB"),
        site.model("not", memory="10MB"),
    ]
    daemon = daemons.start(scheduler(memory="1GB") + "".join(models))
    daemon.wait_state("last", "ready")
    assert sorted(ready(daemon)) == ["first", "last", "second"]
    order = [_alias(event) for event in site.events("spawn")]
    assert [name for name in order if name != "broken"] == ["second", "first", "last"]
    assert order.index("broken") == 2
    assert "cannot preload too-much" in daemon.output()
    assert "cannot preload broken" in daemon.output()


def _alias(event: dict[str, Any]) -> str:
    argv = event["argv"]
    return str(argv[argv.index("--alias") + 1])


def test_a_pinned_model_makes_room_for_nobody(daemons: DaemonFactory, site: Site) -> None:
    models = [
        site.model("pinned", pin=True, memory="600MB"),
        site.model("big", memory="600MB"),
        site.model("small", memory="300MB"),
    ]
    daemon = daemons.start(scheduler(memory="1GB", linger="10ms") + "".join(models))
    daemon.wait_state("pinned", "ready")
    refused = daemon.chat("big")
    assert (refused.status, refused.code) == (503, "does_not_fit")
    assert "held by pinned" in refused.json()["error"]["message"]
    assert daemon.chat("small").status == 200
    assert sorted(ready(daemon)) == ["pinned", "small"]


def test_max_loaded_puts_away_what_was_used_longest_ago(daemons: DaemonFactory, site: Site) -> None:
    toml = scheduler(max_loaded=2, linger="10ms") + "".join(site.model(name) for name in NAMES)
    daemon = daemons.start(toml)
    for name in "abac":
        assert daemon.chat(name).status == 200
    assert ready(daemon) == ["a", "c"]
    assert daemon.status()["scheduler"]["max_loaded"] == 2


def test_of_a_group_one_is_loaded_and_an_exclusive_model_is_alone(daemons: DaemonFactory, site: Site) -> None:
    models = [
        site.model("chat-1", group="chat"), site.model("chat-2", group="chat"), site.model("embed"),
        site.model("alone", exclusive=True),
    ]  # fmt: skip
    daemon = daemons.start(scheduler(linger="10ms") + "".join(models))
    for name in ("embed", "chat-1", "chat-2"):
        assert daemon.chat(name).status == 200
    assert ready(daemon) == ["chat-2", "embed"]
    assert daemon.chat("alone").status == 200
    assert ready(daemon) == ["alone"]
    assert daemon.chat("embed").status == 200
    assert ready(daemon) == ["embed"]


# --- the queue ---


@pytest.fixture
def crowded(daemons: DaemonFactory, site: Site) -> Daemon:
    """One slot, taken by a request that lasts; two places in the queue."""
    slow = {"FAKE_TOKENS": "100000", "FAKE_DELAY_MS": "10"}
    toml = scheduler(max_queue=2, queue_timeout="1500ms") + site.model("m", "ok", slow, parallel=1)
    daemon = daemons.start(toml, server='keepalive_after = "100ms"')
    load(daemon, "m")
    return daemon


def fill(daemon: Daemon, site: Site, do: Any) -> tuple[Future[Any], list[Future[Answer]]]:
    """A stream that runs, for as long as the daemon does, and two requests that wait behind it."""
    running = do(whole_stream, daemon, "m")
    eventually(lambda: site.events("start", "m"), "one runs")
    waiting = [do(daemon.chat, "m", max_tokens=1) for _ in range(2)]
    eventually(lambda: daemon.status("m")["queue"] == 2, "the queue is full")
    return running, waiting


def test_a_full_queue_answers_429_and_a_long_wait_503(crowded: Daemon, site: Site) -> None:
    with side_by_side() as do:
        running, waiting = fill(crowded, site, do)
        full = crowded.chat("m")
        assert (full.status, full.code) == (429, "queue_full")
        assert int(full.headers["retry-after"]) > 0
        for request in waiting:
            answer = request.result(20)
            assert (answer.status, answer.code) == (503, "queue_timeout")
            assert int(answer.headers["retry-after"]) > 0
        assert crowded.status()["scheduler"]["queue"] == 0
        assert len(site.events("start")) == 1
        crowded.events("unload?model=m&force=1")
        running.result(20)


def test_a_streaming_client_hears_comments_while_it_waits_and_then_the_error(crowded: Daemon, site: Site) -> None:
    with side_by_side() as do, streaming(crowded, "m"):
        eventually(lambda: site.events("start", "m"), "one runs")
        with streaming(crowded, "m") as response:
            assert (response.status, response.getheader("content-type")) == (200, "text/event-stream")
            text, complete = rest_of(response)
        assert text.startswith(": waiting for m")
        assert sse(text)[-1]["error"]["code"] == "queue_timeout"
        assert not complete
        assert do(crowded.state, "m").result(5) == "ready"


def test_a_client_that_leaves_the_queue_frees_its_place_and_costs_nothing(crowded: Daemon, site: Site) -> None:
    with side_by_side() as do, contextlib.ExitStack() as client:
        first = client.enter_context(streaming(crowded, "m"))
        assert first.readline().startswith(b"data: ")
        with socket.create_connection(("127.0.0.1", crowded.port)) as gone:
            body = b'{"model": "m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}'
            head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            gone.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            eventually(lambda: crowded.status("m")["queue"] == 1, "it waits")
        eventually(lambda: crowded.status("m")["queue"] == 0, "its place is free")
        stays = do(crowded.chat, "m", max_tokens=1)
        eventually(lambda: crowded.status("m")["queue"] == 1, "another waits")
        client.close()  # the slot is free as soon as this client has gone
        assert stays.result(20).status == 200
    assert len(site.events("start")) == 2
    assert len(site.events("disconnect")) == 1


def test_a_load_goes_on_when_all_who_waited_for_it_have_gone(daemons: DaemonFactory, site: Site) -> None:
    daemon = daemons.start(site.model("m", "slow-load:2"), server='keepalive_after = "50ms"')
    with streaming(daemon, "m"):
        daemon.wait_state("m", "starting")
    daemon.wait_state("m", "ready")
    assert (site.spawns(), site.events("start"), history(daemon, "m")) == (1, [], ["starting", "ready"])


def test_a_queued_load_is_given_up_when_the_last_client_that_wants_it_goes(daemons: DaemonFactory, site: Site) -> None:
    slow = {"FAKE_TOKENS": "100000", "FAKE_DELAY_MS": "10"}
    daemon = daemons.start(ROOM_FOR_ONE + three(site, env=slow))

    def wants(name: str) -> UnixConnection:
        client = UnixConnection(daemon.control_socket)
        client.request("POST", f"/accelerd/v1/load?model={name}")
        assert json.loads(client.getresponse().readline())["event"] == "progress"
        return client

    def loads() -> list[str]:
        return [job["subject"] for job in daemon.control("GET", "jobs").json()["jobs"] if job["state"] != "done"]

    with streaming(daemon, "a") as response:
        assert first_event(response).startswith(b"data: ")
        first, second = wants("b"), wants("b")
        assert loads() == ["b"]
        first.close()
        assert loads() == ["b"]  # another client waits for it
        third = wants("c")
        second.close()
        eventually(lambda: loads() == ["c"], "nobody wants b")
        assert daemon.status("b")["queue"] == 0
    daemon.wait_state("c", "ready")
    third.close()
    assert history(daemon, "b") == []
