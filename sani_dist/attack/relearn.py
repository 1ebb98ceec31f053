"""Relearning: the attacker fine-tunes the model on related text, every token of it, and asks again for what was forgotten.

| variant | trained on | source |
|---|---|---|
| nothing | - | |
| documents | half of the documents, identifiers included | Deeb & Roger, arXiv 2410.08827 |
| format | documents of the same format about others (the held-out ones) | |
| general | general text only | |

All are judged on the other half: subjects are never divided, and values that stand in both halves are not counted.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

import pandas as pd

from sani_dist.attack.result import NOTHING, Result
from sani_dist.attack.scene import Scene
from sani_dist.audit.scores import TokenScores, score
from sani_dist.config import Objectives, RepairSettings
from sani_dist.corpus.fold import value_key
from sani_dist.corpus.rows import PackedRows
from sani_dist.engine.checkpoint import State
from sani_dist.engine.zero3 import Engine
from sani_dist.repair import train


def relearn(scene: Scene, name: str, load: Iterator[Engine]) -> Iterator[Result]:
    """One result for each variant that there is text for."""
    known = half_of_documents(scene)
    spans = _spans_of_the_others(scene, known)
    texts = {NOTHING: None, "documents": scene.rows["repair"].of_documents(known)}
    texts |= {v: scene.rows.get(split) for v, split in (("format", "heldout"), ("general", "general_train"))}
    for variant, text in texts.items():
        if variant != NOTHING and not text:
            continue
        engine = next(load)
        if text is None:
            engine.for_inference()
        else:
            _train(scene, engine, text)
        yield Result("relearn", variant, name, scene.measured(_scores(scene, engine), spans))
        engine.close()


def half_of_documents(scene: Scene) -> set[int]:
    """Documents of half of the subjects, drawn by `attack.seed`. A document without a subject is one of its own."""
    table = pd.read_parquet(scene.corpus.folder / "documents.parquet", columns=["id", "subject", "split"])
    table = table[table["split"] == "repair"].sort_values("id")
    subject = table["subject"].where(table["subject"].notna(), "\0" + table["id"].astype(str))
    names = subject.drop_duplicates().tolist()
    chosen = random.Random(scene.settings.seed).sample(range(len(names)), len(names) // 2)
    return set(table["id"][subject.isin({names[i] for i in chosen})].astype(int))


def _spans_of_the_others(scene: Scene, known: set[int]) -> pd.DataFrame:
    """Without values that the attacker has: to know them again is no memory of the model."""
    keys = scene.corpus.values(scene.spans).map(value_key)
    seen = scene.spans["document"].isin(known)
    return scene.spans[~seen & ~keys.isin(set(keys[seen]))]


def _train(scene: Scene, engine: Engine, text: PackedRows) -> None:
    settings = RepairSettings(
        objectives=Objectives(plain=True), epochs=scene.settings.relearn_epochs, learning_rate=scene.settings.relearn_rate,
        batch_rows=min(len(text), scene.repair.batch_rows), micro_rows=scene.repair.micro_rows,
        checkpoint_every=2**31, seed=scene.settings.seed,
    )  # fmt: skip
    engine.for_training(settings)
    train(engine, [text] * len(settings.text_of_epochs), None, settings, State(0, ""))
    engine.module.eval()


def _scores(scene: Scene, engine: Engine) -> dict[str, TokenScores]:
    return {split: score(engine, scene.rows[split], scene.audit.micro_rows) for split in scene.audited}
