"""What benchmarks/cluster.py makes of the folder of a finished run."""

from __future__ import annotations

import importlib
import json
import statistics
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from sani_dist.run import Run

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def test_rows_of_a_finished_run(finished_run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    cluster = importlib.import_module("cluster")
    found = {row.metric: row.value for row in cluster.record(finished_run, "h100").rows}
    lines = [json.loads(line) for line in finished_run.path("metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["stage"] == "repair"]
    kept = steps[len(steps) // 5 :]
    assert found["tokens_per_second_of_a_rank"] == statistics.median(s["tokens_per_second"] for s in kept) / 2
    assert 50e6 < found["peak_memory_bytes"] < 20e9
    model = AutoModelForCausalLM.from_pretrained(finished_run.path("model"))
    tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    multiplied = sum(
        p.numel() for p in model.parameters() if p.dim() > 1 and (tied or p is not model.get_input_embeddings().weight)
    )
    config, row = model.config, finished_run.config.corpus.row_length
    flops = 6 * multiplied + 12 * config.num_hidden_layers * config.hidden_size * row
    expected = found["tokens_per_second_of_a_rank"] * flops / 989e12
    assert found["model_flops_utilisation"] == pytest.approx(expected)
