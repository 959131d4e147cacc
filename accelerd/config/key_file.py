"""Files with API keys: one a line, # comments, for their owner's eyes only. And systemd's credentials.

Reads them, or says why they cannot be used; no key ever gets into that text. Must keep none of them.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping
from typing import Final

from accelerd.base import volumes
from accelerd.base.files import read_small

PATIENCE: Final = 0.5  # s that its volume has to answer
CREDENTIALS: Final = "CREDENTIALS_DIRECTORY"  # systemd's variable
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def read(path: str) -> tuple[tuple[str, ...], str]:
    """The keys, or none and the reason why it cannot be used. Blocking."""
    try:
        volumes.check([path], PATIENCE)
        mode = os.stat(path).st_mode
        if not stat.S_ISREG(mode):  # opening a FIFO would wait for a writer
            return (), f"expected a regular file at {path}"
        if mode & (stat.S_IRWXG | stat.S_IRWXO):
            return (), f"other users can read the keys in {path}; run: chmod 600 {path}"
        lines = read_small(path).decode("utf-8-sig").split("\n")
    except FileNotFoundError:
        return (), f"no such file: {path}"
    except OSError as error:
        return (), f"cannot read {path}: {error.strerror}"
    except UnicodeDecodeError:
        return (), f"cannot read {path}: it is not UTF-8"
    keys = tuple(key for line in lines if (key := line.strip()) and not key.startswith("#"))
    if wrong := next((line for line in keys if _CONTROL.search(line)), None):
        at = [line.strip() for line in lines].index(wrong) + 1
        return (), f"line {at} of {path} has control characters, which no key has; write it anew"
    return keys, "" if keys else f"{path} contains no key"


def to_send(path: str) -> tuple[str, str]:
    """The first key of a file, for another server, or "" and why there is none. Blocking."""
    keys, reason = read(path)
    if keys and not re.fullmatch(r"[\x21-\x7e]+", keys[0]):
        return "", f"the key in {path} has spaces or letters that no key has; the file must have the key alone"
    return (keys[0] if keys else ""), reason


def of_credential(name: str, environ: Mapping[str, str]) -> tuple[str, str]:
    """The same of a credential that systemd has given accelerd. Blocking."""
    folder = environ.get(CREDENTIALS)
    if folder is None:
        return "", (
            f"systemd has given accelerd no credentials; add LoadCredential={name}:/path/of/the/key to [Service] of "
            "its unit, and restart it"
        )
    return to_send(f"{folder}/{name}")
