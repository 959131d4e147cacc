"""Finding model files and naming models."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from accelerd.cli.failure import Failure
from accelerd.cli.fit import gguf_files
from accelerd.cli.fit.gguf_files import (
    by_name,
    by_path,
    files_below,
    name_of,
    name_of_id,
    unique,
    well_known,
)

from .test_config import gguf


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("Qwen3-30B-A3B-Instruct-2507-UD-Q4_K_XL.gguf", "qwen3-30b-a3b-instruct-2507"),
        ("gemma-3-4b-it-Q4_K_M.gguf", "gemma-3-4b-it"),
        ("ggml-org_gemma-3-4b-it-GGUF_gemma-3-4b-it-Q4_K_M.gguf", "gemma-3-4b-it"),
        ("gpt-oss-120b-MXFP4-00001-of-00003.gguf", "gpt-oss-120b"),
        ("Meta-Llama-3.1-8B-Instruct-IQ3_XXS.gguf", "meta-llama-3.1-8b-instruct"),
        ("nomic-embed-text-v1.5.f16.gguf", "nomic-embed-text-v1.5"),
        ("model.gguf", "model"),
        ("Mein Modell (neu).gguf", "mein-modell-neu"),
        ("日本.gguf", "日本"),
        ("Großes Modell v2-Q4_0.gguf", "großes-modell-v2"),
        ("Modele\u0301-Q8_0.gguf", "modelé"),  # as macOS writes it
        ("Q4_K_M.gguf", "model"),
    ],
)
def test_names_from_files(file: str, name: str) -> None:
    assert name_of(Path(file)) == name


@pytest.mark.parametrize(
    "file", ["model.gguf", "ggml-model-Q4_K_M.gguf", "deadbeef", "blobs/0f3c" + "a1" * 30, "Q4_K_M.gguf", "---.gguf"]
)
def test_the_name_in_the_header_is_taken_where_the_path_says_nothing(file: str) -> None:
    assert name_of(Path(file), "Qwen3 8B Instruct") == "qwen3-8b-instruct"
    assert name_of(Path(file), "東京-7B-Q4_K_M") == "東京-7b"
    assert name_of(Path("Own Name.gguf"), "Qwen3 8B") == "own-name"


def test_names_from_ids() -> None:
    assert name_of_id("ggml-org/gemma-3-4b-it-GGUF:Q4_K_M") == "gemma-3-4b-it"
    assert name_of_id("unsloth/Qwen3-8B-GGUF") == "qwen3-8b"


def test_unique() -> None:
    assert unique("a", set()) == "a"
    assert unique("a", {"a", "a-2"}) == "a-3"


def test_any_part_of_a_split_model_means_its_first(tmp_path: Path) -> None:
    parts = [gguf(tmp_path, f"big-Q8_0-0000{n}-of-00003.gguf") for n in (1, 2, 3)]
    assert by_path(parts[1]) == by_path(tmp_path)
    assert by_path(parts[1]).path == parts[0]
    assert list(files_below(tmp_path)) == [parts[0]]
    parts[2].unlink()
    with pytest.raises(Failure, match=r"parts of the model are missing: big-Q8_0-00003-of-00003\.gguf"):
        by_path(parts[0])


def test_a_projector_is_taken_only_when_it_is_clear_whose(tmp_path: Path) -> None:
    model, projector = gguf(tmp_path, "vision-Q4_0.gguf"), gguf(tmp_path, "mmproj-vision-F16.gguf")
    assert by_path(model).mmproj == projector
    with pytest.raises(Failure, match="it is a vision projector"):
        by_path(projector)
    gguf(tmp_path, "other-Q4_0.gguf")
    assert by_path(model).mmproj is None


def test_a_projector_is_known_by_its_header(tmp_path: Path) -> None:
    model, projector = gguf(tmp_path, "vision-Q4_0.gguf"), gguf(tmp_path, "mmproj.gguf")
    renamed = projector.rename(tmp_path / "vision-encoder.gguf")
    assert by_path(model).mmproj == renamed


def test_a_pointer_of_git_lfs_is_told_apart(tmp_path: Path) -> None:
    file = tmp_path / "x.gguf"
    file.write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(Failure) as caught:
        by_path(file)
    assert "git lfs pull" in caught.value.hint


def test_search_in_the_hubs_snapshots(tmp_path: Path) -> None:
    hub = tmp_path / ".cache/huggingface/hub"
    blob = hub / "models--org--Repo-GGUF/blobs/abc"
    link = hub / "models--org--Repo-GGUF/snapshots/deadbeef/repo-Q4_0.gguf"
    blob.parent.mkdir(parents=True)
    gguf(blob.parent).rename(blob)
    for place in (link, link.parent.parent / "second" / link.name):  # two revisions, one file
        place.parent.mkdir(parents=True)
        place.symlink_to(blob)
    places = well_known(tmp_path, {})
    assert hub in places
    assert by_name("org repo", places).path == link


def test_search_prefers_the_exact_name_and_skips_hidden_folders(tmp_path: Path) -> None:
    short, long = gguf(tmp_path, "tiny-Q4_0.gguf"), gguf(tmp_path, "tiny-chat-Q4_0.gguf")
    (tmp_path / ".trash").mkdir()
    gguf(tmp_path / ".trash", "tiny-old.gguf")
    assert by_name("tiny", [tmp_path]).path == short
    assert by_name("TINY-CHAT-q4_0.gguf", [tmp_path]).path == long
    with pytest.raises(Failure, match="matches 2 models") as caught:
        by_name("tin", [tmp_path])
    assert caught.value.tail == (str(short), str(long))


def test_long_lists_are_cut(tmp_path: Path) -> None:
    for number in range(12):
        gguf(tmp_path, f"model-{number:02d}.gguf")
    with pytest.raises(Failure) as caught:
        by_path(tmp_path)
    assert caught.value.tail[-1] == "… and 4 more"
    assert len(caught.value.fields["candidates"]) == 12


def test_places_follow_the_environment(tmp_path: Path) -> None:
    for folder in ("models", "c", "h/hub"):
        (tmp_path / folder).mkdir(parents=True)
    env = {"LLAMA_CACHE": str(tmp_path / "c"), "HF_HOME": str(tmp_path / "h")}
    found = well_known(tmp_path, env)
    assert found[:3] == [tmp_path / "models", tmp_path / "c", tmp_path / "h/hub"]


def test_the_kernels_own_files_are_not_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    folders = ["home", "proc", "sys"]
    walked: list[str] = []

    def walk(top: str, hang: object) -> Iterator[tuple[str, list[str], list[str]]]:
        yield "/", folders, []
        walked.extend(folders)

    monkeypatch.setattr(gguf_files, "_walk", walk)
    assert list(files_below(Path("/"))) == []
    assert walked == ["home"]
