"""Extraction of spans, from one forward pass.

Under teacher forcing, greedy decoding from the true prefix reproduces a span exactly if and only if each of its tokens is the
arg-max, and plain sampling at temperature 1 reproduces it with p = the product of its token probabilities. So at least one of n samples
does with 1 - (1 - p)^n: (n, p)-discoverable extraction (Hayes et al., arXiv 2410.19482).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from sani_dist.audit.measurement import Measurement, bootstrap_by_document, clopper_pearson
from sani_dist.audit.scores import TokenScores


def score_spans(scores: TokenScores, token_spans: pd.DataFrame, spans: pd.DataFrame) -> pd.DataFrame:
    """One line per span: span_id, document, kind, class, in_context, logprob (sum over its tokens), greedy (all arg-max).

    `token_spans`: span_id, row, first, end (half-open); `spans`: span_id, document, kind, class, in_context.
    """
    first, end = token_spans["first"].to_numpy(), token_spans["end"].to_numpy()
    row = token_spans["row"].to_numpy()
    logprob = [float(scores.logprob[r, a:b].astype(np.float64).sum()) for r, a, b in zip(row, first, end, strict=True)]
    greedy = [bool(scores.is_argmax[r, a:b].all()) for r, a, b in zip(row, first, end, strict=True)]
    scored = pd.DataFrame({"span_id": token_spans["span_id"].to_numpy(), "logprob": logprob, "greedy": greedy})
    return scored.merge(
        spans[["span_id", "document", "kind", "class", "in_context"]], on="span_id", validate="one_to_one"
    )


def extraction(sensitive: pd.DataFrame, control: pd.DataFrame, samples: Sequence[int]) -> list[Measurement]:
    """Greedy and (n, p)-discoverable extraction over all spans, per kind and per class, beside the never-trained control.

    Both tables as `score_spans` gives them. A span whose value stands earlier in its document can be copied from the prompt; those
    are a group of their own ("context": "copyable") and count nowhere else. A population without spans yields a reason.
    """
    measured = []
    for population, table in (("sensitive", sensitive), ("control", control)):
        for group, members in _groups(table, sensitive):
            measured.append(_greedy(population, group, members))
            measured += [_leak(population, group, members, n) for n in samples]
    return measured


def _groups(table: pd.DataFrame, named_by: pd.DataFrame) -> list[tuple[dict[str, str], pd.DataFrame]]:
    from_memory, copyable = table[~table["in_context"]], table[table["in_context"]]
    groups: list[tuple[dict[str, str], pd.DataFrame]] = [({}, from_memory)]
    for column in ("kind", "class"):
        groups += [({column: str(v)}, from_memory[from_memory[column] == v]) for v in sorted(named_by[column].unique())]
    return [*groups, ({"context": "copyable"}, copyable)]


def _greedy(population: str, group: dict[str, str], spans: pd.DataFrame) -> Measurement:
    count = len(spans)
    if not count:
        return Measurement("greedy", population, None, None, None, 0, group, "no spans of this group")
    hits = int(spans["greedy"].sum())
    low, high = clopper_pearson(hits, count)
    return Measurement("greedy", population, hits / count, low, high, count, group)


def _leak(population: str, group: dict[str, str], spans: pd.DataFrame, samples: int) -> Measurement:
    metric, count = f"leak@{samples}", len(spans)
    if not count:
        return Measurement(metric, population, None, None, None, 0, group, "no spans of this group")
    p = np.exp(spans["logprob"].to_numpy())
    # 1 - (1 - p)^n through log1p and expm1, which keep their digits when p is tiny.
    leak = -np.expm1(samples * np.log1p(-np.minimum(p, 1 - 1e-15)))
    low, high = bootstrap_by_document(leak, np.ones(count), spans["document"].to_numpy())
    return Measurement(metric, population, float(leak.mean()), low, high, count, group)
