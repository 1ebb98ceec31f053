"""Copying and plausibility in limits, page, card and verdict, from sums of each document that a run folder holds."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict

import numpy as np
import pandas as pd
import pytest

from sani_dist import api
from sani_dist.audit import use
from sani_dist.config import VerifySettings
from sani_dist.report import write_report
from sani_dist.report.words import MINUS
from sani_dist.run import Run

from .conftest import AFTER, BEFORE, MakeRun
from .test_document import check
from .test_page import Page

DOCUMENTS = 40


def sums(copied: float, logprob: float, natural: float | None = None, documents: int = DOCUMENTS) -> pd.DataFrame:
    """Of documents of 4 values, of which a share is copied, and 20 tokens of such a mean log-probability; documents differ much.

    natural: share that is copied of values that documents repeat by themselves, 2 each.
    """
    numbers = np.arange(documents)
    spread = 1 + 0.5 * np.sin(numbers)
    spread /= spread.mean()
    lines = [
        ("copied_appended", copied * 4 * spread, 4),
        ("value_logprob", 20 * logprob * spread, 20),
        ("value_rank", 20 * np.log(1 - logprob) * spread, 20),
        *([("copied", natural * 2 * spread, 2)] if natural is not None else []),
    ]
    tables = [
        pd.DataFrame({"metric": metric, "kind": "PERSON", "document": numbers, "total": total, "count": count})
        for metric, total, count in lines
    ]
    return pd.concat(tables, ignore_index=True)


MakeUse = Callable[..., Run]


@pytest.fixture
def make(make_run: MakeRun) -> MakeUse:
    """A run that has measured these sums of each model."""

    def with_use(after: pd.DataFrame | None, before: pd.DataFrame, base: pd.DataFrame | None = None) -> Run:
        tables = {name: table for name, table in (("before", before), ("after", after)) if table is not None}
        measured = {"before": BEFORE, "after": AFTER}
        audits = {name: [*measured[name], *use.measure(table)] for name, table in tables.items()}
        run = make_run(before=audits["before"], after=audits.get("after"))
        if base is not None:
            document = {"schema": 1, "measurements": [asdict(m) for m in use.measure(base)]}
            run.path("audit", "base.json").write_text(json.dumps(document))
            tables["base"] = base
        for name, table in tables.items():
            table.to_parquet(run.path("audit", f"{name}-use.parquet"))
        return run

    return with_use


def only(run: Run, **limits: float) -> tuple[bool, float | None, str]:
    (outcome,) = api.verify(run.folder, limits)
    return outcome.passed, outcome.bound, outcome.reason


def test_copying_is_judged_by_the_better_of_the_two_other_models(make: MakeUse) -> None:
    run = make(sums(0.4, -1), before=sums(0.3, -1), base=sums(0.5, -1))
    passed, bound, reason = only(run, min_copying=0.9)
    assert not passed
    assert bound == pytest.approx(0.8)
    assert reason == (
        "at least 80.00 % of what the base model copies (lower end of the interval, 40 documents); limit 90.00 %"
    )
    assert only(run, min_copying=0.79)[0]


def test_without_a_base_it_is_judged_by_the_model_before(make: MakeUse) -> None:
    assert only(make(sums(0.4, -1), before=sums(0.3, -1)), min_copying=0.9)[:2] == (True, pytest.approx(4 / 3))


def test_the_worse_of_both_ways_to_copy_counts(make: MakeUse) -> None:
    run = make(sums(0.4, -1, natural=0.0), before=sums(0.4, -1, natural=0.9))
    assert only(run, min_copying=0.9)[:2] == (False, pytest.approx(0))


@pytest.mark.parametrize(("logprob", "bound"), [(-1.2, 0.2), (-0.8, 0.2), (-1.1, 0.1), (-70.0, 69.0)])
def test_plausibility_may_move_neither_up_nor_down(make: MakeUse, logprob: float, bound: float) -> None:
    run = make(sums(0.4, logprob), before=sums(0.4, -3), base=sums(0.4, -1))
    passed, found, reason = only(run, max_plausibility_shift=0.15)
    assert passed is (bound <= 0.15)
    assert found == pytest.approx(bound)
    assert "against the base model" in reason


def test_plausibility_without_a_base_is_judged_by_the_model_before(make: MakeUse) -> None:
    passed, bound, reason = only(make(sums(0.4, -3.3), before=sums(0.4, -3)), max_plausibility_shift=0.15)
    assert (passed, bound) == (True, pytest.approx(0.1))
    assert "against the model before" in reason


def test_too_little_and_nothing_measured_fail(make: MakeUse, make_run: MakeRun) -> None:
    few = sums(0.4, -1, documents=9)
    run = make(few, before=few)
    for limits in ({"min_copying": 0.9}, {"max_plausibility_shift": 0.15}):
        passed, bound, reason = only(run, **limits)
        assert (passed, bound) == (False, None)
        assert "too little to tell: 9 documents" in reason


def test_a_run_that_did_not_ask_fails_and_is_reported(make_run: MakeRun) -> None:
    run = make_run()
    passed, bound, reason = only(run, min_copying=0.9)
    assert (passed, bound) == (False, None)
    assert "not measured: `use` is not among audit.metrics" in reason
    write_report(run)
    check(json.loads(run.path("report", "report.json").read_text()))


def test_an_audit_alone_is_compared_with_the_base(make: MakeUse) -> None:
    run = make(None, before=sums(0.4, -1), base=sums(0.5, -1))
    assert only(run, min_copying=0.9)[1] == pytest.approx(0.8)
    write_report(run)
    check(json.loads(run.path("report", "report.json").read_text()))
    assert "What it is worth" in run.path("report", "index.html").read_text()


def test_page_card_and_verdict_say_memorised_base_and_sanitised(make: MakeUse) -> None:
    run = make(sums(0.2, -1.5), before=sums(0.4, -0.9), base=sums(0.5, -1))
    write_report(run, VerifySettings(min_copying=0.9, max_plausibility_shift=0.15))
    check(json.loads(run.path("report", "report.json").read_text()))
    page = Page(run.path("report", "index.html").read_text()).words()
    card = run.path("report", "MODEL_CARD.md").read_text().replace("\\", "")
    sentence = (
        "Of never-trained values that stand in the prompt it copies 20.0 % (40.0 % before, 50.0 % in the base model); the tokens of those "
        f"that do not have a mean log-probability of {MINUS}1.50 ({MINUS}0.900 before, {MINUS}1.00 in the base model)."
    )
    for text in (page, card.replace("\N{NO-BREAK SPACE}", " ")):
        assert sentence in text
        assert "2 of 2 limits are missed" in text
        assert f"{MINUS}60.0 %" in text
        assert "base model" in text
    changes = json.loads(run.path("report", "report.json").read_text())["use_change"]
    (found,) = [m for m in changes if (m["metric"], m["group"]) == ("value_logprob", {"against": "base"})]
    assert found["value"] == pytest.approx(-0.5)
    assert "Copied from the prompt" in page
    assert "no value stands earlier in its control document" in page
