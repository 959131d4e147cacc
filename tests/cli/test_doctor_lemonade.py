"""What doctor says of a Lemonade Server: the one that accelerd would start, and one that is already running."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from accelerd.cli.checks.base import Check, CheckContext
from accelerd.cli.checks.lemonade import lemonade
from accelerd.cli.commands.doctor import run_checks
from tests.cli.conftest import Ctl
from tests.cli.doctor_kit import levels, machine
from tests.npu.lemonade_kit import QWEN, Foreign, Standin, foreign
from tests.ports import free_port


def model(name: str, id: str) -> str:
    return f'[models."{name}"]\nengine = "lemonade"\nmodel = "{id}"\n'


@pytest.fixture
def here(ctl: Ctl, short: Path, tmp_path: Path) -> CheckContext:
    ctl.env |= {
        "PATH": f"{tmp_path / 'bin'}:{Path(sys.executable).parent}:/usr/bin:/bin",
        "HF_HOME": str(tmp_path / "hf"),
    }
    return machine(ctl, short, tmp_path)


@pytest.fixture
def standin(tmp_path: Path, ctl: Ctl, here: CheckContext) -> Standin:
    """lemond and a llama-server, found by PATH."""
    found = Standin(tmp_path / "home-of-lemonade", "lemond")
    ctl.env["PATH"] = found.path
    ctl.env["HOME"] = str(found.home)
    return found


def by_id(checks: list[Check]) -> dict[str, Check]:
    return {check.id: check for check in checks}


def test_a_configuration_without_lemonade_is_not_asked_about_it(ctl: Ctl, here: CheckContext) -> None:
    assert list(lemonade(here)) == []


def test_all_that_accelerds_own_server_needs(ctl: Ctl, here: CheckContext, standin: Standin, tmp_path: Path) -> None:
    ctl.configure(model("qwen", QWEN))
    hub = tmp_path / "hf/hub"
    (hub / "models--unsloth--Qwen3-4B-GGUF").mkdir(parents=True)
    found = by_id(list(lemonade(here)))
    assert {check.level for check in found.values()} == {"ok"}
    assert found["lemonade"].detail == f"{standin.bin}/lemond, version 11.7.0"
    assert f"{standin.bin}/llama-server" in found["lemonade-engine"].detail
    assert found["lemonade-models"].detail == f"1 model in {hub}"
    assert {"lemonade", "lemonade-engine", "lemonade-models"} <= set(levels(run_checks(here)))


def test_what_it_lacks_is_named_with_what_to_do(ctl: Ctl, here: CheckContext, tmp_path: Path) -> None:
    ctl.configure(model("qwen", QWEN) + '[engines.llama-server]\nbinary = "/nowhere/llama-server"\n')
    found = by_id(list(lemonade(here)))
    assert levels(found.values()) == {"lemonade": "fail", "lemonade-engine": "warn", "lemonade-models": "warn"}
    assert "qwen needs it" in found["lemonade"].detail
    assert "neither lemond nor lemonade-server is on PATH" in found["lemonade"].detail
    assert "/nowhere/llama-server" in found["lemonade-engine"].detail
    assert str(tmp_path / "hf/hub") in found["lemonade-models"].detail
    assert "HF_HOME" in found["lemonade-models"].fix


def test_a_folder_of_models_that_cannot_be_read(ctl: Ctl, here: CheckContext, standin: Standin, tmp_path: Path) -> None:
    ctl.configure(model("qwen", QWEN))
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf/hub").write_text("no folder")
    check = by_id(list(lemonade(here)))["lemonade-models"]
    assert check.level == "fail"
    assert os.strerror(20) in check.detail


@pytest.fixture
def running(standin: Standin) -> Iterator[Foreign]:
    with foreign(standin, key="s3cret") as server:
        yield server


def use(ctl: Ctl, url: str, key: str, *models: str) -> None:
    file = ctl.home / "key"
    file.write_text(f"{key}\n")
    file.chmod(0o600)
    toml = f"[engines.lemonade]\nurl = {json.dumps(url)}\nkey_file = {json.dumps(str(file))}\n"
    ctl.configure(toml + "".join(model(f"m{number}", id) for number, id in enumerate(models)))


def test_a_running_server_is_asked_what_it_has(ctl: Ctl, here: CheckContext, running: Foreign) -> None:
    use(ctl, running.url, "s3cret", QWEN, "user." + QWEN, "Qwen3-32B-GGUF", "No-Such-Model")
    first, *others = list(lemonade(here))
    assert (first.level, first.detail) == ("ok", f"version 11.7.0 at {running.url}")
    assert [(check.level, check.detail) for check in others] == [
        ("fail", "m2: Qwen3-32B-GGUF is not downloaded"),
        ("fail", "m3: the server has no model No-Such-Model"),
    ]
    assert others[0].fix == "lemonade pull Qwen3-32B-GGUF"


def test_a_wrong_key_and_nobody_there(ctl: Ctl, here: CheckContext, running: Foreign) -> None:
    use(ctl, running.url, "wrong", QWEN)
    [check] = list(lemonade(here))
    assert check.level == "fail"
    assert "refuses the key" in check.detail
    assert "key_file" in check.fix
    assert "wrong" not in f"{check.detail} {check.fix}"
    here.__dict__.pop("machine")
    use(ctl, f"http://127.0.0.1:{free_port()}", "s3cret", QWEN)
    [check] = list(lemonade(here))
    assert check.level == "fail"
    assert "no Lemonade Server answers at" in check.detail
