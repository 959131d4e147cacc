"""The requests that are sent to accelerd and to the engine itself: good ones of every shape, odd ones and wrong ones.

A request is a path and the fields of its body; `model`, `seed`, `temperature` and `stream` are added by who asks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

CHAT, COMPLETIONS, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
MESSAGES, RESPONSES, RERANK = "/v1/messages", "/v1/responses", "/v1/rerank"
COUNT = "/v1/messages/count_tokens"
LONG = "word " * 3000
PIXEL: Final = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk"
    "+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)

Fields = Mapping[str, Any]


class Body(NamedTuple):
    name: str
    path: str
    fields: Fields

    @property
    def streams(self) -> bool:
        """Can it be asked for as a stream too?"""
        return self.path in (CHAT, COMPLETIONS, MESSAGES, RESPONSES) and "stream" not in self.fields


def user(content: Any = "good day") -> dict[str, Any]:
    return {"role": "user", "content": content}


def text(content: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": content}]


def tool(name: str = "get_weather", **more: Any) -> dict[str, Any]:
    parameters = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    function = {"name": name, "description": "the weather", "parameters": parameters, **more}
    return {"type": "function", "function": {key: value for key, value in function.items() if value is not ...}}


def schema(inner: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": inner}}


CALL = {"id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'}}
ASKED = [user("weather?"), {"role": "assistant", "content": None, "tool_calls": [CALL]}]
RESULT = {"role": "tool", "tool_call_id": "c1", "content": "sunny"}
OBJECT = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
IMAGE = [*text("what is this?"), {"type": "image_url", "image_url": {"url": PIXEL}}]
AUDIO = [{"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}]

# What a conversation may look like.
TALKS: Final[dict[str, Any]] = {
    "text": [user()],
    "parts": [user(text("good day"))],
    "two-parts": [user([*text("good"), *text("day")])],
    "system": [{"role": "system", "content": "be kind"}, user()],
    "developer": [{"role": "developer", "content": "be kind"}, user()],
    "turns": [user(), {"role": "assistant", "content": "hello"}, user("more")],
    "two-users": [user(), user("and you?")],
    "prefill": [user(), {"role": "assistant", "content": "Hello from"}],
    "assistant-null": [user(), {"role": "assistant", "content": None}, user()],
    "reasoning": [user(), {"role": "assistant", "content": "hi", "reasoning_content": "hm"}, user()],
    "tool-result": [*ASKED, RESULT],
    "tool-result-parts": [*ASKED, {**RESULT, "content": text("sunny")}],
    "tool-call-open": ASKED,
    "named": [{**user(), "name": "ann"}],
    "empty-content": [user("")],
    "blank": [user(" ")],
    "umlauts": [user("Grüße, 日本語, 🙂🙃")],
    "escapes": [user('"quotes"\\ \n\t\u0000\u2028')],
    "control-tokens": [user("<|im_end|> <|im_start|>system")],
    "html": [user("</think> <tool_call>{}</tool_call>")],
    "long": [user("word " * 200)],
    "system-last": [user(), {"role": "system", "content": "be kind"}],
    "only-system": [{"role": "system", "content": "be kind"}],
    "no-messages": [],
    "not-a-list": "hello",
    "not-objects": ["hello"],
    "null": None,
    "no-role": [{"content": "hi"}],
    "null-role": [{"role": None, "content": "hi"}],
    "odd-role": [{"role": "wizard", "content": "hi"}],
    "no-content": [{"role": "user"}],
    "null-content": [user(None)],
    "number-content": [user(7)],
    "object-content": [user({"text": "hi"})],
    "empty-parts": [user([])],
    "odd-part": [user([{"type": "smell", "smell": "x"}])],
    "part-without-type": [user([{"text": "hi"}])],
    "image": [user(IMAGE)],
    "image-without-url": [user([{"type": "image_url"}])],
    "audio": [user(AUDIO)],
    "file": [user([{"type": "file", "file": {"file_id": "f"}}])],
    "refusal": [user(), {"role": "assistant", "refusal": "no"}, user()],
    "odd-tool-calls": [user(), {"role": "assistant", "tool_calls": "x"}, user()],
    "too-long": [user(LONG)],
}

# What else a chat may ask for.
CHATS: Final[dict[str, Fields]] = {
    "max-1": {"max_tokens": 1},
    "max-5": {"max_tokens": 5},
    "max-0": {"max_tokens": 0},
    "max-minus-1": {"max_tokens": -1},
    "max-minus-2": {"max_tokens": -2},
    "max-null": {"max_tokens": None},
    "max-text": {"max_tokens": "5"},
    "max-float": {"max_tokens": 5.0},
    "max-completion": {"max_completion_tokens": 4},
    "max-both": {"max_tokens": 6, "max_completion_tokens": 4},
    "n-predict": {"n_predict": 3},
    "n-1": {"n": 1},
    "n-2": {"n": 2, "max_tokens": 6},
    "n-3-stop": {"n": 3, "stop": ["tiny"]},
    "n-null": {"n": None, "max_tokens": 3},
    "n-0": {"n": 0},
    "n-too-many": {"n": 200},
    "n-text": {"n": "2", "max_tokens": 3},
    "n-cmpl": {"n_cmpl": 2, "max_tokens": 4},
    "stop-word": {"stop": ["accelerd"]},
    "stop-text": {"stop": "tiny"},
    "stop-first": {"stop": ["Hello"]},
    "stop-never": {"stop": ["zzz"]},
    "stop-two": {"stop": ["zzz", "this"]},
    "stop-across": {"stop": ["accelerd, this"]},
    "stop-part": {"stop": ["speakers"]},
    "stop-empty": {"stop": []},
    "stop-null": {"stop": None},
    "stop-odd": {"stop": 5},
    "logprobs": {"logprobs": True, "max_tokens": 6},
    "logprobs-whole": {"logprobs": True, "top_logprobs": 1},
    "logprobs-0": {"logprobs": True, "top_logprobs": 0, "max_tokens": 4},
    "logprobs-5": {"logprobs": True, "top_logprobs": 5, "max_tokens": 4},
    "logprobs-stop": {"logprobs": True, "top_logprobs": 2, "stop": ["accelerd"]},
    "logprobs-stop-across": {"logprobs": True, "top_logprobs": 1, "stop": ["accelerd, this"]},
    "logprobs-n-2": {"logprobs": True, "top_logprobs": 1, "n": 2, "max_tokens": 3},
    "logprobs-tools": {"logprobs": True, "tools": [tool()]},
    "logprobs-post": {"logprobs": True, "top_logprobs": 2, "post_sampling_probs": True, "max_tokens": 3},
    "logprobs-false": {"logprobs": False, "max_tokens": 3},
    "logprobs-null": {"logprobs": None, "max_tokens": 3},
    "top-logprobs-alone": {"top_logprobs": 3},
    "n-probs": {"n_probs": 2, "max_tokens": 3},
    "json": {"response_format": {"type": "json_object"}, "max_tokens": 40},
    "json-schema": {"response_format": schema(OBJECT), "max_tokens": 60},
    "json-schema-enum": {"response_format": schema({"enum": ["a", "b"]}), "max_tokens": 20},
    "json-schema-odd": {"response_format": schema({"type": "zz"})},
    "json-schema-none": {"response_format": {"type": "json_schema"}},
    "format-text": {"response_format": {"type": "text"}, "max_tokens": 3},
    "format-odd": {"response_format": {"type": "xml"}},
    "format-string": {"response_format": "json"},
    "grammar": {"grammar": 'root ::= "yes" | "no"'},
    "grammar-bad": {"grammar": "root ::= nonsense"},
    "grammar-and-schema": {"grammar": 'root ::= "a"', "json_schema": OBJECT},
    "tools": {"tools": [tool()]},
    "tools-required": {"tools": [tool()], "tool_choice": "required"},
    "tools-none": {"tools": [tool()], "tool_choice": "none"},
    "tools-named": {"tools": [tool()], "tool_choice": {"type": "function", "function": {"name": "get_weather"}}},
    "tools-odd-choice": {"tools": [tool()], "tool_choice": "maybe"},
    "tools-two": {"tools": [tool(), tool("get_time")]},
    "tools-parallel": {"tools": [tool()], "parallel_tool_calls": True},
    "tools-one-by-one": {"tools": [tool()], "parallel_tool_calls": False},
    "tools-empty": {"tools": [], "max_tokens": 3},
    "tools-null": {"tools": None, "max_tokens": 3},
    "tools-odd": {"tools": [{"type": "function"}]},
    "tools-string": {"tools": "none"},
    "tools-null-description": {"tools": [tool(description=None)]},
    "tools-no-description": {"tools": [tool(description=...)]},
    "tools-no-parameters": {"tools": [tool(parameters=...)]},
    "tools-null-parameters": {"tools": [tool(parameters=None)]},
    "tools-strict": {"tools": [tool(strict=True)]},
    "tools-length": {"tools": [tool()], "max_tokens": 6},
    "tools-unparsed": {"tools": [tool()], "parse_tool_calls": False},
    "tools-n-2": {"tools": [tool()], "n": 2},
    "functions": {"functions": [tool()["function"]], "max_tokens": 3},
    "usage-asked": {"stream_options": {"include_usage": True}, "max_tokens": 3},
    "usage-refused": {"stream_options": {"include_usage": False}, "max_tokens": 3},
    "stream-options-null": {"stream_options": None, "max_tokens": 3},
    "stream-false": {"stream": False, "max_tokens": 3},
    "stream-null": {"stream": None, "max_tokens": 3},
    "stream-text": {"stream": "false", "max_tokens": 3},
    "stream-number": {"stream": 0, "max_tokens": 3},
    "timings-per-token": {"timings_per_token": True, "max_tokens": 4},
    "progress": {"return_progress": True, "max_tokens": 4},
    "progress-n-2": {"return_progress": True, "n": 2, "max_tokens": 4},
    "return-tokens": {"return_tokens": True, "max_tokens": 3},
    "verbose": {"verbose": True, "max_tokens": 3},
    "response-fields": {"response_fields": ["content"], "max_tokens": 3},
    "reasoning-none": {"reasoning_format": "none", "max_tokens": 3},
    "reasoning-legacy": {"reasoning_format": "deepseek-legacy"},
    "reasoning-odd": {"reasoning_format": "zz"},
    "reasoning-effort": {"reasoning_effort": "low", "max_tokens": 3},
    "template-kwargs": {"chat_template_kwargs": {"enable_thinking": False}, "max_tokens": 3},
    "template-kwargs-odd": {"chat_template_kwargs": "x"},
    "no-generation-prompt": {"add_generation_prompt": False, "max_tokens": 3},
    "continue": {"continue_final_message": True, "add_generation_prompt": False, "max_tokens": 3},
    "no-eos": {"ignore_eos": True, "max_tokens": 70},
    "cached": {"cache_prompt": True, "max_tokens": 3},
    "slot-0": {"id_slot": 0, "max_tokens": 3},
    "slot-99": {"id_slot": 99, "max_tokens": 3},
    "unknown-fields": {"user": "u", "metadata": {"a": "b"}, "store": True, "service_tier": "auto", "max_tokens": 3},
    "numbers": {"seed": 12345678901234567890, "max_tokens": 3},
    "temperature-hot": {"temperature": "hot"},
    "temperature-null": {"temperature": None, "max_tokens": 3},
    "temperature-high": {"temperature": 99, "max_tokens": 3},
    "top-k": {"top_k": 1, "top_p": 0.1, "min_p": 0.1, "typical_p": 0.5, "max_tokens": 3},
    "penalties": {"frequency_penalty": 1, "presence_penalty": 1, "repeat_penalty": 1.5, "max_tokens": 5},
    "samplers": {"samplers": ["top_k", "temperature"], "max_tokens": 3},
    "mirostat": {"mirostat": 2, "max_tokens": 3},
    "logit-bias": {"logit_bias": {"300": -100}, "max_tokens": 5},
    "logit-bias-list": {"logit_bias": [[300, False]], "max_tokens": 5},
    "logit-bias-odd": {"logit_bias": "x", "max_tokens": 3},
    "lora": {"lora": [{"id": 0, "scale": 0.5}], "max_tokens": 3},
    "max-tokens-huge": {"max_tokens": 99999999999},
}

COMPLETES: Final[dict[str, Fields]] = {
    "text": {"prompt": "good day"},
    "length": {"prompt": "good day", "max_tokens": 5},
    "one": {"prompt": "good day", "max_tokens": 1},
    "zero": {"prompt": "good day", "max_tokens": 0},
    "list-of-one": {"prompt": ["good day"], "max_tokens": 5},
    "list-of-two": {"prompt": ["good day", "hello"], "max_tokens": 5},
    "list-whole": {"prompt": ["good day", "hello", "b"]},
    "list-of-six": {"prompt": ["a", "b", "c", "d", "e", "f"], "max_tokens": 3},
    "list-different": {"prompt": ["a", "word " * 50], "max_tokens": 4},
    "list-n-2": {"prompt": ["a", "b"], "n": 2, "max_tokens": 3},
    "list-logprobs": {"prompt": ["a", "b"], "logprobs": 2, "max_tokens": 3},
    "list-stop": {"prompt": ["a", "b"], "stop": ["tiny"]},
    "list-progress": {"prompt": ["a", "b"], "return_progress": True, "max_tokens": 3},
    "list-one-too-long": {"prompt": ["a", LONG], "max_tokens": 3},
    "list-one-empty": {"prompt": ["a", ""], "max_tokens": 3},
    "tokens": {"prompt": [116, 257, 32, 104], "max_tokens": 5},
    "lists-of-tokens": {"prompt": [[116, 257], [32, 104]], "max_tokens": 4},
    "mixed": {"prompt": ["a ", 116, "b"], "max_tokens": 4},
    "mixed-lists": {"prompt": ["a", [116, 257]], "max_tokens": 4},
    "object": {"prompt": {"prompt_string": "good day"}, "max_tokens": 4},
    "object-media": {"prompt": {"prompt_string": "x <__media__>", "multimodal_data": ["AAAA"]}, "max_tokens": 4},
    "empty": {"prompt": "", "max_tokens": 3},
    "empty-list": {"prompt": [], "max_tokens": 3},
    "null": {"prompt": None},
    "missing": {},
    "number": {"prompt": 7, "max_tokens": 3},
    "odd-token": {"prompt": [99999999], "max_tokens": 3},
    "n-2": {"prompt": "good day", "n": 2, "max_tokens": 6},
    "n-4": {"prompt": "good day", "n": 4, "max_tokens": 2},
    "n-2-whole": {"prompt": "good day", "n": 2},
    "n-9": {"prompt": "good day", "n": 9, "max_tokens": 2},
    "n-2-logprobs": {"prompt": "good day", "n": 2, "logprobs": 1, "max_tokens": 3},
    "best-of": {"prompt": "good day", "best_of": 2, "max_tokens": 3},
    "echo": {"prompt": "good day", "echo": True, "max_tokens": 3},
    "suffix": {"prompt": "good", "suffix": "day", "max_tokens": 3},
    "logprobs-0": {"prompt": "good day", "logprobs": 0, "max_tokens": 3},
    "logprobs-1": {"prompt": "good day", "logprobs": 1, "max_tokens": 3},
    "logprobs-3": {"prompt": "good day", "logprobs": 3, "max_tokens": 6},
    "logprobs-whole": {"prompt": "good day", "logprobs": 1},
    "logprobs-stop": {"prompt": "good day", "logprobs": 1, "stop": ["accelerd"]},
    "logprobs-post": {"prompt": "good day", "n_probs": 2, "post_sampling_probs": True, "max_tokens": 3},
    "logprobs-true": {"prompt": "good day", "logprobs": True, "max_tokens": 3},
    "stop": {"prompt": "good day", "stop": [" "]},
    "stop-text": {"prompt": "good day", "stop": "tiny"},
    "stop-across": {"prompt": "good day", "stop": ["accelerd, this"]},
    "progress": {"prompt": "good day " * 30, "return_progress": True, "max_tokens": 4},
    "timings-per-token": {"prompt": "good day", "timings_per_token": True, "max_tokens": 4},
    "usage-asked": {"prompt": "good day", "stream_options": {"include_usage": True}, "max_tokens": 3},
    "return-tokens": {"prompt": "good day", "return_tokens": True, "max_tokens": 3},
    "verbose": {"prompt": "good day", "verbose": True, "max_tokens": 3},
    "verbose-list": {"prompt": ["good", "day"], "verbose": True, "max_tokens": 3},
    "response-fields": {"prompt": "good day", "response_fields": ["content", "timings/prompt_n"], "max_tokens": 3},
    "grammar": {"prompt": "x", "grammar": 'root ::= "yes" | "no"'},
    "grammar-bad": {"prompt": "x", "grammar": "root ::= nonsense"},
    "json-schema": {"prompt": "x", "json_schema": OBJECT, "max_tokens": 40},
    "n-predict": {"prompt": "good day", "n_predict": 3},
    "n-indent": {"prompt": "good day", "n_indent": 2, "max_tokens": 4},
    "time-limit": {"prompt": "good day", "t_max_predict_ms": 100000, "max_tokens": 4},
    "special": {"prompt": "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n", "max_tokens": 6},
    "umlauts": {"prompt": "Grüße 日本語 🙂", "max_tokens": 4},
    "cached": {"prompt": "good day", "cache_prompt": True, "max_tokens": 3},
    "messages-too": {"prompt": "good day", "messages": [user()], "max_tokens": 3},
    "too-long": {"prompt": LONG},
    "bad-temperature": {"prompt": "x", "temperature": "hot"},
}

MESSAGED: Final[dict[str, Fields]] = {
    "text": {"messages": [user()]},
    "parts": {"messages": [user(text("good day"))]},
    "system": {"system": "be kind", "messages": [user()]},
    "system-parts": {"system": text("be kind"), "messages": [user()]},
    "turns": {"messages": [user(), {"role": "assistant", "content": "hello"}, user("more")]},
    "prefill": {"messages": [user(), {"role": "assistant", "content": "Hello from"}]},
    "length": {"messages": [user()], "max_tokens": 4},
    "no-max": {"messages": [user()], "max_tokens": ...},
    "stop": {"messages": [user()], "stop_sequences": ["accelerd"]},
    "stop-never": {"messages": [user()], "stop_sequences": ["zzz"]},
    "stop-first": {"messages": [user()], "stop_sequences": ["Hello"]},
    "tools": {"messages": [user()], "tools": [{"name": "get_weather", "description": "w", "input_schema": OBJECT}]},
    "tools-any": {
        "messages": [user()],
        "tools": [{"name": "get_weather", "input_schema": OBJECT}],
        "tool_choice": {"type": "any"},
    },
    "tools-null-description": {
        "messages": [user()],
        "tools": [{"name": "get_weather", "description": None, "input_schema": OBJECT}],
    },
    "tool-result": {
        "messages": [
            user("weather?"),
            {
                "role": "assistant",
                "content": [{"type": "tool_use", "id": "t1", "name": "get_weather", "input": {"city": "Paris"}}],
            },
            user([{"type": "tool_result", "tool_use_id": "t1", "content": "sunny"}]),
        ],
        "tools": [{"name": "get_weather", "input_schema": OBJECT}],
    },
    "thinking": {"messages": [user()], "thinking": {"type": "enabled", "budget_tokens": 1024}},
    "metadata": {"messages": [user()], "metadata": {"user_id": "u"}, "max_tokens": 3},
    "cache-control": {"messages": [user([{**text("hi")[0], "cache_control": {"type": "ephemeral"}}])]},
    "top-k": {"messages": [user()], "top_k": 5, "top_p": 0.5, "max_tokens": 3},
    "image": {
        "messages": [
            user(
                [
                    {
                        "type": "image",
                        "source": {"type": "base64", "media_type": "image/png", "data": PIXEL.rpartition(",")[2]},
                    }
                ]
            )
        ]
    },
    "empty": {"messages": []},
    "missing": {},
    "not-a-list": {"messages": "hello"},
    "no-role": {"messages": [{"content": "hi"}]},
    "odd-role": {"messages": [{"role": "wizard", "content": "hi"}]},
    "odd-block": {"messages": [user([{"type": "smell"}])]},
    "bad-temperature": {"messages": [user()], "temperature": "hot"},
    "too-long": {"messages": [user(LONG)]},
}

RESPONDED: Final[dict[str, Fields]] = {
    "text": {"input": "good day"},
    "items": {"input": [{"role": "user", "content": "good day"}]},
    "parts": {"input": [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": "good day"}]}]},
    "instructions": {"input": "good day", "instructions": "be kind"},
    "length": {"input": "good day", "max_output_tokens": 4},
    "turns": {
        "input": [
            {"role": "user", "content": "good day"},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "hello"}]},
            {"role": "user", "content": "more"},
        ]
    },
    "tools": {"input": "weather?", "tools": [{**tool()["function"], "type": "function"}]},
    "tools-required": {
        "input": "weather?",
        "tools": [{**tool()["function"], "type": "function"}],
        "tool_choice": "required",
    },
    "tools-null-description": {
        "input": "weather?",
        "tools": [{**tool()["function"], "type": "function", "description": None}],
    },
    "tool-result": {
        "input": [
            {"role": "user", "content": "weather?"},
            {"type": "function_call", "call_id": "c1", "name": "get_weather", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c1", "output": "sunny"},
        ]
    },
    "reasoning": {"input": "good day", "reasoning": {"effort": "low"}, "max_output_tokens": 3},
    "schema": {
        "input": "good day",
        "text": {"format": {"type": "json_schema", "name": "x", "schema": OBJECT}},
        "max_output_tokens": 40,
    },
    "progress": {"input": "good day", "return_progress": True, "max_output_tokens": 3},
    "unknown-fields": {"input": "good day", "store": False, "include": [], "parallel_tool_calls": False},
    "image": {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": PIXEL}]}]},
    "previous": {"input": "good day", "previous_response_id": "resp_1"},
    "empty": {"input": ""},
    "empty-list": {"input": []},
    "missing": {},
    "odd-input": {"input": 7},
    "odd-item": {"input": [{"type": "smell"}]},
    "odd-role": {"input": [{"role": "wizard", "content": "hi"}]},
    "bad-temperature": {"input": "good day", "temperature": "hot"},
    "too-long": {"input": LONG},
}

EMBEDDED: Final[dict[str, Fields]] = {
    "text": {"input": "good day"},
    "list": {"input": ["good", "day"]},
    "many": {"input": [f"text {index}" for index in range(20)]},
    "tokens": {"input": [5, 6, 7]},
    "lists-of-tokens": {"input": [[5, 6], [7]]},
    "base64": {"input": "good day", "encoding_format": "base64"},
    "float": {"input": "good day", "encoding_format": "float"},
    "format-odd": {"input": "good day", "encoding_format": "int8"},
    "dimensions": {"input": "good day", "dimensions": 4},
    "normalize": {"input": "good day", "embd_normalize": -1},
    "content": {"content": "good day"},
    "content-list": {"content": ["good", "day"]},
    "object": {"input": {"content": text("good day")}},
    "user": {"input": "good day", "user": "u"},
    "umlauts": {"input": "Grüße 日本語"},
    "empty": {"input": ""},
    "empty-list": {"input": []},
    "one-empty": {"input": ["a", ""]},
    "null": {"input": None},
    "missing": {},
    "number": {"input": 5},
    "too-long": {"input": "word " * 3000},
    "one-too-long": {"input": ["a", "word " * 3000]},
}

RANKED: Final[dict[str, Fields]] = {
    "documents": {"query": "abc", "documents": ["abc", "xyz", "abd"]},
    "one": {"query": "abc", "documents": ["abc"]},
    "top-n": {"query": "abc", "documents": ["abc", "xyz", "abd"], "top_n": 2},
    "top-n-0": {"query": "abc", "documents": ["abc", "xyz"], "top_n": 0},
    "return-documents": {"query": "abc", "documents": ["abc", "xyz"], "return_documents": True},
    "texts": {"query": "abc", "texts": ["abc", "xyz", "abd"]},
    "texts-returned": {"query": "abc", "texts": ["abc", "xyz"], "return_text": True},
    "texts-top-n": {"query": "abc", "texts": ["abc", "xyz"], "top_n": 1},
    "objects": {"query": "abc", "documents": [{"text": "abc"}, {"text": "xyz"}]},
    "empty-list": {"query": "abc", "documents": []},
    "no-documents": {"query": "abc"},
    "no-query": {"documents": ["abc"]},
    "odd-query": {"query": 5, "documents": ["abc"]},
    "not-a-list": {"query": "abc", "documents": "abc"},
    "too-long": {"query": "abc", "documents": ["word " * 3000]},
}

COUNTED: Final[dict[str, Fields]] = {
    "text": {"messages": [user()]},
    "system": {"messages": [user()], "system": "be kind"},
    "tools": {"messages": [user()], "tools": [{"name": "get_weather", "input_schema": OBJECT}]},
    "long": {"messages": [user(LONG)]},
    "no-role": {"messages": [{"content": "hi"}]},
}


def bodies() -> Iterator[Body]:
    """All of them, with names of their own."""
    for name, messages in TALKS.items():
        yield Body(f"talk:{name}", CHAT, {"messages": messages})
    yield Body("talk:missing", CHAT, {})
    for name, fields in CHATS.items():
        yield Body(f"chat:{name}", CHAT, {"messages": [user()], **fields})
    for group, path, many in (
        ("completion", COMPLETIONS, COMPLETES),
        ("message", MESSAGES, MESSAGED),
        ("count", COUNT, COUNTED),
        ("response", RESPONSES, RESPONDED),
        ("input-tokens", f"{RESPONSES}/input_tokens", {"text": {"input": "good day"}, "odd": {"input": 7}}),
        ("chat-tokens", f"{CHAT}/input_tokens", {"text": {"messages": [user()]}, "odd": {"messages": 7}}),
        ("embedding", EMBEDDINGS, EMBEDDED),
        ("rerank", RERANK, RANKED),
        ("reranking", "/v1/reranking", {"documents": RANKED["documents"]}),
        ("root-rerank", "/rerank", {"texts": RANKED["texts"]}),
        ("root-chat", "/chat/completions", {"text": {"messages": [user()]}}),
        ("root-response", "/responses", {"text": {"input": "good day"}}),
    ):
        for name, fields in many.items():
            yield Body(f"{group}:{name}", path, fields)
