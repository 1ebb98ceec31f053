"""The Triton kernels compiled for GPUs that are not there, in the configurations the dispatcher picks for the benchmarked vocabularies."""

from __future__ import annotations

import functools
import re
import subprocess
import tempfile
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import torch

triton = pytest.importorskip("triton")
if triton.knobs.runtime.interpret:
    pytest.skip("TRITON_INTERPRET is set: nothing would be compiled", allow_module_level=True)

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from sani_dist.kernels.triton_rows import Launch, _loss_kernel, _scores_kernel, launch  # noqa: E402

VOCABULARIES = {"SmolLM2": 49152, "Llama-3": 128256, "Qwen3": 151936, "Gemma-3": 262144}
NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
# Bytes of shared memory a block can have: CUDA programming guide, technical specifications per compute capability.
SHARED = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}

PARTS = [pytest.param(80, marks=pytest.mark.slow), 90, pytest.param(100, marks=pytest.mark.slow)]

LOSS_TYPES = {
    "stride": "i32", "vocabulary": "i32", "targets": "*i64", "roles": "*u8", "factors": "*fp32", "losses": "*fp32", "softcap": "fp32",
    "z_loss": "fp32", "smoothing": "fp32", "floor": "fp32", "log_rest_at_floor": "fp32",
}  # fmt: skip
SCORES_TYPES = {
    "stride": "i32", "vocabulary": "i32", "targets": "*i64", "logprobs": "*fp32", "largests": "*fp32", "log_largests": "*fp32",
    "means": "*fp32", "stds": "*fp32", "ranks": "*i32", "is_argmax": "*u8", "softcap": "fp32",
}  # fmt: skip


class Variant(NamedTuple):
    """A kernel with some options switched on, and how often it sweeps over a row."""

    kernel: Any
    types: dict[str, str]
    options: dict[str, bool]
    sweeps: int

    @property
    def gradient(self) -> bool:
        return self.options.get("GRADIENT", False)


def loss(sweeps: int = 2, **options: bool) -> Variant:
    constants = {"CAPPED": False, "ROLES": False, "SMOOTHED": False, "GRADIENT": sweeps == 2, **options}
    return Variant(_loss_kernel, LOSS_TYPES, constants, sweeps)


def scores(sweeps: int, capped: bool = False) -> Variant:
    return Variant(_scores_kernel, SCORES_TYPES, {"CAPPED": capped, "MOMENTS": sweeps == 2}, sweeps)


VARIANTS = {
    "loss": loss(), "loss without gradient": loss(sweeps=1), "loss, roles": loss(ROLES=True),
    "loss, roles, smoothing": loss(ROLES=True, SMOOTHED=True), "loss, all": loss(CAPPED=True, ROLES=True, SMOOTHED=True),
    "scores": scores(1), "scores, moments": scores(2), "scores, soft cap, moments": scores(2, capped=True),
}  # fmt: skip


class Compiled(NamedTuple):
    """What ptxas made of it. `stack`: bytes of local memory of a thread, where spilled registers go; `shared`: bytes of a program."""

    registers: int
    stack: int
    shared: int
    ptx: str
    sass: str


@pytest.fixture(scope="module", autouse=True)
def empty_cache() -> Iterator[None]:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", folder)
        yield


def compiled(name: str, part: int, dtype: torch.dtype, vocabulary: int) -> Compiled:
    """As the dispatcher launches it: pointers of 16-byte alignment; Triton also tells multiples of 16 from other integers."""
    picked = launch(vocabulary, dtype, VARIANTS[name].options["CAPPED"])
    return _compiled(name, part, dtype, picked, vocabulary % 16 == 0)


@functools.cache
def _compiled(name: str, part: int, dtype: torch.dtype, picked: Launch, sixteens: bool) -> Compiled:
    kernel, types, options, _ = VARIANTS[name]
    types = {"logits": "*" + NAMES[dtype], **types}
    constants: dict[str, Any] = {**options, "LANES": picked.lanes, "WIDTH": picked.width}
    if not options.get("ROLES", True):
        constants["roles"] = None
        del types["roles"]
    aligned = [key for key, kind in types.items() if kind.startswith("*") or (kind == "i32" and sixteens)]
    source = ASTSource(
        kernel,
        {key: types.get(key, "constexpr") for key in kernel.arg_names},
        constants,
        {(kernel.arg_names.index(key),): [["tt.divisibility", 16]] for key in aligned},
    )
    how = {"num_warps": picked.warps, "num_stages": picked.stages, "enable_fp_fusion": kernel is not _scores_kernel}
    made = triton.compile(source, target=GPUTarget("cuda", part, 32), options=how)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(made.asm["cubin"])
        file.flush()
        tool = triton.knobs.nvidia.cuobjdump.path
        told = subprocess.run(
            [tool, "-res-usage", "-sass", file.name], check=True, capture_output=True, text=True
        ).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", told)
    assert found is not None, told
    return Compiled(int(found[1]), int(found[2]), made.metadata.shared, made.asm["ptx"], told)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("dtype", list(NAMES), ids=list(NAMES.values()))
@pytest.mark.parametrize("vocabulary", list(VOCABULARIES.values()), ids=list(VOCABULARIES))
def test_what_the_dispatcher_picks_is_compiled_well(part: int, dtype: torch.dtype, vocabulary: int) -> None:
    """No spilled register, shared memory within the part's, and every logit moved 16 bytes at a time."""
    for name, variant in VARIANTS.items():
        picked = launch(vocabulary, dtype, variant.options["CAPPED"])
        made = compiled(name, part, dtype, vocabulary)
        assert made.stack == 0, name
        assert not re.search(r"\b(STL|LDL)\b", made.sass), name
        assert made.shared <= SHARED[part], name
        assert made.registers * picked.warps * 32 <= 65536, name
        loads = picked.lanes // (picked.warps * 32)  # of one thread in one tile
        assert loads * picked.width == (8 if variant.options["CAPPED"] else 16), name
        assert len(re.findall(r"ld\.global(?:\.L1\S*)?\.v4\.b32", made.ptx)) == variant.sweeps * loads, name
        assert len(re.findall(r"\bLDG\.E\S*\.128\b", made.sass)) == variant.sweeps * loads, name
        assert len(re.findall(r"\bSTG\.E\S*\.128\b", made.sass)) == variant.gradient * loads, name
        # The target's logit is the only one that is read alone.
        assert len(re.findall(r"\bLDG\.E\S*U16\b", made.sass)) == (dtype != torch.float32), name


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_two_programs_of_the_loss_fit_on_a_multiprocessor(part: int, dtype: torch.dtype) -> None:
    """What `launch` counts on to keep loads under way."""
    for name in ("loss", "loss, roles", "scores"):
        made = compiled(name, part, dtype, 128256)
        assert 2 * 32 * launch(128256, dtype).warps * made.registers <= 65536, name


@pytest.mark.parametrize("vocabulary", [3, 997, 50257])
def test_vocabularies_of_no_round_number_compile_without_spills(vocabulary: int) -> None:
    for name in ("loss, roles, smoothing", "scores, moments"):
        assert compiled(name, 90, torch.bfloat16, vocabulary).stack == 0, name


def test_nothing_is_added_up_in_an_order_that_may_change() -> None:
    for name in VARIANTS:
        assert not re.search(r"\b(ATOM|ATOMG|RED)\.", compiled(name, 90, torch.bfloat16, 128256).sass), name
