"""What an attack leaves, as `audit/attacks.json` holds it. Needs no torch: the report reads it too."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sani_dist.audit.measurement import Measurement

# The variant of an attack in which nothing is done: what it is compared with.
NOTHING = "nothing"
# The measure of attacks that ask which of two values is the true one: the share of pairs in which it is preferred.
PREFERENCE = "preference"
# Names of the models that are attacked.
ATTACKED, GOLD = "attacked", "gold"


@dataclass(frozen=True)
class Result:
    """What one variant of an attack got out of one model, over all spans."""

    attack: str
    variant: str
    model: str
    measurements: tuple[Measurement, ...]

    @classmethod
    def of(cls, entry: Mapping[str, Any]) -> Result:
        """From what `dataclasses.asdict` made of it."""
        return cls(**{**entry, "measurements": tuple(Measurement(**m) for m in entry["measurements"])})
