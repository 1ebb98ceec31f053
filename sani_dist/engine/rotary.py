"""Rotary embeddings whose frequencies depend on how long the text is: dynamic NTK, and longrope.

transformers takes the longest position of the whole batch for it, and dynamic NTK also that of batches before. So a short document beside a
long one would be turned by other angles than alone, and what a model says of it would depend on how rows were packed. Here each
document is turned as if it stood alone.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel


def rotate_by_document(model: PreTrainedModel) -> None:
    """Let the rotary embeddings of `model` do so, where their type depends on the length; calling it again changes nothing."""
    for module in model.modules():
        kinds = getattr(module, "rope_type", None)
        depends = any(_depends(kind) for kind in (kinds.values() if isinstance(kinds, dict) else [kinds]))
        if depends and not isinstance(module.forward, _ByDocument):
            module.forward = _ByDocument(module)  # type: ignore[method-assign]


def lengths(position: torch.Tensor) -> torch.Tensor:
    """How long the document of each token is, as positions count: int64 [rows, tokens], as `position`, which restarts with each."""
    rows, tokens = position.shape
    last = torch.ones((rows, tokens), dtype=torch.bool, device=position.device)
    last[:, :-1] = position[:, 1:] != position[:, :-1] + 1
    place = torch.arange(tokens, device=position.device)
    end = torch.where(last, place, tokens).flip(1).cummin(1).values.flip(1)
    return position.gather(1, end) + 1


class _ByDocument:
    """The forward of a rotary embedding, once for each length that makes a difference."""

    def __init__(self, module: torch.nn.Module) -> None:
        self._module: Any = module
        self._whole = module.forward

    def __call__(self, x: torch.Tensor, position_ids: torch.Tensor, layer_type: str | None = None) -> Any:
        given = {} if layer_type is None else {"layer_type": layer_type}
        kind = self._module.rope_type if layer_type is None else self._module.rope_type[layer_type]
        if not _depends(kind) or position_ids.dim() != 2:
            return self._whole(x, position_ids, **given)
        limit = self._limit(kind, layer_type)
        of_token = lengths(position_ids).clamp(min=limit)
        if kind == "longrope":  # which knows short and long texts only
            of_token = of_token.clamp(max=limit + 1)
        cos = sin = None
        for length in sorted(set(of_token.flatten().tolist())):
            here = of_token == length
            self._forget(layer_type)
            own_cos, own_sin = self._whole(x, torch.where(here, position_ids, 0), **given)
            cos = own_cos if cos is None else torch.where(here[..., None], own_cos, cos)
            sin = own_sin if sin is None else torch.where(here[..., None], own_sin, sin)
        return cos, sin

    def _limit(self, kind: str, layer_type: str | None) -> int:
        """Up to this length a text keeps the frequencies of training."""
        if kind != "longrope":
            return int(self._module.original_max_seq_len)
        parameters = self._module.config.rope_parameters
        return int((parameters if layer_type is None else parameters[layer_type])["original_max_position_embeddings"])

    def _forget(self, layer_type: str | None) -> None:
        """The longest text of earlier calls."""
        prefix = "" if layer_type is None else f"{layer_type}_"
        module, name = self._module, f"{prefix}inv_freq"
        if hasattr(module, f"{prefix}max_seq_len_cached"):
            setattr(module, f"{prefix}max_seq_len_cached", module.original_max_seq_len)
        setattr(module, name, getattr(module, f"{prefix}original_inv_freq").clone().to(getattr(module, name).device))


def _depends(kind: str | None) -> bool:
    return kind is not None and ("dynamic" in kind or kind == "longrope")
