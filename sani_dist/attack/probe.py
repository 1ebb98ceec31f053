"""Probes: is a value still readable inside, by who trains a reader on values that are known?

A value's place is where it lies in the output projection of the model. The state h of the token before it, at each layer, normed as the
model norms its last, is compared with the place p of each value by a form that is linear in both:

    score(h, p) = c h.p + h.M p

With M = 0 it is the logit lens, which knows where the last layer would put a value. M is what the reader learns: where this layer puts
it. It is learnt on half of the documents, by the cross-entropy of the true value among the others of its kind. As places lie in a space,
and are no list of classes, the reader reads values it was never trained on: those of the other half. Two places are tried, each a variant:

| variant | the value's place |
|---|---|
| first token | the row of its first token in the output projection |
| whole value | the mean of the rows of its tokens |

What is read is judged against the other values of the same kind of the same population: how often does the true one score higher? Each
pair of spans counts both ways, so a reader who knows only what is frequent gets 50 %; what the text before a value gives away shows in
the never-trained control, which the same reader reads.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from scipy.optimize import minimize

from sani_dist.attack.context import AttackContext, preference
from sani_dist.attack.halves import half_of_documents, spans_of_the_others
from sani_dist.attack.lens import block_outputs
from sani_dist.attack.result import PREFERENCE, Result
from sani_dist.audit.measurement import Measurement
from sani_dist.audit.spans import SPLITS
from sani_dist.corpus.rows import empty_batch, stacked
from sani_dist.engine import distributed
from sani_dist.engine.blocks import blocks_of
from sani_dist.engine.map_rows import map_rounds
from sani_dist.engine.zero3 import Engine

VARIANTS = ("first token", "whole value")
FEWEST_KNOWN = 8
# Of M, for each span learnt from, largest first. The one that foretells left-out documents best is taken.
_PENALTIES = (3.0, 0.3, 0.03)
# One document in so many is left out for that.
_LEFT_OUT = 4
# M is learnt in the directions in which states, and places, of the known spans differ most, at most so many.
_DIRECTIONS = 128
# Of h.p where both have the mean length, to begin with.
_SHARPNESS = 10.0
_STEPS = 30


def probe(context: AttackContext, name: str, load: Iterator[Engine]) -> Iterator[Result]:
    """One result for each variant; its measurements are those of every layer, counted from 0, as groups."""
    half, most = half_of_documents(context), context.settings.probe_spans
    known = context.sample(most, context.spans[context.spans["document"].isin(half)])
    asked = context.sample(most, spans_of_the_others(context, half))
    if len(known) < FEWEST_KNOWN or asked.empty:
        few = f"too few spans to learn from: {len(known)}, {FEWEST_KNOWN} are needed"
        nothing = Measurement(PREFERENCE, "sensitive", None, None, None, 0, {}, few)
        yield from (Result("probe", variant, name, (nothing,)) for variant in VARIANTS)
        return
    spans = pd.concat([known, asked], ignore_index=True)
    tokens = _tokens(context, spans)
    engine = next(load)
    engine.for_inference()
    layers = len(blocks_of(engine.model))
    states, rows_of_tokens = _states(context, engine, spans, sorted({token for of_span in tokens for token in of_span}))
    engine.close()
    for variant in VARIANTS:
        named = [of_span[:1] if variant == "first token" else of_span for of_span in tokens]
        places = np.stack([np.mean([rows_of_tokens[t] for t in of_span], axis=0) for of_span in named])
        pairs = _of_all_layers(layers, states, places, spans, len(known), named)
        yield Result("probe", variant, name, tuple(_measured(asked, pairs)))


@dataclass(frozen=True)
class Known:
    """Spans to learn from.

    states, places: float64 [n, size]. wrong: bool [n, n], the spans whose values are of the kind of a span's own and are not it. document:
    int [n]; spans of one are learnt from or left out together.
    """

    states: np.ndarray
    places: np.ndarray
    wrong: np.ndarray
    document: np.ndarray


def read(known: Known, states: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Scores, float64 [spans, spans], of each of `places` at each of `states`, by a reader that learns from `known`."""
    # By torch, which keeps to the threads of its rank.
    h, new_h = _centred(known.states, states)
    p, new_p = _centred(known.places, places)
    along_h, along_p = (torch.linalg.svd(k, full_matrices=False).Vh[:_DIRECTIONS].T for k in (h, p))

    def pairs(of_states: torch.Tensor, of_places: torch.Tensor) -> _Pairs:
        return _Pairs(_SHARPNESS * of_states @ of_places.T, of_states @ along_h, of_places @ along_p)

    wrong = torch.from_numpy(known.wrong)
    left_out = torch.from_numpy(pd.factorize(known.document)[0] % _LEFT_OUT == _LEFT_OUT - 1)
    (learnt, its_wrong), (asked, their_wrong) = (
        (pairs(h[part], p[part]), wrong[part][:, part]) for part in (~left_out, left_out)
    )
    penalty, reader = _PENALTIES[0], np.concatenate([[1.0], np.zeros(along_h.shape[1] * along_p.shape[1])])
    if its_wrong.any() and their_wrong.any():
        least = np.inf
        for tried in _PENALTIES:
            reader = _learn(learnt, its_wrong, tried, reader)
            error = _cross_entropy(asked.scores(reader), their_wrong)[0]
            if error < least:
                least, penalty = error, tried
    if wrong.any():
        reader = _learn(pairs(h, p), wrong, penalty, reader)
    return pairs(new_h, new_p).scores(reader).numpy()


def _centred(known: np.ndarray, new: np.ndarray) -> list[torch.Tensor]:
    """Both less the mean of `known`, over the root of the mean square of its lengths then."""
    mean = known.mean(axis=0)
    length = np.sqrt(((known - mean) ** 2).sum(axis=1).mean()) + 1e-12
    return [torch.from_numpy((part - mean) / length) for part in (known, new)]


@dataclass(frozen=True)
class _Pairs:
    """States and places to compare: h.p float64 [n, n], both along the directions of M, float64 [n, directions]."""

    lens: torch.Tensor
    h: torch.Tensor
    p: torch.Tensor

    def scores(self, reader: np.ndarray) -> torch.Tensor:
        """`reader`: c, then M row by row."""
        m = torch.from_numpy(reader[1:]).view(self.h.shape[1], -1)
        return float(reader[0]) * self.lens + self.h @ m @ self.p.T


def _learn(pairs: _Pairs, wrong: torch.Tensor, penalty: float, start: np.ndarray) -> np.ndarray:
    """The reader of least cross-entropy plus penalty |M|^2 / 2 for each span. Convex, so it hardly matters where it starts."""

    def loss(reader: np.ndarray) -> tuple[float, np.ndarray]:
        error, slope = _cross_entropy(pairs.scores(reader), wrong)
        of_m = (pairs.h.T @ slope @ pairs.p).flatten().numpy()
        shrink = penalty / len(wrong) * reader[1:]
        gradient = np.concatenate([[float((slope * pairs.lens).sum())], of_m + shrink])
        return error + 0.5 * float(shrink @ reader[1:]), gradient

    found: np.ndarray = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": _STEPS}).x
    return found


def _cross_entropy(scores: torch.Tensor, wrong: torch.Tensor) -> tuple[float, torch.Tensor]:
    """Mean of -log softmax of each span's own value among it and the wrong ones, and the slope at the scores."""
    beside = (scores - scores.diagonal()[:, None]).masked_fill(~wrong, -torch.inf)
    top = beside.amax(dim=1, keepdim=True).clamp(min=0)
    odds = torch.exp(beside - top)
    total = odds.sum(dim=1, keepdim=True) + torch.exp(-top)
    slope = odds / total
    slope.diagonal().sub_(slope.sum(dim=1))
    return float((top + torch.log(total)).mean()), slope / len(scores)


def wrong_values(kinds: Iterable[object], named: Iterable[Sequence[int]]) -> np.ndarray:
    """Of each span, the spans of its kind that have another value: bool [spans, spans]. named: what tells values apart."""
    kind = pd.factorize(np.array([str(k) for k in kinds], dtype=object))[0]
    value = pd.factorize(np.array([str(tuple(n)) for n in named], dtype=object))[0]
    different: np.ndarray = (kind[:, None] == kind) & (value[:, None] != value)
    return different


def preferred(scores: np.ndarray, wrong: np.ndarray) -> np.ndarray:
    """Of each span, how many wrong values score less than its own, and how many there are. Ties count half. Returns float64 [spans, 2]."""
    # Rounded, so that equal places are equal whatever the order of sums.
    rounded = np.round(scores, 6)
    own = np.diagonal(rounded)[:, None]
    wins = ((own > rounded) + 0.5 * (own == rounded)) * wrong
    return np.stack([wins.sum(axis=1), wrong.sum(axis=1)], axis=1).astype(np.float64)


def _of_all_layers(
    layers: int, states: dict[int, np.ndarray], places: np.ndarray, spans: pd.DataFrame, known: int,
    named: Sequence[Sequence[int]],
) -> np.ndarray:  # fmt: skip
    """`preferred` of every layer, for the spans after the first `known`: float64 [layers, asked, 2]. Each rank reads the layers whose
    states it holds."""
    # Each population has its own wrong values.
    kinds = list(zip(spans["kind"], spans["split"], strict=True))
    of_known, of_asked = wrong_values(kinds[:known], named[:known]), wrong_values(kinds[known:], named[known:])
    document, of_spans = spans["document"].to_numpy()[:known], places.astype(np.float64)
    found = np.zeros((layers, len(spans) - known, 2))
    for layer, of_layer in states.items():
        h = of_layer.astype(np.float64)
        learnt_from = Known(h[:known], of_spans[:known], of_known, document)
        found[layer] = preferred(read(learnt_from, h[known:], of_spans[known:]), of_asked)
    return distributed.sum_over_ranks(torch.from_numpy(found).to(distributed.device())).cpu().numpy()


def _measured(asked: pd.DataFrame, pairs: np.ndarray) -> Iterator[Measurement]:
    for layer, of_layer in enumerate(pairs):
        for population, split in SPLITS.items():
            here = (asked["split"] == split).to_numpy()
            yield preference(population, of_layer[here], asked["document"].to_numpy()[here], {"layer": str(layer)})


def _tokens(context: AttackContext, spans: pd.DataFrame) -> list[tuple[int, ...]]:
    """The tokens of each span."""
    found = []
    for split, row, first, end in zip(spans["split"], spans["row"], spans["first"], spans["end"], strict=True):
        found.append(tuple(context.rows[split].batch([row]).input_ids[0, first:end].tolist()))
    return found


@torch.no_grad()
def _states(
    context: AttackContext, engine: Engine, spans: pd.DataFrame, tokens: Sequence[int]
) -> tuple[dict[int, np.ndarray], dict[int, np.ndarray]]:
    """The state before each span, float32 [spans, hidden_size], of the layers that this rank reads; and the rows of `tokens` in the output
    projection. All ranks together hold each layer once."""
    of_row: dict[tuple[str, int], list[int]] = {}
    for span, split, row in zip(range(len(spans)), spans["split"], spans["row"], strict=True):
        of_row.setdefault((split, int(row)), []).append(span)
    items, first = sorted(of_row), spans["first"].to_numpy()
    micro_rows, length = context.audit.micro_rows, max(rows.row_length for rows in context.rows.values())
    mine_of_layers = range(distributed.rank(), len(blocks_of(engine.model)), distributed.world_size())
    states: dict[int, np.ndarray] = {}
    rows_of_tokens: dict[int, np.ndarray] = {}

    def rows_of(hidden: torch.Tensor, weight: torch.Tensor, *_: object) -> torch.Tensor:
        return weight[torch.tensor(tokens, device=weight.device)].float().cpu()

    with block_outputs(engine) as (outputs, norm):

        def compute(mine: range, dealt: Sequence[range]) -> torch.Tensor:
            parts = [context.rows[items[i][0]].batch([items[i][1]]) for i in mine]
            # Filled up with padding: kernels may sum micro-batches of other shapes in another order.
            batch = stacked([*parts, *[empty_batch(1, length)] * (micro_rows - len(parts))])
            found = engine.forward(batch.input_ids, batch.position, rows_of)
            if not rows_of_tokens:
                rows_of_tokens.update(zip(tokens, found.numpy(), strict=True))
            most = max(sum(len(of_row[items[i]]) for i in of_rank) for of_rank in dealt)
            sent = torch.zeros((len(outputs), most, outputs[0].shape[-1]))
            places = [(row, int(first[s]) - 1) for row, i in enumerate(mine) for s in of_row[items[i]]]
            for layer, output in enumerate(outputs):
                seen = norm[0](output) if norm else output
                for place, (row, column) in enumerate(places):
                    sent[layer, place] = seen[row, column].float().cpu()
            return sent.to(engine.device)

        for numbers, made in map_rounds(len(items), micro_rows, compute):
            lines = [s for i in numbers for s in of_row[items[i]]]
            for layer in mine_of_layers:
                of_layer = states.setdefault(layer, np.zeros((len(spans), made.shape[-1]), np.float32))
                of_layer[lines] = made[layer, : len(lines)].numpy()
    return states, rows_of_tokens
