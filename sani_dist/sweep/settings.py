"""The settings of a sweep, and the points of its space: drawn before anything starts, so that impossible ones are refused before it."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError, ValidatorFunctionWrapHandler, WrapValidator, model_validator

from sani_dist.config import (
    Config,
    HarnessSettings,
    Rise,
    Settings,
    config_beside,
    config_from_mapping,
    config_to_mapping,
    load_config,
    put,
    read_mapping,
    validated,
)
from sani_dist.errors import InputError

# What may differ between trials: with another model, text or audit their figures could not be compared.
SECTIONS = ("erase", "repair")
SEEDS = ("erase.seed", "repair.seed")
# Of leak@n, the n that a sweep compares.
SAMPLES = 100
# A range has no end of points; a space of lists may have so few that a draw repeats itself.
MOST_DRAWS = 100


class Range(Settings):
    """Any number from `low` to `high`; whole numbers if both are."""

    low: int | float
    high: int | float
    log: bool = Field(False, description="as likely between 0.1 and 1 as between 1 and 10")

    @model_validator(mode="after")
    def _is_a_range(self) -> Range:
        if self.low >= self.high:
            raise ValueError("`low` has to be below `high`")
        if self.log and self.low <= 0:
            raise ValueError("`low` has to be above 0 on a scale of logarithms")
        return self

    def draw(self, source: random.Random) -> int | float:
        low, high = (math.log(end) if self.log else end for end in (self.low, self.high))
        value = source.uniform(low, high)
        value = math.exp(value) if self.log else value
        if isinstance(self.low, int) and isinstance(self.high, int):
            return round(value)
        return min(max(float(f"{value:.3g}"), self.low), self.high)  # digits that a table shows


def _values(value: Any, validated: ValidatorFunctionWrapHandler) -> Range | tuple[Any, ...]:
    try:
        found: Range | tuple[Any, ...] = validated(value)
    except ValidationError:
        found = ()
    if found == ():
        raise ValueError(
            "expected values to try, such as [4, 8], or a range from low to high, such as {low: 0.01, high: 0.5, log: true}"
        )
    return found


class Budget(Settings):
    """When a sweep ends."""

    points: Annotated[int, Field(ge=1)] | None = Field(
        None,
        description="how many of the space; each costs a trial for each seed; default: all, if there are no ranges",
    )
    hours: Annotated[float, Field(gt=0)] | None = Field(
        None, description="from the start of the command; trials that it cuts short go on when it is started again"
    )


class Limits(Settings):
    """What the chosen point may cost, tested as `verify` does: on the bad end of the 95 % interval, here of the worst seed."""

    max_utility_loss: Rise | None = Field(
        None, description="relative rise of perplexity on held-out documents, 0.05: 5 %"
    )
    max_general_loss: Rise | None = Field(None, description="relative rise of perplexity on general text")


class SweepSettings(Settings):
    """All settings of a sweep."""

    run: Config
    space: dict[str, Annotated[Range | tuple[Any, ...], WrapValidator(_values)]] = Field(
        description="dotted names of settings of `erase` and `repair`, each with a list of values or {low, high, log}"
    )
    seeds: Annotated[tuple[Annotated[int, Field(ge=0, lt=2**63)], ...], Field(min_length=1)] = Field(
        (0,), description="erase.seed and repair.seed of the trials of each point"
    )
    budget: Budget = Budget()
    limits: Limits = Limits()
    early_stopping: bool = Field(
        True, description="end a trial after an epoch when another one was better by then in both leak and cost"
    )
    parallel: Annotated[int, Field(ge=1)] = Field(1, description="most trials at once, each with `run.cluster.workers`")
    order: Annotated[int, Field(ge=0)] = Field(
        0, description="seed of the order of the points, and of what ranges give"
    )

    @model_validator(mode="after")
    def _can_be_swept(self) -> SweepSettings:
        if not self.space:
            raise ValueError("`space` needs at least one setting, for example erase.layers: [4, 8]")
        for name in self.space:
            if name.split(".")[0] not in SECTIONS or "." not in name:
                raise ValueError("`space` is of settings of erase and repair, for example erase.layers: [4, 8]")
            if name in SEEDS:
                raise ValueError(f"`space`: {name} is set by `seeds`")
        if self.budget.points is None and any(isinstance(values, Range) for values in self.space.values()):
            raise ValueError("budget.points is needed: how many points are to be drawn from the ranges of `space`?")
        if self.run.cluster.launcher != "local":
            raise ValueError(
                "cluster.launcher has to be local: Ray Tune places whole trials, each with its ranks on one node"
            )
        if self.run.corpus.control is None:
            raise ValueError("corpus.control is needed: what leaks is judged by what guessing reaches")
        if self.run.corpus.general is None and self.run.corpus.heldout is None:
            raise ValueError("corpus.general or corpus.heldout is needed, to tell what a point costs")
        for limit, text in (("max_utility_loss", "heldout"), ("max_general_loss", "general")):
            if getattr(self.limits, limit) is not None and getattr(self.run.corpus, text) is None:
                raise ValueError(f"limits.{limit} needs corpus.{text}")
        return self


@dataclass(frozen=True)
class Point:
    """One choice of all settings of the space."""

    number: int
    values: dict[str, Any]

    def __str__(self) -> str:
        return shown(self.values)

    def config(self, run: Config, seed: int) -> Config:
        """The settings of a run at this point. Raises InputError where they do not go together."""
        mapping = config_to_mapping(run)
        for name, value in {**self.values, **dict.fromkeys(SEEDS, seed)}.items():
            put(mapping, name, value)
        return config_from_mapping(mapping)


def shown(values: Mapping[str, Any]) -> str:
    """Settings as a person reads them: erase.layers=4, repair.objectives={unlikelihood: 1.0}."""
    return ", ".join(f"{name}={_shown(value)}" for name, value in values.items())


def _shown(value: Any) -> str:
    return "{" + ", ".join(f"{k}: {v}" for k, v in value.items()) + "}" if isinstance(value, dict) else str(value)


def load_sweep(path: Path) -> SweepSettings:
    """Read a YAML file. `run` is the file of a run's settings, from the folder of this file, or these settings themselves.

    Raises InputError with one line that names the field, or the first point whose settings do not go together.
    """
    mapping = dict(read_mapping(path, "run, space, budget"))
    folder, run = path.resolve().parent, mapping.get("run")
    if isinstance(run, str):
        mapping["run"] = load_config(folder / run)
    elif isinstance(run, dict):
        mapping["run"] = config_beside(run, folder)
    settings = validated(SweepSettings, mapping)
    refused = []
    for point in points(settings):
        try:
            point.config(settings.run, settings.seeds[0])
        except InputError as error:
            refused.append(f"at {point}: {error}")
    if refused:
        more = f" (and {len(refused) - 1} more points that cannot be)" if len(refused) > 1 else ""
        raise InputError(f"space: {refused[0]}{more}")
    return settings


def points(settings: SweepSettings) -> list[Point]:
    """Those that the sweep tries, in their order. With more `budget.points` these stay, and others follow."""
    found: list[dict[str, Any]] = []
    wanted = settings.budget.points
    for values in _drawn(settings):
        if wanted is not None and len(found) == wanted:
            break
        if values not in found:
            found.append(values)
    return [Point(number, values) for number, values in enumerate(found)]


def _drawn(settings: SweepSettings) -> Iterator[dict[str, Any]]:
    draw, space = random.Random(settings.order), settings.space
    lists = [values for values in space.values() if isinstance(values, tuple)]
    if len(lists) == len(space):
        every = list(itertools.product(*lists))
        draw.shuffle(every)
        yield from (dict(zip(space, values, strict=True)) for values in every)
        return
    for _ in range(MOST_DRAWS * (settings.budget.points or 0)):
        yield {
            name: values.draw(draw) if isinstance(values, Range) else draw.choice(values)
            for name, values in space.items()
        }


def trial_config(settings: SweepSettings, point: Point, seed: int) -> Config:
    """What a trial runs. Of the audit only what the sweep compares: perplexity always is measured. Looking changes no bit of the model."""
    few = {"metrics": ("extraction",), "samples": (SAMPLES,), "harness": HarnessSettings(), "reference": None}
    config = point.config(settings.run, seed)
    looks = config.repair.model_copy(update={"look": settings.early_stopping})
    return config.model_copy(update={"audit": config.audit.model_copy(update=few), "repair": looks})
