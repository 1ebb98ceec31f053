"""Relearning: the attacker fine-tunes the model on related text, every token of it, and asks again for what was forgotten.

| variant | trained on | source |
|---|---|---|
| nothing | - | |
| documents | half of the documents, identifiers included | Deeb & Roger, arXiv 2410.08827 |
| format | documents of the same format about others: `attack.related`, else the held-out ones, else the control | |
| general | general text only | |

All are judged on the other half: subjects are never divided, and values that stand in both halves are not counted. A control that
was trained on is none, and not asked for.
"""

from __future__ import annotations

from collections.abc import Iterator

from sani_dist.attack.halves import half_of_documents, spans_of_the_others
from sani_dist.attack.result import NOTHING, Result
from sani_dist.attack.scene import Scene
from sani_dist.audit.scores import score
from sani_dist.config import Objectives, RepairSettings
from sani_dist.corpus.rows import PackedRows
from sani_dist.engine.checkpoint import State
from sani_dist.engine.zero3 import Engine
from sani_dist.repair import train


def relearn(scene: Scene, name: str, load: Iterator[Engine]) -> Iterator[Result]:
    """One result for each variant that there is text for."""
    known = half_of_documents(scene)
    spans = spans_of_the_others(scene, known)
    others = scene.related or scene.rows.get("heldout") or scene.rows.get("control")
    texts = {
        NOTHING: None, "documents": scene.rows["repair"].of_documents(known), "format": others,
        "general": scene.rows.get("general_train"),
    }  # fmt: skip
    for variant, text in texts.items():
        if variant in scene.made or (variant != NOTHING and (variant not in scene.settings.relearn_on or not text)):
            continue
        engine = next(load)
        if text is None:
            engine.for_inference()
        else:
            _train(scene, engine, text)
        asked = [split for split in scene.audited if scene.rows[split] is not text]
        scores = {split: score(engine, scene.rows[split], scene.audit.micro_rows) for split in asked}
        yield Result("relearn", variant, name, scene.measured(scores, spans))
        engine.close()


def _train(scene: Scene, engine: Engine, text: PackedRows) -> None:
    settings = RepairSettings(
        objectives=Objectives(plain=True), epochs=scene.settings.relearn_epochs, learning_rate=scene.settings.relearn_rate,
        batch_rows=min(len(text), scene.repair.batch_rows), micro_rows=scene.repair.micro_rows,
        checkpoint_every=2**31, seed=scene.settings.seed,
    )  # fmt: skip
    engine.for_training(settings)
    train(engine, [text] * len(settings.text_of_epochs), None, settings, State(0, ""))
    engine.module.eval()
