"""accelctl fit: will a model run here, with what context, how fast. Asked before it is downloaded or loaded."""

from __future__ import annotations

import argparse
import re
from typing import TYPE_CHECKING, Any

from accelerd.cli.context import Context
from accelerd.cli.failure import usage
from accelerd.cli.local_machine import LocalMachine

if TYPE_CHECKING:
    from accelerd.devices.model import Device

KV_TYPES = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl")
TOKENS = re.compile(r"(\d+)(k?)", re.IGNORECASE)
MOST_CONTEXT = 1 << 27
EPILOG = """\
MODEL is one of
  a GGUF file, any part of a split one, or a directory with one model
  a model of the configuration, whatever its engine
  npu/NAME, a model that FastFlowLM runs on the NPU
  an address: https://…/model.gguf, hf:ORG/REPO or hf:ORG/REPO:QUANT; only its
    header is read; $HF_ENDPOINT and $HF_TOKEN apply
The speed is an estimate from the memory bandwidth: "fast" is 30 tokens a second and more,
"usable" 8, "slow" 2. The exit status is 0 if the model fits, else 1.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument(
        "--ctx",
        type=tokens,
        metavar="N",
        help='context of one request in tokens: "32768", "32k", or "model" for its maximum',
    )
    parser.add_argument("--kv", choices=KV_TYPES, metavar="TYPE", help=f"type of the KV cache: {', '.join(KV_TYPES)}")
    parser.add_argument("--parallel", type=slots, metavar="N", help="number of concurrent requests")
    parser.add_argument("--gpu", metavar="SLOT", help='place it on this GPU only, such as "c1:00.0", or "none"')


def tokens(text: str) -> int:
    """A context; 0: all that the model was trained for."""
    if text == "model":
        return 0
    found = TOKENS.fullmatch(text)
    count = int(found[1]) * (1024 if found[2] else 1) if found else 0
    if not 128 <= count <= MOST_CONTEXT:
        raise argparse.ArgumentTypeError(f"expected a number of tokens, such as 32768 or 32k, or model; not {text!r}")
    return count


def slots(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= 1024:
        raise argparse.ArgumentTypeError(f"expected a number of requests from 1 to 1024, not {text!r}")
    return int(text)


def run(context: Context, args: argparse.Namespace, here: LocalMachine | None = None) -> int:
    """0 where it fits, else 1."""
    from accelerd.cli.fit.run import fit

    here = here or LocalMachine(context.roots, context.clock)
    devices = tuple(here.devices())
    return fit(context, args.model, wanted(args, devices), here, devices)


def wanted(args: argparse.Namespace, devices: tuple[Device, ...]) -> dict[str, Any]:
    """What was asked for, as fields of a ModelSpec."""
    given: dict[str, Any] = {}
    if args.ctx is not None:
        given["context"] = args.ctx or None
    if args.kv is not None:
        given |= {"cache_type_k": args.kv, "cache_type_v": args.kv}
    if args.parallel is not None:
        given["parallel"] = args.parallel
    if args.gpu == "none":
        given["gpu_layers"] = 0
    elif args.gpu is not None:
        given["gpus"] = (slot_of(args.gpu, devices),)
    return given


def slot_of(text: str, devices: tuple[Device, ...]) -> str:
    """The id of a usable GPU. Failure with those that there are."""
    from accelerd.devices.model import usable

    here = {gpu.id: gpu for gpu in usable(devices)}
    found = next((id for id in here if text.lower() in (id, id.removeprefix("0000:"))), None)
    if found is not None:
        return found
    known = ", ".join(f"{id} ({gpu.name})" for id, gpu in here.items())
    hint = f"usable GPUs: {known}" if known else "no GPU is usable for models; see: accelctl devices"
    raise usage(f"there is no GPU {text}", hint)
