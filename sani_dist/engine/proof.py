"""Shown before anything is changed: the model that is sanitised computes what plain transformers computes.

On a twin of the model, small and random, before any rank starts: what is read of its files, what is packed into rows, what
is made of the last hidden states and what an export would write are compared with the plain model. And on the model itself, once it is
loaded. An architecture that passes needs no entry anywhere.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from sani_dist.engine.attention import attend_by_document
from sani_dist.engine.blocks import blocks_of
from sani_dist.engine.buffers import read_buffers
from sani_dist.engine.head import Logits, own_logits
from sani_dist.engine.layout import exported, find_layout
from sani_dist.engine.packed_attention import before_in_document
from sani_dist.engine.safetensors_files import SINGLE, Checkpoint
from sani_dist.engine.shards import local_shards
from sani_dist.engine.twin import WINDOW, save_twin, twin_of
from sani_dist.engine.zero3 import CausalModel, Engine, MaskedModel, auto_class, build_empty, is_masked
from sani_dist.errors import InputError
from sani_dist.kernels import token_scores

# Of log-probabilities in float32, in nats. A wrong scale, buffer or neighbour moves those of a twin by a hundred times that and more.
TOLERANCE = 2e-3
LENGTHS = (13, 11)
TOKENS = 40  # of which texts are made: any vocabulary has them
OTHER_LOSS = "the loss that is computed here is not that of its own forward; it cannot be sanitised here"


@dataclass(frozen=True)
class Proof:
    """shown: whether a twin could be made. apart: whether documents that share a row do not see each other."""

    shown: bool
    apart: bool


def prove(config: Any) -> Proof:
    """What a twin of the model of `config` shows. Raises InputError, in one line, when it computes something else than transformers."""
    key = config.to_json_string(use_diff=False)
    if key not in _proofs:
        _proofs[key] = _prove(config)
    return _proofs[key]


def alone(config: Any) -> bool:
    """Whether each document needs a row of its own: the model sees others in its row, or nobody could show that it does not."""
    return is_masked(config) or not prove(config).apart


@torch.no_grad()
def prove_loaded(engine: Engine) -> None:
    """The same of the loaded model, every rank with the others: its loss is that of its own forward, and a document is the same whatever
    stands before it in its row. Raises InputError, in one line, when not. engine: wrapped for inference. A few forwards of some tokens."""
    if engine.masked:
        return  # rows of one document, and a head that is its own but for the projection
    module, name, device = engine.module, type(engine.model).__name__, engine.device
    first, second = (_ids(length, seed).to(device) for seed, length in enumerate(LENGTHS))
    # Of bfloat16: logits are rounded to a 256th where the model's own forward makes them, and not here.
    tolerance = TOLERANCE if engine.model.dtype == torch.float32 else 0.05
    own = _of_row(module, second, torch.arange(len(second), device=device))
    plain = module(second[None], None, partial(_by_own_forward, engine.model, module.head.logits, second))
    if not _mean_near(own, plain, tolerance):
        raise InputError(f"model.path: {name}: {OTHER_LOSS}")
    if engine.alone:
        return
    position = torch.cat([torch.arange(length, device=device) for length in LENGTHS])
    once, again = (
        _of_row(module, torch.cat([before, second]), position)[len(first) :] for before in (first, first.flip(0))
    )
    if not _mean_near(once, again, tolerance):
        raise InputError(
            f"model.path: {name}: a document changes with what stands before it in its row; set corpus.packing: none"
        )


def _by_own_forward(
    model: PreTrainedModel, by: Logits, ids: torch.Tensor, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None,
    softcap: float | None,
) -> torch.Tensor:  # fmt: skip
    """log p, [tokens, 1], by what the model itself makes of the last hidden states, which come scaled as the head here scales them."""

    def project(states: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        return nn.functional.linear(states, weight, bias if bias is None else bias / by.after)

    logits = own_logits(model, hidden[None] / (by.before * by.after), project)[0].double()
    return logits.log_softmax(-1).gather(1, _targets(ids)[:, None])


def _mean_near(values: torch.Tensor, expected: torch.Tensor, tolerance: float) -> bool:
    """On average: a mixture may choose another expert by a rounding. NaN is near nothing."""
    return bool((values - expected).abs().mean() <= tolerance * (1 + expected.abs().mean()))


_proofs: dict[str, Proof] = {}  # settings of a model -> what was shown


def _prove(config: Any) -> Proof:
    with _quiet(), torch.random.fork_rng(devices=[]), torch.no_grad():
        twin = twin_of(config, auto_class(config), **_without_cache(config))
        if twin is None:
            return Proof(shown=False, apart=False)
        with tempfile.TemporaryDirectory() as folder:
            try:
                save_twin(twin, Path(folder) / SINGLE)
            except Exception:  # whatever a family's conversion of names raises
                return Proof(shown=False, apart=False)
            checkpoint = Checkpoint(Path(folder))
            read = _read(twin, checkpoint)
            name = type(twin).__name__
            texts = [_ids(length, seed) for seed, length in enumerate(LENGTHS)]
            _check_reading(name, twin, read, checkpoint, texts[0])
            return _compare(name, twin, read, texts)


def _read(twin: PreTrainedModel, checkpoint: Checkpoint) -> PreTrainedModel:
    """The model as ranks read it from the files of the twin, unsharded."""
    config = twin.config
    model = build_empty(config, torch.float32, checkpoint)
    layout = find_layout(model, checkpoint)
    if layout is None:  # transformers loads it
        found: PreTrainedModel = auto_class(config).from_pretrained(
            checkpoint.folder, dtype=torch.float32, trust_remote_code=False
        )
        return found.eval()
    made: dict[nn.Parameter, nn.Parameter] = {}
    for module in model.modules():
        for name, meta in module._parameters.items():
            if meta is not None:
                made.setdefault(meta, nn.Parameter(torch.full(meta.shape, torch.nan), meta.requires_grad))
                module._parameters[name] = made[meta]
    for live in local_shards(model):
        layout.read_into(live.shard.name, live.shard.start, live.shard.stop, live.values)
    read_buffers(model, layout.buffers, torch.float32)
    return model.eval()


def _check_reading(name: str, twin: PreTrainedModel, read: PreTrainedModel, checkpoint: Checkpoint, ids: torch.Tensor) -> None:  # fmt: skip
    if not _same(_plain(read, ids), _plain(twin, ids)):
        raise InputError(
            f"model.path: {name}: what is read of its files is not what transformers reads; it cannot be sanitised here"
        )
    if find_layout(read, checkpoint) is not None:
        written = {live.shard.name for live in exported(read, checkpoint)}
        if missing := sorted(checkpoint.tensors.keys() - written):
            raise InputError(f"model.path: {name}: an export would lack {missing[0]}; it cannot be sanitised here")


def _compare(name: str, twin: PreTrainedModel, read: PreTrainedModel, texts: list[torch.Tensor]) -> Proof:
    attend_by_document(read)
    module: Any = MaskedModel(read) if is_masked(twin.config) else CausalModel(read)
    if isinstance(module, CausalModel):
        module.attention.checked = True  # here it is seen by what comes out
    first, second = texts
    padded = torch.cat([second, torch.zeros(5, dtype=torch.int64)])
    position = torch.cat([torch.arange(len(second)), torch.zeros(5, dtype=torch.int64)])
    if not _same(_of_row(module, padded, position)[: len(second)], _plain(twin, second)):
        raise InputError(f"model.path: {name}: {OTHER_LOSS}")
    if is_masked(twin.config):
        return Proof(shown=True, apart=False)
    row = torch.cat(texts)
    position = torch.cat([torch.arange(len(text)) for text in texts])
    expected = torch.cat([_plain(twin, text) for text in texts])
    try:
        apart = _same(_of_row(module, row, position), expected) and not _moves(module, first, second)
        with module.seeing(before_in_document(position[None])):  # which takes the place of a window
            seen = position < WINDOW
            apart = apart and _same(_of_row(module, row, position)[seen], expected[seen])
    except Exception:  # what a family's own code says to rows that it was not made for
        apart = False
    return Proof(shown=True, apart=apart)


def _moves(module: CausalModel, first: torch.Tensor, second: torch.Tensor) -> bool:
    """Whether any block gives something else for the second document of a row when the first is another."""
    position = torch.cat([torch.arange(len(first)), torch.arange(len(second))])
    found: list[list[torch.Tensor]] = []
    for other in (first, (first + 7) % TOKENS):
        outputs: list[torch.Tensor] = []
        hooks = [block.register_forward_hook(partial(_keep, outputs)) for block in blocks_of(module.body)]
        try:
            _of_row(module, torch.cat([other, second]), position)
        finally:
            for hook in hooks:
                hook.remove()
        found.append([states[:, -len(second) :] for states in outputs])
    return not all(_same(one, another) for one, another in zip(*found, strict=True))


def _keep(outputs: list[torch.Tensor], block: nn.Module, given: Any, output: Any) -> None:
    outputs.append(output if torch.is_tensor(output) else output[0])


def _of_row(module: nn.Module, ids: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    """log p, [tokens, 1], by kernel and packed forward: of the next token of the row, or of each itself where that is hidden."""
    target, rows = _targets(ids), torch.arange(len(ids), device=ids.device)

    def compute(
        hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, softcap: float | None
    ) -> torch.Tensor:
        return token_scores(hidden, weight, target, rows, bias=bias, softcap=softcap).logprob

    found: torch.Tensor = module(ids[None], position[None], compute)
    return found.double()[:, None]


def _plain(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    """The same by the model's own forward, of one document alone."""
    logits: torch.Tensor = model(input_ids=ids[None], **_without_cache(model.config)).logits[0].double()
    return logits.log_softmax(-1).gather(1, _targets(ids)[:, None])


def _without_cache(config: Any) -> dict[str, Any]:
    return {} if is_masked(config) else {"use_cache": False}


def _targets(ids: torch.Tensor) -> torch.Tensor:
    """Any tokens will do, if they are the same wherever a token stands."""
    return (ids * 31 + 5) % TOKENS


def _same(values: torch.Tensor, expected: torch.Tensor) -> bool:
    return values.shape == expected.shape and torch.allclose(values, expected, rtol=TOLERANCE, atol=TOLERANCE)


def _ids(length: int, seed: int) -> torch.Tensor:
    return torch.randint(1, TOKENS, (length,), generator=torch.Generator().manual_seed(seed))


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' progress bars and warnings: they are about a model that nobody has."""
    bars, level = transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()
