"""What the attacker has and what they want: half of the subjects' documents, and the spans of the other half."""

from __future__ import annotations

import random

import pandas as pd

from sani_dist.attack.context import AttackContext
from sani_dist.corpus.fold import value_key


def half_of_documents(context: AttackContext) -> set[int]:
    """Documents of half of the subjects, drawn by `attack.seed`. A document without a subject is one of its own."""
    table = pd.read_parquet(context.corpus.folder / "documents.parquet", columns=["id", "subject", "split"])
    table = table[table["split"] == "repair"].sort_values("id")
    subject = table["subject"].where(table["subject"].notna(), "\0" + table["id"].astype(str))
    names = subject.drop_duplicates().tolist()
    chosen = random.Random(context.settings.seed).sample(range(len(names)), len(names) // 2)
    return set(table["id"][subject.isin({names[i] for i in chosen})].astype(int))


def spans_of_the_others(context: AttackContext, known: set[int]) -> pd.DataFrame:
    """Without values that the attacker has: to know them again is no memory of the model."""
    keys = context.corpus.values(context.spans).map(value_key)
    seen = context.spans["document"].isin(known)
    return context.spans[~seen & ~keys.isin(set(keys[seen]))]
