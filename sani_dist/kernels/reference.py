"""Loss and scores of a chunk of logits in plain torch, for any device and float dtype, float64 too: what the other implementations are
compared with."""

from __future__ import annotations

import math

import torch

from sani_dist.kernels.problem import UNLEARN, Rows, Scores, Terms


def loss_of_rows(
    logits: torch.Tensor, rows: Rows, softcap: float | None, terms: Terms, wants_gradient: bool
) -> torch.Tensor:
    """Losses [n] times their factors; the gradient with respect to the logits before soft-capping overwrites `logits`.

    Unlikelihood is -log(1 - p) (Welleck et al., arXiv 1908.04319), less its value at the floor, and 0 below that.
    """
    vocabulary, smoothing, factor = logits.shape[1], terms.label_smoothing, rows.factors
    values = _capped(logits, softcap, rows.factors.dtype)
    target = rows.targets.unsqueeze(1)
    cap_slope = None if softcap is None else 1 - (values / softcap) ** 2
    # Relative to the largest logit, so that -log p keeps its digits where p is near 1.
    largest = values.amax(dim=1)
    values = values - largest.unsqueeze(1)
    at_target = values.gather(1, target).squeeze(1)
    mean = values.mean(dim=1) if smoothing else None
    exp_target = values.exp_().gather(1, target).squeeze(1)
    # 1 - p is what the others have: as a difference it would lose its digits near p = 1, where a memorised token is.
    others = values.scatter_(1, target, 0).sum(dim=1).clamp(min=torch.finfo(values.dtype).tiny)
    total = others + exp_target
    p, logp, lse = exp_target / total, at_target - total.log(), largest + total.log()
    loss, slope, scale = -logp, -others / total, 1 / total  # slope: of the target; scale * exp(logit): of the others
    smooth = torch.zeros_like(loss)
    if mean is not None:
        loss = (1 - smoothing) * loss + smoothing * (total.log() - mean)
        smooth += smoothing
    if rows.roles is not None:
        unlearn, low = rows.roles == UNLEARN, p < terms.floor
        loss = torch.where(unlearn, (total.log() - others.log() + math.log1p(-terms.floor)).masked_fill(low, 0), loss)
        slope = torch.where(unlearn, p.masked_fill(low, 0), slope)
        scale = torch.where(unlearn, (-p / others).masked_fill(low, 0), scale)
        smooth = torch.where(unlearn, torch.zeros_like(smooth), smooth)
    loss = (
        loss + terms.z_loss * lse * lse
    ) * factor  # in this order: 0 times a square beyond all numbers would be none
    if not wants_gradient:
        return loss
    even = smooth / vocabulary
    gradient = values  # exp of the others' logits by now
    gradient *= ((scale + 2 * terms.z_loss * lse / total) * factor).unsqueeze(1)
    gradient.scatter_(1, target, ((slope + smooth + 2 * terms.z_loss * lse * p) * factor).unsqueeze(1))
    if smoothing:
        gradient -= (even * factor).unsqueeze(1)
    if cap_slope is not None:
        gradient *= cap_slope
    logits.copy_(gradient)
    return loss


def scores_of_rows(
    logits: torch.Tensor, targets: torch.Tensor, softcap: float | None, top_k: int, moments: bool
) -> Scores:
    """Scores of each row of logits [n, V]."""
    values = _capped(logits, softcap, precision(logits))
    target = targets.unsqueeze(1)
    at_target = values.gather(1, target)
    rank = (values > at_target).sum(dim=1, dtype=torch.int32)
    # Rank 0 is the arg-max but for ties, which go to the lowest id.
    lowest = (values == values.amax(dim=1, keepdim=True)).to(torch.uint8).argmax(dim=1) if len(values) else targets
    lse = torch.logsumexp(values, dim=1)
    logprob = torch.log_softmax(values, dim=1)
    # Read off the log-softmax, which subtracts the largest logit first: digits stay where p is near 1.
    at = logprob.gather(1, target).squeeze(1)
    top_ids = top_logprob = None
    if top_k:
        top_ids = top_of_rows(logits, softcap, top_k)[0]
        top_logprob = logprob.gather(1, top_ids).float()
    mean = std = None
    if moments:
        p = logprob.exp()
        finite = logprob.clamp(min=torch.finfo(logprob.dtype).min)  # p log p is 0 where p is 0
        mean = (p * finite).sum(dim=1)
        from_mean = torch.where(p > 0, finite - mean.unsqueeze(1), 0.0)  # whose square has no bound where p is 0
        std = (p * from_mean**2).sum(dim=1).sqrt()
    return Scores(
        at.float(), rank, lowest == targets, lse.float(), top_ids, top_logprob,
        mean_logprob=None if mean is None else mean.float(),
        std_logprob=None if std is None else std.float(),
    )  # fmt: skip


def top_of_rows(logits: torch.Tensor, softcap: float | None, top_k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids of the `top_k` largest logits of each row, best first, ties by the lowest id, and the logits, soft-capped in fp32 (float64)."""
    values = _capped(logits, softcap, precision(logits))
    if not len(values):
        return torch.empty((0, top_k), dtype=torch.int64, device=values.device), values[:, :top_k]
    # topk leaves open which of equal logits it returns, so it is asked for all that equal the last one, and those are sorted: 20 times
    # faster than sorting a vocabulary of 49152.
    last = values.topk(top_k, dim=1).values[:, -1:]
    most = max(top_k, int((values >= last).sum(dim=1).max()))
    found = values.topk(most, dim=1)
    ids, by_id = found.indices.sort(dim=1)
    best = found.values.gather(1, by_id).sort(dim=1, descending=True, stable=True)
    return ids.gather(1, best.indices)[:, :top_k].clone(), best.values[:, :top_k].clone()


def product(out: torch.Tensor, a: torch.Tensor, b: torch.Tensor, add: bool) -> None:
    """out [M, N] = a^T b, or `add` it to what is there, for a [K, M] and b [K, N]; summed in the precision of `out`."""
    a, b = a.t().to(out.dtype), b.to(out.dtype)
    if add:
        out.addmm_(a, b)
    else:
        torch.mm(a, b, out=out)


def precision(tensor: torch.Tensor) -> torch.dtype:
    """What is computed in: fp32, float64 for float64."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def _capped(logits: torch.Tensor, softcap: float | None, dtype: torch.dtype) -> torch.Tensor:
    values = logits.to(dtype)
    return values if softcap is None else softcap * torch.tanh(values / softcap)
