"""The arithmetic of ZeRO-3 shards, far beyond the world sizes that can be started here."""

from __future__ import annotations

from itertools import pairwise

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from sani_dist.engine.shards import local_shards, partition


@given(numel=st.integers(0, 2**41), world_size=st.integers(1, 1024))
def test_ranks_cover_a_parameter_without_overlap(numel: int, world_size: int) -> None:
    ranges = [partition(numel, world_size, rank) for rank in range(world_size)]
    assert ranges[0][0] == 0
    assert ranges[-1][1] == numel
    assert all(start <= stop for start, stop in ranges)
    assert all(stop == following for (_, stop), (following, _) in pairwise(ranges))


@given(numel=st.integers(1, 2**33), world_size=st.integers(1, 1024), share=st.floats(0, 1, exclude_max=True))
def test_follows_the_rule_of_deepspeed(numel: int, world_size: int, share: float) -> None:
    """`partition_parameters.py`: pad to a multiple of the world size, cut into equal pieces, copy what is not padding."""
    rank = int(share * world_size)
    remainder = numel % world_size
    partition_size = (numel + (world_size - remainder if remainder else 0)) // world_size
    start = partition_size * rank
    elements = max(0, min(partition_size, numel - start))
    low, high = partition(numel, world_size, rank)
    assert high - low == elements
    if elements:
        assert low == start


@given(numel=st.integers(0, 300), world_size=st.integers(1, 40))
def test_pieces_join_to_the_whole(numel: int, world_size: int) -> None:
    whole = torch.arange(numel)
    pieces = [whole[slice(*partition(numel, world_size, rank))] for rank in range(world_size)]
    assert torch.equal(torch.cat(pieces), whole)


def test_without_deepspeed_a_shard_is_the_whole_parameter() -> None:
    model = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 3, bias=False))
    model.add_module("tied", nn.Linear(3, 5, bias=False))
    model.tied.weight = model[0].weight
    shards = list(local_shards(model))
    assert [s.shard.name for s in shards] == ["0.weight", "0.bias", "1.weight"]
    assert [(s.shard.start, s.shard.stop, s.shard.shape) for s in shards] == [
        (0, 15, (5, 3)),
        (0, 5, (5,)),
        (0, 15, (3, 5)),
    ]
    shards[0].values[7] = 42.0  # editing a shard edits the model
    assert model[0].weight[2, 1] == 42.0
    assert model.tied.weight[2, 1] == 42.0
