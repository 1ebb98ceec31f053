"""A run on Ray: the bits of every other launcher, whatever is killed on the way."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import psutil
import pytest

from sani_dist.run import Run

from ..watching import ranks_of, repaired_steps
from .conftest import exported
from .started import finished, restarted_after, sani_dist_run, started, wait_until

# Checkpoints are written every fourth step of 21. A process that is killed at this step ends at it, or a few later.
STEP = 6


def test_ray_gives_the_files_of_the_local_launcher(
    settings_file: Path, undisturbed: dict[str, str], tmp_path: Path
) -> None:
    folder, log = tmp_path / "run", tmp_path / "log"
    printed = finished(started(sani_dist_run(settings_file, folder), log), log)
    assert exported(folder) == undisturbed
    assert Run.open(folder).pending() == []
    # One view of progress, and nothing of Ray's; what the ranks said is where other launchers put it.
    assert printed.splitlines()[0].startswith("Find sensitive spans: ")
    assert "Train: " in printed
    assert "ray" not in printed.replace(str(tmp_path), "").lower()
    logs = {path.name for path in (folder / "logs").glob("rank-*")}
    assert logs == {"rank-0.log", "rank-1.log", "rank-0.process", "rank-1.process"}


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["rank", "Ray worker"])
def test_a_killed_process_in_the_middle_of_repair_changes_no_bit(
    settings_file: Path, undisturbed: dict[str, str], tmp_path: Path, victim: str
) -> None:
    folder, log = tmp_path / "run", tmp_path / "log"
    process = started(sani_dist_run(settings_file, folder), log)
    wait_until(lambda: STEP in repaired_steps(folder), process, log)
    before = ranks_of(folder)
    assert len(before) == 2
    ray_worker = before[1].parent()
    assert ray_worker is not None
    assert ray_worker.cmdline()[0].startswith("ray::")
    (before[1] if victim == "rank" else ray_worker).kill()
    finished(process, log)
    assert exported(folder) == undisturbed
    assert restarted_after(folder) in ([4], [8])
    _, alive = psutil.wait_procs(before, 5)
    assert alive == []


@pytest.mark.slow
def test_a_worker_lost_too_often_ends_in_one_line_and_can_be_resumed(
    settings_file: Path, undisturbed: dict[str, str], tmp_path: Path
) -> None:
    folder, log = tmp_path / "run", tmp_path / "log"
    process = started(sani_dist_run(settings_file, folder, "cluster.max_failures=0"), log)
    wait_until(lambda: STEP in repaired_steps(folder), process, log)
    ranks_of(folder)[0].kill()
    printed = finished(process, log, code=3)
    last = printed.splitlines()[-1]
    assert last.startswith("error: rank ")
    assert "was killed by signal 9" in last
    assert f"`sani-dist resume {folder}`" in last
    assert "Traceback" not in printed
    # Without Ray: the rest of a run does not care who starts its ranks.
    finished(started(["sani-dist", "resume", str(folder), "--set", "cluster.launcher=local"], log), log)
    assert restarted_after(folder) in ([4], [8])
    assert exported(folder) == undisturbed


@pytest.mark.slow
def test_ctrl_c_leaves_a_checkpoint_and_no_process(
    settings_file: Path, undisturbed: dict[str, str], tmp_path: Path
) -> None:
    """A terminal sends SIGINT to the command and to all of its group."""
    folder, log = tmp_path / "run", tmp_path / "log"
    process = started(sani_dist_run(settings_file, folder), log)
    wait_until(lambda: STEP in repaired_steps(folder), process, log)
    children = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGINT)
    printed = finished(process, log, code=3)
    assert "error: stopped by a signal after a checkpoint: `sani-dist resume" in printed
    assert "Traceback" not in printed
    newest = sorted((folder / "repair" / "checkpoints").iterdir())[-1]
    assert newest.name == f"step-{repaired_steps(folder)[-1]:06d}"
    _, alive = psutil.wait_procs(children, 30)
    assert alive == []
    finished(started(["sani-dist", "resume", str(folder)], log), log)
    assert exported(folder) == undisturbed


@pytest.mark.slow
def test_ranks_end_with_the_command_that_started_them(
    settings_file: Path, undisturbed: dict[str, str], tmp_path: Path
) -> None:
    """The head is lost: nothing may go on writing to the run folder, and `resume` finishes the run."""
    folder, log = tmp_path / "run", tmp_path / "log"
    process = started(sani_dist_run(settings_file, folder), log)
    wait_until(lambda: STEP in repaired_steps(folder), process, log)
    ranks = ranks_of(folder)
    process.kill()
    _, alive = psutil.wait_procs(ranks, 60)
    assert alive == []
    process.wait()
    finished(started(["sani-dist", "resume", str(folder)], log), log)
    assert exported(folder) == undisturbed
