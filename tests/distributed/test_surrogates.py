"""Repair on text with surrogates, and in turns with unlikelihood on the true text, on real ranks."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import sani_dist
from sani_dist.api import REPAIR_STAGES
from sani_dist.config import Config
from sani_dist.corpus.rows import PackedRows
from sani_dist.run import Run


def losses(run: Run) -> list[float]:
    events = [json.loads(line) for line in run.path("metrics.jsonl").read_text().splitlines()]
    return [event["loss"] for event in events if event["stage"] == "repair"]


@pytest.mark.slow
def test_every_world_size_takes_the_text_of_each_epoch(make_config: Callable[..., Config], tmp_path: Path) -> None:
    objectives = {"surrogate": "en_US", "unlikelihood": 0.5, "floor": 0.002}
    repair = {"epochs": 2, "objectives": objectives, "checkpoint_every": 100}
    runs = {}
    for workers in (1, 2):
        config = make_config(
            model={"dtype": "float32"}, erase={"layers": 0}, repair=repair, cluster={"workers": workers, "threads": 1}
        )
        runs[workers] = sani_dist.sanitize(config, tmp_path / str(workers), stages=REPAIR_STAGES)
    one, two = runs.values()
    assert losses(one) == pytest.approx(losses(two), rel=1e-5)
    folders = sorted(path.name for path in one.path("tokens").iterdir())
    assert folders == ["epoch-000", "epoch-002"]
    true, other = (PackedRows(one.path("tokens", folder, "repair.arrow")) for folder in folders)
    assert int(true.sensitive.sum()) > int(other.sensitive.sum()) == 0
    # Names and numbers are learnt in the second epoch: its first loss is far above what the ordinary words had come down to.
    half = len(losses(one)) // 2
    assert max(losses(one)[half : half + 2]) > losses(one)[half - 2]
    assert one.is_done("prepare")
    assert json.loads(one.path("corpus", "summary.json").read_text())["surrogates"]["kept"] == {}
