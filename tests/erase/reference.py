"""Erasing by the definition: whole tensors, one neuron at a time, no shards. The tests compare `apply` with it."""

from __future__ import annotations

import torch

from sani_dist.engine.shards import LiveShard, Shard, partition
from sani_dist.erase.apply import initial_values

# Parameter -> axis along which its neurons lie, written down from the architectures.
LLAMA = {"mlp.gate_proj.weight": 0, "mlp.up_proj.weight": 0, "mlp.down_proj.weight": 1}
GPT2 = {"mlp.c_fc.weight": 1, "mlp.c_fc.bias": 0, "mlp.c_proj.weight": 0}


def erased(
    tensors: dict[str, torch.Tensor], prefix: str, axes: dict[str, int], units: dict[int, list[int]], reset: str,
    seed: int, stds: dict[str, float], base: dict[str, torch.Tensor] | None = None,
) -> dict[str, torch.Tensor]:  # fmt: skip
    result = {name: tensor.clone() for name, tensor in tensors.items()}
    for layer, ids in units.items():
        for suffix, axis in axes.items():
            name = f"{prefix}.{layer}.{suffix}"
            whole = result[name]
            if reset == "zero":
                fresh = torch.zeros_like(whole)
            elif reset == "base":
                assert base is not None
                fresh = base[name].to(whole.dtype)
            else:
                # Fresh values are drawn for the chosen neurons' elements alone, in the order in which they are stored.
                flags = torch.zeros(whole.shape[axis], dtype=torch.bool)
                flags[ids] = True
                chosen = flags.view([-1 if a == axis else 1 for a in range(whole.dim())]).expand(whole.shape)
                fresh = torch.zeros_like(whole)
                fresh[chosen] = initial_values(seed, name, 0, int(chosen.sum()), stds[suffix]).to(whole.dtype)
            for neuron in ids:
                where = (neuron,) if axis == 0 else (slice(None), neuron)
                whole[where] = fresh[where]
    return result


def shards_of(tensors: dict[str, torch.Tensor], world_size: int, rank: int) -> list[LiveShard]:
    """What `rank` of `world_size` would own, in memory of its own."""
    shards = []
    for name, tensor in tensors.items():
        start, stop = partition(tensor.numel(), world_size, rank)
        values = tensor.flatten()[start:stop].clone()
        shards.append(LiveShard(Shard(name, tuple(tensor.shape), start, stop, tensor.dtype), values))
    return shards


def joined(parts: list[list[LiveShard]]) -> dict[str, torch.Tensor]:
    return {
        pieces[0].shard.name: torch.cat([p.values for p in pieces]).view(pieces[0].shard.shape)
        for pieces in zip(*parts, strict=True)
    }
