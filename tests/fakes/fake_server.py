#!/usr/bin/env -S python3 -S -E
"""A stand-in for llama-server that starts in a few dozen milliseconds and misbehaves on demand; standard library only.

Run it, or a symlink to it; a copy would miss the two modules beside it. It takes llama-server's command line, --help
and --version too (an unknown flag is an error, the model's file is never looked at), listens on a unix socket or on
TCP, wants the key of LLAMA_API_KEY everywhere but at /health, runs --parallel requests at once (4), and answers in
OpenAI's shape: /v1/models, /v1/chat/completions, /v1/completions, /v1/embeddings; streamed or not, keep-alive; and in
llama.cpp's own /tokenize and /completion. It prints to stderr.

Environment
  FAKE_MODE       comma-separated modes, see below; empty or "ok": a good server
  FAKE_MODE_FILE  a file with FAKE_MODE's text, read at every request: changes the answers' modes of a live server
  FAKE_TOKENS     tokens of an answer (8); a request's max_tokens makes it shorter. Token i is the text "t<i> "
  FAKE_DELAY_MS   before each token (0)
  FAKE_DEVICES    what --list-devices names, "Vulkan0: a GPU (RADV) (8 MiB, 8 MiB free)"; "(none)" without it
  FAKE_SPEEDS     JSON {"-ub 1024": [500, 40]}: tokens a second of prompt and answer, as /completion reports them of a
                  server with such a flag; of several that fit the last; "" fits all
  FAKE_FORK       if set: the command line of a fork, which takes its key from a file and tells its models to everyone
  FAKE_LOG        JSON lines are appended to this file: {"event": …, "pid", "t" (monotonic s), …}
                  spawn {argv, env (names)} · ready · term · exit {status} · bystander (a grandchild)
                  start {id, path, stream, active (requests now in the server), key_ok}
                  then one of end {id, tokens} · disconnect {id, tokens} (the client went) · cut {id, tokens} (a mode)

Modes of the process
  exit:N              exits with N before it listens
  words:PATH          prints the text of a file before that
  once:PATH           those two only when that file is not there; it is made
  exit-late:S:N       becomes ready, exits with N after S seconds
  never-listen        lives on without a socket
  bind-fail           says that the address is taken, exits with 1
  health-503          loads for ever
  slow-load:S         loads for S seconds
  chatter:MS          prints a line every MS while it loads or does not listen
  alloc:N             touches N bytes of memory before it listens
  grow:N              touches N more bytes every 100 ms while it loads
  ignore-term         SIGTERM has no effect
  hang-on-term:PATH   SIGTERM looks at a file: on a file system that does not answer nothing ends it then
  slow-term           SIGTERM waits for the running requests
  fork-wrapper        a parent that does not forward signals; the server is its child
  fork-wrapper-exit   the same, and the parent exits with 0 at once
  setsid-grandchild   one more process, in a session of its own
  hold-stdout         one more process, that holds the output open
  flood               prints lines without end
  binary-output       prints bytes that are no text, without newlines
  foreign-ok          answers 200 to every path, whatever the key
  wrong-key           takes no key at all
  key-words           prints a line for each wrong key
Modes of the answers (not of /health and /v1/models)
  health-ok-infer-500  infer-hang  die-before-headers (the connection)  die-mid-stream (the process, after two tokens)
  cut-mid-stream (the connection, after two tokens)  slow-token:MS  stall-token (silent after two tokens)  garbage-sse
  huge-line (1 MiB)  bad-headers  huge-header (64 KiB)  wrong-ctype  1xx (two interim answers first)
"""

import json
import os
import select
import signal
import socket
import sys
import threading
import time

import fake_server_cli
from fake_server_answers import Answer, Cut, Generation, Modes, leave, note, say


class Server:
    def __init__(self, options, modes):
        self.options = options
        self.modes = modes
        self.fork = bool(os.environ.get("FAKE_FORK"))
        self.key = os.environ.get("LLAMA_API_KEY", "")
        if self.fork:
            with open(options["--api-key-file"]) as file:
                self.key = file.read().strip()
        self.loaded = threading.Event()
        self.ending = False
        self.active = 0
        self.count = 0
        self.lock = threading.Lock()
        slots = int(options.get("-np", options.get("--parallel", "4")))
        self.slots = threading.Semaphore(slots if slots > 0 else 4)
        self.name = options.get("--alias", options.get("-a", options.get("--model", options.get("-m", "fake"))))

    def request_modes(self):
        path = os.environ.get("FAKE_MODE_FILE")
        if path:
            try:
                with open(path) as file:
                    return Modes(file.read())
            except OSError:
                return self.modes
        return self.modes

    def listeners(self):
        """Bound sockets; exits with llama-server's words when an address is taken."""
        host = self.options.get("--host", "127.0.0.1")
        port = int(self.options.get("--port", "8080"))
        found = []
        for address in host.split(","):
            if address.endswith(".sock"):
                sock, target, words = socket.socket(socket.AF_UNIX), address, f"unix://{address}"
            else:
                sock, target, words = socket.socket(socket.AF_INET), (address, port), f"http://{address}:{port}"
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                if "bind-fail" in self.modes:
                    raise OSError("taken")
                sock.bind(target)
                sock.listen(128)
            except OSError:
                say(f"E srv start: couldn't bind HTTP server socket, hostname: {address}, port: {port}")
                say("E main: exiting due to HTTP server error")
                leave(1)
            say(f"I main: listening on {words}")
            found.append(sock)
        return found

    def serve(self):
        poll = select.poll()
        listeners = {sock.fileno(): sock for sock in self.listeners()}
        # A signal that comes just before poll() must wake it, or it would be handled at the next connection only.
        woken, waker = socket.socketpair()
        woken.setblocking(False)
        waker.setblocking(False)
        signal.set_wakeup_fd(waker.fileno())
        poll.register(woken.fileno(), select.POLLIN)
        for fd in listeners:
            poll.register(fd, select.POLLIN)
        threading.Thread(target=self.load, daemon=True).start()
        while True:
            for fd, _ in poll.poll():
                if fd == woken.fileno():
                    woken.recv(64)
                    continue
                client, _ = listeners[fd].accept()
                threading.Thread(target=self.converse, args=(client,), daemon=True).start()

    def load(self):
        modes = self.modes
        until = time.monotonic() + modes.number("slow-load")
        step = modes.number("chatter", 100) / 1000
        grown = []
        while "health-503" in modes or time.monotonic() < until:
            if "chatter" in modes:
                say(f"I load: {max(until - time.monotonic(), 0):.2f} s to go")
            if "grow" in modes:
                grown.append(bytearray(b"x") * int(modes.number("grow")))
            time.sleep(min(step, 0.1) if "grow" in modes else step)
        self.loaded.set()
        say("I main: model loaded")
        note("ready")
        if "exit-late" in modes:
            seconds, _, status = modes.text("exit-late").partition(":")
            time.sleep(float(seconds))
            say("E main: exiting as told")
            leave(int(status or "1"))

    def terminate(self, *_):
        note("term")
        if "ignore-term" in self.modes:
            return
        if "hang-on-term" in self.modes:
            os.stat(self.modes.text("hang-on-term"))
        if self.ending:
            leave(1)  # the second signal
        self.ending = True
        threading.Thread(target=self.finish, daemon=True).start()

    def finish(self):
        say("I main: cleaning up before exit...")
        while "slow-term" in self.modes and self.active:
            time.sleep(0.01)
        leave(0)

    # --- one connection -------------------------------------------------------------------------------------------

    def converse(self, sock):
        try:
            reader = sock.makefile("rb")
            while self.exchange(sock, reader):
                continue
        except (OSError, ValueError):
            return  # the client has gone, or speaks no HTTP
        finally:
            sock.close()

    def exchange(self, sock, reader):
        """One request; True: the connection may carry another."""
        line = reader.readline(65536)
        if not line.strip():
            return False
        method, path, _ = line.decode("latin-1").split(" ", 2)
        headers = {}
        while (line := reader.readline(65536)) not in (b"\r\n", b"\n", b""):
            name, _, value = line.decode("latin-1").partition(":")
            headers[name.strip().lower()] = value.strip()
        body = self.body(reader, headers)
        keep = headers.get("connection", "").lower() != "close"
        answer = Answer(self, sock, keep)
        path = path.partition("?")[0]
        given = headers.get("authorization", "").removeprefix("Bearer ") or headers.get("x-api-key", "")
        open_door = "foreign-ok" in self.modes
        key_ok = open_door or ((not self.key or given == self.key) and "wrong-key" not in self.modes)
        healthy = path == "/health" and self.loaded.is_set()
        if healthy or (open_door and not path.startswith("/v1/c")):
            answer.whole(200, {"status": "ok"})
        elif not self.loaded.is_set():
            answer.error(503, "unavailable_error", "Loading model")
        elif not key_ok and not (self.fork and path == "/v1/models"):
            if "key-words" in self.modes:
                say("W srv    operator(): unauthorized: Invalid API Key")
            answer.error(401, "authentication_error", "Invalid API Key")
        elif path == "/v1/models" and method == "GET":
            model = {"id": self.name, "object": "model", "created": 1, "owned_by": "fake"}
            answer.whole(200, {"object": "list", "data": [model]})
        elif method == "POST" and path == "/tokenize":
            answer.whole(200, {"tokens": [len(word) for word in str(json.loads(body).get("content", "")).split()]})
        elif method == "POST" and path in ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/completion"):
            self.infer(answer, path, body, key_ok)
        else:
            answer.error(404, "not_found_error", "File Not Found")
        return keep

    def body(self, reader, headers):
        if headers.get("transfer-encoding", "").lower() != "chunked":
            return reader.read(int(headers.get("content-length", "0")))
        pieces = []
        while size := int(reader.readline(1024).split(b";")[0], 16):
            pieces.append(reader.read(size))
            reader.readline(16)
        reader.readline(16)
        return b"".join(pieces)

    def infer(self, answer, path, body, key_ok):
        try:
            request = json.loads(body)
            stream = bool(request.get("stream"))
        except (ValueError, AttributeError):
            answer.error(500, "server_error", "the body is not a JSON object")
            return
        with self.lock:
            self.count += 1
            number = self.count
            self.active += 1
            active = self.active
        note("start", id=number, path=path, stream=stream, active=active, key_ok=key_ok)
        try:
            while not self.slots.acquire(timeout=0.02):
                answer.check()
            try:
                generation = Generation(self.request_modes(), request, path, self.name)
                generation.answer(answer)
            finally:
                self.slots.release()
            note("end", id=number, tokens=answer.tokens)
        except Cut:
            note("cut", id=number, tokens=answer.tokens)
            raise
        except OSError:
            note("disconnect", id=number, tokens=answer.tokens)
            raise
        finally:
            with self.lock:
                self.active -= 1


# --- the process ------------------------------------------------------------------------------------------------


def flood(piece):
    while True:
        os.write(2, piece)


def bystander():
    """A process that only sleeps, until it is killed."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while True:
        time.sleep(3600)


def fork_others(modes):
    """Processes beside the server. Returns in the process that is to serve."""
    if "fork-wrapper" in modes or "fork-wrapper-exit" in modes:
        server = os.fork()
        if server:
            if "fork-wrapper-exit" in modes:
                os._exit(0)
            os.waitpid(server, 0)
            os._exit(0)
    if "setsid-grandchild" in modes and os.fork() == 0:
        os.setsid()
        note("bystander")
        bystander()
    if "hold-stdout" in modes and os.fork() == 0:
        note("bystander")
        bystander()


def main():
    argv = sys.argv[1:]
    if "--help" in argv or "-h" in argv:
        print(fake_server_cli.FORK if os.environ.get("FAKE_FORK") else fake_server_cli.HELP)
        return
    if "--version" in argv:
        print("version: 1 (fake)\nbuilt with nothing for nowhere", file=sys.stderr)
        return
    if "--list-devices" in argv:
        print(f"Available devices:\n  {os.environ.get('FAKE_DEVICES', '(none)')}")
        return
    modes = Modes(os.environ.get("FAKE_MODE", ""))
    try:
        options = fake_server_cli.parse(argv, bool(os.environ.get("FAKE_FORK")))
    except ValueError as error:
        say(str(error))
        leave(1)
    note("spawn", argv=argv, env=sorted(os.environ))
    say("I main: fake server")
    server = Server(options, modes)
    fork_others(modes)
    signal.signal(signal.SIGTERM, server.terminate)
    signal.signal(signal.SIGINT, server.terminate)
    again = "once" in modes and os.path.exists(modes.text("once"))
    if "once" in modes and not again:
        open(modes.text("once"), "x").close()
    if "words" in modes and not again:
        with open(modes.text("words")) as text:
            say(text.read().rstrip("\n"))
    if "exit" in modes and not again:
        say(f"E main: exiting due to mode exit:{modes.text('exit')}")
        leave(int(modes.number("exit")))
    ballast = bytearray(b"x") * int(modes.number("alloc"))
    if ballast:
        say(f"I load: {len(ballast)} bytes")
    if "flood" in modes:
        lines = b"flooding the log with a line \x1b[31mof text\n" * 50
        threading.Thread(target=flood, args=(lines,), daemon=True).start()
    if "binary-output" in modes:
        threading.Thread(target=flood, args=(bytes(set(range(256)) - {10}) * 16,), daemon=True).start()
    if "never-listen" in modes:
        while True:
            time.sleep(modes.number("chatter", 3600_000) / 1000)
            say("I load: still busy")
    server.serve()


if __name__ == "__main__":
    main()
