"""Which spans does greedy decoding reproduce? One forward pass over packed rows (`score`) against writing the spans out.

The model is the demo's, SmolLM2-135M after it has memorised its notes (`--model`: the folder of a finished `sani-dist demo`, made where
there is none; that takes a quarter of an hour); the spans are all those of its notes that cannot be copied from the prompt. `--part` takes
one of three.

`speed`: in bfloat16, against transformers' `generate` with a key-value cache: greedy, prompts sorted by length and padded on the left, as
many new tokens as the longest span of a batch has, at the batch size that is fastest on 24 of the prompts, tried before. On two ranks it
has the whole model on each, and half of the prompts. Both run in turn in fresh processes with all cores; time is that of the slower
rank, after loading. A note is read once by `score`, and by `generate` once for each of its ten spans, up to there: about five times the
tokens. With large batches and a cache, little else costs.

`agreement`: the share of spans of which both say the same. For each of the others, how far the likeliest token leads before the next is
printed: in bfloat16 logits of 16 to 32 are 0.125 apart, and where two are equal or neighbours, the order of a sum decides. So the same
is done in float32.

`memory`: highest memory of a rank that loads and scores a synthetic Llama of 2.2 GB, above imports, on 1, 2 and 4 ranks. It stands for one
of 7 billion parameters: `stage3_max_live_parameters` of 2e8, and what DeepSpeed fetches ahead, are smaller by the same factor. (With
DeepSpeed's default of 1e9 a rank keeps the embedding, and blocks that it has done with, gathered.)
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import checkpoint
import harness
import numpy as np
import torch

from sani_dist.audit.generation import Asked, ask
from sani_dist.audit.spans import Corpus
from sani_dist.corpus.rows import NO_DOCUMENT, SENSITIVE, Batch, PackedRows

WAYS, RANKS = ("score", "generate"), (1, 2)
MEMORY_RANKS = (1, 2, 4)
BATCHES, TRIED = (8, 16, 32, 64), 24
MICRO_ROWS = 4
LLAMA_PARAMETERS, LIVE_PARAMETERS = 1.1e9, 2e8
PARTS = ("speed", "agreement", "memory")
DEFAULT_MODEL = Path(tempfile.gettempdir()) / "sani_dist-benchmark-demo"
CLAIMS = (
    *(harness.Claim("seconds", f"generate on {n}", f"score on {n}", at_least=20) for n in RANKS),
    harness.Claim("peak_anonymous_bytes", "memory on 2", "memory on 1", at_most=0.7),
    harness.Claim("peak_anonymous_bytes", "memory on 4", "memory on 2", at_most=0.7),
)


def compare(model: Path, repeats: int, parts: Sequence[str]) -> None:
    if not (model / "run" / "model").exists():
        from rich.console import Console

        from examples.clinic.demo import tell

        tell(model, 0, 2, Console())
    checkpoint.prepare(checkpoint.DEFAULT_FOLDER)
    recorder = harness.Recorder("audit")
    for _ in range(repeats if "speed" in parts else 0):
        for ranks in RANKS:
            agreement(recorder, model, ranks, "bfloat16", timed=True)
    if "agreement" in parts:
        agreement(recorder, model, 1, "float32", timed=False)
    for _ in range(repeats if "memory" in parts else 0):
        for ranks in MEMORY_RANKS:
            found = harness.run_ranks(__file__, ["--model", str(checkpoint.DEFAULT_FOLDER), "--case", "memory"], ranks)
            recorder.add(f"memory on {ranks}", "peak_anonymous_bytes", max(rank["anonymous"] for rank in found))
    recorder.save([claim for claim in CLAIMS if {claim.case, claim.against} <= {row.case for row in recorder.rows}])


def agreement(recorder: harness.Recorder, model: Path, ranks: int, dtype: str, *, timed: bool) -> None:
    says: dict[str, dict[str, bool]] = {}
    for way in WAYS:
        found = harness.run_ranks(__file__, ["--model", str(model), "--case", way, "--dtype", dtype], ranks)
        if timed:
            recorder.add(f"{way} on {ranks}", "seconds", max(rank["seconds"] for rank in found))
        says[way] = {place: hit for rank in found for place, hit in rank["greedy"].items()}
        for lead in (lead for rank in found for lead in rank.get("leads", [])):
            print(f"judged differently; least lead of a likeliest token {lead:.3f}")
    same = [says["score"][place] == says["generate"][place] for place in says["score"]]
    case = f"score on {ranks}" if timed else f"score in {dtype}"
    recorder.add(case, "agreement", sum(same) / len(same))


def measure(arguments: argparse.Namespace) -> None:
    """One rank of one measurement."""
    from sani_dist.engine import distributed

    distributed.start(threads=None)
    if arguments.case == "memory":
        harness.report(arguments.result, _memory(arguments.model))
    else:
        asked, rows = _spans(arguments.model / "run")
        way = _score if arguments.case == "score" else _generate
        dtype: torch.dtype = getattr(torch, arguments.dtype)
        harness.report(arguments.result, way(arguments.model / "memorised", asked, rows, dtype))
    distributed.stop()


def _spans(run: Path) -> tuple[list[Asked], PackedRows]:
    rows = PackedRows(run / "tokens" / "epoch-000" / "repair.arrow")
    corpus = Corpus(run / "corpus", run / "tokens" / "epoch-000")
    return ask(corpus.spans(), {"repair": rows}, corpus), rows


def _score(model: Path, asked: list[Asked], rows: PackedRows, dtype: torch.dtype) -> dict[str, Any]:
    from sani_dist.audit.scores import score
    from sani_dist.engine import distributed

    engine = _engine(model, dtype)
    score(engine, rows, MICRO_ROWS)  # what is done once in a process, as reading the weights' pages
    distributed.barrier()
    start = time.perf_counter()
    is_argmax = score(engine, rows, MICRO_ROWS).is_argmax
    greedy = {str(a.place): bool(is_argmax[a.place[0], a.place[1] : a.place[2]].all()) for a in asked}
    return {"seconds": time.perf_counter() - start, "greedy": greedy}


def _generate(model: Path, asked: list[Asked], rows: PackedRows, dtype: torch.dtype) -> dict[str, Any]:
    from transformers import AutoModelForCausalLM

    from sani_dist.engine import distributed

    whole = AutoModelForCausalLM.from_pretrained(model, dtype=dtype).eval()
    mine = sorted(asked, key=lambda a: len(a.prompt.ids))[distributed.rank() :: distributed.world_size()]
    tried = mine[:: max(1, len(mine) // TRIED)]
    seconds = {}
    for batch in BATCHES:
        start = time.perf_counter()
        _write(whole, tried, batch)
        seconds[batch] = time.perf_counter() - start
    best = min(seconds, key=lambda batch: seconds[batch])
    distributed.barrier()
    start = time.perf_counter()
    greedy = _write(whole, mine, best)
    measured: dict[str, Any] = {"seconds": time.perf_counter() - start, "greedy": greedy}
    if distributed.world_size() == 1:
        forced = _score(model, asked, rows, dtype)["greedy"]
        measured["leads"] = [_least_lead(whole, a) for a in mine if greedy[str(a.place)] != forced[str(a.place)]]
    return measured


@torch.inference_mode()
def _write(model: Any, asked: Sequence[Asked], batch: int) -> dict[str, bool]:
    greedy = {}
    for first in range(0, len(asked), batch):
        part = asked[first : first + batch]
        width, new = max(len(a.prompt.ids) for a in part), max(len(a.ids) for a in part)
        ids, sees = torch.zeros(len(part), width, dtype=torch.int64), torch.zeros(len(part), width, dtype=torch.int64)
        for line, a in enumerate(part):
            ids[line, width - len(a.prompt.ids) :] = torch.from_numpy(a.prompt.ids)
            sees[line, width - len(a.prompt.ids) :] = 1
        out = model.generate(
            input_ids=ids, attention_mask=sees, max_new_tokens=new, do_sample=False, use_cache=True, pad_token_id=0,
        )  # fmt: skip
        for a, written in zip(part, out[:, width:].numpy(), strict=True):
            greedy[str(a.place)] = bool(np.array_equal(written[: len(a.ids)], a.ids))
    return greedy


@torch.inference_mode()
def _least_lead(model: Any, asked: Asked) -> float:
    """By how much the likeliest token leads before the next where it does so least within the span, in logits."""
    ids = torch.from_numpy(np.concatenate([asked.prompt.ids, asked.ids]))[None]
    two = model(input_ids=ids).logits[0, len(asked.prompt.ids) - 1 : -1].float().topk(2, dim=1).values
    return float((two[:, 0] - two[:, 1]).min())


def _memory(model: Path) -> dict[str, Any]:
    from sani_dist.audit.scores import score
    from sani_dist.engine import distributed

    distributed.barrier()
    with harness.peak_memory() as peak:
        score(_engine(model, torch.bfloat16, scale=LLAMA_PARAMETERS / 7e9), _RandomRows(), micro_rows=1)
    return dict(peak)


class _RandomRows:
    """Eight rows of random tokens, so that four ranks have a second pass, in which DeepSpeed knows what to fetch ahead."""

    row_length = 256

    def __len__(self) -> int:
        return 8

    def batch(self, indices: Sequence[int]) -> Batch:
        draw = torch.Generator().manual_seed(int(sum(indices)))
        ids = torch.randint(0, checkpoint.CONFIG.vocab_size, (len(indices), self.row_length), generator=draw)
        role = torch.full(ids.shape, SENSITIVE, dtype=torch.uint8)
        document = torch.full(ids.shape, NO_DOCUMENT + 1)
        return Batch(ids, role, document, torch.arange(self.row_length).expand(ids.shape).clone())


def _engine(model: Path, dtype: torch.dtype, scale: float | None = None) -> Any:
    """`scale`: of what DeepSpeed may hold gathered; None: what the package's own file says."""
    from sani_dist.engine.zero3 import Engine, load_sharded, read_ds_config

    config = read_ds_config(None, dtype)
    zero = config["zero_optimization"]
    if scale is not None:
        zero["stage3_max_live_parameters"] = round(LIVE_PARAMETERS * scale)
        zero["stage3_prefetch_bucket_size"] = round(zero["stage3_prefetch_bucket_size"] * scale)
    engine = Engine(load_sharded(model, config, dtype), config)
    engine.for_inference()
    return engine


if __name__ == "__main__":
    parser = harness.options(__doc__, model=DEFAULT_MODEL, repeats=3, cases=(*WAYS, "memory"))
    parser.add_argument("--part", action="append", choices=PARTS, help="default: all")
    parser.add_argument("--dtype", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.result:
        measure(given)
    else:
        compare(given.model, given.repeats, given.part or PARTS)
