"""What meets on a GPU lies there. No GPU is needed to see it: tensors without memory know where they are, and refuse to meet elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BloomConfig,
    BloomForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    PreTrainedModel,
    masking_utils,
)

from sani_dist.audit.candidates import branching
from sani_dist.audit.sampling import Decoding, Prompt, _Batch
from sani_dist.config import Objectives
from sani_dist.corpus.rows import LEARN, SENSITIVE, Batch, targets
from sani_dist.engine import deepspeed_internals, distributed
from sani_dist.engine.zero3 import CausalModel, Engine
from sani_dist.erase.select import flows, summed_loss
from sani_dist.erase.structure import last_units
from sani_dist.kernels import Teacher, masked_ce, reference
from sani_dist.repair.train import _loss, _seed_dropout

from .. import tiny

# Of tensors that say they are on a GPU, a torch without CUDA knows a few operations, and no backward. The meta device has them all, and
# refuses to meet the CPU just as well.
OTHER = torch.device("meta")
VOCABULARY, TOKENS = 40, 8


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ranks' device is not that on which tensors are made without one."""
    monkeypatch.setattr(distributed, "device", lambda: OTHER)
    # "auto" knows CPUs and GPUs; plain torch is given the same tensors.
    monkeypatch.setattr(masked_ce, "_choose", lambda impl, hidden: reference)
    # transformers reads from its masks whether they are needed; here it makes them.
    monkeypatch.setattr(masking_utils, "is_tracing", lambda tensor=None: True)


@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
def test_a_loaded_optimizer_takes_a_step_where_its_masters_are(device: str) -> None:
    with FakeTensorMode():
        master = torch.nn.Parameter(torch.ones(8, device=device))
        optimizer = torch.optim.AdamW([master], fused=True)
        zero = SimpleNamespace(
            fp32_partitioned_groups_flat=[master], optimizer=optimizer, _swappable_optimizer_subgroup=lambda number: False
        )  # fmt: skip
        deepspeed_internals.create_adam_state(SimpleNamespace(optimizer=zero), 3)
        assert {value.device for value in optimizer.state[master].values()} == {master.device}
        master.grad = torch.ones_like(master)
        optimizer.step()


def batch_of_two_documents() -> Batch:
    ids = torch.arange(2 * TOKENS).view(2, TOKENS) % VOCABULARY
    role = torch.full((2, TOKENS), LEARN, dtype=torch.uint8)
    role[:, 2] = SENSITIVE
    document = (torch.arange(TOKENS) // 4).expand(2, TOKENS).contiguous()
    position = (torch.arange(TOKENS) % 4).expand(2, TOKENS).contiguous()
    return Batch(ids, role, document, position)


def small_llama() -> PreTrainedModel:
    return tiny.llama(VOCABULARY)


def small_gpt2() -> PreTrainedModel:
    return tiny.gpt2(VOCABULARY)


def small_bloom() -> PreTrainedModel:
    return BloomForCausalLM(BloomConfig(vocab_size=VOCABULARY, hidden_size=16, n_layer=2, n_head=2))


def small_gemma2() -> PreTrainedModel:
    """A window, and soft-capped logits."""
    config = Gemma2Config(
        vocab_size=VOCABULARY, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, sliding_window=4,
    )  # fmt: skip
    return Gemma2ForCausalLM(config)


def small_bert() -> PreTrainedModel:
    config = BertConfig(
        vocab_size=VOCABULARY, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2
    )  # fmt: skip
    config.architectures = ["BertForMaskedLM"]
    return BertForMaskedLM(config)


FAMILIES = [small_llama, small_gpt2, small_bloom, small_gemma2]


def engine_of(make: Callable[[], PreTrainedModel]) -> Engine:
    """With parameters and buffers elsewhere."""
    engine = Engine(make().to(OTHER), {})  # type: ignore[arg-type]
    if isinstance(engine.module, CausalModel):
        engine.module.attention.checked = True  # that reads values, once
    return engine


@pytest.mark.parametrize(
    "objectives", [{}, {"unlikelihood": 2.0, "floor": 0.01}, {"kl": 0.5, "unlikelihood": 1.0}], ids=str
)
@pytest.mark.parametrize("make", FAMILIES)
def test_rows_roles_and_teacher_of_a_training_step(
    elsewhere: None, make: Callable[[], PreTrainedModel], objectives: dict[str, float]
) -> None:
    engine, batch = engine_of(make), batch_of_two_documents()
    index, target, role, _ = targets(batch, (LEARN, SENSITIVE))
    ids, known = torch.zeros((len(index), 3), dtype=torch.int64), role == LEARN
    teacher = Teacher(ids, torch.zeros((len(index), 3)), known, 0.5) if "kl" in objectives else None
    compute = partial(_loss, index, target, role, Objectives(**objectives), teacher, 2.0)
    loss = engine.forward(batch.input_ids, batch.position, compute)
    assert loss.device == OTHER
    loss.backward()
    assert all(p.grad is not None and p.grad.device == OTHER for p in engine.module.parameters())


def test_hidden_tokens_of_a_masked_model(elsewhere: None) -> None:
    engine, batch = engine_of(small_bert), batch_of_two_documents()
    batch = replace(batch, label=batch.input_ids, position=torch.arange(TOKENS).expand(2, TOKENS))
    index, target, _, _ = targets(batch, (LEARN, SENSITIVE))
    loss = engine.forward(batch.input_ids, batch.position, partial(summed_loss, index, target))
    assert loss.device == OTHER


@pytest.mark.parametrize("make", FAMILIES)
def test_masks_of_branching_rows(elsewhere: None, make: Callable[[], PreTrainedModel]) -> None:
    engine, batch = engine_of(make), batch_of_two_documents()
    with branching(engine, batch):
        assert engine.forward(batch.input_ids, batch.position, lambda hidden, *_: hidden).device == OTHER


@pytest.mark.parametrize("make", FAMILIES)
def test_flows_to_the_units_of_a_model(elsewhere: None, make: Callable[[], PreTrainedModel]) -> None:
    engine, batch = engine_of(make), batch_of_two_documents()
    index, target, _, _ = targets(batch, (LEARN, SENSITIVE))
    groups, compute = last_units(engine.model, 1, "both"), partial(summed_loss, index, target)
    found = [flow for *_, flow in flows(engine, batch, compute, groups)]
    assert {flow.device for flow in found} == {OTHER}


def test_draws_of_a_generated_text(elsewhere: None) -> None:
    """NumPy draws them, a stream for each text: no generator of a device takes part."""
    engine = engine_of(small_llama)
    batch = _Batch(engine, {0: Prompt(np.arange(3), 2), 1: Prompt(np.arange(5), 2)}, 2, Decoding(samples=2, top_k=4))
    likely, logprob = torch.zeros((4, 4), dtype=torch.int64, device=OTHER), torch.zeros((4, 4), device=OTHER)
    assert batch._choose(likely, logprob).device == OTHER


def test_dropout_of_a_gpu_is_a_function_of_the_step_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint keeps the CPU's generator alone; that of the GPU is seeded anew for each micro-batch, to the same."""
    seeds: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeds.append)
    monkeypatch.setattr(torch.cuda, "_is_in_bad_fork", lambda: False)
    for step in (3, 4, 3):
        _seed_dropout(0, step, 1)
    assert seeds[0] == seeds[2] != seeds[1]
