"""On what ranks compute: no GPU is here, so torch and the places where the driver shows one are told what to say."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import sani_dist
from sani_dist import doctor
from sani_dist.config import Config
from sani_dist.engine import devices, distributed
from sani_dist.errors import InputError

from ..test_doctor import examined
from .test_distributed import run_alone


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    """Makes a machine: so many usable GPUs, whether the driver shows any, and why CUDA does not start."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("DS_ACCELERATOR", "cuda")
    monkeypatch.delenv("DS_ACCELERATOR")

    def make(usable: int, shown: bool = True, reason: str = "", build: str | None = "13.0") -> None:
        if shown:
            (tmp_path / "nvidia0").touch()
        monkeypatch.setattr(devices, "PLACES", (str(tmp_path / "nvidia[0-9]*"),))
        monkeypatch.setattr(torch.cuda, "is_available", lambda: usable > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: usable)
        monkeypatch.setattr(torch.version, "cuda", build)

        def init() -> None:
            raise RuntimeError(reason)

        monkeypatch.setattr(torch.cuda, "init", init)
        # DeepSpeed would look for itself, once for all tests of this process.
        monkeypatch.setattr(doctor, "OPS", {})

    return make


OLD = "The NVIDIA driver on your system is too old (found version 11040). Please update your GPU driver by downloading ..."
NONE = "Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU and installed a driver from\nhttp://..."


@pytest.mark.parametrize("device", ["auto", "cuda"])
@pytest.mark.parametrize(
    ("reason", "build", "said"),
    [
        (
            OLD,
            "13.0",
            "CUDA 13.0 of torch .* cannot use them: The NVIDIA driver on your system is too old .found version 11040.",
        ),
        (NONE, "13.0", "Found no NVIDIA driver on your system; in a container, start it with NVIDIA's runtime"),
        ("", None, "is a build without CUDA"),
    ],
)
def test_gpus_that_cannot_be_used_are_one_line(
    machine: Callable[..., None], device: Any, reason: str, build: str | None, said: str
) -> None:
    machine(0, reason=reason or OLD, build=build)
    with pytest.raises(InputError, match=said) as error:
        devices.choose(device)
    assert "\n" not in str(error.value)
    assert str(error.value).startswith("cluster.device: ")
    assert devices.choose("cpu") is False


@pytest.mark.parametrize("asked", [("cuda", False), ("auto", True)])
def test_gpus_that_are_asked_for_and_not_there_are_an_error(
    machine: Callable[..., None], asked: tuple[Any, bool]
) -> None:
    machine(0, shown=False)
    with pytest.raises(InputError, match="GPUs are asked for, but no GPU of NVIDIA is there"):
        devices.choose(*asked)
    assert devices.choose("auto") is False, "nothing is there, and nothing was asked for"


def test_who_hides_the_gpus_has_chosen(machine: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    machine(0, reason=OLD)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert devices.choose("auto") is False
    with pytest.raises(InputError, match="GPUs are asked for"):
        devices.choose("cuda")


def test_what_was_chosen_holds_everywhere(machine: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    """DeepSpeed, the process group and the tensors of a rank: one answer."""
    machine(2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    assert devices.choose("auto") is True
    assert distributed.device() == torch.device("cuda", 1)
    assert devices.choose("cpu") is False
    assert os.environ["DS_ACCELERATOR"] == "cpu"
    assert distributed.device() == torch.device("cpu")
    assert devices.choose("cuda") is True
    assert distributed.device() == torch.device("cuda", 1)


def test_more_ranks_than_gpus_are_one_line(
    machine: Callable[..., None], make_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Before a run folder is there, and from the doctor."""
    machine(1)
    line = "cluster.workers: 2 ranks, but this machine has 1 GPU, and each rank needs its own; set cluster.workers=1"
    with pytest.raises(InputError, match=line):
        sani_dist.sanitize(make_config(), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda i: "a GPU")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda i: (10**10, 10**10))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    good, lines = examined(make_config(), monkeypatch)
    assert not good
    assert lines["accelerator"].startswith("bad cluster.workers: 2 ranks, but this machine has 1 GPU")


@pytest.mark.parametrize(("free", "mark"), [(10**9, "ok"), (10**3, "bad")])
def test_the_doctor_compares_a_run_with_the_memory_of_its_gpus(
    machine: Callable[..., None],
    make_config: Callable[..., Config],
    monkeypatch: pytest.MonkeyPatch,
    free: int,
    mark: str,
) -> None:
    machine(2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda i: f"GPU {i}")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda i: (free, free))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    good, lines = examined(make_config(), monkeypatch)
    assert lines["accelerator"] == "ok GPU 0, GPU 1"
    assert lines["GPU memory"].startswith(mark)
    assert good is (mark == "ok")


@pytest.mark.parametrize(
    ("count", "local_rank", "index"), [(8, 5, 5), (1, 0, 0), (1, 3, 0)], ids=["of 8", "alone", "its own alone"]
)
def test_number_of_the_gpu_of_a_rank(machine: Callable[..., None], count: int, local_rank: int, index: int) -> None:
    machine(count)
    assert devices.index_of(local_rank) == index


def test_a_rank_without_a_gpu_is_one_line(machine: Callable[..., None]) -> None:
    machine(4)
    with pytest.raises(InputError, match="rank 4 of this host has no GPU: 4 GPUs there; start fewer ranks"):
        devices.index_of(4)


def test_ranks_that_were_told_processors_take_no_gpu() -> None:
    """As in tests on a machine with GPUs: NCCL would find no GPU tensors, and DeepSpeed no GPU."""
    script = """
import torch
torch.cuda.is_available = lambda: True
from sani_dist.engine import distributed
import torch.distributed as dist
distributed.start(threads=1)
print(dist.get_backend(), distributed.device(), distributed.peak_memory_bytes() > 0)
"""
    done = run_alone(script, DS_ACCELERATOR="cpu")
    assert done.stdout.splitlines()[-1:] == ["gloo cpu True"], done.stderr


def test_offloading_to_nvme_without_a_cuda_toolkit_is_one_line(
    machine: Callable[..., None], monkeypatch: pytest.MonkeyPatch, make_config: Callable[..., Config], tmp_path: Path
) -> None:
    machine(2)
    monkeypatch.setattr("torch.utils.cpp_extension.CUDA_HOME", None)
    files = Path(__file__).parents[2] / "ds_configs"
    with pytest.raises(InputError, match=r"NVMe .* with the CUDA toolkit") as error:
        sani_dist.sanitize(make_config(cluster={"ds_config": str(files / "zero3_nvme_offload.json")}), tmp_path / "run")
    assert "\n" not in str(error.value)
    devices.check_offload({"offload_optimizer": {"device": "cpu"}})
    machine(0, shown=False)
    devices.check_offload({"offload_optimizer": {"device": "nvme"}})


NCCL = """NCCL error in: NCCLUtils.cpp:94, {kind} (run with NCCL_DEBUG=INFO for details), NCCL version 2.28.9
{name}: {meaning}
Last error:
{last}"""


@pytest.mark.parametrize(
    ("kind", "name", "last", "then"),
    [
        (
            "invalid usage",
            "ncclInvalidUsage",
            "Duplicate GPU detected : rank 1 and rank 0 both on CUDA device 1000",
            "as it has GPUs",
        ),
        (
            "unhandled system error",
            "ncclSystemError",
            "Call to ibv_reg_mr_iova2 failed with error Cannot allocate memory",
            "InfiniBand",
        ),
        (
            "unhandled cuda error",
            "ncclUnhandledCudaError",
            "Cuda failure 'CUDA driver version is insufficient'",
            "nvidia-smi",
        ),
        (
            "remote process exited",
            "ncclRemoteError",
            "socketProgress: Connection closed by remote peer a<1>",
            "NCCL_SOCKET_IFNAME",
        ),
        ("internal error", "ncclInternalError", "Net device 3 is out of range", "NCCL_DEBUG=INFO"),
    ],
)
def test_what_nccl_says_at_the_start_is_one_line(kind: str, name: str, last: str, then: str) -> None:
    line = distributed.failure_of_nccl(NCCL.format(kind=kind, name=name, meaning="Call failed.", last=last))
    assert line.startswith(f"all ranks came, but NCCL did not start: {last}; ")
    assert then in line
    assert "\n" not in line


def test_an_error_of_nccl_without_details_is_one_line_too() -> None:
    line = distributed.failure_of_nccl("ProcessGroupNCCL is only supported with GPUs, no GPUs found!\nmore")
    assert line.startswith(
        "all ranks came, but NCCL did not start: ProcessGroupNCCL is only supported with GPUs, no GPUs found!; "
    )


def test_settings_of_a_deterministic_run() -> None:
    script = """
import os, torch
from sani_dist.engine import distributed
distributed.compute_deterministically()
print(os.environ["CUBLAS_WORKSPACE_CONFIG"], torch.are_deterministic_algorithms_enabled(),
      torch.is_deterministic_algorithms_warn_only_enabled(), torch.backends.cuda.cudnn_sdp_enabled())
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [":4096:8", "True", "False", "False"]
