"""What clients are pointed at: llama-server itself, and accelerd with the same program, models and settings.

Both are there with one slot and with four. Models have the same names everywhere.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

from tests.harness import ROOT, Daemon, DaemonFactory, eventually
from tests.models import make_model
from tests.ports import free_port

REPLY = "Hello from accelerd, a tiny model answers."
CONTEXT = 8192  # tokens for each request
AGENT_CONTEXT = 131_072  # of programs whose first prompt is long
SLOTS = (1, 4)
KINDS = ("chat", "embed", "rerank")
SWITCHES = {"chat": [], "embed": ["--embeddings"], "rerank": ["--rerank"]}
SETTINGS = {"chat": "", "embed": "embeddings = true\n", "rerank": "rerank = true\n"}


@dataclass(frozen=True)
class Target:
    """Where the models are; `cold`: an address that, when it is read, has unloaded them all."""

    name: str
    root: str
    embed: str
    rerank: str
    cold: str | None = None

    @property
    def url(self) -> str:
        return f"{self.root}/v1"

    def json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Pair:
    """The same models by themselves and behind accelerd."""

    slots: int
    direct: Target
    cold: Target
    warm: Target

    def targets(self) -> tuple[Target, ...]:
        return self.direct, self.cold, self.warm


def models(cache: Path, context: int, *, calls: bool) -> dict[str, Path]:
    """The files: a chat model that always says REPLY, if `calls` after the call of a tool where one is given."""
    more = {} if calls else {"tool_call": "", "words": vocabulary(cache)}
    chat = make_model(cache, reply=REPLY, ctx=context, name="chat", **more)
    return {"chat": chat, **{kind: make_model(cache, kind=kind) for kind in KINDS[1:]}}


def vocabulary(cache: Path) -> Path:
    """A file with the words that the model of the tests has: those of our own pages and of Python's."""
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
    text = "\n".join([*(page.read_text() for page in pages), *topics.values()])
    file = cache / f"words-{hashlib.sha256(text.encode()).hexdigest()[:16]}.txt"
    cache.mkdir(parents=True, exist_ok=True)
    if not file.exists():
        file.write_text(text)
    return file


@contextlib.contextmanager
def serving(program: str, files: dict[str, Path], slots: int, context: int, log: Path) -> Iterator[Target]:
    """llama-server itself, one for each model."""
    with contextlib.ExitStack() as stack:
        roots = {}
        for kind, file in files.items():
            port = free_port()
            command = [program, "-m", str(file), "--alias", kind, "--host", "127.0.0.1", "--port", str(port)]
            command += ["--threads", "1", "--jinja", *SWITCHES[kind]]
            if kind == "chat":
                command += ["-np", str(slots), "-c", str(context * slots)]
            output = stack.enter_context(open(log.with_suffix(f".{kind}"), "wb"))
            process = subprocess.Popen(command, stdout=output, stderr=output, stdin=subprocess.DEVNULL)
            stack.callback(_end, process)
            eventually(lambda port=port: healthy(port), f"llama-server with {kind} at port {port}")
            roots[kind] = f"http://127.0.0.1:{port}"
        root = roots["chat"]
        yield Target(f"llama-server, {slots} slots", root, roots.get("embed", root), roots.get("rerank", root))


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def healthy(port: int) -> bool:
    with contextlib.suppress(OSError, http.client.HTTPException):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        finally:
            connection.close()
    return False


def configuration(program: str, files: dict[str, Path], slots: int, context: int) -> str:
    toml = f"[engines.llama-server]\nbinary = {json.dumps(program)}\n[defaults]\nthreads = 1\n"
    for kind, file in files.items():
        toml += f"[models.{kind}]\npath = {json.dumps(str(file))}\n{SETTINGS[kind]}"
        if kind == "chat":
            toml += f"parallel = {slots}\ncontext = {context}\n"
    return toml


@contextlib.contextmanager
def translated(program: str, directory: Path, cache: Path) -> Iterator[tuple[Target, Target, Target]]:
    """llama-server itself, and accelerd with an engine that has OpenAI's chat only, and one with Anthropic's messages.

    The engines are llama-server, too, of which accelerd knows no more than that.
    """
    file = models(cache, CONTEXT, calls=True)["chat"]
    directory.mkdir(parents=True, exist_ok=True)
    argv = [program, "-m", "{model}", "--port", "{port}", "--alias", "theirs", "--threads", "1", "--jinja"]
    argv += ["-np", "1", "-c", str(CONTEXT)]
    with (
        serving(program, {"chat": file}, 1, CONTEXT, directory / "llama-server.log") as direct,
        DaemonFactory(directory) as daemons,
    ):
        through = []
        for api in ("chat", "messages"):
            toml = f'[models.chat]\nengine = "command"\npath = {json.dumps(str(file))}\n'
            toml += f'command = {{argv = {json.dumps(argv)}, api = ["{api}", "tools"], served_name = "theirs"}}\n'
            root = f"http://127.0.0.1:{daemons.start(toml).port}"
            through.append(Target(f"accelerd, an engine with {api} only", root, root, root))
        yield direct, through[0], through[1]


@contextlib.contextmanager
def unloader(daemon: Daemon) -> Iterator[str]:
    """An address: whoever reads it finds no model loaded afterwards."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            for kind in KINDS:
                daemon.events(f"unload?model={kind}")
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Nothing: the clients' output is what matters."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


@contextlib.contextmanager
def pair(
    program: str, directory: Path, cache: Path, slots: int, context: int = CONTEXT, *, calls: bool = True
) -> Iterator[Pair]:
    """llama-server and accelerd with `slots` slots for the chat model."""
    files = models(cache, context, calls=calls)
    directory.mkdir(parents=True, exist_ok=True)
    with (
        serving(program, files, slots, context, directory / "llama-server.log") as direct,
        DaemonFactory(directory) as daemons,
    ):
        daemon = daemons.start(configuration(program, files, slots, context))
        root = f"http://127.0.0.1:{daemon.port}"
        with unloader(daemon) as address:
            cold = Target(f"accelerd cold, {slots} slots", root, root, root, address)
            yield Pair(slots, direct, cold, Target(f"accelerd warm, {slots} slots", root, root, root))
