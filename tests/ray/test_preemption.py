"""A node of a Ray cluster is taken away after a notice, as spot machines are."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from ray.cluster_utils import Cluster

import sani_dist
from sani_dist.config import Config
from sani_dist.config_file import config_to_mapping

from ..watching import ranks_of, repaired_steps
from .conftest import exported
from .started import finished, node_of, restarted_after, sani_dist_run, started, wait_until

NOTICE_SECONDS = 15
STEP = 3


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_notice_makes_a_checkpoint_and_the_run_goes_on_from_it_elsewhere(
    long_run: Config, cluster: Cluster, tmp_path: Path
) -> None:
    settings, folder, log = tmp_path / "run.yaml", tmp_path / "run", tmp_path / "log"
    never = long_run.model_copy(update={"repair": long_run.repair.model_copy(update={"checkpoint_every": 10**6})})
    settings.write_text(yaml.safe_dump(config_to_mapping(never)))
    overrides = [f"cluster.address={cluster.address}", "cluster.placement=STRICT_SPREAD", "cluster.max_failures=0"]
    process = started(sani_dist_run(settings, folder, *overrides), log)
    wait_until(lambda: STEP in repaired_steps(folder), process, log)
    node = node_of(cluster, ranks_of(folder)[1])
    at = repaired_steps(folder)[-1]
    drain = ["ray", "drain-node", "--address", cluster.address, "--node-id", node.node_id]  # type: ignore[attr-defined]
    reason = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot"]
    told = started([*drain, *reason, "--deadline-remaining-seconds", str(NOTICE_SECONDS)], tmp_path / "drain")
    finished(told, tmp_path / "drain")
    finished(process, log, seconds=600)
    (step,) = restarted_after(folder)
    assert at <= step < max(repaired_steps(folder))
    assert exported(folder) == exported(sani_dist.sanitize(never, tmp_path / "alone").folder)
