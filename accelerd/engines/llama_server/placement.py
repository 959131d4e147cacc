"""The part of the command line that says where a model lies: devices, single weights, the projector, adapters. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from accelerd.config.model import ModelSpec
from accelerd.engines.llama_server.command_line import CommandLine

# What --cpu-moe and its like stand for, in programs that have only --override-tensor.
EXPERTS: Final = r"\.ffn_(up|down|gate|gate_up)_(ch|)exps"
DENSE: Final = r"\.ffn_(up|down|gate)\."
ON_HOST: Final[tuple[tuple[str, tuple[str, ...], str, str], ...]] = (
    ("cpu_moe", ("--cpu-moe", "-cmoe"), EXPERTS, "experts stay in main memory"),
    ("n_cpu_moe", ("--n-cpu-moe", "-ncmoe"), EXPERTS, "experts of the first layers stay in main memory"),
    ("n_cpu_ffn", ("--n-cpu-ffn", "-ncffn"), DENSE, "feed-forward weights of the first layers stay in main memory"),
)


def fit(line: CommandLine) -> None:
    spec = line.spec
    if not spec.fit:
        reason = "accelerd plans the memory: llama-server must not change context or layers by itself"
        line.own(("--fit",), "off", reason=reason)
        return
    line.set("fit", ("--fit", "-fit"), "on", "llama-server puts as many layers on the GPUs as fit")
    if spec.fit_target is not None:
        target = ",".join(str(-(-size >> 20)) for size in spec.fit_target)
        line.set("fit_target", ("--fit-target", "-fitt"), target, "MiB of each GPU that stay free")
    if spec.fit_ctx is not None:
        line.set("fit_ctx", ("--fit-ctx", "-fitc"), spec.fit_ctx, "no smaller context is chosen")


def place(line: CommandLine, gpus: Sequence[str], names: Mapping[str, str] | None) -> None:
    """Which part of the model lies where."""
    spec = line.spec
    if spec.split_mode is not None:
        line.set("split_mode", ("--split-mode", "-sm"), spec.split_mode, "how GPUs share the model")
    if spec.tensor_split is not None:
        split = ",".join(f"{share:g}" for share in spec.tensor_split)
        line.set("tensor_split", ("--tensor-split", "-ts"), split, "each GPU's part, in the order of `gpus`")
    if spec.main_gpu is not None and (name := _name_of(line, "main_gpu", spec.main_gpu, names)) is not None:
        among = list(gpus or (names or {}).values())
        index = among.index(name) if name in among else 0
        line.set("main_gpu", ("--main-gpu", "-mg"), index, f"its number for the program is that of {spec.main_gpu}")
    overrides, switches = list(spec.override_tensor), []
    said_by = "override_tensor"
    for key, options, pattern, reason in ON_HOST:
        value = getattr(spec, key)
        if value in (None, False):
            continue
        if (name := line.features.pick(*options)) is not None:
            switches.append((key, (name,) if value is True else (name, str(value)), reason))
        elif line.features.find("--override-tensor", "-ot") is None:
            line.refuse(key, f"{key}: it knows no {' or '.join(options)}")
        else:
            said_by = "override_tensor" if overrides else key
            overrides.append(f"{of_layers(pattern, value)}=CPU")
    if overrides:  # before the others: the first that matches decides
        text = "where single weights lie"
        line.set(said_by, ("--override-tensor", "-ot"), ",".join(overrides), text)
    for key, tokens, reason in switches:
        line.add(*tokens, key=key, reason=reason)
    if spec.mmproj_offload is not None:
        option = "--mmproj-offload" if spec.mmproj_offload else "--no-mmproj-offload"
        if line.option("mmproj_offload", (option,)):
            where = "a GPU" if spec.mmproj_offload else "main memory"
            line.add(option, key="mmproj_offload", reason=f"the projector is in {where}")
    if spec.mmproj_device is not None:
        name = _name_of(line, "mmproj_device", spec.mmproj_device, names)
        if name:
            line.set("mmproj_device", ("--mmproj-device", "-mmdev"), name, "the projector's GPU")


def names_gpus(spec: ModelSpec) -> bool:
    """May a setting name a GPU, which the program calls by a name of its own?"""
    return bool(spec.main_gpu or spec.mmproj_device or spec.override_tensor or spec.extra_args)


def of_layers(pattern: str, count: bool | int) -> str:
    """A pattern for the tensors of the first layers; True: of all."""
    return pattern if count is True else rf"blk\.({'|'.join(map(str, range(count)))}){pattern}"


def _name_of(line: CommandLine, key: str, slot: str, names: Mapping[str, str] | None) -> str | None:
    """What the program calls the GPU in a slot, "" where it has only one; None, after a refusal: it cannot be told."""
    if names is None:
        return ""
    if slot not in names:
        line.refuse(key, f"{key}: cannot tell which of its devices is {slot}")
    return names.get(slot)


def lora(line: CommandLine) -> None:
    """All adapters in their order, which numbers them for requests."""
    adapters = line.spec.lora
    if not adapters:
        return
    scaled = any(adapter.scale != 1 for adapter in adapters)
    option = line.option("lora", ("--lora-scaled",) if scaled else ("--lora",))
    if option is None:
        return
    name = "--lora-scaled" if scaled else "--lora"
    reason = "LoRA adapters; a request's field `lora` can set other scales"
    each = [(adapter.path, f"{adapter.scale:g}") for adapter in adapters]
    if "comma" in option.text:
        values = [_quoted(f"{path}:{scale}" if scaled else path) for path, scale in each]
        line.add(name, ",".join(values), key="lora", reason=reason)
    else:  # earlier programs: one adapter an option, its scale a word of its own
        for path, scale in each:
            line.add(name, path, *((scale,) if scaled else ()), key="lora", reason=reason)


def _quoted(value: str) -> str:
    """A field of a list separated by commas."""
    return '"' + value.replace('"', '""') + '"' if "," in value or value.startswith('"') else value
