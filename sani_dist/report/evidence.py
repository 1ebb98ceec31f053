"""What a run folder holds of evidence, read and typed. Works on a purged run too: nothing here needs text, tokens or weights."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from sani_dist.attack.result import Result
from sani_dist.audit.measurement import Measurement
from sani_dist.errors import InputError
from sani_dist.report.rise import perplexity_rise
from sani_dist.report.use import use_changes
from sani_dist.run import Run, read_json


@dataclass(frozen=True)
class Evidence:
    """The audits of a run, "before" and "after", as far as they were made; the change of perplexity; the summary of the corpus; what
    attacks got out; what was measured of the model before the sensitive training; and the change of use against it and against the audit
    before."""

    audits: Mapping[str, tuple[Measurement, ...]]
    rises: tuple[Measurement, ...]
    summary: Mapping[str, Any]
    attacks: tuple[Result, ...] = ()
    not_finite: int = 0  # scores of tokens, in both audits together
    base: tuple[Measurement, ...] = ()
    use_changes: tuple[Measurement, ...] = ()

    @property
    def last(self) -> tuple[Measurement, ...]:
        """The audit that speaks of the model as it is now."""
        return list(self.audits.values())[-1]


def read_evidence(run: Run) -> Evidence:
    """Raises InputError for a run without an audit, one that has not come to it yet, and files that were changed since."""
    wanted = [when for when in ("before", "after") if f"audit-{when}" in run.stages]
    if not wanted:
        raise InputError(f"{run.folder} was run without an audit: nothing was measured")
    missing = [when for when in wanted if not run.outputs_fit(f"audit-{when}")]
    if missing:
        raise InputError(
            f"{run.folder} has no audit {missing[0]}, or another than the run wrote; `sani-dist resume {run.folder}` makes it"
        )
    if changed := run.difference():
        raise InputError(
            f"{run.folder} is not as the run left it: {changed}; what it measured says nothing of that. Undo the change, or "
            f"`sani-dist resume {run.folder}`"
        )
    audits = {when: read_measurements(run, when) for when in wanted}
    summary = read_json(run.path("corpus", "summary.json"))
    broken = sum(int(count) for when in wanted for count in read_json(_audit(run, when)).get("not_finite", {}).values())
    base = read_measurements(run, "base") if "before" in audits and _audit(run, "base").exists() else ()
    rises = _rises(run) if len(audits) == 2 else ()
    return Evidence(audits, rises, summary, _attacks(run), broken, base, _use_changes(run, wanted))


def read_measurements(run: Run, when: str) -> tuple[Measurement, ...]:
    """Of an audit that the run has made, "before" or "after", or "base"."""
    return tuple(_measurement(entry) for entry in read_json(_audit(run, when))["measurements"])


def _audit(run: Run, when: str) -> Path:
    return run.path("audit", f"{when}.json")


def find(
    measurements: Iterable[Measurement], metric: str, population: str, group: Mapping[str, str] | None = None
) -> Measurement | None:
    """The measurement of that name, or None. `group`: {} or None for all spans."""
    wanted = dict(group or {})
    return next((m for m in measurements if (m.metric, m.population, m.group) == (metric, population, wanted)), None)


def _measurement(entry: dict[str, Any]) -> Measurement:
    """JSON has no infinity, which a number of samples can be: what is not finite becomes null, with a reason."""
    finite = {k: v for k, v in entry.items() if not isinstance(v, float) or math.isfinite(v)}
    ends = {k: finite.get(k) for k in ("value", "low", "high")}
    reason = entry["reason"] or ("not finite" if ends["value"] is None else None)
    return Measurement(**{**entry, **ends, "reason": reason})


def _attacks(run: Run) -> tuple[Result, ...]:
    """Raises InputError for a file that was changed since; none where the run has not been attacked."""
    if "attack" not in run.stages:
        return ()
    if not run.outputs_fit("attack"):
        raise InputError(
            f"{run.folder} has no attacks, or others than the run wrote; `sani-dist attack {run.folder}` makes them"
        )
    found = read_json(run.path("audit", "attacks.json"))["results"]
    return tuple(Result.of({**r, "measurements": [asdict(_measurement(m)) for m in r["measurements"]]}) for r in found)


def _rises(run: Run) -> tuple[Measurement, ...]:
    before, after = (pd.read_parquet(run.path("audit", f"{when}-losses.parquet")) for when in ("before", "after"))
    return tuple(perplexity_rise(str(split), before, after) for split in before["split"].unique())


def _use_changes(run: Run, audits: Sequence[str]) -> tuple[Measurement, ...]:
    """Of the last audit against the base and, where there are two, against that before. None where use was not measured."""
    tables = {name: run.path("audit", f"{name}-use.parquet") for name in ("before", "base", "after")}
    last = tables[audits[-1]]
    others = [
        name for name in ("before", "base") if name != audits[-1] and "before" in audits and tables[name].exists()
    ]
    if not last.exists():
        return ()
    now = pd.read_parquet(last)
    return tuple(change for name in others for change in use_changes(now, pd.read_parquet(tables[name]), name))
