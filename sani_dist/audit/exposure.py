"""Exposure of structured values: where the true one stands among random values of its format (Carlini et al., arXiv 1802.08232).

    exposure = log2 |R| - log2 rank        in bits

with R the true value and the sampled candidates, ranked by the log-probability of the whole value given the true text before it (the
last 64 tokens). 0 bits: last of all; log2 |R|: first. More than that cannot be seen with |R| values: it is a lower bound for what is
known best. A model that knows nothing ranks at random and has log2 e = 1.44 bits on average where all values are equally plausible; the
control says what they are where not.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from sani_dist.audit.measurement import Measurement, bootstrap_by_document
from sani_dist.corpus.formats import alternatives, is_structured


@dataclass(frozen=True)
class Ranked:
    """A value among `candidates` values, itself included; `rank` 1 is the likeliest."""

    document: int
    kind: str
    rank: int
    candidates: int

    @property
    def bits(self) -> float:
        return math.log2(self.candidates) - math.log2(self.rank)


def choose(spans: pd.DataFrame, most: int, seed: int) -> pd.DataFrame:
    """At most `most` spans with a structured value, one for each value, as many of each kind as there are; the same for a seed.

    `spans`: span_id, kind, value, in_context. Values that could be copied from the prompt are left out.
    """
    structured = [
        not copyable and is_structured(kind, value)
        for kind, value, copyable in zip(spans["kind"], spans["value"], spans["in_context"], strict=True)
    ]
    left = spans[np.array(structured, dtype=bool)].sort_values("span_id").drop_duplicates(["kind", "value"])
    left = left.iloc[random.Random(seed).sample(range(len(left)), len(left))]
    turn = left.groupby("kind").cumcount()  # round robin over the kinds
    return left.assign(turn=turn).sort_values(["turn", "kind"], kind="stable").head(most).drop(columns="turn")


def candidates(kind: str, value: str, span_id: int, count: int, seed: int) -> tuple[str, ...]:
    """The true value and `count` others of its format (fewer where there are fewer); the same for a seed."""
    return (value, *alternatives(kind, value, count, random.Random(f"{seed} {span_id}")))


def rank_of_first(logprobs: Sequence[np.ndarray]) -> int:
    """Place of the first candidate when all are sorted by their summed log-probability; 1 is the likeliest, ties count for it."""
    total = [float(tokens.sum()) for tokens in logprobs]
    return 1 + sum(other > total[0] for other in total[1:])


def exposure(ranked: dict[str, list[Ranked]]) -> list[Measurement]:
    """Mean exposure in bits, of all values and of each kind; `ranked`: population -> values."""
    kinds = sorted({value.kind for values in ranked.values() for value in values})
    measured = []
    for population, values in ranked.items():
        measured.append(_mean(population, {}, values))
        measured += [_mean(population, {"kind": kind}, [v for v in values if v.kind == kind]) for kind in kinds]
    return measured


def _mean(population: str, group: dict[str, str], values: list[Ranked]) -> Measurement:
    if not values:
        return Measurement("exposure", population, None, None, None, 0, group, "no structured values of this group")
    bits = np.array([value.bits for value in values])
    low, high = bootstrap_by_document(bits, np.ones(len(bits)), np.array([value.document for value in values]))
    most = max(value.candidates for value in values)
    reason = f"rank among up to {most} values: at most {math.log2(most):.2f} bits can be seen"
    return Measurement("exposure", population, float(bits.mean()), low, high, len(values), group, reason)
