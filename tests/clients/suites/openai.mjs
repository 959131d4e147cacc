// The packages openai and @anthropic-ai/sdk.
import Anthropic from "@anthropic-ai/sdk";
import OpenAI from "openai";
import { CHAT, collect, EMBED, KEY, main, status, WEATHER } from "./checks.mjs";

const HELLO = [{ role: "user", content: "good day" }];
const TOOLS = [{ type: "function", function: { name: "get_weather", parameters: WEATHER } }];
const TOOL = { name: "get_weather", input_schema: WEATHER };
const openai = (baseURL) => new OpenAI({ baseURL, apiKey: KEY, maxRetries: 0 });
const chat = (t, more = {}) => openai(t.url).chat.completions.create({ model: CHAT, messages: HELLO, ...more });
const anthropic = (t) => new Anthropic({ baseURL: t.root, apiKey: KEY, maxRetries: 0 });
const ask = (t, more = {}) => anthropic(t).messages.create({ model: CHAT, max_tokens: 64, messages: HELLO, ...more });

await main({
  models: async (t) => (await collect(openai(t.url).models.list())).some((one) => one.id === CHAT),
  chat: (t) => chat(t),
  chat_stream: async (t) => collect(await chat(t, { stream: true, stream_options: { include_usage: true } })),
  chat_helper_stream: async (t) => openai(t.url).chat.completions.stream({ model: CHAT, messages: HELLO }).finalContent(),
  chat_several: (t) => chat(t, { n: 2, max_tokens: 3 }),
  chat_logprobs: (t) => chat(t, { logprobs: true, top_logprobs: 1, max_tokens: 3 }),
  chat_tools: (t) => chat(t, { tools: TOOLS }),
  chat_tools_stream: async (t) => collect(await chat(t, { tools: TOOLS, stream: true })),
  chat_run_tools: async (t) => openai(t.url).chat.completions.runTools({ model: CHAT, messages: HELLO, tools: [{
    type: "function", function: { name: "get_weather", parameters: WEATHER, parse: JSON.parse, function: () => "sunny" },
  }] }).finalContent(),
  chat_too_long: (t) => status(() => chat(t, { messages: [{ role: "user", content: "word ".repeat(20000) }] })),
  completion: (t) => openai(t.url).completions.create({ model: CHAT, prompt: "good day", max_tokens: 4 }),
  completion_prompts: (t) => openai(t.url).completions.create({ model: CHAT, prompt: ["a", "b"], max_tokens: 4 }),
  embeddings: async (t) => (await openai(`${t.embed}/v1`).embeddings.create({ model: EMBED, input: ["a", "b"] })).data
    .map((one) => one.embedding.length),
  responses: async (t) => (await openai(t.url).responses.create({ model: CHAT, input: "good day" })).output_text,
  responses_stream: async (t) => (await collect(await openai(t.url).responses.create({
    model: CHAT, input: "good day", stream: true }))).map((event) => event.type),
  responses_helper_stream: async (t) => (await openai(t.url).responses.stream({ model: CHAT, input: "good day" })
    .finalResponse()).output_text,
  message: (t) => ask(t),
  message_stream: async (t) => (await collect(await ask(t, { stream: true }))).map((event) => event.type),
  message_helper_stream: async (t) => anthropic(t).messages.stream({ model: CHAT, max_tokens: 64, messages: HELLO })
    .finalText(),
  message_tools: (t) => ask(t, { tools: [TOOL] }),
  message_count: (t) => anthropic(t).messages.countTokens({ model: CHAT, messages: HELLO }),
  message_too_long: (t) => status(() => ask(t, { messages: [{ role: "user", content: "word ".repeat(20000) }] })),
});
