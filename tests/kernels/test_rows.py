"""What is done between the matrix products of a chunk, against float64: the CPU's C++ here, and the Triton kernels where `test_triton.py`
runs this file under Triton's interpreter.

The interpreter executes the kernels with numpy, so what is tested is their arithmetic and their masks; it rounds bf16 towards zero where a
GPU rounds to nearest, which is why a whole unit in the last place is allowed there.
"""

from __future__ import annotations

import math
import os
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from sani_dist.kernels import Teacher, distillation, masked_cross_entropy, token_scores
from sani_dist.kernels.problem import AIM, LEARN, UNLEARN, Implementation, Rows, Terms

TRITON = os.environ.get("TRITON_INTERPRET") == "1"
if TRITON:
    from sani_dist.kernels import triton_rows

    implementation: Implementation = triton_rows
else:
    from sani_dist.kernels import cpu_rows

    implementation = cpu_rows
NAME: Any = "triton" if TRITON else "cpu"

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
LAST_PLACE = {torch.float32: 2.0**-23, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}
# Of the terms that are added up: a few roundings of fp32.
ROUNDING = 2.0**-21


def chunk(
    count: int, vocabulary: int, dtype: torch.dtype, scale: float, seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """logits, targets; some logits equal."""
    draw = torch.Generator().manual_seed(seed)
    logits = torch.randn(count, vocabulary, generator=draw, dtype=torch.float64) * scale
    equal = torch.rand(count, vocabulary, generator=draw) < 0.2
    logits[equal] = scale
    return logits.to(dtype), torch.randint(vocabulary, (count,), generator=draw)


def capped(logits: torch.Tensor, softcap: float | None) -> torch.Tensor:
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


def definition(logits: torch.Tensor, rows: Rows, softcap: float | None, terms: Terms) -> torch.Tensor:
    """Losses [n] by torch's functions, in the dtype of the logits. 1 - p is the share of the tokens that are not the target; of what is
    unlearnt, only what is above the floor counts."""
    values = capped(logits, softcap)
    lse = values.logsumexp(dim=1)
    loss = F.cross_entropy(values, rows.targets, reduction="none", label_smoothing=terms.label_smoothing)
    if rows.roles is not None:
        others = values.masked_fill(F.one_hot(rows.targets, logits.shape[1]).bool(), -torch.inf)
        unlikelihood = F.relu(lse - others.logsumexp(dim=1) + math.log1p(-terms.floor))
        loss = torch.where(rows.roles == UNLEARN, unlikelihood if terms.floor else lse - others.logsumexp(dim=1), loss)
    return (loss + terms.z_loss * lse**2) * rows.factors.to(logits.dtype)


def by_torch(
    logits: torch.Tensor, rows: Rows, softcap: float | None, terms: Terms
) -> tuple[torch.Tensor, torch.Tensor]:
    """Losses and gradient."""
    logits = logits.clone().requires_grad_()
    losses = definition(logits, rows, softcap, terms)
    return losses.detach(), torch.autograd.grad(losses.sum(), logits)[0]


def compare_loss(logits: torch.Tensor, rows: Rows, softcap: float | None, terms: Terms) -> None:
    """Error against float64 at most that of torch in fp32 and one rounding."""
    dtype, vocabulary = logits.dtype, logits.shape[1]
    truth, true_gradient = by_torch(logits.double(), rows, softcap, terms)
    same, same_gradient = by_torch(logits.float(), rows, softcap, terms)
    gradient = logits.clone()
    losses = implementation.loss_of_rows(gradient, rows, softcap, terms, True)
    assert losses.dtype == torch.float32
    assert gradient.dtype == dtype
    only_loss = logits.clone()
    assert torch.equal(implementation.loss_of_rows(only_loss, rows, softcap, terms, False), losses)
    assert torch.equal(only_loss, logits)

    values = capped(logits.double(), softcap)
    lse, largest = values.logsumexp(dim=1), values.abs().amax(dim=1)
    size = rows.factors * (1 + largest + math.log(vocabulary) + terms.z_loss * lse**2)
    assert (excess(losses, truth, same) <= ROUNDING * size).all()
    p_and_target = values.softmax(dim=1) + F.one_hot(rows.targets, vocabulary) + terms.label_smoothing / vocabulary
    # p = exp(difference of logits): no difference beyond 100 matters.
    relative = rows.factors * (1 + largest.clamp(max=100)) * (1 + 2 * terms.z_loss * lse.abs())
    # With a soft cap, 1 - (logit / cap)^2 is a difference of numbers near 1; unlikelihood moves the others by more than their p.
    slope = 1.0 if softcap is None else (1 - (values / softcap) ** 2).clamp(min=1e-9)
    sizes = relative.unsqueeze(1) * p_and_target + true_gradient.abs() / slope
    # Numbers below the normal ones: fp16 has a grid there; of the others the interpreter makes nothing sensible.
    smallest = torch.finfo(dtype).smallest_normal * (LAST_PLACE[dtype] if dtype == torch.float16 else 1)
    # An exponential below them may come out as 0, and the z-loss multiplies it.
    flushed = smallest * (1 + 2 * terms.z_loss * lse.abs()).unsqueeze(1)
    allowed = ROUNDING * sizes + LAST_PLACE[dtype] * true_gradient.abs() + flushed
    assert (excess(gradient, true_gradient, same_gradient.to(dtype)) <= allowed).all()


def excess(found: torch.Tensor, truth: torch.Tensor, same: torch.Tensor) -> torch.Tensor:
    """By how much `found` is further from the truth than `same` is."""
    error, allowed = (found.double() - truth).abs(), (same.double() - truth).abs()
    return (error - torch.where(allowed.isfinite(), allowed, 0.0)).clamp(min=0)


@st.composite
def problems(draw: Any) -> tuple[torch.Tensor, Rows, float | None, Terms]:
    count = draw(st.integers(1, 3))
    vocabulary = draw(st.one_of(st.integers(2, 70), st.sampled_from([127, 500, 513, 1000, 2049])))
    dtype, seed = draw(st.sampled_from(DTYPES)), draw(st.integers(0, 10**6))
    logits, targets = chunk(count, vocabulary, dtype, draw(st.sampled_from([0.0, 1e-3, 1.0, 30.0, 1e4])), seed)
    generator = torch.Generator().manual_seed(seed)
    roles = torch.randint(LEARN, UNLEARN + 1, (count,), generator=generator, dtype=torch.uint8)
    rows = Rows(
        torch.arange(count), targets, roles if draw(st.booleans()) else None, torch.rand(count, generator=generator)
    )
    # No probability of equal logits is at one of the floors, where rounding would decide.
    floor = draw(st.sampled_from([0.0, 0.0123, 0.4]))
    terms = Terms(draw(st.sampled_from([0.0, 1e-4, 0.1])), draw(st.sampled_from([0.0, 0.1])), floor)
    return logits, rows, draw(st.sampled_from([None, 2.0, 30.0])), terms


@given(problems())
@settings(max_examples=150, deadline=None)
def test_loss_and_gradient_are_no_further_from_float64_than_torch(
    problem: tuple[torch.Tensor, Rows, float | None, Terms],
) -> None:
    compare_loss(*problem)


@given(
    count=st.integers(1, 4), vocabulary=st.one_of(st.integers(3, 70), st.sampled_from([500, 1000, 2049])), top=st.integers(1, 2),
    dtype=st.sampled_from(DTYPES), scale=st.sampled_from([0.0, 1e-3, 1.0, 3.0]), seed=st.integers(0, 10**6),
    softcap=st.sampled_from([None, 30.0]), weight=st.sampled_from([0.0, 0.5, 3.0]),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_beside_a_teacher_loss_and_gradient_are_those_of_float64(
    count: int,
    vocabulary: int,
    top: int,
    dtype: torch.dtype,
    scale: float,
    seed: int,
    softcap: float | None,
    weight: float,
) -> None:
    """Rows of every role; those that are unlearnt, and some others, know no teacher. AIM: the divergence alone, whatever the target."""
    logits, targets = chunk(count, vocabulary, dtype, scale, seed)
    draw = torch.Generator().manual_seed(seed)
    named = torch.randn(count, vocabulary, generator=draw).mul(3).log_softmax(dim=1).topk(top, dim=1)
    roles = torch.randint(LEARN, AIM + 1, (count,), generator=draw, dtype=torch.uint8)
    known = (torch.rand(count, generator=draw) < 0.8) & (roles != UNLEARN)
    rows = Rows(
        torch.arange(count), targets, roles, torch.rand(count, generator=draw), Teacher(named.indices, named.values, known, weight)
    )  # fmt: skip
    terms = Terms(0.0, 0.0)

    x = logits.double().requires_grad_()
    log_q = capped(x, softcap).log_softmax(dim=1)
    p = named.values.double().exp()
    left = (1 - p.sum(dim=1)).clamp(min=0)
    log_left = log_q.scatter(1, named.indices, -torch.inf).logsumexp(dim=1)
    assume((log_left > -12).all())  # below that it is nothing to sums in fp32
    divergence = (p * (p.log() - log_q.gather(1, named.indices))).sum(dim=1) + torch.xlogy(left, left) - left * log_left
    divergence = torch.where(known, divergence, 0.0) * rows.factors
    own = definition(x, Rows(rows.index, targets, roles, rows.factors), softcap, terms)
    truth = torch.where(roles == AIM, divergence, own + weight * divergence)
    (true_gradient,) = torch.autograd.grad(truth.sum(), x)

    gradient = logits.clone()
    losses = distillation.loss_of_rows(implementation, gradient, rows, softcap, terms, True)
    only_loss = logits.clone()
    assert torch.equal(distillation.loss_of_rows(implementation, only_loss, rows, softcap, terms, False), losses)
    size = rows.factors * (1 + weight) * (1 + logits.double().abs().amax(dim=1) + math.log(vocabulary))
    # What is left for the tokens that are not named is known to a few roundings of 1.
    allowed = (ROUNDING * (1 + left / log_left.detach().exp()) * size).unsqueeze(1)
    assert ((losses.double() - truth).abs() <= allowed[:, 0]).all()
    error = (gradient.double() - true_gradient).abs()
    subnormal = (
        torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    )  # the step of what is too small for a last place
    assert (error <= allowed + 2 * LAST_PLACE[dtype] * true_gradient.abs() + subnormal).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocabulary", [8192, 8193, 20011])
def test_rows_of_more_than_one_tile(dtype: torch.dtype, vocabulary: int) -> None:
    for softcap in (None, 30.0):
        assert not TRITON or vocabulary > 2 * triton_rows.launch(vocabulary, dtype, True).lanes
        logits, targets = chunk(2, vocabulary, dtype, 3.0, 0)
        roles = torch.tensor([LEARN, UNLEARN], dtype=torch.uint8)
        rows = Rows(torch.arange(2), targets, roles, torch.tensor([1.0, 0.5]))
        compare_loss(logits, rows, softcap, Terms(1e-4, 0.1))
        compare_scores(logits, targets, softcap)


@pytest.mark.parametrize("odds", [-1e4, -200.0, -90.0, -30.0, -3.0, 0.0, 3.0, 18.0, 30.0, 90.0, 200.0, 1e4])
def test_digits_stay_however_sure_the_model_is(odds: float) -> None:
    """A logit of `odds` against five of 0: p / (1 - p) = exp(odds) / 5. Relative errors, where torch in fp32 gives 0 or infinity."""
    logits = torch.zeros(2, 6)
    logits[:, 4] = odds
    rows = Rows(torch.arange(2), torch.tensor([4, 4]), torch.tensor([LEARN, UNLEARN], dtype=torch.uint8), torch.ones(2))
    losses = implementation.loss_of_rows(logits, rows, None, Terms(0.0, 0.0), True)
    exact = torch.tensor(odds, dtype=torch.float64) - torch.tensor(5.0, dtype=torch.float64).log()
    p, q = exact.sigmoid(), (-exact).sigmoid()
    smallest = torch.finfo(torch.float32).tiny
    zero = torch.zeros(2, dtype=torch.float64)
    true_losses = torch.logaddexp(zero, torch.stack([-exact, exact]))
    torch.testing.assert_close(losses.double(), true_losses, rtol=1e-5, atol=smallest)
    expected = torch.stack([q / 5, -p / 5]).repeat(6, 1).t().clone()
    expected[:, 4] = torch.stack([-q, p])
    torch.testing.assert_close(logits.double(), expected, rtol=1e-5, atol=smallest)


@pytest.mark.parametrize("dtype", DTYPES)
def test_below_the_floor_a_target_is_left_alone(dtype: torch.dtype) -> None:
    """Loss and slope are exact zeros there, and go on without a step above; what is learnt knows no floor."""
    logits = torch.zeros(4, 6, dtype=dtype)
    logits[:, 4] = torch.tensor([-3.0, 0.0, 0.0, 3.0], dtype=dtype)  # p = .01, 1/6, 1/6, .8
    roles = torch.tensor([UNLEARN, UNLEARN, LEARN, UNLEARN], dtype=torch.uint8)
    rows = Rows(torch.arange(4), torch.full((4,), 4), roles, torch.ones(4))
    free, held = logits.clone(), logits.clone()
    without = implementation.loss_of_rows(free, rows, None, Terms(0.0, 0.0), True)
    losses = implementation.loss_of_rows(held, rows, None, Terms(0.0, 0.0, 0.2), True)
    assert losses[:2].tolist() == [0.0, 0.0]
    assert not held[:2].any()
    assert losses[2] == without[2]
    assert losses[3].item() == pytest.approx(without[3].item() + math.log(0.8), rel=1e-6)
    assert torch.equal(held[2:], free[2:])
    below, above = (Terms(0.0, 0.0, (1 + shift) / 6) for shift in (1e-5, -1e-5))
    ends = [implementation.loss_of_rows(logits.clone(), rows, None, terms, False)[1].item() for terms in (below, above)]
    assert ends == [0.0, pytest.approx(2e-6, rel=0.1)]


def compare_scores(logits: torch.Tensor, targets: torch.Tensor, softcap: float | None, top_k: int = 3) -> None:
    """Against float64; ranks where the soft cap leaves different logits different."""
    values, same_values = capped(logits.double(), softcap), capped(logits.float(), softcap)
    logprobs = values.log_softmax(dim=1)
    found = implementation.scores_of_rows(logits.clone(), targets, softcap, min(top_k, logits.shape[1]), True)
    at = targets.unsqueeze(1)
    truth = logprobs.gather(1, at).squeeze(1)
    same = same_values.log_softmax(dim=1).gather(1, at).squeeze(1)
    size = float(1 + values.abs().max() + math.log(logits.shape[1]))
    tolerance: dict[str, Any] = {"rtol": 0.0, "atol": ROUNDING * size}
    zero = torch.zeros_like(truth)
    torch.testing.assert_close(excess(found.logprob, truth, same), zero, **tolerance)
    torch.testing.assert_close(
        excess(found.logsumexp, values.logsumexp(dim=1), same_values.logsumexp(dim=1)), zero, **tolerance
    )
    p = logprobs.exp()
    mean = (p * logprobs).sum(dim=1)
    std = (p * (logprobs - mean.unsqueeze(1)) ** 2).sum(dim=1).sqrt()
    assert found.mean_logprob is not None
    assert found.std_logprob is not None
    torch.testing.assert_close(found.mean_logprob.double(), mean, rtol=1e-5, atol=ROUNDING * min(size, 100))
    torch.testing.assert_close(found.std_logprob.double(), std, rtol=1e-4, atol=ROUNDING * min(size, 100))
    assert found.top_ids is not None
    assert found.top_logprob is not None
    torch.testing.assert_close(found.top_logprob.double(), logprobs.gather(1, found.top_ids), **tolerance)
    if softcap is None or logits.abs().max() < 2 * softcap:
        assert found.rank.tolist() == (logits > logits.gather(1, at)).sum(dim=1).tolist()
        first_best = (logits == logits.amax(dim=1, keepdim=True)).int().argmax(dim=1)
        assert found.is_argmax.tolist() == (first_best == targets).tolist()
        order = torch.sort(logits, dim=1, descending=True, stable=True).indices[:, : found.top_ids.shape[1]]
        assert torch.equal(found.top_ids, order)


@given(
    count=st.integers(1, 3), vocabulary=st.one_of(st.integers(1, 70), st.sampled_from([127, 500, 1000, 2049])),
    dtype=st.sampled_from(DTYPES), scale=st.sampled_from([0.0, 1e-3, 1.0, 30.0, 1e4]), seed=st.integers(0, 10**6),
    softcap=st.sampled_from([None, 2.0, 30.0]), whole=st.booleans(),
)  # fmt: skip
@settings(max_examples=120, deadline=None)
def test_scores_are_no_further_from_float64_than_torch(
    count: int, vocabulary: int, dtype: torch.dtype, scale: float, seed: int, softcap: float | None, whole: bool
) -> None:
    """`whole`: whole numbers, so that many logits are equal. Half of the targets are the likeliest token."""
    logits, targets = chunk(count, vocabulary, dtype, scale, seed)
    logits = logits.round() if whole else logits
    if seed % 2:
        targets = logits.argmax(dim=1)
    compare_scores(logits, targets, softcap)


def test_one_token_is_certain() -> None:
    logits = torch.tensor([[3.0], [-2.0]])
    rows = Rows(
        torch.arange(2), torch.zeros(2, dtype=torch.int64), torch.tensor([1, 2], dtype=torch.uint8), torch.ones(2)
    )
    scores = implementation.scores_of_rows(logits, rows.targets, None, 1, True)
    losses = implementation.loss_of_rows(logits, rows, None, Terms(0.1, 0.0), True)
    assert losses[0] == pytest.approx(0.9)  # the z-loss of log-sum-exp 3
    assert torch.isfinite(losses).all()
    assert torch.isfinite(logits).all()
    assert scores.logprob.tolist() == [0.0, 0.0]
    assert scores.logsumexp.tolist() == [3.0, -2.0]
    assert scores.std_logprob is not None
    assert scores.std_logprob.tolist() == [0.0, 0.0]


def test_impossible_tokens() -> None:
    """Logits of -inf, as a bias may give: no NaN, and a loss of infinity only where such a token is to be learnt."""
    logits = torch.tensor([[0.0, -torch.inf, 1.0, -torch.inf]]).repeat(3, 1)
    rows = Rows(torch.arange(3), torch.tensor([0, 1, 1]), torch.tensor([1, 1, 2], dtype=torch.uint8), torch.ones(3))
    scores = implementation.scores_of_rows(logits.clone(), rows.targets, None, 2, True)
    gradient = logits.clone()
    losses = implementation.loss_of_rows(gradient, rows, None, Terms(0.0, 0.0), True)
    expected = F.cross_entropy(logits.double(), rows.targets, reduction="none")
    assert losses.tolist() == [pytest.approx(expected[0].item()), torch.inf, 0.0]
    p = logits.double().softmax(dim=1)
    targets_of = F.one_hot(rows.targets, 4)
    torch.testing.assert_close(gradient.double(), (p - targets_of) * torch.tensor([[1.0], [1.0], [0.0]]))
    torch.testing.assert_close(
        scores.logprob.double(), logits.double().log_softmax(1).gather(1, rows.targets[:, None])[:, 0]
    )
    assert scores.rank.tolist() == [1, 2, 2]
    mean = (p[0] * p[0].log()).nansum()
    assert scores.mean_logprob is not None
    torch.testing.assert_close(scores.mean_logprob.double(), mean.expand(3))


# On CPUs the public functions look at the targets beforehand.
@pytest.mark.parametrize("where", ["logit", "target's logit", *(["target"] if TRITON else [])])
def test_what_is_no_number_comes_out_as_such(where: str) -> None:
    """A target outside the vocabulary cannot be looked at on a GPU beforehand: it must not read other memory."""
    logits, targets = torch.zeros(2, 5), torch.tensor([3, 3])
    if where == "target":
        targets[0] = 5
    else:
        logits[0, 3 if where == "target's logit" else 1] = torch.nan
    rows = Rows(torch.arange(2), targets, None, torch.ones(2))
    scores = implementation.scores_of_rows(logits.clone(), targets, None, 0, False)
    losses = implementation.loss_of_rows(logits, rows, None, Terms(0.0, 0.0), True)
    for found in (losses, scores.logprob, scores.logsumexp):
        assert found.isnan().tolist() == [True, False]
    if where != "logit":
        assert scores.is_argmax.tolist() == [False, False]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_public_functions_agree_with_the_reference(dtype: torch.dtype) -> None:
    """In chunks, some rows masked by NaN, roles and weights given as every second element of longer tensors."""
    draw = torch.Generator().manual_seed(0)
    hidden = torch.randn(9, 6, generator=draw).to(dtype)
    weight = torch.randn(37, 6, generator=draw).to(dtype).requires_grad_()
    rows = torch.tensor([0, 2, 3, 5, 8])
    masked = torch.tensor([1, 4, 6, 7])
    hidden[masked] = torch.nan
    hidden.requires_grad_()
    targets = torch.randint(37, (10,), generator=draw)[::2]
    options: dict[str, Any] = {
        "roles": torch.tensor([1, 0, 2, 0, 1, 0, 2, 0, 1, 0], dtype=torch.uint8)[::2],
        "row_weights": torch.rand(10, generator=draw)[::2], "normalizer": 5.0, "z_loss": 0.01, "label_smoothing": 0.1,
        "softcap": 20.0, "max_bytes": 2 * 37 * 4,
    }  # fmt: skip
    results = []
    for impl in (NAME, NAME, "reference"):
        loss = masked_cross_entropy(hidden, weight, targets, rows, impl=impl, **options)
        results.append((loss.detach(), *torch.autograd.grad(loss, (hidden, weight))))
    for first, second, reference in zip(*results, strict=True):
        assert torch.equal(first, second)
        torch.testing.assert_close(first, reference, rtol=4 * LAST_PLACE[dtype], atol=LAST_PLACE[dtype])
    assert not results[0][1][masked].any()
    ours, reference = (
        token_scores(hidden, weight, targets, rows, impl=impl, top_k=4, moments=True, max_bytes=2 * 37 * 4)
        for impl in (NAME, "reference")
    )
    for name in ("logprob", "logsumexp", "top_logprob", "mean_logprob", "std_logprob"):
        torch.testing.assert_close(getattr(ours, name), getattr(reference, name), rtol=1e-5, atol=1e-5)
    assert torch.equal(ours.rank, reference.rank)
    assert torch.equal(ours.is_argmax, reference.is_argmax)
    nothing = torch.zeros(0, dtype=torch.int64)
    assert masked_cross_entropy(hidden, weight, nothing, nothing, impl=NAME) == 0
    assert token_scores(hidden, weight, nothing, nothing, impl=NAME, top_k=2).top_ids.shape == (0, 2)  # type: ignore[union-attr]
