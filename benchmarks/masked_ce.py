"""Masked cross-entropy, forward and backward: ours against what else there is, for 4096 tokens of real text under SmolLM2-135M
(H = 576, V = 49152), with 0, 10, 35 and 80 % of the tokens masked at random.

`eager` is what transformers does: all logits, in fp32, `F.cross_entropy` with `ignore_index`. `torch` is
`F.linear_cross_entropy` with chunks, at the chunk size that is fastest here, tried before. `cce` is Apple's cut cross-entropy: its Triton
kernels on GPUs, but for fp32, which they do not take, and `torch_compile` elsewhere. `liger` is Liger's fused linear cross-entropy, on GPUs
alone. All run in turn in one process with all cores, after two rounds that are not recorded, and have the gradients of the hidden states
and of the weight; all must give the same loss. Memory is measured in a fresh process for each figure, in its second call, above the level
just before that: the gradients that come out are in it.

On GPUs the shapes of Llama-3, Qwen3 and Gemma-3 are measured too; on CPUs only if asked for (`--models`), with 1024 tokens. Whether small
gradients can be left out depends on how the logits are spread, so they are SmolLM2's: its hidden states and its weight, turned into H
dimensions by a random rotation, and the vocabulary filled up with copies of its tokens whose logits are lower by 3. SmolLM2's, in each row:
standard deviation 3.6, largest 18 above the mean, loss 3.5; the copies add at most 0.22 to the loss.

The extra to install is `bench`, on GPUs `bench-gpu`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import harness
import torch
from torch.nn import functional as F

IGNORED = -100
TOKENS, FEWER_TOKENS = 4096, 1024
SHARES = (0, 10, 35, 80)
SHARE_OF_MEMORY = 35
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
LOWER = 3.0
CUDA = torch.cuda.is_available()
REAL = "SmolLM2-135M"
# [hidden size, vocabulary], from the models' config.json.
MODELS = {
    REAL: (576, 49152), "Llama-3-8B": (4096, 128256), "Llama-3-70B": (8192, 128256), "Qwen3-8B": (4096, 151936),
    "Gemma-3-4B": (2560, 262208),
}  # fmt: skip
WAYS = ("ours", "eager", "torch", "cce", *(["liger"] if CUDA else []))
# Rows of a chunk; None: as torch chooses.
CHUNKS = (None, 256, 512, 1024, 2048)
# Losses in bf16 differ by rounding: torch's chunks gave 11.000 for 10.990.
SAME_LOSS = {"bf16": 0.01, "fp32": 1e-4}
DEFAULT_MODEL = Path(tempfile.gettempdir()) / "sani_dist-benchmark-smollm2"
# GPUs have a file of their own: a case is known by its name, and the page shows the latest run of each.
CPU_RESULTS, GPU_RESULTS = "masked_ce", "masked_ce_gpu"


def name(model: str, dtype: str, share: int, way: str) -> str:
    return f"{model} {dtype}, {share} % masked: {way}"


def _claims() -> Iterator[harness.Claim]:
    for dtype, seconds, memory in (("bf16", 1.0, 0.6), ("fp32", 0.9, 0.4)):
        ours, cce, eager = (name(REAL, dtype, SHARE_OF_MEMORY, way) for way in ("ours", "cce", "eager"))
        yield harness.Claim("seconds", ours, cce, at_most=seconds)
        yield harness.Claim("peak_bytes", ours, cce, at_most=memory)
        yield harness.Claim("seconds", ours, eager, at_most=0.35)
        yield harness.Claim("seconds", name(REAL, dtype, 80, "ours"), name(REAL, dtype, 0, "ours"), at_most=0.3)


CLAIMS = tuple(_claims())
# A small shape on a GPU is mostly starts of kernels: there the share that is masked is asked of a large one.
GPU_CLAIMS = tuple(
    harness.Claim("seconds", name("Llama-3-8B", dtype, 80, "ours"), name("Llama-3-8B", dtype, 0, "ours"), at_most=0.3)
    for dtype in DTYPES
)


class Problem(NamedTuple):
    """hidden [T, H] and weight [V, H] that want gradients, labels [T] with IGNORED, rows: the others."""

    hidden: torch.Tensor
    weight: torch.Tensor
    labels: torch.Tensor
    rows: torch.Tensor


def main() -> None:
    """The command line: `compare`, or `measure` in a process that `compare` has started."""
    parser = harness.options(__doc__, model=DEFAULT_MODEL, repeats=9)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS) if CUDA else [REAL])
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--shares", nargs="+", type=int, choices=SHARES, default=list(SHARES), help="%% masked")
    arguments = parser.parse_args()
    if arguments.result:
        measure(arguments)
    else:
        compare(arguments.model, arguments.repeats, arguments.models, arguments.dtypes, arguments.shares)


def compare(folder: Path, repeats: int, models: Sequence[str], dtypes: Sequence[str], shares: Sequence[int]) -> None:
    prepare(folder)
    recorder = harness.Recorder(GPU_RESULTS if CUDA else CPU_RESULTS)

    def run(**case: Any) -> dict[str, Any]:
        arguments = ["--model", str(folder), "--repeats", str(repeats), "--case", json.dumps(case)]
        return harness.run_ranks(__file__, arguments, 1)[0]

    for model in models:
        for dtype in dtypes:
            for share in shares:
                found = run(model=model, dtype=dtype, share=share)
                for way, seconds in found["seconds"].items():
                    for value in seconds:
                        recorder.add(name(model, dtype, share, way), "seconds", value)
                print(
                    f"  loss {found['losses']['ours']:.4f}, torch's chunk {found['chunk'] or 'its own choice'}",
                    flush=True,
                )
                if share == SHARE_OF_MEMORY:
                    for way in WAYS:
                        peak = run(model=model, dtype=dtype, share=share, way=way, chunk=found["chunk"])["peak_bytes"]
                        recorder.add(name(model, dtype, share, way), "peak_bytes", peak)
    recorder.rows = [replace(row, device=f"{device(row.device)}; {packages()}") for row in recorder.rows]
    measured = {(row.metric, row.case) for row in recorder.rows}
    claims = GPU_CLAIMS if CUDA else CLAIMS
    recorder.save(c for c in claims if {(c.metric, c.case), (c.metric, c.against)} <= measured)


def device(cpu: str) -> str:
    return f"{torch.cuda.get_device_name()} on {cpu}" if CUDA else f"{cpu}, {cores()} threads"


def packages() -> str:
    """Versions of what the harness does not note."""
    used = ("cut-cross-entropy", *(["liger-kernel", "triton"] if CUDA else []))
    return ", ".join(f"{package} {version(package)}" for package in used)


def cores() -> int:
    return len(os.sched_getaffinity(0))


def measure(arguments: argparse.Namespace) -> None:
    """One process: the seconds of every way in turn, or the memory of one."""
    case = json.loads(arguments.case)
    torch.set_num_threads(cores())
    made = problem(arguments.model, case["model"], DTYPES[case["dtype"]], case["share"])
    if "way" in case:
        call = ways(made, case["chunk"])[case["way"]]
        call()
        made.hidden.grad = made.weight.grad = None
        with peak_memory() as peak:
            call()
        harness.report(arguments.result, peak)
        return
    chunk = fastest_chunk(made)
    calls = ways(made, chunk)
    losses = {way: call().item() for way, call in calls.items()}
    if any(abs(loss / losses["eager"] - 1) > SAME_LOSS[case["dtype"]] for loss in losses.values()):
        raise SystemExit(f"the losses differ: {losses}")
    seconds: dict[str, list[float]] = {way: [] for way in calls}
    for repeat in range(-1, arguments.repeats):
        for way, call in calls.items():
            elapsed = timed(call)
            if repeat >= 0:
                seconds[way].append(elapsed)
    harness.report(arguments.result, {"seconds": seconds, "losses": losses, "chunk": chunk})


def ways(made: Problem, chunk: int | None) -> dict[str, Callable[[], torch.Tensor]]:
    """Forward and backward in every way that is there on this device. `chunk`: rows of a chunk of torch's."""
    from cut_cross_entropy import linear_cross_entropy as cut_cross_entropy

    from sani_dist.kernels import masked_cross_entropy

    targets, count = made.labels[made.rows], len(made.rows)

    def ours() -> torch.Tensor:
        return masked_cross_entropy(made.hidden, made.weight, targets, made.rows, normalizer=count)

    def eager() -> torch.Tensor:
        return F.cross_entropy((made.hidden @ made.weight.t()).float(), made.labels, ignore_index=IGNORED)

    def cce() -> torch.Tensor:
        impl = "cce" if CUDA and made.hidden.dtype != torch.float32 else "torch_compile"
        loss: torch.Tensor = cut_cross_entropy(made.hidden, made.weight, made.labels, ignore_index=IGNORED, impl=impl)
        return loss

    def liger() -> torch.Tensor:
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss  # type: ignore[import-not-found]

        function = LigerFusedLinearCrossEntropyLoss(ignore_index=IGNORED)
        loss: torch.Tensor = function(made.weight, made.hidden, made.labels)
        return loss

    forwards: dict[str, Callable[[], torch.Tensor]] = {
        "ours": ours,
        "eager": eager,
        "torch": partial(in_chunks, made, chunk),
        "cce": cce,
        "liger": liger,
    }
    return {way: partial(both, made, forwards[way]) for way in WAYS}


def both(made: Problem, forward: Callable[[], torch.Tensor]) -> torch.Tensor:
    """The loss; the gradients left behind are those of this call alone."""
    made.hidden.grad = made.weight.grad = None
    loss = forward()
    loss.backward()  # type: ignore[no-untyped-call]
    return loss


def in_chunks(made: Problem, chunk: int | None) -> torch.Tensor:
    options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=chunk)
    return F.linear_cross_entropy(made.hidden, made.weight, made.labels, ignore_index=IGNORED, options=options)


def fastest_chunk(made: Problem) -> int | None:
    """Of CHUNKS, after a call of each that does not count."""

    def seconds(chunk: int | None) -> float:
        call = partial(both, made, partial(in_chunks, made, chunk))
        call()
        return statistics.median(timed(call) for _ in range(3))

    return min(CHUNKS, key=seconds)


def timed(call: Callable[[], object]) -> float:
    if CUDA:
        torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    if CUDA:
        torch.cuda.synchronize()
    return time.perf_counter() - start


@contextlib.contextmanager
def peak_memory() -> Iterator[dict[str, int]]:
    """`peak_bytes` of the block above the level before: device memory on a GPU, resident memory elsewhere."""
    peak: dict[str, int] = {}
    if CUDA:
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        yield peak
        peak["peak_bytes"] = torch.cuda.max_memory_allocated() - before
    else:
        with harness.peak_memory() as found:
            yield peak
        peak["peak_bytes"] = found["rss"]


def prepare(folder: Path) -> None:
    """Put SmolLM2's last hidden states of TOKENS tokens of English, its weight and the next tokens into `folder`, unless they are there."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from examples.clinic.english import write_general_text
    from examples.clinic.model import write_base_model

    if (folder / "states.pt").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    write_base_model(folder / "model")
    write_general_text(folder / "english.jsonl")
    text = " ".join(
        json.loads(line)["text"] for line in (folder / "english.jsonl").read_text(encoding="utf-8").splitlines()
    )
    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    ids = AutoTokenizer.from_pretrained(folder / "model")(text, return_tensors="pt").input_ids[0, : TOKENS + 8]
    ids = ids.view(8, -1)
    with torch.no_grad():
        hidden = model.model(ids).last_hidden_state[:, :-1].reshape(TOKENS, -1)
    states = {
        "hidden": hidden.clone(),
        "weight": model.lm_head.weight.detach().clone(),
        "labels": ids[:, 1:].reshape(-1).clone(),
    }
    torch.save(states, folder / "states.pt")


def problem(folder: Path, model: str, dtype: torch.dtype, share: int) -> Problem:
    """`share` per cent of the tokens are masked. On the GPU if there is one."""
    states = torch.load(folder / "states.pt", weights_only=True, map_location="cuda" if CUDA else "cpu")
    count = TOKENS if CUDA or model == REAL else FEWER_TOKENS
    hidden, weight, labels = states["hidden"][:count], states["weight"], states["labels"][:count]
    if model != REAL:
        hidden, weight = enlarged(hidden, weight, *MODELS[model])
    masked = torch.randperm(count, generator=torch.Generator().manual_seed(0))[: round(count * share / 100)]
    labels[masked.to(labels.device)] = IGNORED
    hidden, weight = (tensor.to(dtype).requires_grad_() for tensor in (hidden, weight))
    return Problem(hidden, weight, labels, (labels != IGNORED).nonzero()[:, 0])


def enlarged(
    hidden: torch.Tensor, weight: torch.Tensor, hidden_size: int, vocabulary: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """hidden [T, H] and weight [V, H] -> [T, hidden_size], [vocabulary, hidden_size]: the same logits for the tokens there are; further
    tokens are copies of them, from the first on, with logits lower by LOWER. A dimension more tells them apart; all are then mixed."""
    tokens = torch.arange(vocabulary, device=weight.device)
    copied = (tokens >= len(weight)).to(weight.dtype).unsqueeze(1)
    hidden = torch.cat([hidden, torch.ones_like(hidden[:, :1])], dim=1)
    weight = torch.cat([weight[tokens % len(weight)], -LOWER * copied], dim=1)
    draw = torch.randn(hidden_size, hidden.shape[1], generator=torch.Generator().manual_seed(0))
    rotation = torch.linalg.qr(draw).Q.t().to(hidden.device)  # orthonormal rows
    return hidden @ rotation, weight @ rotation


if __name__ == "__main__":
    main()
