"""Rounding weights in flat shards, against whole tensors."""

from __future__ import annotations

import pytest
import torch

from sani_dist.attack.quantise import round_weights

from .. import tiny


def rounded(weight: torch.Tensor, bits: int, group: int | None) -> torch.Tensor:
    """[out, in], whole: one scale for `group` inputs of a channel."""
    largest = 2 ** (bits - 1) - 1
    parts = weight.split(group or weight.shape[1], dim=1)
    scales = [part.abs().amax(dim=1, keepdim=True) / largest for part in parts]
    return torch.cat([(part / scale).round() * scale for part, scale in zip(parts, scales, strict=True)], dim=1)


@pytest.mark.parametrize(("bits", "group"), [(8, None), (4, 16), (4, 128)])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_projections_are_rounded_and_nothing_else_changes(name: str, bits: int, group: int | None) -> None:
    """Groups of 16 divide no dimension of these models; GPT-2 stores [in, out], and its output projection is its embedding."""
    model = {"llama": tiny.llama, "gpt2": tiny.gpt2}[name](61)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    round_weights(model, bits, group)
    changed = 0
    for key, value in model.state_dict().items():
        kept = value.dim() < 2 or any(part in key for part in ("embed_tokens", "lm_head", "wte", "wpe"))
        if kept:
            assert torch.equal(value, before[key]), key
            continue
        changed += 1
        turned = name == "gpt2"
        expected = rounded(before[key].t() if turned else before[key], bits, group)
        torch.testing.assert_close(value.t() if turned else value, expected, rtol=1e-5, atol=1e-7)
        levels = 2**bits - 1
        channel = (value.t() if turned else value)[0, : group or None]
        assert len(channel.unique()) <= levels
    assert changed == (7 * 3 if name == "llama" else 4 * 2)
