"""The blocks of a transformer: which they are, and which of them keep no activations until backward."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from sani_dist.errors import InputError


def blocks_of(model: PreTrainedModel) -> nn.ModuleList:
    """The blocks of a model, in order. Raises InputError when there is no list of as many modules as its config has layers."""
    count = model.config.get_text_config().num_hidden_layers
    found = next((m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == count), None)
    if found is None:
        raise InputError(f"model.path: {type(model).__name__}: no list of {count} blocks found")
    return found


def body_of(model: PreTrainedModel) -> nn.Module:
    """The module that the blocks of a model are in: embedding, blocks and last norm."""
    blocks = blocks_of(model)
    found: nn.Module = next(m for m in model.modules() if any(child is blocks for child in m.children()))
    return found


def recompute(model: PreTrainedModel, blocks: Sequence[nn.Module], share: float) -> None:
    """Of `blocks`, those that training runs, let the first `share` (0 < share <= 1), at least one, run again in backward.

    The first ones: when backward comes to them, what the others kept is gone, so that no more than one block's activations are added to
    the peak. Raises InputError when the model has no activation checkpointing, or none of single blocks.
    """
    name = "repair.activation_checkpointing"
    if not model.supports_gradient_checkpointing:
        raise InputError(f"{name}: {type(model).__name__} has none; leave it out")
    model.activation_checkpointing_enable()
    for block in blocks[max(1, round(share * len(blocks))) :]:
        if not isinstance(block, GradientCheckpointingLayer):
            raise InputError(f"{name}: {type(model).__name__} has it for all layers or none; set it to true")
        block.gradient_checkpointing = False
