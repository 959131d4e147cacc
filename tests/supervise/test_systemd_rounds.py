"""Load, stop, kill and restart in random order in a real systemd --user: no process is lost and none is left."""

from __future__ import annotations

import os
import random
import signal

import pytest

from tests.supervise.units import Units

MODES = ("", "ignore-term", "setsid-grandchild", "fork-wrapper")


@pytest.mark.parametrize("seed", [1, 2])
def test_random_rounds(units: Units, seed: int) -> None:
    chance = random.Random(seed)
    daemon = units.daemon()
    live: dict[str, tuple[int, int]] = {}  # model → instance, pid
    for number in range(1, 61):
        name = units.name(chance.choice("abc"))
        act = chance.choice(["start", "start", "start", "stop", "kill", "crash", "restart"])
        if act == "start" and name not in live:
            live[name] = number, daemon.start(number, name, chance.choice(MODES), stop_timeout=0.1)
        elif act == "stop" and name in live:
            assert daemon.stopped(live.pop(name)[0])["cause"] == "stopped"
        elif act == "kill" and name in live:
            instance, pid = live.pop(name)
            os.kill(pid, signal.SIGKILL)
            assert daemon.wait("gone", n=instance)["cause"] == "signaled"
        elif act in ("crash", "restart"):
            units.noted()
            if act == "restart":
                assert daemon.ask("close", keep=True) is True
                daemon.end()
            else:
                daemon.kill()
            daemon = units.daemon()
            wanted = [(model, instance) for model, (instance, _) in live.items()]
            assert daemon.ask("adopt_all", names=wanted) == 0
            for instance, pid in live.values():
                daemon.wait("ready", n=instance)
                assert daemon.pid(instance) == pid
        assert len(units.loaded()) >= len(live)
    for instance, _ in live.values():
        daemon.stopped(instance)
    units.assert_nothing_left()
    daemon.end()
