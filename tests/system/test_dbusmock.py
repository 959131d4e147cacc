"""The same against python-dbusmock's templates of the services, which others wrote and other programs are tested with.

What the stand-ins of this repository add is what the templates leave out: that logind waits, the newer name of
power-profiles-daemon, notifications that are replaced and closed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from functools import partial
from typing import Any

import pytest

from accelerd.base.ports import SystemClock
from accelerd.system.dbus.client import BusClient
from accelerd.system.desktop_notifications import Notification, NotificationSender
from accelerd.system.desktop_state import watch_battery
from accelerd.system.suspend import LOGIND, MANAGER, PATH, SleepGuard
from tests.harness import PATIENCE
from tests.settled import pytest_pyfunc_call, settled  # noqa: F401
from tests.system.fake_services import Bus

MOCK = "org.freedesktop.DBus.Mock"


def python_with_dbusmock() -> str:
    """The distribution's Python where its package is installed, or the tests' own."""
    for python in (sys.executable, "/usr/bin/python3"):
        found = subprocess.run([python, "-c", "import dbusmock"], capture_output=True, timeout=PATIENCE)
        if found.returncode == 0:
            return python
    pytest.skip("python-dbusmock is not installed (package python3-dbusmock)")


@contextlib.contextmanager
def mocked(bus: Bus, template: str) -> Iterator[None]:
    env = os.environ | {"DBUS_SYSTEM_BUS_ADDRESS": bus.address, "DBUS_SESSION_BUS_ADDRESS": bus.address}
    python = python_with_dbusmock()
    child = subprocess.Popen([python, "-m", "dbusmock", "--template", template], env=env, stdout=subprocess.DEVNULL)
    try:
        yield
    finally:
        child.terminate()
        child.wait(PATIENCE)


async def there(calls: BusClient, name: str) -> None:
    async with asyncio.timeout(PATIENCE):
        while not await calls.owner(name):  # noqa: ASYNC110 - what another process does
            await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def calling(bus: Bus, *templates: str) -> AsyncIterator[BusClient]:
    """A client of the bus, on which these are mocked."""
    with contextlib.ExitStack() as mocks:
        for template in templates:
            mocks.enter_context(mocked(bus, template))
        client = BusClient(bus.address, "system bus")
        try:
            yield client
        finally:
            await client.close()


def properties(interface: str, **values: Any) -> tuple[Any, ...]:
    """Arguments of the mock's UpdateProperties."""
    from gi.repository import GLib

    kinds = {bool: "b", str: "s"}
    return interface, {name: GLib.Variant(kinds[type(value)], value) for name, value in values.items()}


async def test_sleep(bus: Bus) -> None:
    async with calling(bus, "logind") as calls, calling(bus) as own:
        await there(calls, LOGIND)
        told: asyncio.Queue[Any] = asyncio.Queue()

        async def before(seconds: float) -> None:
            told.put_nowait(seconds)

        async def after() -> None:
            told.put_nowait("awake")

        guard = SleepGuard(own, before, after)
        guard.configure(hold=True)

        async def inhibitors(count: int) -> None:
            async with asyncio.timeout(PATIENCE):
                while True:
                    found = (await calls.call(LOGIND, PATH, "ListInhibitors", interface=MANAGER))[0]
                    if len(found) == count:
                        break
                    await asyncio.sleep(0.02)
            assert all(one[:2] == ("sleep", "accelerd") and one[3] == "delay" for one in found)

        async def sleeping(begins: bool) -> None:
            from gi.repository import GLib

            preparing = properties(MANAGER, PreparingForSleep=begins)
            await calls.call(LOGIND, PATH, "UpdateProperties", "(sa{sv})", *preparing, interface=MOCK)
            signal = (MANAGER, "PrepareForSleep", "b", [GLib.Variant("b", begins)])
            await calls.call(LOGIND, PATH, "EmitSignal", "(sssav)", *signal, interface=MOCK)

        await inhibitors(1)
        await sleeping(True)
        assert await asyncio.wait_for(told.get(), PATIENCE) == 4.0, "as long as logind waits where it does not say"
        await inhibitors(0)
        await sleeping(False)
        assert await asyncio.wait_for(told.get(), PATIENCE) == "awake"
        await inhibitors(1)
        await guard.close()
        await inhibitors(0)


async def test_battery(bus: Bus) -> None:
    async with calling(bus, "upower", "power_profiles_daemon") as calls:
        upower, profiles = "org.freedesktop.UPower", "net.hadess.PowerProfiles"
        for name in (upower, profiles):
            await there(calls, name)
        told: asyncio.Queue[str] = asyncio.Queue()
        watch = watch_battery(calls, told.put_nowait)
        watch.start()

        async def set_(name: str, **values: Any) -> None:
            path = "/" + name.replace(".", "/")
            given = properties(name, **values)
            await calls.call(name, path, "UpdateProperties", "(sa{sv})", *given, interface=MOCK)

        next_ = partial(asyncio.wait_for, timeout=PATIENCE)
        assert await next_(told.get()) == ""
        await set_(upower, OnBattery=True)
        assert await next_(told.get()) == "on battery"
        await set_(profiles, ActiveProfile="power-saver")
        await set_(upower, OnBattery=False)
        assert await next_(told.get()) == "the power profile is power-saver"
        await set_(profiles, ActiveProfile="balanced")
        assert await next_(told.get()) == ""
        watch.close()


async def test_notifications(bus: Bus) -> None:
    async with calling(bus, "notification_daemon") as calls:
        name, path = "org.freedesktop.Notifications", "/org/freedesktop/Notifications"
        await there(calls, name)
        notifications = NotificationSender(calls, SystemClock(), 0.0)

        async def made(method: str, count: int) -> list[Any]:
            async with asyncio.timeout(PATIENCE):
                while True:
                    found = (await calls.call(name, path, "GetMethodCalls", "(s)", method, interface=MOCK))[0]
                    if len(found) == count:
                        return [arguments for _, arguments in found]
                    await asyncio.sleep(0.02)

        notifications.show(Notification("model a", "a failed", "it ran out of <memory>"))
        [first] = await made("Notify", 1)
        assert first[:5] == ["accelerd", 0, "dialog-warning", "a failed", "it ran out of &lt;memory&gt;"]
        notifications.show(Notification("model a", "a cannot be ended", urgent=True))
        second = (await made("Notify", 2))[1]
        assert (second[1], second[6]["urgency"]) == (1, 2)
        notifications.withdraw("model a")
        assert await made("CloseNotification", 1) == [[1]]
        await notifications.wait_until_sent()
        await notifications.close()
