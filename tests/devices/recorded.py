"""Trees of /sys that were recorded on real machines, laid out again as /sys is; and machines for them to be in.

The recordings are not part of this project: they lie beside the checkout, or where $ACCELERD_TEST_FIXTURES says. A
recording has a card's directory with its device inside; what joins them in a real /sys are links, made here.
"""

from __future__ import annotations

import os
import shutil
import tarfile
from pathlib import Path

import pytest

from accelerd.base.ports import Roots

ROOT = Path(__file__).parents[2]
MACHINE = {
    "meminfo": "MemTotal:       33554432 kB\nMemFree: 1 kB\nMemAvailable:   20971520 kB\n",
    "cpuinfo": "processor\t: 0\nmodel name\t: A Processor\n",
    "cmdline": "quiet splash\n",
    "sys/kernel/osrelease": "6.18.9-200.fc43.x86_64\n",
}
TREES = {
    "lact-snapshots-amd-apu-dgpu.tgz": ("phoenix", "rx7700s", "rx7900xtx", "rx9070xt", "strixpoint", "vangogh"),
    "lact-snapshots-intel.tgz": ("a380-i915", "a380-xe", "b580", "b580-6.16", "tigerlake"),
}


def fixture(name: str) -> Path:
    """A recording. Where it is missing the test is left out, a failure for tests/run unless it is listed."""
    given = os.environ.get("ACCELERD_TEST_FIXTURES")
    path = (Path(given) if given else ROOT.parent / "shared" / "fixtures") / name
    if not path.is_file():
        pytest.skip(f"no {path}: set ACCELERD_TEST_FIXTURES to the directory of the recordings")
    return path


def machine(directory: Path, **files: str) -> Roots:
    """Roots below `directory`, with /proc of a plain machine; `files` replaces some of it."""
    roots = Roots(
        config_file=directory / "c", runtime=directory / "r", state=directory / "s", cache=directory / "k",
        home=directory, proc=directory / "proc", sys=directory / "sys", dev=directory / "dev",
    )  # fmt: skip
    for name, text in (MACHINE | files).items():
        path = roots.proc / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return roots


def lay_out(archive: Path, tree: str, roots: Roots) -> None:
    """One recording as the /sys and /dev of `roots`."""
    scratch = roots.home / "recorded"
    with tarfile.open(archive) as tar:
        members = [m for m in tar if m.name.split("/")[0] == tree and (m.isdir() or m.isfile())]
        tar.extraction_filter = lambda member, _: member  # an argument that not every 3.11 has; 3.13 wants to be told
        tar.extractall(scratch, members)
    [card] = (scratch / tree).glob("card*")
    uevent = dict(line.split("=", 1) for line in (card / "device/uevent").read_text().splitlines())
    slot = uevent["PCI_SLOT_NAME"]
    device = roots.sys / "devices/pci0000:00" / slot
    device.parent.mkdir(parents=True)
    shutil.move(card / "device", device)
    nodes = device / "drm"
    nodes.mkdir(exist_ok=True)
    shutil.move(card, nodes / card.name)
    (nodes / card.name / "uevent").write_text(f"DEVNAME=dri/{card.name}\n")
    (nodes / "renderD128").mkdir()
    (nodes / "renderD128/uevent").write_text("DEVNAME=dri/renderD128\n")
    link(roots.sys / "bus/pci/devices" / slot, device)
    for node in (card.name, "renderD128"):
        link(roots.sys / "class/drm" / node, nodes / node)
        (roots.dev / "dri").mkdir(parents=True, exist_ok=True)
        (roots.dev / "dri" / node).touch()
    if (scratch / tree / "kfd").is_dir():
        kfd = roots.sys / "devices/virtual/kfd"
        kfd.mkdir(parents=True)
        shutil.move(scratch / tree / "kfd", kfd / "kfd")
        link(roots.sys / "class/kfd/kfd", kfd / "kfd")


def link(path: Path, target: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(os.path.relpath(target, path.parent))
