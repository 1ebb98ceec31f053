"""All that is used of DeepSpeed beyond its documented interface, for the version that is pinned.

Everywhere else a parameter is a shard and the engine is `deepspeed.initialize`. `tests/engine/test_deepspeed_internals.py` names the
version and what has to be there: a new DeepSpeed fails there first. Imports nothing of ours.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

VERSION = "0.19.8"
# Left on modules and parameters by an engine that is gone.
STALE_OF_MODULES = ("pre_bwd_fn", "post_bwd_fn")
STALE_OF_PARAMETERS = ("_z3_optimizer",)
# Name-mangled: the cached method of `PartitionedParameterCoordinator`.
PARAMETERS_TO_RELEASE = "_PartitionedParameterCoordinator__params_to_release"
# A submodule of no model: a parameter that it uses is not released.
_RESIDENT = -1


def import_deepspeed() -> None:
    """Without MLflow. Its autotuner, which nothing here uses, would import that where it is installed, for as long as DeepSpeed itself."""
    hidden = "mlflow" not in sys.modules
    if hidden:
        sys.modules["mlflow"] = None  # type: ignore[assignment]  # what the language has for a module that must not be found
    try:
        import deepspeed  # noqa: F401
    finally:
        if hidden:
            del sys.modules["mlflow"]


# Partitioned parameters


def converter(ds_config: dict[str, Any], dtype: torch.dtype) -> Any:
    """DeepSpeed's `Init`, which converts parameters one by one (`partitioned`)."""
    import deepspeed
    from deepspeed.utils import groups

    # hpZ's groups are made once in a process; another model of the same run takes those that are there.
    return deepspeed.zero.Init(
        module=nn.Module(), config_dict_or_path=ds_config, dtype=dtype,
        zero_param_parallel_group=groups._get_zero_param_intra_parallel_group(),
    )  # fmt: skip


def partitioned(meta: nn.Parameter, init: Any, dtype: torch.dtype) -> nn.Parameter:
    """A ZeRO-3 parameter of the shape of one on the meta device, its shard allocated and not filled."""
    # Memory that is never touched costs no pages; `partition` copies this rank's range of it into `ds_tensor`.
    empty = torch.empty(meta.shape, dtype=dtype, device=init.local_device)
    made = nn.Parameter(empty, requires_grad=meta.requires_grad)
    # What `Init` does to each parameter, less its broadcast of values that are about to be overwritten.
    init._convert_to_deepspeed_param(made)
    made.partition()  # type: ignore[attr-defined]
    return made


def is_partitioned(parameter: Any) -> bool:
    return hasattr(parameter, "ds_tensor")


def release(parameter: Any) -> None:
    """Drop what ZeRO-3 keeps of a parameter beside its partition, so that this is the only truth.

    These are the gathered parameter, kept when it has at most `stage3_param_persistence_threshold` elements, and hpZ's second partition
    over the ranks of a node, which DeepSpeed itself drops at an optimizer step only.
    """
    if parameter.ds_status.name == "AVAILABLE":
        # A backward that ends at activations never tells the modules before them that it is over.
        parameter.ds_active_sub_modules.clear()
        parameter.partition(has_been_updated=False)
    parameter.ds_secondary_tensor = None


@contextmanager
def resident(parameters: Sequence[Any]) -> Iterator[None]:
    """Gather these parameters now, and keep them until the end: a forward in between communicates nothing."""
    import deepspeed

    partitions = [parameter for parameter in parameters if is_partitioned(parameter)]
    with deepspeed.zero.GatheredParameters(partitions):
        for parameter in partitions:
            parameter.ds_active_sub_modules.add(_RESIDENT)
        try:
            yield
        finally:
            for parameter in partitions:
                release(parameter)


# Masters and moments


def local_state(parameter: nn.Parameter, kind: str) -> torch.Tensor:
    """This rank's part of a parameter's `master`, `exp_avg` or `exp_avg_sq`, with its padding."""
    from deepspeed.utils import safe_get_local_fp32_param, safe_get_local_optimizer_state  # slow to import

    values: torch.Tensor = (
        safe_get_local_fp32_param(parameter) if kind == "master" else safe_get_local_optimizer_state(parameter, kind)
    )
    return values


def set_local_state(parameter: nn.Parameter, kind: str, values: torch.Tensor) -> None:
    """values: float32, as long as the partition, padding included. A master does not reach the partition itself before the next step."""
    from deepspeed.utils import safe_set_local_fp32_param, safe_set_local_optimizer_state  # slow to import

    if kind == "master":
        safe_set_local_fp32_param(parameter, values)
    else:
        safe_set_local_optimizer_state(parameter, values, kind)


def create_adam_state(ds: Any, step: int) -> None:
    """Moments of zero after `step` steps: Adam makes its own at the first step, a loaded optimizer needs them before."""
    zero = ds.optimizer
    for number, flat in enumerate(zero.fp32_partitioned_groups_flat):
        on_nvme = zero._swappable_optimizer_subgroup(number)
        if on_nvme:
            zero._optimizer_states_and_gradient_swap_in(number)
        zero.optimizer.state[flat] = {
            # Beside the master, as fused AdamW wants it.
            "step": torch.tensor(float(step), dtype=torch.float32, device=flat.device),
            "exp_avg": torch.zeros_like(flat),
            "exp_avg_sq": torch.zeros_like(flat),
        }
        if on_nvme:
            zero._optimizer_states_and_gradient_swap_out(number)


# Engines


def take_off(ds: Any, module: nn.Module) -> None:
    """Take an engine's hooks off a module: the next `initialize` must not run every hook twice, and masters, moments and gradients,
    which they hold, go with them."""
    from deepspeed.runtime.zero.parameter_offload import FWD_MODULE_STACK
    from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator

    # What it left gathered, which is the whole of a small model, would stay with the module.
    ds.optimizer.empty_partition_cache()
    ds.optimizer.destroy()
    for hook in (ds.module_forward_pre_hook, ds.module_forward_post_hook):
        hook.remove()
    # A list of the whole process, to which ZeRO-3 adds every module it is given and which it never empties.
    FWD_MODULE_STACK[:] = [seen for seen in FWD_MODULE_STACK if seen is not module]
    # So is the cache of this method, which keeps every module it was asked for, weights and all, below a decorator that hides it.
    (cell,) = getattr(PartitionedParameterCoordinator, PARAMETERS_TO_RELEASE).__closure__
    cell.cell_contents.cache_clear()
    for part in module.modules():
        # DeepSpeed takes these up again: backward would go on gathering for the engine that is gone, without its trace, so every
        # parameter twice.
        for stale in STALE_OF_MODULES:
            part.__dict__.pop(stale, None)
    for parameter in module.parameters():
        for stale in STALE_OF_PARAMETERS:
            parameter.__dict__.pop(stale, None)


def collect() -> None:
    """Engine, optimizer and hooks refer to each other: only the collector frees them, and it goes by the number of objects, not by size."""
    gc.collect()
