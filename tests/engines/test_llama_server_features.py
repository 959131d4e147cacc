"""Reading a help text, and the cache of what was read."""

from __future__ import annotations

import asyncio
import json
import os
import stat
import time
from pathlib import Path

import pytest

from accelerd.base.errors import AccelError
from accelerd.engines.llama_server.features import FeatureReader, Features, parse_help
from accelerd.engines.program import MAX_OUTPUT, local
from tests.engines.helps import ANCIENT, OLDER, THIS_YEAR, program, runs

ENV = {"PATH": os.environ["PATH"]}


def features_of(text: str) -> Features:
    return Features("/llama-server", "1", {name: option for option in parse_help(text) for name in option.names})


def read(path: Path, cache: Path | None = None, timeout: float = 20.0) -> Features:
    return asyncio.run(FeatureReader(cache).read(local(str(path), ENV, timeout)))


@pytest.mark.parametrize(
    ("name", "hint", "choices"),
    [
        ("--ctx-size", "N", ()),
        ("-fa", "[on|off|auto]", ("on", "off", "auto")),
        ("--cache-type-k", "TYPE", ("f32", "f16", "bf16", "q8_0", "q4_0", "q5_1")),
        ("-lm", "MODE", ("auto", "none", "mmap", "mmap+mlock")),
        ("--split-mode", "{none,layer,row}", ("none", "layer", "row")),
        ("--device", "<dev1,dev2,..>", ()),
        ("-ot", "<tensor name pattern>=<buffer type>,...", ()),
        ("--control-vector-layer-range", "START END", ()),
        ("--hf-repo", "<user>/<model>[:quant]", ()),
        ("--offline", "", ()),
        ("--no-kv-unified", "", ()),
        ("--chat-template-file", "JINJA_TEMPLATE_FILE", ()),
    ],
)
def test_this_years_help(name: str, hint: str, choices: tuple[str, ...]) -> None:
    option = features_of(THIS_YEAR).find(name)
    assert option is not None
    assert (option.hint, option.choices) == (hint, choices)


def test_names_environment_and_removed_options() -> None:
    features = features_of(THIS_YEAR)
    repo = features.find("-hf")
    assert repo is features.find("--hf-repo")
    assert repo is not None
    assert repo.names == ("-hf", "-hfr", "--hf-repo")
    key = features.find("--api-key")
    assert key is not None
    assert "LLAMA_API_KEY" in key.env
    assert features.options["--draft-max"].removed
    assert features.pick("--draft-max", "--threads") == "--threads"
    assert features.find("--no-mmap") is None
    assert "common" not in features.options


def test_older_help_with_a_drivers_chatter_before_it() -> None:
    features = features_of(OLDER)
    flash = features.find("--flash-attn")
    assert flash is not None
    assert flash.hint == ""
    assert features.find("--no-mmap")
    assert features.find("-lm", "--load-mode") is None
    assert len(features.options) > 40


def test_ancient_indented_help() -> None:
    features = features_of(ANCIENT)
    for name in ("-t", "--threads", "-m", "--model", "--alias", "-np", "--no-mmap", "--host"):
        assert features.find(name), name
    threads = features.find("-t")
    assert threads is not None
    assert threads.names == ("-t", "--threads")
    assert threads.hint == "N"


def test_text_that_is_no_help_has_no_options() -> None:
    assert parse_help("") == []
    assert parse_help("Segmentation fault\n- not an option\n--- a line ---\n") == []


def test_help_is_asked_once_for_concurrent_plans_and_again_for_another_file(tmp_path: Path) -> None:
    path = program(tmp_path, THIS_YEAR)

    async def scenario() -> None:
        reader = FeatureReader(None)
        first, *others = await asyncio.gather(*(reader.read(local(str(path), ENV, 20.0)) for _ in range(5)))
        assert all(other == first for other in others)
        assert first.version == "7.7 (build 12, commit abc)"
        assert runs(path) == 1
        os.utime(path, ns=(1, 1))
        assert await reader.read(local(str(path), ENV, 20.0)) == first
        assert runs(path) == 2

    asyncio.run(scenario())


def test_a_cancelled_plan_takes_no_other_with_it(tmp_path: Path) -> None:
    path = program(tmp_path, THIS_YEAR, extra="sleep 0.2")

    async def scenario() -> None:
        reader = FeatureReader(None)
        first = asyncio.create_task(reader.read(local(str(path), ENV, 20.0)))
        second = asyncio.create_task(reader.read(local(str(path), ENV, 20.0)))
        await asyncio.sleep(0.05)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        assert (await second).find("--model")

    asyncio.run(scenario())


@pytest.fixture
def compiled(tmp_path: Path) -> Path:
    """A program that is no script and prints a help: that of `cat`."""
    target = tmp_path / "compiled"
    target.write_bytes(Path("/bin/cat").read_bytes())
    target.chmod(0o755)
    return target


def cached(folder: Path) -> Path:
    (file,) = folder.glob("*.json")
    return file


def test_disk_cache_is_used_for_the_same_file_only(compiled: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache" / "deep"
    first = read(compiled, cache)
    file = cached(cache)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    content = json.loads(file.read_text())
    (known,) = content.values()
    known["version"] = "from the cache"
    file.write_text(json.dumps(content))
    assert read(compiled, cache).version == "from the cache"
    os.utime(compiled, ns=(1, 1))
    again = read(compiled, cache)
    assert (again.version, again.options) == (first.version, first.options)


@pytest.mark.parametrize("garbage", [b"", b"{", b"[]", b"\xff\xfe", b'{"a": 1}', b'{"a": {"version": "x"}}'])
def test_corrupt_disk_cache_is_made_anew(garbage: bytes, compiled: Path, tmp_path: Path) -> None:
    first = read(compiled, tmp_path / "cache")
    file = cached(tmp_path / "cache")
    good = file.read_bytes()
    file.write_bytes(garbage)
    assert read(compiled, tmp_path / "cache") == first
    assert file.read_bytes() == good


def test_cache_that_cannot_be_written_is_only_a_warning(
    compiled: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "cache").write_text("a file, not a directory")
    assert read(compiled, tmp_path / "cache").options
    assert "cannot keep the cache" in caplog.text


def test_scripts_are_not_cached_on_disk(tmp_path: Path) -> None:
    """A wrapper stays the same when what it starts is updated."""
    path = program(tmp_path, THIS_YEAR)
    read(path, tmp_path / "cache")
    read(path, tmp_path / "cache")
    assert runs(path) == 2
    assert not list((tmp_path / "cache").glob("*"))


def test_a_program_that_hangs_is_killed_with_its_children(tmp_path: Path) -> None:
    path = program(tmp_path, THIS_YEAR, extra='sleep 1000 & echo $! >> "$0.pids"; wait')
    start = time.monotonic()
    with pytest.raises(AccelError, match=r"did not finish within 0\.3 s") as caught:
        read(path, timeout=0.3)
    assert time.monotonic() - start < 60
    assert caught.value.fields["cause"] == "no-program"
    for pid in Path(f"{path}.pids").read_text().split():
        deadline = time.monotonic() + 5
        while _runs(int(pid)):
            assert time.monotonic() < deadline, f"{pid} still runs"
            time.sleep(0.01)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_output_without_end_is_bounded(tmp_path: Path) -> None:
    path = program(tmp_path, THIS_YEAR, extra=f"head -c {3 * MAX_OUTPUT} /dev/zero | tr '\\0' x >&2")
    assert read(path).find("--model")


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("#!/bin/sh\nexit 3\n", "printed no options (status 3)"),
        ("#!/bin/sh\necho cannot open shared object >&2; exit 127\n", "'cannot open shared object'"),
        ("#!/does/not/exist\n", "cannot run"),
        ("\x00\x01 not a program", "cannot run"),
    ],
)
def test_a_program_without_help_says_why(script: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "program"
    path.write_text(script)
    path.chmod(0o755)
    with pytest.raises(AccelError) as caught:
        read(path)
    assert message in caught.value.message
    assert caught.value.fields["cause"] == "no-program"
