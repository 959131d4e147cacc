"""What a model's files say: its task, what it sees, how long its context is, and what is refused before a start."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from accelerd.config.model import ModelSpec, Origin
from accelerd.engines.base import Endpoint, LaunchPlan, Traits
from accelerd.engines.llama_server import LlamaServer
from tests.engines.helps import THIS_YEAR, program
from tests.engines.test_llama_server_plan import SECRET, engine, failure, plan
from tests.memory.gguf_maker import Listed, flag, string, u32, write

WEIGHTS: Listed = {"token_embd.weight": ((8,), 0)}


def gguf(
    folder: Path, name: str = "m.gguf", architecture: str = "llama", weights: Listed = WEIGHTS, **more: bytes
) -> str:
    """`_` in a key stands for "."."""
    pairs = {"general.architecture": string(architecture)} | {key.replace("_", "."): one for key, one in more.items()}
    return str(write(folder / name, pairs, weights))


@pytest.fixture
def server(tmp_path: Path) -> LlamaServer:
    return engine(program(tmp_path, THIS_YEAR))


def known(server: LlamaServer, spec: ModelSpec) -> Traits:
    """Its traits, once its files have been looked at."""
    asyncio.run(server.forecast(spec, (), ask=False))
    return server.traits(spec)


def classifier(folder: Path) -> str:
    return gguf(folder, "rank.gguf", "bert", {**WEIGHTS, "cls.weight": ((8,), 0)})


# --- tasks ---


def test_an_embedding_model_is_started_for_embeddings(server: LlamaServer, tmp_path: Path) -> None:
    spec = ModelSpec("e", path=gguf(tmp_path, architecture="bert"), context=512)
    made = plan(server, spec, tmp_path)
    assert "--embeddings" in made.argv
    assert made.probe_path == "/v1/embeddings"
    assert next(one for one in made.flags if one.text == "--embeddings").source == "the model's file"
    traits = known(server, spec)
    assert traits.tasks == {"embeddings", "llama-server"}
    assert "embeddings only" in traits.why_not["chat"]


def test_a_reranking_model_is_started_for_reranking(server: LlamaServer, tmp_path: Path) -> None:
    spec = ModelSpec("r", path=classifier(tmp_path), context=512)
    made = plan(server, spec, tmp_path)
    assert "--reranking" in made.argv or "--rerank" in made.argv
    assert "--embeddings" not in made.argv
    assert known(server, spec).tasks == {"rerank", "llama-server"}


@pytest.mark.parametrize("key", ["embeddings", "rerank"])
def test_what_the_user_says_of_its_task_holds(server: LlamaServer, tmp_path: Path, key: str) -> None:
    spec = ModelSpec(
        "e", path=gguf(tmp_path, architecture="bert"), context=512, origins={key: Origin("model", "a.toml", 3)}
    )
    made = plan(server, spec, tmp_path)
    assert "--embeddings" not in made.argv
    assert "chat" in known(server, spec).tasks


def test_a_model_that_generates_is_no_other(server: LlamaServer, tmp_path: Path) -> None:
    spec = ModelSpec("c", path=gguf(tmp_path), context=512)
    assert not {"--embeddings", "--reranking", "--rerank"} & set(plan(server, spec, tmp_path).argv)
    assert {"chat", "completions", "tools"} <= known(server, spec).tasks


@pytest.mark.parametrize(
    ("flags", "sees", "hears"),
    [({"clip_has_vision_encoder": True}, True, False), ({"clip_has_audio_encoder": True}, False, True),
     ({}, True, False), ({"clip_has_audio_encoder": True, "clip_has_vision_encoder": True}, True, True)],
)  # fmt: skip
def test_a_model_sees_and_hears_with_its_projector(
    server: LlamaServer, tmp_path: Path, flags: dict[str, bool], sees: bool, hears: bool
) -> None:
    pairs = {"general.architecture": string("clip")}
    pairs |= {key.replace("_", ".", 1): flag(yes) for key, yes in flags.items()}
    projector = write(tmp_path / "mmproj.gguf", pairs, {"v.blk.0.weight": ((8,), 0)})
    spec = ModelSpec("c", path=gguf(tmp_path), mmproj=str(projector), context=512)
    traits = known(server, spec)
    assert ("vision" in traits.tasks) is sees
    assert ("transcription" in traits.tasks) is hears
    assert ("transcription" in traits.why_not) is not hears
    plan(server, spec, tmp_path)


def test_a_model_without_a_projector_sees_nothing(server: LlamaServer, tmp_path: Path) -> None:
    traits = known(server, ModelSpec("c", path=gguf(tmp_path), context=512))
    assert "vision" not in traits.tasks
    assert "set mmproj" in traits.why_not["vision"]
    assert "set mmproj" in traits.why_not["transcription"]
    assert "as text" in traits.why_not["files"]


# --- what is refused ---


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ({"general_type": string("adapter"), "adapter_type": string("lora")}, "a LoRA adapter"),
        ({"general_type": string("imatrix")}, "an importance matrix"),
        ({"architecture": "whisper"}, "a Whisper model"),
        ({"architecture": "flux"}, "images or video"),
        ({"architecture": "clip"}, "projector"),
        ({"weights": {}}, "a vocabulary"),
        ({"architecture": "eagle3"}, "drafts"),
    ],
)
def test_what_is_no_model_is_refused_by_name(
    server: LlamaServer, tmp_path: Path, more: dict[str, Any], named: str
) -> None:
    path = gguf(tmp_path, **more)
    cause, message = failure(server, ModelSpec("x", path=path, context=512), tmp_path)
    assert cause == "no-model"
    assert named in message
    assert path in message


def test_a_truncated_file_is_refused(server: LlamaServer, tmp_path: Path) -> None:
    path = Path(gguf(tmp_path, weights={"token_embd.weight": ((4096, 64), 0)}))
    with path.open("rb+") as file:
        file.truncate(path.stat().st_size // 2)
    cause, message = failure(server, ModelSpec("x", path=str(path), context=512), tmp_path)
    assert cause == "no-model"
    assert "download it again" in message


def test_a_model_is_no_projector_and_a_projector_no_draft(server: LlamaServer, tmp_path: Path) -> None:
    model, clip = gguf(tmp_path), gguf(tmp_path, "clip.gguf", "clip")
    message = failure(server, ModelSpec("x", path=model, mmproj=model, context=512), tmp_path)[1]
    assert f"cannot use {model} as projector" in message
    message = failure(server, ModelSpec("x", path=model, draft_model=clip, context=512), tmp_path)[1]
    assert f"cannot use {clip} as draft model" in message


def test_a_file_that_only_drafts_is_a_draft_model(server: LlamaServer, tmp_path: Path) -> None:
    head = gguf(tmp_path, "head.gguf", "eagle3")
    assert head in plan(server, ModelSpec("x", path=gguf(tmp_path), draft_model=head, context=512), tmp_path).argv


def test_a_file_that_was_replaced_is_looked_at_again(server: LlamaServer, tmp_path: Path) -> None:
    spec = ModelSpec("x", path=gguf(tmp_path), context=512)
    plan(server, spec, tmp_path)
    gguf(tmp_path, general_type=string("adapter"))
    assert "LoRA" in failure(server, spec, tmp_path)[1]


def test_the_files_that_the_program_opens_are_listed(server: LlamaServer, tmp_path: Path) -> None:
    parts = [gguf(tmp_path, f"big-0000{n}-of-00002.gguf", weights={f"blk.{n}.weight": ((8,), 0)}) for n in (1, 2)]
    clip = gguf(tmp_path, "clip.gguf", "clip")
    made = plan(server, ModelSpec("x", path=parts[0], mmproj=clip, context=512), tmp_path)
    assert made.files == (*parts, clip)


# --- models of a hub ---


def hub(folder: Path, *names: str, repo: str = "org/Model-GGUF") -> dict[str, str]:
    """The environment of a cache with these files of a repository."""
    cache = folder / "hf" / "hub" / f"models--{repo.replace('/', '--')}"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text("abc")
    snapshot = cache / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    for name in names:
        gguf(snapshot, name, "clip" if name.startswith("mmproj") else "llama")
    return {"PATH": "/bin", "HOME": str(folder), "HF_HOME": str(folder / "hf")}


def test_a_model_of_a_hub_is_started_on_its_files(tmp_path: Path) -> None:
    env = hub(tmp_path, "Model-Q4_K_M.gguf", "mmproj-Model-f16.gguf")
    server = engine(program(tmp_path, THIS_YEAR), environ=env)
    spec = ModelSpec("h", model="org/Model-GGUF:Q4_K_M", context=512, origins={"model": Origin("model", "a.toml", 4)})
    made = plan(server, spec, tmp_path)
    assert made.argv[made.argv.index("-m") + 1].endswith("snapshots/abc/Model-Q4_K_M.gguf")
    assert made.argv[made.argv.index("--mmproj") + 1].endswith("mmproj-Model-f16.gguf")
    assert "--offline" in made.argv
    assert next(one for one in made.flags if one.text.startswith("-m ")).source == "model (a.toml:4)"
    assert "vision" in known(server, spec).tasks
    (need,) = asyncio.run(server.forecast(spec, (), ask=False)).options
    assert need.total > 0


def test_a_model_of_a_hub_that_is_not_here_says_how_to_get_it(tmp_path: Path) -> None:
    server = engine(program(tmp_path, THIS_YEAR), environ=hub(tmp_path, "Other-Q8_0.gguf"))
    spec = ModelSpec("h", model="org/Missing-GGUF", context=512)
    cause, message = failure(server, spec, tmp_path)
    assert cause == "not-downloaded"
    assert "accelctl load h downloads it" in message
    (need,) = asyncio.run(server.forecast(spec, (), ask=True)).options
    assert (need.total, need.source) == (0, "unknown: its files are not downloaded yet")


# --- the context ---


def test_more_context_than_the_model_was_trained_for_is_a_warning(server: LlamaServer, tmp_path: Path) -> None:
    pairs = {"general.architecture": string("llama"), "llama.context_length": u32(8192)}
    path = str(write(tmp_path / "t.gguf", pairs, WEIGHTS))
    spec = ModelSpec("x", path=path, context=262144)
    assert any("was trained for 8192" in warning for warning in plan(server, spec, tmp_path).warnings)
    assert known(server, spec).context == 8192
    fits = ModelSpec("y", path=path, context=4096)
    assert not any("trained for 8192" in warning for warning in plan(server, fits, tmp_path).warnings)
    assert known(server, fits).context == 4096
    assert known(server, ModelSpec("z", path=path)).context == 8192, "the whole context of the model"


@asynccontextmanager
async def serving(status: int, body: bytes) -> AsyncIterator[tuple[LaunchPlan, list[bytes]]]:
    heads: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n" % (status, len(body)) + body)
        await writer.drain()
        writer.close()

    listening = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with listening:
        port = listening.sockets[0].getsockname()[1]
        yield LaunchPlan("x", ("llama-server",), {}, Endpoint(port=port), SECRET, ()), heads


def props(context: int, **modalities: bool) -> bytes:
    return json.dumps({"default_generation_settings": {"n_ctx": context}, "modalities": modalities}).encode()


@pytest.mark.parametrize("lacks", ["transcription", "messages", "responses", ""])
async def test_what_builds_differ_in_is_asked_of_the_program_once(
    server: LlamaServer, tmp_path: Path, lacks: str
) -> None:
    spec = ModelSpec("x", path=gguf(tmp_path), context=512)
    await server.plan(spec, tmp_path)
    asked: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        asked.append(head.split(b" ")[1])
        there = not lacks or lacks.encode() not in asked[-1]
        status, body = (200, props(512, audio=True)) if asked[-1] == b"/props" else (400 if there else 404, b"{}")
        writer.write(b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n" % (status, len(body)) + body)
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as listening:
        port = listening.sockets[0].getsockname()[1]
        for _ in range(2):
            await server.loaded(spec, LaunchPlan("x", ("llama-server",), {}, Endpoint(port=port), SECRET, ()))
    paths = [b"/v1/messages", b"/v1/responses", b"/v1/audio/transcriptions"]
    assert asked == [b"/props", *paths, b"/props"]
    traits = server.traits(spec)
    assert {"transcription", "messages", "responses"} - traits.tasks == ({lacks} if lacks else set())
    assert not lacks or "update llama.cpp" in traits.why_not[lacks]


async def test_what_the_running_server_says_counts(
    server: LlamaServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spec = ModelSpec("x", path=gguf(tmp_path), context=262144)
    async with serving(200, props(8192, vision=True)) as (made, heads):
        await server.loaded(spec, made)
    assert heads[0].startswith(b"GET /props ")
    assert f"Bearer {SECRET}".encode() in heads[0]
    assert server.traits(spec).context == 8192
    assert "vision" in server.traits(spec).tasks
    assert "8192 tokens a request, not 262144" in caplog.text
    assert server.traits(ModelSpec("x", path=spec.path, context=512)).context == 512, "of another configuration"


@pytest.mark.parametrize(("status", "body"), [(200, b"{"), (200, b"[]"), (404, b"{}"), (200, b'{"modalities": 5}')])
async def test_a_server_that_does_not_say_changes_nothing(
    server: LlamaServer, tmp_path: Path, status: int, body: bytes
) -> None:
    spec = ModelSpec("x", path=gguf(tmp_path), context=512)
    async with serving(status, body) as (made, _):
        await server.loaded(spec, made)
    assert server.traits(spec).context == 512
    await server.loaded(spec, LaunchPlan("x", (), {}, Endpoint(port=1), "", ()))
