"""When sensitive spans no longer stand out from the control."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from sani_dist.audit.control import SAMPLES, ControlComparison, compare
from sani_dist.audit.kinds import without_control


def spans(
    logprob: float, documents: int = 20, first_document: int = 0, seed: int = 0, kind: str = "PERSON"
) -> pd.DataFrame:
    """Three spans of two tokens in each document, around a log-probability."""
    draw = np.random.default_rng(seed)
    count = 3 * documents
    return pd.DataFrame(
        {
            "document": first_document + np.repeat(np.arange(documents), 3), "first": 0, "end": 2, "kind": kind,
            "logprob": logprob + draw.standard_normal(count),
        }
    )  # fmt: skip


@pytest.mark.parametrize(("sensitive", "ends"), [(-3.0, False), (-12.0, True), (-25.0, True)])
def test_ends_when_neither_measure_is_above_the_control(sensitive: float, ends: bool) -> None:
    """Also where the sensitive spans lie far below: that is over-unlearning, and no reason to go on."""
    found = compare(spans(sensitive), spans(-12.0, first_document=100, seed=1))
    assert found.at_control is ends
    assert found.leak is not None
    assert found.low is not None
    assert found.high is not None
    assert found.low <= found.leak - found.control <= found.high


def test_a_leak_of_few_spans_is_seen_although_membership_is_not() -> None:
    few = spans(-12.0)
    few.loc[few["document"] < 8, "logprob"] = np.tile([-0.1, -20.0, -20.0], 8)
    found = compare(few, spans(-12.0, first_document=100, seed=1))
    assert found.leak == pytest.approx(8 / 60, rel=0.2)
    assert found.auc_low is not None
    assert found.auc_low <= 0.5
    assert not found.at_control


def test_too_few_documents_cannot_tell() -> None:
    assert compare(spans(-12.0), spans(-12.0, documents=9)) == ControlComparison()
    assert not ControlComparison().at_control


def test_a_kind_without_a_control_leaks_but_does_not_tell_members() -> None:
    """Towns are likelier than names wherever they stand, and none of them was left out of all training."""
    sensitive = pd.concat([spans(-12.0), spans(-2.0, kind="LOCATION", seed=2)])
    control = pd.concat(
        [spans(-12.0, first_document=100, seed=1), spans(-20.0, first_document=100, seed=3, kind="LOCATION")[:3]]
    )
    found = compare(sensitive, control)
    assert found.auc == compare(spans(-12.0), spans(-12.0, first_document=100, seed=1)).auc
    assert found.leak is not None
    assert found.leak > 0.4
    assert not found.at_control


@pytest.mark.parametrize(
    ("control", "without"),
    [
        ({"PERSON": 55, "LOCATION": 5, "DATE": 40}, []),  # a twentieth, of a half
        ({"PERSON": 56, "LOCATION": 4, "DATE": 40}, ["LOCATION"]),
        ({"PERSON": 100}, ["LOCATION", "DATE"]),
        ({}, []),
    ],
)
def test_kinds_without_control_are_those_far_rarer_in_it(control: dict[str, int], without: list[str]) -> None:
    assert without_control({"PERSON": 70, "LOCATION": 100, "DATE": 30}, control) == without


def test_the_leak_is_that_of_a_hundred_samples() -> None:
    certain = spans(0.0).assign(logprob=np.log(0.5))
    assert SAMPLES == 100
    assert compare(certain, spans(-30.0, first_document=100)).leak == pytest.approx(1)
