"""Which kind of forgetting the figures of a run say it is."""

from __future__ import annotations

import pytest

from sani_dist.attack.result import Result
from sani_dist.audit.measurement import Measurement
from sani_dist.report.evidence import Evidence
from sani_dist.report.regime import regime


def leak(population: str, value: float, metric: str = "leak@100", **group: str) -> Measurement:
    return Measurement(metric, population, value, value - 0.02, value + 0.02, 200, group)


def relearnt(variant: str, value: float, control: float = 0.0) -> Result:
    return Result("relearn", variant, "attacked", (leak("sensitive", value), leak("control", control)))


def drifted(cka: float) -> Result:
    layers = [leak("repair", value, "cka", layer=str(i)) for i, value in enumerate((cka - 0.01, cka + 0.01))]
    return Result("drift", "each layer", "attacked", (*layers, leak("repair", 0.25, "pca_distance")))


def evidence(*attacks: Result, after: float = 0.1, rise: float = 0.04) -> Evidence:
    audits = {"before": (leak("sensitive", 0.7),), "after": (leak("sensitive", after),)}
    rises = tuple(leak(split, rise, "perplexity_rise") for split in ("general_test", "heldout"))
    return Evidence(audits, rises, {}, attacks)


@pytest.mark.parametrize(
    ("back", "rise", "expected"),
    [
        (0.12, 0.04, "irreversible, not catastrophic"),
        (0.3, 0.04, "reversible, not catastrophic"),
        (0.12, 1.5, "irreversible, catastrophic"),
        (0.3, 1.5, "reversible, catastrophic"),
    ],
)
def test_relearning_and_usefulness_decide(back: float, rise: float, expected: str) -> None:
    found = regime(evidence(relearnt("nothing", 0.1), relearnt("general", 0.1), relearnt("documents", back), rise=rise))
    assert f"forgetting is {expected} (" in found
    assert f"{100 * (back - 0.1) / 0.6:.1f} % of what was forgotten (trained on half of the documents" in found


def test_what_the_control_learns_too_is_no_memory() -> None:
    """All leak more after training on documents of their format: spans that nobody ever saw as well."""
    found = regime(evidence(relearnt("nothing", 0.1), relearnt("documents", 0.3, control=0.19)))
    assert "irreversible" in found
    assert "brought back 1.7 %" in found


@pytest.mark.parametrize(("cka", "expected"), [(0.95, "is reversible"), (0.8, "is irreversible")])
def test_drift_decides_where_no_relearning_was_tried(cka: float, expected: str) -> None:
    found = regime(evidence(drifted(cka)))
    assert expected in found
    assert "mean PCA distance of 0.25" in found
    assert "so that decides" in found
    assert "so that decides" not in regime(evidence(drifted(cka), relearnt("nothing", 0.1), relearnt("general", 0.1)))


def test_without_forgetting_there_is_no_regime() -> None:
    tried = (relearnt("nothing", 0.69), relearnt("documents", 0.7), drifted(0.99))
    assert regime(evidence(*tried, after=0.69)) == ""
    assert regime(evidence()) == ""
    assert regime(Evidence({"before": (leak("sensitive", 0.7),)}, (), {}, tried)) == ""
