"""Writes README.md of this folder: what each benchmark says of itself, its claims, and the latest run of every case, with plots."""

from __future__ import annotations

import re
import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

import audit
import cluster
import end_to_end
import erase
import export
import frozen_trunk
import harness
import linear_cost
import load
import masked_ce
import prepare
import repair_profile
import repair_step
import scaling
from bars import bars

BENCHMARKS = {
    "end_to_end": end_to_end,
    "prepare": prepare,
    "load": load,
    "erase": erase,
    masked_ce.CPU_RESULTS: masked_ce,
    "repair_step": repair_step,
    "repair_profile": repair_profile,
    "frozen_trunk": frozen_trunk,
    "scaling": scaling,
    "audit": audit,
    "export": export,
    "linear_cost": linear_cost,
    cluster.NAME: cluster,
}
PAGE = Path(__file__).parent / "README.md"
INTRODUCTION = """# Benchmarks

Written by `python benchmarks/render.py` from `results/*.csv`; do not edit. A benchmark, such as `python benchmarks/load.py`,
runs on a machine without a GPU, makes the checkpoint it needs in the system's temporary folder, and appends to its CSV."""
# A case of this form is a bar of a plot too.
PLOTTED = re.compile(r"(?P<plot>.+), (?P<group>[^,]+): (?P<bar>[^:]+)")


def main() -> None:
    lines = [INTRODUCTION]
    for name, module in BENCHMARKS.items():
        lines += [
            "",
            f"## {module.__name__}.py",
            "",
            (module.__doc__ or "").strip(),
            "",
            *measured(name, module.CLAIMS),
        ]
        if module is masked_ce:
            lines += ["", "### On a GPU", "", *measured(masked_ce.GPU_RESULTS, masked_ce.GPU_CLAIMS)]
    PAGE.write_text("\n".join(lines) + "\n")


def measured(name: str, claims: Iterable[harness.Claim]) -> Iterator[str]:
    """What `results/<name>.csv` says, in Markdown."""
    if not (harness.RESULTS / f"{name}.csv").exists():
        yield "Not measured."
        return
    rows = harness.latest_rows(name)
    if claims := list(claims):
        yield from ("| metric | ratio of medians | target | measured | |", "|---|---|---|---|---|")
        for claim in claims:
            yield f"| {claim.metric} | {claim.case} / {claim.against} | {claim.target} | {verdict(claim, rows)} |"
        yield ""
    yield from plots(name, rows)
    yield from ("| case | metric | median | lowest | highest | n |", "|---|---|---|---|---|---|")
    for (metric, case), found in values(rows).items():
        numbers = (statistics.median(found), min(found), max(found))
        yield f"| {case} | {metric} | " + " | ".join(readable(n, metric) for n in numbers) + f" | {len(found)} |"
    yield ""
    for run in sorted({(r.date, r.commit, r.device, r.torch, r.deepspeed, r.transformers) for r in rows}):
        yield "{}, commit {}: {}; torch {}, deepspeed {}, transformers {}.".format(*run)


def verdict(claim: harness.Claim, rows: Iterable[harness.Row]) -> str:
    """The ratio and whether it is met, in two columns."""
    rows = [row for row in rows if row.metric == claim.metric]
    if not {claim.case, claim.against} <= {row.case for row in rows}:
        return "| not measured"
    return f"{claim.ratio(rows):.3g} | {'met' if claim.met(rows) else '**missed**'}"


def plots(name: str, rows: Iterable[harness.Row]) -> Iterator[str]:
    """Medians as one file of bars for each plot and metric, named so that the next run overwrites it."""
    drawn: dict[tuple[str, str], dict[str, dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
    for (metric, case), found in values(rows).items():
        if part := PLOTTED.fullmatch(case):
            drawn[part["plot"], metric][part["group"]][part["bar"]] = statistics.median(found)
    for (plot, metric), groups in drawn.items():
        title = f"{plot}: {metric.removesuffix('_bytes')}{' memory' if metric.endswith('bytes') else ''}"
        path = harness.RESULTS / f"{name}-{plot}-{metric}.svg".replace(" ", "-").lower()
        path.write_text(bars(title, groups, lambda value, metric=metric: readable(value, metric)))  # type: ignore[misc]
        yield from (f"![{title}]({path.relative_to(PAGE.parent).as_posix()})", "")


def values(rows: Iterable[harness.Row]) -> dict[tuple[str, str], list[float]]:
    """{(metric, case): what was measured}: groups of bars in the order of their numbers, the rest in the order of the rows."""
    found = defaultdict(list)
    for row in sorted(rows, key=lambda row: group_of(row.case)):
        found[row.metric, row.case].append(row.value)
    return found


def group_of(case: str) -> tuple[str, float]:
    """(plot, number of the group), such as the share that is masked; ("", 0) for a case that is no bar."""
    part = PLOTTED.fullmatch(case)
    number = part and re.match(r"[0-9.]+", part["group"])
    return (part["plot"] if part else "", float(number[0]) if number else 0.0)


def readable(value: float, metric: str) -> str:
    if metric.endswith("bytes"):
        return f"{value / 1e6:,.1f} MB" if value else "0"
    if metric == "seconds":
        return f"{value:,.3f}" if value >= 0.1 else f"{value:.5f}"
    return f"{value:g}"


if __name__ == "__main__":
    main()
