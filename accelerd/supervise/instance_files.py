"""The files of one start in the runtime directory, all named after its tag: environment, output FIFO, record.

Modes are 0600 in a directory of mode 0700: the environment and the record hold secrets. Blocking: call it in a thread.
"""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from accelerd.supervise.process.processes import InstanceTag
from accelerd.system.private_files import open_private_dir

PIPE_BYTES: Final = 1 << 20  # what an engine may print while no daemon reads, before it waits


class InstanceFiles:
    """Where they are."""

    # .new: what was being written; .taken, .life, .end, .exec: of those in containers (handoff.py)
    _ENDINGS: Final = (
        ".env", ".env.taken", ".out", ".json", ".json.new", ".life", ".end", ".end.new", ".exec",
    )  # fmt: skip

    def __init__(self, folder: Path, tag: InstanceTag) -> None:
        self.folder = folder
        self.environment = folder / f"{tag.instance}.env"
        self.output = folder / f"{tag.instance}.out"
        self.record = folder / f"{tag.instance}.json"

    @classmethod
    def instance_of(cls, name: str) -> str | None:
        """Whose file this is (InstanceTag.instance), by its name; None: no file of an instance."""
        instance, dot, ending = name.removeprefix(".").partition(".")
        return instance if dot + ending in cls._ENDINGS else None

    def write_environment(self, env: Mapping[str, str]) -> None:
        """For a program's EnvironmentFile=. ValueError for what such a file cannot express; OSError."""
        text = environment_text(env)
        self._make_folder()
        fd = os.open(self.environment, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.write(text.encode())

    def make_output(self) -> None:
        """The FIFO that the engine prints into. OSError."""
        self._make_folder()
        os.mkfifo(self.output, 0o600)

    def open_output(self, proc: Path, holder: int | None = None) -> int:
        """A non-blocking descriptor to read the FIFO from. `holder`: a process that has it as its standard input, for
        when its name is gone. OSError."""
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            fd = os.open(self.output, flags | os.O_NOFOLLOW)
        except FileNotFoundError:
            if holder is None:
                raise
            fd = os.open(proc / str(holder) / "fd/0", flags)
        if not stat.S_ISFIFO(os.fstat(fd).st_mode):
            os.close(fd)
            raise OSError(f"{self.output} is not a FIFO")
        with suppress(OSError):  # the user's pipes are many or the system's limit is lower: then it is smaller
            fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        return fd

    def _make_folder(self) -> None:
        os.close(open_private_dir(self.folder))


def environment_text(env: Mapping[str, str]) -> str:
    """systemd's EnvironmentFile= syntax for these variables. ValueError, with the variable's name and no value."""
    lines = []
    for name, value in env.items():
        plain = name.replace("_", "a")
        if not (plain.isascii() and plain.isalnum()) or name[0].isdigit():
            raise ValueError(f"cannot pass the environment variable {name!r}: letters, digits and _ only")
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ValueError(f"cannot pass the environment variable {name}: its value is not UTF-8") from None
        if "\0" in value:
            raise ValueError(f"cannot pass the environment variable {name}: its value has a zero byte")
        quoted = "".join(f"\\{character}" if character in '"\\`$' else character for character in value)
        lines.append(f'{name}="{quoted}"\n')
    return "".join(lines)
