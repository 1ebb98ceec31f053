"""What is special to the CPU's implementation: how its C++ gets there, threads, and the product with fp32 sums."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sani_dist.kernels import cpu_rows
from sani_dist.kernels.problem import Rows, Terms

USE = """
import torch
from sani_dist.kernels import masked_cross_entropy
hidden, one = torch.ones(2, 3), torch.ones(1, dtype=torch.int64)
print(masked_cross_entropy(hidden, torch.eye(5, 3), one, one, impl="{impl}").item())
"""


def use(folder: Path, impl: str, **environment: str) -> subprocess.Popen[str]:
    """A fresh process that computes a loss; compiled files go to `folder`."""
    command = [sys.executable, "-c", USE.format(impl=impl)]
    variables = {**os.environ, "TORCH_EXTENSIONS_DIR": str(folder), **environment}
    return subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_processes_that_start_together_compile_one_file(tmp_path: Path) -> None:
    started = [use(tmp_path, "cpu") for _ in range(3)]
    printed = [process.communicate() for process in started]
    assert [process.returncode for process in started] == [0] * 3, printed
    assert len({out for out, _ in printed}) == 1
    left = list((tmp_path / "sani_dist").iterdir())
    assert [path.suffix for path in left] == [".so"]


def test_without_a_compiler_plain_torch_takes_over_and_says_so(tmp_path: Path) -> None:
    compiled, plain = use(tmp_path, "cpu"), use(tmp_path, "auto", CXX="no-such-compiler")
    (first, _), (second, said) = compiled.communicate(), plain.communicate()
    assert float(first) == pytest.approx(float(second))
    assert "no C++ compiler 'no-such-compiler'" in said
    assert said.count("plain torch") == 1


def test_who_asks_for_it_without_a_compiler_gets_an_error(tmp_path: Path) -> None:
    asked = use(tmp_path, "cpu", CXX="no-such-compiler")
    _, said = asked.communicate()
    assert asked.returncode
    assert "RuntimeError: impl='cpu' cannot be used here: no C++ compiler 'no-such-compiler'" in said


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_number_of_threads_changes_no_bit(dtype: torch.dtype) -> None:
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(13, 1500, generator=draw).to(dtype)
    rows = Rows(torch.arange(13), torch.randint(1500, (13,), generator=draw), None, torch.ones(13))
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            gradient = logits.clone()
            losses = cpu_rows.loss_of_rows(gradient, rows, None, Terms(0.0, 0.0), True)
            scores = cpu_rows.scores_of_rows(logits, rows.targets, None, 0, True)
            results.append((losses, gradient, scores.logprob, scores.rank, scores.std_logprob))
    finally:
        torch.set_num_threads(before)
    for others in results[1:]:
        for first, other in zip(results[0], others, strict=True):
            assert first is not None
            assert other is not None
            assert torch.equal(first, other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_products_are_summed_in_fp32(dtype: torch.dtype) -> None:
    """The sum of chunks differs from float64 by roundings of fp32, whatever the inputs are rounded to."""
    draw = torch.Generator().manual_seed(0)
    a, b = (torch.randn(4, 64, n, generator=draw).to(dtype) for n in (21, 17))
    total = torch.full((21, 17), torch.nan)
    for i in range(4):
        cpu_rows.product(total, a[i], b[i], add=i > 0)
    truth = torch.einsum("ckm,ckn->mn", a.double(), b.double())
    size = torch.einsum("ckm,ckn->mn", a.double().abs(), b.double().abs())
    assert ((total.double() - truth).abs() <= 2.0**-22 * size).all()
