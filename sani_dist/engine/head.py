"""What stands between the last hidden states of a causal language model and its logits.

Families scale hidden states or logits, and cap these softly, under names and with meanings of their own: `logit_scale` multiplies,
`logits_scaling` divides or multiplies. So no name is read: the model's own forward is run once, with its body and its projection
replaced by values that are known, and what it makes of these is what it does. Costs no weights, so it works on an empty model too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast

from sani_dist.engine.blocks import blocks_of
from sani_dist.errors import InputError

T = TypeVar("T")
# A relative error of float32 that no scale or cap of a model is.
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Logits:
    """softcap x tanh(after x projection(before x hidden) / softcap), or after x projection(before x hidden) without a soft cap."""

    before: float = 1.0
    after: float = 1.0
    softcap: float | None = None


class VocabularyHead(nn.Module):
    """The output projection as a module of its own, so that ZeRO-3's hooks gather its weight exactly while it is used."""

    def __init__(self, model: PreTrainedModel, logits: Logits) -> None:
        super().__init__()
        projection: Any = model.get_output_embeddings()
        self.weight: nn.Parameter = projection.weight
        self.bias: nn.Parameter | None = getattr(projection, "bias", None)
        self.logits = logits

    def forward(self, hidden: torch.Tensor, compute: Callable[..., T]) -> T:
        """`compute(hidden [tokens, hidden_size], weight [vocabulary, hidden_size], bias, softcap)` with the weight gathered."""
        scale = self.logits.before * self.logits.after
        hidden = hidden if scale == 1 else hidden * scale
        bias = self.bias if self.bias is None or self.logits.after == 1 else self.bias * self.logits.after
        result: T = compute(hidden, self.weight, bias, self.logits.softcap)
        return result


def logits_of(model: PreTrainedModel) -> Logits:
    """What a causal model does beside projecting. Raises InputError, in one line, when that is more than scales and a soft cap."""
    probe = _Probe(model)
    states = torch.randn(1, 2, probe.hidden_size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    small = torch.linspace(-1, 1, probe.vocabulary, dtype=torch.float64).expand(1, 2, -1)
    entered, made = probe(states, small * 2**-20)  # where a cap does nothing yet
    before, after = _factor(entered, states), _factor(made, small * 2**-20)
    softcap = None
    if before is not None and after:
        far = 1e6 / after
        _, ends = probe(states, torch.full_like(small, far))
        reached = float(ends.flatten()[0])
        softcap = None if abs(reached - after * far) <= TOLERANCE * 1e6 else reached
        found = Logits(before, after, softcap)
        if all(_close(probe(states, x)[1], _applied(found, x)) for x in (small * 3, small * 50, small.flip(-1) * 500)):
            return found
    raise InputError(
        f"model.path: {type(model).__name__} does more than scale and cap what its last layer projects onto the vocabulary; its loss "
        "cannot be computed here"
    )


def _applied(logits: Logits, projected: torch.Tensor) -> torch.Tensor:
    scaled = logits.after * projected
    return scaled if logits.softcap is None else logits.softcap * torch.tanh(scaled / logits.softcap)


def _factor(values: torch.Tensor, of: torch.Tensor) -> float | None:
    """By which `of` was multiplied, exact where it was by one; None if it was not by one number."""
    if values.shape != of.shape or not values.isfinite().all():
        return None
    factor = float((values * of).sum() / (of**2).sum())
    # As it was written, not as it was measured.
    factor = 1.0 if abs(factor - 1) < TOLERANCE / 100 else float(f"{factor:.12g}")
    factor = (
        1.0 if abs(factor - 1) < TOLERANCE / 100 else float(f"{factor:.12g}")
    )  # as it was written, not as it was measured
    return factor if _close(values, of * factor) else None


def _close(values: torch.Tensor, expected: torch.Tensor) -> bool:
    return values.shape == expected.shape and torch.allclose(values, expected, rtol=TOLERANCE, atol=1e-12)


def own_logits(model: PreTrainedModel, states: torch.Tensor, project: Callable[..., torch.Tensor]) -> torch.Tensor:
    """What a causal model's own forward makes of `states` [1, tokens, hidden_size] that its body gives: logits [1, tokens, vocabulary].

    project: in the place of its projection. Raises InputError, in one line, when the forward cannot be followed.
    """
    blocks, projection = blocks_of(model), model.get_output_embeddings()
    path = next(path for path, module in model.named_modules() if module is blocks).split(".")
    # What the blocks are in, up to the model: some call an inner one past the outer.
    bodies = [model.get_submodule(".".join(path[:n])) for n in range(1, len(path))]
    ids = torch.zeros(states.shape[:2], dtype=torch.int64, device=states.device)
    try:
        with _replaced(bodies, lambda *_, **__: _Output(states.clone())), _replaced([projection], project):
            logits: torch.Tensor = model(input_ids=ids, use_cache=False).logits
    except (RuntimeError, TypeError, ValueError, AttributeError, IndexError, KeyError) as error:
        raise InputError(
            f"model.path: the forward of {type(model).__name__} cannot be followed from its last layer to its logits"
        ) from error
    return logits


class _Probe:
    """The forward of a model from its body's output to its logits."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.projection: Any = model.get_output_embeddings()
        weight = getattr(self.projection, "weight", None)
        if weight is None:
            raise InputError(f"model.path: {type(model).__name__} has no module that projects onto the vocabulary")
        self.vocabulary, self.hidden_size = getattr(weight, "ds_shape", weight.shape)

    @torch.no_grad()
    def __call__(self, states: torch.Tensor, projected: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What enters the projection when the body gives `states` [1, 2, hidden_size], and the logits when it gives `projected`."""
        entered: list[torch.Tensor] = []

        def project(hidden: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
            entered.append(hidden)
            return projected.clone()  # some models scale in place

        logits = own_logits(self.model, states, project)
        if len(entered) != 1:
            raise InputError(
                f"model.path: {type(self.model).__name__} does not call its projection onto the vocabulary once"
            )
        return entered[0].double(), logits.double()


class _Output(BaseModelOutputWithPast):  # type: ignore[misc]
    """The output of a body, of which nothing is there but the last hidden states, whatever else a family's own output has."""

    def __init__(self, states: torch.Tensor) -> None:
        super().__init__(last_hidden_state=states)

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


@contextmanager
def _replaced(modules: Sequence[nn.Module], forward: Callable[..., Any]) -> Iterator[None]:
    """While it lasts, these modules do that instead of what their class does."""
    before = [vars(module).get("forward") for module in modules]
    for module in modules:
        module.forward = forward  # type: ignore[method-assign]
    try:
        yield
    finally:
        for module, own in zip(modules, before, strict=True):
            if own is None:
                del module.forward
            else:
                module.forward = own  # type: ignore[method-assign]
