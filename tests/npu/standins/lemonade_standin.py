"""The server of the stand-ins for Lemonade: `lemond` and `lemonade-server` are this, in another generation.

What it does is set by ~/.lemonade-standin.json of its HOME, read anew at every load (SETTINGS: the keys and what they
are by default). A request is noted there as a line in the file `log`, with its path, its key and its body.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

sys.dont_write_bytecode = True  # nothing is written beside it
HERE = Path(__file__).parent
SETTINGS = {
    "version": None,  # of lemond "11.7.0", of lemonade-server "10.0.0"; "11.8.0" is what comes after 11.7
    "log": None,
    "models": {},  # name → what is other than in MODELS
    "fail": {},  # name → what its backend says before it ends; "not found" in it: only that load fails
    "load_seconds": 0.0,
    "pace": 1.0,  # of its own waits: 0 for tests that do not ask how long they are
    "online": False,  # can it download?
    "health_seconds": 0.0,
    "token_seconds": 0.0,
    "mib": 0,
    "helper_mib": 0,
    "stubborn": False,  # backends ignore SIGTERM
    "start_seconds": 0.0,  # until it listens
    "start_fails": None,  # what it says before it ends at its start
    "conflict": [],  # names whose load is refused with router_residency_conflict
}
MODELS: dict[str, dict[str, Any]] = {
    "Qwen3-4B-GGUF": {"recipe": "llamacpp", "labels": ["reasoning", "tool-calling"], "size": 2.5},
    "Gemma-3-4b-it-GGUF": {"recipe": "llamacpp", "labels": ["vision"], "size": 3.6},
    "nomic-embed-text-v2-moe-GGUF": {"recipe": "llamacpp", "labels": ["embeddings"], "size": 0.5},
    "bge-reranker-v2-m3-GGUF": {"recipe": "llamacpp", "labels": ["reranking"], "size": 0.6},
    "Qwen3-32B-GGUF": {"recipe": "llamacpp", "labels": ["reasoning"], "size": 19.8, "downloaded": False},
    "qwen3-4b-FLM": {"recipe": "flm", "labels": ["reasoning", "tool-calling"], "size": 3.1, "checkpoint": "qwen3:4b"},
    "llama3.2-1b-FLM": {"recipe": "flm", "labels": ["chat"], "size": 1.3, "checkpoint": "llama3.2:1b"},
    "embed-gemma-300m-FLM": {"recipe": "flm", "labels": ["embeddings"], "size": 0.6, "checkpoint": "embed-gemma:300m"},
    "Whisper-Large-v3-Turbo": {"recipe": "whispercpp", "labels": ["transcription"], "size": 1.6, "device": "npu"},
    "kokoro-v1": {"recipe": "kokoro", "labels": ["tts"], "size": 0.4, "device": "cpu"},
    "Llama-3.2-3B-Hybrid": {"recipe": "ryzenai-llm", "labels": ["chat"], "size": 3.0},
    "Windows-Only-NPU": {"recipe": "ryzenai-llm", "labels": ["chat"], "size": 3.0, "unsupported": True},
}  # fmt: skip
TYPES = {"embeddings": "embedding", "reranking": "reranking", "transcription": "transcription", "tts": "tts"}
EXCLUSIVE = ("ryzenai-llm", "whispercpp")  # alone on the NPU
DEFAULTS = {
    "port": 13305, "host": "localhost", "log_level": "info", "global_timeout": 600, "max_loaded_models": 1,
    "ctx_size": -1, "no_broadcast": False, "flm": {"args": "", "prefer_system": False},
    "llamacpp": {"backend": "auto", "args": "", "prefer_system": True},
}  # fmt: skip
# Options that it does not take, and the versions that set them themselves: from the first, up to the second.
OWN_ARGS = (
    ("-m --model --ctx-size -c --port --jinja --no-jinja --mmproj -mm -mmu --mmproj-url --no-mmproj --mmproj-auto "
     "--no-mmproj-auto --embeddings --embedding --reranking --rerank", (), None),
    ("-ngl --gpu-layers --n-gpu-layers", (), (10, 8)), ("--device -dev", (10, 6), None), ("--metrics", (10, 7), None),
    ("--model-draft -md --spec-draft-model", (10, 10), None), ("--mmproj-offload --no-mmproj-offload", (), (11, 6)),
)  # fmt: skip
UNLOAD_SECONDS = 2.0  # between SIGTERM and the look whether it has ended; nothing else is answered meanwhile
BAD_COMMAND_LINE = 109  # status; CLI11's


def own_args(version: tuple[int, ...]) -> set[str]:
    return {
        name
        for names, since, until in OWN_ARGS
        if version >= since and (until is None or version < until)
        for name in names.split()
    }


def settings() -> dict[str, Any]:
    file = Path(os.environ.get("HOME", "/")) / ".lemonade-standin.json"
    with contextlib.suppress(OSError, ValueError):
        return {**SETTINGS, **json.loads(file.read_text())}
    return dict(SETTINGS)


def release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:3])


class Refusal(Exception):
    """An answer that says no."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code = status, code


@dataclass
class Backend:
    """One loaded model."""

    model: str
    entry: dict[str, Any]
    process: subprocess.Popen[bytes]
    port: int
    command: list[str]
    options: dict[str, Any]
    pinned: bool
    last_use: float = field(default_factory=time.time)
    busy: int = 0

    @property
    def type(self) -> str:
        return next((TYPES[label] for label in self.entry["labels"] if label in TYPES), "llm")

    @property
    def npu(self) -> bool:
        return "npu" in self.device

    @property
    def device(self) -> str:
        return self.entry.get("device") or ("npu" if self.entry["recipe"] in ("flm", "ryzenai-llm") else "gpu")


class Router:
    """What is loaded. `lock` is held while something is thrown out, and then nobody is answered."""

    def __init__(self, version: str, config: dict[str, Any], registered: dict[str, Any]) -> None:
        """`registered`: user_models.json, of GGUF files on this machine."""
        self.version, self.config, self.registered = version, config, registered
        self.lock = threading.RLock()
        self.loading = threading.Lock()
        self.loaded: list[Backend] = []
        self.downloaded: set[str] = set()
        self.websocket_port = 0

    def models(self) -> dict[str, dict[str, Any]]:
        changed = settings()["models"]
        base = {"downloaded": True, "checkpoint": "", "labels": [], "recipe": "llamacpp", "size": 1.0}
        found = {name: {**base, **one, **changed.get(name, {})} for name, one in MODELS.items()}
        found |= {name: {**base, **one} for name, one in changed.items() if name not in MODELS}
        found |= {name: {**base, "size": 0.0, **one} for name, one in self.registered.items()}
        for name, one in found.items():
            one["checkpoint"] = one["checkpoint"] or f"maker/{name}"
            one["downloaded"] = one["downloaded"] or name in self.downloaded
        return found

    def find(self, name: str) -> Backend | None:
        return next((one for one in self.loaded if one.model == name.removeprefix("user.") and self._shown(one)), None)

    def _shown(self, one: Backend) -> bool:
        """From 10.8 on it does not list what has died."""
        return release(self.version) < (10, 8) or one.process.poll() is None

    # --- load and unload ---

    def load(self, body: dict[str, Any]) -> dict[str, Any]:
        name = body.get("model_name") or ""
        name = name.removeprefix("user.")
        known = self.models().get(name)
        if known is None:
            raise Refusal(404, "model_not_found", f"Model '{name}' was not found. Available models include: ...")
        if known.get("unsupported"):
            raise Refusal(404, "model_not_supported", f"Model '{name}' is not available on this system. No Windows.")
        if not known["downloaded"]:  # it would take hours
            print(f"Model {name} not downloaded, downloading...", flush=True)
            if not settings()["online"]:
                raise Refusal(500, "model_load_error", f"Failed to fetch {name}: Couldn't resolve host name")
            self.downloaded.add(name)
            known["downloaded"] = True
        with self.loading:
            self._load(name, known, body)
        return {"status": "success", "model_name": name, "checkpoint": known["checkpoint"], "recipe": known["recipe"]}

    def _load(self, name: str, known: dict[str, Any], body: dict[str, Any]) -> None:
        options = {key: value for key, value in body.items() if key not in ("model_name", "save_options", "pinned")}
        arguments = str(options.get("llamacpp_args") or "").split()
        wrong = own_args(release(self.version)) & {word.partition("=")[0] for word in arguments}
        with self.lock:
            there = self.find(name)
            if there is not None and there.process.poll() is None and there.options == options:
                there.last_use, there.pinned = time.time(), bool(body.get("pinned", there.pinned))
                return
            if there is not None:
                self.evict(there)
            if name in settings()["conflict"]:
                raise Refusal(409, "router_residency_conflict", f"{name} would displace a routing helper")
            self._make_room(name, known)
        try:
            if wrong:
                text = "Invalid custom llama-server arguments:\nArgument '%s' is managed by Lemonade and cannot be set."
                raise RuntimeError(text % wrong.pop())
            backend = self._start(name, known, options)
        except RuntimeError as error:
            if any(text in str(error) for text in ("not found", "does not exist", "No such file")):
                raise Refusal(500, "model_load_error", f"Failed to load model '{name}': {error}") from None
            print("Load failed with non-file-not-found error, evicting all models and retrying...", flush=True)
            with self.lock:
                for one in list(self.loaded):
                    self.evict(one)
            try:
                if wrong:
                    raise error
                backend = self._start(name, known, options)
            except RuntimeError as again:
                raise Refusal(500, "model_load_error", f"Failed to load model '{name}': {again}") from None
        backend.pinned = bool(body.get("pinned")) and release(self.version) >= (10, 8)
        with self.lock:
            self.loaded.append(backend)

    def _make_room(self, name: str, known: dict[str, Any]) -> None:
        probe = Backend(name, known, None, 0, [], {}, False)  # type: ignore[arg-type]
        recipe = known["recipe"]
        if probe.npu and recipe in EXCLUSIVE:
            for one in [one for one in self.loaded if one.npu]:
                self.evict(one)
        elif recipe == "flm":
            for one in [one for one in self.loaded if one.npu]:
                if one.entry["recipe"] in EXCLUSIVE or one.type == probe.type:
                    self.evict(one)
        most = int(self.config.get("max_loaded_models", 1))
        same = [one for one in self.loaded if one.type == probe.type and one.process.poll() is None]
        while most >= 0 and len(same) >= most:
            free = sorted((one for one in same if not one.pinned), key=lambda one: one.last_use)
            if not free:
                raise Refusal(409, "slots_pinned_error", f"All {probe.type} slots are pinned")
            idle = next((one for one in free if not one.busy), None)
            if idle is None:  # busy ones are waited for
                idle = free[0]
            self.evict(idle)
            same.remove(idle)

    def evict(self, one: Backend) -> None:
        """Busy ones are waited for; then its process ends."""
        while one.busy:
            time.sleep(0.01)
        with contextlib.suppress(ProcessLookupError):
            one.process.terminate()
        time.sleep(UNLOAD_SECONDS * settings()["pace"])
        try:
            one.process.wait(5)
        except subprocess.TimeoutExpired:
            one.process.kill()
            one.process.wait()
        self.loaded.remove(one)

    def unload(self, name: str) -> None:
        name = name.removeprefix("user.")
        with self.loading, self.lock:  # while it loads, it does not unload
            there = [one for one in self.loaded if name in ("", one.model)]
            if name and not there:
                raise Refusal(404, "", f"Model not loaded: {name}")
            for one in there:
                self.evict(one)

    # --- backends ---

    def _start(self, name: str, known: dict[str, Any], options: dict[str, Any]) -> Backend:
        port = free_port()
        said = settings()
        flm = shutil.which("flm") if known["recipe"] == "flm" else None
        if flm is not None and release(self.version) >= (10, 10) and not self.config["flm"].get("prefer_system"):
            raise RuntimeError("flm is not installed: flm.prefer_system is false")
        if flm is not None:
            subprocess.run([flm, "pull", known["checkpoint"]], stdout=subprocess.DEVNULL, check=False, timeout=60)
            kind = ["--asr", "1"] if "transcription" in known["labels"] else []
            kind = ["--embed", "1"] if "embeddings" in known["labels"] else kind
            length = ["--ctx-len", str(options["ctx_size"])] if options.get("ctx_size", -1) > 0 else []
            command = [flm, "serve", *([] if kind else [known["checkpoint"]]), *kind, *length, "--port", str(port)]
            command += ["--host", "127.0.0.1", *str(options.get("flm_args") or "").split(), "--quiet"]
            health = "/api/tags"
        else:
            program = self._llama_server() if known["recipe"] == "llamacpp" else str(HERE / "llama-server")
            file = known["checkpoint"] if known["checkpoint"].startswith("/") else f"/models/{name}.gguf"
            command = [program, "-m", file, "--ctx-size", str(options.get("ctx_size", -1))]
            command += ["--port", str(port), "--jinja", *(["--metrics"] if release(self.version) >= (10, 7) else [])]
            labels = {"embeddings": "--embeddings", "reranking": "--reranking"}
            command += [labels[label] for label in known["labels"] if label in labels]
            command += shlex.split(str(options.get("llamacpp_args") or ""))
            health = "/health"
        keyed = known["recipe"] == "llamacpp"
        env = {name: value for name, value in os.environ.items() if keyed or name != "LLAMA_API_KEY"}
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, env=env)
        backend = Backend(name, known, process, port, command, options, False)
        while process.poll() is None:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}{health}", timeout=2):
                    return backend
            except OSError:
                time.sleep(0.02)
        raise RuntimeError(said["fail"].get(name) or f"{known['recipe']} exited with status {process.returncode}")

    def _llama_server(self) -> str:
        """Of what the settings name, of PATH, or fetched. There is no GPU here."""
        settings_of = self.config["llamacpp"]
        named = os.environ.get("LEMONADE_LLAMACPP_CPU_BIN") or settings_of.get("cpu_bin", "builtin")
        if settings_of.get("prefer_system") and (found := shutil.which("llama-server")):
            return found
        if named.startswith("/"):
            if not os.path.exists(named):
                raise RuntimeError(f"'llamacpp.cpu_bin' path is wrong: {named}")
            return str(named)
        if self.config.get("no_fetch_executables") and release(self.version) >= (10, 3):
            raise RuntimeError("Fetching executable artifacts is disabled for llamacpp:cpu")
        note({"path": "fetch", "what": "llamacpp:cpu"})
        raise RuntimeError("Failed to download llama-server from: https://github.invalid - Couldn't resolve host name")

    def health(self) -> dict[str, Any]:
        time.sleep(settings()["health_seconds"])
        with self.lock:
            shown = [one for one in self.loaded if self._shown(one)]
            found = [self._entry(one) for one in shown]
        last = max(shown, key=lambda one: one.last_use, default=None)
        most = self.config.get("max_loaded_models", 1)
        said: dict[str, Any] = {
            "status": "ok", "version": self.version, "websocket_port": self.websocket_port,
            "model_loaded": last.model if last else None, "all_models_loaded": found,
            "max_models": dict.fromkeys(("llm", "embedding", "reranking", "transcription", "image", "tts"), most),
        }  # fmt: skip
        if release(self.version) >= (10, 8):
            said["pinned_models"] = {"llm": sum(one.pinned for one in shown)}
        return said

    def _entry(self, one: Backend) -> dict[str, Any]:
        said = {
            "model_name": one.model, "checkpoint": one.entry["checkpoint"], "last_use": int(one.last_use * 1000),
            "type": one.type, "device": one.device, "recipe": one.entry["recipe"], "recipe_options": one.options,
            "backend_url": f"http://127.0.0.1:{one.port}/v1",
        }  # fmt: skip
        version = release(self.version)
        if version >= (10, 4):
            said["pid"] = one.process.pid
        if version >= (10, 8):
            said |= {"pinned": one.pinned, "is_busy": one.busy > 0, "is_streaming": False}
        if version > (11, 7, 0):
            said["launch_command"] = one.command
        return said


class Server(ThreadingHTTPServer):
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # a client that has gone
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    """One connection of a client."""

    protocol_version = "HTTP/1.1"
    router: Router
    key = ""
    stop: Any = None

    def do_GET(self) -> None:
        self._serve({})

    def do_POST(self) -> None:
        self._raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        try:
            self._serve(json.loads(self._raw or b"{}") if self.headers.get_content_type() == "application/json" else {})
        except ValueError:
            self._answer(400, {"error": {"message": "Invalid request", "code": "invalid_request"}})

    def _serve(self, body: dict[str, Any]) -> None:
        path = self.path.partition("?")[0]
        given = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        note({"path": path, "method": self.command, "key": given, "body": body})
        if path == "/live":
            self._answer(200, {"status": "ok"})
            return
        if self.key and given != self.key:
            self._answer(401, {"error": {"message": "Invalid or missing API key", "type": "authentication_error"}})
            return
        for prefix in ("/api/v0", "/api/v1", "/v0", "/v1"):
            if path.startswith(prefix + "/"):
                path = path.removeprefix(prefix)
                break
        try:
            self._route(path, body)
        except Refusal as error:
            message = {"error": str(error)} if not error.code else {"error": {
                "message": str(error), "type": error.code, "code": error.code, "param": "model",
                "requested_model": body.get("model_name")}}  # fmt: skip
            self._answer(error.status, message)

    def _route(self, path: str, body: dict[str, Any]) -> None:
        router, version = self.router, release(self.router.version)
        match path:
            case "/health":
                self._answer(200, router.health())
            case "/models":
                every = "show_all=true" in self.path
                self._answer(200, {"object": "list", "data": [
                    {"id": name, "object": "model", "owned_by": "lemonade"} | one
                    for name, one in router.models().items() if every or one["downloaded"]]})  # fmt: skip
            case "/load":
                self._answer(200, router.load(body))
            case "/unload":
                router.unload(body.get("model_name") or "")
                self._answer(200, {"status": "success", "message": "Model unloaded successfully"})
            case "/internal/pin" if version >= (10, 8):
                there = router.find(body.get("model_name") or body.get("model") or "")
                if there is None:
                    raise Refusal(400, "invalid_request_error", "Model not loaded")
                there.pinned = body["pinned"]
                self._answer(200, {"status": "success", "pinned": there.pinned})
            case "/internal/shutdown" if version >= (10, 2):
                self._answer(200, {"status": "shutting down"})
                self.stop()
            case "/messages":
                self._messages(body)
            case ("/chat/completions" | "/completions" | "/embeddings" | "/reranking" | "/responses"
                  | "/audio/transcriptions"):  # fmt: skip
                self._forward(path, body)
            case _:
                self._answer(404, {"error": {"message": f"The requested endpoint does not exist: {path}"}})

    def _messages(self, body: dict[str, Any]) -> None:
        """Anthropic's, translated for the backend."""
        backend = self._backend(body.get("model") or "")
        asked = {"messages": body.get("messages"), "max_tokens": body.get("max_tokens", 1)}
        with self._ask(backend, "/chat/completions", asked) as answer:
            said = json.loads(answer.read())["choices"][0]["message"]["content"]
        content = [{"type": "text", "text": said}]
        self._answer(200, {"type": "message", "role": "assistant", "model": body.get("model"), "content": content,
                           "stop_reason": "end_turn", "stop_sequence": None})  # fmt: skip

    def _backend(self, name: str) -> Backend:
        """Of the model, which is loaded when it is not."""
        name = name.removeprefix("user.")
        if self.router.find(name) is None:
            self.router.load({"model_name": name})
        backend = self.router.find(name)
        assert backend is not None
        return backend

    @staticmethod
    def _ask(backend: Backend, path: str, body: dict[str, Any]) -> Any:
        url, headers = f"http://127.0.0.1:{backend.port}/v1{path}", {"Content-Type": "application/json"}
        return urllib.request.urlopen(urllib.request.Request(url, json.dumps(body).encode(), headers), timeout=60)

    def _forward(self, path: str, body: dict[str, Any]) -> None:
        """To the backend of the model."""
        name = body.get("model") or ""
        if not name and b'name="model"' in self._raw:
            name = self._raw.split(b'name="model"', 1)[1].split(b"\r\n\r\n", 1)[1].split(b"\r\n", 1)[0].decode()
        backend = self._backend(name)
        backend.busy, backend.last_use = backend.busy + 1, time.time()
        try:
            with self._ask(backend, path, {**body, "model": backend.entry["checkpoint"]} if body else {}) as answer:
                kind, said = answer.headers.get_content_type(), answer.read()
            if kind == "application/json" and backend.entry["recipe"] == "llamacpp":
                said = json.dumps({**json.loads(said), "model": name}).encode()
            self._raw_answer(200, said, kind)
        except urllib.error.HTTPError as error:
            self._raw_answer(error.code, error.read(), "application/json")
        finally:
            backend.busy -= 1

    def _answer(self, status: int, said: Any) -> None:
        self._raw_answer(status, json.dumps(said).encode(), "application/json")

    def _raw_answer(self, status: int, data: bytes, kind: str) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are noted elsewhere."""


def note(what: dict[str, Any]) -> None:
    """A line in the file that the test has named."""
    file = settings()["log"]
    if file:
        with open(file, "a") as log:
            log.write(json.dumps(what) + "\n")


def free_port(first: int = 8001) -> int:
    """From 8001 up, as there; not all servers of a test machine begin at the same one."""
    first = first + os.getpid() * 61 % 20000
    for port in range(first, first + 1000):
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                sock.bind(("127.0.0.1", port))
                return port
    raise RuntimeError("no free port")


def serve(version: str, config: dict[str, Any], registered: dict[str, Any] | None = None) -> int:
    """Until it is told to end; its exit status."""
    said = settings()
    if said["start_fails"]:
        print(said["start_fails"], flush=True)
        return 1
    time.sleep(said["start_seconds"])
    router = Router(version, config, registered or {})
    stopping = threading.Event()
    Handler.router, Handler.key, Handler.stop = router, os.environ.get("LEMONADE_API_KEY", ""), stopping.set
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    host, port = config["host"], int(config["port"])
    try:
        server = Server(("127.0.0.1" if host == "localhost" else host, port), Handler)
    except OSError as error:
        print(f"Error: Failed to bind to {host}:{port}: {error.strerror}", flush=True)
        return 1
    server.daemon_threads = True
    live = socket.create_server((server.server_address[0], free_port(9000)))  # of its WebSockets
    router.websocket_port = live.getsockname()[1]
    print(f"Starting Lemonade Server... Version: {version} Port: {port}", flush=True)
    note({"path": "start", "argv": sys.argv[1:], "env": {k: v for k, v in os.environ.items() if "LEMON" in k}})
    threading.Thread(target=server.serve_forever, daemon=True).start()
    stopping.wait()
    print("Shutdown signal received, exiting...", flush=True)
    for one in list(router.loaded):
        with contextlib.suppress(ProcessLookupError):
            one.process.terminate()
    for one in list(router.loaded):
        try:
            one.process.wait(5)
        except subprocess.TimeoutExpired:
            one.process.kill()
            one.process.wait()
    return 0


def single_instance() -> int | None:
    """10.0 runs once: the descriptor of its lock, None when another one has it."""
    base = Path(os.environ.get("XDG_RUNTIME_DIR") or "/tmp")
    folder = base / "lemonade"
    folder.mkdir(exist_ok=True)
    descriptor = os.open(folder / "lemonade_Router.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def merged(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    return old | {
        key: merged(old[key], value) if isinstance(value, dict) and isinstance(old.get(key), dict) else value
        for key, value in new.items()
    }
