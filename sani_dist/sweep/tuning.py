"""Ray Tune carries run folders to their end: as many at once as `parallel` and the cluster allow, each in a process of its own.

Tune places the trials, starts those again whose node is lost, and ends them. What a trial is, how far it has come and what it found
stands in its run folder and not in Tune: so its own record is thrown away, and a sweep goes on with whatever the folders lack.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

from ray import tune

from sani_dist.config import ClusterSettings
from sani_dist.errors import RunError
from sani_dist.orchestrate.local import POLL_SECONDS
from sani_dist.orchestrate.ray_train import asked_to_stop, connected_for, gpus_per_worker, resources_per_worker
from sani_dist.run import Run
from sani_dist.sweep.early import EarlyStopping
from sani_dist.sweep.trials import looks

STOP, STORAGE = "stop", "ray"
AGAIN = "the same command goes on"
# Of one call of a trial: it has to return before Tune can end it.
STEP_SECONDS = 1
# What a checkpoint may take when a trial is ended.
CHECKPOINT_SECONDS = 600
# A trial whose node or actor was lost is started again so often.
MOST_LOSSES = 3


def carry(
    folders: Sequence[Path], sweep: Path, cluster: ClusterSettings, parallel: int, seconds: float | None = None,
    watch: Callable[[], None] = lambda: None, rivals: Sequence[Path] = (),
) -> None:  # fmt: skip
    """Bring each run folder to its end, or end early: after `seconds`, or by a signal. `watch` is called again and again meanwhile.

    A run that fails does not end the others; its folder tells. `rivals`: all trials of the sweep, if those that another one beats are to
    end early; none: all go to their end.

    Raises RunError when a signal ended it.
    """
    stop = sweep / STOP
    stop.unlink(missing_ok=True)
    failures: list[Exception] = []
    with ray_for(cluster, parallel), asked_to_stop(stop, AGAIN):
        # In a thread: Tune would take Ctrl-C for itself, and this one has the progress to show.
        fitting = threading.Thread(
            target=_fit, args=(folders, sweep, cluster, parallel, seconds, rivals, failures), daemon=True
        )
        fitting.start()
        while fitting.is_alive():
            fitting.join(POLL_SECONDS)
            watch()
    asked = stop.exists()
    stop.unlink(missing_ok=True)
    if asked:
        raise RunError(f"stopped by a signal: {AGAIN}")
    if failures:
        raise RunError(f"Ray Tune: {type(failures[0]).__name__}; {AGAIN}") from failures[0]


def ray_for(cluster: ClusterSettings, parallel: int) -> AbstractContextManager[None]:
    """Ray, with room for `parallel` trials where it is one of this machine. Within this context `carry` starts no other."""
    return connected_for(cluster.model_copy(update={"workers": cluster.most_workers * parallel}))


def _fit(
    folders: Sequence[Path], sweep: Path, cluster: ClusterSettings, parallel: int, seconds: float | None,
    rivals: Sequence[Path], failures: list[Exception],
) -> None:  # fmt: skip
    # One view of progress; nothing of it is wanted in files but what the folders of the runs hold.
    os.environ |= {"TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1", "RAY_AIR_NEW_OUTPUT": "0"}
    os.environ.setdefault("TUNE_FORCE_TRIAL_CLEANUP_S", str(CHECKPOINT_SECONDS))
    try:
        tune.Tuner(
            tune.with_resources(Carrier, _resources(cluster)),
            param_space={"folder": tune.grid_search([str(folder) for folder in folders]), "current": str(Path.cwd())},
            tune_config=tune.TuneConfig(max_concurrent_trials=parallel, scheduler=EarlyStopping(rivals)),
            run_config=tune.RunConfig(
                name=f"{time.time_ns()}", storage_path=str(sweep / STORAGE), verbose=0,
                stop=Ending(sweep / STOP, None if seconds is None else time.time() + seconds),
                failure_config=tune.FailureConfig(max_failures=MOST_LOSSES),
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            ),
        ).fit()  # fmt: skip
    except Exception as error:
        failures.append(error)


def _resources(cluster: ClusterSettings) -> dict[str, float]:
    """Of one trial: those of its ranks, on one node."""
    of_rank = resources_per_worker(cluster, gpus_per_worker(cluster))
    return {name: amount * cluster.most_workers for name, amount in of_rank.items()}


class Ending(tune.Stopper):  # type: ignore[misc]
    """Ends the sweep once a file is there, or the time is over."""

    def __init__(self, stop: Path, end: float | None) -> None:
        self.stop, self.end = stop, end

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self.stop.exists() or (self.end is not None and time.time() > self.end)


class Carrier(tune.Trainable):  # type: ignore[misc]
    """One run folder, carried to its end by a process that ends with this one."""

    def setup(self, config: dict[str, str]) -> None:
        folder, current = Path(config["folder"]), config["current"]
        self._folder, self._epochs = folder, len(Run.open(folder).config.repair.text_of_epochs)
        with (folder / "logs" / "trial.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "sani_dist.sweep.process", str(folder)],
                cwd=current if Path(current).is_dir() else None, stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip

    def step(self) -> dict[str, Any]:
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(STEP_SECONDS)
        ended = self._process.poll() is not None
        return {"done": ended, "epochs": len(looks(self._folder)), "all_epochs": self._epochs}

    def cleanup(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(CHECKPOINT_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
