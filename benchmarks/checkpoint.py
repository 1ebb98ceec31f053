"""A synthetic Llama checkpoint with random weights, for the benchmarks that need a model of real size and no meaning."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

# The shapes of TinyLlama-1.1B: 1.10e9 parameters, 2.2 GB in bfloat16.
CONFIG = LlamaConfig(
    hidden_size=2048, intermediate_size=5632, num_hidden_layers=22, num_attention_heads=32, num_key_value_heads=4,
    vocab_size=32000, tie_word_embeddings=False,
)  # fmt: skip
DTYPE = torch.bfloat16
DEFAULT_FOLDER = Path(tempfile.gettempdir()) / "sani_dist-benchmark-llama-1.1b"


def prepare(folder: Path) -> None:
    """Write the checkpoint to `folder` unless there is one, in files of at most 500 MB, and read it into the page cache."""
    if not (folder / "config.json").exists():
        torch.manual_seed(0)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=folder.name) as name:
            model = AutoModelForCausalLM.from_config(CONFIG, dtype=DTYPE)
            model.save_pretrained(Path(name) / "model", max_shard_size="500MB")
            (Path(name) / "model").rename(folder)
    for file in folder.glob("*.safetensors"):
        with file.open("rb") as stream:
            while stream.read(2**24):
                pass
