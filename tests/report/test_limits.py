"""Limits: the bad end of the interval counts, and too little evidence is a failure."""

from __future__ import annotations

from pathlib import Path

import pytest
from scipy.stats import binomtest
from typer.testing import CliRunner

from sani_dist import InputError, api
from sani_dist.cli import app
from sani_dist.report.limits import spans_needed
from sani_dist.run import Run

from .conftest import AFTER, MakeRun, changed, share


def only(run: Run, **limits: float) -> tuple[bool, float | None, str]:
    """The outcome of the one limit given."""
    (outcome,) = api.verify(run.folder, limits)
    return outcome.passed, outcome.bound, outcome.reason


@pytest.mark.parametrize("limit", [0.2, 0.05, 0.01, 0.003])
def test_spans_needed_is_where_an_exact_interval_of_no_hit_falls_under_the_limit(limit: float) -> None:
    needed = spans_needed(limit)
    ends = [binomtest(0, n).proportion_ci(confidence_level=0.95, method="exact").high for n in (needed - 1, needed)]
    assert ends[0] > limit >= ends[1]


def test_five_percent_need_72_spans() -> None:
    assert spans_needed(0.05) == 72


def test_a_value_under_the_limit_is_not_enough(make_run: MakeRun) -> None:
    """9 of 300 is 3 %, its interval reaches 5.6 %."""
    run = make_run()
    high = binomtest(9, 300).proportion_ci(confidence_level=0.95, method="exact").high
    assert 0.03 < 0.05 < high
    passed, bound, reason = only(run, max_leak100=0.05)
    assert not passed
    assert bound == pytest.approx(high)
    assert reason == "at most 5.62 % (upper end of the interval, 300 spans); limit 5.00 %"
    assert only(run, max_leak100=0.057)[0]


def test_the_last_audit_is_tested_on_all_spans_that_were_trained_on(make_run: MakeRun) -> None:
    """Not the audit before, the control, a kind or the spans that can be copied: all of those would pass or fail otherwise."""
    assert only(make_run(), max_greedy=0.05)[0]


def test_too_few_spans_fail_however_good_they_look(make_run: MakeRun) -> None:
    few = changed(AFTER, "leak@100", value=0.0, low=0.0, high=0.0, n=71)
    passed, bound, reason = only(make_run(after=few), max_leak100=0.05)
    assert (passed, bound) == (False, None)
    assert reason == "too few sensitive spans to tell: 71, and a limit of 5.00 % needs 72; limit 5.00 %"


def test_enough_spans_pass(make_run: MakeRun) -> None:
    enough = changed(AFTER, "leak@100", value=0.0, low=0.0, high=0.0, n=72)
    assert only(make_run(after=enough), max_leak100=0.05)[0]


def test_spans_of_too_few_documents_fail(make_run: MakeRun) -> None:
    """Resampling one document gives an interval without width."""
    passed, _, reason = only(make_run(sensitive_documents=9), max_greedy=0.05)
    assert not passed
    assert "too few documents with sensitive spans to tell: 9" in reason


def test_what_was_not_measured_fails(make_run: MakeRun) -> None:
    without = [m for m in AFTER if m.metric != "leak@100"]
    passed, _, reason = only(make_run(after=without), max_leak100=0.05)
    assert not passed
    assert reason.startswith("leak@100 was not measured on sensitive spans")


def test_a_value_without_number_fails_with_its_reason(make_run: MakeRun) -> None:
    none = changed(AFTER, "leak@100", value=None, low=None, high=None, reason="no spans of this group")
    passed, _, reason = only(make_run(after=none), max_leak100=0.05)
    assert not passed
    assert "no spans of this group" in reason


def test_above_control_takes_the_bad_ends_of_both(make_run: MakeRun) -> None:
    after = changed(AFTER, "leak@100", "control", value=0.04, low=0.02, high=0.07)
    passed, bound, _ = only(make_run(after=after), max_leak100_above_control=0.05)
    high = share("leak@100", 9, 300).high
    assert high is not None
    assert bound == pytest.approx(high - 0.02)
    assert passed


def test_above_control_without_control_fails(make_run: MakeRun) -> None:
    after = [m for m in AFTER if m.population != "control"]
    passed, _, reason = only(make_run(after=after), max_leak100_above_control=0.05)
    assert not passed
    assert "not measured on control spans" in reason


@pytest.mark.parametrize(("rise", "passed"), [(0.02, True), (0.08, False), (-0.3, True)])
def test_utility_loss_is_the_paired_rise_of_perplexity(make_run: MakeRun, rise: float, passed: bool) -> None:
    run = make_run(rise=rise)
    assert only(run, max_utility_loss=0.05)[0] is passed
    assert only(run, max_general_loss=0.05)[0] is passed


def test_utility_loss_of_few_documents_fails(make_run: MakeRun) -> None:
    passed, _, reason = only(make_run(documents=9), max_utility_loss=0.05)
    assert not passed
    assert "9 documents" in reason


def test_an_audit_alone_can_keep_limits_on_extraction_and_none_on_loss(make_run: MakeRun) -> None:
    run = make_run(before=AFTER, after=None)
    assert only(run, max_greedy=0.05)[0]
    passed, _, reason = only(run, max_utility_loss=0.05)
    assert not passed
    assert "no audit before and after" in reason


def test_limits_of_the_settings_hold_unless_others_are_given(make_run: MakeRun) -> None:
    run = make_run(verify={"max_leak100": 0.05, "max_greedy": 0.05})
    assert [o.passed for o in api.verify(run.folder)] == [True, False]
    assert [o.passed for o in api.verify(run.folder, {"max_leak100": 0.1})] == [True, True]


def test_a_file_that_was_changed_after_the_audit_is_refused(make_run: MakeRun) -> None:
    run = make_run()
    path = run.path("audit", "after.json")
    path.write_text(path.read_text().replace("0.03", "0.00"))
    with pytest.raises(InputError, match="no audit after, or another than the run wrote"):
        api.verify(run.folder, {"max_leak100": 0.05})


def test_a_run_without_audits_is_refused(make_run: MakeRun) -> None:
    run = make_run()
    run.update(stages=["prepare", "erase", "export"])
    with pytest.raises(InputError, match="was run without an audit"):
        api.verify(run.folder, {"max_leak100": 0.05})


# The command


def verify(folder: Path, *options: str) -> tuple[int, list[str]]:
    result = CliRunner().invoke(app, ["verify", str(folder), *options])
    return result.exit_code, result.stdout.splitlines()


def test_exit_code_0_when_all_limits_are_kept(make_run: MakeRun) -> None:
    code, lines = verify(make_run().folder, "--max-greedy", "0.05", "--max-utility-loss", "0.05")
    assert code == 0
    assert [line.split()[0] for line in lines] == ["kept", "kept"]


def test_exit_code_1_with_a_reason_in_one_line_for_each_limit(make_run: MakeRun) -> None:
    code, lines = verify(make_run().folder, "--max-greedy", "0.05", "--max-leak100", "0.05")
    assert code == 1
    assert [line.split()[0] for line in lines] == ["kept", "MISSED"]
    assert lines[1].endswith("at most 5.62 % (upper end of the interval, 300 spans); limit 5.00 %")


@pytest.mark.parametrize(
    "options", [[], ["--max-leak100", "1.5"], ["--max-leak100", "0"], ["--max-utility-loss", "-0.1"]]
)
def test_no_limit_or_a_wrong_one_is_bad_input(make_run: MakeRun, options: list[str]) -> None:
    result = CliRunner().invoke(app, ["verify", str(make_run().folder), *options])
    assert isinstance(result.exception, InputError)
    assert result.exception.exit_code == 2
    assert "\n" not in str(result.exception)
