"""accelctl add and remove: drop-ins come and go, the user's own file is never touched."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import tomllib
from pathlib import Path

import pytest

from accelerd.base.sizes import human_size
from accelerd.cli.fit import gguf_files
from accelerd.cli.local_machine import LocalMachine
from accelerd.devices.inventory import Inventory
from accelerd.devices.model import Device
from tests.memory.gguf_maker import header, string, u32, write

from .conftest import Ctl
from .fake_daemon import FakeDaemon, Reply, error
from .test_config import gguf

RELOADED = Reply({"added": ["tiny-chat"], "removed": [], "relaunch": [], "updated": [], "unchanged": []})


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "models").mkdir()
    return gguf(tmp_path / "models", "Tiny-Chat-Q4_K_M.gguf")


def dropin(ctl: Ctl, name: str) -> dict[str, object]:
    file = ctl.config_file.parent / "accelerd.toml.d" / f"{name}.toml"
    table = tomllib.loads(file.read_text())["models"][name]
    assert isinstance(table, dict)
    return table


def test_add_by_path_without_daemon(ctl: Ctl, model: Path) -> None:
    result = ctl("add", str(model))
    assert result.status == 0
    assert dropin(ctl, "tiny-chat") == {"path": str(model)}
    assert "systemctl --user start accelerd" in result.out
    assert "accelctl chat tiny-chat" in result.out


def test_add_by_name_with_settings_reloads_the_daemon(ctl: Ctl, model: Path, daemon: FakeDaemon) -> None:
    daemon.answers["POST reload"] = RELOADED
    result = ctl(
        "add", "tiny", "--name", "t", "--alias", "small", "--alias", "s", "--context", "4096", "--parallel", "2",
        "--memory", "1GiB", "--idle-timeout", "never", "--preload", "--pin", "--json",
    )  # fmt: skip
    assert result.status == 0
    value = json.loads(result.out)
    assert (value["name"], value["reloaded"]) == ("t", True)
    assert dropin(ctl, "t") == value["table"] == {
        "path": str(model), "aliases": ["small", "s"], "context": 4096, "parallel": 2, "memory": "1GiB",
        "idle_timeout": "never", "preload": True, "pin": True,
    }  # fmt: skip
    assert [request.route for request in daemon.requests] == ["reload"]
    assert Path(value["file"]).stat().st_mode & 0o777 == 0o600


def test_add_by_relative_path(ctl: Ctl, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(model.parent)
    assert ctl("add", "./Tiny-Chat-Q4_K_M.gguf").status == 0
    assert dropin(ctl, "tiny-chat") == {"path": str(model)}


def test_add_by_id(ctl: Ctl) -> None:
    result = ctl("add", "ggml-org/gemma-3-4b-it-GGUF:Q4_K_M", "--no-pull")
    assert result.status == 0, result.err
    assert dropin(ctl, "gemma-3-4b-it") == {"model": "ggml-org/gemma-3-4b-it-GGUF:Q4_K_M"}


def test_add_takes_the_projector_along(ctl: Ctl, model: Path) -> None:
    projector = gguf(model.parent, "mmproj-F16.gguf")
    assert ctl("add", str(model.parent)).status == 0
    assert dropin(ctl, "tiny-chat") == {"path": str(model), "mmproj": str(projector)}


def test_the_same_model_twice_needs_a_name(ctl: Ctl, model: Path) -> None:
    assert ctl("add", str(model)).status == 0
    again = ctl("add", str(model))
    assert again.status == 1
    assert "this model is configured already as tiny-chat" in again.err
    assert ctl("add", str(model), "--name", "second").status == 0
    assert ctl("add", str(model), "--replace", "--context", "512").status == 0
    assert dropin(ctl, "tiny-chat") == {"path": str(model), "context": 512}


def test_a_taken_name_gets_a_number(ctl: Ctl, model: Path) -> None:
    ctl.configure('[models.tiny-chat]\npath = "/other.gguf"\n')
    before = ctl.config_file.read_text()
    assert ctl("add", str(model)).status == 0
    assert dropin(ctl, "tiny-chat-2") == {"path": str(model)}
    assert ctl.config_file.read_text() == before


def test_dry_run_writes_nothing(ctl: Ctl, model: Path) -> None:
    result = ctl("add", "tiny", "--dry-run")
    assert tomllib.loads(result.out) == {"models": {"tiny-chat": {"path": str(model)}}}
    assert json.loads(ctl("add", "tiny", "--dry-run", "--json").out)["file"] is None
    assert not ctl.config_file.parent.exists()


def test_a_setting_that_is_wrong_changes_nothing(ctl: Ctl, model: Path) -> None:
    result = ctl("add", "tiny", "--idle-timeout", "soon")
    assert (result.status, result.out) == (2, "")
    assert result.err.startswith("accelctl: --idle-timeout: expected a duration")
    assert result.err.rstrip().endswith('got "soon"')
    assert json.loads(ctl("config", "check", "--json").out)["models"] == []
    assert ctl("add", "tiny", "--name", "../up").status == 2


@pytest.mark.parametrize(
    ("option", "value"),
    [("--idle-timeout", "5x"), ("--memory", "lots"), ("--memory", "1"), ("--context", "5"), ("--parallel", "0")],
)
def test_an_option_that_is_wrong_is_named_before_anything_is_done(
    ctl: Ctl, daemon: FakeDaemon, option: str, value: str
) -> None:
    result = ctl("add", "hf:org/repo:Q4_K_M", option, value)
    assert (result.status, result.out) == (2, "")
    assert result.err.startswith(f"accelctl: {option}: expected ")
    assert result.err.rstrip().endswith(value.join('""') if not value.isdecimal() or option == "--memory" else value)
    assert daemon.requests == []


def test_nothing_is_added_to_a_broken_configuration(ctl: Ctl, model: Path) -> None:
    ctl.configure("[models.a]\n")
    result = ctl("add", "tiny")
    assert result.status == 4
    assert "accelctl config check" in result.err


def test_what_cannot_be_added(ctl: Ctl, model: Path, tmp_path: Path) -> None:
    other = tmp_path / "notes.gguf"
    other.write_text("hello")
    gguf(model.parent, "Tiny-Other-Q8_0.gguf")
    for source, status, words in (
        ("./missing.gguf", 1, "there is no such file"),
        (str(other), 1, "it is not a GGUF file"),
        ("tiny", 2, "matches 2 models"),
        (str(tmp_path / "run"), 1, "there is no GGUF file"),
        ("nothing-like-that", 1, "found no GGUF file"),
    ):
        result = ctl("add", source)
        assert result.status == status, source
        assert words in result.err
    listed = json.loads(ctl("add", "tiny", "--json").out)["error"]["candidates"]
    assert [Path(path).name for path in listed] == ["Tiny-Chat-Q4_K_M.gguf", "Tiny-Other-Q8_0.gguf"]


def test_all_models_of_a_directory(ctl: Ctl, model: Path, daemon: FakeDaemon) -> None:
    daemon.answers["POST reload"] = RELOADED
    gguf(model.parent, "Other-Q8_0.gguf")
    (model.parent / "deep").mkdir()
    gguf(model.parent / "deep", "embed.gguf", **{"general.architecture": string("bert")})
    (model.parent / "again.gguf").symlink_to(model)
    (model.parent / "round.gguf").symlink_to("round.gguf")
    os.mkfifo(model.parent / "fifo.gguf")
    (model.parent / "style.gguf").write_bytes(header({"general.type": string("adapter")}, tensors=0))
    result = ctl("add", str(model.parent))
    assert result.status == 0, result.err
    assert dropin(ctl, "other") == {"path": str(model.parent / "Other-Q8_0.gguf")}
    assert dropin(ctl, "embed") == {"path": str(model.parent / "deep/embed.gguf"), "embeddings": True}
    assert len(list((ctl.config_file.parent / "accelerd.toml.d").iterdir())) == 3, "a link is no second model"
    assert "style.gguf: it is a LoRA adapter" in " ".join(result.out.split())
    assert [request.route for request in daemon.requests] == ["reload"]
    again = ctl("add", str(model.parent), "--json")
    assert again.status == 1
    assert "it is configured already as other" in " ".join(json.loads(again.out)["error"]["tail"])


def test_a_model_that_is_configured_is_not_searched_for(ctl: Ctl, model: Path) -> None:
    ctl.configure(f'[models."llama3:8b"]\npath = "{model}"\n')
    for command in ("pull", "add"):
        result = ctl(command, "llama3:8b")
        assert result.status == 1
        assert "already (accelerd.toml:2); load it: accelctl load llama3:8b" in result.err


def test_the_address_of_a_file_on_this_machine(ctl: Ctl, model: Path) -> None:
    folder = model.parent / "a b"
    folder.mkdir()
    other = gguf(folder, "Größe.gguf")
    assert ctl("add", other.as_uri(), "--name", "one").status == 0
    assert dropin(ctl, "one") == {"path": str(other)}
    gone = ctl("add", "file:///gone/x%20y.gguf")
    assert (gone.status, "there is no such file: /gone/x y.gguf" in gone.err) == (1, True)


def test_several_files_with_options_between_them(ctl: Ctl, model: Path) -> None:
    other = gguf(model.parent, "Other-Q8_0.gguf")
    value = json.loads(ctl("add", str(model), "--context", "2048", str(other), str(model), "--json").out)
    assert [one["name"] for one in value["models"]] == ["tiny-chat", "other"]
    assert dropin(ctl, "tiny-chat")["context"] == dropin(ctl, "other")["context"] == 2048
    refused = ctl("add", str(model), str(other), "--name", "both", "--replace")
    assert (refused.status, "one by one" in refused.err) == (2, True)


def test_what_was_added_before_a_failure_is_in_use(ctl: Ctl, model: Path, daemon: FakeDaemon) -> None:
    daemon.answers["POST reload"] = RELOADED
    other = gguf(model.parent, "Other-Q8_0.gguf")
    own = ctl.config_file.parent / "accelerd.toml.d/other.toml"
    own.parent.mkdir(parents=True)
    own.write_text("# mine\n")
    result = ctl("add", str(model), str(other))
    assert (result.status, "was not written by a tool" in result.err) == (1, True)
    assert dropin(ctl, "tiny-chat")
    assert [request.route for request in daemon.requests] == ["reload"]


def test_a_name_is_for_one_model(ctl: Ctl, model: Path) -> None:
    refused = ctl("add", str(model), str(gguf(model.parent, "Other-Q8_0.gguf")), "--alias", "both")
    assert (refused.status, "one by one" in refused.err) == (2, True)


@pytest.mark.parametrize(
    ("more", "key", "words"),
    [
        ({"general.architecture": string("bert")}, "embeddings", "an embedding model"),
        ({"general.architecture": string("bert"), "bert.pooling_type": u32(4)}, "rerank", "a reranking model"),
    ],
)
def test_the_task_is_that_of_the_file(ctl: Ctl, tmp_path: Path, more: dict[str, bytes], key: str, words: str) -> None:
    file = gguf(tmp_path, "m.gguf", **more)
    result = ctl("add", str(file))
    assert dropin(ctl, "m") == {"path": str(file), key: True}
    assert words in result.out
    assert "accelctl chat" not in result.out


@pytest.mark.parametrize("curl", [True, False])
def test_a_model_without_a_chat_template_is_tried_with_a_completion(ctl: Ctl, tmp_path: Path, curl: bool) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    ctl.env["PATH"] = str(programs)
    if curl:
        (programs / "curl").symlink_to("/bin/true")
    ctl.configure('server.listen = ["127.0.0.1:4321"]\n')
    plain = write(
        tmp_path / "base.gguf", {"general.architecture": string("qwen3")}, {"blk.0.attn_q.weight": ((256, 64), 0)}
    )
    talks = gguf(tmp_path, "talks.gguf")
    added = ctl("add", str(plain))
    assert added.status == 0, added.err
    said = added.out
    line = next(line for line in said.splitlines() if line.startswith("try it: "))
    given = line.removeprefix("try it: ")
    *command, body = shlex.split(given) if curl else given.split(" ", 2)
    url = "http://localhost:4321/v1/completions"
    assert command == (["curl", url, "--json"] if curl else ["POST", url])
    assert json.loads(body)["model"] == "base"
    assert "accelctl chat" not in said
    assert "try it: accelctl chat talks" in ctl("add", str(talks)).out
    notes = [ctl("chat", name, "hi").err.count("has no chat template") for name in ("base", "talks")]
    assert notes == [1, 0]


def test_where_keys_are_needed_the_command_to_try_it_with_sends_one_and_shows_none(ctl: Ctl, tmp_path: Path) -> None:
    keys, programs = tmp_path / "my keys", tmp_path / "bin"
    keys.write_text("# mine\nsk-hunter2\nsk-hunter3\n")
    keys.chmod(0o600)
    programs.mkdir()
    (programs / "curl").symlink_to("/bin/true")
    ctl.configure(f'[server]\nlisten = ["127.0.0.1:4321"]\nkey_file = "{keys}"\n')
    plain = write(
        tmp_path / "base.gguf", {"general.architecture": string("qwen3")}, {"blk.0.attn_q.weight": ((256, 64), 0)}
    )
    first, _, curl = ctl("add", str(plain), PATH=str(programs)).out.partition(" | ")
    header = subprocess.run(["sh", "-c", first.partition("try it: ")[2]], capture_output=True, text=True, check=True)
    assert header.stdout == "Authorization: Bearer sk-hunter2\n"
    assert "hunter" not in first + curl
    assert curl.startswith("curl -H @- http://localhost:4321/v1/completions --json ")


def test_a_file_that_is_no_model_is_refused_by_what_it_is(ctl: Ctl, tmp_path: Path) -> None:
    whole = gguf(tmp_path, "m.gguf")
    (tmp_path / "cut.gguf").write_bytes(whole.read_bytes()[:-5])
    (tmp_path / "page.gguf").write_text("<!DOCTYPE html><html>")
    for name, words in (("cut.gguf", "download it again"), ("page.gguf", "it is a web page, not the model")):
        result = ctl("add", str(tmp_path / name))
        assert (result.status, words in result.err) == (1, True), result.err
    assert not ctl.config_file.parent.exists()


def test_a_blob_of_the_hubs_cache_has_the_name_in_its_header(ctl: Ctl, tmp_path: Path) -> None:
    blob = gguf(tmp_path, "deadbeef", **{"general.name": string("Qwen3 0.6B")})
    assert ctl("add", str(blob)).status == 0
    assert dropin(ctl, "qwen3-0.6b") == {"path": str(blob)}


@pytest.mark.parametrize("options", [[], ["--replace"]])
def test_a_model_that_the_user_wrote_is_never_changed(ctl: Ctl, model: Path, options: list[str]) -> None:
    file = ctl.configure('[models.hello]\npath = "/mine.gguf"\n')
    folder = file.parent / "accelerd.toml.d"
    folder.mkdir()
    (folder / "theirs.toml").write_text('[models.there]\npath = "/other.gguf"\n')
    for name, place in (("hello", "accelerd.toml:2"), ("there", "accelerd.toml.d/theirs.toml:2")):
        result = ctl("add", str(model), "--name", name, *options)
        assert result.status == 1
        assert f"{name} is a model of yours, which accelctl does not change" in result.err
        assert place in result.err
    assert [one.name for one in folder.iterdir()] == ["theirs.toml"]


@pytest.mark.parametrize(
    ("name", "words"), [("gpt", "is an alias of mine already"), ("auto", "is a route"), ("any", "an alias of auto")]
)
def test_a_name_that_the_user_gave_to_something_else_is_not_taken(ctl: Ctl, model: Path, name: str, words: str) -> None:
    file = ctl.configure(
        '[models.mine]\npath = "/m.gguf"\naliases = ["gpt"]\n[routes.auto]\nmodels = ["mine"]\naliases = ["any"]\n'
    )
    for options in ([], ["--replace"]):
        result = ctl("add", str(model), "--name", name, *options)
        assert (result.status, words in result.err, "another --name" in result.err) == (1, True, True), result.err
    assert ctl("add", str(gguf(model.parent, f"{name}.gguf"))).status == 0
    assert dropin(ctl, f"{name}-2")
    assert [one.name for one in (file.parent / "accelerd.toml.d").iterdir()] == [f"{name}-2.toml"]


def test_what_this_machine_has_no_room_for_is_told(ctl: Ctl, tmp_path: Path) -> None:
    file = write(
        tmp_path / "big.gguf", {"general.architecture": string("qwen3")}, {"token_embd.weight": ((1 << 20, 1 << 20), 0)}
    )
    result = ctl("add", str(file))
    assert result.status == 0
    assert "! big: it needs 4.0 TiB, which this machine does not have; accelctl fit big" in " ".join(result.out.split())
    assert json.loads(ctl("add", str(file), "--name", "b", "--json").out)["notes"]


@pytest.mark.parametrize(
    ("kind", "words"), [("gpu", "this machine has no NPU for npu/qwen3-4b"), ("npu", "install FastFlowLM")]
)
def test_without_flm_what_is_missing_is_said(ctl: Ctl, monkeypatch: pytest.MonkeyPatch, kind: str, words: str) -> None:
    found = Device(kind, "Some Device", "driver", "0000:c5:00.1", apu=False)  # type: ignore[arg-type]
    monkeypatch.setattr(Inventory, "scan", lambda self: [found])
    result = ctl("add", "npu/qwen3-4b", PATH=str(ctl.home))
    assert (result.status, words in result.err) == (1, True), result.err


def test_a_reload_that_fails_is_told(ctl: Ctl, model: Path, daemon: FakeDaemon) -> None:
    daemon.answers["POST reload"] = error(500, "internal", "cannot reload")
    result = ctl("add", "tiny")
    assert (result.status, result.err) == (1, "accelctl: cannot reload\n")


def test_remove_takes_away_what_add_wrote(ctl: Ctl, model: Path, daemon: FakeDaemon) -> None:
    daemon.answers["POST reload"] = RELOADED
    assert ctl("add", "tiny").status == 0
    value = json.loads(ctl("remove", "tiny-chat", "--json").out)
    assert value["name"] == "tiny-chat"
    assert value["reloaded"] is True
    assert not Path(value["file"]).exists()
    assert model.exists()
    assert [request.route for request in daemon.requests] == ["reload", "reload"]


def test_several_are_removed_one_that_cannot_be_does_not_keep_the_others(ctl: Ctl, model: Path) -> None:
    names = [f"tiny-{number}" for number in range(3)]
    for name in names:
        assert ctl("add", str(gguf(model.parent, f"{name}.gguf"))).status == 0
    result = ctl("rm", names[0], "nobody", names[1])
    assert (result.status, "there is no model 'nobody'" in result.err) == (5, True)
    assert [name for name in names if f"removed {name} " in result.out] == names[:2]
    assert dropin(ctl, names[2])


def test_remove_leaves_what_a_person_wrote(ctl: Ctl, model: Path) -> None:
    file = ctl.configure('[models.mine]\npath = "/x.gguf"\n')
    result = ctl("remove", "mine")
    assert result.status == 1
    assert "accelerd.toml:2" in result.err
    folder = file.parent / "accelerd.toml.d"
    folder.mkdir()
    (folder / "own.toml").write_text('[models.own]\npath = "/y.gguf"\n')
    result = ctl("remove", "own")
    assert result.status == 1
    assert "was not written by accelctl" in result.err
    assert (folder / "own.toml").exists()


def test_remove_of_nothing(ctl: Ctl, model: Path) -> None:
    assert ctl("add", "tiny").status == 0
    result = ctl("remove", "tiny-chta")
    assert result.status == 5
    assert "did you mean tiny-chat?" in result.err


def test_remove_says_that_a_configuration_was_invalid_already(ctl: Ctl, model: Path) -> None:
    assert ctl("add", "tiny").status == 0
    ctl.configure("[models.mine]\npath = '/m'\ncontxt = 5\n")
    result = ctl("remove", "tiny-chat")
    assert result.status == 4
    assert "nothing was removed: the configuration is invalid: accelerd.toml:3: models.mine.contxt" in result.err


def test_remove_that_would_break_the_configuration_is_undone(ctl: Ctl, model: Path) -> None:
    assert ctl("add", "tiny").status == 0
    file = ctl.config_file.parent / "accelerd.toml.d/tiny-chat.toml"
    ctl.configure("[models.tiny-chat]\ncontext = 512\n")  # its path stands in the drop-in
    before = file.read_bytes()
    result = ctl("remove", "tiny-chat")
    assert result.status == 4
    assert "nothing was removed" in result.err
    assert (
        "delete your own settings of tiny-chat first (accelerd.toml:1), then: accelctl remove tiny-chat" in result.err
    )
    assert file.read_bytes() == before
    assert file.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("file", "name"),
    [("Großes Modell-Q4_K_M.gguf", "großes-modell"), ("日本語.gguf", "日本語"), ("Ünï-GGUF.gguf", "ünï")],
)
def test_letters_beyond_ascii_stay(ctl: Ctl, tmp_path: Path, file: str, name: str) -> None:
    path = gguf(tmp_path, file)
    value = json.loads(ctl("add", str(path), "--json").out)
    assert (value["name"], value["table"]) == (name, {"path": str(path)})
    assert json.loads(ctl("config", "check", "--json").out)["models"] == [name]
    assert ctl("remove", name).status == 0


def test_a_name_that_was_added_already_leads_to_replace(ctl: Ctl, model: Path, tmp_path: Path) -> None:
    other = gguf(tmp_path, "other.gguf")
    assert ctl("add", str(model), "--name", "first").status == 0
    result = ctl("add", str(other), "--name", "first")
    assert result.status == 1
    assert "first was added already" in result.err
    assert "overwrite it with --replace" in result.err
    assert dropin(ctl, "first") == {"path": str(model)}
    assert ctl("add", str(other), "--name", "first", "--replace").status == 0
    assert dropin(ctl, "first") == {"path": str(other)}


@pytest.mark.parametrize("option", ["--name", "--alias"])
@pytest.mark.parametrize("dry", [(), ("--dry-run",)])
@pytest.mark.parametrize("name", ["../x", "a/../b", "/etc/x", "-x", "a\nb", "local/hello", "npu/x", "local/"])
def test_names_that_cannot_be_are_refused_before_anything_happens(
    ctl: Ctl, model: Path, name: str, dry: tuple[str, ...], option: str
) -> None:
    result = ctl("add", str(model), f"{option}={name}", *dry)
    assert result.status == 2
    assert "cannot be a name" in result.err
    assert not ctl.config_file.parent.exists()


def test_a_dry_run_finds_what_the_real_one_would(ctl: Ctl, model: Path) -> None:
    ctl.configure('[models.mine]\npath = "/x.gguf"\naliases = ["taken"]\n')
    for status, *argv in ((1, "--name", "taken"), (4, "--alias", "mine"), (2, "--memory", "some")):
        wet, dry = (ctl("add", str(model), *argv, *extra) for extra in ((), ("--dry-run",)))
        assert (dry.status, dry.err) == (wet.status, wet.err)
        assert dry.status == status, dry.err


def test_what_is_too_large_is_not_recommended_for_a_try(ctl: Ctl, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LocalMachine, "too_big", lambda self, spec: 70 << 30 if spec.name == "big" else None)
    result = ctl("add", str(model), "--name", "big")
    assert "it needs 70.0 GiB, which this machine does not have" in result.out
    assert "try it" not in result.out
    assert "try it: accelctl chat 'it fits' 'Say hello'" in ctl("add", str(model), "--name", "it fits").out


@pytest.mark.parametrize(("needed", "said"), [(90, "90.0 GiB"), (3, None)])
def test_what_the_daemon_knows_of_a_models_size_counts(
    ctl: Ctl, daemon: FakeDaemon, model: Path, monkeypatch: pytest.MonkeyPatch, needed: int, said: str | None
) -> None:
    """By its header alone a model may look larger than what the installed program makes of it."""
    monkeypatch.setattr(LocalMachine, "too_big", lambda self, spec: 70 << 30)
    monkeypatch.setattr(LocalMachine, "takes", lambda self, amounts: sum(amounts.values()) < 4 << 30)
    options = [{"amounts": {"ram": 1 << 30, "0000:c1:00.0": (needed - 1) << 30}}]
    daemon.answers |= {"POST reload": RELOADED, "GET fit": Reply({"options": options})}
    result = ctl("add", str(model), "--name", "m")
    assert ("try it" in result.out) == (said is None)
    assert (f"it needs {said}, which" in result.out) if said else ("it needs" not in result.out)


@pytest.mark.parametrize(
    ("states", "words"),
    [
        ("masked inactive", "masked in systemd; systemctl --user unmask accelerd.socket accelerd.service && "),
        ("loaded failed", "reset-failed accelerd.service accelerd.socket && systemctl --user restart"),
        ("loaded inactive", "start the daemon: systemctl --user start accelerd.socket"),
        ("not-found inactive", "units are not installed"),
    ],
)
def test_how_the_daemon_is_started_is_what_systemd_accepts(ctl: Ctl, model: Path, states: str, words: str) -> None:
    load, active = states.split()
    fake = ctl.home / "bin/systemctl"
    fake.parent.mkdir()
    fake.write_text(f"#!/bin/sh\nprintf 'LoadState={load}\\nUnitFileState=\\nActiveState={active}\\n'\n")
    fake.chmod(0o755)
    del ctl.env["ACCELERD_SOCKET"]
    result = ctl("add", str(model), PATH=f"{fake.parent}:/usr/bin:/bin")
    assert result.status == 0
    assert words in result.out


def test_remove_says_how_the_disk_is_freed(ctl: Ctl, tmp_path: Path) -> None:
    folder = tmp_path / "my models"
    folder.mkdir()
    parts = [gguf(folder, f"m-0000{n}-of-00002.gguf", **{"split.count": u32(2)}) for n in (1, 2)]
    assert ctl("add", str(parts[0]), "--name", "m").status == 0
    size = human_size(sum(part.stat().st_size for part in parts))
    line = ctl("remove", "m").out.splitlines()[-1]
    assert line == f"its files were kept; to free {size}: {shlex.join(['rm', *map(str, parts)])}"


def test_files_that_another_model_needs_are_not_recommended_for_deletion(ctl: Ctl, model: Path) -> None:
    projector = gguf(model.parent, "mmproj.gguf")
    for name in ("one", "two"):
        assert ctl("add", str(model), "--name", name, "--json").status == 0
    assert json.loads(ctl("remove", "one", "--json").out)["kept"] == []
    own = ctl.config_file.parent / "accelerd.toml.d/own.toml"
    own.write_text(f"[models.adapted]\npath = '/other.gguf'\nlora = [{{path = '{projector}'}}]\n")
    assert ctl("add", str(model), "--name", "three", "--json").status == 0
    assert ctl("remove", "two", "--json").status == 0
    assert json.loads(ctl("remove", "three", "--json").out)["kept"] == [str(model)]  # not what a model adapts by
    own.unlink()
    assert ctl("add", str(model), "--name", "two", "--json").status == 0
    value = json.loads(ctl("remove", "two", "--json").out)
    assert value["kept"] == [str(model), str(projector)]
    assert value["kept_bytes"] == model.stat().st_size + projector.stat().st_size


def test_a_search_that_is_bounded_says_so(ctl: Ctl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = tmp_path / "d" / "/".join("abcdefghij")
    deep.mkdir(parents=True)
    gguf(deep, "deep.gguf")
    result = ctl("add", str(tmp_path / "d"))
    assert (result.status, "7 levels that are searched" in result.err) == (1, True), result.err
    assert "name the directory of the models" in result.err
    gguf(tmp_path / "d", "near.gguf")
    result = ctl("add", str(tmp_path / "d"))
    assert result.status == 0
    assert "added near" in result.out
    assert "7 levels that are searched" in " ".join(result.out.split())  # it is wrapped
    assert ctl("remove", "near").status == 0
    monkeypatch.setattr(gguf_files, "MAX_ENTRIES", 3)
    for number in range(5):
        (tmp_path / "d" / f"{number}.txt").touch()
    result = ctl("add", str(tmp_path / "d"))
    assert (result.status, "3 files" in result.err) == (1, True), result.err
