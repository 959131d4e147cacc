"""Why an engine ended, in the words of the one line that says so, among all that it printed."""

from __future__ import annotations

import signal
from dataclasses import replace

import pytest

from accelerd.base.exits import Cause
from accelerd.engines.base import Endpoint, LaunchPlan
from accelerd.engines.llama_server.output import NOTABLE
from accelerd.supervise.exit_messages import decisive_line
from tests.supervise.bench import SupervisorBench

PLAN = LaunchPlan("m", ("llama-server",), {}, Endpoint(port=1), "", (), notable=NOTABLE)
FAILED_LOAD = """\
0.00.006.156 I srv  llama_server: initializing ...
0.00.015.694 W srv  llama_server: n_ctx is small
0.00.102.001 E llama_model_load: error loading   model: missing tensor 'token_embd.weight'
0.00.102.002 E srv    load_model: failed to load model, 'm.gguf'
"""
ASSERTION = """\
0.00.015.694 E srv  llama_server: the driver is old
/build/llama.cpp/ggml/src/ggml.c:3021: GGML_ASSERT(ggml_can_mul_mat(a, b)) failed
"""
BACKTRACE = """\
[New LWP 4711]
#0  0x00007f9e28d1f2c3 in wait4 () from /lib/x86_64-linux-gnu/libc.so.6
#1  0x000055d5c3b1d0a1 in ggml_print_backtrace () at /build/llama.cpp/ggml/src/ggml.c:201
[Inferior 1 (process 4710) detached]
"""
CUDA = """\
0.10.001.000 E CUDA error: an illegal memory access was encountered
0.10.001.001 E   current device: 0, in function ggml_backend_cuda_synchronize at ggml-cuda.cu:2567
0.10.001.002 E   cudaStreamSynchronize(cuda_ctx->stream())
/build/ggml/src/ggml-cuda/ggml-cuda.cu:97: CUDA error
"""
DEVICE_LOST = "terminate called after throwing an instance of 'vk::DeviceLostError'\n  what():  {}\n"
GLIBC = "llama-server: ../src/llama-kv.cpp:77: void find(): Assertion `n > 0' failed.\n"
LOADER = "/opt/llama-server: error while loading shared libraries: libvulkan.so.1: cannot open shared object file\n"
PYTHON = """\
Traceback (most recent call last):
  File "/opt/wrap.py", line 3, in <module>
    import torch
ModuleNotFoundError: No module named 'torch'
"""
USAGE = 'error while handling argument "-ctk": Unsupported cache type: q9\n\nusage:\n-ctk TYPE   KV cache data type\n'
REQUEST = "0.10.001.000 E srv  send_error: task id = 7, error: the request is too long\n"

# what it printed, how it ended, whether it was ready → the line
KINDS = {
    "the first error of its log": (FAILED_LOAD, 1, False,
                                   "llama_model_load: error loading model: missing tensor 'token_embd.weight'"),
    "nothing": (FAILED_LOAD.partition("0.00.102.001")[0], 1, False, ""),
    "an assertion of ggml": (ASSERTION, -signal.SIGABRT, False,
                             "ggml.c:3021: GGML_ASSERT(ggml_can_mul_mat(a, b)) failed"),
    "an assertion and a backtrace": (ASSERTION + BACKTRACE * 60, -signal.SIGABRT, True,
                                     "ggml.c:3021: GGML_ASSERT(ggml_can_mul_mat(a, b)) failed"),
    "an assertion of C": (GLIBC, -signal.SIGABRT, True,
                          "llama-kv.cpp:77: void find(): Assertion `n > 0' failed."),
    "a backend's error": (CUDA, -signal.SIGABRT, True, "CUDA error: an illegal memory access was encountered"),
    "an exception": (DEVICE_LOST.format("vk::Queue::submit: ErrorDeviceLost"), -signal.SIGABRT, True,
                     "vk::Queue::submit: ErrorDeviceLost"),
    "an exception that may quote a prompt": (DEVICE_LOST.format("parse error, last read: 'my secret'"),
                                             -signal.SIGABRT, True, ""),
    "an exception while it loads": (DEVICE_LOST.format("key 'x' not found"), -signal.SIGABRT, False,
                                    "key 'x' not found"),
    "a missing library": (LOADER, 127, False,
                          "error while loading shared libraries: libvulkan.so.1: cannot open shared object file"),
    "a script": (PYTHON, 1, False, "ModuleNotFoundError: No module named 'torch'"),
    "an argument": (USAGE, 1, False, 'error while handling argument "-ctk": Unsupported cache type: q9'),
    "the error of some request": (REQUEST, -signal.SIGSEGV, True, ""),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_the_line_that_says_why(kind: str) -> None:
    printed, status, was_ready, line = KINDS[kind]
    assert decisive_line(PLAN, printed.splitlines(), status, was_ready) == line


def test_a_log_without_levels_has_no_first_error() -> None:
    assert decisive_line(replace(PLAN, notable=""), FAILED_LOAD.splitlines(), 1, False) == ""


@pytest.mark.parametrize("kind", ["an assertion and a backtrace", "a missing library"])
async def test_the_message_of_the_exit_tells_it(bench: SupervisorBench, kind: str) -> None:
    printed, status, _, line = KINDS[kind]
    end = f"kill -{-status} $$" if status < 0 else f"exit {status}"
    script = f"cat <<'END'\n{printed}END\n{end}"
    bench.engine.edit = lambda _, made: replace(PLAN, argv=("sh", "-c", script), endpoint=made.endpoint)
    async with bench:
        exit = await bench.gone(bench.start())
    assert exit.cause in (Cause.SIGNALED, Cause.EXITED)
    assert exit.message.endswith(f": {line}")
