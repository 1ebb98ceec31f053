"""The run that all others must equal, of two ranks that sani-dist starts itself; and a cluster."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster

from sani_dist.config import Config
from sani_dist.files import file_sha256
from sani_dist.run import Run

from .. import tiny
from .started import STORE_BYTES

NOTES_OF_A_LONG_RUN = 200


@pytest.fixture(scope="session")
def undisturbed(finished_run: Run) -> dict[str, str]:
    """Hashes of all files of the model that two ranks of this machine export."""
    return exported(finished_run.folder)


@pytest.fixture
def long_run(make_config: Callable[..., Config], tmp_path: Path) -> Config:
    """Steps of many small micro-batches: a group has to be lost, found and found again before they are over."""
    draw, notes = random.Random(3), tmp_path / "notes.jsonl"
    lines = [tiny.note(draw, i % 5, tiny.CANARY_PEOPLE, tiny.CANARY_NUMBERS) for i in range(NOTES_OF_A_LONG_RUN)]
    notes.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return make_config(
        model={"dtype": "float32"}, corpus={"source": str(notes)}, audit={"metrics": []}, erase={"select": "random"},
        repair={"epochs": 16, "batch_rows": 64, "micro_rows": 1, "learning_rate": 1e-4, "checkpoint_every": 2},
    )  # fmt: skip


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A head without CPUs, as in a real cluster, where the command runs; three nodes with room for one rank each."""
    # On a busy machine, ranks below everything else would not come in time.
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
    head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": STORE_BYTES}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        for _ in range(3):
            cluster.add_node(num_cpus=1, object_store_memory=STORE_BYTES)
        cluster.wait_for_nodes()
        yield cluster
    finally:
        cluster.shutdown()


def exported(folder: Path) -> dict[str, str]:
    """Hashes of the exported files, by name. The model card tells dates, and is left out."""
    files = (path for path in (folder / "model").iterdir() if path.name != "README.md")
    return {path.name: file_sha256(path) for path in files}
