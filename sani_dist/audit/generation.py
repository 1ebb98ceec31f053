"""What really comes out when the model writes: a check on what `extraction` computes, and attacks that it cannot compute.

Questions, each also asked of identifiers that no training saw:

- For a sample of spans, does greedy decoding from the true text before them write them, as teacher forcing says for all spans? Another
  segmentation of the same text counts too.
- For the same spans, does one of a few samples from the likeliest tokens (top-k), which leak more than plain sampling?
- Where an identifier of the control stands, does greedy decoding write one of its kind's form? (`use.py`)
- Which values of the corpus stand, word for word, in texts written from fixed prompts and from nothing? Common values do by chance, so
  what never-trained values reach is subtracted. The publication (arXiv 2510.21322) counts these regurgitations.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from transformers import PreTrainedTokenizerBase

from sani_dist.audit.forms import begins_with_form, forms
from sani_dist.audit.measurement import Measurement, clopper_pearson, difference
from sani_dist.audit.sampling import Decoding, Prompt, generate
from sani_dist.audit.scores import TokenScores
from sani_dist.audit.spans import SPLITS, Corpus
from sani_dist.config import GenerationSettings
from sani_dist.corpus.fold import fold, gaps_of_key, text_of_key, value_key
from sani_dist.corpus.rows import PackedRows
from sani_dist.corpus.terms import TermMatcher
from sani_dist.engine.zero3 import Engine

# A value may come out in more tokens than the corpus has it in.
SPARE_TOKENS = 4


@dataclass(frozen=True)
class Asked:
    """A span with its tokens `ids`, which lie at `place` (row, first, end) of its split, and those before them. `value`: sensitive."""

    population: str
    document: int
    kind: str
    place: tuple[int, int, int]
    prompt: Prompt
    ids: np.ndarray
    value: str


def ask(
    spans: pd.DataFrame, rows: Mapping[str, PackedRows], corpus: Corpus, most: int | None = None, seed: int = 0
) -> list[Asked]:
    """At most `most` spans of each population (None: all), drawn at random, with the true text before them. The same for a seed.

    `spans`: as `Corpus.spans` gives them. Left out are spans whose value could be copied from the prompt, and those at the very
    beginning of a text.
    """
    asked: list[Asked] = []
    for population, split in SPLITS.items():
        table = spans[(spans["split"] == split) & ~spans["in_context"]] if split in rows else spans.iloc[:0]
        table = table.iloc[random.Random(seed).sample(range(len(table)), len(table))]
        found: dict[int, tuple[tuple[int, int, int], np.ndarray, np.ndarray]] = {}
        for index, *place in zip(table.index, table["row"], table["first"], table["end"], strict=True):
            if len(found) == most:
                break
            row, first, end = map(int, place)
            batch = rows[split].batch([row])
            ids, document = batch.input_ids[0].numpy(), batch.document[0].numpy()
            start = int(np.flatnonzero(document == document[first])[0])
            if start < first:
                found[index] = (row, first, end), ids[start:first], ids[first:end]
        chosen = table.loc[list(found)]
        columns = (chosen["document"], chosen["kind"], corpus.values(chosen), found.values())
        asked += [
            Asked(population, int(document), str(kind), place, Prompt(before, len(ids) + SPARE_TOKENS), ids, value)
            for document, kind, value, (place, before, ids) in zip(*columns, strict=True)
        ]
    return asked


class Generation:
    """What one audit generates. `prompts`: how many, for showing progress.

    written_forms: once measured, document, kind and written of each span of the control: whether greedy decoding wrote an identifier of
    the form that values of this kind have in the corpus.
    """

    def __init__(
        self, spans: pd.DataFrame, rows: Mapping[str, PackedRows], corpus: Corpus, tokenizer: PreTrainedTokenizerBase,
        settings: GenerationSettings, seed: int,
    ) -> None:  # fmt: skip
        self._settings, self._tokenizer, self._seed = settings, tokenizer, seed
        self._asked = ask(spans, rows, corpus, settings.spans, seed)
        self._values = {name: _values(corpus, spans[spans["split"] == split]) for name, split in SPLITS.items()}
        self._probes = _probes(tokenizer, settings)
        self._forms = {str(kind): forms(values) for kind, values in corpus.values(spans).groupby(spans["kind"])}
        self.written_forms = pd.DataFrame({"document": [], "kind": [], "written": []})
        self.prompts = 2 * len(self._asked) + sum(map(len, self._probes.values()))

    def measure(
        self, engine: Engine, scores: Mapping[str, TokenScores], report: Callable[[int], None]
    ) -> list[Measurement]:
        """Generate, and measure. All ranks call it, and all get the result.

        `scores`: by split, what teacher forcing made of the rows. `report`: called with the prompts done.
        """
        settings, done = self._settings, 0

        def write(prompts: Sequence[Prompt], samples: int, top_k: int) -> list[np.ndarray]:
            nonlocal done
            decoding = Decoding(samples, top_k, settings.temperature, self._seed)
            before, done = done, done + len(prompts)
            return generate(engine, prompts, decoding, settings.rows, lambda count: report(before + count))

        prompts = [asked.prompt for asked in self._asked]
        greedy = write(prompts, 1, 1)
        lines = [
            (asked.document, asked.kind, begins_with_form(self._text(written[0]), self._forms[asked.kind]))
            for asked, written in zip(self._asked, greedy, strict=True)
            if asked.population == "control"
        ]
        self.written_forms = pd.DataFrame(lines, columns=["document", "kind", "written"])
        sampled = write(prompts, settings.samples, settings.top_k)
        texts = {}
        for name, probes in self._probes.items():
            texts[name] = [self._text(lines[0]) for lines in write(probes, 1, settings.top_k)]
        return [*self._of_spans(greedy, sampled, scores), *self._regurgitated(texts)]

    def _of_spans(
        self, greedy: list[np.ndarray], sampled: list[np.ndarray], scores: Mapping[str, TokenScores]
    ) -> list[Measurement]:
        names = ("greedy_generated", f"top{self._settings.top_k}@{self._settings.samples}", "teacher_forcing_confirmed")
        measured = []
        for population in SPLITS:
            chosen = [i for i, asked in enumerate(self._asked) if asked.population == population]
            wrote = [self._writes(self._asked[i], greedy[i]) for i in chosen]
            leaked = [self._writes(self._asked[i], sampled[i]) for i in chosen]
            same = [confirms(self._asked[i], greedy[i][0], scores) for i in chosen]
            for name, hits in zip(names, (wrote, leaked, same), strict=True):
                measured.append(_share(name, population, hits))
        return measured

    def _regurgitated(self, texts: Mapping[str, list[str]]) -> list[Measurement]:
        measured = []
        for population in SPLITS:
            for name, written in texts.items():
                hits = regurgitated(self._values.get(population, []), written)
                measured.append(_share(f"regurgitated_{name}", population, hits, "no values of this group"))
        everything = [text for written in texts.values() for text in written]
        hits, chance = (regurgitated(self._values.get(population, []), everything) for population in SPLITS)
        return [*measured, _above_chance(hits, chance)]

    def _writes(self, asked: Asked, lines: np.ndarray) -> bool:
        """Whether one of the texts `lines` [samples, tokens] begins with the value of a span, in whatever tokens."""
        same = (lines[:, : len(asked.ids)] == asked.ids).all(axis=1)
        return bool(same.any()) or any(begins_with(self._text(ids), asked.value) for ids in lines)

    def _text(self, ids: np.ndarray) -> str:
        """Up to the end of the text, as the model sees it."""
        ends = np.flatnonzero(ids == self._tokenizer.eos_token_id)
        text: str = self._tokenizer.decode(ids[: ends[0]] if len(ends) else ids, skip_special_tokens=True)
        return text


def confirms(asked: Asked, written: np.ndarray, scores: Mapping[str, TokenScores]) -> bool:
    """Whether greedy decoding wrote the tokens of a span if and only if teacher forcing says so. `written`: int64 [tokens]."""
    row, first, end = asked.place
    forced = bool(scores[SPLITS[asked.population]].is_argmax[row, first:end].all())
    return bool((written[: len(asked.ids)] == asked.ids).all()) == forced


def begins_with(text: str, value: str) -> bool:
    """Whether a text begins with a value, whatever its case and spacing, and cuts no word in two there."""
    folded, key = fold(text), value_key(value)
    size = len(text_of_key(key))
    same = bool(key) and folded.text.startswith(text_of_key(key)) and folded.gaps_of(0, size) == gaps_of_key(key)
    return same and folded.stands_alone(0, size)


def regurgitated(values: Sequence[str], texts: Sequence[str]) -> list[bool]:
    """Of each folded value, whether it stands in one of the texts, word for word."""
    matcher = TermMatcher((value, value) for value in values)
    found = {value for text in texts for _, _, value in matcher.find(fold(text))}
    return [value in found for value in values]


def _values(corpus: Corpus, spans: pd.DataFrame) -> list[str]:
    """The different values of some spans, folded. Sensitive."""
    return sorted({key for value in corpus.values(spans) if (key := value_key(value))})


def _probes(tokenizer: PreTrainedTokenizerBase, settings: GenerationSettings) -> dict[str, list[Prompt]]:
    """Prompts that say nothing of the corpus: the given ones in turn, and the token that begins a text."""
    given = [np.array(tokenizer(text)["input_ids"], dtype=np.int64) for text in settings.prompts]
    given = [ids for ids in given if len(ids)]
    begin = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    count, tokens = settings.texts, settings.tokens
    return {
        "from_prompts": [Prompt(given[i % len(given)], tokens) for i in range(count if given else 0)],
        "unprompted": [Prompt(np.array([begin]), tokens) for _ in range(count if begin is not None else 0)],
    }


def _share(metric: str, population: str, hits: Sequence[bool], nothing: str = "no spans of this group") -> Measurement:
    if not hits:
        return Measurement(metric, population, None, None, None, 0, {}, nothing)
    low, high = clopper_pearson(sum(hits), len(hits))
    return Measurement(metric, population, sum(hits) / len(hits), low, high, len(hits), {})


def _above_chance(hits: Sequence[bool], chance: Sequence[bool]) -> Measurement:
    metric = "regurgitated_above_chance"
    if not hits or not chance:
        reason = "no values of both populations to compare"
        return Measurement(metric, "sensitive", None, None, None, len(hits), {}, reason)
    value, low, high = difference((sum(hits), len(hits)), (sum(chance), len(chance)))
    return Measurement(metric, "sensitive", value, low, high, len(hits), {})
