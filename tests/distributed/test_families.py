"""Each family on two ZeRO-3 ranks with nothing gathered for good, against plain transformers and against units written down by hand."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from sani_dist.audit.candidates import CandidateRows
from sani_dist.corpus.rows import PackedRows
from sani_dist.erase import Plan, Unit

from .. import tiny
from . import plain
from .families import FAMILIES, Family, Indices, build
from .families_work import NEW_TOKENS, PROMPTS, QUESTION
from .family_table import assert_in_docs, holds, row_of
from .ranks import run_ranks

REPAIR = {"epochs": 1, "batch_rows": 4, "retain": 0.25, "learning_rate": 1e-3, "warmup": 0}


@pytest.fixture(scope="module")
def tokens(corpus: dict[str, str], tiny_tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Path:  # fmt: skip
    return tiny.pack(corpus, tiny_tokenizer, tmp_path_factory.mktemp("families-tokens"), notes=7, general=9)


@pytest.fixture(scope="module")
def sources(tiny_tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("families-sources")
    return {
        name: tiny.save(build(family, len(tiny_tokenizer)), tiny_tokenizer, folder / name)
        for name, family in FAMILIES.items()
    }


@pytest.fixture(scope="module")
def carried(sources: dict[str, Path], tokens: Path, threshold_0: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:  # fmt: skip
    """Folder with one folder of results for each family: one start of two ranks for all."""
    folder = tmp_path_factory.mktemp("families")
    for name, family in FAMILIES.items():
        units = (Unit(1, "mlp", family.neurons), Unit(1, "head", family.heads))
        Plan("", 0, "random", "zero", units).write(folder / f"{name}.json")
    run_ranks(
        2, "families_work.carry", folder, sources={name: str(path) for name, path in sources.items()}, plans=str(folder),
        tokens=str(tokens), ds_config=str(threshold_0), repair=REPAIR,
    )  # fmt: skip
    return folder


def facts(carried: Path, family: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((carried / family / "facts.json").read_text())
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_those_of_each_document_alone(family: str, carried: Path, sources: dict[str, Path], tokens: Path) -> None:  # fmt: skip
    expected = logprobs(sources[family], tokens)
    scores = np.load(carried / family / "scores.npz")
    np.testing.assert_allclose(scores["before"], expected, atol=2e-5)
    assert np.isfinite(scores["repaired"][~np.isnan(expected)]).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_branches_score_as_texts_of_their_own(
    family: str, carried: Path, sources: dict[str, Path], tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    model, rows = loaded(sources[family]), CandidateRows(tiny_tokenizer, [QUESTION], 96)
    answers = np.load(carried / family / "scores.npz")["answers"]
    for candidate, (row, first, end) in zip(QUESTION.candidates, rows.places[0], strict=True):
        ids = tiny_tokenizer(QUESTION.before + candidate + QUESTION.after)["input_ids"]
        expected = plain.logprobs_within(model, ids, rows.batch([row]).input_ids[0, first:end])
        np.testing.assert_allclose(answers[row, first:end], expected, atol=2e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_it_writes_is_the_likeliest_token_by_token(family: str, carried: Path, sources: dict[str, Path]) -> None:
    model = loaded(sources[family])
    for prompt, written in zip(PROMPTS, np.load(carried / family / "scores.npz")["written"], strict=True):
        assert written.tolist() == plain.written(model, prompt, NEW_TOKENS)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_erased_units_are_those_written_down(family: str, carried: Path, sources: dict[str, Path]) -> None:
    expected = load_file(sources[family] / "model.safetensors")
    zeroed(expected, FAMILIES[family].stored or FAMILIES[family].erased)
    found = load_file(carried / family / "erased" / "model.safetensors")
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("family", FAMILIES)
def test_the_forward_changes_as_silencing_these_units_does(
    family: str, carried: Path, sources: dict[str, Path], tokens: Path
) -> None:
    expected = logprobs(sources[family], tokens, silent=family)
    scores = np.load(carried / family / "scores.npz")
    np.testing.assert_allclose(scores["erased"], expected, atol=2e-5)
    assert np.nanmax(np.abs(scores["erased"] - scores["before"])) > 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_of_repair_and_the_export(family: str, carried: Path) -> None:
    found, (neurons, heads) = facts(carried, family), FAMILIES[family].count
    assert found["step"] == 1
    assert np.isfinite(found["loss"])
    assert found["export_equal"]
    assert found["units"] == [neurons, heads]
    erased, repaired = (load_file(carried / family / name / "model.safetensors") for name in ("erased", "repaired"))
    moved = [name for name, tensor in erased.items() if not torch.equal(tensor, repaired[name])]
    assert len(moved) == len(erased)


def test_the_table_of_the_readme_is_what_was_found(
    carried: Path, sources: dict[str, Path], tokens: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    table = {}
    for family in FAMILIES:
        erases = holds(test_the_erased_units_are_those_written_down, family, carried, sources) and holds(
            test_the_forward_changes_as_silencing_these_units_does, family, carried, sources, tokens
        )
        audits = (
            holds(test_scores_are_those_of_each_document_alone, family, carried, sources, tokens)
            and holds(test_branches_score_as_texts_of_their_own, family, carried, sources, tiny_tokenizer)
            and holds(test_what_it_writes_is_the_likeliest_token_by_token, family, carried, sources)
        )
        table[family] = row_of(facts(carried, family), erases, audits)
    assert_in_docs("families", table)


@cache
def loaded(source: Path) -> PreTrainedModel:
    return plain.load(source)


@cache
def logprobs(source: Path, tokens: Path, silent: str | None = None) -> np.ndarray:
    """By plain transformers, each document alone; `silent`: with the units silenced that are written down for this family."""
    model = loaded(source) if silent is None else plain.load(source)
    if silent is not None:
        silence(model, FAMILIES[silent])
    return plain.logprobs(model, PackedRows(tokens / "repair.arrow"))


def zeroed(tensors: dict[str, torch.Tensor], what: Mapping[str, Indices]) -> None:
    for name, indices in what.items():
        for index in indices:
            tensors[name][index] = 0


def silence(model: PreTrainedModel, family: Family) -> None:
    """Set the activations of the chosen units to zero, where a module has them as its input; those of experts in the weights."""
    block = next(m for m in model.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == 2)[1]
    for path, units in family.silence.items():
        block.get_submodule(path).register_forward_pre_hook(partial(without, torch.tensor(list(units))))
    down = {name: at for name, at in family.erased.items() if "experts.down_proj" in name}
    with torch.no_grad():
        zeroed(dict(model.named_parameters()), down)


def without(units: torch.Tensor, module: Any, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return (inputs[0].index_fill(-1, units, 0), *inputs[1:])
