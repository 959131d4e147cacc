"""accelctl and a disk that does not answer: each command ends, names it, and touches nothing there itself."""

from __future__ import annotations

import builtins
import io
import os
import time
from concurrent.futures import Future
from pathlib import Path
from typing import Any, cast

import pytest

from accelerd.base import volumes
from accelerd.base.errors import AccelError
from accelerd.cli.fit import gguf_files
from accelerd.cli.fit.gguf_files import files_below
from accelerd.config import check
from accelerd.config.lora import LoraAdapter
from accelerd.config.model import ModelSpec
from accelerd.downloads.hub import token
from accelerd.engines.llama_server.files import FileReader, footprint
from tests.cli.conftest import Ctl
from tests.harness import dummy_gguf

CALLS = ("stat", "lstat", "open", "access", "listdir", "scandir", "statvfs")
SILENT = "(nfs4, nas:/models) has not answered for "


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A mount point, by what the kernel seems to say, at which somebody has been looking for a minute."""
    disk = tmp_path / "models/nas"
    disk.mkdir(parents=True)
    table = tmp_path / "mountinfo"
    table.write_text(f"20 1 8:1 / / rw - ext4 /dev/sda1 rw\n31 20 0:50 / {disk} rw - nfs4 nas:/models rw\n")
    monkeypatch.setattr(volumes, "MOUNTS", str(table))
    monkeypatch.setattr(volumes, "_known", {})
    nobody = cast(Any, None)  # no process that could be killed at the end
    look = volumes._Look(volumes.Mount(str(disk), "nfs4", "nas:/models"), time.monotonic() - 60, (), nobody, Future())
    monkeypatch.setattr(volumes, "_looks", {str(disk): look})
    inside: list[Any] = []
    for module, name in (*((os, name) for name in CALLS), (builtins, "open"), (io, "open")):
        monkeypatch.setattr(module, name, _untouched(getattr(module, name), disk, inside))
    return disk


def _untouched(call: Any, disk: Path, inside: list[Any]) -> Any:
    def called(path: Any = ".", *arguments: Any, **named: Any) -> Any:
        if not inside and isinstance(path, str | os.PathLike):
            inside.append(path)
            folder, name = os.path.split(os.path.abspath(path))
            where = os.path.join(os.path.realpath(folder), name)
            where = where if call.__name__ == "lstat" else os.path.realpath(where)
            inside.clear()
            assert not f"{where}/".startswith(f"{disk}/"), f"{call.__name__}({path}) would hang"
        return call(path, *arguments, **named)

    return called


@pytest.mark.parametrize(
    "argv",
    [
        ("fit", "models/nas/m.gguf"), ("fit", "models/nas"), ("fit", "alias"), ("fit", "./link.gguf"),
        ("add", "models/nas/m.gguf"), ("add", "models/nas"), ("add", "link.gguf", "--name", "x"),
        ("add", "hf:org/repo"),
    ],
    ids=" ".join,
)  # fmt: skip
def test_what_is_named_lies_on_it(
    ctl: Ctl, disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, argv: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link.gguf").symlink_to(disk / "m.gguf")
    ctl.configure(f'[models.far]\npath = "{disk}/m.gguf"\naliases = ["alias"]\n')
    found = ctl(*argv, HF_HOME=str(disk))
    assert found.status != 0
    assert SILENT in found.err


def test_what_is_looked_for_lies_beside_it(ctl: Ctl, disk: Path, tmp_path: Path) -> None:
    """By name and in a directory, where links lead to it and where it is mounted below."""
    models = tmp_path / "models"
    dummy_gguf(models)
    (models / "folder").symlink_to(disk)
    (models / "link.gguf").symlink_to(disk / "m.gguf")
    assert sorted(files_below(models)) == [models / "dummy.gguf", models / "link.gguf"]
    assert gguf_files.by_name("dummy", [models]).path == models / "dummy.gguf"
    added = ctl("add", str(models))
    assert "added dummy" in added.out
    assert f"skipped {models}/link.gguf: it cannot be read: {disk} {SILENT}" in " ".join(added.out.split())
    assert token({"HF_HOME": str(disk)}, tmp_path) is None


@pytest.mark.parametrize("where", ["accelerd.toml.d", "", "accelerd.toml"])
def test_the_configuration_lies_on_it(ctl: Ctl, disk: Path, tmp_path: Path, where: str) -> None:
    folder = ctl.config_file.parent
    folder.parent.mkdir(parents=True)
    if where:
        folder.mkdir()
    (folder / where if where else folder).symlink_to(disk / "there")
    (problem,) = check(ctl.config_file, ctl.home)[1]
    assert SILENT in problem.message
    for argv in (("config", "check"), ("add", str(dummy_gguf(tmp_path))), ("doctor",)):
        assert ctl(*argv).status != 0
    assert SILENT in ctl("config", "check").out


@pytest.mark.parametrize("key", ["path", "mmproj", "draft_model", "chat_template_file", "lora"])
def test_doctor_checks_the_others(ctl: Ctl, disk: Path, tmp_path: Path, key: str) -> None:
    gguf, far = dummy_gguf(tmp_path), f"{disk}/x.gguf"
    value: Any = (LoraAdapter(far),) if key == "lora" else far
    spec = ModelSpec("m", **{"path": str(gguf), key: value})
    with pytest.raises(AccelError, match=r"cannot read the files of m: .* has not answered"):
        FileReader({}).check(spec)
    if key in ("path", "mmproj"):
        assert SILENT in footprint(spec)[1]
    text = f'[[models.m.lora]]\npath = "{far}"\n' if key == "lora" else ""
    own = "" if key == "lora" else f'{key} = "{far}"\n'
    path = "" if key == "path" else f'path = "{gguf}"\n'
    ctl.configure(f'[models.good]\npath = "{gguf}"\n[models.m]\n{path}{own}{text}')
    found = ctl("doctor")
    assert f"m: cannot read the files of m: {disk}" in " ".join(found.out.split())
    assert "good: " not in found.out
