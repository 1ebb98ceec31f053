"""One measured number, with its interval and the population it was measured on; and the two intervals we use."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import beta

CONFIDENCE = 0.95
RESAMPLES = 1000


@dataclass(frozen=True)
class Measurement:
    """`value` is None with a `reason` where there was too little to measure. `group`: {} for all, else kind or class."""

    metric: str
    population: str
    value: float | None
    low: float | None
    high: float | None
    n: int
    group: dict[str, str]
    reason: str | None = None


def clopper_pearson(hits: int, count: int) -> tuple[float, float]:
    """Exact 95 % interval of a proportion (Clopper & Pearson, 1934). Treats spans as independent."""
    tail = (1 - CONFIDENCE) / 2
    low = 0.0 if hits == 0 else float(beta.ppf(tail, hits, count - hits + 1))
    high = 1.0 if hits == count else float(beta.ppf(1 - tail, hits + 1, count - hits))
    return low, high


def bootstrap_by_document(values: np.ndarray, weights: np.ndarray, documents: np.ndarray) -> tuple[float, float]:
    """95 % percentile interval of sum(values) / sum(weights) when whole documents are resampled: spans of one document hang together."""
    _, place = np.unique(documents, return_inverse=True)
    sums = np.bincount(place, weights=values)
    counts = np.bincount(place, weights=weights)
    drawn = np.random.default_rng(0).integers(0, len(sums), size=(RESAMPLES, len(sums)))
    ratios = sums[drawn].sum(axis=1) / np.maximum(counts[drawn].sum(axis=1), 1e-12)
    low, high = np.quantile(ratios, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)
