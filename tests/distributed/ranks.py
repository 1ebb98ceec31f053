"""Starts real ranks on a function of `tests.distributed.work`, as the launcher of this machine would."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from sani_dist.orchestrate.local import environment, free_port

ROOT = Path(__file__).parents[2]
SECONDS = 300


def run_ranks(workers: int, function: str, folder: Path, **arguments: Any) -> None:
    """Call `function` (of the module `work` unless it says `module.name`) with (folder, **arguments) on each rank of a process group.

    Fails with the log of a rank that failed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    command = [sys.executable, "-m", "tests.distributed.ranks", function, str(folder), json.dumps(arguments)]
    logs = [folder / f"rank-{rank}-of-{workers}.log" for rank in range(workers)]
    processes = []
    for rank, log in enumerate(logs):
        with log.open("wb") as stream:
            variables = {**environment(rank, workers, port), "PYTHONPATH": str(ROOT)}
            processes.append(
                subprocess.Popen(command, env=variables, cwd=ROOT, stdout=stream, stderr=subprocess.STDOUT)
            )
    try:
        end = time.monotonic() + SECONDS
        # One that has failed ends the wait: the others would wait for it in a collective.
        while any(p.poll() is None for p in processes) and not any(p.poll() for p in processes):
            assert time.monotonic() < end, f"no end in {SECONDS} s"
            time.sleep(0.05)
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
    codes = [process.wait() for process in processes]
    tails = "\n".join(f"--- {log.name}\n{log.read_text()[-3000:]}" for log, c in zip(logs, codes, strict=True) if c)
    assert codes == [0] * workers, f"exit codes {codes}\n{tails}"


def main() -> None:
    from sani_dist.engine import distributed

    name, folder, arguments = sys.argv[1:]
    module, _, function = name.rpartition(".")
    work = importlib.import_module(f"tests.distributed.{module or 'work'}")
    distributed.start(threads=1)
    getattr(work, function)(Path(folder), **json.loads(arguments))
    distributed.stop()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
