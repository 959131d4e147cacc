"""Ready means ours: the secret, and the probe of a live engine."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from accelerd.base.exits import Cause
from accelerd.engines.base import Endpoint, LaunchPlan
from accelerd.memory.resident import shared
from accelerd.supervise.process.processes import ListenerOwner, tcp_owner
from tests.ports import free_port
from tests.supervise.bench import FAKE_SERVER, SupervisorBench, alive


@asynccontextmanager
async def foreign_server(port: int) -> AsyncIterator[None]:
    """Somebody else's server, that answers 200 to everything, on 127.0.0.1:`port`."""
    argv = [sys.executable, "-S", "-E", str(FAKE_SERVER), "--port", str(port)]
    process = await asyncio.create_subprocess_exec(
        *argv, env={"FAKE_MODE": "foreign-ok"}, stderr=asyncio.subprocess.PIPE
    )
    assert process.stderr is not None
    while b"listening" not in await process.stderr.readline():
        assert process.returncode is None
    try:
        yield
    finally:
        process.kill()
        await process.wait()


def on_port(plan: LaunchPlan, port: int) -> LaunchPlan:
    argv = [*plan.argv[: plan.argv.index("--port")], "--port", str(port)]
    return replace(plan, argv=tuple(argv), endpoint=Endpoint(port=port))


async def test_port_taken_before_the_spawn(bench: SupervisorBench) -> None:
    bench.engine.tcp = True
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        bench.engine.edit = lambda number, plan: on_port(plan, port) if number == 0 else plan
        async with bench:
            number = bench.start()
            await bench.ready(number)
            assert len(bench.engine.plans) == 2
            facts = bench.supervisor.facts(number)
            assert facts is not None
            assert facts.plan is bench.engine.plans[1]


async def test_no_port_can_be_had(bench: SupervisorBench) -> None:
    async with bench:
        number = bench.start("bind-fail")
        exit = await bench.gone(number)
        assert len(bench.recorded("spawn")) == 4
    assert exit.cause is Cause.PORT_UNAVAILABLE
    assert any("couldn't bind" in line for line in exit.tail)


async def test_stale_socket_file_is_removed(bench: SupervisorBench) -> None:
    path = bench.roots.instances / "stale.sock"

    def stale(_: int, plan: LaunchPlan) -> LaunchPlan:
        path.parent.mkdir()
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(str(path))
        argv = [str(path) if part == plan.endpoint.unix else part for part in plan.argv]
        return replace(plan, argv=tuple(argv), endpoint=Endpoint(unix=str(path)))

    bench.engine.edit = stale
    async with bench:
        number = bench.start()
        await bench.ready(number)
        await bench.stopped(number)
    assert not path.exists()


async def test_a_file_that_is_no_socket_is_never_removed(bench: SupervisorBench, tmp_path: Path) -> None:
    path = tmp_path / "precious.sock"
    path.write_text("not a socket")
    bench.engine.edit = lambda _, plan: replace(
        plan, argv=(*plan.argv[:-1], str(path)), endpoint=Endpoint(unix=str(path))
    )
    async with bench:
        exit = await bench.gone(bench.start())
    assert exit.cause is Cause.PORT_UNAVAILABLE
    assert path.read_text() == "not a socket"


async def test_foreign_server_on_our_port_is_never_ready(bench: SupervisorBench) -> None:
    bench.engine.tcp = True
    port = free_port()
    bench.engine.edit = lambda _, plan: on_port(plan, port)
    async with foreign_server(port), bench:
        number = bench.start("never-listen")
        exit = await bench.gone(number)
        assert bench.heard.of(number) == ["gone"]
    assert exit.cause is Cause.PORT_UNAVAILABLE
    assert "another program listens" in exit.message


async def test_foreign_server_costs_only_a_second_plan(bench: SupervisorBench) -> None:
    bench.engine.tcp = True
    port = free_port()
    bench.engine.edit = lambda number, plan: (
        replace(on_port(plan, port), env={**plan.env, "FAKE_MODE": "never-listen"}) if number == 0 else plan
    )
    async with foreign_server(port), bench:
        number = bench.start()
        endpoint, _ = await bench.heard.wait("ready", number)
        assert endpoint.port != port


async def test_listener_of_another_instance_is_foreign(bench: SupervisorBench) -> None:
    """On a unix socket too: the peer must be a process of this very instance."""
    async with bench:
        first = bench.start(name="first")
        endpoint, _ = await bench.heard.wait("ready", first)
        second = bench.start("never-listen", name="second", start_timeout=0.3)
        await bench.until(lambda: len(bench.recorded("spawn")) == 2)
        os.link(str(endpoint.unix), bench.engine.plans[1].endpoint.unix or "")
        exit = await bench.gone(second)
        assert bench.heard.of(second) == ["gone"]
        assert alive(bench.pid(first))
    assert exit.cause in (Cause.PORT_UNAVAILABLE, Cause.LOAD_TIMEOUT)


async def test_engine_that_takes_any_key_is_refused(bench: SupervisorBench) -> None:
    async with bench:
        number = bench.start("foreign-ok")
        exit = await bench.gone(number)
        assert bench.heard.of(number) == ["gone"]
    assert exit.cause is Cause.REFUSED
    assert "any key" in exit.message


async def test_engine_that_refuses_our_key(bench: SupervisorBench) -> None:
    async with bench:
        exit = await bench.gone(bench.start("wrong-key"))
    assert exit.cause is Cause.REFUSED
    assert "refuses the key" in exit.message


def test_who_would_get_a_connection() -> None:
    me, proc = [os.getpid()], Path("/proc")
    port = free_port()
    assert tcp_owner(proc, port, me) is ListenerOwner.NOBODY
    with socket.create_server(("127.0.0.1", port)):
        assert tcp_owner(proc, port, me) is ListenerOwner.OURS
        assert tcp_owner(proc, port, [1]) is ListenerOwner.FOREIGN
    with socket.create_server(("", port)):
        assert tcp_owner(proc, port, me) is ListenerOwner.OURS
    with socket.create_server(("127.0.0.2", port)):
        assert tcp_owner(proc, port, me) is ListenerOwner.NOBODY
    with socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True):
        assert tcp_owner(proc, port, me) is ListenerOwner.OURS
    with socket.create_server(("::1", port), family=socket.AF_INET6):
        assert tcp_owner(proc, port, me) is ListenerOwner.NOBODY


@pytest.mark.parametrize(("mode", "ok"), [("", True), ("health-ok-infer-500", False), ("die-before-headers", False)])
async def test_probe_tells_whether_requests_are_answered(bench: SupervisorBench, mode: str, ok: bool) -> None:
    async with bench:
        number = bench.start(mode)
        await bench.ready(number)
        bench.supervisor.probe(number)
        assert await bench.heard.wait("probed", number) is ok
        assert [record["path"] for record in bench.recorded("start")] == ["/v1/completions"]
        assert alive(bench.pid(number))  # what follows is the scheduler's decision
        exit = await bench.stopped(number)
    assert exit.cause is Cause.STOPPED


async def test_probe_of_an_engine_that_is_dying_waits_for_its_end(bench: SupervisorBench) -> None:
    """The kernel closes the sockets of a killed process first and then frees its memory, which takes a while."""
    async with bench:
        number = bench.start("fork-wrapper")
        await bench.ready(number)
        wrapper = bench.pid(number)
        os.kill(wrapper, signal.SIGSTOP)  # so that it is there for a while without its socket
        os.kill(bench.recorded("ready")[0]["pid"], signal.SIGKILL)
        bench.supervisor.probe(number)
        await asyncio.sleep(0.5)
        os.kill(wrapper, signal.SIGCONT)
        exit = await bench.gone(number)
        assert "probed" not in bench.heard.of(number)
    assert exit.cause in (Cause.EXITED, Cause.SIGNALED)


async def test_probe_of_a_hung_engine_does_not_hold_up_its_stop(bench: SupervisorBench) -> None:
    async with bench:
        number = bench.start("infer-hang")
        await bench.ready(number)
        bench.supervisor.probe(number)
        await bench.until(lambda: bool(bench.recorded("start")))
        bench.supervisor.stop(number, Cause.UNHEALTHY)
        async with asyncio.timeout(3):
            exit = await bench.gone(number)
        assert "probed" not in bench.heard.of(number)
    assert exit.cause is Cause.UNHEALTHY
    assert "answered health checks but no requests" in exit.message


async def test_all_processes_of_an_instance_are_found(bench: SupervisorBench) -> None:
    async with bench:
        number = bench.start(f"alloc:{32 << 20},fork-wrapper")
        await bench.ready(number)
        pids = bench.supervisor.process_finder()()[number]
        shares = [share.total for pid in pids if (share := shared(Path("/proc"), pid)) is not None]
        assert len(shares) > 1
        assert 32 << 20 < sum(shares) < 200 << 20
        await bench.stopped(number)
        assert number not in bench.supervisor.process_finder()()


async def test_a_bug_in_the_listener_ends_the_instance_and_is_logged(
    bench: SupervisorBench, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with bench:

        def broken(*_: object) -> None:
            raise RuntimeError("this is a bug")

        monkeypatch.setattr(bench.heard, "instance_ready", broken)
        number = bench.start()
        exit = await bench.gone(number)
        assert "a bug in accelerd" in exit.message
        assert "this is a bug" in caplog.text
        monkeypatch.undo()
        monkeypatch.setattr(bench.heard, "instance_gone", broken)
        bench.supervisor.stop(bench.start(name="n"))
        await bench.until(lambda: "could not be reported" in caplog.text)
