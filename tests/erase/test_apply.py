"""`apply` on shards of any world size, against erasing whole tensors; no processes."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from sani_dist.engine.layout import find_layout
from sani_dist.engine.safetensors_files import Checkpoint
from sani_dist.engine.zero3 import build_empty, read_model_config
from sani_dist.erase import Plan, Unit, apply, begin_again
from sani_dist.erase.apply import initial_values
from sani_dist.erase.structure import last_units
from sani_dist.errors import InputError

from ..distributed.families import FAMILIES, build
from .reference import GPT2, LLAMA, erased, joined, shards_of


@pytest.fixture(scope="module")
def families(llama_folder: Path, gpt2_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """family -> tensors, base tensors, where the base lies, structure, prefix, axes, neurons, deviations."""
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
        model = build_empty(read_model_config(folder), torch.float32)
        mlps = last_units(model, model.config.num_hidden_layers, "mlp")
        layout = find_layout(model, Checkpoint(base_folder))
        result[family] = (tensors, base, layout, mlps, prefix, axes, neurons, stds)
    return result


@given(data=st.data(), world_size=st.integers(1, 7))
@settings(max_examples=120, deadline=None)
@pytest.mark.parametrize("reset", ["zero", "init", "base"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_shards_of_any_world_size_become_what_the_definition_says(
    families: dict, data: st.DataObject, family: str, reset: str, dtype: torch.dtype, world_size: int
) -> None:
    tensors, base, layout, mlps, prefix, axes, neurons, stds = families[family]
    tensors = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    layers = data.draw(st.lists(st.integers(0, len(mlps) - 1), min_size=1, unique=True))
    ids = st.lists(st.integers(0, neurons - 1), min_size=1, unique=True).map(sorted)
    units = {layer: data.draw(ids) for layer in sorted(layers)}
    seed = data.draw(st.integers(0, 2**63 - 1))
    plan = Plan("", seed, "random", reset, tuple(Unit(layer, "mlp", tuple(found)) for layer, found in units.items()))
    parts = [shards_of(tensors, world_size, rank) for rank in range(world_size)]
    written = sum(apply(part, mlps, plan, layout) for part in parts)
    expected = erased(tensors, prefix, axes, units, reset, seed, stds, base)
    result = joined(parts)
    for name, tensor in expected.items():
        assert torch.equal(result[name], tensor), name
    per_neuron = sum(s.matrix[1 - s.axis] for s in mlps[0].slices)
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


def test_reset_to_base_needs_a_base(families: dict) -> None:
    tensors, _, _, mlps, *_ = families["llama"]
    plan = Plan("", 0, "random", "base", (Unit(2, "mlp", (1,)),))
    with pytest.raises(InputError, match=r"erase.reset=base needs model.base"):
        apply(shards_of(tensors, 1, 0), mlps, plan)


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


@pytest.fixture(scope="module")
def fused() -> dict:
    """family -> parameters (none zero) and units of the last block, where several units share a parameter in some order of its own."""
    result = {}
    for name in ("Phi-3, Phi-4", "GPT-2", "GPT-NeoX, Pythia", "Falcon, grouped key heads", "Mixtral"):
        model = build(FAMILIES[name], 50)
        tensors = {n: p.detach() + (p.detach() == 0) for n, p in model.named_parameters()}
        result[name] = (tensors, last_units(model, 1, "both"))
    return result


@given(data=st.data(), world_size=st.integers(2, 7))
@settings(max_examples=40, deadline=None)
@pytest.mark.parametrize(
    "family", ["Phi-3, Phi-4", "GPT-2", "GPT-NeoX, Pythia", "Falcon, grouped key heads", "Mixtral"]
)
def test_neurons_and_heads_that_share_parameters_are_the_same_at_any_world_size(
    fused: dict, data: st.DataObject, family: str, world_size: int
) -> None:
    tensors, units = fused[family]
    chosen = []
    for group in units:
        ids = data.draw(st.lists(st.integers(0, group.count - 1), min_size=1, unique=True).map(sorted))
        chosen.append(Unit(group.layer, group.kind, tuple(ids)))

    def reset(how: str, ranks: int) -> dict[str, torch.Tensor]:
        parts = [shards_of(tensors, ranks, rank) for rank in range(ranks)]
        for part in parts:
            apply(part, units, Plan("", 3, "random", how, tuple(chosen)))
        return joined(parts)

    zeroed, fresh = reset("zero", 1), reset("init", 1)
    for how, whole in (("zero", zeroed), ("init", fresh)):
        for name, tensor in reset(how, world_size).items():
            assert torch.equal(tensor, whole[name]), name
    drawn = []
    for name, tensor in tensors.items():
        assert torch.equal(fresh[name] != tensor, zeroed[name] == 0), name
        drawn += fresh[name][zeroed[name] == 0].tolist() if tensor.dim() > 1 else []
    # No two matrices of a parameter draw the same numbers: of 65536 possible ones few come twice.
    assert len(set(drawn)) > 0.9 * len(drawn)


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_everything_becomes_the_base(families: dict, family: str, dtype: torch.dtype, world_size: int) -> None:
    """Embeddings and norms too, tied ones once."""
    tensors, base, layout, *_ = families[family]
    tensors = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    parts = [shards_of(tensors, world_size, rank) for rank in range(world_size)]
    written = sum(begin_again(part, 0, layout) for part in parts)
    result = joined(parts)
    for name, tensor in tensors.items():
        assert torch.equal(result[name], base[name].to(dtype)), name
        assert not torch.equal(result[name], tensor), name
    assert written == sum(tensor.numel() for tensor in tensors.values())


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_an_adapter_becomes_a_fresh_one_and_its_base_stays(world_size: int) -> None:
    draw = torch.Generator().manual_seed(0)
    layer = "model.layers.0.mlp.up_proj"
    shapes = {"base_layer.weight": (41, 300), "lora_A.default.weight": (5, 300), "lora_B.default.weight": (41, 5)}
    tensors = {f"{layer}.{name}": torch.randn(shape, generator=draw) for name, shape in shapes.items()}
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    parts = [shards_of(tensors, world_size, rank) for rank in range(world_size)]
    assert sum(begin_again(part, 3) for part in parts) == 5 * 300 + 41 * 5
    result = joined(parts)
    base, a, b = (result[name] for name in tensors)
    assert torch.equal(base, before[f"{layer}.base_layer.weight"])
    assert not b.any()
    assert torch.equal(a.flatten(), initial_values(3, f"{layer}.lora_A.default.weight", 0, 1500, 1 / math.sqrt(900)))
    assert not (a == before[f"{layer}.lora_A.default.weight"]).any()
