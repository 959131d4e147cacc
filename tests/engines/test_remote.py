"""What remotes say of their models, and what is made of it; addresses; which requests ask a remote something."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from accelerd.config.model import ModelSpec
from accelerd.config.remotes import Remote
from accelerd.engines.http import HttpError
from accelerd.engines.remote import RemoteEngine
from accelerd.engines.remote.client import RemoteClient, RemoteError
from accelerd.engines.remote.offered import MOST, offered
from accelerd.engines.remote.remotes import OffersChanged, Remotes
from accelerd.engines.remote.state import RemoteModel, RemoteState, listed, ollama_list, ollama_shown


@pytest.mark.parametrize(
    ("url", "path", "address"),
    [
        ("https://mac.lan:1234/v1", "/v1/chat/completions", "https://mac.lan:1234/v1/chat/completions"),
        ("https://mac.lan:1234/v1/", "/v1/models", "https://mac.lan:1234/v1/models"),
        ("https://api.anthropic.com", "/v1/messages", "https://api.anthropic.com/v1/messages"),
        ("https://cloud.example/v1beta/openai", "/v1/models", "https://cloud.example/v1beta/openai/models"),
        ("http://[fd00::1]:11434", "/v1/models", "http://[fd00::1]:11434/v1/models"),
    ],
)
def test_addresses(url: str, path: str, address: str) -> None:
    assert Remote("r", url).address(path) == address


def test_ollamas_own_paths_are_beside_v1() -> None:
    assert Remote("r", "http://box:11434/v1").root("/api/tags") == "http://box:11434/api/tags"
    assert Remote("r", "http://box:11434/").root("/api/tags") == "http://box:11434/api/tags"


def test_another_accelerd_says_what_is_loaded_queued_and_displaced() -> None:
    entry = {
        "id": "big", "capabilities": ["chat", "tools", "telepathy"], "context_length": 8192, "device": "gpu",
        "status": {"value": "stopped"}, "queue": 3, "displaces": ["small"],
    }  # fmt: skip
    model = listed({"data": [entry, {"id": 7}, "no"]})["big"]
    tasks = frozenset(("chat", "tools"))
    assert model == RemoteModel("big", tasks, 8192, False, 3, ("small",), "gpu")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "entry",
    [
        {"id": "m", "capabilities": "chat", "context_length": "long", "queue": -1, "status": "loaded"},
        {"id": "m", "capabilities": [["chat"]], "context_length": True, "queue": 1.5, "status": {"value": 3}},
        {"id": "m", "displaces": "all", "device": 7},
    ],
)
def test_what_is_of_another_kind_says_nothing(entry: dict[str, Any]) -> None:
    assert listed({"data": [entry]}) == {"m": RemoteModel("m")}


@pytest.mark.parametrize("said", [None, [], {"data": None}, {"models": []}, "text"])
def test_what_is_no_list_of_models(said: Any) -> None:
    with pytest.raises(HttpError):
        listed(said)


def test_ollama() -> None:
    found = ollama_list({"models": [{"name": "qwen3:8b"}, {"name": "bge:latest"}]}, {"models": [{"name": "qwen3:8b"}]})
    assert [(name, one.loaded) for name, one in found.items()] == [("qwen3:8b", True), ("bge:latest", False)]
    info = {"general.architecture": "qwen3", "qwen3.context_length": 40960}
    shown = ollama_shown(found["qwen3:8b"], {"capabilities": ["completion", "tools", "thinking"], "model_info": info})
    assert (sorted(shown.tasks), shown.context) == (["chat", "completions", "ollama", "tools"], 40960)
    assert RemoteState(models=found).model("bge") is found["bge:latest"]


def test_a_newer_ollama_says_in_its_list_what_each_can_do_and_how_large_it_is() -> None:
    full = {
        "name": "qwen3:8b", "size": 5_225_388_164, "capabilities": ["completion", "vision", "thinking", 3, ["tools"]],
        "details": {"context_length": 40960, "family": "qwen3"},
    }  # fmt: skip
    odd = {"name": "odd", "size": -1, "capabilities": "completion", "details": {"context_length": "long"}}
    found = ollama_list({"models": [full, odd, {"name": 7}, None]}, {"models": []})
    tasks = frozenset(("chat", "completions", "ollama", "vision"))
    assert found["qwen3:8b"] == RemoteModel("qwen3:8b", tasks, 40960, False, size=5_225_388_164)  # type: ignore[arg-type]
    assert found["odd"] == RemoteModel("odd", loaded=False)


def state_of(*names: str, **more: Any) -> RemoteState:
    return RemoteState(models={name: RemoteModel(name, **more) for name in names})


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"api": "ollama"}, ["qwen3:8b", "qwen2:1b", "bge:latest"]),
        ({"api": "ollama", "models": ()}, []),
        ({"api": "ollama", "models": ("qwen3*", "*latest")}, ["qwen3:8b", "bge:latest"]),
        ({"api": "openai"}, []),
        ({"api": "accelerd"}, []),
        ({"api": "openai", "models": ("qwen?:1b", "qwen2:1b")}, ["qwen2:1b"]),
    ],
)
def test_what_a_remote_offers(settings: Any, names: list[str]) -> None:
    states = {"r": state_of("qwen3:8b", "qwen2:1b", "bge:latest")}
    found = offered([Remote("r", "http://box", **settings)], states.__getitem__, {})
    assert [(one.name, one.remote, one.model, one.offered) for one in found] == [
        (f"r/{name}", "r", name, True) for name in names
    ]


def test_names_that_none_can_have_here_are_left_out() -> None:
    odd = ("", "a\nb", "\u200e", "gpt*", "x" * 5000, " ", "a/../b", "fine name")
    found = offered([Remote("r", "http://box", api="ollama")], lambda name: state_of(*odd), {})
    assert [one.model for one in found] == ["fine name"]


def test_what_the_configuration_has_is_not_offered_again() -> None:
    configured = {
        "bge": ModelSpec("bge", engine="remote", remote="r", model="bge-m3"),
        "r/taken": ModelSpec("r/taken", path="/t.gguf"),
        "other": ModelSpec("other", engine="remote", remote="q", model="qwen"),
    }
    remotes = [Remote("r", "http://box", api="ollama")]
    found = offered(remotes, lambda name: state_of("bge-m3:latest", "taken", "qwen"), configured)
    assert [one.name for one in found] == ["r/qwen"]


def test_two_accelerds_do_not_offer_each_other_their_own_models_again() -> None:
    remote = Remote("r", "http://box", api="accelerd", models=("*",))
    assert not offered([remote], lambda name: state_of("r/m", device="remote"), {})
    assert offered([remote], lambda name: state_of("m", device="gpu"), {})


def test_no_remote_offers_more_names_than_people_can_use() -> None:
    names = [f"m{number}" for number in range(MOST + 7)]
    found = offered([Remote("r", "http://box", models=("*",))], lambda name: state_of(*names), {})
    assert [one.model for one in found] == names[:MOST]


def test_declared_before_asked_before_usual() -> None:
    remotes = {"r": Remote("r", "http://box", api="anthropic")}
    said = RemoteModel("there", frozenset(("chat",)), 4096)
    spec = ModelSpec("m", engine="remote", remote="r", model="there")
    assert RemoteEngine(remotes).traits(spec).tasks == {"messages", "tools", "vision"}
    asked = RemoteEngine(remotes, lambda remote, model: said if (remote, model) == ("r", "there") else None)
    assert (asked.traits(spec).tasks, asked.traits(spec).context) == ({"chat"}, 4096)
    declared = ModelSpec("m", engine="remote", remote="r", model="there", capabilities=("embeddings",))
    assert asked.traits(declared).tasks == {"embeddings"}
    assert asked.traits(declared).wire_name == "there"


class Asked(Remotes):
    """Counts what is asked, and answers it at once."""

    def __init__(self, now: float = 0.0) -> None:
        self.time, self.count = now, 0
        super().__init__(lambda: self.time, {})

    async def _answer(self, name: str) -> RemoteState:
        self.count += 1
        state = self._states[name] = RemoteState(self.time, True, models={"m": RemoteModel("m")})
        return state


@pytest.mark.parametrize(("api", "asked"), [("openai", 1), ("anthropic", 1), ("ollama", 3), ("accelerd", 3)])
def test_remotes_are_asked_beside_requests_and_no_more_often_than_needed(api: Any, asked: int) -> None:
    async def play() -> int:
        remotes = Asked()
        remotes.configure({"r": Remote("r", "http://box", api=api)}, {})
        for at in (0.0, 0.1, 4.9, 5.1, 9.9, 10.2):
            remotes.time = at
            remotes.touch("r")
            remotes.touch("nobody")
            await asyncio.gather(*remotes._asking.values())
        return remotes.count

    assert asyncio.run(play()) == asked


@pytest.mark.parametrize("question", [False, True])
def test_a_key_that_is_refused_while_another_request_begins_is_read_again(tmp_path: Path, question: bool) -> None:
    path = tmp_path / "key"
    path.write_text("old")
    path.chmod(0o600)
    client = RemoteClient(Remote("r", "http://127.0.0.1:9", key_file=str(path)), {})
    sent: list[str] = []

    async def play() -> None:
        await client.open()
        client.refused(401)  # for the request before
        path.write_text("new")
        client._send = send  # type: ignore[method-assign]
        try:
            with pytest.raises(RemoteError):
                await (client.ask("/v1/models", within=5) if question else begin())
        finally:
            await client.close()

    async def begin() -> None:
        async with client.request("http://127.0.0.1:9/v1/chat/completions", body=b"{}"):
            raise AssertionError

    async def send(url: str, headers: Any, body: bytes | None) -> Any:
        sent.append(headers["Authorization"])
        raise ConnectionRefusedError

    asyncio.run(play())
    assert sent == ["Bearer new"]


@pytest.mark.parametrize("content", ["sk-hunter2\x1b[31m", "sk-hun\rter2", "", "sk hunter2", "sk-hünter2"])
def test_a_key_that_no_header_can_have_is_not_sent(tmp_path: Path, content: str) -> None:
    path = tmp_path / "key"
    path.write_text(content)
    path.chmod(0o600)
    client = RemoteClient(Remote("r", "http://127.0.0.1:9", key_file=str(path)), {})

    async def play() -> None:
        try:
            await client.open()
        finally:
            await client.close()

    with pytest.raises(RemoteError, match="the remote r: its key cannot be read") as caught:
        asyncio.run(play())
    assert not client.ready
    assert str(path) in caught.value.detail
    assert "hunter" not in str(caught.value) + caught.value.detail


def test_who_is_asked_for_a_name_that_is_not_known() -> None:
    async def play() -> list[list[str]]:
        remotes = Asked()
        boxes = {
            "box": Remote("box", "http://box", api="ollama"),
            "far": Remote("far", "http://far", models=("qwen*",)),
        }
        remotes.configure({**boxes, "mute": Remote("mute", "http://mute")}, {})
        asked = [remotes.may_have(name) for name in ("llama", "qwen", "mute/x", "box/x")]
        await asyncio.gather(*remotes._asking.values())
        for remotes.time, name in (
            (0.5, "qwen"),
            (0.6, "box/x"),
            (1.6, "box/x"),
            (1.7, "far/llama"),
            (1.8, "far/qwen"),
        ):
            asked.append(remotes.may_have(name))
        return asked

    # before their first answer all that might, then the one that is named, unless it has just said what it has
    first = [["box"], ["box", "far"], ["box"], ["box"]]
    assert asyncio.run(play()) == [*first, [], [], ["box"], [], ["far"]]


def test_other_models_are_told_once() -> None:
    told: list[object] = []

    class Listed(Remotes):
        names = ("a",)

        async def _models(self, client: Any) -> dict[str, RemoteModel]:
            return {name: RemoteModel(name) for name in self.names}

    async def play() -> None:
        remotes = Listed(lambda: 0.0, {}, told.append)
        remotes.configure({"r": Remote("r", "http://box")}, {})
        for names in (("a",), ("a",), ("a", "b"), ()):
            remotes.names = names
            await remotes.look("r")
        await remotes.close()

    asyncio.run(play())
    assert told == [OffersChanged("r")] * 3
