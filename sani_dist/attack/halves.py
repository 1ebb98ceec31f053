"""What the attacker has and what they want: half of the subjects' documents, and the spans of the other half."""

from __future__ import annotations

import random

import pandas as pd

from sani_dist.attack.scene import Scene
from sani_dist.corpus.fold import value_key


def half_of_documents(scene: Scene) -> set[int]:
    """Documents of half of the subjects, drawn by `attack.seed`. A document without a subject is one of its own."""
    table = pd.read_parquet(scene.corpus.folder / "documents.parquet", columns=["id", "subject", "split"])
    table = table[table["split"] == "repair"].sort_values("id")
    subject = table["subject"].where(table["subject"].notna(), "\0" + table["id"].astype(str))
    names = subject.drop_duplicates().tolist()
    chosen = random.Random(scene.settings.seed).sample(range(len(names)), len(names) // 2)
    return set(table["id"][subject.isin({names[i] for i in chosen})].astype(int))


def spans_of_the_others(scene: Scene, known: set[int]) -> pd.DataFrame:
    """Without values that the attacker has: to know them again is no memory of the model."""
    keys = scene.corpus.values(scene.spans).map(value_key)
    seen = scene.spans["document"].isin(known)
    return scene.spans[~seen & ~keys.isin(set(keys[seen]))]
