"""Early stopping: a trial ends after an epoch when another one had less leak and less cost with no more training.

Successive halving keeps the best by one measure; here it would end what keeps a model useful and leaks more, which is one end of the
front. So a trial is only ended when it is beaten in both: the intervals of the leaks are apart, and the cost is no less.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from sani_dist.files import write_text
from sani_dist.sweep.trials import STOPPED, Look, looks


def beaten_by(own: Sequence[Look], others: Mapping[str, Sequence[Look]]) -> str | None:
    """The trial that was better in both, after as many epochs or fewer."""
    last = own[-1]
    for name, other in others.items():
        for look in other[: len(own)]:
            apart = look.high is not None and last.low is not None and look.high < last.low
            if apart and look.cost <= last.cost:
                return name
    return None


class EarlyStopping(FIFOScheduler):  # type: ignore[misc]
    """Trials in their order, each ended after an epoch in which `beaten_by` names another. Its folder says so, for all later starts."""

    def __init__(self, folders: Sequence[Path]) -> None:
        super().__init__()
        self.folders = folders

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        folder, epochs = Path(trial.config["folder"]), result["epochs"]
        # After the last epoch only the audit is left.
        if not epochs or epochs >= result["all_epochs"]:
            return str(TrialScheduler.CONTINUE)
        own = looks(folder)[:epochs]
        better = beaten_by(own, {other.name: looks(other) for other in self.folders if other != folder})
        if better is None:
            return str(TrialScheduler.CONTINUE)
        write_text(f"after epoch {epochs}: trial {better} leaked less and cost less by then", folder / STOPPED)
        return str(TrialScheduler.STOP)
