"""What a launcher tells a rank is checked before anything is read, and after the process group is there."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

import sani_dist.engine
from sani_dist.engine.distributed import check_launcher
from sani_dist.errors import InputError
from sani_dist.orchestrate.local import environment, free_port


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"PATH": "/bin", "MASTER_PORT": "1"},
        {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"},
        {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"},
        {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_SIZE": "2"},  # the deepspeed launcher
    ],
)
def test_what_one_launcher_sets_is_accepted(variables: dict[str, str]) -> None:
    check_launcher(variables)


@pytest.mark.parametrize(
    ("variables", "line"),
    [
        ({"RANK": "0"}, "the launcher set RANK but not WORLD_SIZE, LOCAL_RANK: use torchrun"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "the launcher set RANK, WORLD_SIZE but not LOCAL_RANK"),
        ({"RANK": "0", "WORLD_SIZE": "two", "LOCAL_RANK": "0"}, "WORLD_SIZE=two, LOCAL_RANK=0: expected numbers"),
        ({"RANK": "-1", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, "RANK=-1, WORLD_SIZE=2, LOCAL_RANK=0: expected numbers"),
        ({"RANK": "2", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, "RANK=2, WORLD_SIZE=2, LOCAL_RANK=0: these do not fit"),
        ({"RANK": "0", "WORLD_SIZE": "0", "LOCAL_RANK": "0"}, "do not fit together"),
        ({"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "2"}, "do not fit together"),
        ({"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "1"}, "do not fit together"),
        ({"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}, "do not fit together"),
    ],
)
def test_variables_of_two_launchers_are_refused_in_one_line(variables: dict[str, str], line: str) -> None:
    with pytest.raises(InputError) as error:
        check_launcher(variables)
    assert line in str(error.value)
    assert "\n" not in str(error.value)


def run_alone(script: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", script], env={**environment(0, 1, free_port()), **variables},
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_a_process_group_of_another_size_is_refused_in_one_line() -> None:
    """As when something has joined a group before, which DeepSpeed then takes over."""
    script = """
import os, torch.distributed as dist
from sani_dist.engine import distributed
from sani_dist.errors import RunError
dist.init_process_group("gloo")
os.environ.update(WORLD_SIZE="2", LOCAL_WORLD_SIZE="2", RANK="1", LOCAL_RANK="1")
try:
    distributed.start(threads=1)
except RunError as error:
    print(error)
"""
    done = run_alone(script)
    line = "the launcher says rank 1 of 2, DeepSpeed says rank 0 of 1, torch says rank 0 of 1: start all ranks"
    assert line in done.stdout, done.stderr
    assert done.stdout.count(line) == 1


def test_the_setting_wins_over_the_threads_of_the_launcher() -> None:
    """torchrun sets one thread for every rank, the launcher of this machine none; sums depend on it."""
    script = """
import torch
from sani_dist.engine import distributed
distributed.start(threads=3)
print("threads", torch.get_num_threads())
"""
    assert "threads 3" in run_alone(script, OMP_NUM_THREADS="1").stdout


def test_only_a_rank_imports_deepspeed_and_nothing_imports_mlflow(tmp_path: Path) -> None:
    """Each would take a second or two of every command, of every rank; DeepSpeed imports MLflow where it is installed."""
    tmp_path.joinpath("mlflow.py").touch()
    script = """
import sys
import sani_dist.cli, sani_dist.pipeline
slow = {"deepspeed", "mlflow", "scipy.stats"}
before = slow & sys.modules.keys()
sani_dist.pipeline.distributed.start(threads=1)
after = slow & sys.modules.keys()
import mlflow
print(before, after, mlflow.__name__)
"""
    done = run_alone(script, PYTHONPATH=os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    assert done.stdout.splitlines()[-1] == "set() {'deepspeed'} mlflow", done.stderr


def test_deepspeed_does_not_warn_that_there_is_no_accelerator() -> None:
    variables = {name: value for name, value in os.environ.items() if name != "DS_ACCELERATOR"}
    script = "import sani_dist.engine.checkpoint, deepspeed; print(deepspeed.get_accelerator().device_name())"
    done = subprocess.run(
        [sys.executable, "-c", script], env={**variables, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.split()[-1] == "cpu"
    assert "Setting accelerator" not in done.stdout + done.stderr


def test_an_accelerator_that_the_user_chose_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DS_ACCELERATOR", "hpu")
    importlib.reload(sani_dist.engine)
    assert os.environ["DS_ACCELERATOR"] == "hpu"
    monkeypatch.delenv("DS_ACCELERATOR")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    importlib.reload(sani_dist.engine)
    assert os.environ["DS_ACCELERATOR"] == "cpu"
