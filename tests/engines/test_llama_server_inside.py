"""A llama-server in a container: asked there what it can do, told the names that hold there, or only started."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerd.config.model import ModelSpec
from accelerd.engines.base import ContainerAccess, ContainerProgram, Endpoint, FixedServer, ProgramOutput
from accelerd.engines.llama_server import LlamaServer
from tests.engines.helps import OLDER, THIS_YEAR, model_file
from tests.engines.test_llama_server_plan import SECRET, engine, failure, plan

IMAGE = "image docker.io/kyuz0/amd-strix-halo-toolboxes:vulkan-radv"


class Container(ContainerAccess):
    """Shows the folder `shown` of this machine in /run/host."""

    def __init__(self, shown: Path, text: str = THIS_YEAR) -> None:
        self.shown = shown
        self.help = text
        self.build = "container-1 /usr/bin/llama-server 1 2 3"
        self.settings: dict[str, Any] = {}
        self.asked: list[tuple[str, ...]] = []

    async def look(self, spec: ModelSpec, program: str, files: Sequence[str]) -> ContainerProgram:
        seen = {file: f"/run/host{file}" for file in files if Path(file).is_relative_to(self.shown)}
        return ContainerProgram(f"/usr/bin/{program}", self.build, seen, self.settings, IMAGE)

    async def ask(self, spec: ModelSpec, *argv: str) -> ProgramOutput:
        self.asked.append(argv)
        return ProgramOutput(0, self.help, "") if argv[1] == "--help" else ProgramOutput(0, "", "version: 5412 (abc)\n")


def server(there: ContainerAccess | FixedServer | None) -> LlamaServer:
    async def places(spec: ModelSpec) -> ContainerAccess | FixedServer | None:
        return there

    return engine("llama-server", places=places)


def spec(tmp_path: Path, **settings: Any) -> ModelSpec:
    path = str(model_file(tmp_path / "models"))
    return ModelSpec("m", **{"path": path, "context": 1024, "home": "toolbox", "container": "llama", **settings})


def test_program_and_files_have_the_names_that_hold_inside(tmp_path: Path) -> None:
    there = Container(tmp_path)
    made = plan(server(there), spec(tmp_path), tmp_path)
    assert made.argv[0] == "/usr/bin/llama-server"
    assert made.argv[made.argv.index("-m") + 1].startswith(f"/run/host{tmp_path}/models/")
    assert made.secret == SECRET
    assert made.guarded


def test_it_is_asked_once_for_each_build(tmp_path: Path) -> None:
    there = Container(tmp_path)
    one = server(there)
    plan(one, spec(tmp_path), tmp_path)
    plan(one, spec(tmp_path), tmp_path)
    assert there.asked == [("/usr/bin/llama-server", "--help"), ("/usr/bin/llama-server", "--version")]
    there.build, there.help = "container-1 /usr/bin/llama-server 1 9 3", OLDER  # updated in the container
    made = plan(one, spec(tmp_path, flash_attention="on"), tmp_path)
    assert len(there.asked) == 4
    assert "--load-mode" not in made.argv


def test_what_the_image_wants_holds_unless_the_model_says_otherwise(tmp_path: Path) -> None:
    there = Container(tmp_path)
    there.settings = {"flash_attention": "on", "mmap": False}
    made = plan(server(there), spec(tmp_path, mmap=True), tmp_path)
    flags = {flag.text: flag.source for flag in made.flags}
    assert flags["-fa on"] == IMAGE
    assert not any(text.endswith(" none") for text in flags), "mmap = true is the model's own wish"


def test_a_file_that_is_not_seen_inside_is_said(tmp_path: Path) -> None:
    cause, message = failure(server(Container(tmp_path / "elsewhere")), spec(tmp_path), tmp_path)
    assert cause == "no-model"
    assert "in toolbox llama: put it below your home directory" in message


def test_a_program_that_is_none_is_said_with_its_last_line(tmp_path: Path) -> None:
    there = Container(tmp_path, "hello\nnothing here")
    cause, message = failure(server(there), spec(tmp_path), tmp_path)
    assert cause == "no-program"
    assert "'nothing here'" in message


def test_an_existing_container_is_only_started(tmp_path: Path) -> None:
    fixed = FixedServer(Endpoint(port=9000), ("docker", "start", "qwen"), "container qwen")
    model = ModelSpec("m", home="container", container="qwen", env=(("LLAMA_API_KEY", "theirs"),))
    made = plan(server(fixed), model, tmp_path)
    assert (made.argv, made.endpoint.port, made.secret, made.guarded) == (fixed.command, 9000, "theirs", False)
    assert made.env == {}
    assert "theirs" not in repr(made)


def test_two_plans_at_once_are_both_made(tmp_path: Path) -> None:
    one = server(Container(tmp_path))

    async def both() -> list[Any]:
        return await asyncio.gather(*(one.plan(spec(tmp_path), tmp_path) for _ in range(2)))

    assert len({made.endpoint.unix for made in asyncio.run(both())}) == 2
