"""docs/planned.md, and the memory table of ds_configs/README.md: what `sani-dist plan` says of models of 8, 70 and 405 billion parameters.

Nothing is measured here and no weights are there: `python benchmarks/planned.py` takes seconds on any machine.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path

from transformers import LlamaConfig

from sani_dist.capacity import GPUS, Estimate, Job, ModelShape, estimate, shape_of, supplied
from sani_dist.capacity.estimate import LINK_SHARE, MATRIX_SHARE, USABLE, USABLE_HOST
from sani_dist.capacity.tables import gigabytes, gpu_hours, short

ROOT = Path(__file__).parents[1]
PAGE, README = ROOT / "docs" / "planned.md", ROOT / "ds_configs" / "README.md"
BEGIN, END = "<!-- begin: python benchmarks/planned.py -->\n", "<!-- end -->\n"
ROW_LENGTH, TOKENS = 512, 1e8
JOBS = {
    name: [Job(GPUS[gpu], count, batch_rows=count) for gpu, count in jobs]
    for name, jobs in {
        "8B": [("h100", 1), ("h100", 8), ("h100", 16)],
        "70B": [("h100", 8), ("h100", 64), ("h100", 128)],
        "405B": [("h100", 64), ("h100", 256), ("h200", 64), ("h200", 256)],
    }.items()
}
# Of the README's table: one node for the small model, clusters of a usual size for the others.
README_JOBS = {"8B": 8, "70B": 64, "405B": 256}


_HEAD = f"""# Planned, not measured

What `sani-dist plan` says, written by `python benchmarks/planned.py`. No model of these sizes was trained with sani-dist, and no
figure of this page was measured. Weights, gradients, masters and moments follow from ZeRO-3's arithmetic, which two real ranks of a
small model keep within 5 % (`tests/distributed/test_capacity.py`); activations are counted on torch's meta device, and agree with
a real forward pass of two small models within 5 %; times were compared with nothing.

Repair in bf16, rows of {ROW_LENGTH} tokens, one row at a time on each GPU, no activation checkpointing. A file fits when it takes at most
{100 * USABLE:.0f} % of a GPU and {100 * USABLE_HOST:.0f} % of a host. Times assume {100 * MATRIX_SHARE:.0f} % of the peak of matrix
products and {100 * LINK_SHARE:.0f} % of links: from communication wholly behind computing to wholly beside it. GPU-hours are for
{TOKENS / 1e6:.0f} million tokens of repair (text times epochs); an audit is a forward pass, a third of that for as much text.

| GPU | memory | dense bf16 | within a node | network | host link | sources |
|---|---|---|---|---|---|---|"""
_COLUMNS = (
    "| GPUs | ds_config | weights, gradients | masters, moments | gathered, buffers | activations, logits | all | host "
    "| fits | s a step | GPU-hours |\n|---|---|---|---|---|---|---|---|---|---|---|"
)


def configs() -> dict[str, LlamaConfig]:
    """The three shapes of the Llama 3 family (arXiv 2407.21783, table 3)."""
    shared = {"vocab_size": 128_256, "num_key_value_heads": 8, "tie_word_embeddings": False}
    return {
        "8B": LlamaConfig(
            hidden_size=4096, intermediate_size=14_336, num_hidden_layers=32, num_attention_heads=32, **shared
        ),
        "70B": LlamaConfig(
            hidden_size=8192, intermediate_size=28_672, num_hidden_layers=80, num_attention_heads=64, **shared
        ),
        "405B": LlamaConfig(
            hidden_size=16_384, intermediate_size=53_248, num_hidden_layers=126, num_attention_heads=128, **shared
        ),
    }


@cache
def shapes() -> dict[str, ModelShape]:
    return {name: shape_of(config, ROW_LENGTH, micro_rows=1) for name, config in configs().items()}


def page(found: dict[str, ModelShape]) -> str:
    """The whole of docs/planned.md."""
    lines = [_HEAD]
    for gpu in GPUS.values():
        sources = ", ".join(f"[{number}]({link})" for number, link in enumerate(gpu.source.split(", "), 1))
        rates = " | ".join(f"{rate / 1e9:.0f} GB/s" for rate in (gpu.node_link, gpu.network, gpu.host_link))
        lines.append(
            f"| {gpu.title} | {gpu.memory / 1e9:.0f} GB | {gpu.flops / 1e12:.0f} TFLOP/s | {rates} | {sources} |"
        )
    for name, shape in found.items():
        lines += ["", f"## {name}: {shape.parameters:,} parameters", ""]
        lines.append(_COLUMNS)
        for job in JOBS[name]:
            lines += [_row(shape, job, estimate(shape, job, path)) for path in supplied()]
    lines += ["", "GB of one GPU; host: GB of a node.", ""]
    return "\n".join(lines)


def _row(shape: ModelShape, job: Job, planned: Estimate) -> str:
    pairs = (
        ("weights", "gradients"),
        ("masters and moments",),
        ("gathered weights", "buffers"),
        ("activations", "logits"),
    )
    parts = [gigabytes(sum(planned.device[part] for part in pair)) for pair in pairs]
    host = gigabytes(sum(planned.host.values()) * min(job.gpus, job.gpu.per_node))
    time, hours = "", ""
    if planned.fits:
        time, hours = ("depends on disks", "") if planned.seconds is None else _times(shape, job, planned.seconds)
    cells = [
        f"{job.gpus} {job.gpu.title.split()[0]}", short(planned.name), *parts, gigabytes(sum(planned.device.values())), host,
        "yes" if planned.fits else "no", time, hours,
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def _times(shape: ModelShape, job: Job, seconds: tuple[float, float]) -> tuple[str, str]:
    hours = [gpu_hours(shape, job, s, TOKENS) for s in seconds]
    return f"{seconds[0]:.2f} to {seconds[1]:.2f}", f"{hours[0]:,.0f} to {hours[1]:,.0f}"


def readme_table(found: dict[str, ModelShape]) -> str:
    """Memory of one H100 and of its host under each file."""
    jobs = {name: Job(GPUS["h100"], count, batch_rows=count) for name, count in README_JOBS.items()}
    title = " | ".join(f"{name} on {job.gpus} H100" for name, job in jobs.items())
    lines = [f"| GB of one GPU (of one host) | {title} |", "|---" * (len(jobs) + 1) + "|"]
    lines += [f"| `{path.name}` | {' | '.join(_cells(found, jobs, path))} |" for path in supplied()]
    return "\n".join(lines) + "\n"


def _cells(found: dict[str, ModelShape], jobs: dict[str, Job], path: Path) -> Iterator[str]:
    for name, job in jobs.items():
        planned = estimate(found[name], job, path)
        host = sum(planned.host.values()) * min(job.gpus, job.gpu.per_node)
        yield (
            gigabytes(sum(planned.device.values()))
            + (f" ({gigabytes(host)})" if host else "")
            + (", too much" if not planned.fits else "")
        )


def with_table(readme: str, table: str) -> str:
    """The README with what stands between its marks replaced."""
    before, rest = readme.split(BEGIN)
    return before + BEGIN + table + END + rest.split(END)[1]


def main() -> None:
    found = shapes()
    PAGE.write_text(page(found))
    README.write_text(with_table(README.read_text(), readme_table(found)))


if __name__ == "__main__":
    main()
