"""A group of two to three workers on three raylets: one node is lost and another comes while repair goes on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from ray.cluster_utils import Cluster
from safetensors.torch import load_file

import sani_dist
from sani_dist.config import Config
from sani_dist.config_file import config_to_mapping

from ..watching import ranks_of, repaired_steps
from .started import STORE_BYTES, finished, node_of, sani_dist_run, started, wait_until

# Ray first waits for a group of the old size; its own minute is made shorter.
SHORT = {"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "12"}
EARLY = 4


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_group_that_shrinks_and_grows_takes_the_same_batches(
    long_run: Config,
    cluster: Cluster,
    tmp_path: Path,
) -> None:
    settings, folder, log = tmp_path / "run.yaml", tmp_path / "run", tmp_path / "log"
    settings.write_text(yaml.safe_dump(config_to_mapping(long_run)))
    overrides = (
        f"cluster.address={cluster.address}",
        "cluster.workers=[2, 3]",
        "cluster.placement=SPREAD",
        "cluster.resize_seconds=5",
    )
    process = started(sani_dist_run(settings, folder, *overrides), log, **SHORT)

    def works_on(count: int, after: int) -> Callable[[], bool]:
        return lambda: len(ranks_of(folder)) == count and len(repaired_steps(folder)) > after

    wait_until(works_on(3, EARLY), process, log)
    cluster.remove_node(node_of(cluster, ranks_of(folder)[1]), allow_graceful=False)
    wait_until(lambda: len(ranks_of(folder)) == 2, process, log)
    wait_until(works_on(2, len(repaired_steps(folder)) + EARLY), process, log)
    cluster.add_node(num_cpus=1, object_store_memory=STORE_BYTES)
    wait_until(lambda: len(ranks_of(folder)) == 3, process, log)
    wait_until(works_on(3, len(repaired_steps(folder)) + EARLY), process, log)
    finished(process, log, seconds=900)

    alone = sani_dist.sanitize(long_run, tmp_path / "alone")
    expected, found = steps_of(alone.folder), steps_of(folder)
    assert sorted(found) == sorted(expected)
    for step, event in expected.items():
        assert found[step]["learnable_tokens"] == event["learnable_tokens"], step
        assert found[step]["loss"] == pytest.approx(event["loss"], rel=1e-4), step
    before, after = (load_file(path / "model.safetensors") for path in (long_run.model.path, alone.path("model")))
    for name, tensor in load_file(folder / "model" / "model.safetensors").items():
        torch.testing.assert_close(tensor, after[name], atol=2e-5, rtol=1e-4)
    assert any((after[name] - tensor).abs().max() > 1e-3 for name, tensor in before.items())


def steps_of(folder: Path) -> dict[int, dict[str, Any]]:
    """What was reported of each step; of one that was done again, the last."""
    events = (json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines())
    return {event["done"]: event for event in events if event["stage"] == "repair"}
