"""Attention in packed rows: who sees whom.

Most models of transformers make their mask of the positions: where these restart, a document begins, and attention stops. Those of
`MASK_WITHOUT_POSITIONS` do not, and get theirs here, block by block. ALiBi adds to each key what its place in the row says; here it is
what the key's position says, as if its document stood alone. A model that is in neither group is refused.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from sani_dist.engine.attention import NAME
from sani_dist.errors import InputError

MASK_WITHOUT_POSITIONS = ("bloom", "falcon", "opt")


class PackedAttention:
    """Sees to it that the blocks of a model attend as packed rows are meant."""

    def __init__(self, model: PreTrainedModel, blocks: nn.ModuleList) -> None:
        self.model, self.config = type(model).__name__, model.config
        # Flash attention has no mask and reads the positions itself.
        self.reads_mask = model.config._attn_implementation in ("eager", "sdpa", NAME)
        self.gives_mask = model.config.model_type in MASK_WITHOUT_POSITIONS
        self.checked = False  # or set to True where a twin shows that documents do not see each other, whatever the mask looks like
        self.position = torch.empty(0)
        self.visible: torch.Tensor | None = None
        self.mask: torch.Tensor | None = None
        for block in blocks if self.gives_mask else blocks[:1]:
            block.register_forward_pre_hook(self._give if self.gives_mask else self._check, with_kwargs=True)

    def arguments(self, position: torch.Tensor, visible: torch.Tensor | None, dtype: torch.dtype) -> dict[str, Any]:
        """What the body is called with. Blocks that activation checkpointing runs again find the same mask until the next call.

        position: [rows, tokens]. visible: bool [rows, tokens, tokens], the tokens (last) that each token sees; None: those before it
        in its document.
        """
        self.position, self.mask = position, None
        if self.gives_mask:
            self.visible = before_in_document(position) if visible is None else visible
            return {}
        self.visible = visible
        return {} if visible is None else {"attention_mask": _added(visible, dtype)}

    def _give(self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        if _remembers(kwargs):
            return args, kwargs
        assert self.visible is not None
        if self.mask is None:
            self.mask = _added(self.visible, args[0].dtype)
            given = kwargs["attention_mask"]
            if given is not None and given.is_floating_point() and given.shape[1] > 1:  # ALiBi is in it
                # The last token of a row sees all keys, so that its part of the mask is nothing but what is added.
                bias = _by_position(given[:, :, -1:], self.position)
                self.mask = bias.expand_as(given).masked_fill(~self.visible[:, None], torch.finfo(bias.dtype).min)
        kwargs = {**kwargs, "attention_mask": self.mask}
        if kwargs.get("alibi") is not None:
            kwargs["alibi"] = _by_position(kwargs["alibi"], self.position)
        return args, kwargs

    def _check(self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Once, at the first row with two documents: does the last token of one see the first of the next?"""
        passed = "forward" in vars(block)  # a block that only hands on what it is given
        if self.checked or self.visible is not None or not self.reads_mask or passed:
            return
        # Of a document of one token, as padding is, nothing is a target.
        goes_on = _goes_on(self.position)
        row, token = (~goes_on[:, 1:-1] & goes_on[:, 2:]).nonzero().cpu().unbind(1)
        if not len(row):
            return
        given = inspect.signature(block.forward).bind_partial(*args, **kwargs).arguments
        if _remembers(given):
            return
        mask = given.get("attention_mask")
        of_pair = None if mask is None else mask[row[0] % mask.shape[0], 0, token[0] + 1, token[0]]
        seen = of_pair is None or bool(
            of_pair if of_pair.dtype == torch.bool else of_pair > torch.finfo(of_pair.dtype).min / 2
        )
        if seen:
            raise InputError(
                f"model.path: {self.model} attends across document boundaries in packed rows: its mask is not made of the positions; "
                "docs/families.md says how to add an architecture"
            )
        self.checked = True


def _remembers(given: Mapping[str, Any]) -> bool:
    """Whether a block is called with the keys and values of earlier tokens: then rows are single texts, and their mask is the caller's."""
    return given.get("past_key_values") is not None or given.get("layer_past") is not None


def before_in_document(position: torch.Tensor) -> torch.Tensor:
    """Which tokens (last dimension) each token sees in rows where positions restart with each document: bool [rows, tokens, tokens]."""
    document = (~_goes_on(position)).cumsum(1)
    return (document[:, :, None] == document[:, None, :]).tril()


def _goes_on(position: torch.Tensor) -> torch.Tensor:
    """Whether each token follows the one before it in the same document: bool [rows, tokens]."""
    same = torch.zeros_like(position, dtype=torch.bool)
    same[:, 1:] = position[:, 1:] == position[:, :-1] + 1
    return same


def _added(visible: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The mask [rows, 1, tokens, tokens] that is added to scores: all attention takes that form, a boolean one only some."""
    nothing = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    return nothing.masked_fill(~visible, torch.finfo(dtype).min)[:, None]


def _by_position(bias: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    """What is added to keys by their place in the row, by their position instead: the same shape, the last dimension the keys."""
    rows, tokens = position.shape
    of_row = bias.reshape(rows, -1, tokens)
    return of_row.gather(2, position[:, None].expand_as(of_row)).view(bias.shape)
