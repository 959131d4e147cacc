"""accelctl doctor: servers elsewhere, and programs of the engine `command`."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from accelerd.cli.checks import engine, remotes
from accelerd.cli.checks.base import CheckContext
from accelerd.config.remotes import Remote

from .conftest import Ctl
from .doctor_kit import forget, machine, only
from .fake_daemon import FakeDaemon, Reply, error

MAC = '[remotes.mac]\nurl = "https://mac.lan:1234/v1"\n'
BIG = '[models.big]\nengine = "remote"\nremote = "mac"\nmodel = "qwen3"\n'


@pytest.fixture
def here(ctl: Ctl, short: Path, tmp_path: Path) -> CheckContext:
    return machine(ctl, short, tmp_path)


def key(tmp_path: Path, text: str = "# of the Mac\n\nsk-hunter2\n", mode: int = 0o600) -> Path:
    path = tmp_path / "mac's key"
    path.write_text(text)
    path.chmod(mode)
    return path


def test_what_cannot_be_used_is_told_without_a_daemon(here: CheckContext, ctl: Ctl, tmp_path: Path) -> None:
    path = key(tmp_path, mode=0o640)
    ctl.configure(f'{MAC}key_file = "{path}"\nca_file = "/no/such.pem"\n{BIG}')
    first, second = remotes.remotes(here)
    assert (first.level, second.level) == ("fail", "fail")
    assert first.detail.startswith(f"remotes.mac.key_file: other users can read the keys in {path}")
    assert second.detail == "remotes.mac.ca_file: no such file: /no/such.pem"
    assert "accelerd.toml:3" in first.fix
    key(tmp_path, "sk-hunter2\nsk-hunter3\n")
    ctl.configure(f'{MAC}key_file = "{path}"\n{BIG}')
    forget(here)
    check = only(remotes.remotes(here))
    assert (check.level, "has 2 keys" in check.detail) == ("warn", True)
    assert "hunter" not in check.detail + check.fix


def test_each_is_asked_by_the_daemon(here: CheckContext, ctl: Ctl, daemon: FakeDaemon, tmp_path: Path) -> None:
    path = key(tmp_path)
    ctl.configure(f'{MAC}key_file = "{path}"\n[remotes.box]\nurl = "http://box"\n{BIG}')
    one = {"name": "mac", "url": "https://mac.lan:1234/v1", "key": str(path), "reachable": True, "trouble": None,
           "models": [{"name": "other"}], "missing": ["big"]}  # fmt: skip
    two = {**one, "name": "box", "url": "http://box", "key": None, "missing": [], "models": []}
    away = {**one, "reachable": False, "trouble": "it refuses accelerd's key (status 401)", "missing": []}
    daemon.answers["GET remotes"] = Reply({"remotes": [one, two, away]})
    first, second, third, fourth = remotes.remotes(here)
    assert (first.level, first.detail) == ("ok", "mac answers with its key and has 1 model")
    assert (second.level, "has no model of the name that big gives it" in second.detail) == ("warn", True)
    assert (third.level, third.detail) == ("ok", "box answers and has 0 models")
    assert (fourth.level, "refuses accelerd's key" in fourth.detail) == ("warn", True)
    assert fourth.fix.endswith("| curl -H @- -i https://mac.lan:1234/v1/models")


def test_of_many_models_the_first_are_shown(ctl: Ctl, daemon: FakeDaemon) -> None:
    model = {"names": [], "loaded": None, "size": None, "context": None, "capabilities": []}
    many = [{"name": f"model-{number}", **model} for number in range(103)]
    one = {"name": "mac", "url": "https://mac.lan/v1", "api": "openai", "used": [], "reachable": True, "trouble": None,
           "missing": [], "models": many}  # fmt: skip
    daemon.answers["GET remotes"] = Reply({"remotes": [one, {**one, "name": "box", "models": many[:100]}]})
    text = ctl("remotes").out
    assert (text.count("model-"), "mac has 3 more" in text, "box has" in text) == (200, True, False)
    assert ctl("--json", "remotes").out.count("model-") == 203


@pytest.mark.parametrize(
    ("api", "header", "address"),
    [
        ("openai", "Authorization: Bearer sk-hunter2\n", "https://mac/v1/models"),
        ("anthropic", "x-api-key: sk-hunter2\n", "https://mac/v1/models"),
        ("ollama", "Authorization: Bearer sk-hunter2\n", "https://mac/api/tags"),
    ],
)
def test_a_command_to_try_by_hand_has_the_key_and_does_not_show_it(
    tmp_path: Path, api: str, header: str, address: str
) -> None:
    remote = Remote("mac", "https://mac/v1", api=api, key_file=str(key(tmp_path)), ca_file="/a b.pem")  # type: ignore[arg-type]
    command = remotes.by_hand(remote)
    assert "hunter" not in command
    first, curl = command.split(" | ")
    assert subprocess.run(["sh", "-c", first], capture_output=True, text=True, check=True).stdout == header
    assert curl.startswith("curl -H @- -i --cacert '/a b.pem' ")
    assert curl.endswith(f" {address}")
    assert " | " not in remotes.by_hand(Remote("mac", "https://mac/v1"))


def command(program: str, file: Path | str, preset: str = "") -> str:
    settings = f'preset = "{preset}"\nargv = ["{program}", "{{port}}"]\napi = ["chat"]\n'
    text = f'[models.hear]\nengine = "command"\npath = "{file}"\n[models.hear.command]\n{settings}'
    return text if preset else text.replace('preset = ""\n', "")


def test_programs_files_and_presets_of_commands(here: CheckContext, ctl: Ctl, tmp_path: Path) -> None:
    weights = tmp_path / "ggml.bin"
    weights.write_bytes(b"lmgg")
    ctl.configure(command("/bin/sh", weights, "whisper.cpp"))
    check = only(engine.commands(here))
    assert check.level == "ok"
    assert check.detail.startswith("hear runs /bin/sh, preset whisper.cpp (of ")
    ctl.configure(command("/no/such/program", "/no/such/file"))
    forget(here)
    first, second = engine.commands(here)
    assert (first.level, first.detail) == ("fail", "hear: no such file: /no/such/file")
    assert (second.level, second.detail) == ("fail", "hear: no such file: /no/such/program")
    assert "accelerd.toml:3" in first.fix
    assert "command.argv" in second.fix


def test_a_vllm_that_is_not_there(here: CheckContext, ctl: Ctl, tmp_path: Path) -> None:
    weights = '[models.big]\nengine = "vllm"\nmodel = "Qwen/Qwen3-8B"\nbinary = "%s"\n'
    ctl.configure(weights % "/no/such/vllm")
    check = only(engine.commands(here))
    assert (check.level, check.detail) == ("fail", "big: no such file: /no/such/vllm")
    ctl.configure(weights % "/bin/sh")
    forget(here)
    assert only(engine.commands(here)).detail.startswith("big runs /bin/sh, preset vllm (of ")


def test_what_the_daemon_cannot_start_counts(here: CheckContext, ctl: Ctl, daemon: FakeDaemon, tmp_path: Path) -> None:
    weights = tmp_path / "ggml.bin"
    weights.write_bytes(b"lmgg")
    ctl.configure(command("sh", weights))
    assert only(engine.commands(here)).level == "ok"
    daemon.answers["GET explain"] = error(502, "model_failed", "cannot find the program sh: it is not on PATH")
    check = only(engine.commands(here))
    assert (check.level, check.detail) == ("fail", "hear: cannot find the program sh: it is not on PATH")


def test_programs_in_containers_are_not_looked_for_here(here: CheckContext, ctl: Ctl) -> None:
    text = command("/no/such/program", "/no/such/file").replace(
        "[models.hear.c", 'home="toolbox"\ncontainer="b"\n[models.hear.c'
    )
    ctl.configure(text)
    assert list(engine.commands(here)) == []
