"""Linear probes: is a value still readable inside, by who trains a reader on values that are known?

The hidden state of the token before a value, at each layer, is mapped linearly (ridge regression) to where the value lies in the output
projection of the model. That is a place in a space, not one of a list of classes, so the map reads values it was never trained on: those
of the other half of the documents. Two places are tried, each a variant:

| variant | the value's place |
|---|---|
| first token | the row of its first token in the output projection |
| whole value | the mean of the rows of its tokens |

What is read is judged against the other values of the same kind of the same population: how often does it lie nearer, by the cosine, to the
true one? Each pair of spans counts both ways, so a reader who knows only what is frequent gets 50 %; what the text before a value gives
away shows in the never-trained control, which the same map reads.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
import torch

from sani_dist.attack.halves import half_of_documents, spans_of_the_others
from sani_dist.attack.lens import block_outputs
from sani_dist.attack.result import PREFERENCE, Result
from sani_dist.attack.scene import Scene, preference
from sani_dist.audit.measurement import Measurement
from sani_dist.audit.spans import SPLITS
from sani_dist.corpus.rows import empty_batch, stacked
from sani_dist.engine import distributed
from sani_dist.engine.rounds import rounds
from sani_dist.engine.zero3 import Engine, blocks_of

VARIANTS = ("first token", "whole value")
FEWEST_KNOWN = 8
# Ridge penalties that are tried, relative to the mean square of the states: the one that foretells a left-out span best is taken.
_PENALTIES = np.logspace(-3, 4, 15)


def probe(scene: Scene, name: str, load: Iterator[Engine]) -> Iterator[Result]:
    """One result for each variant; its measurements are those of every layer, counted from 0, as groups."""
    half, most = half_of_documents(scene), scene.settings.probe_spans
    known = scene.sample(most, scene.spans[scene.spans["document"].isin(half)])
    asked = scene.sample(most, spans_of_the_others(scene, half))
    if len(known) < FEWEST_KNOWN or asked.empty:
        few = f"too few spans to learn from: {len(known)}, {FEWEST_KNOWN} are needed"
        nothing = Measurement(PREFERENCE, "sensitive", None, None, None, 0, {}, few)
        yield from (Result("probe", variant, name, (nothing,)) for variant in VARIANTS)
        return
    spans = pd.concat([known, asked], ignore_index=True)
    tokens = _tokens(scene, spans)
    engine = next(load)
    engine.for_inference()
    layers = len(blocks_of(engine.model))
    states, rows_of_tokens = _states(scene, engine, spans, sorted({token for of_span in tokens for token in of_span}))
    engine.close()
    for variant in VARIANTS:
        named = [of_span[:1] if variant == "first token" else of_span for of_span in tokens]
        places = np.stack([np.mean([rows_of_tokens[t] for t in of_span], axis=0) for of_span in named])
        pairs = _of_all_layers(layers, states, places, len(known), asked, named[len(known) :])
        yield Result("probe", variant, name, tuple(_measured(asked, pairs)))


def read(states: np.ndarray, places: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """Where the values behind `asked` lie, less the mean place, foretold by ridge regression from states [n, hidden] to places [n, size].

    The penalty is the one with the least error on left-out spans, which needs no further fit (Allen, Technometrics 16, 1974).
    """
    mean, scale = states.mean(axis=0), states.std(axis=0) + 1e-9
    x, new = (states - mean) / scale, (asked - mean) / scale
    y = places - places.mean(axis=0)
    values, vectors = np.linalg.eigh(x @ x.T)
    turned = vectors.T @ y
    best, weights = np.inf, np.zeros_like(turned)
    for penalty in _PENALTIES * x.shape[1]:
        shrunk = values.clip(min=0) / (values.clip(min=0) + penalty)
        leverage = (vectors**2 * shrunk).sum(axis=1) + 1 / len(x)
        left_out = (y - vectors @ (shrunk[:, None] * turned)) / (1 - leverage).clip(min=1e-9)[:, None]
        error = float((left_out**2).sum())
        if error < best:
            best, weights = error, turned / (values.clip(min=0) + penalty)[:, None]
    found: np.ndarray = new @ x.T @ (vectors @ weights)
    return found


def preferred(
    found: np.ndarray, places: np.ndarray, kinds: Sequence[str], named: Sequence[Sequence[int]]
) -> np.ndarray:
    """Of each span, how many spans of its kind with another value lie farther from what was found than its own, and how many there are.

    found, places: [spans, size], both less the same mean. named: what tells values apart. Ties count half. Returns float64 [spans, 2].
    """
    directions = [m / np.linalg.norm(m, axis=1, keepdims=True).clip(min=1e-12) for m in (found, places)]
    # Rounded, so that equal places are equal whatever the order of sums.
    nearness = np.round(directions[0] @ directions[1].T, 6)
    own = np.diagonal(nearness)[:, None]
    kind = pd.factorize(np.array(kinds, dtype=object))[0]
    value = pd.factorize(np.array([str(tuple(n)) for n in named], dtype=object))[0]
    others = (kind[:, None] == kind) & (value[:, None] != value)
    wins = ((own > nearness) + 0.5 * (own == nearness)) * others
    return np.stack([wins.sum(axis=1), others.sum(axis=1)], axis=1).astype(np.float64)


def _of_all_layers(
    layers: int, states: dict[int, np.ndarray], places: np.ndarray, known: int, asked: pd.DataFrame,
    named: Sequence[Sequence[int]],
) -> np.ndarray:  # fmt: skip
    """`preferred` of every layer: float64 [layers, asked, 2]. Each rank reads the layers whose states it holds."""
    found = np.zeros((layers, len(asked), 2))
    of_asked = places[known:] - places[:known].mean(axis=0)
    for layer, of_layer in states.items():
        guessed = read(*(part.astype(np.float64) for part in (of_layer[:known], places[:known], of_layer[known:])))
        for split in SPLITS.values():
            here = np.flatnonzero(asked["split"] == split).tolist()
            kinds = asked["kind"].iloc[here].tolist()
            found[layer, here] = preferred(guessed[here], of_asked[here], kinds, [named[i] for i in here])
    return distributed.sum_over_ranks(torch.from_numpy(found).to(distributed.device())).cpu().numpy()


def _measured(asked: pd.DataFrame, pairs: np.ndarray) -> Iterator[Measurement]:
    for layer, of_layer in enumerate(pairs):
        for population, split in SPLITS.items():
            here = (asked["split"] == split).to_numpy()
            yield preference(population, of_layer[here], asked["document"].to_numpy()[here], {"layer": str(layer)})


def _tokens(scene: Scene, spans: pd.DataFrame) -> list[tuple[int, ...]]:
    """The tokens of each span."""
    found = []
    for split, row, first, end in zip(spans["split"], spans["row"], spans["first"], spans["end"], strict=True):
        found.append(tuple(scene.rows[split].batch([row]).input_ids[0, first:end].tolist()))
    return found


@torch.no_grad()
def _states(
    scene: Scene, engine: Engine, spans: pd.DataFrame, tokens: Sequence[int]
) -> tuple[dict[int, np.ndarray], dict[int, np.ndarray]]:
    """The state before each span, float32 [spans, hidden_size], of the layers that this rank reads; and the rows of `tokens` in the output
    projection. All ranks together hold each layer once."""
    of_row: dict[tuple[str, int], list[int]] = {}
    for span, split, row in zip(range(len(spans)), spans["split"], spans["row"], strict=True):
        of_row.setdefault((split, int(row)), []).append(span)
    items, first = sorted(of_row), spans["first"].to_numpy()
    micro_rows, length = scene.audit.micro_rows, max(rows.row_length for rows in scene.rows.values())
    mine_of_layers = range(distributed.rank(), len(blocks_of(engine.model)), distributed.world_size())
    states: dict[int, np.ndarray] = {}
    rows_of_tokens: dict[int, np.ndarray] = {}

    def rows_of(hidden: torch.Tensor, weight: torch.Tensor, *_: object) -> torch.Tensor:
        return weight[torch.tensor(tokens, device=weight.device)].float().cpu()

    with block_outputs(engine) as (outputs, _):
        for mine, dealt in rounds(len(items), micro_rows):
            parts = [scene.rows[items[i][0]].batch([items[i][1]]) for i in mine]
            # Filled up with padding: kernels may sum micro-batches of other shapes in another order.
            batch = stacked([*parts, *[empty_batch(1, length)] * (micro_rows - len(parts))])
            found = engine.forward(batch.input_ids, batch.position, rows_of)
            rows_of_tokens = rows_of_tokens or dict(zip(tokens, found.numpy(), strict=True))
            most = max(sum(len(of_row[items[i]]) for i in of_rank) for of_rank in dealt)
            sent = torch.zeros((len(outputs), most, outputs[0].shape[-1]))
            places = [(row, int(first[s]) - 1) for row, i in enumerate(mine) for s in of_row[items[i]]]
            for layer, output in enumerate(outputs):
                for place, (row, column) in enumerate(places):
                    sent[layer, place] = output[row, column].float().cpu()
            gathered = distributed.gather_in_rank_order(sent.to(engine.device)).cpu().numpy()
            for part, of_rank in zip(gathered, dealt, strict=True):
                lines = [s for i in of_rank for s in of_row[items[i]]]
                for layer in mine_of_layers:
                    of_layer = states.setdefault(layer, np.zeros((len(spans), part.shape[-1]), np.float32))
                    of_layer[lines] = part[layer, : len(lines)]
    return states, rows_of_tokens
