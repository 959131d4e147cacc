"""A local hub, a repository there, and the environment of a program that uses it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.downloads.hub_server import Hub, Repository, serving
from tests.downloads.kit import PATCH, PROJECTOR, REPO
from tests.memory.gguf_maker import write
from tests.models import make_model


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serving() as running:
        yield running


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real chat model of some MB."""
    return make_model(tmp_path_factory.mktemp("models"), size_mb=6)


@pytest.fixture
def repository(hub: Hub, model: Path, tmp_path: Path) -> Repository:
    """The model in two quantizations, with a projector and a page."""
    folder = tmp_path / "hub" / REPO
    folder.mkdir(parents=True)
    shutil.copy(model, folder / "hello-Q4_K_M.gguf")
    shutil.copy(model, folder / "hello-Q8_0.gguf")
    with (folder / "hello-Q8_0.gguf").open("ab") as file:
        file.write(bytes(4 << 20))
    write(folder / "mmproj-hello-f16.gguf", PROJECTOR, PATCH)
    (folder / "README.md").write_text("hello")
    hub.repositories[REPO] = made = Repository(folder)
    return made


@pytest.fixture
def env(hub: Hub, tmp_path: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING", "XDG_"))}
    return {**kept, "HOME": str(tmp_path / "home"), "HF_ENDPOINT": hub.base, "NO_PROXY": "*", "no_proxy": "*"}
