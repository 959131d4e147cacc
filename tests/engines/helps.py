"""Help texts in the layouts that llama-server has had, written for the tests, and programs that print them."""

from __future__ import annotations

from pathlib import Path

from tests.memory.gguf_maker import string, write

THIS_YEAR = """\
----- common params -----

-h,    --help, --usage                  show the options and leave
-t,    --threads N                      how many CPU threads generate (default: -1)
                                        (env: LLAMA_ARG_THREADS)
-c,    --ctx-size N                     context of the prompt (default: 0)
                                        (env: LLAMA_ARG_CTX_SIZE)
-n,    --predict, --n-predict N         tokens to make (default: -1)
-b,    --batch-size N                   logical batch (default: 2048)
-ub,   --ubatch-size N                  physical batch (default: 512)
-fa,   --flash-attn [on|off|auto]       Flash Attention ('on', 'off' or 'auto')
                                        (env: LLAMA_ARG_FLASH_ATTN)
-ctk,  --cache-type-k TYPE              type of the keys
                                        allowed values: f32, f16, bf16, q8_0, q4_0,
                                        q5_1
                                        (default: f16)
-ctv,  --cache-type-v TYPE              type of the values
                                        allowed values: f32, f16, bf16, q8_0, q4_0
                                        (default: f16)
-lm,   --load-mode MODE                 how the file is read (default: auto)
                                        - auto: mmap where devices allow it
                                        - none: nothing special
                                        - mmap: mapped (slower start where
                                        the disk is slow)
                                        - mmap+mlock: mapped and locked
                                        (env: LLAMA_ARG_LOAD_MODE)
-dev,  --device <dev1,dev2,..>          devices to use
-ngl,  --gpu-layers, --n-gpu-layers N   layers in VRAM, a number, 'auto', or 'all' (default: auto)
-sm,   --split-mode {none,layer,row}    how to split, one of:
                                        - layer (default): by layers
-ot,   --override-tensor <tensor name pattern>=<buffer type>,...
                                        other buffers for some tensors
-cmoe, --cpu-moe                        all experts in the CPU
-ncmoe, --n-cpu-moe N                   experts of the first N layers in the CPU
-ncffn, --n-cpu-ffn N                   FFN weights of the first N layers in the CPU
-ts,   --tensor-split N0,N1,N2,...      proportions
-mg,   --main-gpu INDEX                 the GPU (default: 0)
-fit,  --fit [on|off]                   shrink what is not set until it fits
-fitt, --fit-target MiB0,MiB1,MiB2,...  margin of each device, default: 1024
-fitc, --fit-ctx N                      smallest context (default: 4096)
--rope-scaling {none,linear,yarn}       RoPE scaling
--rope-scale N                          context scaling factor
--rope-freq-base N                      base frequency
--rope-freq-scale N                     frequency scaling factor
--yarn-orig-ctx N                       YaRN: original context
--yarn-ext-factor N                     YaRN: extrapolation mix factor (default: -1.00)
--yarn-attn-factor N                    YaRN: scale (default: -1.00)
--yarn-beta-slow N                      YaRN: high dim (default: -1.00)
--yarn-beta-fast N                      YaRN: low dim (default: -1.00)
--lora FNAME                            adapter (use comma-separated values to load multiple adapters)
--lora-scaled FNAME:SCALE,...           adapter with a scale (format: FNAME:SCALE,...)
                                        note: use comma-separated values
--spec-draft-type-k, -ctkd, --cache-type-k-draft TYPE
                                        type of the draft's keys
                                        allowed values: f32, f16, bf16, q8_0, q4_0
--spec-draft-type-v, -ctvd, --cache-type-v-draft TYPE
                                        type of the draft's values
                                        allowed values: f32, f16, bf16, q8_0, q4_0
--control-vector-layer-range START END
                                        which layers, both included
-m,    --model FNAME                    the file
                                        (env: LLAMA_ARG_MODEL)
-hf,   -hfr, --hf-repo <user>/<model>[:quant]
                                        a repository
                                        (env: LLAMA_ARG_HF_REPO)
-hft,  --hf-token TOKEN                 token for it
                                        (env: HF_TOKEN)
--log-colors [on|off|auto]              colours in the log
--offline                               never use the network
                                        (env: LLAMA_ARG_OFFLINE)


----- sampling params -----

-s,    --seed SEED                      seed (default: -1)
--temp, --temperature N                 temperature (default: 0.80)
--top-k N                               top-k
--top-p N                               top-p
--min-p N                               min-p
--repeat-penalty N                      for repetitions
--presence-penalty N                    for presence
--frequency-penalty N                   for frequency
--draft, --draft-n, --draft-max N       the argument has been removed. use --spec-draft-n-max or another
                                        (env: LLAMA_ARG_DRAFT_MAX)


----- example-specific params -----

-cram, --cache-ram N                    cache in MiB (default: 8192)
-kvu,  --kv-unified, -no-kvu, --no-kv-unified
                                        one KV buffer for all
-np,   --parallel N                     slots (default: -1)
-mm,   --mmproj FILE                    projector
--mmproj-offload, --no-mmproj-offload   the projector on a GPU (default: enabled)
-mmdev, --mmproj-device DEVICE          device of the projector
--spec-draft-n-max N                    tokens to draft (default: 3)
--spec-draft-n-min N                    fewest of them (default: 0)
--spec-draft-p-min, --draft-p-min P     least probability (default: 0.00)
--spec-draft-ngl, -ngld, --gpu-layers-draft, --n-gpu-layers-draft N
                                        the draft's layers in VRAM, a number, 'auto', or 'all' (default: auto)
--spec-draft-model, -md, --model-draft FNAME
                                        draft model for speculative decoding (default: unused)
--spec-type none,draft-simple,draft-mtp,ngram-simple
                                        comma-separated list of types of speculative decoding to use (default:
                                        none)
-a,    --alias STRING                   names of the model
                                        (env: LLAMA_ARG_ALIAS)
--host HOST                             addresses, or UNIX socket paths ending in .sock
                                        (env: LLAMA_ARG_HOST)
--port PORT                             port (default: 8080)
                                        (env: LLAMA_ARG_PORT)
--tools TOOL1,TOOL2,...                 built-in tools
                                        (env: LLAMA_ARG_TOOLS)
--ui,  --webui, --no-ui, --no-webui     the web page
--embedding, --embeddings               only embeddings
--rerank, --reranking                   reranking
--api-key KEY                           keys
                                        (env: LLAMA_API_KEY)
--api-key-file FNAME                    file with keys
                                        (env: LLAMA_ARG_API_KEY_FILE)
--metrics                               metrics
--jinja, --no-jinja                     templates (default: enabled)
--chat-template-file JINJA_TEMPLATE_FILE
                                        template from a file
"""

# Before --load-mode, --fit and values for --flash-attn; the host is an address only.
OLDER = """\
ggml_init: found 1 device:
  Device 0: something, compute capability 8.6
----- common params -----

-h,    --help, --usage                  print usage and exit
-t,    --threads N                      threads (default: -1)
-c,    --ctx-size N                     context
-n,    --predict, --n-predict N         tokens
-b,    --batch-size N                   logical batch
-ub,   --ubatch-size N                  physical batch
-fa,   --flash-attn                     enable Flash Attention (default: disabled)
-ctk,  --cache-type-k TYPE              KV cache data type for K (default: f16)
-ctv,  --cache-type-v TYPE              KV cache data type for V (default: f16)
--mlock                                 keep the model in RAM
--no-mmap                               do not map the model
-ngl,  --gpu-layers, --n-gpu-layers N   number of layers to store in VRAM
-m,    --model FNAME                    model path
-hfr,  --hf-repo REPO                   repository
-s,    --seed SEED                      seed
--temp N                                temperature
--top-k N                               top-k
--top-p N                               top-p
--repeat-penalty N                      penalty
-np,   --parallel N                     sequences
--mmproj FILE                           projector
-md,   --model-draft FNAME              draft model for speculative decoding (default: unused)
--draft-max, --draft N                  tokens to draft (default: 16)
--draft-min N                           fewest of them (default: 0)
-ngld, --gpu-layers-draft, --n-gpu-layers-draft N
                                        the draft's layers in VRAM
-ot,   --override-tensor <tensor name pattern>=<buffer type>,...
                                        other buffers for some tensors
-sm,   --split-mode {none,layer,row}    how to split
--lora FNAME                            adapter (can be repeated to use multiple adapters)
--lora-scaled FNAME SCALE               adapter with a scale (can be repeated to use multiple adapters)
-a,    --alias STRING                   alias
--host HOST                             ip address to listen (default: 127.0.0.1)
--port PORT                             port
--embedding, --embeddings               only embeddings
--api-key KEY                           key (env: LLAMA_API_KEY)
--log-colors                            Enable colored logging
--no-webui                              Disable the Web UI
--jinja                                 use jinja templates
"""

# Indented, with the value after each name, and no API key in the environment.
ANCIENT = """\
usage: ./server [options]

options:
  -h, --help            show this help message and exit
  -v, --verbose         verbose output (default: disabled)
  -t N, --threads N     number of threads (default: 4)
  -c N, --ctx-size N    size of the prompt context (default: 512)
  --no-mmap             do not memory-map model
  -m FNAME, --model FNAME
                        model path
  -a ALIAS, --alias ALIAS
                        alias for the model
  --host                ip address to listen (default  (default: 127.0.0.1)
  --port PORT           port to listen (default  (default: 8080)
  -np N, --parallel N   number of slots
"""


def program(folder: Path, help_text: str, *, name: str = "llama-server", extra: str = "") -> Path:
    """An executable that prints this help on stdout and a version on stderr, and counts its --help runs."""
    (folder / f"{name}.help").write_text(help_text)
    path = folder / name
    path.write_text(
        f"""#!/bin/sh
{extra}
case "$1" in
--version) echo "version: 7.7 (build 12, commit abc)" >&2 ;;
--help) echo x >> "$0.runs"; cat "$0.help" ;;
esac
"""
    )
    path.chmod(0o755)
    return path


def runs(path: Path) -> int:
    """How often --help was asked."""
    counter = Path(f"{path}.runs")
    return len(counter.read_text().split()) if counter.exists() else 0


def model_file(folder: Path, name: str = "model.gguf", size: int = 1000, kind: str = "llama") -> Path:
    """A model of that architecture without weights to speak of; a projector is a "clip"."""
    folder.mkdir(parents=True, exist_ok=True)
    path = write(folder / name, {"general.architecture": string(kind)}, {"token_embd.weight": ((8,), 0)})
    with path.open("ab") as file:
        file.truncate(max(size, path.stat().st_size))
    return path
