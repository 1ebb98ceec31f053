"""One trial as a process of its own: `python -m sani_dist.sweep.process RUN` carries a run folder to its end, or on from where it is.

Its standard input is a pipe from the Ray actor that started it. When that closes, because the sweep ends or the actor is gone, the ranks
write a checkpoint and end, as after Ctrl-C.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from pathlib import Path

from sani_dist import api
from sani_dist.errors import RunError, SaniError
from sani_dist.orchestrate.stdin import follow_stdin
from sani_dist.run import timed


def main(folder: Path) -> int:
    """Returns the exit code, as that of `sani-dist resume`. run.json tells the seconds of all starts that were not killed."""
    follow_stdin(lambda: os.kill(os.getpid(), signal.SIGTERM))
    # Between the ranks, who write a checkpoint first, a signal ends this process as an error does.
    signal.signal(signal.SIGTERM, lambda signum, frame: sys.exit(RunError.exit_code))
    try:
        with timed(folder):
            api.resume(folder)
            drop_weights(folder)
    except SaniError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def drop_weights(folder: Path) -> None:
    """A trial that is over keeps its figures alone: the weights of many would fill the disk."""
    shutil.rmtree(folder / "repair" / "checkpoints", ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
