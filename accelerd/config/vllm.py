"""The settings of the engine `vllm`. Pure data."""

from __future__ import annotations

from dataclasses import dataclass

from accelerd.config.keys import key


@dataclass(frozen=True)
class VllmSettings:
    """What engine = "vllm" adds to the settings of other engines."""

    sleep: bool = key(
        bool,
        False,
        "Let the model sleep instead of stopping it when it has been idle for `idle_timeout` or another model needs "
        "its GPU: its weights wait in main memory, if there is room, and it is ready again within seconds. Starts vLLM "
        "with --enable-sleep-mode and in its development mode.",
    )
    gpu_memory_utilization: float | None = key(
        float,
        None,
        "The part of the GPU's memory that vLLM takes (--gpu-memory-utilization). vLLM's default: 0.92.",
        gt=0,
        le=1,
    )
