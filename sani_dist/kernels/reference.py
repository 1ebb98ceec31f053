"""Chunked masked cross-entropy in plain torch, for any device and float dtype.

Rows that do not count are dropped before the matrix product, so cost and memory follow the rows that do. Logits live for one
chunk of rows only; their gradient is formed in their place, in the same pass, and multiplied out at once:

    d loss / d logit_j = a (p_j - [j = target]) + further terms,   dX = dlogits W,   dW = dlogits^T X

with a = 1 for -log p, and a = -p_t / (1 - p_t) for the unlikelihood -log(1 - p_t) (Welleck et al., arXiv 1908.04319). Chunks run in
order and dW accumulates in fp32 (float64 for float64 input), so two runs give the same bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch

LEARN, UNLEARN = 1, 2

# Logits of one chunk, in bytes, when the caller names no bound. 128 MiB holds 680 rows of a vocabulary of 49152 in fp32: enough rows for
# the matrix units to run full, few enough that the chunk is small beside the model.
DEFAULT_MAX_BYTES = 128 * 2**20


@dataclass(frozen=True)
class Scores:
    """What an auditor asks of each target: natural-log probability [R] fp32, rank int32 [R] (number of strictly greater logits),
    whether it is the arg-max (ties go to the lowest id) bool [R], log-sum-exp of the logits fp32 [R]."""

    logprob: torch.Tensor
    rank: torch.Tensor
    is_argmax: torch.Tensor
    logsumexp: torch.Tensor


@dataclass(frozen=True)
class _Terms:
    """The options of the loss, beside the tensors."""

    softcap: float | None
    z_loss: float
    label_smoothing: float
    chunk: int


def masked_cross_entropy(
    hidden: torch.Tensor,
    vocab_weight: torch.Tensor,
    targets: torch.Tensor,
    rows: torch.Tensor,
    *,
    roles: torch.Tensor | None = None,
    row_weights: torch.Tensor | None = None,
    normalizer: float | torch.Tensor = 1.0,
    bias: torch.Tensor | None = None,
    softcap: float | None = None,
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
    reduction: Literal["sum", "none"] = "sum",
    impl: Literal["auto", "reference"] = "auto",
    max_bytes: int | None = None,
) -> torch.Tensor:
    """Cross-entropy of the rows that count, and only of them.

    Args:
        hidden: [N, H] hidden states.
        vocab_weight: [V, H] output projection.
        targets: [R] token ids, one for each entry of `rows`.
        rows: int64 [R], indices into `hidden`.
        roles: uint8 [R], 1 = -log p (learn), 2 = -log(1 - p) (unlikelihood); None: all 1.
        row_weights: [R] factors; None: all 1.
        normalizer: divides the sum; known before the step, the number of learnable tokens of the global batch.
        bias: [V].
        softcap: logits become c * tanh(logits / c).
        z_loss: factor of log-sum-exp squared, added for each row.
        label_smoothing: share of the target spread evenly over the vocabulary.
        reduction: "sum" gives a scalar divided by `normalizer`, "none" gives [R], undivided.
        impl: "auto" and "reference" are the same until faster implementations exist.
        max_bytes: bound of the memory of one chunk of logits.

    Returns:
        The loss, in fp32 (float64 for float64 input). No row: 0, with zero gradients.

    Raises:
        ValueError: shapes, dtypes or targets that do not fit.
    """
    if impl not in ("auto", "reference"):
        raise ValueError(f"impl must be 'auto' or 'reference', not {impl!r}")
    if reduction not in ("sum", "none"):
        raise ValueError(f"reduction must be 'sum' or 'none', not {reduction!r}")
    _check(hidden, vocab_weight, targets, rows, bias)
    for name, tensor in (("roles", roles), ("row_weights", row_weights)):
        if tensor is not None and tensor.shape != rows.shape:
            raise ValueError(f"{name} must have the shape of rows, {tuple(rows.shape)}, not {tuple(tensor.shape)}")
    terms = _Terms(softcap, z_loss, label_smoothing, _chunk_rows(vocab_weight, max_bytes))
    loss: torch.Tensor = _MaskedCrossEntropy.apply(  # type: ignore[no-untyped-call]
        hidden,
        vocab_weight,
        bias,
        targets,
        rows,
        roles,
        row_weights,
        None if reduction == "none" else normalizer,
        terms,
    )
    return loss


@torch.no_grad()
def token_scores(
    hidden: torch.Tensor,
    vocab_weight: torch.Tensor,
    targets: torch.Tensor,
    rows: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    softcap: float | None = None,
    impl: Literal["auto", "reference"] = "auto",
    max_bytes: int | None = None,
) -> Scores:
    """Probability and rank of each target. Arguments as in `masked_cross_entropy`; memory does not grow with R."""
    if impl not in ("auto", "reference"):
        raise ValueError(f"impl must be 'auto' or 'reference', not {impl!r}")
    _check(hidden, vocab_weight, targets, rows, bias)
    count, chunk = rows.numel(), _chunk_rows(vocab_weight, max_bytes)
    logprob = torch.empty(count, dtype=torch.float32, device=hidden.device)
    logsumexp = torch.empty_like(logprob)
    rank = torch.empty(count, dtype=torch.int32, device=hidden.device)
    is_argmax = torch.empty(count, dtype=torch.bool, device=hidden.device)
    for part in _parts(count, chunk):
        logits = _logits(hidden[rows[part]], vocab_weight, bias, softcap)
        target = targets[part].unsqueeze(1)
        at_target = logits.gather(1, target)
        rank[part] = (logits > at_target).sum(dim=1, dtype=torch.int32)
        # Rank 0 is the arg-max but for ties, which go to the lowest id: only those rows are read once more.
        best = (rank[part] == 0).nonzero().squeeze(1)
        first = (logits[best] == at_target[best]).to(torch.uint8).argmax(dim=1)
        is_argmax[part] = False
        is_argmax[best + part.start] = first == targets[part][best]
        largest = logits.amax(dim=1, keepdim=True)
        log_total = logits.sub_(largest).exp_().sum(dim=1).log()
        logprob[part] = (at_target - largest).squeeze(1) - log_total
        logsumexp[part] = largest.squeeze(1) + log_total
    return Scores(logprob, rank, is_argmax, logsumexp)


class _MaskedCrossEntropy(torch.autograd.Function):
    """Loss and gradients in one pass over the chunks; backward only scales what forward has formed."""

    @staticmethod
    def forward(ctx: Any, hidden: Any, weight: Any, bias: Any, targets: Any, rows: Any, roles: Any, row_weights: Any, normalizer: Any, terms: Any) -> Any:  # fmt: skip # noqa: E501
        wants = ctx.needs_input_grad[:3]
        ctx.inputs = (targets, rows, roles, row_weights, terms)
        if normalizer is None:  # "none": each row has a factor of its own in backward, so the chunks run again there
            losses, *_ = _run(hidden, weight, bias, targets, rows, roles, row_weights, None, terms, (False,) * 3)
            ctx.save_for_backward(hidden, weight, bias)
            return losses
        losses, *gradients = _run(hidden, weight, bias, targets, rows, roles, row_weights, normalizer, terms, wants)
        ctx.save_for_backward(*gradients)
        ctx.summed = True
        return losses.sum()

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor) -> Any:  # type: ignore[override]
        if getattr(ctx, "summed", False):
            gradients = [g if g is None else g * upstream.to(g.dtype) for g in ctx.saved_tensors]
        else:
            hidden, weight, bias = ctx.saved_tensors
            targets, rows, roles, row_weights, terms = ctx.inputs
            factors = upstream if row_weights is None else upstream * row_weights.to(upstream.dtype)
            wants = ctx.needs_input_grad[:3]
            _, *gradients = _run(hidden, weight, bias, targets, rows, roles, factors, 1.0, terms, wants)
        return (*gradients, None, None, None, None, None, None)


def _run(hidden: Any, weight: Any, bias: Any, targets: Any, rows: Any, roles: Any, row_weights: Any, normalizer: Any, terms: _Terms, wants: tuple[bool, ...]) -> Any:  # fmt: skip # noqa: E501
    """Losses [R] (divided by the normalizer, if any) and the wanted gradients of their sum: dX, dW, dbias."""
    accumulate = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    losses = torch.zeros(rows.numel(), dtype=accumulate, device=hidden.device)
    d_hidden = torch.zeros_like(hidden) if wants[0] else None
    d_weight = torch.zeros(weight.shape, dtype=accumulate, device=weight.device) if wants[1] else None
    d_bias = torch.zeros(bias.shape, dtype=accumulate, device=bias.device) if bias is not None and wants[2] else None
    for part in _parts(rows.numel(), terms.chunk):
        x = hidden[rows[part]]
        logits = _logits(x, weight, bias, terms.softcap)
        factor = torch.ones(x.shape[0], dtype=accumulate, device=x.device)
        if row_weights is not None:
            factor = factor * row_weights[part].to(accumulate)
        if normalizer is not None:
            factor = factor / normalizer
        losses[part], gradient = _loss_and_gradient(
            logits, targets[part], None if roles is None else roles[part], factor, terms
        )
        if not any(wants):
            continue
        if d_bias is not None:
            d_bias += gradient.sum(dim=0)
        gradient = gradient.to(x.dtype)
        if d_hidden is not None:
            d_hidden.index_add_(0, rows[part], gradient @ weight)
        if d_weight is not None:
            d_weight.addmm_(gradient.t(), x) if d_weight.dtype == x.dtype else d_weight.add_(gradient.t() @ x)
    cast = (
        d_hidden,
        None if d_weight is None else d_weight.to(weight.dtype),
        None if d_bias is None else d_bias.to(bias.dtype),
    )
    return losses, *cast


def _loss_and_gradient(
    logits: torch.Tensor, targets: torch.Tensor, roles: torch.Tensor | None, factor: torch.Tensor, terms: _Terms
) -> tuple[torch.Tensor, torch.Tensor]:
    """Losses [rows], and the gradient with respect to the logits before soft-capping, which overwrites `logits`."""
    vocabulary, smoothing = logits.shape[1], terms.label_smoothing
    target = targets.unsqueeze(1)
    cap_slope = None if terms.softcap is None else 1 - (logits / terms.softcap) ** 2
    # Relative to the largest logit, so that -log p keeps its digits where p is near 1.
    largest = logits.amax(dim=1)
    logits.sub_(largest.unsqueeze(1))
    at_target = logits.gather(1, target).squeeze(1)
    mean = logits.mean(dim=1) if smoothing else None
    total = logits.exp_().sum(dim=1)
    logp = at_target - total.log()
    lse = largest + total.log()
    loss = -logp
    pull = torch.ones_like(logp)
    if mean is not None:
        loss = (1 - smoothing) * loss + smoothing * (total.log() - mean)
    unlearn = None if roles is None else roles == UNLEARN
    if unlearn is not None:
        # log(1 - p) through expm1 keeps its digits near p = 1; the clamp keeps p = 1 finite.
        rest = -torch.expm1(logp).clamp(max=-torch.finfo(logp.dtype).tiny)
        loss = torch.where(unlearn, -rest.log(), loss)
        pull = torch.where(unlearn, -logp.exp() / rest, pull)
    loss = loss + terms.z_loss * lse**2
    smooth = pull.new_zeros(()) if not smoothing else torch.where(pull == 1, pull * smoothing, 0 * pull)
    gradient = logits  # holds p * total by now
    gradient *= ((pull + 2 * terms.z_loss * lse) * factor / total).unsqueeze(1)
    gradient.scatter_add_(1, target, (-(pull - smooth) * factor).unsqueeze(1))
    if smoothing:
        gradient -= (smooth * factor / vocabulary).unsqueeze(1)
    if cap_slope is not None:
        gradient *= cap_slope
    return loss * factor, gradient


def _logits(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, softcap: float | None) -> torch.Tensor:
    """[rows, V] in fp32 (float64 for float64 input)."""
    logits = torch.nn.functional.linear(x, weight, bias)
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


def _parts(count: int, chunk: int) -> list[slice]:
    return [slice(first, min(first + chunk, count)) for first in range(0, count, chunk)]


def _chunk_rows(weight: torch.Tensor, max_bytes: int | None) -> int:
    itemsize = 8 if weight.dtype == torch.float64 else 4
    return max(1, (max_bytes or DEFAULT_MAX_BYTES) // (weight.shape[0] * itemsize))


def _check(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, rows: torch.Tensor, bias: Any) -> None:
    if hidden.dim() != 2 or weight.dim() != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(
            f"hidden [N, H] and vocab_weight [V, H] do not fit: {tuple(hidden.shape)}, {tuple(weight.shape)}"
        )
    if hidden.dtype != weight.dtype:
        raise ValueError(f"hidden is {hidden.dtype}, vocab_weight {weight.dtype}; both must have one dtype")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias must be [{weight.shape[0]}], not {tuple(bias.shape)}")
    if rows.dtype != torch.int64 or rows.dim() != 1 or targets.shape != rows.shape or targets.dtype != torch.int64:
        raise ValueError("rows and targets must be one-dimensional int64 tensors of one length")
    if hidden.device.type == "cpu" and rows.numel():  # on a GPU this would synchronise; there the gather itself asserts
        if int(rows.min()) < 0 or int(rows.max()) >= hidden.shape[0]:
            raise ValueError(f"rows must lie in [0, {hidden.shape[0]})")
        if int(targets.min()) < 0 or int(targets.max()) >= weight.shape[0]:
            raise ValueError(f"targets must lie in [0, {weight.shape[0]})")
