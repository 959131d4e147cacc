"""The Lemonade Server of the worlds: the stand-in, or a real lemond where ACCELERD_TEST_LEMOND names one.

A real one runs the llama-server of the tests, with made-up models that the user has registered.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from tests.daemon.rounds import Kind
from tests.daemon.service import Service
from tests.models import make_model
from tests.npu.lemonade_kit import GEMMA, QWEN, REAL, STANDINS


def models() -> dict[str, Kind]:
    first, second = ("user.First", "user.Second") if REAL else (QWEN, GEMMA)
    # More than either ever uses: the ledger then holds just that, and not what was seen.
    memory = {"memory": "400MiB", "prompt_cache": 0}
    return {
        "lemon": Kind("lemonade", settings={"model": first, **memory}),
        "lime": Kind("lemonade", settings={"model": second, **memory}),
    }


def engines() -> str:
    """TOML, which begins in llama-server's section."""
    llama_server = os.environ["ACCELERD_TEST_LLAMA_SERVER"] if REAL else STANDINS / "llama-server"
    lemond = REAL or STANDINS / "lemond"
    return f"binary = {json.dumps(str(llama_server))}\n[engines.lemonade]\nbinary = {json.dumps(str(lemond))}\n"


def prepare(service: Service) -> None:
    """What the server finds in its home."""
    home = service.manager.home
    service.manager.write(home / ".lemonade-standin.json", json.dumps({"token_seconds": 0.02}))
    if REAL:
        model = make_model(Path(service.site.directory), reply_tokens=12)
        model.chmod(0o644)
        entry = {"checkpoint": str(model), "recipe": "llamacpp", "source": "local_path"}
        folder = service.manager.directory(home / ".config/lemonade")
        service.manager.write(folder / "user_models.json", json.dumps({"First": entry, "Second": entry}))
