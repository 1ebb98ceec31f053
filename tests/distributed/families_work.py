"""What the ranks of `test_families` do: one family after the other through load, audit, erase, one step of repair, audit, export."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

from sani_dist.audit.candidates import CandidateRows, Question, branching
from sani_dist.audit.sampling import Decoding, Prompt, generate
from sani_dist.audit.scores import score
from sani_dist.config import EraseSettings, RepairSettings
from sani_dist.corpus.masking import HiddenRows, Masking, every_token
from sani_dist.corpus.rows import LEARN, SENSITIVE, PackedRows
from sani_dist.engine import distributed
from sani_dist.engine.attention import attend_by_document
from sani_dist.engine.checkpoint import State, load_newest, save
from sani_dist.engine.export import export
from sani_dist.engine.layout import find_layout
from sani_dist.engine.safetensors_files import Checkpoint
from sani_dist.engine.shards import local_shards
from sani_dist.engine.zero3 import CausalModel, Engine, MaskedModel, load_sharded, read_ds_config
from sani_dist.erase import Plan, apply, select
from sani_dist.erase.structure import last_units
from sani_dist.repair import train

QUESTION = Question("The patient has ", ("a cough", "QX-77314", "back pain"), " and is given rest.")
MICRO_ROWS = 2
# Of different lengths, so that one is padded.
PROMPTS = ([17, 42, 5], [29, 11, 40, 2, 300, 7, 9, 81])
NEW_TOKENS = 4


def carry(
    folder: Path, *, sources: dict[str, str], plans: str, tokens: str, ds_config: str, repair: dict[str, Any]
) -> None:
    for family, source in sources.items():
        _carry(
            folder / family, Path(source), Plan.read(Path(plans) / f"{family}.json"), Path(tokens), ds_config, repair
        )


def _carry(folder: Path, source: Path, plan: Plan, tokens: Path, ds_config: str, repair: dict[str, Any]) -> None:
    folder.mkdir(exist_ok=True)
    rows, general = (PackedRows(tokens / f"{name}.arrow") for name in ("repair", "general_train"))
    config = read_ds_config(Path(ds_config), torch.float32)
    engine = Engine(load_sharded(source, config, torch.float32), config)
    layout = find_layout(engine.model, Checkpoint(source))
    found = {} if layout is None else layout.pieces

    engine.for_inference()
    scores = {"before": score(engine, rows, MICRO_ROWS).logprob}
    asked = CandidateRows(AutoTokenizer.from_pretrained(source), [QUESTION], rows.row_length)
    scores["answers"] = score(engine, asked, 1, attention=branching).logprob
    prompts = [Prompt(np.array(ids), NEW_TOKENS) for ids in PROMPTS]
    scores["written"] = np.stack([lines[0] for lines in generate(engine, prompts, Decoding(), rows=2)])
    erase = EraseSettings(layers=2, fraction=0.3, select="attribution", units="both")
    chosen = select(engine, rows, [general], erase, source_sha256="")

    units = last_units(engine.model, 1, "both")
    apply(local_shards(engine.model), units, plan)
    scores["erased"] = score(engine, rows, MICRO_ROWS).logprob
    _export(engine, source, folder / "erased")

    settings = RepairSettings.model_validate(repair)
    engine.for_training(settings)
    texts = [rows] * len(settings.text_of_epochs)
    reached = train(engine, texts, general, settings, State(0, "inputs"), stop=lambda state: state.step == 1)
    scores["repaired"] = score(engine, rows, MICRO_ROWS).logprob
    engine.module.eval()
    _export(engine, source, folder / "repaired")
    logits = engine.forward(*_some(rows), _logits)
    if distributed.rank() == 0:
        exported = AutoModelForCausalLM.from_pretrained(folder / "repaired", dtype=torch.float32).eval()
        attend_by_document(exported)  # as the engine does: the same products, in the same order
        alone = CausalModel(exported)
        facts = {
            "streamed": layout is not None,
            "one_to_one": all(len(pieces) == 1 for pieces in found.values()),
            "units": [group.count for group in units],
            "chosen": [[unit.layer, unit.kind, len(unit.ids)] for unit in chosen.units],
            "step": reached.step,
            "loss": reached.loss,
            "export_equal": torch.equal(logits, alone(*_some(rows), _logits)),
        }
        (folder / "facts.json").write_text(json.dumps(facts))
        np.savez(folder / "scores.npz", **scores)
    engine.close()


def carry_masked(
    folder: Path, *, sources: dict[str, str], plans: str, tokens: str, ds_config: str, repair: dict[str, Any]
) -> None:
    for family, source in sources.items():
        plan = Plan.read(Path(plans) / f"{family}.json")
        _carry_masked(
            folder / family, Path(source), plan, Path(tokens), ds_config, RepairSettings.model_validate(repair)
        )


def _carry_masked(folder: Path, source: Path, plan: Plan, tokens: Path, ds_config: str, repair: RepairSettings) -> None:
    folder.mkdir(exist_ok=True)
    rows, general = (PackedRows(tokens / f"{name}.arrow") for name in ("repair", "general_train"))
    tokenizer = AutoTokenizer.from_pretrained(source)
    mask: int = tokenizer.mask_token_id
    config = read_ds_config(Path(ds_config), torch.float32)
    engine = Engine(load_sharded(source, config, torch.float32), config)
    engine.for_inference()
    asked = HiddenRows(rows, asked_of(rows), mask)
    scores = {"before": score(engine, asked, MICRO_ROWS).logprob}
    erase = EraseSettings(layers=2, fraction=0.3, select="attribution", units="both")
    hidden = [HiddenRows(rows, every_token(rows, role, parts), mask) for role, parts in ((SENSITIVE, 1), (LEARN, 7))]
    chosen = select(engine, hidden[0], [hidden[1]], erase, source_sha256="")

    units = last_units(engine.model, 1, "both")
    apply(local_shards(engine.model), units, plan)
    scores["erased"] = score(engine, asked, MICRO_ROWS).logprob
    _export(engine, source, folder / "erased")

    engine.for_training(repair)
    masking = Masking(mask, len(tokenizer), repair.seed, (LEARN,))
    reached = train(
        engine, [rows, rows], general, repair, State(0, "inputs"), stop=lambda state: state.step == 1, masking=masking,
        save=lambda state: save(folder / "checkpoints", engine, state),
    )  # fmt: skip
    engine.module.eval()
    scores["repaired"] = score(engine, asked, MICRO_ROWS).logprob
    _export(engine, source, folder / "repaired")
    logits = engine.forward(*_some(rows), _logits)
    again = [
        _next_step(engine, rows, general, repair, folder / "checkpoints", masking, dropout)
        for dropout in (0.1, 0.1, 0.0)
    ]
    if distributed.rank() == 0:
        exported = AutoModelForMaskedLM.from_pretrained(folder / "repaired", dtype=torch.float32).eval()
        attend_by_document(exported)
        alone = MaskedModel(exported)
        facts = {
            "streamed": find_layout(engine.model, Checkpoint(source)) is not None,
            "one_to_one": True,
            "units": [group.count for group in units],
            "chosen": [[unit.layer, unit.kind, len(unit.ids)] for unit in chosen.units],
            "step": reached.step,
            "loss": reached.loss,
            "export_equal": torch.equal(logits, alone(*_some(rows), _logits)),
            "resumed_equal": [torch.equal(again[0], other) for other in again[1:]],
        }
        (folder / "facts.json").write_text(json.dumps(facts))
        np.savez(folder / "scores.npz", **scores)
    engine.close()


def _next_step(
    engine: Engine, rows: PackedRows, general: PackedRows, repair: RepairSettings, checkpoints: Path, masking: Masking,
    dropout: float,
) -> torch.Tensor:  # fmt: skip
    """This rank's shards after the step that follows the checkpoint."""
    for module in engine.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = dropout
    state = load_newest(checkpoints, engine, "inputs")
    assert state is not None
    engine.module.train()
    train(engine, [rows, rows], general, repair, state, stop=lambda state: state.step == 2, masking=masking)
    return torch.cat([live.values.clone() for live in local_shards(engine.model)])


def asked_of(rows: PackedRows) -> list[tuple[int, np.ndarray]]:
    """Every token once, hidden with every third of its role."""
    return every_token(rows, LEARN, parts=3) + every_token(rows, SENSITIVE, parts=3)


def _export(engine: Engine, source: Path, folder: Path) -> None:
    layout = find_layout(engine.model, Checkpoint(source))
    shards = local_shards(engine.model)
    export(shards if layout is None else layout.stored(shards), source, folder, dtype=torch.float32)


def _some(rows: PackedRows) -> tuple[torch.Tensor, torch.Tensor]:
    batch = rows.batch([0, 1])
    return batch.input_ids, batch.position


def _logits(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, softcap: float | None
) -> torch.Tensor:
    logits = torch.nn.functional.linear(hidden, weight, bias).detach()
    return logits if softcap is None else torch.tanh(logits / softcap) * softcap
