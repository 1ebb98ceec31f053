"""The README's picture and table, from results/forgetting.csv: what a model gives away before and after, and what that costs.

python benchmarks/readme.py
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from pathlib import Path

import forgetting
import harness
from bars import bars

ROOT = Path(__file__).parents[1]
README, PICTURE = ROOT / "README.md", ROOT / "docs" / "before-after.svg"
BEGIN, END = "<!-- before and after -->", "<!-- end of before and after -->"
COLUMNS = {"before": "memorised", "after": "preset strong", "retrained without them": "gold"}
# What a reader sees -> the metric, and whether it is a share.
ROWS = {
    "given away by 100 samples": ("leak@100", True),
    "the same, after an attacker trained the model on half of the notes": ("relearnt", True),
    "perplexity of general English (lower is better)": ("perplexity, general", False),
}

Figures = Mapping[str, Mapping[str, list[float]]]


def measured() -> Figures:
    """{row of forgetting.csv: {metric: its value for each seed}}."""
    found: dict[str, dict[str, list[float]]] = {}
    for row in harness.latest_rows("forgetting"):
        name, _, seed = row.case.rpartition(forgetting.SEED)
        if seed:
            found.setdefault(name, {}).setdefault(row.metric, []).append(row.value)
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
        for title, metric in zip(("100 samples give away", "after relearning half"), shares.values(), strict=True)
    }
    return bars("Share of memorised identifiers that come out of the model", groups, _percent)


def with_table(readme: str, found: Figures) -> str:
    """The README with what stands between its marks replaced."""
    begin, end = readme.index(BEGIN) + len(BEGIN), readme.index(END)
    return f"{readme[:begin]}\n{table(found)}\n{readme[end:]}"


def _cell(values: list[float], share: bool) -> str:
    written = [
        _percent(value) if share else f"{value:.1f}" for value in (statistics.mean(values), min(values), max(values))
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
