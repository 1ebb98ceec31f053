"""Chunks of rows around the matrix products: the design for GPUs, for CPUs without bf16 matrix units, and for the reference.

Rows that do not count are dropped first, so cost and memory follow the rows that do. The logits of one chunk of rows live in one reused
buffer; their gradient is formed in their place and multiplied out at once:

    d loss / d logit_j = a (p_j - [j = target]) + further terms,   dX = dlogits W,   dW = dlogits^T X

That is three products of 2 R H V operations, with no recomputation. Beside them the buffer is written once and read a few times, about 10
bytes for each of the R V logits in 16 bits, and the weight's gradient is read and written in fp32 for every chunk, 8 H V bytes: with r rows
in a chunk 8 H / r for each logit, so a GPU needs chunks of 600 to 1200 rows (docs/kernels.md). Chunks run in order and dW accumulates in
fp32 (float64 for float64 input), so two runs give the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import fields
from functools import partial

import torch

from sani_dist.kernels import distillation
from sani_dist.kernels.problem import Gradients, Implementation, Projection, Rows, Scores, Terms, Wants


def loss_and_gradients(
    hidden: torch.Tensor,
    projection: Projection,
    rows: Rows,
    terms: Terms,
    wants: Wants,
    max_bytes: int,
    implementation: Implementation,
) -> Gradients:
    """Losses and wanted gradients, a chunk of at most `max_bytes` of logits in fp32 at a time."""
    weight, bias, sums = projection.weight, projection.bias, rows.factors.dtype
    count = rows.index.numel()
    most = _most_rows(weight, count, max_bytes)
    loss_of_rows = (
        implementation.loss_of_rows if rows.teacher is None else partial(distillation.loss_of_rows, implementation)
    )
    losses = torch.zeros_like(rows.factors)
    d_hidden = torch.zeros_like(hidden) if wants.hidden else None
    d_weight = d_bias = None
    if wants.weight:
        make = torch.empty_like if count else torch.zeros_like
        d_weight = make(weight, dtype=weight.dtype if count <= most else sums, memory_format=torch.contiguous_format)
    if bias is not None and wants.bias:
        d_bias = torch.zeros_like(bias, dtype=sums)
    for part, x, logits in _chunks(hidden, projection, rows.index, most):
        losses[part] = loss_of_rows(logits, rows.part(part), projection.softcap, terms, any(wants))
        gradient = logits
        if d_bias is not None:
            d_bias += gradient.sum(dim=0, dtype=sums)
        if d_hidden is not None:
            d_hidden.index_add_(0, rows.index[part], gradient @ weight)
        if d_weight is not None:
            implementation.product(d_weight, gradient, x, add=part.start > 0)
        del (
            x,
            logits,
            gradient,
        )  # or the last chunk would still be there beside the two copies of the weight's gradient below
    return Gradients(
        losses,
        d_hidden,
        None if d_weight is None else d_weight.to(weight.dtype),
        None if d_bias is None else d_bias.to(weight.dtype),
    )


def scores(
    hidden: torch.Tensor,
    projection: Projection,
    index: torch.Tensor,
    targets: torch.Tensor,
    top_k: int,
    moments: bool,
    max_bytes: int,
    implementation: Implementation,
) -> Scores:
    """Scores of the rows in `index`, a chunk at a time: memory beside the result does not grow with their number."""
    most = _most_rows(projection.weight, index.numel(), max_bytes)
    parts = [
        implementation.scores_of_rows(logits, targets[part], projection.softcap, top_k, moments)
        for part, _, logits in _chunks(hidden, projection, index, most)
    ]
    if not parts:
        empty = hidden.new_empty((0, projection.weight.shape[0]))
        return implementation.scores_of_rows(empty, targets, projection.softcap, top_k, moments)
    columns = ([getattr(part, f.name) for part in parts] for f in fields(Scores))
    return Scores(*(None if made[0] is None else torch.cat(made) for made in columns))  # type: ignore[arg-type]


def _most_rows(weight: torch.Tensor, count: int, max_bytes: int) -> int:
    """How many of `count` rows of logits fit into `max_bytes` at once, at least 1."""
    return max(1, min(count, max_bytes // (weight.shape[0] * max(4, weight.element_size()))))


def _chunks(
    hidden: torch.Tensor, projection: Projection, index: torch.Tensor, most: int
) -> Iterator[tuple[slice, torch.Tensor, torch.Tensor]]:
    """(which rows, their hidden states, their logits before soft-capping in a buffer that the next chunk reuses).

    Chunks are of equal size, since a short one at the end would run slower. The buffer has room for `most` rows all the same, so that
    whether its memory is given back does not depend on the batch (see `masked_ce`).
    """
    weight, count = projection.weight, index.numel()
    if not count:
        return
    chunk = math.ceil(count / math.ceil(count / most))
    buffer = torch.empty((most, weight.shape[0]), dtype=weight.dtype, device=weight.device)
    for first in range(0, count, chunk):
        part = slice(first, min(first + chunk, count))
        x = hidden[index[part]]
        logits = buffer[: x.shape[0]]
        if projection.bias is None:
            torch.mm(x, weight.t(), out=logits)
        else:
            torch.addmm(projection.bias, x, weight.t(), out=logits)
        yield part, x, logits
