"""What benchmarks make of what they measured."""

from __future__ import annotations

import importlib
import json
import statistics
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from sani_dist.run import Run

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def test_rows_of_a_finished_run(finished_run: Run) -> None:
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


def test_the_readme_says_what_was_measured() -> None:
    readme = importlib.import_module("readme")
    found = readme.measured()
    written = readme.README.read_text()
    assert readme.with_table(written, found) == written, "python benchmarks/readme.py"
    assert readme.picture(found) == readme.PICTURE.read_text(), "python benchmarks/readme.py"


def test_criteria_are_met_missed_or_not_measured() -> None:
    criteria = importlib.import_module("criteria")
    asked = (
        criteria.Criterion("a", "leak", ("b", "leak"), plus=0.02),
        criteria.Criterion("a", "perplexity", ("a", "before"), factor=1.05),
        criteria.Criterion("a", "AUC", plus=0.45, at_least=True),
    )
    found = {
        ("a", "leak"): 0.05,
        ("b", "leak"): 0.04,
        ("a", "perplexity"): 10.6,
        ("a", "before"): 10.0,
        ("a", "AUC"): 0.44,
    }
    more = {**found, ("a", "leak"): 0.0601, ("a", "AUC"): 0.45}
    del more["a", "before"]
    few = {("a", "leak"): 0.015, ("a", "perplexity"): 9.0}
    assert list(criteria.verdicts(asked, {0: found, 3: more, 4: few})) == [
        "| | | seed 0 | seed 3 | seed 4 |",
        "|---|---|---|---|---|",
        "| a: leak | at most b + 0.02 | 0.05 of 0.06 | 0.0601 of 0.06 **missed** | 0.015 of 0.02 or more |",
        "| a: perplexity | at most 1.05 x before | 10.6 of 10.5 **missed** |  |  |",
        "| a: AUC | at least 0.45 | 0.44 of 0.45 **missed** | 0.45 of 0.45 |  |",
    ]
