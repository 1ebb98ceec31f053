"""Real generation on the sharded model: batches of prompts padded on the left, a key-value cache, greedy or top-k sampling.

Generating gathers every weight once for each token, where scoring gathers it once for a whole batch of rows. Where all ranks have room
for the whole model, its weights therefore stay gathered while it lasts (`resident`), and the ranks generate side by side.

What comes out depends neither on the number of ranks nor on where the weights are: batches are formed before they are dealt, and each
prompt draws from a random stream of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import psutil
import torch
from transformers import DynamicCache

from sani_dist.engine import distributed
from sani_dist.engine.deepspeed_internals import resident
from sani_dist.engine.map_rows import map_rounds
from sani_dist.engine.zero3 import Engine
from sani_dist.kernels import token_scores

# What generating needs beside the weights: caches, activations, and the copies that a gather makes on its way.
ROOM = 1.5
# Stands among the modules that use a parameter right now; DeepSpeed numbers those from 0.
_RESIDENT = -1


@dataclass(frozen=True)
class Prompt:
    """Token ids to go on from, int64 [tokens], at least one, and how many to generate."""

    ids: np.ndarray
    new_tokens: int


@dataclass(frozen=True)
class Decoding:
    """`samples` continuations of each prompt, each token one of the `top_k` likeliest, with their probabilities raised to 1 / temperature.

    The default is greedy decoding; ties go to the lowest id.
    """

    samples: int = 1
    top_k: int = 1
    temperature: float = 1.0
    seed: int = 0


@torch.no_grad()
def generate(
    engine: Engine,
    prompts: Sequence[Prompt],
    decoding: Decoding,
    rows: int,
    report: Callable[[int], None] = lambda done: None,
    *,
    whole: bool | None = None,
) -> list[np.ndarray]:
    """The new tokens of each prompt, int64 [samples, new_tokens], also after an end of text: the reader cuts. All ranks get all of them.

    Args:
        engine: wrapped, for inference or training.
        rows: texts that one rank generates at once; several samples of a prompt share what was computed of it.
        whole: keep the weights gathered meanwhile; None: where there is room on every rank.
    """
    # Prompts of like length together: less padding.
    order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i].ids), i))
    size = 1 if engine.alone else max(1, rows // decoding.samples)
    found: dict[int, np.ndarray] = {}
    keeps = (
        resident(list(engine.module.parameters()))
        if (fits_whole(engine) if whole is None else whole)
        else nullcontext()
    )
    with keeps:

        def compute(mine: range, dealt: Sequence[range]) -> torch.Tensor:
            steps = max(prompts[order[i]].new_tokens for items in dealt for i in items)
            return _Batch(engine, {order[i]: prompts[order[i]] for i in mine}, size, decoding).tokens(steps)

        for items, made in map_rounds(len(prompts), size, compute, report):
            for i, lines in zip(items, made.numpy().reshape(size, decoding.samples, -1), strict=False):
                found[order[i]] = lines[:, : prompts[order[i]].new_tokens]
    return [found[i] for i in range(len(prompts))]


def fits_whole(engine: Engine) -> bool:
    """Whether every rank has room for all weights. All ranks get the same answer."""
    # A partitioned parameter is empty; ZeRO-3 keeps its size.
    needed = ROOM * sum(getattr(p, "ds_numel", p.numel()) * p.element_size() for p in engine.module.parameters())
    if engine.device.type == "cuda":
        free = float(torch.cuda.mem_get_info(engine.device)[0])
    else:
        free = psutil.virtual_memory().available / distributed.ranks_of_this_host()
    lacking = torch.tensor([float(needed > free)], device=engine.device)
    return not distributed.sum_over_ranks(lacking).item()


class _Batch:
    """At most `size` prompts by number, padded on the left. A rank with fewer, or none, pads with prompts of its own: it has to keep up
    with the collectives of the others."""

    def __init__(self, engine: Engine, prompts: Mapping[int, Prompt], size: int, decoding: Decoding) -> None:
        self._engine, self._decoding = engine, decoding
        given = [(number, prompt.ids) for number, prompt in prompts.items()]
        given += [(0, np.zeros(1, np.int64))] * (size - len(given))
        width = max(len(ids) for _, ids in given)
        self._ids = torch.zeros((size, width), dtype=torch.int64)
        self._sees = torch.zeros((size, width), dtype=torch.int64)
        for i, (_, ids) in enumerate(given):
            self._ids[i, width - len(ids) :] = torch.from_numpy(ids)
            self._sees[i, width - len(ids) :] = 1
        # A stream for each text, whatever the batch it falls into.
        streams = [(decoding.seed, number, sample) for number, _ in given for sample in range(decoding.samples)]
        self._draws = [np.random.default_rng(stream) for stream in streams]

    def tokens(self, steps: int) -> torch.Tensor:
        """`steps` new tokens of each text: int64 [size * samples, steps], on the engine's device; the samples of a prompt side by side."""
        samples = self._decoding.samples
        if self._engine.alone:
            return self._anew(self._ids.to(self._engine.device).repeat_interleave(samples, 0), steps)
        ids, sees = self._ids.to(self._engine.device), self._sees.to(self._engine.device)
        position = (sees.cumsum(1) - 1).clamp(min=0)
        cache = DynamicCache(config=self._engine.model.config)
        likely, logprob = self._next(cache, ids, sees, position)
        cache.batch_repeat_interleave(samples)
        sees, position, likely, logprob = (t.repeat_interleave(samples, 0) for t in (sees, position, likely, logprob))
        made = [self._choose(likely, logprob)]
        while len(made) < steps:
            position = position[:, -1:] + 1
            sees = torch.cat([sees, torch.ones_like(made[-1])], dim=1)
            made.append(self._choose(*self._next(cache, made[-1], sees, position)))
        return torch.cat(made, dim=1)

    def _anew(self, ids: torch.Tensor, steps: int) -> torch.Tensor:
        """The same without a cache and without padding, which not every model takes as nothing: a forward of the whole text each time."""
        for _ in range(steps):
            position = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
            last = (torch.arange(len(ids), device=ids.device) + 1) * ids.shape[1] - 1
            likely, logprob = self._engine.forward(ids, position, partial(_likeliest, last, self._decoding.top_k))
            ids = torch.cat([ids, self._choose(likely, logprob)], dim=1)
        return ids[:, -steps:]

    def _next(
        self, cache: DynamicCache, ids: torch.Tensor, sees: torch.Tensor, position: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids [lines, top_k], best first, and log-probabilities of what may follow `ids`, all of it [lines, tokens]; adds to `cache`."""
        last = (torch.arange(len(ids), device=ids.device) + 1) * ids.shape[1] - 1
        with _remembering(self._engine, cache, sees):
            return self._engine.forward(ids, position, partial(_likeliest, last, self._decoding.top_k))

    def _choose(self, likely: torch.Tensor, logprob: torch.Tensor) -> torch.Tensor:
        """A token for each line, int64 [lines, 1], by inversion: the first at which the summed probability passes a uniform draw."""
        uniform = torch.tensor([[draw.random()] for draw in self._draws], dtype=torch.float64, device=likely.device)
        p = torch.softmax(logprob.double() / self._decoding.temperature, dim=1)
        passed = (
            p @ torch.ones((p.shape[1], p.shape[1]), dtype=p.dtype, device=p.device).triu()
        )  # GPUs' cumsum adds in any order
        place = (passed <= uniform).sum(dim=1, keepdim=True)
        return likely.gather(1, place.clamp(max=likely.shape[1] - 1))  # rounding may leave the sum below the draw


@contextmanager
def _remembering(engine: Engine, cache: DynamicCache, sees: torch.Tensor) -> Iterator[None]:
    """While it lasts, the body of the model reads and writes `cache`, and looks at nothing where `sees` [rows, tokens so far] is 0."""

    def give(module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, {**kwargs, "past_key_values": cache, "use_cache": True, "attention_mask": sees}

    hook = engine.module.body.register_forward_pre_hook(give, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()


def _likeliest(last: torch.Tensor, top_k: int, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, softcap: float | None) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip # noqa: E501
    """Ids [rows, top_k], best first, and log-probabilities of what may follow each row, whose last token's hidden state is at `last`."""
    scores = token_scores(hidden, weight, torch.zeros_like(last), last, bias=bias, softcap=softcap, top_k=top_k)
    assert scores.top_ids is not None
    assert scores.top_logprob is not None
    return scores.top_ids, scores.top_logprob
