"""Where a model's parameters lie in a checkpoint.

Checkpoints name tensors as the library of their day did, and store the experts of a mixture one by one, where the model has all in one
parameter. transformers knows both and says how each stored name is to be read; here that becomes, for every parameter, the stored tensors
that laid end to end are its elements. So any flat range of any parameter can be read from byte ranges, and an exported model has
the tensors of its source.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import nn
from transformers import PreTrainedModel

from sani_dist.engine.buffers import buffer_shards, persistent_buffers
from sani_dist.engine.safetensors_files import Checkpoint, read_range, same_values
from sani_dist.engine.shards import LiveShard, Shard, local_shards
from sani_dist.engine.stored_tensor import StoredTensor
from sani_dist.errors import InputError

# Tensors beside a causal model that classify, score or value what it says.
OTHER_HEAD = re.compile(
    r"(score|classifier|classification_head|qa_outputs|(v|value|reward|rm|regression)_head|summary)\."
)


@dataclass(frozen=True)
class Piece:
    """A stored tensor that holds the flat elements of a parameter from `first` on."""

    tensor: StoredTensor
    first: int


@dataclass(frozen=True)
class Layout:
    """For each parameter its shape, and the stored tensors that make it up, in order and without gaps; the tensor of each buffer."""

    shapes: Mapping[str, tuple[int, ...]]
    pieces: Mapping[str, tuple[Piece, ...]]
    buffers: Mapping[str, StoredTensor] = field(default_factory=dict)

    def read_into(self, name: str, start: int, stop: int, out: torch.Tensor) -> None:
        """Fill `out` [stop - start] with the flat elements [start, stop) of parameter `name`, converted to its dtype."""
        for piece in self.pieces[name]:
            low, high = max(start, piece.first), min(stop, piece.first + piece.tensor.numel)
            if low < high:
                read_range(piece.tensor, low - piece.first, high - piece.first, out[low - start : high - start])

    def stored(self, shards: Iterable[LiveShard]) -> Iterator[LiveShard]:
        """Shards of parameters as shards of the stored tensors, the same memory. A tensor of which nothing is here comes empty."""
        for live in shards:
            start, stop = live.shard.start, live.shard.stop
            for piece in self.pieces[live.shard.name]:
                low = min(max(start, piece.first), stop)
                high = max(low, min(stop, piece.first + piece.tensor.numel))
                origin = piece.first if low < high else low
                shard = Shard(piece.tensor.name, piece.tensor.shape, low - origin, high - origin, live.shard.dtype)
                yield LiveShard(shard, live.values[low - start : high - start])

    def parameters(self, shards: Iterable[LiveShard]) -> Iterator[LiveShard]:
        """Shards of stored tensors as shards of the parameters they belong to, the same memory; others are left out."""
        places = {piece.tensor.name: (name, piece.first) for name, found in self.pieces.items() for piece in found}
        for live in shards:
            if live.shard.name in places:
                name, first = places[live.shard.name]
                start, stop = first + live.shard.start, first + live.shard.stop
                yield LiveShard(Shard(name, self.shapes[name], start, stop, live.shard.dtype), live.values)


def find_layout(model: PreTrainedModel, checkpoint: Checkpoint, wanted: Collection[str] | None = None) -> Layout | None:
    """Where the parameters of `model` lie, or None where some need to be computed from what is stored, as transformers does.

    `wanted`: only these parameters, all of them unless given.
    """
    found = _Found(model, checkpoint)
    shapes = {name: shape for name, shape in found.shapes.items() if wanted is None or name in wanted}
    pieces = {}
    for name, shape in shapes.items():
        made_of = found.pieces_of(name, shape)
        if made_of is None:
            return None
        pieces[name] = made_of
    return Layout(shapes, pieces, found.buffers)


def check_complete(model: PreTrainedModel, checkpoint: Checkpoint) -> None:
    """Raises InputError when the model's parameters cannot be made of what is stored: transformers would draw missing ones at
    random, and say so in a warning only. Costs no weights: shapes are in the headers."""
    found = _Found(model, checkpoint)
    shapes = {**found.shapes, **{name: tuple(persistent_buffers(model)[name].shape) for name in found.buffers}}
    for name, shape in shapes.items():
        stored = found.plain.get(name) or found.buffers.get(name)
        if stored is None and name not in found.converted and not found.splits:
            raise InputError(f"model.path: {checkpoint.folder} has no tensor {name}; copy or export it again")
        if stored is not None and stored.shape != shape:
            raise InputError(
                f"model.path: {checkpoint.folder} has {stored.name} of shape {list(stored.shape)}; "
                f"its config.json says {list(shape)}"
            )

    for name in found.unread:
        if OTHER_HEAD.match(name):
            raise InputError(
                f"model.path: {checkpoint.folder} has a head that is no part of {type(model).__name__} ({name}) and would be lost; give "
                "the language model it was made from"
            )


def unread(model: PreTrainedModel, checkpoint: Checkpoint) -> list[str]:
    """Stored tensors that transformers reads into no parameter and no buffer of the model."""
    return _Found(model, checkpoint).unread


def exported(model: PreTrainedModel, checkpoint: Checkpoint) -> Iterator[LiveShard]:
    """What this rank writes of a model that was loaded from `checkpoint`: its parts of each tensor of parameters and buffers, by the names
    they are stored under. A buffer that nothing has changed leaves with the bits it came with."""
    layout = find_layout(model, checkpoint)
    shards = local_shards(model)
    yield from shards if layout is None else layout.stored(shards)
    yield from buffer_shards(model, _Found(model, checkpoint).buffers)


def untie_what_differs(model: PreTrainedModel, checkpoint: Checkpoint) -> None:
    """Give a model of its own what config.json says is another's, where both are stored and differ, as transformers does.

    model: with parameters on the meta device.
    """
    stored = _Found(model, checkpoint).aliases
    for target, source in list(model.all_tied_weights_keys.items()):
        if target not in stored or source not in stored or same_values(stored[target], stored[source]):
            continue
        path, _, name = target.rpartition(".")
        parameter = model.get_parameter(target)
        setattr(model.get_submodule(path), name, nn.Parameter(torch.empty_like(parameter), parameter.requires_grad))
        model.all_tied_weights_keys.pop(target)


def base_layout(model: PreTrainedModel, base: Checkpoint, wanted: Collection[str]) -> Layout:
    """Where the parameters `wanted` lie in the checkpoint of `erase.reset=base`.

    Only these have to be there: a vocabulary that has grown since is no obstacle. Raises InputError when one is not.
    """
    layout = find_layout(model, base, wanted)
    if layout is None:
        raise InputError(
            "model.base: its tensors are not those of model.path; expected the checkpoint it was trained from"
        )
    return layout


class _Found:
    """What transformers reads from each stored name.

    plain: parameter -> the tensor that is it. converted: parameter -> converter and, for each of its sources, the tensors that
    it is made of. splits: whether one tensor becomes several parameters, of which only the first is named. buffers: persistent buffer ->
    the tensor that is it. aliases: each name of a parameter, tied or not -> the tensor of that name. unread: stored names that are no
    part of the model.
    """

    def __init__(self, model: PreTrainedModel, checkpoint: Checkpoint) -> None:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

        buffers = persistent_buffers(model)

        # A partitioned parameter is empty; ZeRO-3 keeps its shape.
        self.shapes = {n: tuple(getattr(p, "ds_shape", p.shape)) for n, p in model.named_parameters()}
        own = {id(p): n for n, p in model.named_parameters()}
        # Tied parameters have several names, of which a checkpoint may have any.
        names = {n: own[id(p)] for n, p in model.named_parameters(remove_duplicate=False)} | {n: n for n in buffers}
        conversions = get_model_conversion_mapping(model)
        renamings = [c for c in conversions if isinstance(c, WeightRenaming)]
        converters = [c for c in conversions if isinstance(c, WeightConverter)]
        by_source = {source: c for c in converters for source in c.source_patterns}
        self.plain: dict[str, StoredTensor] = {}
        self.converted: dict[str, tuple[WeightConverter, dict[str, list[StoredTensor]]]] = {}
        self.splits = False
        self.unread: list[str] = []
        read: dict[str, str] = {}  # a name of the model, of which a tied parameter has several -> the stored one
        for stored in sorted(checkpoint.tensors, key=dot_natural_key):
            read_as, source = rename_source_key(stored, renamings, converters, model.base_model_prefix, names)
            if read_as not in names and stored in names:  # renamed by a rule that was not meant for it
                read_as, source = stored, None
            tensor = checkpoint.tensors[stored]
            if source is not None:
                converter, sources = self.converted.setdefault(read_as, (by_source[source], {}))
                sources.setdefault(source, []).append(tensor)
                self.splits |= len(converter.target_patterns) > 1
            elif read_as in names:
                if read_as in read:
                    raise InputError(
                        f"model.path: {checkpoint.folder} has {read[read_as]} and {stored}, which are both read as {read_as}; expected "
                        "each tensor once: export the model again"
                    )
                read[read_as] = stored
                if read_as == names[read_as] or names[read_as] not in self.plain:
                    self.plain[names[read_as]] = tensor
            else:
                self.unread.append(stored)
        for name in self.plain.keys() & self.converted.keys():
            raise InputError(
                f"model.path: {checkpoint.folder} has {name} whole and in parts; expected each tensor once: export the model again"
            )
        self.aliases = {name: checkpoint.tensors[stored] for name, stored in read.items()}
        self.buffers = {name: self.plain.pop(name) for name in buffers if name in self.plain}

    def pieces_of(self, name: str, shape: tuple[int, ...]) -> tuple[Piece, ...] | None:
        """The tensors that laid end to end are the parameter, or None."""
        if name in self.plain:
            return (Piece(self.plain[name], 0),) if self.plain[name].shape == shape else None
        if name not in self.converted:
            return None
        converter, sources = self.converted[name]
        # [expert, part x neurons, hidden]: experts stacked, and of each its parts one below the other.
        steps = [(type(step).__name__, getattr(step, "dim", None)) for step in converter.operations]
        if steps not in ([("MergeModulelist", 0)], [("MergeModulelist", 0), ("Concatenate", 1)]):
            return None
        parts = [sources[source] for source in converter.source_patterns if source in sources]
        if len(parts) != len(converter.source_patterns) or len({len(part) for part in parts}) != 1:
            return None
        pieces, first = [], 0
        for expert in zip(*parts, strict=True):
            rows = sum(tensor.shape[0] for tensor in expert)
            if (len(parts[0]), rows, *expert[0].shape[1:]) != shape:
                return None
            for tensor in expert:
                pieces.append(Piece(tensor, first))
                first += tensor.numel
        return tuple(pieces)
