"""accelctl config: reads the files itself, so no daemon runs in these tests."""

from __future__ import annotations

import json
import re
from pathlib import Path

from tests.memory.gguf_maker import string, write

from .conftest import Ctl

GOOD = '[models.tiny]\npath = "{}"\ncontext = 2048\nenv = {{ HF_TOKEN = "sesame" }}\n'


def gguf(folder: Path, name: str = "tiny.gguf", /, **more: bytes) -> Path:
    """A small model of that name, or a projector where the name says so."""
    if "mmproj" in name:
        return write(folder / name, {"general.architecture": string("clip")}, {"v.patch_embd.weight": ((32, 32), 0)})
    pairs = {"general.architecture": string("qwen3"), "tokenizer.chat_template": string("{{ messages }}")}
    part = re.search(r"-(\d{5})-of-", name)
    return write(folder / name, pairs | more, {f"blk.{int(part[1]) if part else 0}.attn_q.weight": ((256, 64), 0)})


def test_check_of_a_valid_configuration(ctl: Ctl, tmp_path: Path) -> None:
    file = ctl.configure(GOOD.format(gguf(tmp_path)))
    result = ctl("config", "check", "--json")
    value = json.loads(result.out)
    assert result.status == 0
    assert value["valid"] is True
    assert value["models"] == ["tiny"]
    assert value["file"] == str(file)
    assert all(problem["severity"] == "warning" for problem in value["problems"])
    text = ctl("config", "check")
    assert text.status == 0
    assert "valid: 1 model" in text.out


def test_check_lists_every_mistake_with_file_line_and_key(ctl: Ctl) -> None:
    ctl.configure('[models.a]\npath = "/x.gguf"\ncontxt = 1\n\n[models.b]\npath = "/y.gguf"\nparallel = "two"\n')
    result = ctl("config", "check")
    assert result.status == 4
    assert "accelerd.toml:3: error: models.a.contxt" in result.out
    assert "accelerd.toml:7: error: models.b.parallel" in result.out
    assert result.err.startswith("accelctl: the configuration in ")
    value = json.loads(ctl("config", "check", "--json").out)
    assert value["valid"] is False
    assert {(p["line"], p["key"]) for p in value["problems"] if p["severity"] == "error"} == {
        (3, "models.a.contxt"), (7, "models.b.parallel"),
    }  # fmt: skip


def test_warnings_do_not_make_it_invalid(ctl: Ctl) -> None:
    ctl.configure('[models.a]\npath = "/nowhere/x.gguf"\n')
    result = ctl("config", "check")
    assert result.status == 0
    assert "warning: models.a.path" in result.out


def test_check_without_a_file(ctl: Ctl) -> None:
    result = ctl("config", "check")
    assert result.status == 0
    assert "defaults apply" in result.out


def test_show_hides_secrets_and_names_origins(ctl: Ctl, tmp_path: Path) -> None:
    ctl.configure(GOOD.format(gguf(tmp_path)))
    text = ctl("config", "show").out
    assert "[models.tiny]" in text
    assert "context = 2048  # model (accelerd.toml:3)" in text
    value = ctl("config", "show", "--json").out
    assert json.loads(value)["tables"]["models.tiny"]["context"]["line"] == 3
    assert "sesame" not in text + value


def test_show_of_an_invalid_configuration(ctl: Ctl) -> None:
    ctl.configure("[models.a]\n")
    result = ctl("config", "show", "--json")
    assert result.status == 4
    assert json.loads(result.out)["error"]["problems"][0]["key"] == "models.a"


def test_schema_is_a_json_schema(ctl: Ctl) -> None:
    value = json.loads(ctl("config", "schema").out)
    assert "json-schema.org" in value["$schema"]
    assert ctl("config", "schema", "--json").out == ctl("config", "schema").out
