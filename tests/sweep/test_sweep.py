"""A whole sweep on real ranks through Ray Tune, as a user starts it: killed, started again, and its choice run."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import jsonschema
import psutil
import pytest

from .. import tiny
from ..ray.started import finished, started, wait_until
from ..watching import repaired_steps
from .conftest import MakeSweep


def document(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "sweep.json").read_text())
    schema = json.loads(resources.files("sani_dist.sweep").joinpath("schema.json").read_text())
    jsonschema.validate(found, schema)
    return found


@pytest.mark.slow
def test_a_killed_sweep_goes_on_and_its_choice_is_a_run(make_sweep: MakeSweep, tmp_path: Path) -> None:
    path = make_sweep(
        space={"repair.learning_rate": [1e-3, 2e-3], "repair.epochs": [12]}, limits={"max_utility_loss": 9.0}
    )
    folder, log = tmp_path / "sweep", tmp_path / "log"
    command = ["sani-dist", "sweep", str(path), "--out", str(folder)]
    process = started(command, log)

    def audited() -> dict[Path, int]:
        return {f.parents[1]: f.stat().st_mtime_ns for f in folder.glob("trials/*/done/audit-after.json")}

    found_at_work: list[Path] = []

    def at_work() -> bool:
        """Whether a trial is in the middle of its repair, another one having finished."""
        ended = audited()
        going = [t for t in folder.glob("trials/*") if t not in ended and repaired_steps(t)[-1:] > [6]]
        found_at_work.extend(going if ended else [])
        return bool(found_at_work)

    wait_until(at_work, process, log)
    cut = found_at_work[0]
    at_it = [p for p in psutil.process_iter(["cmdline"]) if str(cut) in (p.info["cmdline"] or [])]
    assert len(at_it) == 3  # the trial's process and its ranks
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs(at_it, 60)
    assert alive == []
    before = audited()
    printed = finished(started(command, log), log)

    # Finished trials are left alone; the one that was cut short went on from a checkpoint.
    assert {trial: audited()[trial] for trial in before} == before
    assert cut in audited()
    assert repaired_steps(cut).count(1) == 1
    found = document(folder)
    trials = [
        (point["values"]["repair.learning_rate"], trial) for point in found["points"] for trial in point["trials"]
    ]
    assert sorted((rate, trial["state"]) for rate, trial in trials) == [(1e-3, "finished"), (2e-3, "finished")]
    assert all(trial["seconds"] > 0 for _, trial in trials)
    assert all(not (trial / "repair" / "checkpoints").exists() for trial in audited())
    assert not (folder / "ray").exists()

    chosen = found["points"][found["chosen"]]
    assert chosen["front"]
    # An untrained model leaks nothing at any point: the cheaper one is chosen.
    assert chosen["heldout"]["mean"] == min(point["heldout"]["mean"] for point in found["points"])
    assert f"chosen: point {chosen['number']}" in printed
    page = (folder / "index.html").read_text()
    assert f"Chosen: point {chosen['number']}" in page
    ElementTree.parse(folder / "front.svg")
    for written in (page, printed, (folder / "sweep.json").read_text()):
        assert not any(canary in written for canary in tiny.CANARIES)

    # The choice, run on its own, is the trial.
    run = tmp_path / "run"
    finished(started(["sani-dist", "run", str(folder / "chosen.yaml"), "--out", str(run)], log), log)
    assert leak(run) == leak(folder / "trials" / chosen["trials"][0]["name"])


def leak(run: Path) -> list[dict[str, Any]]:
    found = json.loads((run / "audit" / "after.json").read_text())["measurements"]
    return [measured for measured in found if measured["metric"] == "leak@100"]
