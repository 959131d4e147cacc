"""An engine that gets no memory exits like any other that fails; what it printed tells them apart."""

from __future__ import annotations

import os
import shlex
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from accelerd.base.exits import Cause
from accelerd.config.model import ModelSpec
from accelerd.engines.base import Endpoint, LaunchPlan
from accelerd.engines.llama_server.output import OUT_OF_MEMORY, TOO_LARGE
from accelerd.supervise.exit_messages import (
    SHORTAGE_LINES,
    FailedAllocation,
    allocation_failed,
    failed_allocation,
)
from accelerd.supervise.instance_records import RecordStore, StoredInstance, record_of
from accelerd.supervise.process.processes import InstanceTag
from tests.models import make_model
from tests.supervise.bench import SupervisorBench
from tests.supervise.test_plain_real import real

MIB = 1 << 20
GIB = 1 << 30

# What builds of llama-server print, by backend: its last lines, and how much it wanted in the end.
SAID: dict[str, tuple[list[str], int | None]] = {
    "cpu weights": (
        [
            "0.00.006.157 E ggml_aligned_malloc: insufficient memory (attempted to allocate 190.72 MB)",
            "0.00.006.162 E ggml_backend_cpu_buffer_type_alloc_buffer: failed to allocate buffer of size 199985152",
            "0.00.006.162 E alloc_tensor_range: failed to allocate CPU buffer of size 199985152",
            "0.00.006.257 E llama_model_load: error loading model: unable to allocate CPU buffer",
            "0.00.006.468 E srv  llama_server: exiting due to model loading error",
        ],
        199985152,
    ),
    "cpu, one line alone": (["ggml_aligned_malloc: insufficient memory (attempted to allocate  48.01 MB)"], 50342133),
    "mmap": (["llama_model_load: error loading model: mmap failed: Cannot allocate memory"], None),
    "bad_alloc": (
        ["terminate called after throwing an instance of 'std::bad_alloc'", "  what():  std::bad_alloc"],
        None,
    ),
    "cuda weights": (
        [
            "ggml_backend_cuda_buffer_type_alloc_buffer: allocating 144817.04 MiB on device 0: cudaMalloc failed: "
            "out of memory",
            "alloc_tensor_range: failed to allocate CUDA0 buffer of size 151851674624",
            "llama_model_load: error loading model: unable to allocate CUDA0 buffer",
        ],
        151851674624,
    ),
    "cuda kv, an older build": (
        [
            "E ggml_backend_cuda_buffer_type_alloc_buffer: allocating 4480.00 MiB on device 3: cudaMalloc failed: "
            "out of memory",
            "E llama_kv_cache_init: failed to allocate buffer for kv cache",
            "free(): invalid size",
        ],
        4480 * MIB,
    ),
    "cuda, aborts while it works": (
        [
            "CUDA error: out of memory",
            "  current device: 0, in function alloc at ggml-cuda.cu:534",
            "  cuMemCreate(&handle, reserve_size, &prop, 0)",
            *(f"[New LWP {number}]" for number in range(200)),
        ],
        None,
    ),
    "cuda, tried again with less": (
        [
            "E ggml_backend_cuda_buffer_type_alloc_buffer: allocating 51748.72 MiB on device 1: cudaMalloc failed: "
            "out of memory",
            "E ggml_gallocr_reserve_n_impl: failed to allocate CUDA1 buffer of size 54262464512",
            "W sched_reserve: compute buffer allocation failed, retrying without pipeline parallelism",
            "E ggml_gallocr_reserve_n_impl: failed to allocate CUDA1 buffer of size 2147483648",
            "E graph_reserve: failed to allocate compute buffers",
        ],
        2 * GIB,
    ),
    "rocm compute": (
        [
            "ggml_backend_cuda_buffer_type_alloc_buffer: allocating 14136.04 MiB on device 0: cudaMalloc failed: "
            "out of memory",
            "ggml_gallocr_reserve_n: failed to allocate ROCm0 buffer of size 14822711296",
            "graph_reserve: failed to allocate compute buffers",
            "llama_init_from_model: failed to initialize the context: failed to allocate compute pp buffers",
        ],
        14822711296,
    ),
    "rocm, aborts": (["ROCm error: out of memory", "  current device: 0, in function alloc"], None),
    "vulkan weights": (
        [
            "ggml_vulkan: Device memory allocation of size 1037832192 failed.",
            "ggml_vulkan: vk::Device::allocateMemory: ErrorOutOfDeviceMemory",
            "0.02.468.179 E alloc_tensor_range: failed to allocate Vulkan0 buffer of size 1037832192",
            "0.02.672.374 E llama_model_load: error loading model: unable to allocate Vulkan0 buffer",
        ],
        1037832192,
    ),
    "vulkan, an older build": (
        [
            "ggml_vulkan: Device memory allocation of size 118497280 failed.",
            "ggml_vulkan: vk::Device::allocateMemory: ErrorOutOfDeviceMemory",
            "double free or corruption (out)",
        ],
        118497280,
    ),
    "vulkan, its exception": (["  what():  vk::Device::allocateMemory: ErrorOutOfHostMemory"], None),
    "mesa": (["MESA: error: ../src/intel/vulkan/anv_device.c:4237: VK_ERROR_OUT_OF_DEVICE_MEMORY"], None),
    "radv": (["radv/amdgpu: Not enough memory for command submission.", "terminate called after …"], None),
    "sycl": (["Native API failed. Native API returns: 39 (UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY)"], None),
    "sycl, an older build": (["Native API returns: -6 (PI_ERROR_OUT_OF_HOST_MEMORY)"], None),
    "as json": (
        ['{"level":"E","msg":"alloc_tensor_range: failed to allocate CPU buffer of size 1073741824"}'],
        GIB,
    ),
}

OTHERWISE: dict[str, list[str]] = {
    "nothing": [],
    "no model": ["gguf_init_from_file: failed to open GGUF file 'x.gguf' (No such file or directory)"],
    "device lost": ["llama_model_load: error loading model: vk::Queue::submit: ErrorDeviceLost"],
    "no pinned memory": [
        "W ggml_vulkan: Failed to allocate pinned memory (vk::Device::allocateMemory: ErrorOutOfDeviceMemory)"
    ],
    "no locked memory": ["warning: failed to mlock 715161600-byte buffer: Cannot allocate memory"],
    "larger than the driver ever gives": [
        "ggml_vulkan: Device memory allocation of size 2166360064 failed.",
        "ggml_vulkan: Requested buffer size exceeds device memory allocation limit: ErrorOutOfDeviceMemory",
        "ggml_gallocr_reserve_n: failed to allocate Vulkan0 buffer of size 2166360064",
    ],
}


def plan(**settings: object) -> LaunchPlan:
    made = LaunchPlan("m", ("/bin/llama-server",), {}, Endpoint(port=1), "s", ())
    return replace(made, **{"out_of_memory": OUT_OF_MEMORY, "too_large": TOO_LARGE, **settings})  # type: ignore[arg-type]


@pytest.mark.parametrize("case", SAID)
def test_every_backend_has_words_for_it(case: str) -> None:
    lines, wanted = SAID[case]
    found = failed_allocation(plan(), ["I load: some line", *lines])
    assert found is not None
    assert found.wanted == wanted
    assert found.said
    assert failed_allocation(plan(out_of_memory=()), lines) is None, (
        "an engine that has brought no words is not understood"
    )


@pytest.mark.parametrize("lines", OTHERWISE.values(), ids=OTHERWISE.keys())
def test_other_failures_are_not_taken_for_it(lines: list[str]) -> None:
    assert failed_allocation(plan(), lines) is None


def test_a_notice_beside_it_hides_no_failed_allocation() -> None:
    notice = "W ggml_vulkan: Failed to allocate pinned memory (Requested buffer size exceeds device buffer size limit)"
    found = failed_allocation(plan(), [notice, *SAID["vulkan weights"][0]])
    assert found == FailedAllocation("failed to allocate Vulkan0 buffer of size 1037832192", 1037832192)


def test_the_sentence_has_the_figures() -> None:
    lack = FailedAllocation("failed to allocate Vulkan0 buffer of size 1037832192", 1037832192)
    assert allocation_failed(plan(), lack, 300 * MIB, 1.26, False) == (
        "llama-server ran out of memory after 1.3 s, before it was ready: an allocation of 990 MiB failed "
        "(failed to allocate Vulkan0 buffer of size 1037832192); it had 300 MiB of main memory"
    )
    silent = allocation_failed(plan(), FailedAllocation("std::bad_alloc", None), None, 70.0, True)
    assert silent == "llama-server ran out of memory after 70.0 s: an allocation failed (std::bad_alloc)"


def saying(lines: Sequence[str], end: str) -> tuple[str, ...]:
    """The command line of a program that prints that and ends so."""
    text = "\n".join(lines)
    return ("/bin/sh", "-c", f"printf '%s\\n' {shlex.quote(text)} >&2; {end}")


@pytest.mark.parametrize(
    ("end", "status"), [("exit 1", 1), ("kill -ABRT $$", -signal.SIGABRT), ("kill -SEGV $$", -signal.SIGSEGV)]
)
async def test_however_it_ends_it_ran_out_of_memory(bench: SupervisorBench, end: str, status: int) -> None:
    bench.engine.edit = lambda _, made: plan(argv=saying(SAID["cuda weights"][0], end), endpoint=made.endpoint)
    async with bench:
        exit = await bench.gone(bench.start())
    assert (exit.cause, exit.status) == (Cause.OOM_KILLED, status)
    assert "an allocation of 141 GiB failed" in exit.message
    assert exit.peak == 151851674624, "so much it needs at least"
    assert exit.tail[0].startswith("ggml_backend_cuda")


async def test_a_backtrace_does_not_hide_it(bench: SupervisorBench) -> None:
    lines = [*SAID["rocm, aborts"][0], *(f"#{number} 0x0000 in ?? ()" for number in range(SHORTAGE_LINES - 20))]
    bench.engine.edit = lambda _, made: plan(argv=saying(lines, "kill -ABRT $$"), endpoint=made.endpoint)
    async with bench:
        exit = await bench.gone(bench.start())
    assert exit.cause is Cause.OOM_KILLED
    assert "ROCm error: out of memory" in exit.message


async def test_an_end_without_failure_is_not_out_of_memory(bench: SupervisorBench) -> None:
    bench.engine.edit = lambda _, made: plan(argv=saying(SAID["rocm, aborts"][0], "exit 0"), endpoint=made.endpoint)
    async with bench:
        exit = await bench.gone(bench.start())
    assert (exit.cause, exit.status) == (Cause.EXITED, 0)


async def test_what_it_got_over_while_it_loaded_did_not_end_it_later(bench: SupervisorBench, tmp_path: Path) -> None:
    words = tmp_path / "words"
    words.write_text("\n".join(SAID["cuda, tried again with less"][0]) + "\n")
    bench.engine.edit = lambda _, made: replace(made, out_of_memory=OUT_OF_MEMORY)
    async with bench:
        number = bench.start(f"words:{words}")
        await bench.ready(number)
        os.kill(bench.pid(number), signal.SIGABRT)
        exit = await bench.gone(number)
        again = await bench.gone(bench.start(f"words:{words},exit:3"))
    assert (exit.cause, exit.status) == (Cause.SIGNALED, -signal.SIGABRT)
    assert (again.cause, again.status) == (Cause.OOM_KILLED, 3)


async def test_an_instance_that_is_stopped_was_stopped_whatever_it_said(bench: SupervisorBench, tmp_path: Path) -> None:
    words = tmp_path / "words"
    words.write_text("CUDA error: out of memory\n")
    bench.engine.edit = lambda _, made: replace(made, out_of_memory=OUT_OF_MEMORY)
    async with bench:
        number = bench.start(f"words:{words},health-503")
        await bench.until(lambda: bool(bench.supervisor.output("m").lines()))
        assert (await bench.stopped(number)).cause is Cause.STOPPED


def test_the_words_outlive_the_daemon_with_the_instance(tmp_path: Path) -> None:
    class Unit:
        kind, survives = "systemd", True

        def place(self, spec: ModelSpec, tag: InstanceTag) -> str:
            return "accelerd-m.service"

    tag = InstanceTag("i1", "owner")
    store = RecordStore(tmp_path, "owner")
    record = record_of(ModelSpec("m"), plan(), Unit(), tag)  # type: ignore[arg-type]
    assert record is not None
    store.write(record)
    [found] = store.read_all()
    assert isinstance(found, StoredInstance)
    assert found.plan.out_of_memory == OUT_OF_MEMORY


# --- the real one -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "limit", "said"),
    [
        ({"mmap": False}, 330 * 10**6, "failed to allocate CPU buffer of size"),  # its weights
        ({"context": 65536}, 700 * 10**6, "failed to allocate CPU buffer of size"),  # its KV cache
        ({"context": 512}, 340 * 10**6, "failed to allocate CPU buffer of size"),  # its compute buffers
        ({"context": 100_000_000}, None, "failed to allocate CPU buffer of size"),  # more than any machine has
    ],
    ids=["weights", "kv", "compute", "huge context"],
)
async def test_the_real_llama_server_is_understood(
    bench: SupervisorBench, llama_server: str, tmp_path: Path, settings: dict[str, int], limit: int | None, said: str
) -> None:
    """Under a hard limit of its address space malloc fails as it does when a machine has no more."""
    binary = tmp_path / "llama-server"
    # one arena: how many there are, 64 MiB of address space each, is chance
    cap = f"export MALLOC_ARENA_MAX=1\nulimit -v {limit // 1024}\n" if limit else ""
    binary.write_text(f'#!/bin/sh\n{cap}exec {shlex.quote(llama_server)} "$@"\n')
    binary.chmod(0o755)
    path = make_model(tmp_path, size_mb=200)
    async with real(bench) as (supervisor, heard):
        supervisor.start(1, ModelSpec("m", path=str(path), binary=str(binary), threads=1, parallel=1, **settings))  # type: ignore[arg-type]
        exit = await heard.wait("gone", 1)
    assert (exit.cause, exit.status) == (Cause.OOM_KILLED, 1)
    assert said in exit.message
    assert "before it was ready: an allocation of" in exit.message
    assert exit.peak is not None
    assert exit.peak > 40 * MIB
