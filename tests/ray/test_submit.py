"""launch/ray_submit.py against a Ray cluster with its dashboard, and the files for other schedulers."""

from __future__ import annotations

import os
import re
import secrets
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import yaml

from sani_dist.config_file import load_config
from sani_dist.orchestrate.local import free_port

from ..watching import ranks_of, repaired_steps
from .conftest import exported
from .started import BIN, ROOT, finished, started, wait_until

SUBMIT = str(ROOT / "launch" / "ray_submit.py")


@dataclass(frozen=True)
class Head:
    """A Ray of one node, as `ray start --head` makes it, that wants a token."""

    address: str
    variables: dict[str, str]

    def submit(self, *arguments: str) -> list[str]:
        return ["python", SUBMIT, *arguments, "--address", self.address]


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    port, folder = free_port(), tmp_path_factory.mktemp("head")
    (folder / "token").write_text(secrets.token_hex(32))
    variables = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(folder / "token")}
    command = [
        "ray", "start", "--head", "--block", "--port", str(free_port()), "--dashboard-port", str(port), "--num-cpus", "2",
        "--object-store-memory", "100000000", "--disable-usage-stats",
    ]  # fmt: skip
    process = started(command, folder / "log", **variables)
    try:
        wait_until(lambda: _answers(port), process, folder / "log")
        yield Head(f"http://127.0.0.1:{port}", variables)
    finally:
        for part in psutil.Process(process.pid).children(recursive=True):
            part.kill()  # asked politely, a raylet drains its node for half a minute
        process.kill()
        process.wait(60)


def _answers(port: int) -> bool:
    """Whether jobs are taken. Without the token the answer is a refusal; it comes as soon as there is someone to refuse."""
    try:
        urllib.request.urlopen(f"http://127.0.0.1:{port}/api/jobs/", timeout=5).close()
    except urllib.error.HTTPError as error:
        return error.code == 401
    except OSError:
        return False
    return True


@pytest.mark.slow
def test_a_job_is_followed_and_its_exit_code_comes_back(
    head: Head, settings_file: Path, undisturbed: dict[str, str], tmp_path: Path
) -> None:
    folder, log = tmp_path / "run", tmp_path / "refused"
    refused = head.submit(str(settings_file), "--out", str(folder), "--set", "erase.layers=99")
    printed = finished(started(refused, log, **head.variables), log, code=2)
    assert "erase.layers: 99, but the model has 3 layers" in printed

    log = tmp_path / "stopped"
    good = head.submit(str(settings_file), "--out", str(folder))
    process = started(good, log, **head.variables)
    wait_until(lambda: 6 in repaired_steps(folder), process, log)
    job = re.search(r"^job (\S+)$", log.read_text(), re.MULTILINE)
    assert job is not None
    finished(started(head.submit("--stop", job[1]), tmp_path / "stop", **head.variables), tmp_path / "stop")
    assert process.wait(60) != 0
    psutil.wait_procs(ranks_of(folder), 60)

    log = tmp_path / "again"  # the same command goes on with the run
    printed = finished(started(good, log, **head.variables), log)
    assert "Audit after: " in printed
    assert exported(folder) == undisturbed
    assert repaired_steps(folder).count(1) == 1


@pytest.mark.slow
def test_a_missing_token_is_one_line(head: Head, tmp_path: Path) -> None:
    log = tmp_path / "log"
    variables = {"RAY_AUTH_MODE": "disabled"}
    printed = finished(started(head.submit("/nowhere.yaml"), log, **variables), log, code=1)
    assert printed.startswith("error: the cluster wants a token: ")
    assert len(printed.splitlines()) == 1


def test_no_dashboard_is_one_line(tmp_path: Path) -> None:
    log = tmp_path / "log"
    command = ["python", SUBMIT, "/nowhere.yaml", "--address", f"http://127.0.0.1:{free_port()}"]
    assert started(command, log).wait(60) == 1
    assert log.read_text().startswith("error: no Ray dashboard answers at http://127.0.0.1:")
    assert "Traceback" not in log.read_text()


def test_the_rayjob_sets_settings_that_exist(settings_file: Path) -> None:
    job = yaml.safe_load((ROOT / "launch" / "kuberay_rayjob.yaml").read_text())["spec"]
    overrides = re.findall(r"--set (\S+?)'?(?=\s|$)", job["entrypoint"])
    cluster = load_config(settings_file, overrides).cluster
    assert (cluster.launcher, cluster.workers, cluster.gpus_per_worker) == ("ray", 8, 1)
    (group,) = job["rayClusterSpec"]["workerGroupSpecs"]
    limits = group["template"]["spec"]["containers"][0]["resources"]
    assert int(limits["limits"]["nvidia.com/gpu"]) * group["replicas"] == cluster.workers
    assert float(limits["requests"]["cpu"]) * group["replicas"] >= cluster.workers * cluster.cpus_per_worker


SRUN = """#!{python}
# Starts two tasks as srun does on one node, and ends with the first code that is not 0.
import os, subprocess, sys
command = [a for a in sys.argv[1:] if not a.startswith("--kill")]
tasks = [subprocess.Popen(command, env={{**os.environ, "SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)}}) for i in (0, 1)]
sys.exit(max(task.wait() for task in tasks))
"""


@pytest.mark.slow
def test_the_slurm_script_gives_the_files_of_the_local_launcher(
    settings_file: Path, undisturbed: dict[str, str], tmp_path: Path
) -> None:
    """Real ranks; `srun` and `scontrol` are stand-ins, since there is no Slurm here."""
    folder, log, tools = tmp_path / "run", tmp_path / "log", tmp_path / "bin"
    tools.mkdir()
    (tools / "srun").write_text(SRUN.format(python=sys.executable))
    (tools / "scontrol").write_text("#!/bin/sh\necho 127.0.0.1\n")
    for tool in ("srun", "scontrol"):
        (tools / tool).chmod(0o755)
    variables = {
        "PATH": f"{tools}{os.pathsep}{BIN}{os.pathsep}{os.environ['PATH']}", "CONFIG": str(settings_file), "RUN": str(folder),
        "SLURM_JOB_ID": str(free_port()), "SLURM_JOB_NODELIST": "here", "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2",
        "SLURM_SUBMIT_DIR": str(ROOT),
    }  # fmt: skip
    with log.open("wb") as stream:
        script = ["bash", str(ROOT / "launch" / "slurm.sbatch")]
        code = subprocess.run(
            script, env={**os.environ, **variables}, stdout=stream, stderr=stream, timeout=400
        ).returncode
    assert code == 0, log.read_text()[-3000:]
    assert exported(folder) == undisturbed
