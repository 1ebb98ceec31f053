"""Chunks of rows around the matrix products: the design for GPUs, for CPUs without bf16 matrix units, and for the reference.

Rows that do not count are dropped first, so cost and memory follow the rows that do. The logits of one chunk of rows live in one reused
buffer; their gradient is formed in their place and multiplied out at once:

    d loss / d logit_j = a (p_j - [j = target]) + further terms,   dX = dlogits W,   dW = dlogits^T X

That is three products of 2 R H V operations, with no recomputation. Beside them the buffer is written once and read a few times, about 10
bytes for each of the R V logits in 16 bits, against 6 H operations: under a tenth of the products' time from H = 1000 on, on any GPU with
fewer than 600 operations per byte. Chunks run in order and dW accumulates in fp32 (float64 for float64 input), so two runs give the
same bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields

import torch

from sani_dist.kernels.problem import Gradients, LossOfRows, Projection, Rows, Scores, ScoresOfRows, Terms, Wants


def loss_and_gradients(
    hidden: torch.Tensor,
    projection: Projection,
    rows: Rows,
    terms: Terms,
    wants: Wants,
    max_bytes: int,
    loss_of_rows: LossOfRows,
) -> Gradients:
    """Losses and wanted gradients, a chunk of at most `max_bytes` of fp32 logits at a time."""
    weight, bias, sums = projection.weight, projection.bias, rows.factors.dtype
    losses = torch.zeros_like(rows.factors)
    d_hidden = torch.zeros_like(hidden) if wants.hidden else None
    d_weight = torch.zeros(weight.shape, dtype=sums, device=weight.device) if wants.weight else None
    d_bias = torch.zeros(bias.shape, dtype=sums, device=bias.device) if bias is not None and wants.bias else None
    for part, x, logits in _chunks(hidden, projection, rows.index, max_bytes):
        losses[part] = loss_of_rows(logits, rows.part(part), projection.softcap, terms, any(wants))
        gradient = logits
        if d_bias is not None:
            d_bias += gradient.sum(dim=0, dtype=sums)
        if d_hidden is not None:
            d_hidden.index_add_(0, rows.index[part], gradient @ weight)
        if d_weight is not None:
            _add_product(d_weight, gradient.t(), x)
    return Gradients(
        losses,
        d_hidden,
        None if d_weight is None else d_weight.to(weight.dtype),
        None if d_bias is None or bias is None else d_bias.to(bias.dtype),
    )


def scores(
    hidden: torch.Tensor,
    projection: Projection,
    index: torch.Tensor,
    targets: torch.Tensor,
    top_k: int,
    moments: bool,
    max_bytes: int,
    scores_of_rows: ScoresOfRows,
) -> Scores:
    """Scores of the rows in `index`, a chunk at a time: memory beside the result does not grow with their number."""
    parts = [
        scores_of_rows(logits, targets[part], projection.softcap, top_k, moments)
        for part, _, logits in _chunks(hidden, projection, index, max_bytes)
    ]
    if not parts:
        empty = hidden.new_empty((0, projection.weight.shape[0]))
        return scores_of_rows(empty, targets, projection.softcap, top_k, moments)
    columns = ([getattr(part, f.name) for part in parts] for f in fields(Scores))
    return Scores(*(None if made[0] is None else torch.cat(made) for made in columns))  # type: ignore[arg-type]


def _chunks(
    hidden: torch.Tensor, projection: Projection, index: torch.Tensor, max_bytes: int
) -> Iterator[tuple[slice, torch.Tensor, torch.Tensor]]:
    """(which rows, their hidden states, their logits before soft-capping in a buffer that the next chunk reuses)."""
    weight, count = projection.weight, index.numel()
    vocabulary = weight.shape[0]
    chunk = max(1, max_bytes // (vocabulary * max(4, weight.element_size())))
    buffer = torch.empty((min(chunk, count), vocabulary), dtype=weight.dtype, device=weight.device)
    for first in range(0, count, chunk):
        part = slice(first, min(first + chunk, count))
        x = hidden[index[part]]
        logits = buffer[: x.shape[0]]
        if projection.bias is None:
            torch.mm(x, weight.t(), out=logits)
        else:
            torch.addmm(projection.bias, x, weight.t(), out=logits)
        yield part, x, logits


def _add_product(total: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> None:
    """total += a @ b, the sum over chunks in the precision of `total`."""
    if total.dtype == b.dtype:
        total.addmm_(a, b)
    elif total.is_cuda:
        # cuBLAS adds 16-bit products to fp32 sums: nothing is rounded between chunks, and no third matrix is written.
        torch.addmm(total, a, b, out_dtype=total.dtype, out=total)
    else:
        total.add_(a @ b)
