"""What the bus costs: `python -m tests.bus.bench [--clients 200] [--seconds 3]`. Figures for people, no goals, no test.

Latency of calls; the CPU time of a request to a small server on the same event loop, without and with clients that have
subscribed to everything while properties change; what wakes up when nothing happens. On a bus of its own; the clients
and the load are child processes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from accelerd.base import names
from accelerd.bus.paths import device_path, model_path
from tests.bus.world import BusService, Client, SessionBus, blank, furnish
from tests.system.fake_services import Bus, private_bus

MODELS = 40
ROUNDS = 5
REQUEST = b"GET /v1/models HTTP/1.1\r\nHost: bench\r\n\r\n"
REPLY = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"


def clients(address: str, count: int) -> None:
    """A child: so many programs that hear everything."""
    from gi.repository import GLib

    heard = 0

    def count_one(*_: Any) -> None:
        nonlocal heard
        heard += 1

    found = [Client(address) for _ in range(count)]
    for one in found:
        one.subscribe(count_one)
        one.ask_now(names.BUS_PATH, names.BUS_MANAGER, "GetModel", "(s)", "x")
    print("ready", flush=True)
    loop = GLib.MainLoop()

    def ended(*_: Any) -> bool:
        print(heard, flush=True)
        loop.quit()
        return False

    GLib.io_add_watch(sys.stdin.fileno(), GLib.PRIORITY_DEFAULT, GLib.IOCondition.IN | GLib.IOCondition.HUP, ended)
    loop.run()


async def load(port: int, seconds: float) -> None:
    """A child: eight connections that ask again as soon as they have the answer."""
    done = 0
    until = time.monotonic() + seconds

    async def one() -> None:
        nonlocal done
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while time.monotonic() < until:
            writer.write(REQUEST)
            await reader.readexactly(len(REPLY))
            done += 1
        writer.close()
        await writer.wait_closed()

    await asyncio.gather(*(one() for _ in range(8)))
    print(done)


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """As much as a server can be."""
    try:
        while True:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(REPLY)
    except asyncio.IncompleteReadError:
        writer.close()


async def child(*words: object) -> asyncio.subprocess.Process:
    pipe = asyncio.subprocess.PIPE
    command = [sys.executable, "-m", "tests.bus.bench", *map(str, words)]
    return await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe)


async def change(bus: SessionBus) -> None:
    """What a busy machine tells: every device once a second, a load ten times, states and requests in between."""
    for number in range(1_000_000):
        bus.update(model_path(f"m{number % MODELS}"), names.BUS_MODEL, {"InFlight": number, "Queued": number})
        if number % 2 == 0:
            event = json.dumps({"event": "progress", "elapsed": number / 20, "memory": number, "line": "loading"})
            bus.signal(f"{names.BUS_JOBS}/17", names.BUS_JOB, "Event", (event,))
            bus.update(f"{names.BUS_JOBS}/17", names.BUS_JOB, {"Progress": number / 1_000_000})
        if number % 20 == 0:
            bus.update(device_path("cpu"), names.BUS_DEVICE, {"MemoryUsed": number, "Temperature": number / 10})
        await asyncio.sleep(0.05)


async def one_round(port: int, seconds: float) -> tuple[float, float]:
    """µs of CPU of this process, all threads, for a request; and requests a second."""
    process = await child("--load", port, "--seconds", seconds)
    before = time.process_time()
    out, _ = await process.communicate()
    spent, done = time.process_time() - before, int(out)
    return spent / done * 1e6, done / seconds


async def latency(broker: Bus) -> None:
    def timed(count: int, path: str, interface: str, method: str, signature: str, *values: Any) -> list[float]:
        client, found = Client(broker.address), []  # each: no client may do much more
        for _ in range(count):
            begun = time.perf_counter()
            client.answer(path, interface, method, signature, *values)
            found.append((time.perf_counter() - begun) * 1e3)
        client.leave()
        return sorted(found)

    get, tree = "org.freedesktop.DBus.Properties", "org.freedesktop.DBus.ObjectManager"
    for title, count, words in (
        ("LoadModel", 300, (names.BUS_PATH, names.BUS_MANAGER, "LoadModel", "(sa{sv})", "m1", {})),
        ("one property", 300, (model_path("m1"), get, "Get", "(ss)", names.BUS_MODEL, "State")),
        (
            f"all of {MODELS} models",
            50,
            (names.BUS_PATH, tree, "GetManagedObjects", "()"),
        ),
    ):
        found = await asyncio.to_thread(timed, count, *words)
        middle, worst = statistics.median(found), found[int(len(found) * 0.99)]
        print(f"{title:24} {middle:8.2f} ms in the middle, {worst:8.2f} ms at 99 %")


def wakeups() -> int:
    """Of all threads of this process, so far."""
    found = 0
    for status in Path("/proc/self/task").glob("*/status"):
        found += int(status.read_text().partition("\nvoluntary_ctxt_switches:")[2].split()[0])
    return found


async def measure(broker: Bus, count: int, seconds: float) -> None:
    bus = SessionBus(broker.address)
    furnish(bus, BusService())
    for number in range(MODELS):
        name = f"m{number}"
        bus.publish(
            model_path(name), {names.BUS_MODEL: blank(names.BUS_MODEL, Name=name, State="stopped")}, BusService()
        )
    assert await bus.start() is None
    await latency(broker)
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    plain, busy = [], []
    heard = 0
    for _ in range(ROUNDS):
        plain.append(await one_round(port, seconds))
        crowd = await child("--crowd", broker.address, "--clients", count)
        assert crowd.stdout is not None
        await crowd.stdout.readline()
        assert bus.listeners >= count
        changing = asyncio.create_task(change(bus))
        busy.append(await one_round(port, seconds))
        changing.cancel()
        await asyncio.gather(changing, return_exceptions=True)
        if len(busy) == ROUNDS:
            await asyncio.sleep(1)
            before = wakeups()
            await asyncio.sleep(10)
            print(f"{'idle, with them':24} {(wakeups() - before) / 10:8.2f} wake-ups a second")
        out, _ = await crowd.communicate(b"")
        heard += int(out)
    alone, together = (statistics.median(cost for cost, _ in rounds) for rounds in (plain, busy))
    slower, faster = (statistics.median(rate for _, rate in rounds) for rounds in (busy, plain))
    print(f"{'CPU of a request':24} {alone:8.2f} µs alone, {together:8.2f} µs with {count} clients that heard {heard}")
    print(f"{'requests':24} {faster:8.0f}/s alone, {slower:8.0f}/s with them: {(slower / faster - 1) * 100:+.1f} %")
    server.close()
    await bus.close()


def main() -> None:
    parser = argparse.ArgumentParser(prog="tests.bus.bench", description="what the bus costs")
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--crowd", help=argparse.SUPPRESS)
    parser.add_argument("--load", type=int, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.crowd:
        clients(chosen.crowd, chosen.clients)
    elif chosen.load:
        asyncio.run(load(chosen.load, chosen.seconds))
    else:
        with tempfile.TemporaryDirectory() as directory, private_bus(Path(directory) / "bus") as broker:
            asyncio.run(measure(broker, chosen.clients, chosen.seconds))


if __name__ == "__main__":
    main()
