"""What the fake server says: its log, its records for the tests, its responses, and what goes wrong with them."""

import json
import os
import select
import socket
import time


def say(text):
    try:
        os.write(2, (text + "\n").encode())
    except BrokenPipeError:
        return  # whoever read it was killed


def note(event, **more):
    path = os.environ.get("FAKE_LOG")
    if path:
        record = {"event": event, "pid": os.getpid(), "t": time.monotonic(), **more}
        fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.write(fd, (json.dumps(record) + "\n").encode())
        os.close(fd)


def leave(status):
    note("exit", status=status)
    os._exit(status)


class Modes:
    """FAKE_MODE as a mapping from mode to its argument."""

    def __init__(self, text):
        self._modes = {}
        for part in text.split(","):
            name, _, argument = part.strip().partition(":")
            if name:
                self._modes[name] = argument

    def __contains__(self, name):
        return name in self._modes

    def number(self, name, default=0.0):
        return float(self._modes.get(name) or default)

    def text(self, name):
        return self._modes.get(name, "")


class Cut(OSError):
    """A mode ends the connection here."""


class Answer:
    """Writes one response."""

    def __init__(self, server, sock, keep):
        self.server = server
        self.sock = sock
        self.keep = keep
        self.tokens = 0
        self.chunked = False

    def check(self):
        """OSError when the client has gone."""
        ready, _, _ = select.select([self.sock], [], [], 0)
        if ready and not self.sock.recv(1, socket.MSG_PEEK):
            raise ConnectionResetError("the client has gone")

    def wait(self, seconds):
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self.check()
            time.sleep(min(left, 0.01))

    def head(self, status, kind, length=None, extra=""):
        framing = f"Content-Length: {length}" if length is not None else "Transfer-Encoding: chunked"
        self.chunked = length is None
        close = "" if self.keep else "Connection: close\r\n"
        text = f"HTTP/1.1 {status} X\r\nServer: fake\r\nContent-Type: {kind}\r\n{extra}{close}{framing}\r\n\r\n"
        self.sock.sendall(text.encode())

    def chunk(self, data):
        self.sock.sendall(b"%x\r\n%s\r\n" % (len(data), data))

    def last_chunk(self):
        self.sock.sendall(b"0\r\n\r\n")

    def whole(self, status, value, extra="", kind="application/json; charset=utf-8"):
        data = json.dumps(value).encode()
        self.head(status, kind, len(data), extra)
        self.sock.sendall(data)

    def error(self, status, kind, message):
        self.whole(status, {"error": {"code": status, "message": message, "type": kind}})


class Generation:
    """The tokens of one answer, and what goes wrong with them."""

    def __init__(self, modes, request, path, model):
        self.modes = modes
        self.request = request
        self.path = path
        self.model = model
        wanted = request.get("max_tokens") or request.get("max_completion_tokens") or request.get("n_predict")
        count = int(os.environ.get("FAKE_TOKENS", "8"))
        self.count = min(count, int(wanted)) if wanted and int(wanted) > 0 else count
        self.delay = modes.number("slow-token", float(os.environ.get("FAKE_DELAY_MS", "0"))) / 1000
        self.chat = path.endswith("chat/completions")

    def answer(self, answer):
        modes, sock = self.modes, answer.sock
        if "infer-hang" in modes:
            answer.wait(3600)
        if "health-ok-infer-500" in modes:
            return answer.error(500, "server_error", "device lost")
        if "die-before-headers" in modes:
            raise Cut("die-before-headers")
        if "bad-headers" in modes:
            sock.sendall(b"HTTP/1.1 200 OK\r\nthis is no header\r\n: nor this\r\n\r\n")
            raise Cut("bad-headers")
        if "1xx" in modes:
            sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n")
        extra = f"X-Huge: {'h' * 65536}\r\n" if "huge-header" in modes else ""
        if self.path.endswith("embeddings"):
            return self.embeddings(answer, extra)
        if not self.request.get("stream"):
            for _ in range(self.count):
                self.token_pause(answer)
            whole = self.timed(answer.server.options) if self.path == "/completion" else self.full()
            return answer.whole(200, whole, extra, self.kind("application/json; charset=utf-8"))
        return self.stream(answer, extra)

    def kind(self, right):
        return "text/html" if "wrong-ctype" in self.modes else right

    def token_pause(self, answer):
        if answer.tokens >= 2 and "stall-token" in self.modes:
            answer.wait(3600)
        if answer.tokens >= 2 and "die-mid-stream" in self.modes:
            leave(3)
        if answer.tokens >= 2 and "cut-mid-stream" in self.modes:
            raise Cut("cut-mid-stream")
        if self.delay:
            answer.wait(self.delay)
        answer.check()
        answer.tokens += 1

    def stream(self, answer, extra):
        answer.head(200, self.kind("text/event-stream"), None, extra)
        if "garbage-sse" in self.modes:
            answer.chunk(b"data: {not json\n\n\xff\xfe\x00garbage without a colon\n\ndata:\n\n")
        if "huge-line" in self.modes:
            answer.chunk(b"data: " + b"h" * (1 << 20))
            answer.chunk(b"\n\n")
        if self.chat:
            self.event(answer, {"role": "assistant", "content": None}, None)
        for index in range(self.count):
            self.token_pause(answer)
            text = f"t{index} "
            self.event(answer, {"content": text} if self.chat else text, None)
        usage = bool((self.request.get("stream_options") or {}).get("include_usage"))
        self.event(answer, {} if self.chat else "", "length", None if usage and self.chat else self.usage())
        if usage and self.chat:
            answer.chunk(self.sse({**self.frame(), "choices": [], "usage": self.usage()}))
        answer.chunk(b"data: [DONE]\n\n")
        answer.last_chunk()

    def event(self, answer, piece, finish, usage=None):
        choice = {"index": 0, "finish_reason": finish, "delta" if self.chat else "text": piece}
        value = {"choices": [choice], **self.frame()}
        if usage is not None and not self.chat:
            value["usage"] = usage
        answer.chunk(self.sse(value))

    def sse(self, value):
        return b"data: " + json.dumps(value).encode() + b"\n\n"

    def frame(self):
        kind = "chat.completion.chunk" if self.chat else "text_completion"
        return {"id": "fake-1", "object": kind, "created": 1, "model": self.model}

    def usage(self):
        prompt = self.request.get("prompt") or self.request.get("messages") or self.request.get("input") or ""
        size = len(prompt if isinstance(prompt, str) else json.dumps(prompt))
        return {"prompt_tokens": size, "completion_tokens": self.count, "total_tokens": size + self.count}

    def full(self):
        text = "".join(f"t{index} " for index in range(self.count))
        content = {"message": {"role": "assistant", "content": text}} if self.chat else {"text": text}
        return {
            **self.frame(),
            "object": "chat.completion" if self.chat else "text_completion",
            "choices": [{"index": 0, "finish_reason": "length", **content}],
            "usage": self.usage(),
        }

    def timed(self, options):
        """An answer in llama.cpp's own shape, with how fast it was."""
        speeds = (1000.0, 100.0)
        for flag, found in json.loads(os.environ.get("FAKE_SPEEDS", "{}")).items():
            name, _, value = flag.partition(" ")
            if not name or options.get(name) == value:
                speeds = found
        return {"content": "", "timings": {"prompt_per_second": speeds[0], "predicted_per_second": speeds[1]}}

    def embeddings(self, answer, extra):
        given = self.request.get("input", "")
        inputs = given if isinstance(given, list) else [given]
        data = [{"object": "embedding", "index": i, "embedding": [0.5, -0.5]} for i in range(len(inputs))]
        answer.whole(200, {"object": "list", "model": self.model, "data": data, "usage": self.usage()}, extra)
