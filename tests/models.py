"""Makes the GGUF models of the tests with the project's own maker, each once for its arguments.

Needs the packages gguf and numpy in the interpreter that runs the tests; nothing is downloaded.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

MAKER_DIR = Path(__file__).resolve().parent.parent / "contrib" / "hello-model"
MAKER = MAKER_DIR / "make_hello_gguf.py"
SHORT_REPLY = "Hello from accelerd, a tiny model answers."


def make_model(cache_dir: Path, kind: str = "chat", **arguments: object) -> Path:
    """The (first) file of a model, made on the first call with these arguments.

    Keywords are the maker's options: `reply="…"`, `reply_tokens=400`, `size_mb=50`, `split=3`, `ctx=2048`. Safe against
    other processes that make the same model at the same time. A changed maker makes new files.
    """
    options = {"kind": kind, **arguments}
    sources = b"".join(path.read_bytes() for path in sorted(MAKER_DIR.glob("*.py")))
    key = json.dumps(options, sort_keys=True, default=str).encode() + hashlib.sha256(sources).digest()
    folder = cache_dir / f"{kind}-{hashlib.sha256(key).hexdigest()[:16]}"
    if not folder.is_dir():
        cache_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache_dir, ignore_cleanup_errors=True) as work:
            command = [sys.executable, str(MAKER), str(Path(work) / "new" / f"{kind}.gguf")]
            for name, value in options.items():
                command += [f"--{name.replace('_', '-')}={value}"]
            done = subprocess.run(command, capture_output=True, text=True, timeout=60)
            if done.returncode != 0:
                raise RuntimeError(f"cannot make the model {options}: {done.stderr.strip()}")
            try:
                os.rename(Path(work) / "new", folder)
            except OSError:
                if not folder.is_dir():  # else another process was quicker
                    raise
    return min(folder.glob("*.gguf"))
