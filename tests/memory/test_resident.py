"""What processes hold of main memory: shares that are read seldom and moved by counters, and what is closed to us."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accelerd.base.ports import Roots, SystemClock
from accelerd.memory.model import Stall
from accelerd.memory.psi import read_stall
from accelerd.memory.resident import AGAIN, ResidentMemory, Residents, counted, resident, shared, taken_in
from tests.memory.machines import GIB, MIB, Machine

ME = os.getpid()
PROC = Path("/proc")


def test_a_share_is_what_is_held_alone_and_a_part_of_the_rest(tmp_path: Path) -> None:
    m = Machine(tmp_path)
    m.process(10, anon=2 * GIB, file=4 * GIB, shmem=GIB, private=0.5)
    residents = Residents(m.roots, m.clock)
    assert residents.look({1: [10]}) == {1: ResidentMemory(GIB, GIB // 2, 2 * GIB)}
    assert resident(m.roots.proc, [10, 11]) == 7 * GIB, "process 11 has ended"


def test_between_two_readings_a_share_moves_as_the_counters_do(tmp_path: Path) -> None:
    m = Machine(tmp_path)
    m.process(10, anon=2 * GIB, file=4 * GIB, private=0.5)
    residents = Residents(m.roots, m.clock)
    residents.look({1: [10]})
    m.memory(10, anon=3 * GIB, file=GIB, shmem=MIB, private=0.5)
    assert residents.look({1: [10]}) == {1: ResidentMemory(2 * GIB, MIB, 0)}, "never below nothing"
    m.clock.advance(AGAIN)
    assert residents.look({1: [10]}) == {1: ResidentMemory(3 * GIB // 2, MIB // 2, GIB // 2)}


def test_a_share_that_takes_long_to_read_is_read_less_often(tmp_path: Path) -> None:
    m = Machine(tmp_path)
    m.process(10, anon=GIB)
    residents = Residents(m.roots, m.clock)
    path, slow = m.roots.proc / "10/smaps_rollup", 0.5

    class Walk:
        """The clock of a machine on which reading page tables takes half a second."""

        def monotonic(self) -> float:
            m.clock.advance(slow / 2)
            return m.clock.now

    residents = Residents(m.roots, Walk())
    residents.look({1: [10]})
    path.write_text("Pss: 8 kB\nPss_Anon: 8 kB\n")
    m.clock.advance(20)
    assert residents.look({1: [10]}) == {1: ResidentMemory(GIB)}
    m.clock.advance(10)
    assert residents.look({1: [10]}) == {1: ResidentMemory(8192)}


def test_what_is_taken_while_a_share_is_read_counts_once(tmp_path: Path) -> None:
    m = Machine(tmp_path)
    m.process(10, anon=GIB, file=GIB, shmem=GIB)

    class Loading:
        """The clock, which is read just before the share, while the process loads a model."""

        def monotonic(self) -> float:
            m.memory(10, anon=3 * GIB, file=2 * GIB, shmem=GIB, private=0.5)
            return m.clock.now

    residents = Residents(m.roots, Loading())
    for _ in range(2):
        assert residents.look({1: [10]}) == {1: ResidentMemory(3 * GIB // 2, GIB // 2, GIB)}


def test_a_pid_that_was_another_process_before_is_read_anew(tmp_path: Path) -> None:
    m = Machine(tmp_path)
    m.process(10, anon=GIB, private=0.5)
    residents = Residents(m.roots, m.clock)
    residents.look({1: [10]})
    residents.look({})
    m.memory(10, anon=4 * GIB)
    assert residents.look({1: [10]}) == {1: ResidentMemory(4 * GIB)}


def test_older_kernels_do_not_split_the_share(tmp_path: Path) -> None:
    m = Machine(tmp_path)
    m.process(10)
    (m.roots.proc / "10/smaps_rollup").write_text("Rss: 9 kB\nPss: 6 kB\nAnonymous: 4 kB\nLocked: 1 kB\n")
    assert shared(m.roots.proc, 10) == ResidentMemory(4096, 0, 2048, 1024)


@pytest.mark.parametrize(("charged", "expected"), [
    # After a fork both processes count the same pages; the group knows how many there are.
    ({"anon": 5 * GIB, "shmem": 2 * GIB, "file": 90 * GIB}, ResidentMemory(5 * GIB, 2 * GIB, 7 * GIB)),
    ({"anon": GIB, "shmem": 0}, ResidentMemory(4 * GIB, GIB, 7 * GIB)),  # charged elsewhere: one process alone has more
    ({}, ResidentMemory(7 * GIB, GIB, 7 * GIB)),
])  # fmt: skip
def test_a_container_of_another_user_is_known_by_its_control_group(
    tmp_path: Path, charged: dict[str, int], expected: ResidentMemory
) -> None:
    """The page cache that its group is charged for is not what its processes use."""
    m = Machine(tmp_path)
    group = m.roots.sys / "fs/cgroup/system.slice/docker-1.scope"
    group.mkdir(parents=True)
    (group / "cgroup.procs").write_text("10\n11\n")
    (group / "memory.stat").write_text("".join(f"{kind} {size}\n" for kind, size in charged.items()))
    for pid, anon in ((10, 4 * GIB), (11, 3 * GIB)):
        m.process(pid, "vllm", anon=anon, file=7 * GIB, shmem=GIB)
        m.close(pid)
        (m.roots.proc / str(pid) / "cgroup").write_text("0::/system.slice/docker-1.scope\n")
    assert Residents(m.roots, m.clock).look({1: [10, 11]}) == {1: expected}


def test_a_control_group_with_others_in_it_says_nothing(tmp_path: Path) -> None:
    m = Machine(tmp_path)
    group = m.roots.sys / "fs/cgroup/user.slice"
    group.mkdir(parents=True)
    (group / "cgroup.procs").write_text("10\n99\n")
    (group / "memory.stat").write_text(f"anon {GIB}\n")
    m.process(10, anon=2 * GIB)
    m.close(10)
    (m.roots.proc / "10/cgroup").write_text("0::/user.slice\n")
    assert Residents(m.roots, m.clock).look({1: [10]}) == {1: ResidentMemory(2 * GIB)}


def test_the_real_proc_tells_what_this_process_holds() -> None:
    """Fresh pages of its own show in the counters at once, and in the share when it is read."""
    roots = Roots.from_env({"HOME": "/"})
    residents = Residents(roots, SystemClock())
    before = residents.look({1: [ME]})[1]
    size = 64 * MIB
    with mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as pages:
        for at in range(0, size, 4096):
            pages[at] = 1
        now, share = residents.look({1: [ME]})[1], shared(PROC, ME)
    assert share is not None
    assert abs(now.anon - before.anon - size) < 4 * MIB
    assert abs(now.total - share.total) < 4 * MIB
    told = counted(PROC, ME)
    assert told is not None
    assert told.total == pytest.approx(resident(PROC, [ME]), rel=0.2)


def test_there_is_no_such_process() -> None:
    assert counted(PROC, 1 << 23) is shared(PROC, 1 << 23) is None


KEYS = st.sampled_from(["Pss", "Pss_Anon", "Pss_File", "Locked", "RssAnon", "RssFile", "x"])
LINES = st.lists(st.tuples(KEYS, st.text(max_size=30) | st.integers().map(str)))


@given(st.binary(max_size=200) | LINES.map(lambda lines: "\n".join(f"{k}: {v} kB" for k, v in lines).encode()))
def test_any_text_of_the_kernel_is_a_size_or_nothing(tmp_path_factory: pytest.TempPathFactory, text: bytes) -> None:
    folder = tmp_path_factory.getbasetemp() / "any" / "7"
    folder.mkdir(parents=True, exist_ok=True)
    for file in ("smaps_rollup", "status", "statm"):
        (folder / file).write_bytes(text)
    for held in (shared(folder.parent, 7), counted(folder.parent, 7)):
        assert held is None or min(held.anon, held.shmem, held.file, held.locked) >= 0


@pytest.mark.parametrize(("text", "stall"), [
    ("some avg10=1.50 avg60=0.10 avg300=0.00 total=5\nfull avg10=0.25 avg60=0.00 total=3\n", Stall(1.5, 0.25)),
    ("some avg10=100.00 avg60=0.10 avg300=0.00 total=5\n", Stall(100.0, 0.0)),
    ("some avg10=nan avg60=0\n", None), ("some avg10=-1\nfull avg10=2\n", None), ("some avg10=lots\n", None),
    ("", None), ("\x00\n \nfull\n", None),
])  # fmt: skip
def test_stalls(tmp_path: Path, text: str, stall: Stall | None) -> None:
    (tmp_path / "pressure").mkdir()
    (tmp_path / "pressure/memory").write_text(text)
    assert read_stall(tmp_path) == stall


def test_a_kernel_that_tells_no_stalls(tmp_path: Path) -> None:
    assert read_stall(tmp_path) is None


TAKES_IN = """
import mmap, sys
how, path = sys.argv[1:]
with open(path, "rb") as file:
    if how == "read":
        file.read()
    elif how == "map":
        mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        sum(mapped[::4096])
    print("there", flush=True)
    sys.stdin.read()
"""


def test_what_a_process_took_in_is_what_it_read_and_what_it_mapped(tmp_path: Path) -> None:
    """Which of the two an engine does depends on its settings; the size of a file that it only opens is in neither."""
    file = tmp_path / "weights"
    file.write_bytes(bytes(64 * MIB))
    found = {}
    for how in ("open", "read", "map"):
        with subprocess.Popen(
            [sys.executable, "-c", TAKES_IN, how, str(file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"there\n"
            found[how] = taken_in(PROC, [process.pid])
            process.communicate()
            assert taken_in(PROC, [process.pid]) == 0, "it has ended"
    base = found["open"]
    assert base is not None
    assert found["read"] is not None
    assert found["map"] is not None
    assert found["read"] - base == pytest.approx(64 * MIB, abs=4 * MIB)
    assert found["map"] - base == pytest.approx(64 * MIB, abs=4 * MIB)


def test_what_cannot_be_asked_took_in_nobody_knows_what(tmp_path: Path) -> None:
    (tmp_path / "10").mkdir()
    (tmp_path / "10/io").write_text("syscr: 5\n")
    assert taken_in(tmp_path, [10]) is None
    (tmp_path / "10/io").write_text("rchar: 5000\nwchar: 1\n")
    assert taken_in(tmp_path, [10, 11]) == 5000
    (tmp_path / "10/status").write_text("RssFile:\t3 kB\n")
    assert taken_in(tmp_path, [10]) == 5000 + 3072
