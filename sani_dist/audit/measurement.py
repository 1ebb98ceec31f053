"""One measured number, with its interval and the population it was measured on; and the intervals of shares, means and medians."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

# Not scipy.stats, which takes a second to import, on every rank.
from scipy.special import betaincinv, ndtri

CONFIDENCE = 0.95
REACH = float(ndtri((1 + CONFIDENCE) / 2))  # of a normal interval, in standard errors
RESAMPLES = 1000
_ENDS = ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2)


@dataclass(frozen=True)
class Measurement:
    """`value` is None with a `reason` where there was too little to measure; beside a value, `reason` is what has to be known of it.

    `group`: {} for all, else one of kind, class, frequency, context.
    """

    metric: str
    population: str
    value: float | None
    low: float | None
    high: float | None
    n: int
    group: dict[str, str]
    reason: str | None = None
    documents: int | None = None  # those that the figure comes from, where it is one of spans


def without_value(measured: Measurement, broken: int) -> Measurement:
    """What is left of a measurement to which `broken` scores of the model were not finite: a reason."""
    reason = f"{broken} of the model's scores are not finite numbers"
    return replace(measured, value=None, low=None, high=None, reason=reason)


def clopper_pearson(hits: int, count: int) -> tuple[float, float]:
    """Exact 95 % interval of a proportion (Clopper & Pearson, 1934). Treats spans as independent."""
    tail = (1 - CONFIDENCE) / 2
    low = 0.0 if hits == 0 else float(betaincinv(hits, count - hits + 1, tail))
    high = 1.0 if hits == count else float(betaincinv(hits + 1, count - hits, 1 - tail))
    return low, high


def difference(first: tuple[int, int], second: tuple[int, int]) -> tuple[float, float, float]:
    """First proportion less the second, each (hits, count), and its 95 % interval (Newcombe, Stat. Med. 17, 1998, method 10)."""
    p, q = first[0] / first[1], second[0] / second[1]
    (p_low, p_high), (q_low, q_high) = _wilson(*first), _wilson(*second)
    return p - q, p - q - math.hypot(p - p_low, q_high - q), p - q + math.hypot(p_high - p, q - q_low)


def _wilson(hits: int, count: int) -> tuple[float, float]:
    """Score interval of a proportion (Wilson, 1927)."""
    square = REACH * REACH
    middle, half = 2 * hits + square, REACH * math.sqrt(square + 4 * hits * (1 - hits / count))
    return max(0.0, (middle - half) / (2 * (count + square))), min(1.0, (middle + half) / (2 * (count + square)))


def bootstrap_by_document(values: np.ndarray, weights: np.ndarray, documents: np.ndarray) -> tuple[float, float]:
    """95 % percentile interval of sum(values) / sum(weights) when whole documents are resampled: spans of one document hang together."""
    low, high = np.quantile(_resampled(values, weights, documents), _ENDS)
    return float(low), float(high)


def paired_by_document(values: np.ndarray, weights: np.ndarray, documents: np.ndarray) -> tuple[float, float, float]:
    """sum(values) / sum(weights), and its interval as `bootstrap_by_document` has it. Weights may be another model's values, of one sign:
    then it is the ratio of the two models."""
    sign = -1 if weights.sum() < 0 else 1
    return float(values.sum() / weights.sum()), *bootstrap_by_document(sign * values, sign * weights, documents)


def difference_by_document(
    first: np.ndarray, first_documents: np.ndarray, second: np.ndarray, second_documents: np.ndarray
) -> tuple[float, float]:
    """The same of mean(first) - mean(second), whose documents are resampled apart: they have none in common."""
    ratios = _resampled(first, np.ones(len(first)), first_documents)
    others = _resampled(second, np.ones(len(second)), second_documents, seed=1)
    low, high = np.quantile(ratios - others, _ENDS)
    return float(low), float(high)


def _resampled(values: np.ndarray, weights: np.ndarray, documents: np.ndarray, seed: int = 0) -> np.ndarray:
    """sum(values) / sum(weights) of each resample: float64 [RESAMPLES]."""
    _, place = np.unique(documents, return_inverse=True)
    sums = np.bincount(place, weights=values)
    counts = np.bincount(place, weights=weights)
    ratios = [sums[d].sum(axis=1) / np.maximum(counts[d].sum(axis=1), 1e-12) for d in _resamples(len(sums), seed)]
    return np.concatenate(ratios)


def median_by_document(values: np.ndarray, documents: np.ndarray) -> tuple[float, float, float]:
    """Median and its 95 % interval, documents resampled.

    Woodruff's interval (J. Am. Stat. Assoc. 47, 1952): of the share of values up to the median, read back as quantiles; no sorting in
    each resample.
    """
    median = float(np.median(values))
    shares = bootstrap_by_document((values <= median).astype(float), np.ones(len(values)), documents)
    low = float(np.quantile(values, shares[0], method="lower"))
    high = float(np.quantile(values, shares[1], method="higher"))
    return median, min(low, median), max(high, median)


def _resamples(documents: int, seed: int) -> Iterator[np.ndarray]:
    """RESAMPLES draws of `documents` indices, in blocks of at most 32 MiB: a large corpus must not fill the memory."""
    draw = np.random.default_rng(seed)
    block = max(1, 2**22 // documents)
    for first in range(0, RESAMPLES, block):
        yield draw.integers(0, documents, size=(min(block, RESAMPLES - first), documents))
