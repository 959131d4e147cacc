// Vercel's ai with its providers for OpenAI, for what is like it, and for Anthropic.
import { createAnthropic } from "@ai-sdk/anthropic";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { embedMany, generateObject, generateText, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";
import { CHAT, collect, EMBED, KEY, main, status } from "./checks.mjs";

globalThis.AI_SDK_LOG_WARNINGS = false;
const like = (t, at = t.url) => createOpenAICompatible({ name: "local", baseURL: at, apiKey: KEY, includeUsage: true });
const openai = (t) => createOpenAI({ baseURL: t.url, apiKey: KEY });
const anthropic = (t) => createAnthropic({ baseURL: t.url, apiKey: KEY });
const weather = tool({ description: "the weather", inputSchema: z.object({ city: z.string() }), execute: () => "sunny" });
const all = { maxRetries: 0, prompt: "good day", maxOutputTokens: 64 };
const text = ({ text, finishReason, usage }) => ({ text, finishReason, total: usage.totalTokens });
const streamed = async (more) => {
  const problems = [];
  const result = streamText({ ...all, ...more, onError: ({ error }) => problems.push(error) });
  const pieces = await collect(result.textStream);
  if (problems.length) throw problems[0];
  return { pieces, finish: await result.finishReason };
};
const looped = async (model) => {
  const result = await generateText({ ...all, model, tools: { weather_unused: weather, get_weather: weather }, stopWhen: stepCountIs(3) });
  return { text: result.text, steps: result.steps.map((step) => step.toolCalls.map((call) => [call.toolName, call.input])) };
};

await main({
  like_text: async (t) => text(await generateText({ ...all, model: like(t)(CHAT) })),
  like_stream: async (t) => streamed({ model: like(t)(CHAT) }),
  like_tools: async (t) => looped(like(t)(CHAT)),
  like_object: async (t) => (await generateObject({ ...all, model: like(t)(CHAT), schema: z.object({ city: z.string() }), maxOutputTokens: 40 }).catch((e) => ({ object: e.name }))).object,
  like_completion: async (t) => (await generateText({ ...all, maxOutputTokens: 4, model: like(t).completionModel(CHAT) })).text,
  like_completion_stream: async (t) => streamed({ maxOutputTokens: 4, model: like(t).completionModel(CHAT) }),
  like_embeddings: async (t) => (await embedMany({ model: like(t, `${t.embed}/v1`).embeddingModel(EMBED), values: ["a", "b"], maxRetries: 0 }))
    .embeddings.map((one) => one.length),
  like_too_long: async (t) => status(() => generateText({ ...all, model: like(t)(CHAT), prompt: "word ".repeat(20000) })),
  chat_text: async (t) => text(await generateText({ ...all, model: openai(t).chat(CHAT) })),
  chat_stream: async (t) => streamed({ model: openai(t).chat(CHAT) }),
  chat_tools: async (t) => looped(openai(t).chat(CHAT)),
  responses_text: async (t) => text(await generateText({ ...all, model: openai(t).responses(CHAT) })),
  responses_stream: async (t) => streamed({ model: openai(t).responses(CHAT) }),
  anthropic_text: async (t) => (await generateText({ ...all, model: anthropic(t)(CHAT) })).text,
  anthropic_stream: async (t) => streamed({ model: anthropic(t)(CHAT) }),
  anthropic_tools: async (t) => looped(anthropic(t)(CHAT)),
});
