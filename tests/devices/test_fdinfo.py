"""Who uses the memory: fdinfo of amdgpu, i915, xe and amdxdna, of clients that are open more than once, of others."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accelerd.devices import fdinfo
from accelerd.devices.fdinfo import DrmClient, MemoryHolder

GPU, NPU = "0000:c4:00.0", "0000:c5:00.1"
MIB = 1 << 20
AMDGPU = """\
pos:\t0
drm-driver:\tamdgpu
drm-client-id:\t{client}
drm-pdev:\t0000:c4:00.0
drm-total-cpu:\t1 MiB
drm-resident-cpu:\t1 MiB
drm-total-gtt:\t30 MiB
drm-shared-gtt:\t5 MiB
drm-resident-gtt:\t22 MiB
drm-memory-gtt: \t22528 KiB
drm-resident-vram:\t544428 KiB
drm-memory-vram:\t544428 KiB
amd-evicted-vram:\t77 KiB
drm-engine-gfx:\t{ns} ns
drm-engine-capacity-gfx:\t1
"""
XE = """\
drm-driver:\txe
drm-client-id:\t{client}
drm-pdev:\t0000:c4:00.0
drm-total-vram0:\t512 MiB
drm-total-system:\t4096
drm-cycles-rcs:\t{work}
drm-total-cycles-rcs:\t{all}
"""
AMDXDNA = """\
drm-driver:\tamdxdna_accel_driver
drm-client-id:\t7
drm-pdev:\t0000:c5:00.1
drm-engine-npu-amdxdna:\t5000 ns
drm-total-memory:\t8 MiB
drm-shared-memory:\t4096 KiB
amdxdna-heap-alloc:\t64 MiB
"""

# As it was posted to the amd-gfx list.
POSTED = """\
pos:\t0
flags:\t02100002
mnt_id:\t24
ino:\t1204
drm-driver:\tamdgpu
drm-client-id:\t30
drm-pdev:\t0000:04:00.0
pasid:\t32785
drm-total-cpu:\t0
drm-shared-cpu:\t0
drm-active-cpu:\t0
drm-resident-cpu:\t0
drm-total-gtt:\t22 MiB
drm-shared-gtt:\t0
drm-active-gtt:\t10 MiB
drm-resident-gtt:\t22 MiB
drm-total-vram:\t544428 KiB
drm-shared-vram:\t13584 KiB
drm-active-vram:\t260356 KiB
drm-resident-vram:\t544428 KiB
drm-memory-vram:\t544428 KiB
drm-memory-gtt: \t22528 KiB
drm-memory-cpu: \t0 KiB
amd-memory-visible-vram:\t544428 KiB
amd-evicted-vram:\t0 KiB
amd-evicted-visible-vram:\t0 KiB
amd-requested-vram:\t544428 KiB
amd-requested-visible-vram:\t90112 KiB
amd-requested-gtt:\t22528 KiB
drm-engine-gfx:\t39456116802 ns
"""
I915 = """\
drm-driver:\ti915
drm-client-id:\t7
drm-pdev:\t0000:00:02.0
drm-total-system0:\t129 MiB
drm-shared-system0:\t16 MiB
drm-active-system0:\t0
drm-resident-system0:\t125 MiB
drm-purgeable-system0:\t2 MiB
drm-total-stolen-system0:\t0
drm-engine-render:\t9288864723 ns
drm-engine-copy:\t2035071108 ns
drm-engine-capacity-video:\t2
"""


def process(proc: Path, pid: int, name: str, **files: tuple[str, str]) -> None:
    """A process with descriptors: number → (what it is, its fdinfo)."""
    directory = proc / str(pid)
    for part in ("fd", "fdinfo"):
        (directory / part).mkdir(parents=True)
    (directory / "comm").write_text(name + "\n")
    for number, (target, text) in files.items():
        (directory / "fd" / number.strip("_")).symlink_to(target)
        (directory / "fdinfo" / number.strip("_")).write_text(text)


def amdgpu(client: int, ns: int = 0) -> tuple[str, str]:
    return "/dev/dri/renderD128", AMDGPU.format(client=client, ns=ns)


def test_who_holds_what_of_which_device(tmp_path: Path) -> None:
    process(tmp_path, 100, "llama-server", _3=amdgpu(1), _4=("/tmp/file", "pos: 0"), _5=("/dev/accel/accel0", AMDXDNA))
    process(tmp_path, 200, "browser", _3=amdgpu(2), _4=amdgpu(3))
    (tmp_path / "self").symlink_to("100")
    found = fdinfo.scan(tmp_path)
    one = {"gtt": 22 * MIB, "vram": 544428 << 10, "cpu": MIB}
    assert fdinfo.holders(found.clients, GPU) == (
        MemoryHolder(200, "browser", {name: 2 * size for name, size in one.items()}),
        MemoryHolder(100, "llama-server", one),
    )  # fmt: skip
    assert fdinfo.holders(found.clients, NPU) == (MemoryHolder(100, "llama-server", {"memory": 8 * MIB}),)
    assert MemoryHolder(100, "x", one).total == (22 * MIB) + (544428 << 10), (
        "memory that is not the device's does not count"
    )


def test_a_client_counts_once_however_often_it_is_open(tmp_path: Path) -> None:
    process(tmp_path, 300, "child", _3=amdgpu(1))
    process(tmp_path, 20, "parent", _3=amdgpu(1), _9=amdgpu(1))
    [holder] = fdinfo.holders(fdinfo.scan(tmp_path).clients, GPU)
    assert (holder.pid, holder.memory["gtt"]) == (20, 22 * MIB)


def test_a_client_counts_for_whom_was_asked_first(tmp_path: Path) -> None:
    process(tmp_path, 20, "display", _3=amdgpu(1), _4=amdgpu(2))
    process(tmp_path, 300, "llama-server", _3=amdgpu(1))
    ours = fdinfo.scan(tmp_path, only=[300])
    assert [(client.pid, client.number) for client in ours.clients] == [(300, "1")]
    rest = fdinfo.scan(tmp_path, without={300}, known=ours.clients)
    assert [(client.pid, client.number) for client in rest.clients] == [(20, "2")]
    assert fdinfo.scan(tmp_path, only=[7]).clients == ()


def test_what_was_posted_of_real_machines() -> None:
    assert fdinfo.parse(POSTED, 5, "game") == DrmClient(
        "0000:04:00.0", "30", 5, "game", {"gtt": 22 * MIB, "vram": 544428 << 10}, {"gfx": 39456116802}
    )
    assert fdinfo.parse(I915, 5, "browser") == DrmClient(
        "0000:00:02.0", "7", 5, "browser", {"system0": 125 * MIB}, {"render": 9288864723, "copy": 2035071108}
    )


TEXTS = st.text(max_size=40)
LINES = st.lists(st.tuples(st.sampled_from([line.partition(":")[0] for line in (POSTED + XE).splitlines()]), TEXTS))


@given(TEXTS | LINES.map(lambda lines: "\n".join(f"{key}:\t{value}" for key, value in lines)))
def test_any_text_is_a_client_with_sizes_or_none(text: str) -> None:
    client = fdinfo.parse(text, 1, "x")
    assert client is None or all(0 < size <= fdinfo.MOST for size in client.memory.values())


def test_processes_of_others_are_counted(tmp_path: Path) -> None:
    process(tmp_path, 100, "theirs", _3=amdgpu(1))
    process(tmp_path, 200, "mine", _3=amdgpu(2))
    process(tmp_path, 300, "gone", _3=amdgpu(3))

    def listdir(path: Path) -> list[str]:
        if "100" in path.parts:
            raise PermissionError(13, "not yours")
        if "300" in path.parts:
            raise ProcessLookupError(3, "has ended")
        return os.listdir(path)

    found = fdinfo.scan(tmp_path, listdir)
    assert ([client.process for client in found.clients], len(found.denied)) == (["mine"], 1)


def test_xe_counts_its_work_in_cycles_and_older_kernels_tell_totals_only(tmp_path: Path) -> None:
    process(tmp_path, 5, "server", _3=("/dev/dri/renderD128", XE.format(client=1, work=5, all=100)))
    [client] = fdinfo.scan(tmp_path).clients
    assert client == DrmClient(GPU, "1", 5, "server", {"vram0": 512 * MIB, "system": 4096}, {}, {"rcs": (5, 100)})


@pytest.mark.parametrize("text", [
    "", "pos: 0\n", "drm-driver: amdgpu\n", "drm-client-id: 4\n", "\x00\xff", "drm-pdev:\ndrm-client-id:\n",
])  # fmt: skip
def test_what_is_no_client(text: str) -> None:
    assert fdinfo.parse(text, 1, "x") is None


@pytest.mark.parametrize(("value", "size"), [
    ("0", 0), ("22 MiB", 22 * MIB), ("544428 KiB", 544428 << 10), ("2 GiB", 2 << 30), ("17", 17),
    ("-5 KiB", None), ("lots", None), ("5 furlongs", None), ("99999999999999999999", None), ("", None),
])  # fmt: skip
def test_amounts(value: str, size: int | None) -> None:
    assert fdinfo.amount(value) == size


def test_the_load_of_a_device_is_that_of_its_busiest_engine() -> None:
    def client(number: str, device: str = GPU, **engines: int) -> DrmClient:
        return DrmClient(device, number, 1, "x", {}, engines)

    second = 1_000_000_000
    before = [client("1", gfx=0, compute=0), client("2", gfx=second), client("3", NPU, gfx=0)]
    now = [client("1", gfx=second // 2, compute=second), client("2", gfx=2 * second), client("3", NPU, gfx=9 * second),
           client("4", gfx=99 * second)]  # fmt: skip
    assert fdinfo.busy(now, before, GPU, 4.0) == pytest.approx(37.5), "who came in between is not counted"
    assert fdinfo.busy(now, before, GPU, 0.1) == 100
    assert fdinfo.busy(now, [], GPU, 4.0) is None
    assert fdinfo.busy(before, now, GPU, 4.0) == 0, "counters that went back are no work"
    cycles = [DrmClient(GPU, "1", 1, "x", cycles={"rcs": at}) for at in ((10, 100), (60, 200))]
    assert fdinfo.busy(cycles[1:], cycles[:1], GPU, 1.0) == 50


def test_the_real_proc_is_read() -> None:
    found = fdinfo.scan(Path("/proc"))
    assert all(client.pid > 0 for client in found.clients)
