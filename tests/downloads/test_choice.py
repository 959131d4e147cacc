"""What a name means at a hub, which of a repository's files are taken, and which of them are here already."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from accelerd.base.errors import AccelError
from accelerd.base.model_source import Source, is_source
from accelerd.downloads.cache import cached, hub_cache, place_of
from accelerd.downloads.choice import Candidate, Choice, HubFile, choose, quant_of
from accelerd.downloads.hub import endpoint, offline, token

# --- names ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("hf:org/repo-GGUF", Source("org/repo-GGUF")),
        ("org/repo-GGUF:Q4_K_M", Source("org/repo-GGUF", "Q4_K_M")),
        ("hf:org/repo:latest", Source("org/repo")),  # as Ollama's users write it
        ("hf.co/org/repo:IQ4_XS", Source("org/repo", "IQ4_XS")),
        ("hf://org/repo", Source("org/repo")),
        ("org/repo/UD/a-Q2_K.gguf", Source("org/repo", file="UD/a-Q2_K.gguf")),
        ("https://huggingface.co/org/repo", Source("org/repo")),
        ("huggingface.co/org/repo:latest", Source("org/repo")),
        ("HF.co/org/repo/tree/main", Source("org/repo")),
        ("hf:huggingface.co/org/repo/resolve/main/x/a%20b.gguf", Source("org/repo", file="x/a b.gguf")),
        ("https://huggingface.co/org/repo/tree/main", Source("org/repo")),
        ("https://huggingface.co/org/repo/blob/main/x/a.gguf", Source("org/repo", file="x/a.gguf")),
        ("https://huggingface.co/org/repo/resolve/main/a%20b.gguf?download=true", Source("org/repo", file="a b.gguf")),
        ("https://example.org/m/a.gguf?sig=1", Source(url="https://example.org/m/a.gguf?sig=1")),
    ],
)
def test_names_of_sources(text: str, expected: Source) -> None:
    assert Source.parse(text) == expected
    assert Source.parse(str(expected)) == expected


@pytest.mark.parametrize(
    "text",
    ["", "hf:", "gemma", "hf:a/b c", "a/b/c", "../b", "a/b:", "a/..", "-x/y", "a/b/../c.gguf", "a/b:Q4/K", "https://",
     "https://example.org/a.bin", "https://huggingface.co/datasets/a/b/x", "ä/b", "a/b\n:Q4_0"],
)  # fmt: skip
def test_what_names_no_source(text: str) -> None:
    if text == "a/b:":
        assert Source.parse(text) == Source("a/b")
        return
    assert not is_source(text)
    with pytest.raises(AccelError) as error:
        Source.parse(text)
    assert error.value.code == "bad_request"
    assert error.value.hint


@pytest.mark.parametrize(
    "text",
    ["https://me:geheim@example.org/m.gguf", "http://geheim@example.org:8080/m.gguf", "https://me:@geheim@[::1]/m.gguf",
     "https://me:geh#eim@example.org/m.gguf", "https://me:geh/eim@example.org/m.gguf", "https://[geheim/m.gguf",
     "https://me:geheim@huggingface.co/a/b/resolve/main/c.gguf", "https://me:12/geheim@example.org/m.gguf",
     "https://me:12?geheim@example.org/m.gguf", "https://me:12#geheim@example.org/m.gguf",
     "http://ge/heim@example.org/m.gguf"],
)  # fmt: skip
def test_an_address_with_a_password_is_refused_and_never_shown(text: str) -> None:
    with pytest.raises(AccelError) as error:
        Source.parse(text)
    assert error.value.code == "bad_request"
    assert "geh" not in error.value.message
    assert error.value.hint
    if ":geheim@" in text or "/geheim@example.org:" in text:
        assert "user or a password" in error.value.problem
        assert "by its path" in error.value.hint


def test_an_at_sign_of_the_path_is_written_as_percent_40() -> None:
    with pytest.raises(AccelError, match="%40"):
        Source.parse("https://example.org/a@2/m.gguf")
    assert Source.parse("https://example.org/a%402/m.gguf").url == "https://example.org/a%402/m.gguf"


# --- files ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "quant"),
    [
        ("Qwen3-Coder-30B-A3B-Instruct-Q4_K_M.gguf", "Q4_K_M"),
        ("gemma-3-4b-it-UD-Q4_K_XL.gguf", "UD-Q4_K_XL"),
        ("gpt-oss-20b-mxfp4.gguf", "MXFP4"),
        ("model.i1-IQ3_XXS.gguf", "IQ3_XXS"),
        ("Q6_K/a-00001-of-00003.gguf", "Q6_K"),
        ("BF16/x-BF16-00001-of-00002.gguf", "BF16"),
        ("Llama-3.2-1B-Instruct-f16.GGUF", "F16"),
        ("Qwen3-TQ1_0.gguf", "TQ1_0"),
        ("qwen2.5-7b.gguf", ""),
    ],
)
def test_quantizations_by_name(name: str, quant: str) -> None:
    assert quant_of(name) == quant


GB = 10**9
REPO = [
    HubFile("README.md", 1),
    HubFile("gemma-Q2_K.gguf", 2 * GB),
    HubFile("gemma-Q3_K_M.gguf", 3 * GB),
    HubFile("gemma-Q4_K_S.gguf", 4 * GB),
    HubFile("gemma-Q4_K_M.gguf", 5 * GB),
    HubFile("gemma-Q8_0.gguf", 8 * GB),
    HubFile("BF16/gemma-BF16-00001-of-00002.gguf", 8 * GB),
    HubFile("BF16/gemma-BF16-00002-of-00002.gguf", 8 * GB),
    HubFile("mmproj-gemma-BF16.gguf", GB),
    HubFile("mmproj-gemma-F16.gguf", GB),
    HubFile("gemma-imatrix.gguf", 1),
    HubFile("gemma-draft-Q8_0.gguf", GB),
]


def below(size: float) -> Callable[[Candidate], bool]:
    return lambda candidate: candidate.size <= size


def taken(room: float, files: list[HubFile] | None = None, **named: str) -> Choice:
    return choose(REPO if files is None else files, below(room), where="o/r", **named)


@pytest.mark.parametrize(
    ("room", "quant", "words"),
    [
        (100 * GB, "Q4_K_M", "the usual balance"),
        (4.5 * GB, "Q4_K_S", "Q4_K_M does not fit"),
        (3.5 * GB, "Q3_K_M", "Q4_K_M and 3 more do not fit"),
        (2 * GB, "Q2_K", "do not fit"),
        (1 * GB, "Q2_K", "does not fit this machine"),
    ],
)
def test_the_quantization_that_fits_is_taken_and_the_reason_said(room: float, quant: str, words: str) -> None:
    found = taken(room)
    assert found.candidate.quant == quant
    assert words in found.reason
    assert quant in found.reason
    assert found.fits is (room >= 2 * GB)
    assert "Q8_0" in found.others


def test_what_belongs_to_the_model_comes_along() -> None:
    found = taken(100 * GB)
    assert found.mmproj is not None
    assert found.mmproj.name == "mmproj-gemma-F16.gguf"
    assert found.draft is not None
    assert found.draft.name == "gemma-draft-Q8_0.gguf"
    assert found.size == 7 * GB
    assert {file.name for file in found.files} == {"gemma-Q4_K_M.gguf", found.mmproj.name, found.draft.name}


@pytest.mark.parametrize("quant", ["BF16", "bf16"])
def test_all_parts_are_taken(quant: str) -> None:
    found = taken(0, quant=quant)
    assert [file.name for file in found.candidate.files] == [file.name for file in REPO[6:8]]
    assert not found.fits
    assert found.reason == "BF16, as named"


@pytest.mark.parametrize(
    ("names", "quant", "expected"),
    [
        (["a-UD-Q4_K_XL.gguf", "a-Q4_K_M.gguf"], "Q4_K_XL", "a-UD-Q4_K_XL.gguf"),
        (["a-UD-Q4_K_XL.gguf", "a-Q4_K_XL.gguf"], "Q4_K_XL", "a-Q4_K_XL.gguf"),
        (["a-Q4_K_S.gguf", "a-Q4_K_M.gguf"], "Q4_K", "a-Q4_K_M.gguf"),
        (["a-Q8_0.gguf", "a-BF16.gguf"], "", "a-Q8_0.gguf"),  # nothing of 4 bits is there
        (["a-Q2_K.gguf", "a-IQ3_M.gguf"], "", "a-IQ3_M.gguf"),
        (["only.gguf", "mmproj.gguf"], "", "only.gguf"),
        (["model.i1-Q4_K_M.gguf", "model.Q8_0.gguf"], "", "model.i1-Q4_K_M.gguf"),
        (["tiny-draft-Q4_0.gguf", "tiny-draft-Q8_0.gguf"], "", "tiny-draft-Q4_0.gguf"),  # a repository of a draft model
    ],
)
def test_which_file_is_meant(names: list[str], quant: str, expected: str) -> None:
    assert taken(GB, [HubFile(name, 1) for name in names], quant=quant).candidate.first == expected


def test_a_file_can_be_named() -> None:
    assert taken(GB, file="gemma-Q8_0.gguf").candidate.quant == "Q8_0"
    assert len(taken(GB, file="BF16/gemma-BF16-00002-of-00002.gguf").candidate.files) == 2
    assert taken(GB, file="gemma-imatrix.gguf").candidate.first == "gemma-imatrix.gguf"  # its header tells what it is


@pytest.mark.parametrize(
    ("names", "named", "code", "words"),
    [
        (["README.md"], {}, "hub_not_found", "o/r has no GGUF model; look"),
        (["mmproj.gguf", "my-lora.gguf"], {}, "hub_not_found", "o/r has no GGUF model, only mmproj.gguf, my-lora.gguf"),
        (["a-Q2_K.gguf"], {"quant": "Q8_0"}, "hub_not_found", "o/r has no Q8_0; it has Q2_K"),
        (["a-Q2_K.gguf"], {"file": "b.gguf"}, "hub_not_found", "o/r has no b.gguf"),
        (["a-Q2_K-00001-of-00002.gguf"], {}, "hub_not_found", "o/r has no GGUF model"),
        (["a-00001-of-00002.gguf"], {"file": "a-00001-of-00002.gguf"}, "hub_not_found", "1 of the 2 parts"),
        (["a-Q8_0.gguf", "x/b-Q8_0.gguf"], {}, "bad_request", "one of its files: hf:o/r/a-Q8_0.gguf, hf:o/r/x/b-Q8"),
        (["a-Q8_0.gguf", "b-Q8_0.gguf"], {"quant": "Q8_0"}, "bad_request", "o/r has several models"),
    ],
)
def test_what_cannot_be_chosen_is_explained(names: list[str], named: dict[str, str], code: str, words: str) -> None:
    with pytest.raises(AccelError) as error:
        taken(GB, [HubFile(name, 1) for name in names], **named)
    assert error.value.code == code
    assert words in error.value.message


# --- what is here -----------------------------------------------------------------------------------------------


def lay(cache: Path, repo: str, *names: str, commit: str = "c0ffee", main: bool = True) -> Path:
    """A repository in the hub's cache."""
    folder = cache / f"models--{repo.replace('/', '--')}"
    for number, name in enumerate(names):
        blob = folder / "blobs" / f"{commit}-{number}"
        blob.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(b"GGUF")
        link = folder / "snapshots" / commit / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(blob)
    if main:
        (folder / "refs").mkdir(parents=True, exist_ok=True)
        (folder / "refs/main").write_text(commit)
    return folder / "snapshots" / commit


@pytest.mark.parametrize(
    ("env", "folder"),
    [
        ({}, "home/.cache/huggingface/hub"),
        ({"HF_HOME": "/x/hf"}, "/x/hf/hub"),
        ({"HF_HOME": "~/hf"}, "home/hf/hub"),
        ({"HF_HUB_CACHE": "/x/c", "HF_HOME": "/y"}, "/x/c"),
        ({"XDG_CACHE_HOME": "/x"}, "/x/huggingface/hub"),
        ({"HF_HOME": "$DATA/hf", "DATA": "/d"}, "/d/hf/hub"),
    ],
)
def test_the_cache_is_where_other_programs_have_it(tmp_path: Path, env: dict[str, str], folder: str) -> None:
    assert hub_cache(env, tmp_path / "home") == tmp_path / folder


def test_all_files_of_a_model_are_found_without_a_network(tmp_path: Path) -> None:
    env = {"HF_HUB_CACHE": str(tmp_path)}
    names = ["x/a-Q4_0-00001-of-00002.gguf", "x/a-Q4_0-00002-of-00002.gguf", "mmproj-F16.gguf", "a-draft-Q8_0.gguf"]
    snapshot = lay(tmp_path, "o/r", *names)
    found = cached(Source("o/r", "Q4_0"), env, tmp_path)
    assert found is not None
    assert found.model == snapshot / names[0]
    assert found.shards == (snapshot / names[0], snapshot / names[1])
    assert found.mmproj == snapshot / names[2]
    assert found.draft == snapshot / names[3]
    assert cached(Source("o/r"), env, tmp_path) == found
    assert cached(Source("o/r", file=names[0]), env, tmp_path) == found
    assert cached(Source("o/r", "Q8_0"), env, tmp_path) is None
    assert cached(Source("o/other"), env, tmp_path) is None


@pytest.mark.parametrize("what", ["fifo", "folder", "large", "bytes"])
def test_a_cache_that_names_no_commit_is_used_all_the_same(tmp_path: Path, what: str) -> None:
    snapshot = lay(tmp_path, "o/r", "a-Q8_0.gguf", main=False)
    main = tmp_path / "models--o--r/refs/main"
    main.parent.mkdir()
    if what == "fifo":
        os.mkfifo(main)
    elif what == "folder":
        main.mkdir()
    elif what == "large":
        main.touch()
        os.truncate(main, 1 << 40)
    else:
        main.write_bytes(b"\xff\0")
    found = cached(Source("o/r"), {"HF_HUB_CACHE": str(tmp_path)}, tmp_path)
    assert found is not None
    assert found.model == snapshot / "a-Q8_0.gguf"


def test_a_model_that_is_not_complete_is_not_there(tmp_path: Path) -> None:
    env = {"HF_HUB_CACHE": str(tmp_path)}
    snapshot = lay(tmp_path, "o/r", "a-Q4_0-00001-of-00002.gguf", "a-Q4_0-00002-of-00002.gguf")
    (snapshot / "a-Q4_0-00002-of-00002.gguf").resolve().unlink()
    assert cached(Source("o/r"), env, tmp_path) is None


def test_the_main_branch_comes_before_older_snapshots(tmp_path: Path) -> None:
    env = {"HF_HUB_CACHE": str(tmp_path)}
    old = lay(tmp_path, "o/r", "a-Q8_0.gguf", commit="aaaa", main=False)
    new = lay(tmp_path, "o/r", "a-Q4_0.gguf", commit="bbbb")
    assert cached(Source("o/r"), env, tmp_path).model.parent == new  # type: ignore[union-attr]
    assert cached(Source("o/r", "Q8_0"), env, tmp_path).model.parent == old  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("env", "folder"),
    [({}, ".cache/llama.cpp"), ({"XDG_CACHE_HOME": "~/x"}, "x/llama.cpp"), ({"LLAMA_CACHE": "{home}/own"}, "own")],
)
def test_what_llama_server_downloaded_is_found(tmp_path: Path, env: dict[str, str], folder: str) -> None:
    env = {name: value.format(home=tmp_path) for name, value in env.items()}
    cache = tmp_path / folder
    cache.mkdir(parents=True)
    names = ["o_r-GGUF_UD_a-Q4_0.gguf", "o_r-GGUF_mmproj-F16.gguf", "o_other_a-Q4_0.gguf", "o_r-GGUF_a-Q8_0.gguf.etag",
             "o_r-GGUF_a-Q2_K.gguf.downloadInProgress"]  # fmt: skip
    for name in names:
        (cache / name).write_bytes(b"GGUF")
    found = cached(Source("o/r-GGUF"), env, tmp_path)
    assert found is not None
    assert (found.model, found.mmproj) == (cache / names[0], cache / names[1])
    assert cached(Source("o/r-GGUF", file="UD/a-Q4_0.gguf"), env, tmp_path) == found
    assert cached(Source("o/r-GGUF", "Q8_0"), env, tmp_path) is None
    assert cached(Source("o/r-GGUF", "Q2_K"), env, tmp_path) is None
    lay(tmp_path / "hub", "o/r-GGUF", "a-Q8_0.gguf")
    newer = cached(Source("o/r-GGUF"), {**env, "HF_HUB_CACHE": str(tmp_path / "hub")}, tmp_path)
    assert newer is not None
    assert newer.model.name == "a-Q8_0.gguf", "the hub's cache comes first"


def test_files_of_two_servers_do_not_meet(tmp_path: Path) -> None:
    one, other = "https://a.test/m/model.gguf", "https://b.test:8443/m/model.gguf"
    place = place_of(one, {}, tmp_path)
    assert place == tmp_path / ".local/share/accelerd/models/a.test/m/model.gguf"
    assert place_of(other, {"XDG_DATA_HOME": "/d"}, tmp_path) == Path("/d/accelerd/models/b.test_8443/m/model.gguf")
    assert place_of("https://u:p@a.test/../../etc/x.gguf", {}, tmp_path).is_relative_to(tmp_path / ".local")
    place.parent.mkdir(parents=True)
    place.write_bytes(b"GGUF")
    assert cached(Source(url=one), {}, tmp_path).model == place  # type: ignore[union-attr]
    assert cached(Source(url=other), {}, tmp_path) is None


def test_files_of_two_queries_do_not_meet(tmp_path: Path) -> None:
    urls = [f"https://a.test/get/q-00001-of-00002.gguf{query}" for query in ("", "?v=1", "?v=2&key=geheim")]
    places = [place_of(url, {}, tmp_path) for url in urls]
    assert len(set(places)) == 3
    assert {place.name for place in places} == {"q-00001-of-00002.gguf"}, "parts are found by their names"
    assert "geheim" not in str(places[2])
    places[1].parent.mkdir(parents=True)
    for part in ("q-00001-of-00002.gguf", "q-00002-of-00002.gguf"):
        places[1].with_name(part).write_bytes(b"GGUF")
    assert [cached(Source(url=url), {}, tmp_path) is not None for url in urls] == [False, True, False]


# --- the token --------------------------------------------------------------------------------------------------


def test_the_token_comes_from_where_people_keep_it(tmp_path: Path) -> None:
    assert token({}, tmp_path) is None
    login = tmp_path / ".cache/huggingface/token"
    login.parent.mkdir(parents=True)
    login.write_text("hf_login\n")
    assert token({}, tmp_path) == "hf_login"
    (tmp_path / "named").write_text("hf_named")
    assert token({"HF_TOKEN_PATH": "~/named"}, tmp_path) == "hf_named"
    (tmp_path / "hf_token").write_text("hf_credential\n")
    assert token({"CREDENTIALS_DIRECTORY": str(tmp_path)}, tmp_path) == "hf_credential"
    assert token({"CREDENTIALS_DIRECTORY": str(tmp_path), "HF_TOKEN": "hf_env"}, tmp_path) == "hf_env"
    assert token({"HF_TOKEN": " ", "HF_TOKEN_PATH": "/nowhere"}, tmp_path) is None
    os.mkfifo(tmp_path / "fifo")
    assert token({"HF_TOKEN_PATH": str(tmp_path / "fifo")}, tmp_path) is None, "nobody writes into it"


@pytest.mark.parametrize(
    ("env", "name"),
    [
        ({}, ""),
        ({"HF_HUB_OFFLINE": "0"}, ""),
        ({"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE"),
        ({"TRANSFORMERS_OFFLINE": "yes"}, "TRANSFORMERS_OFFLINE"),
    ],
)
def test_the_network_can_be_forbidden(env: dict[str, str], name: str) -> None:
    assert offline(env) == name


@pytest.mark.parametrize("address", ["foo", "hub.example:8080", "ftp://hub.example", "file:///etc"])
def test_what_is_no_address_of_a_hub_is_said(address: str) -> None:
    with pytest.raises(AccelError, match="HF_ENDPOINT is"):
        endpoint({"HF_ENDPOINT": address})
