"""Starts real ranks on a function of `tests.distributed.work`: a process each, forked of one that has imported all that takes seconds."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import sys
import time
from pathlib import Path
from typing import Any

from sani_dist.orchestrate.local import environment, free_port

ROOT = Path(__file__).parents[2]
SECONDS = 300

# A rank that starts from nothing imports for 9 s of a core, most of what many of these tests take. Launchers are tested elsewhere.
_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload(["deepspeed", "tests.distributed.work"])


def run_ranks(workers: int, function: str, folder: Path, *, hosts: int = 1, **arguments: Any) -> None:
    """Call `function` (of the module `work` unless it says `module.name`) with (folder, **arguments) on each rank of a process group.

    `hosts`: over so many, as far as the ranks are told. Fails with the log of a rank that failed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    logs = [folder / f"rank-{rank}-of-{workers}.log" for rank in range(workers)]
    processes = [
        _processes.Process(target=_rank, args=(function, folder, arguments, _told(rank, workers, port, hosts), log))
        for rank, log in enumerate(logs)
    ]
    for process in processes:
        process.start()
    try:
        end = time.monotonic() + SECONDS
        # One that has failed ends the wait: the others would wait for it in a collective.
        while any(p.exitcode is None for p in processes) and not any(p.exitcode for p in processes):
            assert time.monotonic() < end, f"no end in {SECONDS} s"
            time.sleep(0.05)
    finally:
        for process in processes:
            if process.exitcode is None:
                process.kill()
            process.join()
    codes = [process.exitcode for process in processes]
    tails = "\n".join(f"--- {log.name}\n{log.read_text()[-3000:]}" for log, c in zip(logs, codes, strict=True) if c)
    assert codes == [0] * workers, f"exit codes {codes}\n{tails}"


def _told(rank: int, workers: int, port: int, hosts: int) -> dict[str, str]:
    local = workers // hosts
    return environment(rank, workers, port, local_rank=rank % local, local_workers=local)


def _rank(name: str, folder: Path, arguments: dict[str, Any], variables: dict[str, str], log: Path) -> None:
    with log.open("wb") as stream:
        for output in (1, 2):
            os.dup2(stream.fileno(), output)
    os.environ.clear()
    os.environ.update(variables)
    from sani_dist.engine import distributed

    module, _, function = name.rpartition(".")
    work = importlib.import_module(f"tests.distributed.{module or 'work'}")
    distributed.start(threads=1)
    getattr(work, function)(folder, **arguments)
    distributed.stop()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
