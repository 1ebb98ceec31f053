"""Repair that ends at the control, on real ranks: looking changes nothing, and ending early is a finished stage."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import sani_dist
from sani_dist.api import REPAIR_STAGES
from sani_dist.audit import control as audit_control
from sani_dist.config import Config
from sani_dist.files import file_sha256
from sani_dist.run import Run

from .. import tiny


def control(folder: Path) -> str:
    """Notes like those that are trained on, with other names and numbers: the five of the notes take turns in fives, these in threes."""
    draw = random.Random(1)
    lines = [tiny.note(draw, i % 3, tiny.CONTROL_PEOPLE, tiny.CONTROL_NUMBERS) for i in range(24)]
    (folder / "control.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(folder / "control.jsonl")


def repaired(make_config: Callable[..., Config], folder: Path, workers: int = 2, **repair: Any) -> Run:
    """Fine-tuning on true values, or repair: `repair` says."""
    config = make_config(
        model={"dtype": "float32"}, corpus={"control": control(folder.parent)}, erase={"layers": 0},
        repair={"epochs": 2, "checkpoint_every": 100, **repair}, cluster={"workers": workers, "threads": 1},
    )  # fmt: skip
    return sani_dist.sanitize(config, folder, stages=REPAIR_STAGES)


def comparisons(run: Run) -> list[dict[str, Any]]:
    return json.loads(run.path("repair", "control.json").read_text())


@pytest.mark.slow
def test_looking_after_each_epoch_changes_no_bit(make_config: Callable[..., Config], tmp_path: Path) -> None:
    """Every value is learnt by heart, so it goes to its last step."""
    learning = {"objectives": {"plain": True}, "learning_rate": 1e-2}
    looked = repaired(make_config, tmp_path / "looked", until_control=True, look=True, **learning)
    plain = repaired(make_config, tmp_path / "plain", **learning)
    steps = [s["step"] for s in comparisons(looked)]
    assert len(steps) == 2
    assert not any(s["ends"] for s in comparisons(looked))
    looks = json.loads(looked.path("repair", "looks.json").read_text())
    assert [(look["step"], look["low"], look["high"]) for look in looks] == [
        (s["step"], s["low"], s["high"]) for s in comparisons(looked)
    ]
    assert all(set(look["losses"]) == {"heldout", "general_test"} for look in looks)
    assert all(s["auc_low"] > 0.5 for s in comparisons(looked))
    hashes = [file_sha256(run.path("model", "model.safetensors")) for run in (looked, plain)]
    assert hashes[0] == hashes[1]


@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_ends_after_the_first_epoch_at_the_control(
    make_config: Callable[..., Config], tmp_path: Path, workers: int
) -> None:
    """An untrained model knows no values."""
    run = repaired(make_config, tmp_path / "run", workers, until_control=True, learning_rate=1e-6)
    (found,) = comparisons(run)
    assert found["ends"]
    assert audit_control.ControlComparison(**{k: v for k, v in found.items() if k not in ("step", "ends")}).at_control
    events = [json.loads(line) for line in run.path("metrics.jsonl").read_text().splitlines()]
    last = [event for event in events if event["stage"] == "repair"][-1]
    assert last["done"] == found["step"] < last["total"]
    assert run.pending() == []
    assert [path.name for path in run.path("repair", "checkpoints").iterdir()] == [f"step-{found['step']:06d}"]
    # A run that died after the last checkpoint goes on from there, not with another epoch.
    for stage in ("repair", "export"):
        run.path("done", f"{stage}.json").unlink()
    before = file_sha256(run.path("model", "model.safetensors"))
    sani_dist.resume(run.folder)
    assert comparisons(run) == [found]
    assert file_sha256(run.path("model", "model.safetensors")) == before
