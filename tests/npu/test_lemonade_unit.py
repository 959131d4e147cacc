"""The Lemonade Server of accelerd under a real systemd: in a unit of its own, which the daemon ends.

Against the stand-in `lemond`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import psutil
import pytest

from tests.daemon.service import Service, installed
from tests.harness import eventually
from tests.npu.lemonade_kit import EMBED, QWEN, STANDINS
from tests.system.systemd_user import UserManager, user_manager, wait_until

__all__ = ["user_manager"]

UNIT = "accelerd-lemonade-server.service"
MODELS = (
    f"[engines.lemonade]\nbinary = {json.dumps(str(STANDINS / 'lemond'))}\n"
    f"[engines.llama-server]\nbinary = {json.dumps(str(STANDINS / 'llama-server'))}\n"
    f'[models.qwen]\nengine = "lemonade"\nmodel = "{QWEN}"\n'
    f'[models.nomic]\nengine = "lemonade"\nmodel = "{EMBED}"\nembeddings = true\n'
)


@pytest.fixture
def service(user_manager: UserManager) -> Iterator[Service]:
    yield from installed(user_manager)


def test_the_server_is_one_unit_with_all_its_models(service: Service) -> None:
    service.install(MODELS)
    service.start()
    pids = service.load("qwen", "nomic")
    assert service.model_units() == {UNIT}
    main = int(service.manager.properties(UNIT)["MainPID"])
    assert set(pids.values()) <= {one.pid for one in psutil.Process(main).children(recursive=True)}
    assert service.manager.properties(UNIT)["LimitMEMLOCK"], "the buffers of an NPU are locked memory"
    assert service.chat("qwen").status == 200
    service.stop_all()
    assert wait_until(service.nothing_left), service.leftovers()
    assert "warning" not in service.output(), "systemd has not ended it behind the daemon's back"


def test_what_a_killed_daemon_leaves_the_next_one_ends_and_starts_anew(service: Service) -> None:
    """Its tenants are in no unit that could outlive the daemon: they are loaded again."""
    service.install(MODELS)
    service.start()
    before = service.load("qwen")
    service.back(service.kill())
    eventually(lambda: not psutil.pid_exists(before["qwen"]), "the old backend's end")
    assert service.chat("qwen").status == 200
    assert service.model_units() == {UNIT}
    service.stop_all()
    assert wait_until(service.nothing_left), service.leftovers()
