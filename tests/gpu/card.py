"""lavapipe in the place of a Radeon: what its llama-server is called, and its memory as amdgpu tells of it.

Mesa's software renderer has no kernel driver. The engine's own memory logger says what it has allocated; from that come
the files that the kernel has of a real card: an fdinfo for each engine, and the card's counter in /sys.
"""

from __future__ import annotations

import os
import re
import shutil
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.devices import strix_halo

MIB = 1 << 20
VRAM, GTT = 256 * MIB, 340 * MIB
VRAM_OTHERS, GTT_OTHERS = 40 * MIB, 60 * MIB  # in use by other programs
NAME = "AMD Radeon 8060S Graphics (RADV GFX1151)"
UNITS = {"B": 1, "KiB": 1 << 10, "MiB": MIB, "GiB": 1 << 30}
TOTAL = re.compile(r"Total device: ([\d.]+) (\w+)")
EVERY = 0.02  # s
# Nodes that have nothing to do with models: a driver without hardware, and a virtual machine's card.
OTHER_NODES = """
P: /devices/platform/vgem
L: driver=../../../bus/platform/drivers/vgem
E: DRIVER=vgem
E: SUBSYSTEM=platform

P: /devices/platform/vgem/drm/renderD129
N: dri/renderD129
L: device=../../../vgem
E: MAJOR=226
E: MINOR=129
E: DEVNAME=/dev/dri/renderD129
E: DEVTYPE=drm_minor
E: SUBSYSTEM=drm
A: dev=226:129\\n

P: /devices/pci0000:00/0000:00:01.0
L: driver=../../../bus/pci/drivers/virtio-pci
E: DRIVER=virtio-pci
E: PCI_CLASS=30000
E: PCI_ID=1AF4:1050
E: PCI_SLOT_NAME=0000:00:01.0
E: SUBSYSTEM=pci
A: vendor=0x1af4\\n
A: device=0x1050\\n
A: class=0x030000\\n

P: /devices/pci0000:00/0000:00:01.0/drm/renderD130
N: dri/renderD130
L: device=../../../0000:00:01.0
E: MAJOR=226
E: MINOR=130
E: DEVNAME=/dev/dri/renderD130
E: DEVTYPE=drm_minor
E: SUBSYSTEM=drm
A: dev=226:130\\n
"""


def description() -> str:
    """The machine: the recorded Strix Halo where there is one, with little memory, beside nodes that do not compute."""
    folder = os.environ.get("ACCELERD_TEST_FIXTURES")
    recorded = Path(folder) / "strixhalo.umockdev" if folder else None
    text = recorded.read_text() if recorded is not None and recorded.is_file() else strix_halo.description()
    sizes = {"vram_total": VRAM, "vis_vram_total": VRAM, "gtt_total": GTT,
             "vram_used": VRAM_OTHERS, "vis_vram_used": VRAM_OTHERS, "gtt_used": GTT_OTHERS}  # fmt: skip
    for key, size in sizes.items():
        text = re.sub(rf"(?m)^A: mem_info_{key}=\d+", f"A: mem_info_{key}={size}", text)
    return f"{text.rstrip()}\n{OTHER_NODES}"


def slot(text: str) -> str:
    """Of the Radeon in a description."""
    found = re.search(r"E: DRIVER=amdgpu\n(?:E: .*\n)*?E: PCI_SLOT_NAME=(\S+)", text)
    assert found is not None, text[:500]
    return found[1]


def engine(folder: Path, real: Path, told: Path, shaders: Path) -> Path:
    """A llama-server that calls its device a Radeon, logs its memory, and may be given little stack or addresses.

    `shaders`: keeps what the driver has compiled, which takes it most of a first load.
    """
    folder.mkdir()
    program = folder / "llama-server"
    program.write_text(f"""#!/bin/bash
case " $* " in
  *" --list-devices "*) "{real}" "$@" 2>&1 | sed 's/llvmpipe (LLVM[^)]*)/{NAME}/'; exit "${{PIPESTATUS[0]}}" ;;
  *" --host "*)
    export GGML_VK_MEMORY_LOGGER=1 MESA_SHADER_CACHE_DIR="{shaders}"
    [ -z "$TEST_STACK" ] || ulimit -s "$TEST_STACK"
    [ -z "$TEST_ADDRESSES" ] || {{ export LP_NUM_THREADS=2 MALLOC_ARENA_MAX=2; ulimit -v "$TEST_ADDRESSES"; }}
    exec "{real}" "$@" 2> >(ulimit -v unlimited 2>/dev/null; exec tee -a "{told}/$$" >&2)
    ;;
esac
exec "{real}" "$@"
""")
    program.chmod(0o755)
    tool = real.with_name("llama-fit-params")
    if tool.is_file():
        (folder / tool.name).symlink_to(tool)
    return program


class Card(threading.Thread):
    """Keeps /proc and the card's counters as a kernel would, until it is closed."""

    def __init__(self, bed: Any, slot: str, proc: Path, told: Path) -> None:
        super().__init__(name="card", daemon=True)
        self.slot = slot
        self.proc = proc
        self._told = told
        [self.directory] = [path.parent for path in Path(bed.get_root_dir()).rglob("mem_info_gtt_used")]
        self._ending = threading.Event()
        proc.mkdir()
        for name in ("meminfo", "pressure", "stat", "cpuinfo", "sys"):
            (proc / name).symlink_to(f"/proc/{name}")

    def allocated(self, pid: int) -> int:
        """Bytes of the device that an engine has, as it says."""
        try:
            found = TOTAL.findall((self._told / str(pid)).read_text(errors="replace"))
        except OSError:
            return 0
        return int(float(found[-1][0]) * UNITS[found[-1][1]]) if found else 0

    @property
    def level(self) -> str:
        return (self.directory / "power_dpm_force_performance_level").read_text().strip()

    def run(self) -> None:
        shown: dict[int, int] = {}
        while not self._ending.wait(EVERY):
            there = {}
            for told in list(self._told.iterdir()):
                pid, room = int(told.name), GTT - GTT_OTHERS - sum(there.values())
                if Path("/proc", told.name).exists() and self._show(pid):
                    # A card has no more than there is; lavapipe has all of main memory.
                    there[pid] = min(self.allocated(pid), room)
                    self._lessen(pid, there[pid])
                else:
                    told.unlink()
            if there != shown:  # at once, or as nearly as can be: the difference of the two figures is other programs'
                put(self.directory / "mem_info_gtt_used", f"{GTT_OTHERS + sum(there.values())}\n")
                for pid, size in there.items():
                    put(self.proc / str(pid) / "fdinfo/99", self._client(pid, size))
                for pid in shown.keys() - there.keys():
                    shutil.rmtree(self.proc / str(pid), ignore_errors=True)
                shown = there

    def close(self) -> None:
        self._ending.set()
        self.join()

    def _show(self, pid: int) -> bool:
        """The process as it is, with the card open. False: it has ended."""
        source, shown = Path("/proc", str(pid)), self.proc / str(pid)
        if shown.exists():
            return True
        new = self.proc / f"{pid}.new"
        shutil.rmtree(new, ignore_errors=True)
        (new / "fdinfo").mkdir(parents=True)
        (new / "fd").mkdir()
        (new / "fd/99").symlink_to("/dev/dri/renderD128")
        for name in ("comm", "cmdline", "stat", "statm", "cgroup", "io"):
            (new / name).symlink_to(source / name)
        put(new / "fdinfo/99", self._client(pid, 0))
        new.rename(shown)
        return source.exists()

    def _lessen(self, pid: int, size: int) -> None:
        """What lavapipe allocates lies in the engine's own memory, which is not so with a card."""
        with suppress(OSError):  # it has ended
            for name, keys in (("status", "VmRSS|RssAnon"), ("smaps_rollup", "Rss|Pss|Pss_Anon|Anonymous")):
                put(self.proc / str(pid) / name, less(Path("/proc", str(pid), name).read_text(), keys, size))

    def _client(self, pid: int, size: int) -> str:
        return (
            f"pos:\t0\nflags:\t02100002\ndrm-driver:\tamdgpu\ndrm-client-id:\t{pid}\ndrm-pdev:\t{self.slot}\n"
            f"drm-memory-vram:\t0 KiB\ndrm-memory-gtt:\t{size // 1024} KiB\ndrm-memory-cpu:\t0 KiB\n"
            "drm-engine-compute:\t1000 ns\n"
        )


def less(text: str, keys: str, size: int) -> str:
    """A file of /proc with so many bytes less in these lines."""
    return re.sub(
        rf"(?m)^({keys})(:\s+)(\d+) kB", lambda found: f"{found[1]}{found[2]}{max(0, int(found[3]) - size // 1024)} kB",
        text,
    )  # fmt: skip


def put(path: Path, text: str) -> None:
    """In one step."""
    new = path.with_name(f"{path.name}.new")
    new.write_text(text)
    new.replace(path)
