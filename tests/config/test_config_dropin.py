"""Machine-written drop-ins: whole or not at all, and never over what a person wrote."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path
from typing import Any

import pytest
from config_home import Home

from accelerd import config
from accelerd.base.errors import AccelError
from accelerd.config import ConfigErrors, write_dropin
from accelerd.config.dropin import file_name


def add(home: Home, name: str, overwrite: bool = False, **table: Any) -> Path:
    document = {"models": {name: {"path": "/m.gguf"} | table}}
    return write_dropin(home.main, name, document, overwrite=overwrite, home=home.path)


def tree(home: Home) -> dict[str, bytes]:
    return {str(path): path.read_bytes() if path.is_file() else b"" for path in home.path.rglob("*")}


def test_writes_a_private_file_that_loads(home: Home) -> None:
    umask = os.umask(0)
    try:
        path = add(home, "qwen", context=4096, aliases=["gpt-4o"])
    finally:
        os.umask(umask)
    assert path == home.dropins / "qwen.toml"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(home.dropins.stat().st_mode) == 0o700
    assert path.read_text().startswith("# Written by accelctl, ")
    spec = home.load().models["qwen"]
    assert (spec.context, spec.aliases) == (4096, ("gpt-4o",))
    assert os.listdir(home.dropins) == ["qwen.toml"]


def test_makes_the_folders_of_a_first_start(tmp_path: Path) -> None:
    main = tmp_path / "new" / "accelerd" / "accelerd.toml"
    write_dropin(main, "a", {"models": {"a": {"model": "x/y"}}}, home=tmp_path, tool="setup")
    assert stat.S_IMODE(main.parent.stat().st_mode) == 0o700
    assert config.load(main, tmp_path).models["a"].model == "x/y"
    assert not main.exists()
    assert "# Written by setup," in (main.parent / "accelerd.toml.d" / "a.toml").read_text()


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ({"context": "big"}, "accelerd.toml.d/new.toml:5: models.new.context: expected a whole number"),
        ({"model": "x/y"}, "set either path or model, not both"),
        ({"aliases": ["old"]}, "the name 'old' is already taken by models.old (accelerd.toml:1)"),
        ({"extra_args": ["--tools", "all"]}, "run commands"),
    ],
)
def test_an_invalid_whole_changes_nothing(home: Home, table: dict[str, Any], says: str) -> None:
    home.write('[models.old]\npath = "/o"\n')
    before = tree(home)
    with pytest.raises(ConfigErrors) as caught:
        add(home, "new", **table)
    assert says in str(caught.value)
    assert tree(home) == before


def test_mistakes_elsewhere_are_reported_and_nothing_is_written(home: Home) -> None:
    home.write("[server]\nlisten = 4000\n")
    before = tree(home)
    with pytest.raises(ConfigErrors, match=r"accelerd\.toml:2: server\.listen"):
        add(home, "a")
    assert tree(home) == before


def test_replaces_its_own_file_only_when_told(home: Home) -> None:
    add(home, "a", context=1024)
    with pytest.raises(AccelError, match=r"cannot write accelerd\.toml\.d/a\.toml: the file exists; remove it first"):
        add(home, "a", context=2048)
    assert home.load().models["a"].context == 1024
    add(home, "a", overwrite=True, context=2048)
    assert home.load().models["a"].context == 2048


def test_replacing_a_broken_drop_in_of_its_own_repairs_it(home: Home) -> None:
    path = add(home, "a")
    with path.open("a") as file:
        file.write("broken [\n")
    assert home.errors()
    add(home, "a", overwrite=True, context=2048)
    assert home.load().models["a"].context == 2048


def test_never_replaces_what_a_person_wrote(home: Home) -> None:
    home.write("# mine\n", "accelerd.toml.d/a.toml")
    home.write("# mine too\n", "mine.toml")
    (home.dropins / "b.toml").symlink_to(home.folder / "mine.toml")
    before = tree(home)
    with pytest.raises(AccelError, match="was not written by a tool"):
        add(home, "a", overwrite=True)
    with pytest.raises(AccelError, match=r"cannot write .*b\.toml"):
        add(home, "b", overwrite=True)
    assert tree(home) == before


@pytest.mark.parametrize("name", ["../evil", "/etc/x", "a/../b", "", ".hidden", "a\n"])
def test_a_bad_name_writes_nothing(home: Home, name: str) -> None:
    before = tree(home)
    with pytest.raises(ConfigErrors, match="expected a name of at most 128"):
        add(home, name)
    assert tree(home) == before


def test_different_names_never_share_a_file(home: Home) -> None:
    names = ["a/b", "a:b", "a-b", "A-b", "a.b", "A-B"]
    assert len({file_name(name).lower() for name in names}) == len(names)
    for name in names:
        assert add(home, name).parent == home.dropins
    assert set(home.load().models) == set(names)


def test_what_toml_cannot_hold_is_refused(home: Home) -> None:
    with pytest.raises(AccelError, match="cannot write the drop-in as TOML") as caught:
        add(home, "a", context=None)
    assert caught.value.code == "bad_request"


def test_a_folder_that_cannot_be_written_is_a_clear_error(home: Home) -> None:
    home.folder.joinpath("accelerd.toml.d").symlink_to("/proc/self")
    before = sorted(os.listdir(home.folder))
    with pytest.raises(AccelError, match="cannot write") as caught:
        add(home, "a")
    assert caught.value.code == "internal"
    assert sorted(os.listdir(home.folder)) == before


def test_writers_take_turns_and_only_one_of_two_that_clash_wins(home: Home) -> None:
    outcomes: list[str] = []
    start = threading.Barrier(4)

    def write(number: int) -> None:
        start.wait()
        try:
            add(home, f"m{number}", aliases=["shared"])
            outcomes.append("written")
        except ConfigErrors as error:
            outcomes.append("refused" if "already taken" in str(error) else str(error))

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["refused", "refused", "refused", "written"]
    assert len(home.load().models) == 1
