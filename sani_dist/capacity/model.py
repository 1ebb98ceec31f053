"""The shape of a model, from its config.json alone: parameters and activations on torch's meta device, where nothing is allocated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from sani_dist.engine.zero3 import build_empty, read_model_config
from sani_dist.errors import InputError


@dataclass(frozen=True)
class ModelShape:
    """What memory and time follow from."""

    architecture: str
    dtype: torch.dtype
    numels: tuple[int, ...]  # of each parameter, tied ones once
    multiplied: int  # parameters that each token is multiplied with; a table of embeddings is only read
    layers: int
    hidden: int
    vocabulary: int
    row_length: int
    micro_rows: int
    activations: int  # bytes that the body keeps for backward, of one micro-batch

    @property
    def parameters(self) -> int:
        return sum(self.numels)

    @property
    def tokens(self) -> int:
        return self.micro_rows * self.row_length


def read_shape(path: Path, row_length: int, micro_rows: int, dtype: torch.dtype = torch.bfloat16) -> ModelShape:
    """`path`: a config.json or its folder. Raises InputError when transformers builds no causal language model of it."""
    return shape_of(read_model_config(path.parent if path.is_file() else path), row_length, micro_rows, dtype)


def shape_of(config: Any, row_length: int, micro_rows: int, dtype: torch.dtype = torch.bfloat16) -> ModelShape:
    """The shape of the model of a transformers config, trained on `micro_rows` rows of `row_length` tokens at a time."""
    model = build_empty(config, dtype).to("meta").train()
    head = model.get_output_embeddings().weight
    read = [model.get_input_embeddings().weight]
    return ModelShape(
        type(model).__name__, dtype, tuple(p.numel() for p in model.parameters()),
        # A tied table is multiplied with as well, as output projection.
        sum(p.numel() for p in model.parameters() if p.dim() > 1 and (p is head or all(p is not r for r in read))),
        model.config.num_hidden_layers, model.config.hidden_size, head.shape[0], row_length, micro_rows,
        _saved_bytes(model, row_length, micro_rows),
    )  # fmt: skip


def _saved_bytes(model: PreTrainedModel, row_length: int, micro_rows: int) -> int:
    """Bytes of what autograd keeps in a forward pass of the body, parameters left out."""
    attention, model.config._attn_implementation = model.config._attn_implementation, _FusedAttention.NAME
    ids = torch.zeros(micro_rows, row_length, dtype=torch.int64, device="meta")
    try:
        with (saved := SavedBytes(model)):
            model.base_model(input_ids=ids, use_cache=False)
    except RuntimeError:  # a router that looks at values, which meta tensors have none of
        raise InputError(
            f"plan: {type(model).__name__} decides by values which parts to run; its activations are not known in advance"
        ) from None
    finally:
        model.config._attn_implementation = attention
    # The mask that keeps documents of a packed row apart, one for all layers.
    return saved.bytes + micro_rows * row_length**2


class SavedBytes(torch.autograd.graph.saved_tensors_hooks):
    """Counts the bytes of what autograd saves while it is entered; memory that several tensors share counts once."""

    def __init__(self, model: nn.Module) -> None:
        self._known = {p.untyped_storage()._cdata for p in model.parameters()}
        self._kept: list[torch.Tensor] = []
        self.bytes = 0
        super().__init__(self._pack, lambda tensor: tensor)

    def _pack(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._known:
            self._known.add(storage._cdata)
            self._kept.append(tensor)  # or its address could be that of the next
            self.bytes += storage.nbytes()
        return tensor


class _FusedAttention(torch.autograd.Function):
    """What a fused kernel, such as torch's on GPUs, keeps: queries, keys, values, output, and a float of each row and head."""

    NAME = "sani_dist_planned"

    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        output = torch.empty(*query.shape[:-1], value.shape[-1], dtype=query.dtype, device=query.device)
        ctx.save_for_backward(query, key, value, output, torch.empty_like(query[..., 0], dtype=torch.float32))
        return output

    @staticmethod
    def attend(
        module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *rest: Any, **options: Any
    ) -> tuple[torch.Tensor, None]:
        """query: [rows, heads, tokens, head_size]; shared heads of key and value are repeated, as transformers does beside a mask."""
        apply: Callable[..., torch.Tensor] = _FusedAttention.apply  # type: ignore[assignment]
        if (shared := query.shape[1] // key.shape[1]) > 1:
            key, value = (t.repeat_interleave(shared, dim=1) for t in (key, value))
        return apply(query, key, value).transpose(1, 2).contiguous(), None


ALL_ATTENTION_FUNCTIONS.register(_FusedAttention.NAME, _FusedAttention.attend)
