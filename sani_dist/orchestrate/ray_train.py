"""Ranks as a worker group of Ray Train V2, on this machine or on a cluster; a lost process or node costs a restart, not the run.

Each Ray worker starts its rank as a process of its own, the one that every launcher starts (`worker.py`), and watches it: so the weights
are the same bits, SIGTERM means a checkpoint, and what a rank prints goes to `logs/rank-N.log`. When a rank fails, Ray ends the
whole group and starts a new one, up to `cluster.max_failures` times; its ranks go on from the done stages and the newest whole
checkpoint of the run folder, which therefore has to lie on storage that all nodes share. With `workers: [least, most]` the new group is
as large as the cluster allows, and a running one that could be larger is ended and started again: batches are global, and checkpoints
are ranges of parameters, so a run goes on at any number. When Ray has notice that a node of the group will be taken away, the ranks write
a checkpoint after the step they are at; such an end does not count as a failure.

`logs/ray-stop` asks all Ray workers to end and not to start again. It holds why: "signal" or "input".
"""

from __future__ import annotations

import contextlib
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from sani_dist.config import ClusterSettings
from sani_dist.errors import InputError, RunError
from sani_dist.orchestrate.connection import check_installed, connected
from sani_dist.orchestrate.local import POLL_SECONDS, environment, error_line, follow, free_port
from sani_dist.run import Run

STOP = ("logs", "ray-stop")
STORAGE = ("logs", "ray")
# Ray's default is 30 % of the memory. Nothing of ours goes through the object store; less than 75 MB is refused.
OBJECT_STORE_BYTES = 100_000_000


def start_ranks(run: Run, on_event: Callable[[dict[str, Any]], None]) -> None:
    """Run the ranks of a prepared run on Ray and wait; `on_event` gets each line of metrics.jsonl as it is written.

    SIGTERM and Ctrl-C make the ranks end, in repair after a checkpoint; a second one ends them at once.

    Raises InputError or RunError with the line of the rank that failed first.
    """
    check_installed()
    run = Run(run.folder.resolve(), run.config)  # the workers have another current folder
    run.path(*STOP).unlink(missing_ok=True)
    metrics = run.path("metrics.jsonl")
    position = metrics.stat().st_size if metrics.exists() else 0
    failures: list[Exception] = []
    again = f"`sani-dist resume {run.folder}` goes on from the last checkpoint"
    with connected_for(run.config.cluster), asked_to_stop(run.path(*STOP), again):
        # In a thread: Ray would take Ctrl-C for itself, and this one has the progress to show.
        training = threading.Thread(target=_fit, args=(run, failures), daemon=True)
        training.start()
        while training.is_alive():
            position = follow(metrics, position, on_event)
            training.join(POLL_SECONDS)
        follow(metrics, position, on_event)
    shutil.rmtree(run.path(*STORAGE), ignore_errors=True)
    if failures:
        raise _explained(run, failures[0]) from failures[0]
    _raise_when_stopped(run)


# In the process of the command


@contextlib.contextmanager
def connected_for(cluster: ClusterSettings) -> Iterator[None]:
    """A connection to a Ray; one of our own has what the workers need."""
    import ray

    most = cluster.most_workers
    resources = {name: amount * most for name, amount in cluster.resources.items()}
    with connected(
        cluster.address, cpus=most * cluster.cpus_per_worker, resources=resources, object_store_bytes=OBJECT_STORE_BYTES
    ) as own:
        if own and (cluster.gpus_per_worker or 0) * most > ray.cluster_resources().get("GPU", 0):
            raise InputError("cluster.gpus_per_worker: this machine has fewer GPUs than the workers ask for")
        yield


@contextlib.contextmanager
def asked_to_stop(stop: Path, again: str) -> Iterator[None]:
    """The first SIGTERM or Ctrl-C writes the file `stop`, which asks the ranks for a checkpoint; a second one does not wait for it.

    `again`: what the user can do then.
    """

    def handler(signum: int, frame: object) -> None:
        if stop.exists():
            raise RunError(f"stopped by a signal: {again}")
        stop.write_text("signal")

    before: dict[int, Any] = {}
    with contextlib.suppress(ValueError):  # not the main thread: signals stay where they are
        for signum in (signal.SIGTERM, signal.SIGINT):
            before[signum] = signal.signal(signum, handler)
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


def _fit(run: Run, failures: list[Exception]) -> None:
    """Train to the end of the run, through all restarts; what ended it early is appended to `failures`."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.v2.api.config import LoggingConfig
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    cluster = run.config.cluster
    try:
        gpus = gpus_per_worker(cluster)
        DataParallelTrainer(
            run_rank,
            train_loop_config={"folder": str(run.folder), "current": str(Path.cwd())},
            backend_config=_backend_config(),
            scaling_config=ScalingConfig(
                num_workers=cluster.workers, use_gpu=gpus > 0, resources_per_worker=resources_per_worker(cluster, gpus),
                placement_strategy=cluster.placement, elastic_resize_monitor_interval_s=cluster.resize_seconds,
            ),
            run_config=RunConfig(
                name=f"{time.time_ns()}", storage_path=str(run.path(*STORAGE)), worker_runtime_env=cluster.runtime_env,
                logging_config=LoggingConfig(log_level="ERROR"),
                # Ray tries once a minute to start a group for which the cluster lacks resources.
                failure_config=FailureConfig(
                    max_failures=cluster.max_failures, controller_failure_limit=cluster.start_minutes
                ),
            ),
        ).fit()  # fmt: skip
    except Exception as error:
        failures.append(error)


def gpus_per_worker(cluster: ClusterSettings) -> int:
    import ray

    if cluster.gpus_per_worker is not None:
        return cluster.gpus_per_worker
    return 1 if ray.cluster_resources().get("GPU", 0) else 0


def resources_per_worker(cluster: ClusterSettings, gpus: int) -> dict[str, float]:
    return {"CPU": cluster.cpus_per_worker, **({"GPU": float(gpus)} if gpus else {}), **cluster.resources}


def _backend_config() -> Any:
    """No process group of Ray's: the ranks make theirs. They see all GPUs of their host, as LOCAL_RANK counts them."""
    from ray.train.backend import Backend, BackendConfig

    class SharedGpus(Backend):  # type: ignore[misc]
        share_cuda_visible_devices = True

    class SharedGpusConfig(BackendConfig):  # type: ignore[misc]
        @property
        def backend_cls(self) -> type[Any]:
            return SharedGpus

    return SharedGpusConfig()


def _explained(run: Run, failure: Exception) -> Exception:
    """The line for the user; the failure itself stays its cause."""
    from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

    cluster, again = run.config.cluster, f"`sani-dist resume {run.folder}` goes on from the last checkpoint"
    if isinstance(failure, WorkerGroupError):
        lines = {rank: error_line(run, rank) for rank in sorted(failure.worker_failures)}
        # A rank that wrote no line was lost, and the others only say that a collective of theirs has failed: it comes first.
        lost = next((rank for rank, line in lines.items() if line is None or " was killed by " in line), None)
        if lost is None:
            return RunError(next(line for line in lines.values() if line))
        line = lines[lost] or f"rank {lost} was lost with its Ray worker or node"
        return RunError(f"{line} (more than {cluster.max_failures} failures); {again}")
    if isinstance(failure, ControllerError):
        asked_for = resources_per_worker(cluster, cluster.gpus_per_worker or 0)
        wanted = ", ".join(f"{name} {amount:g}" for name, amount in asked_for.items())
        return RunError(
            f"Ray did not start {_shown(cluster.workers)} workers with {wanted} each: the cluster lacks them, or they failed to start; "
            f"{again}"
        )
    return RunError(f"Ray: {type(failure).__name__}; {again}")


def _shown(workers: int | tuple[int, int]) -> str:
    return str(workers) if isinstance(workers, int) else f"{workers[0]} to {workers[1]}"


def _raise_when_stopped(run: Run) -> None:
    stop = run.path(*STOP)
    why = stop.read_text() if stop.exists() else None
    stop.unlink(missing_ok=True)
    if why is None or not run.pending():  # a signal that came after the last step
        return
    lines = [line for rank in range(run.config.cluster.most_workers) if (line := error_line(run, rank))]
    if why == "input":
        raise InputError(lines[0] if lines else f"a rank refused its input; see {run.path('logs')}")
    # The signal reaches the ranks at different moments: one may only say that another had left a collective.
    lines.sort(key=lambda line: not line.startswith("stopped by a signal"))
    raise RunError(lines[0] if lines else f"stopped by a signal: `sani-dist resume {run.folder}` goes on")


# In a Ray worker


def run_rank(told: dict[str, str]) -> None:
    """Start the rank of this Ray worker and wait until it has finished, or was asked to stop.

    `told`: `folder` of the run, and the `current` folder of the command, which relative paths of the settings begin in.
    Raises RunError when the rank failed; Ray then ends the group and starts a new one.
    """
    import ray
    from ray.train.collective import broadcast_from_rank_zero

    folder, context = Path(told["folder"]), ray.train.get_context()
    rank, workers = context.get_world_rank(), context.get_world_size()
    host = socket.gethostname()
    if not (folder / "config.yaml").exists():
        raise RunError(f"{folder} is not on {host}: a run on a cluster belongs on storage that all nodes share")
    stop = folder.joinpath(*STOP)
    first = {"address": ray.util.get_node_ip_address(), "port": free_port(), "stop": stop.exists()}
    first = broadcast_from_rank_zero(first)
    if first["stop"]:
        return
    variables = environment(
        rank, workers, first["port"], address=first["address"], local_rank=context.get_local_rank(),
        local_workers=context.get_local_world_size(),
    )  # fmt: skip
    error = folder / "logs" / f"rank-{rank}.error"
    error.unlink(missing_ok=True)
    code = _watched(folder, rank, variables, told["current"], stop)
    if code == 0 or (code == RunError.exit_code and stop.exists()):
        return
    if code == InputError.exit_code:
        stop.write_text("input")  # another try would end in the same way
    if not error.exists():
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        error.write_text(f"rank {rank} {how} on {host}; see {folder / 'logs' / f'rank-{rank}.log'}\n")
    raise RunError(error.read_text().strip())


def _watched(folder: Path, rank: int, variables: dict[str, str], current: str, stop: Path) -> int:
    """Exit code of the rank's process. Its standard input is a pipe from here: it ends when this process does, and a line on it asks for
    a checkpoint, once Ray has notice that a node of the group will be taken away."""
    from ray.train.v2._internal.execution.context import get_train_context

    # `ray.train.get_preemption_info` is a barrier of all workers, and these end at different moments. One that knows is enough.
    notice = get_train_context().preemption_context
    with (folder / "logs" / f"rank-{rank}.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "sani_dist.orchestrate.worker", str(folder), "--follow-stdin"], env=variables,
            cwd=current if Path(current).is_dir() else None, stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip
    asked = noticed = False
    try:
        while process.poll() is None:
            if not asked and stop.exists():
                process.send_signal(signal.SIGTERM)
                asked = True
            if not noticed and notice.preemption_info is not None:
                assert process.stdin is not None
                with contextlib.suppress(BrokenPipeError):  # it has just ended
                    process.stdin.write(b"checkpoint\n")
                    process.stdin.flush()
                noticed = True
            time.sleep(POLL_SECONDS)
    finally:
        if process.poll() is None:
            process.kill()
    return process.returncode
