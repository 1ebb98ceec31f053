"""Runs on Ray as a user starts them: one command, in a process group of its own, watched through the run folder."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
from ray.cluster_utils import Cluster

from sani_dist.metrics import read_stage

from .. import watching

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
SECONDS = 400
# Of the object store of a node.
STORE_BYTES = 80_000_000
# As a user's shell would: without variables that this process or its own ranks need.
HIDDEN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "DS_ACCELERATOR", "RAY_ADDRESS", "RAY_AUTH_MODE")


def started(arguments: list[str], log: Path, **variables: str) -> subprocess.Popen[bytes]:
    """A command of this environment's `bin`; what it prints is appended to `log`."""
    kept = {name: value for name, value in os.environ.items() if name not in HIDDEN}
    path = f"{BIN}{os.pathsep}{kept.get('PATH', '')}"
    with log.open("ab") as stream:
        return subprocess.Popen(
            [str(BIN / arguments[0]), *arguments[1:]], cwd=log.parent, env={**kept, "PATH": path, **variables},
            stdin=subprocess.DEVNULL, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip


def sani_dist_run(settings: Path, folder: Path, *overrides: str) -> list[str]:
    """The command line of a run on Ray."""
    chosen = [part for override in ("cluster.launcher=ray", *overrides) for part in ("--set", override)]
    return ["sani-dist", "run", str(settings), "--out", str(folder), *chosen]


def finished(process: subprocess.Popen[bytes], log: Path, code: int = 0, seconds: float = SECONDS) -> str:
    """What the command printed, when it has ended with `code`."""
    assert process.wait(seconds) == code, log.read_text()[-3000:]
    return log.read_text()


def restarted_after(folder: Path) -> list[int]:
    """The steps whose checkpoints later groups of ranks went on from: each begins with loading the model."""
    metrics = folder / "metrics.jsonl"
    loaded = [event["time"] for event in read_stage(metrics, "load") if event["done"]]
    steps = read_stage(metrics, "repair")
    later = ([step["done"] for step in steps if step["time"] > moment] for moment in loaded[1:])
    return [done[0] - 1 for done in later if done]


def wait_until(reached: Callable[[], bool], process: subprocess.Popen[bytes], log: Path) -> None:
    watching.wait_until(reached, process, log, SECONDS)


def node_of(cluster: Cluster, rank: psutil.Process) -> object:
    """The raylet that a rank's process belongs to."""
    return next(node for node in cluster.worker_nodes if _raylet(node) in rank.parents())


def _raylet(node: object) -> psutil.Process:
    return psutil.Process(node.all_processes["raylet"][0].process.pid)  # type: ignore[attr-defined]
