"""What the engine says of Lemonade's models: the request that loads them, their tasks, their needs. No server runs."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from accelerd.base.errors import AccelError
from accelerd.config.model import LemonadeSettings, LlamaServerSettings, ModelSpec, Sampling
from accelerd.devices.model import Device, MemoryPool
from accelerd.engines.lemonade import Lemonade, request
from accelerd.engines.lemonade.catalogue import Catalogue
from accelerd.engines.lemonade.client import LemonadeModel, release
from accelerd.engines.llama_server.engine import LlamaServer
from accelerd.engines.llama_server.features import Features, parse_help
from accelerd.memory.model import RAM, Claim
from tests.npu.lemonade_kit import STANDINS

NPU = Device("npu", "RyzenAI-npu5", driver="amdxdna", slot="0000:c6:00.1", columns=8)
GPU = Device("gpu", "AMD Radeon 8060S Graphics", driver="amdgpu", slot="0000:c5:00.0", apu=True, unified=True,
             pools=(MemoryPool("unified", 96 << 30),))  # fmt: skip


def spec(model: str = "Qwen3-4B-GGUF", **settings: Any) -> ModelSpec:
    return ModelSpec("m", engine="lemonade", model=model, **settings)


def listed(model: str, recipe: str, *labels: str, size: float | None = 2.5, checkpoint: str = "") -> LemonadeModel:
    return LemonadeModel(model, recipe, int(size * 1e9) if size else None, True, labels, checkpoint, 32768)


@pytest.fixture
def catalogue() -> Catalogue:
    found = Catalogue()
    found.note([
        listed("Qwen3-4B-GGUF", "llamacpp", "reasoning", "tool-calling"),
        listed("Gemma-3-4b-it-GGUF", "llamacpp", "vision"),
        listed("nomic-embed-GGUF", "llamacpp", "embeddings"),
        listed("bge-reranker-GGUF", "llamacpp", "reranking"),
        listed("qwen3-4b-FLM", "flm", "reasoning", "tool-calling", size=3.1, checkpoint="qwen3:4b"),
        listed("embed-gemma-300m-FLM", "flm", "embeddings", size=0.6),
        listed("Whisper-Large-v3-Turbo", "whispercpp", "transcription", size=1.6),
        listed("kokoro-v1", "kokoro", "tts", size=0.4),
        listed("Llama-3.2-3B-Hybrid", "ryzenai-llm", "chat", size=3.0),
    ])  # fmt: skip
    return found


def engine(
    catalogue: Catalogue, *, home: Path = Path("/nowhere"), devices: Any = lambda: None, **settings: Any
) -> Lemonade:
    environ = {"PATH": f"{STANDINS}:{Path(sys.executable).parent}:/usr/bin", "HOME": str(home)}
    llama = LlamaServer(LlamaServerSettings(), environ=environ)
    program = ModelSpec("any")
    return Lemonade(
        LemonadeSettings(**settings), catalogue, environ=environ, devices=devices, llama=lambda: llama.features(program)
    )


@pytest.mark.parametrize(
    ("model", "tasks"),
    [
        ("Qwen3-4B-GGUF", {"chat", "completions", "tools", "messages", "responses"}),
        ("Gemma-3-4b-it-GGUF", {"chat", "completions", "tools", "vision", "messages", "responses"}),
        ("nomic-embed-GGUF", {"embeddings"}),
        ("bge-reranker-GGUF", {"rerank"}),
        ("qwen3-4b-FLM", {"chat", "completions", "tools"}),
        ("embed-gemma-300m-FLM", {"embeddings"}),
        ("Whisper-Large-v3-Turbo", {"transcription"}),
        ("kokoro-v1", set()),
    ],
)
def test_labels_and_recipes_say_what_a_model_can_do(catalogue: Catalogue, model: str, tasks: set[str]) -> None:
    found = engine(catalogue).traits(spec(model))
    assert found.tasks == tasks
    assert not found.tasks & set(found.why_not)
    assert found.recipe
    assert found.labels == catalogue.of(model).labels


def test_names_are_compared_without_regard_to_case(catalogue: Catalogue) -> None:
    """9.x called it Qwen3-4B-FLM, later ones qwen3-4b-FLM."""
    assert engine(catalogue).traits(spec("Qwen3-4B-FLM")).recipe == "flm"


def test_an_flm_is_asked_by_its_own_name_for_the_model(catalogue: Catalogue) -> None:
    """It throws its model out for another name."""
    assert engine(catalogue).traits(spec("qwen3-4b-FLM")).wire_name == "qwen3:4b"
    catalogue.loaded("qwen3-4b-FLM", "flm", "qwen3:4b", "npu", direct=False)
    assert engine(catalogue).traits(spec("qwen3-4b-FLM")).wire_name == "qwen3-4b-FLM", "asked through the server"


def test_rerank_is_spelled_as_the_one_who_is_asked_spells_it(catalogue: Catalogue) -> None:
    assert engine(catalogue).traits(spec("bge-reranker-GGUF")).paths == {}
    catalogue.loaded("bge-reranker-GGUF", "llamacpp", "", "gpu", direct=False)
    assert engine(catalogue).traits(spec("bge-reranker-GGUF")).paths == {"/v1/rerank": "/v1/reranking"}


def test_past_somebody_elses_server_nothing_is_asked(catalogue: Catalogue) -> None:
    """It throws out what it takes for idle."""
    theirs = Lemonade(LemonadeSettings(url="http://127.0.0.1:13305"), catalogue, environ={})
    assert theirs.traits(spec("qwen3-4b-FLM")).wire_name == "qwen3-4b-FLM"
    assert theirs.traits(spec("bge-reranker-GGUF")).paths == {"/v1/rerank": "/v1/reranking"}


def test_why_not_says_what_to_do(catalogue: Catalogue) -> None:
    found = engine(catalogue).traits(spec("qwen3-4b-FLM"))
    assert "supports only chat completions" in found.why_not["messages"], "asked directly"
    assert "label embeddings" in found.why_not["embeddings"]
    assert "label vision" in found.why_not["vision"]


def test_of_an_unknown_model_the_settings_tell_and_nothing_is_refused_that_it_may_do() -> None:
    assert {"chat", "embeddings", "rerank"} <= engine(Catalogue()).traits(spec("x")).tasks
    assert engine(Catalogue()).traits(spec("qwen3-4b-FLM")).wire_name == "qwen3:4b", "before any server has told it"
    assert engine(Catalogue()).traits(spec("x", embeddings=True)).tasks == {"embeddings"}
    assert engine(Catalogue()).traits(spec("x", transcription=True)).tasks == {"transcription"}
    assert engine(Catalogue()).traits(spec("x-FLM")).device == "npu"


@pytest.mark.parametrize(
    ("model", "family", "kind"),
    [
        ("qwen3-4b-FLM", "flm", "llm"),
        ("embed-gemma-300m-FLM", "flm", "embed"),
        ("Llama-3.2-3B-Hybrid", "ryzenai-llm", "llm"),
    ],
)
async def test_models_of_the_npu_are_accounted_there(catalogue: Catalogue, model: str, family: str, kind: str) -> None:
    (need,) = (await engine(catalogue).forecast(spec(model), [GPU, NPU], ask=False)).options
    assert need.devices == (NPU.id,)
    assert need.claims == (Claim(NPU.id, family, kind, host="Lemonade Server"),)
    assert set(need.amounts) == {RAM}, "main memory and nothing of the GPU"
    assert need.total > 0


async def test_whisper_is_on_the_npu_once_the_server_says_so(catalogue: Catalogue) -> None:
    whisper = spec("Whisper-Large-v3-Turbo")
    (need,) = (await engine(catalogue).forecast(whisper, [GPU, NPU], ask=False)).options
    assert need.claims == (Claim(NPU.id, "whispercpp", "asr", host="Lemonade Server"),)
    catalogue.loaded("Whisper-Large-v3-Turbo", "whispercpp", "", "cpu", direct=False)
    (need,) = (await engine(catalogue).forecast(whisper, [GPU, NPU], ask=False)).options
    assert need.claims == ()


async def test_models_of_the_gpu_are_accounted_there(catalogue: Catalogue) -> None:
    found = await engine(catalogue).forecast(spec(), [GPU, NPU], ask=False)
    (need,) = found.options
    assert need.devices == (GPU.id,)
    assert need.amounts == {GPU.id: int(2.5e9 * 1.1)}
    assert "Lemonade lists" in need.source
    assert found.key
    (need,) = (await engine(catalogue).forecast(spec(), [], ask=False)).options
    assert set(need.amounts) == {RAM}


@pytest.mark.parametrize(
    ("name", "least", "most"),
    [
        ("Qwen3-0.6B-GGUF", 0.5e9, 1.5e9),
        ("user.SmolLM2-135M", 0.1e9, 1e9),
        ("Qwen3.6-35B-A3B", 20e9, 40e9),
        ("mine", 1e9, 8e9),
    ],
)
async def test_a_size_that_nobody_lists_is_guessed_and_said_to_be_a_guess(name: str, least: int, most: int) -> None:
    """Lemonade lists none for small models and for those that a user has registered."""
    catalogue = Catalogue()
    catalogue.note([listed(name, "llamacpp", size=None)])
    for known in (catalogue, Catalogue()):
        (need,) = (await engine(known).forecast(spec(name), [GPU], ask=True)).options
        assert least < need.total < most
        assert "guessed" in need.source
    (need,) = (await engine(Catalogue()).forecast(spec(memory=1 << 30), [GPU], ask=True)).options
    assert need.amounts == {GPU.id: 1 << 30}
    assert need.declared


async def test_one_model_of_lemonade_under_two_names_is_one_place_there(catalogue: Catalogue) -> None:
    """The server holds it once, with one set of options. Only its own loads may cut what accelerd asks directly."""
    own, theirs = engine(catalogue), engine(catalogue, url="http://127.0.0.1:13305")
    places = [(await own.forecast(spec(name), [], ask=False)).shared for name in ("Mine", "user.Mine", "Other")]
    assert places[0] == places[1] != places[2]
    assert places[0] is not None
    assert places[0].cuts
    place = (await theirs.forecast(spec("Mine"), [], ask=False)).shared
    assert place is not None
    assert not place.cuts


@pytest.mark.parametrize("name", ["user.Mine", "USER.mine", "Mine"])
def test_a_model_is_known_with_and_without_its_namespace(name: str) -> None:
    catalogue = Catalogue()
    catalogue.note([listed("Mine", "llamacpp", "embeddings")])
    assert engine(catalogue).traits(spec(name)).tasks == {"embeddings"}
    catalogue = Catalogue()
    catalogue.note([listed("user.Mine", "llamacpp", "embeddings"), listed("extra.X", "llamacpp", "reranking")])
    assert engine(catalogue).traits(spec(name)).tasks == {"embeddings"}


def test_without_a_gpu_none_is_told_of(catalogue: Catalogue) -> None:
    """Lemonade says "gpu" of every llama-server but its own for the processor."""
    catalogue.loaded("Qwen3-4B-GGUF", "llamacpp", "", "gpu", direct=True)
    for devices, kind in (([], "cpu"), ([NPU], "cpu"), ([GPU], "gpu")):
        found = Lemonade(LemonadeSettings(), catalogue, environ={}, devices=lambda seen=devices: seen)  # type: ignore[misc]
        assert found.traits(spec()).device == kind


def test_a_running_server_translates_anthropics_messages(catalogue: Catalogue) -> None:
    theirs = engine(catalogue, url="http://127.0.0.1:13305")
    for name in ("Qwen3-4B-GGUF", "qwen3-4b-FLM", "Llama-3.2-3B-Hybrid"):
        assert "messages" in theirs.traits(spec(name)).tasks
    assert "messages" not in theirs.traits(spec("nomic-embed-GGUF")).tasks


async def test_a_plan_shows_what_lemonade_is_told(catalogue: Catalogue, tmp_path: Path) -> None:
    plan = await engine(catalogue).plan(spec(context=8192, ubatch=512, env=(("A", "b"),)), tmp_path)
    assert plan.argv[:3] == ("lemonade", "load", "Qwen3-4B-GGUF")
    assert "--ctx-size=8192" in plan.argv
    assert any("-ub 512" in flag.text for flag in plan.flags)
    assert plan.warnings == ("env has no effect: all models use the environment of the Lemonade Server",)
    assert plan.tenancy is not None
    assert plan.tenancy.load["save_options"] is False


def test_all_of_the_context_is_what_the_model_was_trained_for() -> None:
    assert request.build(spec(context=None), "llamacpp", 40960).body["ctx_size"] == 40960
    assert "ctx_size" not in request.build(spec(context=None), "llamacpp", None).body
    assert "ctx_size" not in request.build(spec(), "whispercpp", None).body


def test_sampling_is_handed_on_to_a_llama_server() -> None:
    asked = request.build(spec(sampling=Sampling(temperature=0.7, top_k=20)), "llamacpp", None)
    assert asked.body["llamacpp_args"] == "--temp 0.7 --top-k 20"
    assert "llamacpp_args" not in request.build(spec(sampling=Sampling(temperature=0.7)), "flm", None).body


# From llamacpp_server.cpp of the versions: the first that sets the option itself, the last that does.
@pytest.mark.parametrize(
    ("option", "refused", "allowed"),
    [
        ("-ngl", ["10.0.0", "10.7.0"], ["10.8.0", "11.8.0", ""]),
        ("--n-gpu-layers", ["10.6.0"], ["11.7.0"]),
        ("--device", ["10.6.0", "11.7.0", ""], ["10.4.0"]),
        ("-dev", ["11.7.0"], ["10.0.0"]),
        ("--metrics", ["10.7.0", ""], ["10.6.0"]),
        ("--spec-draft-model", ["10.10.0", ""], ["10.8.0"]),
        ("-md", ["11.0.0"], ["10.0.0"]),
        ("--no-mmproj-offload", ["10.0.0", "11.5.0"], ["11.6.0", ""]),
        ("-mm", ["10.0.0", "11.8.0", ""], []),
        ("--mmproj-auto", ["10.0.0", ""], []),
        ("-hf", ["10.0.0", "11.8.0", ""], []),
        ("--hf-repo=a/b", ["11.7.0"], []),
        ("--threads-batch", [], ["10.0.0", "11.8.0", ""]),
    ],
)
def test_what_lemonade_sets_itself_depends_on_its_version(option: str, refused: list[str], allowed: list[str]) -> None:
    asked = spec(extra_args=(option, "1"))
    for version in refused:
        with pytest.raises(AccelError, match="is not allowed, because Lemonade sets it itself"):
            request.build(asked, "llamacpp", None, release(version))
    for version in allowed:
        assert request.build(asked, "llamacpp", None, release(version)).body["llamacpp_args"] == f"{option} 1"


def test_the_stand_in_sets_what_the_table_says() -> None:
    """Of the real 11.7 there are 24."""
    sys.path.insert(0, str(STANDINS))
    try:
        import lemonade_standin  # type: ignore[import-not-found]
    finally:
        sys.path.remove(str(STANDINS))
    assert len(lemonade_standin.own_args((11, 7, 1))) == 24
    for name in lemonade_standin.own_args((11, 7, 1)):
        with pytest.raises(AccelError, match="not allowed"):
            request.build(spec(extra_args=(name,)), "llamacpp", None, (11, 7, 1))


@pytest.mark.parametrize(
    ("version", "options", "text"),
    [
        ((11, 5, 0), "-lm,   --load-mode MODE                 mode", "--load-mode none"),
        ((11, 7, 0), "--mmap, --no-mmap                       map", "--no-mmap"),
        ((11, 5, 2), None, "--no-mmap"),
        ((11, 6, 0), None, "--load-mode none"),
        ((), None, "--load-mode none"),
    ],
)
def test_how_a_file_is_read_is_said_as_the_program_understands_it(
    version: tuple[int, ...], options: str | None, text: str
) -> None:
    """By its help, where it is known which one it is; else by what Lemonade's own of that version understand."""
    llama = None
    if options is not None:
        llama = Features("/llama-server", "1", {n: one for one in parse_help(options) for n in one.names})
    asked = request.build(spec(mmap=False), "llamacpp", None, version, llama)
    assert asked.body["llamacpp_args"] == text


@pytest.mark.parametrize(
    ("version", "devices", "used"),
    [("11.5.0", [GPU], False), ("11.6.0", [GPU], True), ("11.5.0", [NPU], True), ("10.4.0", [], True)],
)
async def test_a_llama_server_that_an_older_lemonade_would_start_wrongly_is_not_given_to_it(
    catalogue: Catalogue, tmp_path: Path, version: str, devices: list[Device], used: bool
) -> None:
    """Before 11.6 it passes --no-mmap where there is an integrated GPU; the llama-server here has no such option."""
    made = engine(catalogue, home=tmp_path, devices=lambda: devices)
    (tmp_path / ".lemonade-standin.json").write_text(json.dumps({"version": version}))
    plan = await made.plan(spec(), tmp_path)
    assert plan.tenancy is not None
    assert bool(plan.tenancy.own.llama_server) is used
    assert any("--no-mmap" in warning for warning in plan.warnings) is not used


def test_flm_takes_only_some_arguments() -> None:
    asked = request.build(spec("q-FLM", extra_args=("--q-len", "4")), "flm", None)
    assert asked.body["flm_args"] == "--q-len 4"
    asked = request.build(spec("q-FLM", extra_args=("--q-len=4", "--img-pre-resize=2")), "flm", None)
    assert asked.body["flm_args"] == "--q-len 4 --img-pre-resize 2", "its resolver takes no --name=value"
    with pytest.raises(AccelError, match="Lemonade does not pass --asr on to flm"):
        request.build(spec("q-FLM", extra_args=("--asr", "1")), "flm", None)


def test_an_argument_with_spaces_stays_one_and_one_with_quotes_is_refused() -> None:
    assert request.build(spec(extra_args=("--alias", "a b")), "llamacpp", None).body["llamacpp_args"] == '--alias "a b"'
    with pytest.raises(AccelError, match="quote or backslash"):
        request.build(spec(extra_args=('a"b',)), "llamacpp", None)


@pytest.mark.parametrize(("text", "numbers"), [("11.7.0", (11, 7, 0)), ("v10.0", (10, 0)), ("unknown", ())])
def test_versions(text: str, numbers: tuple[int, ...]) -> None:
    assert release(text) == numbers


def test_what_was_known_is_known_to_the_next_daemon(catalogue: Catalogue) -> None:
    catalogue.loaded("Whisper-Large-v3-Turbo", "whispercpp", "ck", "npu", direct=False)
    again = Catalogue(catalogue.dump())
    assert again.of("whisper-large-v3-turbo") == catalogue.of("Whisper-Large-v3-Turbo")
    assert Catalogue(b'{"x": 1}').of("x").recipe == "", "of another version"
