"""Masked language models on two ZeRO-3 ranks, against plain transformers; and a whole run of one."""

from __future__ import annotations

import json
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForMaskedLM,
    DebertaConfig,
    DebertaForMaskedLM,
    DebertaV2Config,
    DebertaV2ForMaskedLM,
    PreTrainedModel,
)

import sani_dist
from sani_dist.audit.use import METRICS
from sani_dist.config_file import config_from_mapping
from sani_dist.corpus.rows import NO_DOCUMENT, PackedRows
from sani_dist.erase import Plan, Unit
from sani_dist.errors import InputError
from sani_dist.run import Run
from sani_dist.stages import preflight

from .. import tiny
from .families_work import asked_of
from .family_table import assert_in_docs, holds, row_of
from .masked_families import MASKED_FAMILIES, build_masked, tokenizer
from .ranks import run_ranks
from .test_families import silence, zeroed

REPAIR = {"epochs": 2, "batch_rows": 5, "retain": 0.2, "learning_rate": 1e-3, "warmup": 0}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder, tokens = tmp_path_factory.mktemp("masked-sources"), tokenizer()
    return {
        name: tiny.save(build_masked(family, tokens), tokens, folder / name) for name, family in MASKED_FAMILIES.items()
    }


@pytest.fixture(scope="module")
def tokens(corpus: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("masked-tokens")
    found = tiny.pack(corpus, tokenizer(), folder, notes=5, general=5, row_length=72, alone=True)
    document = PackedRows(found / "repair.arrow").batch(range(5)).document
    assert [len(set(row[row != NO_DOCUMENT].tolist())) for row in document] == [1] * 5
    return found


@pytest.fixture(scope="module")
def carried(
    sources: dict[str, Path], tokens: Path, threshold_0: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("masked")
    for name, family in MASKED_FAMILIES.items():
        units = (Unit(1, "mlp", family.neurons), Unit(1, "head", family.heads))
        Plan("", 0, "random", "zero", units).write(folder / f"{name}.json")
    run_ranks(
        2, "families_work.carry_masked", folder, sources={name: str(path) for name, path in sources.items()},
        plans=str(folder), tokens=str(tokens), ds_config=str(threshold_0), repair=REPAIR,
    )  # fmt: skip
    return folder


def facts(carried: Path, family: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((carried / family / "facts.json").read_text())
    return found


@cache
def logprobs(source: Path, tokens: Path, silent: str | None = None) -> np.ndarray:
    """log p of the hidden tokens, by plain transformers on each text alone without padding: [asked, row_length]."""
    model: PreTrainedModel = AutoModelForMaskedLM.from_pretrained(source, dtype=torch.float32).eval()
    if silent is not None:
        silence(model, MASKED_FAMILIES[silent])
    rows = PackedRows(tokens / "repair.arrow")
    asked, mask = asked_of(rows), tokenizer().mask_token_id
    found = np.full((len(asked), rows.row_length), np.nan)
    for number, (row, columns) in enumerate(asked):
        batch = rows.batch([row])
        ids = batch.input_ids[0, batch.document[0] != NO_DOCUMENT].clone()
        true = ids[columns]
        ids[columns] = mask
        with torch.no_grad():
            logp = model(input_ids=ids[None]).logits[0].log_softmax(-1)
        found[number, columns] = logp[columns].gather(1, true[:, None])[:, 0]
    return found


@pytest.mark.parametrize("family", MASKED_FAMILIES)
def test_scores_are_those_of_each_text_alone(
    family: str, carried: Path, sources: dict[str, Path], tokens: Path
) -> None:
    expected = logprobs(sources[family], tokens)
    assert (~np.isnan(expected)).sum() > 100
    np.testing.assert_allclose(np.load(carried / family / "scores.npz")["before"], expected, atol=2e-5)


@pytest.mark.parametrize("family", MASKED_FAMILIES)
def test_the_erased_units_are_those_written_down(family: str, carried: Path, sources: dict[str, Path]) -> None:
    expected = load_file(sources[family] / "model.safetensors")
    zeroed(expected, MASKED_FAMILIES[family].erased)
    found = load_file(carried / family / "erased" / "model.safetensors")
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("family", MASKED_FAMILIES)
def test_the_forward_changes_as_silencing_these_units_does(
    family: str, carried: Path, sources: dict[str, Path], tokens: Path
) -> None:
    scores = np.load(carried / family / "scores.npz")
    np.testing.assert_allclose(scores["erased"], logprobs(sources[family], tokens, silent=family), atol=2e-5)
    assert np.nanmax(np.abs(scores["erased"] - scores["before"])) > 1e-3


@pytest.mark.parametrize("family", MASKED_FAMILIES)
def test_a_step_of_repair_and_the_export(family: str, carried: Path) -> None:
    found = facts(carried, family)
    assert found["step"] == 1
    assert np.isfinite(found["loss"])
    assert found["export_equal"]
    assert found["units"] == list(MASKED_FAMILIES[family].count)
    assert [(layer, kind, count) for layer, kind, count in found["chosen"]] == [
        (0, "mlp", 11), (0, "head", 1), (1, "mlp", 11), (1, "head", 1),
    ]  # fmt: skip
    erased, repaired = (load_file(carried / family / name / "model.safetensors") for name in ("erased", "repaired"))
    still = [name for name, tensor in erased.items() if torch.equal(tensor, repaired[name])]
    assert still == []


def test_the_table_of_the_readme_is_what_was_found(carried: Path, sources: dict[str, Path], tokens: Path) -> None:
    table = {}
    for family in MASKED_FAMILIES:
        erases = holds(test_the_erased_units_are_those_written_down, family, carried, sources) and holds(
            test_the_forward_changes_as_silencing_these_units_does, family, carried, sources, tokens
        )
        audits = holds(test_scores_are_those_of_each_text_alone, family, carried, sources, tokens)
        table[family] = row_of(facts(carried, family), erases, audits)
    assert_in_docs("masked families", table)


def test_a_resumed_step_drops_out_and_hides_the_same(carried: Path) -> None:
    assert facts(carried, "BERT")["resumed_equal"] == [True, False]


def test_what_is_refused_of_masked_language_models(
    sources: dict[str, Path], corpus: dict[str, str], tmp_path: Path
) -> None:
    def refused(match: str, folder: Path, **sections: dict[str, Any]) -> None:
        with pytest.raises(InputError, match=match):
            preflight.check(config_from_mapping(tiny.mapping(folder, corpus, **sections)))

    refused("unlikelihood: not for a masked", sources["BERT"], repair={"objectives": {"unlikelihood": 1.0}})
    refused("kl: not for a masked", sources["BERT"], repair={"objectives": {"kl": 1.0}})
    refused("aim: not for a masked", sources["BERT"], repair={"objectives": {"aim": 1.0}})
    without_mask = Path(shutil.copytree(sources["BERT"], tmp_path / "without"))
    tiny.tokenizer().save_pretrained(without_mask)
    refused("its tokenizer has no mask token", without_mask)
    sizes = {
        "vocab_size": 425,
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 37,
    }
    tiny.save(DebertaV2ForMaskedLM(DebertaV2Config(**sizes, legacy=False)), tokenizer(), tmp_path / "new head")
    refused("DebertaV2ForMaskedLM has no module that projects onto the vocabulary alone", tmp_path / "new head")
    tiny.save(DebertaForMaskedLM(DebertaConfig(**sizes)), tokenizer(), tmp_path / "first")
    refused("DebertaForMaskedLM: no heads found in block 0", tmp_path / "first", erase={"units": "heads"})
    settings = config_from_mapping(tiny.mapping(tmp_path / "first", corpus))
    assert preflight.check(settings)["neurons_reset"] == 2 * round(0.3 * 37)


# A whole run


@pytest.fixture(scope="module")
def run(
    sources: dict[str, Path], corpus: dict[str, str], threshold_0: Path, tmp_path_factory: pytest.TempPathFactory
) -> Run:
    folder, few = tmp_path_factory.mktemp("few"), {}
    for name, lines in (("notes", 9), ("control", 6), ("heldout", 4), ("general", 9)):
        few[name] = str(folder / f"{name}.jsonl")
        Path(few[name]).write_text("".join(Path(corpus[name]).read_text().splitlines(keepends=True)[:lines]))
    settings = tiny.mapping(
        sources["BERT"], few, cluster={"ds_config": str(threshold_0)},
        repair={"epochs": 1, "batch_rows": 8}, erase={"units": "both"},
    )  # fmt: skip
    return sani_dist.sanitize(config_from_mapping(settings), tmp_path_factory.mktemp("runs") / "masked")


def test_a_run_measures_spans_hidden_whole_and_one_by_one(run: Run) -> None:
    for when in ("before", "after"):
        measured = json.loads(run.path("audit", f"{when}.json").read_text())["measurements"]
        of_all = {(m["metric"], m["population"]): m for m in measured if not m["group"]}
        for metric in ("greedy", "greedy_one_by_one", "leak@100"):
            assert of_all[metric, "sensitive"]["n"] > 10
            assert of_all[metric, "control"]["value"] is not None
        assert of_all["greedy_one_by_one", "sensitive"]["value"] >= of_all["greedy", "sensitive"]["value"]
        assert {population for metric, population in of_all if metric == "perplexity"} == {
            "repair",
            "heldout",
            "general_test",
        }
        assert not any(metric.startswith(("exposure", "membership", "generation")) for metric, _ in of_all)


def test_a_run_says_that_copying_was_not_measured(run: Run) -> None:
    said = "not measured: a masked language model does not go on with a text"
    measured = json.loads(run.path("audit", "after.json").read_text())["measurements"]
    assert {
        m["metric"]: m["reason"] for m in measured if m["value"] is None and m["metric"] in METRICS
    } == dict.fromkeys(METRICS, said)
    assert said in run.path("report", "index.html").read_text()
    (outcome,) = sani_dist.api.verify(run.folder, {"min_copying": 0.9})
    assert not outcome.passed
    assert outcome.reason.startswith(said)


def test_a_run_scores_every_learnable_token_once(run: Run) -> None:
    losses = pd.read_parquet(run.path("audit", "before-losses.parquet"))
    rows = PackedRows(run.path("tokens", "epoch-000", "heldout.arrow"))
    assert losses.loc[losses["split"] == "heldout", "tokens"].sum() == rows.learnable.sum()


def test_a_run_cannot_be_attacked(run: Run) -> None:
    with pytest.raises(InputError, match="attack: not for a masked language model"):
        sani_dist.api.attack(run.folder)
    assert "attack" not in Run.open(run.folder).stages


def test_a_run_exports_a_masked_language_model(run: Run) -> None:
    model = AutoModelForMaskedLM.from_pretrained(run.path("model"))
    assert type(model).__name__ == "BertForMaskedLM"
    assert run.path("report", "index.html").exists()
