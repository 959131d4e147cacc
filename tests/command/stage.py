"""whisper.cpp's and stable-diffusion.cpp's servers by their presets, and llama-server, under one daemon and one limit.

Not collected by itself: tests/command/run starts it. The programs are real, built from their sources; the models are
made up: whisper.cpp's own one for tests, which has no weights, and a Stable Diffusion whose weights are zero.
"""

from __future__ import annotations

import base64
import http.client
import io
import os
import wave
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.command.tiny_models import stable_diffusion
from tests.gateway.test_form_body import B, form, part
from tests.harness import Answer, Daemon, DaemonFactory, eventually, exchange
from tests.models import make_model

PATIENCE = 300.0  # s: an image takes seconds of a processor that may have other work
HEADERS = {"Content-Type": f"multipart/form-data; boundary={B}"}
QUICK_IMAGE = '<sd_cpp_extra_args>{"sample_params": {"sample_steps": 1}}</sd_cpp_extra_args>'
PNG = b"\x89PNG\r\n"

pytestmark = pytest.mark.timeout(2 * PATIENCE)


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    folder = tmp_path_factory.mktemp("models")
    whisper = Path(os.environ["ACCELERD_TEST_WHISPER"])
    diffusion = os.environ["ACCELERD_TEST_DIFFUSION"]
    chat = make_model(Path(os.environ["ACCELERD_TEST_CACHE"]) / "models", "chat")
    toml = f"""
[scheduler]
memory = "3 GiB"
linger = "50ms"
min_resident = "0s"
[engines.llama-server]
binary = "{os.environ["ACCELERD_TEST_LLAMA_SERVER"]}"
[models.chat]
path = "{chat}"
memory = "2 GiB"
prompt_cache = "off"
[models.hear]
engine = "command"
binary = "{whisper}"
path = "{whisper.parent / "for-tests-ggml-tiny.bin"}"
memory = "2 GiB"
[models.hear.command]
preset = "whisper.cpp"
[models.draw]
engine = "command"
binary = "{diffusion}"
path = "{stable_diffusion(folder / "sd15-zero.safetensors")}"
[models.draw.command]
preset = "stable-diffusion.cpp"
"""
    with DaemonFactory(tmp_path_factory.mktemp("daemon")) as made:
        yield made.start(toml)


def post(daemon: Daemon, path: str, body: object, headers: dict[str, str] | None = None) -> Answer:
    connection = http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=PATIENCE)
    return exchange(connection, "POST", path, body, headers or {})


def hear(daemon: Daemon, path: str = "/v1/audio/transcriptions", **fields: str) -> Answer:
    sound = io.BytesIO()
    with wave.open(sound, "wb") as file:
        file.setparams((1, 2, 16000, 0, "NONE", ""))
        file.writeframes(bytes(2 * 16000))
    file_part = part("file", sound.getvalue(), '; filename="a.wav"', "Content-Type: audio/wav\r\n")
    parts = [part(name, value.encode()) for name, value in {"model": "hear", **fields}.items()]
    return post(daemon, path, form(file_part, *parts), HEADERS)


def draw(daemon: Daemon) -> Answer:
    body = {"model": "draw", "prompt": f"a cat {QUICK_IMAGE}", "size": "64x64"}
    return post(daemon, "/v1/images/generations", body)


def loaded(daemon: Daemon) -> list[str]:
    return [model["name"] for model in daemon.status()["models"] if model["state"] == "ready"]


def test_one_after_the_other_on_demand_and_back(daemon: Daemon) -> None:
    for _ in range(2):
        assert daemon.chat("chat", max_tokens=3).status == 200
        assert loaded(daemon) == ["chat"]
        answer = hear(daemon)
        assert (answer.status, list(answer.json())) == (200, ["text"])
        assert loaded(daemon) == ["hear"]
        answer = draw(daemon)
        assert answer.status == 200, answer.body
        assert base64.b64decode(answer.json()["data"][0]["b64_json"]).startswith(PNG)
        assert loaded(daemon) == ["draw"]


@pytest.mark.parametrize(
    ("shape", "kind"), [("text", "text"), ("srt", "subrip"), ("vtt", "vtt"), ("verbose_json", "json"), ("json", "json")]
)
def test_the_formats_of_a_transcription_pass_through(daemon: Daemon, shape: str, kind: str) -> None:
    answer = hear(daemon, response_format=shape)
    assert answer.status == 200, answer.body
    assert kind in answer.headers["content-type"]


def test_a_stream_that_it_cannot_give_is_a_transcript(daemon: Daemon) -> None:
    """As events where its load has taken so long that the client has got a comment."""
    for path in ("/v1/audio/transcriptions", "/v1/audio/translations"):
        assert draw(daemon).status == 200, "so it is not loaded"
        answer = hear(daemon, path, stream="true")
        assert answer.status == 200
        if answer.headers["content-type"] == "application/json":
            assert list(answer.json()) == ["text"]
        else:
            assert answer.headers["content-type"] == "text/event-stream"
            assert answer.body.rpartition(b"data: ")[2].startswith(b'{"type":"transcript.text.done"')


def test_edits_and_that_it_has_no_variations(daemon: Daemon) -> None:
    image = base64.b64decode(draw(daemon).json()["data"][0]["b64_json"])
    picture = part("image", image, '; filename="a.png"', "Content-Type: image/png\r\n")
    fields = {"model": "draw", "prompt": f"a red cat {QUICK_IMAGE}", "size": "64x64"}
    body = form(picture, *(part(name, value.encode()) for name, value in fields.items()))
    answer = post(daemon, "/v1/images/edits", body, HEADERS)
    assert answer.status == 200, answer.body
    assert base64.b64decode(answer.json()["data"][0]["b64_json"]).startswith(PNG)
    missing = post(daemon, "/v1/images/variations", form(picture, part("model", b"draw")), HEADERS)
    assert (missing.status, missing.json()["error"]["message"]) == (
        404, "the engine of draw has nothing at /v1/images/variations",
    )  # fmt: skip


def test_translations_are_asked_of_its_one_path(daemon: Daemon) -> None:
    for path, task in (("/v1/audio/translations", "translate"), ("/v1/audio/transcriptions", "transcribe")):
        answer = hear(daemon, path, response_format="verbose_json")
        assert (answer.status, answer.json()["task"]) == (200, task)


def test_its_text_errors_are_errors_of_the_api(daemon: Daemon) -> None:
    broken = part("file", b"not a sound", '; filename="a.wav"', "Content-Type: audio/wav\r\n")
    answer = post(daemon, "/v1/audio/transcriptions", form(broken, part("model", b"hear")), HEADERS)
    assert (answer.status, answer.headers["content-type"]) == (400, "application/json")
    assert answer.json()["error"]["message"] == "Invalid request", "whisper.cpp's own words"


def test_what_it_uses_is_measured_and_remembered(daemon: Daemon) -> None:
    def used() -> int:
        pools = daemon.control("GET", "memory").json()["pools"]
        held = [one for pool in pools for one in pool["holdings"] if one["model"] == "draw"]
        return sum(one["used"] or 0 for one in held)

    assert draw(daemon).status == 200
    eventually(lambda: used() > 1 << 30, "its memory is seen")
    assert daemon.control("POST", "unload?model=draw").status in (200, 202)
    daemon.wait_state("draw", "stopped")
    learned = daemon.control("GET", "memory/learned").json()["learned"]
    assert [one for one in learned if one["model"] == "draw"]


def test_its_own_error_passes_through(daemon: Daemon) -> None:
    answer = post(daemon, "/v1/images/generations", {"model": "draw", "prompt": ""})
    assert answer.status == 400
    assert "prompt required" in answer.body.decode()
