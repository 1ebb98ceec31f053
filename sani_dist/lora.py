"""A LoRA adapter merged into its base: what it has memorised then lies in weights that can be erased, repaired and audited.

The adapter alone, its base left as it is: `engine/adapter.py`.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from sani_dist.engine.adapter import SETTINGS, WEIGHTS, tokenizer_folder
from sani_dist.engine.export import TOKENIZER
from sani_dist.engine.zero3 import read_model_config
from sani_dist.errors import InputError


def merge(base: Path, adapter: Path, out: Path) -> None:
    """Write the model `base` with the adapter's changes added to its weights as the new folder `out`, in the base's precision.

    Tokenizer files are those beside the adapter where it has any, else the base's. Takes memory for the whole model, once.
    Raises InputError, in one line, for a folder that is no adapter, another adapter's base, or an `out` that is there.
    """
    try:
        from peft import PeftModel
    except ImportError as error:
        raise InputError("merge: peft is missing; pip install -c constraints.txt -e '.[lora]'") from error
    from transformers import AutoModelForCausalLM

    read_model_config(base)
    if out.exists():
        raise InputError(f"merge: {out} is there already; choose another folder")
    if not (adapter / SETTINGS).is_file() or not (adapter / WEIGHTS).is_file():
        raise InputError(f"merge: {adapter} has no {SETTINGS} with {WEIGHTS}; expected a peft adapter")
    model = AutoModelForCausalLM.from_pretrained(base, dtype="auto", local_files_only=True)
    try:
        merged = PeftModel.from_pretrained(model, adapter, local_files_only=True).merge_and_unload(safe_merge=True)
    except (RuntimeError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise InputError(
            f"merge: {adapter} cannot be merged into {base}; expected a LoRA adapter of that model"
        ) from error
    building = out.with_name(f".tmp-{out.name}")
    shutil.rmtree(building, ignore_errors=True)
    merged.save_pretrained(building)
    for name in TOKENIZER:
        source = tokenizer_folder(base, adapter) / name
        if source.is_file():
            shutil.copyfile(source, building / name)
    building.rename(out)
