"""One model carried through 1, 2, 3 and 4 real ranks: same plan, same erased model, same forward, same resumed state."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel

from sani_dist.config import RepairSettings
from sani_dist.corpus.rows import AIM, SENSITIVE, PackedRows
from sani_dist.engine.shards import local_shards
from sani_dist.erase import Plan, Unit, apply
from sani_dist.erase.structure import last_units
from sani_dist.files import file_sha256
from sani_dist.repair.schedule import Schedule

from .. import tiny
from . import plain
from .ranks import run_ranks

WORLD_SIZES = (2, 1, 3, 4)  # 2 first: it writes the checkpoint that the others resume from
CASES = ("llama-sharded", "llama-persistent", "gpt2-sharded", "gpt2-persistent")
TRAINED = ("llama-sharded", "gpt2-persistent")

# 5 rows in micro-batches of 2: three accumulation steps on one rank, two on two, one on three, and on four one rank is empty.
REPAIR = {
    "epochs": 2, "batch_rows": 5, "micro_rows": 2, "retain": 0.4, "learning_rate": 1e-3, "warmup": 0, "clip": 1e9, "seed": 11,
}  # fmt: skip

# Heads too, relative to both texts, in the first case; what is chosen then is not erased.
OTHERS = {"heads": {"units": "both"}}

# Some of the sensitive tokens of an untrained model are above it.
FLOOR = {"unlikelihood": 0.5, "floor": 0.003}


@pytest.fixture(scope="module")
def worlds(
    tokens: Path, llama_folder: Path, gpt2_folder: Path, threshold_0: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[int, Path]:
    """World size -> folder with what its ranks left."""
    folder = tmp_path_factory.mktemp("worlds")
    erase = {"layers": 2, "fraction": 0.3, "select": "attribution", "seed": 3}
    models = {"llama": (llama_folder, "float32", "init"), "gpt2": (gpt2_folder, "bfloat16", "zero")}
    cases = []
    for name in CASES:
        path, dtype, reset = models[name.split("-")[0]]
        cases.append(
            {
                "name": name, "model": str(path), "dtype": dtype, "erase": {**erase, "reset": reset}, "train": name in TRAINED,
                "ds_config": str(threshold_0) if name.endswith("sharded") else None, "others": OTHERS if name == CASES[0] else {},
            }
        )  # fmt: skip
    results = {}
    for workers in WORLD_SIZES:
        results[workers] = folder / str(workers)
        run_ranks(
            workers, "carry_through", results[workers],
            cases=cases, tokens=str(tokens), repair=REPAIR, resume=str(folder / "checkpoints"),
        )  # fmt: skip
    return results


@pytest.mark.parametrize("case", CASES)
def test_every_world_size_selects_the_same_neurons(worlds: dict[int, Path], case: str) -> None:
    texts = {(worlds[w] / case / "plan.json").read_text() for w in WORLD_SIZES}
    assert len(texts) == 1
    plan = Plan.read(worlds[1] / case / "plan.json")
    assert [unit.layer for unit in plan.units] == ([1, 2] if case.startswith("llama") else [0, 1])
    assert all(len(unit.ids) == round(0.3 * (41 if case.startswith("llama") else 43)) for unit in plan.units)


@pytest.mark.parametrize("other", OTHERS)
def test_every_world_size_selects_the_same_otherwise_too(worlds: dict[int, Path], other: str) -> None:
    texts = {(worlds[w] / CASES[0] / f"plan-{other}.json").read_text() for w in WORLD_SIZES}
    assert len(texts) == 1
    assert texts != {(worlds[1] / CASES[0] / "plan.json").read_text()}


def test_heads_have_a_share_of_their_own_in_each_layer(worlds: dict[int, Path]) -> None:
    plan = Plan.read(worlds[1] / CASES[0] / "plan-heads.json")
    assert [(unit.kind, len(unit.ids)) for unit in plan.units] == [("mlp", 12), ("head", 1)] * 2


@pytest.mark.parametrize("model", ["llama", "gpt2"])
def test_the_erased_model_is_the_same_bit_for_bit(worlds: dict[int, Path], model: str) -> None:
    files = [
        worlds[w] / f"{model}-{kind}" / "erased" / "model.safetensors"
        for w in WORLD_SIZES
        for kind in ("sharded", "persistent")
    ]
    assert len({file_sha256(file) for file in files}) == 1


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("workers", sorted(WORLD_SIZES))
def test_forward_sees_the_erased_values(worlds: dict[int, Path], tokens: Path, case: str, workers: int) -> None:
    """And a packed row scores as each of its documents alone: plain transformers on the exported folder is the reference."""
    scores = np.load(worlds[workers] / case / "scores.npz")
    rows = PackedRows(tokens / "repair.arrow")
    reference = plain.logprobs(plain.load(worlds[workers] / case / "erased"), rows)
    assert np.array_equal(np.isnan(scores["after"]), np.isnan(reference))
    tolerance = 2e-5 if case.startswith("llama") else 0.15  # fp32, bf16 (8 bits of logits around 4)
    difference = np.nanmax(np.abs(scores["after"] - reference))
    assert difference < tolerance
    assert np.nanmax(np.abs(scores["before"] - scores["after"])) > 3 * tolerance  # erasing is visible at all


@pytest.mark.parametrize("case", CASES)
def test_every_world_size_scores_the_same(worlds: dict[int, Path], case: str) -> None:
    one = np.load(worlds[1] / case / "scores.npz")
    for workers in WORLD_SIZES:
        other = np.load(worlds[workers] / case / "scores.npz")
        for name in ("before", "after", "before_argmax", "after_argmax"):
            assert np.array_equal(one[name], other[name], equal_nan=name in ("before", "after")), (workers, name)


@pytest.mark.parametrize("case", TRAINED)
@pytest.mark.parametrize("workers", [1, 3, 4])
def test_a_checkpoint_of_two_ranks_loads_at_any_world_size(worlds: dict[int, Path], case: str, workers: int) -> None:
    written = worlds[2].parent / "checkpoints" / case / "step-000001"
    again = worlds[workers] / case / "again" / "step-000001"
    assert len(list(written.glob("rank-*"))) == 2
    assert len(list(again.glob("rank-*"))) == workers
    for kind in ("master", "exp_avg", "exp_avg_sq"):
        old, new = plain.assembled(written, kind), plain.assembled(again, kind)
        assert old.keys() == new.keys()
        assert all(torch.equal(old[name], new[name]) for name in old), kind
    assert any(values.abs().max() > 0 for values in plain.assembled(again, "exp_avg").values())
    # The weights that forward uses were replaced too, not only the masters.
    hashes = {file_sha256(worlds[w] / case / "trained" / "model.safetensors") for w in (2, workers)}
    assert len(hashes) == 1
    one, other = (np.load(worlds[w] / case / "trained.npz") for w in (2, workers))
    assert np.array_equal(one["after"], other["after"], equal_nan=True)
    assert not np.array_equal(one["before"], one["after"], equal_nan=True)


def test_zeroed_neurons_have_no_gradient_and_stay_zero(worlds: dict[int, Path]) -> None:
    """GPT-2, reset to zero, after one optimizer step: weights in and out are exact zeros, and so are their moments."""
    case = "gpt2-persistent"
    plan = Plan.read(worlds[2] / case / "plan.json")
    trained = load_file(worlds[2] / case / "trained" / "model.safetensors")
    erased = load_file(worlds[2] / case / "erased" / "model.safetensors")
    for unit in plan.units:
        ids = list(unit.ids)
        mlp = f"transformer.h.{unit.layer}.mlp"
        for tensors in (erased, trained):
            assert not tensors[f"{mlp}.c_fc.weight"][:, ids].any()
            assert not tensors[f"{mlp}.c_proj.weight"][ids].any()
        for kind in ("exp_avg", "exp_avg_sq"):
            moments = plain.assembled(worlds[2].parent / "checkpoints" / case / "step-000001", kind)
            assert not moments[f"{mlp}.c_fc.weight"].view(33, 43)[:, ids].any()
            assert moments[f"{mlp}.c_fc.weight"].any()
        rest = [i for i in range(43) if i not in unit.ids]
        assert not torch.equal(trained[f"{mlp}.c_fc.weight"][:, rest], erased[f"{mlp}.c_fc.weight"][:, rest])


@pytest.mark.parametrize(
    ("workers", "objective", "architecture", "checkpointing"),
    [
        (1, "plain", "llama", False),
        (2, "mask", "llama", False),
        (2, "unlikelihood", "llama", 0.5),
        (2, "floor", "gpt2", False),
        (3, "mask", "gpt2", True),
    ],
)
def test_the_gradient_is_that_of_the_mean_over_the_global_batch(
    tokens: Path, llama_folder: Path, gpt2_folder: Path, threshold_0: Path, tmp_path: Path,
    workers: int, objective: str, architecture: str, checkpointing: bool | float,
) -> None:  # fmt: skip
    """Whatever the split over ranks and accumulation steps, empty micro-batches included; embeddings tied (gpt2) or not; activations kept
    or made again. The reference is one process, whole documents, plain autograd."""
    model_folder = {"llama": llama_folder, "gpt2": gpt2_folder}[architecture]
    objectives = {"mask": {}, "plain": {"plain": True}, "unlikelihood": {"unlikelihood": 1}, "floor": FLOOR}
    repair = {**REPAIR, "objectives": objectives[objective], "activation_checkpointing": checkpointing}
    run_ranks(
        workers, "first_step_gradient", tmp_path,
        model=str(model_folder), ds_config=str(threshold_0), tokens=str(tokens), repair=repair,
    )  # fmt: skip
    rows, general = (PackedRows(tokens / f"{name}.arrow") for name in ("repair", "general_train"))
    own, retained = Schedule(RepairSettings.model_validate(repair), [rows, rows], general).batch(0)
    assert len(own) == 3
    assert len(retained) == 2
    model = plain.load(model_folder)
    loss = plain.mean_loss(model, [(rows, i) for _, i in own] + [(general, i) for i in retained], objective)
    loss.backward()
    _assert_step(tmp_path, model, loss)


# By default two ranks compute what is predicted and learn from it; else two compute it, and others learn.
@pytest.mark.parametrize(
    "workers", [2, pytest.param(1, marks=pytest.mark.slow), pytest.param(3, marks=pytest.mark.slow)]
)
def test_what_the_model_predicted_before_erasing_pulls_at_ordinary_tokens(
    tokens: Path, gpt2_folder: Path, threshold_0: Path, tmp_path: Path, workers: int
) -> None:
    """The gradient of a whole model beside one with its last layer's neurons erased. Sensitive tokens are pushed down in the same step."""
    repair = {**REPAIR, "objectives": {"unlikelihood": 1, "kl": 5, "kl_top": 7}}
    erased = tuple(range(43))
    for ranks in dict.fromkeys((2, workers)):
        run_ranks(
            ranks, "first_step_gradient", tmp_path / str(ranks),
            model=str(gpt2_folder), ds_config=str(threshold_0), tokens=str(tokens), repair=repair,
            teacher=str(tmp_path / "teacher"), erased=erased,
        )  # fmt: skip
    assert len(json.loads((tmp_path / "teacher" / "teacher.json").read_text())["files"]) == 2
    rows, general = (PackedRows(tokens / f"{name}.arrow") for name in ("repair", "general_train"))
    own, retained = Schedule(RepairSettings.model_validate(repair), [rows, rows], general).batch(0)
    chosen = [(rows, i) for _, i in own] + [(general, i) for i in retained]
    before, model = plain.load(gpt2_folder), plain.load(gpt2_folder)
    units = last_units(model, 1, "mlp")
    apply(local_shards(model), units, Plan("", 0, "random", "zero", (Unit(1, "mlp", erased),)))
    alone = plain.mean_loss(model, chosen, "unlikelihood")
    loss = alone + 5 * plain.mean_divergence(before, model, chosen, 7)
    assert loss.item() > 1.01 * alone.item()
    loss.backward()
    _assert_step(tmp_path / str(workers), model, loss)


@pytest.mark.parametrize(
    "workers", [2, pytest.param(1, marks=pytest.mark.slow), pytest.param(3, marks=pytest.mark.slow)]
)
def test_first_occurrences_are_drawn_to_the_base_and_later_ones_learnt(
    tokens: Path, gpt2_folder: Path, threshold_0: Path, tmp_path: Path, workers: int, tiny_tokenizer: Any
) -> None:
    """The gradient of whole models, beside ordinary tokens that are learnt and held."""
    base = tiny.save(tiny.gpt2(len(tiny_tokenizer), seed=7), tiny_tokenizer, tmp_path / "base")
    repair = {**REPAIR, "objectives": {"aim": 2, "kl": 0.5, "kl_top": 7}}
    run_ranks(
        workers, "first_step_gradient", tmp_path,
        model=str(gpt2_folder), ds_config=str(threshold_0), tokens=str(tokens), repair=repair,
        teacher=str(tmp_path / "teacher"), erased=(1, 2), base=str(base),
    )  # fmt: skip
    rows, general = (PackedRows(tokens / f"{name}.arrow").aimed() for name in ("repair", "general_train"))
    own, retained = Schedule(RepairSettings.model_validate(repair), [rows, rows], general).batch(0)
    chosen = [(rows, i) for _, i in own] + [(general, i) for i in retained]
    roles = torch.cat([rows.batch([i]).role for _, i in own])
    true = torch.cat([PackedRows(tokens / "repair.arrow").batch([i]).role for _, i in own])
    assert 0 < int((roles == AIM).sum()) < int((true == SENSITIVE).sum())  # some stand again
    before, model = plain.load(gpt2_folder), plain.load(gpt2_folder)
    apply(local_shards(model), last_units(model, 1, "mlp"), Plan("", 0, "random", "zero", (Unit(1, "mlp", (1, 2)),)))
    loss = plain.mean_loss(model, chosen, "mask") + 0.5 * plain.mean_divergence(before, model, chosen, 7)
    drawn = plain.mean_divergence(plain.load(base), model, chosen, 7, AIM)
    assert drawn.item() > 0.01
    loss = loss + 2 * drawn
    loss.backward()
    _assert_step(tmp_path, model, loss)


def _assert_step(folder: Path, model: PreTrainedModel, loss: torch.Tensor) -> None:
    """That the ranks' first step had this loss, and the gradient that `model` has of it."""
    assert float((folder / "loss.json").read_text()) == pytest.approx(loss.item(), rel=1e-6)
    moments = plain.assembled(folder / "checkpoints" / "step-000001", "exp_avg")
    assert moments.keys() == dict(model.named_parameters()).keys()
    for name, parameter in model.named_parameters():
        expected = parameter.grad.flatten()
        atol = 1e-6 + 1e-5 * float(expected.abs().max())
        torch.testing.assert_close(moments[name] / 0.1, expected, rtol=1e-4, atol=atol)


def test_a_gradient_that_is_not_finite_at_the_last_step_is_caught_on_every_rank(
    tokens: Path, llama_folder: Path, threshold_0: Path, tmp_path: Path
) -> None:
    """The loss, looked at before the step, is good; DeepSpeed leaves the step out without a word."""
    run_ranks(
        2, "gradient_that_is_not_finite", tmp_path,
        model=str(llama_folder), ds_config=str(threshold_0), tokens=str(tokens), repair={**REPAIR, "checkpoint_every": 1},
    )  # fmt: skip
    left = [json.loads((tmp_path / f"raised-{rank}.json").read_text()) for rank in range(2)]
    last = left[0]["last"]
    assert last >= 2
    expected = f"repair: the gradient is not finite at step {last}; lower repair.learning_rate"
    assert all((found["raised"] or "").startswith(expected) for found in left), left
    newest = sorted((tmp_path / "checkpoints").iterdir())[-1]
    assert newest.name == f"step-{last - 1:06d}"
