"""Masked cross-entropy for training, and its forward-only sibling for auditors: arguments, gradients, choice of implementation."""

from __future__ import annotations

from typing import Any, Literal

import torch

from sani_dist.kernels import chunked, reference
from sani_dist.kernels.problem import Gradients, Projection, Rows, Scores, Terms, Wants

Implementation = Literal["auto", "reference", "cpu", "triton"]

# Logits of one chunk in fp32, in bytes, when the caller names no bound. 128 MiB holds 680 rows of a vocabulary of 49152: enough rows for
# the matrix units to run full, few enough that the chunk is small beside the model.
DEFAULT_MAX_BYTES = 128 * 2**20


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
    impl: Implementation = "auto",
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
        label_smoothing: share of the target spread evenly over the vocabulary; unlikelihood rows take no part.
        reduction: "sum" gives a scalar divided by `normalizer`, "none" gives [R], undivided; its backward runs the chunks again.
        impl: "auto" takes "triton" on GPUs and "cpu" on CPUs; "reference" is plain torch, on any device, float64 too.
        max_bytes: bound of the memory of one chunk of logits, in bytes; None: 128 MiB.

    Returns:
        The loss, in fp32 (float64 for float64 input). No row: 0, with zero gradients.

    Raises:
        ValueError: shapes, dtypes, devices or targets that do not fit. On GPUs values are not looked at, since that would synchronise.
    """
    if reduction not in ("sum", "none"):
        raise ValueError(f"reduction must be 'sum' or 'none', not {reduction!r}")
    projection = Projection(vocab_weight, bias, softcap)
    _check(hidden, projection, targets, rows)
    _check_rows(rows, roles, row_weights)
    sums = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    factors = torch.ones(rows.shape, dtype=sums, device=hidden.device) if row_weights is None else row_weights.to(sums)
    if reduction == "sum":
        factors = factors / normalizer
    problem = Rows(rows, targets, roles, factors)
    terms = Terms(z_loss, label_smoothing)
    settings = (problem, terms, softcap, reduction, _choose(impl, hidden), max_bytes or DEFAULT_MAX_BYTES)
    loss: torch.Tensor = _MaskedCrossEntropy.apply(hidden, vocab_weight, bias, settings)  # type: ignore[no-untyped-call]
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
    top_k: int = 0,
    moments: bool = False,
    impl: Implementation = "auto",
    max_bytes: int | None = None,
) -> Scores:
    """Probability and rank of each target; arguments as in `masked_cross_entropy`. Memory beside the result does not grow with R.

    Args:
        top_k: also return the `top_k` likeliest ids of each row and their log-probabilities; 0: none.
        moments: also return mean and standard deviation of log p(z) over z drawn from p.
    """
    projection = Projection(vocab_weight, bias, softcap)
    _check(hidden, projection, targets, rows)
    if not 0 <= top_k <= vocab_weight.shape[0]:
        raise ValueError(f"top_k must lie in [0, {vocab_weight.shape[0]}], not {top_k}")
    return _scores(
        _choose(impl, hidden), hidden, projection, rows, targets, top_k, moments, max_bytes or DEFAULT_MAX_BYTES
    )


class _MaskedCrossEntropy(torch.autograd.Function):
    """Loss and gradients in one pass over the chunks; backward only scales what forward has formed."""

    @staticmethod
    def forward(ctx: Any, hidden: Any, weight: Any, bias: Any, settings: Any) -> Any:
        ctx.settings = settings
        rows, terms, softcap, reduction, name, max_bytes = settings
        ctx.summed = reduction == "sum"
        # "none": each row has a factor of its own in backward, so the chunks run again there.
        wants = Wants(*ctx.needs_input_grad[:3]) if ctx.summed else Wants(False, False, False)
        found = _loss_and_gradients(name, hidden, Projection(weight, bias, softcap), rows, terms, wants, max_bytes)
        if not ctx.summed:
            ctx.save_for_backward(hidden, weight, bias)
            return found.losses
        ctx.save_for_backward(*found[1:])
        return found.losses.sum()

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor) -> Any:  # type: ignore[override]
        if ctx.summed:
            gradients = [g if g is None else g * upstream.to(g.dtype) for g in ctx.saved_tensors]
        else:
            hidden, weight, bias = ctx.saved_tensors
            rows, terms, softcap, _, name, max_bytes = ctx.settings
            rows = Rows(rows.index, rows.targets, rows.roles, rows.factors * upstream)
            wants = Wants(*ctx.needs_input_grad[:3])
            projection = Projection(weight, bias, softcap)
            gradients = list(_loss_and_gradients(name, hidden, projection, rows, terms, wants, max_bytes)[1:])
        return (*gradients, None)


def _choose(impl: Implementation, hidden: torch.Tensor) -> str:
    """The implementation to run."""
    device = hidden.device.type
    if impl == "auto":
        impl = {"cpu": "cpu", "cuda": "triton"}.get(device, "reference")  # type: ignore[assignment]
        if hidden.dtype == torch.float64:
            impl = "reference"
    if impl not in ("reference", "cpu", "triton"):
        raise ValueError(f"impl must be 'auto', 'reference', 'cpu' or 'triton', not {impl!r}")
    if impl != "reference" and hidden.dtype == torch.float64:
        raise ValueError(f"impl={impl!r} computes in fp32, bf16 and fp16; float64 needs impl='reference'")
    if impl == "cpu" and device != "cpu":
        raise ValueError(f"impl='cpu' needs tensors on the CPU, not on {device}")
    return impl


def _loss_and_gradients(name: str, hidden: torch.Tensor, projection: Projection, rows: Rows, terms: Terms, wants: Wants, max_bytes: int) -> Gradients:  # fmt: skip # noqa: E501
    """Run the implementation `name`."""
    return chunked.loss_and_gradients(
        hidden, projection, rows, terms, wants, max_bytes, _row_functions(name).loss_of_rows
    )


def _scores(name: str, hidden: torch.Tensor, projection: Projection, rows: torch.Tensor, targets: torch.Tensor, top_k: int, moments: bool, max_bytes: int) -> Scores:  # fmt: skip # noqa: E501
    function = _row_functions(name).scores_of_rows
    return chunked.scores(hidden, projection, rows, targets, top_k, moments, max_bytes, function)


def _row_functions(name: str) -> Any:
    """The module whose `loss_of_rows` and `scores_of_rows` look at a chunk of logits."""
    if name == "triton":
        from sani_dist.kernels import triton_rows  # lazily: Triton is only where there is a GPU, or a test

        return triton_rows
    return reference


def _check(hidden: torch.Tensor, projection: Projection, targets: torch.Tensor, rows: torch.Tensor) -> None:
    weight, bias = projection.weight, projection.bias
    if hidden.dim() != 2 or weight.dim() != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(
            f"hidden [N, H] and vocab_weight [V, H] do not fit: {tuple(hidden.shape)}, {tuple(weight.shape)}"
        )
    if hidden.dtype != weight.dtype or not hidden.dtype.is_floating_point:
        raise ValueError(f"hidden is {hidden.dtype}, vocab_weight {weight.dtype}; both must have one float dtype")
    if bias is not None and (bias.shape != weight.shape[:1] or bias.dtype != weight.dtype):
        raise ValueError(f"bias must be [{weight.shape[0]}] {weight.dtype}, not {tuple(bias.shape)} {bias.dtype}")
    if projection.softcap is not None and projection.softcap <= 0:
        raise ValueError("softcap must be positive")
    if rows.dtype != torch.int64 or rows.dim() != 1 or targets.shape != rows.shape or targets.dtype != torch.int64:
        raise ValueError("rows and targets must be one-dimensional int64 tensors of one length")
    if len({t.device for t in (hidden, weight, targets, rows, *(() if bias is None else (bias,)))}) > 1:
        raise ValueError("hidden, vocab_weight, bias, targets and rows must be on one device")
    if hidden.device.type == "cpu" and rows.numel():  # on a GPU this would synchronise; there the gather itself asserts
        if int(rows.min()) < 0 or int(rows.max()) >= hidden.shape[0]:
            raise ValueError(f"rows must lie in [0, {hidden.shape[0]})")
        if int(targets.min()) < 0 or int(targets.max()) >= weight.shape[0]:
            raise ValueError(f"targets must lie in [0, {weight.shape[0]})")


def _check_rows(rows: torch.Tensor, roles: torch.Tensor | None, row_weights: torch.Tensor | None) -> None:
    for name, tensor in (("roles", roles), ("row_weights", row_weights)):
        if tensor is not None and tensor.shape != rows.shape:
            raise ValueError(f"{name} must have the shape of rows, {tuple(rows.shape)}, not {tuple(tensor.shape)}")
        if tensor is not None and tensor.device != rows.device:
            raise ValueError(f"{name} must be on the device of rows, {rows.device}, not on {tensor.device}")
    if roles is not None and roles.dtype != torch.uint8:
        raise ValueError(f"roles must be uint8, not {roles.dtype}")
