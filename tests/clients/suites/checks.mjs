// The same as checks.py, for packages of npm.
export const KEY = "sk-dummy", CHAT = "chat", EMBED = "embed";
const BY_NATURE = new Set([
  "id", "created", "created_at", "completed_at", "call_id", "item_id", "tool_call_id", "response_id", "timings",
  "system_fingerprint", "prompt_tokens_details", "input_tokens_details", "cache_read_input_tokens", "timestamp",
  "headers", "inputTokenDetails", "cachedInputTokens", "cachedTokens", "toolCallId", "raw", "_request_id",
]);

export const WEATHER = {
  type: "object", properties: { city: { type: "string", description: "where" } }, required: ["city"],
  additionalProperties: false,
};

// plain: a client's object as JSON, without what differs by nature.
export function plain(value) {
  if (Array.isArray(value)) return value.map(plain);
  if (value && typeof value === "object") {
    if (value.cache_read_input_tokens) value = { ...value, input_tokens: value.input_tokens + value.cache_read_input_tokens };
    const pairs = Object.entries(value).filter(([k, v]) => !BY_NATURE.has(k) && v !== null && v !== undefined);
    return Object.fromEntries(pairs.map(([k, v]) => [k, plain(v)]));
  }
  if (typeof value === "number" && !Number.isInteger(value)) return Math.round(value * 1e4) / 1e4;
  return typeof value === "function" ? undefined : value;
}

function failure(error) {
  const seen = { error: error?.name ?? String(error) };
  for (const name of ["status", "statusCode", "code", "type", "param"]) {
    if (["string", "number"].includes(typeof error?.[name])) seen[name] = error[name];
  }
  return seen;
}

// status: that of a call which must fail; how the error is called may be better than llama-server's.
export async function status(call) {
  let answer;
  try {
    answer = await call();
  } catch (error) {
    return error.status ?? error.statusCode ?? String(error);
  }
  throw new Error(`it was answered: ${JSON.stringify(plain(answer)).slice(0, 300)}`);
}

export async function collect(stream) {
  const all = [];
  for await (const one of stream) all.push(one);
  return all;
}

// main: checks are functions of a target by their name; a line of JSON is printed for each.
export async function main(checks) {
  process.on("unhandledRejection", () => {}); // a client's own promise that nobody waits for
  for (const target of JSON.parse(process.env.CLIENT_TARGETS)) {
    target.url = `${target.root}/v1`;
    for (const [check, run] of Object.entries(checks)) {
      if (target.cold) await (await fetch(target.cold)).text();
      let line;
      try {
        line = { target: target.name, check, ok: true, seen: plain(await run(target)) };
      } catch (error) {
        line = { target: target.name, check, ok: false, seen: failure(error), says: `${error?.name}: ${error?.message}`.slice(0, 600) };
      }
      console.log(JSON.stringify(line));
    }
  }
}
