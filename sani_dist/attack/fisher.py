"""Fisher information of a layer: how much what the model says of a text hangs on the layer's weights.

The empirical diagonal: the square of d log p(document) / d weight, mean over documents and over the weights of the layer's projections. No
gradient of a weight is ever made. For a projection y = x W the gradient is the sum over tokens of x_t times d_t, d_t the gradient of y_t;
the sum of its squares is that over pairs of tokens of (x_s . x_t)(d_s . d_t). So a rank needs two products of [tokens, tokens] for each
projection, ZeRO-3 gathers what it gathers anyway, and attention that stops at document boundaries gives each document its own pairs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from sani_dist.corpus.rows import LEARN, NO_DOCUMENT, SENSITIVE, Batch, PackedRows, targets
from sani_dist.engine.blocks import blocks_of
from sani_dist.engine.map_rows import map_rows
from sani_dist.engine.zero3 import Engine
from sani_dist.erase.select import summed_loss

# Documents differ by orders of magnitude, and a backward pass costs more than a forward one: so many rows say enough of a ratio.
ROWS = 8


def fisher(engine: Engine, rows: PackedRows) -> np.ndarray:
    """Of each layer, the mean of the diagonal over the first `ROWS` rows: float64 [layers], the same on every rank."""
    layers = len(blocks_of(engine.model))
    total, documents = torch.zeros(layers, dtype=torch.float64), 0
    with _projections(engine) as seen:

        def compute(batch: Batch) -> torch.Tensor:
            index, target, _, _ = targets(batch, roles=(LEARN, SENSITIVE))
            loss = engine.forward(batch.input_ids, batch.position, partial(summed_loss, index, target))
            gradients = torch.autograd.grad(loss, [output for _, _, output in seen])
            document = batch.document[0].to(engine.device)
            same = (document[:, None] == document) & (document != NO_DOCUMENT)
            found = torch.zeros(layers + 1, dtype=torch.float64, device=engine.device)
            found[layers] = len(set(document.tolist()) - {NO_DOCUMENT})
            for (layer, inputs, _), gradient in zip(seen, gradients, strict=True):
                found[layer] += squares(inputs, gradient, same)
            seen.clear()
            return found

        for _, made in map_rows(engine, rows, 1, compute, count=min(len(rows), ROWS)):
            total, documents = total + made[:layers], documents + int(made[layers])
    mean: np.ndarray = total.numpy() / max(documents, 1) / _weights(engine)
    return mean


def squares(inputs: torch.Tensor, gradient: torch.Tensor, same: torch.Tensor) -> torch.Tensor:
    """Sum over documents of the squared gradient of a projection's weight, all elements. inputs, gradient: [..., tokens, size]; same: bool
    [tokens, tokens], whether two tokens are of one document."""
    x, d = (m.reshape(-1, m.shape[-1]).float() for m in (inputs, gradient))
    return ((x @ x.T) * (d @ d.T) * same).double().sum()


@contextmanager
def _projections(engine: Engine) -> Iterator[list[tuple[int, torch.Tensor, torch.Tensor]]]:
    """While it lasts, each forward pass leaves (layer, input, output) of every projection that sees all tokens; experts see some."""
    seen: list[tuple[int, torch.Tensor, torch.Tensor]] = []
    hooks = [
        module.register_forward_hook(partial(_keep, seen, layer))
        for layer, block in enumerate(blocks_of(engine.model))
        for module in _of_block(block)
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def _of_block(block: nn.Module) -> list[nn.Linear | Conv1D]:
    experts = {id(m) for outer in block.modules() if "experts" in type(outer).__name__.lower() for m in outer.modules()}
    return [m for m in block.modules() if isinstance(m, nn.Linear | Conv1D) and id(m) not in experts]


def _keep(seen: list[tuple[int, torch.Tensor, torch.Tensor]], layer: int, module: nn.Module, inputs: Any, output: Any) -> None:  # fmt: skip
    seen.append((layer, inputs[0].detach(), output))


def _weights(engine: Engine) -> np.ndarray:
    """How many weights the projections of each layer have, whole."""
    blocks = blocks_of(engine.model)
    return np.array([sum(_size(m.weight) for m in _of_block(block)) for block in blocks])


def _size(weight: torch.Tensor) -> int:
    return int(getattr(weight, "ds_numel", weight.numel()))
