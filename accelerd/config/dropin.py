"""Writes drop-ins for tools such as `accelctl add`; never writes the user's own files.

A drop-in is written only if the whole configuration including it is valid, and atomically. A lock on the directory
serialises concurrent writers.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from accelerd.base.errors import AccelError
from accelerd.base.files import replace_file
from accelerd.config.load import dropin_dir, evaluate, read
from accelerd.config.problems import HEADER, ConfigErrors, Problem, Source
from accelerd.config.values import check_name

_UNSAFE: Final = re.compile(r"[^A-Za-z0-9._-]")


def file_name(name: str) -> str:
    """A model's name as a file name; different names never share one."""
    safe = _UNSAFE.sub("-", name)
    if safe != name or safe.lower() != name:  # some file systems do not distinguish A and a
        safe = f"{safe}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return f"{safe}.toml"


def write_dropin(
    config_file: Path,
    name: str,
    table: dict[str, Any],
    *,
    overwrite: bool = False,
    home: Path | None = None,
    tool: str = "accelctl",
    remarks: Sequence[str] = (),
) -> Path:
    """Writes `table` as accelerd.toml.d/<name>.toml (mode 0600, folders 0700) and returns its path.

    `remarks` are lines of comment above it.

    Nothing changes on error: ConfigErrors when the configuration with it would be invalid, AccelError "bad_request"
    when the file exists (unless `overwrite` and a tool wrote it), AccelError "internal" when the disk refuses.
    """
    source = check_dropin(config_file, name, table, home=home, tool=tool, remarks=remarks)  # before any folder is made
    folder, target = source.path.parent, source.path
    try:
        _make_private(folder)
        with _locked(folder) as directory:
            _may_write(target, source.name, overwrite)
            _validate(config_file, source, home)
            replace_file(directory, target.name, (source.text or "").encode())
    except OSError as error:
        raise AccelError("internal", f"cannot write {target}: {error.strerror}") from error
    return target


def check_dropin(
    config_file: Path,
    name: str,
    table: dict[str, Any],
    *,
    home: Path | None = None,
    tool: str = "accelctl",
    remarks: Sequence[str] = (),
) -> Source:
    """The file that `write_dropin` would write. ConfigErrors when the configuration with it would be invalid."""
    folder = dropin_dir(config_file)
    try:
        target = folder / file_name(check_name(name))
    except ValueError as error:
        raise ConfigErrors([Problem(folder.name, None, "", f"expected {error}")]) from error
    source = Source(f"{folder.name}/{target.name}", target, _text(table, tool, remarks))
    _validate(config_file, source, home)
    return source


def _text(table: dict[str, Any], tool: str, remarks: Sequence[str]) -> str:
    import tomli_w  # here, because the daemon never writes drop-ins

    try:
        body = tomli_w.dumps(table)
    except (TypeError, ValueError) as error:
        raise AccelError("bad_request", f"cannot write the drop-in as TOML: {error}") from error
    head = f"{HEADER}{tool}, which may replace it. Put your own settings into another file.\n"
    return head + "".join(f"# {_one_line(remark)}\n" for remark in remarks) + f"\n{body}"


def _one_line(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text)


def _validate(config_file: Path, added: Source, home: Path | None) -> None:
    files = [source for source in read(config_file) if source.path != added.path]
    inside = [source for source in files if source.path.parent == added.path.parent]
    before = [source for source in files if source not in inside]
    ordered = [*before, *sorted([*inside, added], key=lambda source: source.path.name)]
    config, problems = evaluate(ordered, config_file, home or Path.home(), with_warnings=False)
    if config is None:
        raise ConfigErrors(problems)


def _may_write(target: Path, display: str, overwrite: bool) -> None:
    try:
        descriptor = os.open(target, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    with os.fdopen(descriptor, "rb") as file:
        ours = file.read(len(HEADER)) == HEADER.encode()
    if not ours:
        why = "the file exists and was not written by a tool; move it away"
    elif not overwrite:
        why = "the file exists; remove it first or allow replacing it"
    else:
        return
    raise AccelError("bad_request", f"cannot write {display}: {why}")


def _make_private(folder: Path) -> None:
    """The folder and its missing parents, mode 0700 each."""
    if not folder.parent.exists():
        _make_private(folder.parent)
    folder.mkdir(mode=0o700, exist_ok=True)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[int]:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)
