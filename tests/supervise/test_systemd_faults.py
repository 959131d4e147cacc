"""What a real systemd does not do on demand, with a fake one: a bus that goes away."""

from __future__ import annotations

import errno
import json
import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from accelerd.base.exits import Cause
from accelerd.config.model import ModelSpec
from accelerd.supervise.homes.child_home import ChildHome
from accelerd.supervise.homes.choice import HomeChoice
from accelerd.supervise.homes.home import HomeError
from accelerd.supervise.homes.systemd_home import SystemdHome
from accelerd.supervise.homes.user_manager import UNIT_EXISTS, second_name, unit_name
from accelerd.supervise.instance_records import Adoptable, RecordStore, StoredInstance
from accelerd.supervise.process.processes import InstanceTag
from accelerd.system.dbus.client import BusError
from tests.fakes.user_manager import FakeUserManager
from tests.supervise.bench import SupervisorBench, alive


@pytest.fixture
def manager(bench: SupervisorBench) -> Iterator[FakeUserManager]:
    """`bench` with all models in units of a fake systemd."""
    made = FakeUserManager()
    home = SystemdHome(made, bench.roots)
    bench.options |= {"homes": {"systemd": home}, "choose": lambda spec: home}
    yield made
    made.close()
    assert [path.name for path in bench.roots.instances.glob("*") if path.suffix != ".corrupt-1"] == []


def killed_by(result: str) -> Any:
    def edit(properties: dict[str, Any]) -> dict[str, Any]:
        return properties | ({"Result": result} if properties["Result"] == "signal" else {})

    return edit


@pytest.mark.parametrize("limit", [None, 8 << 30])
async def test_an_oom_kill_is_told_apart(bench: SupervisorBench, manager: FakeUserManager, limit: int | None) -> None:
    manager.edit = killed_by("oom-kill")
    async with bench:
        number = bench.start(f"alloc:{20 << 20}", memory_max=limit)
        await bench.ready(number)
        os.kill(bench.pid(number), signal.SIGKILL)  # as the kernel or systemd-oomd does
        exit = await bench.gone(number)
    assert (exit.cause, exit.status) == (Cause.OOM_KILLED, -signal.SIGKILL)
    assert "out of memory" in exit.message
    assert ("memory_max of 8.0 GiB" in exit.message) is (limit is not None)
    assert ("reset_failed", "accelerd-m.service") in manager.calls
    assert manager.units == {}


async def test_while_it_is_told_to_stop_it_is_a_stop(bench: SupervisorBench, manager: FakeUserManager) -> None:
    manager.edit = killed_by("oom-kill")
    async with bench:
        number = bench.start("ignore-term", stop_timeout=0.1)
        await bench.ready(number)
        exit = await bench.stopped(number)
    assert exit.cause is Cause.STOPPED


@pytest.mark.parametrize("result", ["signal", "timeout", "core-dump"])
async def test_other_results_are_signals(bench: SupervisorBench, manager: FakeUserManager, result: str) -> None:
    manager.edit = killed_by(result)
    async with bench:
        number = bench.start()
        await bench.ready(number)
        os.kill(bench.pid(number), signal.SIGKILL)
        exit = await bench.gone(number)
    assert (exit.cause, exit.status) == (Cause.SIGNALED, -signal.SIGKILL)


async def test_unit_that_does_not_end_is_not_gone(bench: SupervisorBench, manager: FakeUserManager) -> None:
    """Something without the mark hangs in its control group."""
    async with bench:
        number = bench.start()
        await bench.ready(number)
        manager.edit = lambda properties: properties | {"ActiveState": "deactivating"}
        pid = bench.pid(number)
        bench.supervisor.stop(number)
        await bench.until(lambda: not alive(pid) and manager.calls.count(("kill", "accelerd-m.service")) > 2)
        assert bench.heard.of(number) == ["ready"]
        assert list(bench.roots.instances.glob("*.json"))
        manager.edit = lambda properties: properties
        exit = await bench.gone(number)
    assert exit.cause is Cause.STOPPED


async def test_silent_manager_is_an_error_that_may_pass(bench: SupervisorBench, manager: FakeUserManager) -> None:
    manager.silent = True
    async with bench:
        exit = await bench.gone(bench.start())
        assert exit.cause is Cause.SPAWN_FAILED
        assert "does not answer" in exit.message
        manager.silent = False
        number = bench.start()
        await bench.ready(number)
        await bench.stopped(number)


async def test_start_that_is_refused_leaves_nothing(bench: SupervisorBench, manager: FakeUserManager) -> None:
    manager.refuse = BusError("cannot start a unit: Cannot set property", "org.freedesktop.DBus.Error.InvalidArgs")
    async with bench:
        exit = await bench.gone(bench.start())
    assert exit.cause is Cause.SPAWN_FAILED
    assert list(bench.roots.instances.iterdir()) == []


async def test_unit_that_never_begins(
    bench: SupervisorBench, manager: FakeUserManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("accelerd.supervise.homes.systemd_home.START_TIMEOUT", 0.3)
    manager.edit = lambda properties: properties | {"ActiveState": "activating"}
    async with bench:
        exit = await bench.gone(bench.start())
        assert exit.cause is Cause.SPAWN_FAILED
        assert ("stop", "accelerd-m.service") in manager.calls
        unit = manager.units.get("accelerd-m.service")  # forgotten as soon as it is over
        await bench.until(lambda: unit is None or unit.process.poll() is not None)


async def test_both_names_taken(
    bench: SupervisorBench, manager: FakeUserManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def taken(unit: str, properties: object) -> None:
        raise BusError(f"{unit} was already loaded", UNIT_EXISTS)

    monkeypatch.setattr(manager, "start", taken)
    async with bench:
        exit = await bench.gone(bench.start())
    assert exit.cause is Cause.SPAWN_FAILED
    assert "name" in exit.message


async def test_bus_that_is_gone_when_it_ends(
    bench: SupervisorBench, manager: FakeUserManager, caplog: pytest.LogCaptureFixture
) -> None:
    async with bench:
        first, second = bench.start(name="a"), bench.start(name="b")
        await bench.ready(first)
        await bench.ready(second)
        manager.silent = True
        os.kill(bench.pid(first), signal.SIGKILL)
        exit = await bench.gone(first)
        assert (exit.cause, exit.status) == (Cause.EXITED, None)
        assert (await bench.stopped(second)).cause is Cause.STOPPED
    assert "cannot learn how accelerd-a.service ended" in caplog.text


@pytest.mark.parametrize("name", ["BAD-NAME", "1BAD", "É"])
async def test_environment_that_a_file_cannot_say(bench: SupervisorBench, manager: FakeUserManager, name: str) -> None:
    async with bench:
        exit = await bench.gone(bench.start(env={name: "t0ken"}))
    assert exit.cause is Cause.SPAWN_FAILED
    assert name in exit.message
    assert "t0ken" not in exit.message


async def test_model_that_shall_not_survive_is_bound_to_the_daemon_s_unit(
    bench: SupervisorBench, manager: FakeUserManager
) -> None:
    manager.own_unit = "accelerd.service"
    async with bench:
        number = bench.start(survive=False)
        await bench.ready(number)
        assert manager.units["accelerd-m.service"].properties["StopPropagatedFrom"] == ["accelerd.service"]
        (record,) = bench.roots.instances.glob("*.json")
        assert json.loads(record.read_text())["survives"] is False
        record = bench.start(name="k")
        await bench.ready(record)
        assert "StopPropagatedFrom" not in manager.units["accelerd-k.service"].properties
        assert "SESSION" in manager.units["accelerd-k.service"].properties["UnsetEnvironment"]


async def test_full_disk_costs_the_survival_and_nothing_else(
    bench: SupervisorBench, manager: FakeUserManager, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(store: RecordStore, record: StoredInstance) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(RecordStore, "write", full)
    async with bench:
        number = bench.start()
        await bench.ready(number)
        assert "cannot write its record" in caplog.text
        assert await bench.supervisor.close(5, keep=True)
        assert (await bench.gone(number)).cause is Cause.STOPPED


async def left_by_a_daemon(bench: SupervisorBench) -> tuple[int, Adoptable]:
    """A ready model whose daemon has gone."""
    async with bench:
        number = bench.start()
        await bench.ready(number)
        pid = bench.pid(number)
        await bench.until(lambda: '"ready"' in next(bench.roots.instances.glob("*.json")).read_text())
        assert await bench.supervisor.close(5, keep=True)
        assert bench.heard.of(number) == ["ready"]
    assert alive(pid)
    async with bench:
        (survivor,) = await bench.supervisor.survivors()
    assert survivor.was_ready
    return pid, survivor


async def test_unit_of_another_process_is_not_taken_over(bench: SupervisorBench, manager: FakeUserManager) -> None:
    pid, survivor = await left_by_a_daemon(bench)
    manager.edit = lambda properties: properties | {"MainPID": os.getpid()}
    async with bench:
        bench.supervisor.adopt(1, ModelSpec("m", engine="fake"), survivor)
        exit = await bench.gone(1)
        assert "ended while no accelerd ran" in exit.message
        manager.edit = lambda properties: properties
    await bench.until(lambda: not alive(pid))


async def test_process_that_ends_during_the_adoption(bench: SupervisorBench, manager: FakeUserManager) -> None:
    pid, survivor = await left_by_a_daemon(bench)

    def end_after_the_look(properties: dict[str, Any]) -> dict[str, Any]:
        manager.edit = dict
        os.kill(pid, signal.SIGKILL)  # between the look that found it and the pidfd: its number may be anybody's
        manager.units["accelerd-m.service"].process.wait()
        return properties

    manager.edit = end_after_the_look
    async with bench:
        bench.supervisor.adopt(1, ModelSpec("m", engine="fake"), survivor)
        assert (await bench.gone(1)).cause is Cause.EXITED


async def test_manager_that_is_silent_at_the_adoption(bench: SupervisorBench, manager: FakeUserManager) -> None:
    pid, survivor = await left_by_a_daemon(bench)
    manager.silent = True
    async with bench:
        bench.supervisor.adopt(1, ModelSpec("m", engine="fake"), survivor)
        assert (await bench.gone(1)).cause is Cause.EXITED
    await bench.until(lambda: not alive(pid))


async def test_endpoint_that_somebody_else_has_now_ends_the_survivor(
    bench: SupervisorBench, manager: FakeUserManager
) -> None:
    pid, survivor = await left_by_a_daemon(bench)
    async with bench:
        endpoint = survivor.record.unix
        assert endpoint is not None
        os.unlink(endpoint)
        other = bench.start(name="other")
        theirs, _ = await bench.heard.wait("ready", other)
        os.link(str(theirs.unix), endpoint)
        bench.supervisor.adopt(7, ModelSpec("m", engine="fake"), survivor)
        exit = await bench.heard.wait("gone", 7)
        assert exit.cause is Cause.PORT_UNAVAILABLE
        assert not alive(pid)


async def test_record_says_no_secret_but_the_key(bench: SupervisorBench, manager: FakeUserManager) -> None:
    async with bench:
        number = bench.start(env={"TOKEN": "s3cret-t0ken"})
        _, secret = await bench.heard.wait("ready", number)
        (path,) = bench.roots.instances.glob("*.json")
        text = path.read_text()
        assert text.count(secret) == 1
        assert "s3cret-t0ken" not in text
        assert path.stat().st_mode & 0o777 == 0o600


async def test_choice_of_a_home(bench: SupervisorBench) -> None:
    manager = FakeUserManager()
    homes = {"child": ChildHome(), "systemd": SystemdHome(manager, bench.roots)}
    choice = HomeChoice(homes, manager)
    manager.silent = True
    assert await choice.look()
    assert choice(ModelSpec("m")).kind == "child"
    with pytest.raises(HomeError, match="does not answer"):
        choice(ModelSpec("m", home="systemd"))
    manager.silent = False
    assert await choice.look() is None
    assert choice(ModelSpec("m")).kind == "systemd"
    assert choice(ModelSpec("m", home="child")).kind == "child"
    assert choice(ModelSpec("m", survive=False)).kind == "child"
    assert choice(ModelSpec("m", survive=False, memory_max=1 << 30)).kind == "systemd"
    with pytest.raises(HomeError, match="toolbox"):
        choice(ModelSpec("m", home="toolbox"))
    assert await HomeChoice(homes, None).look() == "this machine has none"


async def test_home_that_is_not_to_be_had_is_a_permanent_failure(bench: SupervisorBench) -> None:
    homes = {"child": ChildHome()}
    bench.options |= {"homes": homes, "choose": HomeChoice(homes, None)}
    async with bench:
        exit = await bench.gone(bench.start(home="systemd"))
    assert exit.cause is Cause.REFUSED
    assert 'home = "systemd"' in exit.message


def test_unit_names() -> None:
    assert unit_name("qwen") == "accelerd-qwen.service"
    assert unit_name("qwen3:8b_Q4.K-M") == "accelerd-qwen3:8b_Q4.K-M.service"
    assert unit_name("org/qwen3:8b").startswith("accelerd-org-qwen3:8b-")
    alike = ["a/b", "a-b", "a:b", "a_b", "a/b/c", "a-b/c", "a/b-c", "A/b", "a/" + "b" * 300, "a-" + "b" * 300]
    assert len({unit_name(name) for name in alike}) == len(alike)
    assert unit_name("a b@é") == "accelerd-a\\x20b\\x40\\xc3\\xa9.service"
    long, longer = unit_name("模型" * 40), unit_name("模型" * 41)
    assert max(len(long), len(longer)) <= 255
    assert long != longer
    assert len(second_name("模型" * 40, InstanceTag("12345-0123456789abcdef", "/run"))) <= 255


def test_second_name_is_known_from_the_record() -> None:
    assert second_name("qwen", InstanceTag("3-abc", "/run")) == "accelerd-qwen-3-abc.service"
