"""The README's picture and table, from results/small.csv: what a model gives away before and after, and what that costs.

python benchmarks/readme.py
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from pathlib import Path

import harness
import small
from bars import bars

ROOT = Path(__file__).parents[1]
README, PICTURE = ROOT / "README.md", ROOT / "docs" / "before-after.svg"
BEGIN, END = "<!-- before and after -->", "<!-- end of before and after -->"
COLUMNS = {"before": small.MEMORISED, "after": "preset strong", "never fine-tuned": small.BASE}
# What a reader sees -> the metric, and whether it is a share.
ROWS = {
    "memorised identifiers given away by 100 samples": ("leak@100", True),
    "identifiers of others repeated when the prompt has them": (small.COPYING, True),
    "perplexity of letters it never saw (lower is better)": ("perplexity, held-out letters", False),
    "perplexity of general English": ("perplexity, general", False),
}
DRAWN = ("given away by 100 samples", "repeated from the prompt")

Figures = Mapping[str, Mapping[str, list[float]]]


def measured() -> Figures:
    """{row of small.csv: {metric: its value for each seed}}, of the layout that ideas are tried on."""
    found: dict[str, dict[str, list[float]]] = {}
    for row in harness.latest_rows(small.NAME):
        layout, _, case = row.case.partition(": ")
        if layout == small.TRIED:
            found.setdefault(case.rpartition(small.SEED)[0], {}).setdefault(row.metric, []).append(row.value)
    return found


def table(found: Figures) -> str:
    """In Markdown: the mean over seeds, the lowest and the highest."""
    lines = ["| | " + " | ".join(COLUMNS) + " |", "|---|" + "---|" * len(COLUMNS)]
    for title, (metric, share) in ROWS.items():
        lines.append(f"| {title} | " + " | ".join(_cell(found[row][metric], share) for row in COLUMNS.values()) + " |")
    return "\n".join(lines)


def picture(found: Figures) -> str:
    """As SVG, the shares alone."""
    shares = {title: metric for title, (metric, share) in ROWS.items() if share}
    groups = {
        title: {column: statistics.mean(found[row][metric]) for column, row in COLUMNS.items()}
        for title, metric in zip(DRAWN, shares.values(), strict=True)
    }
    return bars(
        "Identifiers that come out of the model: memorised ones, and those that stand in its prompt", groups, _percent
    )


def with_table(readme: str, found: Figures) -> str:
    """The README with what stands between its marks replaced."""
    begin, end = readme.index(BEGIN) + len(BEGIN), readme.index(END)
    return f"{readme[:begin]}\n{table(found)}\n{readme[end:]}"


def _cell(values: list[float], share: bool) -> str:
    written = [
        _percent(value) if share else f"{value:.3g}" for value in (statistics.mean(values), min(values), max(values))
    ]
    return written[0] if len(set(written)) == 1 else f"{written[0]} ({written[1]} to {written[2]})"


def _percent(value: float) -> str:
    return f"{value:.1%}".replace("%", " %")


def main() -> None:
    found = measured()
    PICTURE.write_text(picture(found))
    README.write_text(with_table(README.read_text(), found))


if __name__ == "__main__":
    main()
