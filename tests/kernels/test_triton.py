"""The Triton kernels without a GPU: their arithmetic under Triton's interpreter, and what is said where neither is there."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sani_dist.kernels import masked_cross_entropy

pytest.importorskip("triton")


def test_the_kernels_agree_with_float64_under_the_interpreter() -> None:
    """In a process of its own: Triton decides when it is imported whether it interprets, and other tests need it to compile."""
    cases = Path(__file__).with_name("test_rows.py")
    # numpy warns of inf * 0 in lanes whose result is not taken.
    command = [sys.executable, "-m", "pytest", "-W", "ignore::RuntimeWarning", "-p", "no:cacheprovider", str(cases)]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(command, env=environment, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert re.search(r"\d passed", done.stdout), done.stdout


def test_cpu_tensors_are_refused() -> None:
    hidden, weight, one = torch.zeros(2, 3), torch.zeros(5, 3), torch.zeros(1, dtype=torch.int64)
    with pytest.raises(ValueError, match="needs tensors on a GPU, not on cpu"):
        masked_cross_entropy(hidden, weight, one, one, impl="triton")


def test_without_triton_the_error_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, "sani_dist.kernels.triton_rows", raising=False)
    with pytest.raises(ImportError, match="needs the package triton"):
        importlib.import_module("sani_dist.kernels.triton_rows")
