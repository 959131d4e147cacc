"""How llama-server answers: its words, by which the gateway knows what an error means. Data only."""

from __future__ import annotations

from typing import Final

from accelerd.engines.base import Dialect

# What it answers with status 500 although it has only read the request: its messages, tools, template and media.
REQUEST_FAULTS: Final = (
    r"^(Failed to (parse|tokenize|load image|download)|Cannot (use|specify)|Unknown |Unsupported |Only no echo|Error: )"
    r"|json\.exception|While executing|Jinja Exception|not support(ed| )|requires --jinja|must (not )?be |is required$"
    r"|Invalid (base64|token)|too large to process|larger than the max context"
)

# A model that was not made for embeddings: its file does not say how those of all tokens become one.
NO_POOLING: Final = (
    r"Pooling type 'none' is not OAI compatible",
    'set extra_args = ["--pooling", "mean"] for {model}, or "last" or "cls", as its makers say',
)

# What it does only if its command line says so.
NOT_STARTED: Final = (
    r"^This server does not support .*Start it with `--",
    'extra_args of {model} are the place for such a flag, as in extra_args = ["--metrics"]',
)

DIALECT: Final = Dialect(
    streams_notice_disconnect=True,
    closes_after_streams=True,
    request_faults=REQUEST_FAULTS,
    too_long="exceed_context_size_error",
    advice=(NO_POOLING, NOT_STARTED),
    too_large=r"input \((\d+) tokens\) is too large to process\..*\(current batch size: (\d+)\)",
    # In a string the quotes would be escaped: nothing that the model says looks like this.
    choice=rb'(\{"finish_reason":"[a-z_]+","index":\d+,)("message":\{"role":"assistant",)',
    temperature=0.8,
    top_p=0.95,
    key_refused="unauthorized: Invalid API Key",
)
