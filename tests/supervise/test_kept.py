"""Records of instances on the disk: what a crash, a full disk, other versions and other people's files do to them."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from msgspec import structs

from accelerd.config.model import ModelSpec
from accelerd.engines.base import Endpoint, LaunchPlan
from accelerd.supervise.homes.home import InstanceRecord
from accelerd.supervise.instance_records import (
    Adoptable,
    InstanceRecordFile,
    Phase,
    RecordStore,
    StoredInstance,
    fingerprint,
)
from accelerd.supervise.process.processes import InstanceTag, ProcessTable, hold
from accelerd.supervise.process.sweep import remove_files

OWNER = "/run/user/1000/accelerd"
SPEC = ModelSpec("m", path="/models/m.gguf")


@pytest.fixture
def store(tmp_path: Path) -> RecordStore:
    return RecordStore(tmp_path / "instances", OWNER)


def record(instance: str = "1-aa", **more: object) -> StoredInstance:
    plan = LaunchPlan("m", ("/bin/engine",), {}, Endpoint(unix="/run/m.sock"), "", ())
    record = InstanceRecord(
        "m", "toolbox", fingerprint(SPEC), InstanceTag(instance, OWNER), "tb", "/run/m.sock", None, "secret"
    )
    return structs.replace(StoredInstance(record, plan), **more)  # type: ignore[arg-type]


def path_of(tmp_path: Path, instance: str = "1-aa") -> Path:
    return tmp_path / "instances" / f"{instance}.json"


def test_what_was_written_is_read_and_nobody_else_can(store: RecordStore, tmp_path: Path) -> None:
    store.write(record(phase=Phase.READY, survives=False))
    assert store.read_all() == [record(phase=Phase.READY, survives=False)]
    assert path_of(tmp_path).stat().st_mode & 0o777 == 0o600
    assert path_of(tmp_path).parent.stat().st_mode & 0o777 == 0o700


def test_a_write_that_a_crash_cut_off_leaves_the_record_before_it(store: RecordStore, tmp_path: Path) -> None:
    store.write(record())
    torn = path_of(tmp_path).with_name(".1-aa.json.new")
    torn.write_bytes(path_of(tmp_path).read_bytes()[:50])
    first = path_of(tmp_path).with_name(".2-bb.json.new")  # of an instance that has no other record
    first.write_text('{"kept": {')
    assert store.read_all() == [record()]
    remove_files(tmp_path / "instances", {"1-aa"})
    assert not first.exists()
    store.write(record(phase=Phase.READY))
    assert store.read_all() == [record(phase=Phase.READY)]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "",
        lambda text: "\0" * len(text),
        lambda text: "[]",
        lambda text: "[" * 100_000,
        lambda text: text.rstrip().removesuffix("}") + ', "later": ' + '{"a":' * 100_000,
        lambda text: json.dumps(json.loads(text) | {"version": 99}),
        lambda text: json.dumps(json.loads(text) | {"version": "x"}),
        lambda text: json.dumps({key: value for key, value in json.loads(text).items() if key != "plan"}),
        lambda text: text.replace(OWNER, "/run/user/2000/accelerd"),
        lambda text: text.replace("1-aa", "1-bb"),
    ],
    ids=[
        "torn",
        "empty",
        "zeros",
        "other",
        "nested",
        "nested later",
        "newer",
        "odd version",
        "no plan",
        "another owner",
        "another instance",
    ],
)
def test_one_that_cannot_be_used_is_set_aside_and_the_others_are_read(
    store: RecordStore, tmp_path: Path, spoil: Callable[[str], str], caplog: pytest.LogCaptureFixture
) -> None:
    store.write(record())
    store.write(record("2-cc"))
    spoiled = spoil(path_of(tmp_path).read_text())
    path_of(tmp_path).write_text(spoiled)
    assert store.read_all() == [record("2-cc")]
    assert path_of(tmp_path).with_name("1-aa.json.corrupt-1").read_text() == spoiled
    assert "cannot use the record of an instance, its processes are ended" in caplog.text
    assert "secret" not in caplog.text
    assert store.read_all() == [record("2-cc")]


def test_what_a_later_version_adds_does_no_harm(store: RecordStore, tmp_path: Path) -> None:
    store.write(record())
    known = json.loads(path_of(tmp_path).read_text())
    path_of(tmp_path).write_text(json.dumps(known | {"later": 1, "record": known["record"] | {"later": 2}}))
    assert store.read_all() == [record()]
    del known["survives"]  # as an earlier version wrote it
    path_of(tmp_path).write_text(json.dumps(known))
    assert store.read_all() == [record()]


async def test_a_disk_that_is_full_from_now_on_keeps_what_was_written_before(
    store: RecordStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    file = InstanceRecordFile(store, record().record.tag, None, lambda level, text: said.append(text))
    await file.begin(record())

    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        await file.note(Phase.READY)
    assert store.read_all() == [record()]
    assert os.listdir(tmp_path / "instances") == ["1-aa.json"]
    assert said == [f"cannot write its record, it may end when accelerd restarts: {os.strerror(errno.ENOSPC)}"]
    assert file.survives, "what is on the disk says enough"
    await file.note(Phase.ENDING)
    assert store.read_all() == [record(phase=Phase.ENDING)]
    await file.remove()
    assert store.read_all() == []


def test_a_write_that_really_fails_in_the_middle_leaves_the_old_record(store: RecordStore, tmp_path: Path) -> None:
    store.write(record())
    long = record(plan=replace(record().plan, warnings=("x" * 9000,)))
    pid = os.fork()
    if pid == 0:  # a limit that only this process has
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        try:
            store.write(long)
        except OSError as error:
            os._exit(error.errno or 1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == errno.EFBIG
    assert store.read_all() == [record()]
    assert os.listdir(tmp_path / "instances") == ["1-aa.json"]


@pytest.mark.parametrize("how", ["file", "link", "fifo", "dangling"])
def test_what_lies_in_the_place_of_the_folder_is_set_aside(
    store: RecordStore, tmp_path: Path, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder, elsewhere = tmp_path / "instances", tmp_path / "elsewhere"
    elsewhere.mkdir()
    make = {
        "file": lambda: folder.write_text("precious"),
        "link": lambda: folder.symlink_to(elsewhere),
        "fifo": lambda: os.mkfifo(folder),
        "dangling": lambda: folder.symlink_to(tmp_path / "nothing"),
    }
    make[how]()
    assert store.read_all() == []
    assert f"{folder}: it is not a directory; kept as instances.corrupt-1" in caplog.text
    assert os.path.lexists(tmp_path / "instances.corrupt-1")
    store.write(record())
    assert store.read_all() == [record()]
    assert os.listdir(elsewhere) == []


def test_links_and_fifos_are_not_followed(store: RecordStore, tmp_path: Path) -> None:
    store.write(record())
    folder = tmp_path / "instances"
    (folder / "2-cc.json").symlink_to(path_of(tmp_path))
    os.mkfifo(folder / "3-dd.json")
    assert store.read_all() == [record()]


def test_a_survivor_fits_only_what_would_be_started_now() -> None:
    survivor = Adoptable(record(), ())
    assert survivor.fits(SPEC)
    assert survivor.fits(replace(SPEC, idle_timeout=1.0))
    assert not survivor.fits(replace(SPEC, context=1))
    assert not survivor.fits(replace(SPEC, survive=False))
    assert not survivor.fits(replace(SPEC, name="other"))
    assert survivor.plan.secret == "secret"


# --- holding on to processes that are nobody's children -----------------------------------------------------------


def test_only_the_very_process_is_held() -> None:
    """A pid of another start time is another process; one that is free is nobody's."""
    sleeper = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, env={"ACCELERD_INSTANCE": "x"})
    try:
        (found,) = ProcessTable().members(InstanceTag("x", OWNER), None)
        held = hold(Path("/proc"), found)
        assert held is not None
        os.close(held)
        assert hold(Path("/proc"), structs.replace(found, started=found.started - 1)) is None
    finally:
        sleeper.kill()
        sleeper.communicate()
    assert hold(Path("/proc"), found) is None
