"""A Ray cluster of three raylets on this machine, one of which is lost in the middle of repair."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest
from ray.cluster_utils import Cluster

from ..watching import ranks_of, repaired_steps
from .conftest import exported
from .started import finished, node_of, restarted_after, sani_dist_run, started, wait_until

STEP = 6


@pytest.mark.slow
def test_a_lost_node_in_the_middle_of_repair_changes_no_bit(
    cluster: Cluster, settings_file: Path, undisturbed: dict[str, str], tmp_path: Path
) -> None:
    folder, log = tmp_path / "run", tmp_path / "log"
    overrides = [f"cluster.address={cluster.address}", "cluster.placement=STRICT_SPREAD"]
    process = started(sani_dist_run(settings_file, folder, *overrides), log)
    wait_until(lambda: STEP in repaired_steps(folder), process, log)
    before = ranks_of(folder)
    cluster.remove_node(node_of(cluster, before[1]), allow_graceful=False)
    finished(process, log)
    assert exported(folder) == undisturbed
    (step,) = restarted_after(folder)  # with a rank on the third node
    assert step > 0
    assert step % 4 == 0
    _, alive = psutil.wait_procs(before, 5)
    assert alive == []


@pytest.mark.slow
def test_a_cluster_that_lacks_resources_is_one_line_in_the_end(
    cluster: Cluster, settings_file: Path, tmp_path: Path
) -> None:
    folder, log = tmp_path / "run", tmp_path / "log"
    overrides = [f"cluster.address={cluster.address}", "cluster.resources.fast=1", "cluster.start_minutes=1"]
    # Ray's own minute is made shorter.
    short = {"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "4"}
    printed = finished(started(sani_dist_run(settings_file, folder, *overrides), log, **short), log, code=3)
    last = printed.splitlines()[-1]
    assert last.startswith("error: Ray did not start 2 workers with CPU 1, fast 1 each: ")
    assert f"`sani-dist resume {folder}`" in last
    assert "Traceback" not in printed
