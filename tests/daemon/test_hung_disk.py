"""A disk that does not answer costs the models that lie on it, and nothing else.

Seen with a FUSE file system that takes requests and answers none, where one can be mounted, and everywhere with a
stand-in (hung_daemon.py).
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.daemon.hung_disk import HungDisk
from tests.daemon.kit import QUICK, Site
from tests.harness import PATIENCE, Daemon, DaemonFactory, command_line, eventually, fake_model

SOON = 'start_timeout = "1s"\n'
KINDS = ["stand-in"]
if shutil.which("fusermount3") and os.access("/dev/fuse", os.R_OK | os.W_OK):
    KINDS.append("fuse")


@dataclass
class Machine:
    """One with a disk that hangs."""

    daemons: DaemonFactory
    site: Site
    folder: Path
    kind: str

    def begin(self, toml: str, *, server: str = "", env: Mapping[str, str] | None = None) -> Daemon:
        """A daemon that may or may not become ready."""
        module = "tests.daemon.hung_daemon" if self.kind == "stand-in" else "accelerd"
        env = {"TEST_HUNG": str(self.folder), **(env or {})}
        return self.daemons.launch(toml, server=server, env=env, module=module)

    def start(self, toml: str, env: Mapping[str, str] | None = None) -> Daemon:
        daemon = self.begin(toml, env=env)
        eventually(lambda: "READY=1" in daemon.messages() or daemon.process.poll() is not None, "ready")
        assert daemon.process.poll() is None, daemon.output()
        return daemon

    @property
    def silent(self) -> str:
        """What a message says of the disk."""
        return f"{self.folder} (fuse, /dev/fuse) has not answered for "


@pytest.fixture(params=KINDS)
def machine(request: pytest.FixtureRequest, tmp_path: Path, site: Site) -> Iterator[Machine]:
    with contextlib.ExitStack() as stack:
        folder = tmp_path / "hung"
        if request.param == "fuse":
            stack.enter_context(HungDisk(folder))
        else:
            folder.mkdir()
        yield Machine(stack.enter_context(DaemonFactory(tmp_path)), site, folder, request.param)


def looking(daemon: Daemon) -> int:
    """Processes that look at the disk for the daemon."""
    return sum("-I" in command_line(child) for child in daemon.children())


def test_only_the_models_on_it_fail_and_name_it(machine: Machine) -> None:
    """Whatever of a model lies there, and however its path says so."""
    site, there = machine.site, machine.folder
    (site.directory / "link").symlink_to(there)
    (site.directory / "file-link.gguf").symlink_to("link/../hung/x.gguf")
    broken = {
        "path": fake_model("path", there / "m.gguf"),
        "folder-link": fake_model("folder-link", site.directory / "link" / "m.gguf"),
        "file-link": fake_model("file-link", site.directory / "file-link.gguf"),
        "binary": fake_model("binary", site.gguf, binary=str(there / "llama-server")),
    }
    for key in ("mmproj", "draft_model", "chat_template_file"):
        broken[key] = site.model(key, **{key: str(there / key)})
    broken["lora"] = site.model("lora").replace("\npath =", f'\nlora = [{{ path = "{there}/l" }}]\npath =', 1)
    defaults = f"{QUICK}[defaults]\n{SOON}"
    daemon = machine.start(defaults + site.model("good") + "".join(broken.values()))
    assert daemon.chat("good").status == 200
    for name in broken:
        last = daemon.events(f"load?model={name}")[-1]
        assert last["event"] == "error"
        assert machine.silent in last["error"]["message"], name
        explained = daemon.control("GET", f"explain?model={name}")
        assert explained.status == 503
        assert machine.silent in explained.json()["error"]["message"]
    refused = daemon.chat("path")
    assert (refused.status, refused.code) == (503, "model_backing_off")
    assert looking(daemon) == 1, "one process for all of them"
    # A reload with one more of them; the good one goes on.
    daemon.configure(defaults + site.model("good") + "".join(broken.values()) + fake_model("late", there / "late.gguf"))
    changed = daemon.control("POST", "reload").json()
    assert (changed["added"], len(changed["unchanged"])) == (["late"], 1 + len(broken))
    problems = daemon.status()["config"]["problems"]
    assert [one["severity"] for one in problems] == ["warning"] * 9
    assert all(machine.silent in one["message"] for one in problems)
    assert daemon.chat("good").status == 200
    assert looking(daemon) == 1
    assert daemon.stop() == 0
    assert "Traceback" not in daemon.output()


def test_a_cache_of_downloads_on_it(machine: Machine) -> None:
    hub = f'[models.hub]\nmodel = "org/repo"\nbinary = "{machine.site.program}"\n{SOON}'
    daemon = machine.start(QUICK + machine.site.model("good") + hub, env={"HF_HOME": str(machine.folder)})
    assert daemon.chat("good").status == 200
    assert machine.silent in daemon.events("load?model=hub")[-1]["error"]["message"]
    assert daemon.stop() == 0


@pytest.mark.parametrize("what", ["keys", "drop-in"])
def test_a_start_that_cannot_do_without_it_fails_and_names_it(machine: Machine, what: str) -> None:
    server = ""
    if what == "keys":
        server = f'key_file = "{machine.folder}/keys"'
    else:
        dropins = machine.site.directory / "home/.config/accelerd/accelerd.toml.d"
        dropins.mkdir(mode=0o700, parents=True)
        (dropins / "link.toml").symlink_to(machine.folder / "link.toml")
    daemon = machine.begin(machine.site.model("good"), server=server)
    assert daemon.process.wait(PATIENCE) == 78
    assert machine.silent in daemon.output()


def test_a_drop_in_that_is_a_link_to_it_is_refused_at_a_reload(machine: Machine) -> None:
    daemon = machine.start(machine.site.model("good"))
    dropins = Path(f"{daemon.config}.d")
    dropins.mkdir(mode=0o700)
    (dropins / "more.toml").symlink_to(machine.folder / "more.toml")
    refused = daemon.control("POST", "reload")
    assert (refused.status, machine.silent in refused.body.decode()) == (422, True)
    assert daemon.chat("good").status == 200
    assert daemon.stop() == 0


def test_a_model_is_loaded_once_its_disk_answers(daemons: DaemonFactory, site: Site, tmp_path: Path) -> None:
    folder = tmp_path / "hung"
    with HungDisk(folder) as disk:
        daemon = daemons.start(QUICK + fake_model("m", folder / "m.gguf"))
        disk.answer()
        eventually(lambda: not daemon.children(), "nobody looks any more")
    shutil.copy(site.gguf, folder / "m.gguf")
    assert daemon.events("load?model=m")[-1]["event"] == "ready"
    assert daemon.chat("m").status == 200
