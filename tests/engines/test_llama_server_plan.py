"""Whole plans: program and model found and checked, endpoint, environment, secret, footprint."""

from __future__ import annotations

import asyncio
import os
import socket
import tempfile
from pathlib import Path
from typing import Any

import pytest

from accelerd.base.errors import AccelError
from accelerd.config.model import LlamaServerSettings, ModelSpec
from accelerd.engines.base import LaunchPlan
from accelerd.engines.llama_server import LlamaServer
from accelerd.engines.llama_server.files import footprint
from tests.engines.helps import OLDER, THIS_YEAR, model_file, program

SYSTEM_PATH = os.environ["PATH"]
SECRET = "5ec7e75ec7e7"
MIB = 1 << 20


def engine(
    binary: str | Path, transport: Any = "auto", environ: dict[str, str] | None = None, **seams: Any
) -> LlamaServer:
    settings = LlamaServerSettings(binary=str(binary), transport=transport)
    environ = {"PATH": os.environ["PATH"], "HOME": "/home/u"} if environ is None else environ
    return LlamaServer(settings, environ=environ, **{"token": lambda: SECRET, "port": lambda: 4711, **seams})


def spec(tmp_path: Path, **settings: Any) -> ModelSpec:
    path = None if "model" in settings else str(model_file(tmp_path / "models"))
    return ModelSpec("m", **{"path": path, "context": 1024, **settings})


def plan(server: LlamaServer, model: ModelSpec, runtime: Path) -> LaunchPlan:
    return asyncio.run(server.plan(model, runtime))


def failure(server: LlamaServer, model: ModelSpec, runtime: Path) -> tuple[str, str]:
    """Cause and message of a plan that cannot be made."""
    with pytest.raises(AccelError) as caught:
        plan(server, model, runtime)
    assert caught.value.code == "model_failed"
    return caught.value.fields["cause"], caught.value.message


@pytest.fixture
def binary(tmp_path: Path) -> Path:
    folder = tmp_path / "bin"
    folder.mkdir()
    return program(folder, THIS_YEAR)


# --- program ---


def test_program_missing(tmp_path: Path) -> None:
    cause, message = failure(engine(tmp_path / "none"), spec(tmp_path), tmp_path)
    assert cause == "no-program"
    assert message.startswith(f"cannot find the program {tmp_path}/none")
    assert "[engines.llama-server]" in message


def test_program_not_on_path(tmp_path: Path) -> None:
    server = engine("llama-server", environ={"PATH": str(tmp_path)}, search=[tmp_path / "search"])
    cause, message = failure(server, spec(tmp_path), tmp_path)
    assert cause == "no-program"
    assert f"not on PATH and not in {tmp_path}/search" in message


def test_program_not_executable(binary: Path, tmp_path: Path) -> None:
    binary.chmod(0o644)
    cause, message = failure(engine(binary), spec(tmp_path), tmp_path)
    assert cause == "no-program"
    assert "not executable" in message


def test_program_is_a_directory_or_relative(tmp_path: Path) -> None:
    assert failure(engine(tmp_path), spec(tmp_path), tmp_path) == (
        "no-program",
        f"cannot run {tmp_path}: it is not a file",
    )
    assert "absolute path" in failure(engine("bin/llama"), spec(tmp_path), tmp_path)[1]


def test_program_is_found_on_path_then_in_the_search_directories(binary: Path, tmp_path: Path) -> None:
    found = plan(engine("llama-server", environ={"PATH": f"/bin:{binary.parent}"}), spec(tmp_path), tmp_path)
    assert found.argv[0] == str(binary)
    found = plan(
        engine("llama-server", environ={"PATH": "/bin"}, search=[tmp_path / "no", binary.parent]),
        spec(tmp_path),
        tmp_path,
    )
    assert found.argv[0] == str(binary)


def test_home_is_the_environments_and_a_models_own_program_wins(binary: Path, tmp_path: Path) -> None:
    server = engine("/none", environ={"PATH": "/bin", "HOME": str(tmp_path)})
    assert plan(server, spec(tmp_path, binary="~/bin/llama-server"), tmp_path).argv[0] == str(binary)


# --- model ---


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "it is empty"), (b"PK\x03\x04 zipped", "a zip archive"), (b"version https://git-lfs", "Git LFS")],
)
def test_model_is_not_gguf(content: bytes, message: str, binary: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(content)
    cause, text = failure(engine(binary), spec(tmp_path, path=str(path)), tmp_path)
    assert cause == "no-model"
    assert message in text
    assert str(path) in text


def test_model_missing_or_a_directory_or_a_fifo(binary: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for name, message in (("none.gguf", "cannot find the model"), ("bin", "Is a directory"), ("fifo", "not a regular")):
        cause, text = failure(engine(binary), spec(tmp_path, path=str(tmp_path / name)), tmp_path)
        assert cause == "no-model"
        assert message in text


def test_model_that_cannot_be_read_says_why(binary: Path, tmp_path: Path) -> None:
    path = tmp_path / "loop.gguf"
    path.symlink_to(path)  # no permission would stop a test that runs as root
    cause, text = failure(engine(binary), spec(tmp_path, path=str(path)), tmp_path)
    assert cause == "no-model"
    assert f"cannot use {path} as model: it cannot be read: Too many levels of symbolic links" in text


def test_second_shard_names_the_first(binary: Path, tmp_path: Path) -> None:
    path = model_file(tmp_path, "big-00002-of-00003.gguf")
    cause, text = failure(engine(binary), spec(tmp_path, path=str(path)), tmp_path)
    assert cause == "no-model"
    assert "part 2 of 3" in text
    assert "big-00001-of-00003.gguf" in text


def test_missing_shard_is_named(binary: Path, tmp_path: Path) -> None:
    first = model_file(tmp_path, "big-00001-of-00003.gguf")
    model_file(tmp_path, "big-00003-of-00003.gguf")
    assert "big-00002-of-00003.gguf" in failure(engine(binary), spec(tmp_path, path=str(first)), tmp_path)[1]


def test_projector_and_template_are_checked(binary: Path, tmp_path: Path) -> None:
    cause, text = failure(engine(binary), spec(tmp_path, mmproj="/none.gguf"), tmp_path)
    assert (cause, text) == ("no-model", "cannot find the projector /none.gguf")
    cause, text = failure(engine(binary), spec(tmp_path, chat_template_file="/none.jinja"), tmp_path)
    assert cause == "no-model"
    assert "chat_template_file" in text


# --- endpoint ---


def test_unix_socket_in_the_private_directory_fresh_for_each_plan(binary: Path, tmp_path: Path) -> None:
    server = engine(binary)
    model = spec(tmp_path)
    first, second = plan(server, model, tmp_path / "run"), plan(server, model, tmp_path / "run")
    assert first.endpoint.unix
    assert first.endpoint != second.endpoint
    assert first.argv[first.argv.index("--host") + 1] == first.endpoint.unix
    assert first.endpoint.unix.endswith(".sock")
    folder = Path(first.endpoint.unix).parent
    assert folder == tmp_path / "run" / "instances"
    assert folder.stat().st_mode & 0o777 == 0o700
    assert not Path(first.endpoint.unix).exists()
    assert "--port" not in first.argv


@pytest.mark.parametrize("name", ["a/b:c", "x" * 128, "..", "ü"])
def test_socket_paths_are_short_and_plain(name: str, binary: Path, tmp_path: Path) -> None:
    model = ModelSpec(name, path=str(model_file(tmp_path)), context=1)
    with tempfile.TemporaryDirectory(dir="/tmp") as short:
        path = plan(engine(binary), model, Path(short)).endpoint.unix
        assert path
        assert len(path) < 104
        assert os.path.dirname(path) == f"{short}/instances"
        with socket.socket(socket.AF_UNIX) as s:
            s.bind(path)


@pytest.mark.parametrize("folder", ["x" * 90, "a,b"])
def test_tcp_where_the_directory_is_no_place_for_a_socket(folder: str, binary: Path, tmp_path: Path) -> None:
    automatic = plan(engine(binary), spec(tmp_path), tmp_path / folder)
    assert automatic.endpoint.port == 4711
    assert automatic.argv[automatic.argv.index("--host") :][:4] == ("--host", "127.0.0.1", "--port", "4711")
    assert automatic.warnings == ()
    wanted = plan(engine(binary, "unix"), spec(tmp_path), tmp_path / folder)
    assert wanted.endpoint.port == 4711
    assert "transport = unix" in wanted.warnings[0]


def test_tcp_where_the_build_knows_no_sockets(tmp_path: Path) -> None:
    binary = program(tmp_path, OLDER)
    assert plan(engine(binary), spec(tmp_path), tmp_path).endpoint.port == 4711
    wanted = plan(engine(binary, "unix"), spec(tmp_path), tmp_path)
    assert "knows no unix sockets" in wanted.warnings[0]


def test_tcp_port_is_free_and_fresh(binary: Path, tmp_path: Path) -> None:
    settings = LlamaServerSettings(binary=str(binary), transport="tcp")
    server = LlamaServer(settings, environ={"PATH": os.environ["PATH"]})
    ports = {plan(server, spec(tmp_path), tmp_path).endpoint.port for _ in range(5)}
    assert len(ports) > 1
    for port in ports:
        with socket.socket() as s:
            s.bind(("127.0.0.1", port))


# --- secret and environment ---


def test_secret_is_fresh_and_shown_nowhere(binary: Path, tmp_path: Path) -> None:
    model = spec(tmp_path, env=(("HF_TOKEN", "hf_private"),))
    made = plan(engine(binary), model, tmp_path)
    assert made.env["LLAMA_API_KEY"] == made.secret == SECRET
    for shown in (repr(made), " ".join(made.argv), repr(made.flags), str(made.warnings), repr(model)):
        assert SECRET not in shown
        assert "hf_private" not in shown
    assert any(flag.text == "env HF_TOKEN=…" for flag in made.flags)
    server = LlamaServer(LlamaServerSettings(binary=str(binary)), environ={"PATH": os.environ["PATH"]})
    secrets = {plan(server, spec(tmp_path), tmp_path).secret for _ in range(3)}
    assert len(secrets) == 3
    assert all(len(secret) == 64 and secret.isalnum() for secret in secrets)


def test_environment_is_a_short_list(binary: Path, tmp_path: Path) -> None:
    mine = {
        "PATH": os.environ["PATH"], "HOME": "/home/u", "LANG": "C", "LC_ALL": "C", "CUDA_VISIBLE_DEVICES": "1",
        "LLAMA_ARG_CTX_SIZE": "1", "LLAMA_API_KEY": "theirs", "LD_PRELOAD": "/x.so", "PYTHONPATH": "/x",
        "CUDA_INJECTION64_PATH": "/x.so", "HF_TOKEN": "t", "NOTIFY_SOCKET": "/n", "LISTEN_FDS": "1",
    }  # fmt: skip
    made = plan(engine(binary, environ=mine), spec(tmp_path, env=(("LANG", "de"), ("LLAMA_ARG_TOP_K", "3"))), tmp_path)
    assert made.env == {
        "PATH": os.environ["PATH"], "HOME": "/home/u", "LANG": "de", "LC_ALL": "C", "CUDA_VISIBLE_DEVICES": "1",
        "LLAMA_ARG_TOP_K": "3", "LLAMA_API_KEY": SECRET, "GGML_NO_BACKTRACE": "1",
    }  # fmt: skip
    assert any(flag.text == "env CUDA_VISIBLE_DEVICES=1" for flag in made.flags)


def test_a_token_for_downloads_never_reaches_the_program(binary: Path, tmp_path: Path) -> None:
    server = engine(binary, environ={"PATH": os.environ["PATH"], "HF_TOKEN": "hf_private"})
    assert "HF_TOKEN" not in plan(server, spec(tmp_path), tmp_path).env


def test_help_runs_in_the_clean_environment(tmp_path: Path) -> None:
    binary = program(tmp_path, THIS_YEAR, extra='env > "$0.env"')
    mine = {"PATH": os.environ["PATH"], "LLAMA_ARG_CTX_SIZE": "bad", "LD_PRELOAD_NOT": "x"}
    given = (("LD_LIBRARY_PATH", "/opt/llama"), ("LLAMA_ARG_TOP_K", "bad"), ("HF_TOKEN", "hf_private"))
    plan(engine(binary, environ=mine), spec(tmp_path, env=given), tmp_path)
    seen = Path(f"{binary}.env").read_text()
    assert "LD_LIBRARY_PATH=/opt/llama" in seen
    for name in ("LLAMA_", "LD_PRELOAD", "HF_TOKEN"):
        assert name not in seen


# --- readiness and footprint ---


def test_probe_fits_the_model(binary: Path, tmp_path: Path) -> None:
    server = engine(binary)
    assert plan(server, spec(tmp_path), tmp_path).probe_path == "/v1/completions"
    assert plan(server, spec(tmp_path, embeddings=True), tmp_path).probe_path == "/v1/embeddings"
    made = plan(server, spec(tmp_path, rerank=True), tmp_path)
    assert (made.probe_path, made.probe_body) == ("/v1/rerank", b'{"query": " ", "documents": [" "]}')
    assert (made.warm_path, made.health_path) == ("/v1/models", "/health")
    assert server.dialect.streams_notice_disconnect


def test_footprint_of_files(tmp_path: Path) -> None:
    one = model_file(tmp_path, size=MIB)
    assert footprint(ModelSpec("m", path=str(one))) == (MIB * 11 // 10 + 256 * MIB, "file size + 10 % + 256 MiB")
    shards = [model_file(tmp_path, f"s-0000{i}-of-00002.gguf", size=MIB) for i in (1, 2)]
    size, source = footprint(ModelSpec("m", path=str(shards[0]), mmproj=str(one)))
    assert size == 3 * MIB * 11 // 10 + 256 * MIB
    assert source == "size of 2 files and projector + 10 % + 256 MiB"


def test_footprint_of_what_is_not_here(tmp_path: Path) -> None:
    size, source = footprint(ModelSpec("m", path=str(tmp_path / "none")))
    assert size == 0
    assert source.startswith("unknown: cannot read")
    assert footprint(ModelSpec("m", model="org/model"))[1].startswith("unknown: ")
