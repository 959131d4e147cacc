"""The ModelTuner of the engines: finds the device, looks into the model, reads the rules, and has them resolved.

Everything that blocks happens in a thread. Never raises for what it cannot find out: then fewer rules hold.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from msgspec.structs import replace

from accelerd.config.model import ModelSpec
from accelerd.devices.model import Device, usable
from accelerd.engines.base import EngineBuild, TunedModel
from accelerd.estimate.gguf import GgufError, Header, read_header
from accelerd.tuning import rules as rule_files
from accelerd.tuning.resolve import situation, tune
from accelerd.tuning.rules import TuningRules

log = logging.getLogger(__name__)

Stamp = tuple[tuple[str, int, int], ...]  # path, time and size of files


class RuleTuner:
    """An engines.base.ModelTuner. What files say is read again when they have changed."""

    def __init__(self, config_file: Path, devices: Callable[[], Iterable[Device]], sys: Path = Path("/sys")) -> None:
        """`devices()` may block."""
        self._config_file = config_file
        self._devices = devices
        self._sys = sys
        self._headers: dict[str, tuple[Stamp, Header | None]] = {}
        self._rules: tuple[Stamp, TuningRules] | None = None

    async def __call__(self, spec: ModelSpec, build: EngineBuild, weights: Sequence[str]) -> TunedModel:
        return await asyncio.to_thread(self._tune, spec, build, weights)

    async def device(self, spec: ModelSpec, build: EngineBuild) -> Device | None:
        """What the model would be tuned for."""
        return device_for(spec, build, await asyncio.to_thread(lambda: list(self._devices())))

    def cores(self) -> tuple[int, int]:
        """Cores and hardware threads that accelerd may use."""
        allowed = os.sched_getaffinity(0)
        return physical_cores(self._sys, allowed), len(allowed)

    def rules(self) -> TuningRules:
        """All that hold now. Blocking."""
        file = rule_files.user_file(self._config_file)
        stamp = _stamp([file, *sorted(Path(f"{file}.d").glob("*.toml"))])
        if self._rules is None or self._rules[0] != stamp:
            self._rules = stamp, rule_files.load(self._config_file)
            for problem in self._rules[1].problems:
                log.warning("%s", problem)
        return self._rules[1]

    def _tune(self, spec: ModelSpec, build: EngineBuild, weights: Sequence[str]) -> TunedModel:
        rules = self.rules()
        device = device_for(spec, build, self._devices())
        header, size = self._look_into(weights)
        cores, _ = self.cores()
        tuned = tune(rules.rules, spec, situation(spec, device, build, header, size), cores)
        wrong = [problem for problem in rules.problems if problem.severity == "error"]
        if wrong:
            text = f"your own tuning rules do not hold, there is a mistake in them: {wrong[0]}"
            tuned = replace(tuned, warnings=(*tuned.warnings, text))
        return tuned

    def _look_into(self, weights: Sequence[str]) -> tuple[Header | None, int | None]:
        """The header of a model and the bytes of its files."""
        stamp = _stamp([Path(path) for path in weights])
        if not weights or len(stamp) < len(weights):
            return None, None
        known = self._headers.get(weights[0])
        if known is None or known[0] != stamp:
            try:
                header: Header | None = read_header(weights[0])
            except (GgufError, OSError) as error:
                log.info("cannot look into %s: %s", weights[0], error)
                header = None
            known = self._headers[weights[0]] = stamp, header
        return known[1], sum(size for _, _, size in stamp)


def device_for(spec: ModelSpec, build: EngineBuild, devices: Iterable[Device]) -> Device | None:
    """The GPU that computes for the model; the processor where none does."""
    found = list(devices)
    gpus = usable(found) if spec.gpu_layers != 0 and build.backend != "cpu" else ()
    wanted = [gpu for gpu in gpus if gpu.id in (spec.gpus or ())]
    processor = (device for device in found if device.kind == "cpu")
    return next(iter((*wanted, *gpus, *processor)), None)


def physical_cores(sys: Path, allowed: set[int]) -> int:
    """Cores, not hardware threads, among the allowed ones; of a hybrid processor the fast ones."""
    fast = _cpu_list(sys / "devices/cpu_core/cpus")  # Intel's performance cores, where there are two kinds
    chosen = (allowed & fast) or allowed
    cores = set()
    for cpu in chosen:
        siblings = _cpu_list(sys / f"devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        cores.add(min(siblings & chosen, default=cpu))
    return len(cores)


def _cpu_list(path: Path) -> set[int]:
    """ "0-3,8" as a set; empty where the file is not there or says something else."""
    found: set[int] = set()
    try:
        for part in path.read_text().strip().split(","):
            first, _, last = part.partition("-")
            found.update(range(int(first), int(last or first) + 1))
    except (OSError, ValueError):
        return set()
    return found


def _stamp(paths: Iterable[Path]) -> Stamp:
    """Of the files that are there."""
    found = []
    for path in paths:
        try:
            status = path.stat()
        except OSError:
            continue  # what is not there has no part in it
        found.append((str(path), status.st_mtime_ns, status.st_size))
    return tuple(found)
