"""Representation drift: how far the hidden states have moved from those of the model before (Xu et al., arXiv 2505.16831).

cka             linear centred kernel alignment of the two (Kornblith et al., arXiv 1905.00414), from unbiased estimates (Song et al., JMLR
                2012), since there may be fewer tokens than dimensions; 1: the same up to rotation and scale
pca_similarity  cosine of the two first principal directions
pca_shift       distance of the two means along the first principal direction of the model before, in its standard deviations
pca_distance    the same in the plane of the first two; and the mean of it over all layers, which stands for the whole
fisher_ratio    mean diagonal Fisher information of the layer's weights, after / before (`fisher`)

A model whose words have changed but not its inside has been silenced; what it knew can come back.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from sani_dist.attack.context import AttackContext
from sani_dist.attack.fisher import fisher
from sani_dist.attack.lens import block_outputs
from sani_dist.attack.result import Result
from sani_dist.audit.measurement import Measurement
from sani_dist.corpus.rows import NO_DOCUMENT, Batch, PackedRows
from sani_dist.engine.map_rows import map_rows
from sani_dist.engine.zero3 import Engine

# Text that was repaired, and text that should not have been touched.
SPLITS = ("repair", "general_test")


def drift(context: AttackContext, name: str, load: Iterator[Engine]) -> Iterator[Result]:
    """One result; its measurements are those of every layer, counted from 0, as groups, and `pca_distance` over all of them. None where
    there is no model before."""
    if context.before is None:
        return
    splits = [split for split in SPLITS if split in context.rows]
    seen: list[dict[str, tuple[np.ndarray, np.ndarray]]] = []
    for engine in (context.load(context.before), next(load)):
        engine.for_inference()
        seen.append({split: _seen(context, engine, context.rows[split]) for split in splits})
        engine.close()
    measured = [m for split in splits for m in _moved(split, *seen[0][split], *seen[1][split])]
    yield Result("drift", "each layer", name, tuple(measured))


def _seen(context: AttackContext, engine: Engine, rows: PackedRows) -> tuple[np.ndarray, np.ndarray]:
    """Hidden states [layers, tokens, hidden_size] and Fisher information [layers]."""
    states = hidden_states(engine, rows, context.settings.drift_tokens, context.audit.micro_rows)
    return states, fisher(engine, rows)


def _moved(
    split: str, before: np.ndarray, fisher_before: np.ndarray, after: np.ndarray, fisher_after: np.ndarray
) -> Iterator[Measurement]:
    tokens, distances = before.shape[1], []
    for layer, (x, y) in enumerate(zip(before, after, strict=True)):
        similarity, shift, distance = principal(x, y)
        distances.append(distance)
        values = {
            "cka": cka(x, y), "pca_similarity": similarity, "pca_shift": shift, "pca_distance": distance,
            "fisher_ratio": float(fisher_after[layer] / max(fisher_before[layer], 1e-300)),
        }  # fmt: skip
        for metric, value in values.items():
            yield Measurement(metric, split, value, None, None, tokens, {"layer": str(layer)})
    yield Measurement("pca_distance", split, float(np.mean(distances)), None, None, tokens, {})


@torch.no_grad()
def hidden_states(engine: Engine, rows: PackedRows, tokens: int, micro_rows: int) -> np.ndarray:
    """Of about `tokens` tokens, evenly spaced over the rows: float32 [layers, tokens, hidden_size], the same on every rank."""
    each = min(rows.row_length, max(1, -(-tokens // len(rows))))
    found = []
    with block_outputs(engine) as (outputs, _):

        def compute(batch: Batch) -> torch.Tensor:
            engine.forward(batch.input_ids, batch.position, lambda *_: None)
            sent = torch.full((len(outputs), micro_rows, each, outputs[0].shape[-1]), torch.nan)
            for row, document in enumerate(batch.document):
                real = torch.nonzero(document != NO_DOCUMENT)[:, 0]
                chosen = real[torch.linspace(0, len(real) - 1, min(each, len(real))).long()] if len(real) else real
                for layer, output in enumerate(outputs):
                    sent[layer, row, : len(chosen)] = output[row, chosen.to(output.device)].float().cpu()
            return sent

        for _, made in map_rows(engine, rows, micro_rows, compute, count=min(len(rows), tokens)):
            states = made.numpy().reshape(made.shape[0], -1, made.shape[-1])
            found.append(states[:, ~np.isnan(states[0, :, 0])])
    return np.concatenate(found, axis=1)


def cka(x: np.ndarray, y: np.ndarray) -> float:
    """Linear CKA of [tokens, dimensions] each, at least 4 tokens."""
    kernels = [_without_diagonal(m @ m.T) for m in (x.astype(np.float64), y.astype(np.float64))]
    own = [_hsic(k, k) for k in kernels]
    return float(_hsic(*kernels) / np.sqrt(own[0] * own[1])) if min(own) > 0 else 0.0


def principal(x: np.ndarray, y: np.ndarray) -> tuple[float, float, float]:
    """Cosine of the first principal directions (their sign is arbitrary), and the distance of the means along the first of `x`, and in the
    plane of its first two, in standard deviations along the first."""
    (directions, spread), (others, _) = (_directions(m.astype(np.float64)) for m in (x, y))
    shift = directions @ (y.mean(axis=0) - x.mean(axis=0)) / max(spread, 1e-12)
    return abs(float(directions[0] @ others[0])), abs(float(shift[0])), float(np.linalg.norm(shift))


def _directions(values: np.ndarray) -> tuple[np.ndarray, float]:
    """The first two principal directions, and the standard deviation along the first."""
    _, singular, directions = np.linalg.svd(values - values.mean(axis=0), full_matrices=False)
    return directions[:2], float(singular[0] / np.sqrt(len(values)))


def _without_diagonal(kernel: np.ndarray) -> np.ndarray:
    np.fill_diagonal(kernel, 0)
    return kernel


def _hsic(k: np.ndarray, m: np.ndarray) -> float:
    """Unbiased Hilbert-Schmidt criterion of two kernels with zero diagonals."""
    n = len(k)
    joint = (
        float((k * m).sum())
        + k.sum() * m.sum() / ((n - 1) * (n - 2))
        - 2 / (n - 2) * float(k.sum(axis=0) @ m.sum(axis=0))
    )
    return float(joint / (n * (n - 3)))
