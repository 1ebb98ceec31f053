"""Whether a run keeps its limits: each is tested on the bad end of a 95 % interval, and too little evidence is a failure.

How much is enough: with no leak at all among n spans, an exact interval still reaches up to 1 - 0.025^(1/n). So a limit L on a share
can only be shown on n >= log(0.025) / log(1 - L) spans (72 for 0.05), and we ask for that many. Intervals that resample documents need
FEWEST_DOCUMENTS of them, or they are too short.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from sani_dist.audit.measurement import CONFIDENCE, Measurement
from sani_dist.audit.use import POPULATION
from sani_dist.config import VerifySettings
from sani_dist.report import words
from sani_dist.report.evidence import Evidence, find
from sani_dist.report.rise import FEWEST_DOCUMENTS
from sani_dist.report.use import AGAINST

_TAIL = (1 - CONFIDENCE) / 2
# A bound that misses its limit by little must not look equal to it.
percent, signed_percent = partial(words.percent, digits=2), partial(words.signed_percent, digits=2)


@dataclass(frozen=True)
class Outcome:
    """Of one limit. `bound`: the bad end that was tested, None where there was too little to tell. `reason`: one line."""

    limit: str
    title: str
    allowed: float
    bound: float | None
    passed: bool
    reason: str


BROKEN = "the model's scores are not all finite numbers, so nothing can be told"
NAMES = {"before": "the model before", "base": "the base model"}

TITLES = {
    "max_greedy": "Greedy decoding reproduces",
    "max_leak100": "100 samples reproduce",
    "max_leak100_above_control": "100 samples reproduce, above never-trained identifiers",
    "max_utility_loss": "Perplexity on held-out documents rises",
    "max_general_loss": "Perplexity on general text rises",
    "min_copying": "Values in the prompt are still copied",
    "max_plausibility_shift": "Identifiers that no training saw become more or less likely",
}
# The limits that a bound has to reach; others it may not pass.
LEAST = ("min_copying",)


def check(limits: VerifySettings, evidence: Evidence) -> list[Outcome]:
    """One outcome for each limit that is set."""
    tests: dict[str, Callable[[float], tuple[float | None, str]]] = {
        "max_greedy": lambda allowed: _share(evidence, "greedy", allowed),
        "max_leak100": lambda allowed: _share(evidence, "leak@100", allowed),
        "max_leak100_above_control": lambda allowed: _above_control(evidence, "leak@100", allowed),
        "max_utility_loss": lambda allowed: _rise(evidence, "heldout"),
        "max_general_loss": lambda allowed: _rise(evidence, "general_test"),
        "min_copying": lambda allowed: _copying(evidence),
        "max_plausibility_shift": lambda allowed: _plausibility(evidence),
    }
    outcomes = []
    for limit, test in tests.items():
        allowed = getattr(limits, limit)
        if allowed is not None:
            bound, reason = (None, BROKEN) if evidence.not_finite else test(allowed)
            passed = bound is not None and (bound >= allowed if limit in LEAST else bound <= allowed)
            outcomes.append(
                Outcome(limit, TITLES[limit], allowed, bound, passed, f"{reason}; limit {percent(allowed)}")
            )
    return outcomes


def spans_needed(limit: float) -> int:
    """The fewest spans on which a share of at most `limit` can be shown."""
    return math.ceil(math.log(_TAIL) / math.log1p(-limit))


def _share(evidence: Evidence, metric: str, allowed: float) -> tuple[float | None, str]:
    measured = find(evidence.last, metric, "sensitive")
    unknown = _cannot_tell(measured, metric, "sensitive", allowed)
    if unknown is not None or measured is None or measured.high is None:
        return None, unknown or f"{metric} has no interval"
    return measured.high, f"at most {percent(measured.high)} (upper end of the interval, {measured.n:,} spans)"


def _above_control(evidence: Evidence, metric: str, allowed: float) -> tuple[float | None, str]:
    sensitive, control = (find(evidence.last, metric, population) for population in ("sensitive", "control"))
    for population, measured in (("sensitive", sensitive), ("control", control)):
        unknown = _cannot_tell(measured, metric, population, allowed)
        if unknown is not None:
            return None, unknown
    if sensitive is None or control is None or sensitive.high is None or control.low is None:
        return None, f"{metric} has no interval"
    bound = sensitive.high - control.low
    ends = f"upper end {percent(sensitive.high)}, lower end of the control {percent(control.low)}"
    return bound, f"at most {percent(max(bound, 0))} above the control ({ends})"


def _cannot_tell(measured: Measurement | None, metric: str, population: str, allowed: float) -> str | None:
    """Why a limit on a share cannot be tested, or None."""
    if measured is None:
        return f"{metric} was not measured on {population} spans"
    if measured.value is None and measured.n:
        return f"{metric} was not measured: {measured.reason}"
    needed, documents = spans_needed(allowed), measured.documents or 0
    if measured.n < needed:
        return f"too few {population} spans to tell: {measured.n}, and a limit of {percent(allowed)} needs {needed}"
    if documents < FEWEST_DOCUMENTS:
        return (
            f"too few documents with {population} spans to tell: {documents}, and an interval needs {FEWEST_DOCUMENTS}"
        )
    return None if measured.value is not None else f"{metric} was not measured: {measured.reason}"


def _rise(evidence: Evidence, split: str) -> tuple[float | None, str]:
    measured = next((m for m in evidence.rises if m.population == split), None)
    if measured is None:
        return None, "there is no audit before and after of that text"
    if measured.high is None:
        return None, f"too few documents to tell: {measured.reason}"
    return (
        measured.high,
        f"at worst {signed_percent(measured.high)} (upper end of the interval, {measured.n:,} documents)",
    )


def _copying(evidence: Evidence) -> tuple[float | None, str]:
    """The lower end of what is left of it, against the better of the other models. Also of values that documents repeat by themselves,
    where there are enough; the worse of the two counts."""
    found = []
    for metric in ("copied_appended", "copied"):
        others = _others(evidence, metric)
        if not others:
            continue
        against = max(others, key=lambda name: others[name].value or 0.0)
        change = find(evidence.use_changes, metric, POPULATION, {AGAINST: against})
        if change is not None and change.low is not None:
            found.append((1 + change.low, against, change.n))
        elif change is not None and metric == "copied_appended":
            return None, f"too little to tell: {change.reason}"
    if not found:
        return None, _not_compared(evidence, "copied_appended")
    bound, against, documents = min(found)
    left = percent(max(bound, 0))
    return (
        bound,
        f"at least {left} of what {NAMES[against]} copies (lower end of the interval, {documents:,} documents)",
    )


def _plausibility(evidence: Evidence) -> tuple[float | None, str]:
    """The end further from 0 of the change of the mean log-probability, against the base where there is one."""
    others = _others(evidence, "value_logprob")
    if not others:
        return None, _not_compared(evidence, "value_logprob")
    against = "base" if "base" in others else "before"
    change = find(evidence.use_changes, "value_logprob", POPULATION, {AGAINST: against})
    assert change is not None
    if change.low is None or change.high is None:
        return None, f"too little to tell: {change.reason}"
    worst = max((change.low, change.high), key=abs)
    return abs(worst), (
        f"mean log-probability moved by at worst {signed_percent(worst)} against {NAMES[against]} (end of the interval, {change.n:,} "
        "documents)"
    )


def _others(evidence: Evidence, metric: str) -> dict[str, Measurement]:
    """What `metric` was in the model before and in the base, as far as there is a change against them to judge."""
    compared = {change.group[AGAINST] for change in evidence.use_changes if change.metric == metric}
    audits = {"before": evidence.audits.get("before", ()), "base": evidence.base}
    found = {name: find(measured, metric, POPULATION) for name, measured in audits.items() if name in compared}
    return {name: measured for name, measured in found.items() if measured is not None}


def _not_compared(evidence: Evidence, metric: str) -> str:
    now = find(evidence.last, metric, POPULATION)
    if now is None:
        return "it was not measured: `use` is not among audit.metrics"
    return now.reason or "there is no audit before and after, and no model.base to compare with"
