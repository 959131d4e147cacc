// LangChain.js with its package for OpenAI.
import { HumanMessage, SystemMessage, ToolMessage } from "@langchain/core/messages";
import { tool } from "@langchain/core/tools";
import { ChatOpenAI, OpenAI, OpenAIEmbeddings } from "@langchain/openai";
import { z } from "zod";
import { CHAT, collect, EMBED, KEY, main, status } from "./checks.mjs";

const at = (baseURL) => ({ apiKey: KEY, maxRetries: 0, configuration: { baseURL } });
const chat = (t, more = {}) => new ChatOpenAI({ model: CHAT, ...at(t.url), ...more });
const weather = tool(() => "sunny", { name: "get_weather", description: "the weather", schema: z.object({ city: z.string() }) });
const seen = (message) => [message.text, (message.tool_calls ?? []).map((call) => [call.name, call.args])];

await main({
  invoke: async (t) => seen(await chat(t).invoke([new SystemMessage("be brief"), new HumanMessage("good day")])),
  stream: async (t) => (await collect(await chat(t).stream("good day"))).map((piece) => piece.content),
  batch: async (t) => (await chat(t).batch(["good day", "good night", "hello"])).map(seen),
  tools: async (t) => {
    const model = chat(t).bindTools([weather]);
    const first = await model.invoke("good day");
    const result = new ToolMessage({ content: "sunny", tool_call_id: first.tool_calls[0].id });
    return [seen(first), seen(await model.invoke([new HumanMessage("good day"), first, result]))];
  },
  structured: async (t) => chat(t).withStructuredOutput(z.object({ city: z.string() }), { name: "get_weather", method: "functionCalling" }).invoke("hi"),
  several: async (t) => (await chat(t, { n: 2, maxTokens: 3 }).generate([[new HumanMessage("good day")]])).generations[0].map((one) => one.text),
  responses: async (t) => (await chat(t, { useResponsesApi: true }).invoke("good day")).text,
  too_long: async (t) => status(() => chat(t).invoke("word ".repeat(20000))),
  completions: async (t) => new OpenAI({ model: CHAT, maxTokens: 4, ...at(t.url) }).invoke("good day"),
  completions_prompts: async (t) => (await new OpenAI({ model: CHAT, maxTokens: 4, ...at(t.url) }).generate(["a", "b"])).generations.map((one) => one[0].text),
  embeddings: async (t) => (await new OpenAIEmbeddings({ model: EMBED, ...at(`${t.embed}/v1`) }).embedDocuments(["a", "b"])).map((one) => one.length),
});
