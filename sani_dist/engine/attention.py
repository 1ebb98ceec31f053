"""Attention of packed rows, a document at a time.

For rows of several documents transformers makes a mask of tokens x tokens, and `scaled_dot_product_attention` computes all of it. A
document that is attended by itself needs no mask, so kernels leave out what is not causal: with three documents in a row of 1024 tokens
a fifth to a third of the time, forward and backward, in bfloat16 on a CPU, whose kernel gains little below 500 tokens. Whether a mask
says no more than that is read off the mask, once in a forward; any other mask, such as that of a sliding window or one that an audit
brings, is used as it is. On GPUs, where many small kernels would wait for each other, all are.
"""

from __future__ import annotations

import itertools
from collections import deque
from typing import Any, NamedTuple

import torch
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "sdpa_by_document"


class Part(NamedTuple):
    """Tokens [start, end) of a row: one document, or (`single`) documents of one token each, as padding is."""

    row: int
    start: int
    end: int
    single: bool


# The masks that were made last, one for each kind of attention, with their documents; kept so that their memory is their own.
_latest: deque[tuple[torch.Tensor, list[Part] | None]] = deque(maxlen=4)


def attend_by_document(model: PreTrainedModel) -> None:
    """Let `model` do so, if its attention is transformers' `sdpa` and can be exchanged."""
    if model.config._attn_implementation == "sdpa" and model._supports_attention_backend:
        model.set_attn_implementation(NAME)


def parts_of(mask: torch.Tensor) -> list[Part] | None:
    """The documents that `mask`, bool [rows, 1, tokens, tokens], keeps apart and is causal within; None if it says anything else."""
    token = torch.arange(mask.shape[-1])
    first = token - mask[:, 0].sum(dim=-1) + 1  # that each token sees, if it sees itself and its neighbours before
    if bool((first > token).any()) or not torch.equal(
        mask[:, 0], (token >= first[..., None]) & (token <= token[:, None])
    ):
        return None
    if not torch.equal(first.gather(1, first), first) or bool((first.diff() < 0).any()):
        return None  # the first token sees others before it
    parts: list[Part] = []
    for row, firsts in enumerate(first):
        starts = (firsts == token).nonzero()[:, 0].tolist()
        for start, end in itertools.pairwise([*starts, len(token)]):
            single = end - start == 1
            if single and start and parts[-1].single:
                start = parts.pop().start
            parts.append(Part(row, start, end, single))
    return parts


def _mask(*args: Any, **kwargs: Any) -> torch.Tensor | None:
    """transformers' own, with its documents beside it."""
    mask: torch.Tensor | None = sdpa_mask(*args, **kwargs)
    if mask is not None and mask.device.type == "cpu" and mask.dtype == torch.bool:
        _latest.append((mask, parts_of(mask)))
    return mask


def _parts_beside(mask: torch.Tensor | None) -> list[Part] | None:
    """Known by the memory of the mask: DeepSpeed's hooks hand a block that gets it by position, as GPT-2's do, another tensor of it."""
    for made, parts in _latest:
        if mask is not None and mask.shape == made.shape and mask.data_ptr() == made.data_ptr():
            return parts
    return None


def _attend(
    module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, **kwargs: Any
) -> tuple[torch.Tensor, None]:  # fmt: skip
    """query, key, value: [rows, heads, tokens, head_dim] -> [rows, tokens, heads, head_dim]."""
    parts = _parts_beside(mask)
    if parts is None or kwargs.get("position_bias") is not None:
        masked: tuple[torch.Tensor, None] = sdpa_attention_forward(module, query, key, value, mask, **kwargs)
        return masked
    attended = []
    # Split, not sliced: the gradient of a slice is as large as what it was taken from.
    for row, states in enumerate(zip(*(torch.split(whole, 1) for whole in (query, key, value)), strict=True)):
        own = [part for part in parts if part.row == row]
        sizes = [part.end - part.start for part in own]
        pieces = (torch.split(whole, sizes, dim=2) for whole in states)
        for part, q, k, v in zip(own, *pieces, strict=True):
            if part.single:
                # As rows of one token: queries and keys keep a gradient, of zero, which the other ranks wait for.
                q, k, v = (piece.transpose(0, 2) for piece in (q, k, v))
            found = sdpa_attention_forward(module, q, k, v, None, **kwargs)[0]
            attended.append(found.transpose(0, 1) if part.single else found)
    return torch.cat(attended, dim=1).view(query.shape[0], query.shape[2], query.shape[1], value.shape[3]), None


AttentionInterface.register(NAME, _attend)
AttentionMaskInterface.register(NAME, _mask)
