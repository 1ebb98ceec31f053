"""Editing shards by a plan, in place: no rank needs another's, so nothing is communicated.

The neurons of a two-dimensional parameter are rows (axis 0) or columns (axis 1). A shard is a flat range, so it may begin and end
inside a row; it is cut into the end of a row, whole rows, and the beginning of a row, and each piece is a small strided view.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch

from sani_dist.engine.safetensors_files import Checkpoint
from sani_dist.engine.shards import LiveShard, Shard
from sani_dist.erase.plan import Plan
from sani_dist.erase.structure import Mlp, Slice
from sani_dist.errors import InputError

# Rows that are edited at once: indices and new values of a block stay in the processor's cache.
BLOCK_ELEMENTS = 2**16


def apply(shards: Iterable[LiveShard], mlps: Iterable[Mlp], plan: Plan, base: Checkpoint | None = None) -> int:
    """Reset the plan's neurons in every shard that holds a part of them; returns the number of elements written.

    `mlps`: the structure the plan's layer numbers refer to. `base`: the checkpoint of `reset: base`. Nothing outside the chosen
    neurons changes by a bit.
    """
    chosen = {unit.layer: torch.tensor(unit.ids, dtype=torch.int64) for unit in plan.units}
    slices = {s.name: (s, chosen[mlp.layer]) for mlp in mlps if mlp.layer in chosen for s in mlp.slices}
    written = 0
    for live in shards:
        if live.shard.name not in slices or not live.shard.numel:
            continue
        piece, ids = slices[live.shard.name]
        for block in _blocks(live, piece):
            where = _inside(block, piece.axis, ids)
            if not where.numel():
                continue
            if plan.reset == "zero":
                block.values.index_fill_(piece.axis, where.to(block.values.device), 0)
            else:
                index = _flat_index(block, piece.axis, where)
                new = _new_values(plan, base, live.shard, piece, index.view(-1)).view(index.shape)
                block.values.index_copy_(piece.axis, where.to(block.values.device), new.to(block.values))
            written += where.numel() * block.values.shape[1 - piece.axis]
    return written


@dataclass(frozen=True)
class _Block:
    """A rectangle of a parameter: `values` [rows, columns] is a view of the shard, beginning at `row`, `column` of the parameter."""

    values: torch.Tensor
    row: int
    column: int
    width: int  # of the parameter


def _blocks(live: LiveShard, piece: Slice) -> Iterator[_Block]:
    """Cut a shard into rectangles: the end of a row, whole rows (at most `BLOCK_ELEMENTS` at once), the beginning of a row."""
    width = piece.shape[1] if len(piece.shape) == 2 else 1
    start, stop = live.shard.start, live.shard.stop
    first, last = min(-(-start // width) * width, stop), stop // width * width
    step = max(1, BLOCK_ELEMENTS // width) * width
    cuts = [start, *range(first, last, step), max(first, last), stop]
    for low, high in pairwise(cuts):
        if low < high:
            values = live.values[low - start : high - start].view(-1, min(width, high - low))
            yield _Block(values, low // width, low % width, width)


def _inside(block: _Block, axis: int, ids: torch.Tensor) -> torch.Tensor:
    """Those of the neurons that cross the block, as rows (axis 0) or columns (axis 1) of it."""
    first = block.row if axis == 0 else block.column
    return ids[(ids >= first) & (ids < first + block.values.shape[axis])] - first


def _flat_index(block: _Block, axis: int, where: torch.Tensor) -> torch.Tensor:
    """Flat indices in the parameter of the chosen rows or columns of the block: int64, in the shape of what is written."""
    rows = where if axis == 0 else torch.arange(block.values.shape[0])
    columns = where if axis == 1 else torch.arange(block.values.shape[1])
    return (block.row + rows).unsqueeze(1) * block.width + block.column + columns


def _new_values(plan: Plan, base: Checkpoint | None, shard: Shard, piece: Slice, index: torch.Tensor) -> torch.Tensor:
    if plan.reset == "init":
        return initial_values(plan.seed, piece.name, index, piece.std)
    if base is None:
        raise InputError("erase.reset=base needs model.base, the checkpoint before the sensitive training")
    return _base_values(base, shard, index)


def _base_values(base: Checkpoint, shard: Shard, index: torch.Tensor) -> torch.Tensor:
    if shard.name not in base.tensors or base.tensors[shard.name].shape != shard.shape:
        raise InputError(f"model.base: {base.folder} has no tensor {shard.name} of shape {list(shard.shape)}")
    first, last = int(index.min()), int(index.max()) + 1
    values = torch.empty(last - first, dtype=torch.float32)
    base.read_into(shard.name, first, last, values)
    return values[index - first]


def initial_values(seed: int, name: str, index: torch.Tensor, std: float) -> torch.Tensor:
    """What an initialiser of standard deviation `std` draws for the flat elements `index` of parameter `name`; float32.

    A function of (seed, name, index) alone, so any split over ranks gives the same weights. The centred sum of the four 16-bit
    parts of a SplitMix64 word: a bell of kurtosis -0.3 that ends at 3.46 standard deviations, much like the truncated normal of
    many initialisers, and exact integer arithmetic, where a logarithm or cosine could differ by a bit between processors.
    """
    if std == 0:
        return torch.zeros(index.numel())
    key = int.from_bytes(hashlib.sha256(f"{seed}|{name}".encode()).digest()[:8], "little")
    words = _splitmix64(index.numpy().astype(np.uint64), key)
    pairs = (words & _EVEN_PARTS) + ((words >> np.uint64(16)) & _EVEN_PARTS)
    total = ((pairs & np.uint64(0xFFFFFFFF)) + (pairs >> np.uint64(32))).astype(np.int64)
    # Four uniforms on {0..65535}: mean 4 * 32767.5, variance 4 * (65536^2 - 1) / 12.
    return torch.from_numpy((total - 131070) * (std / ((65536.0**2 - 1) / 3) ** 0.5)).float()


_EVEN_PARTS = np.uint64(0x0000FFFF0000FFFF)


def _splitmix64(words: np.ndarray, key: int) -> np.ndarray:
    """Steele, Lea & Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014; wraps modulo 2^64. In place."""
    words *= np.uint64(0x9E3779B97F4A7C15)
    words += np.uint64(key)
    words ^= words >> np.uint64(30)
    words *= np.uint64(0xBF58476D1CE4E5B9)
    words ^= words >> np.uint64(27)
    words *= np.uint64(0x94D049BB133111EB)
    words ^= words >> np.uint64(31)
    return words
