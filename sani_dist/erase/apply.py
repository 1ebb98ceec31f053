"""Editing shards by a plan, in place: no rank needs another's, so nothing is communicated.

The neurons of a two-dimensional parameter are rows (axis 0) or columns (axis 1). A shard is a flat range, so it may begin and end
inside a row; it is cut into the end of a row, whole rows, and the beginning of a row, and each piece is a small strided view.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise

import numpy as np
import torch

from sani_dist.engine.safetensors_files import Checkpoint
from sani_dist.engine.shards import LiveShard, Shard
from sani_dist.erase.plan import Plan
from sani_dist.erase.structure import Mlp, Slice
from sani_dist.errors import InputError

# New values for the flat elements `index` (int64, ascending) of a parameter: float32 [index.numel()].
Values = Callable[[Shard, Slice, torch.Tensor], torch.Tensor]


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
        for view, index in _views(live, piece, ids):
            written += index.numel()
            view(_new_values(plan, base)(live.shard, piece, index) if plan.reset != "zero" else None)
    return written


def _new_values(plan: Plan, base: Checkpoint | None) -> Values:
    if plan.reset == "base":
        if base is None:
            raise InputError("erase.reset=base needs model.base, the checkpoint before the sensitive training")
        return lambda shard, piece, index: _base_values(base, shard, index)
    return lambda shard, piece, index: initial_values(plan.seed, piece.name, index, piece.std)


def _views(
    live: LiveShard, piece: Slice, ids: torch.Tensor
) -> Iterator[tuple[Callable[[torch.Tensor | None], None], torch.Tensor]]:
    """For each part of the shard that holds chosen neurons: a function that writes it, and the flat indices it writes."""
    width = piece.shape[1] if len(piece.shape) == 2 else 1
    start, stop = live.shard.start, live.shard.stop
    first_whole, last_whole = -(-start // width), stop // width
    if piece.axis == 0:
        rows = ids[(ids >= start // width) & (ids * width < stop)]
        for row in rows.tolist():
            low, high = max(row * width, start), min((row + 1) * width, stop)
            if low < high and not (first_whole <= row < last_whole):
                yield _writer(live.values[low - start : high - start]), torch.arange(low, high)
        whole = rows[(rows >= first_whole) & (rows < last_whole)]
        if whole.numel():
            body = live.values[first_whole * width - start : last_whole * width - start].view(-1, width)
            index = (whole.unsqueeze(1) * width + torch.arange(width)).view(-1)
            yield _writer(body, whole - first_whole, axis=0), index
        return
    for low, high in _row_pieces(start, stop, width):
        if (high - low) % width == 0 and low % width == 0:
            body = live.values[low - start : high - start].view(-1, width)
            index = (torch.arange(low, high, width).unsqueeze(1) + ids).view(-1)
            yield _writer(body, ids, axis=1), index
        else:
            columns = ids[(ids >= low % width) & (ids < low % width + high - low)]
            if columns.numel():
                body = live.values[low - start : high - start].view(1, -1)
                yield _writer(body, columns - low % width, axis=1), low - low % width + columns


def _row_pieces(start: int, stop: int, width: int) -> Iterator[tuple[int, int]]:
    """Cut [start, stop) at the first and the last row boundary inside it."""
    first, last = min(-(-start // width) * width, stop), stop // width * width
    cuts = [start, first, max(first, last), stop]
    yield from ((low, high) for low, high in pairwise(cuts) if low < high)


def _writer(
    view: torch.Tensor, ids: torch.Tensor | None = None, axis: int = 0
) -> Callable[[torch.Tensor | None], None]:
    def write(values: torch.Tensor | None) -> None:
        if ids is None:
            view.fill_(0) if values is None else view.copy_(values)
            return
        where = ids.to(view.device)
        if values is None:
            view.index_fill_(axis, where, 0)
        else:
            shape = (where.numel(), view.shape[1]) if axis == 0 else (view.shape[0], where.numel())
            view.index_copy_(axis, where, values.view(shape).to(device=view.device, dtype=view.dtype))

    return write


def _base_values(base: Checkpoint, shard: Shard, index: torch.Tensor) -> torch.Tensor:
    if shard.name not in base.tensors or base.tensors[shard.name].shape != shard.shape:
        raise InputError(f"model.base: {base.folder} has no tensor {shard.name} of shape {list(shard.shape)}")
    values = torch.empty(shard.numel, dtype=torch.float32)
    base.read_into(shard.name, shard.start, shard.stop, values)
    return values[index - shard.start]


def initial_values(seed: int, name: str, index: torch.Tensor, std: float) -> torch.Tensor:
    """What an initialiser of standard deviation `std` draws for the flat elements `index` of parameter `name`; float32.

    A function of (seed, name, index) alone, so any split over ranks gives the same weights. SplitMix64 of the key and the index makes
    twelve 16-bit integers; their centred sum is normal to within a kurtosis of -0.1 and is exact integer arithmetic, where a
    logarithm or cosine could differ by a bit between processors.
    """
    if std == 0:
        return torch.zeros(index.numel())
    key = int.from_bytes(hashlib.sha256(f"{seed}|{name}".encode()).digest()[:8], "little")
    counter = index.numpy().astype(np.uint64) * np.uint64(3)
    total = np.zeros(index.numel(), dtype=np.int64)
    for draw in range(3):
        bits = _splitmix64(counter + np.uint64(draw), key)
        for shift in (0, 16, 32, 48):
            total += ((bits >> np.uint64(shift)) & np.uint64(0xFFFF)).astype(np.int64)
    # Twelve uniforms on {0..65535}: mean 12 * 32767.5, variance 12 * (65536^2 - 1) / 12 = 65536^2 - 1.
    return torch.from_numpy((total - 393210).astype(np.float64) * (std / (65536.0**2 - 1) ** 0.5)).float()


def _splitmix64(counter: np.ndarray, key: int) -> np.ndarray:
    """Steele, Lea & Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014; wraps modulo 2^64."""
    z = counter * np.uint64(0x9E3779B97F4A7C15) + np.uint64(key)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(z ^ (z >> np.uint64(31)))
