"""The last configuration that could be used: what a daemon serves that finds mistakes in the files when it starts.

Keeps the text of the files, which may hold tokens, in a private file. What it gives back is judged anew: where a file
that it names, such as that of the API keys, can no longer be used, it cannot be used either.
"""

from __future__ import annotations

import logging
from pathlib import Path

import msgspec

from accelerd.base import names
from accelerd.base.decoding import from_json
from accelerd.base.ports import Roots
from accelerd.config import Config
from accelerd.config.load import evaluate
from accelerd.config.problems import Source
from accelerd.system.private_files import AtomicFile, Unreadable

log = logging.getLogger(__name__)


class KeptFile(msgspec.Struct):
    name: str
    path: str
    text: str


class KeptConfiguration(msgspec.Struct):
    config_file: str
    files: list[KeptFile]


class LastGood:
    """Blocks on the disk."""

    def __init__(self, roots: Roots) -> None:
        self._roots = roots
        self._file = AtomicFile(roots.state / names.LAST_GOOD_FILE)

    def keep(self, config: Config) -> None:
        """For a later start. A disk that refuses is logged and nothing else."""
        files = [KeptFile(one.name, str(one.path), one.text) for one in config.sources if one.text is not None]
        data = msgspec.json.encode(KeptConfiguration(str(self._roots.config_file), files))
        try:
            if self._read() != data:
                self._file.write(data)
        except OSError as error:
            log.warning("cannot keep the configuration for a start that finds mistakes in its files: %s", error)

    def load(self) -> Config | None:
        """None: none was kept, or it cannot be used either."""
        try:
            kept = from_json(self._read() or b"", KeptConfiguration)
        except (OSError, msgspec.DecodeError):
            return None
        if kept.config_file != str(self._roots.config_file):
            return None
        files = [Source(one.name, Path(one.path), one.text) for one in kept.files]
        config, _ = evaluate(files, self._roots.config_file, self._roots.home, with_warnings=False)
        return config

    def _read(self) -> bytes | None:
        try:
            return self._file.read()
        except Unreadable:
            return None
