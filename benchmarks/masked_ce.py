"""Masked cross-entropy, forward and backward: ours against what else there is, for T = 4096 tokens of real text under SmolLM2-135M
(H = 576, V = 49152), with 0, 10, 35 and 80 % of the tokens masked at random.

`eager` is what transformers does: all logits, in fp32, `F.cross_entropy` with `ignore_index`. `torch` is
`F.linear_cross_entropy` with chunks, at the chunk size that is fastest here, tried before. `cce` is Apple's cut cross-entropy,
`torch_compile` on CPUs and its Triton kernels on GPUs; `liger` is Liger's fused linear cross-entropy, on GPUs alone. All run in turn in one
process with all cores, after two rounds that are not recorded, and have the gradients of the hidden states and of the weight. Memory
is measured in a fresh process for each figure, in its second call, above the level just before that: the gradients that come out are in it.

On a GPU the shapes of Llama-3, Qwen3 and Gemma-3 are measured too. Their hidden states are drawn at random, such that the logits spread as
those of SmolLM2 did (standard deviation 3.3 in each row), and the targets are drawn from the probabilities that follow.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import harness
import torch
from torch.nn import functional as F

IGNORED = -100
TOKENS = 4096
SHARES = (0, 10, 35, 80)
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
SPREAD = 3.3
CUDA = torch.cuda.is_available()
# [hidden size, vocabulary], from the models' config.json.
MODELS = {"SmolLM2-135M": (576, 49152)}
if CUDA:
    MODELS |= {
        "Llama-3-8B": (4096, 128256), "Llama-3-70B": (8192, 128256), "Qwen3-8B": (4096, 151936), "Gemma-3-4B": (2560, 262144),
    }  # fmt: skip
WAYS = ("ours", "eager", "torch", "cce", *(["liger"] if CUDA else []))
CHUNKS = (None, 256, 512, 1024)
DEFAULT_MODEL = Path(tempfile.gettempdir()) / "sani_dist-benchmark-smollm2"


def name(model: str, dtype: str, share: int, way: str) -> str:
    return f"{model} {dtype}, {share} % masked: {way}"


def _claims() -> Iterator[harness.Claim]:
    model = "SmolLM2-135M"
    for dtype, seconds, memory in (("bf16", 1.0, 0.6), ("fp32", 0.9, 0.4)):
        ours, cce, eager = (name(model, dtype, 35, way) for way in ("ours", "cce", "eager"))
        yield harness.Claim("seconds", ours, cce, at_most=seconds)
        yield harness.Claim("peak_bytes", ours, cce, at_most=memory)
        yield harness.Claim("seconds", ours, eager, at_most=0.35)
        yield harness.Claim("seconds", name(model, dtype, 80, "ours"), name(model, dtype, 0, "ours"), at_most=0.3)


CLAIMS = tuple(_claims())


class Problem(NamedTuple):
    """hidden [T, H] and weight [V, H] that want gradients, labels [T] with IGNORED, rows: the others."""

    hidden: torch.Tensor
    weight: torch.Tensor
    labels: torch.Tensor
    rows: torch.Tensor


def compare(model: Path, repeats: int) -> None:
    prepare(model)
    recorder = harness.Recorder("masked_ce")

    def run(**what: Any) -> dict[str, Any]:
        return harness.run_ranks(
            __file__, ["--model", str(model), "--repeats", str(repeats), "--case", json.dumps(what)], 1
        )[0]

    for of in MODELS:
        for dtype in DTYPES:
            for share in SHARES:
                for way, seconds in run(model=of, dtype=dtype, share=share).items():
                    for value in seconds:
                        recorder.add(name(of, dtype, share, way), "seconds", value)
            for way in WAYS:
                found = run(model=of, dtype=dtype, share=35, way=way)
                recorder.add(name(of, dtype, 35, way), "peak_bytes", found["peak_bytes"])
    recorder.save(CLAIMS)


def measure(arguments: argparse.Namespace) -> None:
    what = json.loads(arguments.case)
    torch.set_num_threads(os.cpu_count() or 1)
    made = problem(arguments.model, what["model"], DTYPES[what["dtype"]], what["share"])
    if "way" in what:
        call = ways(made)[what["way"]]
        call()
        made.hidden.grad = made.weight.grad = None
        with peak_memory() as peak:
            call()
        harness.report(arguments.result, peak)
        return
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    calls = ways(made)
    for repeat in range(-2, arguments.repeats):
        for way, call in calls.items():
            elapsed = timed(call)
            if repeat >= 0:
                seconds[way].append(elapsed)
    harness.report(arguments.result, seconds)


def ways(made: Problem) -> dict[str, Callable[[], None]]:
    """Forward and backward in each way, the gradients dropped."""
    from cut_cross_entropy import linear_cross_entropy as cut_cross_entropy

    from sani_dist.kernels import masked_cross_entropy

    targets, count = made.labels[made.rows], len(made.rows)

    def ours() -> torch.Tensor:
        return masked_cross_entropy(made.hidden, made.weight, targets, made.rows, normalizer=count)

    def eager() -> torch.Tensor:
        return F.cross_entropy((made.hidden @ made.weight.t()).float(), made.labels, ignore_index=IGNORED)

    def chunked(chunk: int | None) -> torch.Tensor:
        options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=chunk)
        return F.linear_cross_entropy(made.hidden, made.weight, made.labels, ignore_index=IGNORED, options=options)

    def cce() -> torch.Tensor:
        impl = "cce" if CUDA else "torch_compile"
        loss: torch.Tensor = cut_cross_entropy(made.hidden, made.weight, made.labels, impl=impl)
        return loss

    def liger() -> torch.Tensor:
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss  # type: ignore[import-not-found]

        loss: torch.Tensor = LigerFusedLinearCrossEntropyLoss(IGNORED)(made.weight, made.hidden, made.labels)
        return loss

    def both(forward: Callable[[], torch.Tensor]) -> Callable[[], None]:
        def call() -> None:
            made.hidden.grad = made.weight.grad = None
            forward().backward()  # type: ignore[no-untyped-call]

        return call

    of_chunk = {chunk: both(lambda chunk=chunk: chunked(chunk)) for chunk in CHUNKS}  # type: ignore[misc]
    fastest = min(CHUNKS, key=lambda chunk: min(timed(of_chunk[chunk]) for _ in range(2)))
    forwards = {"ours": ours, "eager": eager, "cce": cce, "liger": liger}
    return {way: of_chunk[fastest] if way == "torch" else both(forwards[way]) for way in WAYS}


def timed(call: Callable[[], None]) -> float:
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

    from sani_dist.demo.english import write_general_text
    from sani_dist.demo.model import write_base_model

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
    """On the GPU if there is one."""
    draw = torch.Generator().manual_seed(0)
    if model == "SmolLM2-135M":
        states = torch.load(folder / "states.pt", weights_only=True)
    else:
        hidden_size, vocabulary = MODELS[model]
        hidden = torch.randn(TOKENS, hidden_size, generator=draw) * SPREAD
        weight = torch.randn(vocabulary, hidden_size, generator=draw) / hidden_size**0.5
        labels = [
            torch.multinomial((h.cuda() @ weight.cuda().t()).softmax(dim=1), 1)[:, 0] for h in torch.split(hidden, 256)
        ]
        states = {"hidden": hidden, "weight": weight, "labels": torch.cat(labels)}
    device = "cuda" if CUDA else "cpu"
    hidden, weight = (states[key].to(device, dtype).requires_grad_() for key in ("hidden", "weight"))
    masked = torch.randperm(TOKENS, generator=draw)[: round(TOKENS * share / 100)]
    labels = states["labels"].cpu().clone()
    labels[masked] = IGNORED
    return Problem(hidden, weight, labels.to(device), (labels != IGNORED).nonzero()[:, 0].to(device))


if __name__ == "__main__":
    harness.command_line(__doc__, compare, measure, model=DEFAULT_MODEL, repeats=9)
