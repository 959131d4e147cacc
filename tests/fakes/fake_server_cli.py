"""The command line of the fake server, with `--help` in the layout of llama-server's, for feature detection to read.

Imports nothing: `--help` must answer at once.
"""

HELP = """----- common params -----

-h,    --help, --usage                  print this text and exit
--version                               print the version and exit
-t,    --threads N                      threads of generation
-tb,   --threads-batch N                threads of prompt processing
-c,    --ctx-size N                     size of the context (default: 0)
                                        (env: LLAMA_ARG_CTX_SIZE)
-n,    --predict, --n-predict N         tokens to predict (default: -1)
-b,    --batch-size N                   logical batch size (default: 2048)
-ub,   --ubatch-size N                  physical batch size (default: 512)
-fa,   --flash-attn [on|off|auto]       flash attention ('on', 'off', or 'auto', default: 'auto')
-kvo,  --kv-offload, -nkvo, --no-kv-offload
                                        offload the KV cache
--repack, -nr, --no-repack              repack weights
-ctk,  --cache-type-k TYPE              type of the K cache
                                        allowed values: f32, f16, bf16, q8_0, q4_0, q4_1, iq4_nl, q5_0, q5_1
-ctv,  --cache-type-v TYPE              type of the V cache
                                        allowed values: f32, f16, bf16, q8_0, q4_0, q4_1, iq4_nl, q5_0, q5_1
-lm,   --load-mode MODE                 how the model is read (default: auto)
                                        - auto
                                        - none: read, do not map
                                        - mmap
                                        - mlock
                                        - mmap+mlock
                                        - dio
-dev,  --device <dev1,dev2,..>          devices
--list-devices                          print the devices and exit
-ot,   --override-tensor <tensor name pattern>=<buffer type>,...
                                        buffer types of tensors
-cmoe, --cpu-moe                        experts on the CPU
-ncmoe, --n-cpu-moe N                   experts of N layers on the CPU
-ngl,  --gpu-layers, --n-gpu-layers N   layers on the GPU, a number, 'auto', or 'all' (default: auto)
-sm,   --split-mode {none,layer,row,tensor}
                                        how to split over devices
-ts,   --tensor-split N0,N1,N2,...      shares of the devices
-mg,   --main-gpu INDEX                 the main device
-fit,  --fit [on|off]                   adjust unset arguments to the memory ('on' or 'off', default: 'on')
-fitt, --fit-target MiB0,MiB1,MiB2,...
                                        margin of --fit
-fitc, --fit-ctx N                      smallest context of --fit
--lora FNAME                            path of a LoRA adapter
-m,    --model FNAME                    path of the model
-mu,   --model-url MODEL_URL            where to load the model from
-hf,   -hfr, --hf-repo <user>/<model>[:quant]
                                        repository to load the model from
-hff,  --hf-file FILE                   file in the repository
--log-disable                           no log
--log-file FNAME                        log to a file
--log-jsonl, --no-log-jsonl             log as JSON lines
--log-colors [on|off|auto]              colours in the log
-v,    --verbose, --log-verbose         log everything
--offline                               never use the network
-lv,   --verbosity, --log-verbosity N   verbosity
--log-prefix, --no-log-prefix           prefix in the log
--log-timestamps, --no-log-timestamps   time in the log

----- sampling params -----

-s,    --seed SEED                      seed (default: -1)
--temp, --temperature N                 temperature
--top-k N                               top-k
--top-p N                               top-p
--min-p N                               min-p
--repeat-last-n N                       window of the repeat penalty
--repeat-penalty N                      repeat penalty
--presence-penalty N                    presence penalty
--frequency-penalty N                   frequency penalty

----- example-specific params -----

-cram, --cache-ram N                    limit of the prompt cache in MiB (default: 8192)
-kvu,  --kv-unified, -no-kvu, --no-kv-unified
                                        one KV buffer for all slots
--context-shift, --no-context-shift     shift the context
--warmup, --no-warmup                   warm up with an empty run
--pooling {none,mean,cls,last,rank}     pooling of embeddings
-np,   --parallel N                     number of slots (default: -1)
-cb,   --cont-batching, -nocb, --no-cont-batching
                                        continuous batching
-mm,   --mmproj FILE                    path of a multimodal projector
--mmproj-auto, --no-mmproj, --no-mmproj-auto
                                        use a projector beside the model
--mmproj-offload, --no-mmproj-offload   projector on the GPU
-a,    --alias STRING                   names of the model, comma-separated
--tags STRING                           tags of the model
--host HOST                             addresses to listen on, comma-separated, or UNIX socket paths
                                        ending in .sock (default: 127.0.0.1)
--port PORT                             port to listen (default: 8080)
--reuse-port                            share the port
--cors-origins ORIGINS                  allowed origins
--api-prefix PREFIX                     prefix of all paths
--ui,  --webui, --no-ui, --no-webui     the web page
--embedding, --embeddings               embeddings only
--rerank, --reranking                   reranking
--api-key KEY                           keys, comma-separated
                                        (env: LLAMA_API_KEY)
--api-key-file FNAME                    file of keys
-to,   --timeout N                      read and write timeout in seconds
--sse-ping-interval N                   seconds between SSE pings (default: 30)
--threads-http N                        threads of the HTTP server
--cache-prompt, --no-cache-prompt       cache prompts
--cache-reuse N                         smallest chunk to reuse
--metrics                               metrics
--props                                 change properties by POST
--slots, --no-slots                     the state of the slots
--slot-save-path PATH                   directory of saved slots
--jinja, --no-jinja                     chat templates in jinja
--reasoning-format FORMAT               what becomes of thoughts
-rea,  --reasoning [on|off|auto]        think
--chat-template JINJA_TEMPLATE          chat template
--chat-template-file JINJA_TEMPLATE_FILE
                                        file of the chat template
--sleep-idle-seconds SECONDS            sleep when idle
"""

# A fork that has gone its own way since 2024: --help in the old layout, no key in the environment, no unix socket, no
# --alias, and --fit as a switch.
FORK = """usage: ./llama-server [options]

general:

  -h,    --help, --usage          print usage and exit
         --version                show version and build info
  -c,    --ctx-size N             size of the prompt context (default: 0, 0 = loaded from model)
  -ctx-ckpt N, --ctx-checkpoints N
                                  max number of context checkpoints to create per slot (default: 32)
  -cram, --cache-ram N            set the maximum cache size in MiB (default: 8192, -1 - no limit, 0 - disable)
  -b,    --batch-size N           logical maximum batch size (default: 2048)
  -ub,   --ubatch-size N          physical maximum batch size (default: 512)
  -fa, --flash-attn (auto|on|off|0|1)
                                  set Flash Attention (default: on)
         --jinja                  use jinja template for chat
  -ctk,  --cache-type-k TYPE      KV cache data type for K (default: f16)
  -ctv,  --cache-type-v TYPE      KV cache data type for V (default: f16)
  -np,   --parallel N             number of parallel sequences to decode (default: 1)
         --fit                    automatically determine which tensors to offload to the GPU(s)
  -ngl,  --gpu-layers N           number of layers to store in VRAM
  -m,    --model FNAME            model path
         --host HOST              ip address to listen (default: 127.0.0.1)
         --port PORT              port to listen (default: 8080)
         --embedding(s)           restrict to only support embedding use case (default: disabled)
         --api-key KEY            API key to use for authentication (default: none)
         --api-key-file FNAME     path to file containing API keys (default: none)
"""
DESCRIPTION_COLUMN = 40


def fork_table():
    """{flag: does it take a value} of FORK."""
    heads = [line[:34].strip() for line in FORK.splitlines() if line.strip().startswith("-")]
    words = [head.replace(",", " ").replace("(s)", " --embeddings").split() for head in heads]
    return {w: any(not v.startswith("-") for v in line) for line in words for w in line if w.startswith("-")}


def flag_table():
    """{flag: does it take a value}, read from HELP as a person would."""
    flags = {}
    for line in HELP.splitlines():
        if not line.startswith("-") or line.startswith("-----"):
            continue
        # A head that is too long for its column stands alone on its line.
        head = line if line[DESCRIPTION_COLUMN - 1 : DESCRIPTION_COLUMN].strip() else line[:DESCRIPTION_COLUMN]
        words = head.replace(",", " ").split()
        names = [word for word in words if word.startswith("-")]
        flags |= dict.fromkeys(names, len(names) < len(words))
    return flags


def parse(argv, fork=False):
    """{flag: value, or "" for a switch}. ValueError with llama-server's words for what it would refuse."""
    table = fork_table() if fork else flag_table()
    options = {}
    rest = iter(argv)
    for flag in rest:
        if flag not in table:
            raise ValueError(f"error: invalid argument: {flag}")
        value = next(rest, None) if table[flag] else ""
        if value is None:
            raise ValueError(f'error while handling argument "{flag}": expected value for argument')
        options[flag] = value
    return options
