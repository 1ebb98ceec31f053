"""What rows of an ablation were asked to reach, and whether they did: a table of figures and limits, one column for each seed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

Figures = Mapping[tuple[str, str], float]  # {(row, column): of one seed}


@dataclass(frozen=True)
class Criterion:
    """The figure of a row is to be at most `factor` x that of `than`, a (row, column), + `plus`; without `than`, at most `plus`."""

    row: str
    column: str
    than: tuple[str, str] | None = None
    factor: float = 1.0
    plus: float = 0.0
    at_least: bool = False  # for at most

    def limit(self, found: Figures) -> float | None:
        """None where what it hangs on was not measured."""
        if self.than is None:
            return self.plus
        other = found.get(self.than)
        return None if other is None else self.factor * other + self.plus

    def met(self, value: float, limit: float) -> bool:
        return value >= limit if self.at_least else value <= limit

    def __str__(self) -> str:
        terms = []
        if self.than:
            row, column = self.than
            other = column if row == self.row else row if column == self.column else f"{row}: {column}"
            terms.append(other if self.factor == 1 else f"{self.factor:g} x {other}")
        if self.plus:
            terms.append(f"{self.plus:g}")
        return f"at {'least' if self.at_least else 'most'} {' + '.join(terms)}"


def verdicts(criteria: Iterable[Criterion], seeds: Mapping[int, Figures]) -> Iterator[str]:
    """Lines of Markdown; in each cell what was measured, of what is allowed; nothing where too little was run to tell."""
    yield f"| | | {' | '.join(f'seed {seed}' for seed in seeds)} |"
    yield "|---" * (2 + len(seeds)) + "|"
    for criterion in criteria:
        cells = (_verdict(criterion, found) for found in seeds.values())
        yield f"| {criterion.row}: {criterion.column} | {criterion} | {' | '.join(cells)} |"


def _verdict(criterion: Criterion, found: Figures) -> str:
    value, limit = found.get((criterion.row, criterion.column)), criterion.limit(found)
    if value is None:
        return ""
    if limit is None:
        # No figure is negative: the limit is no less than this, whatever the other row would have.
        least = criterion.plus
        return f"{value:.3g} of {least:.3g} or more" if not criterion.at_least and criterion.met(value, least) else ""
    return f"{value:.3g} of {limit:.3g}" + ("" if criterion.met(value, limit) else " **missed**")
