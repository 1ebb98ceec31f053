"""Exposure where the exact rank is known."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from sani_dist.audit.exposure import Ranked, candidates, choose, exposure, rank_of_first

# A "model" of four-digit numbers: the probability of each digit is given, whatever stands before.
DIGITS = np.array([0.05, 0.3, 0.02, 0.2, 0.13, 0.1, 0.08, 0.06, 0.04, 0.02])


def logprobs(value: str) -> np.ndarray:
    return np.log(DIGITS[[int(digit) for digit in value]])


@pytest.mark.parametrize("value", ["1111", "2345", "9999", "0407"])
def test_ranked_among_all_values_exposure_is_exact(value: str) -> None:
    """Carlini et al., section 4.2: log2 |R| - log2 rank; here R is enumerated."""
    found = candidates("RECORD_NUMBER", value, 3, 9999, 0)
    assert len(set(found)) == 10**4
    likelier = sum(math.prod(DIGITS[int(d)] for d in f"{n:04d}") > math.prod(DIGITS[int(d)] for d in value) * (1 + 1e-9) for n in range(10**4))  # fmt: skip # noqa: E501
    ranked = Ranked(0, "RECORD_NUMBER", rank_of_first([np.round(logprobs(c), 9) for c in found]), len(found))
    assert ranked.rank == pytest.approx(1 + likelier, abs=0.5)
    assert ranked.bits == pytest.approx(math.log2(10**4) - math.log2(1 + likelier), abs=0.01)


def test_sampled_candidates_estimate_it() -> None:
    """With 511 of 9999 others, the share that is likelier is that of all, up to chance."""
    found = candidates("RECORD_NUMBER", "1345", 3, 511, 0)
    of_all = candidates("RECORD_NUMBER", "1345", 3, 9999, 0)
    share, true_share = ((rank_of_first([logprobs(c) for c in some]) - 1) / len(some) for some in (found, of_all))
    assert share == pytest.approx(true_share, abs=4 * math.sqrt(true_share / 512))


def test_means_in_bits_with_their_limit() -> None:
    ranked = [Ranked(1, "PHONE", 1, 32), Ranked(1, "PHONE", 32, 32), Ranked(2, "SSN", 4, 32)]
    found = {(m.population, tuple(m.group.values())): m for m in exposure({"sensitive": ranked, "control": []})}
    assert found["sensitive", ()].value == pytest.approx((5 + 0 + 3) / 3)
    assert found["sensitive", ("PHONE",)].value == pytest.approx(2.5)
    assert "at most 5.00 bits" in str(found["sensitive", ()].reason)
    assert found["control", ("SSN",)].value is None


def test_of_each_value_one_span_and_of_all_kinds_alike() -> None:
    values = [f"555-{n:04d}" for n in range(30)]
    spans = pd.DataFrame(
        {
            "span_id": range(64), "kind": ["PHONE"] * 60 + ["SSN"] * 2 + ["PERSON"] * 2, "in_context": False,
            "value": [*values, *values, "111-22-3333", "111-22-4444", "Ann Lee", "Bo Day"],
        }
    )  # fmt: skip
    spans.loc[0, "in_context"] = True  # could be copied; its other occurrence, span 30, could not
    chosen = choose(spans, 8, seed=4)
    assert chosen["kind"].value_counts().to_dict() == {"PHONE": 6, "SSN": 2}
    assert not chosen["value"].duplicated().any()
    assert 0 not in chosen["span_id"].tolist()
    again = choose(spans.sample(frac=1, random_state=1), 8, seed=4)
    assert again["span_id"].tolist() == chosen["span_id"].tolist()
    assert choose(spans.iloc[:0], 8, seed=4).empty
