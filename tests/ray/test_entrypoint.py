"""The job that launch/ray_submit.py gives to Ray shows no setting to whoever lists processes or jobs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ..watching import COMMAND
from .started import ROOT

sys.path.insert(0, str(ROOT / "launch"))
import ray_submit  # type: ignore[import-not-found]

SETTINGS = ["corpus.target.values=[Zebulon $HOME `id` 'Quackenbush']", "cluster.runtime_env={env_vars: {KEY: hush}}"]
TOLD = """#!/usr/bin/env python
import json, sys
print(json.dumps([sys.argv[1:], sys.stdin.read().splitlines()]))
"""


@pytest.mark.parametrize("begun", [False, True])
def test_settings_come_on_standard_input(tmp_path: Path, begun: bool) -> None:
    command, run = tmp_path / "bin" / "sani-dist", tmp_path / "a run"
    command.parent.mkdir()
    command.write_text(TOLD)
    command.chmod(0o755)
    if begun:
        run.mkdir()
        (run / "config.yaml").write_text("")
    job = ray_submit.entrypoint("my settings.yaml", str(run))
    path = f"{command.parent}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    variables = {**os.environ, **ray_submit.variables(SETTINGS), "PATH": path}
    done = subprocess.run(job, shell=True, env=variables, capture_output=True, text=True, check=True)
    arguments, given = json.loads(done.stdout)
    assert not any(word in f"{job} {arguments}" for word in ("Zebulon", "Quackenbush", "hush"))
    assert given == (SETTINGS[1:] if begun else SETTINGS)
    start = ["resume", str(run)] if begun else ["run", "my settings.yaml", "--out", str(run)]
    assert arguments == [*start, "--set", "cluster.launcher=ray", "--set", "-"]


def test_the_command_reads_settings_from_standard_input(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(
        "model: {path: m}\ncorpus: {source: a.jsonl, detect: [{name: terms, values: [a]}]}\n"
    )
    command = [
        *COMMAND,
        "run",
        str(tmp_path / "run.yaml"),
        "--set",
        "-",
    ]
    lines = "repair.epochs=1\n\nerase.fraction=7\n"
    done = subprocess.run(command, input=lines, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.startswith("error: erase.fraction: Input should be less than")) == (2, True)
