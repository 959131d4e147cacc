"""Models of servers elsewhere under a daemon: TLS, keys, streams that stall or break, and what clients get to see."""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.daemon.kit import QUICK, Site
from tests.fakes.fake_remote import CA, WORDS, FakeRemote
from tests.harness import Answer, Daemon, DaemonFactory, eventually, streaming
from tests.ports import free_port

KEY = "sk-remote-0123456789"
HELLO = "".join(WORDS)
MODES = (
    "big", "slow", "hangup", "redirect", "nothing", "busy", "page", "broken", "unhappy", "head", "garbage", "gzip",
    "cut", "cut-chunk", "odd", "later", "unknown", "text", "short", "early",
)  # fmt: skip


def remote(name: str, url: str, **settings: Any) -> str:
    lines = [f"[remotes.{name}]", f'url = "{url}"']
    for key, value in settings.items():
        inner = value if isinstance(value, dict) else {}
        lines += [f"{key}.{name} = {json.dumps(one)}" for name, one in inner.items()]
        lines += [] if inner else [f"{key} = {json.dumps(value)}"]
    return "\n".join(lines) + "\n"


def model(name: str, remote: str, wire: str, **settings: Any) -> str:
    lines = [f"[models.{name}]", 'engine = "remote"', f'remote = "{remote}"', f'model = "{wire}"']
    return "\n".join([*lines, *(f"{key} = {json.dumps(value)}" for key, value in settings.items())]) + "\n"


def key_file(folder: Path, key: str = KEY, mode: int = 0o600) -> str:
    path = folder / f"key-{mode:o}-{len(key)}"
    path.write_text(f"# of the Mac\n{key}\n")
    path.chmod(mode)
    return str(path)


@pytest.fixture(scope="module")
def mac(sites: Site) -> Iterator[FakeRemote]:
    with closing(FakeRemote(sites.directory, "server.pem", KEY)) as fake:
        yield fake


@pytest.fixture(scope="module")
def daemon(factory: DaemonFactory, sites: Site, mac: FakeRemote) -> Iterator[Daemon]:
    folder = sites.directory
    with closing(FakeRemote(folder, "other.pem")) as other, closing(FakeRemote(folder, key=KEY)) as claude:
        good = {"ca_file": str(CA), "key_file": key_file(folder)}
        toml = [
            QUICK,
            sites.model("here"),
            remote("mac", f"{mac.url}/v1", **good, headers={"X-Team": "blue"}),
            *(model(name, "mac", name, concurrency=1 if name == "slow" else 4) for name in MODES),
            remote("brief", f"{mac.url}/v1", **good, stall_timeout="300ms"),
            model("stall", "brief", "stall"),
            remote("hasty", f"{mac.url}/v1", **good, first_byte_timeout="200ms"),
            model("late", "hasty", "slow"),
            remote("untrusted", f"{mac.url}/v1", key_file=key_file(folder)),
            model("untrusted", "untrusted", "big"),
            remote("misnamed", f"{other.url}/v1", ca_file=str(CA)),
            model("misnamed", "misnamed", "big"),
            remote("plain", f"https://localhost:{claude.port}", ca_file=str(CA)),
            model("plain", "plain", "big"),
            remote("gone", f"http://localhost:{free_port()}/v1"),
            model("gone", "gone", "big"),
            remote("stranger", f"{mac.url}/v1", ca_file=str(CA), key_file=key_file(folder, "sk-wrong-key")),
            model("stranger", "stranger", "big"),
            remote("turned", f"{mac.url}/v1", ca_file=str(CA), key_file=key_file(folder, "sk-turned-key")),
            model("turned", "turned", "big"),
            remote("steady", f"{mac.url}/v1", **good),
            model("steady", "steady", "big"),
            model("leaves", "steady", "once"),
            remote("far", "http://nowhere.invalid/v1", key_file=key_file(folder), proxy=claude.url),
            model("far", "far", "big"),
            remote("open", f"{mac.url}/v1", ca_file=str(CA), key_file=key_file(folder, mode=0o644)),
            model("open", "open", "big"),
            remote("unit", f"{mac.url}/v1", ca_file=str(CA), credential="mac-key"),
            model("unit", "unit", "big"),
            remote("claude", claude.url, api="anthropic", key_file=key_file(folder)),
            model("claude", "claude", "claude-9"),
            remote("llama", f"{claude.url}/v1", api="ollama", key_file=key_file(folder)),
            model("llama", "llama", "llama3.2"),
            '[routes.either]\nmodels = ["hangup", "gone", "big"]\n',
            '[routes.home]\nmodels = ["broken", "here"]\n',
            '[routes.paged]\nmodels = ["page", "big"]\n',
            '[routes.whole]\nmodels = ["short", "early", "unknown", "big"]\ncooldown = "1h"\n',
        ]
        credentials = folder / "credentials"
        credentials.mkdir()
        (credentials / "mac-key").write_text(KEY)
        (credentials / "mac-key").chmod(0o400)
        yield factory.start("".join(toml), env={"CREDENTIALS_DIRECTORY": str(credentials)})


def text_of(answer: Answer) -> str:
    assert answer.status == 200, answer.body
    return str(answer.json()["choices"][0]["message"]["content"])


def test_it_is_always_loaded_and_needs_no_memory(daemon: Daemon) -> None:
    status = daemon.wait_state("big", "ready")
    assert (status["pid"], status["memory"], status["device"]) == (None, 0, "remote mac")
    assert daemon.control("GET", "explain?model=big").json()["argv"] == []
    line = daemon.status()["status"]
    assert "of 1 models loaded" in line
    assert "elsewhere: big, slow, " in line
    assert "big: starting → ready: a server elsewhere has it" in daemon.output()
    assert "asked to load" not in daemon.output()
    listed = {one["id"]: one for one in daemon.send("GET", "/v1/models").json()["data"]}
    assert listed["big"]["context_length"] is None, "nobody has said it"


def test_a_request_gets_the_remotes_answer_under_the_clients_name(daemon: Daemon, mac: FakeRemote) -> None:
    answer = daemon.chat("odd")
    assert text_of(answer) == HELLO
    assert answer.json()["model"] == "odd"
    assert answer.headers["x-accelerd-model"] == "odd"
    request = mac.seen("/v1/chat/completions")[-1]
    assert request["json"]["model"] == "odd"
    assert request["headers"]["authorization"] == f"Bearer {KEY}"
    assert request["headers"]["x-team"] == "blue"
    assert request["headers"]["accept-encoding"] == "identity"
    assert "cookie" not in request["headers"]


def test_nothing_of_the_clients_headers_leaves_this_machine(daemon: Daemon, mac: FakeRemote) -> None:
    body = {"model": "big", "messages": [{"role": "user", "content": "hi"}]}
    secret = {"Authorization": "Bearer of-accelerd", "X-Forwarded-For": "10.1.2.3", "Cookie": "a=b"}
    assert daemon.send("POST", "/v1/chat/completions", body, secret).status == 200
    sent = json.dumps(mac.seen("/v1/chat/completions")[-1]["headers"])
    assert "of-accelerd" not in sent
    assert "10.1.2.3" not in sent
    assert "a=b" not in sent


@pytest.mark.parametrize("name", ["big", "odd"])
def test_a_stream_comes_as_it_is_sent(daemon: Daemon, name: str) -> None:
    with streaming(daemon, name) as response:
        body = response.read().decode()
    events = [line.removeprefix("data: ") for line in body.split("\n") if line.startswith("data: ")]
    assert events[-1] == "[DONE]"
    found = [json.loads(event) for event in events[:-1]]
    assert "".join(one["choices"][0]["delta"]["content"] for one in found) == HELLO
    assert {one["model"] for one in found} == {name}


def test_what_is_compressed_although_nobody_asked_for_it_is_unpacked(daemon: Daemon) -> None:
    assert text_of(daemon.chat("gzip")) == HELLO


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("stall", "sent nothing for 0.3 s"),
        ("cut", "ended in the middle"),
        ("cut-chunk", "ended in the middle"),
    ],
)
def test_a_stream_that_breaks_ends_with_a_clear_error(daemon: Daemon, name: str, says: str) -> None:
    with streaming(daemon, name) as response:
        assert response.status == 200
        last = b""
        for line in response:
            last = line if line.startswith(b"data: ") else last
            if b'"error"' in line:
                break
    error = json.loads(last.removeprefix(b"data: "))["error"]
    assert "the remote " in error["message"]
    assert says in error["message"]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("hangup", "the remote mac: it closed the connection without an answer"),
        ("redirect", "answers with a redirection (status 307)"),
        ("nothing", "answers with status 204, which is no answer"),
        ("page", "the remote mac: it answers with a page (text/html): is url right?"),
        ("head", "the remote mac: its answer is not valid HTTP"),
        ("garbage", "the remote mac: its answer is not valid HTTP"),
        ("late", "not begun to answer within 0.2 s"),
        ("untrusted", "its certificate is signed by an authority that this machine does not trust"),
        ("misnamed", "its certificate is for another name"),
        ("plain", "does it speak https"),
        ("gone", "it cannot be reached"),
        ("stranger", "refuses accelerd's key (status 401)"),
        ("open", "its key cannot be read"),
    ],
)
def test_what_is_the_remotes_or_the_operators_fault_is_said_and_names_no_address(
    daemon: Daemon, mac: FakeRemote, name: str, says: str
) -> None:
    before = len(mac.seen("/other"))
    answer = daemon.chat(name)
    assert (answer.status, answer.code) == (502, "upstream_failed")
    assert says in answer.json()["error"]["message"]
    for secret in ("localhost", str(mac.port), KEY, "sk-wrong-key"):
        assert secret not in answer.body.decode()
    assert len(mac.seen("/other")) == before


def test_its_own_errors_are_passed_on_without_its_address_and_key(daemon: Daemon, mac: FakeRemote) -> None:
    answer = daemon.chat("broken")
    assert answer.status == 500
    assert "backend http://mac/v1 of *** is broken" in answer.json()["error"]["message"]
    answer = daemon.chat("unhappy")
    assert answer.status == 400
    assert "temperature is too hot" in answer.json()["error"]["message"]
    answer = daemon.chat("busy")
    assert (answer.status, answer.headers["retry-after"]) == (429, "7")


def test_when_it_may_be_asked_again_may_be_a_date(daemon: Daemon) -> None:
    answer = daemon.chat("later")
    assert (answer.status, 700 < int(answer.headers["retry-after"]) <= 1001) == (429, True)


def test_its_text_is_an_error_of_the_api(daemon: Daemon) -> None:
    answer = daemon.chat("text")
    assert (answer.status, answer.headers["content-type"]) == (503, "application/json")
    assert answer.json()["error"]["message"] == "the GPU is gone"


def test_what_is_cut_or_not_there_is_answered_by_the_next(daemon: Daemon) -> None:
    answer = daemon.chat("whole")
    assert text_of(answer) == HELLO
    assert [answer.headers[f"x-accelerd-{name}"] for name in ("model", "route", "attempts")] == ["big", "whole", "4"]
    (shown,) = daemon.control("GET", "routes?route=whole").json()["routes"]
    health = {one["model"]: one["health"] for one in shown["deployments"]}
    assert (health["unknown"], health["big"]) == ("model not found there", "usable")
    assert health["short"] != "usable"
    alone = daemon.chat("early")
    assert (alone.status, alone.headers["x-accelerd-model"], alone.headers["x-accelerd-attempts"]) == (
        502,
        "early",
        "1",
    )


def test_a_refused_key_is_in_the_log_once_and_is_read_again(daemon: Daemon, mac: FakeRemote, sites: Site) -> None:
    for _ in range(3):
        assert daemon.chat("turned").status == 502
    said = daemon.output()
    assert said.count("the remote turned: it refuses accelerd's key") == 1
    assert KEY not in said
    assert "sk-turned-key" not in said
    (sites.directory / "key-600-13").write_text(KEY)
    assert text_of(daemon.chat("turned")) == HELLO


def test_a_key_of_systemds_credentials(daemon: Daemon) -> None:
    assert text_of(daemon.chat("unit")) == HELLO


def test_by_a_proxy(daemon: Daemon) -> None:
    """Which resolves the name."""
    assert text_of(daemon.chat("far")) == HELLO


def test_anthropics_api_has_headers_of_its_own(daemon: Daemon) -> None:
    body = {"model": "claude", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]}
    answer = daemon.send("POST", "/v1/messages", body)
    assert (answer.status, answer.json()["model"]) == (200, "claude")
    assert answer.json()["content"][0]["text"] == HELLO


def test_what_anthropics_api_has_not_is_translated(daemon: Daemon) -> None:
    assert text_of(daemon.chat("claude")) == HELLO
    assert daemon.chat("claude").json()["model"] == "claude"
    asked = {"model": "claude", "stream": False, "messages": [{"role": "user", "content": "hi"}]}
    assert daemon.send("POST", "/api/chat", asked).json()["message"]["content"] == HELLO


def test_ollamas_own_api_is_passed_through(daemon: Daemon) -> None:
    asked = {"model": "llama", "messages": [{"role": "user", "content": "hi"}], "options": {"num_ctx": 999}}
    answer = daemon.send("POST", "/api/chat", asked)
    lines = [json.loads(line) for line in answer.body.splitlines()]
    assert (answer.status, {line["model"] for line in lines}, lines[-1]["done"]) == (200, {"llama"}, True)
    assert "".join(line["message"]["content"] for line in lines) == HELLO
    assert text_of(daemon.chat("llama")) == HELLO
    listed = {one["id"]: one for one in daemon.send("GET", "/v1/models").json()["data"]}
    assert "ollama" not in listed["llama"]["capabilities"]


def test_a_route_goes_on_until_the_first_byte(daemon: Daemon) -> None:
    answer = daemon.chat("either")
    assert text_of(answer) == HELLO
    assert answer.headers["x-accelerd-model"] == "big"
    assert daemon.chat("home").headers["x-accelerd-model"] == "here"


def test_a_page_in_the_place_of_an_answer_is_none(daemon: Daemon) -> None:
    for stream in (False, True):
        answer = daemon.chat("paged", stream=stream)
        assert (answer.status, answer.headers["x-accelerd-model"]) == (200, "big")


def test_connections_are_used_again_and_one_that_was_closed_meanwhile_harms_nobody(
    daemon: Daemon, mac: FakeRemote
) -> None:
    before = len(mac.seen("/v1/chat/completions"))
    for name in ("steady", "leaves", "steady", "steady"):
        assert text_of(daemon.chat(name)) == HELLO
    used = [one["connection"] for one in mac.seen("/v1/chat/completions")[before:]]
    assert len(used) == 4
    assert len(set(used)) < 4  # one more may have been opened to ask what models there are


def test_concurrency_bounds_the_requests(daemon: Daemon, mac: FakeRemote) -> None:
    def chats() -> int:
        return len([one for one in mac.seen("/v1/chat/completions") if one["json"]["model"] == "slow"])

    before = chats()
    with streaming_begun(daemon, "slow"):
        eventually(lambda: chats() == before + 1, "the first is there")
        with streaming_begun(daemon, "slow"):
            eventually(lambda: daemon.status("slow")["queue"] == 1, "the second waits here")
            assert chats() == before + 1
    eventually(lambda: daemon.status("slow")["leases"] == 0, "their clients have gone, and nobody waits for the remote")
    mac.go_on()


def streaming_begun(daemon: Daemon, name: str) -> Any:
    """A request that was sent, and whose answer nobody waits for."""
    connection = http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=30)
    body = json.dumps({"model": name, "messages": [{"role": "user", "content": "hi"}]})
    connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
    return closing(connection)


def test_it_stays_when_a_model_here_needs_all_room(daemon: Daemon) -> None:
    assert daemon.chat("here").status == 200
    assert daemon.state("big") == "ready"
    assert daemon.control("POST", "yield").status in (200, 202)
    eventually(lambda: daemon.state("here") == "stopped", "what is here has left")
    assert daemon.state("big") == "ready"
    assert daemon.chat("big").status == 200
    assert daemon.control("POST", "resume").status in (200, 202)


# --- Ollama, and what a person sees ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ollama(sites: Site) -> Iterator[FakeRemote]:
    models = [{"id": "qwen3:8b", "loaded": True}, {"id": "bge:latest"}]
    with closing(FakeRemote(sites.directory, models=models)) as fake:
        yield fake


@pytest.fixture(scope="module")
def beside(sites: Site, ollama: FakeRemote) -> Iterator[Daemon]:
    toml = [
        remote("box", ollama.url, api="ollama"),
        model("qwen", "box", "qwen3:8b"),
        model("lost", "box", "nobody"),
        remote("gone", f"http://localhost:{free_port()}/v1"),
        model("away", "gone", "big"),
    ]
    folder = sites.directory / "beside"  # with a configuration of its own, which `doctor` reads
    folder.mkdir()
    with DaemonFactory(folder) as made:
        yield made.start("".join(toml))


def test_remotes_are_listed(beside: Daemon, ollama: FakeRemote) -> None:
    box, gone = beside.control("GET", "remotes").json()["remotes"]
    assert (box["name"], box["reachable"], box["trouble"]) == ("box", True, None)
    assert [(one["name"], one["loaded"]) for one in box["models"]] == [("qwen3:8b", True), ("bge:latest", False)]
    assert (box["used"], box["missing"]) == (["qwen", "lost"], ["lost"])
    assert (gone["reachable"], gone["models"]) == (False, [])
    assert "it cannot be reached" in gone["trouble"]
    said = accelctl(beside, "remotes")
    assert "qwen3:8b" in said
    assert "box has no model of the name that lost gives it" in said
    assert "gone: it cannot be reached" in said
    assert "model qwen3:8b" in accelctl(beside, "explain", "qwen")


def test_what_a_person_sees_of_one_that_does_not_answer(beside: Daemon) -> None:
    assert beside.chat("away").status == 502
    said = "the remote gone does not answer: it cannot be reached: Connection refused"
    assert said in [one["message"] for one in beside.status()["hazards"]]
    assert any(said in one for one in beside.control("GET", "explain?model=away").json()["warnings"])
    assert beside.status("away")["idle_timeout"] is None


def test_doctor_looks_at_remotes(beside: Daemon) -> None:
    found = json.loads(accelctl(beside, "doctor", "--json", status=None))["checks"]
    told = [one for one in found if one["id"] == "remotes"]
    assert [one["level"] for one in told] == ["ok", "warn", "warn"]
    assert told[0]["detail"] == "box answers and has 2 models"


def test_unloading_has_ollama_give_back_the_memory(beside: Daemon, ollama: FakeRemote) -> None:
    assert beside.events("unload?model=qwen")[-1]["event"] == "stopped"
    assert [one["json"] for one in ollama.seen("/api/generate")] == [{"model": "qwen3:8b", "keep_alive": 0}]
    assert beside.state("qwen") == "stopped"
    assert text_of(beside.chat("qwen")) == HELLO


def test_a_request_has_ollama_asked_what_the_model_can_do_and_a_change_of_the_remote_another(
    sites: Site, mac: FakeRemote
) -> None:
    good = {"ca_file": str(CA), "key_file": key_file(sites.directory)}
    folder = sites.directory / "changed"
    folder.mkdir()
    with closing(FakeRemote(folder, models=[{"id": "big:latest"}])) as box, DaemonFactory(folder) as made:
        daemon = made.start(remote("one", box.url, api="ollama", models=[]) + model("m", "one", "big"))

        def entry() -> Any:
            return daemon.send("GET", "/v1/models/m").json()

        assert "tools" in entry()["capabilities"]  # what most can
        assert not box.seen("/api/tags"), "nobody asks while nobody wants anything"
        assert text_of(daemon.chat("m")) == HELLO
        eventually(lambda: "tools" not in entry()["capabilities"], "it was asked")
        assert {"chat", "completions", "vision"} <= set(entry()["capabilities"])
        assert (entry()["context_length"], entry()["device"]) == (4096, "remote")
        assert [one["json"]["model"] for one in box.seen("/api/show")] == ["big:latest"]
        daemon.configure(remote("one", f"{mac.url}/v1", **good) + model("m", "one", "big"))
        assert daemon.control("POST", "reload").status == 200
        asked = len(box.seen("/v1/chat/completions"))
        assert text_of(daemon.chat("m")) == HELLO
        assert len(box.seen("/v1/chat/completions")) == asked


def accelctl(daemon: Daemon, *words: str, status: int | None = 0) -> str:
    code = "import sys; from accelerd.cli import main; sys.exit(main())"
    argv = [sys.executable, "-c", code, *words, "--socket", str(daemon.control_socket)]
    done = subprocess.run(argv, env=daemon.env, capture_output=True, text=True, timeout=60, check=False)
    assert status is None or done.returncode == status, done.stderr
    return done.stdout
