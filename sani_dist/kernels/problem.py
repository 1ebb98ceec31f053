"""What every implementation of the masked cross-entropy is given, and what it returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch

# Roles of a row: raise the probability of its target, lower it, or leave it out and draw the row to what a teacher predicts there.
LEARN, UNLEARN, AIM = 1, 2, 3


@dataclass(frozen=True)
class Projection:
    """From hidden states to logits: weight [V, H], bias [V] or None, soft-capping c * tanh(logits / c) or None."""

    weight: torch.Tensor
    bias: torch.Tensor | None
    softcap: float | None


@dataclass(frozen=True)
class Teacher:
    """What another model predicted.

    ids: int64 [R, k], the likeliest tokens of each row. logprob: [R, k], of these. known: bool [R], of which rows it is known. weight: of
    the divergence from it, beside the loss of a row of role LEARN; of a row of role AIM the divergence is the loss.
    """

    ids: torch.Tensor
    logprob: torch.Tensor
    known: torch.Tensor
    weight: float

    def part(self, part: slice) -> Teacher:
        """That of a run of rows."""
        return Teacher(self.ids[part], self.logprob[part], self.known[part], self.weight)

    def to(self, device: torch.device) -> Teacher:
        return Teacher(self.ids.to(device), self.logprob.to(device), self.known.to(device), self.weight)


@dataclass(frozen=True)
class Rows:
    """The rows that count: their place in the hidden states int64 [R], target int64 [R], role uint8 [R] (None: all LEARN), and the
    factor of each row's loss, [R] in the precision of the sums (fp32, or float64 for float64 input)."""

    index: torch.Tensor
    targets: torch.Tensor
    roles: torch.Tensor | None
    factors: torch.Tensor
    teacher: Teacher | None = None

    def part(self, part: slice) -> Rows:
        """A run of these rows."""
        roles = None if self.roles is None else self.roles[part]
        teacher = None if self.teacher is None else self.teacher.part(part)
        return Rows(self.index[part], self.targets[part], roles, self.factors[part], teacher)


@dataclass(frozen=True)
class Terms:
    """Further terms of the loss: factor of log-sum-exp squared; share of the target spread evenly over the vocabulary; probability under
    which unlikelihood leaves a target alone."""

    z_loss: float
    label_smoothing: float
    floor: float = 0.0


class Wants(NamedTuple):
    """Which gradients are asked for."""

    hidden: bool
    weight: bool
    bias: bool


class Gradients(NamedTuple):
    """Loss of each row times its factor [R], and the gradients of their sum, each None when not asked for."""

    losses: torch.Tensor
    hidden: torch.Tensor | None
    weight: torch.Tensor | None
    bias: torch.Tensor | None


@dataclass(frozen=True)
class Scores:
    """What an auditor asks of each target.

    logprob: natural-log probability, fp32 [R]. rank: number of strictly greater logits, int32 [R]. is_argmax: bool [R]; ties go to the
    lowest id. logsumexp: of the logits, fp32 [R]. Only if asked for: top_ids int64 [R, k] and top_logprob fp32 [R, k], best first;
    mean_logprob and std_logprob fp32 [R], of log p(z) over z drawn from p (what Min-K%++ normalises by).
    """

    logprob: torch.Tensor
    rank: torch.Tensor
    is_argmax: torch.Tensor
    logsumexp: torch.Tensor
    top_ids: torch.Tensor | None = None
    top_logprob: torch.Tensor | None = None
    mean_logprob: torch.Tensor | None = None
    std_logprob: torch.Tensor | None = None


class Implementation(Protocol):
    """A module with what is done between and beside the matrix products of a chunk."""

    def loss_of_rows(
        self, logits: torch.Tensor, rows: Rows, softcap: float | None, terms: Terms, wants_gradient: bool
    ) -> torch.Tensor:
        """Losses [n] times their factors; the gradient with respect to the logits [n, V] before soft-capping overwrites them."""

    def scores_of_rows(
        self, logits: torch.Tensor, targets: torch.Tensor, softcap: float | None, top_k: int, moments: bool
    ) -> Scores:
        """Scores of each row of logits [n, V], which it may overwrite."""

    def product(self, out: torch.Tensor, a: torch.Tensor, b: torch.Tensor, add: bool) -> None:
        """out [M, N] = a^T b, or `add` it to what is there, for a [K, M] and b [K, N]; summed in the precision of `out`."""
