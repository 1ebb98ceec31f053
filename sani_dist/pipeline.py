"""What each rank does with a prepared run: the stages of `stage_list.py` in order.

Weights on the way are never stored but in checkpoints: erased weights are the source and a plan, so a run that is resumed loads the
source, applies the plan, and goes on.
"""

from __future__ import annotations

import importlib
import signal
from collections.abc import Callable
from threading import Event
from types import FrameType

from sani_dist.engine import distributed
from sani_dist.engine.devices import choose
from sani_dist.errors import RunError
from sani_dist.report import write_report
from sani_dist.run import Run
from sani_dist.stage_list import STAGES, Stage
from sani_dist.stages.rank import Outputs, Rank


def work(run: Run, checkpoint_asked: Event) -> None:
    """All stages after `prepare` that are not done yet, on this rank of the process group.

    checkpoint_asked: set, on any rank, it makes repair write a checkpoint after its step, and go on.

    Raises RunError when SIGTERM or SIGINT ended it: in repair all ranks write a checkpoint first, any other stage ends at once.
    """
    try:
        _work(run, checkpoint_asked)
    except KeyboardInterrupt:
        raise RunError(f"stopped by a signal: `sani-dist resume {run.folder}` begins the stage again") from None
    finally:
        _on_stop_signals(signal.SIG_IGN)  # whoever started this rank sends what it got itself: twice for one Ctrl-C


def _work(run: Run, checkpoint_asked: Event) -> None:
    cluster = run.config.cluster
    choose(cluster.device, asked=bool(cluster.gpus_per_worker))
    distributed.start(cluster.threads, cluster.timeout_seconds, deterministic=cluster.deterministic)
    try:
        with Rank(run, checkpoint_asked) as rank:
            _on_stop_signals(rank.stop)
            # Rank 0's view: files may appear on other hosts later.
            pending = distributed.from_rank_0(run.pending() if rank.first else [])
            for stage in STAGES:
                if stage.name in pending and stage.function is not None:
                    rank.mark_done(stage.name, _function(stage)(rank))
        if rank.first and run.pending() == ["report"]:
            write_report(run)
    finally:
        distributed.stop()


def _function(stage: Stage) -> Callable[[Rank], Outputs]:
    assert stage.function is not None
    module, name = stage.function.split(":")
    found: Callable[[Rank], Outputs] = getattr(importlib.import_module(f"sani_dist.stages.{module}"), name)
    return found


def _on_stop_signals(handler: Callable[[int, FrameType | None], None] | signal.Handlers) -> None:
    for signum in (signal.SIGTERM, signal.SIGINT):  # Ctrl-C reaches every process of the terminal
        signal.signal(signum, handler)
