"""What to do instead, for a client that asks for a path that accelerd does not have."""

from __future__ import annotations

import re
from typing import Final

from accelerd.gateway.responses import OF_OLLAMA, PATH_ALIASES, TASKS, is_ollamas

CONVERSATION: Final = "accelerd keeps no conversations: send the whole one with each request, as `input` or `messages`"
FILES: Final = "accelerd keeps no files: send texts, images and audio in the requests themselves"
# Of OpenAI's API what needs a service beside the models, by the first part of the path.
INSTEAD: Final = {
    "assistants": CONVERSATION,
    "threads": CONVERSATION,
    "conversations": CONVERSATION,
    "files": FILES,
    "uploads": FILES,
    "vector_stores": FILES,
    "containers": FILES,
    "batches": "send the requests one by one: accelerd queues them",
    "fine_tuning": "accelerd trains no models",
    "evals": "accelerd judges no models",
    "moderations": "accelerd has no model for it: have a chat model judge the text",
    "realtime": "accelerd has no WebSockets: send audio to a model by /v1/chat/completions or /v1/audio/transcriptions",
    "videos": "accelerd makes no videos",
    "responses": CONVERSATION,
}
FIRST: Final = re.compile(r"(?:/api)?/v1/(\w+)(?:/|$)")


def meant(path: str) -> str:
    """Nothing if nothing is known of it."""
    if is_ollamas(path):
        known = sorted({*OF_OLLAMA, *filter(is_ollamas, TASKS)})
        return f"of Ollama's API accelerd has {', '.join(known)}; models are added by accelctl add"
    if (first := FIRST.match(path)) is not None and first[1] in INSTEAD:
        return INSTEAD[first[1]]
    ends = [known for known in PATH_ALIASES if path.endswith(known)]
    return f"set the client's base URL so that it asks for {PATH_ALIASES[max(ends, key=len)]}" if ends else ""
