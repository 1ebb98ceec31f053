"""A run at work in other processes, watched from outside."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from sani_dist.metrics import read_stage


def wait_until(reached: Callable[[], bool], process: subprocess.Popen[bytes], log: Path, seconds: float) -> None:
    """Fails, with the end of what the process printed to `log`, when it ends or the time is over before that."""
    end = time.monotonic() + seconds
    while not reached():
        assert process.poll() is None, log.read_text()[-3000:]
        assert time.monotonic() < end, log.read_text()[-3000:]
        time.sleep(0.01)


def repaired_steps(folder: Path) -> list[int]:
    """The steps that repair has reported until now, those that were done twice twice."""
    return [event["done"] for event in read_stage(folder / "metrics.jsonl", "repair")]


def ranks_of(folder: Path) -> list[psutil.Process]:
    """The processes of the ranks at work in a run folder, in the order of their ids."""
    return [
        p for p in psutil.process_iter(["cmdline"]) if {str(folder), "--follow-stdin"} <= set(p.info["cmdline"] or [])
    ]
