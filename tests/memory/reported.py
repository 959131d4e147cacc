"""What the real llama-server and llama-fit-params say of the memory that a model takes.

llama-server is started, read until it is ready, and ended. Of all it prints, the sizes of its buffers are most exact
(MiB with two decimals); its table of memory, as lines or as JSON, has whole MiB and leaves out the output buffer.
"""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Timer

MIB = 1 << 20
PATIENCE = 60.0  # seconds until a server that has not come up is killed
BUFFER = re.compile(r" +(\S+) +(model|KV|RS|output|compute|LoRA) buffer size = +([\d.]+) MiB")
KINDS = {"model": "model", "KV": "kv", "RS": "state", "output": "output", "compute": "compute",
         "LoRA": "lora"}  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """As llama-server is told; `context` is that of all slots together."""

    context: int = 4096
    type_k: str = "f16"
    type_v: str = "f16"
    ubatch: int = 512
    batch: int = 2048
    parallel: int = 1
    flash_attention: str = "on"
    repack: bool = False  # True is llama-server's own choice: part of the weights then lie in buffers named CPU_REPACK
    mmap: bool = False
    further: tuple[str, ...] = ()

    def arguments(self) -> list[str]:
        return [
            *("-c", str(self.context), "-ctk", self.type_k, "-ctv", self.type_v),
            *("-ub", str(self.ubatch), "-b", str(self.batch), "-np", str(self.parallel), "-fa", self.flash_attention),
            *(() if self.repack else ("-nr",)),
            *("-lm", "mmap" if self.mmap else "none"),
        ]


@dataclass(frozen=True)
class Buffers:
    """Bytes in one kind of memory: "CPU", "CPU_Mapped", "CPU_REPACK", "Vulkan0", …"""

    name: str
    model: int = 0
    kv: int = 0
    state: int = 0  # of recurrent layers
    compute: int = 0
    output: int = 0
    lora: int = 0

    @property
    def context(self) -> int:
        return self.kv + self.state


@dataclass(frozen=True)
class Report:
    """What was said, by the kind of memory. With a draft model both are in it."""

    rows: tuple[Buffers, ...]
    table: tuple[tuple[str, int, int, int], ...] = field(default=())  # name, model, context, compute: whole MiB

    def _sum(self, what: str) -> int:
        return sum(getattr(row, what) for row in self.rows)

    @property
    def model(self) -> int:
        return self._sum("model")

    @property
    def kv(self) -> int:
        return self._sum("kv")

    @property
    def state(self) -> int:
        return self._sum("state")

    @property
    def context(self) -> int:
        return self.kv + self.state

    @property
    def compute(self) -> int:
        return self._sum("compute")

    @property
    def output(self) -> int:
        return self._sum("output")

    @property
    def total(self) -> int:
        return self.model + self.context + self.compute + self.output

    def plain(self) -> dict[str, int]:
        """For JSON; bytes."""
        names = ("model", "context", "kv", "state", "compute", "output")
        return {**{name: self._sum(name) for name in names}, "total": self.total}


def reported(server: str, model: Path, settings: Settings, draft: Path | None = None) -> Report:
    """What llama-server takes for the model. Raises RuntimeError with what it said when it does not come up."""
    drafted = () if draft is None else ("-md", str(draft), "--spec-type", "draft-simple")
    with tempfile.TemporaryDirectory() as folder:
        command = [server, "-m", str(model), *settings.arguments(), *drafted, *settings.further]
        command += [
            "--host",
            f"{folder}/s.sock",
            "--fit",
            "off",
            "-lv",
            "4",
            "-t",
            "1",
            "--cache-ram",
            "0",
            "--offline",
        ]
        lines, up = [], False
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr
            timer = Timer(PATIENCE, process.kill)
            timer.start()
            try:
                for line in process.stderr:
                    lines.append(line.rstrip())
                    # Not at "listening": a SIGTERM between that line and this one is lost, the server goes on.
                    if "all slots are idle" in line and not up:
                        up = True
                        process.terminate()
            finally:
                timer.cancel()
                if not up:
                    process.kill()
        if not up:
            raise RuntimeError(f"{' '.join(command)} ended:\n" + "\n".join(lines[-15:]))
    return parse(lines)


def parse(lines: Sequence[str]) -> Report:
    """From the output of `-lv 4`."""
    rows: dict[str, Buffers] = {}
    table = []
    for line in lines:
        if found := BUFFER.search(line):
            name, kind, size = found[1], KINDS[found[2]], round(float(found[3]) * MIB)
            row = rows.setdefault(name, Buffers(name))
            # With adapters the buffers are reserved once more, of the same size.
            again = kind == "compute" and any(one.lora for one in rows.values())
            rows[name] = replace(row, **{kind: size if again else getattr(row, kind) + size})
        elif "common_memory_breakdown_print: |   - " in line:
            name = line.split("|")[1].strip(" -").split(" (")[0]
            if sums := re.search(r"\d+ = +(\d+) \+ +(\d+) \+ +(\d+)", line):
                table.append((name, int(sums[1]), int(sums[2]), int(sums[3])))
    return Report(tuple(rows.values()), tuple(table))


def projected(fit_params: str, model: Path, settings: Settings) -> tuple[tuple[str, int, int, int], ...]:
    """Name, model, context and compute of each row of llama-fit-params; whole MiB."""
    command = [fit_params, "-m", str(model), *settings.arguments(), "--fit-print", "on", "--log-jsonl"]
    for _ in range(10):  # now and then it ends before its log is written
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
        for line in done.stdout.splitlines():
            if line.startswith('{"type":"fit_memory_breakdown"'):
                rows = json.loads(line)["data"]["rows"]
                return tuple((row["name"], row["model"], row["context"], row["compute"]) for row in rows)
    raise RuntimeError(f"{' '.join(command)} said:\n{done.stdout[-500:]}{done.stderr[-500:]}")
