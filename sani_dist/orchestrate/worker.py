"""One rank, started by any launcher: `python -m sani_dist.orchestrate.worker RUN`.

RUN is the folder of a prepared run, or the settings file of a run; then rank 0 prepares the run, or goes on with the one that is
there, while the others wait. Reads RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT from the environment. A failure is
written as one line to `logs/rank-N.error`, the traceback to the log of the rank; tracebacks show code, never values.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from sani_dist.errors import InputError, RunError, SaniError
from sani_dist.messages import trace
from sani_dist.orchestrate import watchdog
from sani_dist.orchestrate.stdin import follow_stdin
from sani_dist.orchestrate.watchdog import error_file

if TYPE_CHECKING:
    from sani_dist.config import Config

POLL_SECONDS = 0.5
# Around last words: where the disk is full to the last byte, the exit code has to do.
_ROOM_OR_NOT = contextlib.suppress(OSError)


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code: 0 finished, 2 bad input, 3 failed or stopped by a signal, so that it can be resumed."""
    chosen = _parser().parse_args(arguments)
    os.umask(0o077)
    checkpoint_asked = threading.Event()
    if chosen.follow_stdin:
        # A rank whose starter was killed must not go on: a new group may be at work in the same run folder.
        follow_stdin(lambda: os._exit(RunError.exit_code), checkpoint_asked.set)
    rank, name = os.environ.get("RANK", "0"), chosen.run
    folder: Path = name if name.is_dir() else chosen.out
    try:
        error_file(folder, rank).unlink(missing_ok=True)
        with contextlib.ExitStack() as held:
            _work(chosen, folder, checkpoint_asked, held)
        return 0
    except SaniError as error:
        with _ROOM_OR_NOT:
            _leave(folder, rank, str(error))
            print(f"rank {rank}: {error}", file=sys.stderr)
        return error.exit_code
    except Exception as error:
        with _ROOM_OR_NOT:
            print(trace(error), file=sys.stderr)
            _leave(folder, rank, _line(folder, rank, error))
        return RunError.exit_code


def _line(folder: Path, rank: str, error: Exception) -> str:
    from sani_dist.run import Run

    with contextlib.suppress(SaniError, OSError):
        seconds = Run.open(folder).config.cluster.timeout_seconds
        ranks = int(os.environ.get("WORLD_SIZE", "1"))
        if line := watchdog.explain(folder, int(rank), ranks, seconds, error):
            print(f"rank {rank}: {line}", file=sys.stderr)
            return line
    log = folder / "logs" / f"rank-{rank}.log"
    where = log if log.exists() else f"what rank {rank} printed"
    return f"{type(error).__name__}; the traceback is in {where}"


def run_as_process() -> NoReturn:
    """`main` as a process of its own, which a rank that failed ends at once: in atexit handlers it would wait for collectives that the
    others have left."""
    code = main()
    for stream in (sys.stdout, sys.stderr):
        with _ROOM_OR_NOT:
            stream.flush()
    os._exit(code)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Run one rank of a run.")
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a prepared run, or settings file (YAML)")
    parser.add_argument(
        "--out", "-o", type=Path, default=Path("run"), help="with a settings file: run folder, new or begun"
    )
    parser.add_argument("--set", action="append", dest="overrides", help="with a settings file: --set repair.epochs=3")
    parser.add_argument("--preset", help="with a settings file: defaults to start from")
    parser.add_argument(
        "--follow-stdin",
        action="store_true",
        help="a line on standard input asks for a checkpoint; its end means that who started this rank is gone: end too",
    )
    parser.add_argument("--local_rank", "--local-rank", help="given by some launchers; has to be LOCAL_RANK")
    return parser  # fmt: skip


def _work(
    chosen: argparse.Namespace, folder: Path, checkpoint_asked: threading.Event, held: contextlib.ExitStack
) -> None:
    """`held`: rank 0 puts the lock of the run into it for all ranks, unless a command of ours has started them, and has it."""
    from sani_dist import pipeline
    from sani_dist.config_file import load_config
    from sani_dist.engine.distributed import check_launcher
    from sani_dist.lock import alone
    from sani_dist.run import Run

    check_launcher(os.environ)
    if chosen.local_rank not in (None, os.environ.get("LOCAL_RANK", "0")):
        raise InputError(f"the launcher gave --local_rank {chosen.local_rank}, and LOCAL_RANK is another")
    first = os.environ.get("RANK", "0") == "0"
    if folder != chosen.run:
        settings = load_config(chosen.run, chosen.overrides, chosen.preset)
        if first:
            _prepare_or_go_on(folder, settings, held)
        else:
            _wait_for_prepare(folder)
    run = Run.open(folder)
    if first and folder == chosen.run and not chosen.follow_stdin:
        held.enter_context(alone(folder))
    watchdog.answer(folder, int(os.environ.get("RANK", "0")))
    pipeline.work(run, checkpoint_asked)
    if first:
        run.update(status="done", ended=time.time())
        if run.path("model").exists():
            print(f"sanitised model: {run.path('model')}")


def _prepare_or_go_on(folder: Path, settings: Config, held: contextlib.ExitStack) -> None:
    """Before any collective: what cannot work is said while the other ranks still wait."""
    from sani_dist import orchestrate
    from sani_dist.lock import alone
    from sani_dist.metrics import Metrics
    from sani_dist.run import STAGES, Run, make_folder
    from sani_dist.stages import preflight

    preflight.check(settings)
    if not (folder / "config.yaml").exists():
        make_folder(folder)
    held.enter_context(alone(folder))
    if (folder / "config.yaml").exists():
        run = Run.open(folder)
        if run.config.model_copy(update={"cluster": settings.cluster}) != settings:
            raise InputError(
                f"{folder} is a run with other settings: choose another --out, or `sani-dist resume {folder}`"
            )
        if run.path("source.json").exists():
            preflight.check_unchanged(run)
    else:
        run = Run.create(folder, settings, STAGES)
    if "prepare" in run.pending():
        orchestrate.prepare(run, Metrics(run.path("metrics.jsonl")))


def _wait_for_prepare(folder: Path) -> None:
    """Until rank 0 has prepared the run: not in a collective, which would time out while a large corpus is searched."""
    from sani_dist.run import Run

    while not ((folder / "done" / "prepare.json").exists() and Run.open(folder).is_done("prepare")):
        time.sleep(POLL_SECONDS)


def _leave(folder: Path, rank: str, line: str) -> None:
    path = error_file(folder, rank)
    if path.parent.is_dir():  # settings may be refused before there is a run folder
        path.write_text(line + "\n")


if __name__ == "__main__":
    run_as_process()
