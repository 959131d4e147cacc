"""The helper's accounts and the one file that it writes, without a bus."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from accelerd.helper.__main__ import allowed_high, main
from accelerd.helper.gpu import FILE, LEVELS, Gpu, LevelError, check_arguments, opened
from accelerd.helper.leases import RESTORE_TRIES, LevelLeases
from accelerd.helper.service import RateLimit
from tests.fakes.clock import FakeClock
from tests.helper.world import APU, CARD, Sysfs

OTHER = "0000:c2:00.0"


@pytest.fixture
def record(tmp_path: Path) -> Path:
    return tmp_path / "levels.json"


@pytest.fixture
def leases(sysfs: Sysfs, record: Path) -> LevelLeases:
    sysfs.add()
    return LevelLeases(sysfs.path, record)


def code(work: Callable[[], object]) -> str:
    with pytest.raises(LevelError) as caught:
        work()
    return caught.value.code


class Driver(Gpu):
    """A GPU whose driver does what a test says."""

    fails: int | None = None  # errno of writes
    takes = LEVELS  # other values are ignored
    on_write: Callable[[Gpu], None] | None = None

    def _put(self, data: bytes) -> None:
        kind = type(self)
        if kind.on_write is not None:
            kind.on_write(self)
        if kind.fails is not None:
            raise OSError(kind.fails, os.strerror(kind.fails))
        if data.decode().strip() in kind.takes:
            super()._put(data)


@pytest.fixture
def driver() -> type[Driver]:
    return type("Driver", (Driver,), {})


@pytest.fixture
def driven(sysfs: Sysfs, record: Path, driver: type[Driver]) -> LevelLeases:
    """A leases over that driver."""
    sysfs.add()
    return LevelLeases(sysfs.path, record, open_gpu=partial(opened, kind=driver))


def test_what_is_to_be_restored_is_noted_before_the_level_changes(
    driven: LevelLeases, driver: type[Driver], record: Path
) -> None:
    seen = []
    driver.on_write = staticmethod(lambda gpu: seen.append((json.loads(record.read_text()), gpu.level())))
    lease = driven.set(APU, "high", "a")
    assert seen == [({APU: ["high", "auto"]}, "auto")]
    driven.release(lease, "a")
    assert not record.exists()


def test_what_cannot_be_noted_is_not_done(sysfs: Sysfs, tmp_path: Path) -> None:
    sysfs.add()
    leases = LevelLeases(sysfs.path, tmp_path / "missing" / "levels.json")
    assert code(lambda: leases.set(APU, "high", "a")) == "Failed"
    assert sysfs.level() == "auto"
    assert leases.all() == []


def test_the_next_book_repairs_what_a_crash_has_left(leases: LevelLeases, sysfs: Sysfs, record: Path) -> None:
    leases.set(APU, "high", "a")
    after = LevelLeases(sysfs.path, record)
    after.repair()
    assert sysfs.level() == "auto"
    assert not record.exists()


def test_repair_leaves_what_somebody_has_set_since(leases: LevelLeases, sysfs: Sysfs, record: Path) -> None:
    leases.set(APU, "high", "a")
    sysfs.put("manual")
    LevelLeases(sysfs.path, record).repair()
    assert sysfs.level() == "manual"
    assert not record.exists()


@pytest.mark.parametrize(
    "text",
    [
        "", "nonsense", "[]", "{", '{"0000:c1:00.0": "high"}', '{"0000:c1:00.0": ["high", "manual"]}',
        '{"0000:c1:00.0": ["high"]}', '{"../../etc": ["high", "auto"]}', '{"0000:c1:00.0": [1, 2]}', "\xff",
    ],
)  # fmt: skip
def test_a_record_of_nonsense_changes_nothing(leases: LevelLeases, sysfs: Sysfs, record: Path, text: str) -> None:
    record.write_text(text, encoding="latin-1")
    sysfs.put("high")
    LevelLeases(sysfs.path, record).repair()
    assert sysfs.level() == "high"


def test_a_rival_level_under_a_lease_becomes_the_one_to_restore(leases: LevelLeases, sysfs: Sysfs) -> None:
    lease = leases.set(APU, "high", "a")
    sysfs.put("low")
    assert leases.set(APU, "high", "a") == lease
    assert sysfs.level() == "high"
    leases.release(lease, "a")
    assert sysfs.level() == "low"


def test_a_level_that_is_there_already_is_left_there(leases: LevelLeases, sysfs: Sysfs) -> None:
    sysfs.put("high")  # amdgpu-perf-high.service
    leases.release(leases.set(APU, "high", "a"), "a")
    assert sysfs.level() == "high"


def test_a_value_that_does_not_hold_is_taken_back(driven: LevelLeases, driver: type[Driver], sysfs: Sysfs) -> None:
    sysfs.put("low")
    driver.takes = ("low",)
    with pytest.raises(LevelError, match="does not accept high: it is at 'low', low is restored"):
        driven.set(APU, "high", "a")
    assert sysfs.level() == "low"
    assert driven.all() == []


@pytest.mark.parametrize(
    ("number", "expected"),
    [(errno.EACCES, "Failed"), (errno.EPERM, "Failed"), (errno.EINVAL, "Failed"), (errno.EBUSY, "Busy")],
)
def test_a_write_that_the_driver_refuses_is_an_answer_and_leaves_no_lease(
    driven: LevelLeases, driver: type[Driver], sysfs: Sysfs, record: Path, number: int, expected: str
) -> None:
    driver.fails = number
    with pytest.raises(LevelError, match=r"cannot set 0000:c1:00\.0 to high: ") as caught:
        driven.set(APU, "high", "a")
    assert caught.value.code == expected
    assert driven.all() == []
    assert not record.exists()
    assert sysfs.level() == "auto"


def test_what_cannot_be_put_back_is_tried_again_and_then_given_up(
    driven: LevelLeases, driver: type[Driver], sysfs: Sysfs, record: Path
) -> None:
    lease = driven.set(APU, "high", "a")
    driver.fails = errno.EBUSY
    driven.release(lease, "a")
    assert driven.unrestored
    assert json.loads(record.read_text()) == {APU: ["high", "auto"]}
    assert not driven.retry()
    driver.fails = None
    assert driven.retry()
    assert sysfs.level() == "auto"
    driven.set(APU, "high", "a")
    driver.fails = errno.EBUSY
    driven.forget("a")
    for _ in range(RESTORE_TRIES):
        driven.retry()
    assert not driven.unrestored


def test_an_owed_level_that_is_wanted_again_keeps_what_was_before(
    driven: LevelLeases, driver: type[Driver], sysfs: Sysfs
) -> None:
    lease = driven.set(APU, "high", "a")
    driver.fails = errno.EBUSY
    driven.release(lease, "a")
    driver.fails = None
    driven.release(driven.set(APU, "high", "b"), "b")
    assert sysfs.level() == "auto"
    assert not driven.unrestored


def test_a_device_that_is_gone_is_owed_nothing(leases: LevelLeases, sysfs: Sysfs, record: Path) -> None:
    leases.set(APU, "high", "a")
    (sysfs.path / "bus/pci/devices" / APU).unlink()
    leases.forget("a")
    assert not leases.unrestored
    assert not record.exists()


def test_a_sleeping_device_is_not_woken(leases: LevelLeases, sysfs: Sysfs) -> None:
    (sysfs.path / "bus/pci/devices" / APU / "power/runtime_status").write_text("suspended\n")
    assert code(lambda: leases.set(APU, "high", "a")) == "Busy"


def test_a_link_in_the_place_of_the_file_is_not_followed(leases: LevelLeases, sysfs: Sysfs, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("auto\n")
    file = sysfs.path / "bus/pci/devices" / APU / FILE
    file.unlink()
    file.symlink_to(target)
    assert code(lambda: leases.set(APU, "high", "a")) == "Unsupported"
    assert target.read_text() == "auto\n"


@pytest.mark.parametrize("text", ["", "unknown", "x" * 200, "auto high"])
def test_a_level_that_is_none_is_refused(leases: LevelLeases, sysfs: Sysfs, text: str) -> None:
    sysfs.put(text)
    assert code(lambda: leases.set(APU, "high", "a")) in ("Busy", "Unsupported")
    assert sysfs.level() == text


def test_low_is_for_every_card_and_high_for_those_in_the_processor(sysfs: Sysfs, record: Path) -> None:
    sysfs.add(CARD, apu=False, pci_class="0x030000")
    leases = LevelLeases(sysfs.path, record)
    assert code(lambda: leases.set(CARD, "high", "a")) == "Refused"
    leases.set(CARD, "low", "a")
    assert sysfs.level(CARD) == "low"


@given(st.text(max_size=40), st.text(max_size=10))
def test_no_text_but_a_slot_and_a_level_passes(slot: str, level: str) -> None:
    with pytest.raises(LevelError):
        check_arguments(slot, level)


def test_every_slot_that_passes_stays_below_the_devices(sysfs: Sysfs) -> None:
    for slot in ("0000:c1:00.0", "ffff:ff:1f.7"):
        check_arguments(slot, "auto")
        with pytest.raises(LevelError, match="no device"), opened(sysfs.path, slot):
            raise AssertionError("unreachable")


ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(["set", "release", "forget", "rival", "crash"]),
        st.sampled_from("abc"),
        st.sampled_from(["auto", "low", "high", "manual"]),
        st.sampled_from([APU, OTHER]),
    ),
    max_size=30,
)


@settings(max_examples=100, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(actions=ACTIONS)
def test_when_all_have_gone_nothing_of_ours_is_left(tmp_path_factory: pytest.TempPathFactory, actions: list) -> None:
    directory = tmp_path_factory.mktemp("leases")
    sysfs, record = Sysfs(directory / "sys"), directory / "levels.json"
    wished = {APU: "auto", OTHER: "auto"}  # by those who are not our callers
    for slot in wished:
        sysfs.add(slot)
    leases = LevelLeases(sysfs.path, record)
    for action, who, level, slot in actions:
        current = [lease for lease, _ in leases.all()]
        if action == "set":
            before = sysfs.level(slot)
            try:
                leases.set(slot, level, who)
            except LevelError:
                assert sysfs.level(slot) == before
            else:
                assert sysfs.level(slot) == level
        elif action == "release" and current:
            leases.release(current[0].number, current[0].owner)
        elif action == "forget":
            leases.forget(who)
        elif action == "rival":
            ours = any(lease.slot == slot and held.level == level for lease, held in leases.all())
            if not ours and sysfs.level(slot) != level:  # else it cannot be told from what we have set
                wished[slot] = level
                sysfs.put(level, slot)
        elif action == "crash":
            leases = LevelLeases(sysfs.path, record)
            leases.repair()
    for who in "abc":
        leases.forget(who)
    assert leases.all() == []
    assert not record.exists()
    assert {slot: sysfs.level(slot) for slot in wished} == wished


def test_the_limit_is_for_each_user_apart() -> None:
    clock = FakeClock()
    limit = RateLimit(clock.monotonic, burst=3, rate=1.0)
    assert [limit.take(1) for _ in range(5)] == [True, True, True, False, False]
    assert limit.take(2)
    clock.advance(1)
    assert [limit.take(1), limit.take(1)] == [True, False]
    clock.advance(3600)
    assert [limit.take(1) for _ in range(4)] == [True, True, True, False]


def test_the_limit_forgets_those_who_are_quiet() -> None:
    clock = FakeClock()
    limit = RateLimit(clock.monotonic)
    for uid in range(1000):
        clock.advance(1)
        limit.take(uid)
    assert len(limit._buckets) <= 257


@pytest.mark.parametrize("text", ["[helper\n", "x", "\xff\xfe", "[helper]\nallow_high\n"])
def test_a_broken_configuration_allows_nothing(tmp_path: Path, text: str) -> None:
    file = tmp_path / "helper.conf"
    file.write_bytes(text.encode("latin-1"))
    assert allowed_high(file) == []
    assert allowed_high(tmp_path / "missing") == []


def test_repair_alone_needs_no_bus(leases: LevelLeases, sysfs: Sysfs, record: Path) -> None:
    leases.set(APU, "high", "a")
    assert main(["--repair", "--sysfs", str(sysfs.path), "--runtime", str(record.parent)]) == 0
    assert sysfs.level() == "auto"
