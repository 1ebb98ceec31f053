"""Loss and scores of a chunk of logits on CPUs, in C++ that is compiled on first use: the part between the matrix products.

Why C++: plain torch passes over a chunk about fifteen times, through memory; `cpu_rows.cpp` reads and writes each logit once. Why not
torch's own way to compile extensions: these functions take pointers and need no header of torch, so the compiler is done in a second;
and a file that is put in its place when it is whole needs no lock, which a killed process could leave behind.

The compiled file lies where DeepSpeed's operators do: in $TORCH_EXTENSIONS_DIR, by default ~/.cache/torch_extensions.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch.utils.cpp_extension import get_default_build_root

from sani_dist.kernels import reference
from sani_dist.kernels.problem import Rows, Scores, Terms

SOURCE = Path(__file__).with_name("cpu_rows.cpp")
# -march=native: the file is used on the kind of CPU it was made on. OpenMP is torch's own, already loaded: the same pool of threads.
_FLAGS = ("-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-fopenmp")
_NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}


def loss_of_rows(
    logits: torch.Tensor, rows: Rows, softcap: float | None, terms: Terms, wants_gradient: bool
) -> torch.Tensor:
    """Losses fp32 [n] times their factors; the gradient with respect to the logits [n, V] before soft-capping overwrites them."""
    losses = torch.empty(len(logits), dtype=torch.float32)
    targets, factors = rows.targets.contiguous(), rows.factors.contiguous()
    roles = None if rows.roles is None else rows.roles.contiguous()
    _function("loss_of_rows", logits.dtype)(
        *_matrix(logits), _pointer(targets), _pointer(roles), _pointer(factors), _pointer(losses), ctypes.c_float(softcap or 0),
        ctypes.c_float(terms.z_loss), ctypes.c_float(terms.label_smoothing), ctypes.c_float(terms.floor), ctypes.c_bool(wants_gradient),
    )  # fmt: skip
    return losses


def scores_of_rows(
    logits: torch.Tensor, targets: torch.Tensor, softcap: float | None, top_k: int, moments: bool
) -> Scores:
    """Scores of each row of logits [n, V]; `top_k` in plain torch."""
    count = len(logits)
    columns = torch.empty((5, count), dtype=torch.float32)
    rank, is_argmax = torch.empty(count, dtype=torch.int32), torch.empty(count, dtype=torch.bool)
    targets = targets.contiguous()
    _function("scores_of_rows", logits.dtype)(
        *_matrix(logits), _pointer(targets), _pointer(columns), _pointer(rank), _pointer(is_argmax), ctypes.c_float(softcap or 0),
        ctypes.c_bool(moments),
    )  # fmt: skip
    logprob, largest, log_largest, mean, std = columns
    top_ids = top_logprob = None
    if top_k:
        top_ids, values = reference.top_of_rows(logits, softcap, top_k)
        top_logprob = values - largest.unsqueeze(1) + log_largest.unsqueeze(1)
    return Scores(
        logprob, rank, is_argmax, largest - log_largest, top_ids, top_logprob,
        mean_logprob=mean if moments else None, std_logprob=std if moments else None,
    )  # fmt: skip


def product(out: torch.Tensor, a: torch.Tensor, b: torch.Tensor, add: bool) -> None:
    """out [M, N] = a^T b, or `add` it to what is there, for a [K, M] and b [K, N]. 16-bit products are summed in fp32, by the matrix units
    where there are any, without a third matrix."""
    tensors = (a, b, out)
    wide = out.dtype == torch.float32 and a.dtype != torch.float32 and all(t.is_contiguous() for t in tensors)
    sizes = [ctypes.c_int(size) for size in (a.dtype == torch.float16, *out.shape, len(a))]
    if not (wide and _library().product(*sizes, *map(_pointer, tensors), ctypes.c_float(add))):
        reference.product(out, a, b, add)


def why_not(dtype: torch.dtype) -> str | None:
    """Why this module cannot be used for logits of `dtype`; None: it can."""
    try:
        _function("loss_of_rows", dtype)
    except (OSError, RuntimeError, AttributeError) as error:
        return str(error)
    return None


def _matrix(logits: torch.Tensor) -> tuple[ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64]:
    count, vocabulary = logits.shape
    return _pointer(logits), ctypes.c_int64(logits.stride(0)), ctypes.c_int64(count), ctypes.c_int64(vocabulary)


def _pointer(tensor: torch.Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


def _function(name: str, dtype: torch.dtype) -> Any:
    return getattr(_library(), f"{name}_{_NAMES[dtype]}")


@functools.cache
def _library() -> ctypes.CDLL:
    """The compiled source.

    Raises:
        RuntimeError: there is no compiler, or it failed; the message is its own.
        OSError: there is no place for the file, or it cannot be loaded.
    """
    compiler = os.environ.get("CXX", "g++")
    made_of = "\0".join((SOURCE.read_text(), compiler, *_FLAGS, torch.__version__, _cpu()))
    folder = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or get_default_build_root()) / "sani_dist"
    path = folder / f"cpu_rows-{hashlib.sha256(made_of.encode()).hexdigest()[:16]}.so"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            _compile(compiler, Path(temporary) / "made.so")
            os.replace(Path(temporary) / "made.so", path)
    library = ctypes.CDLL(str(path))
    library.product.restype = ctypes.c_bool
    return library


def _compile(compiler: str, path: Path) -> None:
    """In two steps: linked with -fopenmp it would bring a second OpenMP, whose threads get in the way of torch's."""
    made = path.with_suffix(".o")
    torch_cpu = ("-L", str(Path(torch.__file__).parent / "lib"), "-Wl,--no-as-needed", "-ltorch_cpu")
    for arguments in (
        (*_FLAGS, "-c", str(SOURCE), "-o", str(made)),
        ("-shared", str(made), *torch_cpu, "-o", str(path)),
    ):
        try:
            subprocess.run([compiler, *arguments], check=True, capture_output=True, text=True)
        except FileNotFoundError:
            raise RuntimeError(f"no C++ compiler {compiler!r}") from None
        except subprocess.CalledProcessError as error:
            raise RuntimeError(f"{compiler}: {error.stderr.strip()[-500:]}") from None


def _cpu() -> str:
    """What the code may use, for homes that machines share."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
