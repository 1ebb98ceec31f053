"""Who works on the batches of a corpus: this process (the builtin `map`), or CPU actors of Ray Data, with the same results in one order."""

from __future__ import annotations

import logging
import os
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from sani_dist.errors import RunError

if TYPE_CHECKING:
    import pyarrow as pa
    import ray

T = TypeVar("T")

# Batches of one task of an actor: half a megabyte of text each, some tenths of a second. A task costs Ray some hundredths.
_BATCHES_OF_A_TASK = 4


class Executor(Protocol):
    """Calls a function with each number and yields what it returns, in order. For actors the function is pickled, once."""

    def __call__(self, function: Callable[[int], T], numbers: range, /) -> Iterator[T]: ...


def on_ray(actors: int, runtime_env: dict[str, Any]) -> Executor:
    """An executor of so many actors of one CPU each, on the Ray that this process is connected to.

    What the function reads has to lie on storage that all nodes share. Results wait in Ray's object store; no more are made than fit.
    Iterating raises RunError when an actor fails.
    """

    def executor(function: Callable[[int], T], numbers: range, /) -> Iterator[T]:
        import pyarrow as pa
        import ray
        from ray.data import ActorPoolStrategy, DataContext, from_arrow

        logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # what fails is raised
        context = DataContext.get_current().copy()
        context.execution_options.preserve_order = True
        context.enable_progress_bars = context.print_on_execution_start = False
        starts = range(0, len(numbers), _BATCHES_OF_A_TASK)
        tasks = [pa.table({"number": list(numbers[start : start + _BATCHES_OF_A_TASK])}) for start in starts]
        with DataContext.current(context):
            results = from_arrow(tasks).map_batches(
                _Actor, fn_constructor_args=(ray.put(function), Path.cwd()), compute=ActorPoolStrategy(size=min(actors, len(tasks))),
                batch_size=None, batch_format="pyarrow", num_cpus=1, runtime_env=runtime_env or None,
            )  # fmt: skip
        try:
            for block in results.iter_batches(batch_size=None, batch_format="pyarrow"):
                for result in block["result"]:
                    yield pickle.loads(result.as_py())  # noqa: S301 (of an actor of this run)
        except ray.exceptions.RayError as error:
            raise RunError(
                f"Ray Data failed to prepare the text ({type(error).__name__}); the run folder has to lie on storage that all nodes share"
            ) from error

    return executor


class _Actor:
    """One process of the pool."""

    def __init__(self, function: ray.ObjectRef, current: Path) -> None:
        """`current`: the folder of the command, which relative paths of the settings begin in."""
        import ray

        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # it has one CPU
        if current.is_dir():
            os.chdir(current)
        self._function: Callable[[int], Any] = ray.get(function)

    def __call__(self, batches: pa.Table) -> pa.Table:
        import pyarrow as pa

        results = [pickle.dumps(self._function(number)) for number in batches["number"].to_pylist()]
        return pa.table({"result": pa.array(results, pa.large_binary())})
