"""A sweep from beginning to end: check every point, measure the model as it is, carry the trials, write what they found."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from sani_dist.api import check_disk
from sani_dist.corpus import PackedRows
from sani_dist.errors import InputError, RunError
from sani_dist.metrics import Metrics
from sani_dist.orchestrate.connection import check_installed
from sani_dist.repair.schedule import Schedule
from sani_dist.run import Run
from sani_dist.stages import preflight, prepare
from sani_dist.sweep.page import write
from sani_dist.sweep.process import drop_weights
from sani_dist.sweep.settings import Point, SweepSettings, points, trial_config
from sani_dist.sweep.trials import Figure, Sweep, Trial, reason

OnTrial = Callable[[Trial, dict[str, Figure]], None]


def run_sweep(settings: SweepSettings, folder: Path, on_trial: OnTrial) -> dict[str, Any]:
    """Begin a sweep, or go on with one; see `api.sweep`."""
    check_installed()
    from sani_dist.sweep import tuning  # imports Ray

    end = None if settings.budget.hours is None else time.monotonic() + 3600 * settings.budget.hours
    sweep, cluster = Sweep(folder, settings), settings.run.cluster
    sweep.check()
    needed = [_check(settings, point) for point in points(settings)]
    check_disk(folder, settings.parallel * max(needed))
    sweep.create()
    over = all(trial.finished or trial.stopped for trial in sweep.trials)
    with nullcontext() if over else tuning.ray_for(cluster, settings.parallel):
        before = Run.open(sweep.before)
        if not before.outputs_fit("audit-before"):
            tuning.carry([sweep.before], sweep.folder, cluster, parallel=1)
            if not before.outputs_fit("audit-before"):
                raise RunError(f"the audit before the trials failed: {reason(before)}")
        sweep.share_text()
        try:
            _carry_trials(sweep, end, on_trial)
        finally:
            for trial in sweep.trials:
                if trial.finished or trial.stopped:
                    drop_weights(trial.folder)
            document = write(sweep)
    shutil.rmtree(
        sweep.folder / tuning.STORAGE, ignore_errors=True
    )  # what Tune noted says nothing that the folders do not
    return document


def _carry_trials(sweep: Sweep, end: float | None, on_trial: OnTrial) -> None:
    """Those that are not over, until `end`; the page is written anew after each."""
    from sani_dist.sweep import tuning

    settings = sweep.settings
    waiting = [trial for trial in sweep.trials if not (trial.finished or trial.stopped)]

    def watch() -> None:
        for trial in [trial for trial in waiting if trial.finished]:
            waiting.remove(trial)
            on_trial(trial, sweep.figures(trial))
            write(sweep)

    if waiting:
        tuning.carry(
            [trial.folder for trial in waiting], sweep.folder, settings.run.cluster, settings.parallel,
            None if end is None else max(0.0, end - time.monotonic()), watch,
            [trial.folder for trial in sweep.trials] if settings.early_stopping else [],
        )  # fmt: skip


def steps_of_points(settings: SweepSettings) -> list[tuple[Point, int]]:
    """The optimizer steps of one trial of each point. The text is prepared for that, in a folder that is removed again."""
    found = points(settings)
    for point in found:
        _check(settings, point)
    with TemporaryDirectory() as folder:
        run = Run.create(Path(folder) / "run", trial_config(settings, Point(0, {}), settings.seeds[0]), ("prepare",))
        prepare.run(run, Metrics(run.path("metrics.jsonl")))
        tokens = run.path("tokens", "epoch-000")
        repair, general = PackedRows(tokens / "repair.arrow"), tokens / "general_train.arrow"
        retain = PackedRows(general) if general.exists() else None
        steps = []
        for point in found:
            asked = point.config(settings.run, settings.seeds[0]).repair
            # Texts with surrogates have about as many rows.
            steps.append(Schedule(asked, [repair] * len(asked.text_of_epochs), retain).steps)
    return list(zip(found, steps, strict=True))


def _check(settings: SweepSettings, point: Point) -> int:
    """Bytes that a trial needs on disk. Raises InputError for a point that the model or the text cannot have."""
    try:
        needed: int = preflight.check(trial_config(settings, point, settings.seeds[0]))["disk_bytes"]
    except InputError as error:
        raise InputError(f"space: at {point}: {error}") from None
    return needed
