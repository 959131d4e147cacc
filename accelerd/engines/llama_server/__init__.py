"""llama.cpp's llama-server, started directly: see README.md beside this file."""

from accelerd.engines.llama_server.engine import LlamaServer

__all__ = ["LlamaServer"]
