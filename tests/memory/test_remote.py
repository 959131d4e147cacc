"""Headers read from a web server: by ranges, over redirects, from a hub's repositories; and every way to be refused."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from accelerd.base.errors import AccelError
from accelerd.base.model_source import Source
from accelerd.downloads.plan import Remote, read_remote
from accelerd.estimate import remote
from accelerd.estimate.remote import BUDGET, RangeFile, part_urls
from accelerd.estimate.tensors import read_model
from tests.memory import zoo
from tests.memory.web import Web, serving

REPO = "ggml-org/gemma-3-4b-it-GGUF"


@pytest.fixture
def web() -> Iterator[Web]:
    with serving() as running:
        yield running


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("zoo")


def read(text: str, env: dict[str, str]) -> Remote:
    return read_remote(Source.parse(text), env, Path("/nonexistent"))


def hub(web: Web, **more: str) -> dict[str, str]:
    return {"HF_ENDPOINT": f"{web.base}/", **more}


def test_a_header_of_140_gb_is_read_with_some_mib(web: Web, models: Path) -> None:
    made = zoo.make("qwen3-235b-a22b", models)
    web.files["/m/big.gguf"] = made.path
    found = read(f"{web.base}/m/big.gguf", {})
    here = read_model(made.path)
    assert found.model.header.values == here.header.values
    assert found.model.tensors == here.tensors
    assert found.size == made.path.stat().st_size > 100 << 30
    assert found.read == web.sent < 16 << 20
    starts = [asked.range for asked in web.asked]
    assert len(set(starts)) == len(starts), "nothing is fetched twice"
    assert len(starts) < 8


@pytest.mark.parametrize("named", [0, 2], ids=["first", "third"])
def test_all_parts_of_a_model_are_read(web: Web, models: Path, named: int) -> None:
    made = zoo.make("qwen3-235b-a22b-shards", models)
    for path in made.paths:
        web.files[f"/m/{path.name}"] = path
    found = read(f"{web.base}/m/{made.paths[named].name}?download=true", {})
    assert found.model.tensors == read_model(made.path).tensors
    assert found.size == sum(path.stat().st_size for path in made.paths)
    assert found.url.endswith("-00001-of-00004.gguf?download=true")
    assert len(found.model.files) == 4


def test_a_part_that_is_missing_is_named(web: Web, models: Path) -> None:
    made = zoo.make("shards", models)
    for path in made.paths[:-1]:
        web.files[f"/m/{path.name}"] = path
    with pytest.raises(AccelError, match=r"has no shards-00003-of-00003.gguf \(HTTP 404\)"):
        read(f"{web.base}/m/{made.path.name}", {})


def test_a_part_under_another_name_is_not_taken_for_the_model(web: Web, models: Path) -> None:
    web.files["/m/one.gguf"] = zoo.make("shards", models).path
    with pytest.raises(AccelError, match=r"one\.gguf is one of 3 files"):
        read(f"{web.base}/m/one.gguf", {})


def test_redirects_are_followed_and_hear_no_token(web: Web, models: Path) -> None:
    web.files["/cdn/x"] = zoo.make("llama-gqa", models).path
    with serving() as other:
        other.files["/cdn/x"] = web.files["/cdn/x"]
        listing(web, "a.gguf")
        web.redirect(f"/{REPO}/resolve/main/a.gguf", f"{other.base}/cdn/x")
        found = read(f"hf:{REPO}/a.gguf", hub(web, HF_TOKEN="hf_secret"))
        assert found.model.architecture == "llama"
        assert {asked.token for asked in web.asked} == {"Bearer hf_secret"}
        assert {asked.token for asked in other.asked} == {None}
        assert other.asked[0].range == "bytes=0-1048575"


def test_a_token_is_for_the_hub_alone(web: Web, models: Path) -> None:
    web.files["/m/a.gguf"] = zoo.make("llama-gqa", models).path
    read(f"{web.base}/m/a.gguf", {"HF_TOKEN": "hf_secret"})
    assert {asked.token for asked in web.asked} == {None}


def test_https_never_leads_to_what_everybody_can_read() -> None:
    request = remote.urllib.request.Request("https://hub/x")
    with pytest.raises(ValueError, match="it leads to cdn without https"):
        remote.Redirects().redirect_request(request, None, 302, "", {}, "http://cdn/x")
    onward = remote.Redirects().redirect_request(request, None, 302, "", {}, "https://cdn/x")
    assert onward.full_url == "https://cdn/x"


# --- repositories ---------------------------------------------------------------------------------------------


def listing(web: Web, *names: str) -> None:
    web.json(f"/api/models/{REPO}", {"siblings": [{"rfilename": name} for name in names]})


def test_a_repository_gives_the_usual_quantisation_and_its_projector(web: Web, models: Path) -> None:
    listing(web, "README.md", "gemma-Q8_0.gguf", "gemma-Q4_K_M.gguf", "gemma-f16.gguf", "mmproj-gemma-f16.gguf")
    web.files[f"/{REPO}/resolve/main/gemma-Q4_K_M.gguf"] = zoo.make("gemma3", models).path
    web.files[f"/{REPO}/resolve/main/mmproj-gemma-f16.gguf"] = zoo.make("bert", models).path
    found = read(f"hf:{REPO}", hub(web))
    assert found.url.endswith("/resolve/main/gemma-Q4_K_M.gguf")
    assert found.projector is not None
    assert found.projector.tensors


def test_a_quantisation_can_be_named(web: Web, models: Path) -> None:
    listing(web, "gemma-Q8_0.gguf", "gemma-Q4_K_M.gguf")
    web.files[f"/{REPO}/resolve/main/gemma-Q8_0.gguf"] = zoo.make("gemma3", models).path
    assert read(f"hf:{REPO}:q8_0", hub(web)).url.endswith("gemma-Q8_0.gguf")


def test_an_unusual_answer_of_a_hub(web: Web) -> None:
    web.answers[f"/api/models/{REPO}"] = (200, {}, b"<html>")
    with pytest.raises(AccelError, match="did not send a list of files"):
        read(f"hf:{REPO}", hub(web))
    web.json(f"/api/models/{REPO}", ["x"])
    with pytest.raises(AccelError, match="sent no list of the files"):
        read(f"hf:{REPO}", hub(web))


# --- addresses ------------------------------------------------------------------------------------------------


def test_parts_keep_the_query_of_an_address() -> None:
    first, second = part_urls("https://h/a-00002-of-00002.gguf?sig=1#x")
    assert first == "https://h/a-00001-of-00002.gguf?sig=1"
    assert second == "https://h/a-00002-of-00002.gguf?sig=1"


@pytest.mark.parametrize(
    ("url", "message"),
    [("http://example.org/a.gguf", "is not an https address"), ("https://example.org/a.bin", "of a GGUF file"),
     ("https://example.org", "of a GGUF file")],
)  # fmt: skip
def test_addresses_that_are_not_read(url: str, message: str) -> None:
    with pytest.raises(AccelError, match=message):
        read(url, {})


# --- accidents ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "message"),
    [(401, r"does not let you read a.gguf \(HTTP 401\)"), (403, "does not let you read"), (404, "has no a.gguf"),
     (416, "has nothing in a.gguf"), (429, "too many requests"), (500, "answers with HTTP 500 for a.gguf")],
)  # fmt: skip
def test_statuses(web: Web, status: int, message: str) -> None:
    web.refuse("/m/a.gguf", status)
    with pytest.raises(AccelError, match=message):
        read(f"{web.base}/m/a.gguf", {})


def test_a_gated_model_of_the_hub_needs_a_token(web: Web) -> None:
    listing(web, "a.gguf")
    web.refuse(f"/{REPO}/resolve/main/a.gguf", 401)
    with pytest.raises(AccelError) as error:
        read(f"hf:{REPO}/a.gguf", hub(web))
    assert "set HF_TOKEN" in error.value.hint


def test_a_server_without_ranges_is_not_made_to_send_everything(web: Web) -> None:
    web.files["/a.gguf"] = bytes(1 << 20)
    web.ranges = False
    with pytest.raises(AccelError, match="sends whole files only"):
        read(f"{web.base}/a.gguf", {})


@pytest.mark.parametrize(
    "said", ["", "bytes 5-9/10", "bytes 0-9/*", f"bytes 0-9/{'9' * 5000}", f"bytes {'0' * 5000}-9/10"],
    ids=["nothing", "another", "no size", "5000 digits", "5000 zeros"],
)  # fmt: skip
def test_a_part_that_is_not_the_one_asked_for(web: Web, said: str) -> None:
    web.files["/a.gguf"] = bytes(100)
    web.twist = lambda headers: headers.update({"Content-Range": said})
    with pytest.raises(AccelError, match="does not say which part"):
        read(f"{web.base}/a.gguf", {})


@pytest.mark.parametrize("size", [1, 100])
def test_a_server_that_sends_little_at_a_time_is_asked_a_bounded_number_of_times(
    web: Web, models: Path, size: int
) -> None:
    data = zoo.make("llama-gqa", models).path.read_bytes()
    web.files["/a.gguf"] = data
    web.most = size
    with pytest.raises(AccelError, match=r"sends less than it is asked for: a\.gguf has not come in 64 requests"):
        read(f"{web.base}/a.gguf", {})
    assert len(web.asked) == remote.MOST_PARTS
    web.most = len(data) // 10
    assert read(f"{web.base}/a.gguf", {}).model.architecture == "llama"


HEAD = b"HTTP/1.1 206 OK\r\nContent-Range: bytes 0-99/100\r\nContent-Length: 100\r\n"


@pytest.mark.parametrize("first", [b"", HEAD, HEAD + b"\r\nGG"], ids=["nothing", "head", "body"])
@pytest.mark.parametrize("text", ["http://{}/a.gguf", f"hf:{REPO}"])
def test_a_server_that_drips_is_given_up(monkeypatch: pytest.MonkeyPatch, first: bytes, text: str) -> None:
    """Every byte comes in time; all of them never do."""
    monkeypatch.setattr(remote, "OVERALL", 0.3)
    over = threading.Event()

    def drip(listening: socket.socket) -> None:
        with listening.accept()[0] as client, contextlib.suppress(OSError):
            client.sendall(first)
            while not over.wait(0.05):
                client.sendall(b"X")

    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = threading.Thread(target=drip, args=(listening,))
        server.start()
        address = f"127.0.0.1:{listening.getsockname()[1]}"
        try:
            with pytest.raises(AccelError, match="the server is too slow") as caught:
                read(text.format(address), {"HF_ENDPOINT": f"http://{address}"})
        finally:
            over.set()
            server.join()
    assert caught.value.code == "download_failed"


@pytest.mark.parametrize("opening", [b"[", b'{"siblings":'])
def test_a_list_of_files_that_is_nested_without_end(web: Web, opening: bytes) -> None:
    web.answers[f"/api/models/{REPO}"] = (200, {}, opening * 200_000)
    with pytest.raises(AccelError, match="did not send a list of files"):
        read(f"hf:{REPO}", hub(web))


def test_what_is_no_model(web: Web) -> None:
    web.files["/a.gguf"] = b"<html>" * 100
    with pytest.raises(AccelError, match=r"a\.gguf: it is not a GGUF file"):
        read(f"{web.base}/a.gguf", {})


def test_a_file_that_ends_within_its_header(web: Web, models: Path) -> None:
    with zoo.make("llama-gqa", models).path.open("rb") as file:
        web.files["/a.gguf"] = file.read(300)
    with pytest.raises(AccelError, match=r"a\.gguf: the file ends within its header"):
        read(f"{web.base}/a.gguf", {})


def test_an_empty_file(web: Web) -> None:
    web.files["/a.gguf"] = b""
    with pytest.raises(AccelError, match=r"has nothing in a\.gguf"):
        read(f"{web.base}/a.gguf", {})


def test_a_server_that_breaks_off(web: Web) -> None:
    web.answers["/a.gguf"] = (206, {"Content-Range": "bytes 0-99/100", "X-Length": "0"}, b"")
    with pytest.raises(AccelError, match=r"sent nothing of a\.gguf"):
        read(f"{web.base}/a.gguf", {})


def test_a_list_of_files_that_breaks_off(web: Web) -> None:
    web.answers[f"/api/models/{REPO}"] = (200, {"X-Length": "1000"}, b"{}")
    with pytest.raises(AccelError, match=r"sent no list|broke off"):
        read(f"hf:{REPO}", hub(web))


def test_a_host_that_nobody_is() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(AccelError, match=f"cannot reach 127.0.0.1:{port}: Connection refused"):
        read(f"http://127.0.0.1:{port}/a.gguf", {})


def test_more_than_the_budget_is_never_read(web: Web, tmp_path: Path) -> None:
    endless = tmp_path / "a.gguf"
    with endless.open("wb") as file:
        file.truncate(1 << 40)
    web.files["/a.gguf"] = endless
    server = remote.Web("https://hub.test")
    opened = RangeFile(f"{web.base}/a.gguf", server)
    while server.read < BUDGET or opened.tell() < BUDGET:
        assert opened.read(1 << 24)
    with pytest.raises(AccelError, match="its header is larger than 64 MiB"):
        opened.read(1)
    assert web.sent == server.read == BUDGET


def test_a_range_file_steps_over_what_is_not_wanted(web: Web, tmp_path: Path) -> None:
    content = bytes(range(256)) * (1 << 16)
    web.files["/a.gguf"] = content
    opened = RangeFile(f"{web.base}/a.gguf", remote.Web("https://hub.test"))
    assert opened.read(4) == content[:4]
    assert opened.seek(12 << 20) == opened.tell() == 12 << 20
    assert opened.read(4) == content[12 << 20 :][:4]
    assert opened.seek(-1, 2) == len(content) - 1
    assert (opened.read(9), opened.read(9)) == (content[-1:], b"")
    assert web.sent < 8 << 20
