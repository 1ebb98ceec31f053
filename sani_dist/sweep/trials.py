"""The folder of a sweep: a run that measures the model as it is, a run for each trial, and what they found.

    before/              prepares the text and audits the model: all trials share both
    trials/POINT-SEED/   a run: erase, repair, audit after. No model: that of the chosen settings is made by `sani-dist run`
    sweep.json front.svg index.html chosen.yaml

A trial shares the prepared text by hard links. Nothing but these folders says what is done, so a sweep can be killed at any moment.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from sani_dist.audit.measurement import Measurement
from sani_dist.config import Config
from sani_dist.errors import InputError
from sani_dist.metrics import read_stage
from sani_dist.report.evidence import find, read_measurements
from sani_dist.report.rise import perplexity_rise
from sani_dist.run import Run
from sani_dist.sweep.settings import SAMPLES, Point, SweepSettings, points, trial_config

BEFORE_STAGES = ("prepare", "audit-before")
TRIAL_STAGES = ("prepare", "erase", "repair", "audit-after")
STOPPED = "stopped"
LEAK = f"leak@{SAMPLES}"
# What a point costs is read from general text where there is any: it is what is easily lost.
COSTS = ("general_test", "heldout")
# Splits whose perplexity tells what is lost, by the limit on its rise.
TEXTS = {"max_utility_loss": "heldout", "max_general_loss": "general_test"}


@dataclass(frozen=True)
class Figure:
    """A number and the bad end of its 95 % interval; a reason where there is none."""

    value: float | None
    bound: float | None
    reason: str | None = None


@dataclass(frozen=True)
class Trial:
    """A point of the space with a seed, and the folder of its run."""

    point: Point
    seed: int
    folder: Path

    @property
    def name(self) -> str:
        return self.folder.name

    @cached_property
    def run(self) -> Run:
        return Run.open(self.folder)

    @property
    def finished(self) -> bool:
        """Whether its audit is there, whole. Its checkpoints are gone then, so not all of its stages are."""
        return (self.folder / "config.yaml").exists() and self.run.outputs_fit("audit-after")

    @property
    def stopped(self) -> str | None:
        """Why it was ended early, if it was."""
        path = self.folder / STOPPED
        return path.read_text() if path.exists() else None


@dataclass(frozen=True)
class Look:
    """After an epoch: the interval of the leak above the control, None where there is too little to tell, and the loss of ordinary text."""

    low: float | None
    high: float | None
    cost: float


def looks(folder: Path) -> list[Look]:
    """Of a trial, one for each epoch that it has made."""
    path = folder / "repair" / "looks.json"
    found = json.loads(path.read_text()) if path.exists() else []
    return [
        Look(entry["low"], entry["high"], next((entry["losses"][t] for t in COSTS if t in entry["losses"]), math.nan))
        for entry in found
    ]


class Sweep:
    """The folder and its trials."""

    def __init__(self, folder: Path, settings: SweepSettings) -> None:
        self.folder, self.settings = folder.resolve(), settings
        self.before = self.folder / "before"
        # Seed by seed: a sweep that ends early has tried as many points as it could.
        self.trials = [
            Trial(point, seed, self.folder / "trials" / f"{point.number:03d}-{seed}")
            for seed in settings.seeds
            for point in points(settings)
        ]

    def check(self) -> None:
        """Raises InputError when the folder holds the runs of other settings, or something else."""
        held = [path.name for path in self.folder.iterdir()] if self.folder.exists() else []
        if held and not {"before", "trials"} & set(held):
            raise InputError(f"{self.folder} is not empty: choose another folder")
        for folder, config, _ in self._wanted():
            if not (folder / "config.yaml").exists():
                continue
            found = Run.open(folder).config
            if found.model_copy(update={"cluster": config.cluster}) != config:
                raise InputError(f"{self.folder} is a sweep with other settings: choose another folder")

    def create(self) -> None:
        """Make the run folders that are missing. Those of trials share the text of `before`, once it is prepared."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o700)
        for folder, config, stages in self._wanted():
            if not (folder / "config.yaml").exists():
                shutil.rmtree(folder, ignore_errors=True)  # a start that was cut short: a folder with settings is a run
                Run.create(folder, config, stages)
            else:
                Run.open(folder).change_cluster(config.cluster.model_dump(mode="json"))

    def share_text(self) -> None:
        """Give the prepared text to the trials that have none yet. One with surrogates makes its own."""
        before = Run.open(self.before)
        for trial in self.trials:
            if not trial.run.is_done("prepare"):
                trial.run.share_text(before)

    def figures(self, trial: Trial) -> dict[str, Figure]:
        """Of a finished trial: "leak" above the control, and the rise of perplexity on each text there is."""
        after = read_measurements(trial.run, "after")
        found = {"leak": _above_control(after)}
        losses = [
            pd.read_parquet(folder / "audit" / f"{when}-losses.parquet")
            for folder, when in ((self.before, "before"), (trial.folder, "after"))
        ]
        for split in TEXTS.values():
            if split in set(losses[0]["split"]):
                rise = perplexity_rise(split, *losses)
                found[split] = Figure(rise.value, rise.high, rise.reason)
        return found

    @cached_property
    def leak_before(self) -> Figure:
        return _above_control(read_measurements(Run.open(self.before), "before"))

    def _wanted(self) -> Iterator[tuple[Path, Config, tuple[str, ...]]]:
        """Run folders, their settings and their stages."""
        yield self.before, trial_config(self.settings, Point(0, {}), self.settings.seeds[0]), BEFORE_STAGES
        for trial in self.trials:
            yield trial.folder, trial_config(self.settings, trial.point, trial.seed), TRIAL_STAGES


def reason(run: Run) -> str | None:
    """Why a run of the sweep is not finished, as its process said; None when it said nothing."""
    log = run.path("logs", "trial.log")
    lines = log.read_text().splitlines() if log.exists() else []
    said = [line for line in lines if line.startswith("error: ")]
    return said[-1].removeprefix("error: ") if said else None


def cost(run: Run) -> dict[str, Any]:
    """Seconds that a run took in all its starts, and the optimizer steps it made."""
    steps = max((event["done"] for event in read_stage(run.path("metrics.jsonl"), "repair")), default=0)
    return {"seconds": round(run.seconds, 1), "steps": steps}


def _above_control(found: Sequence[Measurement]) -> Figure:
    """Leak of what was trained on less that of what never was; its bound as `verify` takes it."""
    ends = []
    for population in ("sensitive", "control"):
        measured = find(found, LEAK, population)
        if measured is None or measured.value is None or measured.low is None or measured.high is None:
            return Figure(None, None, f"{population} spans: {'none' if measured is None else measured.reason}")
        ends.append((measured.low, measured.value, measured.high))
    (_, leak, high), (low, guessed, _) = ends
    return Figure(leak - guessed, high - low)
