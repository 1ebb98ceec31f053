"""What the ranks of `test_adapter` do: base and LoRA adapter through load, audit, erase, repair, a checkpoint, export."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from sani_dist.audit.sampling import Decoding, Prompt, generate
from sani_dist.audit.scores import score
from sani_dist.config import EraseSettings, RepairSettings
from sani_dist.corpus.rows import SENSITIVE, PackedRows
from sani_dist.engine import distributed
from sani_dist.engine.adapter import Adapter
from sani_dist.engine.attention import attend_by_document
from sani_dist.engine.checkpoint import State, load_newest, save
from sani_dist.engine.export import export
from sani_dist.engine.shards import local_shards
from sani_dist.engine.zero3 import CausalModel, Engine, load_sharded, read_ds_config
from sani_dist.erase import Plan, apply, select
from sani_dist.erase.select import attribution
from sani_dist.erase.structure import last_units
from sani_dist.repair import train

from .families_work import MICRO_ROWS, NEW_TOKENS, PROMPTS, _logits, _some

INPUTS = "the same inputs"


def carry(
    folder: Path, *, base: str, adapter: str, merged: str, tokens: str, ds_config: str, repair: dict[str, Any]
) -> None:  # fmt: skip
    """merged: folder of the model that base and adapter are merged into. The units of `folder/plan.json` are erased."""
    _carry(folder, Path(base), Adapter(Path(adapter)), Plan.read(folder / "plan.json"), Path(tokens), ds_config, repair)
    config = read_ds_config(Path(ds_config), torch.float32)
    engine = Engine(load_sharded(Path(merged), config, torch.float32), config)
    engine.for_inference()
    np.save(folder / "flow-merged.npy", _flow(engine, Path(tokens)))
    engine.close()


def _carry(
    folder: Path, base: Path, adapter: Adapter, plan: Plan, tokens: Path, ds_config: str, repair: dict[str, Any]
) -> None:
    rows, general = (PackedRows(tokens / f"{name}.arrow") for name in ("repair", "general_train"))
    settings, config = RepairSettings.model_validate(repair), read_ds_config(Path(ds_config), torch.float32)
    engine = Engine(load_sharded(base, config, torch.float32, adapter=adapter), config)
    assert_loaded(engine, base, adapter)

    engine.for_inference()
    scores = {"before": score(engine, rows, MICRO_ROWS).logprob}
    prompts = [Prompt(np.array(ids), NEW_TOKENS) for ids in PROMPTS]
    scores["written"] = np.stack([lines[0] for lines in generate(engine, prompts, Decoding(), rows=2)])
    erase = EraseSettings(layers=2, fraction=0.3, select="attribution", reset="base", units="both")
    chosen = select(engine, rows, [general], erase, source_sha256="")
    scores["flow"] = _flow(engine, tokens)
    _erase(engine, plan)
    scores["erased"] = score(engine, rows, MICRO_ROWS).logprob
    _export(engine, adapter, folder / "erased")
    base_before = _base(engine)

    _train(engine, rows, general, settings, State(0, INPUTS), folder)
    scores["repaired"] = score(engine, rows, MICRO_ROWS).logprob
    _export(engine, adapter, folder / "repaired")
    logits = engine.forward(*_some(rows), _logits)
    base_equal = torch.equal(_base(engine), base_before)
    ended = torch.cat([live.values.clone() for live in local_shards(engine.model)])
    engine.close()

    again = Engine(load_sharded(base, config, torch.float32, adapter=adapter), config)
    _erase(again, plan)
    _train(again, rows, general, settings, None, folder)
    resumed_equal = torch.equal(torch.cat([live.values for live in local_shards(again.model)]), ended)
    again.close()
    exported = folder / "repaired"
    in_bfloat16 = read_ds_config(Path(ds_config), torch.bfloat16)
    rounded = Engine(load_sharded(base, in_bfloat16, torch.bfloat16, adapter=Adapter(exported)), in_bfloat16)
    rounded.for_inference()
    logits_of = {torch.float32: logits, torch.bfloat16: rounded.forward(*_some(rows), _logits)}
    rounded.close()
    (folder / f"rank-{distributed.rank()}.json").write_text(json.dumps([base_equal, resumed_equal]))
    if distributed.rank() == 0:
        facts = {
            "chosen": [[unit.layer, unit.kind, len(unit.ids)] for unit in chosen.units],
            "export_equal": [
                torch.equal(found, _plain(base, exported, dtype)(*_some(rows), _logits))
                for dtype, found in logits_of.items()
            ],
        }
        (folder / "facts.json").write_text(json.dumps(facts))
        np.savez(folder / "scores.npz", **scores)


def _plain(base: Path, adapter: Path, dtype: torch.dtype) -> CausalModel:
    """By peft alone, the adapter in the precision of the base."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
    whole = PeftModel.from_pretrained(model, adapter, autocast_adapter_dtype=False).eval().get_base_model()
    attend_by_document(whole)
    return CausalModel(whole)


def assert_loaded(engine: Engine, base: Path, adapter: Adapter) -> None:
    """Every shard holds what peft has under that name."""
    whole = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    expected = dict(PeftModel.from_pretrained(whole, adapter.folder).get_base_model().named_parameters())
    seen = 0
    for live in local_shards(engine.model):
        values = expected[live.shard.name].detach().flatten()[live.shard.start : live.shard.stop]
        assert torch.equal(live.values, values), live.shard
        seen += 1
    assert seen == len(expected)


def _flow(engine: Engine, tokens: Path) -> np.ndarray:
    """Attribution of the neurons and heads of the last two blocks, one after the other."""
    rows, groups = PackedRows(tokens / "repair.arrow"), last_units(engine.model, 2, "both")
    found = attribution(engine, rows, len(rows), [SENSITIVE], groups, MICRO_ROWS, lambda done: None)
    return torch.cat(found.units).numpy()


def _erase(engine: Engine, plan: Plan) -> None:
    apply(local_shards(engine.model), last_units(engine.model, 1, "both"), plan)


def _train(
    engine: Engine, rows: PackedRows, general: PackedRows, settings: RepairSettings, state: State | None, folder: Path
) -> None:
    """Two steps, with a checkpoint after the first; `state` None: from that checkpoint."""
    engine.freeze_base()
    engine.for_training(settings)
    state = state or load_newest(folder / "checkpoints", engine, INPUTS)
    assert state is not None
    texts = [rows] * len(settings.text_of_epochs)
    train(
        engine, texts, general, settings, state, stop=lambda reached: reached.step == 2,
        save=lambda reached: save(folder / "checkpoints", engine, reached) if reached.step == 1 else None,
    )  # fmt: skip
    engine.module.eval()


def _base(engine: Engine) -> torch.Tensor:
    """This rank's values of all parameters but the adapter's."""
    return torch.cat([live.values.clone() for live in local_shards(engine.model) if ".lora_" not in live.shard.name])


def _export(engine: Engine, adapter: Adapter, folder: Path) -> None:
    export(adapter.stored(engine.model, local_shards(engine.model)), adapter.folder, folder, form=adapter.form)
