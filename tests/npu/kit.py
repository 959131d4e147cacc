"""What the tests of NPUs share: the stand-in for flm on a PATH of its own, with settings that a test can change."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

STANDINS = Path(__file__).parent / "standins"


class FlmOnPath:
    """A directory with a program `flm`, its models and its log. What it does is in `settings`, also while it runs."""

    def __init__(self, directory: Path, **settings: Any) -> None:
        self.directory = directory
        self.bin = directory / "bin"
        self.models = directory / "flm"
        self.log = directory / "flm.log"
        self._file = directory / "flm.json"
        self.bin.mkdir(parents=True, exist_ok=True)
        self.program = self.bin / "flm"
        self._settings: dict[str, Any] = {"log": str(self.log), "cooldown": 0.02}
        self.set(**settings)
        exports = f'export FLM_STANDIN_FILE="{self._file}" FLM_MODEL_PATH="{self.models}"'
        self.program.write_text(f'#!/bin/sh\n{exports}\nexec "{STANDINS / "flm"}" "$@"\n')
        self.program.chmod(0o755)

    @property
    def path(self) -> str:
        """PATH with it in front."""
        return f"{self.bin}{os.pathsep}{os.environ['PATH']}"

    def set(self, **settings: Any) -> None:
        """Change what it does from now on."""
        self._settings |= settings
        temporary = self._file.with_suffix(".new")
        temporary.write_text(json.dumps(self._settings))
        temporary.replace(self._file)

    def pulled(self, *tags: str) -> FlmOnPath:
        """These models are on the machine."""
        for tag in tags:
            folder = self.models / "models" / (tag.replace(":", "-").title() + "-NPU2")
            folder.mkdir(parents=True, exist_ok=True)
            for name in ("config.json", "model.q4nx", "tokenizer.json", "tokenizer_config.json"):
                (folder / name).write_text("{}\n")
        return self

    def noted(self, key: str) -> list[dict[str, Any]]:
        """The lines of its log that have this key: argv, get, post, serving, switch, told, cancelled."""
        text = self.log.read_text() if self.log.exists() else ""
        return [record for record in map(json.loads, text.splitlines()) if key in record]

    def served(self) -> list[list[str]]:
        """The command lines of every server that was started."""
        return [record["argv"] for record in self.noted("argv") if record["argv"][:1] == ["serve"]]


def flm_model(name: str = "npu/qwen3-4b", model: str = "qwen3:4b", **settings: Any) -> str:
    """TOML of one."""
    values = {"engine": "flm", "model": model, "home": "child", **settings}
    lines = [f"{key} = {json.dumps(value)}" for key, value in values.items()]
    return "\n".join([f'[models."{name}"]', *lines, ""])
