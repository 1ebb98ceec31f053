"""Where the neurons of a transformer are.

A neuron of an MLP is one hidden unit: its row in the up (and gate) projection, its biases there, its column in the down
projection. A `Slice` says along which axis of a stored parameter the neurons lie; GPT-2's Conv1D stores [in, out], so its axes are
swapped against `nn.Linear`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel

from sani_dist.errors import InputError


@dataclass(frozen=True)
class Slice:
    """Neurons lie along `axis` of parameter `name`; `std` is what the model's initialiser draws with (0: it writes zeros)."""

    name: str
    shape: tuple[int, ...]
    axis: int
    std: float


@dataclass(frozen=True)
class Mlp:
    """The MLP of one block: its parameters that belong to neurons, and the module whose input is the neurons' activations."""

    layer: int
    neurons: int
    slices: tuple[Slice, ...]
    down: nn.Module


@dataclass(frozen=True)
class _Family:
    """Names inside a block: projections into the hidden units, and out of them. `stored_in_out`: weights are [in, out]."""

    into: tuple[str, ...]
    out: str
    stored_in_out: bool


FAMILIES = (
    _Family(("mlp.gate_proj", "mlp.up_proj"), "mlp.down_proj", False),  # Llama and its relatives
    _Family(("mlp.c_fc",), "mlp.c_proj", True),  # GPT-2
)


def find_mlps(model: PreTrainedModel) -> list[Mlp]:
    """The MLPs of all blocks, in order. Raises InputError for an architecture whose neurons are not where we look."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    blocks = max((m for m in model.modules() if isinstance(m, nn.ModuleList)), key=len, default=nn.ModuleList())
    mlps = []
    for layer, block in enumerate(blocks):
        modules = dict(block.named_modules())
        family = next((f for f in FAMILIES if all(n in modules for n in (*f.into, f.out))), None)
        if family is None:
            break
        std = float(getattr(model.config, "initializer_range", 0.02))
        into_axis, out_axis = (1, 0) if family.stored_in_out else (0, 1)
        # GPT-2 scales what it adds to the residual stream by 1 / sqrt(2 layers); Llama's initialiser does not.
        out_std = std / math.sqrt(2 * len(blocks)) if family.stored_in_out else std
        slices = []
        for name in family.into:
            slices.append(_slice(modules[name].weight, names, into_axis, std))
            if getattr(modules[name], "bias", None) is not None:
                slices.append(_slice(modules[name].bias, names, 0, 0.0))
        slices.append(_slice(modules[family.out].weight, names, out_axis, out_std))
        neurons = slices[0].shape[slices[0].axis]
        mlps.append(Mlp(layer, neurons, tuple(slices), modules[family.out]))
    if len(mlps) != len(blocks) or not mlps:
        known = "; ".join(" + ".join((*f.into, f.out)) for f in FAMILIES)
        raise InputError(f"{type(model).__name__}: no MLP neurons found; looked in each block for {known}")
    return mlps


def last_mlps(model: PreTrainedModel, layers: int) -> list[Mlp]:
    """The MLPs of the last `layers` blocks. Raises InputError when the model has fewer."""
    mlps = find_mlps(model)
    if layers > len(mlps):
        raise InputError(f"erase.layers: {layers}, but the model has {len(mlps)} layers")
    return mlps[len(mlps) - layers :]


def _slice(parameter: nn.Parameter, names: dict[int, str], axis: int, std: float) -> Slice:
    shape = tuple(getattr(parameter, "ds_shape", parameter.shape))
    return Slice(names[id(parameter)], shape, axis, std)
