"""What the trials of a point say together, which points no other beats, and which one to take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

from sani_dist.audit.control import NEGLIGIBLE
from sani_dist.sweep.settings import Limits
from sani_dist.sweep.trials import TEXTS, Figure


@dataclass(frozen=True)
class Spread:
    """Of one figure over the seeds of a point: the mean, and the range."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(mean(values), min(values), max(values))


@dataclass(frozen=True)
class Outcome:
    """A point and the figures of its finished trials, by what they are of: "leak", "heldout", "general_test"."""

    number: int
    values: Mapping[str, Any]
    trials: tuple[Mapping[str, Figure], ...]

    def values_of(self, name: str) -> Spread | None:
        """None where a trial has no such figure."""
        return self._spread([figure.value for figure in self._figures(name)])

    def bounds_of(self, name: str) -> Spread | None:
        """The same of the bad ends of the intervals."""
        return self._spread([figure.bound for figure in self._figures(name)])

    def place(self, cost: str) -> tuple[float, float] | None:
        """(leak, cost): the upper bound of what leaks above the control, and the rise of perplexity; means over seeds."""
        leak, rise = self.bounds_of("leak"), self.values_of(cost)
        return None if leak is None or rise is None else (leak.mean, rise.mean)

    def keeps(self, limits: Limits) -> bool:
        """Whether each seed keeps them, on the bad end of its interval. Too little to tell is not enough."""
        for limit, split in TEXTS.items():
            allowed, bounds = getattr(limits, limit), self.bounds_of(split)
            if allowed is not None and (bounds is None or bounds.high > allowed):
                return False
        return True

    def _figures(self, name: str) -> list[Figure]:
        return [trial.get(name, Figure(None, None)) for trial in self.trials]

    @staticmethod
    def _spread(values: Sequence[float | None]) -> Spread | None:
        known = [value for value in values if value is not None]
        return Spread.of(known) if known and len(known) == len(values) else None


def whole(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Those that can be compared: with as many finished trials as any has, since fewer seeds have less to be unlucky with."""
    most = max((len(outcome.trials) for outcome in outcomes), default=0)
    return [outcome for outcome in outcomes if most and len(outcome.trials) == most]


def front(outcomes: Sequence[Outcome], cost: str) -> list[Outcome]:
    """The points of which no other leaks less and costs less, cheapest first. A negligible difference of leak is none."""
    best: list[Outcome] = []
    least = float("inf")
    for (leak, _), _, outcome in sorted(
        _placed(outcomes, cost), key=lambda entry: (entry[0][1], entry[0][0], entry[1])
    ):
        if leak < least - NEGLIGIBLE:
            best.append(outcome)
            least = leak
    return best


def choose(outcomes: Sequence[Outcome], limits: Limits, cost: str) -> Outcome | None:
    """The point that leaks least among those within the limits; of those that leak as little, but for what is negligible, the one that
    costs least. None if there is none."""
    good = [entry for entry in _placed(outcomes, cost) if entry[2].keeps(limits)]
    if not good:
        return None
    least = min(leak for (leak, _), _, _ in good)
    near = [(rise, leak, number, outcome) for (leak, rise), number, outcome in good if leak <= least + NEGLIGIBLE]
    return min(near, key=lambda entry: entry[:3])[3]


def _placed(outcomes: Sequence[Outcome], cost: str) -> list[tuple[tuple[float, float], int, Outcome]]:
    """(place, number, point) of those that can be compared."""
    return [(place, o.number, o) for o in whole(outcomes) if (place := o.place(cost)) is not None]
