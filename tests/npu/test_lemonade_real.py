"""A real llama-server in a Lemonade Server: the stand-in `lemond`, or a real one where ACCELERD_TEST_LEMOND names it.

Nothing here needs a GPU, an NPU or a network.
"""

from __future__ import annotations

import json
import os
import signal
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from tests.harness import Daemon, DaemonFactory, eventually, streaming
from tests.models import make_model
from tests.npu.lemonade_kit import REAL, Standin, foreign

Start = Callable[..., Daemon]
MODELS = "".join(
    f'[models.{name}]\nengine = "lemonade"\nmodel = "{model}"\ncontext = 2048\nmmap = false\n'
    for name, model in (("one", "user.First"), ("two", "Second"))
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("models"), reply_tokens=400)


@pytest.fixture
def standin(tmp_path: Path, model: Path) -> Standin:
    """Two models that the user has registered."""
    (tmp_path / "home").mkdir()
    made = Standin(tmp_path / "home", *(() if REAL else ("lemond",)))
    if REAL:
        (made.bin / "lemond").symlink_to(REAL)
    (made.bin / "llama-server").unlink()  # accelerd's is not in PATH
    folder = tmp_path / "home/.config/lemonade"
    folder.mkdir(parents=True)
    entry = {"checkpoint": str(model), "recipe": "llamacpp", "source": "local_path"}
    (folder / "user_models.json").write_text(json.dumps({"First": entry, "Second": entry}))
    return made


@pytest.fixture
def start(daemons: DaemonFactory, standin: Standin, llama_server: str) -> Start:
    def begin(toml: str) -> Daemon:
        engine = f"[engines.llama-server]\nbinary = {json.dumps(llama_server)}\n"
        return daemons.start(engine + toml, env={"PATH": standin.path})

    return begin


@pytest.fixture
def daemon(start: Start) -> Daemon:
    return start(MODELS)


def backend(daemon: Daemon, name: str) -> psutil.Process:
    return psutil.Process(daemon.status(name)["pid"])


def names(stream: bytes) -> set[str]:
    events = [line.removeprefix(b"data: ") for line in stream.splitlines() if line.startswith(b"data: {")]
    return {json.loads(event)["model"] for event in events}


def check_messages(daemon: Daemon, model: str) -> None:
    """The model answers in Anthropic's API, in accelerd's name for it."""
    asked = {"model": model, "max_tokens": 4, "messages": [{"role": "user", "content": "hi"}]}
    message = daemon.send("POST", "/v1/messages", asked)
    assert message.status == 200, message.body
    assert message.json()["model"] == model


def test_chat_stream_and_messages(daemon: Daemon, llama_server: str) -> None:
    answer = daemon.chat("one", max_tokens=4)
    assert answer.status == 200, answer.body
    assert answer.json()["model"] == "one"
    with streaming(daemon, "one", max_tokens=4) as response:
        assert names(response.read()) == {"one"}
    check_messages(daemon, "one")
    process = backend(daemon, "one")
    assert os.path.samefile(process.exe(), llama_server) or llama_server in process.cmdline()


def test_nobody_else_reaches_the_backend(daemon: Daemon) -> None:
    assert daemon.chat("one", max_tokens=1).status == 200
    command = backend(daemon, "one").cmdline()
    port = command[command.index("--port") + 1]
    asked = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/completions", b'{"prompt": "hi"}', {"Origin": "https://evil.example"}
    )
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(asked, timeout=10)
    assert caught.value.code == 401
    assert caught.value.headers.get("Access-Control-Allow-Origin") in (None, "")
    caught.value.close()


def test_one_is_unloaded_and_the_other_stays(daemon: Daemon) -> None:
    assert daemon.chat("one", max_tokens=1).status == 200
    assert daemon.chat("two", max_tokens=1).status == 200
    first, second = backend(daemon, "one"), backend(daemon, "two")
    daemon.events("unload?model=one")
    daemon.wait_state("one", "stopped")
    assert not first.is_running()
    assert second.is_running()
    assert daemon.chat("two", max_tokens=1).status == 200


def test_a_killed_backend_is_noticed_and_loaded_again(daemon: Daemon) -> None:
    assert daemon.chat("one", max_tokens=1).status == 200
    pid = daemon.status("one")["pid"]
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: daemon.status("one").get("pid") != pid, "its end")
    answer = eventually(lambda: (a := daemon.chat("one", max_tokens=1)).status == 200 and a, "another life")
    assert answer.json()["model"] == "one"


def test_an_answer_is_not_cut_by_the_load_of_another_that_takes_its_place(start: Start) -> None:
    daemon = start("[scheduler]\nmax_loaded = 1\n" + MODELS)
    assert daemon.chat("one", max_tokens=1).status == 200
    with ThreadPoolExecutor(1) as pool, streaming(daemon, "one", max_tokens=300) as response:
        assert response.readline()
        other = pool.submit(daemon.chat, "two", max_tokens=1)
        assert b"[DONE]" in response.read()
        assert other.result().status == 200
    assert daemon.state("one") == "stopped"


def test_a_server_that_is_already_running(daemons: DaemonFactory, standin: Standin, llama_server: str) -> None:
    llama = dict.fromkeys(("cpu_bin", "vulkan_bin", "rocm_bin"), llama_server) | {"prefer_system": False}
    settings = {"llamacpp": llama, "no_fetch_executables": True, "auto_check_model_updates": False}
    with foreign(standin, program=REAL or "", max_loaded=2, **settings) as server:
        daemon = daemons.start(f"[engines.lemonade]\nurl = {json.dumps(server.url)}\n{MODELS}")
        for name in ("one", "two"):
            assert daemon.chat(name, max_tokens=4).json()["model"] == name
        with streaming(daemon, "two", max_tokens=4) as response:
            assert names(response.read()) == {"two"}
        check_messages(daemon, "one")
        assert daemon.stop() == 0
        assert server.loaded() == []
