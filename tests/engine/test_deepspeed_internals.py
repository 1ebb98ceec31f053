"""What is used of DeepSpeed beyond its documented interface is there, in the version that is pinned. Look at each before a new one."""

from __future__ import annotations

import inspect
import tomllib
from importlib.metadata import version
from pathlib import Path

from deepspeed.runtime.zero.parameter_offload import FWD_MODULE_STACK
from deepspeed.runtime.zero.partition_parameters import Init
from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
from deepspeed.utils import groups

from sani_dist.engine.deepspeed_internals import PARAMETERS_TO_RELEASE, STALE_OF_MODULES, STALE_OF_PARAMETERS, VERSION

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]


def test_the_version_is_the_pinned_one() -> None:
    assert f"deepspeed=={VERSION}" in PROJECT["dependencies"]
    assert version("deepspeed") == VERSION


def test_parameters_are_converted_one_by_one() -> None:
    assert list(inspect.signature(Init._convert_to_deepspeed_param).parameters) == ["self", "param"]
    assert not inspect.signature(groups._get_zero_param_intra_parallel_group).parameters
    source = inspect.getsource(Init._convert_to_deepspeed_param)
    for name in (
        "ds_status",
        "ds_numel",
        "ds_shape",
        "ds_tensor",
        "ds_process_group",
        "ds_active_sub_modules",
        "ds_secondary_tensor",
    ):
        assert f"param.{name}" in source, name


def test_an_engine_can_be_taken_off() -> None:
    assert isinstance(FWD_MODULE_STACK, list)
    method = getattr(PartitionedParameterCoordinator, PARAMETERS_TO_RELEASE)
    (cell,) = method.__closure__
    assert callable(cell.cell_contents.cache_clear)
    offload = inspect.getsource(
        inspect.getmodule(FWD_MODULE_STACK.append) or inspect.getmodule(DeepSpeedZeroOptimizer_Stage3)
    )
    of_hooks = offload + inspect.getsource(__import__("deepspeed.runtime.zero.parameter_offload", fromlist=["_"]))
    for name in (*STALE_OF_MODULES, *STALE_OF_PARAMETERS):
        assert name in of_hooks, name


def test_the_optimizer_keeps_masters_in_flat_groups() -> None:
    source = inspect.getsource(DeepSpeedZeroOptimizer_Stage3)
    for name in (
        "fp32_partitioned_groups_flat",
        "_swappable_optimizer_subgroup",
        "_optimizer_states_and_gradient_swap_in",
        "_optimizer_states_and_gradient_swap_out",
        "empty_partition_cache",
        "destroy",
    ):
        assert name in source, name
