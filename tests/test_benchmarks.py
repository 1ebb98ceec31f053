"""What benchmarks make of what they measured."""

from __future__ import annotations

import functools
import importlib
import itertools
import json
import statistics
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from sani_dist.run import Run

from . import tiny

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


@pytest.mark.parametrize("layout", ["letting", "claims"])
def test_letters_are_short_and_share_no_identifier(layout: str, tmp_path: Path) -> None:
    letters = importlib.import_module("letters")
    paths = [tmp_path / name for name in ("a", "b", "again")]
    letters.write_letters(getattr(letters, layout), paths[:2], 60, seed=3)
    letters.write_letters(getattr(letters, layout), paths[2:], 60, seed=3)
    assert paths[2].read_text() == paths[0].read_text()
    found = [json.loads(line) for path in paths[:2] for line in path.read_text().splitlines()]
    assert len(found) == 120
    assert 200 < statistics.mean(len(letter["text"]) for letter in found) < 350
    owner: dict[str, str] = {}
    for letter in found:
        values = [letter["text"][span["start"] : span["end"]] for span in letter["spans"]]
        assert len(set(values)) < len(values)  # one can be copied
        for value in set(values):
            assert value == value.strip()
            assert owner.setdefault(value, letter["patient"]) == letter["patient"]


def test_the_layouts_have_no_identifier_in_common() -> None:
    letters = importlib.import_module("letters")
    values = [
        {note.text[s["start"] : s["end"]] for note in itertools.islice(layout(0), 180) for s in note.spans}
        for layout in (letters.letting, letters.claims)
    ]
    assert not values[0] & values[1]


def test_the_table_of_the_small_bench_compares_with_memorised_and_base() -> None:
    harness, small = importlib.import_module("harness"), importlib.import_module("small")
    measured = {
        "memorised": (0.4, -1.5),
        "base": (0.5, -2.0),
        "idea": (0.45, -2.2),
    }
    rows = [
        harness.Row("", "", "", "", "", "", f"{layout}: {name}, seed {seed}", column, value)
        for layout in ("letting", "claims")
        for seed in (0, 1)
        for name, values in measured.items()
        for column, value in zip((small.COPYING, small.LOGPROB), values, strict=True)
    ]
    head, _, *lines = small.table(rows, "letting")
    columns = [cell.strip() for cell in head.split("|")]
    idea = dict(zip(columns, (cell.strip() for cell in lines[2].split("|")), strict=True))
    assert lines[2].startswith("| idea |")
    assert (idea[small.KEPT], idea[small.MOVED]) == ("0.900", "0.100")


def test_settings_of_the_small_bench_may_come_from_a_file(tmp_path: Path) -> None:
    small = importlib.import_module("small")
    (tmp_path / "ideas.yaml").write_text("mine: {repair: {epochs: 2}}\n")
    found = small.read_settings(tmp_path / "ideas.yaml")
    assert found["mine"] == small.Setting("mine", {"layers": 0}, {"epochs": 2})
    assert "preset strong" in found


@pytest.mark.slow
def test_the_small_bench_runs_a_row(
    tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On an untrained model of a few neurons: every column is there, and what is finished is not made again."""
    small = importlib.import_module("small")
    monkeypatch.setattr(small, "ROW_LENGTH", 512)  # its tokens are hardly more than bytes
    base = functools.partial(_write_tiny, tiny_tokenizer)
    size = small.Size(letters=12, articles=10, epochs=1, write_base=base)
    bench = small.Bench(tmp_path, "letting", 0, 1, size)
    setting = small.Setting("idea", {"layers": 0}, {"epochs": 1, "objectives": {"unlikelihood": 1}})
    for name in ("idea", "base"):
        found = dict(bench.figures(name, {"idea": setting}))
        assert found.keys() == set(small.COLUMNS) - {small.KEPT, small.MOVED}
        assert dict(bench.figures(name, {"idea": setting})) == found


def _write_tiny(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    model = tiny.llama(len(tokenizer))
    model.config.max_position_embeddings = 512
    tiny.save(model, tokenizer, folder)
