"""Collectives of a process group that, as NCCL's does, takes tensors on a GPU alone; no GPU is needed to see where they are."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch._C._distributed_c10d import FakeProcessGroup
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import sani_dist
from sani_dist.engine import distributed

GPU = torch.device("cuda", 0)


def _make(store: dist.Store, rank: int, size: int, timeout: timedelta) -> FakeProcessGroup:
    return FakeProcessGroup._create_internal(rank, size)


class OnGpuAlone(TorchDispatchMode):
    """Refuses what NCCL's group would refuse, and counts what it lets through."""

    def __init__(self) -> None:
        super().__init__()
        self.collectives = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            self.collectives += 1
            tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
            # A barrier has a tensor of torch's own, of which only the device counts, and it is the group's.
            assert "barrier" in str(func) or {tensor.device for tensor in tensors} == {GPU}, func
        return func(*args, **(kwargs or {}))


@pytest.fixture
def gpu_group(monkeypatch: pytest.MonkeyPatch) -> Iterator[OnGpuAlone]:
    """Rank 0 of two, on a GPU that only says where a tensor would be."""
    if "GPUALONE" not in dist.Backend._plugins:
        dist.Backend.register_backend("gpualone", _make, devices=["cuda"])
    dist.init_process_group("gpualone", store=dist.HashStore(), rank=0, world_size=2)
    monkeypatch.setattr(distributed, "device", lambda: GPU)
    monkeypatch.setattr(
        torch.cuda, "get_device_capability", lambda device=None: (9, 0)
    )  # which torch asks of a tensor it broadcasts
    try:
        with FakeTensorMode(), OnGpuAlone() as seen:
            yield seen
    finally:
        dist.destroy_process_group()


IN_PLACE = ("sum_over_ranks", "max_over_ranks", "receive")
HELPERS: dict[str, Callable[[torch.Tensor], Any]] = {
    "sum_over_ranks": distributed.sum_over_ranks,
    "max_over_ranks": distributed.max_over_ranks,
    "gather_in_rank_order": distributed.gather_in_rank_order,
    "from_rank_0": lambda values: distributed.from_rank_0(values.shape),
    "send": lambda values: distributed.send(values, 1),
    "receive": lambda values: distributed.receive(values, 1),
    "barrier": lambda values: distributed.barrier(),
}


@pytest.mark.parametrize("where", ["cpu", "cuda:0"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.uint8])
@pytest.mark.parametrize("name", HELPERS)
def test_a_tensor_goes_to_the_gpu_and_its_result_comes_back(
    gpu_group: OnGpuAlone, name: str, dtype: torch.dtype, where: str
) -> None:
    values = torch.empty(2, 3, dtype=dtype, device=where)
    result = HELPERS[name](values)
    assert gpu_group.collectives
    if isinstance(result, torch.Tensor):
        assert (result.device, result.dtype) == (values.device, dtype)
    assert (name in IN_PLACE) == (result is values)


@pytest.mark.parametrize(
    ("told", "hosts"),
    [
        ([("a", 0)], [0]),
        ([("a", 0), ("a", 1), ("b", 0), ("b", 1)], [0, 0, 1, 1]),
        ([("a", 0), ("b", 0), ("a", 1), ("b", 1)], [0, 1, 0, 1]),
        ([("localhost", 0), ("localhost", 1), ("localhost", 0), ("localhost", 1), ("localhost", 2)], [0, 0, 1, 1, 0]),
        ([("localhost", 0), ("localhost", 0)], [0, 1]),
    ],
)
def test_ranks_of_one_host(told: list[tuple[str, int]], hosts: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    names = sorted({host for host, _ in told})
    gathered = torch.tensor([[names.index(host), local_rank] for host, local_rank in told])
    monkeypatch.setattr(distributed, "gather_in_rank_order", lambda own: gathered)
    assert distributed.hosts() == hosts


def test_a_group_of_nccl_has_no_place_for_what_is_on_the_cpu() -> None:
    """What the tests above stand for: torch itself refuses."""
    assert list(dist.BackendConfig(dist.Backend("nccl")).get_device_backend_map()) == ["cuda"]


def _reaches_torch_distributed(code: str) -> bool:
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = f"{getattr(node, 'module', None) or ''}."
            names = [f"{module}{alias.name}".lstrip(".") for alias in node.names]
        else:
            names = [ast.unparse(node)] if isinstance(node, ast.Attribute) else []
        if any(name.startswith(("torch.distributed", "deepspeed.comm.all", "deepspeed.comm.broad")) for name in names):
            return True
    return False


def test_no_other_module_starts_a_collective_of_its_own() -> None:
    """It would have to think of the device once more."""
    reaching = [
        p.name for p in Path(sani_dist.__file__).parent.rglob("*.py") if _reaches_torch_distributed(p.read_text())
    ]
    assert reaching == ["distributed.py"]
    assert _reaches_torch_distributed("from torch import distributed as dist")
    assert _reaches_torch_distributed("import torch\ntorch.distributed.all_reduce(x)")
