"""Loads the files into a Config, or returns the list of all mistakes.

Owns which files belong together (the main file, then `*.toml` of its drop-in folder in order of name), whom they must
belong to, TOML syntax, and the order of work: read, parse, walk each file, merge, resolve, rules. Blocks on the disk:
the daemon calls it on a worker thread. Must never change a file or keep state.
"""

from __future__ import annotations

import os
import re
import stat
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from accelerd.base import volumes
from accelerd.config import clashes, positions, resolve, rules
from accelerd.config.model import Config
from accelerd.config.problems import ConfigErrors, Problem, Source, key_text
from accelerd.config.walk import ConfigEntries, PathBase, TreeWalker

_LARGEST: Final = 4 << 20  # bytes; larger files are refused
DISK_PATIENCE: Final = 0.5  # s
_TWICE: Final = re.compile(
    r"cannot (?:declare .* twice|overwrite a value|mutate immutable namespace .*|redefine namespace .*)"
    r"|duplicate inline table key .*"
)
_TABLE: Final = re.compile(r"\s*\[\s*(\w+)\.[^\"']*\]\s*(#.*)?")
_END: Final = "expected newline or end of document after a statement"
_BARE: Final = ("invalid value", "unclosed array", _END)
_WORD: Final = re.compile(r"[^\s,\[\]{}=\"'#]*")
_WORD_END: Final = re.compile(_WORD.pattern + r"\Z")
_AT: Final = re.compile(r" \(at (?:line (\d+), column (\d+)|end of document)\)$")


def load(config_file: Path, home: Path) -> Config:
    """The configuration that `config_file` and its drop-ins make; ConfigErrors lists every mistake.

    A missing file is an empty configuration. Values of later files win, tables merge.
    """
    config, problems = evaluate(read(config_file), config_file, home, with_warnings=False)
    if config is None:
        raise ConfigErrors(problems)
    return config


def check(
    config_file: Path, home: Path, environ: Mapping[str, str] | None = None
) -> tuple[Config | None, list[Problem]]:
    """Like `load`, but mistakes and warnings come back as a list; no Config when there is an error.

    `environ`: of the daemon. Others do not know what systemd has given it.
    """
    return evaluate(read(config_file), config_file, home, with_warnings=True, environ=environ)


def evaluate(
    files: Sequence[Source],
    config_file: Path,
    home: Path,
    *,
    with_warnings: bool,
    environ: Mapping[str, str] | None = None,
) -> tuple[Config | None, list[Problem]]:
    """The configuration from files that were already read."""
    base = PathBase(str(home.absolute()), str(config_file.parent.absolute()))
    entries: ConfigEntries = {}
    problems: list[Problem] = []
    readable = True
    for source in files:
        tree, problem = parse(source)
        if tree is None or source.text is None:
            readable = False
            problems += [problem] if problem else []
            continue
        walker = TreeWalker(source.name, positions.find(source.text), base)
        walker.walk(tree)
        if with_warnings and source.generated:
            problems += _overridden(entries, walker.entries, files)
        entries |= walker.entries
        problems += walker.problems
    config = None
    if readable:  # with an unreadable file, the rules would report wrong problems
        tables = resolve.ConfigTables(entries)
        config = resolve.resolve(tables, tuple(files), clashes.unfit)
        problems += rules.errors(entries, tables, config)
        if with_warnings:
            problems += rules.warnings(entries, tables, config, environ)
    problems = _in_order(problems, [source.name for source in files])
    failed = any(problem.severity == "error" for problem in problems)
    return (None if failed else config), problems


def _overridden(entries: ConfigEntries, added: ConfigEntries, files: Sequence[Source]) -> Iterator[Problem]:
    """What a person wrote and a tool's drop-in overrides: a change there would have no effect."""
    by_hand = {source.name for source in files if not source.generated}
    for path, entry in added.items():
        before = entries.get(path)
        if before is None or before.file not in by_hand or not (before.usable and entry.usable):
            continue
        if before.value != entry.value:
            text = f"has no effect: {entry.file}:{entry.line} sets another value"
            yield Problem(before.file, before.line, key_text(path), text, "warning")


def _in_order(problems: Iterable[Problem], names: list[str]) -> list[Problem]:
    """By file, then line; each once."""
    rank = {name: index for index, name in enumerate(names)}
    return sorted(dict.fromkeys(problems), key=lambda problem: (rank.get(problem.file, -1), problem.line or 0))


# --- files ----------------------------------------------------------------------------------------------------


def dropin_dir(config_file: Path) -> Path:
    """accelerd.toml → accelerd.toml.d"""
    return config_file.with_name(config_file.name + ".d")


def read(config_file: Path) -> list[Source]:
    """Every file of the configuration in order; none at all when neither file nor folder exists."""
    folder = dropin_dir(config_file)
    sources = []
    seen = volumes.look(map(str, (config_file.parent, folder, config_file)), DISK_PATIENCE)  # they may be links
    for directory, name in ((config_file.parent, str(config_file.parent)), (folder, folder.name)):
        if isinstance(found := seen[str(directory)], volumes.NoAnswer):
            text = f"cannot read the directory: {found.strerror}"
            return [Source(name, directory, None, Problem(name, None, "", text))]
        problem = _directory_problem(directory, name)
        if problem:
            sources.append(Source(name, directory, None, problem))
    if _exists(config_file):
        sources.append(_read_file(config_file, config_file.name))
    try:
        names = sorted(entry for entry in os.listdir(folder) if entry.endswith(".toml") and entry[0] != ".")
    except FileNotFoundError:
        names = []
    except OSError as error:
        names = []
        text = f"cannot read the directory: {error.strerror}"
        sources.append(Source(folder.name, folder, None, Problem(folder.name, None, "", text)))
    sources += [_read_file(folder / name, f"{folder.name}/{name}") for name in names]
    return sources


def vanished(before: Config, now: Config, config_file: Path) -> Problem | None:
    """What was read before and is not there any more, the main file or the folder of drop-ins."""
    for place in (config_file, dropin_dir(config_file)):
        there = [
            {file for file in config.files if place in (Path(file), Path(file).parent)} for config in (before, now)
        ]
        if there[0] and not there[1] and not _exists(place):
            text = f"{place} is gone: the configuration stays as it is; bring it back"
            return Problem(place.name, None, "", f"{text}, or leave an empty one there if it is to have nothing in it")
    return None


def parse(source: Source) -> tuple[dict[str, Any] | None, Problem | None]:
    """The file's nested tables, or the syntax error."""
    if source.text is None:
        return None, source.problem
    try:
        return tomllib.loads(source.text), None
    except RecursionError:
        return None, Problem(source.name, None, "", "invalid TOML: nested too deeply")
    except ValueError as error:  # TOMLDecodeError, and ValueError of its own for numbers out of range
        message = str(error)[:1].lower() + str(error)[1:]
        place = _AT.search(message)
        if place is None:
            return None, Problem(source.name, None, "", f"invalid TOML: {message}")
        message = message[: place.start()]
        if _TWICE.fullmatch(message) and (twice := _twice(source, place)) is not None:
            return None, twice
        if place[1] is not None:
            message += _unquoted(message, source.text.split("\n")[int(place[1]) - 1], int(place[2]))
        if place[1] is None:
            line = source.text.rstrip("\n").count("\n") + 1
            return None, Problem(source.name, line, "", f"invalid TOML: {message} at the end of the file")
        return None, Problem(source.name, int(place[1]), "", f"invalid TOML: {message}", column=int(place[2]))


def _twice(source: Source, place: re.Match[str]) -> Problem | None:
    """What is set or declared twice, with both places: tomllib names only the second one."""
    lines = (source.text or "").split("\n")
    at = int(place[1] or len(lines))
    found = positions.repeated(lines[:at])
    if found is None:
        return None
    name, first = key_text(found.path), f"in line {found.first}"
    if found.whole:
        text = f"{name} has its value {first} already, and nothing can be added to it here"
    elif lines[found.again - 1].lstrip().startswith("["):
        text = f"[{name}] is declared twice, first {first}"
    else:
        text = f"{name} is set twice, first {first}"
    column = int(place[2]) if place[1] and at == found.again else None
    return Problem(source.name, found.again, "", f"invalid TOML: {text}", column=column)


def _unquoted(message: str, line: str, column: int) -> str:
    """The advice to use quotes, where tomllib found a text without them."""
    if message.startswith("expected ']") and (table := _TABLE.fullmatch(line)) is not None:
        return f'; a name with other characters than letters, digits, - and _ needs quotes: [{table[1]}."…"]'
    left = line[: column - 1]
    after_table = message.startswith(_END) and "=" not in left
    if not message.startswith(_BARE) or after_table or '"' in left or "'" in left:
        return ""
    before, behind = _WORD_END.search(left), _WORD.match(line, column - 1)
    word = (before[0] if before else "") + (behind[0] if behind else "")
    if word.lower() in ("true", "false"):
        return f"; write {word.lower()} in lower case"
    return '; a text needs quotes: "…"' if word else ""


def trust_problem(status: os.stat_result, path: str, uid: int, gid: int) -> str | None:
    """Why a user other than `uid` (primary group `gid`) or root could have written the file, and how to fix it."""
    sticky_folder = stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISVTX
    if status.st_uid not in (uid, 0):
        why, command = f"belongs to user {status.st_uid}, not to you", f"sudo chown {uid}"
    elif status.st_mode & stat.S_IWOTH and not sticky_folder:
        why, command = "is writable by everyone", "chmod o-w"
    # The user's own group is trusted: Debian and Fedora create one per user, with umask 002.
    elif status.st_mode & stat.S_IWGRP and status.st_gid not in (gid, 0) and not sticky_folder:
        why, command = f"is writable by group {status.st_gid}", "chmod g-w"
    else:
        return None
    from shlex import quote  # here, because it is only needed for mistakes

    return f"{why}; run: {command} {quote(path)}"


def _directory_problem(directory: Path, name: str) -> Problem | None:
    try:
        status = os.stat(directory)
    except OSError:
        return None  # a missing directory is no error; an inaccessible one is reported with the file
    if not stat.S_ISDIR(status.st_mode):
        return None
    reason = trust_problem(status, str(directory), os.geteuid(), os.getegid())
    return Problem(name, None, "", f"the directory {reason}") if reason else None


def _exists(path: Path) -> bool:
    """False only if it is certain: an unreadable directory must not look like an empty configuration."""
    try:
        os.lstat(path)
    except FileNotFoundError:
        return False
    except OSError:
        return True  # reading it reports the error
    return True


def _read_file(path: Path, name: str) -> Source:
    def refused(reason: str, line: int | None = None) -> Source:
        return Source(name, path, None, Problem(name, line, "", reason))

    if not name.isprintable():  # includes names that are not UTF-8, which neither a log nor JSON can show
        name = ascii(name)
        return refused("the file name contains unprintable characters; rename the file")
    try:
        volumes.check([str(path)], DISK_PATIENCE)  # it may be a link
        # A FIFO must not stop the daemon. (An opener and not fdopen, which leaks the descriptor of a directory.)
        with open(path, "rb", opener=lambda p, flags: os.open(p, flags | os.O_NONBLOCK | os.O_NOCTTY)) as file:
            status = os.fstat(file.fileno())
            if stat.S_ISDIR(status.st_mode):
                return refused("expected a file, found a directory")
            if not stat.S_ISREG(status.st_mode):
                return refused("expected a regular file")
            reason = trust_problem(status, str(path), os.geteuid(), os.getegid())
            if reason:
                return refused(f"the file {reason}")
            data = file.read(_LARGEST + 1)
    except IsADirectoryError:
        return refused("expected a file, found a directory")
    except OSError as error:
        return refused(f"cannot read the file: {error.strerror}")
    if len(data) > _LARGEST:
        return refused(f"the file is larger than {_LARGEST >> 20} MiB")
    try:
        return Source(name, path, data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        return refused(f"not UTF-8: cannot decode byte 0x{data[error.start]:02x}", line)
