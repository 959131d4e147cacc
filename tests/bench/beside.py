"""What a model on the NPU and one on the GPU cost each other in accelerd: `python -m tests.bench.beside [--rounds 9]`.

Figures for people, no test. Both engines are stand-ins that send a token every few milliseconds whatever the machine
does, so that what is left is accelerd's. In every round each stream is taken straight from an engine, through accelerd
alone, and through accelerd while the other one streams too; what counts is when its tokens arrive.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.harness import DaemonFactory, dummy_gguf, fake_model
from tests.ports import free_port

TESTS = Path(__file__).parent.parent
STANDINS = TESTS / "npu" / "standins"
FAKE_SERVER = TESTS / "fakes" / "fake_server.py"
TOKENS = 200
PACE = 0.005  # s a token
KEY = "bench"


@dataclass(frozen=True)
class Target:
    """Who is asked for a stream."""

    port: int
    model: str
    key: str = ""


async def stream(target: Target) -> tuple[float, float]:
    """Seconds until the first token, and from it to the last one."""
    body = {"model": target.model, "messages": [{"role": "user", "content": "hi"}], "stream": True,
            "max_tokens": TOKENS}  # fmt: skip
    data = json.dumps(body).encode()
    head = [f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost:{target.port}\r\nConnection: close",
            f"Content-Type: application/json\r\nContent-Length: {len(data)}"]  # fmt: skip
    if target.key:
        head.append(f"Authorization: Bearer {target.key}")
    reader, writer = await asyncio.open_connection("127.0.0.1", target.port)
    began = time.perf_counter()
    writer.write("\r\n".join([*head, "", ""]).encode() + data)
    times = [at async for at in token_times(reader)]
    writer.close()
    if len(times) < TOKENS // 2:
        raise SystemExit(f"only {len(times)} tokens of {target}")
    return times[0] - began, times[-1] - times[0]


async def token_times(reader: asyncio.StreamReader) -> AsyncIterator[float]:
    """When each token came."""
    while (line := await reader.readline()) and not line.startswith(b"data: [DONE]"):
        if line.startswith(b"data: {") and b'"content":' in line:
            yield time.perf_counter()


@contextlib.contextmanager
def engines(directory: Path, environment: dict[str, str]) -> Iterator[dict[str, Target]]:
    """The two engines by themselves."""
    gpu, npu = free_port(), free_port()
    fake = [str(FAKE_SERVER), "--model", str(dummy_gguf(directory)), "--host", "127.0.0.1", "--port", str(gpu)]
    flm = [str(STANDINS / "flm"), "serve", "qwen3:4b", "--port", str(npu), "--host", "127.0.0.1", "--quiet"]
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    found = [subprocess.Popen(argv, env={**environment, "LLAMA_API_KEY": KEY}, **quiet) for argv in (fake, flm)]  # type: ignore[call-overload]
    try:
        yield {"gpu": Target(gpu, "gpu", KEY), "npu": Target(npu, "qwen3:4b")}
    finally:
        for one in found:
            one.terminate()
            one.wait()


async def answers(target: Target) -> None:
    """Until it serves."""
    for _ in range(200):
        with contextlib.suppress(OSError):
            _, writer = await asyncio.open_connection("127.0.0.1", target.port)
            writer.close()
            return
        await asyncio.sleep(0.05)
    raise SystemExit(f"nobody listens at {target.port}")


async def measure(port: int, direct: dict[str, Target], rounds: int) -> None:
    served = {name: Target(port, name) for name in direct}
    ways: dict[str, dict[str, list[tuple[float, float]]]] = {
        name: {"direct": [], "alone": [], "beside": []} for name in direct
    }
    for target in direct.values():
        await answers(target)
    for target in (*direct.values(), *served.values()):
        await stream(target)  # loads it, warms up
    for _ in range(rounds):
        for name in direct:
            ways[name]["direct"].append(await stream(direct[name]))
            ways[name]["alone"].append(await stream(served[name]))
        both = await asyncio.gather(*(stream(served[name]) for name in served))
        for name, found in zip(served, both, strict=True):
            ways[name]["beside"].append(found)
    print(f"{TOKENS} tokens, one every {PACE * 1000:g} ms; medians of {rounds} rounds, against the engine itself")
    for name, found in ways.items():
        pace = {way: statistics.median(rest for _, rest in times) / (TOKENS - 1) * 1e6 for way, times in found.items()}
        first = {way: statistics.median(head for head, _ in times) * 1e3 for way, times in found.items()}
        print(f"{name} {pace['direct']:8.1f} µs a token, the first after {first['direct']:.2f} ms")
        for way in ("alone", "beside"):
            more, later = pace[way] - pace["direct"], first[way] - first["direct"]
            print(f"    through accelerd, {way:6} {more:+8.1f} µs a token, the first {later:+.2f} ms")


def main() -> None:
    parser = argparse.ArgumentParser(prog="tests.bench.beside", description="a GPU's and an NPU's stream at once")
    parser.add_argument("--rounds", type=int, default=9)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, DaemonFactory(Path(name)) as factory:
        directory = Path(name)
        models = directory / "flm"
        environment = {
            "PATH": f"{STANDINS}:{os.environ['PATH']}",
            "FLM_MODEL_PATH": str(models),
            "FLM_STANDIN_TOKENS": str(TOKENS),
            "FLM_STANDIN_TOKEN_SECONDS": str(PACE),
            "FLM_STANDIN_COOLDOWN": "0",
            "FAKE_TOKENS": str(TOKENS),
            "FAKE_DELAY_MS": str(PACE * 1000),
        }
        subprocess.run([STANDINS / "flm", "pull", "qwen3:4b"], env={**os.environ, **environment}, check=True,
                       stdout=subprocess.DEVNULL)  # fmt: skip
        paced = {key: environment[key] for key in ("FAKE_TOKENS", "FAKE_DELAY_MS")}
        npu = '[models.npu]\nengine = "flm"\nmodel = "qwen3:4b"\n[models.npu.env]\n'
        npu += "".join(f'{key} = "{value}"\n' for key, value in environment.items() if key.startswith("FLM_"))
        toml = fake_model("gpu", dummy_gguf(directory), env=paced) + npu
        daemon = factory.start(toml, env=environment)
        with engines(directory, {**os.environ, **environment}) as direct:
            asyncio.run(measure(daemon.port, direct, chosen.rounds))


if __name__ == "__main__":
    sys.exit(main())
