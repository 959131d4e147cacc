"""A real llama-server in a real toolbox under the shipped units: an answer, an end by SIGTERM, exact exit statuses."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemon.container_service import TOOLBOX, ContainerService, container_service
from tests.daemon.kit import QUICK, alive, tokens, whole_stream
from tests.models import SHORT_REPLY, make_model
from tests.system.containers import ContainerManager
from tests.system.systemd_user import wait_until

IN_EVERY_IMAGE = ("libc.so", "libm.so", "ld-linux")


@pytest.fixture
def service(container_manager: ContainerManager) -> Iterator[ContainerService]:
    yield from container_service(container_manager)


@pytest.fixture
def model(service: ContainerService, llama_server: str, tmp_path: Path) -> str:
    """TOML of a model whose llama-server, with the libraries that the image lacks, lies in the user's home."""
    home = service.manager.directory(service.site.directory / "llama")
    libraries = re.findall(r"=> (/\S+)", subprocess.run(["ldd", llama_server], capture_output=True, text=True).stdout)
    wanted = [path for path in libraries if not Path(path).name.startswith(IN_EVERY_IMAGE)]
    for path in (llama_server, *wanted):
        shutil.copy(path, home)
    server = service.manager.script(
        home / "run-server", f'#!/bin/sh\nexport LD_LIBRARY_PATH={home}\nexec {home}/{Path(llama_server).name} "$@"\n'
    )
    file = shutil.copy(make_model(tmp_path, reply=SHORT_REPLY), home / "chat.gguf")
    for path in home.iterdir():
        path.chmod(0o755)
    lines = [f'path = "{file}"', f'binary = "{server}"', 'home = "toolbox"', f'container = "{TOOLBOX}"']
    return "\n".join([QUICK + "[models.real]", *lines, "context = 1024", "threads = 1", "stop_timeout = 10", ""])


def test_a_real_server_in_a_toolbox_answers_and_ends(service: ContainerService, model: str) -> None:
    service.install(model)
    service.start()
    pid = service.load("real")["real"]
    assert Path(f"/proc/{pid}/comm").read_text() == "llama-server\n"
    status, events, complete = whole_stream(service, "real")
    assert (status, complete, "".join(tokens(events))) == (200, True, SHORT_REPLY)
    # it outlives the daemon
    service.back(service.kill())
    assert service.chat("real").json()["choices"][0]["message"]["content"] == SHORT_REPLY
    assert service.pids("real") == {"real": pid}
    # SIGTERM is enough: it says good-bye, which it could not after SIGKILL
    assert service.events("unload?model=real")[-1]["event"] == "stopped"
    assert not alive(pid)
    assert "cleaning up before exit" in service.accelctl("logs", "real")
    assert "killing" not in [step["to"] for step in service.control("GET", "explain?model=real").json()["history"]]
    service.stop_all()
    assert wait_until(service.nothing_left), service.leftovers()


@pytest.mark.parametrize(("number", "said"), [("TERM", "exited with status 0 "), ("SEGV", "was ended by SIGSEGV ")])
def test_how_it_ended_is_known_exactly(service: ContainerService, model: str, number: str, said: str) -> None:
    """`toolbox run` alone would say 0 for much that is none, and 139 or nothing for a signal."""
    service.install(model)
    service.start()
    pid = service.load("real")["real"]
    service.manager.run(["kill", f"-{number}", str(pid)])
    service.wait_state("real", "stopped")
    error = service.status("real")["error"]
    assert said in error["message"]
    assert error["cause"] == ("exited" if number == "TERM" else "signaled")
    assert not service.sessions()
