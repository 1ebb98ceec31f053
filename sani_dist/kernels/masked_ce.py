"""Masked cross-entropy for training, and its forward-only sibling for auditors: arguments, gradients, choice of implementation."""

from __future__ import annotations

import functools
import logging
import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, Literal

import torch

from sani_dist.kernels import chunked, reference
from sani_dist.kernels.problem import (
    AIM,
    LEARN,
    UNLEARN,
    Implementation,
    Projection,
    Rows,
    Scores,
    Teacher,
    Terms,
    Wants,
)

logger = logging.getLogger(__name__)

Name = Literal["auto", "reference", "cpu", "triton"]

# Bytes of one chunk of logits in fp32 when the caller names no bound; in 16 bits it takes half. On CPUs, at a vocabulary of 49152, 597 rows
# in fp32: the products run nearly full, and the chunk is smaller than the weight's gradient; 352 rows in 16 bits, which two cores with AMX
# multiply out a fifth faster than 370 to 900, and which is just over the 32 MiB from which on glibc gives memory back when it is freed.
# GPUs need 600 to 1200 rows before the product that adds to the fp32 gradient of the weight stops waiting for memory (docs/kernels.md):
# 1439 rows of a vocabulary of 128256.
CPU_MAX_BYTES, CPU_16_BIT_MAX_BYTES, GPU_MAX_BYTES = 112 * 2**20, 66 * 2**20, 704 * 2**20


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
    floor: float = 0.0,
    teacher: Teacher | None = None,
    reduction: Literal["sum", "none"] = "sum",
    impl: Name = "auto",
    max_bytes: int | None = None,
) -> torch.Tensor:
    """Cross-entropy of the rows that count, and only of them.

    Args:
        hidden: [N, H] hidden states.
        vocab_weight: [V, H] output projection.
        targets: [R] token ids, one for each entry of `rows`.
        rows: int64 [R], indices into `hidden`.
        roles: uint8 [R], 1 = -log p (learn), 2 = -log(1 - p) (unlikelihood), 3 = KL(teacher || model) alone, 0 where none is known (aim);
            None: all 1.
        row_weights: [R] factors; None: all 1.
        normalizer: divides the sum; known before the step, the number of learnable tokens of the global batch.
        bias: [V].
        softcap: logits become c * tanh(logits / c).
        z_loss: factor of log-sum-exp squared, added for each row.
        label_smoothing: share of the target spread evenly over the vocabulary; unlikelihood rows take no part.
        floor: probability below which a target is no longer pushed down: unlikelihood becomes max(0, log(1 - floor) - log(1 - p)), which
            has the same slope above the floor and none below.
        teacher: adds to rows of role 1 the divergence KL(teacher || model), over the tokens that it names and all others as one
            (`distillation.py`), and is the loss of those of role 3; unknown for rows of role 2; not beside `z_loss` and `label_smoothing`.
        reduction: "sum" gives a scalar divided by `normalizer`, "none" gives [R], undivided; its backward runs the chunks again, as
            it does in fp16, where a gradient that is scaled only afterwards has left the range of the format.
        impl: "auto" takes "triton" on GPUs and "cpu" on CPUs; "reference" is plain torch, on any device, float64 too.
        max_bytes: bound of one chunk of logits in fp32, in bytes (in 16 bits it takes half of that); None: what is fast on this device.

    Returns:
        The loss, in fp32 (float64 for float64 input). No row: 0, with zero gradients. Gradients are of `hidden`, `vocab_weight` and
        `bias`, and of first order. `torch.autocast` changes nothing here.

    Raises:
        ValueError: shapes, dtypes, devices, targets, roles or options that do not fit, or another tensor that requires a gradient. On
            GPUs values of tensors are not looked at, since that would synchronise.
        RuntimeError: from backward, if it is asked for a graph of itself (`create_graph`).
    """
    if reduction not in ("sum", "none"):
        raise ValueError(f"reduction must be 'sum' or 'none', not {reduction!r}")
    projection = Projection(vocab_weight, bias, softcap)
    _check(hidden, projection, targets, rows)
    _check_rows(rows, roles, row_weights)
    _check_options(normalizer, z_loss, label_smoothing, floor)
    _check_constant(
        row_weights=row_weights, normalizer=normalizer, teacher=None if teacher is None else teacher.logprob
    )
    if teacher is not None:
        _check_teacher(teacher, rows, vocab_weight.shape[0], z_loss, label_smoothing)
    sums = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    factors = torch.ones(rows.shape, dtype=sums, device=hidden.device) if row_weights is None else row_weights.to(sums)
    if reduction == "sum":
        factors = factors / normalizer
    if roles is not None and teacher is None:
        factors = torch.where(roles == AIM, 0.0, factors)
    problem = Rows(rows, targets, roles, factors, teacher)
    terms = Terms(z_loss, label_smoothing, floor)
    settings = (problem, terms, softcap, reduction, _choose(impl, hidden), _bytes(max_bytes, hidden))
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
    impl: Name = "auto",
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
    implementation = _choose(impl, hidden)
    with _without_autocast(hidden):
        return chunked.scores(
            hidden, projection, rows, targets, top_k, moments, _bytes(max_bytes, hidden), implementation
        )


class _MaskedCrossEntropy(torch.autograd.Function):
    """Loss and gradients in one pass over the chunks; backward only scales what forward has formed, or runs the chunks again."""

    @staticmethod
    def forward(ctx: Any, hidden: Any, weight: Any, bias: Any, settings: Any) -> Any:
        ctx.settings = settings
        rows, terms, softcap, reduction, implementation, max_bytes = settings
        # "none": each row has a factor of its own in backward. fp16: what is scaled there, to be seen at all, has to be so from the start.
        ctx.again = reduction == "none" or hidden.dtype == torch.float16
        wants = Wants(False, False, False) if ctx.again else Wants(*ctx.needs_input_grad[:3])
        projection = Projection(weight, bias, softcap)
        with _without_autocast(hidden):
            found = chunked.loss_and_gradients(hidden, projection, rows, terms, wants, max_bytes, implementation)
        ctx.save_for_backward(*((hidden, weight, bias) if ctx.again else found[1:]))
        return found.losses if reduction == "none" else found.losses.sum()

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor) -> Any:  # type: ignore[override]
        if (
            torch.is_grad_enabled()
        ):  # create_graph: the gradients would count as constants, and what is derived from them be wrong
            raise RuntimeError(
                "masked_cross_entropy has no second derivatives; take the gradient without create_graph, or the loss of "
                "torch.nn.functional"
            )
        if not ctx.again:
            # Most often it is 1; to look costs nothing on CPUs; elsewhere it would synchronise.
            scaled = upstream.device.type != "cpu" or upstream.item() != 1
            # In fp32: rounded to 16 bits first, a third would be off by a thousandth in every element.
            return (*(g if g is None or not scaled else g * upstream for g in ctx.saved_tensors), None)
        hidden, weight, bias = ctx.saved_tensors
        rows, terms, softcap, _, implementation, max_bytes = ctx.settings
        rows = replace(rows, factors=rows.factors * upstream)
        wants = Wants(*ctx.needs_input_grad[:3])
        with _without_autocast(hidden):
            found = chunked.loss_and_gradients(
                hidden, Projection(weight, bias, softcap), rows, terms, wants, max_bytes, implementation
            )
        return (*found[1:], None)


def _without_autocast(hidden: torch.Tensor) -> AbstractContextManager[Any]:
    """The precision of each step is chosen here; autocast would change that of some, which then no longer fit together."""
    device = hidden.device.type
    return torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()


def _choose(impl: Name, hidden: torch.Tensor) -> Implementation:
    """The implementation to run. The modules are imported when asked for: Triton is only where there is a GPU, or a test."""
    device = hidden.device.type
    if impl not in ("auto", "reference", "cpu", "triton"):
        raise ValueError(f"impl must be 'auto', 'reference', 'cpu' or 'triton', not {impl!r}")
    if impl in ("cpu", "triton") and hidden.dtype == torch.float64:
        raise ValueError(f"impl={impl!r} computes in fp32, bf16 and fp16; float64 needs impl='reference'")
    if impl == "cpu" and device != "cpu":
        raise ValueError(f"impl='cpu' needs tensors on the CPU, not on {device}")
    automatic = impl == "auto" and hidden.dtype != torch.float64
    if impl == "triton" or (automatic and device == "cuda"):
        from sani_dist.kernels import triton_rows

        return triton_rows
    if impl == "cpu" or (automatic and device == "cpu"):
        from sani_dist.kernels import cpu_rows

        reason = cpu_rows.why_not(hidden.dtype)
        if reason is None:
            return cpu_rows
        if impl == "cpu":
            raise RuntimeError(f"impl='cpu' cannot be used here: {reason}")
        _warn_once(f"The loss runs in plain torch, which takes longer: its C++ cannot be used here ({reason})")
    return reference


def _bytes(max_bytes: int | None, hidden: torch.Tensor) -> int:
    """The bound of a chunk: the caller's, else what is fast on this device."""
    if max_bytes is not None:
        if max_bytes < 1:
            raise ValueError(f"max_bytes must be at least 1, not {max_bytes}")
        return max_bytes
    if hidden.device.type == "cpu":
        return CPU_16_BIT_MAX_BYTES if hidden.element_size() == 2 else CPU_MAX_BYTES
    return GPU_MAX_BYTES


@functools.cache
def _warn_once(message: str) -> None:
    logger.warning(message)


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
    if projection.softcap is not None and not 0 < projection.softcap < math.inf:
        raise ValueError("softcap must be positive and finite")
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
    looked_at = roles is not None and roles.device.type == "cpu" and roles.numel()
    if roles is not None and looked_at and not LEARN <= int(roles.min()) <= int(roles.max()) <= AIM:
        raise ValueError(f"roles must be {LEARN} (learn), {UNLEARN} (unlikelihood) or {AIM} (aim)")


def _check_options(normalizer: float | torch.Tensor, z_loss: float, label_smoothing: float, floor: float) -> None:
    if isinstance(normalizer, torch.Tensor) and normalizer.numel() != 1:
        raise ValueError(f"normalizer must be one number, not {tuple(normalizer.shape)}")
    if isinstance(normalizer, torch.Tensor):
        normalizer = float(normalizer.detach()) if normalizer.device.type == "cpu" else 1.0
    if not 0 < normalizer < math.inf:
        raise ValueError("normalizer must be positive and finite")
    if not 0 <= z_loss < math.inf:
        raise ValueError(f"z_loss must be at least 0 and finite, not {z_loss}")
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"label_smoothing must lie in [0, 1], not {label_smoothing}")
    if not 0 <= floor < 1:
        raise ValueError(f"floor must lie in [0, 1), not {floor}")


def _check_constant(**tensors: Any) -> None:
    """Nothing that would wait for a gradient in vain."""
    for name, tensor in tensors.items():
        if isinstance(tensor, torch.Tensor) and tensor.requires_grad and torch.is_grad_enabled():
            raise ValueError(f"{name} gets no gradient; detach it")


def _check_teacher(
    teacher: Teacher, rows: torch.Tensor, vocabulary: int, z_loss: float, label_smoothing: float
) -> None:
    if z_loss or label_smoothing:
        raise ValueError("teacher goes with neither z_loss nor label_smoothing")
    if not 0 <= teacher.weight < math.inf:
        raise ValueError(f"teacher must have a weight of at least 0, not {teacher.weight}")
    count, k = len(rows), teacher.ids.shape[-1]
    shapes = [tuple(tensor.shape) for tensor in (teacher.ids, teacher.logprob, teacher.known)]
    if shapes != [(count, k), (count, k), (count,)] or not 1 <= k <= vocabulary:
        raise ValueError(f"teacher must have ids and logprob [{count}, k] and known [{count}], not {shapes}")
    if teacher.ids.dtype != torch.int64 or teacher.known.dtype != torch.bool:
        raise ValueError("teacher must have ids int64 and known bool")
    if {t.device for t in (teacher.ids, teacher.logprob, teacher.known)} != {rows.device}:
        raise ValueError(f"teacher must be on the device of rows, {rows.device}")
