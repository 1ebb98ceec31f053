"""Waiting for what another process does."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path


def wait_until(reached: Callable[[], bool], process: subprocess.Popen[bytes], log: Path, seconds: float) -> None:
    """Fails, with the end of what the process printed to `log`, when it ends or the time is over before that."""
    end = time.monotonic() + seconds
    while not reached():
        assert process.poll() is None, log.read_text()[-3000:]
        assert time.monotonic() < end, log.read_text()[-3000:]
        time.sleep(0.01)
