"""Editing shards by a plan, in place: no rank needs another's, so nothing is communicated.

The units of a matrix are rows (axis 0) or columns (axis 1). A shard is a flat range, so it may begin and end inside a row; it is cut
into the end of a row, whole rows, and the beginning of a row, and each piece is a small matrix.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Iterable, Iterator
from functools import cache
from statistics import NormalDist

import numpy as np
import torch

from sani_dist.engine.adapter import is_of_adapter
from sani_dist.engine.layout import Layout
from sani_dist.engine.shards import LiveShard
from sani_dist.erase.plan import Plan
from sani_dist.erase.structure import Slice, Units
from sani_dist.errors import InputError

# New values are made for this many elements of a shard at a time, so that they never take more than a few megabytes.
BLOCK = 2**20
# And looked up this many at a time: the numbers of a lookup stay in the cache, 5 % of an erase.
LOOKUP = 2**16


def apply(shards: Iterable[LiveShard], units: Iterable[Units], plan: Plan, base: Layout | None = None) -> int:
    """Reset the plan's units in every shard that holds a part of them; returns the number of elements written.

    `units`: the structure the plan's layer numbers refer to. `base`: the checkpoint of `reset: base`. Nothing outside the chosen
    units changes by a bit.
    """
    if plan.reset == "base" and base is None:
        raise InputError("erase.reset=base needs model.base, the checkpoint before the sensitive training")
    chosen = {(unit.layer, unit.kind): torch.tensor(unit.ids, dtype=torch.int64) for unit in plan.units}
    slices: dict[str, list[tuple[Slice, torch.Tensor]]] = {}
    for group in units:
        if (group.layer, group.kind) in chosen:
            for piece in group.slices:
                slices.setdefault(piece.name, []).append((piece, piece.places(chosen[group.layer, group.kind])))
    written = 0
    for live in shards:
        for piece, ids in slices.get(live.shard.name, ()):
            if ids.numel():
                written += _reset(live, piece, ids, plan, base)
    return written


def begin_again(shards: Iterable[LiveShard], seed: int, base: Layout | None = None) -> int:
    """Take from every shard what the sensitive training made of it; returns the number of elements written.

    `base`: where the model's parameters lie in the checkpoint before that training. None: the model has an adapter, which becomes a fresh
    one, lora_A drawn with peft's variance and lora_B zero; what it stands beside is the base's, and stays.
    """
    written = 0
    for live in shards:
        shard = live.shard
        if base is not None:
            values = torch.empty(shard.numel, dtype=shard.dtype)
            base.read_into(shard.name, shard.start, shard.stop, values)
            live.values.copy_(values)
        elif is_of_adapter(shard.name):
            # Uniform in +-1 / sqrt(inputs), as kaiming_uniform_ with a = sqrt(5) draws.
            std = 0.0 if ".lora_B." in shard.name else 1 / math.sqrt(3 * shard.shape[1])
            live.values.copy_(initial_values(seed, shard.name, shard.start, shard.stop, std, shard.dtype))
        else:
            continue
        written += shard.numel
    return written


def _reset(live: LiveShard, piece: Slice, ids: torch.Tensor, plan: Plan, base: Layout | None) -> int:
    """Reset the rows or columns `ids` (ascending) of the matrix `piece`, as far as they lie in the shard."""
    written = 0
    rows, width = piece.matrix
    start, stop = (min(max(end - piece.start, 0), rows * width) for end in (live.shard.start, live.shard.stop))
    offset = piece.start - live.shard.start  # of the matrix from the first value of the shard
    for low, high in _blocks(start, stop, width):
        rows = max(1, (high - low) // width)
        block = live.values[offset + low : offset + high].view(rows, -1)
        first = divmod(low, width)[piece.axis]
        ends = torch.tensor([first, first + block.shape[piece.axis]])
        begin, end = torch.searchsorted(ids, ends).tolist()
        if begin == end:
            continue
        where = ids[begin:end] - first
        written += where.numel() * block.shape[1 - piece.axis]
        if plan.reset == "zero":
            block.index_fill_(piece.axis, where.to(block.device), 0)
            continue
        if base is not None and plan.reset == "base":
            values = torch.empty(high - low, dtype=live.shard.dtype)
            base.read_into(live.shard.name, piece.start + low, piece.start + high, values)
            values = values.view(block.shape).index_select(piece.axis, where)
        else:
            # Chosen elements are numbered in the matrix's order; those of a block follow one another.
            number = begin * width + low % width if piece.axis == 0 else low // width * ids.numel() + begin
            count = where.numel() * block.shape[1 - piece.axis]
            values = initial_values(plan.seed, piece.stream, number, number + count, piece.std, block.dtype)
            values = values.view((where.numel(), -1) if piece.axis == 0 else (rows, where.numel()))
        block.index_copy_(piece.axis, where.to(block.device), values.to(block.device, block.dtype))
    return written


def _blocks(start: int, stop: int, width: int) -> Iterator[tuple[int, int]]:
    """Cut [start, stop) at the first and the last row boundary inside it, and what is between into blocks of whole rows."""
    first, last = min(-(-start // width) * width, stop), stop // width * width
    step = max(1, BLOCK // width) * width
    cuts = [start, *range(first, last, step), max(first, last), stop]
    yield from ((low, high) for low, high in itertools.pairwise(cuts) if low < high)


def initial_values(
    seed: int, name: str, start: int, stop: int, std: float, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """What an initialiser of standard deviation `std` draws for the chosen elements number [start, stop) of matrix `name`.

    A function of (seed, name, number) alone, so any split over ranks gives the same weights. Each value is one of 65536 quantiles
    of the normal distribution (variance 0.99998, the last at 4.3 std), picked by 16 bits of a PCG64DXSM stream, which NumPy
    keeps the same on every processor and in every version, and which can start anywhere: 1.5 ns a value, torch's `normal_` 4 ns.
    """
    if std == 0:
        return torch.zeros(stop - start, dtype=dtype)
    first = start // 4  # a word of 64 bits gives four values
    generator = np.random.PCG64DXSM(int.from_bytes(hashlib.sha256(f"{seed}|{name}".encode()).digest(), "little"))
    words = generator.advance(first).random_raw(-(-stop // 4) - first)
    draws = words.astype("<u8", copy=False).view("<u2")[start - 4 * first : stop - 4 * first]
    table, values = _quantiles(std, dtype), torch.empty(stop - start, dtype=dtype)
    for first in range(0, len(draws), LOOKUP):
        part = slice(first, first + LOOKUP)
        torch.index_select(table, 0, torch.from_numpy(draws[part].astype(np.int32)), out=values[part])
    return values


@cache
def _quantiles(std: float, dtype: torch.dtype) -> torch.Tensor:
    """The quantiles (k + 1/2) / 65536 of a normal distribution. In double precision, so that processors agree once rounded."""
    inverse = NormalDist(0.0, std).inv_cdf
    return torch.tensor([inverse((k + 0.5) / 65536) for k in range(65536)], dtype=torch.float64).float().to(dtype)
