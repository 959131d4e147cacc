"""The OpenAPI document is valid, is served by the daemon, and the daemon does what it says: schemathesis asks it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest

from accelerd.config.command import CommandTask
from tests.harness import ROOT, Daemon, DaemonFactory, dummy_gguf, fake_model

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
ALLOWED = "unsupported_method,allow_header_conformance"
PROGRAM = ROOT / "tests" / "fakes" / "http_program.py"


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """What names a model is answered by one that generates text; what names none by one that can do it."""
    directory = tmp_path_factory.mktemp("openapi")
    toml = fake_model("talk", dummy_gguf(directory), aliases=["*"]) + (
        f'[models.all]\nengine = "command"\nmemory = "1 MiB"\n'
        f'[models.all.command]\nargv = ["{PROGRAM}", "--port", "{{port}}"]\napi = {json.dumps(get_args(CommandTask))}\n'
    )
    with DaemonFactory(directory) as factory:
        yield factory.start(toml, server='default_model = "talk"')


def tool(folder: Path, *words: str) -> None:
    """Run a program of the test environment, which must be content."""
    done = subprocess.run([sys.executable, "-m", *words], cwd=folder, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]


def test_the_document_is_valid_and_the_same_on_both_sockets(daemon: Daemon, tmp_path: Path) -> None:
    answer = daemon.send("GET", "/openapi.json")
    assert answer.headers["content-type"] == "application/json"
    (tmp_path / "openapi.json").write_bytes(answer.body)
    tool(tmp_path, "openapi_spec_validator", "--schema", "3.1", "openapi.json")
    assert daemon.control("GET", "/openapi.json").json() == answer.json()


def test_the_operations_of_the_control_socket_are_described_too(daemon: Daemon, tmp_path: Path) -> None:
    answer = daemon.control("GET", "openapi.json")
    assert answer.headers["content-type"] == "application/json"
    (tmp_path / "control.json").write_bytes(answer.body)
    tool(tmp_path, "openapi_spec_validator", "--schema", "3.1", "control.json")
    found = answer.json()["paths"]
    assert set(found["/status"]) == {"get"}
    (load,) = found["/load"].values()
    assert {"name": "model", "required": True}.items() <= load["parameters"][0].items()
    assert set(load["responses"]["200"]["content"]) == {"application/x-ndjson"}
    assert daemon.control("POST", "openapi.json").status == 404


def test_schemathesis_finds_nothing_that_the_document_does_not_say(daemon: Daemon, tmp_path: Path) -> None:
    """The same requests every time: valid bodies, and bodies that are wrong in one thing."""
    tool(
        tmp_path, "schemathesis.cli", "run", f"http://127.0.0.1:{daemon.port}/openapi.json",
        "--checks", f"{CHECKS},{ALLOWED}", "--phases", "coverage,fuzzing", "--max-examples", "5",
        "--generation-deterministic", "--no-shrink", "--workers", "1", "--warnings", "off", "--no-color",
    )  # fmt: skip
