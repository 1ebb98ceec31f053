"""A model like another, but small: its own config class with few layers and small sizes, and random weights.

What a family computes, and how its tensors are named, does not depend on sizes. So what is shown on the twin, on a CPU in seconds,
holds for the model.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import PretrainedConfig, PreTrainedModel

from sani_dist.engine.buffers import persistent_buffers
from sani_dist.engine.safetensors_files import METADATA

VOCABULARY = 257
LAYERS = 3
WINDOW = 8  # shorter than the texts that a twin is shown
EXPERTS = 4
PARAMETERS = 1e8  # that a twin may have at most: a few seconds on one core
# Sizes belong together, so that all are divided by one number: the largest of these that gives a model which runs.
DIVISORS = (64, 32, 16, 8, 4, 2, 1)
SMALLEST = 4

SIZES = re.compile(
    r"(hidden|intermediate|embedding|embed|state|inner)_size$|(^|_)(dim|rank|width|sections?)$|hidden_size_per_layer_input|"
    r"^(d_model|d_ff|d_kv|d_inner|n_embd|n_inner|mamba_d_(ssm|head|state))$"
)
COUNTS = {
    EXPERTS: re.compile(r"^(num|n|moe_num)(_\w+)?_experts$"),
    2: re.compile(r"experts_per_tok(en)?$|^(moe_)?(topk|top_k|k)$"),
    1: re.compile(r"^(n_group|topk_group|first_k_dense_replace|num_dense_layers|num_nextn_predict_layers)$"),
    WINDOW: re.compile(r"window(_size)?$|^attention_chunk_size$|^local_attention$|^(mamba_)?chunk_size$"),
}
INDICES = re.compile(r"layers$|layer_ids$|_indices$|_idxs$")
# Every so many layers there is one of another kind.
PERIODS = re.compile(r"_(period|interval|step|pattern|offset)$")


def twin_of(config: PretrainedConfig, auto: Any, **arguments: Any) -> PreTrainedModel | None:
    """A small model of the class that `auto` builds for `config`, in float32 with weights drawn from a fixed seed, none as an initialiser
    leaves it; None where no sizes were found that make a model which runs. arguments: of its forward, beside token ids."""
    ids = torch.arange(4)[None]
    for divisor in DIVISORS:
        try:
            small = _shrunk(config, divisor)
            with torch.device("meta"):
                if sum(p.numel() for p in auto.from_config(small, trust_remote_code=False).parameters()) > PARAMETERS:
                    return None
            model: PreTrainedModel = _drawn(
                auto.from_config(small, dtype=torch.float32, trust_remote_code=False)
            ).eval()
            with torch.no_grad():
                if model(input_ids=ids, **arguments).logits.isfinite().all():
                    return model
        except Exception:  # whatever a family's own code raises for sizes that do not fit together
            continue
    return None


def save_twin(model: PreTrainedModel, file: Path) -> None:
    """Write the tensors of a model as `save_pretrained` names them, which imports DeepSpeed, and with it seconds, only to look for it."""
    from transformers.core_model_loading import revert_weight_conversion

    state = model.state_dict()
    for name in [*(model._keys_to_ignore_on_save or ()), *model.all_tied_weights_keys]:
        state.pop(name, None)
    tensors = revert_weight_conversion(model, state)
    save_file({name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}, file, METADATA)


def _drawn(model: PreTrainedModel) -> PreTrainedModel:
    """With values that make what a family does show: matrices that matter, and vectors and buffers unlike zeros and ones."""
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.15, generator=draw)
            else:
                parameter.add_(torch.randn(parameter.shape, generator=draw), alpha=0.1)
        for buffer in persistent_buffers(model).values():
            if buffer.is_floating_point():
                buffer.mul_(0.7).add_(torch.randn(buffer.shape, generator=draw), alpha=0.2)
    return model


def _shrunk(config: PretrainedConfig, divisor: int) -> PretrainedConfig:
    """Raises ValueError when a size cannot be divided by `divisor`."""
    settings = config.to_dict()
    for name in ("dtype", "torch_dtype", "quantization_config", "auto_map", "id2label", "label2id"):
        settings.pop(name, None)
    layers = _layers(config.get_text_config().to_dict(), config.get_text_config())
    return type(config)(**_small(settings, divisor, _names_of_layers(config), layers))


def _names_of_layers(config: PretrainedConfig) -> set[str]:
    text = config.get_text_config()
    return {"num_hidden_layers", text.attribute_map.get("num_hidden_layers", "num_hidden_layers")}


def _layers(settings: dict[str, Any], config: PretrainedConfig) -> int:
    """How many of the first layers have one of every kind."""
    count = int(config.num_hidden_layers)
    wanted = LAYERS
    for name, value in settings.items():
        if isinstance(value, list | str) and len(value) == count and len(kinds := {str(kind) for kind in value}) <= 4:
            wanted = max(wanted, *([str(kind) for kind in value].index(kind) + 1 for kind in kinds))
        elif isinstance(value, int) and PERIODS.search(name):
            wanted = max(wanted, min(value + 1, 12))
    return min(count, wanted)


def _small(settings: dict[str, Any], divisor: int, of_layers: set[str], layers: int) -> dict[str, Any]:
    count = next((settings[name] for name in of_layers if isinstance(settings.get(name), int)), 0)
    heads = settings.get("num_attention_heads") or 1
    found: dict[str, Any] = {}
    for name, value in settings.items():
        number = isinstance(value, int) and not isinstance(value, bool)
        if str(name).isdigit() and int(name) >= layers:  # settings of one layer
            continue
        if isinstance(value, dict):
            found[name] = _small(value, divisor, of_layers, layers)
        elif name in of_layers:
            found[name] = min(value, layers)
        elif count and isinstance(value, list | str) and len(value) == count:
            found[name] = value[:layers]
        elif isinstance(value, list) and INDICES.search(name):
            kept = [number for number in value if not isinstance(number, int) or number < layers]
            found[name] = kept or [layers - 1] * bool(value)
        elif number and name in ("vocab_size", "vocab_size_per_layer_input"):
            found[name] = min(value, VOCABULARY)
        elif name.endswith(("_token_id", "_token_index")):
            found[name] = value if value is None or isinstance(value, list) else value % (VOCABULARY - 1)
        elif name.endswith("section") and isinstance(value, list):
            found[name] = [_divided(part, divisor, 1) for part in value]
        elif number and name.startswith("num_kv_shared"):
            found[name] = min(value, layers // 2)
        elif number and (limit := next((most for most, names in COUNTS.items() if names.search(name)), None)):
            found[name] = min(value, limit)
        elif number and SIZES.search(name):
            found[name] = _divided(
                value, divisor, SMALLEST * (heads if name in ("hidden_size", "d_model", "n_embd") else 1)
            )
        else:
            found[name] = value
    return found


def _divided(value: int, divisor: int, smallest: int) -> int:
    if value // divisor < smallest:
        if value > 64:
            raise ValueError("too small")
        return value
    if value % divisor:
        raise ValueError("no such size")
    return value // divisor
