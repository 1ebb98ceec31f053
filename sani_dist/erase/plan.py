"""The erase plan: which neurons and heads, and what they become. Given a plan the erased model is the same everywhere, bit for bit."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from sani_dist.errors import InputError

SCHEMA = 1


@dataclass(frozen=True)
class Unit:
    """The neurons `ids` (ascending) of the MLP of block `layer`, or the heads of its attention."""

    layer: int
    kind: Literal["mlp", "head"]
    ids: tuple[int, ...]


@dataclass(frozen=True)
class Memory:
    """Of all that flows through the units of `layers` to tokens of one kind of identifier, the share of each layer.

    `units`: neurons or heads. `kind`: None for ordinary tokens, what the others are compared with. `tokens`: how many were looked at.
    """

    units: Literal["mlp", "head"]
    kind: str | None
    tokens: int
    layers: tuple[int, ...]
    shares: tuple[float, ...]


@dataclass(frozen=True)
class Plan:
    """What `select` decided. `scores`: per layer, the spread of the scores and how much the chosen units hold of them. `memory`: where
    it sat."""

    source_sha256: str
    seed: int
    select: str
    reset: str
    units: tuple[Unit, ...]
    scores: tuple[dict[str, float], ...] = ()
    memory: tuple[Memory, ...] = ()
    schema: int = SCHEMA

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def read(cls, path: Path) -> Plan:
        """Raises InputError for a file that is no plan of this version."""
        try:
            document = json.loads(path.read_text())
            if document["schema"] != SCHEMA:
                raise KeyError("schema")
            units = tuple(Unit(u["layer"], u["kind"], tuple(u["ids"])) for u in document["units"])
            memory = tuple(
                Memory(**{**m, "layers": tuple(m["layers"]), "shares": tuple(m["shares"])})
                for m in document.get("memory", ())
            )
            return cls(**{**document, "units": units, "scores": tuple(document["scores"]), "memory": memory})
        except (OSError, ValueError, KeyError, TypeError):
            raise InputError(f"{path}: not an erase plan of schema {SCHEMA}") from None
