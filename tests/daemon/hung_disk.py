"""A file system that does not answer: whoever looks at a file on it cannot be killed (state D), as in a hanging driver.

`with HungDisk(folder) as disk:` mounts it by FUSE in a process of its own (python -m tests.daemon.hung_disk FOLDER),
which takes requests and answers none. After the block, or `answer()`, they fail and their processes can end.
"""

from __future__ import annotations

import array
import os
import shutil
import socket
import struct
import subprocess
import sys
from pathlib import Path

import pytest

INIT, HEADER = 26, struct.Struct("<IIQ")  # linux/fuse.h: FUSE_INIT; length, operation, unique number


class HungDisk:
    """See the module's text."""

    def __init__(self, folder: Path) -> None:
        if not shutil.which("fusermount3"):
            pytest.fail("a process that cannot be killed needs FUSE: apt-get install fuse3", pytrace=False)
        if not Path("/dev/fuse").exists():  # in a container that was given none
            pytest.skip("a process that cannot be killed needs FUSE, and there is no /dev/fuse")
        folder.mkdir()
        self.folder = folder
        self.file = folder / "file"

    def __enter__(self) -> HungDisk:
        argv = [sys.executable, "-m", "tests.daemon.hung_disk", str(self.folder)]
        self._process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "mounted\n"
        return self

    def answer(self) -> None:
        """Every request fails from now on."""
        self._process.kill()
        self._process.wait()

    def __exit__(self, *_: object) -> None:
        self.answer()
        assert self._process.stdout is not None
        self._process.stdout.close()
        subprocess.run(["fusermount3", "-u", "-z", self.folder], check=True)


def mount(folder: str) -> int:
    """/dev/fuse with a file system mounted there."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        env = {**os.environ, "_FUSE_COMMFD": str(theirs.fileno())}
        for_all = ["-o", "allow_other"] if os.geteuid() == 0 else []
        subprocess.run(["fusermount3", *for_all, folder], env=env, pass_fds=(theirs.fileno(),), check=True)
        _, rights, _, _ = ours.recvmsg(1, socket.CMSG_SPACE(4))
        return int(array.array("i", rights[0][2])[0])


def main() -> None:
    fd = mount(sys.argv[1])
    while True:
        request = os.read(fd, 1 << 17)
        _, operation, unique = HEADER.unpack_from(request)
        if operation == INIT:
            major, minor, readahead = 7, 31, 0
            answer = struct.pack("<IIIIHHIIHH", major, minor, readahead, 0, 16, 12, 1 << 16, 1, 0, 0) + bytes(28)
            os.write(fd, struct.pack("<IiQ", 16 + len(answer), 0, unique) + answer)
            print("mounted", flush=True)


if __name__ == "__main__":
    main()
