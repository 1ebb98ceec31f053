"""Which blocks keep no activations: told by who runs again in backward."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from sani_dist.engine.blocks import blocks_of, recompute
from sani_dist.errors import InputError

from .. import tiny


def runs_of_blocks(model: PreTrainedModel) -> list[int]:
    """How often each block ran in one step."""
    blocks = blocks_of(model)
    found: Counter[int] = Counter()
    for number, block in enumerate(blocks):
        block.input_layernorm.register_forward_pre_hook(lambda *_, number=number: found.update([number]))
    ids = torch.randint(0, 300, (1, 7), generator=torch.Generator().manual_seed(0))
    model.train()(input_ids=ids, labels=ids).loss.backward()
    return [found[number] for number in range(len(blocks))]


@pytest.mark.parametrize(("share", "again"), [(0.01, 1), (0.4, 1), (0.67, 2), (1.0, 3)])
def test_the_first_share_of_the_blocks_runs_again(share: float, again: int) -> None:
    model = tiny.llama(300)
    recompute(model, blocks_of(model), share)
    assert runs_of_blocks(model) == [2] * again + [1] * (3 - again)


def test_the_share_is_of_the_blocks_that_train() -> None:
    model = tiny.llama(300)
    recompute(model, blocks_of(model)[1:], 0.5)
    assert runs_of_blocks(model)[1:] == [2, 1]


def test_a_model_without_activation_checkpointing_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.llama(300)
    monkeypatch.setattr(type(model), "supports_gradient_checkpointing", False)
    with pytest.raises(InputError, match=r"repair\.activation_checkpointing: LlamaForCausalLM has none; leave it out"):
        recompute(model, blocks_of(model), 1)


def test_a_list_of_other_blocks_takes_all_or_none() -> None:
    model = tiny.llama(300)
    with pytest.raises(InputError, match="has it for all layers or none; set it to true"):
        recompute(model, [nn.Identity(), nn.Identity()], 0.5)
