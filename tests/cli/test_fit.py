"""accelctl fit: files, addresses and configured models; with a daemon and without one; what is asked wrongly."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from accelerd import cli
from accelerd.base.ports import Roots, SystemClock
from accelerd.cli.commands import fit
from accelerd.cli.connect import DaemonClient
from accelerd.cli.context import Context
from accelerd.cli.fit.gguf_files import name_of
from accelerd.cli.local_machine import LocalMachine
from accelerd.cli.output import CliOutput
from accelerd.devices.inventory import Inventory
from accelerd.devices.udev import SysfsSource
from tests.devices.recorded import fixture, lay_out, machine
from tests.memory import zoo
from tests.memory.web import Web, serving

from .conftest import Ctl, Stream
from .fake_daemon import FakeDaemon, Reply, error

GIB = 1 << 30


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("zoo")


@pytest.fixture
def web() -> Iterator[Web]:
    with serving() as running:
        yield running


@pytest.fixture(autouse=True)
def measured_before(ctl: Ctl) -> None:
    """Main memory's speed is remembered from an earlier time, whatever this processor is called."""
    roots = Roots.from_env(ctl.env)
    name = next(device.name for device in Inventory(roots).scan() if device.kind == "cpu")
    roots.cache.mkdir(parents=True)
    cores = min(os.cpu_count() or 1, 8)
    (roots.cache / "main-memory.json").write_text(json.dumps({f"{name}, {cores} cores": 50e9}))


def test_a_generated_name_and_no_pattern(ctl: Ctl, models: Path) -> None:
    ctl.configure(f'[models.tiny]\npath = "{small(models)}"\naliases = ["gpt-*"]\n')
    assert json.loads(ctl("fit", "local/tiny", "--json").out)["model"]["name"] == "tiny"
    assert "gpt-*" not in ctl("fit", "gpt-3").err
    assert "did you mean" not in ctl("fit", "*").err


def small(models: Path) -> Path:
    return zoo.make("llama-gqa", models).path


def large(models: Path) -> Path:
    return zoo.make("qwen3-235b-a22b", models).path


def pools(free: int = 60, *holdings: dict[str, Any]) -> dict[str, Any]:
    """A machine with so many GiB free."""
    used = sum(one["reserved"] for one in holdings)
    main = {
        "id": "ram", "label": "main memory", "capacity": 64 * GIB, "reserve": 0, "backed_by": None, "own": 0,
        "foreign": 64 * GIB - free * GIB - used, "foreign_users": [], "spilled": 0, "free": free * GIB,
        "holdings": list(holdings),
    }  # fmt: skip
    return {"pools": [main], "stall": None, "waiting": [], "yielded": None, "degraded": None}


def held(model: str, size: int, **more: Any) -> dict[str, Any]:
    return {"model": model, "phase": "resident", "reserved": size * GIB, "used": None, "leases": 0, "idle": 60.0,
            "pin": False, "priority": 0} | more  # fmt: skip


# --- files ----------------------------------------------------------------------------------------------------


def test_a_file_that_fits(ctl: Ctl, daemon: FakeDaemon, models: Path) -> None:
    daemon.answers["GET memory"] = Reply(pools())
    result = ctl("fit", str(small(models)), "--ctx", "8192")
    assert result.status == 0, result.err
    lines = result.out.splitlines()
    assert re.fullmatch(
        r"fits in main memory with 59\.\d GiB to spare, context up to \d+, "
        r"(fast|usable): (about|more than) [\d.]+ tokens/s",
        lines[0],
    )
    assert "  llama-gqa: llama, " in result.out
    assert "With context 8192, KV cache f16." in result.out
    rows = {line.split("  ")[0]: re.split(r"\s{2,}", line)[1:] for line in lines if "  " in line}
    assert {"weights", "kv cache", "compute", "program", "in total", "free"} <= set(rows)
    assert rows["free"] == ["60.0 GiB"]
    assert "KV CACHE  LARGEST CONTEXT" in lines, "nobody else is loaded"
    assert (
        "! llama-server could not be queried for its settings, so this may be too high: cannot find the program"
        in " ".join(result.out.split())
    )
    assert [request.route for request in daemon.requests] == ["memory", "build"]


@pytest.mark.parametrize("backend", ["radv", "rocm", "cpu"])
def test_the_program_is_the_daemons_and_not_that_of_this_shell(
    ctl: Ctl, daemon: FakeDaemon, models: Path, tmp_path: Path, backend: str
) -> None:
    """What accelctl finds on its own PATH, and what its variables say of devices, is not what will run."""
    asked = tmp_path / "asked"
    program = tmp_path / "bin/llama-server"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch {asked}\necho '--list-devices  list'\n")
    program.chmod(0o755)
    ctl.env["PATH"] = f"{program.parent}:{ctl.env['PATH']}"
    rule = (
        f'[rules.mine]\nwhen = {{ backend = "{backend}" }}\nset = {{ ubatch = 64 }}\nsource = "I"\nreason = "I say"\n'
    )
    ctl.configure("").with_name("tuning.toml").write_text(rule)
    build = {
        "engine": "llama-server",
        "program": "/opt/llama-server",
        "version": "7",
        "backend": backend,
        "options": ["--load-mode"],
    }
    daemon.answers |= {"GET memory": Reply(pools()), "GET build": Reply(build)}
    found = json.loads(ctl("fit", str(small(models)), "--json").out)
    assert found["settings"]["ubatch"] == 64
    assert not asked.exists()
    assert not [note for note in found["notes"] if "queried" in note]
    daemon.answers["GET build"] = error(503, "model_failed", "cannot find the program llama-server")
    found = json.loads(ctl("fit", str(small(models)), "--json").out)
    assert [note for note in found["notes"] if note.endswith("too high: cannot find the program llama-server")]
    assert not asked.exists()


def test_a_file_that_does_not_fit_says_by_how_much_and_ends_with_1(ctl: Ctl, daemon: FakeDaemon, models: Path) -> None:
    daemon.answers["GET memory"] = Reply(pools())
    result = ctl("fit", str(large(models)))
    assert (result.status, result.err) == (1, "")
    assert re.match(r"does not fit in main memory: it needs 14\d GiB, and 60.0 GiB is free\n", result.out)
    assert "8 of 128 experts a token" in result.out
    assert "LARGEST CONTEXT" not in result.out, "none fits"


def test_a_smaller_context_is_offered(ctl: Ctl, daemon: FakeDaemon, models: Path) -> None:
    daemon.answers["GET memory"] = Reply(pools(1))
    result = ctl("fit", str(small(models)), "--ctx", "1000k")
    assert result.status == 1
    assert "! it would fit with context = " in result.out
    assert "! it was trained for a context of " in result.out


def test_who_would_have_to_leave(ctl: Ctl, daemon: FakeDaemon, models: Path) -> None:
    daemon.answers["GET memory"] = Reply(pools(0, held("qwen", 30), held("pinned", 20, pin=True)))
    result = ctl("fit", str(small(models)), "--ctx", "8192")
    assert result.status == 0
    assert result.out.startswith("fits in main memory after unloading qwen with 29.")
    assert "KV CACHE  LARGEST CONTEXT  WITH ALL OTHERS UNLOADED" in result.out
    value = json.loads(ctl("fit", str(small(models)), "--json").out)
    assert (value["fits"], value["now"], value["leaving"]) == (True, False, ["qwen"])
    daemon.answers["GET memory"] = Reply(pools(0, held("pinned", 50, pin=True), held("qwen", 0)))
    result = ctl("fit", str(small(models)))
    assert result.status == 1
    assert "0 B is free, even with all other models unloaded" in result.out


def test_memory_that_is_given_up_is_mentioned(ctl: Ctl, daemon: FakeDaemon, models: Path) -> None:
    daemon.answers["GET memory"] = Reply({**pools(), "yielded": {"what": "the GPU", "why": "accelctl yield"}})
    result = ctl("fit", str(small(models)))
    assert "! the GPU is yielded (accelctl yield); to end this: accelctl resume" in result.out


def test_json(ctl: Ctl, daemon: FakeDaemon, models: Path) -> None:
    daemon.answers["GET memory"] = Reply(pools())
    path = zoo.make("qwen3moe", models).path
    result = ctl("fit", str(path), "--ctx", "4k", "--kv", "q8_0", "--parallel", "3", "--json")
    value = json.loads(result.out)
    assert set(value) == {
        "fits", "now", "verdict", "source", "machine", "model", "settings", "devices", "pools", "leaving", "contexts",
        "speed", "offers", "notes",
    }  # fmt: skip
    assert (value["fits"], value["now"], value["machine"]) == (True, True, "daemon")
    assert value["model"]["architecture"] == "qwen3moe"
    assert value["model"]["size"] == path.stat().st_size
    assert value["settings"] | {"batch": 0, "ubatch": 0} == {
        "context": 4096, "parallel": 3, "kv": ["q8_0", "q8_0"], "batch": 0, "ubatch": 0, "flash_attention": "auto",
    }  # fmt: skip
    [main] = value["pools"]
    assert main["amount"] == sum(main["parts"].values())
    assert main["spare"] == main["free"] - main["amount"]
    assert [row["kv"] for row in value["contexts"]] == ["q8_0", "f16", "q4_0"]
    assert value["speed"]["class"] in ("fast", "usable", "slow", "very slow")
    assert "50 GB/s, measured" in value["speed"]["reason"]


def test_more_context_and_more_requests_take_more(ctl: Ctl, daemon: FakeDaemon, models: Path) -> None:
    daemon.answers["GET memory"] = Reply(pools())

    def cache(*options: str) -> int:
        value = json.loads(ctl("fit", str(small(models)), "--json", *options).out)
        return int(value["pools"][0]["parts"]["kv cache"])

    plain = cache("--ctx", "8192")
    assert cache() >= plain, "the context that it would get"
    assert cache("--ctx", "16k") == 2 * plain
    assert cache("--ctx", "8192", "--parallel", "4") == 4 * plain
    assert plain // 2 < cache("--ctx", "8192", "--kv", "q8_0") < plain * 6 // 10
    assert cache("--ctx", "model") > plain


def test_a_split_model_by_any_of_its_files_and_by_its_folder(ctl: Ctl, daemon: FakeDaemon, models: Path) -> None:
    daemon.answers["GET memory"] = Reply(pools())
    made = zoo.make("shards", models)
    size = sum(path.stat().st_size for path in made.paths)
    for name in (made.paths[1], made.path.parent):
        assert json.loads(ctl("fit", str(name), "--json").out)["model"]["size"] == size


def test_embedding_models_are_known_by_their_header(ctl: Ctl, daemon: FakeDaemon, models: Path) -> None:
    daemon.answers["GET memory"] = Reply(pools())
    result = ctl("fit", str(zoo.make("bert", models).path))
    assert result.status == 0
    assert "tokens/s" not in result.out
    assert "KV CACHE" not in result.out


def test_without_a_daemon_this_machine_is_measured(ctl: Ctl, models: Path) -> None:
    result = ctl("fit", str(small(models)), "--json")
    value = json.loads(result.out)
    assert (result.status, value["machine"]) == (0, "direct")
    assert value["pools"][0]["free"] > 0


def test_a_real_llama_server_is_asked_what_it_can_do(
    ctl: Ctl, daemon: FakeDaemon, models: Path, llama_server: str
) -> None:
    daemon.answers["GET memory"] = Reply(pools())
    ctl.configure(f'[engines.llama-server]\nbinary = "{llama_server}"\n')
    assert "was not asked" not in ctl("fit", str(small(models))).out


# --- addresses ------------------------------------------------------------------------------------------------


def test_an_address_is_answered_from_its_header(ctl: Ctl, daemon: FakeDaemon, web: Web, models: Path) -> None:
    daemon.answers["GET memory"] = Reply(pools())
    web.files["/big.gguf"] = large(models)
    there = ctl("fit", f"{web.base}/big.gguf")
    here = ctl("fit", str(large(models)))
    assert there.status == here.status == 1
    assert there.out.splitlines()[0] == here.out.splitlines()[0]
    assert re.search(r"big: qwen3moe, 8 of 128 experts a token, 142 GiB; [\d.]+ MiB of 142 GiB was read\.", there.out)
    assert web.sent < 16 << 20


@pytest.mark.parametrize("prefix", ["hf:", ""])
def test_a_repository(ctl: Ctl, daemon: FakeDaemon, web: Web, models: Path, prefix: str) -> None:
    daemon.answers["GET memory"] = Reply(pools())
    web.json("/api/models/org/small-GGUF", {"siblings": [{"rfilename": "small-Q4_K_M.gguf"}]})
    web.files["/org/small-GGUF/resolve/main/small-Q4_K_M.gguf"] = small(models)
    result = ctl("fit", f"{prefix}org/small-GGUF:Q4_K_M", "--json", HF_ENDPOINT=web.base)
    value = json.loads(result.out)
    assert (result.status, value["model"]["name"]) == (0, "small")
    assert value["model"]["path"] == f"{web.base}/org/small-GGUF/resolve/main/small-Q4_K_M.gguf"
    assert 0 < value["model"]["read"] <= value["model"]["size"]


def test_a_repository_with_several_models_lists_them(ctl: Ctl, web: Web) -> None:
    web.json("/api/models/o/r", {"siblings": [{"rfilename": "a-Q2_K.gguf"}, {"rfilename": "b-Q2_K.gguf"}]})
    result = ctl("fit", "hf:o/r", HF_ENDPOINT=web.base)
    assert (result.status, result.out) == (2, "")
    assert result.err.splitlines()[:2] == ["  | a-Q2_K.gguf", "  | b-Q2_K.gguf"]


@pytest.mark.parametrize(
    ("status", "words"), [(401, "does not accept the token of HF_TOKEN"), (404, "has no a.gguf"), (500, "HTTP 500")]
)
def test_a_server_that_refuses(ctl: Ctl, web: Web, status: int, words: str) -> None:
    web.json("/api/models/o/r", {"siblings": [{"rfilename": "a.gguf"}]})
    web.refuse("/o/r/resolve/main/a.gguf", status)
    result = ctl("fit", "hf:o/r/a.gguf", HF_ENDPOINT=web.base, HF_TOKEN="hf_secret")
    assert (result.status, result.out) == (1, "")
    assert words in result.err
    assert "hf_secret" not in result.err
    assert (
        json.loads(ctl("fit", "hf:o/r/a.gguf", "--json", HF_ENDPOINT=web.base).out)["error"]["code"] == "not_readable"
    )


def test_a_server_that_is_not_there(ctl: Ctl) -> None:
    result = ctl("fit", "http://127.0.0.1:9/a.gguf")
    assert (result.status, result.out) == (1, "")
    assert "cannot reach 127.0.0.1:9: Connection refused; check the address" in result.err


# --- configured models ----------------------------------------------------------------------------------------


def configure(ctl: Ctl, models: Path, more: str = "") -> None:
    ctl.configure(f'[models.qwen]\npath = "{small(models)}"\naliases = ["q"]\ncontext = 2048\n{more}')


def told(size: int, source: str) -> dict[str, Any]:
    return {
        "model": "qwen", "state": "stopped", "placement": {"fits": True, "reason": "it fits"},
        "options": [{"amounts": {"ram": size * GIB}, "devices": [], "parts": {}, "source": source}],
    }  # fmt: skip


def test_a_configured_model_is_judged_by_what_the_daemon_measured(ctl: Ctl, daemon: FakeDaemon, models: Path) -> None:
    configure(ctl, models)
    source = "measured in an earlier run (2026-11-20): the estimate was 1.0 GiB"
    daemon.answers |= {"GET memory": Reply(pools()), "GET fit": Reply(told(61, source))}
    result = ctl("fit", "q")
    assert result.status == 1
    assert result.out.startswith("does not fit in main memory: it needs 61.0 GiB, and 60.0 GiB is free")
    assert f"! memory: {source}" in " ".join(result.out.split())
    assert "With context 2048" in result.out
    assert daemon.requests[-1].query == {"model": "qwen"}


def test_other_settings_are_estimated(ctl: Ctl, daemon: FakeDaemon, models: Path) -> None:
    configure(ctl, models)
    daemon.answers |= {"GET memory": Reply(pools()), "GET fit": Reply(told(61, "measured"))}
    assert ctl("fit", "qwen", "--ctx", "4k").status == 0
    assert [request.route for request in daemon.requests] == ["memory", "build"]


def test_a_daemon_that_has_not_read_the_model_yet(ctl: Ctl, daemon: FakeDaemon, models: Path) -> None:
    configure(ctl, models)
    daemon.answers |= {"GET memory": Reply(pools()), "GET fit": error(404, "model_not_found", "cannot find it")}
    assert ctl("fit", "qwen").status == 0


def test_one_that_is_loaded_counts_its_own_memory_as_free(ctl: Ctl, daemon: FakeDaemon, models: Path) -> None:
    configure(ctl, models)
    daemon.answers |= {"GET memory": Reply(pools(0, held("qwen", 2))), "GET fit": Reply(told(2, "declared: here"))}
    result = ctl("fit", "qwen")
    assert result.status == 0
    assert "it is loaded now; its own memory counts as free here" in result.out


def test_another_file_of_that_name_is_not_the_one_that_is_loaded(ctl: Ctl, daemon: FakeDaemon, models: Path) -> None:
    """Its name is made of the file's; a model that has the name may be any."""
    path = small(models)
    daemon.answers |= {"GET memory": Reply(pools(4, held(name_of(path), 60, pin=True)))}
    assert "loaded now" not in ctl("fit", str(path)).out


def test_what_a_person_declared_holds_without_a_daemon(ctl: Ctl, models: Path) -> None:
    configure(ctl, models, 'memory = "100TiB"\n')
    result = ctl("fit", "qwen")
    assert result.status == 1
    assert "it needs 100 TiB" in result.out


def test_a_model_that_llama_server_would_fetch_is_looked_up_there(ctl: Ctl, web: Web, models: Path) -> None:
    ctl.configure('[models.gemma]\nmodel = "org/small-GGUF:Q8_0"\n')
    web.json("/api/models/org/small-GGUF", {"siblings": [{"rfilename": "small-Q8_0.gguf"}]})
    web.files["/org/small-GGUF/resolve/main/small-Q8_0.gguf"] = small(models)
    value = json.loads(ctl("fit", "gemma", "--json", HF_ENDPOINT=web.base).out)
    assert (value["fits"], value["model"]["name"]) == (True, "gemma")


@pytest.mark.parametrize("answer", [[1, 2], "files", None, {}, {"siblings": None}, {"siblings": {"a": 1}}])
def test_an_answer_that_no_hub_gives_is_said(ctl: Ctl, web: Web, answer: Any) -> None:
    web.json("/api/models/org/small-GGUF", answer)
    for argv in (["fit", "hf:org/small-GGUF"], ["add", "hf:org/small-GGUF"]):
        result = ctl(*argv, HF_ENDPOINT=web.base)
        assert result.status == 1
        assert "sent no list of the files of org/small-GGUF; check HF_ENDPOINT" in result.err


def test_a_model_of_a_hub_that_was_downloaded_is_read_from_the_disk(ctl: Ctl, models: Path, tmp_path: Path) -> None:
    ctl.configure('[models.gemma]\nmodel = "org/small-GGUF:Q8_0"\n')
    snapshot = tmp_path / "models--org--small-GGUF/snapshots/c0ffee"
    snapshot.mkdir(parents=True)
    (snapshot / "small-Q8_0.gguf").symlink_to(small(models))
    more = {"HF_HUB_CACHE": str(tmp_path), "HF_ENDPOINT": "http://127.0.0.1:9"}
    value = json.loads(ctl("fit", "gemma", "--json", **more).out)
    assert (value["fits"], value["model"]["path"]) == (True, str(snapshot / "small-Q8_0.gguf"))


def test_a_limit_for_all_models_holds(ctl: Ctl, daemon: FakeDaemon, models: Path) -> None:
    ctl.configure('[scheduler]\nmemory = "16MiB"\n')
    daemon.answers["GET memory"] = Reply(pools())
    assert ctl("fit", str(small(models))).status == 1


def test_a_program_in_a_container_is_not_asked(ctl: Ctl, daemon: FakeDaemon, models: Path) -> None:
    configure(ctl, models, 'home = "toolbox"\ncontainer = "llama"\n')
    daemon.answers |= {"GET memory": Reply(pools()), "GET fit": error(404, "not_found", "no route")}
    assert "its llama-server is in a toolbox and was not queried" in " ".join(ctl("fit", "qwen").out.split())


# --- GPUs -----------------------------------------------------------------------------------------------------


def with_gpu(ctl: Ctl, tmp_path: Path, *argv: str) -> tuple[int, str]:
    """On a recorded machine with a Strix Point and 32 GiB, without a daemon."""
    roots = machine(tmp_path / "recorded")
    lay_out(fixture("lact-snapshots-amd-apu-dgpu.tgz"), "strixpoint", roots)
    inventory = Inventory(roots, SysfsSource(roots.sys), lambda node: True, ask_driver=lambda node: None)
    stream = Stream()
    out = CliOutput(stream, Stream(), ctl.env)
    context = Context(roots, DaemonClient(ctl.socket), out, Stream(), ctl.env)
    parser = cli.CommandParser(prog="x")
    fit.add_arguments(parser)
    status = fit.run(context, parser.parse_args(argv), LocalMachine(roots, SystemClock(), inventory))
    return status, stream.getvalue()


def test_the_gpu_in_a_processor(ctl: Ctl, tmp_path: Path, models: Path) -> None:
    status, text = with_gpu(ctl, tmp_path, str(small(models)))
    assert status == 0
    assert re.match(r"fits on AMD \S+ .*with [\d.]+ [GM]iB to spare, context up to \d+, fast: ", text), text
    head = next(line for line in text.splitlines() if line.startswith("          main memory  AMD"))
    assert head
    status, text = with_gpu(ctl, tmp_path / "2", str(small(models)), "--gpu", "none")
    assert text.startswith("fits in main memory with ")


def test_a_gpu_is_named_by_its_slot(ctl: Ctl, tmp_path: Path, models: Path) -> None:
    found = re.search(r"usable GPUs: (\S+) \(AMD", refused(ctl, tmp_path, str(small(models)), "--gpu", "99:00.0"))
    assert found
    status, text = with_gpu(ctl, tmp_path / "2", str(small(models)), "--gpu", found[1].removeprefix("0000:"))
    assert (status, text.startswith("fits on AMD")) == (0, True)


def refused(ctl: Ctl, tmp_path: Path, *argv: str) -> str:
    with pytest.raises(Exception, match=r"there is no GPU 99:00\.0") as failure:
        with_gpu(ctl, tmp_path, *argv)
    return str(getattr(failure.value, "hint", ""))


# --- wrong questions ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "status", "words"),
    [
        ((), 2, "MODEL"),
        (("m", "--ctx", "7"), 2, "expected a number of tokens"),
        (("m", "--ctx", "9k9"), 2, "expected a number of tokens"),
        (("m", "--kv", "q9"), 2, "invalid choice"),
        (("m", "--parallel", "0"), 2, "expected a number of requests"),
        (("m", "--gpu", "c1:00.0"), 2, "there is no GPU c1:00.0"),
        (("/nowhere/a.gguf",), 1, "there is no such file: /nowhere/a.gguf"),
        (("nobody",), 5, "there is no model and no file called nobody"),
        (("hf:nobody",), 1, "names no model of a hub"),
        (("http://example.org/a.gguf",), 1, "is not an https address"),
        (("https://example.org/a",), 1, "is not the address of a GGUF file"),
    ],
)
def test_what_is_asked_wrongly(ctl: Ctl, argv: tuple[str, ...], status: int, words: str) -> None:
    result = ctl("fit", *argv)
    assert (result.status, result.out) == (status, "")
    assert words in result.err
    assert result.err.count("\n") == 1


def test_the_name_that_was_meant(ctl: Ctl, models: Path) -> None:
    configure(ctl, models)
    result = ctl("fit", "qwenn")
    assert result.status == 5
    assert "did you mean qwen?" in result.err


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"version https://git-lfs", "it is a Git LFS pointer"), (b"PK\x03\x04", "it is a zip archive"),
     (b"GGUF\x03\0\0\0", "the file ends within its header"), (b"", "it is empty")],
)  # fmt: skip
def test_files_that_are_no_models(ctl: Ctl, tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(content)
    result = ctl("fit", str(path))
    assert (result.status, result.out) == (1, "")
    assert words in result.err


def test_a_download_that_was_broken_off(ctl: Ctl, tmp_path: Path, models: Path) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(small(models).read_bytes()[: 1 << 20])
    result = ctl("fit", str(path))
    assert result.status == 1
    assert "the file ends within its weights" in result.err
    assert "download it again" in result.err


def test_a_broken_configuration_is_no_hindrance(ctl: Ctl, daemon: FakeDaemon, models: Path) -> None:
    ctl.configure("[models.x]\nnonsense = 1\n")
    daemon.answers["GET memory"] = Reply(pools())
    result = ctl("fit", str(small(models)))
    assert result.status == 0
    assert "! the configuration is not valid, so the defaults were used" in result.out


def test_another_failure_of_the_daemon_is_told(ctl: Ctl, daemon: FakeDaemon, models: Path) -> None:
    daemon.answers["GET memory"] = error(500, "internal", "cannot measure memory")
    result = ctl("fit", str(small(models)))
    assert (result.status, result.out) == (1, "")
    assert "cannot measure memory" in result.err
