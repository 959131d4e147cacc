"""Model files that claim nonsense: a daemon starts with them, and they cost no other model anything."""

from __future__ import annotations

from tests.daemon.kit import Site
from tests.harness import DaemonFactory, fake_model
from tests.memory.gguf_maker import Listed, numbers, string, u32, write

LAYERS = 2
MOST = (1 << 31) - 1
WEIGHTS: Listed = {"token_embd.weight": ((8,), 0)}


def test_a_daemon_starts_whatever_its_models_files_claim(daemons: DaemonFactory, site: Site) -> None:
    """Also an adapter of a layer that the model does not count, and settings that are no numbers."""
    base = {"general.architecture": string("llama"), "llama.block_count": u32(LAYERS)}
    huge = ("context_length", "embedding_length", "attention.head_count", "attention.head_count_kv",
            "attention.key_length", "attention.value_length", "feed_forward_length")  # fmt: skip
    odd = {f"blk.{layer}.attn_q.weight": ((8,), 0) for layer in ("\u00b2", "\u0663", "7", "99999", "1" * 200, "-1", "")}
    files = {
        "odd": (base, WEIGHTS | odd),
        "lora": ({**base, "general.type": string("adapter")}, {f"{name}.lora_a": shape for name, shape in odd.items()}),
        "huge": (base | {f"llama.{key}": u32(MOST) for key in huge}, WEIGHTS),
        "lists": (base | {f"llama.{key}": numbers([MOST, 0, 7]) for key in (*huge, "block_count")}, WEIGHTS),
    }
    paths = {name: write(site.directory / f"{name}.gguf", *content) for name, content in files.items()}
    toml = site.model("m")
    toml += site.model("told", extra_args=["--cache-ram", "9" * 5000, "--swa-checkpoints", "9" * 5000])
    toml += "".join(fake_model(name, paths[name], context=1 << 20) for name in ("odd", "huge", "lists"))
    toml += fake_model("adapted", paths["odd"], extra_args=["--lora", str(paths["lora"])])
    daemon = daemons.start(toml)
    for name in ("told", "odd", "huge", "lists", "adapted"):
        assert daemon.chat(name).status in (200, 503)
        assert daemon.control("GET", f"fit?model={name}").status == 200
    assert daemon.chat("m").status == 200
    assert "Traceback" not in daemon.output()
