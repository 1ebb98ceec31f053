"""A LoRA adapter merged into its base: what it has memorised then lies in weights that can be erased, repaired and audited.

The adapter alone, its base left as it is: `engine/adapter.py`.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from sani_dist.engine.adapter import SETTINGS, WEIGHTS, tokenizer_folder
from sani_dist.engine.export import TOKENIZER
from sani_dist.engine.safetensors_files import Checkpoint
from sani_dist.engine.zero3 import read_model_config
from sani_dist.errors import InputError

# Of what logits differ by, to which the rounding of merged weights in bfloat16 comes: a hundredth.
TOLERANCE = 0.1


def merge(base: Path, adapter: Path, out: Path) -> None:
    """Write the model `base` with the adapter's changes added to its weights as the new folder `out`, in the base's precision.

    Tokenizer files are those beside the adapter where it has any, else the base's. Takes memory for the whole model, once.
    Raises InputError, in one line, for a folder that is no adapter, another adapter's base, or an `out` that is there.
    """
    try:
        from peft import PeftModel
    except ImportError:
        raise InputError("merge: peft is missing; pip install -c constraints.txt -e '.[lora]'") from None
    from transformers import AutoModelForCausalLM

    read_model_config(base)
    if out.exists():
        raise InputError(f"merge: {out} is there already; choose another folder")
    if not (adapter / SETTINGS).is_file() or not (adapter / WEIGHTS).is_file():
        raise InputError(f"merge: {adapter} has no {SETTINGS} with {WEIGHTS}; expected a peft adapter")
    Checkpoint(base)  # refuses what is no plain safetensors: nothing is unpickled here
    changed = Checkpoint(adapter, names=[WEIGHTS]).tensors
    model = AutoModelForCausalLM.from_pretrained(
        base, dtype="auto", local_files_only=True, use_safetensors=True, trust_remote_code=False
    )
    _untie(model, changed)
    try:
        adapted = PeftModel.from_pretrained(model, adapter, local_files_only=True).eval()
        expected = _logits(adapted)
        merged = adapted.merge_and_unload(safe_merge=True)
    except (RuntimeError, ValueError, KeyError, AttributeError, TypeError):
        raise InputError(
            f"merge: {adapter} cannot be merged into {base}; expected a LoRA adapter of that model"
        ) from None
    if float((_logits(merged) - expected).abs().mean()) > TOLERANCE * float(expected.std()):
        raise InputError(
            f"merge: {adapter} added to the weights of {base} computes something else than the two together; sanitise the adapter alone "
            "(model.adapter), or merge it with the program that trained it"
        )
    building = out.with_name(f".tmp-{out.name}")
    shutil.rmtree(building, ignore_errors=True)
    merged.save_pretrained(building)
    for name in TOKENIZER:
        source = tokenizer_folder(base, adapter) / name
        if source.is_file():
            shutil.copyfile(source, building / name)
    building.rename(out)


def _untie(model: PreTrainedModel, changed: Collection[str]) -> None:
    """Give the output projection weights of its own where the adapter changes it or the embedding, and not both alike: what is added to
    tied weights would be added to both."""
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    paths = [f".{path}." for path, module in model.named_modules() if module in ends]
    projection = ends[1]
    if (
        projection is None
        or projection.weight is not ends[0].weight
        or not any(p in name for p in paths for name in changed)
    ):
        return
    projection.weight = nn.Parameter(projection.weight.detach().clone())
    model.all_tied_weights_keys = {}
    for config in (model.config, model.config.get_text_config()):
        config.tie_word_embeddings = False


@torch.no_grad()
def _logits(model: Any) -> torch.Tensor:
    """Of sixteen tokens, [tokens, vocabulary]."""
    found: torch.Tensor = model(input_ids=torch.arange(3, 19)[None]).logits[0].float()
    return found
