"""Loss of a chunk of logits with the divergence from another model beside it, around any implementation's own loss of rows.

The other model's distribution p is known at k tokens K, best ones first; what is left, r = 1 - sum of p over K, is one bucket, and so is
Q = 1 - sum of q over K of the model's own q = softmax(logits):

    KL = sum over K of p log(p / q) + r log(r / Q),      d KL / d logit_j = q_j - p_j in K,      q_j (1 - r / Q) elsewhere

The second is a multiple of the gradient of -log q at the target, which the implementation leaves in the place of the logits: one factor for
the whole row, then k + 1 values put right. The log-sum-exp is in its loss, so nothing is summed over the vocabulary again: beside the
implementation's passes that is one more over the chunk, and a few tensors [rows, k + 1].

A row of role AIM has the divergence alone. The implementation takes it for one to be learnt, which tells its log-sum-exp; then its own
loss is dropped, and its target is a token like any other.
"""

from __future__ import annotations

import torch

from sani_dist.kernels.problem import AIM, Implementation, Rows, Terms


def loss_of_rows(
    implementation: Implementation, logits: torch.Tensor, rows: Rows, softcap: float | None, terms: Terms, wants_gradient: bool
) -> torch.Tensor:  # fmt: skip
    """Losses [n] times their factors; the gradient with respect to the logits before soft-capping overwrites `logits`."""
    teacher, sums = rows.teacher, rows.factors.dtype
    assert teacher is not None
    columns = torch.cat([rows.targets.unsqueeze(1), teacher.ids], dim=1)  # [n, 1 + k]
    values = logits.gather(1, columns).to(sums)
    cap_slope = torch.ones_like(values)
    if softcap is not None:
        values = softcap * torch.tanh(values / softcap)
        cap_slope = 1 - (values / softcap) ** 2
    losses = implementation.loss_of_rows(logits, rows, softcap, terms, wants_gradient)
    # Rows that do not count, or are unlearnt, stay as they are: their loss does not tell the log-sum-exp.
    known = teacher.known & (rows.factors != 0)
    aimed = torch.zeros_like(known) if rows.roles is None else rows.roles == AIM
    own = torch.where(aimed, 0.0, 1.0).to(sums)  # what counts of the implementation's loss
    weight = known.to(sums) * torch.where(aimed, 1.0, teacher.weight).to(sums)
    factors = torch.where(known, rows.factors, 1.0)
    nll = torch.where(known, losses / factors, 0.0)
    logp = teacher.logprob.to(sums)
    logq = torch.where(known.unsqueeze(1), values - values[:, :1] - nll.unsqueeze(1), 0.0)
    # Sums of so few digits do not tell less than this from nothing.
    least = 8 * torch.finfo(sums).eps
    p, q = logp.exp(), logq[:, 1:].exp()
    rest = (1 - p.sum(dim=1)).clamp(min=0)
    own_rest = (1 - q.sum(dim=1)).clamp(min=least)
    apart = torch.where(p > 0, logp - logq[:, 1:], 0.0)  # p log p is 0 where p is 0
    divergence = (p * apart).sum(dim=1) + torch.xlogy(rest, rest) - rest * own_rest.log()
    losses = torch.where(aimed, 0.0, losses) + torch.where(known, weight * divergence * rows.factors, 0.0)
    if not wants_gradient:
        return losses
    elsewhere = 1 - rest / own_rest
    logits.mul_((own + weight * elsewhere).unsqueeze(1))
    is_target = teacher.ids == rows.targets.unsqueeze(1)
    q_target = (-nll).exp()
    pulled = torch.where(is_target.any(dim=1), q_target - (p * is_target).sum(dim=1), q_target * elsewhere)
    at_target = (own * torch.expm1(-nll) + weight * pulled).unsqueeze(1)  # q - 1 keeps its digits near q = 1
    among = torch.where(is_target, at_target, own.unsqueeze(1) * q + weight.unsqueeze(1) * (q - p))
    gradient = torch.cat([at_target, among], dim=1) * cap_slope * factors.unsqueeze(1)
    # Twice the same value where the target is among the k: no matter which is written last.
    logits.scatter_(1, columns, torch.where(known.unsqueeze(1), gradient.to(logits.dtype), logits.gather(1, columns)))
    return losses
