"""Who starts the ranks: processes of this machine, or Ray Train (`cluster.launcher`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sani_dist.config import ClusterSettings
    from sani_dist.run import Run


def check(cluster: ClusterSettings) -> None:
    """Raises InputError when the launcher of these settings is not installed."""
    if cluster.launcher == "ray":
        from sani_dist.orchestrate.ray_train import check_installed

        check_installed()


def start_ranks(run: Run, on_event: Callable[[dict[str, Any]], None]) -> None:
    """Start the ranks of a prepared run and wait until they have finished; `on_event` gets each line of metrics.jsonl.

    Raises InputError or RunError with the line of the rank that failed first.
    """
    if run.config.cluster.launcher == "ray":
        from sani_dist.orchestrate import ray_train

        ray_train.start_ranks(run, on_event)
    else:
        from sani_dist.orchestrate import local

        local.start_ranks(run, on_event)
