"""A run at work in other processes, watched from outside or stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from sani_dist.metrics import read_stage

# `sani-dist`, by this Python; what it is given follows.
COMMAND = [sys.executable, "-c", "from sani_dist.cli import main; main()"]


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


def at_step(step: int, act: Callable[[], None], stage: str = "repair") -> Callable[[dict[str, Any]], None]:
    """An `on_event` that acts once, when the stage has reported `step`."""
    acted = []

    def on_event(event: dict[str, Any]) -> None:
        if event["stage"] == stage and event["done"] >= step and not acted:
            acted.append(event)
            act()

    return on_event


def terminate_self() -> None:
    """As a cluster does that takes its machine back."""
    os.kill(os.getpid(), signal.SIGTERM)
