"""Loss and scores of a chunk of logits in Triton: the part of the GPU design between the matrix products.

One program looks at one row. It sweeps over the row in tiles of 16-byte loads, [lanes, width]: a lane is the `width` neighbouring logits
that one load brings into one thread, and it keeps its own largest logit and its own sum relative to that, so that the sweep has no
communication between threads. One reduction at the end joins the lanes in a fixed order: no atomics, and two runs give the same bits.

Bytes for each logit of s bytes: the loss alone reads it once (s); with the gradient a second sweep reads it again and writes the gradient
in its place, 3 s. The second sweep goes backwards, so that it begins with what the first read last and the L2 cache still holds; if a row
for each resident program fits there, device memory sees only 2 s. Scores read once (s), moments twice (2 s). A row of a large vocabulary
does not fit into the registers of one program (256 KB at V = 128256 in 16 bits), so there is no variant with a single sweep.

Everything between load and store is fp32. Largest logit m and sum S of exp(logit - m) are those of all tokens but the target t, and with
the log-odds d = logit_t - m - log S

    -log p = log(1 + exp(-d)),   -log(1 - p) = log(1 + exp(d)),   p = 1 / (1 + exp(-d)),   p_j = (1 - p) exp(logit_j - m) / S  for j != t

so that nothing is a difference of numbers near 1, and neither loss nor slope loses digits or overflows, however sure the model is. A
target outside the vocabulary gives NaN.
"""
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
# (the bodies of kernels are Triton's language; it has no types to check)

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from sani_dist.kernels import reference
from sani_dist.kernels.problem import UNLEARN, Rows, Scores, Terms

try:
    import triton
    import triton.language as tl
except ImportError as error:
    raise ImportError("impl='triton' needs the package triton, which CUDA builds of torch bring along") from error

_UNLEARN = tl.constexpr(UNLEARN)
# Finite bounds in place of infinities, where inf - inf or 0 * inf would come up: the lowest number and the smallest normal one.
_LOWEST = tl.constexpr(torch.finfo(torch.float32).min)
_TINY = tl.constexpr(torch.finfo(torch.float32).tiny)


class Launch(NamedTuple):
    """How a kernel is started: a tile is [lanes, width] logits, `warps` of 32 threads, `stages` of the software pipeline."""

    lanes: int
    width: int
    warps: int
    stages: int


def launch(vocabulary: int, dtype: torch.dtype, capped: bool = False) -> Launch:
    """The configuration for rows of `vocabulary` logits; `capped`: with soft-capping.

    A thread works on 16 logits at a time, 2 to 4 loads, and a row gets as many warps as that feeds, at most 16. Two such programs fit on a
    multiprocessor (64 registers a thread) and keep 32 KB or more of loads under way, where 3.35 TB/s over 132 of them at 0.7 us ask for 18;
    more programs would only push each other's rows out of the L2 cache before the second sweep. Soft-capping needs more registers and is
    bound by its exponentials: 8 logits at a time. One stage: more would stage loads through shared memory, which nothing here shares.
    """
    width, each = 16 // dtype.itemsize, 8 if capped else 16
    warps = min(16, triton.next_power_of_2(triton.cdiv(vocabulary, 32 * each)))
    lanes = min(warps * 32 * each // width, triton.next_power_of_2(triton.cdiv(vocabulary, width)))
    return Launch(lanes, width, warps, 1)


def loss_of_rows(
    logits: torch.Tensor, rows: Rows, softcap: float | None, terms: Terms, wants_gradient: bool
) -> torch.Tensor:
    """Losses fp32 [n] times their factors; the gradient with respect to the logits [n, V] before soft-capping overwrites them."""
    _check(logits)
    count, vocabulary = logits.shape
    losses = torch.empty(count, dtype=torch.float32, device=logits.device)
    if count == 0:
        return losses
    lanes, width, warps, stages = launch(vocabulary, logits.dtype, softcap is not None)
    with torch.cuda.device_of(logits):
        _loss_kernel[(count,)](
            logits, logits.stride(0), vocabulary, rows.targets.contiguous(),
            None if rows.roles is None else rows.roles.contiguous(), rows.factors.contiguous(), losses,
            softcap or 1.0, terms.z_loss, terms.label_smoothing, terms.floor, math.log1p(-terms.floor),
            CAPPED=softcap is not None, ROLES=rows.roles is not None, SMOOTHED=terms.label_smoothing > 0,
            GRADIENT=wants_gradient, LANES=lanes, WIDTH=width, num_warps=warps, num_stages=stages,
        )  # fmt: skip
    return losses


def scores_of_rows(
    logits: torch.Tensor, targets: torch.Tensor, softcap: float | None, top_k: int, moments: bool
) -> Scores:
    """Scores of each row of logits [n, V]; `top_k` in plain torch."""
    _check(logits)
    count, vocabulary = logits.shape
    logprob, largest, log_largest, mean, std = torch.empty((5, count), dtype=torch.float32, device=logits.device)
    rank = torch.empty(count, dtype=torch.int32, device=logits.device)
    is_argmax = torch.empty(count, dtype=torch.uint8, device=logits.device)
    if count:
        lanes, width, warps, stages = launch(vocabulary, logits.dtype, softcap is not None)
        with torch.cuda.device_of(logits):
            # Without fused multiply-add, whose use may differ between two places: the target's soft-capped logit must come out the same
            # wherever it is computed, or it could be greater than itself.
            _scores_kernel[(count,)](
                logits, logits.stride(0), vocabulary, targets.contiguous(), logprob, largest, log_largest, mean, std, rank, is_argmax,
                softcap or 1.0, CAPPED=softcap is not None, MOMENTS=moments, LANES=lanes, WIDTH=width,
                num_warps=warps, num_stages=stages, enable_fp_fusion=False,
            )  # fmt: skip
    top_ids = top_logprob = None
    if top_k:
        top_ids, values = reference.top_of_rows(logits, softcap, top_k)
        top_logprob = values - largest.unsqueeze(1) + log_largest.unsqueeze(1)
    return Scores(
        logprob, rank, is_argmax.bool(), largest - log_largest, top_ids, top_logprob,
        mean_logprob=mean if moments else None, std_logprob=std if moments else None,
    )  # fmt: skip


def product(out: torch.Tensor, a: torch.Tensor, b: torch.Tensor, add: bool) -> None:
    """out [M, N] = a^T b, or `add` it to what is there, for a [K, M] and b [K, N]. cuBLAS adds 16-bit products to fp32 sums: nothing is
    rounded between chunks, and no third matrix is written."""
    if out.is_cuda and out.dtype != a.dtype:
        torch.addmm(out, a.t(), b, beta=float(add), out_dtype=out.dtype, out=out)
    else:
        reference.product(out, a, b, add)


def _check(logits: torch.Tensor) -> None:
    if not logits.is_cuda and not triton.knobs.runtime.interpret:
        raise ValueError(
            f"impl='triton' needs tensors on a GPU, not on {logits.device}"
            " (or TRITON_INTERPRET=1 in the environment before Python starts, to try it without)"
        )


@triton.jit
def _loss_kernel(
    logits, stride, vocabulary, targets, roles, factors, losses, softcap, z_loss, smoothing, floor, log_rest_at_floor,
    CAPPED: tl.constexpr, ROLES: tl.constexpr, SMOOTHED: tl.constexpr, GRADIENT: tl.constexpr,
    LANES: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Losses of one row for each program; its gradient overwrites it."""
    i = tl.program_id(0)
    row = logits + i.to(tl.int64) * stride
    target = tl.load(targets + i)
    factor = tl.load(factors + i)
    at_target = _target_logit(row, target, vocabulary, softcap, CAPPED)
    target = target.to(tl.int32)

    # First sweep.
    offsets = tl.arange(0, LANES)[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
    largest = tl.zeros([LANES], tl.float32) + _LOWEST
    total = tl.zeros([LANES], tl.float32)
    # Of logit - target's logit: small numbers where the logits are large and alike.
    above = tl.zeros([LANES], tl.float32)
    for first in range(0, vocabulary, LANES * WIDTH):
        columns = first + offsets
        x = _logits(row, columns, vocabulary, softcap, CAPPED)
        if SMOOTHED:
            above += tl.sum(tl.where(columns < vocabulary, x - at_target, 0.0), axis=1)
        x = tl.where(columns == target, float("-inf"), x)
        grown = tl.maximum(largest, tl.max(x, axis=1))
        total = total * tl.exp(largest - grown) + tl.sum(tl.exp(x - grown[:, None]), axis=1)
        largest = grown
    m = tl.max(largest, axis=0)
    total = _at_least_tiny(tl.sum(total * tl.exp(largest - m), axis=0))

    odds = at_target - m - tl.log(total)
    p, q = _sigmoid(odds), _sigmoid(-odds)
    loss = _softplus(-odds)
    lse = tl.where(odds > 0.0, at_target + loss, m + tl.log(total) + _softplus(odds))
    # The gradient is scale * exp(logit - m) - even for every token but the target, whose own is computed apart.
    scale = q / total
    slope = -q
    even = 0.0
    if SMOOTHED:
        loss -= smoothing * tl.sum(above, axis=0) / vocabulary
        even = smoothing / vocabulary
        slope += smoothing - even
    if ROLES:
        unlearn = tl.load(roles + i) == _UNLEARN
        low = p < floor
        loss = tl.where(unlearn, tl.where(low, 0.0, _softplus(odds) + log_rest_at_floor), loss)
        scale = tl.where(unlearn, tl.where(low, 0.0, -p / total), scale)
        slope = tl.where(unlearn, tl.where(low, 0.0, p), slope)
        even = tl.where(unlearn, 0.0, even)
    tl.store(losses + i, (loss + z_loss * lse * lse) * factor)

    # Second sweep, backwards.
    if GRADIENT:
        scale = (scale + 2.0 * z_loss * lse * q / total) * factor
        slope = (slope + 2.0 * z_loss * lse * p) * factor
        even = even * factor
        last = (vocabulary - 1) // (LANES * WIDTH) * (LANES * WIDTH)
        for back in range(0, vocabulary, LANES * WIDTH):
            columns = last - back + offsets
            x = _logits(row, columns, vocabulary, softcap, CAPPED)
            gradient = tl.exp(x - m) * scale
            if SMOOTHED:
                gradient -= even
            gradient = tl.where(columns == target, slope, gradient)
            if CAPPED:
                ratio = x * (1.0 / softcap)
                gradient *= 1.0 - ratio * ratio
            tl.store(row + columns, gradient.to(logits.dtype.element_ty), mask=columns < vocabulary)


@triton.jit
def _scores_kernel(
    logits, stride, vocabulary, targets, logprobs, largests, log_largests, means, stds, ranks, is_argmax, softcap,
    CAPPED: tl.constexpr, MOMENTS: tl.constexpr, LANES: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Scores of one row for each program."""
    i = tl.program_id(0)
    row = logits + i.to(tl.int64) * stride
    target = tl.load(targets + i)
    at_target = _target_logit(row, target, vocabulary, softcap, CAPPED)
    target = target.to(tl.int32)

    offsets = tl.arange(0, LANES)[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
    largest = tl.zeros([LANES], tl.float32) + _LOWEST
    total = tl.zeros([LANES], tl.float32)
    weighted = tl.zeros([LANES], tl.float32)  # sum of exp(logit - largest) (logit - largest)
    greater = tl.zeros([LANES], tl.int32)
    tied = tl.zeros([LANES], tl.int32)  # ... with a lower id
    for first in range(0, vocabulary, LANES * WIDTH):
        columns = first + offsets
        x = _logits(row, columns, vocabulary, softcap, CAPPED)
        greater += tl.sum((x > at_target).to(tl.int32), axis=1)
        tied += tl.sum(((x == at_target) & (columns < target)).to(tl.int32), axis=1)
        x = tl.where(columns == target, float("-inf"), x)
        grown = tl.maximum(largest, tl.max(x, axis=1))
        shrink = tl.exp(largest - grown)
        x -= grown[:, None]
        e = tl.exp(x)
        if MOMENTS:
            weighted = (weighted + total * (largest - grown)) * shrink
            weighted += tl.sum(tl.where(e > 0.0, e * x, 0.0), axis=1)  # p log p is 0 where p is 0
        total = total * shrink + tl.sum(e, axis=1)
        largest = grown
    m = tl.max(largest, axis=0)
    shrink = tl.exp(largest - m)
    if MOMENTS:
        weighted = tl.sum((weighted + total * (largest - m)) * shrink, axis=0)
    total = _at_least_tiny(tl.sum(total * shrink, axis=0))

    odds = at_target - m - tl.log(total)
    logprob = -_softplus(-odds)
    of_others = -tl.log(total) - _softplus(odds)  # log p of a token whose logit is m
    tl.store(logprobs + i, logprob)
    tl.store(largests + i, tl.maximum(at_target, m))
    tl.store(log_largests + i, tl.where(at_target > m, logprob, of_others))
    tl.store(ranks + i, tl.sum(greater, axis=0))
    tl.store(is_argmax + i, ((at_target >= m) & (tl.sum(tied, axis=0) == 0)).to(tl.uint8))  # NaN is none

    # The variance is summed around the mean, in a second sweep: from one sweep it would be a difference of squares.
    if MOMENTS:
        p, q = _sigmoid(odds), _sigmoid(-odds)
        mean = q * (weighted / total + of_others) + tl.where(p > 0.0, p * logprob, 0.0)
        squares = tl.zeros([LANES], tl.float32)
        last = (vocabulary - 1) // (LANES * WIDTH) * (LANES * WIDTH)
        for back in range(0, vocabulary, LANES * WIDTH):
            columns = last - back + offsets
            x = _logits(row, columns, vocabulary, softcap, CAPPED)
            x = tl.where(columns == target, float("-inf"), x) - m
            e = tl.exp(x)
            from_mean = tl.where(e > 0.0, x + (of_others - mean), 0.0)
            squares += tl.sum(e * from_mean * from_mean, axis=1)
        from_mean = tl.where(p > 0.0, logprob - mean, 0.0)
        tl.store(means + i, mean)
        tl.store(stds + i, tl.sqrt(q * tl.sum(squares, axis=0) / total + p * from_mean * from_mean))


@triton.jit
def _logits(row, columns, vocabulary, softcap, CAPPED: tl.constexpr):
    """Soft-capped logits in fp32, -inf beyond the row."""
    x = tl.load(row + columns, mask=columns < vocabulary, other=float("-inf")).to(tl.float32)
    if CAPPED:
        x = tl.where(columns < vocabulary, _capped(x, softcap), float("-inf"))
    return x


@triton.jit
def _target_logit(row, target, vocabulary, softcap, CAPPED: tl.constexpr):
    """The same of the target; NaN if it is no token."""
    x = tl.load(row + target, mask=(target >= 0) & (target < vocabulary), other=float("nan")).to(tl.float32)
    if CAPPED:
        x = _capped(x, softcap)
    return x


@triton.jit
def _capped(x, softcap):
    """softcap * tanh(x / softcap); by its series near 0, where 1 - 2 e / (1 + e) would lose digits."""
    z = tl.abs(x) * (1.0 / softcap)
    e = tl.exp(-2.0 * z)
    far = 1.0 - 2.0 * e / (1.0 + e)
    s = tl.minimum(z * z, 0.0625)
    near = z * (1.0 - s * (1 / 3 - s * (2 / 15 - s * (17 / 315 - s * (62 / 2835)))))
    tanh = tl.where(z < 0.25, near, far)
    return softcap * tl.where(x < 0.0, -tanh, tanh)


@triton.jit
def _at_least_tiny(total):
    """Finite logarithm where there is no other token. NaN stays NaN."""
    return tl.where(total < _TINY, _TINY, total)


@triton.jit
def _sigmoid(x):
    """1 / (1 + exp(-x))."""
    e = tl.exp(-tl.abs(x))
    return tl.where(x < 0.0, e, 1.0) / (1.0 + e)


@triton.jit
def _softplus(x):
    """log(1 + exp(x)), to rounding: log(1 + u) for u in [0, 1] is 2 atanh(v) with v = u / (2 + u) <= 1/3, and the series' next term is
    v^17 / 17, 5e-10 of the sum. The processor's own logarithm is only good to 2^-22 near 1."""
    u = tl.exp(-tl.abs(x))
    v = u / (2.0 + u)
    s = v * v
    series = 1 / 9 + s * (1 / 11 + s * (1 / 13 + s * (1 / 15)))
    return tl.maximum(x, 0.0) + 2.0 * v * (1.0 + s * (1 / 3 + s * (1 / 5 + s * (1 / 7 + s * series))))
