#!/usr/bin/env python3
"""Creates a tiny GGUF model: for a first try on a machine without models, and for the tests.

Needs the packages gguf and numpy; downloads nothing. Equal arguments give byte-identical files.

    make_hello_gguf.py hello.gguf                                  # a chat model with a fixed, readable answer
    make_hello_gguf.py hello.gguf --reply "Good morning to you"    # with this answer
    make_hello_gguf.py long.gguf --reply-tokens 400                # with a long answer, one made-up word a token
    make_hello_gguf.py big.gguf --size-mb 200                      # the same, with layers that make up the size
    make_hello_gguf.py long.gguf --words README.md                 # the words of a text are one token each
    make_hello_gguf.py big.gguf --split 3                          # big-00001-of-00003.gguf and so on
    make_hello_gguf.py embed.gguf --kind embed                     # texts with the same letters are near each other
    make_hello_gguf.py rerank.gguf --kind rerank                   # scores that differ between documents

The chat model answers every prompt with the same words at any usual temperature. A request with tools, whose last
message is not a tool's result, is answered with the call given by --tool-call. "ignore_eos" makes it continue for ever.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import hello_chat
import hello_encoder
from hello_file import HelloFile

DEFAULT_REPLY = (
    "Hello from accelerd! A real llama-server computed this answer here, with a model made on your own machine."
)
DEFAULT_CALL = '{"name": "get_weather", "arguments": {"city": "Paris"}}'


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(formatter_class=argparse.RawDescriptionHelpFormatter, description=__doc__)
    parser.add_argument("out", type=Path, help="file to write; with --split the shards are named after it")
    parser.add_argument("--kind", choices=("chat", "embed", "rerank"), default="chat")
    parser.add_argument("--reply", default=DEFAULT_REPLY, help="what the chat model says (at least two characters)")
    parser.add_argument("--reply-tokens", type=int, metavar="N", help="a made-up reply of N tokens instead (1 to 4000)")
    parser.add_argument(
        "--tool-call", default=DEFAULT_CALL, metavar="JSON", help="the call made when tools are given; empty: none"
    )
    parser.add_argument(
        "--words", type=Path, metavar="FILE", help="the vocabulary of the chat model has its words, too"
    )
    parser.add_argument("--size-mb", type=float, default=0, metavar="MB", help="size of the file, about (10^6 bytes)")
    parser.add_argument("--split", type=int, default=1, metavar="N", help="write N shards")
    parser.add_argument("--ctx", type=int, metavar="N", help="context length (default: 8192; embed and rerank 512)")
    parser.add_argument("--name", default="", help="general.name in the file (default: the file's name)")
    args = parser.parse_args(argv)
    if args.reply_tokens is not None:
        if not 1 <= args.reply_tokens <= 4000:
            parser.error("--reply-tokens must be between 1 and 4000")
        args.reply = hello_chat.made_up_reply(args.reply_tokens)
    if len(args.reply) < 2:
        parser.error("--reply needs at least two characters")
    try:
        json.loads(args.tool_call or "{}")
    except ValueError as e:
        parser.error(f"--tool-call is not JSON: {e}")
    args.ctx = args.ctx or (8192 if args.kind == "chat" else 512)
    if args.out.suffix != ".gguf":
        parser.error("the file's name must end in .gguf")
    return args


def make(args: argparse.Namespace) -> list[Path]:
    """Writes the model and returns its files, first shard first."""
    name = args.name or args.out.stem
    if args.kind == "chat":
        file = HelloFile("llama", name, args.ctx)
        words = args.words.read_text() if args.words else ""
        hello_chat.fill(file, reply=args.reply, tool_call=args.tool_call, words=words, size=int(args.size_mb * 1e6))
    else:
        file = HelloFile("bert", name, args.ctx)
        hello_encoder.fill(file, rerank=args.kind == "rerank", size=int(args.size_mb * 1e6))
    return file.write(args.out, args.split)


def main(argv: list[str] | None = None) -> int:
    try:
        paths = make(arguments(argv))
    except (OSError, ValueError) as e:
        print(f"make_hello_gguf.py: cannot write the model: {e}", file=sys.stderr)
        return 1
    for path in paths:
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
