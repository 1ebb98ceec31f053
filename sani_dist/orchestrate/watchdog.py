"""When ranks wait in vain: which rank did not come to a collective, and where it is instead.

A rank whose collective fails leaves a mark, `logs/rank-N.error`, as it does whenever it fails. Gloo tells all that wait as soon as one of
them has waited `cluster.timeout_seconds`, so after a moment the rank without a mark is the one that did not come. If it is a process of
this host, its main thread is made to write its stack (faulthandler, on SIGUSR1), and to go on first where it had been stopped. Not the
stacks of all threads: those that run meanwhile change what would be read of them, and that can end the process (SIGSEGV).
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import json
import os
import signal
import socket
import time
from pathlib import Path
from typing import Any

import psutil

MARK = "failed in a collective"
# Marks of ranks that fail together are milliseconds apart, and on shared storage a second or two.
SETTLE_SECONDS = 3.0
STACK_SECONDS = 1.0


def answer(folder: Path, rank: int) -> None:
    """From now on SIGUSR1 makes this process write its stack to standard error; the other ranks learn how to find it."""
    faulthandler.register(signal.SIGUSR1, all_threads=False)
    process = psutil.Process()
    known = {"host": socket.gethostname(), "pid": process.pid, "created": process.create_time()}
    with contextlib.suppress(OSError):  # a full disk will say so elsewhere
        _process_file(folder, rank).write_text(json.dumps(known))


def explain(folder: Path, rank: int, ranks: int, seconds: int, error: Exception) -> str | None:
    """The line for the user about a collective that failed, the same on all ranks; None when `error` is something else.

    A rank that had been stopped gets here too, once it goes on and finds its peers gone: by then one of them has said why.
    """
    late = "Timed out waiting" in str(error)
    if not late and "Connection closed by peer" not in str(error):
        return None
    own = error_file(folder, rank)
    own.write_text(MARK + "\n")
    others = [other for other in range(ranks) if other != rank]
    end = time.monotonic() + SETTLE_SECONDS + (0 if late else STACK_SECONDS)
    while time.monotonic() < end:
        if said := next((line for other in others if (line := _explained(folder, other))), None):
            return said
        time.sleep(0.1)
    if not late:
        return None
    missing = [other for other in others if not error_file(folder, other).exists()]
    line = _line(folder, missing, ranks, seconds)
    own.write_text(line + "\n")  # before a rank that was stopped goes on, and fails as well
    asked = [_ask_for_stack(folder, other) for other in missing]
    if any(asked):
        time.sleep(STACK_SECONDS)
    return line


def error_file(folder: Path, rank: int | str) -> Path:
    return folder / "logs" / f"rank-{rank}.error"


def _line(folder: Path, missing: list[int], ranks: int, seconds: int) -> str:
    again = f"`sani-dist resume {folder}` goes on from the last checkpoint"
    limit = f"{seconds} s (cluster.timeout_seconds)"
    if not missing:
        hosts = sorted({known["host"] for r in range(ranks) if (known := _known(folder, r))})
        return f"all ranks waited {limit} in a collective: is the network between {' and '.join(hosts)} up? {again}"
    known = _known(folder, missing[0])
    who = ", ".join(str(rank) for rank in missing)
    where = f" on {known['host']}" if known else ""
    log = folder / "logs" / f"rank-{missing[0]}.log"
    stack = f"its stack is in {log}" if log.exists() else "its stack is in what it printed"
    return f"rank {who}{where} did not come to a collective within {limit}; {stack}; {again}"


def _explained(folder: Path, rank: int) -> str | None:
    with contextlib.suppress(OSError):
        line = error_file(folder, rank).read_text().strip()
        return line if "(cluster.timeout_seconds)" in line else None
    return None


def _ask_for_stack(folder: Path, rank: int) -> bool:
    known = _known(folder, rank)
    if known is None or known["host"] != socket.gethostname():
        return False
    with contextlib.suppress(psutil.Error, OSError):
        process = psutil.Process(known["pid"])
        if process.create_time() == known["created"]:  # and no later process of this number
            _signal_main_thread(process.pid, signal.SIGUSR1)
            os.kill(process.pid, signal.SIGCONT)
            return True
    return False


def _signal_main_thread(pid: int, number: signal.Signals) -> None:
    """A signal to a process that is stopped goes to whichever of its threads wakes first, and most of them have no Python stack."""
    tgkill = getattr(ctypes.CDLL(None, use_errno=True), "tgkill", None)
    if tgkill is None:  # glibc before 2.30 has no name for it
        os.kill(pid, number)
    elif tgkill(pid, pid, int(number)) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _known(folder: Path, rank: int) -> dict[str, Any] | None:
    with contextlib.suppress(OSError, ValueError):
        found: dict[str, Any] = json.loads(_process_file(folder, rank).read_text())
        return found
    return None


def _process_file(folder: Path, rank: int) -> Path:
    return folder / "logs" / f"rank-{rank}.process"
