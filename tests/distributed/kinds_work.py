"""What the ranks of `test_kinds` do: load, the proof, audit, a step of repair with its checkpoint, export."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from transformers import AutoTokenizer

from sani_dist.audit.candidates import CandidateRows, branching
from sani_dist.audit.sampling import Decoding, Prompt, generate
from sani_dist.audit.scores import score
from sani_dist.config import RepairSettings
from sani_dist.corpus.rows import PackedRows
from sani_dist.engine import distributed
from sani_dist.engine.buffers import persistent_buffers
from sani_dist.engine.checkpoint import State, load_newest, save
from sani_dist.engine.export import export
from sani_dist.engine.layout import exported
from sani_dist.engine.proof import alone, prove_loaded
from sani_dist.engine.safetensors_files import Checkpoint
from sani_dist.engine.zero3 import Engine, load_sharded, read_ds_config, read_model_config
from sani_dist.repair import train

from .families_work import NEW_TOKENS, PROMPTS, QUESTION


def carry(folder: Path, *, sources: dict[str, str], tokens: dict[str, str], ds_config: str) -> None:
    for name, source in sources.items():
        _carry(folder / name, Path(source), Path(tokens[name]), ds_config)


def _carry(folder: Path, source: Path, tokens: Path, ds_config: str) -> None:
    folder.mkdir(exist_ok=True)
    rows, general = (PackedRows(tokens / f"{name}.arrow") for name in ("repair", "general_train"))
    config = read_ds_config(Path(ds_config), torch.float32)
    engine = Engine(load_sharded(source, config, torch.float32), config, alone(read_model_config(source)))
    engine.for_inference()
    prove_loaded(engine)
    scores = {"before": score(engine, rows, 2).logprob}
    asked = CandidateRows(AutoTokenizer.from_pretrained(source), [QUESTION], rows.row_length, alone=engine.alone)
    scores["answers"] = score(engine, asked, 1, attention=branching).logprob
    prompts = [Prompt(np.array(ids), NEW_TOKENS) for ids in PROMPTS]
    scores["written"] = np.stack([lines[0] for lines in generate(engine, prompts, Decoding(), rows=2)])
    settings = RepairSettings.model_validate({"epochs": 1, "batch_rows": 4, "learning_rate": 1e-3, "warmup": 0})
    engine.for_training(settings)
    reached = train(engine, [rows], general, settings, State(0, "inputs"), stop=lambda state: state.step == 1)
    save(folder / "checkpoints", engine, reached)
    for buffer in persistent_buffers(engine.model).values():
        buffer.add_(1)  # not as any checkpoint has it
    load_newest(folder / "checkpoints", engine, "inputs")
    scores["repaired"] = score(engine, rows, 2).logprob
    export(exported(engine.model, Checkpoint(source)), source, folder / "model", dtype=torch.float32)
    if distributed.rank() == 0:
        np.savez(folder / "scores.npz", **scores)
    engine.close()
