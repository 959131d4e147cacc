"""The file with the API keys: one a line, # comments, for its owner's eyes only.

Reads it, or says why it cannot be used; no key ever gets into that text. Must keep none of them.
"""

from __future__ import annotations

import os
import stat
from typing import Final

from accelerd.base import volumes
from accelerd.base.files import read_small

PATIENCE: Final = 0.5  # s that its volume has to answer


def read(path: str) -> tuple[tuple[str, ...], str]:
    """The keys, or none and the reason why it cannot be used. Blocking."""
    try:
        volumes.check([path], PATIENCE)
        mode = os.stat(path).st_mode
        if not stat.S_ISREG(mode):  # opening a FIFO would wait for a writer
            return (), f"expected a regular file at {path}"
        if mode & (stat.S_IRWXG | stat.S_IRWXO):
            return (), f"other users can read the keys in {path}; run: chmod 600 {path}"
        lines = read_small(path).decode().split("\n")
    except FileNotFoundError:
        return (), f"no such file: {path}"
    except OSError as error:
        return (), f"cannot read {path}: {error.strerror}"
    except UnicodeDecodeError:
        return (), f"cannot read {path}: it is not UTF-8"
    keys = tuple(key for line in lines if (key := line.strip()) and not key.startswith("#"))
    return keys, "" if keys else f"{path} contains no key"
