"""`apply` on shards of any world size, against erasing whole tensors; no processes."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from sani_dist.engine.safetensors_files import Checkpoint
from sani_dist.engine.zero3 import build_empty, read_model_config
from sani_dist.erase import Plan, Unit, apply
from sani_dist.erase.apply import initial_values
from sani_dist.erase.structure import find_mlps
from sani_dist.errors import InputError

from .reference import GPT2, LLAMA, erased, joined, shards_of


@pytest.fixture(scope="module")
def families(llama_folder: Path, gpt2_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """family -> tensors, base tensors, base checkpoint, structure, prefix, axes, neurons, deviations."""
    result = {}
    scaled = 0.2 / math.sqrt(2 * 2)
    for family, folder, prefix, axes, neurons, stds in (
        ("llama", llama_folder, "model.layers", LLAMA, 41, dict.fromkeys(LLAMA, 0.2)),
        ("gpt2", gpt2_folder, "transformer.h", GPT2, 43, dict(zip(GPT2, (0.2, 0.0, scaled), strict=True))),
    ):
        tensors = {n: t for file in sorted(folder.glob("*.safetensors")) for n, t in load_file(file).items()}
        base = {name: tensor * -3 + 1 for name, tensor in tensors.items()}
        base_folder = tmp_path_factory.mktemp(f"{family}-base")
        save_file(base, base_folder / "model.safetensors")
        mlps = find_mlps(build_empty(read_model_config(folder), torch.float32))
        result[family] = (tensors, base, Checkpoint(base_folder), mlps, prefix, axes, neurons, stds)
    return result


@given(data=st.data(), world_size=st.integers(1, 7))
@settings(max_examples=120, deadline=None)
@pytest.mark.parametrize("reset", ["zero", "init", "base"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_shards_of_any_world_size_become_what_the_definition_says(
    families: dict, data: st.DataObject, family: str, reset: str, dtype: torch.dtype, world_size: int
) -> None:
    tensors, base, checkpoint, mlps, prefix, axes, neurons, stds = families[family]
    tensors = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    layers = data.draw(st.lists(st.integers(0, len(mlps) - 1), min_size=1, unique=True))
    ids = st.lists(st.integers(0, neurons - 1), min_size=1, unique=True).map(sorted)
    units = {layer: data.draw(ids) for layer in sorted(layers)}
    seed = data.draw(st.integers(0, 2**63 - 1))
    plan = Plan("", seed, "random", reset, tuple(Unit(layer, "mlp", tuple(found)) for layer, found in units.items()))
    parts = [shards_of(tensors, world_size, rank) for rank in range(world_size)]
    written = sum(apply(part, mlps, plan, checkpoint) for part in parts)
    expected = erased(tensors, prefix, axes, units, reset, seed, stds, base)
    result = joined(parts)
    for name, tensor in expected.items():
        assert torch.equal(result[name], tensor), name
    per_neuron = sum(
        mlps[0].slices[i].shape[1 - s.axis] if len(s.shape) == 2 else 1 for i, s in enumerate(mlps[0].slices)
    )
    assert written == per_neuron * sum(map(len, units.values()))


def test_nothing_outside_the_chosen_neurons_changes_by_a_bit(families: dict) -> None:
    """Even bits that arithmetic would not keep: NaN with a payload, negative zero, subnormal numbers."""
    tensors, _, _, mlps, *_ = families["llama"]
    odd = torch.tensor([0x7FC12345, 0x80000000 - 2**32, 0x00000001, 0xFF800001 - 2**32], dtype=torch.int32)
    tensors = {
        n: odd.repeat(t.numel() // 4 + 1)[: t.numel()].view(torch.float32).view(t.shape) for n, t in tensors.items()
    }
    plan = Plan("", 0, "random", "zero", (Unit(1, "mlp", (0, 3, 40)),))
    parts = [shards_of(tensors, 3, rank) for rank in range(3)]
    for part in parts:
        apply(part, mlps, plan)
    result = joined(parts)
    for name, tensor in tensors.items():
        changed = result[name].view(torch.int32) != tensor.view(torch.int32)
        if name.startswith("model.layers.1.mlp."):
            axis = 1 if "down" in name else 0
            assert set(changed.nonzero()[:, axis].tolist()) == {0, 3, 40}
            assert not result[name].index_select(axis, torch.tensor([0, 3, 40])).any()
        else:
            assert not changed.any()


def test_reset_to_base_needs_a_base_that_fits(families: dict, tmp_path: Path) -> None:
    tensors, base, _, mlps, *_ = families["llama"]
    plan = Plan("", 0, "random", "base", (Unit(2, "mlp", (1,)),))
    with pytest.raises(InputError, match=r"erase.reset=base needs model.base"):
        apply(shards_of(tensors, 1, 0), mlps, plan)
    save_file({n: t.T.contiguous() if t.dim() == 2 else t for n, t in base.items()}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=r"model.base: .* has no tensor model.layers.2.mlp.\w+.weight of shape"):
        apply(shards_of(tensors, 1, 0), mlps, plan, Checkpoint(tmp_path))


@pytest.mark.parametrize("std", [0.02, 0.7])
def test_initial_values_are_normal(std: float) -> None:
    values = initial_values(5, "model.layers.0.mlp.up_proj.weight", 0, 400_000, std).double() / std
    # Standard errors at n = 400,000: mean .0016, deviation .0011, third moment .0061, fourth .0155.
    assert abs(values.mean().item()) < 0.007
    assert abs(values.std().item() - 1) < 0.005
    assert abs((values**3).mean().item()) < 0.03
    assert abs((values**4).mean().item() - 3) < 0.07
    assert abs(torch.corrcoef(torch.stack([values[:-1], values[1:]]))[0, 1].item()) < 0.007


def test_initial_values_depend_on_seed_name_and_number_alone() -> None:
    whole = initial_values(5, "a", 0, 1000, 0.02)
    for start, stop in ((317, 700), (316, 317), (999, 1000), (5, 5)):
        assert torch.equal(initial_values(5, "a", start, stop, 0.02), whole[start:stop])
    assert not torch.equal(initial_values(6, "a", 0, 1000, 0.02), whole)
    assert not torch.equal(initial_values(5, "b", 0, 1000, 0.02), whole)
    assert whole.unique().numel() > 970  # of 65536 possible ones
    assert not initial_values(5, "a", 0, 1000, 0.0).any()
    # The same numbers on every machine and with every version of NumPy.
    assert initial_values(5, "a", 0, 3, 0.02).tolist() == [
        -0.0028387154452502728,
        0.02009371481835842,
        0.02954316884279251,
    ]
