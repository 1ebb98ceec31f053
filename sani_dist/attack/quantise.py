"""Quantisation: rounding the weights to 8 or 4 bits can undo small changes that made the model forget (arXiv 2410.16454).

Symmetric rounding to the nearest, as a weight-only quantised model computes with: 8 bits with one scale for each output channel, 4 bits
with one for each `GROUP` neighbouring inputs of a channel. Embeddings and output projection stay, as they do in common tools. The weights
are rounded in their shards; only the scales' maxima are shared between ranks, so every world size gets the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from sani_dist.attack.context import AttackContext
from sani_dist.attack.result import NOTHING, Result
from sani_dist.audit.scores import score
from sani_dist.engine import distributed
from sani_dist.engine.shards import local_shards
from sani_dist.engine.zero3 import Engine

GROUP = 128
VARIANTS: dict[str, tuple[int, int | None]] = {"int8": (8, None), "int4": (4, GROUP)}
# Elements at a time: their places take 8 bytes each.
_BLOCK = 2**20


def quantise(context: AttackContext, name: str, load: Iterator[Engine]) -> Iterator[Result]:
    """One result for each width, and one of the model as it is."""
    for variant in (NOTHING, *VARIANTS):
        if variant in context.made:
            continue
        engine = next(load)
        if variant != NOTHING:
            round_weights(engine.model, *VARIANTS[variant])
        engine.for_inference()
        scores = {split: score(engine, context.rows[split], context.audit.micro_rows) for split in context.audited}
        yield Result("quantise", variant, name, context.measured(scores))
        engine.close()


def round_weights(model: PreTrainedModel, bits: int, group: int | None) -> None:
    """Round the weights of all projections in place, in the shards of every rank. `group`: inputs that share a scale, None for all."""
    largest = 2 ** (bits - 1) - 1
    stored_in_out = {id(m.weight) for m in model.modules() if isinstance(m, Conv1D)}
    left_out = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    left_out.add(id(model.get_output_embeddings().weight))
    parameters = dict(model.named_parameters())
    for live in local_shards(model):
        shape, parameter = live.shard.shape, parameters[live.shard.name]
        if len(shape) < 2 or id(parameter) in left_out:
            continue
        width, transposed = shape[-1], id(parameter) in stored_in_out
        inputs = shape[-2] if transposed else width
        size = inputs if group is None else min(group, inputs)
        # Rows of the stored matrix are inputs (Conv1D), or the inputs lie along a row.
        scales = torch.zeros(-(-shape[-2] // size) * width if transposed else math.prod(shape[:-1]) * -(-width // size))
        parts = [slice(i, min(i + _BLOCK, live.shard.numel)) for i in range(0, live.shard.numel, _BLOCK)]
        scales = scales.to(live.values.device)
        for part in parts:
            places = _groups(live.shard.start + part.start, live.shard.start + part.stop, width, size, transposed)
            scales.scatter_reduce_(0, places.to(scales.device), live.values[part].float().abs(), "amax")
        scales = distributed.max_over_ranks(scales) / largest
        for part in parts:
            places = _groups(live.shard.start + part.start, live.shard.start + part.stop, width, size, transposed)
            scale = scales[places.to(scales.device)].clamp(min=torch.finfo(torch.float32).tiny)
            live.values[part] = ((live.values[part].float() / scale).round() * scale).to(live.values.dtype)


def _groups(start: int, stop: int, width: int, size: int, transposed: bool) -> torch.Tensor:
    """The group of each element of the flat range: int64 [stop - start]."""
    flat = torch.arange(start, stop)
    row, column = flat // width, flat % width
    return row // size * width + column if transposed else row * -(-width // size) + column // size
