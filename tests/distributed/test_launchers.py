"""One run under every launcher: the same weights, bit for bit, as from the ranks that sani-dist starts itself."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sani_dist.files import file_sha256
from sani_dist.orchestrate import worker
from sani_dist.orchestrate.local import free_port
from sani_dist.run import Run

from ..watching import ranks_of, repaired_steps, wait_until

ROOT = Path(__file__).parents[2]
WORKER = str(ROOT / "launch" / "worker.py")
BIN = Path(sys.executable).parent
SECONDS = 300
# The master port is each launcher's own way to say that runs on one machine must not meet.
LAUNCHERS = {
    "torchrun": ["torchrun", "--nproc-per-node", "2", "--master-port"],
    "deepspeed": ["deepspeed", "--num_accelerators", "2", "--master_port"],
    "accelerate": [
        "accelerate", "launch", "--config_file", str(ROOT / "launch" / "accelerate_zero3.yaml"), "--main_process_port",
    ],
}  # fmt: skip


def command(launcher: str, settings: Path, out: Path) -> list[str]:
    start, *options = LAUNCHERS[launcher]
    return [str(BIN / start), *options, str(free_port()), WORKER, str(settings), "--out", str(out)]


def started(arguments: list[str], log: Path) -> subprocess.Popen[bytes]:
    """In a process group of its own, as from a terminal; as a user's shell would, without variables of this process."""
    hidden = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "DS_ACCELERATOR")
    variables = {name: value for name, value in os.environ.items() if name not in hidden}
    variables["PATH"] = f"{BIN}{os.pathsep}{variables.get('PATH', '')}"
    with log.open("ab") as stream:
        return subprocess.Popen(
            arguments, cwd=ROOT, env=variables, stdin=subprocess.DEVNULL, stdout=stream, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip


def wait_for_step(step: int, folder: Path, process: subprocess.Popen[bytes], log: Path) -> None:
    wait_until(lambda: step <= max(repaired_steps(folder), default=0), process, log, SECONDS)


def model_hash(run: Run) -> str:
    return file_sha256(run.path("model", "model.safetensors"))


@pytest.mark.parametrize(
    "launcher", [pytest.param(name, marks=[pytest.mark.slow] * (name != "deepspeed")) for name in LAUNCHERS]
)
def test_a_launcher_gives_the_weights_of_sani_dist_run(
    finished_run: Run, settings_file: Path, tmp_path: Path, launcher: str
) -> None:
    log = tmp_path / "log"
    process = started(command(launcher, settings_file, tmp_path / "run"), log)
    assert process.wait(SECONDS) == 0, log.read_text()[-3000:]
    run = Run.open(tmp_path / "run")
    assert run.pending() == []
    assert model_hash(run) == model_hash(finished_run)
    assert json.loads(run.path("run.json").read_text())["status"] == "done"
    assert log.read_text().count(f"sanitised model: {run.path('model')}\n") == 1


@pytest.mark.slow
def test_the_same_command_goes_on_after_a_termination(finished_run: Run, settings_file: Path, tmp_path: Path) -> None:
    """SIGTERM to torchrun in the middle of repair, as when a cluster takes its machine back."""
    folder, log = tmp_path / "run", tmp_path / "log"
    process = started(command("torchrun", settings_file, folder), log)
    wait_for_step(6, folder, process, log)
    process.send_signal(signal.SIGTERM)
    assert process.wait(SECONDS) != 0
    run = Run.open(folder)
    assert run.pending() == ["repair", "audit-after", "export", "report"]
    assert "stopped by a signal after a checkpoint" in log.read_text()
    before = repaired_steps(folder)
    newest = sorted(run.path("repair", "checkpoints").iterdir())[-1]
    assert newest.name == f"step-{before[-1]:06d}"

    process = started(command("torchrun", settings_file, folder), log)
    assert process.wait(SECONDS) == 0, log.read_text()[-3000:]
    assert repaired_steps(folder)[len(before)] == before[-1] + 1
    assert model_hash(run) == model_hash(finished_run)
    process = started(command("torchrun", settings_file, folder), log)
    assert process.wait(SECONDS) == 0, log.read_text()[-3000:]  # finished: nothing is left to do
    assert run.pending() == []


@pytest.mark.slow
def test_ctrl_c_leaves_a_checkpoint(settings_file: Path, tmp_path: Path) -> None:
    """A terminal sends SIGINT to the command and to its ranks alike."""
    folder, log = tmp_path / "run", tmp_path / "log"
    process = started([str(BIN / "sani-dist"), "run", str(settings_file), "--out", str(folder)], log)
    wait_for_step(6, folder, process, log)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(SECONDS) == 3, log.read_text()[-3000:]
    assert "error: stopped by a signal after a checkpoint: `sani-dist resume" in log.read_text()
    assert "Traceback" not in log.read_text()
    newest = sorted((folder / "repair" / "checkpoints").iterdir())[-1]
    assert newest.name == f"step-{repaired_steps(folder)[-1]:06d}"
    assert ranks_of(folder) == []


def test_a_folder_of_another_run_is_refused(
    finished_run: Run, settings_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished_run.folder, folder)
    arguments = [str(settings_file), "--out", str(folder), "--set", "repair.learning_rate=0.001"]
    assert worker.main(arguments) == 2
    line = f"rank 0: {folder} is a run with other settings: choose another --out"
    assert capsys.readouterr().err.startswith(line)
    assert Run.open(folder).pending() == []


def test_settings_that_cannot_work_are_one_line_and_no_folder(
    settings_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert worker.main([str(settings_file), "--out", str(out), "--set", "erase.layers=99"]) == 2
    assert capsys.readouterr().err == "rank 0: erase.layers: 99, but the model has 3 layers\n"
    assert worker.main([str(tmp_path / "nothing.yaml"), "--out", str(out)]) == 2
    assert "cannot read" in capsys.readouterr().err
    assert worker.main([str(settings_file), "--out", str(out), "--local_rank", "1"]) == 2
    assert "--local_rank 1" in capsys.readouterr().err
    assert not out.exists()
