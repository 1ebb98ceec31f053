"""The divergence from another model, beside the loss or alone: against torch's own derivatives, in chunks, where a model knows by heart."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from sani_dist.kernels import Teacher, masked_cross_entropy, token_scores

from .test_masked_ce import case, definition, given_options

OPTIONS: list[dict[str, Any]] = [
    {}, {"softcap": 3.0}, {"bias": True}, {"roles": True, "floor": 0.1}, {"row_weights": True}, {"aim": True},
    {"softcap": 3.0, "bias": True, "roles": True, "row_weights": True}, {"softcap": 3.0, "bias": True, "aim": True, "row_weights": True},
]  # fmt: skip
WEIGHT = 0.7


def with_roles(options: dict[str, Any], counted: int, vocabulary: int) -> dict[str, Any]:
    """Tensors in place of the options that are only named; `aim`: rows of every role."""
    made = given_options(options, counted, vocabulary)
    if made.pop("aim", False):
        made["roles"] = torch.arange(counted, dtype=torch.uint8) % 3 + 1
    return made


def teacher_of(hidden: torch.Tensor, targets: torch.Tensor, rows: torch.Tensor, vocabulary: int, top: int, **options: Any) -> Teacher:  # fmt: skip # noqa: E501
    """What a model with another projection predicts at all rows but the first and those that are unlearnt."""
    other = case(1, hidden.shape[1], vocabulary, 1, hidden.dtype, seed=9)[1]
    found = token_scores(hidden.detach(), other.detach(), targets, rows, top_k=top)
    assert found.top_ids is not None
    assert found.top_logprob is not None
    known = torch.ones(len(rows), dtype=torch.bool) if options.get("roles") is None else options["roles"] != 2
    known[0] = False
    return Teacher(found.top_ids, found.top_logprob, known, WEIGHT)


def divergence(hidden: torch.Tensor, weight: torch.Tensor, rows: torch.Tensor, teacher: Teacher, bias: Any = None, softcap: float | None = None) -> torch.Tensor:  # fmt: skip # noqa: E501
    """[R], by torch's own functions, of the tokens that are named and one for all others."""
    logits = F.linear(hidden[rows], weight, bias)
    logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    p, q = teacher.logprob.double().exp(), logits.softmax(dim=1)
    p = torch.cat([p, (1 - p.sum(dim=1, keepdim=True)).clamp(min=0)], dim=1)
    q = torch.cat([q.gather(1, teacher.ids), q.scatter(1, teacher.ids, 0).sum(dim=1, keepdim=True)], dim=1)
    return torch.where(teacher.known, (torch.xlogy(p, p) - torch.xlogy(p, q)).sum(dim=1), 0.0)


def defined(loss: torch.Tensor, divergence: torch.Tensor, roles: torch.Tensor | None) -> torch.Tensor:
    """[R]: the loss and the divergence from the teacher; of rows to be drawn to it the divergence alone."""
    return (
        loss + WEIGHT * divergence if roles is None else torch.where(roles == 3, divergence, loss + WEIGHT * divergence)
    )


@pytest.mark.parametrize("reduction", ["sum", "none"])
@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "+".join(o) or "plain")
def test_gradients_are_the_derivatives(options: dict[str, Any], reduction: str) -> None:
    hidden, weight, targets, rows = case(9, 3, 11, 7)
    made = with_roles(options, 7, 11)
    if "row_weights" in made:
        made["row_weights"][2] = 0
    teacher = teacher_of(hidden, targets, rows, 11, 4, **made)
    named = (teacher.ids == targets[:, None]).any(dim=1)
    assert 0 < int(named.sum()) < 7  # the target among the likeliest, and not
    bias = made.pop("bias", None)
    inputs = [hidden, weight] + ([bias] if bias is not None else [])

    def loss(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        return masked_cross_entropy(
            hidden, weight, targets, rows, bias=bias, normalizer=3.5, reduction=reduction, max_bytes=200, teacher=teacher, **made
        )  # fmt: skip

    assert torch.autograd.gradcheck(loss, inputs)


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "+".join(o) or "plain")
def test_the_loss_is_what_it_is_defined_to_be(options: dict[str, Any]) -> None:
    hidden, weight, targets, rows = case(29, 5, 37, 17)
    made = with_roles(options, 17, 37)
    teacher = teacher_of(hidden, targets, rows, 37, 6, **made)
    shaped = {name: made[name] for name in ("bias", "softcap") if name in made}
    row_weights = made.pop("row_weights", torch.ones(17, dtype=torch.float64))
    alone = definition(hidden, weight, targets, rows, **made)
    expected = row_weights * defined(alone, divergence(hidden, weight, rows, teacher, **shaped), made.get("roles"))
    made["row_weights"] = row_weights
    found = masked_cross_entropy(
        hidden, weight, targets, rows, reduction="none", max_bytes=37 * 8 * 4, teacher=teacher, **made
    )
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)  # the teacher's are in fp32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [0.3, 4.0])
@pytest.mark.parametrize("aimed", [False, True])
def test_no_further_from_the_truth_than_torch_in_the_same_precision(
    dtype: torch.dtype, scale: float, aimed: bool
) -> None:
    """At a scale of 4 most rows have a token of p > .99, as text has that is known by heart; `aimed`: every other row is drawn."""
    hidden, weight, targets, rows = case(40, 24, 97, 31, dtype, scale)
    teacher = teacher_of(hidden, targets, rows, 97, 8)
    roles = (1 + 2 * (torch.arange(31) % 2)).to(torch.uint8) if aimed else None

    def by_torch(precision: torch.dtype) -> list[torch.Tensor]:
        x, w = (t.detach().to(precision).requires_grad_() for t in (hidden, weight))
        loss = F.cross_entropy(F.linear(x[rows], w), targets, reduction="none")
        loss = defined(loss, divergence(x, w, rows, teacher), roles).sum()
        return [loss.detach(), *torch.autograd.grad(loss, (x, w))]

    loss = masked_cross_entropy(hidden, weight, targets, rows, max_bytes=9 * 97 * 4, teacher=teacher, roles=roles)
    found = [loss.detach(), *torch.autograd.grad(loss, (hidden, weight))]
    truth, usual = by_torch(torch.float64), by_torch(dtype)
    for ours, theirs, true in zip(found, usual, truth, strict=True):
        # Rounded once more; and what is left for the tokens that are not named is known to 8 roundings of fp32.
        more = (2 * torch.finfo(dtype).eps + 64 * torch.finfo(torch.float32).eps) * float(true.abs().max())
        # Where nothing is left for them, torch's derivative is NaN.
        usual_error = float((theirs.double() - true).abs().nan_to_num(0).max())
        assert float((ours.double() - true).abs().max()) <= usual_error + more


@pytest.mark.parametrize("scale", [0.3, 8.0])
def test_a_model_does_not_diverge_from_itself(scale: float) -> None:
    """At a scale of 8 nothing is left for the tokens that are not named."""
    hidden, weight, targets, rows = case(23, 16, 51, 19, torch.float32, scale)
    found = token_scores(hidden, weight, targets, rows, top_k=5)
    assert found.top_ids is not None
    assert found.top_logprob is not None
    teacher = Teacher(found.top_ids, found.top_logprob, torch.ones(19, dtype=torch.bool), 1.0)
    losses, gradients = [], []
    for given in (None, teacher):
        loss = masked_cross_entropy(hidden, weight, targets, rows, teacher=given)
        losses.append(loss.item())
        gradients.append(torch.autograd.grad(loss, (hidden, weight)))
    assert losses[1] == pytest.approx(losses[0], abs=2e-4)
    for alone, taught in zip(*gradients, strict=True):
        torch.testing.assert_close(taught, alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("taught", [False, True])
def test_a_row_to_be_drawn_is_left_alone_where_nobody_says_to_what(taught: bool) -> None:
    """Its target is a true value: it must not be learnt for want of a teacher."""
    hidden, weight, targets, rows = case(12, 4, 17, 5, torch.float32)
    teacher = (
        replace(teacher_of(hidden, targets, rows, 17, 3), known=torch.zeros(5, dtype=torch.bool)) if taught else None
    )
    roles = torch.full((5,), 3, dtype=torch.uint8)
    loss = masked_cross_entropy(hidden, weight, targets, rows, teacher=teacher, roles=roles)
    assert loss.item() == 0
    assert not any(g.any() for g in torch.autograd.grad(loss, (hidden, weight)))


def test_what_is_drawn_ends_at_the_teacher_and_not_below() -> None:
    """From a model that is sure of the true token: descent on the logits of a row ends where the teacher's probabilities are."""
    logits = torch.tensor([[12.0, 1.0, 0.0, 0.5, -1.0, 0.0]]).requires_grad_()
    ids, p = torch.tensor([[1, 3]]), torch.tensor([[0.6, 0.3]])
    teacher = Teacher(ids, p.log(), torch.ones(1, dtype=torch.bool), 0.0)
    one, first = torch.zeros(1, dtype=torch.int64), torch.tensor([3], dtype=torch.uint8)
    for _ in range(1000):
        loss = masked_cross_entropy(torch.ones(1, 1), logits.t(), one, one, teacher=teacher, roles=first)
        (slope,) = torch.autograd.grad(loss, logits)
        logits = (logits - 2 * slope).detach().requires_grad_()
    found = logits.softmax(dim=1)[0]
    torch.testing.assert_close(found[ids[0]], p[0], rtol=0.02, atol=0)
    assert 0.01 < found[0] < 0.1  # of what the others have together


def test_what_does_not_count_is_not_read_and_no_row_is_no_loss() -> None:
    hidden, weight, targets, rows = case(12, 4, 17, 5, torch.float32)
    teacher = teacher_of(hidden, targets, rows, 17, 3)
    with torch.no_grad():
        hidden[[i for i in range(12) if i not in rows]] = math.nan
    loss = masked_cross_entropy(hidden, weight, targets, rows, teacher=teacher)
    gradients = torch.autograd.grad(loss, (hidden, weight))
    assert all(g.isfinite().all() for g in (loss, *gradients))
    none = masked_cross_entropy(hidden, weight, targets[:0], rows[:0], teacher=teacher.part(slice(0)))
    assert none.item() == 0
    assert not any(g.any() for g in torch.autograd.grad(none, (hidden, weight)))


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({}, {"z_loss": 0.1}, "neither z_loss nor label_smoothing"),
        ({}, {"label_smoothing": 0.1}, "neither z_loss nor label_smoothing"),
        ({"known": torch.ones(3, dtype=torch.bool)}, {}, r"known \[5\]"),
        ({"logprob": torch.zeros(5, 2)}, {}, r"logprob \[5, k\]"),
        ({"ids": torch.zeros(5, 3, dtype=torch.int32)}, {}, "ids int64"),
    ],
)
def test_a_teacher_that_does_not_fit(changes: dict[str, Any], options: dict[str, Any], message: str) -> None:
    hidden, weight, targets, rows = case(12, 4, 17, 5)
    teacher = replace(teacher_of(hidden, targets, rows, 17, 3), **changes)
    with pytest.raises(ValueError, match=message):
        masked_cross_entropy(hidden, weight, targets, rows, teacher=teacher, **options)
