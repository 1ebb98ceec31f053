"""Writes README.md of this folder: what each benchmark says of itself, its claims, and the latest run of every case."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import erase
import harness
import load
import masked_ce

BENCHMARKS = {"load": load, "erase": erase, "masked_ce": masked_ce}
INTRODUCTION = """# Benchmarks

Written by `python benchmarks/render.py` from `results/*.csv`; do not edit. A benchmark, such as `python benchmarks/load.py`,
runs on a machine without a GPU, makes the checkpoint it needs in the system's temporary folder, and appends to its CSV."""


def main() -> None:
    lines = [INTRODUCTION]
    for name, module in BENCHMARKS.items():
        if (harness.RESULTS / f"{name}.csv").exists():
            lines += ["", *section(name, module)]
    (Path(__file__).parent / "README.md").write_text("\n".join(lines) + "\n")


def section(name: str, module: ModuleType) -> Iterator[str]:
    rows = harness.latest_rows(name)
    yield from (f"## {name}.py", "", (module.__doc__ or "").strip(), "")
    yield from ("| metric | ratio of medians | target | measured | |", "|---|---|---|---|---|")
    for claim in module.CLAIMS:
        verdict = "met" if claim.met(rows) else "**missed**"
        yield f"| {claim.metric} | {claim.case} / {claim.against} | {claim.target} | {claim.ratio(rows):.3g} | {verdict} |"
    yield from ("", "| case | metric | median | lowest | highest | n |", "|---|---|---|---|---|---|")
    values = defaultdict(list)
    for row in rows:
        values[row.metric, row.case].append(row.value)
    for (metric, case), found in values.items():
        numbers = (statistics.median(found), min(found), max(found))
        yield f"| {case} | {metric} | " + " | ".join(readable(n, metric) for n in numbers) + f" | {len(found)} |"
    yield ""
    for run in sorted({(r.date, r.commit, r.device, r.torch, r.deepspeed, r.transformers) for r in rows}):
        yield "{}, commit {}: {}; torch {}, deepspeed {}, transformers {}.".format(*run)


def readable(value: float, metric: str) -> str:
    if metric.endswith("bytes"):
        return f"{value / 1e6:,.1f} MB" if value else "0"
    return f"{value:,.3f}" if metric == "seconds" else f"{value:g}"


if __name__ == "__main__":
    main()
