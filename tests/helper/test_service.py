"""The helper on a system bus of its own: who gets what, and that everything is put back."""

from __future__ import annotations

import signal
import threading
from pathlib import Path

import pytest

from accelerd.base import names
from tests.harness import eventually
from tests.helper.world import APU, CARD, Caller, Refused, World, world


def refusal(caller: Caller, level: str = "high", slot: str = APU) -> str:
    with pytest.raises(Refused) as caught:
        caller.set(level, slot)
    return caught.value.code


def test_a_level_is_set_and_put_back(machine: World) -> None:
    caller = machine.caller()
    lease = caller.set("high")
    assert machine.sysfs.level() == "high"
    rows = caller.call("ListLeases")
    assert [(row[0], *row[1:4]) for row in rows] == [(lease, APU, "high", "auto")]
    caller.release(lease)
    assert machine.sysfs.level() == "auto"
    assert caller.call("ListLeases") == []


def test_polkit_is_asked_about_the_caller_and_nobody_for_a_password(machine: World) -> None:
    caller = machine.caller()
    caller.set("high")
    subject = ["system-bus-name", {"name": caller.connection.get_unique_name()}]
    assert machine.asked() == [{"subject": subject, "action": names.HELPER_ACTION, "flags": 0}]


def test_whom_polkit_denies_gets_nothing(machine: World) -> None:
    machine.deny()
    assert refusal(machine.caller()) == "NotAuthorized"
    assert machine.sysfs.level() == "auto"
    assert "may not set" in machine.output()


def test_without_polkit_nobody_may(tmp_path: Path) -> None:
    with world(tmp_path, polkit=False) as machine:
        machine.sysfs.add()
        assert refusal(machine.caller()) == "NotAuthorized"
        assert machine.sysfs.level() == "auto"


def test_a_caller_that_vanishes_leaves_nothing(machine: World) -> None:
    caller = machine.caller()
    caller.set("high")
    caller.close()
    machine.sysfs.becomes("auto")


def test_a_caller_that_vanishes_while_polkit_thinks_gets_nothing(machine: World) -> None:
    machine.hush()
    caller = machine.caller()
    caller.connection.call(
        names.HELPER_NAME, names.HELPER_PATH, names.HELPER_NAME, "SetLevel", variant(APU, "high"), None, 0, 60_000,
        None, None,
    )  # fmt: skip
    eventually(machine.asked, "polkit is asked")
    caller.close()
    machine.allow()
    other = machine.caller()
    lease = other.set("high")
    other.release(lease)
    machine.sysfs.becomes("auto")
    assert other.call("ListLeases") == []


def variant(slot: str, level: str) -> object:
    from gi.repository import GLib

    return GLib.Variant("(ss)", (slot, level))


def test_the_level_stays_until_the_last_of_two_callers_has_gone(machine: World) -> None:
    first, second = machine.caller(), machine.caller()
    first.set("high")
    lease = second.set("high")
    first.close()
    eventually(lambda: len(second.call("ListLeases")) == 1, "the first lease ends")
    assert machine.sysfs.level() == "high"
    second.release(lease)
    assert machine.sysfs.level() == "auto"


def test_nobody_ends_the_lease_of_another(machine: World) -> None:
    first, second = machine.caller(), machine.caller()
    lease = first.set("high")
    with pytest.raises(Refused) as caught:
        second.release(lease)
    assert caught.value.code == "NoLease"
    assert machine.sysfs.level() == "high"


def test_two_callers_cannot_want_different_levels(machine: World) -> None:
    first, second = machine.caller(), machine.caller()
    first.set("high")
    assert refusal(second, "low") == "Busy"
    assert machine.sysfs.level() == "high"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_helper_that_is_stopped_puts_everything_back(machine: World, number: int) -> None:
    machine.caller().set("high")
    machine.kill_helper(number)
    machine.sysfs.becomes("auto")
    assert not list(machine.runtime.iterdir())


def test_kill_9_of_the_helper_is_repaired_by_the_next_one(machine: World) -> None:
    caller = machine.caller()
    lease = caller.set("high")
    machine.kill_helper()
    assert machine.sysfs.level() == "high", "nobody could put it back yet"
    machine.start_helper()
    machine.sysfs.becomes("auto")
    with pytest.raises(Refused) as caught:
        caller.release(lease)
    assert caught.value.code == "NoLease"
    caller.set("high")
    assert machine.sysfs.level() == "high"


def test_when_the_bus_ends_everything_is_put_back(tmp_path: Path) -> None:
    with world(tmp_path) as machine:
        machine.sysfs.add()
        machine.caller().set("high")
    assert machine.sysfs.level() == "auto"


TRICKS = [
    "", ".", "..", "/", "../../../../etc/shadow", "0000:c1:00.0/..", "0000:c1:00.0/", "0000:c1:00.0\n", "0000:C1:00.0",
    "/sys/bus/pci/devices/0000:c1:00.0", "c1:00.0", "0000:c1:00.8", "0000:c1:00.0 ", "card0", "\u0660000:c1:00.0",
]  # fmt: skip


def test_only_a_pci_slot_is_taken(tmp_path: Path) -> None:
    with world(tmp_path) as machine:
        machine.sysfs.add()
        for number, slot in enumerate(TRICKS):
            if number % 4 == 0:  # the limit is for each uid, and a helper's own
                stop(machine)
            assert refusal(machine.caller(), "high", slot) == "InvalidArgs", slot
        assert machine.sysfs.level() == "auto"
        assert machine.asked() == [], "polkit is not troubled with nonsense"


def stop(machine: World) -> None:
    if machine.helper_runs():
        machine.kill_helper(signal.SIGTERM)


@pytest.mark.parametrize("level", ["manual", "profile_peak", "HIGH", "high\n", "high low", "", "1"])
def test_only_three_levels_are_taken(machine: World, level: str) -> None:
    assert refusal(machine.caller(), level) == "InvalidArgs"
    assert machine.sysfs.level() == "auto"


def test_what_is_no_gpu_of_amd_is_refused(machine: World) -> None:
    machine.sysfs.add("0000:c2:00.1", driver="amdxdna", pci_class="0x118000")
    machine.sysfs.add("0000:01:00.0", driver="nvidia")
    machine.sysfs.add("0000:04:00.0", pci_class="0x020000")
    caller = machine.caller()
    assert refusal(caller, "high", "0000:c2:00.1") == "Unsupported"
    assert refusal(caller, "high", "0000:01:00.0") == "Unsupported"
    assert refusal(caller, "high", "0000:04:00.0") == "Unsupported"
    assert refusal(caller, "high", "0000:99:00.0") == "NoDevice"


def test_a_discrete_card_is_never_set_to_high(machine: World) -> None:
    machine.sysfs.add(CARD, apu=False, pci_class="0x030000")
    assert refusal(machine.caller(), "high", CARD) == "Refused"
    assert machine.sysfs.level(CARD) == "auto"


def test_a_discrete_card_that_root_has_named_is(tmp_path: Path) -> None:
    with world(tmp_path) as machine:
        machine.config.write_text(f"[helper]\nallow_high = {CARD}\n")
        machine.sysfs.add(CARD, apu=False, pci_class="0x030000")
        machine.caller().set("high", CARD)
        assert machine.sysfs.level(CARD) == "high"


@pytest.mark.parametrize("level", ["manual", "profile_standard", "perf_determinism"])
def test_where_somebody_else_has_set_the_clocks_nothing_is_touched(machine: World, level: str) -> None:
    machine.sysfs.put(level)
    assert refusal(machine.caller()) == "Owned"
    assert machine.sysfs.level() == level


def test_a_flood_is_refused_and_does_not_shut_out_the_rest(machine: World) -> None:
    caller = machine.caller()
    codes = []
    for _ in range(40):
        try:
            caller.release(caller.set("high"))
        except Refused as error:
            codes.append(error.code)
    assert codes.count("RateLimited") == len(codes) >= 25
    assert machine.sysfs.level() == "auto"
    assert len(machine.asked()) <= 15, "polkit is not flooded"
    assert machine.output().count("calls too often") <= 5
    eventually(lambda: machine.sysfs.level() == "high" or attempt(caller), "served again")


def attempt(caller: Caller) -> bool:
    try:
        caller.set("high")
        return True
    except Refused as error:
        if error.code != "RateLimited":
            raise
        return False


def test_many_callers_at_once(machine: World) -> None:
    callers = [machine.caller() for _ in range(8)]
    outcomes: list[str] = []

    def go(caller: Caller) -> None:
        try:
            caller.set("high")
            outcomes.append("set")
        except Refused as error:
            outcomes.append(error.code)

    threads = [threading.Thread(target=go, args=(caller,)) for caller in callers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(outcomes) == {"set"}
    for caller in callers:
        caller.close()
    machine.sysfs.becomes("auto")


def test_it_ends_when_idle_and_not_while_somebody_holds_a_level(tmp_path: Path) -> None:
    with world(tmp_path, idle=1) as machine:
        machine.sysfs.add()
        holder, other = machine.caller(), machine.caller()
        lease = holder.set("high")
        process = machine.helper()
        eventually(lambda: process.cpu_times() and other.call("ListLeases"), "it answers")
        threading.Event().wait(1.5)
        assert process.is_running()
        assert machine.sysfs.level() == "high"
        holder.release(lease)
        eventually(lambda: not machine.helper_runs(), "it ends itself")
        holder.set("high")
        assert machine.sysfs.level() == "high"


def test_somebody_elses_later_wish_is_kept(machine: World) -> None:
    """A level that was changed under a lease is not ours to put back."""
    caller = machine.caller()
    lease = caller.set("high")
    machine.sysfs.put("low")
    caller.release(lease)
    assert machine.sysfs.level() == "low"
