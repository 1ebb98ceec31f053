"""Packed rows attended a document at a time, against each document run by itself with the attention of transformers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import MistralConfig, MistralModel, PreTrainedModel

from sani_dist.engine import attention
from sani_dist.engine.attention import attend_by_document, parts_of
from tests import tiny

# Documents of two rows of 23 tokens: one of a single token, and padding at the end of both.
DOCUMENTS = ((9, 1, 5), (13, 7))
TOKENS = 23


def packed() -> tuple[torch.Tensor, torch.Tensor, list[tuple[int, slice]]]:
    """input_ids, position_ids, and where each document is."""
    ids = torch.randint(0, 300, (2, TOKENS), generator=torch.Generator().manual_seed(0))
    positions, places = torch.zeros_like(ids), []
    for row, lengths in enumerate(DOCUMENTS):
        start = 0
        for length in lengths:
            positions[row, start : start + length] = torch.arange(length)
            places.append((row, slice(start, start + length)))
            start += length
    return ids, positions, places


def sliding() -> PreTrainedModel:
    """Layers that see 4 tokens back, which only their mask says."""
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=300, hidden_size=27, intermediate_size=41, num_hidden_layers=2, num_attention_heads=3, num_key_value_heads=1,
        head_dim=8, sliding_window=4, initializer_range=0.2,
    )  # fmt: skip
    return MistralModel(config)


@pytest.fixture(params=["llama", "gpt2", "sliding"])
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    made = sliding() if request.param == "sliding" else getattr(tiny, request.param)(300)
    return made.eval().base_model


def test_packed_documents_are_attended_as_if_alone(model: PreTrainedModel) -> None:
    ids, positions, places = packed()
    alone = [model(input_ids=ids[None, row, where], use_cache=False).last_hidden_state[0] for row, where in places]
    attend_by_document(model)
    hidden = model(input_ids=ids, position_ids=positions, use_cache=False).last_hidden_state
    assert hidden.isfinite().all()
    for (row, where), expected in zip(places, alone, strict=True):
        torch.testing.assert_close(hidden[row, where], expected, rtol=1e-5, atol=1e-5)


def test_gradients_stay_within_a_document(model: PreTrainedModel) -> None:
    ids, positions, places = packed()
    attend_by_document(model)
    embedded = model.get_input_embeddings()(ids).detach().requires_grad_()
    hidden = model(inputs_embeds=embedded, position_ids=positions, use_cache=False).last_hidden_state
    row, where = places[2]
    (gradient,) = torch.autograd.grad(hidden[row, where].square().sum(), embedded)
    assert gradient[row, where].abs().amin(dim=1).gt(0).all()
    gradient[row, where] = 0
    assert not gradient.any()


def test_padding_alone_gives_every_parameter_a_gradient(model: PreTrainedModel) -> None:
    """Under ZeRO-3 the other ranks wait for it."""
    attend_by_document(model)
    ids = torch.zeros(2, TOKENS, dtype=torch.int64)
    model(input_ids=ids, position_ids=ids, use_cache=False).last_hidden_state.sum().backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize(("made", "expected"), [("llama", {"none"}), ("gpt2", {"none"}), ("sliding", {"mask"})])
def test_no_mask_is_computed_unless_a_layer_needs_it(
    made: str, expected: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = set()
    inner = attention.sdpa_attention_forward

    def spy(module: Any, query: Any, key: Any, value: Any, mask: Any, **kwargs: Any) -> Any:
        seen.add("none" if mask is None else "mask")
        return inner(module, query, key, value, mask, **kwargs)

    monkeypatch.setattr(attention, "sdpa_attention_forward", spy)
    whole = sliding() if made == "sliding" else getattr(tiny, made)(300).base_model
    attend_by_document(whole)
    ids, positions, _ = packed()
    whole(input_ids=ids, position_ids=positions, use_cache=False)
    assert seen == expected


def test_a_mask_that_says_more_is_no_list_of_documents() -> None:
    causal = torch.ones(2, 1, 9, 9, dtype=torch.bool).tril()
    apart = causal.clone()
    apart[1, :, 4:, :4] = False
    apart[1, :, 7:, :7] = False
    apart[1, :, 8, :8] = False
    assert parts_of(causal) == [(0, 0, 9, False), (1, 0, 9, False)]
    assert parts_of(apart) == [(0, 0, 9, False), (1, 0, 4, False), (1, 4, 7, False), (1, 7, 9, True)]
    for row, query, key in ((0, 0, 1), (0, 8, 2), (1, 4, 4), (1, 6, 3), (1, 2, 0), (1, 6, 4)):
        other = apart.clone()
        other[row, 0, query, key] ^= True
        assert parts_of(other) is None, (row, query, key)
    assert parts_of(causal.triu(-2)) is None  # a sliding window
