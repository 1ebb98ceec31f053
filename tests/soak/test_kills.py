"""Twenty runs, each killed once: kill -9 at a random moment of a stage, of one rank or of all processes; then `sani-dist resume`.

    python -m pytest -m slow tests/soak

Each ends with the exported files of a run that nobody disturbed. SOAK_SEED draws other moments, SOAK_KILLS another number of them.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import yaml

from sani_dist.config import Config
from sani_dist.config_file import config_to_mapping
from sani_dist.files import file_sha256
from sani_dist.run import STAGES, Run

from ..ray.conftest import exported
from ..ray.started import started

SEED, KILLS = int(os.environ.get("SOAK_SEED", "1")), int(os.environ.get("SOAK_KILLS", "20"))
SECONDS = 600
# Every stage; those that write checkpoints and the model more often.
KILLED_IN = (*STAGES, "repair", "export", *STAGES, "repair", "export", "repair", "export")


@dataclass(frozen=True)
class Undisturbed:
    settings: Path
    files: dict[str, str]
    seconds: dict[str, float]  # that each stage took


@pytest.fixture(scope="module")
def undisturbed(make_config: Callable[..., Config], tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    folder = tmp_path_factory.mktemp("undisturbed")
    settings, run = folder / "run.yaml", folder / "run"
    settings.write_text(yaml.safe_dump(config_to_mapping(make_config(repair={"checkpoint_every": 2}))))
    begun = time.time()
    process = started(["sani-dist", "run", str(settings), "--out", str(run)], folder / "log")
    assert process.wait(SECONDS) == 0, (folder / "log").read_text()[-3000:]
    ends = [begun, *((run / "done" / f"{stage}.json").stat().st_mtime for stage in STAGES)]
    took = {stage: end - start for stage, (start, end) in zip(STAGES, itertools.pairwise(ends), strict=True)}
    return Undisturbed(settings, exported(run), took)


@pytest.mark.slow
@pytest.mark.timeout(KILLS * SECONDS)
def test_runs_killed_at_random_moments_end_with_the_same_model(undisturbed: Undisturbed, tmp_path: Path) -> None:
    draw = random.Random(SEED)
    story = []
    for number in range(KILLS):
        stage = KILLED_IN[number % len(KILLED_IN)]
        folder, log = tmp_path / f"run-{number}", tmp_path / f"log-{number}"
        moment, victim = _kill(undisturbed, folder, log, stage, draw)
        found = _whole(folder)
        arguments = ["resume", str(folder)]
        if not (folder / "config.yaml").exists():  # there was no run yet
            arguments = ["run", str(undisturbed.settings), "--out", f"{folder}-again"]
            folder = Path(f"{folder}-again")
        process = started(["sani-dist", *arguments], log)
        assert process.wait(SECONDS) == 0, log.read_text()[-3000:]
        assert Run.open(folder).pending() == []
        assert exported(folder) == undisturbed.files, (number, stage, moment)
        assert list(folder.rglob(".tmp-*")) == []
        story.append(f"{number + 1:>3}  {stage:<13} {moment:6.2f} s  {victim:<13} {found}")
        print(story[-1], flush=True)
    assert len(story) == KILLS


def _kill(undisturbed: Undisturbed, folder: Path, log: Path, stage: str, draw: random.Random) -> tuple[float, str]:
    """Start a run and kill it in `stage`; the seconds into it, and what was killed. A moment that comes too late is drawn again."""
    while True:
        settings = str(undisturbed.settings)
        process = started(["sani-dist", "run", settings, "--out", str(folder)], log)
        before = STAGES[STAGES.index(stage) - 1] if stage != STAGES[0] else None
        while before is not None and not (folder / "done" / f"{before}.json").exists():
            assert process.poll() is None, log.read_text()[-3000:]
            time.sleep(0.002)
        moment = draw.uniform(0, undisturbed.seconds[stage])
        time.sleep(moment)
        ranks = _ranks(process.pid)
        done = (folder / "done" / f"{stage}.json").exists()
        rank = draw.choice(ranks) if ranks and draw.random() < 0.5 else None
        if rank is None:
            os.killpg(process.pid, signal.SIGKILL)
        else:
            with contextlib.suppress(psutil.NoSuchProcess):
                rank.kill()
        code = process.wait(SECONDS)
        for left in ranks:
            with contextlib.suppress(psutil.NoSuchProcess):
                left.wait(SECONDS)
        if code != 0 and not done:
            return moment, "everything" if rank is None else f"rank of {len(ranks)}"
        shutil.rmtree(folder)


def _ranks(command: int) -> list[psutil.Process]:
    """The ranks that the process `command` has started and that are at work."""
    found = []
    for child in psutil.Process(command).children():
        with contextlib.suppress(psutil.NoSuchProcess):  # it has just ended
            if "sani_dist.orchestrate.worker" in child.cmdline():
                found.append(child)
    return found


def _whole(folder: Path) -> str:
    """Everything that a killed run presents as finished is whole: stages, checkpoints, the model; a line that says what there was."""
    stages = sorted(path.stem for path in (folder / "done").glob("*.json"))
    if stages:
        run = Run.open(folder)
        assert all(run.is_done(stage) for stage in stages)
    checkpoints = sorted((folder / "repair" / "checkpoints").glob("step-*"))
    for checkpoint in checkpoints:
        files = json.loads((checkpoint / "state.json").read_text())["files"]
        assert len(files) == 2
        assert all(file_sha256(checkpoint / name) == sha for name, sha in files.items())
    model = folder / "model"
    if model.exists():
        assert (model / "config.json").exists()
        assert (model / "model.safetensors").exists()
    newest = checkpoints[-1].name if checkpoints else "no checkpoint"
    return f"{len(stages)} stages done, {newest}{', model' * model.exists()}"
