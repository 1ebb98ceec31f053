"""The loss and the scores against torch: gradients, precision, and that what does not count is never read."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from sani_dist.kernels import Teacher, masked_cross_entropy, token_scores

OPTIONS: list[dict[str, Any]] = [
    {}, {"softcap": 3.0}, {"z_loss": 0.1}, {"label_smoothing": 0.2}, {"roles": True}, {"row_weights": True}, {"bias": True},
    {"roles": True, "floor": 0.1},
    {"softcap": 3.0, "z_loss": 0.05, "label_smoothing": 0.1, "roles": True, "row_weights": True, "bias": True},
]  # fmt: skip


def case(
    tokens: int,
    width: int,
    vocabulary: int,
    counted: int,
    dtype: torch.dtype = torch.float64,
    scale: float = 1.0,
    seed: int = 0,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """hidden, weight, targets, rows; `counted` rows of `tokens`, in ascending order."""
    draw = torch.Generator().manual_seed(seed)
    hidden = (torch.randn(tokens, width, generator=draw, dtype=torch.float64) * scale).to(dtype).requires_grad_()
    weight = torch.randn(vocabulary, width, generator=draw, dtype=torch.float64).to(dtype).requires_grad_()
    rows = torch.randperm(tokens, generator=draw)[:counted].sort().values
    return hidden, weight, torch.randint(vocabulary, (counted,), generator=draw), rows


def given_options(options: dict[str, Any], counted: int, vocabulary: int) -> dict[str, Any]:
    """Tensors in place of the options that are only named."""
    draw = torch.Generator().manual_seed(1)
    made = dict(options)
    if "roles" in options:
        made["roles"] = torch.randint(1, 3, (counted,), generator=draw, dtype=torch.uint8)
    if "row_weights" in options:
        made["row_weights"] = torch.rand(counted, generator=draw, dtype=torch.float64)
    if "bias" in options:
        made["bias"] = torch.randn(vocabulary, generator=draw, dtype=torch.float64).requires_grad_()
    return made


# Gradients


@pytest.mark.parametrize("reduction", ["sum", "none"])
@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "+".join(o) or "plain")
def test_gradients_are_the_derivatives(options: dict[str, Any], reduction: str) -> None:
    hidden, weight, targets, rows = case(7, 3, 11, 5)
    made = given_options(options, 5, 11)
    bias = made.pop("bias", None)
    inputs = [hidden, weight] + ([bias] if bias is not None else [])

    def loss(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        return masked_cross_entropy(
            hidden, weight, targets, rows, bias=bias, normalizer=3.5, reduction=reduction, max_bytes=200, **made
        )

    assert torch.autograd.gradcheck(loss, inputs)


def definition(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, rows: torch.Tensor, *, roles: Any = None,
    row_weights: Any = None, bias: Any = None, softcap: float | None = None, z_loss: float = 0.0, label_smoothing: float = 0.0,
    floor: float = 0.0,
) -> torch.Tensor:  # fmt: skip
    """[R], by torch's own functions in float64. Smoothing is for what is learnt, not for what is unlearnt."""
    logits = F.linear(hidden[rows], weight, bias)
    logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    loss = F.cross_entropy(logits, targets, reduction="none", label_smoothing=label_smoothing)
    if roles is not None:
        p = logits.softmax(dim=1).gather(1, targets[:, None])[:, 0]
        loss = torch.where(roles == 2, torch.log((1 - floor) / (1 - p)).clamp(min=0), loss)
    loss = loss + z_loss * logits.logsumexp(dim=1) ** 2
    return loss if row_weights is None else loss * row_weights


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "+".join(o) or "plain")
def test_the_loss_is_what_it_is_defined_to_be(options: dict[str, Any]) -> None:
    hidden, weight, targets, rows = case(29, 5, 37, 17)
    made = given_options(options, 17, 37)
    expected = definition(hidden, weight, targets, rows, **made)
    found = masked_cross_entropy(hidden, weight, targets, rows, reduction="none", max_bytes=37 * 8 * 4, **made)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    summed = masked_cross_entropy(hidden, weight, targets, rows, normalizer=torch.tensor(7.0), **made)
    torch.testing.assert_close(summed, expected.sum() / 7, rtol=1e-6, atol=1e-12)


@given(
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]), tokens=st.integers(1, 70), width=st.integers(1, 33),
    vocabulary=st.integers(2, 130), share=st.floats(0, 1), scale=st.sampled_from([1e-3, 0.3, 1.0, 5.0]),
    seed=st.integers(0, 10**6), chunk_rows=st.integers(1, 80),
)  # fmt: skip
@settings(max_examples=200, deadline=None)
def test_no_further_from_the_truth_than_torch_in_the_same_precision(
    dtype: torch.dtype, tokens: int, width: int, vocabulary: int, share: float, scale: float, seed: int, chunk_rows: int
) -> None:
    """Torch masks by `ignore_index`; the truth is torch in float64 on the same numbers."""
    counted = max(1, round(share * tokens))
    hidden, weight, targets, rows = case(tokens, width, vocabulary, counted, dtype, scale, seed)
    labels = torch.full((tokens,), -100)
    labels[rows] = targets

    def by_torch(precision: torch.dtype) -> list[torch.Tensor]:
        x, w = (t.detach().to(precision).requires_grad_() for t in (hidden, weight))
        loss = F.cross_entropy(F.linear(x, w), labels, ignore_index=-100, reduction="sum") / counted
        return [loss.detach(), *torch.autograd.grad(loss, (x, w))]

    loss = masked_cross_entropy(
        hidden, weight, targets, rows, normalizer=counted, max_bytes=chunk_rows * vocabulary * max(4, dtype.itemsize)
    )
    found = [loss.detach(), *torch.autograd.grad(loss, (hidden, weight))]
    # Torch may be exact by luck, so one rounding of the terms that are summed is allowed beside its own error. Terms, not sums: the
    # target's and all others' cancel. The logits are rounded too, which moves p by their size.
    unit = {torch.float64: 1e-14, torch.float32: 2.0**-21, torch.bfloat16: 2.0**-8}[dtype]
    x, w = hidden.detach().double()[rows], weight.detach().double()
    logits = F.linear(x, w)
    p_and_target = (logits.softmax(dim=1) + F.one_hot(targets, vocabulary)) / counted
    size_of_loss = logits.abs().max() + math.log(vocabulary)
    terms = (size_of_loss, (p_and_target @ w.abs()).max(), (p_and_target.t() @ x.abs()).max())
    for name, ours, same, truth, size in zip(
        ("loss", "d hidden", "d weight"), found, by_torch(dtype), by_torch(torch.float64), terms, strict=True
    ):
        error, allowed = ((t.double() - truth).abs().max().item() for t in (ours, same))
        assert error <= allowed + unit * (1 + logits.abs().max().item()) * size.item(), name


# What does not count


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_masked_rows_are_never_read(value: float, dtype: torch.dtype) -> None:
    hidden, weight, targets, rows = case(23, 9, 31, 14, dtype)
    masked = torch.tensor([i for i in range(23) if i not in rows])
    poisoned = hidden.detach().clone()
    poisoned[masked] = value
    poisoned.requires_grad_()
    results = []
    for x in (hidden, poisoned):
        loss = masked_cross_entropy(x, weight, targets, rows, normalizer=14)
        results.append((loss.detach(), *torch.autograd.grad(loss, (x, weight))))
    for clean, found in zip(*results, strict=True):
        assert torch.equal(clean, found)
    assert not results[1][1][masked].any()
    clean_scores, found_scores = (token_scores(x, weight, targets, rows) for x in (hidden, poisoned))
    assert torch.equal(clean_scores.logprob, found_scores.logprob)


@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_no_rows(reduction: str) -> None:
    hidden, weight, targets, rows = case(5, 3, 7, 0, torch.float32)
    bias = torch.zeros(7, requires_grad=True)
    loss = masked_cross_entropy(hidden, weight, targets, rows, bias=bias, normalizer=1, reduction=reduction)
    assert loss.shape == (() if reduction == "sum" else (0,))
    assert loss.sum() == 0
    for gradient, of in zip(
        torch.autograd.grad(loss.sum(), (hidden, weight, bias)), (hidden, weight, bias), strict=True
    ):
        assert gradient.shape == of.shape
        assert not gradient.any()
    scores = token_scores(hidden, weight, targets, rows)
    assert scores.logprob.shape == scores.rank.shape == scores.is_argmax.shape == (0,)


def test_a_row_may_count_twice() -> None:
    hidden, weight, *_ = case(4, 3, 7, 0)
    rows, targets = torch.tensor([2, 2]), torch.tensor([1, 5])
    loss = masked_cross_entropy(hidden, weight, targets, rows)
    expected = F.cross_entropy(F.linear(hidden[rows], weight), targets, reduction="sum")
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(torch.autograd.grad(loss, hidden), torch.autograd.grad(expected, hidden))


def test_certain_tokens_have_finite_losses() -> None:
    """p = 1 for what is to be unlearnt, p = 0 for what is to be learnt."""
    hidden = torch.tensor([[200.0]], requires_grad=True)
    weight = torch.tensor([[1.0], [-1.0]], requires_grad=True)
    for role, target in ((2, 0), (1, 1)):
        loss = masked_cross_entropy(
            hidden, weight, torch.tensor([target]), torch.tensor([0]), roles=torch.tensor([role], dtype=torch.uint8)
        )
        assert torch.isfinite(loss)
        assert all(torch.isfinite(g).all() for g in torch.autograd.grad(loss, (hidden, weight)))


@pytest.mark.parametrize("impl", ["reference", "cpu"])
def test_unlikelihood_of_a_token_known_by_heart(impl: Any) -> None:
    """A logit of 25 against five of 0: 1 - p = 7e-11, which fp32 cannot tell from 0. The others share the slope of the target, p = 1."""
    hidden = torch.ones(1, 1)
    weight = torch.tensor([[0.0], [0.0], [25.0], [0.0], [0.0], [0.0]], requires_grad=True)
    role = torch.tensor([2], dtype=torch.uint8)
    loss = masked_cross_entropy(hidden, weight, torch.tensor([2]), torch.tensor([0]), roles=role, impl=impl)
    assert loss.item() == pytest.approx(25 - math.log(5), rel=1e-6)
    (gradient,) = torch.autograd.grad(loss, weight)
    assert gradient.flatten().tolist() == pytest.approx([-0.2, -0.2, 1.0, -0.2, -0.2, -0.2], rel=1e-6)


def test_two_runs_give_the_same_bits() -> None:
    hidden, weight, targets, rows = case(300, 40, 500, 211, torch.float32)
    results = []
    for _ in range(2):
        loss = masked_cross_entropy(hidden, weight, targets, rows, normalizer=211, max_bytes=500 * 4 * 32)
        results.append((loss.detach(), *torch.autograd.grad(loss, (hidden, weight))))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


# Scores


@given(
    tokens=st.integers(1, 40), vocabulary=st.integers(2, 90), share=st.floats(0, 1), seed=st.integers(0, 10**6),
    coarse=st.booleans(), chunk_rows=st.integers(1, 50), softcap=st.sampled_from([None, 2.0]),
)  # fmt: skip
@settings(max_examples=150, deadline=None)
def test_scores_are_those_of_the_whole_logits(
    tokens: int, vocabulary: int, share: float, seed: int, coarse: bool, chunk_rows: int, softcap: float | None
) -> None:
    """`coarse`: small whole numbers, so that many logits are equal and every sum is exact."""
    hidden, weight, targets, rows = case(tokens, 6, vocabulary, round(share * tokens), torch.float32, seed=seed)
    if coarse:
        hidden, weight = hidden.round(), weight.sign()
    hidden, weight = hidden.detach(), weight.detach()
    scores = token_scores(hidden, weight, targets, rows, softcap=softcap, max_bytes=chunk_rows * vocabulary * 4)
    logits = F.linear(hidden[rows], weight)
    logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    at_target = logits.gather(1, targets[:, None])
    expected = logits.log_softmax(dim=1).gather(1, targets[:, None])[:, 0]
    torch.testing.assert_close(scores.logprob, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(scores.logsumexp, logits.logsumexp(dim=1), rtol=1e-5, atol=1e-5)
    if coarse:  # elsewhere two logits may swap by rounding
        assert scores.rank.tolist() == (logits > at_target).sum(dim=1).tolist()
        first_best = (logits == logits.max(dim=1, keepdim=True).values).int().argmax(dim=1)
        assert scores.is_argmax.tolist() == (first_best == targets).tolist()


def test_ties_of_the_arg_max_go_to_the_lowest_id() -> None:
    hidden, weight = torch.ones(1, 1), torch.tensor([[0.0], [2.0], [2.0], [1.0], [2.0]])
    rows = torch.zeros(5, dtype=torch.int64)
    scores = token_scores(hidden, weight, torch.arange(5), rows)
    assert scores.is_argmax.tolist() == [False, True, False, False, False]
    assert scores.rank.tolist() == [4, 0, 0, 3, 0]
    assert scores.rank.dtype == torch.int32
    assert scores.is_argmax.dtype == torch.bool


# Where it is used otherwise than in a training in fp32


@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_second_derivatives_are_refused(reduction: Any) -> None:
    hidden, weight, targets, rows = case(7, 3, 11, 5)
    loss = masked_cross_entropy(hidden, weight, targets, rows, reduction=reduction).sum()
    with pytest.raises(RuntimeError, match="no second derivatives"):
        torch.autograd.grad(loss, hidden, create_graph=True)


@pytest.mark.parametrize("impl", ["reference", "cpu"])
@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_autocast_changes_nothing(impl: Any, reduction: Any) -> None:
    hidden, weight, targets, rows = case(7, 3, 11, 5, torch.float32)
    bias = torch.zeros(11, requires_grad=True)

    def gradients() -> tuple[torch.Tensor, ...]:
        loss = masked_cross_entropy(hidden, weight, targets, rows, bias=bias, reduction=reduction, impl=impl)
        return (loss, *torch.autograd.grad(loss.sum(), (hidden, weight, bias)))

    plain = gradients()
    with torch.autocast("cpu", torch.bfloat16):
        for a, b in zip(gradients(), plain, strict=True):
            assert torch.equal(a, b)
        scores = token_scores(hidden, weight, targets, rows, impl=impl, top_k=2)
    assert torch.equal(scores.logprob, token_scores(hidden, weight, targets, rows, impl=impl).logprob)


@pytest.mark.parametrize("impl", ["reference", "cpu"])
@pytest.mark.parametrize(("scale", "normalizer"), [(65536.0, 24.0), (32768.0, 24.0), (32768.0, 1e6)])
def test_fp16_at_the_usual_loss_scales(impl: Any, scale: float, normalizer: float) -> None:
    """As close to the truth as torch's own; finite."""
    hidden, weight, targets, rows = case(24, 13, 61, 24, torch.float16)
    loss = masked_cross_entropy(hidden, weight, targets, rows, normalizer=normalizer, impl=impl) * scale
    ours = torch.autograd.grad(loss, (hidden, weight))
    eager = F.cross_entropy(F.linear(hidden, weight)[rows].float(), targets, reduction="sum") / normalizer * scale
    torchs = torch.autograd.grad(eager, (hidden, weight))
    exact_in = [tensor.detach().double().requires_grad_() for tensor in (hidden, weight)]
    exact_loss = F.cross_entropy(F.linear(*exact_in)[rows], targets, reduction="sum") / normalizer * scale
    exact = torch.autograd.grad(exact_loss, exact_in)
    for mine, other, true in zip(ours, torchs, exact, strict=True):
        error = (mine.double() - true).norm() / true.norm()
        assert error <= 1.2 * (other.double() - true).norm() / true.norm() + 2**-11


@pytest.mark.parametrize("name", ["row_weights", "normalizer", "teacher"])
def test_what_gets_no_gradient_may_not_want_one(name: str) -> None:
    hidden, weight, targets, rows = case(7, 3, 11, 5)
    logprob = torch.full((5, 1), -1.0, requires_grad=True)
    wanting = {
        "row_weights": torch.ones(5, requires_grad=True),
        "normalizer": torch.tensor(2.0, requires_grad=True),
        "teacher": Teacher(torch.zeros(5, 1, dtype=torch.int64), logprob, torch.ones(5, dtype=torch.bool), 1.0),
    }
    arguments: dict[str, Any] = {name: wanting[name]}
    with pytest.raises(ValueError, match=f"{name} gets no gradient"):
        masked_cross_entropy(hidden, weight, targets, rows, **arguments)
    with torch.no_grad():
        masked_cross_entropy(hidden, weight, targets, rows, **arguments)


@pytest.mark.parametrize("impl", ["reference", "cpu"])
def test_tokens_that_cannot_come(impl: Any) -> None:
    """A bias of -inf, as models have for what only pads the vocabulary."""
    hidden, weight, targets, rows = case(7, 3, 11, 5, torch.float32)
    bias = torch.zeros(11)
    bias[8:] = -math.inf
    targets = targets % 8
    some = token_scores(hidden, weight, targets, rows, bias=bias, moments=True, impl=impl)
    without = token_scores(hidden, weight[:8], targets, rows, moments=True, impl=impl)
    for name in ("logprob", "mean_logprob", "std_logprob"):
        torch.testing.assert_close(getattr(some, name), getattr(without, name))
    ids, logprob = torch.arange(11).repeat(5, 1), torch.log_softmax(bias, 0).repeat(5, 1)
    teacher = Teacher(ids, logprob, torch.ones(5, dtype=torch.bool), 1.0)
    loss = masked_cross_entropy(hidden, weight, targets, rows, bias=bias, teacher=teacher, impl=impl)
    assert all(bool(t.isfinite().all()) for t in (loss, *torch.autograd.grad(loss, (hidden, weight))))


@pytest.mark.parametrize("impl", ["reference", "cpu"])
def test_logits_far_beyond_any_model_s(impl: Any) -> None:
    hidden, weight, targets, rows = case(24, 13, 61, 24, torch.float32)
    large = (hidden.detach() * 1e30).requires_grad_()
    loss = masked_cross_entropy(large, weight, targets, rows, impl=impl)
    torch.testing.assert_close(loss, F.cross_entropy(F.linear(large, weight)[rows], targets, reduction="sum"))
    assert all(bool(gradient.isfinite().all()) for gradient in torch.autograd.grad(loss, (large, weight)))


# Arguments that do not fit


@pytest.mark.parametrize(
    "change",
    [
        {"impl": "fast"}, {"hidden": torch.zeros(4)}, {"hidden": torch.zeros(4, 5)},
        {"hidden": torch.zeros(4, 3, dtype=torch.float64)}, {"weight": torch.zeros(7)}, {"bias": torch.zeros(6)},
        {"targets": torch.zeros(3, dtype=torch.int64)}, {"targets": torch.zeros(2)}, {"targets": torch.tensor([0, 7])},
        {"targets": torch.tensor([-1, 0])}, {"rows": torch.tensor([0, 4])}, {"rows": torch.tensor([-1, 0])},
        {"rows": torch.zeros(2, dtype=torch.int32)}, {"rows": torch.zeros(1, 2, dtype=torch.int64)},
    ],
    ids=lambda change: next(iter(change)),
)  # fmt: skip
def test_arguments_that_do_not_fit(change: dict[str, Any]) -> None:
    good = {
        "hidden": torch.zeros(4, 3),
        "weight": torch.zeros(7, 3),
        "targets": torch.tensor([0, 6]),
        "rows": torch.tensor([0, 3]),
    }
    for function in (masked_cross_entropy, token_scores):
        for changes, fails in (({}, False), (change, True)):
            arguments = {**good, **changes}
            positional = [arguments.pop(name) for name in good]
            if fails:
                with pytest.raises(ValueError, match=r"must|not fit"):
                    function(*positional, **arguments)
            else:
                function(*positional, **arguments)


@pytest.mark.parametrize(
    "change",
    [
        {"reduction": "mean"}, {"roles": torch.ones(3, dtype=torch.uint8)}, {"row_weights": torch.ones(2, 1)},
        {"roles": torch.tensor([1, 0], dtype=torch.uint8)}, {"roles": torch.tensor([4, 1], dtype=torch.uint8)},
        {"label_smoothing": 1.5}, {"label_smoothing": -0.1}, {"label_smoothing": math.nan}, {"z_loss": -1.0}, {"z_loss": math.inf},
        {"softcap": 0.0}, {"softcap": math.inf}, {"softcap": math.nan}, {"floor": 1.0}, {"max_bytes": 0}, {"max_bytes": -4},
        {"normalizer": 0.0}, {"normalizer": -1.0}, {"normalizer": math.inf}, {"normalizer": math.nan},
        {"normalizer": torch.tensor(0.0)}, {"normalizer": torch.ones(2)},
    ],
    ids=lambda change: next(iter(change)),
)  # fmt: skip
def test_options_of_the_loss_that_do_not_fit(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(change))} must"):
        masked_cross_entropy(torch.zeros(4, 3), torch.zeros(7, 3), torch.tensor([0, 6]), torch.tensor([0, 3]), **change)
