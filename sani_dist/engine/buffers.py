"""Persistent buffers: what a model stores beside its parameters, such as the scalars of Gemma 4's layers or the biases of a router.

They are part of the model as parameters are, but small: every rank has them whole, and training does not change them. DeepSpeed
does not know them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import nn
from transformers import PreTrainedModel

from sani_dist.engine import distributed
from sani_dist.engine.safetensors_files import read_range
from sani_dist.engine.shards import LiveShard, Shard, partition
from sani_dist.engine.stored_tensor import StoredTensor


def persistent_buffers(model: nn.Module) -> dict[str, torch.Tensor]:
    """Name -> buffer, of those that are stored with a model."""
    return {
        f"{path}.{name}" if path else name: buffer
        for path, module in model.named_modules()
        for name, buffer in module._buffers.items()
        if buffer is not None and name not in module._non_persistent_buffers_set
    }


def read_buffers(model: PreTrainedModel, stored: Mapping[str, StoredTensor], dtype: torch.dtype) -> None:
    """Fill the buffers of an empty model from their tensors, in the precision that transformers gives them in a model of `dtype`.

    One that is not stored stays as the model makes it, as it does in transformers.
    """
    is_float32 = _in_float32(model, dtype)
    for name, tensor in stored.items():
        path, _, own = name.rpartition(".")
        module = model.get_submodule(path)
        made = module._buffers[own]
        assert made is not None
        values = torch.empty(tensor.shape, dtype=torch.float32 if is_float32(name) else made.dtype)
        read_range(tensor, 0, tensor.numel, values.view(-1))
        module._buffers[own] = values


def buffer_shards(model: nn.Module, stored: Mapping[str, StoredTensor]) -> Iterator[LiveShard]:
    """This rank's part of each buffer that is stored, by its stored name. What nothing has changed leaves with the bits it came with."""
    buffers = persistent_buffers(model)
    for name, tensor in stored.items():
        values, live = torch.empty(tensor.shape, dtype=tensor.dtype), buffers[name].detach().cpu()
        read_range(tensor, 0, tensor.numel, values.view(-1))
        if not torch.equal(values.to(live.dtype), live):
            values = live.to(torch.promote_types(values.dtype, live.dtype))
        start, stop = partition(tensor.numel, distributed.world_size(), distributed.rank())
        shard = Shard(tensor.name, tensor.shape, start, stop, values.dtype)
        yield LiveShard(shard, values.reshape(-1)[start:stop])


def _in_float32(model: PreTrainedModel, dtype: torch.dtype) -> Callable[[str], bool]:
    """Which names transformers keeps in float32 in a model of `dtype`."""
    from transformers.core_model_loading import build_glob_alternation

    plan = list(model._get_dtype_plan(dtype))
    if not plan:
        return lambda name: False
    pattern, _, _ = build_glob_alternation(plan)
    return lambda name: pattern.search(name) is not None
