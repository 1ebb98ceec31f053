"""Where the units of a transformer are: the neurons of its MLPs and the heads of its attention.

Found by modules and shapes, not by names. A neuron is one hidden unit of an MLP: its row in each projection into the hidden units, its
biases there, its column in the projection out of them. A head is its rows in the query projection, those in the key and value
projections that no other head reads (none where heads share them), and its columns in the output projection; rows that a norm over
all heads follows belong to none. Of a mixture every neuron
of every expert is a unit: neuron i of expert e has the number e x neurons of an expert + i.

A `Slice` says where in a stored parameter the units lie. GPT-2's Conv1D stores [in, out], so its axes are swapped against `nn.Linear`.

With an adapter units are those of the base, and what counts of them is their part in the adapter: of projections that it changes
the rows of lora_B [out, rank] and the columns of lora_A [rank, in] in their place. Without these the unit is the base's.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from sani_dist.engine.adapter import lora_layers
from sani_dist.engine.blocks import blocks_of
from sani_dist.errors import InputError

Kind = Literal["mlp", "head"]

# How a projection that makes queries, keys and values in one lays them out, which shapes do not tell. blocks: all queries, all keys, all
# values. groups: for each key head the query heads that read it, then its key and its value; with as many key heads as heads that
# is query, key, value of one head after the other.
FUSED_ATTENTION: dict[str, Literal["blocks", "groups"]] = {
    "bloom": "groups",
    "falcon": "groups",
    "gpt2": "blocks",
    "gpt_neox": "groups",
    "modernbert": "blocks",
    "phi3": "blocks",
}
ADAPTER = "docs/families.md says how to add an architecture"


@dataclass(frozen=True)
class Slice:
    """What a parameter holds of units.

    Of the matrix `matrix` [rows, columns] that begins at element `start` of parameter `name`, unit `units[k]` has `size` rows (axis 0) or
    columns (axis 1) from `first + k * stride` on. `std`: what the model's initialiser draws with (0: it writes zeros).
    """

    name: str
    shape: tuple[int, ...]
    matrix: tuple[int, int]
    axis: int
    std: float
    units: range
    start: int = 0
    first: int = 0
    stride: int = 1
    size: int = 1

    @property
    def stream(self) -> str:
        """Names the random numbers of its initial values."""
        return self.name if self.start == self.first == 0 else f"{self.name}+{self.start}+{self.first}"

    def places(self, ids: torch.Tensor) -> torch.Tensor:
        """The rows or columns of the units `ids` (ascending) that lie here, ascending."""
        begin, end = torch.searchsorted(ids, torch.tensor([self.units.start, self.units.stop])).tolist()
        starts = self.first + (ids[begin:end] - self.units.start) * self.stride
        return (starts[:, None] + torch.arange(self.size)).flatten()


@dataclass(frozen=True)
class Units:
    """The neurons of one block's MLP, or the heads of its attention.

    `out`: the module whose input are their activations, `width` values of each unit, one unit after the other; for a mixture the module
    that holds the experts (`experts`).
    """

    layer: int
    kind: Kind
    count: int
    slices: tuple[Slice, ...]
    out: nn.Module
    width: int = 1
    experts: bool = False


def last_units(model: PreTrainedModel, layers: int, units: Literal["mlp", "heads", "both"]) -> list[Units]:
    """The units of the last `layers` blocks, block by block. Raises InputError when the model has fewer blocks, or none are found."""
    blocks = blocks_of(model)
    if layers > len(blocks):
        raise InputError(f"erase.layers: {layers}, but the model has {len(blocks)} layers")
    found = []
    for layer in range(len(blocks) - layers, len(blocks)):
        block = _Block(model, layer, blocks[layer], len(blocks))
        if units in ("mlp", "both"):
            found.append(block.neurons())
        if units in ("heads", "both"):
            found.append(block.heads())
    return found


def parameter_names(units: Iterable[Units]) -> set[str]:
    """The parameters that hold a part of the units."""
    return {piece.name for group in units for piece in group.slices}


class _Block:
    """One block, taken apart into its linear modules: those of its attention, and the rest."""

    def __init__(self, model: PreTrainedModel, layer: int, block: nn.Module, blocks: int) -> None:
        self.layer, self.block = layer, block
        self.model = type(model).__name__
        self.names = {id(parameter): name for name, parameter in model.named_parameters()}
        self.config = model.config.get_text_config()
        self.hidden = self.config.hidden_size
        self.std = next(
            (float(v) for n in ("initializer_range", "init_std") if (v := getattr(self.config, n, None))), 0.02
        )
        # GPT-2 scales what it adds to the residual stream by 1 / sqrt(2 layers); the other initialisers do not.
        self.conv1d_out_std = self.std / math.sqrt(2 * blocks)
        self.lora = lora_layers(model)
        found = [(path, m) for path, m in block.named_modules() if isinstance(m, nn.Linear | Conv1D)]
        # The two matrices of an adapter are linear modules too.
        linear = [(path, m) for path, m in found if ".lora_" not in path]
        self.attention = [m for path, m in linear if re.search("attn|attention", path)]
        self.rest = [m for path, m in linear if not re.search("attn|attention", path)]

    def neurons(self) -> Units:
        experts = [m for m in self.block.modules() if _is_experts(m)]
        if len(experts) == 1 and not self.rest:
            return self._experts(experts[0])
        out = self.rest[-1] if self.rest else None
        if out is None or experts or _size(out)[1] != self.hidden or len(self.rest) == 1:
            raise self._unknown_mlp()
        count = _size(out)[0]
        slices: list[Slice] = []
        for module in self.rest[:-1]:
            size_in, size_out = _size(module)
            if size_in != self.hidden or size_out not in (count, 2 * count):
                raise self._unknown_mlp()
            for first in range(0, size_out, count):  # gate, then up, where they are one projection
                slices += self._rows(module, range(count), first=first)
        slices += self._columns(out, count)
        return self._units("mlp", count, slices, out)

    def _experts(self, module: Any) -> Units:
        experts, hidden, neurons = _shape(module.down_proj)
        slices = []
        for e in range(experts):
            units = range(e * neurons, (e + 1) * neurons)
            for part in range(2):  # gate, then up
                start = (2 * e + part) * neurons * hidden
                slices.append(self._slice(module.gate_up_proj, (neurons, hidden), 0, self.std, units, start=start))
            start = e * hidden * neurons
            slices.append(self._slice(module.down_proj, (hidden, neurons), 1, self.std, units, start=start))
        if self.lora:  # which changes projections, and no fused experts
            slices = []
        return self._units("mlp", experts * neurons, slices, module, experts=True)

    def heads(self) -> Units:
        count = self.config.num_attention_heads
        out = next((m for m in reversed(self.attention) if _size(m)[1] == self.hidden and _size(m)[0] % count == 0), None)  # fmt: skip
        into = [m for m in self.attention if m is not out]
        if out is None or not into or any(_size(m)[0] != self.hidden for m in into):
            raise self._unknown_attention()
        width = _size(out)[0] // count
        whole = {"stride": width, "size": width}
        slices: list[Slice] = []
        if len(into) == 1:
            slices += self._fused(into[0], count, width)
        else:
            for module in into:
                rows = _size(module)[1]
                if self._is_normed(module, width):
                    continue
                if rows == count * width:
                    slices += self._rows(module, range(count), **whole)
                elif rows > count * width or rows % width:  # fewer: keys and values that several heads read
                    raise self._unknown_attention()
        slices += self._columns(out, count, **whole)
        return self._units("head", count, slices, out, width)

    def _units(self, kind: Kind, count: int, slices: list[Slice], out: nn.Module, width: int = 1, experts: bool = False) -> Units:  # fmt: skip # noqa: E501
        if not slices:
            raise self._without_part(kind)
        # Activations enter the layer around a projection, and from there the adapter too.
        return Units(self.layer, kind, count, tuple(slices), self.lora.get(out, out), width, experts)

    def _is_normed(self, module: nn.Module, width: int) -> bool:
        """Whether a norm over all heads follows (OLMo 2's q_norm after q_proj): then each row bears on every head."""
        modules = dict(self.block.named_modules())
        path = next(path for path, m in modules.items() if m is module).removesuffix(".base_layer")
        norm: Any = modules.get(path.removesuffix("proj") + "norm")
        rows = _size(module)[1]
        return norm is not None and rows > width and _shape(norm.weight) == (rows,)

    def _fused(self, module: nn.Module, count: int, width: int) -> Iterator[Slice]:
        """What heads have of one projection into queries, keys and values."""
        layout = FUSED_ATTENTION.get(self.config.model_type)
        key_heads, odd = divmod(_size(module)[1] // width - count, 2)
        if layout is None or odd or key_heads < 1 or count % key_heads:
            raise self._unknown_attention()
        readers = count // key_heads
        if readers == 1 and layout == "groups":
            yield from self._rows(module, range(count), stride=3 * width, size=3 * width)
        elif readers == 1:
            for part in range(3):
                yield from self._rows(module, range(count), first=part * count * width, stride=width, size=width)
        elif layout == "blocks":
            yield from self._rows(module, range(count), stride=width, size=width)
        else:
            for group in range(key_heads):
                units = range(group * readers, (group + 1) * readers)
                first = group * (readers + 2) * width
                yield from self._rows(module, units, first=first, stride=width, size=width)

    def _rows(self, module: Any, units: range, **places: int) -> Iterator[Slice]:
        """Units lie along the output of a projection: in its weight and, if it has one, its bias."""
        if self.lora:
            yield from self._part(module, "lora_B", 0, units, **places)
            return
        shape = _shape(module.weight)
        yield self._slice(module.weight, shape, int(isinstance(module, Conv1D)), self.std, units, **places)
        if module.bias is not None:
            yield self._slice(module.bias, (_size(module)[1], 1), 0, 0.0, units, **places)

    def _columns(self, module: Any, count: int, **places: int) -> Iterator[Slice]:
        """Units lie along the input of a projection; its bias belongs to none."""
        if self.lora:
            yield from self._part(module, "lora_A", 1, range(count), **places)
            return
        conv1d = isinstance(module, Conv1D)
        std = self.conv1d_out_std if conv1d else self.std
        yield self._slice(module.weight, _shape(module.weight), int(not conv1d), std, range(count), **places)

    def _part(self, module: nn.Module, matrix: str, axis: int, units: range, **places: int) -> Iterator[Slice]:
        """Of units in an adapter, whose matrices are stored [out, in], whatever they are put beside."""
        if module in self.lora:
            (part,) = getattr(self.lora[module], matrix).values()
            yield self._slice(part.weight, _shape(part.weight), axis, 0.0, units, **places)

    def _slice(self, parameter: nn.Parameter, matrix: tuple[int, ...], axis: int, std: float, units: range, **places: int) -> Slice:  # fmt: skip # noqa: E501
        rows, columns = matrix
        return Slice(self.names[id(parameter)], _shape(parameter), (rows, columns), axis, std, units, **places)

    def _without_part(self, kind: Kind) -> InputError:
        what, others, name = ("neurons", self.attention, "heads") if kind == "mlp" else ("heads", self.rest, "mlp")
        advice = f"erase.units: {name}" if any(m in self.lora for m in others) else "erase.layers: 0, to repair alone"
        return InputError(
            f"erase.units: the adapter has no part in the {what} of block {self.layer}: it leaves their projections alone; set {advice}"
        )

    def _unknown_mlp(self) -> InputError:
        return InputError(
            f"erase.units: {self.model}: no MLP neurons found in block {self.layer}; looked for linear modules outside attention, "
            f"the last [{self.hidden} from neurons], those before it [neurons or twice as many from {self.hidden}], or for fused experts; "
            f"found {self._found(self.rest)}; {ADAPTER}"
        )

    def _unknown_attention(self) -> InputError:
        return InputError(
            f"erase.units: {self.model}: no heads found in block {self.layer}; looked in modules named attn or attention for projections "
            f"from {self.hidden} into {self.config.num_attention_heads} heads, and one back; a fused one has to be among "
            f"FUSED_ATTENTION; found {self._found(self.attention)}; {ADAPTER}"
        )

    def _found(self, modules: list[nn.Module]) -> str:
        paths = {id(m): path for path, m in self.block.named_modules()}
        return ", ".join(f"{paths[id(m)]} {list(reversed(_size(m)))}" for m in modules) or "none"


def _is_experts(module: Any) -> bool:
    """The experts of a mixture in two parameters [experts, 2 x neurons, hidden] and [experts, hidden, neurons], gates before ups."""
    shapes = {name: _shape(parameter) for name, parameter in module.named_parameters(recurse=False)}
    down = shapes.get("down_proj", ())
    if len(down) != 3 or not getattr(module, "is_concatenated", True):
        return False
    return shapes == {"gate_up_proj": (down[0], 2 * down[2], down[1]), "down_proj": down}


def _size(module: Any) -> tuple[int, int]:
    """Sizes of a projection's input and output."""
    rows, columns = _shape(module.weight)
    return (rows, columns) if isinstance(module, Conv1D) else (columns, rows)


def _shape(parameter: Any) -> tuple[int, ...]:
    # A partitioned parameter is empty; ZeRO-3 keeps its shape.
    return tuple(getattr(parameter, "ds_shape", parameter.shape))
