"""Every attack on a model on 1, 2 and 3 real ranks: one result."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import sani_dist
from sani_dist import api, cli
from sani_dist.attack import fisher, probe
from sani_dist.attack.prompts import VARIANTS
from sani_dist.attack.result import Result
from sani_dist.audit.spans import Corpus
from sani_dist.config import Config
from sani_dist.corpus.rows import PackedRows
from sani_dist.purge import purge
from sani_dist.run import Run
from sani_dist.stages.prepare import prepare_attack

from . import plain

RELEARNT = ("nothing", "documents", "format", "general")


Runs = Callable[[int], Run]


@pytest.fixture(scope="module")
def runs(make_config: Callable[..., Config], tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """`runs(workers)`. Untrained, in fp32: what differs between world sizes is rounding alone."""
    folder = tmp_path_factory.mktemp("attacks")
    related = folder / "related.jsonl"
    related.write_text(
        "".join(f'{{"text": "Patient of ward {i}, has a cough and is given rest and fluids."}}\n' for i in range(9))
    )

    @cache
    def attacked(workers: int) -> Run:
        config = make_config(
            model={"dtype": "float32"}, erase={"layers": 0}, audit={"metrics": ["extraction"]},
            cluster={"workers": workers, "threads": 1},
        )  # fmt: skip
        attack = config.attack.model_copy(
            update={
                "relearn_rates": (1e-4, 1e-3),
                "relearn_steps": (2, 1),
                "prompt_spans": 9,
                "drift_tokens": 30,
                "related": str(related),
            }
        )
        config = config.model_copy(update={"attack": attack})
        return sani_dist.sanitize(config, folder / str(workers), stages=api.ATTACK_STAGES)

    return attacked


def results(run: Run) -> list[Result]:
    return [Result.of(entry) for entry in json.loads(run.path("audit", "attacks.json").read_text())["results"]]


def value(run: Run, attack: str, variant: str, metric: str, **group: str) -> float:
    found = [
        m.value
        for r in results(run)
        for m in r.measurements
        if (r.attack, r.variant, m.metric, m.population, m.group) == (attack, variant, metric, "sensitive", group)
    ]
    assert len(found) == 1
    assert found[0] is not None
    return found[0]


def test_every_variant_is_made(runs: Runs) -> None:
    """No drift: an audited model has no model before it."""
    expected = [("prompts", v) for v in VARIANTS] + [("statement", "agree"), ("lens", "each layer")]
    expected += [("probe", v) for v in probe.VARIANTS]
    expected += [("quantise", v) for v in ("nothing", "int8", "int4")] + [("relearn", v) for v in RELEARNT]
    assert [(r.attack, r.variant) for r in results(runs(1))] == expected


@pytest.mark.parametrize("workers", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_all_world_sizes_measure_the_same(runs: Runs, workers: int) -> None:
    alone, several = results(runs(1)), results(runs(workers))
    assert len(several) == len(alone)
    for one, other in zip(alone, several, strict=True):
        assert (one.attack, one.variant) == (other.attack, other.variant)
        for m, n in zip(one.measurements, other.measurements, strict=True):
            assert (m.metric, m.population, m.group, m.n) == (n.metric, n.population, n.group, n.n)
            for key in ("value", "low", "high"):
                expected = getattr(m, key)
                assert getattr(n, key) == (None if expected is None else pytest.approx(expected, rel=2e-3, abs=0)), m


def test_relearning_tells_the_worst_point_and_the_curve(runs: Runs) -> None:
    """Of two rates and two numbers of steps; with the control under the same attack."""
    (found,) = [r.measurements for r in results(runs(1)) if (r.attack, r.variant) == ("relearn", "documents")]
    points = [f"all weights, rate {rate}, {steps} steps" for rate in ("0.0001", "0.001") for steps in (1, 2)]
    curve = {(m.group["point"], m.population): m for m in found if "point" in m.group}
    assert list(curve) == [(point, population) for point in points for population in ("sensitive", "control")]
    assert {m.metric for m in curve.values()} == {"leak@100"}
    above = {point: curve[point, "sensitive"].value - curve[point, "control"].value for point in points}  # type: ignore[operator] # fmt: skip
    worst = max(above, key=lambda point: above[point])
    for population in ("sensitive", "control"):
        (whole,) = [m for m in found if (m.metric, m.population, m.group) == ("leak@100", population, {})]
        assert replace(whole, reason=None, group={"point": worst}) == curve[worst, population]
        assert whole.reason == f"worst of 4 points: {worst}"
    assert len({m.value for m in curve.values()}) == len(curve)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_an_attacker_may_train_a_lora_alone(
    make_config: Callable[..., Config], llama_folder: Path, gpt2_folder: Path, tmp_path: Path, architecture: str
) -> None:
    """At a rate of next to nothing it is the model, since a fresh LoRA adds nothing; at a high one it learns."""
    folder = {"llama": llama_folder, "gpt2": gpt2_folder}[architecture]
    config = make_config(
        model={"path": str(folder), "dtype": "float32"}, erase={"layers": 0}, audit={"metrics": ["extraction"]}
    )
    update = {
        "attacks": ("relearn",), "relearn_on": ("documents",), "relearn_rates": (1e-12, 1e-2), "relearn_steps": (3,),
        "relearn_ways": ("lora",),
    }  # fmt: skip
    config = config.model_copy(update={"attack": config.attack.model_copy(update=update)})
    run = sani_dist.sanitize(config, tmp_path / "run", stages=api.ATTACK_STAGES)
    nothing = value(run, "relearn", "nothing", "leak@100")
    still, learnt = (
        value(run, "relearn", "documents", "leak@100", point=f"LoRA, rate {rate}, 3 steps")
        for rate in ("1e-12", "0.01")
    )
    assert still == pytest.approx(nothing, rel=1e-4)
    assert learnt > 1.5 * nothing


def test_the_lens_reads_each_layer_as_if_it_were_the_last(runs: Runs, llama_folder: Path) -> None:
    """By plain transformers, one document at a time; the last layer is the model itself."""
    whole = next(m["value"] for m in api.measurements(runs(2), "before") if m["metric"] == "samples_to_leak")
    layers = [value(runs(2), "lens", "each layer", "samples_to_leak", layer=str(layer)) for layer in range(3)]
    assert layers[2] == pytest.approx(whole, rel=1e-5)
    model = plain.load(llama_folder)
    rows = PackedRows(runs(2).path("tokens", "epoch-000", "repair.arrow"))
    for layer in (0, 1):
        logprobs = np.full((len(rows), rows.row_length), np.nan)
        for row in range(len(rows)):
            for where, ids, _ in plain.documents_of(rows, row):
                with torch.no_grad():
                    states = model(input_ids=ids[None], output_hidden_states=True).hidden_states[layer + 1][0, :-1]
                    found = model.lm_head(model.model.norm(states)).log_softmax(-1).gather(1, ids[1:, None])
                logprobs[row, where][1:] = found[:, 0].numpy()
        spans = Corpus(runs(2).path("corpus"), runs(2).path("tokens", "epoch-000")).spans()
        spans = spans[(spans["split"] == "repair") & ~spans["in_context"]]
        needed = [
            np.exp(-logprobs[row, first:end].sum())
            for row, first, end in zip(spans["row"], spans["first"], spans["end"], strict=True)
        ]
        assert layers[layer] == pytest.approx(float(np.median(needed)), rel=1e-3)


def test_probes_read_a_number_in_every_layer_and_statements_are_compared(runs: Runs) -> None:
    """Nobody trained this model, so what the columns say is not asked for here; the readers are tested on made states."""
    for attack, variant, groups in (("statement", "agree", [{}]), ("probe", "whole value", [{"layer": str(i)} for i in range(3)])):  # fmt: skip # noqa: E501
        found = next(r for r in results(runs(2)) if (r.attack, r.variant) == (attack, variant)).measurements
        assert [m.group for m in found if m.population == "sensitive"] == groups
        assert all(m.value is not None and 0 <= m.value <= 1 and m.n > 5 for m in found if m.population == "sensitive")
    first, whole = (value(runs(2), "probe", v, "preference", layer="2") for v in probe.VARIANTS)
    assert first != whole


def test_an_attack_changes_what_it_says_it_changes(runs: Runs) -> None:
    """Rounding to 8 bits moves less than rounding to 4; training on the documents teaches their format and some of their words."""
    whole, eight, four = (value(runs(2), "quantise", v, "samples_to_leak") for v in ("nothing", "int8", "int4"))
    assert 0 < abs(eight / whole - 1) < abs(four / whole - 1)
    before, after = (value(runs(2), "relearn", v, "samples_to_leak") for v in ("nothing", "documents"))
    assert after != before
    true, foreign = (value(runs(2), "prompts", v, "leak@100") for v in ("nothing", "foreign"))
    assert foreign / true != pytest.approx(1, rel=1e-3)


def squared_gradients(folder: Path, rows: PackedRows) -> np.ndarray:
    """Of log p(document), summed over documents and the matrices of each layer; by plain autograd, one document at a time."""
    model = plain.load(folder)
    found = np.zeros(len(model.model.layers))
    for row in range(min(len(rows), fisher.ROWS)):
        for _, ids, role in plain.documents_of(rows, row):
            logprob = model(input_ids=ids[None]).logits[0, :-1].log_softmax(-1).gather(1, ids[1:, None])[:, 0]
            model.zero_grad()
            logprob[torch.from_numpy(role[1:] > 0)].sum().backward()
            for layer, block in enumerate(model.model.layers):
                found[layer] += sum(float((p.grad**2).sum()) for p in block.parameters() if p.dim() == 2)
    return found


def test_a_finished_run_is_attacked_and_reported(finished_run: Run, tmp_path: Path) -> None:
    """The exported model; what an earlier start left is not made again, and the report is written anew."""
    folder = Path(shutil.copytree(finished_run.folder, tmp_path / "run"))
    changes: dict[str, Any] = {"attack": {"attacks": ["quantise", "drift"], "drift_tokens": 30}}
    run = api.attack(folder, changes=changes)
    assert run.pending() == []
    found = results(run)
    assert [(r.attack, r.variant) for r in found] == [
        ("quantise", "nothing"), ("quantise", "int8"), ("quantise", "int4"), ("drift", "each layer")
    ]  # fmt: skip
    after = next(m for m in api.measurements(run, "after") if m["metric"] == "leak@100" and not m["group"])
    assert value(run, "quantise", "nothing", "leak@100") == pytest.approx(after["value"], rel=1e-5)
    moved = {m.group["layer"]: m.value for m in found[-1].measurements if (m.metric, m.population) == ("cka", "repair")}
    assert list(moved) == ["0", "1", "2"]
    assert all(v is not None and v < 1 for v in moved.values())
    whole = {m.population: m.value for m in found[-1].measurements if (m.metric, m.group) == ("pca_distance", {})}
    assert list(whole) == ["repair", "general_test"]
    assert all(v is not None and v > 0 for v in whole.values())
    rows = PackedRows(run.path("tokens", "epoch-000", "repair.arrow"))
    before, after = (squared_gradients(folder, rows) for folder in (run.config.model.path, run.path("model")))
    fishers = [m.value for m in found[-1].measurements if (m.metric, m.population) == ("fisher_ratio", "repair")]
    assert fishers == pytest.approx(list(after / before), rel=0.1), "the run computes in bfloat16"
    document = json.loads((folder / "report" / "report.json").read_text())
    assert len(document["attacks"]) == 4
    jsonschema.validate(document, json.loads(resources.files("sani_dist.report").joinpath("schema.json").read_text()))
    tried = {line["attack"] for line in document["coverage"] if line["tested"]}
    assert "Quantisation" in tried
    assert "Fine-tuning by an attacker" not in tried
    page = (folder / "report" / "index.html").read_text()
    assert all(
        words in page
        for words in ("Attacks with the weights", "8 bits, a scale for each channel", "Representation drift")
    )
    output = CliRunner().invoke(cli.app, ["attack", str(folder)]).output
    assert "quantise: int4" in output
    assert "This forgetting is" not in output, "an untrained model has nothing to forget"
    written = run.path("audit", "attacks.json")
    # As if it had been stopped between two widths: what was made, here without figures, is not made again.
    kept = json.loads(written.read_text())
    kept["results"] = [{**kept["results"][i], "measurements": []} for i in (3, 0)]
    kept["under_way"] = ["attacked", "quantise"]
    written.write_text(json.dumps(kept))
    api.attack(folder)
    assert [(r.variant, len(r.measurements) > 0) for r in results(run)] == [
        ("each layer", False), ("nothing", False), ("int8", True), ("int4", True)
    ]  # fmt: skip
    assert json.loads(written.read_text())["under_way"] is None


def test_text_that_only_the_attacker_has(runs: Runs, tmp_path: Path) -> None:
    """Every token of it is learnt, and who purges the run purges it."""
    path = runs(2).path("tokens", "related.arrow")
    batch = (rows := PackedRows(path)).batch(range(len(rows)))
    assert len(batch.document.unique()) == 9 + 1, "and padding"
    assert rows.sensitive.sum() == 0
    assert rows.learnable.sum() == (batch.document >= 0).sum() - 9
    folder = Path(shutil.copytree(runs(2).folder, tmp_path / "run"))
    run, given = Run.open(folder), Path(str(runs(2).config.attack.related))
    before, text = run.inputs_sha256("attack"), given.read_text()
    prepare_attack(run)
    assert run.is_done("attack"), "the same text again"
    try:
        given.write_text(text + text)
        prepare_attack(run)
        assert not run.is_done("attack"), "another text under the same name"
        assert run.inputs_sha256("attack") != before
    finally:
        given.write_text(text)
    for broken, message in (("nowhere.jsonl", "does not exist"), (str(path), "unknown kind of file")):
        with pytest.raises(sani_dist.InputError, match=message):
            api.attack(folder, changes={"attack": {"related": broken}})


@pytest.mark.slow
def test_without_held_out_documents_the_control_is_trained_on_and_is_no_control_then(
    make_config: Callable[..., Config], tmp_path: Path
) -> None:
    config = make_config(
        corpus={"heldout": None}, erase={"layers": 0}, audit={"metrics": ["extraction"]}, cluster={"workers": 1, "threads": 1}
    )  # fmt: skip
    attack = config.attack.model_copy(
        update={
            "attacks": ("relearn",),
            "relearn_on": ("documents", "format"),
            "relearn_rates": (1e-4,),
            "relearn_steps": (1,),
        }
    )
    run = sani_dist.sanitize(config.model_copy(update={"attack": attack}), tmp_path / "run", stages=api.ATTACK_STAGES)
    there = {
        r.variant: [m.value is not None for m in r.measurements if (m.metric, m.population) == ("greedy", "control")]
        for r in results(run)
    }
    assert there == {"nothing": [True], "documents": [True], "format": [False]}


def test_a_run_without_its_text_cannot_be_attacked(finished_run: Run, tmp_path: Path) -> None:
    run = Run.open(Path(shutil.copytree(finished_run.folder, tmp_path / "run")))
    purge(run.folder)
    with pytest.raises(sani_dist.InputError, match="was purged: its text is needed"):
        api.attack(run.folder)
