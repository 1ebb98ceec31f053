"""Ranks as processes of this machine, watched until they end; the first that fails ends the others."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sani_dist.errors import InputError, RunError
from sani_dist.run import Run

POLL_SECONDS = 0.1


def start_ranks(run: Run, on_event: Callable[[dict[str, Any]], None]) -> None:
    """Start `cluster.workers` ranks on the run and wait; `on_event` gets each line of metrics.jsonl as it is written.

    A rank that fails or is killed ends the run: the others are stopped at once, since they would wait for it in a collective.
    SIGTERM and Ctrl-C are passed on, so that the ranks end, in repair after a checkpoint, with a line that says so.

    Raises InputError or RunError with the line of the rank that failed first.
    """
    workers, port = run.config.cluster.most_workers, free_port()
    metrics = run.path("metrics.jsonl")
    position = metrics.stat().st_size if metrics.exists() else 0
    processes = [_start(run, rank, workers, port) for rank in range(workers)]
    passed_on = _pass_signals_on(processes)
    try:
        while any(p.poll() is None for p in processes):
            position = follow(metrics, position, on_event)
            failed = next((r for r, p in enumerate(processes) if p.poll() not in (None, 0)), None)
            if failed is not None:
                _fail(run, processes, failed)
            time.sleep(POLL_SECONDS)
        follow(metrics, position, on_event)
        failed = next((r for r, p in enumerate(processes) if p.returncode != 0), None)
        if failed is not None:
            _fail(run, processes, failed)
    finally:
        for signum, handler in passed_on.items():
            signal.signal(signum, handler)
        for process in processes:
            if process.poll() is None:
                process.kill()


def environment(
    rank: int, workers: int, port: int, *, address: str = "127.0.0.1", local_rank: int | None = None,
    local_workers: int | None = None,
) -> dict[str, str]:  # fmt: skip
    """What a rank is told: rank 0 listens at `address`, and all ranks are on one host unless `local_` says otherwise."""
    local = (rank if local_rank is None else local_rank, workers if local_workers is None else local_workers)
    return {
        **os.environ,
        "RANK": str(rank), "LOCAL_RANK": str(local[0]), "WORLD_SIZE": str(workers), "LOCAL_WORLD_SIZE": str(local[1]),
        "MASTER_ADDR": address, "MASTER_PORT": str(port), "TOKENIZERS_PARALLELISM": "false",
        # The environment's own ninja first: DeepSpeed rebuilds its ops whenever it meets another one.
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
    }  # fmt: skip


def _start(run: Run, rank: int, workers: int, port: int) -> subprocess.Popen[bytes]:
    with run.path("logs", f"rank-{rank}.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "sani_dist.orchestrate.worker", str(run.folder), "--follow-stdin"],
            env=environment(rank, workers, port), stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT,
            pass_fds=() if run.lock is None else (run.lock,),
        )  # fmt: skip


def follow(path: Path, position: int, on_event: Callable[[dict[str, Any]], None]) -> int:
    """Hand on the whole lines written since `position`; returns the new one."""
    if not path.exists():
        return position
    with path.open("rb") as stream:
        stream.seek(position)
        for line in stream:
            if not line.endswith(b"\n"):
                break
            position += len(line)
            on_event(json.loads(line))
    return position


def _fail(run: Run, processes: list[subprocess.Popen[bytes]], failed: int) -> None:
    """Stop the other ranks and raise with the reason of the one that failed first."""
    time.sleep(0.5)  # ranks that raise together, as for a loss that is not finite, all get to write their line
    # A rank that was killed wrote no line, and the others only say that a collective of theirs has failed: it comes first.
    killed = next((rank for rank, process in enumerate(processes) if (process.poll() or 0) < 0), None)
    failed = failed if killed is None else killed
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.wait()
    code = processes[failed].returncode
    lines = [error_line(run, rank) for rank in (failed, *range(len(processes)))] if killed is None else []
    line = next((text for text in lines if text), None)
    if line is None:
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        line = (
            f"rank {failed} {how}; see {run.path('logs', f'rank-{failed}.log')}, then `sani-dist resume {run.folder}`"
        )
    raise InputError(line) if code == InputError.exit_code else RunError(line)


def error_line(run: Run, rank: int) -> str | None:
    """Why a rank failed, as it said itself; None when it was killed, or has not failed."""
    path = run.path("logs", f"rank-{rank}.error")
    return path.read_text().strip() if path.exists() else None


def _pass_signals_on(processes: list[subprocess.Popen[bytes]]) -> dict[int, Any]:
    def handler(signum: int, frame: object) -> None:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)

    before: dict[int, Any] = {}
    with contextlib.suppress(ValueError):  # not the main thread: signals stay where they are
        for signum in (signal.SIGTERM, signal.SIGINT):
            before[signum] = signal.signal(signum, handler)
    return before


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
