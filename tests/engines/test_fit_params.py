"""llama-fit-params: what it is told, how its answer is read, what counts as none, and what is kept."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from accelerd.base.errors import AccelError
from accelerd.base.exits import Cause
from accelerd.config.model import ModelSpec
from accelerd.engines.base import ContainerAccess, ContainerProgram, ProgramOutput
from accelerd.engines.llama_server import fit_params
from accelerd.engines.llama_server.answers import AnswerCache
from accelerd.engines.llama_server.features import FeatureReader, Features, ProgramOption, parse_help
from accelerd.engines.llama_server.fit_params import (
    FILE,
    FitAnswer,
    FitParams,
    FitRow,
    arguments,
    beside,
    parse,
    ways,
)
from accelerd.engines.program import Program, local
from tests.engines.helps import THIS_YEAR, model_file
from tests.memory.zoo import make

MIB = 1 << 20
ENV = {"PATH": os.environ["PATH"]}
VERSION = "7.7 (build 12, commit abc)"
TOOL_HELP = """\
-c,    --ctx-size N                     context
-b,    --batch-size N                   batch
-ub,   --ubatch-size N                  physical batch
-ctk,  --cache-type-k TYPE              keys
-ctv,  --cache-type-v TYPE              values
-fa,   --flash-attn [on|off|auto]       flash attention
-lm,   --load-mode MODE                 how the file is read
-ngl,  --gpu-layers, --n-gpu-layers N   layers
-dev,  --device <dev1,dev2,..>          devices
-np,   --parallel N                     slots
-m,    --model FNAME                    the file
--repack, -nr, --no-repack              other forms of weights
--offline                               no network
-fitp, --fit-print [on|off]             print it
"""
ROWS = """{"type":"log","level":"info","msg":"hello"}
{"type":"fit_memory_breakdown","data":{"unit":"MiB","rows":[
{"kind":"device","name":"Vulkan0","total":1,"free":1,"self":30,"model":20,"context":6,"compute":4,"unaccounted":0},
{"kind":"host","name":"Host","self":3,"model":2,"context":0,"compute":1}]}}
Vulkan0 20 6 4
""".replace("[\n", "[").replace("},\n", "},")


def features(text: str, binary: str = "/opt/llama-server") -> Features:
    return Features(binary, VERSION, {name: option for option in parse_help(text) for name in option.names})


SERVER = features(THIS_YEAR)
TOOL = features(TOOL_HELP)
JSONL = features(TOOL_HELP + "--log-jsonl, --no-log-jsonl             log as JSON\n")


def total(answer: FitAnswer, column: str) -> int:
    return sum(getattr(row, column) for row in answer.rows)


def told(spec: ModelSpec, tool: Features = TOOL) -> str:
    return shlex.join(arguments(spec, SERVER, tool)[0])


# --- what it is told ---


def test_it_is_told_what_the_server_is_told_and_nothing_else() -> None:
    spec = ModelSpec(
        "m", path="/m.gguf", context=1000, parallel=3, ubatch=256, batch=1024, cache_type_k="q8_0", cache_type_v="q8_0",
        flash_attention="on", mmap=False, gpu_layers="all", threads=3,
    )  # fmt: skip
    assert told(spec) == (
        "-m /m.gguf -c 3000 -np 3 --cache-type-k q8_0 --cache-type-v q8_0 -lm none -ngl all -fa on -b 1024 -ub 256"
        " --offline --fit-print on"
    )
    assert ways(JSONL) == (("--log-jsonl",),) * 3 + (("--no-repack",),)
    assert ways(features("-m,  --model FNAME    file\n")) == ((),)


def test_batches_of_an_embedding_model_are_the_servers() -> None:
    words = told(ModelSpec("m", path="/m.gguf", context=2048, embeddings=True))
    assert "-b 2048 -ub 2048" in words
    assert "embedding" not in words


def test_extra_arguments_count_where_they_change_sizes() -> None:
    extra = ("--batch-size", "512", "--seed", "-1", "-ot", "a=CPU", "--kv_unified", "--unheard-of", "5", "-fa", "off")
    spec = ModelSpec("m", path="/m.gguf", mmproj="/p.gguf", extra_args=extra)
    words, left_out = arguments(spec, SERVER, TOOL)
    assert words[words.index("8192") + 1 :] == (
        "-np", "1", "--offline", "--batch-size", "512", "-fa", "off", "--fit-print", "on",
    )  # fmt: skip
    assert left_out == ("--mmproj", "-ot", "--kv-unified")


# --- its answer ---


def test_rows_of_json_with_what_else_is_printed() -> None:
    rows = parse(ROWS, ("--log-jsonl",))
    assert rows == (
        FitRow("Vulkan0", "device", 20 * MIB, 6 * MIB, 4 * MIB),
        FitRow("Host", "host", 2 * MIB, 0, MIB),
    )
    answer = FitAnswer(rows)
    assert [row.name for row in answer.on_devices] == ["Vulkan0"]
    assert [row.name for row in answer.in_main_memory] == ["Host"]


def test_plain_rows() -> None:
    assert parse("noise\nCUDA0 20 6 4\nHost 2 0 1 \n")[1] == FitRow("Host", "host", 2 * MIB, 0, MIB)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "-c 4096 -ngl -1\n",
        "Host 0 0 0\n",
        "Host x 0 0\n",
        '{"type": "fit_memory_breakdown"}\n',
        '{"type": "fit_memory_breakdown", "data": {"unit": "GiB", "rows": []}}\n',
        '{"type": "fit_memory_breakdown", "data": {"unit": "MiB", "rows": [{"name": "Host", "kind": "host"}]}}\n',
        json.dumps({"type": "fit_memory_breakdown", "data": {"unit": "MiB", "rows": [
            {"name": "Host", "kind": "host", "model": 5, "context": -1, "compute": 0}]}}),
        '{"type": "fit_memory_breakdown", "da',
        "[1]\n\n{}\n",
    ],
)  # fmt: skip
def test_odd_output_has_no_rows(text: str) -> None:
    assert parse(text) == parse(text, ("--log-jsonl",)) == ()


def test_plain_rows_beside_lost_json_are_no_answer() -> None:
    """They would leave out what is repacked."""
    assert parse("Host 20 6 4\n", ("--log-jsonl",)) == ()


# --- a fake tool ---


class Fake:
    """A folder with a server and a tool that does what `body` says, and a file that counts its runs."""

    def __init__(self, folder: Path, body: str, text: str = TOOL_HELP, version: str = VERSION) -> None:
        folder.mkdir()
        self.server = features(THIS_YEAR, str(folder / "llama-server"))
        self.tool = folder / "llama-fit-params"
        self.counter = folder / "runs"
        (folder / "help").write_text(text)
        self.tool.write_text(
            f"""#!/bin/sh
case "$1" in
--help) cat {folder}/help ;;
--version) echo "version: {version}" >&2 ;;
*) echo "$@" >> {self.counter}; {body} ;;
esac
"""
        )
        self.tool.chmod(0o755)

    @property
    def runs(self) -> list[str]:
        return self.counter.read_text().splitlines() if self.counter.exists() else []


def fit(cache: Path | None = None) -> FitParams:
    return FitParams(cache, FeatureReader(cache))


async def question(
    fake: Fake, model: Path, of: FitParams, env: Mapping[str, str] = ENV, listed: str = "", **options: Any
) -> FitAnswer | None:
    tool = beside(fake.server.binary, env)
    spec = ModelSpec("m", path=str(model), **options)
    return await of.ask(tool, spec, fake.server, [str(model)], listed) if tool else None


def ask(fake: Fake, model: Path, *, of: FitParams | None = None, **options: Any) -> Any:
    return asyncio.run(question(fake, model, of or fit(), **options))


def played(monkeypatch: pytest.MonkeyPatch, answer: Callable[[tuple[str, ...]], str]) -> None:
    """What the tool says is made up, but for its help."""

    def fake(path: str, env: Mapping[str, str], within: float, drivers: frozenset[str] = frozenset()) -> Program:
        real = local(path, env, within, drivers)

        async def run(*words: str) -> ProgramOutput:
            return await real.run(*words) if len(words) == 1 else ProgramOutput(0, answer(words), "")

        return Program(real.path, real.identity, run, real.lasting, real.drivers)

    monkeypatch.setattr(fit_params, "local", fake)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return model_file(tmp_path / "models")


def test_no_tool_beside_the_server_is_no_answer(tmp_path: Path, model: Path) -> None:
    fake = Fake(tmp_path / "bin", "echo Host 5 1 1")
    fake.tool.chmod(0o644)
    assert ask(fake, model) is None
    fake.tool.unlink()
    assert ask(fake, model) is None


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("echo terminate called >&2; kill -ABRT $$", "ended with signal 6: terminate called"),
        ("echo failed to load model >&2; exit 134", "ended with status 134: failed to load model"),
        ("echo Host 5 1 1; exit 1", "ended with status 1: Host 5 1 1"),
        ("exit 0", "said nothing of memory"),
        ("echo what is this", "said nothing of memory"),
    ],
)
def test_what_goes_wrong_is_not_known_and_asked_once(tmp_path: Path, model: Path, body: str, why: str) -> None:
    fake = Fake(tmp_path / "bin", body)
    fits = fit(tmp_path / "cache")

    async def twice() -> list[FitAnswer | None]:
        return [await question(fake, model, fits) for _ in range(2)]

    first, second = asyncio.run(twice())
    assert first is not None
    assert first.rows == ()
    assert first.why_not == f"{fake.tool} {why}"
    assert second == first
    assert len(fake.runs) == 1
    assert not (tmp_path / "cache" / FILE).exists(), "the next daemon asks again"


def test_a_tool_that_hangs_is_ended(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Fake(tmp_path / "bin", "sleep 300")
    monkeypatch.setattr(fit_params, "TIMEOUT", 1.0)
    assert ask(fake, model).why_not.endswith("did not finish within 1 s")


def test_what_had_no_time_is_asked_again(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Fake(tmp_path / "bin", "echo Host 5 1 1")
    times: list[tuple[str, ...]] = []

    def busy(words: tuple[str, ...]) -> str:
        times.append(words)
        if len(times) == 1:
            raise AccelError("model_failed", "too slow", cause=Cause.NO_PROGRAM.value)
        return "Host 5 1 1\n"

    played(monkeypatch, busy)
    fits = fit()
    assert ask(fake, model, of=fits).why_not == "too slow"
    assert ask(fake, model, of=fits).rows


@pytest.mark.parametrize(("good", "asked"), [(1, 1), (3, 3), (99, 4)])
def test_json_that_is_lost_is_asked_for_again_and_then_plain(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, good: int, asked: int
) -> None:
    """llama-fit-params may end before its log is written."""
    told = []

    def forgetful(words: tuple[str, ...]) -> str:
        told.append(words[-1])
        return ROWS if len(told) == good else "Host 7 1 1\n"

    played(monkeypatch, forgetful)
    fake = Fake(tmp_path / "bin", "exit 1", TOOL_HELP + "--log-jsonl, --no-log-jsonl    log as JSON\n")
    answer = ask(fake, model)
    assert told == ["--log-jsonl"] * min(asked, 3) + ["--no-repack"] * (asked == 4)
    assert total(answer, "model") == (7 if asked == 4 else 22) * MIB


def test_a_program_that_is_no_such_tool_is_never_started(tmp_path: Path, model: Path) -> None:
    for name, text, version, why in (
        ("server", THIS_YEAR, VERSION, "knows no --fit-print"),
        ("other", TOOL_HELP, "8 (build 9)", "is of another build (8 (build 9)) than"),
        ("mute", "", VERSION, "printed no options"),
    ):
        fake = Fake(tmp_path / name, "echo Host 5 1 1", text, version)
        assert why in ask(fake, model).why_not
        assert fake.runs == []


def test_a_file_that_is_gone_is_not_asked_about(tmp_path: Path, model: Path) -> None:
    fake = Fake(tmp_path / "bin", "echo Host 5 1 1")
    assert "cannot read" in ask(fake, tmp_path / "none.gguf").why_not
    assert fake.runs == []


def test_what_the_server_cannot_be_told_is_not_asked(tmp_path: Path, model: Path) -> None:
    fake = Fake(tmp_path / "bin", "echo Host 5 1 1")
    answer = ask(fake, model, embeddings=True, rerank=True)
    assert "one or the other" in answer.why_not
    assert fake.runs == []


# --- what is kept ---


def test_an_answer_is_kept_for_the_file_the_settings_and_the_program(tmp_path: Path, model: Path) -> None:
    fake = Fake(tmp_path / "bin", "echo Host 5 1 1")
    cache = tmp_path / "cache"

    def runs(**options: Any) -> int:
        answer = ask(fake, model, of=fit(cache), **options)  # each time another daemon
        assert answer.rows == (FitRow("Host", "host", 5 * MIB, MIB, MIB),)
        return len(fake.runs)

    assert [runs(), runs(), runs(threads=7)] == [1, 1, 1]
    assert [runs(context=512), runs(context=512)] == [2, 2]
    os.utime(model, ns=(1, 1))
    assert [runs(), runs()] == [3, 3]
    os.utime(fake.tool, ns=(1, 1))
    assert [runs(), runs()] == [4, 4]


def test_the_same_question_at_once_is_asked_once(tmp_path: Path, model: Path) -> None:
    fake = Fake(tmp_path / "bin", "sleep 0.05; echo Host 5 1 1")
    fits = fit(tmp_path / "cache")

    async def scenario() -> None:
        answers = await asyncio.gather(*(question(fake, model, fits) for _ in range(5)))
        assert all(answer is not None and answer.rows for answer in answers)

    asyncio.run(scenario())
    assert len(fake.runs) == 1


def test_devices_that_come_and_go_are_asked_about_anew(tmp_path: Path, model: Path) -> None:
    fake = Fake(tmp_path / "bin", "echo Host 5 1 1")
    fits = fit()

    async def scenario() -> None:
        for listed, runs in (
            ("Vulkan0: Radeon (8192 MiB, 8000 MiB free)", 1),
            ("Vulkan0: Radeon (8192 MiB, 90 MiB free)", 1),
            ("", 2),
        ):
            assert await question(fake, model, fits, listed=listed)
            assert len(fake.runs) == runs
        env = {**ENV, "GGML_VK_VISIBLE_DEVICES": "1"}
        assert await question(fake, model, fits, env)
        assert len(fake.runs) == 3

    asyncio.run(scenario())


def test_the_cache_is_bounded_and_what_was_used_stays(tmp_path: Path) -> None:
    file = tmp_path / "cache" / "f.json"
    answers = {str(n): FitAnswer((FitRow("Host", "host", n + 1, 0, 0),)) for n in range(6)}

    async def scenario() -> None:
        cache = AnswerCache(file, FitAnswer, 3)
        for key in "012":
            await cache.keep(key, answers[key], lasting=True)
        assert await cache.find("0") == answers["0"]
        for key in "34":
            await cache.keep(key, answers[key], lasting=True)
        await cache.keep("5", FitAnswer(why_not="no"), lasting=False)
        other = AnswerCache(file, FitAnswer, 3)
        assert [await other.find(key) for key in "01234"] == [answers["0"], None, None, answers["3"], answers["4"]]
        assert await cache.find("5") == FitAnswer(why_not="no")

    asyncio.run(scenario())
    assert [path.name for path in file.parent.iterdir()] == ["f.json"]


@pytest.mark.parametrize(
    "content", [b"", b"{", b'{"format": 99, "answers": {}}', b'{"a": 5}', b"[]", b"[" * 100_000], ids=range(6)
)
def test_a_broken_cache_is_made_anew(tmp_path: Path, model: Path, content: bytes) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / FILE).write_bytes(content)
    fake = Fake(tmp_path / "bin", "echo Host 5 1 1")
    for _ in range(2):
        assert ask(fake, model, of=fit(tmp_path / "cache")).rows
    assert len(fake.runs) == 1


def test_a_cache_that_cannot_be_written_is_no_obstacle(tmp_path: Path, model: Path) -> None:
    (tmp_path / "file").write_text("")
    fake = Fake(tmp_path / "bin", "echo Host 5 1 1")
    assert ask(fake, model, of=fit(tmp_path / "file" / "cache")).rows


# --- in a container ---


class Container(ContainerAccess):
    """An image with the tool, or without."""

    def __init__(self, text: str, status: int = 0, failing: AccelError | None = None) -> None:
        self.help, self.status, self.failing = text, status, failing
        self.asked: list[tuple[str, ...]] = []
        self.specs: list[ModelSpec] = []

    async def ask(self, spec: ModelSpec, *argv: str) -> ProgramOutput:
        self.asked.append(argv)
        self.specs.append(spec)
        if self.failing:
            raise self.failing
        if argv[1] == "--help":
            return ProgramOutput(0 if self.help else 127, self.help, "" if self.help else "not found")
        if argv[1] == "--version":
            return ProgramOutput(0, "", f"version: {VERSION}\n")
        return ProgramOutput(self.status, "Vulkan0 5 1 1\nHost 1 0 0\n", "")


def inside(place: Container, model: Path, fits: FitParams, **settings: Any) -> FitAnswer:
    spec = ModelSpec("m", path=str(model), home="podman", image="img", **settings)
    seen = ModelSpec("m", path="/run/host/m.gguf")
    found = ContainerProgram("/app/llama-server", "image-1", {}, {}, "image img")
    tool = fit_params.inside(spec, found, place, [str(model)])
    return asyncio.run(fits.ask(tool, seen, SERVER, [str(model)]))


def test_in_a_container_it_is_asked_there_by_its_own_name(tmp_path: Path, model: Path) -> None:
    place, fits = Container(TOOL_HELP), fit(tmp_path)
    for _ in range(2):
        answer = inside(place, model, fits)
        assert [row.name for row in answer.rows] == ["Vulkan0", "Host"]
    assert [words[:3] for words in place.asked] == [
        ("/app/llama-fit-params", "--help"),
        ("/app/llama-fit-params", "--version"),
        ("/app/llama-fit-params", "-m", "/run/host/m.gguf"),
    ]
    assert {spec.binary for spec in place.specs} == {"/app/llama-fit-params"}, "not the image's own server"
    assert {spec.mounts for spec in place.specs} == {(f"{model.parent}:{model.parent}:ro",)}


def test_a_container_without_it_is_asked_once(model: Path) -> None:
    place, fits = Container(""), fit()
    assert all("printed no options" in inside(place, model, fits).why_not for _ in range(2))
    assert len(place.asked) == 1


def test_a_container_that_does_not_run_is_asked_again(model: Path) -> None:
    place, fits = Container(TOOL_HELP), fit()
    place.failing = AccelError("model_failed", "it is not running", cause=Cause.REFUSED.value)
    answer = inside(place, model, fits)
    assert answer.why_not == "it is not running"
    place.failing = None
    answer = inside(place, model, fits)
    assert answer.rows


def test_a_container_that_does_not_answer_is_not_waited_for(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit_params, "TIMEOUT", 0.05)

    class Silent(Container):
        async def ask(self, spec: ModelSpec, *argv: str) -> ProgramOutput:
            await asyncio.Event().wait()
            raise AssertionError

    answer = inside(Silent(TOOL_HELP), model, fit())
    assert "did not finish" in answer.why_not


# --- the real one ---


def real(server: str, spec: ModelSpec, weights: Sequence[Path], *, plain: bool = False) -> FitAnswer:
    """`plain`: as of a build that cannot print JSON."""

    async def scenario() -> FitAnswer:
        reader = FeatureReader(None)
        built = await reader.read(local(server, ENV, 20.0))
        tool = beside(server, ENV)
        assert tool is not None
        if plain:
            known = await reader.read(tool)
            reader = Known(known.version, {name: o for name, o in known.options.items() if "log-jsonl" not in name})
        return await FitParams(None, reader).ask(tool, spec, built, [str(path) for path in weights])

    return asyncio.run(scenario())


class Known(FeatureReader):
    def __init__(self, version: str, options: Mapping[str, ProgramOption]) -> None:
        super().__init__(None)
        self._version, self._options = version, options

    async def read(self, program: Program) -> Features:
        return Features(program.path, self._version, self._options)


def test_the_repack_trap(llama_server: str, tmp_path: Path) -> None:
    """Of a q4_0 model plain lines leave out what is repacked; we ask so that nothing is missing either way."""
    model = make("llama", tmp_path)
    spec = ModelSpec("m", path=str(model.path), context=1024, mmap=False, flash_attention="on")
    whole = model.tensor_bytes // MIB * MIB
    answer = real(llama_server, spec, model.paths)
    assert [(row.name, row.kind) for row in answer.rows] == [("Host", "host"), ("CPU_REPACK", "buffer_type")]
    assert answer.rows[0].model < whole // 2, "the trap"
    assert whole - 2 * MIB <= total(answer, "model") <= whole
    plain = real(llama_server, spec, model.paths, plain=True)
    assert plain.rows == (FitRow("Host", "host", whole, 16 * MIB, total(answer, "compute")),)


def test_it_answers_for_what_no_machine_could_load(llama_server: str, tmp_path: Path) -> None:
    model = make("qwen3-235b-a22b-shards", tmp_path)
    spec = ModelSpec("m", path=str(model.path), context=4096, parallel=2, cache_type_k="q8_0", cache_type_v="q8_0")
    answer = real(llama_server, spec, model.paths)
    assert abs(total(answer, "model") - model.tensor_bytes) < 2 * MIB
    assert total(answer, "context") == 2 * 4096 * 94 * 2 * 4 * 128 * 34 // 32 // MIB * MIB


def test_a_broken_file_is_not_known(llama_server: str, tmp_path: Path) -> None:
    path = model_file(tmp_path)
    answer = real(llama_server, ModelSpec("m", path=str(path)), [path])
    assert answer.rows == ()
    assert "ended with signal 6" in answer.why_not
