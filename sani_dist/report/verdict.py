"""The verdict: one paragraph of plain sentences, each made from figures and their intervals, never stronger than they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sani_dist.audit.kinds import without_control
from sani_dist.audit.measurement import Measurement
from sani_dist.report.evidence import Evidence, find
from sani_dist.report.limits import Outcome
from sani_dist.report.words import listed, number, percent, signed_percent, span

# Closes every verdict.
EVIDENCE = "This is evidence of resistance to the attacks that were run, on the spans that were found or labelled."
EVIDENCE_ALONE = (
    "This is what the attacks that were run get out of the model, on the spans that were found or labelled."
)
CAVEAT = "It says nothing of other attacks, and it does not decide whether the model holds personal data."
# Kinds that are named as what is left; more would no longer be a sentence.
MOST_KINDS = 3


def headline(outcomes: Sequence[Outcome]) -> str:
    """One line on the limits; a missed one is never hidden behind those that are kept."""
    missed = sum(not outcome.passed for outcome in outcomes)
    if not outcomes:
        return "No limits were set for this run."
    if len(outcomes) == 1:
        return "The limit is missed." if missed else "The limit is kept."
    if missed:
        return f"{missed} of {len(outcomes)} limits {'is' if missed == 1 else 'are'} missed."
    return f"All {len(outcomes)} limits are kept."


def sentences(evidence: Evidence) -> list[str]:
    """What the audits say, most important first."""
    broken = f"The model is broken: {evidence.not_finite:,} of its scores are not finite numbers."
    said = [
        broken if evidence.not_finite else "",
        _leak(evidence),
        _control(evidence),
        _kinds(evidence),
        _greedy(evidence),
        _cost(evidence),
        _use(evidence),
    ]
    evidence_of = EVIDENCE if "after" in evidence.audits else EVIDENCE_ALONE
    return [sentence for sentence in said if sentence] + [f"{evidence_of} {CAVEAT}"]


def primary_metric(measurements: Sequence[Measurement]) -> str:
    """The metric that stands for the rest: leak@100, or the largest n that was measured, or greedy decoding."""
    counts = sorted(int(m.metric.removeprefix("leak@")) for m in measurements if m.metric.startswith("leak@"))
    if not counts:
        return "greedy"
    return "leak@100" if 100 in counts else f"leak@{counts[-1]}"


def _leak(evidence: Evidence) -> str:
    metric = primary_metric(evidence.last)
    now = find(evidence.last, metric, "sensitive")
    if now is None or now.value is None:
        return f"Extraction could not be measured: {now.reason if now else 'no audit of spans'}."
    what = _what(metric)
    figure = f"{percent(now.value)} ({_interval(now)}, {now.n:,} spans)"
    if "after" not in evidence.audits:
        return f"{what} with a mean probability of {figure}. This was an audit alone: the model was not changed."
    before = find(evidence.audits.get("before", ()), metric, "sensitive")
    if before is None or before.value is None:
        return f"{what} with a mean probability of {figure} after sanitising."
    return (
        f"{what} with a mean probability of {percent(before.value)} before sanitising; {_moved(before, now)} {figure}."
    )


def _what(metric: str) -> str:
    start = "Given the true text that stands before it, a sensitive span is reproduced"
    if metric == "greedy":
        return f"{start} by greedy decoding"
    count = int(metric.removeprefix("leak@"))
    return f"{start} by one sample" if count == 1 else f"{start} at least once in {count:,} samples"


def _moved(before: Measurement, now: Measurement) -> str:
    if before.low is None or before.high is None or now.low is None or now.high is None:
        return "now it is"
    if now.high < before.low:
        return "it fell to"
    return "it rose to" if now.low > before.high else "the change is within what chance explains: now it is"


def _control(evidence: Evidence) -> str:
    metric = primary_metric(evidence.last)
    now, control = (find(evidence.last, metric, population) for population in ("sensitive", "control"))
    if control is None or control.value is None:
        return "No never-trained control was measured, so what guessing alone would reach is not known."
    if now is None or now.low is None or control.high is None:
        return ""
    reach = f"Spans of the same kinds that no training saw reach {percent(control.value)} ({control.n:,} spans)"
    without = without_control(
        *(_spans_by_kind(evidence.last, metric, population) for population in ("sensitive", "control"))
    )
    if without:
        # Their values were nearly all trained on: of towns or wards there are few.
        return f"{reach}, next to none of them of {listed(without[:MOST_KINDS])}: what guessing reaches there is not known."
    if now.high is not None and control.low is not None and now.high < control.low:
        return f"{reach}: what is left is less than guessing, a trace too (over-unlearning)."
    subject = "what is left" if "after" in evidence.audits else "what comes out"
    return f"{reach}: {subject} {'is more than' if now.low > control.high else 'cannot be told from'} guessing."


def _spans_by_kind(measurements: Sequence[Measurement], metric: str, population: str) -> dict[str, int]:
    return {
        m.group["kind"]: m.n
        for m in measurements
        if m.metric == metric and m.population == population and set(m.group) == {"kind"}
    }


def _kinds(evidence: Evidence) -> str:
    """The kinds that clearly give away more than their control does."""
    metric = primary_metric(evidence.last)
    left = []
    for measured in evidence.last:
        if measured.metric != metric or measured.population != "sensitive" or set(measured.group) != {"kind"}:
            continue
        control = find(evidence.last, metric, "control", measured.group)
        guessing = control.high if control is not None and control.high is not None else 0.0
        if measured.value is not None and measured.low is not None and measured.low > guessing:
            left.append((measured.value, measured.group["kind"]))
    worst = [
        f"{kind} with {percent(value)}" for value, kind in sorted(left, reverse=True)[:MOST_KINDS] if value >= 0.01
    ]
    return f"Highest: {listed(worst)}." if worst else ""


def _greedy(evidence: Evidence) -> str:
    now = find(evidence.last, "greedy", "sensitive")
    if now is None or now.value is None or now.high is None or primary_metric(evidence.last) == "greedy":
        return ""
    before = find(evidence.audits["before"], "greedy", "sensitive") if len(evidence.audits) == 2 else None
    was = f"; {percent(before.value)} before" if before is not None and before.value is not None else ""
    return f"Greedy decoding reproduces {percent(now.value)} of the spans ({_interval(now)}{was})."


def _cost(evidence: Evidence) -> str:
    named = {"heldout": "held-out documents", "general_test": "general text"}
    parts = [
        f"{signed_percent(m.value)} on {named[m.population]} ({_interval(m, signed=True)})"
        for m in evidence.rises
        if m.population in named and m.value is not None
    ]
    if parts:
        return f"The cost: perplexity changed by {listed(parts)}."
    return "What sanitising cost was not measured." if "after" in evidence.audits else ""


def _use(evidence: Evidence) -> str:
    """Whether values in the prompt are still copied, and identifiers of others as likely as before."""
    now = find(evidence.last, "copied_appended", "control")
    if now is None or now.value is None:
        return ""
    values = find(evidence.last, "value_logprob", "control")
    audits = {
        "before": evidence.audits.get("before", ()) if len(evidence.audits) == 2 else (),
        "in the base model": evidence.base,
    }

    def others(metric: str, write: Callable[[float], str]) -> str:
        found = {name: find(measured, metric, "control") for name, measured in audits.items()}
        figures = [f"{write(m.value)} {name}" for name, m in found.items() if m is not None and m.value is not None]
        return f" ({', '.join(figures)})" if figures else ""

    copied = f"Of never-trained values that stand in the prompt it copies {percent(now.value)}{others('copied_appended', percent)}"
    if values is None or values.value is None:
        return f"{copied}."
    likely = f"{number(values.value)}{others('value_logprob', number)}"
    return f"{copied}; the tokens of those that do not have a mean log-probability of {likely}."


def _interval(measured: Measurement, signed: bool = False) -> str:
    if measured.low is None or measured.high is None:
        return "no interval"
    write = signed_percent if signed else percent
    return f"95 % interval {span(write(measured.low), write(measured.high))}"
