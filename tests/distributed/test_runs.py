"""Whole runs on real ranks: what is exported, and that no way of stopping a run changes the weights it ends with."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import sani_dist
from sani_dist import Config, InputError, RunError
from sani_dist.corpus.rows import LEARN, PackedRows
from sani_dist.erase import Plan
from sani_dist.files import file_sha256
from sani_dist.run import STAGES, Run

from .. import tiny
from ..watching import at_step, ranks_of, terminate_self
from . import plain

STEPS = 21  # of the run that `make_config` describes; test_finishes_every_stage says when this is no longer so


def model_hash(run: Run) -> str:
    return file_sha256(run.path("model", "model.safetensors"))


# The finished run


def test_finishes_every_stage(finished_run: Run) -> None:
    assert finished_run.pending() == []
    assert all(finished_run.is_done(stage) for stage in STAGES)
    document = json.loads(finished_run.path("run.json").read_text())
    assert document["status"] == "done"
    events = [json.loads(line) for line in finished_run.path("metrics.jsonl").read_text().splitlines()]
    steps = [event for event in events if event["stage"] == "repair"]
    assert [event["done"] for event in steps] == list(range(1, STEPS + 1))
    assert steps[-1]["loss"] < steps[0]["loss"] - 1


def test_exports_the_trained_masters_bit_for_bit(finished_run: Run) -> None:
    exported = load_file(finished_run.path("model", "model.safetensors"))
    newest = sorted(finished_run.path("repair", "checkpoints").iterdir())[-1]
    assert newest.name == f"step-{STEPS:06d}"
    masters = plain.assembled(newest, "master")
    assert exported.keys() == masters.keys()
    for name, tensor in exported.items():
        assert tensor.dtype == torch.bfloat16
        assert torch.equal(tensor.flatten(), masters[name].to(torch.bfloat16)), name


def test_what_was_erased_to_zero_is_zero_in_the_exported_model(finished_run: Run) -> None:
    exported = load_file(finished_run.path("model", "model.safetensors"))
    plan = Plan.read(finished_run.path("erase", "plan.json"))
    assert len(plan.units) == 2
    for unit in plan.units:
        ids, mlp = list(unit.ids), f"model.layers.{unit.layer}.mlp"
        assert not exported[f"{mlp}.gate_proj.weight"][ids].any()
        assert not exported[f"{mlp}.up_proj.weight"][ids].any()
        assert not exported[f"{mlp}.down_proj.weight"][:, ids].any()
        assert int((exported[f"{mlp}.up_proj.weight"] == 0).all(dim=1).sum()) == len(ids)


def test_the_model_loads_where_sani_dist_is_never_imported(finished_run: Run, tmp_path: Path) -> None:
    """And scores the held-out text as the audit of the run says."""
    rows = PackedRows(finished_run.path("tokens", "epoch-000", "heldout.arrow"))
    documents = [
        (ids.tolist(), role.tolist()) for row in range(len(rows)) for _, ids, role in plain.documents_of(rows, row)
    ]
    (tmp_path / "documents.json").write_text(json.dumps(documents))
    script = f"""
import json, math, sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained({str(finished_run.path("model"))!r})
assert model.dtype == torch.bfloat16, model.dtype
assert AutoTokenizer.from_pretrained({str(finished_run.path("model"))!r}).eos_token == "<|end|>"
losses = []
for ids, role in json.load(open({str(tmp_path / "documents.json")!r})):
    with torch.no_grad():
        logp = model(torch.tensor([ids])).logits[0, :-1].float().log_softmax(-1)
    losses += [-logp[i, t].item() for i, (t, r) in enumerate(zip(ids[1:], role[1:])) if r == {LEARN}]
assert not any(name.split(".")[0] in ("sani_dist", "deepspeed") for name in sys.modules)
print(math.exp(sum(losses) / len(losses)))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    audit = json.loads(finished_run.path("audit", "after.json").read_text())["measurements"]
    measured = {m["population"]: m["value"] for m in audit if m["metric"] == "perplexity"}
    assert float(done.stdout.split()[-1]) == pytest.approx(measured["heldout"], rel=0.01)


def test_nothing_but_model_tokenizer_and_card_is_exported(finished_run: Run) -> None:
    names = {path.name for path in finished_run.path("model").iterdir()}
    expected = {
        "README.md",
        "model.safetensors",
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert names == expected


def test_the_audits_compare_before_and_after(finished_run: Run) -> None:
    audits = {when: sani_dist.api.measurements(finished_run, when) for when in ("before", "after")}
    keys = [[(m["metric"], m["population"], tuple(m["group"].items())) for m in audit] for audit in audits.values()]
    assert keys[0] == keys[1]
    assert len(set(keys[0])) == len(keys[0])
    tokens = json.loads(finished_run.path("corpus", "summary.json").read_text())["tokens"]
    scored = {split: tokens[split]["audited_spans"]["scored"] for split in ("repair", "control")}
    assert scored["repair"] > 30
    for audit in audits.values():
        assert all(m["low"] <= m["value"] <= m["high"] for m in audit if m["value"] is not None)
        # Every span counts once: among all, or apart where its value stands before it in the document.
        spans = {
            split: [
                m["n"]
                for m in audit
                if m["metric"] == "greedy" and m["population"] == population and not m["group"].keys() - {"context"}
            ]
            for split, population in (("repair", "sensitive"), ("control", "control"))
        }
        assert {split: sum(counts) for split, counts in spans.items()} == scored
        assert all(len(counts) == 2 and min(counts) > 0 for counts in spans.values())
    perplexity = {
        when: {m["population"]: m["value"] for m in audit if m["metric"] == "perplexity"}
        for when, audit in audits.items()
    }
    assert perplexity["after"].keys() == {"repair", "heldout", "general_test"}
    assert perplexity["after"]["repair"] < perplexity["before"]["repair"] / 3


# Erase alone


def test_erase_alone_leaves_every_other_byte(
    make_config: Callable[..., Config], llama_folder: Path, tmp_path: Path
) -> None:
    config = make_config(erase={"select": "random", "reset": "init"}, cluster={"workers": 2})
    run = sani_dist.sanitize(config, tmp_path / "run", stages=sani_dist.api.ERASE_STAGES)
    source, exported = (load_file(f / "model.safetensors") for f in (llama_folder, run.path("model")))
    assert source.keys() == exported.keys()
    changed = {name for name in source if not torch.equal(source[name], exported[name])}
    expected = {f"model.layers.{i}.mlp.{p}_proj.weight" for i in (1, 2) for p in ("gate", "up", "down")}
    assert changed == expected
    assert all(exported[name].dtype == source[name].dtype == torch.float32 for name in source)
    plan = Plan.read(run.path("erase", "plan.json"))
    for unit in plan.units:
        rest = [i for i in range(41) if i not in unit.ids]
        name = f"model.layers.{unit.layer}.mlp.up_proj.weight"
        assert torch.equal(source[name][rest], exported[name][rest])
        assert (source[name][list(unit.ids)] != exported[name][list(unit.ids)]).all()
    assert not run.path("repair", "checkpoints").exists()


def test_a_base_that_lacks_the_prefix_and_has_another_vocabulary_gives_its_values(
    make_config: Callable[..., Config], gpt2_folder: Path, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    """As the checkpoint of the GPT-2 that people fine-tune: `h.0.mlp...` for `transformer.h.0.mlp...`."""
    saved = tiny.save(tiny.gpt2(len(tiny_tokenizer) + 3, seed=1), tiny_tokenizer, tmp_path / "saved")
    base = {name.removeprefix("transformer."): t for name, t in load_file(saved / "model.safetensors").items()}
    save_file(base, saved / "model.safetensors", metadata={"format": "pt"})
    model = {"path": str(gpt2_folder), "base": str(saved)}
    config = make_config(model=model, erase={"select": "random", "reset": "base", "layers": 1})
    run = sani_dist.sanitize(config, tmp_path / "run", stages=sani_dist.api.ERASE_STAGES)
    exported = load_file(run.path("model", "model.safetensors"))
    source = {name: t for file in gpt2_folder.glob("*.safetensors") for name, t in load_file(file).items()}
    assert exported.keys() == source.keys()
    (unit,) = Plan.read(run.path("erase", "plan.json")).units
    ids, rest = list(unit.ids), [i for i in range(43) if i not in unit.ids]
    for name, axis in (("c_fc.weight", 1), ("c_fc.bias", 0), ("c_proj.weight", 0)):
        new, old = exported[f"transformer.h.1.mlp.{name}"], source[f"transformer.h.1.mlp.{name}"]
        wanted = base[f"h.1.mlp.{name}"]
        assert torch.equal(new.index_select(axis, torch.tensor(ids)), wanted.index_select(axis, torch.tensor(ids)))
        assert torch.equal(new.index_select(axis, torch.tensor(rest)), old.index_select(axis, torch.tensor(rest)))


# Without a corpus


def test_a_list_of_terms_and_general_text_are_enough(
    make_config: Callable[..., Config], corpus: dict[str, str], tmp_path: Path
) -> None:
    """The paper's second case: no corpus, a term list; repair runs on general text with the terms out of the loss."""
    (tmp_path / "terms.txt").write_text("the market\nlibrary\n")
    terms = {"name": "terms", "path": str(tmp_path / "terms.txt")}
    only_general = {"source": None, "subject": None, "spans": None, "control": None, "heldout": None, "detect": [terms]}
    config = make_config(corpus=only_general, repair={"epochs": 1, "retain": 0.0}, model={"dtype": "float32"})
    run = sani_dist.sanitize(config, tmp_path / "run")
    audit = sani_dist.api.measurements(run, "after")
    greedy = {m["population"]: m for m in audit if m["metric"] == "greedy" and not m["group"]}
    assert greedy["sensitive"]["n"] > 0
    assert greedy["control"]["value"] is None
    assert greedy["control"]["reason"]
    rows = PackedRows(run.path("tokens", "epoch-000", "repair.arrow"))
    assert rows.sensitive.sum() > 0
    reference = plain.logprobs(plain.load(run.path("model")), rows)
    batch = rows.batch(range(len(rows)))
    learnt = np.exp(-np.mean(reference[(batch.role.numpy() == LEARN) & ~np.isnan(reference)]))
    measured = {m["population"]: m["value"] for m in audit if m["metric"] == "perplexity"}
    assert measured["repair"] == pytest.approx(learnt, rel=1e-5)


# Stopping and going on


DRAW = random.Random(20250731)
KILLED_AT, TERMINATED_AT, VICTIM = DRAW.randint(5, 9), DRAW.randint(13, 17), DRAW.randint(0, 1)


@pytest.fixture
def killed_run(make_config: Callable[..., Config], tmp_path: Path) -> Run:
    """kill -9 of a rank at a random step of repair."""
    folder = tmp_path / "run"

    def kill() -> None:
        ranks_of(folder)[VICTIM].kill()

    with pytest.raises(RunError, match=r"rank \d was killed by signal 9.*resume"):
        sani_dist.sanitize(make_config(), folder, on_event=at_step(KILLED_AT, kill))
    assert ranks_of(folder) == []
    run = Run.open(folder)
    assert run.pending() == ["repair", "audit-after", "export", "report"]
    assert json.loads(run.path("run.json").read_text())["status"] == "failed"
    return run


def assert_went_on_from_a_checkpoint(run: Run, steps: list[int]) -> None:
    """steps: of repair that were reported after it was killed."""
    assert steps[0] <= KILLED_AT + 4  # at most `checkpoint_every` steps back
    assert steps[0] > 1  # and not from the start
    newest = sorted(run.path("repair", "checkpoints").iterdir())[-1]
    assert newest.name == f"step-{steps[-1]:06d}"


def assert_ended_as(finished_run: Run, run: Run) -> None:
    assert model_hash(run) == model_hash(finished_run)
    for when in ("before", "after"):
        assert sani_dist.api.measurements(run, when) == sani_dist.api.measurements(finished_run, when)


def test_a_killed_run_ends_with_the_same_weights(finished_run: Run, killed_run: Run) -> None:
    steps: list[int] = []
    run = sani_dist.resume(
        killed_run.folder, on_event=lambda e: steps.append(e["done"]) if e["stage"] == "repair" else None
    )
    assert run.pending() == []
    assert_went_on_from_a_checkpoint(run, steps)
    assert_ended_as(finished_run, run)


@pytest.mark.slow
def test_a_killed_and_terminated_run_ends_with_the_same_weights(finished_run: Run, killed_run: Run) -> None:
    """SIGTERM to the launcher while it goes on; then resumed to the end."""
    steps: list[int] = []
    terminate = at_step(TERMINATED_AT, terminate_self)

    def on_event(event: dict[str, Any]) -> None:
        steps.append(event["done"]) if event["stage"] == "repair" else None
        terminate(event)

    with pytest.raises(RunError, match=r"stopped by a signal after a checkpoint.*resume"):
        sani_dist.resume(killed_run.folder, on_event=on_event)
    assert steps[-1] < STEPS
    assert_went_on_from_a_checkpoint(killed_run, steps)
    assert sani_dist.resume(killed_run.folder).pending() == []
    assert_ended_as(finished_run, killed_run)


@pytest.mark.slow
def test_a_signal_before_repair_ends_a_run_at_once(make_config: Callable[..., Config], tmp_path: Path) -> None:
    """There is nothing to keep yet, and a cluster that takes its machine back does not wait for long."""
    terminate = at_step(0, terminate_self, "audit-before")
    with pytest.raises(RunError, match=r"stopped by a signal: `sani-dist resume .*` begins the stage again"):
        sani_dist.sanitize(make_config(), tmp_path / "run", on_event=terminate)
    run = Run.open(tmp_path / "run")
    assert run.pending()[0] in ("audit-before", "erase")
    assert not run.path("repair", "checkpoints").exists()
    for log in run.path("logs").glob("rank-*.log"):
        assert "Traceback" not in log.read_text()


@pytest.mark.slow
def test_a_full_disk_costs_no_checkpoint_and_no_model(
    finished_run: Run, make_config: Callable[..., Config], small_disk: Path
) -> None:
    """The disk fills up during repair, and once more before export; with space again, the run ends as if nothing had been."""
    folder, ballast = small_disk / "run", small_disk / "ballast"

    def fill() -> None:
        with ballast.open("wb", buffering=0) as stream:
            for size in (2**16, 2**10):
                try:
                    while True:
                        stream.write(b"\0" * size)
                except OSError:
                    pass
        # metrics.jsonl, the logs and the audit must still grow by a few lines, or the run fails earlier, at one of these.
        os.truncate(ballast, ballast.stat().st_size - 2**16)

    with pytest.raises(RunError, match=r"checkpoint of step 8 not written.*free disk space.*resume") as stopped:
        sani_dist.sanitize(make_config(), folder, on_event=at_step(5, fill))
    assert "\n" not in str(stopped.value)
    checkpoints = Run.open(folder).path("repair", "checkpoints")
    assert sorted(p.name for p in checkpoints.iterdir()) == ["step-000004"]
    ballast.unlink()

    def fill_before_export(event: dict[str, Any]) -> None:
        if event["stage"] == "audit-after" and not ballast.exists():
            fill()

    with pytest.raises(RunError, match=r"model was not written.*free disk space.*resume"):
        sani_dist.resume(folder, on_event=fill_before_export)
    run = Run.open(folder)
    assert not run.path("model").exists()
    assert not run.path(".tmp-model").exists()
    ballast.unlink()

    sani_dist.resume(folder)
    assert model_hash(run) == model_hash(finished_run)


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_the_run(make_config: Callable[..., Config], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    config = make_config(erase={"layers": 0}, repair={"learning_rate": 1e30, "checkpoint_every": 1})
    with pytest.raises(RunError, match=r"loss is not finite at step \d+; lower repair.learning_rate") as stopped:
        sani_dist.sanitize(config, folder, stages=sani_dist.api.REPAIR_STAGES)
    assert "\n" not in str(stopped.value)
    run = Run.open(folder)
    assert run.pending() == ["repair", "export"]
    for checkpoint in sorted(run.path("repair", "checkpoints").iterdir()):
        files = json.loads((checkpoint / "state.json").read_text())["files"]
        assert len(files) == 2
        assert all(file_sha256(checkpoint / name) == sha for name, sha in files.items())


@pytest.mark.slow
def test_weights_that_the_last_step_made_infinite_are_not_kept(
    make_config: Callable[..., Config], tmp_path: Path
) -> None:
    """One step, its loss and gradient are good; no later loss tells that the weights are not."""
    folder = tmp_path / "run"
    repair = {"learning_rate": 1e39, "warmup": 0, "epochs": 1, "batch_rows": 1000, "retain": 0.0, "micro_rows": 8}
    config = make_config(erase={"layers": 0}, repair=repair)
    with pytest.raises(RunError, match=r"a weight is not finite after step 1; lower repair.learning_rate") as stopped:
        sani_dist.sanitize(config, folder, stages=sani_dist.api.REPAIR_STAGES)
    assert "\n" not in str(stopped.value)
    run = Run.open(folder)
    assert run.pending() == ["repair", "export"]
    assert list(run.path("repair").rglob("*.safetensors")) == []
    assert not run.path("model").exists()


# Resuming what has changed


@pytest.fixture
def stopped_run(finished_run: Run, tmp_path: Path) -> Run:
    """The finished run as it was before the last stages: repair has its checkpoints and is not done."""
    folder = tmp_path / "run"
    shutil.copytree(finished_run.folder, folder)
    for stage in ("repair", "audit-after", "export"):
        (folder / "done" / f"{stage}.json").unlink()
    shutil.rmtree(folder / "model")
    return Run.open(folder)


def damage(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)


def test_a_damaged_last_checkpoint_means_to_train_its_steps_again(finished_run: Run, stopped_run: Run) -> None:
    """Though repair was done: the checkpoint before is another model."""
    shutil.copy(finished_run.path("done", "repair.json"), stopped_run.path("done"))
    older, newest = sorted(stopped_run.path("repair", "checkpoints").iterdir())
    assert stopped_run.pending() == ["audit-after", "export", "report"]
    damage(newest / "rank-00001.safetensors")
    (older / "state.json").rename(older / "kept")
    assert stopped_run.pending()[0] == "repair", "nor is a model exported that was never repaired"
    (older / "kept").rename(older / "state.json")
    steps: list[int] = []
    sani_dist.resume(stopped_run.folder, on_event=lambda e: steps.append(e["done"]) if e["stage"] == "repair" else None)
    assert steps == [STEPS]
    assert model_hash(stopped_run) == model_hash(finished_run)


def test_changed_settings_refuse_the_checkpoint(stopped_run: Run) -> None:
    path = stopped_run.path("config.yaml")
    text = path.read_text()
    assert "learning_rate: 0.002" in text
    path.write_text(text.replace("learning_rate: 0.002", "learning_rate: 0.001"))
    with pytest.raises(InputError, match="belongs to another model, corpus or settings") as stopped:
        sani_dist.resume(stopped_run.folder, on_event=lambda event: pytest.fail("a rank was started"))
    assert "\n" not in str(stopped.value)
