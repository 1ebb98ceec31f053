"""The one idea of the project: a parameter is the flat range of it that this rank owns.

Loading, erasing, checkpointing, resharding and exporting are functions over shards. A process without DeepSpeed is the
same code with one shard for each parameter. This module imports nothing of ours.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from sani_dist.engine.deepspeed_internals import is_partitioned, release


def partition(numel: int, world_size: int, rank: int) -> tuple[int, int]:
    """The flat range [start, stop) of a parameter of `numel` elements that `rank` owns under ZeRO-3.

    DeepSpeed gives every rank n = ceil(numel / world_size) elements of the row-major parameter; the last ranks own fewer
    elements or none, and the rest of their buffer is padding (`partition_parameters.py`, `_partition_param`).
    """
    size = -(-numel // world_size)
    return min(rank * size, numel), min((rank + 1) * size, numel)


@dataclass(frozen=True)
class Shard:
    """A flat, half-open range [start, stop) of the parameter `name`, whose whole shape is `shape`."""

    name: str
    shape: tuple[int, ...]
    start: int
    stop: int
    dtype: torch.dtype

    @property
    def numel(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class LiveShard:
    """A shard and the memory that holds it: `values` is one-dimensional, [stop - start], and writing it edits the model."""

    shard: Shard
    values: torch.Tensor


def local_shards(model: nn.Module) -> Iterator[LiveShard]:
    """This rank's shard of every parameter of `model`, tied parameters once, in the order of `named_parameters`.

    Under ZeRO-3 `values` is the rank's partition without its padding. Every other copy that ZeRO-3 keeps of the parameter is dropped
    first (`release`), so that the next forward gathers what was written here. Without DeepSpeed there is one shard with all
    elements of the parameter.
    """
    parameter: Any  # DeepSpeed adds the ds_ attributes
    for name, parameter in model.named_parameters():
        if not is_partitioned(parameter):
            shard = Shard(name, tuple(parameter.shape), 0, parameter.numel(), parameter.dtype)
            yield LiveShard(shard, parameter.data.view(-1))
            continue
        release(parameter)
        # The process group of the parameter, not the world's: with MiCS they differ.
        world_size, rank = parameter.ds_process_group.size(), parameter.ds_process_group.rank()
        start, stop = partition(parameter.ds_numel, world_size, rank)
        shard = Shard(name, tuple(parameter.ds_shape), start, stop, parameter.dtype)
        yield LiveShard(shard, parameter.ds_tensor.data[: stop - start])
