"""A user's home with a configuration folder that only the user can write, whatever the umask of the test run."""

from __future__ import annotations

from pathlib import Path

from accelerd import config
from accelerd.config import Config, Problem

# Every setting of a model and some of the other tables, none at its built-in value.
FULL = """\
[server]
listen = ["127.0.0.1:4100", "[::1]:4100"]
allowed_hosts = ["Box.Local"]
allowed_origins = ["https://chat.example.org"]
max_body = "8MiB"
header_timeout = "1500ms"
[scheduler]
memory = "12GiB"
linger = 0
[engines.llama-server]
binary = "~/bin/llama-server"
transport = "unix"
[models.qwen]
path = "~/models/qwen.gguf"
description = "small"
aliases = ["gpt-4o", "qwen/small:7b"]
binary = "llama-server-next"
context = 8192
parallel = 2
kv_cache_type = {k = "q8_0", v = "f16"}
flash_attention = true
mmap = false
gpu_layers = 33
batch = 1024
ubatch = 512
threads = 4
mmproj = "./proj.gguf"
chat_template_file = "chat.jinja"
sampling = {temperature = 1, top_p = 0.9}
extra_args = ["--cache-ram", "0"]
env = {B = "2", A = "1"}
start_timeout = "3m"
stop_timeout = 2.5
concurrency = 3
idle_timeout = "never"
preload = true
pin = true
group = "big"
exclusive = true
memory = "500M"
"""


class Home:
    """A user's home: write files, then load them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.folder = path / ".config" / "accelerd"
        self.folder.mkdir(parents=True, mode=0o700)
        self.main = self.folder / "accelerd.toml"
        self.dropins = self.folder / "accelerd.toml.d"

    def write(self, text: str | bytes, name: str = "accelerd.toml") -> Path:
        """A file of the configuration, mode 0600; `name` is relative to the folder."""
        target = self.folder / name
        target.parent.mkdir(mode=0o700, exist_ok=True)
        target.write_bytes(text if isinstance(text, bytes) else text.encode())
        target.chmod(0o600)
        return target

    def load(self, text: str | None = None) -> Config:
        if text is not None:
            self.write(text)
        return config.load(self.main, self.path)

    def check(self, text: str | bytes | None = None) -> tuple[Config | None, list[Problem]]:
        if text is not None:
            self.write(text)
        return config.check(self.main, self.path)

    def errors(self, text: str | bytes | None = None) -> list[str]:
        """The mistakes as people see them."""
        return [str(problem) for problem in self.check(text)[1] if problem.severity == "error"]

    def warnings(self, text: str | bytes | None = None) -> list[str]:
        return [str(problem) for problem in self.check(text)[1] if problem.severity == "warning"]
