"""Small files: what lies in their place may be anything, and nobody waits for it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from accelerd.base.files import SMALL, read_small


def test_a_small_file(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"x" * SMALL)
    (tmp_path / "link").symlink_to("f")
    assert read_small(tmp_path / "link") == b"x" * SMALL
    assert read_small(tmp_path / "f", SMALL) == b"x" * SMALL


@pytest.mark.parametrize("what", ["missing", "fifo", "folder", "device", "loop", "large", "sparse", "socket"])
def test_anything_else_is_an_error_at_once(tmp_path: Path, what: str) -> None:
    path = tmp_path / "f"
    if what == "fifo":
        os.mkfifo(path)
    elif what == "folder":
        path.mkdir()
    elif what == "device":
        path.symlink_to("/dev/zero")
    elif what == "loop":
        path.symlink_to("f")
    elif what == "large":
        path.write_bytes(b"x" * (SMALL + 1))
    elif what == "sparse":
        path.touch()
        os.truncate(path, 1 << 40)
    elif what == "socket":
        os.mknod(path, 0o140600)
    with pytest.raises(OSError) as caught:  # noqa: PT011  (any of them)
        read_small(path)
    assert caught.value.strerror
