"""Which fields a request in OpenAI's API may have, and what happens to others (server.unknown_parameters). Pure.

OPENAI: OpenAI's OpenAPI document and the request types of its package openai 3.57.0, with what is deprecated there.
LLAMA_SERVER: what llama-server reads beside them, by its server-schema.cpp and server-chat.cpp (2026-11).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import msgspec

from accelerd.base.errors import AccelError
from accelerd.gateway.responses import EMBEDDINGS, RESPONSES

CHAT: Final = "/v1/chat/completions"
COMPLETIONS: Final = "/v1/completions"


def words(text: str) -> frozenset[str]:
    return frozenset(text.split())


GENERATES: Final = words(
    "frequency_penalty logit_bias logprobs max_tokens model n presence_penalty seed stop stream "
    "stream_options temperature top_p user"
)
OPENAI: Final = {
    CHAT: GENERATES
    | words(
        "audio function_call functions max_completion_tokens messages metadata modalities moderation "
        "parallel_tool_calls prediction prompt_cache_key prompt_cache_options prompt_cache_retention "
        "reasoning_effort response_format safety_identifier service_tier store tool_choice tools "
        "top_logprobs verbosity web_search_options"
    ),
    COMPLETIONS: GENERATES | words("best_of echo prompt suffix"),
    EMBEDDINGS: words("dimensions encoding_format input model user"),
    RESPONSES: words(
        "access_programs background background_options context_management conversation frequency_penalty "
        "image include input instructions max_output_tokens max_tool_calls metadata model moderation "
        "parallel_tool_calls presence_penalty previous_response_id prompt prompt_cache_key "
        "prompt_cache_options prompt_cache_retention reasoning safety_identifier service_tier store "
        "stream stream_options temperature text tool_choice tools top_logprobs top_p truncation user"
    ),
}
SAMPLES: Final = words(
    "adaptive_decay adaptive_target backend_sampling cache_prompt dry_allowed_length dry_base "
    "dry_multiplier dry_penalty_last_n dry_sequence_breakers dynatemp_exponent dynatemp_range grammar "
    "grammar_lazy grammar_triggers id_slot ignore_eos json_schema lora max_completion_tokens min_keep "
    "min_p mirostat mirostat_eta mirostat_tau n_cache_reuse n_cmpl n_discard n_indent n_keep "
    "n_predict n_probs post_sampling_probs preserved_tokens repeat_last_n repeat_penalty "
    "response_fields return_progress return_tokens samplers sse_ping_interval t_max_predict_ms "
    "t_max_prompt_ms timings_per_token top_k top_n_sigma typical_p verbose xtc_probability "
    "xtc_threshold"
)
TALKS: Final = SAMPLES | words(
    "add_generation_prompt chat_format chat_parser chat_template_kwargs continue_final_message "
    "documents generation_prompt parse_tool_calls reasoning_budget_end_tag reasoning_budget_end_tags "
    "reasoning_budget_message reasoning_budget_start_tag reasoning_budget_tokens reasoning_control "
    "reasoning_format thinking_budget_tokens"
)
LLAMA_SERVER: Final = {
    CHAT: TALKS,
    COMPLETIONS: SAMPLES | {"response_format"},
    EMBEDDINGS: words("content embd_normalize"),
    RESPONSES: TALKS,
}
ITS_FIELDS: Final = frozenset(("llama-server", "lemonade"))  # engines that read them


def with_known_fields(body: bytes, path: str, engine: str, own: Iterable[str], *, refuse: bool) -> bytes:
    """A valid body of a request to a path of OPENAI without the fields that are not known. `own`: known ones beside.

    AccelError bad_request that names one, if they are to be refused.
    """
    known = OPENAI[path] | frozenset(own)
    if engine in ITS_FIELDS:
        known |= LLAMA_SERVER[path]
    fields = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    unknown = [name for name in fields if name not in known]
    if not unknown:
        return body
    if refuse:
        text = f"{path} has no parameter {unknown[0][:100]!r}"
        raise AccelError("bad_request", text, hint="server.unknown_parameters decides", param=unknown[0][:100])
    return msgspec.json.encode({name: value for name, value in fields.items() if name in known})
