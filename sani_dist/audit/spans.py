"""What is audited: one table of spans with their places in rows, and the texts that some metrics need beside the tokens."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from sani_dist.audit.context import stands_before
from sani_dist.audit.extraction import frequency
from sani_dist.audit.membership import zlib_size
from sani_dist.corpus.tables import read_documents

# The split that each population of spans lies in.
SPLITS = {"sensitive": "repair", "control": "control"}


@dataclass(frozen=True)
class Corpus:
    """The tables of a run: folders `corpus` and `tokens/epoch-000`."""

    folder: Path
    tokens: Path

    def spans(self, sees_both_sides: bool = False) -> pd.DataFrame:
        """Every audited span that a row scores.

        Columns: span_id, document, start, stop (code points), kind, class, split, row, first, end (tokens), in_context (its value
        stands earlier in the document; `sees_both_sides`: or later), frequency (group of how often it is scored in its split).
        """
        # What people labelled is audited where there is any, what was found elsewhere; their ids do not overlap.
        found = [self.folder / name for name in ("spans.parquet", "labelled.parquet")]
        spans = pd.concat([pd.read_parquet(path) for path in found if path.exists()], ignore_index=True)
        places = pd.read_parquet(self.tokens / "token_spans.parquet")[["span_id", "split", "row", "first", "end"]]
        spans = spans[spans["span_id"].isin(places["span_id"])].reset_index(drop=True)
        spans["in_context"] = stands_before(spans, self.texts(), sees_both_sides)
        spans = spans.rename(columns={"end": "stop"}).merge(places, on="span_id", validate="one_to_one")
        occurrences = spans.groupby(["split", "value_id"])["span_id"].transform("size")
        spans["frequency"] = [frequency(count) for count in occurrences]
        return spans.drop(columns=["value_id", "detector"])

    def texts(self, wanted: Collection[int] | None = None) -> Iterator[tuple[int, str]]:
        """(document, text) of these documents, or of all, streamed in the order of their ids."""
        for batch in read_documents(self.folder / "documents.parquet"):
            yield from ((d.id, d.text) for d in batch if wanted is None or d.id in wanted)

    def documents(self, split: str) -> list[int]:
        """The ids of the documents of a split, ascending."""
        table = pd.read_parquet(self.folder / "documents.parquet", columns=["id", "split"])
        return sorted(int(number) for number in table.loc[table["split"] == split, "id"])

    def values(self, spans: pd.DataFrame) -> pd.Series:
        """The text of each span, indexed like `spans`. Sensitive: never written anywhere."""
        of_document = {int(document): lines for document, lines in spans.groupby("document")}  # type: ignore[arg-type]
        found: dict[object, str] = {}
        for document, text in self.texts(of_document):
            lines = of_document[document]
            for index, start, stop in zip(lines.index, lines["start"], lines["stop"], strict=True):
                found[index] = text[start:stop]
        return pd.Series(found, index=spans.index, dtype=object)

    def zlib_sizes(self, split: str) -> dict[int, int]:
        """Bytes of each compressed document of a split."""
        return {document: zlib_size(text) for document, text in self.texts(set(self.documents(split)))}
