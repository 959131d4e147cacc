"""What llama-server prints when it gets no memory: it exits with 1 or aborts then, as for every other failure.

Data, from builds of 2024 to 2026 with CPU, Vulkan, CUDA, ROCm and SYCL backends. Each is searched for in a line; a
group `bytes` or `mib` is how much was asked for. Notices after which it goes on (no pinned memory) are not among them.
"""

from __future__ import annotations

from typing import Final

OUT_OF_MEMORY: Final = (
    # llama.cpp itself, whatever the backend: weights, KV cache, compute buffers
    r"failed to allocate (?:\S+ )?buffer of size (?P<bytes>\d+)",
    r"unable to allocate \S+ buffer",
    r"failed to allocate (?:compute|buffer for kv cache)",
    # processor
    r"insufficient memory \(attempted to allocate +(?P<mib>[\d.]+) MB\)",
    r"mmap failed: Cannot allocate memory",
    r"std::bad_alloc",
    # Vulkan and its drivers
    r"Device memory allocation of size (?P<bytes>\d+) failed",
    r"^(?!.*pinned memory).*(?:ErrorOutOf|VK_ERROR_OUT_OF_)(?:Device|Host|DEVICE_|HOST_)(?:Memory|MEMORY)",
    r"Not enough memory for command submission",
    # CUDA, and ROCm, which calls itself that too
    r"allocating (?P<mib>[\d.]+) MiB on device \d+: \w+ failed: out of memory",
    r"(?:CUDA|ROCm|HIP|MUSA) error: out of memory",
    # SYCL
    r"(?:ZE|UR|PI)_(?:RESULT_)?ERROR_OUT_OF_(?:DEVICE|HOST)_MEMORY",
)

# One piece of memory larger than the driver ever gives: no amount of room helps, a smaller batch does.
TOO_LARGE: Final = (r"^(?!.*pinned memory).*exceeds device (?:memory allocation|buffer size) limit",)
