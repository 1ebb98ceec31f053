"""Curves of a run for those who watch it: TensorBoard in `logs/` by default, MLflow and Weights & Biases if asked for.

They get the training steps, and the audits before (step 0) and after (step 1). Numbers and names of measures only: no text of the corpus,
no console output, no code and no command line ever go there.
"""

from __future__ import annotations

import importlib.util
import logging
import math
import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.summary import scalar

from sani_dist.audit.measurement import Measurement
from sani_dist.config import TrackingSettings
from sani_dist.errors import InputError

logger = logging.getLogger(__name__)


class Tracker(Protocol):
    """Where values go. Made with the first of them."""

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """`values`: {tag: value} at `step`; all tags of one call begin with the same `part/`."""

    def close(self) -> None: ...


class Curves:
    """Hands values to all trackers of the settings."""

    def __init__(self, folder: Path, settings: TrackingSettings, enabled: bool = True) -> None:
        """`folder`: where trackers keep what they need. `enabled`: false on ranks other than 0."""
        self._folder, self._settings = folder, settings
        self._wanted: list[str] = list(settings.to) if enabled else []
        self._trackers: dict[str, Tracker] = {}

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """`values`: {tag: value} at `step`. Raises OSError when TensorBoard's file cannot be written.

        Trackers beyond this machine fail for reasons of their own: that is said in the log, and the run goes on without them.
        """
        for name in tuple(self._wanted):
            try:
                if name not in self._trackers:
                    self._trackers[name] = _TRACKERS[name](self._folder, self._settings)
                self._trackers[name].add(step, values)
            except Exception as error:
                if name == "tensorboard":
                    raise
                self._give_up(name, error)

    def add_audit(self, when: str, measurements: Iterable[Measurement]) -> None:
        """What was measured over all spans or a whole split, as `audit/<metric>/<population>`. `when`: "before" or "after"."""
        values = {f"audit/{m.metric}/{m.population}": m.value for m in measurements if not m.group}
        known = {tag: value for tag, value in values.items() if value is not None and math.isfinite(value)}
        self.add(("before", "after").index(when), known)

    def close(self) -> None:
        """Send what has not been sent yet."""
        for name, tracker in tuple(self._trackers.items()):
            try:
                tracker.close()
            except Exception as error:
                self._give_up(name, error)

    def _give_up(self, name: str, error: Exception) -> None:
        # Not its message: that of a library may quote what it was given.
        logger.warning("tracking.to: %s failed (%s); the run goes on without it", name, type(error).__name__)
        self._wanted.remove(name)
        self._trackers.pop(name, None)


def check_installed(settings: TrackingSettings) -> None:
    """Raises InputError for a tracker whose package is missing."""
    for name in settings.to:
        if name != "tensorboard" and importlib.util.find_spec(name) is None:
            raise InputError(f"tracking.to: {name} is not installed; pip install {name}")


class _TensorBoard:
    """An event file of its own for each start of a run; TensorBoard joins them.

    Events are written here, not by tensorboardX's thread: on a full disk the thread would die and the run would wait for it.
    """

    def __init__(self, folder: Path, settings: TrackingSettings) -> None:
        self._writer = EventsWriter(str(folder / "events"))

    def add(self, step: int, values: Mapping[str, float]) -> None:
        for tag, value in values.items():
            self._writer.write_event(Event(wall_time=time.time(), step=step, summary=scalar(tag, value)))
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class _MLflow:
    """One MLflow run for all starts of ours. Where it goes: MLFLOW_TRACKING_URI, as for any MLflow client."""

    def __init__(self, folder: Path, settings: TrackingSettings) -> None:
        import mlflow

        self._mlflow = mlflow
        mlflow.set_experiment(settings.project)
        id_file = folder / "mlflow-run"
        run = mlflow.start_run(run_id=id_file.read_text() if id_file.exists() else None)
        id_file.write_text(run.info.run_id)

    def add(self, step: int, values: Mapping[str, float]) -> None:
        # Names may have letters, digits and _-./ only.
        self._mlflow.log_metrics({tag.replace("@", "_at_"): value for tag, value in values.items()}, step=step)

    def close(self) -> None:
        self._mlflow.end_run()


class _WeightsAndBiases:
    """One run of Weights & Biases for all starts of ours. Where it goes: WANDB_MODE, WANDB_BASE_URL and so on, as for any client."""

    def __init__(self, folder: Path, settings: TrackingSettings) -> None:
        import wandb

        self._wandb = wandb
        id_file = folder / "wandb-run"
        if not id_file.exists():
            id_file.write_text(secrets.token_hex(8))
        silent = wandb.Settings(
            console="off", disable_git=True, disable_code=True, x_disable_meta=True, x_disable_stats=True
        )
        self._run = wandb.init(
            project=settings.project, id=id_file.read_text(), resume="allow", dir=folder, settings=silent
        )

    def add(self, step: int, values: Mapping[str, float]) -> None:
        if not values:
            return
        # Its own step may never fall, as ours does from training to the next audit.
        part = next(iter(values)).split("/")[0]
        self._run.define_metric(f"{part}/*", step_metric=f"{part}/step")
        self._run.log({**values, f"{part}/step": step})

    def close(self) -> None:
        self._run.finish()
        self._wandb.teardown()  # its process writes on for a second, and ours ends at once


_TRACKERS: dict[str, Callable[[Path, TrackingSettings], Any]] = {
    "tensorboard": _TensorBoard, "mlflow": _MLflow, "wandb": _WeightsAndBiases,
}  # fmt: skip
