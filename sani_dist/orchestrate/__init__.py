"""Who prepares the text (this process, or Ray Data), and who starts the ranks (processes of this machine, or Ray Train)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sani_dist.errors import InputError

if TYPE_CHECKING:
    from sani_dist.config import ClusterSettings
    from sani_dist.metrics import Metrics
    from sani_dist.run import Run

# Of a Ray of our own that prepares text: results of some megabytes wait there, and the blacklist of a corpus of some gigabytes.
PREPARE_STORE_BYTES = 500_000_000


def check(cluster: ClusterSettings) -> None:
    """Raises InputError when what these settings start is not installed."""
    if cluster.launcher == "ray" or cluster.prepare_workers:
        from sani_dist.orchestrate.connection import check_installed

        check_installed()


def check_ranks(cluster: ClusterSettings) -> None:
    """Raises InputError when ranks that this machine would start cannot have what they are to compute on."""
    if cluster.launcher == "local":
        import torch

        from sani_dist.engine import devices
        from sani_dist.engine.zero3 import read_ds_config

        devices.check_ranks(cluster.device, cluster.most_workers)
        devices.check_offload(read_ds_config(cluster.ds_config, torch.float32)["zero_optimization"])


def prepare(run: Run, metrics: Metrics) -> None:
    """The stage before any rank starts: in this process, or by `cluster.prepare_workers` actors of Ray.

    Raises InputError for input that cannot work, RunError when the actors fail.
    """
    from sani_dist.stages import prepare as stage

    cluster = run.config.cluster
    check(cluster)
    if not cluster.prepare_workers:
        stage.run(run, metrics)
        return
    import ray

    from sani_dist.corpus.executor import on_ray
    from sani_dist.orchestrate.connection import connected
    from sani_dist.run import Run

    run = Run(run.folder.resolve(), run.config)  # the actors may have another current folder
    with connected(cluster.address, cpus=cluster.prepare_workers, resources={}, object_store_bytes=PREPARE_STORE_BYTES):
        if ray.cluster_resources().get("CPU", 0) < cluster.prepare_workers:
            raise InputError("cluster.prepare_workers: the cluster has fewer CPUs")
        stage.run(run, metrics, on_ray(cluster.prepare_workers, cluster.runtime_env))


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
