"""The environment of a llama-server: a short list of what it inherits, then what the configuration says, then the key.

Nothing else passes: no LLAMA_ARG_… (nearly every flag can be set so), no LD_PRELOAD or other variable that loads code,
no token of another program. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from accelerd.config.model import ModelSpec
from accelerd.engines.base import Flag, TuningAdvice

KEY_VARIABLE: Final = "LLAMA_API_KEY"
NO_BACKTRACE: Final = "GGML_NO_BACKTRACE"  # else a failed assertion starts gdb, whose output hides the assertion

BASIC: Final = (
    "PATH", "HOME", "USER", "LOGNAME", "LANG", "LANGUAGE", "TZ", "TMPDIR", "XDG_RUNTIME_DIR", "XDG_CACHE_HOME",
)  # fmt: skip
# Which devices the drivers show. Single names, never families: CUDA_INJECTION64_PATH and HSA_TOOLS_LIB load code.
DEVICES: Final = (
    "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL",
    "HSA_OVERRIDE_GFX_VERSION", "GGML_VK_VISIBLE_DEVICES", "MESA_VK_DEVICE_SELECT", "ONEAPI_DEVICE_SELECTOR",
    "ZE_AFFINITY_MASK", "ZES_ENABLE_SYSMAN",
)  # fmt: skip
# All that changes what `--list-devices` says.
DRIVER_VARIABLES: Final = frozenset(
    {*DEVICES, "AMD_VULKAN_ICD", "VK_ICD_FILENAMES", "VK_DRIVER_FILES", "LD_LIBRARY_PATH"}
)


def inherited(environ: Mapping[str, str]) -> dict[str, str]:
    """What a child takes over from accelerd's own environment."""
    kept = {name: environ[name] for name in (*BASIC, *DEVICES) if name in environ}
    kept.update({name: value for name, value in environ.items() if name.startswith("LC_")})
    return kept


def device_flags(environ: Mapping[str, str]) -> list[Flag]:
    """What of it decides on devices, for `accelctl explain`."""
    reason = "which devices the driver shows"
    return [
        Flag(f"env {name}={environ[name]}", "accelerd's environment", reason) for name in DEVICES if name in environ
    ]


def for_help(environ: Mapping[str, str], spec: ModelSpec) -> dict[str, str]:
    """For `--help`: what the program needs to start, but no setting of its own, which it would check first."""
    given = {name: value for name, value in spec.env if not name.startswith(("LLAMA_", "HF_"))}
    return {NO_BACKTRACE: "1", **inherited(environ), **given}


def for_server(
    environ: Mapping[str, str], spec: ModelSpec, secret: str, advice: Sequence[TuningAdvice] = ()
) -> tuple[dict[str, str], list[Flag]]:
    """The whole environment, and the part of it that is worth explaining; values that may be secret are not shown.

    `secret` empty: the program gets it in another way.
    """
    said = {one.setting: one for one in advice}
    base = inherited(environ)
    flags = device_flags(base)
    for name, value in spec.env:
        one, origin = said.get(f"env.{name}"), spec.origin(f"env.{name}")
        if one is not None and origin.by_rule:
            flags.append(Flag(f"env {name}={value}", str(origin), one.reason, one.note))
        else:
            source = str(spec.origins.get(f"env.{name}") or spec.origin("env"))
            flags.append(
                Flag(f"env {name}=…", source, "as written; values are not shown", one.note if one is not None else "")
            )
    if secret:
        reason = "a key made for this start; the engine refuses requests that do not come through accelerd"
        flags.append(Flag(f"env {KEY_VARIABLE}=…", "built-in", reason))
    if NO_BACKTRACE not in dict(spec.env):
        reason = "a crash is told by its cause, not by a debugger's backtrace"
        flags.append(Flag(f"env {NO_BACKTRACE}=1", "built-in", reason))
    key = {KEY_VARIABLE: secret} if secret else {}
    return {NO_BACKTRACE: "1", **base, **dict(spec.env), **key}, flags
