"""`flm serve` of the stand-in: FastFlowLM's HTTP, its one lock and its queue, its server without a model.

Errors are answered with status 200 and {"error": …}, as there, unless their code is 400.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import sys
import threading
import time
from collections import deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

NOBODY = "model-faker"  # what its own books call it when there is no model
LOCKED = ("/api/generate", "/api/chat", "/v1/chat/completions", "/v1/audio/transcriptions", "/v1/embeddings")
WORDS = ("The", " NPU", " says", " hello", " to", " you", " and", " yours")


def crash() -> None:
    """A segmentation fault: no line of this thread runs after it."""
    signal.pthread_kill(threading.get_ident(), signal.SIGSEGV)
    time.sleep(3600)


class Refused(Exception):
    """The model cannot be had."""


class Npu:
    """One job at a time, the others in order, and no more than so many."""

    def __init__(self, length: int, settings: Any) -> None:
        self._length = length
        self._settings = settings
        self._lock = threading.Lock()
        self._waiting: deque[threading.Event] = deque()
        self.active = 0

    def enter(self) -> bool:
        """Wait for the turn; False when too many wait."""
        with self._lock:
            if not self.active:
                self.active = 1
                return True
            if len(self._waiting) >= self._length:
                return False
            turn = threading.Event()
            self._waiting.append(turn)
        turn.wait()
        return True

    def leave(self) -> None:
        with self._lock:
            if not self._waiting:
                self.active = 0
                return
        time.sleep(self._settings.cooldown)
        with self._lock:
            self._waiting.popleft().set()


class Flm:
    """What is loaded."""

    def __init__(self, args: dict[str, Any], settings: Any, store: Any, models: dict[str, Any], say: Any) -> None:
        self.args, self.settings, self.store, self.models, self.say = args, settings, store, models, say
        self.current = NOBODY
        self.npu = Npu(args["q_len"], settings)
        self.connections = 0
        self.books = threading.Lock()
        self.held = b""
        asked = args["ctx_len"]
        self.context = None if asked == -1 else 1 << (max(asked, 512) - 1).bit_length()

    def begin(self, tag: str) -> None:
        """As its constructor does: the server listens only after that."""
        for key, own, what in (("asr", "whisper-v3:turbo", "ASR"), ("embed", "embed-gemma:300m", "embedding")):
            if self.args.get(key):
                try:
                    self.load(own)
                except Refused:
                    self.say(f"Failed to load {what} model: CREATE_HWCTX failed, err -22", "ERROR")
                    os._exit(1)
        if tag:
            try:
                self.switch(tag)
            except Refused:
                self.say(f"Failed to load default model: {tag}", "Error")

    def load(self, tag: str) -> None:
        if not self.store.installed(tag):
            self.store.pull(tag, self.settings)
        time.sleep(self.settings.load_seconds)
        if tag in self.settings.crash:
            crash()
        if tag in self.settings.broken or not self.store.installed(tag):
            self.say("Failed to load model: DRM_IOCTL_AMDXDNA_CREATE_HWCTX IOCTL failed (err=-22)", "ERROR")
            raise Refused
        self.held = b"\1" * (self.settings.allocate_mib << 20)

    def switch(self, name: str) -> str:
        """Another model than the loaded one is loaded when a request names it; what it does not know is llama3.2:1b."""
        tag = name.partition("/")[2] or name
        if tag not in self.models:
            tag = "llama3.2:1b"
        if tag != self.current:
            self.settings.note(switch=[self.current, tag])
            self.current = NOBODY
            self.load(tag)
            self.current = tag
        return tag


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "Boost.Beast", ""
    flm: Flm

    def setup(self) -> None:
        super().setup()
        with self.flm.books:
            self.flm.connections += 1
            self.full = self.flm.connections > self.flm.args["socket"]

    def handle(self) -> None:
        if not self.full:  # else it hangs up without a word
            super().handle()

    def finish(self) -> None:
        with self.flm.books:
            self.flm.connections -= 1
        super().finish()

    def log_message(self, form: str, *args: Any) -> None:
        if not self.flm.args.get("quiet"):
            self.flm.say(form % args, "LOG")

    def do_GET(self) -> None:
        self.flm.settings.note(get=self.path, authorization="authorization" in self.headers)
        version = {"version": self.flm.settings.version}
        shown = [tag for tag in self.flm.models if not tag.startswith(("whisper", "embed"))]
        now = int(time.time())
        if self.path in ("/api/version", "/v1/version"):
            self.answer(version)
        elif self.path == "/api/tags":
            self.answer({"models": [{"name": tag, "model": tag, "details": {}} for tag in shown]})
        elif self.path == "/v1/models":
            entries = [{"id": tag, "object": "model", "created": now, "owned_by": "FastFlowLM"} for tag in shown]
            self.answer({"object": "list", "data": entries})
        elif self.path == "/api/npu/status":
            free = not self.flm.npu.active
            says = "NPU is available" if free else "NPU is currently in use"
            self.answer({"npu_available": free, "active_requests": self.flm.npu.active, "message": says})
        elif self.path == "/api/ps":
            if self.flm.current == NOBODY:  # it looks its own placeholder up in the list of models
                crash()
            self.answer({"models": [{"name": self.flm.current, "model": self.flm.current, "size": 0, "details": {}}]})
        else:
            self.answer({"error": "Not Found"}, 404)

    def do_OPTIONS(self) -> None:
        self.answer({}, 204)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        kind = self.headers.get("Content-Type", "")
        routes = {
            "/v1/chat/completions": self.chat, "/v1/completions": self.complete, "/v1/embeddings": self.embed,
            "/api/embeddings": self.embed, "/api/chat": self.ollama, "/api/generate": self.ollama,
            "/v1/audio/transcriptions": self.transcribe, "/api/show": self.show, "/api/pull": self.pull,
            "/api/cancel": self.cancel,
        }  # fmt: skip
        run = routes.get(self.path)
        request: Any = {}
        if run is None:
            return self.answer({"error": "Not Found"}, 404)
        if run == self.transcribe:
            request = multipart(body, kind)
        elif body:
            try:
                request = json.loads(body)
            except ValueError:
                return self.answer({"error": "Invalid JSON"}, 400)
        self.flm.settings.note(
            post=self.path,
            model=request.get("model"),
            keys=sorted(request),
            authorization="authorization" in self.headers,
        )
        for message in request.get("messages", []):  # --quiet or not: what is short is printed as it is
            text = str(message.get("content"))
            print(text if len(text) <= 20 else f"{text[:10]}...{text[-10:]}", flush=True)
        if "input" in request:
            print(f"Embedding input[0]:\n{request['input']}", flush=True)
        if self.path not in LOCKED:
            return self.handled(run, request)
        if not self.flm.npu.enter():
            limit = self.flm.args["q_len"]
            text = f"NPU is in use and request queue is full (limit: {limit}). Please try again later."
            return self.answer({"error": text}, 503)
        try:
            return self.handled(run, request)
        finally:
            threading.Thread(target=self.flm.npu.leave).start()

    def handled(self, run: Any, request: dict[str, Any]) -> None:
        try:
            run(request)
        except Refused:
            self.answer({"error": f"Failed to load {request.get('model', self.flm.current)} model!"})
        except (KeyError, TypeError) as error:
            self.answer({"error": {"message": f"key {error} not found", "type": "server_error", "code": 500}})
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
            self.flm.settings.note(cancelled=self.path)

    def answer(self, what: Any, status: int = 200) -> None:
        if isinstance(what, dict) and isinstance(what.get("error"), dict) and what["error"].get("code") == 400:
            status = 400
        body = json.dumps(what).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.cors()
        self.end_headers()
        self.wfile.write(body)

    def cors(self) -> None:
        if self.flm.args.get("cors"):
            self.send_header("Access-Control-Allow-Origin", "*")

    def begin_stream(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Cache-Control", "no-cache")
        self.send_header("Connection", "keep-alive")
        self.send_header("Transfer-Encoding", "chunked")
        self.cors()
        self.end_headers()
        self.close_connection = False

    def event(self, what: Any) -> None:
        data = f"data: {what if isinstance(what, str) else json.dumps(what)}\n\n".encode()
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))

    def words(self, request: dict[str, Any]) -> Any:
        """The answer, word by word, in its own time."""
        flm = self.flm
        if flm.settings.crash_on and flm.settings.crash_on in json.dumps(request):
            crash()
        most = request.get("max_tokens", request.get("max_completion_tokens", 4096))
        self.idle(flm.settings.first_token_seconds)
        for number in range(min(most, flm.settings.tokens)):
            if number:
                self.idle(flm.settings.token_seconds)
            yield WORDS[number % len(WORDS)]

    def idle(self, seconds: float) -> None:
        """Compute for so long, unless the client goes."""
        end = time.monotonic() + seconds
        while True:
            left = end - time.monotonic()
            gone, _, _ = select.select([self.connection], [], [], max(0.0, min(left, 0.05)))
            if gone and not self.connection.recv(1, socket.MSG_PEEK):
                raise BrokenPipeError
            if left <= 0:
                return
            if gone:  # the next request waits there already
                time.sleep(max(0.0, left))
                return

    def usage(self, count: int, began: float) -> dict[str, Any]:
        took = max(time.monotonic() - began, 1e-6)
        return {
            "prompt_tokens": 4,
            "completion_tokens": count,
            "total_tokens": 4 + count,
            "kv_token_occupancy_rate_percentage": 0.1,
            "load_duration": 0.0,
            "prefill_duration_ttft": took / 2,
            "decoding_duration": took / 2,
            "prefill_speed_tps": 8 / took,
            "decoding_speed_tps": 2 * count / took,
        }

    def chat(self, request: dict[str, Any]) -> None:
        messages, model = request["messages"], request.get("model", self.flm.current)
        self.flm.switch(model)
        began, count = time.monotonic(), 0
        about = {"id": "fastflowlm-chat-completion", "created": int(time.time()), "model": model}
        if not messages:
            raise KeyError("messages")
        if not request.get("stream"):
            text = "".join(self.words(request))
            count = min(request.get("max_tokens", 4096), self.flm.settings.tokens)
            choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
            usage = self.usage(count, began)
            self.answer({**about, "object": "chat.completion", "choices": [choice], "usage": usage})
            return
        about = {**about, "object": "chat.completion.chunk"}
        for word in self.words(request):
            if not count:
                self.begin_stream()
            count += 1
            delta = {"role": "assistant", "content": word}
            self.event({**about, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]})
        last = {"index": 0, "delta": {"content": None}, "finish_reason": "stop"}
        self.event({**about, "choices": [last], "usage": self.usage(count, began)})
        self.event("[DONE]")
        self.wfile.write(b"0\r\n\r\n")

    def complete(self, request: dict[str, Any]) -> None:
        """Outside the lock, as there."""
        request["prompt"].strip()
        model = request.get("model", self.flm.current)
        if model not in self.flm.models:
            raise KeyError(f"Model {model} is not supported.")
        self.flm.switch(model)
        about = {"id": "fastflowlm-chat-completion", "object": "text_completion", "model": model}
        text, began = "".join(self.words(request)), time.monotonic()
        choice = {"text": text, "index": 0, "logprobs": None, "finish_reason": "stop"}
        usage = {key: value for key, value in self.usage(8, began).items() if key.endswith("_tokens")}
        if not request.get("stream"):
            self.answer({**about, "created": int(time.time()), "choices": [choice], "usage": usage})
            return
        self.begin_stream()
        self.event({**about, "choices": [{**choice, "finish_reason": None}]})
        self.event({**about, "choices": [{"finish_reason": "stop"}], "usage": usage})
        self.event("[DONE]")
        self.wfile.write(b"0\r\n\r\n")

    def ollama(self, request: dict[str, Any]) -> None:
        self.flm.switch(request.get("model", self.flm.current))
        text = "".join(self.words({"max_tokens": 8}))
        said = {"message": {"role": "assistant", "content": text}} if self.path == "/api/chat" else {"response": text}
        self.answer({"model": self.flm.current, **said, "done": True, "done_reason": "stop"})

    def embed(self, request: dict[str, Any]) -> None:
        """A server without --embed 1 answers "null"."""
        model, asked = request["model"], request["input"]
        if not self.flm.args.get("embed"):
            self.answer(None)
            return
        inputs = [asked] if isinstance(asked, str) else list(asked)
        data = [
            {"object": "embedding", "embedding": [0.1, float(len(text))], "index": i} for i, text in enumerate(inputs)
        ]
        self.answer({"object": "list", "data": data, "model": model, "usage": {"prompt_tokens": 0, "total_tokens": 0}})

    def transcribe(self, request: dict[str, Any]) -> None:
        """A server without --asr 1 answers "null"."""
        if not self.flm.args.get("asr"):
            self.answer(None)
            return
        if not request["file"].startswith(b"RIFF"):
            raise KeyError("no audio stream")
        list(self.words({"max_tokens": 1}))
        self.answer({"model": request["model"], "text": f"{len(request['file'])} bytes of sound"})

    def show(self, request: dict[str, Any]) -> None:
        self.answer({"modelfile": "", "details": {"family": request["model"]}, "capabilities": ["chat", "completion"]})

    def pull(self, request: dict[str, Any]) -> None:
        self.answer({"error": "Pull operation not implemented"})

    def cancel(self, request: dict[str, Any]) -> None:
        self.answer({"cancelled": False, "message": "Request not found or already completed"})


def multipart(body: bytes, kind: str) -> dict[str, Any]:
    """The parts by name: what has a file's name as bytes, the others as text."""
    found: dict[str, Any] = {}
    tag = b"--" + kind.partition("boundary=")[2].strip().strip('"').encode()
    for part in body.split(tag)[1:-1]:
        head, _, content = part.removeprefix(b"\r\n").partition(b"\r\n\r\n")
        content = content.removesuffix(b"\r\n")
        name = head.decode(errors="replace").partition('name="')[2].partition('"')[0]
        found[name] = content if b"filename=" in head else content.decode(errors="replace")
    return found


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


def serve(args: dict[str, Any], tag: str, port: int, settings: Any, store: Any, models: Any, say: Any) -> int:
    """Until it is interrupted, or told `exit` by who holds its standard input."""
    flm = Flm(args, settings, store, models, say)
    say(f"Using user-specified port: {port}")
    if args["ctx_len"] != -1:
        say(f"Context length: {flm.context}")
    flm.begin(tag)
    try:
        server = Server((args["host"], port), type("Bound", (Handler,), {"flm": flm}))
    except OSError:
        print("Error: bind: Address already in use", file=sys.stderr, flush=True)
        return 1
    say(f"Starting server on port {port}...")
    settings.note(serving=port, current=flm.current)

    def listen() -> None:
        for line in sys.stdin:
            settings.note(told=line.strip())
            if line.strip() in ("exit", "quit", "/bye"):
                os._exit(0)

    threading.Thread(target=listen, daemon=True).start()
    server.serve_forever()
    return 0
